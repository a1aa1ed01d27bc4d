//! Failed messages: they live in `hapax_waiting`, whole, and run again from there.
//!
//! Nothing goes back to the queue, so no property, TTL or routing key can hurt a retry, and a key has at
//! most one waiting copy: its row's id is made of the consumer and the key. Messages without a usable key
//! are kept under the hash of their content.

mod copy;

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lapin::BasicProperties;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use crate::backoff::{self, Backoff};
use crate::commit::{Hold, Item};
use crate::config::Retry;
use crate::consumer::Consumer;
use crate::failpoint::{self, Point};
use crate::failure::{Again, Failure};
use crate::lane::{Lanes, Origin, Work};
use crate::message::withheld::{Original, without_headers};
use crate::message::{Message, Withheld, encode_properties};
use crate::store::{Session, Status, StoreError, WaitingRow};

pub use copy::copy;

/// Rows that one look fetches.
const LOOK_ROWS: u32 = 256;

/// The longest pause between two looks: other hosts and operators make rows due as well.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// The pause while all rows that are due are running.
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// What becomes of a message after its n-th failed attempt, and when it is due.
pub fn after_failure(failure: &Failure, attempts: i32, retry: &Retry) -> (Status, Duration) {
    let attempts = u32::try_from(attempts).unwrap_or(u32::MAX);
    match failure.again {
        Again::Never => (Status::Parked, Duration::ZERO),
        _ if attempts >= retry.max_attempts => (Status::Parked, Duration::ZERO),
        Again::Later(Some(after)) => (Status::Retry, after.min(retry.max_delay)),
        Again::Later(None) => (
            Status::Retry,
            backoff::jittered(retry.delay, retry.max_delay, attempts),
        ),
    }
}

/// The row of a failed message. With a key there is one row for it, ever.
pub fn row(
    consumer: &Consumer,
    plugin: &[u8],
    item: &Item,
    failure: &Failure,
    status: Status,
    attempts: i32,
) -> WaitingRow {
    let key = item
        .identity
        .as_ref()
        .ok()
        .map(|identity| identity.key.clone());
    let key = key.filter(|key| !key.is_empty());
    let id = match (&key, &item.hold) {
        (Some(key), _) => key_id(&consumer.name, key),
        (None, Hold::Row(id)) => id.clone(),
        // Without idempotency equal messages are different messages.
        (None, _) => hash(&[b"fresh", &fastrand::u128(..).to_be_bytes()]),
    };
    WaitingRow {
        status,
        attempts,
        ..describe(consumer, plugin, item, failure, id, key)
    }
}

/// The id of the row that a message with this key has.
pub fn key_id(consumer: &str, key: &[u8]) -> Vec<u8> {
    hash(&[b"key", consumer.as_bytes(), key])
}

/// The row of a message that is parked without touching its key.
pub fn parked_row(
    consumer: &Consumer,
    plugin: &[u8],
    item: &Item,
    failure: &Failure,
) -> WaitingRow {
    let id = content_id(&consumer.name, &item.message, item.withheld.as_deref());
    describe(consumer, plugin, item, failure, id, None)
}

/// The same for each delivery of a message.
fn content_id(consumer: &str, message: &Message, withheld: Option<&Withheld>) -> Vec<u8> {
    let properties = encode_properties(&as_published(&message.properties));
    let mut parts: Vec<&[u8]> = vec![
        b"content",
        consumer.as_bytes(),
        message.exchange.as_bytes(),
        message.routing_key.as_bytes(),
        &properties,
        &message.body,
    ];
    let withheld = withheld.map(|withheld| {
        let original = withheld.original();
        original.map_or_else(
            || withheld.clone(),
            |original| {
                let head = original.head.as_deref();
                let head = head.map(|head| without_headers(head, BROKERS_HEADERS));
                Withheld::from(&Original { head, ..original })
            },
        )
    });
    if let Some(withheld) = &withheld {
        parts.extend([withheld.encoding.as_bytes(), &withheld.bytes]);
    }
    hash(&parts)
}

/// What brokers write into a message on its way back to a consumer: quorum queues their counters
/// (`x-acquired-count` since RabbitMQ 4.3), dead-lettering its history.
const BROKERS_HEADERS: &[&str] = &[
    "x-delivery-count",
    "x-acquired-count",
    "x-death",
    "x-first-death-exchange",
    "x-first-death-queue",
    "x-first-death-reason",
    "x-last-death-exchange",
    "x-last-death-queue",
    "x-last-death-reason",
];

