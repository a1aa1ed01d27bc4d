//! One connection and the transaction on it.
//!
//! The session knows at every moment, without asking, whether its transaction is open and usable: every
//! statement goes through `rows` or `touch`, which refuse to send anything into a dead transaction and
//! note every error. The connection is taken out of the session while a statement runs, so that a future
//! that is dropped half way takes the connection with it, and the server rolls back.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lru::LruCache;
use sqlx::postgres::{PgArguments, PgConnection, PgRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Connection, Executor, Postgres, Row};

use super::Remains;
use super::errors::Refusal;
use super::ledger::Claims;
use super::warnings::listening;
use crate::store::{
    Claim, ClaimRule, ConsumerId, ConsumerRow, Entry, Expect, Fate, Finished, HostId, NamedColumn,
    OutboxDepth, OutboxRecord, OutboxRow, Rows, RowsInsert, Session, Settlement, Start, Status,
    StoreError, Upkeep, Value, WaitingFilter, WaitingRecord, WaitingRow,
};

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
    /// By a guest's statement, the one that runs in its place.
    pub(super) bounded: LruCache<String, Option<Arc<str>>>,
    /// Statements with the schema written into them.
    texts: HashMap<&'static str, Arc<str>>,
    pub(super) lock_class: i32,
    remains: Remains,
}

impl Drop for PostgresSession {
    fn drop(&mut self) {
        if self.connection.is_none() {
            self.remains.abandon();
        }
    }
}

