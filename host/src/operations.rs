//! What operators do: look at failed messages, run them again or give them up, look after the outbox and the
//! ledger, hold consumers back, see how a host is doing, and publish into the embedded broker.
//!
//! Every operation is a [`Request`] that is executed here, once, on an open store: by the command line
//! where it may open the store itself, by the daemon where the daemon has it. Requests and responses are
//! plain data, and parts of the responses are what `--json` prints.
//!
//! Nothing here runs a message. Replaying makes a row due; the host takes it from there, and a key that
//! was committed meanwhile ends as a duplicate.

mod consumers;
mod headers;
mod ledger;
mod outbox;
mod parked;
mod plugins;
mod publish;
mod status;
mod when;
mod wire;
mod written;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::config::{self, Config};
use crate::consumer::Consumer;
use crate::failpoint::{self, Point};
use crate::failure::Class;
use crate::store::{Fate, JournalEntry, Session, Store, StoreError};

pub use consumers::{ConsumerState, PauseDone, PauseWish, Rekey, Rekeyed};
pub use headers::write_table;
pub use ledger::{
    Forget, Forgotten, Import, ImportKey, Imported, LedgerEntry, LedgerQuery, LedgerRows,
    LedgerShown, Note,
};
pub use outbox::{OutboxEntry, OutboxPage, OutboxQuery, OutboxShown};
pub use parked::{
    Changed, Choice, Chosen, Cursor, Duplicate, Edit, Entry, Filter, Page, Selection, Shown, Step,
    Tally, unique_digits,
};
pub use plugins::{PluginChanged, PluginRequest, PluginStatus, RefusedStatus};
pub use publish::{AmqpPublish, Answer};
pub use status::{ConsumerStatus, OutboxStatus, Status};
pub use when::When;
pub use wire::{Kept, Wire};
pub use written::{BadLine, read_line, write_message};

/// What an operator wants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    Status,
    List(Filter),
    /// The beginning of an id.
    Show(String),
    /// How many rows a selection means.
    Tally(Selection),
    /// Which rows a selection means.
    Choose(Step),
    /// Whole ids.
    Replay(Vec<String>),
    Discard(Vec<String>),
    Edit(Edit),
    OutboxList(OutboxQuery),
    OutboxShow(i64),
    OutboxRetry(OutboxQuery),
    LedgerShow {
        consumer: Option<String>,
        key_hex: String,
    },
    LedgerList(LedgerQuery),
    LedgerForget(Forget),
    LedgerImport(Import),
    /// An import has ended: who it was, and what was imported.
    LedgerImported {
        consumer: String,
        who: String,
        what: String,
    },
    Consumers,
    Pause(PauseWish),
    Rekey(Rekey),
    /// Into queues of the embedded broker.
    Publish(Vec<Wire>),
    /// Of a running daemon.
    Plugins(PluginRequest),
}

