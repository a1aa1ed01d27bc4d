//! Compiling, on threads of its own that make room for everything else.
//!
//! A component of some languages keeps every processor busy for seconds. The threads here are as many as
//! there are processors, and the system lets them wait for those that handle messages. What takes too long is given
//! up: nobody can stop the compiler, so that its threads go on by themselves, and only a few may.

use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use rayon::{ThreadPool, ThreadPoolBuilder};

/// How much less a thread that compiles matters than one that runs messages: the system's `nice`.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;

/// What was given up and is compiled still. With as many, nothing else is compiled.
const MAX_GIVEN_UP: usize = 2;

/// The threads that compile now, or none where threads cannot be made: then it is done where it is asked for.
static POOL: Mutex<Option<Arc<ThreadPool>>> = Mutex::new(None);

static GIVEN_UP: AtomicUsize = AtomicUsize::new(0);

/// Why nothing was compiled.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Late {
    /// It took longer than it may.
    TooLong,
    /// What was given up before takes all there is.
    Busy,
}

fn pool() -> Option<Arc<ThreadPool>> {
    let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    if pool.is_none() {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        *pool = ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|number| format!("hapax-compile-{number}"))
            .start_handler(|_| step_back())
            .build()
            .inspect_err(|error| {
                tracing::warn!(%error, "No threads of their own for compiling plugins");
            })
            .ok()
            .map(Arc::new);
    }
    pool.clone()
}

/// Lowers the priority of this thread. On Linux it is a thread's, elsewhere it would be the process's.
fn step_back() {
    #[cfg(target_os = "linux")]
    {
        // A thread that stays as important as the others compiles as well.
        let _ = rustix::process::setpriority_process(None, NICENESS);
    }
}

/// How far something is that compiles.
const RUNNING: u8 = 0;
const ENDED: u8 = 1;
const LEFT: u8 = 2;

/// Runs something that compiles, and waits for it for as long as it may take.
pub(super) fn apart<T: Send + 'static>(
    most: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Late> {
    if GIVEN_UP.load(Ordering::SeqCst) >= MAX_GIVEN_UP {
        return Err(Late::Busy);
    }
    let Some(pool) = pool() else {
        return Ok(work());
    };
    let state = Arc::new(AtomicU8::new(RUNNING));
    let (done, result) = mpsc::sync_channel(1);
    let theirs = Arc::clone(&state);
    pool.spawn(move || {
        let made = panic::catch_unwind(AssertUnwindSafe(work));
        if theirs.swap(ENDED, Ordering::SeqCst) == LEFT {
            GIVEN_UP.fetch_sub(1, Ordering::SeqCst);
            tracing::info!("A plugin whose compiling was given up is compiled, and is not used");
        }
        // Nobody may be waiting any more.
        let _ = done.send(made);
    });
    let made = match result.recv_timeout(most) {
        Ok(made) => made,
        Err(_) => {
            let left = state.compare_exchange(RUNNING, LEFT, Ordering::SeqCst, Ordering::SeqCst);
            match (left, result.try_recv()) {
                (Err(_), Ok(made)) => made,
                // It has just ended, and its answer is on its way.
                (Err(_), Err(_)) => result.recv().map_err(|_| Late::TooLong)?,
                (Ok(_), _) => {
                    GIVEN_UP.fetch_add(1, Ordering::SeqCst);
                    // Its threads are its own from here on.
                    *POOL.lock().unwrap_or_else(PoisonError::into_inner) = None;
                    return Err(Late::TooLong);
                }
            }
        }
    };
    Ok(made.unwrap_or_else(|panic| panic::resume_unwind(panic)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The only test that gives anything up, since the others compile in this process.
    #[test]
    fn what_takes_too_long_is_given_up_and_holds_up_no_other() {
        let (end, ends) = mpsc::channel::<()>();
        let given_up = apart(Duration::from_millis(1), move || ends.recv().is_ok());
        assert_eq!(given_up, Err(Late::TooLong));
        assert_eq!(apart(Duration::from_secs(600), || 7), Ok(7));
        assert!(GIVEN_UP.load(Ordering::SeqCst) > 0);
        end.send(()).expect("it waits for that");
        while GIVEN_UP.load(Ordering::SeqCst) > 0 {
            thread::yield_now();
        }
    }
}
