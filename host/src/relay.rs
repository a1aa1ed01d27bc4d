//! Outbox rows → broker, confirmed.
//!
//! Rows come from memory right after their commit; the table is polled only for rows that are due and for
//! those of hosts that are gone. A row is removed after the broker has confirmed it AND not returned it.
//! What cannot be sent stays, with backoff, visible, and stands in nobody's way but that of its own
//! ordering key, whose later rows wait in the table and not in memory.
//!
//! A message may reach the broker twice, with the same id. The relay never reads the incoming message.

mod amqp;
mod embedded;
mod queue;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backoff::{self, Backoff};
use crate::failpoint::{self, Point};
use crate::metrics::{self, TargetLabel};
use crate::store::{HostId, OutboxRecord, Session, Store, StoreError, TAKEN_LANE};

pub use amqp::AmqpPublisher;
pub use embedded::EmbeddedPublisher;

use queue::Queue;

/// Rows in one block of publishes and one removal.
const BLOCK_ROWS: usize = 1024;

/// Confirmed rows that are removed at once.
const REMOVE_ROWS: usize = 256;

/// How long fewer of them stay in the table: at a low rate a removal for each would cost the database more than the
/// messages do. What a host leaves behind that dies meanwhile is published again, with the same id.
const REMOVE_PAUSE: Duration = Duration::from_millis(20);

/// Rows that may be in memory before lanes wait.
const MEMORY_ROWS: usize = 16 * 1024;

/// Bytes that may be in memory before lanes wait.
const MEMORY_BYTES: usize = 64 * 1024 * 1024;

/// Pause between looks at the table.
const POLL_PAUSE: Duration = Duration::from_secs(1);

/// Pause before rows that wait behind an older one of their ordering key are looked at again.
const BLOCKED_PAUSE: Duration = Duration::from_millis(50);

/// How long rows wait in memory for an older one of their ordering key that is not there. Longer than a row is
/// mostly on its way on another host; then they leave their room to others.
const BLOCKED_PATIENCE: Duration = Duration::from_secs(1);

/// Backoff of rows that could not be sent.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// What became of one published row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sent {
    Confirmed,
    /// The broker had no queue for it.
    Returned(String),
    /// The broker or the protocol refuses this row: nacked, no such exchange, no permission, too large.
    Refused(String),
}

/// The broker is away; nothing is known of the rows that were under way.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Lost(pub String);

/// A way to a broker.
#[async_trait]
pub trait Publisher: Send {
    /// Publishes rows in order and waits for what became of each.
    async fn publish(&mut self, rows: &[OutboxRecord]) -> Result<Vec<Sent>, Lost>;

    /// Leaves the broker in an orderly way.
    async fn close(&mut self);
}

/// How much the relay holds.
#[derive(Default)]
struct Memory {
    rows: AtomicUsize,
    bytes: AtomicUsize,
    freed: Notify,
}

impl Memory {
    fn is_full(&self) -> bool {
        self.rows.load(Ordering::Acquire) >= MEMORY_ROWS
            || self.bytes.load(Ordering::Acquire) >= MEMORY_BYTES
    }

    fn add(&self, records: &[OutboxRecord]) {
        self.rows.fetch_add(records.len(), Ordering::AcqRel);
        self.bytes
            .fetch_add(records.iter().map(record_bytes).sum(), Ordering::AcqRel);
    }

    fn remove(&self, record: &OutboxRecord) {
        self.rows.fetch_sub(1, Ordering::AcqRel);
        self.bytes.fetch_sub(record_bytes(record), Ordering::AcqRel);
        self.freed.notify_waiters();
    }
}

fn record_bytes(record: &OutboxRecord) -> usize {
    record.row.message.size_bytes()
}

enum Command {
    Publish(Vec<OutboxRecord>),
    Recover(i16),
}

/// A lane's way to the relay.
#[derive(Clone)]
pub struct RelayHandle {
    commands: mpsc::UnboundedSender<Command>,
    memory: Arc<Memory>,
}

impl RelayHandle {
    /// Hands over rows that have just committed. Their number is bounded by what `room` lets through.
    pub fn publish(&self, records: Vec<OutboxRecord>) {
        if !records.is_empty() {
            self.memory.add(&records);
            let _ = self.commands.send(Command::Publish(records));
        }
    }

