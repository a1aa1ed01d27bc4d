//! What operators do: look at failed messages, run them again or give them up, see how a host is doing,
//! and publish into the embedded broker.
//!
//! Every operation is a [`Request`] that is executed here, once, on an open store: by the command line
//! where it may open the store itself, by the daemon where the daemon has it. Requests and responses are
//! plain data, and parts of the responses are what `--json` prints.
//!
//! Nothing here runs a message. Replaying makes a row due; the host takes it from there, and a key that
//! was committed meanwhile ends as a duplicate.

mod headers;
mod parked;
mod plugins;
mod publish;
mod status;
mod wire;
mod written;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::config::{self, Config};
use crate::consumer::Consumer;
use crate::failure::Class;
use crate::store::{Session, Store, StoreError};

pub use parked::{Changed, Entry, Filter, Page, Selection, Shown, unique_digits};
pub use plugins::{PluginChanged, PluginRequest, PluginStatus, RefusedStatus};
pub use publish::{AmqpPublish, Answer};
pub use status::{ConsumerStatus, OutboxStatus, Status};
pub use wire::Wire;
pub use written::{BadLine, read_line, write_message};

/// What an operator wants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    Status,
    List(Filter),
    /// The beginning of an id.
    Show(String),
    /// How many rows a selection means.
    Count(Selection),
    Replay(Selection),
    Discard(Selection),
    /// Into queues of the embedded broker.
    Publish(Vec<Wire>),
    /// Of a running daemon.
    Plugins(PluginRequest),
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Response {
    Status(Status),
    List(Page),
    Show(Box<Shown>),
    Count(u64),
    Changed(Changed),
    /// For each message, in order.
    Published(Vec<Answer>),
    Plugins(Vec<PluginStatus>),
    PluginChanged(PluginChanged),
}

/// Why an operation was not done, in words for the operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum OperationError {
    /// The request makes no sense here: an unknown id, a consumer that does not exist.
    #[error("{0}")]
    Refused(String),
    /// The store, the broker or the daemon is away: it may work later.
    #[error("{0}")]
    Unavailable(String),
    #[error("{0}")]
    Failed(String),
}

impl From<StoreError> for OperationError {
    fn from(error: StoreError) -> Self {
        match error.class() {
            Class::World => Self::Unavailable(format!("the store does not answer: {error}")),
            Class::Message | Class::Ours => Self::Failed(format!("the store has refused: {error}")),
        }
    }
}

/// The operations on one open store.
pub struct Operations {
    config: Arc<Config>,
    store: Arc<dyn Store>,
    /// In the daemon, what runs; empty elsewhere.
    live: Vec<Arc<Consumer>>,
}

impl Operations {
    pub fn new(config: Arc<Config>, store: Arc<dyn Store>, live: Vec<Arc<Consumer>>) -> Self {
        Self {
            config,
            store,
            live,
        }
    }

    /// Does what is asked, or nothing. Not cancel safe: a bulk operation that is dropped is half done.
    pub async fn execute(&self, request: Request) -> Result<Response, OperationError> {
        // Plugins change while the store is away, too.
        if let Request::Plugins(request) = request {
            return self.plugins(request).await;
        }
        let mut session = self.store.session("hapax operator").await?;
        let session = &mut *session;
        Ok(match request {
            Request::Status => Response::Status(self.status(session).await?),
            Request::List(filter) => Response::List(self.list(session, &filter).await?),
            Request::Show(id) => Response::Show(Box::new(self.show(session, &id).await?)),
            Request::Count(selection) => Response::Count(self.count(session, &selection).await?),
            Request::Replay(selection) => Response::Changed(
                self.change(session, &selection, parked::Change::Replay)
                    .await?,
            ),
            Request::Discard(selection) => Response::Changed(
                self.change(session, &selection, parked::Change::Discard)
                    .await?,
            ),
            Request::Publish(messages) => {
                Response::Published(self.publish(session, messages).await?)
            }
            Request::Plugins(request) => self.plugins(request).await?,
        })
    }

    fn live(&self, consumer: &str) -> Option<&Arc<Consumer>> {
        self.live.iter().find(|live| live.name == consumer)
    }

    async fn consumer_id(
        &self,
        session: &mut dyn Session,
        consumer: &config::Consumer,
    ) -> Result<crate::store::ConsumerId, StoreError> {
        if let Some(live) = self.live(&consumer.name) {
            return Ok(live.id);
        }
        let (key_rule, fingerprint_rule) = crate::consumer::rule_texts(consumer);
        Ok(session
            .consumer(&consumer.name, &key_rule, &fingerprint_rule)
            .await?
            .id)
    }
}

#[cfg(test)]
mod tests;
