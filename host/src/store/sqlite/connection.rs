//! The one connection, and what is open on it.
//!
//! SQLite ends a transaction by itself on a full disk, an interrupt, an `OR ROLLBACK`, and the next
//! statement would commit alone. Its rollback hook is called then and only then (and on ROLLBACK), so it is
//! the exact answer to whether the transaction lives, and every statement asks it first.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lru::LruCache;
use sqlx::query::Query;
use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteRow,
    SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, Row, SqlSafeStr, Sqlite};
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::timeout;

use super::bounds;
use super::errors::Refusal;
use super::guest::Described;
use super::json;
use super::lock::ProcessLock;
use super::marks::Marks;
use super::place::DatabaseFile;
use crate::failpoint::{self, Point};
use crate::store::kept::KeptTexts;
use crate::store::{Dialect, SessionOptions, StoreError, migrate};

pub(super) type SqliteQuery<'q> = Query<'q, Sqlite, SqliteArguments>;

/// What the sessions of a store share.
pub(super) struct Shared {
    options: SessionOptions,
    slot: Arc<Mutex<Slot>>,
    /// Somebody waits for the connection for longer than all is well, and it was said.
    waits: AtomicBool,
    pub(super) marks: Marks,
    _lock: ProcessLock,
}

/// The place of the connection.
pub(super) struct Slot {
    file: DatabaseFile,
    connection: Option<SqliteConnection>,
    /// A transaction was begun and not ended by us.
    open: bool,
    /// Set by SQLite when a transaction ends, whoever ended it.
    ended: Arc<AtomicBool>,
    deadline: Arc<Deadline>,
    statement_timeout: Duration,
    /// The longest value.
    value_bytes: i32,
    kept: KeptTexts,
    /// How long values may be for now.
    longest: i32,
    pub(super) described: LruCache<String, Arc<Described>>,
}

/// When the running statement is interrupted.
struct Deadline {
    start: Instant,
    /// Microseconds after `start`, or [`NEVER`].
    at: AtomicU64,
}

const NEVER: u64 = u64::MAX;

/// The limit of a statement that runs. Dropped while somebody waits for the statement, which happens when a
/// message is out of time, it interrupts it: the connection would be busy with it, and the store with the
/// connection, for as long as it takes.
pub(super) struct Limit {
    deadline: Arc<Deadline>,
    /// What the deadline becomes.
    until: u64,
}

impl Limit {
    /// The statement has ended.
    pub fn lift(mut self) {
        self.until = NEVER;
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        self.deadline.at.store(self.until, Ordering::Relaxed);
    }
}

/// How many steps of SQLite's machine pass between two looks at the clock: well below a millisecond.
const STEPS: i32 = 10_000;

const CACHED_STATEMENTS: usize = 512;

/// A wait for the connection that is told of.
const LONG_WAIT: Duration = Duration::from_secs(10);

impl Shared {
    pub fn new(
        file: DatabaseFile,
        options: SessionOptions,
        value_bytes: i32,
        lock: ProcessLock,
    ) -> Self {
        let slot = Slot {
            file,
            connection: None,
            open: false,
            ended: Arc::new(AtomicBool::new(false)),
            deadline: Arc::new(Deadline {
                start: Instant::now(),
                at: AtomicU64::new(NEVER),
            }),
            statement_timeout: options.statement_timeout,
            value_bytes,
            kept: KeptTexts::default(),
            longest: value_bytes,
            described: LruCache::new(
                std::num::NonZeroUsize::new(CACHED_STATEMENTS).expect("it is not zero"),
            ),
        };
        Self {
            options,
            slot: Arc::new(Mutex::new(slot)),
            waits: AtomicBool::new(false),
            marks: Marks::default(),
            _lock: lock,
        }
    }

