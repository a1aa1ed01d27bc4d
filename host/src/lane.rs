//! The pipeline, one lane of it: take a batch, commit it, say so.
//!
//! A lane owns one session and the messages of its partitions, in order. It takes what is ready and never
//! waits to fill a batch. Messages that were delivered before, and those from the table, run alone, with
//! their start recorded, so that one that takes the host down is found out. What the world breaks is done
//! again until it works: nothing is acknowledged, counted or given up for it.

mod inbox;
mod work;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::ack::AckQueue;
use crate::backoff::Backoff;
use crate::commit::{self, Committed, Hold, Item, Setback, Verdict};
use crate::consumer::Consumer;
use crate::effects::Isolation;
use crate::failpoint::{self, Point};
use crate::failure::{Failure, code};
use crate::relay::RelayHandle;
use crate::store::{Claim, ClaimRule, Fate, Session, StoreError};

pub use inbox::{Inbox, Lanes};
pub use work::{Origin, Work};

/// Conflicts that a message may lose alone before they count as its own failure.
const MAX_CONFLICTS: u32 = 8;

/// Failures of the world that a message may meet alone, while pings succeed, before they are its own.
const MAX_POISON: u32 = 3;

/// Batches that run with savepoints after one that needed them.
const CAUTIOUS_BATCHES: u32 = 16;

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
    later: Vec<Work>,
    /// How many more batches run with savepoints.
    cautious: u32,
    /// How many messages a batch may hold at the moment: halved by conflicts, grown by success.
    width: usize,
    stop: CancellationToken,
}

impl Lane {
    pub fn new(
        consumer: Arc<Consumer>,
        number: i16,
        inbox: Inbox,
        relay: RelayHandle,
        stop: CancellationToken,
    ) -> Self {
        let width = consumer.batch.messages;
        Self {
            consumer,
            number,
            inbox,
            relay,
            session: None,
            later: Vec::new(),
            cautious: 0,
            width,
            stop,
        }
    }

    /// Runs until it is told to stop, or until an invariant breaks.
    pub async fn run(mut self) -> Result<(), Broken> {
        let ended = loop {
            if let Err(ended) = self.turn().await {
                break ended;
            }
        };
        match ended {
            Ended::Stopped => Ok(()),
            Ended::Broken(error) => Err(Broken {
                consumer: self.consumer.name.clone(),
                error,
            }),
        }
    }

    /// One batch, from the inbox to its acknowledgement.
    async fn turn(&mut self) -> Result<(), Ended> {
        let patience = (!self.later.is_empty()).then_some(Duration::from_millis(100));
        let limits = crate::consumer::BatchLimits {
            messages: self.messages(),
            ..self.consumer.batch
        };
        let batch = tokio::select! {
            biased;
            () = self.stop.cancelled() => return Err(Ended::Stopped),
            batch = self.inbox.next(limits, patience) => batch.ok_or(Ended::Stopped)?,
        };
        // A full outbox is back-pressure: nothing is run whose messages could not leave.
        tokio::select! {
            biased;
            () = self.stop.cancelled() => return Err(Ended::Stopped),
            () = self.relay.room() => {}
        }
        for work in std::mem::take(&mut self.later) {
            self.settle_alone(work).await?;
        }
        let mut together = Vec::with_capacity(batch.len());
        let delivered = batch.len();
        let batch = batch
            .into_iter()
            .filter(|work| !work.is_forgotten())
            .collect::<Vec<_>>();
        let forgotten = (delivered - batch.len()) as u64;
        self.consumer.metrics.forgotten.inc_by(forgotten);
        for work in self.recognise(batch).await? {
            if work.alone {
                self.settle(std::mem::take(&mut together)).await?;
                self.start_alone(work).await?;
            } else {
                together.push(work);
            }
        }
        self.settle(together).await
    }

