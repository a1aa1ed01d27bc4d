//! A RabbitMQ queue as a source: one connection and one channel for each subscription.
//!
//! A lost channel is never recovered. Its deliveries are forgotten (the broker delivers them again) and
//! the next subscription starts with new tags and a new window.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Connection};
use tokio::sync::mpsc;

use crate::ack::{AckQueue, Window};
use crate::amqp::{Address, ConnectError};
use crate::backoff::Backoff;
use crate::config::{Declare, QueueKind};
use crate::failpoint::{self, Point};
use crate::lane::{Origin, Work};
use crate::message::Message;

use super::Feed;

/// How often a window with a hole is looked at.
const WINDOW_TICK: Duration = Duration::from_millis(250);

/// A queue that cannot be consumed as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(
        "the queue {0} does not exist; create it, or let the host do it with `declare = {{ type = \"quorum\" }}`"
    )]
    Missing(String),
    #[error("the queue {queue} cannot be used: {error}")]
    Refused {
        queue: String,
        error: Box<lapin::Error>,
    },
    #[error("the name {0} is over 255 bytes")]
    Name(String),
    #[error("the broker has ended the subscription to {0}")]
    Cancelled(String),
    #[error(
        "the queue {0} is a stream: streams are not consumed by acknowledgement, and are refused"
    )]
    Stream(String),
}

