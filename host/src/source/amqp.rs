//! A RabbitMQ queue as a source: one connection and one channel for each subscription.
//!
//! A lost channel is never recovered. Its deliveries are forgotten (the broker delivers them again) and
//! the next subscription starts with new tags and a new window. While messages cannot be worked on they
//! are held, not given back in a loop: every return counts against a queue's delivery limit. Only a
//! pause that the broker would not sit out gives them back, once.

mod acker;
mod queue;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::ReadyChunks;
use lapin::message::Delivery;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};

use crate::ack::AckQueue;
use crate::amqp::{self, Address, Screen};
use crate::backoff::Backoff;
use crate::config::Declare;
use crate::failpoint::{self, Point};
use crate::lane::{Origin, Work};
use crate::message::Message;

use super::{Feed, LEAVE_PATIENCE, WINDOW_TICK};
use acker::Acker;
use queue::{refusal, short};

pub use queue::{Arguments, Broker, QueueError, look, prepare};

/// Deliveries that are taken at once when they are there.
const TAKE: usize = 64;

/// One consumer's subscription, renewed for as long as the host runs.
pub struct AmqpSource {
    pub feed: Feed,
    pub address: Address,
    pub declare: Option<Declare>,
    /// How long the broker leaves a delivery unacknowledged.
    pub consumer_timeout: Option<Duration>,
}

/// How a subscription ended that was not lost.
enum Ended {
    /// The host stops.
    Stopped,
    /// Its messages were given back, for this reason.
    Left(String),
}

impl AmqpSource {
    /// Consumes until it is told to stop and its lanes have ended.
    pub async fn run(self) {
        let mut trouble = Backoff::for_servers();
        let (consumer, queue) = (&self.feed.consumer.name, &self.feed.consumer.queue);
        while self.feed.may_subscribe().await {
            let ended = self.subscription(&mut trouble).await;
            self.feed.consumer.metrics.up.set(0);
            match ended {
                Ok(Ended::Stopped) => return,
                Ok(Ended::Left(reason)) => {
                    tracing::info!(%consumer, %queue, reason, "Messages given back to the queue");
                    continue;
                }
                // Told once; what follows is the waiting for a broker that is away.
                Err(error) if trouble.tries() == 0 => {
                    tracing::warn!(%consumer, %queue, %error, "Subscription lost; it is renewed");
                }
                Err(error) => {
                    tracing::debug!(%consumer, %queue, %error, "Not subscribed yet");
                }
            }
            if !self.feed.pause(&mut trouble).await {
                return;
            }
        }
    }

