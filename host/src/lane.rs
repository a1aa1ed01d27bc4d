//! The pipeline, one lane of it: take a batch, commit it, say so.
//!
//! A lane owns one session and the messages of its partitions, in order. It takes what is ready and never
//! waits to fill a batch. Messages that were delivered before, and those from the table, run alone, with
//! their start recorded, so that one that takes the host down is found out. What the world breaks is done
//! again until it works: nothing is acknowledged, counted or given up for it.

mod alone;
mod behind;
mod delivery;
mod floor;
mod inbox;
mod pace;
mod pulse;
mod report;
mod work;
mod world;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::commit::{self, Committed, Item, Setback, Verdict};
use crate::consumer::Consumer;
use crate::effects::Isolation;
use crate::failpoint::{self, Point};
use crate::failure::{Failure, code};
use crate::relay::RelayHandle;
use crate::store::{Session, StoreError, StuckSession};

use alone::Started;
use behind::{Behind, Later};
use pace::Pace;
use work::{is_forgotten, works};

pub use delivery::{Budget, Delivery, Then};
pub use floor::Floor;
pub use inbox::{Inbox, Lanes};
pub use pulse::Pulse;
pub use work::{Origin, Work};

/// Conflicts that a message may lose alone before they count as its own failure.
const MAX_CONFLICTS: u32 = 8;

/// Failures of the world that a message may meet alone, while pings succeed, before they are its own.
const MAX_POISON: u32 = 3;

/// Batches that run with savepoints after one that needed them.
const CAUTIOUS_BATCHES: u32 = 16;

/// How long a lane whose invariants are broken tries to take back the start of its message.
const BROKEN_PATIENCE: Duration = Duration::from_secs(1);

/// The lane was told to stop while it waited for the world; what it held is not acknowledged.
struct Stopped;

/// Why a lane ended for good.
#[derive(Debug, thiserror::Error)]
#[error("the consumer {consumer} has stopped, and acknowledges nothing: {error}")]
pub struct Broken {
    pub consumer: String,
    pub error: StoreError,
}

enum Ended {
    Stopped,
    Broken(StoreError),
}

/// What became of a message that was to be committed alone.
enum Settled {
    Done,
    /// Its row is another host's, or its delivery goes back to the queue.
    NotRun,
    /// Its key is in another transaction's hands.
    Busy(Box<Work>),
    /// Its session does not end, and is left behind: it is parked, or waits for the session's end.
    Left,
}

impl From<Stopped> for Ended {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

/// One lane at work.
pub struct Lane {
    consumer: Arc<Consumer>,
    number: i16,
    inbox: Inbox,
    relay: RelayHandle,
    session: Option<Box<dyn Session>>,
    /// Works whose key is in another transaction's hands. They run again, alone, after the others.
    later: Vec<Later>,
    /// How often the one of them was tried that is tried now.
    trying: Option<Backoff>,
    /// Works that wait for the end of a session.
    behind: Vec<Behind>,
    /// The session before this one does not end, and nobody has looked yet whose keys it has.
    stuck_before: Option<StuckSession>,
    /// Works that were taken and not begun, in their order: only one could be tried, or their batch was over
    /// before it came to them.
    held: Vec<Work>,
    /// How many more batches run with savepoints.
    cautious: u32,
    pace: Pace,
    /// What the running message is charged with.
    started: Option<Started>,
    /// No new batch.
    stop: CancellationToken,
    /// Not even the end of this one.
    abandon: CancellationToken,
}

impl Lane {
    pub fn new(
        consumer: Arc<Consumer>,
        number: i16,
        inbox: Inbox,
        relay: RelayHandle,
        stop: CancellationToken,
        abandon: CancellationToken,
    ) -> Self {
        let pace = Pace::new(consumer.batch);
        Self {
            consumer,
            number,
            inbox,
            relay,
            session: None,
            later: Vec::new(),
            trying: None,
            behind: Vec::new(),
            stuck_before: None,
            held: Vec::new(),
            cautious: 0,
            pace,
            started: None,
            stop,
            abandon,
        }
    }