impl PostgresSession {
    pub(super) fn new(
        connection: PgConnection,
        schema: Arc<str>,
        lock_class: i32,
        remains: Remains,
    ) -> Self {
        Self {
            remains,
            connection: Some(connection),
            lost: "the session was given up in the middle of a statement".to_owned(),
            open: false,
            failed: false,
            savepoints: Vec::new(),
            claims: Claims::default(),
            stale_plans: false,
            schema,
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
        self.connection
            .take()
            .ok_or_else(|| StoreError::Unavailable(self.lost.clone()))
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

#[async_trait]
impl Session for PostgresSession {
    async fn ping(&mut self) -> Result<(), StoreError> {
        let mut connection = self.lend()?;
        let result = connection.ping().await;
        self.back(connection, result).map_err(Refusal::own)
    }

    async fn begin(&mut self) -> Result<(), StoreError> {
        self.outside()?;
        self.command(BEGIN.to_owned()).await?;
        self.open = true;
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), StoreError> {
        if !self.open {
            return Err(StoreError::TransactionLost(
                "there is no transaction".to_owned(),
            ));
        }
        let mut connection = self.lend()?;
        self.lost = "the session was given up during COMMIT".to_owned();
        // Postgres answers COMMIT of a dead transaction with the tag ROLLBACK and no error; SET LOCAL
        // fails there instead, and nothing after it is run. The timeout must not fire while COMMIT waits
        // for a standby: it would end the wait with a warning, and the commit would look replicated.
        let commit = connection.execute("SET LOCAL statement_timeout = 0; COMMIT");
        let (result, warning) = listening(commit).await;
        match (result, warning) {
            (Ok(_), None) => {
                self.connection = Some(connection);
                self.end();
                Ok(())
            }
            (Ok(_), Some(warning)) => {
                self.end();
                self.lost = format!("COMMIT was answered with a warning: {warning}");
                Err(StoreError::InDoubt(self.lost.clone()))
            }
            (Err(error), _) => Err(self.uncommitted(connection, Refusal::of(error))),
        }
    }

    async fn rollback(&mut self) -> Result<(), StoreError> {
        if !self.open {
            return Ok(());
        }
        self.end();
        // Where the connection is lost, the transaction is too: nothing is left to undo.
        let _ = self.undo("ROLLBACK".to_owned()).await;
        Ok(())
    }

    async fn savepoint(&mut self, name: &'static str) -> Result<(), StoreError> {
        self.command(format!("SAVEPOINT {name}")).await?;
        self.savepoints.push(name);
        Ok(())
    }

    async fn rollback_to(&mut self, name: &'static str) -> Result<(), StoreError> {
        self.forget(name)?;
        self.undo(format!(
            "ROLLBACK TO SAVEPOINT {name}; RELEASE SAVEPOINT {name}"
        ))
        .await?;
        self.failed = false;
        Ok(())
    }

    async fn release(&mut self, name: &'static str) -> Result<(), StoreError> {
        self.command(format!("RELEASE SAVEPOINT {name}")).await?;
        self.forget(name)
    }

    async fn alive(&mut self) -> bool {
        self.open && !self.failed && self.connection.is_some()
    }

    async fn consumer(
        &mut self,
        name: &str,
        key_rule: &str,
        fingerprint_rule: &str,
    ) -> Result<ConsumerRow, StoreError> {
        self.get_consumer(name, key_rule, fingerprint_rule).await
    }

    async fn secret(&mut self) -> Result<Vec<u8>, StoreError> {
        self.get_secret().await
    }

    async fn claim(
        &mut self,
        rule: ClaimRule<'_>,
        claims: &[Claim<'_>],
    ) -> Result<Vec<bool>, StoreError> {
        self.ledger_claim(rule, claims).await
    }

    async fn entries(
        &mut self,
        consumer: ConsumerId,
        keys: &[&[u8]],
    ) -> Result<Vec<Option<Entry>>, StoreError> {
        self.ledger_entries(consumer, keys).await
    }

    async fn take(
        &mut self,
        rule: ClaimRule<'_>,
        claim: Claim<'_>,
        from: Fate,
    ) -> Result<bool, StoreError> {
        self.ledger_take(rule, claim, from).await
    }

    async fn unclaim(&mut self, consumer: ConsumerId, keys: &[&[u8]]) -> Result<u64, StoreError> {
        self.ledger_unclaim(consumer, keys).await
    }

    async fn settle(
        &mut self,
        consumer: ConsumerId,
        settlements: &[Settlement<'_>],
    ) -> Result<u64, StoreError> {
        self.ledger_settle(consumer, settlements).await
    }

    async fn finish(
        &mut self,
        consumer: ConsumerId,
        keys: &[&[u8]],
    ) -> Result<Finished, StoreError> {
        self.ledger_finish(consumer, keys).await
    }

    async fn keep_replies(
        &mut self,
        consumer: ConsumerId,
        replies: &[(&[u8], Vec<u8>)],
    ) -> Result<u64, StoreError> {
        self.ledger_keep_replies(consumer, replies).await
    }

    async fn replies(
        &mut self,
        consumer: ConsumerId,
        keys: &[&[u8]],
    ) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        self.ledger_replies(consumer, keys).await
    }

    async fn record_start(
        &mut self,
        rule: ClaimRule<'_>,
        claim: Claim<'_>,
        first: bool,
    ) -> Result<Start, StoreError> {
        self.ledger_record_start(rule, claim, first).await
    }

    async fn undo_start(&mut self, consumer: ConsumerId, key: &[u8]) -> Result<(), StoreError> {
        self.ledger_undo_start(consumer, key).await
    }

    async fn ledger_counts(
        &mut self,
        consumer: ConsumerId,
    ) -> Result<Vec<(Fate, u64)>, StoreError> {
        self.ledger_count(consumer).await
    }

    async fn note_retention(
        &mut self,
        consumer: ConsumerId,
        retention: Duration,
    ) -> Result<(), StoreError> {
        self.ledger_note_retention(consumer, retention).await
    }

    async fn sweep(
        &mut self,
        consumer: ConsumerId,
        retention: Duration,
        after: &[u8],
        limit: u32,
    ) -> Result<(Option<Vec<u8>>, u64), StoreError> {
        self.ledger_sweep(consumer, retention, after, limit).await
    }

    async fn waiting_put(
        &mut self,
        consumer: ConsumerId,
        rows: &[(WaitingRow, Duration)],
    ) -> Result<(), StoreError> {
        self.put_waiting(consumer, rows).await
    }

    async fn waiting_due(
        &mut self,
        consumer: ConsumerId,
        in_line: bool,
        limit: u32,
    ) -> Result<Vec<(Vec<u8>, i64)>, StoreError> {
        self.due_waiting(consumer, in_line, limit).await
    }

    async fn waiting_lines(
        &mut self,
        consumer: ConsumerId,
        partitions: &[i64],
    ) -> Result<Vec<(i64, u64)>, StoreError> {
        self.lines_waiting(consumer, partitions).await
    }

    async fn waiting_release(
        &mut self,
        consumer: ConsumerId,
        partitions: Option<&[i64]>,
    ) -> Result<u64, StoreError> {
        self.release_waiting(consumer, partitions).await
    }

    async fn waiting_held(&mut self, consumer: ConsumerId) -> Result<u64, StoreError> {
        self.held_waiting(consumer).await
    }

    async fn waiting_next(&mut self, consumer: ConsumerId) -> Result<Option<Duration>, StoreError> {
        self.next_waiting(consumer).await
    }

    async fn waiting_lock(
        &mut self,
        consumer: ConsumerId,
        id: &[u8],
    ) -> Result<Option<WaitingRow>, StoreError> {
        self.lock_waiting(consumer, id).await
    }

    async fn waiting_delete(
        &mut self,
        consumer: ConsumerId,
        ids: &[&[u8]],
    ) -> Result<u64, StoreError> {
        self.delete_waiting(consumer, ids).await
    }

    async fn waiting_start(
        &mut self,
        consumer: ConsumerId,
        id: &[u8],
        first: bool,
    ) -> Result<Start, StoreError> {
        self.start_waiting(consumer, id, first).await
    }

    async fn waiting_unstart(&mut self, consumer: ConsumerId, id: &[u8]) -> Result<(), StoreError> {
        self.unstart_waiting(consumer, id).await
    }

    async fn waiting_list(
        &mut self,
        filter: &WaitingFilter,
    ) -> Result<Vec<WaitingRecord>, StoreError> {
        self.list_waiting(filter).await
    }

    async fn waiting_replay(&mut self, ids: &[&[u8]]) -> Result<u64, StoreError> {
        self.replay_waiting(ids).await
    }

    async fn waiting_discard(&mut self, ids: &[&[u8]]) -> Result<u64, StoreError> {
        self.discard_waiting(ids).await
    }

    async fn waiting_counts(
        &mut self,
        consumer: ConsumerId,
    ) -> Result<Vec<(Status, String, u64)>, StoreError> {
        self.count_waiting(consumer).await
    }

    async fn announce(&mut self, host: HostId) -> Result<(), StoreError> {
        self.lock_host(host).await
    }

    async fn outbox_put(
        &mut self,
        host: HostId,
        rows: &[Arc<OutboxRow>],
    ) -> Result<Vec<i64>, StoreError> {
        self.put_outbox(host, rows).await
    }

    async fn outbox_take(
        &mut self,
        host: HostId,
        limit: u32,
    ) -> Result<Vec<OutboxRecord>, StoreError> {
        self.take_outbox(host, limit).await
    }

    async fn outbox_recover(
        &mut self,
        host: HostId,
        lane: i16,
        known: &[i64],
    ) -> Result<Vec<OutboxRecord>, StoreError> {
        self.recover_outbox(host, lane, known).await
    }

    async fn outbox_blocked(&mut self, sequences: &[i64]) -> Result<Vec<i64>, StoreError> {
        self.blocked_outbox(sequences).await
    }

    async fn outbox_delete(&mut self, sequences: &[i64]) -> Result<(), StoreError> {
        self.delete_outbox(sequences).await
    }

    async fn outbox_defer(
        &mut self,
        sequence: i64,
        delay: Duration,
        error: &str,
    ) -> Result<(), StoreError> {
        self.defer_outbox(sequence, delay, error).await
    }

    async fn outbox_give_back(
        &mut self,
        host: HostId,
        sequences: &[i64],
    ) -> Result<(), StoreError> {
        self.give_back_outbox(host, sequences).await
    }

    async fn outbox_depth(&mut self) -> Result<OutboxDepth, StoreError> {
        self.measure_outbox().await
    }

    async fn state_get(
        &mut self,
        consumer: ConsumerId,
        key: &str,
    ) -> Result<Option<(Vec<u8>, u64)>, StoreError> {
        self.get_state(consumer, key).await
    }

    async fn state_write(
        &mut self,
        consumer: ConsumerId,
        key: &str,
        value: Option<&[u8]>,
        expect: Expect,
    ) -> Result<bool, StoreError> {
        self.write_state(consumer, key, value, expect).await
    }

    async fn missing_column(
        &mut self,
        columns: &[NamedColumn],
    ) -> Result<Option<usize>, StoreError> {
        self.guest_missing_column(columns).await
    }

    async fn query(
        &mut self,
        statement: &str,
        parameters: &[Value],
        max_rows: u64,
        max_bytes: u64,
    ) -> Result<Rows, StoreError> {
        self.guest_query(statement, parameters, max_rows, max_bytes)
            .await
    }

    async fn insert_rows(&mut self, insert: RowsInsert<'_>) -> Result<bool, StoreError> {
        self.guest_insert_rows(insert).await
    }

    async fn execute(&mut self, statement: &str, parameters: &[Value]) -> Result<u64, StoreError> {
        self.guest_execute(statement, parameters).await
    }

    fn upkeep(&mut self) -> &mut dyn Upkeep {
        self
    }
}
