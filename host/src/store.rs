//! What the host needs from a database, as one contract over all dialects.
//!
//! A dialect holds SQL, the encoding of values and the classification of its errors, and nothing else:
//! every decision is made once, by the callers of this contract. One suite of tests (`store/contract.rs`)
//! runs over every dialect and is the definition of each method here.
//!
//! Times are the database's: a caller passes durations, the dialect adds them to its own clock.

mod catalog;
mod error;
mod kept;
mod queues;
mod rows;
mod stored;
mod upkeep;
mod value;

pub mod migrate;
pub mod postgres;
pub mod recorded;
pub mod sqlite;

#[cfg(test)]
mod contract;

pub use catalog::{ASSUMED_BYTES, ASSUMED_DIGITS, BuiltIns, CatalogAnswer, CatalogQuestion, Width};
pub use error::{Constraint, ConstraintKind, StoreError};
pub use queues::{QueuedMessage, Queues};
pub use rows::{
    Claim, ClaimRule, ConsumerId, ConsumerRow, Entry, Expect, Fate, Finished, HostId, NamedColumn,
    OutboxDepth, OutboxRecord, OutboxRow, RowsInsert, Settlement, Start, Status, StuckSession,
    TAKEN_LANE, WaitingRow,
};
pub(crate) use stored::{STATEMENT_BYTES, split};
pub use upkeep::{
    ConsumerMarks, JOURNAL_ENTRIES, JournalEntry, LedgerPage, LedgerRecord, Mark, OutboxFilter,
    OutboxListing, Pause, Upkeep, WaitingFilter, WaitingRecord,
};
pub use value::{Column, Rows, Value};

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

/// The languages of SQL that stores speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    Postgres,
    Sqlite,
    Mysql,
}

/// What is true of a dialect and shapes the pipeline.
#[derive(Clone, Copy, Debug)]
pub struct Traits {
    pub dialect: Dialect,
    /// An errored statement leaves the transaction unusable unless a savepoint was set before it.
    pub error_kills_transaction: bool,
    /// One transaction at a time in the whole store.
    pub single_writer: bool,
    /// Savepoints that one transaction should not set, released ones included.
    pub max_savepoints: usize,
    /// Parameters that one statement can take.
    pub max_parameters: usize,
}

/// How long the database lets a session work and wait.
#[derive(Clone, Copy, Debug)]
pub struct SessionOptions {
    /// For one statement; zero is no limit.
    pub statement_timeout: Duration,
    /// For a row or a key that another transaction holds; zero waits as long as the statement may.
    pub lock_timeout: Duration,
    /// For an open transaction without a statement, beyond what one statement may take. A host that hangs or is
    /// cut off holds its claims for so long.
    pub idle_timeout: Duration,
}

/// A database.
#[async_trait]
pub trait Store: Send + Sync {
    fn traits(&self) -> Traits;

    /// Opens a session. `name` is shown to the database's operator (`application_name`).
    /// SQLite: every session shares the one connection, for the length of a transaction each.
    async fn session(&self, name: &str) -> Result<Box<dyn Session>, StoreError>;

    /// Migrations that are known and not applied, by name, in order.
    async fn pending_migrations(&self) -> Result<Vec<String>, StoreError>;

    /// Applies them, one host at a time, and returns their names.
    async fn migrate(&self) -> Result<Vec<String>, StoreError>;

    /// Settings of the server that would break the promise, as sentences for the operator.
    async fn warnings(&self) -> Result<Vec<String>, StoreError>;

    /// Sessions that were left behind, since a statement on them does not end. What they hold is held until they are
    /// gone, also when this host is.
    fn stuck_sessions(&self) -> Vec<StuckSession> {
        Vec::new()
    }

    /// Takes in what [`Upkeep::stuck_sessions`] has found, where `before` was known when it was asked.
    fn note_stuck(&self, before: &[StuckSession], found: Vec<StuckSession>) {
        let _ = (before, found);
    }

    /// Leaves the database in an orderly way, when nobody uses a session any more.
    async fn close(&self) {}
}