    /// Runs until it is told to stop, or until an invariant breaks.
    ///
    /// What is dropped when it is to abandon its batch, rolls back. No message is left charged with a start
    /// that the host itself has ended.
    pub async fn run(mut self) -> Result<(), Broken> {
        let abandon = self.abandon.clone();
        let ended = loop {
            let turned = tokio::select! {
                biased;
                () = abandon.cancelled() => Err(Ended::Stopped),
                turned = self.turn() => turned,
            };
            if let Err(ended) = turned {
                break ended;
            }
        };
        match ended {
            Ended::Stopped => {
                self.take_back().await;
                Ok(())
            }
            Ended::Broken(error) => {
                // What is broken is to be told of, and not to be waited for.
                let _ = tokio::time::timeout(BROKEN_PATIENCE, self.take_back()).await;
                Err(Broken {
                    consumer: self.consumer.name.clone(),
                    error,
                })
            }
        }
    }

    /// One batch, from the inbox to its acknowledgement.
    async fn turn(&mut self) -> Result<(), Ended> {
        let consumer = Arc::clone(&self.consumer);
        consumer.pulse(self.number).rest();
        let mut batch = self.take().await?;
        self.take_up().await;
        self.keep_in_order(&mut batch);
        if batch.is_empty() && !self.is_due() {
            return Ok(());
        }
        let pass = tokio::select! {
            biased;
            () = self.stop.cancelled() => return Err(Ended::Stopped),
            pass = consumer.gate.enter() => pass,
        };
        // A full outbox is back-pressure: nothing is run whose messages could not leave.
        tokio::select! {
            biased;
            () = self.stop.cancelled() => return Err(Ended::Stopped),
            () = self.relay.room() => {}
        }
        consumer.pulse(self.number).beat();
        self.forget(&mut batch);
        if pass.probe {
            // One message is tried; the others stay held, in their order.
            if !self.later.is_empty() {
                self.hold_back(batch);
                return self.try_one_later().await.map(|_| ());
            }
            let others = batch.split_off(batch.len().min(1));
            self.hold_back(others);
        }
        self.try_later().await?;
        let mut together = Vec::with_capacity(batch.len());
        let mut works = self.recognise(batch).await?.into_iter();
        while let Some(work) = works.next() {
            if work.alone && work.is_forgotten() {
                // One before it was given back, and must not be overtaken.
                self.forget(&mut vec![work]);
                continue;
            }
            if !work.alone {
                together.push(work);
                continue;
            }
            let left = self.settle(std::mem::take(&mut together)).await?;
            if !left.is_empty() {
                // Nothing overtakes them.
                self.hold_back(left.into_iter().chain([work]).chain(works));
                return Ok(());
            }
            self.start_alone(work).await?;
        }
        let left = self.settle(together).await?;
        self.hold_back(left);
        Ok(())
    }

    /// Puts works back where the next batch begins.
    fn hold_back(&mut self, works: impl IntoIterator<Item = Work>) {
        let behind = std::mem::take(&mut self.held);
        self.held.extend(works);
        self.held.extend(behind);
    }

    /// The next batch: what was held back, or what the inbox has.
    async fn take(&mut self) -> Result<Vec<Work>, Ended> {
        if self.stop.is_cancelled() {
            return Err(Ended::Stopped);
        }
        if !self.held.is_empty() {
            let messages = self.messages().min(self.held.len());
            return Ok(self.held.drain(..messages).collect());
        }
        let patience = self.patience();
        let limits = crate::consumer::BatchLimits {
            messages: self.messages(),
            ..self.consumer.batch
        };
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(Ended::Stopped),
            batch = self.inbox.next(limits, patience, self.pace.linger) => batch.ok_or(Ended::Stopped),
        }
    }

    /// Drops works whose channel is gone: the broker delivers them again.
    fn forget(&self, works: &mut Vec<Work>) {
        let before = works.len();
        works.retain(|work| !work.is_forgotten());
        let forgotten = (before - works.len()) as u64;
        self.consumer.metrics.forgotten.inc_by(forgotten);
    }

