//! Who may run while a message is under suspicion: the proof that a message takes the host down.
//!
//! A crash ends everything that runs in the process, so that it accuses all of it. A message whose first
//! recorded start came to nothing therefore has the floor to itself the next time: while it runs, nothing else
//! of this process does, in no lane of no consumer. If the host goes down then, it was this message.
//!
//! Everything else shares the floor. That costs little: a crash leaves at most one recorded start for each
//! lane, and only those run on an empty floor, once; the other messages of the crash come back with no start on
//! record, share the floor, and run in all lanes at a time.
//!
//! Whoever waits for the floor has no transaction open and holds no part of it, so that nobody waits in a
//! circle; and those who share it come after one who waits to have it alone, so that he is not kept out.

use std::sync::Arc;

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

/// The floor of one host.
#[derive(Clone, Debug, Default)]
pub struct Floor(Arc<RwLock<()>>);

/// A leave to run handlers, until it is dropped.
#[derive(Debug)]
pub enum Leave {
    Shared(#[allow(dead_code, reason = "held for its drop")] OwnedRwLockReadGuard<()>),
    Alone(#[allow(dead_code, reason = "held for its drop")] OwnedRwLockWriteGuard<()>),
}

impl Floor {
    /// Waits until nobody has the floor alone or waits to.
    pub async fn share(&self) -> Leave {
        Leave::Shared(Arc::clone(&self.0).read_owned().await)
    }

    /// Waits until nobody else is on it.
    pub async fn have_alone(&self) -> Leave {
        Leave::Alone(Arc::clone(&self.0).write_owned().await)
    }
}

impl Leave {
    /// Whether others may run meanwhile.
    pub fn is_shared(&self) -> bool {
        matches!(self, Self::Shared(_))
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::poll;

    use super::*;

    #[tokio::test]
    async fn a_suspect_waits_for_an_empty_floor_and_nobody_enters_before_it_leaves() {
        let floor = Floor::default();
        let (first, second) = (floor.share().await, floor.share().await);
        let mut suspect = pin!(floor.have_alone());
        assert!(poll!(suspect.as_mut()).is_pending());
        let mut third = pin!(floor.share());
        assert!(poll!(third.as_mut()).is_pending(), "the suspect came first");
        drop(first);
        assert!(poll!(suspect.as_mut()).is_pending(), "one still runs");
        drop(second);
        let alone = suspect.await;
        assert!(!alone.is_shared());
        assert!(poll!(third.as_mut()).is_pending());
        drop(alone);
        assert!(third.await.is_shared());
    }
}
