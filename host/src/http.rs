//! The daemon's two small HTTP servers: one for probes and metrics, one for operators.
//!
//! They listen before anything is consumed, or the host does not start. Neither of them is on the way of
//! a message, and neither can delay one by more than a look at the store costs. What a peer may take of
//! the process is bounded: connections, bytes and time.

mod admin;
mod health;
mod listener;
mod seats;
mod server;
mod token;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Listen, Secret};
use crate::descriptors;
use crate::metrics::Metrics;
use crate::operations::Operations;
use crate::store::Store;

use listener::Listener;
use server::Bounds;

pub use admin::{Call, MAX_REQUEST_BYTES, OPERATIONS, Refusal, UPLOADS, store_identity};
pub use health::Readiness;
pub use listener::ListenError;
#[cfg(unix)]
pub use token::user;
pub use token::{TokenError, find as find_token, place as token_place};

/// How long a request that is under way may take once the host leaves.
const LAST_REQUESTS: Duration = Duration::from_millis(500);

/// How long an answer about the host's health may take.
const HEALTH_PATIENCE: Duration = Duration::from_secs(5);

/// An operation, and the body of its request.
const ADMIN_PATIENCE: Duration = admin::ANSWER_PATIENCE;

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
        let health = match config.health.listen {
            Some(address) => Some(bind(&Listen::Tcp(address), "health").await?),
            None => None,
        };
        let admin = open_admin(config).await?;
        let mut servers = Self {
            stop: CancellationToken::new(),
            tasks: JoinSet::new(),
        };
        if let Some(listener) = health {
            let router = health::router(metrics.clone(), Arc::clone(readiness), Arc::clone(store));
            servers.serve(
                listener,
                router,
                config.health.max_connections,
                HEALTH_PATIENCE,
            );
        }
        if let Some((listener, listen, token)) = admin {
            let operations = Operations::new(
                Arc::clone(config),
                Arc::clone(store),
                readiness.consumers().to_vec(),
            );
            let router = admin::router(config, listen, token.as_ref(), operations);
            servers.serve(
                listener,
                router,
                config.admin.max_connections,
                ADMIN_PATIENCE,
            );
        }
        Ok(servers)
    }

    fn serve(&mut self, listener: Listener, router: Router, most: usize, request: Duration) {
        let connections = descriptors::share(most);
        if connections < most {
            tracing::warn!(
                section = listener.section(),
                connections,
                "The process may open few files, so fewer connections are held than `max-connections` allows; raise \
                 its limit (`LimitNOFILE=` in a unit of systemd)"
            );
        }
        let bounds = Bounds {
            connections,
            request,
        };
        let stop = self.stop.clone();
        self.tasks
            .spawn(server::serve(listener, router, bounds, stop));
    }

    /// Answers the requests that are under way, briefly, and stops.
    pub async fn stop(mut self) {
        self.stop.cancel();
        let all = async { while self.tasks.join_next().await.is_some() {} };
        // A client that keeps its connection open is left behind.
        let _ = tokio::time::timeout(LAST_REQUESTS, all).await;
    }
}

/// The admin API's listener, and the token that its callers show. A host runs without the API where no token can be
/// kept: nobody could tell its user from others.
async fn open_admin(
    config: &Config,
) -> Result<Option<(Listener, &Listen, Option<Secret>)>, ListenError> {
    let Some(listen) = &config.admin.listen else {
        return Ok(None);
    };
    // First the address, then the token: so no other host makes the same file.
    let listener = bind(listen, "admin").await?;
    let token = match (&config.admin.token, listen) {
        (Some(token), _) => Some(token.clone()),
        (None, Listen::Unix(_)) => None,
        (None, Listen::Tcp(address)) => match token::keep(&config.admin.state, *address) {
            Ok(token) => Some(token),
            Err(error) => {
                tracing::error!(%error, "The admin API is off");
                return Ok(None);
            }
        },
    };
    Ok(Some((listener, listen, token)))
}

async fn bind(listen: &Listen, section: &'static str) -> Result<Listener, ListenError> {
    let listener = Listener::bind(listen, section).await?;
    tracing::info!(section, address = %listen, "Listening");
    Ok(listener)
}

#[cfg(test)]
mod tests;