    /// Waits for the connection. It is open, and without a transaction.
    pub async fn lock(&self) -> Result<OwnedMutexGuard<Slot>, StoreError> {
        let mut taken = pin!(self.take());
        if let Ok(taken) = timeout(LONG_WAIT, &mut taken).await {
            return taken;
        }
        if !self.waits.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                waited_seconds = LONG_WAIT.as_secs(),
                "SQLite's connection is in use, and every consumer waits for it: a transaction is long, or one call of \
                 a function is, which nothing interrupts"
            );
        }
        let taken = taken.await;
        if self.waits.swap(false, Ordering::Relaxed) {
            tracing::info!("SQLite's connection is free again");
        }
        taken
    }

    async fn take(&self) -> Result<OwnedMutexGuard<Slot>, StoreError> {
        let mut slot = Arc::clone(&self.slot).lock_owned().await;
        if slot.open {
            // A session was dropped inside its transaction.
            slot.rollback().await;
        }
        slot.file.check()?;
        if slot.connection.is_none() {
            let connection = self
                .connect(&slot)
                .await
                .map_err(|error| Refusal::of(error).own())?;
            slot.connection = Some(connection);
            slot.longest = slot.value_bytes;
            slot.kept.clear();
            slot.file.note_log();
            // It was opened by its path.
            slot.file.check()?;
        }
        Ok(slot)
    }

    async fn connect(&self, slot: &Slot) -> Result<SqliteConnection, sqlx::Error> {
        let mut connection = SqliteConnectOptions::new()
            .filename(slot.file.path())
            // Whoever opened the store has made it; what is missing now is gone.
            .create_if_missing(false)
            .busy_timeout(self.options.lock_timeout)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            // Without it a disk of a Mac acknowledges what it has not written.
            .pragma("fullfsync", "ON")
            .pragma("cache_size", "-32768")
            .statement_cache_capacity(CACHED_STATEMENTS)
            .disable_statement_logging()
            .connect()
            .await?;
        let mut handle = connection.lock_handle().await?;
        bounds::set(&mut handle, slot.value_bytes);
        json::guard(&mut handle)?;
        let (rolled_back, committed) = (Arc::clone(&slot.ended), Arc::clone(&slot.ended));
        handle.set_rollback_hook(move || rolled_back.store(true, Ordering::SeqCst));
        handle.set_commit_hook(move || {
            committed.store(true, Ordering::SeqCst);
            true
        });
        let deadline = Arc::clone(&slot.deadline);
        handle.set_progress_handler(STEPS, move || {
            let at = deadline.at.load(Ordering::Relaxed);
            at == NEVER || deadline.start.elapsed().as_micros() < u128::from(at)
        });
        drop(handle);
        // The log is opened when something is read for the first time.
        connection.execute("SELECT 1 FROM sqlite_schema").await?;
        Ok(connection)
    }
}

impl Slot {
    /// Whether the transaction that was begun is open and usable.
    pub fn alive(&self) -> bool {
        self.open && self.connection.is_some() && !self.ended.load(Ordering::SeqCst)
    }

    /// The connection, for a statement that may run now.
    pub fn usable(&mut self) -> Result<&mut SqliteConnection, StoreError> {
        if self.open && !self.alive() {
            return Err(StoreError::TransactionLost(
                "SQLite rolled it back".to_owned(),
            ));
        }
        self.connection
            .as_mut()
            .ok_or_else(|| StoreError::Unavailable("the connection was lost".to_owned()))
    }

    /// Notes what an error means for the connection.
    pub fn refusal(&mut self, error: sqlx::Error) -> Refusal {
        let refusal = Refusal::of(error);
        if refusal.lost {
            self.connection = None;
            self.described.clear();
        }
        refusal
    }

    /// Runs a statement of the host's own and returns its rows.
    pub async fn rows(&mut self, query: SqliteQuery<'_>) -> Result<Vec<SqliteRow>, StoreError> {
        let result = query.fetch_all(self.usable()?).await;
        result.map_err(|error| self.refusal(error).own())
    }

    /// Runs a statement of the host's own that returns one row, or none.
    pub async fn row(&mut self, query: SqliteQuery<'_>) -> Result<Option<SqliteRow>, StoreError> {
        Ok(self.rows(query).await?.into_iter().next())
    }

    /// Runs a statement of the host's own and returns how many rows it touched.
    pub async fn touch(&mut self, query: SqliteQuery<'_>) -> Result<u64, StoreError> {
        let result = query.execute(self.usable()?).await;
        result
            .map(|done| done.rows_affected())
            .map_err(|error| self.refusal(error).own())
    }

    /// Sends statements without parameters.
    pub async fn command(&mut self, command: impl SqlSafeStr) -> Result<(), StoreError> {
        let command = command.into_sql_str();
        let result = self.usable()?.execute(command).await;
        result
            .map(|_| ())
            .map_err(|error| self.refusal(error).own())
    }

