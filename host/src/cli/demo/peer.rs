//! The consumers that Hapax is compared with, written as a team would write them: a number of workers,
//! each takes a message, does the work, publishes the event and acknowledges.
//!
//! They are given everything that Hapax is given: the same queues, the same deliveries, a transaction for
//! the business row, a confirm for every event, the acknowledgement at the very end, and a clean stop on
//! SIGTERM. Nothing in here sleeps, fails on purpose or looks at what the demo wants to see. What they lose
//! and double, they lose and double because the flag and the work are two steps.

pub mod amqp;
pub mod embedded;
mod flags;
mod shop;

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use clap::{Args, ValueEnum};
use serde_json::json;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::orders::Order;
use super::place::{self, Contestant, EVENTS, ORDERS, Place, Surroundings};
use super::progress::Progress;
use flags::Flags;
use shop::Shop;

/// Messages that one process works on at the same time.
const WORKERS: usize = 32;

/// Messages that the broker may hand out ahead.
const PREFETCH: u16 = 64;

/// How often the process says how far it is.
const REPORT_EVERY: Duration = Duration::from_millis(2);

/// How a consumer protects itself from duplicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Strategy {
    /// Not at all.
    None,
    /// Looks for a flag, works, sets the flag.
    FlagAfter,
    /// Sets the flag if nobody has, and works if it was this one.
    FlagBefore,
}

/// A consumer of the demo, in a process of its own.
#[derive(Debug, Args)]
pub struct DemoConsumer {
    #[arg(long)]
    strategy: Strategy,
    /// Where its files are, and its queues when the broker is the embedded one
    #[arg(long)]
    dir: PathBuf,
    /// The schema of its table and the beginning of its queues' names, on servers
    #[arg(long)]
    name: String,
}

/// A message that was delivered, and the number to acknowledge it by.
pub struct Delivery {
    pub tag: u64,
    pub body: Vec<u8>,
}

/// Resolves when the broker has said that an event is safe.
pub type Confirm = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

/// A broker, as a consumer sees it.
#[async_trait]
pub trait Queue: Send + Sync {
    /// The next message. Waits for one. Cancel safe.
    async fn next(&self) -> anyhow::Result<Delivery>;

    /// Hands an event to the broker. It is safe when the confirm says so.
    async fn publish(&self, message_id: String, body: Vec<u8>) -> anyhow::Result<Confirm>;

    /// Tells the broker that a message is done. Like any acknowledgement, it may still be on its way when
    /// this returns.
    async fn ack(&self, tag: u64) -> anyhow::Result<()>;

    /// Sends what is on its way, and leaves.
    async fn close(&self) -> anyhow::Result<()>;
}

/// Everything that the workers share.
struct Peer {
    strategy: Strategy,
    queue: Box<dyn Queue>,
    shop: Shop,
    flags: Flags,
    received: AtomicU64,
    handled: AtomicU64,
    underway: AtomicU64,
}

/// Consumes until SIGTERM.
pub async fn run(arguments: DemoConsumer) -> anyhow::Result<()> {
    let mut stopped = signal(SignalKind::terminate())?;
    let surroundings = Surroundings::from_environment();
    let queue: Box<dyn Queue> = match &surroundings.amqp {
        Some(url) => {
            let [orders, events] =
                [ORDERS, EVENTS].map(|queue| format!("{}.{queue}", arguments.name));
            Box::new(amqp::Client::connect(url, &orders, &events).await?)
        }
        None => {
            let file = arguments.dir.join(place::BROKER_FILE);
            Box::new(embedded::Client::open(&file, ORDERS, EVENTS).await?)
        }
    };
    let peer = Arc::new(Peer {
        strategy: arguments.strategy,
        queue,
        shop: Shop::open(&surroundings, &arguments.dir, &arguments.name).await?,
        flags: Flags::open(&arguments.dir).await?,
        received: AtomicU64::new(0),
        handled: AtomicU64::new(0),
        underway: AtomicU64::new(0),
    });
    let stop = CancellationToken::new();
    let mut workers = JoinSet::new();
    for _ in 0..WORKERS {
        workers.spawn(work(Arc::clone(&peer), stop.clone()));
    }
    let mut report = tokio::time::interval(REPORT_EVERY);
    loop {
        tokio::select! {
            _ = stopped.recv() => stop.cancel(),
            _ = report.tick() => peer.report()?,
            ended = workers.join_next() => match ended {
                Some(ended) => ended??,
                None => break,
            },
        }
    }
    peer.report()?;
    peer.queue.close().await
}

/// One of the workers.
async fn work(peer: Arc<Peer>, stop: CancellationToken) -> anyhow::Result<()> {
    loop {
        let delivery = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            delivery = peer.queue.next() => delivery?,
        };
        peer.received.fetch_add(1, Ordering::Relaxed);
        let order = serde_json::from_slice(&delivery.body).context("the demo publishes orders")?;
        peer.handle(&order).await?;
        peer.queue.ack(delivery.tag).await?;
        peer.handled.fetch_add(1, Ordering::Relaxed);
    }
}

impl Peer {
    /// One message, by the strategy.
    async fn handle(&self, order: &Order) -> anyhow::Result<()> {
        let key = &order.order_id;
        match self.strategy {
            Strategy::None => self.credit(order).await,
            Strategy::FlagAfter => {
                if self.flags.is_set(key).await? {
                    return Ok(());
                }
                self.credit(order).await?;
                self.flags.set(key).await
            }
            Strategy::FlagBefore => {
                if !self.flags.set_if_absent(key).await? {
                    return Ok(());
                }
                self.credit(order).await
            }
        }
    }

    /// The work: a row, and an event that says so. The event gets an id of its own, as events do.
    async fn credit(&self, order: &Order) -> anyhow::Result<()> {
        self.underway.fetch_add(1, Ordering::Relaxed);
        self.shop.credit(order).await?;
        let event = json!({ "order_id": order.order_id, "points": order.points() });
        let message_id = format!("{:032x}", fastrand::u128(..));
        let confirm = self
            .queue
            .publish(message_id, event.to_string().into_bytes())
            .await?;
        self.underway.fetch_sub(1, Ordering::Relaxed);
        confirm.await
    }

    fn report(&self) -> anyhow::Result<()> {
        let progress = Progress {
            handled: self.handled.load(Ordering::Relaxed),
            received: self.received.load(Ordering::Relaxed),
            underway: self.underway.load(Ordering::Relaxed),
            unsent: 0,
        };
        progress.print().context("the demo no longer listens")
    }
}

/// How to run such a consumer.
pub fn command<'c>(
    command: &'c mut Command,
    place: &Place,
    contestant: Contestant,
    strategy: Strategy,
) -> &'c mut Command {
    let strategy = strategy.to_possible_value().expect("no strategy is hidden");
    command
        .arg("demo-consumer")
        .args(["--strategy", strategy.get_name()])
        .args(["--name", &place.name_of(contestant)])
        .arg("--dir")
        .arg(place.dir_of(contestant))
}
