//! A running daemon's admin API: where it is, what opens it, and one request after another.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::http::{self, header};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::cli::Error;
use crate::config::{Config, Listen, Secret};
use crate::http::{
    Call, MAX_REQUEST_BYTES, OPERATIONS, Refusal, UPLOADS, find_token, store_identity,
};
use crate::operations::{OperationError, Request, Response};

use super::neighbour::is_foreign;

/// A daemon that is there answers at once; bulk operations take their time.
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);
const ANSWER_PATIENCE: Duration = Duration::from_secs(300);

const MAX_ANSWER_BYTES: usize = 256 << 20;

/// A daemon that answers.
pub struct Daemon {
    listen: Listen,
    token: Option<Secret>,
    /// Where the token was found, unless the configuration has it.
    token_file: Option<PathBuf>,
    store: String,
}

impl Daemon {
    /// The daemon of a configuration; `None` when none answers. One that answers and is not this user's is an error.
    pub(super) async fn reach(config: &Config) -> Result<Option<Self>, Error> {
        let Some(listen) = config.admin.listen.as_ref().map(reachable) else {
            return Ok(None);
        };
        if let Err(error) = knock(&listen).await {
            return match (error.kind(), &listen) {
                #[cfg(unix)]
                (io::ErrorKind::PermissionDenied, Listen::Unix(path)) => {
                    Err(Error::failed(not_yours(path)))
                }
                _ => Ok(None),
            };
        }
        let mut daemon = Self {
            token: config.admin.token.clone(),
            token_file: None,
            store: store_identity(config),
            listen,
        };
        // The file has the name of the address that the configuration says.
        if let (None, Some(Listen::Tcp(address))) = (&daemon.token, &config.admin.listen) {
            let (token, file) = find_token(&config.admin.state, *address).map_err(|error| {
                Error::failed(format!(
                    "a daemon answers at {}, and wants its token: {error}",
                    daemon.listen
                ))
            })?;
            if let Listen::Tcp(reached) = daemon.listen
                && let Some(foreign) = is_foreign(reached, &file)
            {
                return Err(Error::failed(foreign));
            }
            daemon.token = Some(token);
            daemon.token_file = Some(file);
        }
        Ok(Some(daemon))
    }

    pub(super) async fn execute(&self, request: Request) -> Result<Response, Error> {
        let call = Call {
            store: self.store.clone(),
            request,
        };
        let (status, answer) = timeout(ANSWER_PATIENCE, self.ask(&call))
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {ANSWER_PATIENCE:?}")))
            .map_err(|error| {
                Error::unavailable(format!(
                    "the daemon at {} does not answer: {error}",
                    self.listen
                ))
            })?;
        if status.is_success() {
            return serde_json::from_slice(&answer).map_err(|_| self.not_ours(status));
        }
        if let Ok(refused) = serde_json::from_slice::<OperationError>(&answer) {
            return Err(refused.into());
        }
        match serde_json::from_slice::<Refusal>(&answer) {
            Ok(refusal) => Err(self.refused(status, &refusal)),
            Err(_) => Err(self.not_ours(status)),
        }
    }

