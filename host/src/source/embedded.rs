//! A queue of the embedded broker as a source. One host reads it, so the position is in memory: giving
//! messages back means to read them again.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::ack::{AckQueue, Settled};
use crate::backoff::Backoff;
use crate::failpoint::{self, Point};
use crate::lane::{Budget, Delivery, Origin, Work};
use crate::store::{QueuedMessage, Session, StoreError};

use super::{Feed, LEAVE_PATIENCE};

/// Messages in one look.
const LOOK_MESSAGES: u32 = 256;

/// Pause after a look that found nothing.
const IDLE_PAUSE: Duration = Duration::from_millis(10);

/// One consumer's reading of an embedded queue.
pub struct EmbeddedSource {
    pub feed: Feed,
    /// Bytes of bodies that are held and not dealt with.
    pub prefetch_bytes: u64,
}

/// Bytes of the bodies that are held.
#[derive(Debug, Default)]
struct Held(AtomicU64);

impl Budget for Held {
    fn release(&self, bytes: u64) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// What has been read and is not acknowledged.
struct Position {
    last: i64,
    open: HashSet<u64>,
    reading: bool,
    held: Arc<Held>,
}

impl EmbeddedSource {
    /// Consumes until it is told to stop and its lanes have ended.
    pub async fn run(self) {
        let (consumer, queue) = (&self.feed.consumer.name, &self.feed.consumer.queue);
        while self.feed.may_subscribe().await {
            tracing::info!(%consumer, %queue, "Subscribed");
            let left = self.subscription().await;
            self.feed.consumer.metrics.up.set(0);
            match left {
                Some(reason) => {
                    tracing::info!(%consumer, %queue, reason, "Messages given back to the queue");
                }
                None => return,
            }
        }
    }

    /// Reads from the beginning, until the host stops (`None`) or the consumer is turned away.
    async fn subscription(&self) -> Option<String> {
        let gate = &self.feed.consumer.gate;
        let (acks, mut settled) = AckQueue::new();
        let acks = Arc::new(acks);
        let mut position = Position {
            last: 0,
            open: HashSet::new(),
            reading: true,
            held: Arc::default(),
        };
        let mut session = None;
        let mut trouble = Backoff::for_servers();
        let mut unsent = Vec::new();
        let mut leaving: Option<(Instant, String)> = None;
        loop {
            if leaving.is_none() && (gate.turns_away() || acks.is_closed()) {
                // What no lane has begun is forgotten; what one has, it finishes.
                acks.close();
                position.reading = false;
                let reason = gate.reason().unwrap_or_else(super::given_back);
                leaving = Some((Instant::now() + LEAVE_PATIENCE, reason));
            }
            position.reading &= !self.feed.stop.is_cancelled();
            let up = position.reading && !gate.is_closed();
            self.feed.consumer.metrics.up.set(i64::from(up));
            let turn = self
                .turn(&mut session, &acks, &mut position, &mut unsent)
                .await;
            let pause = match turn {
                Ok(pause) => {
                    trouble.reset();
                    pause
                }
                Err(error) => {
                    session = None;
                    tracing::warn!(consumer = %self.feed.consumer.name, %error, "Queue not read");
                    trouble.pause()
                }
            };
            let mut finished = false;
            let mut idle = false;
            tokio::select! {
                settled = settled.recv() => unsent.extend(settled.into_iter().flat_map(tags)),
                () = tokio::time::sleep(pause) => {}
                () = self.feed.lanes_are_idle(&leaving), if leaving.is_some() => idle = true,
                () = self.feed.lanes.ended() => finished = true,
            }
            failpoint::pass_if(Point::AfterLanes, finished);
            drain(&mut settled, &mut unsent);
            if finished || idle {
                let last = self
                    .acknowledge(&mut session, &mut position, &mut unsent)
                    .await;
                if let Err(error) = last {
                    tracing::warn!(%error, "The last acknowledgements were not stored");
                }
                return leaving.map(|(_, reason)| reason).filter(|_| !finished);
            }
        }
    }

