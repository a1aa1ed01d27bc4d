//! Answers that are given before the database has given them.
//!
//! A plain INSERT of one row touches that row or is refused. Where nothing but the table itself looks at it,
//! `execute` answers 1 at once, and the row is written later, in its place among the effects of the batch and
//! together with its neighbours. A batch whose rows are refused then, or are not as many as were answered, is
//! rolled back and runs again with each statement at its time. What a message has been told is written, too, before
//! its failure counts: a wrong answer neither commits nor makes anybody fail.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::store::{Session, StoreError};

use super::Deferred;
use super::rules::{Statement, Table};

/// How long a table is taken for plain before it is asked again: when it is not any more, each batch that takes it
/// for plain runs twice.
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

/// Proves the answers of rows that have been written, as one statement if they are more than one. Whoever makes a
/// trigger waits for this transaction by now, or has been waited for: what is plain here was plain for the rows.
pub(super) async fn prove(
    session: &mut dyn Session,
    rows: &[Deferred],
    touched: u64,
) -> Result<(), StoreError> {
    let wrong = |message| StoreError::Statement {
        code: "21000".into(),
        message,
    };
    if touched != rows.len() as u64 {
        return Err(wrong(format!(
            "{} plain INSERTs touched {touched} rows",
            rows.len()
        )));
    }
    let [first, _, ..] = rows else {
        return Ok(());
    };
    let Some(table) = target(&first.statement) else {
        return Ok(());
    };
    let schema = table.schema.as_deref();
    let plain = session.is_plain(schema, &table.name).await?;
    first.statement.plainness.note(plain);
    match plain {
        true => Ok(()),
        false => Err(wrong(format!("{table} is not plain any more"))),
    }
}