/// Without what the broker has added since.
fn as_published(properties: &BasicProperties) -> BasicProperties {
    let headers = properties.headers().as_ref();
    let mut kept = headers
        .map(|headers| headers.inner().clone())
        .unwrap_or_default();
    kept.retain(|name, _| !BROKERS_HEADERS.contains(&name.as_str()));
    properties.clone().with_headers(kept.into())
}

fn describe(
    consumer: &Consumer,
    plugin: &[u8],
    item: &Item,
    failure: &Failure,
    id: Vec<u8>,
    key: Option<Vec<u8>>,
) -> WaitingRow {
    let identity = item.identity.as_ref().ok();
    WaitingRow {
        id,
        key,
        fingerprint: identity
            .map(|known| known.fingerprint.to_vec())
            .unwrap_or_default(),
        partition: identity.map(|known| known.partition).unwrap_or_default(),
        status: Status::Parked,
        attempts: 0,
        code: failure.code.to_string(),
        error: failure.message.clone(),
        stderr: failure.stderr.clone(),
        backtrace: failure.backtrace.clone(),
        plugin: plugin.to_vec(),
        trace_id: item.message.trace_id().unwrap_or_default(),
        queue: consumer.queue.clone(),
        message: item.message.as_ref().clone(),
        withheld: item.withheld.as_deref().cloned(),
    }
}

fn hash(parts: &[&[u8]]) -> Vec<u8> {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().to_vec()
}

/// Rows that this host has handed to a lane and not heard of again.
#[derive(Clone, Default)]
pub struct Running(Arc<Mutex<HashSet<Vec<u8>>>>);

/// Keeps a row among the running ones until its work is dropped.
#[derive(Debug)]
pub struct RunningRow {
    id: Vec<u8>,
    running: Arc<Mutex<HashSet<Vec<u8>>>>,
}

impl Running {
    /// Marks a row; `None` when it runs already.
    fn begin(&self, id: &[u8]) -> Option<RunningRow> {
        let mut running = self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        running.insert(id.to_vec()).then(|| RunningRow {
            id: id.to_vec(),
            running: Arc::clone(&self.0),
        })
    }
}

impl Drop for RunningRow {
    fn drop(&mut self) {
        self.running
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .remove(&self.id);
    }
}

/// Hands rows that are due to their lanes, until it is told to stop.
pub async fn run(consumer: Arc<Consumer>, lanes: Lanes, stop: CancellationToken) {
    let running = Running::default();
    let mut session = None;
    let mut trouble = Backoff::for_servers();
    loop {
        let looked = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            looked = look(&consumer, &lanes, &running, &mut session) => looked,
        };
        let pause = match looked {
            Ok(pause) => {
                trouble.reset();
                pause
            }
            Err(error) => {
                session = None;
                if trouble.tries() == 0 {
                    tracing::warn!(consumer = %consumer.name, %error, "Waiting messages cannot be read");
                }
                trouble.pause()
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = consumer.line_moved.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// One look at the table; returns how long to pause.
async fn look(
    consumer: &Consumer,
    lanes: &Lanes,
    running: &Running,
    slot: &mut Option<Box<dyn Session>>,
) -> Result<Duration, StoreError> {
    if slot.is_none() {
        *slot = Some(consumer.store.session("hapax waiting").await?);
    }
    let Some(session) = slot.as_mut() else {
        return Ok(LOOK_PAUSE);
    };
    // A line that has lost its first row by other ways than ours has to go on, and so has one that was
    // made when the order was strict.
    session.waiting_release(consumer.id, None).await?;
    if consumer.gate.is_full() {
        let held = session.waiting_held(consumer.id).await?;
        consumer.set_full(held > consumer.room_from());
    }
    if consumer.paused().is_some() {
        return Ok(LOOK_PAUSE);
    }
    let Some(next) = session.waiting_next(consumer.id).await? else {
        return Ok(LOOK_PAUSE);
    };
    if !next.is_zero() {
        return Ok(next.min(LOOK_PAUSE));
    }
    let due = session
        .waiting_due(consumer.id, consumer.is_strict(), LOOK_ROWS)
        .await?;
    let mut handed = 0;
    for (id, partition) in due {
        if let Some(guard) = running.begin(&id) {
            handed += 1;
            failpoint::pass(Point::AfterDue);
            let work = Work::waiting(Origin::Table(guard), Hold::Row(id));
            lanes.send(partition, work).await;
        }
    }
    // What is due and not handed over runs already, here or on another host.
    Ok(if handed == 0 {
        BUSY_PAUSE
    } else {
        Duration::ZERO
    })
}

#[cfg(test)]
mod tests;
