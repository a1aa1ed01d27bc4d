//! The way of an operation to its store: directly, or through the daemon that has it.
//!
//! A server takes both of them. A SQLite file takes one process: when it cannot be opened here, the daemon
//! is asked, and when there is none that answers for this file, the file's own error is what is told.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::config::{Config, Secret, StoreKind};
use crate::host::{StartError, open_store};
use crate::http::{Call, OPERATIONS, store_identity};
use crate::operations::{OperationError, Operations, Request, Response};

use super::Error;

/// A daemon that is there answers at once; bulk operations take their time.
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);
const ANSWER_PATIENCE: Duration = Duration::from_secs(300);

/// Where operations are executed.
pub enum Access {
    Direct(Operations),
    Daemon(Daemon),
}

/// A daemon's admin API.
pub struct Daemon {
    address: SocketAddr,
    token: Option<Secret>,
    store: String,
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
        let code = refused.exit_code();
        let other = |reason: String| Error::Other {
            code,
            text: format!("{refused}\n{reason}"),
        };
        let Some(listen) = config.admin.listen else {
            return Err(other(
                "a running daemon cannot be asked either: `admin.listen` is off".into(),
            ));
        };
        let daemon = Daemon {
            address: reachable(listen),
            token: config.admin.token.clone(),
            store: store_identity(config),
        };
        let address = daemon.address;
        match tokio::time::timeout(CONNECT_PATIENCE, tokio::net::TcpStream::connect(address)).await
        {
            Ok(Ok(_)) => Ok(Self::Daemon(daemon)),
            _ => Err(other(format!(
                "and no daemon answers at {address} (`admin.listen`)"
            ))),
        }
    }

    /// A daemon of this configuration, if one answers.
    pub async fn running(config: &Config) -> Option<Self> {
        let address = reachable(config.admin.listen?);
        let connected = tokio::net::TcpStream::connect(address);
        let Ok(Ok(_)) = tokio::time::timeout(CONNECT_PATIENCE, connected).await else {
            return None;
        };
        Some(Self::Daemon(Daemon {
            address,
            token: config.admin.token.clone(),
            store: store_identity(config),
        }))
    }

    /// Does what is asked.
    pub async fn execute(&self, request: Request) -> Result<Response, Error> {
        match self {
            Self::Direct(operations) => Ok(operations.execute(request).await?),
            Self::Daemon(daemon) => daemon.execute(request).await,
        }
    }
}

/// The address to connect to, of one that is listened on.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, listen.port())
}

impl Daemon {
    async fn execute(&self, request: Request) -> Result<Response, Error> {
        let (address, token) = (self.address, self.token.clone());
        let call = Call {
            store: self.store.clone(),
            request,
        };
        let asked = tokio::task::spawn_blocking(move || ask(address, token.as_ref(), &call));
        let (status, body) = asked
            .await
            .expect("asking does not panic")
            .map_err(|error| {
                Error::unavailable(format!("the daemon at {address} does not answer: {error}"))
            })?;
        if status == 200 {
            return serde_json::from_slice(&body).map_err(|_| not_ours(address, status));
        }
        let refused: OperationError =
            serde_json::from_slice(&body).map_err(|_| not_ours(address, status))?;
        Err(refused.into())
    }
}

fn not_ours(address: SocketAddr, status: u16) -> Error {
    Error::failed(format!(
        "what listens at {address} does not speak like this version of hapax (HTTP status {status}); \
         look at `admin.listen`"
    ))
}

fn ask(
    address: SocketAddr,
    token: Option<&Secret>,
    call: &Call,
) -> Result<(u16, Vec<u8>), ureq::Error> {
    const MAX_ANSWER_BYTES: u64 = 256 << 20;
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_connect(Some(CONNECT_PATIENCE))
        .timeout_global(Some(ANSWER_PATIENCE))
        .http_status_as_error(false)
        .proxy(None)
        .build()
        .into();
    let mut request = agent.post(format!("http://{address}{OPERATIONS}"));
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {}", token.expose()));
    }
    let mut answer = request.send_json(call)?;
    let body = answer
        .body_mut()
        .with_config()
        .limit(MAX_ANSWER_BYTES)
        .read_to_vec()?;
    Ok((answer.status().as_u16(), body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_for_everybody_is_reached_on_this_machine() {
        let reach = |text: &str| reachable(text.parse().expect("an address")).to_string();
        assert_eq!(reach("0.0.0.0:9470"), "127.0.0.1:9470");
        assert_eq!(reach("[::]:9470"), "[::1]:9470");
        assert_eq!(reach("10.1.2.3:1"), "10.1.2.3:1");
    }
}