    /// Commits a batch, whatever it takes. Returns the works at its end that it had no time for.
    async fn settle(&mut self, mut batch: Vec<Work>) -> Result<Vec<Work>, Ended> {
        // A part of a batch may have been given back, and must not be overtaken by the next.
        self.forget(&mut batch);
        if batch.len() <= 1 {
            // A lane that has narrowed to single messages has to find its way back, too.
            for work in batch {
                let started = Instant::now();
                self.settle_one(work).await?;
                self.pace.widen(started.elapsed(), 1);
            }
            return Ok(Vec::new());
        }
        let (mut items, mut origins): (Vec<Item>, Vec<Origin>) = batch
            .into_iter()
            .map(|work| (work.item, work.origin))
            .unzip();
        let mut trouble = Backoff::for_servers();
        let part = loop {
            let mut all = items.iter().zip(&origins);
            if all.any(|(item, origin)| is_forgotten(item, origin)) {
                // Whoever gets it now may be done with it before this batch has its turn.
                break items.len();
            }
            let leave = self.share_floor().await?;
            let started = Instant::now();
            let attempted = self.attempt(&mut items).await;
            drop(leave);
            let setback = match attempted {
                Ok(committed) => {
                    let begun = committed.verdicts.len();
                    let left = works(items.split_off(begun), origins.split_off(begun)).collect();
                    self.pace.widen(started.elapsed(), begun);
                    self.conclude(committed, &items, origins);
                    return Ok(left);
                }
                Err(setback) => setback,
            };
            self.note(&setback);
            match setback {
                Setback::Again => tokio::task::yield_now().await,
                Setback::Isolate => {
                    self.cautious = CAUTIOUS_BATCHES;
                    let savepoints = self.consumer.store.traits().max_savepoints;
                    if items.len() > savepoints {
                        break savepoints;
                    }
                }
                // Each half that meets the held key would wait for it anew: only one message should.
                Setback::Split(StoreError::LockTimeout(_)) => break 1,
                Setback::Split(_) => {
                    self.pace.halve();
                    break items.len() / 2;
                }
                Setback::Busy(error) | Setback::World(error) => {
                    self.pause(&mut trouble, &error).await?;
                    // A world that fails the same batch again may be failing one message of it.
                    if trouble.tries() >= MAX_POISON && self.answers().await {
                        break 1;
                    }
                }
                Setback::Full => {
                    self.give_back(&origins);
                    return Ok(Vec::new());
                }
                Setback::Stuck(stuck) => {
                    self.leave_behind(stuck, works(items, origins)).await?;
                    return Ok(Vec::new());
                }
                Setback::Ours(error) => return Err(Ended::Broken(error)),
            }
        };
        let mut works = works(items, origins).peekable();
        while works.peek().is_some() {
            let part = works.by_ref().take(part).collect();
            let left = Box::pin(self.settle(part)).await?;
            if !left.is_empty() {
                return Ok(left.into_iter().chain(works).collect());
            }
        }
        Ok(Vec::new())
    }

    /// Commits one message by itself, beside what other lanes run.
    async fn settle_one(&mut self, work: Work) -> Result<(), Ended> {
        let leave = self.share_floor().await?;
        if let Settled::Busy(work) = self.settle_alone(work).await? {
            self.put_off(*work);
        }
        drop(leave);
        Ok(())
    }

    /// Commits one message by itself, where everything that fails is told apart.
    async fn settle_alone(&mut self, work: Work) -> Result<Settled, Ended> {
        let Work {
            mut item,
            origin,
            alone,
        } = work;
        let mut trouble = Backoff::for_servers();
        let (mut conflicts, mut poison) = (0, 0);
        loop {
            if is_forgotten(&item, &origin) {
                self.consumer.metrics.forgotten.inc();
                return Ok(Settled::NotRun);
            }
            let setback = match self.attempt(std::slice::from_mut(&mut item)).await {
                Ok(committed) => {
                    let gone = committed.verdicts.contains(&Verdict::Gone);
                    self.conclude(committed, &[item], vec![origin]);
                    return Ok(if gone { Settled::NotRun } else { Settled::Done });
                }
                Err(setback) => setback,
            };
            self.note(&setback);
            match setback {
                Setback::Again => tokio::task::yield_now().await,
                Setback::Isolate => self.cautious = CAUTIOUS_BATCHES,
                Setback::Full => {
                    self.give_back(&[origin]);
                    return Ok(Settled::NotRun);
                }
                // The messages behind it must not overtake it.
                Setback::Busy(error) if self.consumer.is_strict() => {
                    self.pause(&mut trouble, &error).await?;
                }
                Setback::Split(error) if self.meets_stuck(&error) => {
                    return Ok(Settled::Busy(Box::new(Work {
                        item,
                        origin,
                        alone,
                    })));
                }
                Setback::Split(error) => {
                    conflicts += 1;
                    if conflicts > MAX_CONFLICTS {
                        item.preset = Some(Failure::later(code::CONFLICT, error.to_string()));
                    }
                    self.pause(&mut trouble, &error).await?;
                }
                Setback::Busy(_) => {
                    return Ok(Settled::Busy(Box::new(Work {
                        item,
                        origin,
                        alone,
                    })));
                }
                Setback::Stuck(stuck) => {
                    let work = Work {
                        item,
                        origin,
                        alone,
                    };
                    self.leave_behind(stuck, [work]).await?;
                    return Ok(Settled::Left);
                }
                // It lasts until somebody mends the database, whatever the message does.
                Setback::World(error @ StoreError::Unwritable(_)) => {
                    self.pause(&mut trouble, &error).await?;
                }
                Setback::World(error) => {
                    self.pause(&mut trouble, &error).await?;
                    if self.answers().await {
                        poison += 1;
                    }
                    if poison >= MAX_POISON {
                        item.preset = Some(Failure::later(code::POISON, error.to_string()));
                    }
                }
                Setback::Ours(error) => return Err(Ended::Broken(error)),
            }
        }
    }

