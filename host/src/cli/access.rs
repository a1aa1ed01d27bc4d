//! The way of an operation to its store: directly, or through the daemon that has it.
//!
//! A server takes both of them. A SQLite file takes one process: when it cannot be opened here, the daemon
//! is asked, and when there is none that answers for this file, the file's own error is what is told.

mod daemon;
mod neighbour;

use std::sync::Arc;

use crate::config::{Config, StoreKind};
use crate::host::{StartError, open_store};
use crate::operations::{Operations, Request, Response};

use super::Error;
use daemon::Daemon;

/// Where operations are executed.
pub enum Access {
    Direct(Operations),
    Daemon(Daemon),
}

impl Access {
    /// Opens the way. A store without its tables is an error, except that a SQLite file is given them.
    pub async fn open(config: &Arc<Config>) -> Result<Self, Error> {
        let store = match open_store(config) {
            Ok(store) => store,
            Err(error) => return Self::through_daemon(config, error).await,
        };
        let failed = |error| StartError::Store {
            store: config.store.kind.to_string(),
            error,
        };
        let pending = store.pending_migrations().await.map_err(failed)?;
        if !pending.is_empty() {
            if !matches!(config.store.kind, StoreKind::Sqlite { .. }) {
                let store = config.store.kind.to_string();
                return Err(StartError::Schema { store, pending }.into());
            }
            store.migrate().await.map_err(failed)?;
        }
        Ok(Self::Direct(Operations::new(
            Arc::clone(config),
            store,
            Vec::new(),
        )))
    }

    /// The way through the daemon that has the SQLite file, where opening it was refused.
    pub async fn through_daemon(config: &Config, refused: StartError) -> Result<Self, Error> {
        if !matches!(config.store.kind, StoreKind::Sqlite { .. }) {
            return Err(refused.into());
        }
        let reason = match (Daemon::reach(config).await, &config.admin.listen) {
            (Ok(Some(daemon)), _) => return Ok(Self::Daemon(daemon)),
            (Ok(None), Some(listen)) => {
                format!("and no daemon answers at {listen} (`admin.listen`)")
            }
            (Ok(None), None) => {
                "a running daemon cannot be asked either: `admin.listen` is off".to_owned()
            }
            (Err(error), _) => error.to_string(),
        };
        Err(Error::Other {
            code: refused.exit_code(),
            text: format!("{refused}\n{reason}"),
        })
    }

    /// A daemon of this configuration, if one answers.
    pub async fn running(config: &Config) -> Result<Option<Self>, Error> {
        Ok(Daemon::reach(config).await?.map(Self::Daemon))
    }

    /// Does what is asked.
    pub async fn execute(&self, request: Request) -> Result<Response, Error> {
        match self {
            Self::Direct(operations) => Ok(operations.execute(request).await?),
            Self::Daemon(daemon) => daemon.execute(request).await,
        }
    }
}
