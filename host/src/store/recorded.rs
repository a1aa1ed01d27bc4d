//! A store that says what each transaction did, and that can hold a transaction back or stop in the middle
//! of it: what `hapax test` and `hapax dev` look through.
//!
//! Changes nothing of what it passes on. Every session records for itself; a record is told when its
//! transaction commits. A held transaction answers its commit with success and stays open: the next one
//! goes on in it, and a rollback ends both.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;

use super::{
    CatalogAnswer, CatalogQuestion, Claim, ClaimRule, ConsumerId, ConsumerRow, Entry, Expect, Fate,
    Finished, HostId, NamedColumn, OutboxDepth, OutboxRecord, OutboxRow, Queues, Rows, Session,
    Settlement, Start, Status, Store, StoreError, StuckSession, Traits, Upkeep, Value,
    WaitingFilter, WaitingRecord, WaitingRow,
};

/// Something that a transaction did for a message.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    Query {
        statement: String,
        parameters: Vec<Value>,
    },
    Execute {
        statement: String,
        parameters: Vec<Value>,
    },
    /// `None` removes the key.
    State {
        key: String,
        value: Option<Vec<u8>>,
    },
    Send(Arc<OutboxRow>),
    /// The handler had nothing to do, and said why.
    Ignored(String),
    Failed(Box<WaitingRow>),
}

/// A transaction that has committed, or would have.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// The keys that were new or taken up again.
    pub keys: Vec<Vec<u8>>,
    /// The keys that the ledger knew already.
    pub known: Vec<Vec<u8>>,
    pub steps: Vec<Step>,
}

/// What the sessions of a store do beside their work.
pub struct Tape {
    /// Whether commits are held back.
    held: bool,
    /// At which call inside of transactions to stop for good, counted from 1; 0 never.
    stop_at: AtomicU32,
    calls: AtomicU32,
    stopped: Notify,
    tell: Box<dyn Fn(Record) + Send + Sync>,
}

impl Tape {
    pub fn new(held: bool, tell: impl Fn(Record) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            held,
            stop_at: AtomicU32::new(0),
            calls: AtomicU32::new(0),
            stopped: Notify::new(),
            tell: Box::new(tell),
        })
    }

    /// Begins to count, and stops at this call: whoever makes it waits until it is dropped.
    pub fn stop_at(&self, call: u32) {
        self.calls.store(0, Ordering::SeqCst);
        self.stop_at.store(call, Ordering::SeqCst);
    }

    /// Calls inside of transactions since [`Tape::stop_at`].
    pub fn calls(&self) -> u32 {
        self.calls.load(Ordering::SeqCst)
    }

    /// Waits until the call is made that stops.
    pub async fn stopped(&self) {
        self.stopped.notified().await;
    }
}

/// A store whose sessions are recorded.
pub struct RecordedStore {
    pub inner: Arc<dyn Store>,
    pub tape: Arc<Tape>,
}

#[async_trait]
impl Store for RecordedStore {
    fn traits(&self) -> Traits {
        self.inner.traits()
    }

    async fn session(&self, name: &str) -> Result<Box<dyn Session>, StoreError> {
        Ok(Box::new(Recorded {
            inner: self.inner.session(name).await?,
            tape: Arc::clone(&self.tape),
            record: Record::default(),
            open: false,
        }))
    }

    fn stuck_sessions(&self) -> Vec<StuckSession> {
        self.inner.stuck_sessions()
    }

    fn note_stuck(&self, before: &[StuckSession], found: Vec<StuckSession>) {
        self.inner.note_stuck(before, found);
    }

    async fn pending_migrations(&self) -> Result<Vec<String>, StoreError> {
        self.inner.pending_migrations().await
    }

    async fn migrate(&self) -> Result<Vec<String>, StoreError> {
        self.inner.migrate().await
    }

