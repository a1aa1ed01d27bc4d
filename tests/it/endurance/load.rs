//! Who publishes without end, and who notes what comes out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::support::broker::{Message, VirtualHost};
use crate::support::orders::{OUTPUT, QUEUE};
use crate::support::wait;

/// Messages in one go.
const BATCH: u64 = 500;

/// Messages that may be ready in the queue before the producer pauses.
const BACKLOG: u32 = 8_000;

/// What a publish or a subscription may take before the connection is given up.
const PUBLISH_PATIENCE: Duration = Duration::from_secs(30);

/// How long nothing may come before the connection is given up: one that was made while the broker came back may
/// hear of nothing any more.
const SILENCE: Duration = Duration::from_secs(5);

/// How long nothing may come before it is taken for lost.
const EVENT_PATIENCE: Duration = Duration::from_secs(60);

pub struct Published {
    pub messages: u64,
    pub distinct: u64,
}

pub struct Producer(JoinHandle<Published>);

impl Producer {
    pub fn start(broker: Arc<VirtualHost>, seed: u64, enough: Arc<AtomicBool>) -> Producer {
        Producer(tokio::spawn(produce(broker, seed, enough)))
    }

    /// Waits for the last batch to be confirmed.
    pub async fn finish(self) -> anyhow::Result<Published> {
        Ok(self.0.await?)
    }
}

async fn produce(broker: Arc<VirtualHost>, seed: u64, enough: Arc<AtomicBool>) -> Published {
    let mut random = fastrand::Rng::with_seed(seed ^ 1);
    let mut published = Published {
        messages: 0,
        distinct: 0,
    };
    while !enough.load(Ordering::Acquire) {
        let depth = timeout(PUBLISH_PATIENCE, broker.depth(QUEUE)).await;
        let has_room = matches!(depth, Ok(Ok(depth)) if depth.ready <= BACKLOG);
        if !has_room {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        }
        let mut batch = Vec::new();
        for _ in 0..BATCH {
            let number = if published.distinct > 0 && random.u32(0..5) == 0 {
                random.u64(0..published.distinct)
            } else {
                published.distinct += 1;
                published.distinct - 1
            };
            batch.push(order(number));
        }
        // What was not confirmed is published again, all of it: duplicates, as from any producer.
        loop {
            published.messages += BATCH;
            let publish = broker.publish(QUEUE, &batch);
            if let Ok(Ok(())) = timeout(PUBLISH_PATIENCE, publish).await {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    published
}

fn order(number: u64) -> Message {
    Message::json(&json!({
        "order_id": format!("order-{number}"),
        "user_id": format!("user-{}", number % 997),
        "amount_cents": 100 + number % 5_000,
    }))
}

/// What the events say.
#[derive(Debug, Default)]
pub struct Events {
    /// Orders without an event.
    pub missing: u64,
    /// Orders with two events of different ids.
    pub doubled: u64,
    pub copies: u64,
}

/// The id of each order's event, hashed; none yet where it is absent.
#[derive(Default)]
struct Seen {
    ids: Vec<Option<u64>>,
    doubled: u64,
    copies: u64,
}

pub struct Collector {
    seen: Arc<std::sync::Mutex<Seen>>,
    distinct: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Collector {
    pub fn start(broker: Arc<VirtualHost>) -> Collector {
        let seen = Arc::<std::sync::Mutex<Seen>>::default();
        let distinct = Arc::new(AtomicU64::new(0));
        let (noted, counted) = (seen.clone(), distinct.clone());
        let task = tokio::spawn(async move {
            loop {
                // The broker dies now and then: what was not acknowledged comes again.
                let _ = collect(&broker, &noted, &counted).await;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        });
        Collector {
            seen,
            distinct,
            task,
        }
    }

    /// Waits until each of the orders has its event, or none has come for long.
    pub async fn finish(self, orders: u64) -> anyhow::Result<Events> {
        let mut before = 0;
        loop {
            let now = self.distinct.load(Ordering::Acquire);
            let progress = wait::until("an event", EVENT_PATIENCE, async || {
                let found = self.distinct.load(Ordering::Acquire);
                Ok((found > before || found >= orders).then_some(found))
            });
            if now >= orders {
                break;
            }
            match progress.await {
                Ok(found) => before = found,
                Err(_) => break,
            }
        }
        self.task.abort();
        let seen = self.seen.lock().expect("no holder of this lock panics");
        let found = seen.ids.iter().flatten().count() as u64;
        ensure!(found <= orders, "{found} orders have events, of {orders}");
        Ok(Events {
            missing: orders - found,
            doubled: seen.doubled,
            copies: seen.copies,
        })
    }
}

async fn collect(
    broker: &VirtualHost,
    seen: &std::sync::Mutex<Seen>,
    distinct: &AtomicU64,
) -> anyhow::Result<()> {
    let subscribe = async {
        let connection = broker.connect().await?;
        let channel = connection.create_channel().await?;
        channel.basic_qos(2_000, BasicQosOptions::default()).await?;
        let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
        let events = channel
            .basic_consume(OUTPUT.into(), "".into(), options, none)
            .await?;
        anyhow::Ok((connection, events))
    };
    let (_connection, mut events) = timeout(PUBLISH_PATIENCE, subscribe).await??;
    while let Some(event) = timeout(SILENCE, events.next()).await? {
        let event = event?;
        let body: serde_json::Value = serde_json::from_slice(&event.data)?;
        let order = body["order_id"].as_str().context("no order id")?;
        let number = order.trim_start_matches("order-").parse::<usize>()?;
        let id = event.properties.message_id().as_ref();
        let id = hash(id.context("no message id")?.as_str());
        {
            let mut seen = seen.lock().expect("no holder of this lock panics");
            if seen.ids.len() <= number {
                seen.ids.resize(number + 1, None);
            }
            match seen.ids[number].replace(id) {
                None => drop(distinct.fetch_add(1, Ordering::AcqRel)),
                Some(other) if other == id => seen.copies += 1,
                Some(_) => seen.doubled += 1,
            }
        }
        timeout(SILENCE, event.ack(BasicAckOptions::default())).await??;
    }
    Ok(())
}

fn hash(text: &str) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}
