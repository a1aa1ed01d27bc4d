//! One connection and the transaction on it.
//!
//! The session knows at every moment, without asking, whether its transaction is open and usable: every
//! statement goes through `rows` or `touch`, which refuse to send anything into a dead transaction and
//! note every error. The connection is taken out of the session while a statement runs, so that a future
//! that is dropped half way takes the connection with it, and the server rolls back.

mod calls;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use lru::LruCache;
use sqlx::postgres::{PgArguments, PgConnection, PgRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Connection, Executor, Postgres, Row};

use super::errors::Refusal;
use super::ledger::Claims;
use super::stuck::{GRACE, Remains};
use crate::store::kept::KeptTexts;
use crate::store::{Session, SessionOptions, StoreError, StuckSession};

pub(super) type PgQuery<'q> = Query<'q, Postgres, PgArguments>;

/// A constraint that a schema defers is checked with its statement all the same: at COMMIT nobody could tell
/// which message of the batch it refuses.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; SET CONSTRAINTS ALL IMMEDIATE";

/// Statements that a connection keeps prepared.
pub(super) const CACHED_STATEMENTS: usize = 512;

pub(super) struct PostgresSession {
    /// Absent once it is lost.
    connection: Option<PgConnection>,
    /// Why it was lost.
    lost: String,
    open: bool,
    /// An error was not undone by a savepoint: only ROLLBACK may follow.
    failed: bool,
    pub(super) savepoints: Vec<&'static str>,
    pub(super) claims: Claims,
    /// A table under a prepared statement has changed: prepare all of them again.
    pub(super) stale_plans: bool,
    schema: Arc<str>,
    kept: KeptTexts,
    /// By a guest's statement, the one that runs in its place.
    pub(super) bounded: LruCache<String, Option<Arc<str>>>,
    /// Statements with the schema written into them.
    texts: HashMap<&'static str, Arc<str>>,
    pub(super) lock_class: i32,
    pub(super) statement_timeout: Duration,
    pub(super) lock_timeout: Duration,
    /// What the connection was lent for was a handler's.
    guests: bool,
    /// The session of this name before this one, if it does not end.
    pub(super) stuck_before: Option<StuckSession>,
    pub(super) remains: Remains,
}

impl Drop for PostgresSession {
    fn drop(&mut self) {
        if self.connection.is_none() {
            self.remains.abandon(self.guests);
        }
    }
}

impl PostgresSession {
    pub(super) fn new(
        connection: PgConnection,
        schema: Arc<str>,
        lock_class: i32,
        options: SessionOptions,
        remains: Remains,
    ) -> Self {
        Self {
            statement_timeout: options.statement_timeout,
            lock_timeout: options.lock_timeout,
            guests: false,
            stuck_before: None,
            remains,
            connection: Some(connection),
            lost: "the session was given up in the middle of a statement".to_owned(),
            open: false,
            failed: false,
            savepoints: Vec::new(),
            claims: Claims::default(),
            stale_plans: false,
            schema,
            kept: KeptTexts::default(),
            bounded: LruCache::new(
                std::num::NonZeroUsize::new(CACHED_STATEMENTS).expect("it is not zero"),
            ),
            texts: HashMap::new(),
            lock_class,
        }
    }