    /// Looks for rows of a lane whose commit was in doubt. To be asked when it is not any more: once the claims
    /// of its messages were answered again, its transaction is over, and what it has left can be seen.
    pub fn recover(&self, lane: i16) {
        let _ = self.commands.send(Command::Recover(lane));
    }

    /// Waits until there is room for more rows.
    pub async fn room(&self) {
        loop {
            let freed = self.memory.freed.notified();
            if !self.memory.is_full() {
                return;
            }
            freed.await;
        }
    }
}

/// The relay at work.
pub struct Relay {
    store: Arc<dyn Store>,
    host: HostId,
    publisher: Box<dyn Publisher>,
    commands: mpsc::UnboundedReceiver<Command>,
    memory: Arc<Memory>,
    metrics: metrics::Relay,
    queue: Queue,
    /// Lanes whose rows have to be looked for.
    recover: Vec<i16>,
    /// Rows that are confirmed and still in the table.
    sent: Vec<i64>,
    /// When those are removed at the latest.
    remove_at: Instant,
    session: Option<Box<dyn Session>>,
    next_poll: Instant,
    broker_trouble: Backoff,
    store_trouble: Backoff,
    store_retry: Option<Instant>,
}

impl Relay {
    pub fn new(
        store: Arc<dyn Store>,
        host: HostId,
        publisher: Box<dyn Publisher>,
        metrics: metrics::Relay,
    ) -> (Self, RelayHandle) {
        let (sender, commands) = mpsc::unbounded_channel();
        let memory = Arc::new(Memory::default());
        let handle = RelayHandle {
            commands: sender,
            memory: Arc::clone(&memory),
        };
        let relay = Self {
            store,
            host,
            publisher,
            commands,
            memory,
            metrics,
            queue: Queue::default(),
            recover: Vec::new(),
            sent: Vec::new(),
            remove_at: Instant::now(),
            session: None,
            next_poll: Instant::now(),
            broker_trouble: Backoff::for_servers(),
            store_trouble: Backoff::for_servers(),
            store_retry: None,
        };
        (relay, handle)
    }

    /// Runs until it is told to drain; then until nothing is left in memory, or `give_up`.
    pub async fn run(mut self, drain: CancellationToken, give_up: CancellationToken) {
        loop {
            let draining = drain.is_cancelled();
            if draining && self.is_idle() {
                break;
            }
            let step = async {
                self.take_commands(&drain).await;
                self.look_after_table(draining).await;
                self.send_block(draining).await;
            };
            tokio::select! {
                biased;
                () = step => {}
                () = give_up.cancelled() => break,
            }
        }
        self.publisher.close().await;
    }

    fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.sent.is_empty() && self.commands.is_empty()
    }

    /// Waits for something to do, and takes all commands that are there.
    async fn take_commands(&mut self, drain: &CancellationToken) {
        let wait = self.wait(drain.is_cancelled());
        let first = if wait.is_zero() {
            None
        } else {
            tokio::select! {
                biased;
                // Without lanes there is nobody to wait for: the branch is closed then, and not always ready.
                Some(command) = self.commands.recv() => Some(command),
                () = tokio::time::sleep(wait) => None,
                () = drain.cancelled(), if !drain.is_cancelled() => None,
            }
        };
        let mut next = first;
        loop {
            match next {
                Some(Command::Publish(records)) => self.adopt(records),
                Some(Command::Recover(lane)) => self.recover.push(lane),
                None => {}
            }
            match self.commands.try_recv() {
                Ok(command) => next = Some(command),
                Err(_) => break,
            }
        }
        self.metrics
            .in_memory
            .set(i64::try_from(self.queue.len()).unwrap_or(i64::MAX));
    }

    /// Takes rows in that are counted already.
    fn adopt(&mut self, records: Vec<OutboxRecord>) {
        for known in self.queue.extend(records) {
            self.memory.remove(&known);
        }
    }

    /// How long nothing has to be done, unless a command comes.
    fn wait(&self, draining: bool) -> Duration {
        if self.queue.has_ready() && self.broker_trouble.tries() == 0 {
            return Duration::ZERO;
        }
        let now = Instant::now();
        if let Some(at) = self.store_retry {
            // A store that is away is not asked before its time, however long a look is due.
            let idle = self.sent.is_empty() && self.recover.is_empty() && self.queue.is_empty();
            return if idle {
                at.max(self.next_poll).saturating_duration_since(now)
            } else {
                at.saturating_duration_since(now).min(BLOCKED_PAUSE)
            };
        }
        if !self.recover.is_empty() {
            return Duration::ZERO;
        }
        let mut wait = match self.queue.len() > self.sent.len() {
            true => BLOCKED_PAUSE,
            false => self.next_poll.saturating_duration_since(now),
        };
        if !self.sent.is_empty() {
            wait = wait.min(self.remove_in(draining));
        }
        wait
    }

    /// How long the confirmed rows may stay in the table.
    fn remove_in(&self, draining: bool) -> Duration {
        if draining || self.sent.len() >= REMOVE_ROWS {
            return Duration::ZERO;
        }
        self.remove_at.saturating_duration_since(Instant::now())
    }

    /// The table's part: rows to recover, rows of dead hosts, rows that are due.
    async fn look_after_table(&mut self, draining: bool) {
        if self.store_retry.is_some_and(|at| at > Instant::now()) {
            return;
        }
        let result = self.table_turn(draining).await;
        self.note_store(result);
    }

    async fn table_turn(&mut self, draining: bool) -> Result<(), StoreError> {
        self.connect().await?;
        let host = self.host;
        while let (Some(session), Some(lane)) = (self.session.as_mut(), self.recover.last()) {
            let known = self.queue.known();
            let records = session.outbox_recover(host, *lane, &known).await?;
            failpoint::pass_if(Point::AfterRecover, !records.is_empty());
            self.memory.add(&records);
            self.adopt(records);
            self.recover.pop();
        }
        if !draining && Instant::now() >= self.next_poll && !self.memory.is_full() {
            let Some(session) = self.session.as_mut() else {
                return Ok(());
            };
            let limit = u32::try_from(BLOCK_ROWS).unwrap_or(u32::MAX);
            failpoint::pass(Point::BeforeOutboxTake);
            let records = session.outbox_take(host, limit).await?;
            failpoint::pass_if(Point::AfterOutboxTake, !records.is_empty());
            let full = records.len() == BLOCK_ROWS;
            self.memory.add(&records);
            self.adopt(records);
            self.next_poll = Instant::now() + if full { Duration::ZERO } else { POLL_PAUSE };
        }
        if let Some(session) = self.session.as_mut()
            && self.queue.has_heads()
        {
            let heads = self.queue.heads(BLOCK_ROWS);
            let blocked = session.outbox_blocked(&heads).await?;
            self.queue.release(&heads, &blocked);
        }
        self.give_back(draining).await
    }

    /// Rows that wait for one that is not here leave memory, in which they would stop the lanes and the drain.
    /// Whoever takes the older one takes them with it.
    async fn give_back(&mut self, draining: bool) -> Result<(), StoreError> {
        let patience = match draining || self.memory.is_full() {
            true => Duration::ZERO,
            false => BLOCKED_PATIENCE,
        };
        let stuck = self.queue.stuck(patience, BLOCK_ROWS);
        if let Some(session) = self.session.as_mut()
            && !stuck.is_empty()
        {
            failpoint::pass(Point::BeforeOutboxDefer);
            session.outbox_give_back(self.host, &stuck).await?;
            failpoint::pass(Point::AfterOutboxDefer);
            for record in self.queue.leave(&stuck) {
                self.memory.remove(&record);
            }
        }
        Ok(())
    }

    async fn connect(&mut self) -> Result<(), StoreError> {
        if self.session.is_none() {
            let mut session = self.store.session("hapax relay").await?;
            session.announce(self.host).await?;
            self.session = Some(session);
        }
        Ok(())
    }

    /// Publishes what is ready, and removes what was confirmed before, at the same time.
    async fn send_block(&mut self, draining: bool) {
        let block = self.queue.block(BLOCK_ROWS);
        let sent = match self.remove_in(draining) {
            Duration::ZERO => std::mem::take(&mut self.sent),
            _ => Vec::new(),
        };
        let remove = async {
            match self.session.as_mut() {
                Some(session) if !sent.is_empty() => {
                    failpoint::pass(Point::BeforeOutboxDelete);
                    let removed = session.outbox_delete(&sent).await.map(|()| true);
                    failpoint::pass_if(Point::AfterOutboxDelete, removed.is_ok());
                    removed
                }
                // Without a session they stay listed; the next look at the table opens one.
                session => Ok(session.is_some()),
            }
        };
        let publish = async {
            if block.is_empty() {
                Ok(Vec::new())
            } else {
                failpoint::pass(Point::BeforePublish);
                self.publisher.publish(&block).await
            }
        };
        let (removed, published) = tokio::join!(remove, publish);
        match removed {
            Ok(true) => self.queue.removed(&sent),
            Ok(false) => self.sent.extend(sent),
            Err(error) => {
                self.sent.extend(sent);
                self.note_store(Err(error));
            }
        }
        match published {
            Ok(results) => {
                self.broker_trouble.reset();
                self.settle(block, results).await;
            }
            Err(lost) => {
                self.queue.put_back(block);
                if self.broker_trouble.tries() == 1 {
                    tracing::warn!(error = %lost, "The broker does not take messages; the outbox waits");
                }
                tokio::time::sleep(self.broker_trouble.pause()).await;
            }
        }
    }

    async fn settle(&mut self, block: Vec<OutboxRecord>, results: Vec<Sent>) {
        for (record, result) in block.into_iter().zip(results) {
            let label = TargetLabel {
                target: record.row.target.clone(),
            };
            self.memory.remove(&record);
            let trouble = match result {
                Sent::Confirmed => {
                    failpoint::pass(Point::AfterConfirm);
                    self.metrics.confirmed.get_or_create(&label).inc();
                    if let Some(since) = self.queue.since(record.sequence) {
                        self.metrics
                            .publish_seconds
                            .observe(since.elapsed().as_secs_f64());
                    }
                    self.note_sent(&record);
                    continue;
                }
                Sent::Returned(_) if record.row.may_drop => {
                    self.metrics.returned.get_or_create(&label).inc();
                    self.metrics.dropped.get_or_create(&label).inc();
                    self.note_sent(&record);
                    continue;
                }
                Sent::Returned(text) => {
                    self.metrics.returned.get_or_create(&label).inc();
                    format!("unroutable: {text}")
                }
                Sent::Refused(text) => {
                    self.metrics.failed.get_or_create(&label).inc();
                    text
                }
            };
            self.keep_for_later(record, trouble).await;
        }
    }

    /// The row is to be removed, and at once where a later one of its ordering key may wait for that.
    fn note_sent(&mut self, record: &OutboxRecord) {
        let now = Instant::now();
        if record.row.ordering_key.is_some() {
            self.remove_at = now;
        } else if self.sent.is_empty() {
            self.remove_at = now + REMOVE_PAUSE;
        }
        self.sent.push(record.sequence);
    }

    /// Leaves a row in the table, due later, and out of this host's memory.
    async fn keep_for_later(&mut self, record: OutboxRecord, trouble: String) {
        let attempts = u32::try_from(record.attempts)
            .unwrap_or(0)
            .saturating_add(1);
        let delay = backoff::bound(RETRY_FIRST, RETRY_MAX, attempts);
        tracing::warn!(
            target_name = %record.row.target, exchange = %record.row.message.exchange,
            routing_key = %record.row.message.routing_key, attempts, error = %trouble,
            retry_seconds = delay.as_secs_f64(), "Outbox message not sent; it stays in the outbox"
        );
        failpoint::pass(Point::BeforeOutboxDefer);
        let deferred = match self.session.as_mut() {
            Some(session) => session
                .outbox_defer(record.sequence, delay, &trouble)
                .await
                .map(|()| true),
            None => Ok(false),
        };
        if let Ok(true) = deferred {
            failpoint::pass(Point::AfterOutboxDefer);
            self.queue.removed(&[record.sequence]);
            return;
        }
        // It is still this host's: it goes round again.
        self.memory.add(std::slice::from_ref(&record));
        self.queue.put_back(vec![record]);
        if let Err(error) = deferred {
            self.note_store(Err(error));
        }
    }

    fn note_store(&mut self, result: Result<(), StoreError>) {
        match result {
            Ok(()) => {
                if self.store_retry.take().is_some() {
                    self.store_trouble.reset();
                }
            }
            Err(error) => {
                self.session = None;
                if matches!(error, StoreError::InDoubt(_)) {
                    // Rows may have become this host's without its knowing which. They are looked for by the
                    // next session, whose announcement waits for the lock of the lost one: that is over then.
                    self.recover.push(TAKEN_LANE);
                }
                if self.store_trouble.tries() == 1 {
                    tracing::warn!(%error, "The relay cannot use the store; it tries again");
                }
                self.store_retry = Some(Instant::now() + self.store_trouble.pause());
            }
        }
    }
}