/// One connection, and at most one transaction on it.
///
/// None of these futures is cancel safe unless it says so: a session whose future was dropped is
/// discarded, which rolls back what it had not committed.
#[async_trait]
pub trait Session: Send {
    /// The session of this name before this one, where it was left behind because it does not end: what it had
    /// claimed stays locked for as long as it is among [`Store::stuck_sessions`], and is rolled back then.
    fn stuck_before(&self) -> Option<StuckSession> {
        None
    }

    /// One round trip, outside any transaction.
    async fn ping(&mut self) -> Result<(), StoreError>;

    /// Begins a transaction, READ COMMITTED (SQLite: IMMEDIATE; waits for the other sessions).
    async fn begin(&mut self) -> Result<(), StoreError>;

    /// Commits. `Ok` only when the database said that it committed.
    /// [`StoreError::InDoubt`] when the answer did not arrive.
    async fn commit(&mut self) -> Result<(), StoreError>;

    /// Ends the transaction without a trace. Harmless without one.
    async fn rollback(&mut self) -> Result<(), StoreError>;

    /// Sets a savepoint. Names are the host's own (`hapax_message`, `hapax_statement`).
    async fn savepoint(&mut self, name: &'static str) -> Result<(), StoreError>;

    /// Undoes everything since the savepoint, and removes it.
    async fn rollback_to(&mut self, name: &'static str) -> Result<(), StoreError>;

    /// Forgets the savepoint and keeps what came after it.
    async fn release(&mut self, name: &'static str) -> Result<(), StoreError>;

    /// Whether the transaction that `begin` opened is still open and usable. Asked after every errored
    /// statement. No round trip.
    async fn alive(&mut self) -> bool;

    // ---- consumers -------------------------------------------------------------------------------

    /// The consumer's row, made when it is not there. Outside any transaction.
    async fn consumer(
        &mut self,
        name: &str,
        key_rule: &str,
        fingerprint_rule: &str,
    ) -> Result<ConsumerRow, StoreError>;

    /// The secret of the store, 32 random bytes made once. Seeds ids and randomness.
    async fn secret(&mut self) -> Result<Vec<u8>, StoreError>;

    // ---- ledger ----------------------------------------------------------------------------------

    /// Inserts the keys that are not there, as committed by this transaction if it commits, and says for
    /// each whether it was new. Keys are distinct and sorted. Waits for other transactions that hold a
    /// key, up to the lock timeout ([`StoreError::LockTimeout`]).
    async fn claim(
        &mut self,
        rule: ClaimRule<'_>,
        claims: &[Claim<'_>],
    ) -> Result<Vec<bool>, StoreError>;

    /// What the ledger says of keys, by a statement of its own so that it sees what committed meanwhile.
    /// In the order of `keys`; `None` where there is no row.
    async fn entries(
        &mut self,
        consumer: ConsumerId,
        keys: &[&[u8]],
    ) -> Result<Vec<Option<Entry>>, StoreError>;

    /// Claims a key whose row is there with the fate `from`: true when it still was and the row is now as
    /// after [`Session::claim`]. Waits like `claim`.
    async fn take(
        &mut self,
        rule: ClaimRule<'_>,
        claim: Claim<'_>,
        from: Fate,
    ) -> Result<bool, StoreError>;

    /// Forgets keys that a `claim` of this very transaction made new, as if it had not claimed them; returns
    /// how many there were. Keys that were taken are not among them: what stood there is not known any more.
    async fn unclaim(&mut self, consumer: ConsumerId, keys: &[&[u8]]) -> Result<u64, StoreError>;

    /// Gives claimed keys another fate; returns how many rows it changed.
    async fn settle(
        &mut self,
        consumer: ConsumerId,
        settlements: &[Settlement<'_>],
    ) -> Result<u64, StoreError>;

    /// The last statement before COMMIT: how many of `keys` this very transaction has claimed, which makes
    /// those final that were not settled otherwise. Any other number than all of them is a broken
    /// transaction. The horizon that comes with it was read after the claims, so that a sweep that made a
    /// claimed key new shows in it.
    async fn finish(
        &mut self,
        consumer: ConsumerId,
        keys: &[&[u8]],
    ) -> Result<Finished, StoreError>;

    /// Keeps the answers of messages for their duplicates, with keys that this transaction has claimed;
    /// returns how many rows it changed.
    async fn keep_replies(
        &mut self,
        consumer: ConsumerId,
        replies: &[(&[u8], Vec<u8>)],
    ) -> Result<u64, StoreError>;

    /// The answers that are kept under keys, in the order of `keys`.
    async fn replies(
        &mut self,
        consumer: ConsumerId,
        keys: &[&[u8]],
    ) -> Result<Vec<Option<Vec<u8>>>, StoreError>;

    /// The handler of a message had nothing to do, and said why. No store keeps that; one that records does.
    fn note_ignored(&mut self, _reason: &str) {}

    /// Inserts or replaces the row of a key outside any claim: records that a redelivered message starts
    /// (`Fate::Started`, attempts = starts so far: the table counts them, `claim.attempts` is not read).
    /// A row with another fate than `Started` is left alone, and with `first` so is one that counts a start
    /// already. A transaction of its own.
    async fn record_start(
        &mut self,
        rule: ClaimRule<'_>,
        claim: Claim<'_>,
        first: bool,
    ) -> Result<Start, StoreError>;

    /// Takes a recorded start back: attempts − 1, and the row goes when none is left.
    async fn undo_start(&mut self, consumer: ConsumerId, key: &[u8]) -> Result<(), StoreError>;

    /// Rows by fate, for `status`.
    async fn ledger_counts(&mut self, consumer: ConsumerId)
    -> Result<Vec<(Fate, u64)>, StoreError>;

    /// Remembers that keys are claimed under this retention, before the first one is.
    async fn note_retention(
        &mut self,
        consumer: ConsumerId,
        retention: Duration,
    ) -> Result<(), StoreError>;

    /// Deletes expired rows of a consumer among the next `limit` rows after `after` in key order, and
    /// raises the horizon. A row may have been claimed under the shortest retention that was noted, or a
    /// longer one: it stays until `retention` is over in any case, and the horizon is not before the time of
    /// any message whose row has gone. Rows that wait or are parked stay. Returns the last key looked at,
    /// `None` at the end, and the number of deleted rows. A transaction of its own.
    async fn sweep(
        &mut self,
        consumer: ConsumerId,
        retention: Duration,
        after: &[u8],
        limit: u32,
    ) -> Result<(Option<Vec<u8>>, u64), StoreError>;

    // ---- waiting ---------------------------------------------------------------------------------

    /// Writes failed messages, `due` from now. A row with the same id is replaced when it has a key
    /// (the failure is newer), and left alone when it has none (the same content was parked before).
    async fn waiting_put(
        &mut self,
        consumer: ConsumerId,
        rows: &[(WaitingRow, Duration)],
    ) -> Result<(), StoreError>;

    /// Ids and partitions of rows with status `retry` that are due, oldest first, without locking them.
    /// `in_line`: only those that stand first in their partition's line, which rows with a key form in
    /// the order of their arrival.
    async fn waiting_due(
        &mut self,
        consumer: ConsumerId,
        in_line: bool,
        limit: u32,
    ) -> Result<Vec<(Vec<u8>, i64)>, StoreError>;

    /// Which of these partitions have a line, and how many rows of it are held. Locks the first row of each
    /// until the transaction ends: a line that was named neither grows nor moves for anybody else, and one
    /// that was not had no row when its first one was waited for.
    async fn waiting_lines(
        &mut self,
        consumer: ConsumerId,
        partitions: &[i64],
    ) -> Result<Vec<(i64, u64)>, StoreError>;

    /// Makes the first row of these partitions' lines due now if it is held; `None` means all lines.
    /// Returns how many rows it released.
    async fn waiting_release(
        &mut self,
        consumer: ConsumerId,
        partitions: Option<&[i64]>,
    ) -> Result<u64, StoreError>;

    /// How many rows the line holds that holds most.
    async fn waiting_held(&mut self, consumer: ConsumerId) -> Result<u64, StoreError>;

    /// How long until the next row of status `retry` is due. Zero when one is; `None` without any.
    async fn waiting_next(&mut self, consumer: ConsumerId) -> Result<Option<Duration>, StoreError>;

    /// Locks a due row for this transaction; `None` when it is gone, not due, or another host has it.
    async fn waiting_lock(
        &mut self,
        consumer: ConsumerId,
        id: &[u8],
    ) -> Result<Option<WaitingRow>, StoreError>;

    /// Which of these rows of `hapax_waiting` are messages that were parked beside their keys, since a session that
    /// does not end had them: `sql-unstoppable`.
    async fn parked_apart(
        &mut self,
        consumer: ConsumerId,
        ids: &[Vec<u8>],
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        let _ = (consumer, ids);
        Ok(Vec::new())
    }

    /// Removes rows; returns how many there were.
    async fn waiting_delete(
        &mut self,
        consumer: ConsumerId,
        ids: &[&[u8]],
    ) -> Result<u64, StoreError>;

    /// Adds one to the starts of a due `retry` row that is not locked; with `first` only if it has none. A
    /// transaction of its own, before the one that runs the row; `waiting_put` and `waiting_unstart` set the
    /// number back.
    async fn waiting_start(
        &mut self,
        consumer: ConsumerId,
        id: &[u8],
        first: bool,
    ) -> Result<Start, StoreError>;

    /// Takes one recorded start back.
    async fn waiting_unstart(&mut self, consumer: ConsumerId, id: &[u8]) -> Result<(), StoreError>;

    /// Rows for the operator, newest failure first.
    async fn waiting_list(
        &mut self,
        filter: &WaitingFilter,
    ) -> Result<Vec<WaitingRecord>, StoreError>;

    /// Makes parked rows run again now, from attempt 1: status `retry`, due now, and the key's fate
    /// `waiting`. Returns how many rows were parked. A transaction of its own.
    async fn waiting_replay(&mut self, ids: &[&[u8]]) -> Result<u64, StoreError>;

    /// Removes parked rows for good; their keys' fate becomes `discarded`, and what they held back is
    /// released. Returns how many rows there were. A transaction of its own.
    async fn waiting_discard(&mut self, ids: &[&[u8]]) -> Result<u64, StoreError>;

    /// Rows by status and code, for `status` and metrics.
    async fn waiting_counts(
        &mut self,
        consumer: ConsumerId,
    ) -> Result<Vec<(Status, String, u64)>, StoreError>;

    // ---- outbox ----------------------------------------------------------------------------------

    /// Says that this session's host lives, for as long as the session does (an advisory lock).
    async fn announce(&mut self, host: HostId) -> Result<(), StoreError>;

    /// Inserts rows in order; returns their sequences in the same order. Rows without a delay belong to
    /// `host` and are not polled while it lives; rows with one become due.
    async fn outbox_put(
        &mut self,
        host: HostId,
        rows: &[Arc<OutboxRow>],
    ) -> Result<Vec<i64>, StoreError>;

    /// Takes up to `limit` rows that are due, or whose host is gone, oldest first, with SKIP LOCKED, and
    /// makes them this host's, lane [`TAKEN_LANE`]. A row whose ordering key has an older row is taken
    /// only together with that one. A transaction of its own; when it is in doubt, `outbox_recover` with
    /// [`TAKEN_LANE`] finds what it took.
    async fn outbox_take(
        &mut self,
        host: HostId,
        limit: u32,
    ) -> Result<Vec<OutboxRecord>, StoreError>;

    /// Rows of `host` and `lane` that are not due later and not in `known`: what a COMMIT in doubt left.
    async fn outbox_recover(
        &mut self,
        host: HostId,
        lane: i16,
        known: &[i64],
    ) -> Result<Vec<OutboxRecord>, StoreError>;

    /// Which of these rows have an older row with the same ordering key before them. Their turn is later.
    async fn outbox_blocked(&mut self, sequences: &[i64]) -> Result<Vec<i64>, StoreError>;

    /// Removes rows that the broker has confirmed.
    async fn outbox_delete(&mut self, sequences: &[i64]) -> Result<(), StoreError>;

    /// Keeps a row for later: attempts + 1, due after `delay`, with the error for the operator.
    async fn outbox_defer(
        &mut self,
        sequence: i64,
        delay: Duration,
        error: &str,
    ) -> Result<(), StoreError>;

    /// Leaves rows of `host` to whoever takes the older ones of their ordering keys: they are due when the oldest
    /// one is, now if that has no time of its own. No attempt of theirs is counted.
    async fn outbox_give_back(&mut self, host: HostId, sequences: &[i64])
    -> Result<(), StoreError>;

    async fn outbox_depth(&mut self) -> Result<OutboxDepth, StoreError>;

    // ---- state -----------------------------------------------------------------------------------

    /// A value and its version, locked for this transaction where the store can lock a row.
    async fn state_get(
        &mut self,
        consumer: ConsumerId,
        key: &str,
    ) -> Result<Option<(Vec<u8>, u64)>, StoreError>;

    /// Writes (`Some`) or removes (`None`) a value; false when what was expected is not there.
    async fn state_write(
        &mut self,
        consumer: ConsumerId,
        key: &str,
        value: Option<&[u8]>,
        expect: Expect,
    ) -> Result<bool, StoreError>;

    // ---- the guest's own SQL ---------------------------------------------------------------------

    /// The place of the first of these names that is no column, for a guest's statement that would run now. Only
    /// asked where a name that is no column could mean something else.
    async fn missing_column(
        &mut self,
        columns: &[NamedColumn],
    ) -> Result<Option<usize>, StoreError> {
        let _ = columns;
        Ok(None)
    }

    /// What the catalog says about the names of a guest's statement that would run now. Only asked where a database
    /// lets its owner give a name of its own built-ins to something else, and has columns of types that are short.
    async fn catalog(&mut self, question: &CatalogQuestion) -> Result<CatalogAnswer, StoreError> {
        let _ = question;
        Ok(CatalogAnswer::default())
    }

    /// Runs one prepared statement and returns its rows, or [`StoreError::Limit`] when they are more
    /// than `max_rows` rows or `max_bytes` of values.
    async fn query(
        &mut self,
        statement: &str,
        parameters: &[Value],
        max_rows: u64,
        max_bytes: u64,
    ) -> Result<Rows, StoreError>;

    /// Runs one prepared statement and returns the number of rows it touched.
    async fn execute(&mut self, statement: &str, parameters: &[Value]) -> Result<u64, StoreError>;

    /// Runs a plain INSERT once for each row, as one statement, and returns the number of rows it touched.
    /// `None`, and nothing is done, where the dialect or the types of this statement have no such form.
    async fn insert_rows(&mut self, insert: RowsInsert<'_>) -> Result<Option<u64>, StoreError> {
        let _ = insert;
        Ok(None)
    }

    /// Whether plain INSERTs into this table leave the same as one statement as they do one by one: nothing of its
    /// own looks at the rows, neither a trigger nor a rule, a policy, a function in a default, a check or an index, or
    /// a reference to itself. False where that is not known.
    async fn is_plain(&mut self, schema: Option<&str>, table: &str) -> Result<bool, StoreError> {
        let _ = (schema, table);
        Ok(false)
    }

    // ---- operators -------------------------------------------------------------------------------

    /// The same session at an operator's hands.
    fn upkeep(&mut self) -> &mut dyn Upkeep;

    // ---- the embedded broker ---------------------------------------------------------------------

    /// Where this store also holds queues, the way to them. Only SQLite does.
    fn queues(&mut self) -> Option<&mut dyn Queues> {
        None
    }
}
