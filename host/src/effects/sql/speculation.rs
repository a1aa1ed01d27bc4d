//! Answers that are given before the database has given them.
//!
//! A plain INSERT of one row touches that row or is refused. Where nothing but the table itself looks at it,
//! `execute` answers 1 at once, and the row is written later, in its place among the effects of the batch and
//! together with its neighbours. A batch whose rows are refused then, or are not as many as were answered, is
//! rolled back and runs again with each statement at its time, and so is one in which a message fails that was
//! given such an answer: a wrong one neither commits nor makes anybody fail.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::rules::{Statement, Table};

/// How long what is known of a table holds: a migration may give it a trigger at any time.
const HOLDS: Duration = Duration::from_secs(10);

/// What is known of a statement's table.
#[derive(Debug, Default)]
pub struct Plainness(Mutex<Option<Known>>);

#[derive(Clone, Copy, Debug)]
struct Known {
    since: Instant,
    plain: bool,
}

impl Plainness {
    /// Whether the database has said lately that rows may be written together; `None` when it has to be asked.
    pub fn known(&self) -> Option<bool> {
        let known = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known
            .filter(|known| known.since.elapsed() < HOLDS)
            .map(|known| known.plain)
    }

    pub fn note(&self, plain: bool) {
        let known = Known {
            since: Instant::now(),
            plain,
        };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(known);
    }
}

/// The table of a statement that can be answered before it runs, if its table allows it.
pub fn target(statement: &Statement) -> Option<&Table> {
    statement.merge.as_ref()?;
    statement.writes.first()
}
