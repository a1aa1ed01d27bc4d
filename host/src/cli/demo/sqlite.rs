//! The SQLite files of the demo that are not a Hapax store: the flags, and the tables of the consumers
//! that Hapax is compared with.

use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, SqlitePool};

/// Opens or makes a file.
///
/// `synchronous = NORMAL` spares a file sync for each commit. The demo kills processes and never the
/// machine, and a killed process loses nothing that it has handed to the operating system. Hapax's own
/// store stays at FULL.
pub async fn open(file: &Path) -> anyhow::Result<SqlitePool> {
    open_with(file, SqliteSynchronous::Normal).await
}

/// The same with a file sync for each commit, as in Hapax's own store.
pub async fn open_full(file: &Path) -> anyhow::Result<SqlitePool> {
    open_with(file, SqliteSynchronous::Full).await
}

async fn open_with(file: &Path, synchronous: SqliteSynchronous) -> anyhow::Result<SqlitePool> {
    let options = SqliteConnectOptions::new()
        .filename(file)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(synchronous)
        .busy_timeout(Duration::from_secs(10))
        .disable_statement_logging();
    // SQLite has one writer. A second connection would only wait for the first one's lock.
    Ok(SqlitePoolOptions::new()
        .max_connections(1)
        .connect_with(options)
        .await?)
}
