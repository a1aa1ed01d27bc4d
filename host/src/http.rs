//! The daemon's two small HTTP servers: one for probes and metrics, one for operators.
//!
//! They listen before anything is consumed, or the host does not start. Neither of them is on the way of
//! a message, and neither can delay one by more than a look at the store costs.

mod admin;
mod health;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::metrics::Metrics;
use crate::operations::Operations;
use crate::store::Store;

pub use admin::{Call, OPERATIONS, store_identity};
pub use health::Readiness;

/// How long a request that is under way may take once the host leaves.
const LAST_REQUESTS: Duration = Duration::from_millis(500);

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen on {address}: {error}; set `{section}.listen` to another address, or to `off`"
)]
pub struct ListenError {
    address: SocketAddr,
    section: &'static str,
    error: std::io::Error,
}

/// Both servers, running.
pub struct Servers {
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Servers {
    /// Binds the addresses that the configuration names, and serves.
    pub async fn start(
        config: &Arc<Config>,
        metrics: &Metrics,
        readiness: &Arc<Readiness>,
        store: &Arc<dyn Store>,
    ) -> Result<Self, ListenError> {
        let health = bind(config.health, "health").await?;
        let admin = bind(config.admin.listen, "admin").await?;
        let mut servers = Self {
            stop: CancellationToken::new(),
            tasks: JoinSet::new(),
        };
        if let Some(listener) = health {
            servers.serve(
                listener,
                health::router(metrics.clone(), Arc::clone(readiness), Arc::clone(store)),
            );
        }
        if let Some(listener) = admin {
            let operations = Operations::new(
                Arc::clone(config),
                Arc::clone(store),
                readiness.consumers().to_vec(),
            );
            servers.serve(listener, admin::router(config, operations));
        }
        Ok(servers)
    }

    fn serve(&mut self, listener: TcpListener, router: Router) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let served =
                axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned());
            if let Err(error) = served.await {
                tracing::error!(%error, "HTTP server stopped");
            }
        });
    }

    /// Answers the requests that are under way, briefly, and stops.
    pub async fn stop(mut self) {
        self.stop.cancel();
        let all = async { while self.tasks.join_next().await.is_some() {} };
        // A client that keeps its connection open is left behind.
        let _ = tokio::time::timeout(LAST_REQUESTS, all).await;
    }
}

async fn bind(
    address: Option<SocketAddr>,
    section: &'static str,
) -> Result<Option<TcpListener>, ListenError> {
    let Some(address) = address else {
        return Ok(None);
    };
    let listener = TcpListener::bind(address)
        .await
        .map_err(|error| ListenError {
            address,
            section,
            error,
        })?;
    tracing::info!(section, %address, "Listening");
    Ok(Some(listener))
}

#[cfg(test)]
mod tests;