    /// A statement of the host's own. Its tables are written `@hapax_ledger`, which becomes
    /// `"schema".hapax_ledger`.
    pub(super) fn statement<'q>(&mut self, template: &'static str) -> PgQuery<'q> {
        let schema = &self.schema;
        let text = self.texts.entry(template).or_insert_with(|| {
            template
                .replace("@hapax_", &format!("\"{schema}\".hapax_"))
                .into()
        });
        sqlx::query(AssertSqlSafe(Arc::clone(text)))
    }

    /// Refuses to go on in a transaction that is dead.
    pub(super) fn usable(&self) -> Result<(), StoreError> {
        if self.open && (self.failed || self.connection.is_none()) {
            return Err(StoreError::TransactionLost(self.why_over()));
        }
        Ok(())
    }

    /// Lends the connection for one statement, unless the transaction is dead.
    pub(super) fn lend(&mut self) -> Result<PgConnection, StoreError> {
        self.usable()?;
        self.guests = false;
        self.connection
            .take()
            .ok_or_else(|| StoreError::Unavailable(self.lost.clone()))
    }

    /// Lends the connection for a statement of a handler, which the server may not be able to end.
    pub(super) fn lend_to_guest(&mut self) -> Result<PgConnection, StoreError> {
        let connection = self.lend()?;
        self.guests = true;
        Ok(connection)
    }

    /// Waits for the answer to a handler's statement, and not for longer than the server may take to end it. Without
    /// an answer the connection is lost with what runs on it.
    pub(super) async fn answered<T>(
        &mut self,
        answer: impl Future<Output = T>,
    ) -> Result<T, StoreError> {
        if self.statement_timeout.is_zero() {
            return Ok(answer.await);
        }
        let longest = self.statement_timeout + GRACE;
        tokio::time::timeout(longest, answer).await.map_err(|_| {
            self.failed |= self.open;
            self.lost = format!(
                "the server has not ended a statement of the handler {GRACE:?} after its timeout"
            );
            StoreError::Unanswered(self.lost.clone())
        })
    }

    /// Makes room for a statement of a handler that is prepared next.
    pub(super) async fn keep(&mut self, statement: &str) -> Result<(), StoreError> {
        if !self.kept.note(statement) {
            return Ok(());
        }
        self.bounded.clear();
        let mut connection = self.lend()?;
        let cleared = connection.clear_cached_statements().await;
        self.back(connection, cleared).map_err(Refusal::own)
    }

    fn why_over(&self) -> String {
        match self.connection {
            Some(_) => "an earlier statement failed".to_owned(),
            None => self.lost.clone(),
        }
    }

    /// Takes the connection back after a statement, and notes what its error means.
    pub(super) fn back<T>(
        &mut self,
        connection: PgConnection,
        result: Result<T, sqlx::Error>,
    ) -> Result<T, Refusal> {
        let refusal = match result {
            Ok(value) => {
                self.connection = Some(connection);
                return Ok(value);
            }
            Err(error) => Refusal::of(error),
        };
        self.failed |= self.open;
        self.stale_plans |= refusal.stale_plan;
        if refusal.lost {
            self.lost = refusal.error.to_string();
        } else {
            self.connection = Some(connection);
        }
        Err(refusal)
    }

    /// Runs a statement of the host's own and returns its rows.
    pub(super) async fn rows(&mut self, query: PgQuery<'_>) -> Result<Vec<PgRow>, StoreError> {
        let mut connection = self.lend()?;
        let result = query.fetch_all(&mut connection).await;
        self.back(connection, result).map_err(Refusal::own)
    }

    /// Runs a statement of the host's own that returns one row, or none.
    pub(super) async fn row(&mut self, query: PgQuery<'_>) -> Result<Option<PgRow>, StoreError> {
        Ok(self.rows(query).await?.into_iter().next())
    }

    /// Runs a statement of the host's own and returns how many rows it touched.
    pub(super) async fn touch(&mut self, query: PgQuery<'_>) -> Result<u64, StoreError> {
        let mut connection = self.lend()?;
        let result = query.execute(&mut connection).await;
        self.back(connection, result)
            .map(|done| done.rows_affected())
            .map_err(Refusal::own)
    }

    /// Sends a command without parameters: one round trip, nothing prepared.
    pub(super) async fn command(&mut self, command: String) -> Result<(), StoreError> {
        let mut connection = self.lend()?;
        let result = connection.execute(AssertSqlSafe(command)).await;
        self.back(connection, result)
            .map(|_| ())
            .map_err(Refusal::own)
    }

    /// The transaction is over for a reason that the server does not know.
    pub(super) fn fail(&mut self) {
        self.failed |= self.open;
    }

    /// For calls that are a transaction of their own.
    pub(super) fn outside(&self) -> Result<(), StoreError> {
        if self.open {
            return Err(StoreError::Broken(
                "this call needs a session without an open transaction".to_owned(),
            ));
        }
        Ok(())
    }

    /// Ends the transaction of a call that is one of its own.
    pub(super) async fn finish_own<T>(
        &mut self,
        result: Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        match result {
            Ok(value) => self.commit().await.map(|()| value),
            Err(error) => {
                self.rollback().await?;
                Err(error)
            }
        }
    }

    fn end(&mut self) {
        self.open = false;
        self.failed = false;
        self.savepoints.clear();
        self.claims.clear();
    }

    /// Sends a command whether or not the transaction is dead. Its failure costs the connection, because
    /// then nobody knows what is open on it.
    async fn undo(&mut self, command: String) -> Result<(), StoreError> {
        let Some(mut connection) = self.connection.take() else {
            return Err(StoreError::Unavailable(self.lost.clone()));
        };
        let mut result = connection.execute(AssertSqlSafe(command)).await.map(|_| ());
        if result.is_ok() && std::mem::take(&mut self.stale_plans) {
            self.bounded.clear();
            self.kept.clear();
            result = connection.clear_cached_statements().await;
        }
        match result {
            Ok(()) => {
                self.connection = Some(connection);
                Ok(())
            }
            Err(error) => {
                self.lost = error.to_string();
                Err(StoreError::Unavailable(self.lost.clone()))
            }
        }
    }

    /// Removes a savepoint and those after it.
    fn forget(&mut self, name: &str) -> Result<(), StoreError> {
        let place = self
            .savepoints
            .iter()
            .rposition(|savepoint| *savepoint == name);
        let place =
            place.ok_or_else(|| StoreError::Broken(format!("there is no savepoint {name}")))?;
        self.savepoints.truncate(place);
        Ok(())
    }

    /// The answer to COMMIT was an error.
    fn uncommitted(&mut self, connection: PgConnection, refusal: Refusal) -> StoreError {
        match refusal.error {
            error @ StoreError::TransactionLost(_) => {
                self.failed = true;
                self.connection = Some(connection);
                error
            }
            error if refusal.rolled_back => {
                self.end();
                self.connection = Some(connection);
                error
            }
            error => {
                self.end();
                self.lost = error.to_string();
                StoreError::InDoubt(error.to_string())
            }
        }
    }
}

/// A column of the host's own table.
pub(super) fn column<'r, T>(row: &'r PgRow, index: usize) -> Result<T, StoreError>
where
    T: sqlx::Decode<'r, Postgres> + sqlx::Type<Postgres>,
{
    row.try_get(index)
        .map_err(|error| StoreError::Broken(error.to_string()))
}