    /// Redelivered messages whose key has a fate need no run of their own: they are duplicates like others.
    async fn recognise(&mut self, mut batch: Vec<Work>) -> Result<Vec<Work>, Ended> {
        let keys = batch
            .iter()
            .filter(|work| work.may_be_known())
            .map(|work| {
                work.item
                    .identity
                    .as_ref()
                    .map_or_else(|_| Vec::new(), |known| known.key.clone())
            })
            .collect::<Vec<_>>();
        if keys.is_empty() {
            return Ok(batch);
        }
        let keys = keys.iter().map(Vec::as_slice).collect::<Vec<_>>();
        let mut trouble = Backoff::for_servers();
        let entries = loop {
            let id = self.consumer.id;
            let entries = match self.connect().await {
                Ok(session) => session.entries(id, &keys).await,
                Err(error) => Err(error),
            };
            match entries {
                Ok(entries) => break entries,
                Err(error) => self.pause(&mut trouble, &error).await?,
            }
        };
        for ((work, key), entry) in batch
            .iter_mut()
            .filter(|work| work.may_be_known())
            .zip(keys)
            .zip(entries)
        {
            // Without a key there is nothing to record a start under.
            work.alone = !key.is_empty() && entry.is_none_or(|entry| entry.fate == Fate::Started);
        }
        Ok(batch)
    }

    /// Runs a message that may have taken a host down: its start is on record before it runs.
    async fn start_alone(&mut self, mut work: Work) -> Result<(), Ended> {
        let mut trouble = Backoff::for_servers();
        let starts = loop {
            match self.record_start(&work.item).await {
                Ok(starts) => break starts,
                Err(error) if error.class() == crate::failure::Class::Ours => {
                    return Err(Ended::Broken(error));
                }
                Err(error) => self.pause(&mut trouble, &error).await?,
            }
        };
        let Some(starts) = starts else {
            // Somebody else has dealt with the key, or has the row: the claim will tell.
            return self.settle_alone(work).await;
        };
        if work.item.hold == Hold::Nothing {
            work.item.hold = Hold::Started(starts);
        }
        failpoint::pass(Point::AfterStart);
        if starts > self.consumer.max_starts() {
            let crashes = starts - 1;
            let text = format!("the host went down {crashes} times while it ran this message");
            work.item.preset = Some(Failure::never(code::CRASH_LOOP, text));
        }
        let hold = work.item.hold.clone();
        let key = work
            .item
            .identity
            .as_ref()
            .ok()
            .map(|known| known.key.clone());
        let settled = self.settle_alone(work).await;
        if matches!(settled, Err(Ended::Stopped)) {
            // The world failed, not the message: what it was charged with is taken back.
            self.undo_start(&hold, key.as_deref()).await;
        }
        settled
    }

    async fn record_start(&mut self, item: &Item) -> Result<Option<i32>, StoreError> {
        let consumer = Arc::clone(&self.consumer);
        let session = self.connect().await?;
        failpoint::pass(Point::BeforeStart);
        if let Hold::Row(id) = &item.hold {
            return session.waiting_start(consumer.id, id).await;
        }
        let Ok(identity) = &item.identity else {
            return Ok(None);
        };
        let plugin = consumer.plugin();
        let rule = ClaimRule {
            consumer: consumer.id,
            plugin: &plugin.digest()[..8],
            retention: consumer.retention,
        };
        let claim = Claim {
            key: &identity.key,
            fingerprint: &identity.fingerprint,
            attempts: 1,
            timestamp_seconds: item.message.timestamp_seconds(),
        };
        let entry = session.record_start(rule, claim).await?;
        Ok((entry.fate == Fate::Started).then_some(entry.attempts))
    }

    async fn undo_start(&mut self, hold: &Hold, key: Option<&[u8]>) {
        failpoint::pass(Point::BeforeUndoStart);
        let id = self.consumer.id;
        let Ok(session) = self.connect().await else {
            return;
        };
        let undone = match (hold, key) {
            (Hold::Row(row), _) => session.waiting_unstart(id, row).await,
            (Hold::Started(_), Some(key)) => session.undo_start(id, key).await,
            _ => Ok(()),
        };
        if let Err(error) = undone {
            tracing::debug!(%error, "A recorded start stays on record");
        }
    }

