//! A RabbitMQ queue as a source: one connection and one channel for each subscription.
//!
//! A lost channel is never recovered. Its deliveries are forgotten (the broker delivers them again) and
//! the next subscription starts with new tags and a new window. While messages cannot be worked on they
//! are held, not given back in a loop: every return counts against a queue's delivery limit. Only a
//! pause that the broker would not sit out, or bodies that together need more memory than `prefetch-bytes`, give them
//! back, once. A subscription that ends soon after it began is followed by the next after a backoff, whatever ended it.

mod acker;
mod intake;
mod queue;
mod receive;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::ReadyChunks;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};

use crate::ack::AckQueue;
use crate::amqp::screen::Bounds;
use crate::amqp::{self, Address, Screen};
use crate::backoff::Backoff;
use crate::config::Declare;
use crate::failpoint::{self, Point};
use crate::store::{JournalEntry, StoreError};

use super::{Feed, LEAVE_PATIENCE, WINDOW_TICK};
use acker::Acker;
use intake::{Intake, Lost};
use queue::{refusal, short};
use receive::{Received, Receiver};

pub use queue::{Arguments, Broker, QueueError, look, prepare};

/// Deliveries that are taken at once when they are there.
const TAKE: usize = 64;

/// A subscription that has lived for so long is no part of a loop.
const CALM: Duration = Duration::from_secs(30);

/// Who has paused a consumer that no person has.
const BY: &str = "hapax";

/// One consumer's subscription, renewed for as long as the host runs.
pub struct AmqpSource {
    pub feed: Feed,
    pub address: Address,
    pub declare: Option<Declare>,
    /// How long the broker leaves a delivery unacknowledged.
    pub consumer_timeout: Option<Duration>,
    /// Bytes of bodies that are held and not dealt with.
    pub prefetch_bytes: u64,
    /// A longer body is parked in part.
    pub max_parked_bytes: u64,
}

/// How a subscription ended that was not lost.
enum Ended {
    /// The host stops.
    Stopped,
    /// Its messages were given back, for this reason.
    Left(String),
}

/// A subscription that is about to end.
struct Leaving {
    reason: String,
    /// What goes on until then.
    how: How,
    deadline: Instant,
}

/// What a subscription does with its deliveries before it ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    /// Lanes finish what they have begun; the rest is forgotten.
    Forget,
    /// Lanes finish what they have got, until the deadline.
    Finish,
}

impl AmqpSource {
    /// Consumes until it is told to stop and its lanes have ended.
    pub async fn run(self) {
        let mut trouble = Backoff::for_servers();
        let mut intake = Intake::new(self.feed.prefetch, self.prefetch_bytes);
        let (consumer, queue) = (&self.feed.consumer.name, &self.feed.consumer.queue);
        let mut told = String::new();
        while self.feed.may_subscribe().await {
            let mut life = Life::default();
            let ended = self.subscription(&mut intake, &mut life).await;
            self.feed.consumer.metrics.up.set(0);
            if life.is_calm() {
                trouble.reset();
                told.clear();
                intake.calm();
            }
            match ended {
                Ok(Ended::Stopped) => return,
                Ok(Ended::Left(reason)) => {
                    tracing::info!(%consumer, %queue, reason, "Messages given back to the queue");
                }
                Err(error) => {
                    if !life.is_calm()
                        && let Some(how) = life.lost(&error)
                    {
                        intake.lost(how);
                    }
                    // Each cause is told once; what follows is the waiting for it to end.
                    let cause = error.to_string();
                    if cause == told {
                        tracing::debug!(%consumer, %queue, %error, "Not subscribed yet");
                    } else {
                        tracing::warn!(%consumer, %queue, %error, "Subscription lost; it is renewed");
                        told = cause;
                    }
                }
            }
            if !self.feed.pause(&mut trouble).await {
                return;
            }
        }
    }

