//! How consumers, their keys and the outbox are doing.

use std::collections::BTreeMap;
use std::path::Path;

use futures_util::future::join_all;
use lapin::options::QueueDeclareOptions;
use lapin::types::{FieldTable, ShortString};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::config::{self, BrokerKind};
use crate::host::{broker_address, pause_reason};
use crate::store::{ConsumerId, Mark, Session};

use super::{OperationError, Operations, fate_name};

/// What `hapax status` shows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub store: String,
    pub broker: String,
    /// Whether the daemon itself has answered.
    pub daemon: bool,
    pub consumers: Vec<ConsumerStatus>,
    pub outbox: OutboxStatus,
    /// What could not be found out, as sentences.
    pub notes: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConsumerStatus {
    pub name: String,
    pub queue: String,
    /// Messages in the queue that nobody has taken; absent when it is not known.
    pub ready: Option<u64>,
    /// Whether it takes messages; known to the daemon only.
    pub up: Option<bool>,
    /// What it does, in a word: `running`, `stopped`, `paused`, …
    pub state: String,
    /// Why it takes no messages.
    pub reason: Option<String>,
    /// How many hosts have it.
    pub hosts: u64,
    /// SHA-256 of the component; absent when there is no file.
    pub plugin: Option<String>,
    /// Keys by fate.
    pub ledger: BTreeMap<String, u64>,
    /// Failed messages by status and code.
    pub waiting: BTreeMap<String, BTreeMap<String, u64>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct OutboxStatus {
    pub rows: u64,
    /// The age of the oldest row that is not delayed.
    pub oldest_seconds: f64,
}

impl Operations {
    pub(super) async fn status(&self, session: &mut dyn Session) -> Result<Status, OperationError> {
        let mut notes = Vec::new();
        let depths = self.depths(session, &mut notes).await?;
        let pauses = session.upkeep().consumers().await?;
        let mut consumers = Vec::with_capacity(self.config.consumers.len());
        for (consumer, ready) in self.config.consumers.iter().zip(depths) {
            let id = self.consumer_id(session, consumer).await?;
            let live = self.live(&consumer.name);
            let (ledger, waiting) = counts(session, id).await?;
            let hosts = session.upkeep().mark_holders(Mark::Rules(id)).await?;
            let paused = pauses
                .iter()
                .find(|row| row.id == id)
                .and_then(|row| row.pause.as_ref())
                .map(|pause| pause_reason(&pause.by, &pause.why));
            let (state, reason) = self.doing(&consumer.name, hosts, paused);
            consumers.push(ConsumerStatus {
                state: state.to_owned(),
                reason,
                hosts,
                name: consumer.name.clone(),
                queue: consumer.queue.clone(),
                ready,
                up: live.map(|live| live.metrics.up.get() == 1),
                plugin: match live {
                    Some(live) => Some(hex::encode(live.plugin().digest())),
                    None => file_digest(&consumer.plugin),
                },
                ledger,
                waiting,
            });
        }
        let depth = session.outbox_depth().await?;
        Ok(Status {
            store: self.config.store.kind.to_string(),
            broker: self.config.broker.kind.to_string(),
            daemon: !self.live.is_empty(),
            consumers,
            outbox: OutboxStatus {
                rows: depth.rows,
                oldest_seconds: depth.oldest_seconds,
            },
            notes,
        })
    }

    /// How many messages are in the consumers' queues. A broker that is away is worth a note, no more.
    async fn depths(
        &self,
        session: &mut dyn Session,
        notes: &mut Vec<String>,
    ) -> Result<Vec<Option<u64>>, OperationError> {
        let consumers = &self.config.consumers;
        if let BrokerKind::Embedded = self.config.broker.kind {
            let mut depths = Vec::with_capacity(consumers.len());
            for consumer in consumers {
                depths.push(match session.queues() {
                    Some(queues) => queues.depth(&consumer.queue).await?,
                    None => None,
                });
            }
            return Ok(depths);
        }
        match self.amqp_depths(consumers).await {
            Ok(depths) => Ok(depths),
            Err(error) => {
                notes.push(error);
                Ok(vec![None; consumers.len()])
            }
        }
    }

    async fn amqp_depths(
        &self,
        consumers: &[config::Consumer],
    ) -> Result<Vec<Option<u64>>, String> {
        let Some(address) = broker_address(&self.config) else {
            return Ok(Vec::new());
        };
        let connection = address
            .connect("hapax status")
            .await
            .map_err(|error| error.to_string())?;
        // A missing queue closes its channel: each question gets one of its own.
        let depths = join_all(consumers.iter().map(async |consumer| {
            let channel = connection.create_channel().await.ok()?;
            let name = ShortString::try_new(consumer.queue.as_str()).ok()?;
            let passive = QueueDeclareOptions {
                passive: true,
                ..QueueDeclareOptions::default()
            };
            let queue = channel
                .queue_declare(name, passive, FieldTable::default())
                .await
                .ok()?;
            Some(u64::from(queue.message_count()))
        }))
        .await;
        // What was asked is answered; the connection has nothing left to say.
        let _ = connection.close(200, ShortString::from("OK")).await;
        Ok(depths)
    }
}

/// Keys by fate, and failed messages by status and code.
type Counts = (
    BTreeMap<String, u64>,
    BTreeMap<String, BTreeMap<String, u64>>,
);

pub(super) async fn counts(
    session: &mut dyn Session,
    id: ConsumerId,
) -> Result<Counts, OperationError> {
    let ledger = session.ledger_counts(id).await?;
    let mut waiting = BTreeMap::<String, BTreeMap<String, u64>>::new();
    for (status, code, rows) in session.waiting_counts(id).await? {
        *waiting
            .entry(status.as_str().to_owned())
            .or_default()
            .entry(code)
            .or_default() += rows;
    }
    let ledger = ledger
        .into_iter()
        .map(|(fate, rows)| (fate_name(fate).to_owned(), rows))
        .collect();
    Ok((ledger, waiting))
}

fn file_digest(path: &Path) -> Option<String> {
    std::fs::read(path)
        .ok()
        .map(|bytes| hex::encode(Sha256::digest(&bytes)))
}