    /// One transaction over these items.
    async fn attempt(&mut self, items: &mut [Item]) -> Result<Committed, Setback> {
        self.consumer.pulse(self.number).beat();
        self.connect().await.map_err(Setback::World)?;
        if let Some(stuck) = self.stuck_before.take() {
            return Err(Setback::Stuck(stuck));
        }
        let isolation = if self.cautious > 0 {
            Isolation::Savepoints
        } else {
            Isolation::Optimistic
        };
        let started = Instant::now();
        let result = commit::attempt(
            &self.consumer,
            self.number,
            &mut self.session,
            items,
            isolation,
        )
        .await;
        if result.is_err() && items.iter().any(|item| item.suspect) {
            // Before anything else is tried: it may be all of these whose keys are not free.
            self.session = None;
            if let Some(stuck) = self.look_behind().await {
                return Err(Setback::Stuck(stuck));
            }
            for item in &mut *items {
                item.suspect = false;
            }
        }
        if let Ok(committed) = &result {
            self.cautious = self.cautious.saturating_sub(1);
            self.pace.worked = committed.worked;
            self.consumer
                .metrics
                .batch_seconds
                .observe(started.elapsed().as_secs_f64());
            self.consumer
                .metrics
                .batch_messages
                .observe(committed.messages() as f64);
        }
        result
    }

    /// The batch is durable: tell the relay, the broker and the operator, in this order.
    fn conclude(&self, committed: Committed, items: &[Item], origins: Vec<Origin>) {
        self.relay.publish(committed.outgoing);
        if items.iter().any(|item| item.in_doubt) {
            // Not before: while the server was still at it, there was nothing to be found.
            self.relay.recover(self.number);
        }
        failpoint::pass(Point::BeforeSettle);
        delivery::settle(origins.into_iter().filter_map(|origin| match origin {
            Origin::Queue(delivery) => Some(delivery),
            Origin::Table(_) => None,
        }));
        for (item, verdict) in items.iter().zip(&committed.verdicts) {
            self.report(item, verdict);
        }
        self.tell_brake(&committed.verdicts);
        if self.consumer.is_strict() && items.iter().any(|item| item.kept) {
            // The next of a line may be due.
            self.consumer.line_moved.notify_one();
        }
    }

    /// Lets deliveries go that cannot be kept anywhere: their channel is given up, so that none of the messages
    /// behind them overtakes them, and the consumer takes no more until there is room.
    fn give_back(&self, origins: &[Origin]) {
        for origin in origins {
            if let Origin::Queue(delivery) = origin {
                delivery.give_back();
            }
        }
        let deliveries = origins
            .iter()
            .filter(|origin| matches!(origin, Origin::Queue(_)))
            .count();
        self.consumer.metrics.forgotten.inc_by(deliveries as u64);
        self.consumer.set_full(true);
    }

    /// How many messages the next batch may hold.
    fn messages(&self) -> usize {
        match self.cautious {
            0 => self.pace.width,
            _ => self
                .pace
                .width
                .min(self.consumer.store.traits().max_savepoints),
        }
    }
}