    /// One subscription, until the host stops, the consumer is held back, or the channel is lost.
    async fn subscription(
        &self,
        intake: &mut Intake,
        life: &mut Life,
    ) -> Result<Ended, QueueError> {
        let consumer = &self.feed.consumer;
        let screen = Screen::new(Bounds {
            max_body_bytes: self.max_parked_bytes,
            held_bytes: self.prefetch_bytes,
        });
        let screen = Arc::new(screen.distrusting(intake.is_distrustful()));
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
        let braked = consumer.gate.braked().is_some();
        let prefetch = if braked { 1 } else { intake.width() };
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
        life.began = Some(Instant::now());
        tracing::info!(consumer = %consumer.name, queue = %consumer.queue, prefetch, "Subscribed");

        let (acks, settled) = AckQueue::new();
        let acks = Arc::new(acks);
        let receiver = Receiver {
            consumer,
            connection: &connection,
            channel: channel.id(),
            screen: &screen,
            acks: &acks,
            max_message_bytes: consumer.rules.max_message_bytes,
            max_parked_bytes: self.max_parked_bytes,
            prefetch_bytes: self.prefetch_bytes,
        };
        let mut acker = Acker::new(&channel, settled, prefetch);
        let deliveries = deliveries.ready_chunks(TAKE);
        let pumped = self.pump(deliveries, &receiver, &mut acker, tag, braked, intake, life);
        let ended = pumped.await;
        acks.close();
        if ended.is_ok() {
            amqp::close(&connection).await;
        }
        ended
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "what one subscription is made of"
    )]
    async fn pump(
        &self,
        mut deliveries: ReadyChunks<lapin::Consumer>,
        receiver: &Receiver<'_>,
        acker: &mut Acker<'_>,
        tag: ShortString,
        braked: bool,
        intake: &mut Intake,
        life: &mut Life,
    ) -> Result<Ended, QueueError> {
        let consumer = &self.feed.consumer;
        let (gate, acks) = (&consumer.gate, receiver.acks);
        let refused = |error| refusal(&consumer.queue, error);
        let mut changes = gate.changes();
        let mut consuming = true;
        let mut leaving: Option<Leaving> = None;
        loop {
            if let Some(reason) = acker.take_left() {
                self.stay_away(&reason).await;
            }
            if consuming || leaving.as_ref().is_some_and(Leaving::is_over) {
                consumer.metrics.up.set(i64::from(!gate.is_closed()));
                let over = leaving.take().map(|leaving| leaving.reason);
                if let Some(reason) = over.or_else(|| self.wants_out(braked, acks, acker)) {
                    if consuming {
                        consuming = false;
                        self.stop_deliveries(acker, &tag).await?;
                    }
                    // What no lane has begun is forgotten; what one has, it finishes.
                    acks.close();
                    leaving = Some(Leaving::new(reason, How::Forget));
                }
            }
            tokio::select! {
                settled = acker.settled.recv() => {
                    acker.settle(settled).await.map_err(refused)?;
                    if leaving.as_ref().is_some_and(|leaving| leaving.how == How::Finish) && acker.is_idle() {
                        acker.finish().await.map_err(refused)?;
                        let reason = leaving.map(|leaving| leaving.reason).unwrap_or_default();
                        return Ok(Ended::Left(reason));
                    }
                }
                () = tokio::time::sleep(WINDOW_TICK), if acker.is_waiting() || consuming || leaving.is_some() => {
                    acker.send().await.map_err(refused)?;
                }
                chunk = deliveries.next(), if consuming => {
                    let chunk = chunk.ok_or_else(|| QueueError::Cancelled(consumer.queue.clone()))?;
                    for delivery in chunk {
                        life.delivered = true;
                        match receiver.receive(delivery.map_err(refused)?).await? {
                            Received::Work(work, bytes) => {
                                let distrusted = intake.is_distrustful();
                                acker.delivered();
                                self.feed.dispatch(*work).await;
                                // The next one is trusted again, which takes another screen.
                                if !intake.took(bytes) && !distrusted {
                                    continue;
                                }
                                let reason = "there is room for more messages at a time".to_owned();
                                leaving = Some(Leaving::new(reason, How::Finish));
                            }
                            Received::TooMuch(bytes, reason) => {
                                intake.overflowed(bytes);
                                leaving = Some(Leaving::new(reason, How::Finish));
                            }
                        }
                        // What came after it goes back to the queue, since nothing may overtake it.
                        consuming = false;
                        self.stop_deliveries(acker, &tag).await?;
                        break;
                    }
                    if !consuming && acker.is_idle() {
                        let reason = leaving.map(|leaving| leaving.reason).unwrap_or_default();
                        return Ok(Ended::Left(reason));
                    }
                }
                _ = changes.changed(), if consuming => {}
                () = self.feed.stop.cancelled(), if consuming => {
                    consuming = false;
                    self.stop_deliveries(acker, &tag).await?;
                }
                () = self.lanes_have_finished(&leaving), if leaving.is_some() => {
                    acker.finish().await.map_err(refused)?;
                    let reason = leaving.map(|leaving| leaving.reason).unwrap_or_default();
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

    /// Waits until no lane is at work, where what they have not begun is forgotten.
    async fn lanes_have_finished(&self, leaving: &Option<Leaving>) {
        match leaving {
            Some(leaving) if leaving.how == How::Forget => {
                let idle = self.feed.consumer.gate.emptied();
                let _ = tokio::time::timeout_at(leaving.deadline.into(), idle).await;
            }
            _ => std::future::pending().await,
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
    fn wants_out(&self, braked: bool, acks: &AckQueue, acker: &Acker<'_>) -> Option<String> {
        let gate = &self.feed.consumer.gate;
        if gate.turns_away() || acks.is_closed() {
            return Some(gate.reason().unwrap_or_else(super::given_back));
        }
        if braked && gate.braked().is_none() {
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

    /// A message can neither be handled nor parked whole, and its queue would drop it: the consumer takes nothing, on
    /// every host, until a person has dealt with the message. The pause is recorded, so that it outlives restarts and
    /// everybody who asks is told why.
    async fn stay_away(&self, reason: &str) {
        let consumer = &self.feed.consumer;
        tracing::error!(consumer = %consumer.name, queue = %consumer.queue, reason, "Consumer stopped");
        let mut trouble = Backoff::for_servers();
        while let Err(error) = self.record_pause(reason).await {
            tracing::warn!(consumer = %consumer.name, %error, "The pause of the consumer is not recorded yet");
            if !self.feed.pause(&mut trouble).await {
                return;
            }
        }
        consumer.pause(&crate::host::pause_reason(BY, reason));
    }

    async fn record_pause(&self, reason: &str) -> Result<(), StoreError> {
        let consumer = &self.feed.consumer;
        let mut session = consumer.store.session("hapax source").await?;
        let upkeep = session.upkeep();
        upkeep.set_pause(consumer.id, Some((BY, reason))).await?;
        let entry = JournalEntry {
            at: 0,
            actor: BY.to_owned(),
            action: "pause".to_owned(),
            consumer: Some(consumer.id),
            key: None,
            why: reason.to_owned(),
        };
        upkeep.journal_add(&entry).await
    }
}

impl Leaving {
    fn new(reason: String, how: How) -> Self {
        Self {
            reason,
            how,
            deadline: Instant::now() + LEAVE_PATIENCE,
        }
    }

    /// The lanes have had their time to finish what they have got.
    fn is_over(&self) -> bool {
        self.how == How::Finish && Instant::now() >= self.deadline
    }
}

/// What is known of a subscription while it lives.
#[derive(Default)]
struct Life {
    began: Option<Instant>,
    delivered: bool,
}

impl Life {
    fn is_calm(&self) -> bool {
        self.began.is_some_and(|began| began.elapsed() >= CALM)
    }

    /// How it was lost, where that says something about what it was given: a broken line says nothing.
    fn lost(&self, error: &QueueError) -> Option<Lost> {
        const CONNECTION_FORCED: u16 = 320;
        self.began?;
        let QueueError::Refused { error, .. } = error else {
            return None;
        };
        match error.kind() {
            lapin::ErrorKind::ParsingError(_) => Some(Lost::Unread),
            lapin::ErrorKind::ProtocolError(told) if told.get_id() != CONNECTION_FORCED => {
                self.delivered.then_some(Lost::Holding)
            }
            _ => None,
        }
    }
}
