//! One way to open an AMQP connection and to close it, for all who need one.
//!
//! lapin's own recovery stays off: a recovered channel would let an acknowledgement of an old delivery
//! reach a new one. Whoever loses a connection opens a new one and forgets what the old one delivered.
//!
//! Between the socket and lapin stands a reader of frames. lapin's parser recurses into headers without a bound, and
//! gives the whole connection up for one byte that is not UTF-8; a producer chooses both. The reader lets through
//! what lapin can read, and keeps the rest for those who ask its [`Screen`].

pub mod frames;
mod methods;
pub mod screen;
mod stream;
pub mod url;
pub mod walk;

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::future::maybe_done;
use lapin::tcp::OwnedTLSConfig;
use lapin::types::{LongString, ShortString};
use lapin::{Connection, ConnectionProperties};

use crate::config::Secret;
pub use screen::Screen;
use url::UrlError;

/// How long a goodbye may take.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);

/// How to reach the broker.
#[derive(Clone, Debug)]
pub struct Address {
    pub url: Secret,
    pub heartbeat: Duration,
    pub connect_timeout: Duration,
}

/// Why there is no connection. Never names the password.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("{0} is not an AMQP URL: {1}")]
    Url(Secret, UrlError),
    #[error("the broker at {0} does not answer within {1:?}")]
    Timeout(Secret, Duration),
    #[error("the broker at {0} cannot be used: {1}")]
    Broker(Secret, Box<lapin::Error>),
}

impl Address {
    /// Opens a connection that the broker's operator sees under `name`. What it cannot read reaches nobody: for those
    /// who consume nothing.
    pub async fn connect(&self, name: &str) -> Result<Connection, ConnectError> {
        self.connect_screened(name, Arc::new(Screen::open())).await
    }

    /// Opens a connection whose deliveries are let through, or withheld, as `screen` says. A screen is for one
    /// connection. It also knows, from then on, which broker this is: [`Screen::server_version`].
    pub async fn connect_screened(
        &self,
        name: &str,
        screen: Arc<Screen>,
    ) -> Result<Connection, ConnectError> {
        self.connect_with(name, screen, OwnedTLSConfig::default())
            .await
    }

    async fn connect_with(
        &self,
        name: &str,
        screen: Arc<Screen>,
        tls: OwnedTLSConfig,
    ) -> Result<Connection, ConnectError> {
        let mut uri = url::parse(self.url.expose())
            .map_err(|error| ConnectError::Url(self.url.clone(), error))?;
        let heartbeat = u16::try_from(self.heartbeat.as_secs()).unwrap_or(u16::MAX);
        uri.query.heartbeat.get_or_insert(heartbeat);
        let properties =
            ConnectionProperties::default().with_connection_name(LongString::from(name));
        let connecting = Connection::connector(
            uri,
            stream::runtime(),
            async move |uri, _| Ok(stream::connect(&uri, &tls, screen.clone()).await?),
            properties,
        );
        match tokio::time::timeout(self.connect_timeout, connecting).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(ConnectError::Broker(self.url.clone(), Box::new(error))),
            Err(_) => Err(ConnectError::Timeout(
                self.url.clone(),
                self.connect_timeout,
            )),
        }
    }
}

/// Closes in an orderly way, so that what was sent last arrives. Not for long: lapin may have closed the socket
/// by itself and wait for the broker's answer on it for ever.
pub async fn close(connection: &Connection) {
    let goodbye = connection.close(200, ShortString::from("OK"));
    match tokio::time::timeout(CLOSE_PATIENCE, goodbye).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "Connection not closed in an orderly way"),
        Err(_) => tracing::debug!("The broker's goodbye was not heard"),
    }
}

/// Hands messages over to a channel in their order, all of them before the first is waited for. lapin lets each
/// publish wait until it is on the wire: what is handed over meanwhile leaves with it in one write, and a broker
/// reads many messages at once for less than one by one.
pub async fn hand_over<F: Future>(publishes: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut publishes = publishes
        .into_iter()
        .map(|publish| Box::pin(maybe_done(publish)))
        .collect::<Vec<_>>();
    poll_fn(|context| {
        for publish in &mut publishes {
            // Whether it is done is asked below.
            let _ = publish.as_mut().poll(context);
        }
        Poll::Ready(())
    })
    .await;
    let mut outputs = Vec::with_capacity(publishes.len());
    for mut publish in publishes {
        publish.as_mut().await;
        outputs.extend(publish.as_mut().take_output());
    }
    outputs
}

#[cfg(test)]
mod tests;