    /// Stores the acknowledgements and reads on, while there is room in the prefetch.
    async fn turn(
        &self,
        session: &mut Option<Box<dyn Session>>,
        acks: &Arc<AckQueue>,
        position: &mut Position,
        unsent: &mut Vec<u64>,
    ) -> Result<Duration, StoreError> {
        self.acknowledge(session, position, unsent).await?;
        let room = usize::from(self.feed.prefetch).saturating_sub(position.open.len());
        let held = position.held.0.load(Ordering::Relaxed);
        let bytes = self.prefetch_bytes.saturating_sub(held);
        if !position.reading || room == 0 || bytes == 0 {
            return Ok(IDLE_PAUSE);
        }
        let limit = LOOK_MESSAGES.min(u32::try_from(room).unwrap_or(u32::MAX));
        let queue = &self.feed.consumer.queue;
        let open = self.connect(session).await?;
        let queues = open.queues().ok_or_else(no_queues)?;
        let messages = queues.deliver(queue, position.last, limit, bytes).await?;
        failpoint::pass_if(Point::AfterReceive, !messages.is_empty());
        let found = messages.len();
        for queued in messages {
            let tag = u64::try_from(queued.sequence).unwrap_or_default();
            position.last = queued.sequence;
            position.open.insert(tag);
            let origin = Origin::Queue(self.delivery(acks, tag, &queued, position));
            let redelivered = queued.deliveries > 1;
            let work = Work::delivered(&self.feed.consumer, queued.message, redelivered, origin);
            self.feed.dispatch(work).await;
        }
        Ok(if found == 0 {
            IDLE_PAUSE
        } else {
            Duration::ZERO
        })
    }

    /// The delivery of a message whose body counts in the budget.
    fn delivery(
        &self,
        acks: &Arc<AckQueue>,
        tag: u64,
        queued: &QueuedMessage,
        position: &Position,
    ) -> Delivery {
        let bytes = queued.message.body.len() as u64;
        position.held.0.fetch_add(bytes, Ordering::Relaxed);
        let budget = Arc::clone(&position.held) as Arc<dyn Budget>;
        Delivery::new(acks, tag).holding(budget, bytes)
    }

    async fn acknowledge(
        &self,
        session: &mut Option<Box<dyn Session>>,
        position: &mut Position,
        unsent: &mut Vec<u64>,
    ) -> Result<(), StoreError> {
        if unsent.is_empty() {
            return Ok(());
        }
        let sequences = unsent
            .iter()
            .filter_map(|tag| i64::try_from(*tag).ok())
            .collect::<Vec<_>>();
        let open = self.connect(session).await?;
        failpoint::pass(Point::BeforeAck);
        open.queues()
            .ok_or_else(no_queues)?
            .ack(&self.feed.consumer.queue, &sequences)
            .await?;
        failpoint::pass(Point::AfterAck);
        for tag in unsent.drain(..) {
            position.open.remove(&tag);
        }
        Ok(())
    }

    async fn connect<'s>(
        &self,
        session: &'s mut Option<Box<dyn Session>>,
    ) -> Result<&'s mut Box<dyn Session>, StoreError> {
        let open = match session.take() {
            Some(open) => open,
            None => self.feed.consumer.store.session("hapax source").await?,
        };
        Ok(session.insert(open))
    }
}

fn drain(settled: &mut mpsc::UnboundedReceiver<Settled>, unsent: &mut Vec<u64>) {
    while let Ok(settled) = settled.try_recv() {
        unsent.extend(tags(settled));
    }
}

/// Messages of this broker are stored whole, and none is refused.
fn tags(settled: Settled) -> Vec<u64> {
    match settled {
        Settled::Ack(tags) => tags,
        Settled::Reject(tag) | Settled::Leave(tag, _) => vec![tag],
    }
}

fn no_queues() -> StoreError {
    StoreError::Unusable(
        "the embedded broker lives in the SQLite store, and this store has none".into(),
    )
}