    /// Commits a batch, whatever it takes.
    async fn settle(&mut self, works: Vec<Work>) -> Result<(), Ended> {
        if works.len() <= 1 {
            // A lane that has narrowed to single messages has to find its way back, too.
            for work in works {
                let started = Instant::now();
                self.settle_alone(work).await?;
                self.widen(started.elapsed(), 1);
            }
            return Ok(());
        }
        let (mut items, origins): (Vec<Item>, Vec<Origin>) = works
            .into_iter()
            .map(|work| (work.item, work.origin))
            .unzip();
        let mut trouble = Backoff::for_servers();
        let part = loop {
            let started = Instant::now();
            let setback = match self.attempt(&mut items).await {
                Ok(committed) => {
                    self.widen(started.elapsed(), items.len());
                    self.conclude(committed, &items, origins);
                    return Ok(());
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
                    self.width = (self.width / 2).max(1);
                    break items.len() / 2;
                }
                Setback::Busy(error) | Setback::World(error) => {
                    self.pause(&mut trouble, &error).await?;
                    // A world that fails the same batch again may be failing one message of it.
                    if trouble.tries() >= MAX_POISON && self.answers().await {
                        break 1;
                    }
                }
                Setback::Ours(error) => return Err(Ended::Broken(error)),
            }
        };
        let mut works = items
            .into_iter()
            .zip(origins)
            .map(|(item, origin)| Work {
                item,
                origin,
                alone: false,
            })
            .peekable();
        while works.peek().is_some() {
            let part = works.by_ref().take(part).collect();
            Box::pin(self.settle(part)).await?;
        }
        Ok(())
    }

