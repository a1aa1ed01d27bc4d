//! The SQLite dialect: one file, one process, one connection.
//!
//! Every session shares the one connection behind a lock that is held for the length of a transaction, so
//! that lane, relay and sweep never meet `SQLITE_BUSY`. A second process is kept out by a lock on a file
//! beside the database's real location. The connection is opened when it is first needed, and again when
//! it was lost.

mod bounds;
mod connection;
mod errors;
mod guest;
mod json;
mod ledger;
mod lock;
mod marks;
mod outbox;
mod place;
mod queues;
mod rows;
mod session;
mod state;
mod upkeep;
mod waiting;

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;

use self::connection::Shared;
use self::lock::ProcessLock;
use self::place::DatabaseFile;
use self::session::SqliteSession;
use super::{Dialect, Session, SessionOptions, Store, StoreError, Traits, migrate};

/// A database file that this process alone uses.
pub struct SqliteStore {
    shared: Arc<Shared>,
}

impl SqliteStore {
    /// Makes the file when it is not there, and locks it for this process. The lock is free again when
    /// the store and all of its sessions are dropped. Blocks for the length of a few system calls.
    pub fn open(path: &Path, options: SessionOptions) -> Result<Self, StoreError> {
        Self::open_for(path, options, bounds::DEFAULT_VALUE_BYTES)
    }

    /// The same for values of other lengths; a longer one is refused.
    pub fn open_for(
        path: &Path,
        options: SessionOptions,
        value_bytes: u64,
    ) -> Result<Self, StoreError> {
        let (lock, real_path) = ProcessLock::take(path)?;
        let value_bytes = i32::try_from(value_bytes).unwrap_or(i32::MAX);
        Ok(Self {
            shared: Arc::new(Shared::new(
                DatabaseFile::at(real_path)?,
                options,
                value_bytes,
                lock,
            )),
        })
    }
}

#[async_trait]
impl Store for SqliteStore {
    fn traits(&self) -> Traits {
        Traits {
            dialect: Dialect::Sqlite,
            error_kills_transaction: false,
            single_writer: true,
            max_savepoints: 1_000,
            max_parameters: 32_766,
        }
    }

    async fn session(&self, _name: &str) -> Result<Box<dyn Session>, StoreError> {
        // Opens the file, so that a file that is no database is noticed here.
        drop(self.shared.lock().await?);
        Ok(Box::new(SqliteSession::new(Arc::clone(&self.shared))))
    }

    async fn pending_migrations(&self) -> Result<Vec<String>, StoreError> {
        let mut slot = self.shared.lock().await?;
        migrate::pending(slot.schema_number().await?)
    }

    async fn migrate(&self) -> Result<Vec<String>, StoreError> {
        let mut slot = self.shared.lock().await?;
        slot.migrate().await
    }

    async fn warnings(&self) -> Result<Vec<String>, StoreError> {
        let mut slot = self.shared.lock().await?;
        slot.warnings().await
    }

    /// The last connection moves what is in the write-ahead log into the database file.
    async fn close(&self) {
        if let Ok(mut slot) = self.shared.lock().await {
            slot.close().await;
        }
    }
}