    async fn warnings(&self) -> Result<Vec<String>, StoreError> {
        self.inner.warnings().await
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

struct Recorded {
    inner: Box<dyn Session>,
    tape: Arc<Tape>,
    record: Record,
    /// A transaction is open in the database, held back or not.
    open: bool,
}

impl Recorded {
    /// Counts a call, and does not come back from the one to stop at.
    async fn step(&mut self) {
        if !self.open {
            return;
        }
        let call = self.tape.calls.fetch_add(1, Ordering::SeqCst) + 1;
        if call == self.tape.stop_at.load(Ordering::SeqCst) {
            self.tape.stopped.notify_one();
            pending::<()>().await;
        }
    }
}

#[async_trait]
impl Session for Recorded {
    fn stuck_before(&self) -> Option<StuckSession> {
        self.inner.stuck_before()
    }

    async fn begin(&mut self) -> Result<(), StoreError> {
        self.record = Record::default();
        if !self.open {
            self.inner.begin().await?;
            self.open = true;
        }
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), StoreError> {
        self.step().await;
        if !self.tape.held {
            self.open = false;
            self.inner.commit().await?;
        }
        (self.tape.tell)(std::mem::take(&mut self.record));
        Ok(())
    }

    async fn rollback(&mut self) -> Result<(), StoreError> {
        self.record = Record::default();
        self.open = false;
        self.inner.rollback().await
    }

    async fn alive(&mut self) -> bool {
        self.inner.alive().await
    }

    async fn claim(
        &mut self,
        rule: ClaimRule<'_>,
        claims: &[Claim<'_>],
    ) -> Result<Vec<bool>, StoreError> {
        self.step().await;
        let new = self.inner.claim(rule, claims).await?;
        for (claim, new) in claims.iter().zip(&new) {
            let keys = match new {
                true => &mut self.record.keys,
                false => &mut self.record.known,
            };
            keys.push(claim.key.to_vec());
        }
        Ok(new)
    }

    async fn take(
        &mut self,
        rule: ClaimRule<'_>,
        claim: Claim<'_>,
        from: Fate,
    ) -> Result<bool, StoreError> {
        self.step().await;
        let taken = self.inner.take(rule, claim, from).await?;
        if taken {
            self.record.keys.push(claim.key.to_vec());
        }
        Ok(taken)
    }

    async fn missing_column(
        &mut self,
        columns: &[NamedColumn],
    ) -> Result<Option<usize>, StoreError> {
        self.inner.missing_column(columns).await
    }

    async fn catalog(&mut self, question: &CatalogQuestion) -> Result<CatalogAnswer, StoreError> {
        self.inner.catalog(question).await
    }

    async fn query(
        &mut self,
        statement: &str,
        parameters: &[Value],
        max_rows: u64,
        max_bytes: u64,
    ) -> Result<Rows, StoreError> {
        self.step().await;
        let rows = self
            .inner
            .query(statement, parameters, max_rows, max_bytes)
            .await?;
        self.record.steps.push(Step::Query {
            statement: statement.to_owned(),
            parameters: parameters.to_vec(),
        });
        Ok(rows)
    }

    async fn execute(&mut self, statement: &str, parameters: &[Value]) -> Result<u64, StoreError> {
        self.step().await;
        let touched = self.inner.execute(statement, parameters).await?;
        self.record.steps.push(Step::Execute {
            statement: statement.to_owned(),
            parameters: parameters.to_vec(),
        });
        Ok(touched)
    }

    async fn state_write(
        &mut self,
        consumer: ConsumerId,
        key: &str,
        value: Option<&[u8]>,
        expect: Expect,
    ) -> Result<bool, StoreError> {
        self.step().await;
        let written = self.inner.state_write(consumer, key, value, expect).await?;
        self.record.steps.push(Step::State {
            key: key.to_owned(),
            value: value.map(<[u8]>::to_vec),
        });
        Ok(written)
    }

    async fn outbox_put(
        &mut self,
        host: HostId,
        rows: &[Arc<OutboxRow>],
    ) -> Result<Vec<i64>, StoreError> {
        self.step().await;
        let sequences = self.inner.outbox_put(host, rows).await?;
        let sent = rows.iter().map(|row| Step::Send(Arc::clone(row)));
        self.record.steps.extend(sent);
        Ok(sequences)
    }

    async fn waiting_put(
        &mut self,
        consumer: ConsumerId,
        rows: &[(WaitingRow, Duration)],
    ) -> Result<(), StoreError> {
        self.step().await;
        self.inner.waiting_put(consumer, rows).await?;
        let failed = rows
            .iter()
            .map(|(row, _)| Step::Failed(Box::new(row.clone())));
        self.record.steps.extend(failed);
        Ok(())
    }

    fn note_ignored(&mut self, reason: &str) {
        self.record.steps.push(Step::Ignored(reason.to_owned()));
    }

    // What follows is passed on as it is.

    async fn ping(&mut self) -> Result<(), StoreError> {
        self.step().await;
        self.inner.ping().await
    }

    async fn savepoint(&mut self, name: &'static str) -> Result<(), StoreError> {
        self.step().await;
        self.inner.savepoint(name).await
    }

    async fn rollback_to(&mut self, name: &'static str) -> Result<(), StoreError> {
        self.step().await;
        self.inner.rollback_to(name).await
    }

    async fn release(&mut self, name: &'static str) -> Result<(), StoreError> {
        self.step().await;
        self.inner.release(name).await
    }

    async fn consumer(
        &mut self,
        name: &str,
        key_rule: &str,
        fingerprint_rule: &str,
    ) -> Result<ConsumerRow, StoreError> {
        self.step().await;
        self.inner.consumer(name, key_rule, fingerprint_rule).await
    }

    async fn secret(&mut self) -> Result<Vec<u8>, StoreError> {
        self.step().await;
        self.inner.secret().await
    }

    async fn entries(
        &mut self,
        consumer: ConsumerId,
        keys: &[&[u8]],
    ) -> Result<Vec<Option<Entry>>, StoreError> {
        self.step().await;
        self.inner.entries(consumer, keys).await
    }

    async fn unclaim(&mut self, consumer: ConsumerId, keys: &[&[u8]]) -> Result<u64, StoreError> {
        self.step().await;
        self.inner.unclaim(consumer, keys).await
    }

    async fn settle(
        &mut self,
        consumer: ConsumerId,
        settlements: &[Settlement<'_>],
    ) -> Result<u64, StoreError> {
        self.step().await;
        self.inner.settle(consumer, settlements).await
    }

    async fn finish(
        &mut self,
        consumer: ConsumerId,
        keys: &[&[u8]],
    ) -> Result<Finished, StoreError> {
        self.step().await;
        self.inner.finish(consumer, keys).await
    }

    async fn keep_replies(
        &mut self,
        consumer: ConsumerId,
        replies: &[(&[u8], Vec<u8>)],
    ) -> Result<u64, StoreError> {
        self.step().await;
        self.inner.keep_replies(consumer, replies).await
    }

    async fn replies(
        &mut self,
        consumer: ConsumerId,
        keys: &[&[u8]],
    ) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        self.step().await;
        self.inner.replies(consumer, keys).await
    }

    async fn note_retention(
        &mut self,
        consumer: ConsumerId,
        retention: Duration,
    ) -> Result<(), StoreError> {
        self.step().await;
        self.inner.note_retention(consumer, retention).await
    }

    async fn record_start(
        &mut self,
        rule: ClaimRule<'_>,
        claim: Claim<'_>,
        first: bool,
    ) -> Result<Start, StoreError> {
        self.step().await;
        self.inner.record_start(rule, claim, first).await
    }

    async fn undo_start(&mut self, consumer: ConsumerId, key: &[u8]) -> Result<(), StoreError> {
        self.step().await;
        self.inner.undo_start(consumer, key).await
    }

    async fn ledger_counts(
        &mut self,
        consumer: ConsumerId,
    ) -> Result<Vec<(Fate, u64)>, StoreError> {
        self.step().await;
        self.inner.ledger_counts(consumer).await
    }

    async fn sweep(
        &mut self,
        consumer: ConsumerId,
        retention: Duration,
        after: &[u8],
        limit: u32,
    ) -> Result<(Option<Vec<u8>>, u64), StoreError> {
        self.step().await;
        self.inner.sweep(consumer, retention, after, limit).await
    }

    async fn waiting_due(
        &mut self,
        consumer: ConsumerId,
        in_line: bool,
        limit: u32,
    ) -> Result<Vec<(Vec<u8>, i64)>, StoreError> {
        self.step().await;
        self.inner.waiting_due(consumer, in_line, limit).await
    }

    async fn waiting_lines(
        &mut self,
        consumer: ConsumerId,
        partitions: &[i64],
    ) -> Result<Vec<(i64, u64)>, StoreError> {
        self.step().await;
        self.inner.waiting_lines(consumer, partitions).await
    }

    async fn waiting_release(
        &mut self,
        consumer: ConsumerId,
        partitions: Option<&[i64]>,
    ) -> Result<u64, StoreError> {
        self.step().await;
        self.inner.waiting_release(consumer, partitions).await
    }

    async fn waiting_held(&mut self, consumer: ConsumerId) -> Result<u64, StoreError> {
        self.step().await;
        self.inner.waiting_held(consumer).await
    }

    fn upkeep(&mut self) -> &mut dyn Upkeep {
        self.inner.upkeep()
    }

    async fn waiting_next(&mut self, consumer: ConsumerId) -> Result<Option<Duration>, StoreError> {
        self.step().await;
        self.inner.waiting_next(consumer).await
    }

    async fn waiting_lock(
        &mut self,
        consumer: ConsumerId,
        id: &[u8],
    ) -> Result<Option<WaitingRow>, StoreError> {
        self.step().await;
        self.inner.waiting_lock(consumer, id).await
    }

    async fn parked_apart(
        &mut self,
        consumer: ConsumerId,
        ids: &[Vec<u8>],
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        self.step().await;
        self.inner.parked_apart(consumer, ids).await
    }

    async fn waiting_delete(
        &mut self,
        consumer: ConsumerId,
        ids: &[&[u8]],
    ) -> Result<u64, StoreError> {
        self.step().await;
        self.inner.waiting_delete(consumer, ids).await
    }

    async fn waiting_start(
        &mut self,
        consumer: ConsumerId,
        id: &[u8],
        first: bool,
    ) -> Result<Start, StoreError> {
        self.step().await;
        self.inner.waiting_start(consumer, id, first).await
    }

    async fn waiting_unstart(&mut self, consumer: ConsumerId, id: &[u8]) -> Result<(), StoreError> {
        self.step().await;
        self.inner.waiting_unstart(consumer, id).await
    }

    async fn waiting_list(
        &mut self,
        filter: &WaitingFilter,
    ) -> Result<Vec<WaitingRecord>, StoreError> {
        self.step().await;
        self.inner.waiting_list(filter).await
    }

    async fn waiting_replay(&mut self, ids: &[&[u8]]) -> Result<u64, StoreError> {
        self.step().await;
        self.inner.waiting_replay(ids).await
    }

    async fn waiting_discard(&mut self, ids: &[&[u8]]) -> Result<u64, StoreError> {
        self.step().await;
        self.inner.waiting_discard(ids).await
    }

    async fn waiting_counts(
        &mut self,
        consumer: ConsumerId,
    ) -> Result<Vec<(Status, String, u64)>, StoreError> {
        self.step().await;
        self.inner.waiting_counts(consumer).await
    }

    async fn announce(&mut self, host: HostId) -> Result<(), StoreError> {
        self.step().await;
        self.inner.announce(host).await
    }

    async fn outbox_take(
        &mut self,
        host: HostId,
        limit: u32,
    ) -> Result<Vec<OutboxRecord>, StoreError> {
        self.step().await;
        self.inner.outbox_take(host, limit).await
    }

    async fn outbox_recover(
        &mut self,
        host: HostId,
        lane: i16,
        known: &[i64],
    ) -> Result<Vec<OutboxRecord>, StoreError> {
        self.step().await;
        self.inner.outbox_recover(host, lane, known).await
    }

    async fn outbox_blocked(&mut self, sequences: &[i64]) -> Result<Vec<i64>, StoreError> {
        self.step().await;
        self.inner.outbox_blocked(sequences).await
    }

    async fn outbox_delete(&mut self, sequences: &[i64]) -> Result<(), StoreError> {
        self.step().await;
        self.inner.outbox_delete(sequences).await
    }

    async fn outbox_defer(
        &mut self,
        sequence: i64,
        delay: Duration,
        error: &str,
    ) -> Result<(), StoreError> {
        self.step().await;
        self.inner.outbox_defer(sequence, delay, error).await
    }

    async fn outbox_give_back(
        &mut self,
        host: HostId,
        sequences: &[i64],
    ) -> Result<(), StoreError> {
        self.step().await;
        self.inner.outbox_give_back(host, sequences).await
    }

    async fn outbox_depth(&mut self) -> Result<OutboxDepth, StoreError> {
        self.step().await;
        self.inner.outbox_depth().await
    }

    async fn state_get(
        &mut self,
        consumer: ConsumerId,
        key: &str,
    ) -> Result<Option<(Vec<u8>, u64)>, StoreError> {
        self.step().await;
        self.inner.state_get(consumer, key).await
    }

    fn queues(&mut self) -> Option<&mut dyn Queues> {
        self.inner.queues()
    }
}