    /// Commits one message by itself, where everything that fails is told apart.
    async fn settle_alone(&mut self, work: Work) -> Result<(), Ended> {
        let Work {
            mut item,
            origin,
            alone,
        } = work;
        let mut trouble = Backoff::for_servers();
        let (mut conflicts, mut poison) = (0, 0);
        loop {
            let setback = match self.attempt(std::slice::from_mut(&mut item)).await {
                Ok(committed) => {
                    self.conclude(committed, &[item], vec![origin]);
                    return Ok(());
                }
                Err(setback) => setback,
            };
            self.note(&setback);
            match setback {
                Setback::Again => tokio::task::yield_now().await,
                Setback::Isolate => self.cautious = CAUTIOUS_BATCHES,
                Setback::Split(error) => {
                    conflicts += 1;
                    if conflicts > MAX_CONFLICTS {
                        item.preset = Some(Failure::later(code::CONFLICT, error.to_string()));
                    }
                    self.pause(&mut trouble, &error).await?;
                }
                Setback::Busy(_) => {
                    self.later.push(Work {
                        item,
                        origin,
                        alone,
                    });
                    return Ok(());
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
        self.connect().await.map_err(Setback::World)?;
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
        match &result {
            Ok(_) => {
                self.cautious = self.cautious.saturating_sub(1);
                self.consumer
                    .metrics
                    .batch_seconds
                    .observe(started.elapsed().as_secs_f64());
                self.consumer
                    .metrics
                    .batch_messages
                    .observe(items.len() as f64);
            }
            Err(Setback::World(StoreError::InDoubt(_))) => self.relay.recover(self.number),
            Err(_) => {}
        }
        result
    }

    /// The batch is durable: tell the relay, the broker and the operator, in this order.
    fn conclude(&self, committed: Committed, items: &[Item], origins: Vec<Origin>) {
        self.relay.publish(committed.outgoing);
        failpoint::pass(Point::BeforeSettle);
        let mut acks: Option<(Arc<AckQueue>, Vec<u64>)> = None;
        for origin in &origins {
            let Origin::Queue { acks: queue, tag } = origin else {
                continue;
            };
            match &mut acks {
                Some((same, tags)) if Arc::ptr_eq(same, queue) => tags.push(*tag),
                _ => {
                    if let Some((other, tags)) = acks.replace((Arc::clone(queue), vec![*tag])) {
                        other.settle(tags);
                    }
                }
            }
        }
        if let Some((queue, tags)) = acks {
            queue.settle(tags);
        }
        for (item, verdict) in items.iter().zip(&committed.verdicts) {
            self.report(item, verdict);
        }
    }

    /// How many messages the next batch may hold.
    fn messages(&self) -> usize {
        match self.cautious {
            0 => self.width,
            _ => self.width.min(self.consumer.store.traits().max_savepoints),
        }
    }

    /// Batches that took too long get narrower, others may grow.
    fn widen(&mut self, elapsed: Duration, messages: usize) {
        let limits = self.consumer.batch;
        let share = limits.time.as_secs_f64() / elapsed.as_secs_f64().max(1e-6);
        self.width = if share < 1.0 {
            ((messages as f64 * share) as usize).max(1)
        } else {
            (self.width + self.width / 8 + 1).min(limits.messages)
        };
    }

    fn report(&self, item: &Item, verdict: &Verdict) {
        let metrics = &self.consumer.metrics;
        if matches!(item.hold, Hold::Row(_)) && *verdict != Verdict::Gone {
            metrics.retried.inc();
        }
        match verdict {
            Verdict::Committed => {
                metrics.committed.inc();
                metrics
                    .end_to_end_seconds
                    .observe(item.received.elapsed().as_secs_f64());
            }
            Verdict::Duplicate(fate) => metrics.duplicate(&format!("{fate:?}").to_lowercase()),
            Verdict::Gone => {}
            Verdict::Failed {
                failure,
                status,
                attempts,
                delay,
            } => {
                metrics.failed(failure.code.0);
                let key = item
                    .identity
                    .as_ref()
                    .map(|known| crate::key::show(&known.key));
                let key = key.unwrap_or_default();
                if *status == crate::store::Status::Parked {
                    metrics.parked(failure.code.0);
                    tracing::warn!(
                        consumer = %self.consumer.name, code = %failure.code, %key, attempts,
                        error = %failure.message, "Message parked"
                    );
                } else {
                    tracing::debug!(
                        consumer = %self.consumer.name, code = %failure.code, %key, attempts,
                        error = %failure.message, delay_seconds = delay.as_secs_f64(), "Message failed"
                    );
                }
            }
        }
    }

    fn note(&self, setback: &Setback) {
        let (reason, error) = match setback {
            Setback::Isolate => ("isolate", None),
            Setback::Split(error) => ("split", Some(error)),
            Setback::Again => ("again", None),
            Setback::Busy(error) => ("busy", Some(error)),
            Setback::World(error) => ("world", Some(error)),
            Setback::Ours(error) => ("ours", Some(error)),
        };
        self.consumer.metrics.setback(reason);
        if let Some(error) = error {
            tracing::debug!(consumer = %self.consumer.name, reason, %error, "Batch rolled back");
        }
    }

    async fn connect(&mut self) -> Result<&mut dyn Session, StoreError> {
        if self.session.is_none() {
            let name = format!("hapax {} {}", self.consumer.name, self.number);
            self.session = Some(self.consumer.store.session(&name).await?);
        }
        match &mut self.session {
            Some(session) => Ok(&mut **session),
            None => Err(StoreError::Unavailable("the lane has no session".into())),
        }
    }

    /// Whether the database answers now.
    async fn answers(&mut self) -> bool {
        let answer = match self.connect().await {
            Ok(session) => session.ping().await,
            Err(error) => Err(error),
        };
        if answer.is_err() {
            self.session = None;
        }
        answer.is_ok()
    }

    /// Waits for the world, and says so once.
    async fn pause(&mut self, trouble: &mut Backoff, error: &StoreError) -> Result<(), Stopped> {
        if matches!(error, StoreError::Unavailable(_) | StoreError::InDoubt(_)) {
            self.session = None;
        }
        if trouble.tries() == 2 {
            tracing::warn!(
                consumer = %self.consumer.name, lane = self.number, %error,
                "The store does not answer; messages are held and tried again"
            );
        }
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(Stopped),
            () = tokio::time::sleep(trouble.pause()) => Ok(()),
        }
    }
}