    /// From now until it is lifted, a statement is interrupted after the statement timeout.
    pub fn limited(&self) -> Limit {
        if !self.statement_timeout.is_zero() {
            let at = (self.deadline.start.elapsed() + self.statement_timeout).as_micros();
            self.deadline
                .at
                .store(u64::try_from(at).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
        Limit {
            deadline: Arc::clone(&self.deadline),
            until: 0,
        }
    }

    /// Bounds the values of the statements that follow, by what the store takes and no more than this.
    pub async fn shorten(&mut self, bytes: i32) -> Result<(), StoreError> {
        let bytes = bytes.min(self.value_bytes);
        if self.longest == bytes {
            return Ok(());
        }
        // Noted before it is done: if this future is dropped, the rollback undoes it.
        self.longest = 0;
        let result = bounds::shorten(self.usable()?, bytes).await;
        result.map_err(|error| self.refusal(error).own())?;
        self.longest = bytes;
        Ok(())
    }

    /// Makes room for a statement of a handler that is prepared next.
    pub async fn keep(&mut self, statement: &str) -> Result<(), StoreError> {
        if !self.kept.note(statement) {
            return Ok(());
        }
        self.described.clear();
        let cleared = sqlx::Connection::clear_cached_statements(self.usable()?).await;
        cleared.map_err(|error| self.refusal(error).own())
    }

    /// Values may be as long again as the store takes.
    pub async fn lengthen_values(&mut self) -> Result<(), StoreError> {
        self.shorten(i32::MAX).await
    }

    fn unlimited(&self) {
        self.deadline.at.store(NEVER, Ordering::Relaxed);
    }

    /// Ends the connection; the next session opens another one.
    pub async fn close(&mut self) {
        if let Some(connection) = self.connection.take()
            && let Err(error) = sqlx::Connection::close(connection).await
        {
            tracing::debug!(%error, "SQLite not closed in an orderly way");
        }
    }

    pub async fn begin(&mut self) -> Result<(), StoreError> {
        self.unlimited();
        self.ended.store(false, Ordering::SeqCst);
        // Noted before it is sent: if this future is dropped, the next session rolls back.
        self.open = true;
        let begun = self.command("BEGIN IMMEDIATE").await;
        self.open = begun.is_ok();
        begun
    }

    pub async fn commit(&mut self) -> Result<(), StoreError> {
        let result = self.usable()?.execute("COMMIT").await;
        let Err(error) = result else {
            self.open = false;
            return self.file.check();
        };
        let refusal = Refusal::of(error);
        match refusal.error {
            // A deferred foreign key, or a reader in the way of the journal: nothing was written.
            error @ (StoreError::Constraint(_) | StoreError::LockTimeout(_)) => Err(error),
            error => {
                // The pages may be in the journal or not. A new connection reads what there is.
                self.connection = None;
                self.described.clear();
                self.open = false;
                Err(StoreError::InDoubt(error.to_string()))
            }
        }
    }

    pub async fn rollback(&mut self) {
        self.open = false;
        let Some(connection) = self.connection.as_mut() else {
            return;
        };
        // It waits behind a statement that nobody waits for any more; that one's limit must stand until then.
        let result = connection.execute("ROLLBACK").await;
        self.unlimited();
        // Without a transaction SQLite says so; then there is nothing to undo.
        let undone = result.is_ok() || self.ended.load(Ordering::SeqCst);
        if !undone || self.lengthen_values().await.is_err() {
            self.connection = None;
            self.described.clear();
        }
    }

    /// Ends a call that is a transaction of its own.
    pub async fn end<T>(&mut self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        let result = match result {
            Ok(value) => self.commit().await.map(|()| value),
            Err(error) => Err(error),
        };
        if result.is_err() {
            self.rollback().await;
        }
        result
    }

    /// The number of the schema in the file; 0 without tables.
    pub async fn schema_number(&mut self) -> Result<i64, StoreError> {
        let there =
            sqlx::query("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'hapax_meta'");
        if self.row(there).await?.is_none() {
            return Ok(0);
        }
        let number = sqlx::query("SELECT CAST(value AS INTEGER) FROM hapax_meta WHERE name = ?")
            .bind(migrate::SCHEMA);
        self.row(number).await?.map_or(Ok(0), |row| column(&row, 0))
    }

    pub async fn migrate(&mut self) -> Result<Vec<String>, StoreError> {
        self.begin().await?;
        let result = self.apply().await;
        let migrated = self.end(result).await;
        failpoint::pass(Point::AfterMigration);
        migrated
    }

    async fn apply(&mut self) -> Result<Vec<String>, StoreError> {
        let schema = self.schema_number().await?;
        let pending = migrate::pending(schema)?;
        failpoint::pass(Point::BeforeMigration);
        self.command(AssertSqlSafe(migrate::script(Dialect::Sqlite, schema)))
            .await?;
        failpoint::pass(Point::MidMigration);
        Ok(pending)
    }

    pub async fn warnings(&mut self) -> Result<Vec<String>, StoreError> {
        let mut warnings = Vec::new();
        let mode = self.row(sqlx::query("PRAGMA journal_mode")).await?;
        let mode: String = mode.map_or(Ok(String::new()), |row| column(&row, 0))?;
        if !mode.eq_ignore_ascii_case("wal") {
            warnings.push(format!(
                "the journal mode stays {mode}: the file system cannot share memory, \
                 which network file systems often cannot, and then their locks are not safe either"
            ));
        }
        let level = self.row(sqlx::query("PRAGMA synchronous")).await?;
        let level: i64 = level.map_or(Ok(0), |row| column(&row, 0))?;
        if level < 2 {
            warnings.push(
                "synchronous is below FULL: a power cut can lose commits that were acknowledged"
                    .to_owned(),
            );
        }
        Ok(warnings)
    }
}

/// A column of the host's own table.
pub(super) fn column<'r, T>(row: &'r SqliteRow, index: usize) -> Result<T, StoreError>
where
    T: sqlx::Decode<'r, Sqlite> + sqlx::Type<Sqlite>,
{
    row.try_get(index)
        .map_err(|error| StoreError::Broken(error.to_string()))
}

/// The clock of this store: microseconds since the Unix epoch.
pub(super) fn now() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
