//! The consumer that a careful engineer writes by hand, and its relay.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use lapin::Channel;
use lapin::options::ConfirmSelectOptions;
use sha2::{Digest, Sha256};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::hand::{Event, Hand};
use super::{Counts, ceiling};
use crate::cli::bench::place::Corner;
use crate::cli::demo::broker::connect;
use crate::cli::demo::orders::Order;
use crate::cli::demo::peer::{self, Queue};

/// Messages that it works on at the same time.
const WORKERS: u32 = 32;

/// Events that the relay takes at once.
const RELAY_BLOCK: i64 = 500;

/// Pause of the relay when the outbox is empty.
const RELAY_PAUSE: Duration = Duration::from_millis(20);

pub async fn run(
    corner: &Corner,
    outbox: bool,
    counts: Arc<Counts>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let queue: Arc<dyn Queue> = match &corner.surroundings.amqp {
        Some(url) => Arc::new(
            peer::amqp::Client::connect(url, &corner.incoming(), &corner.outgoing()).await?,
        ),
        None => Arc::new(
            peer::embedded::Client::open(
                &corner.store_file(),
                &corner.incoming(),
                &corner.outgoing(),
            )
            .await?,
        ),
    };
    let hand = Hand::open(corner, WORKERS + 1).await?;
    let mut tasks = JoinSet::new();
    for _ in 0..WORKERS {
        let (queue, hand) = (Arc::clone(&queue), hand.clone());
        let (counts, stop) = (Arc::clone(&counts), stop.clone());
        let target = outbox.then(|| corner.outgoing());
        tasks.spawn(async move { work(&*queue, &hand, target.as_deref(), &counts, &stop).await });
    }
    if outbox {
        let relay = Relay {
            hand,
            target: corner.outgoing(),
            way: Way::open(corner, Arc::clone(&queue)).await?,
            counts,
            stop,
        };
        tasks.spawn(relay.run());
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    queue.close().await
}

/// One of the workers.
async fn work(
    queue: &dyn Queue,
    hand: &Hand,
    target: Option<&str>,
    counts: &Counts,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    loop {
        let delivery = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            delivery = queue.next() => delivery?,
        };
        let order: Order =
            serde_json::from_slice(&delivery.body).context("the benchmark publishes orders")?;
        let fingerprint = Sha256::digest(&delivery.body);
        hand.handle(&order, &fingerprint, target).await?;
        queue.ack(delivery.tag).await?;
        counts.handled(1);
    }
}

/// Polls the outbox, publishes, and deletes what the broker has confirmed.
struct Relay {
    hand: Hand,
    way: Way,
    target: String,
    counts: Arc<Counts>,
    stop: CancellationToken,
}

/// The relay's way to the broker.
enum Way {
    Amqp(Channel),
    Embedded(Arc<dyn Queue>),
}

impl Way {
    async fn open(corner: &Corner, queue: Arc<dyn Queue>) -> anyhow::Result<Self> {
        let Some(url) = &corner.surroundings.amqp else {
            return Ok(Self::Embedded(queue));
        };
        let connection = connect(url, "hapax bench relay").await?;
        let channel = connection.create_channel().await?;
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await?;
        Ok(Self::Amqp(channel))
    }

    async fn emit(&self, target: &str, events: &[Event]) -> anyhow::Result<()> {
        match self {
            Self::Amqp(channel) => {
                let bodies = events.iter().map(|(_, body)| body.clone());
                ceiling::emit(channel, target, bodies.collect()).await
            }
            Self::Embedded(queue) => {
                for (_, body) in events {
                    let id = format!("{:032x}", fastrand::u128(..));
                    queue.publish(id, body.clone()).await?.await?;
                }
                Ok(())
            }
        }
    }
}

impl Relay {
    async fn run(self) -> anyhow::Result<()> {
        loop {
            let taken = self.hand.take(RELAY_BLOCK).await?;
            let sent = taken.events().len();
            self.way.emit(&self.target, taken.events()).await?;
            taken.forget().await?;
            self.counts.emitted(sent);
            if sent == 0 {
                tokio::select! {
                    () = self.stop.cancelled() => return Ok(()),
                    () = tokio::time::sleep(RELAY_PAUSE) => {}
                }
            }
        }
    }
}