/// Declares the queue if the configuration says so, and makes sure that it is there.
pub async fn prepare(
    channel: &Channel,
    queue: &str,
    declare: Option<&Declare>,
) -> Result<(), QueueError> {
    let name = short(queue)?;
    let refused = |error| refusal(queue, error);
    let Some(declare) = declare else {
        let passive = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        channel
            .queue_declare(name, passive, FieldTable::default())
            .await
            .map_err(refused)?;
        return Ok(());
    };
    let mut arguments = FieldTable::default();
    if declare.kind == QueueKind::Quorum {
        arguments.insert(
            "x-queue-type".into(),
            AMQPValue::LongString("quorum".into()),
        );
    }
    let durable = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    channel
        .queue_declare(name.clone(), durable, arguments)
        .await
        .map_err(refused)?;
    for binding in &declare.bind {
        let (exchange, routing_key) = (short(&binding.exchange)?, short(&binding.routing_key)?);
        channel
            .queue_bind(
                name.clone(),
                exchange,
                routing_key,
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await
            .map_err(refused)?;
    }
    Ok(())
}

fn refusal(queue: &str, error: lapin::Error) -> QueueError {
    const NOT_FOUND: u16 = 404;
    match error.kind() {
        lapin::ErrorKind::ProtocolError(protocol) if protocol.get_id() == NOT_FOUND => {
            QueueError::Missing(queue.to_owned())
        }
        _ => QueueError::Refused {
            queue: queue.to_owned(),
            error: Box::new(error),
        },
    }
}

fn short(name: &str) -> Result<ShortString, QueueError> {
    ShortString::try_new(name).map_err(|_| QueueError::Name(name.to_owned()))
}

/// One consumer's subscription, renewed for as long as the host runs.
pub struct AmqpSource {
    pub feed: Feed,
    pub address: Address,
    pub declare: Option<Declare>,
}

impl AmqpSource {
    /// Consumes until it is told to stop and to finish.
    pub async fn run(self) {
        let mut trouble = Backoff::for_servers();
        while !self.feed.stop.is_cancelled() {
            if !self.feed.ledger_answers().await {
                return;
            }
            match self.subscription(&mut trouble).await {
                Ok(()) => return,
                Err(error) => {
                    self.feed.consumer.metrics.up.set(0);
                    let (consumer, queue) = (&self.feed.consumer.name, &self.feed.consumer.queue);
                    // Told once; what follows is the waiting for a broker that is away.
                    if trouble.tries() == 0 {
                        tracing::warn!(%consumer, %queue, %error, "Subscription lost; it is renewed");
                    } else {
                        tracing::debug!(%consumer, %queue, %error, "Not subscribed yet");
                    }
                }
            }
            if !self.feed.pause(&mut trouble).await {
                return;
            }
        }
    }

    /// One subscription, until the host stops (`Ok`) or the channel is lost.
    async fn subscription(&self, trouble: &mut Backoff) -> Result<(), QueueError> {
        let consumer = &self.feed.consumer;
        let connection = self
            .address
            .connect(&format!("hapax {}", consumer.name))
            .await?;
        let refused = |error| refusal(&consumer.queue, error);
        let channel = connection.create_channel().await.map_err(refused)?;
        prepare(&channel, &consumer.queue, self.declare.as_ref()).await?;
        channel
            .basic_qos(self.feed.prefetch, BasicQosOptions::default())
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
        consumer.metrics.up.set(1);
        trouble.reset();
        tracing::info!(consumer = %consumer.name, queue = %consumer.queue, "Subscribed");

        let (acks, settled) = AckQueue::new();
        let acks = Arc::new(acks);
        let mut acker = Acker {
            channel: &channel,
            settled,
            window: Window::new(self.feed.prefetch),
        };
        let ended = self.pump(deliveries, &acks, &mut acker, tag).await;
        acks.close();
        if ended.is_ok() {
            leave(connection).await;
        }
        ended
    }

    async fn pump(
        &self,
        mut deliveries: lapin::Consumer,
        acks: &Arc<AckQueue>,
        acker: &mut Acker<'_>,
        tag: ShortString,
    ) -> Result<(), QueueError> {
        let queue = &self.feed.consumer.queue;
        let refused = |error| refusal(queue, error);
        let mut consuming = true;
        loop {
            tokio::select! {
                settled = acker.settled.recv() => {
                    acker.settle(settled).await.map_err(refused)?;
                }
                () = tokio::time::sleep(WINDOW_TICK), if acker.window.is_waiting() => {
                    acker.send().await.map_err(refused)?;
                }
                delivery = deliveries.next(), if consuming => match delivery {
                    Some(Ok(delivery)) => self.deliver(delivery, acks).await?,
                    Some(Err(error)) => return Err(refused(error)),
                    None => return Err(QueueError::Cancelled(queue.clone())),
                },
                () = self.feed.stop.cancelled(), if consuming => {
                    consuming = false;
                    self.feed.consumer.metrics.up.set(0);
                    let cancelled =
                        acker.channel.basic_cancel(tag.clone(), BasicCancelOptions::default()).await;
                    cancelled.map_err(refused)?;
                }
                () = self.feed.finish.cancelled() => {
                    acker.finish().await.map_err(refused)?;
                    return Ok(());
                }
            }
        }
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

/// Sends acknowledgements to one channel.
struct Acker<'a> {
    channel: &'a Channel,
    settled: mpsc::UnboundedReceiver<Vec<u64>>,
    window: Window,
}

impl Acker<'_> {
    /// Takes what is settled, all of it that is there, and sends the frames.
    async fn settle(&mut self, first: Option<Vec<u64>>) -> Result<(), lapin::Error> {
        let mut next = first;
        while let Some(tags) = next {
            for tag in tags {
                self.window.settle(tag);
            }
            next = self.settled.try_recv().ok();
        }
        self.send().await
    }

    async fn send(&mut self) -> Result<(), lapin::Error> {
        for frame in self.window.frames(Instant::now()) {
            self.ack(frame).await?;
        }
        Ok(())
    }

    /// Sends everything that is settled, holes or not.
    async fn finish(&mut self) -> Result<(), lapin::Error> {
        let first = self.settled.try_recv().ok();
        self.settle(first).await?;
        for frame in self.window.last_frames() {
            self.ack(frame).await?;
        }
        Ok(())
    }

    async fn ack(&self, frame: crate::ack::Frame) -> Result<(), lapin::Error> {
        let options = BasicAckOptions {
            multiple: frame.multiple,
        };
        failpoint::pass(Point::BeforeAck);
        let sent = self.channel.basic_ack(frame.tag, options).await;
        failpoint::pass_if(Point::AfterAck, sent.is_ok());
        sent
    }
}

/// Closes in an orderly way, so that the last acknowledgements arrive.
async fn leave(connection: Connection) {
    if let Err(error) = connection.close(200, ShortString::from("OK")).await {
        tracing::debug!(%error, "Connection not closed in an orderly way");
    }
}
