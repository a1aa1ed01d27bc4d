//! Why a batch did not commit, and how an error of the store becomes a reason.

use crate::effects::Isolation;
use crate::failure::Class;
use crate::store::{StoreError, StuckSession};

/// Why a batch did not commit. Its transaction is rolled back, or its session dropped.
#[derive(Debug)]
pub enum Setback {
    /// Something has failed that only savepoints can keep from its neighbours, or that a guest should have heard of
    /// at its call.
    Isolate,
    /// Something has failed that cannot be told apart by message: the batch runs again in parts.
    Split(StoreError),
    /// The same batch again: a key was in flight elsewhere, or a message got its preset failure.
    Again,
    /// A partition holds as many messages as it may.
    Full,
    /// Another transaction holds the only key of this batch.
    Busy(StoreError),
    /// The session of this batch does not end, and has its keys: they can be claimed when it is gone.
    Stuck(StuckSession),
    /// The world has failed: later, with a new session.
    World(StoreError),
    /// An invariant is broken: the consumer stops.
    Ours(StoreError),
}

pub(super) fn expect_all(what: &str, touched: u64, wanted: usize) -> Result<(), Setback> {
    if touched == wanted as u64 {
        return Ok(());
    }
    // The claims are not in this transaction any more: nothing of it may be committed.
    Err(Setback::Split(StoreError::TransactionLost(format!(
        "{what} touched {touched} rows of {wanted}"
    ))))
}

/// Whether the database does not end a statement.
pub(super) fn is_unanswered(setback: &Setback) -> bool {
    matches!(setback, Setback::World(StoreError::Unanswered(_)))
}

pub(super) fn no_session() -> Setback {
    Setback::World(StoreError::Unavailable("the lane has no session".into()))
}

/// An error of a statement that the host wrote.
pub(super) fn host_error(error: StoreError) -> Setback {
    match error.ours() {
        error @ (StoreError::Conflict(_)
        | StoreError::LockTimeout(_)
        | StoreError::TransactionLost(_)) => Setback::Split(error),
        error if error.class() == Class::Ours => Setback::Ours(error),
        error => Setback::World(error),
    }
}

pub(super) fn claim_setback(error: StoreError, alone: bool) -> Setback {
    match host_error(error) {
        Setback::Split(error @ StoreError::LockTimeout(_)) if alone => Setback::Busy(error),
        setback => setback,
    }
}

/// Whether a refusal may be one that a guest was told would not come.
pub(super) fn misjudged(error: &StoreError, speculated: bool) -> bool {
    speculated && error.class() == Class::Message
}

pub(super) fn spoiled_setback(error: StoreError, isolation: Isolation, alone: bool) -> Setback {
    match (error, isolation) {
        (StoreError::TransactionLost(_), Isolation::Optimistic) => Setback::Isolate,
        // What a deferred statement of an earlier message was refused for.
        (error, _) if error.class() == Class::Message && !alone => Setback::Split(error),
        (error, _) => host_error(error),
    }
}
