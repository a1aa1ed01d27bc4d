//! Deferred statements of a batch, written in as few statements as their meaning allows.
//!
//! Only neighbours merge, and only plain `INSERT … VALUES` of one text: nothing that reads, counts or
//! updates rows, where two parameter sets in one statement would mean something else than one after the
//! other.

pub mod rules;
mod speculation;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::store::{RowsInsert, STATEMENT_BYTES, Session, StoreError, Traits, Value, split};

use rules::Statement;

pub use speculation::target;

/// A statement that waits for the end of its batch.
#[derive(Debug, Clone)]
pub struct Deferred {
    pub statement: Arc<Statement>,
    pub parameters: Vec<Value>,
    /// The guest has been told that it touched one row.
    pub answered: bool,
    /// The place of its message in the batch, once the message has come to a good end.
    pub place: usize,
}

/// Whose statement the database is at: for whoever loses the session with it.
#[derive(Clone, Debug)]
pub struct AtWork(Arc<AtomicUsize>);

impl Default for AtWork {
    fn default() -> Self {
        Self(Arc::new(AtomicUsize::new(Self::NOBODY)))
    }
}

impl AtWork {
    const NOBODY: usize = usize::MAX;

    /// The message at this place of the batch.
    pub fn set(&self, place: usize) {
        self.0.store(place, Ordering::Relaxed);
    }

    /// Statements of several messages in one, or nothing of a message.
    pub fn unset(&self) {
        self.0.store(Self::NOBODY, Ordering::Relaxed);
    }

    /// The place of the only message whose statement was the last that was begun.
    pub fn place(&self) -> Option<usize> {
        Some(self.0.load(Ordering::Relaxed)).filter(|place| *place != Self::NOBODY)
    }
}

impl Deferred {
    fn merges_with(&self, other: &Deferred) -> bool {
        self.statement.merge.is_some()
            && (Arc::ptr_eq(&self.statement, &other.statement)
                || self.statement.text == other.statement.text)
    }
}

/// Writes deferred statements in order.
pub async fn write(
    session: &mut dyn Session,
    traits: &Traits,
    deferred: &[Deferred],
    at_work: &AtWork,
) -> Result<(), StoreError> {
    for run in deferred.chunk_by(Deferred::merges_with) {
        match run {
            [first, rest @ ..] if rest.iter().all(|one| one.place == first.place) => {
                at_work.set(first.place);
            }
            _ => at_work.unset(),
        }
        let touched = match write_rows(session, run).await? {
            Some(touched) => touched,
            None => write_chunks(session, traits, run).await?,
        };
        if run.iter().any(|statement| statement.answered) {
            speculation::prove(session, run, touched).await?;
        }
    }
    Ok(())
}

async fn write_chunks(
    session: &mut dyn Session,
    traits: &Traits,
    run: &[Deferred],
) -> Result<u64, StoreError> {
    let bytes = |row: &Deferred| row.parameters.iter().map(Value::size_bytes).sum();
    let mut touched = 0;
    for mut rest in split(run, STATEMENT_BYTES, bytes) {
        while let Some(first) = rest.first() {
            let rows = chunk_rows(&first.statement, rest.len(), traits.max_parameters);
            let (chunk, later) = rest.split_at(rows);
            touched += write_chunk(session, chunk).await?;
            rest = later;
        }
    }
    Ok(touched)
}

/// Hands a run to the dialect as rows, where it can take them so.
async fn write_rows(
    session: &mut dyn Session,
    run: &[Deferred],
) -> Result<Option<u64>, StoreError> {
    let [first, _, ..] = run else {
        return Ok(None);
    };
    let Some((merge, head)) = first
        .statement
        .merge
        .as_ref()
        .and_then(|merge| Some((merge, merge.head()?)))
    else {
        return Ok(None);
    };
    let rows = run
        .iter()
        .map(|row| &*row.parameters)
        .collect::<Vec<&[Value]>>();
    let insert = RowsInsert {
        text: &first.statement.text,
        head,
        order: merge.parameter_order(),
        rows: &rows,
    };
    session.insert_rows(insert).await
}

async fn write_chunk(session: &mut dyn Session, chunk: &[Deferred]) -> Result<u64, StoreError> {
    let [first, ..] = chunk else { return Ok(0) };
    let Some(merge) = first.statement.merge.as_ref().filter(|_| chunk.len() > 1) else {
        return session
            .execute(&first.statement.text, &first.parameters)
            .await;
    };
    let mut parameters = Vec::with_capacity(chunk.len() * merge.parameter_order().len());
    for row in chunk {
        for &number in merge.parameter_order() {
            let value = row.parameters.get(usize::from(number) - 1).ok_or_else(|| {
                StoreError::Statement {
                    code: "07001".into(),
                    message: format!("parameter ${number} of a deferred statement has no value"),
                }
            })?;
            parameters.push(value.clone());
        }
    }
    session
        .execute(&merge.render(chunk.len()), &parameters)
        .await
}

/// How many rows the next statement takes: a power of two, so that few distinct texts exist and the
/// database's statement cache holds them all.
fn chunk_rows(statement: &Statement, available: usize, max_parameters: usize) -> usize {
    let Some(merge) = &statement.merge else {
        return 1;
    };
    let fits = max_parameters / merge.parameter_order().len().max(1);
    let limit = available.min(fits.max(1)).min(256);
    1 << limit.ilog2()
}