    /// One subscription, until the host stops, the consumer is held back, or the channel is lost.
    async fn subscription(&self, trouble: &mut Backoff) -> Result<Ended, QueueError> {
        let consumer = &self.feed.consumer;
        let screen = Arc::new(Screen::open());
        let connection = self
            .address
            .connect_screened(&format!("hapax {}", consumer.name), Arc::clone(&screen))
            .await?;
        let refused = |error| refusal(&consumer.queue, error);
        let prepared = prepare(
            Broker::of(&connection, &screen),
            &consumer.queue,
            self.declare.as_ref(),
            consumer.is_strict(),
        );
        tokio::time::timeout(self.address.connect_timeout, prepared)
            .await
            .map_err(|_| QueueError::Silent(consumer.queue.clone()))??;
        let channel = connection.create_channel().await.map_err(refused)?;
        // With the brake on one message is fetched to be tried, and no more.
        let narrow = consumer.gate.braked().is_some();
        let prefetch = if narrow { 1 } else { self.feed.prefetch };
        channel
            .basic_qos(prefetch, BasicQosOptions::default())
            .await
            .map_err(refused)?;
        let tag = ShortString::from(format!("hapax-{}", consumer.name));
        let deliveries = channel
            .basic_consume(
                short(&consumer.queue)?,
                tag.clone(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            )
            .await
            .map_err(refused)?;
        trouble.reset();
        tracing::info!(consumer = %consumer.name, queue = %consumer.queue, "Subscribed");

        let (acks, settled) = AckQueue::new();
        let acks = Arc::new(acks);
        let mut acker = Acker::new(&channel, settled, prefetch);
        let deliveries = deliveries.ready_chunks(TAKE);
        let ended = self.pump(deliveries, &acks, &mut acker, tag, narrow).await;
        acks.close();
        if ended.is_ok() {
            amqp::close(&connection).await;
        }
        ended
    }

    async fn pump(
        &self,
        mut deliveries: ReadyChunks<lapin::Consumer>,
        acks: &Arc<AckQueue>,
        acker: &mut Acker<'_>,
        tag: ShortString,
        narrow: bool,
    ) -> Result<Ended, QueueError> {
        let consumer = &self.feed.consumer;
        let gate = &consumer.gate;
        let refused = |error| refusal(&consumer.queue, error);
        let mut changes = gate.changes();
        let mut consuming = true;
        let mut leaving: Option<(Instant, String)> = None;
        loop {
            if consuming {
                consumer.metrics.up.set(i64::from(!gate.is_closed()));
                if let Some(reason) = self.wants_out(narrow, acks, acker) {
                    consuming = false;
                    self.stop_deliveries(acker, &tag).await?;
                    // What no lane has begun is forgotten; what one has, it finishes.
                    acks.close();
                    leaving = Some((Instant::now() + LEAVE_PATIENCE, reason));
                }
            }
            tokio::select! {
                settled = acker.settled.recv() => {
                    acker.settle(settled).await.map_err(refused)?;
                }
                () = tokio::time::sleep(WINDOW_TICK), if acker.is_waiting() || consuming => {
                    acker.send().await.map_err(refused)?;
                }
                chunk = deliveries.next(), if consuming => {
                    let chunk = chunk.ok_or_else(|| QueueError::Cancelled(consumer.queue.clone()))?;
                    for delivery in chunk {
                        acker.delivered();
                        self.deliver(delivery.map_err(refused)?, acks).await?;
                    }
                }
                _ = changes.changed(), if consuming => {}
                () = self.feed.stop.cancelled(), if consuming => {
                    consuming = false;
                    self.stop_deliveries(acker, &tag).await?;
                }
                () = self.feed.lanes_are_idle(&leaving), if leaving.is_some() => {
                    acker.finish().await.map_err(refused)?;
                    let reason = leaving.map(|(_, reason)| reason).unwrap_or_default();
                    return Ok(Ended::Left(reason));
                }
                () = self.feed.lanes.ended() => {
                    failpoint::pass(Point::AfterLanes);
                    acker.finish().await.map_err(refused)?;
                    return Ok(Ended::Stopped);
                }
            }
        }
    }

    /// Takes no more. Where the order matters that is all: a broker that is told so hands the rest of the queue to
    /// the next host at once, before it has got back what this one holds. When the channel closes it gets
    /// that back first. What it sends until then is left unread.
    async fn stop_deliveries(
        &self,
        acker: &Acker<'_>,
        tag: &ShortString,
    ) -> Result<(), QueueError> {
        let consumer = &self.feed.consumer;
        consumer.metrics.up.set(0);
        if consumer.is_strict() {
            return Ok(());
        }
        acker
            .channel
            .basic_cancel(tag.clone(), BasicCancelOptions::default())
            .await
            .map_err(|error| refusal(&consumer.queue, error))
    }

    /// Why the subscription has to end, if it has to.
    fn wants_out(&self, narrow: bool, acks: &AckQueue, acker: &Acker<'_>) -> Option<String> {
        let gate = &self.feed.consumer.gate;
        if gate.turns_away() || acks.is_closed() {
            return Some(gate.reason().unwrap_or_else(super::given_back));
        }
        if narrow && gate.braked().is_none() {
            return Some("the brake is released: it takes more than one message again".to_owned());
        }
        // Before the broker does it, which would take a message that is being worked on for one that failed. Where
        // others are finished all the while that is as late as possible: they go back, too, and it counts.
        let timeout = self.consumer_timeout?;
        let (pause, oldest) = (timeout / 2, timeout / 4 * 3);
        if acker.held_for() >= pause {
            return Some(format!(
                "none could be worked on for {pause:?}, half of the broker's consumer_timeout"
            ));
        }
        (acker.oldest_for() >= oldest).then(|| {
            format!(
                "one was not finished within {oldest:?}, three quarters of the broker's consumer_timeout"
            )
        })
    }

    async fn deliver(&self, delivery: Delivery, acks: &Arc<AckQueue>) -> Result<(), QueueError> {
        failpoint::pass(Point::AfterReceive);
        let headers = delivery.properties.headers().as_ref();
        if headers.is_some_and(|headers| headers.contains_key("x-stream-offset")) {
            return Err(QueueError::Stream(self.feed.consumer.queue.clone()));
        }
        let message = Message {
            exchange: delivery.exchange.to_string(),
            routing_key: delivery.routing_key.to_string(),
            properties: delivery.properties,
            body: Bytes::from(delivery.data),
        };
        let origin = Origin::Queue {
            acks: Arc::clone(acks),
            tag: delivery.delivery_tag,
        };
        let work = Work::delivered(&self.feed.consumer, message, delivery.redelivered, origin);
        self.feed.dispatch(work).await;
        Ok(())
    }
}