impl Request {
    /// Whether it may be large: it carries a component, messages, or any number of keys.
    pub fn is_upload(&self) -> bool {
        matches!(
            self,
            Self::Plugins(PluginRequest::Load { .. })
                | Self::Publish(_)
                | Self::Edit(_)
                | Self::LedgerImport(_)
                | Self::LedgerForget(_)
        )
    }
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Response {
    Status(Status),
    List(Page),
    Show(Box<Shown>),
    Tally(Vec<Tally>),
    Choice(Choice),
    Changed(Changed),
    OutboxList(OutboxPage),
    OutboxShow(Box<OutboxShown>),
    /// How many rows were changed.
    Count(u64),
    LedgerShow(Vec<LedgerShown>),
    LedgerList(LedgerRows),
    LedgerForget(Vec<Forgotten>),
    LedgerImport(Imported),
    Noted,
    Consumers(Vec<ConsumerState>),
    Pause(Vec<PauseDone>),
    Rekey(Rekeyed),
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
            Request::Tally(selection) => Response::Tally(self.tally(session, &selection).await?),
            Request::Choose(step) => Response::Choice(self.choose(session, &step).await?),
            Request::Replay(ids) => {
                Response::Changed(self.change(session, &ids, parked::Change::Replay).await?)
            }
            Request::Discard(ids) => {
                Response::Changed(self.change(session, &ids, parked::Change::Discard).await?)
            }
            Request::Edit(edit) => Response::Changed(self.edit(session, &edit).await?),
            Request::OutboxList(query) => {
                Response::OutboxList(self.outbox_list(session, &query).await?)
            }
            Request::OutboxShow(id) => {
                Response::OutboxShow(Box::new(self.outbox_show(session, id).await?))
            }
            Request::OutboxRetry(query) => {
                Response::Count(self.outbox_retry(session, &query).await?)
            }
            Request::LedgerShow { consumer, key_hex } => Response::LedgerShow(
                self.ledger_show(session, consumer.as_deref(), &key_hex)
                    .await?,
            ),
            Request::LedgerList(query) => {
                Response::LedgerList(self.ledger_list(session, &query).await?)
            }
            Request::LedgerForget(forget) => {
                Response::LedgerForget(self.ledger_forget(session, &forget).await?)
            }
            Request::LedgerImport(import) => {
                Response::LedgerImport(self.ledger_import(session, &import).await?)
            }
            Request::LedgerImported {
                consumer,
                who,
                what,
            } => {
                self.imported(session, &consumer, &who, &what).await?;
                Response::Noted
            }
            Request::Consumers => Response::Consumers(self.consumers(session).await?),
            Request::Pause(wish) => Response::Pause(self.pause(session, &wish).await?),
            Request::Rekey(rekey) => Response::Rekey(self.rekey(session, &rekey).await?),
            Request::Publish(messages) => {
                Response::Published(self.publish(session, messages).await?)
            }
            Request::Plugins(request) => self.plugins(request).await?,
        })
    }

    fn live(&self, consumer: &str) -> Option<&Arc<Consumer>> {
        self.live.iter().find(|live| live.name == consumer)
    }

    /// A name that is mistyped would mean nothing, silently.
    fn known_consumer(&self, name: Option<&str>) -> Result<(), OperationError> {
        match name {
            Some(name) => self.configured(name).map(|_| ()),
            None => Ok(()),
        }
    }

    /// A consumer of the configuration.
    fn configured(&self, name: &str) -> Result<&config::Consumer, OperationError> {
        let all = &self.config.consumers;
        all.iter()
            .find(|consumer| consumer.name == name)
            .ok_or_else(|| {
                let known = all.iter().map(|consumer| consumer.name.as_str());
                OperationError::Refused(format!(
                    "there is no consumer `{name}` in {}; there is: {}",
                    self.config.path.display(),
                    known.collect::<Vec<_>>().join(", ")
                ))
            })
    }

    /// Remembers what an operator does, in the store and in the log.
    async fn note(
        &self,
        session: &mut dyn Session,
        entry: JournalEntry,
    ) -> Result<(), OperationError> {
        session.upkeep().journal_add(&entry).await?;
        failpoint::pass(Point::AfterNote);
        let key = entry.key.as_deref().map(crate::key::show);
        tracing::info!(
            action = %entry.action, who = %entry.actor, why = %entry.why, key,
            consumer_id = entry.consumer.map(|id| id.0), "An operator has acted"
        );
        Ok(())
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

/// A time of the database, RFC 3339 in UTC.
fn time(micros: i64) -> String {
    match chrono::DateTime::from_timestamp_micros(micros) {
        Some(time) => time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
        None => format!("{micros} µs after 1970"),
    }
}

/// The bytes of hexadecimal digits.
fn key_bytes(digits: &str) -> Result<Vec<u8>, OperationError> {
    hex::decode(digits)
        .map_err(|_| OperationError::Refused(format!("`{digits}` is not hexadecimal")))
}

/// Every fate, by the word that people use for it.
const FATES: [(Fate, &str); 5] = [
    (Fate::Committed, "committed"),
    (Fate::Waiting, "waiting"),
    (Fate::Parked, "parked"),
    (Fate::Discarded, "discarded"),
    (Fate::Started, "started"),
];

fn fate_name(fate: Fate) -> &'static str {
    FATES
        .iter()
        .find(|(known, _)| *known == fate)
        .map_or("", |(_, name)| name)
}

fn fate_of(name: &str) -> Result<Fate, OperationError> {
    let known = FATES.iter().find(|(_, known)| *known == name);
    known.map(|(fate, _)| *fate).ok_or_else(|| {
        let names = FATES.map(|(_, name)| name).join(", ");
        OperationError::Refused(format!("there is no fate `{name}`: {names}"))
    })
}

#[cfg(test)]
mod tests;
