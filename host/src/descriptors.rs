//! The files and connections that the process may have open, and what of them listeners may take.
//!
//! The system gives a process few of them unless it asks for more, and more are there for the asking. Where they run
//! out, lanes get no connection to the store: so what strangers can open is a small part of them.

/// Divisor of the limit of descriptors: the share that one listener may take.
const SHARE: u64 = 16;

/// The least that a listener can work with.
const MIN_CONNECTIONS: usize = 4;

/// Asks for as many descriptors as the process may have. For a process that starts no others: they would
/// inherit it.
#[cfg(unix)]
pub fn raise() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    let all = Rlimit {
        current: now.maximum,
        maximum: now.maximum,
    };
    if now.current == now.maximum {
        return;
    }
    match setrlimit(Resource::Nofile, all) {
        Ok(()) => {
            tracing::debug!(before = ?now.current, now = ?now.maximum, "More files may be open");
        }
        // It works with what it has.
        Err(error) => tracing::debug!(%error, "No more files may be open"),
    }
}

#[cfg(not(unix))]
pub fn raise() {}

/// How many connections a listener may hold that would like `most` of them.
pub(crate) fn share(most: usize) -> usize {
    let Some(limit) = limit() else { return most };
    let share = usize::try_from(limit / SHARE).unwrap_or(usize::MAX);
    most.min(share.max(MIN_CONNECTIONS))
}

#[cfg(unix)]
fn limit() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
}

#[cfg(not(unix))]
fn limit() -> Option<u64> {
    None
}