    async fn ask(&self, call: &Call) -> Result<(http::StatusCode, Bytes), String> {
        let body = serde_json::to_vec(call).map_err(|error| error.to_string())?;
        let (path, host) = match (&self.listen, body.len() <= MAX_REQUEST_BYTES) {
            (Listen::Tcp(address), true) => (OPERATIONS, address.to_string()),
            (Listen::Tcp(address), false) => (UPLOADS, address.to_string()),
            (Listen::Unix(_), true) => (OPERATIONS, "localhost".to_owned()),
            (Listen::Unix(_), false) => (UPLOADS, "localhost".to_owned()),
        };
        let mut request = http::Request::post(path)
            .header(header::HOST, host)
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.expose()));
        }
        let request = request
            .body(Body::from(body))
            .map_err(|error| error.to_string())?;
        match &self.listen {
            Listen::Tcp(address) => exchange(tcp(*address).await, request).await,
            #[cfg(unix)]
            Listen::Unix(path) => exchange(UnixStream::connect(path).await, request).await,
            #[cfg(not(unix))]
            Listen::Unix(_) => Err("this system has no such sockets".to_owned()),
        }
    }

    fn refused(&self, status: http::StatusCode, refusal: &Refusal) -> Error {
        let Self {
            listen, token_file, ..
        } = self;
        let Refusal { code, reason } = refusal;
        let text = match (status, token_file) {
            (http::StatusCode::UNAUTHORIZED, Some(file)) => format!(
                "the daemon at {listen} does not take the token in {}: {reason}; another user's host may have the address",
                file.display()
            ),
            (http::StatusCode::UNAUTHORIZED, None) => {
                format!("the daemon at {listen} does not take the `admin.token`: {reason}")
            }
            _ => format!("the daemon at {listen} has refused ({code}): {reason}"),
        };
        if status == http::StatusCode::SERVICE_UNAVAILABLE {
            return Error::unavailable(text);
        }
        Error::failed(text)
    }

    fn not_ours(&self, status: http::StatusCode) -> Error {
        Error::failed(format!(
            "what listens at {} does not speak like this version of hapax (HTTP status {}); look at `admin.listen`",
            self.listen,
            status.as_u16()
        ))
    }
}

/// One request on a connection of its own.
async fn exchange(
    stream: io::Result<impl AsyncRead + AsyncWrite + Unpin + Send + 'static>,
    request: http::Request<Body>,
) -> Result<(http::StatusCode, Bytes), String> {
    let stream = stream.map_err(|error| error.to_string())?;
    let asked = async {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // It ends when its answer is read.
        tokio::spawn(connection);
        sender.send_request(request).await
    };
    let answer = asked.await.map_err(|error: hyper::Error| reason(&error))?;
    let status = answer.status();
    let body = to_bytes(Body::new(answer.into_body()), MAX_ANSWER_BYTES)
        .await
        .map_err(|error| error.to_string())?;
    Ok((status, body))
}

/// An error with what is behind it: by itself it says little.
fn reason(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// Sees whether somebody listens.
async fn knock(listen: &Listen) -> io::Result<()> {
    match listen {
        Listen::Tcp(address) => tcp(*address).await.map(drop),
        #[cfg(unix)]
        Listen::Unix(path) => UnixStream::connect(path).await.map(drop),
        #[cfg(not(unix))]
        Listen::Unix(_) => Err(io::ErrorKind::Unsupported.into()),
    }
}

async fn tcp(address: SocketAddr) -> io::Result<TcpStream> {
    timeout(CONNECT_PATIENCE, TcpStream::connect(address))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Whose a socket is that does not let this user in.
#[cfg(unix)]
fn not_yours(path: &std::path::Path) -> String {
    use std::os::unix::fs::MetadataExt;
    let there = path
        .ancestors()
        .find_map(|path| std::fs::symlink_metadata(path).ok());
    let owner = there.map_or_else(
        || "another user".to_owned(),
        |there| crate::http::user(there.uid()),
    );
    format!(
        "the socket {} lets in {owner} and root only; run this as that user, or with sudo",
        path.display()
    )
}

/// Where to connect to, of what is listened on.
fn reachable(listen: &Listen) -> Listen {
    let Listen::Tcp(address) = listen else {
        return listen.clone();
    };
    let ip = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    Listen::Tcp(SocketAddr::new(ip, address.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_for_everybody_is_reached_on_this_machine() {
        let reach = |text: &str| {
            let address = text.parse().expect("an address");
            reachable(&Listen::Tcp(address)).to_string()
        };
        assert_eq!(reach("0.0.0.0:9470"), "127.0.0.1:9470");
        assert_eq!(reach("[::]:9470"), "[::1]:9470");
        assert_eq!(reach("10.1.2.3:1"), "10.1.2.3:1");
    }
}
