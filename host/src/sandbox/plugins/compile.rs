//! Compiling, on threads of its own that make room for everything else.
//!
//! A component of some languages keeps every processor busy for seconds. The threads here are as many as
//! there are processors, and the system lets them wait for those that handle messages.

use std::sync::OnceLock;
use std::thread;

use rayon::{ThreadPool, ThreadPoolBuilder};

/// How much less a thread that compiles matters than one that runs messages: the system's `nice`.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;

/// The pool of the process, or none where threads cannot be made: then it is done where it is asked for.
fn pool() -> Option<&'static ThreadPool> {
    static POOL: OnceLock<Option<ThreadPool>> = OnceLock::new();
    POOL.get_or_init(|| {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|number| format!("hapax-compile-{number}"))
            .start_handler(|_| step_back())
            .build()
            .inspect_err(|error| {
                tracing::warn!(%error, "No threads of their own for compiling plugins");
            })
            .ok()
    })
    .as_ref()
}

/// Lowers the priority of this thread. On Linux it is a thread's, elsewhere it would be the process's.
fn step_back() {
    #[cfg(target_os = "linux")]
    {
        // A thread that stays as important as the others compiles as well.
        let _ = rustix::process::setpriority_process(None, NICENESS);
    }
}

/// Runs something that compiles, and waits for it.
pub(super) fn apart<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    match pool() {
        Some(pool) => pool.install(work),
        None => work(),
    }
}
