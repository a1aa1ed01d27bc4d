//! One batch, one transaction: claim, run, write, finish, commit.
//!
//! Guarantees that a batch either commits whole (the claims, what the handlers asked for, and the record
//! of each message that failed) or leaves nothing, and that `Ok` means the database said that it
//! committed. Nothing here acknowledges a message, waits for a server or decides how often to try:
//! that is the lane's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::consumer::Consumer;
use crate::effects::{Isolation, Transaction, flush_failure};
use crate::failure::{Again, Class, Failure, code};
use crate::key::Identity;
use crate::ledger::{Judgement, judge};
use crate::message::Message;
use crate::sandbox::{Attempt, Plugin, Verdict as Ran};
use crate::store::{
    Claim, ClaimRule, Fate, OutboxRecord, Session, Settlement, Status, StoreError, WaitingRow,
};
use crate::waiting;

/// A message on its way through a transaction. It may pass several before one commits.
#[derive(Debug)]
pub struct Item {
    pub message: Arc<Message>,
    pub identity: Result<Identity, Failure>,
    pub redelivered: bool,
    pub hold: Hold,
    /// A failure that was met in an earlier pass whose transaction it took along: the message is not run
    /// again, its failure is recorded.
    pub preset: Option<Failure>,
    pub received: Instant,
}

/// What the store already holds of the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Nothing that we know of.
    Nothing,
    /// A ledger row that says how often it was started.
    Started(i32),
    /// A row of `hapax_waiting`. It is locked, and its content read, inside the transaction.
    Row(Vec<u8>),
}

/// What became of a message when its batch committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Committed,
    Duplicate(Fate),
    Failed {
        failure: Failure,
        status: Status,
        attempts: i32,
        delay: Duration,
    },
    /// The waiting row was taken by somebody else, or is not due any more.
    Gone,
}

/// A committed batch.
#[derive(Debug, Default)]
pub struct Committed {
    /// One for each item, in order.
    pub verdicts: Vec<Verdict>,
    /// What the relay may publish now.
    pub outgoing: Vec<OutboxRecord>,
}

/// Why a batch did not commit. Its transaction is rolled back, or its session dropped.
#[derive(Debug)]
pub enum Setback {
    /// Something has failed that only savepoints can keep from its neighbours.
    Isolate,
    /// Something has failed that cannot be told apart by message: the batch runs again in parts.
    Split(StoreError),
    /// The same batch again: a key was in flight elsewhere, or a message got its preset failure.
    Again,
    /// Another transaction holds the only key of this batch.
    Busy(StoreError),
    /// The world has failed: later, with a new session.
    World(StoreError),
    /// An invariant is broken: the consumer stops.
    Ours(StoreError),
}

/// What the transaction will do with an item.
enum Plan {
    /// Run it; so many attempts came before.
    Run {
        attempts: i32,
    },
    /// Record a failure of a key that this transaction has claimed.
    Fail {
        failure: Failure,
        attempts: i32,
    },
    /// Park it under an id of its own, and leave its key alone.
    Park(Failure),
    Duplicate(Fate),
    /// The same key stands earlier in the batch: judged when that one is.
    Follow(usize),
    Gone,
}

/// Runs one transaction over `items`. The session is taken out of `slot` and put back while it is usable.
pub async fn attempt(
    consumer: &Consumer,
    lane: i16,
    slot: &mut Option<Box<dyn Session>>,
    items: &mut [Item],
    isolation: Isolation,
) -> Result<Committed, Setback> {
    let pass = Pass {
        consumer,
        plugin: consumer.plugin(),
        lane,
        isolation,
    };
    let result = pass.run(slot, items).await;
    if result.is_err() {
        roll_back(slot).await;
    }
    result
}

async fn roll_back(slot: &mut Option<Box<dyn Session>>) {
    if let Some(mut session) = slot.take()
        && session.rollback().await.is_ok()
    {
        *slot = Some(session);
    }
}

/// One pass over a batch: what its steps share.
struct Pass<'a> {
    consumer: &'a Consumer,
    /// The version that this batch runs on, whatever is loaded meanwhile.
    plugin: Arc<Plugin>,
    lane: i16,
    isolation: Isolation,
}

/// What a pass has to write before it finishes.
#[derive(Default)]
struct Writes {
    rows: Vec<(WaitingRow, Duration)>,
    settled: Vec<(Vec<u8>, Fate, i32)>,
    removed: Vec<Vec<u8>>,
}

impl Pass<'_> {
    async fn run(
        &self,
        slot: &mut Option<Box<dyn Session>>,
        items: &mut [Item],
    ) -> Result<Committed, Setback> {
        let mut session = slot.take().ok_or_else(no_session)?;
        if let Err(error) = session.begin().await {
            return Err(host_error(error));
        }
        let alone = items.len() == 1;
        let claimed = self.claim(&mut *session, items).await;
        let (plans, keys) = match claimed {
            Ok(claimed) => claimed,
            Err(error) => {
                *slot = Some(session);
                return Err(match error {
                    ClaimError::Again => Setback::Again,
                    ClaimError::Store(error) => claim_setback(error, alone),
                });
            }
        };

        let traits = self.consumer.store.traits();
        let mut transaction = Transaction::new(session, traits, self.consumer.id, self.isolation);
        let mut results = Vec::with_capacity(items.len());
        for (item, plan) in items.iter_mut().zip(plans) {
            let (kept, result) = self.step(transaction, item, plan, alone).await;
            match (kept, result) {
                (Some(kept), Ok(result)) => {
                    transaction = kept;
                    results.push(result);
                }
                (kept, result) => {
                    *slot = kept.map(|kept| kept.session);
                    return Err(result.err().unwrap_or(Setback::Again));
                }
            }
        }

        let flushed = transaction.flush().await;
        let outgoing = transaction.take_outgoing();
        let session = slot.insert(transaction.session);
        if let Err(error) = flushed {
            return Err(self.refused_setback(error, items));
        }
        let (verdicts, writes) = self.verdicts(items, results);
        let outgoing = self.write(&mut **session, &keys, &writes, outgoing).await?;
        match session.commit().await {
            Ok(()) => Ok(Committed { verdicts, outgoing }),
            Err(error) => Err(self.refused_setback(error, items)),
        }
    }

    /// Locks the waiting rows, claims the keys, and plans each item.
    async fn claim(
        &self,
        session: &mut dyn Session,
        items: &mut [Item],
    ) -> Result<(Vec<Plan>, Vec<Vec<u8>>), ClaimError> {
        let mut plans = Vec::with_capacity(items.len());
        let mut first = BTreeMap::<Vec<u8>, usize>::new();
        for (index, item) in items.iter_mut().enumerate() {
            plans.push(match self.open(session, item).await? {
                Opened::Decided(plan) => plan,
                Opened::Key(key) => match first.get(&key) {
                    Some(earlier) => Plan::Follow(*earlier),
                    None => {
                        first.insert(key, index);
                        Plan::Run { attempts: 0 }
                    }
                },
                Opened::Keyless { attempts } => begin(item, attempts),
            });
        }
        let keys = self.claim_keys(session, items, &mut plans, first).await?;
        Ok((plans, keys))
    }

    /// Reads what is needed to know an item's key.
    async fn open(&self, session: &mut dyn Session, item: &mut Item) -> Result<Opened, ClaimError> {
        let mut attempts = 0;
        if let Hold::Row(id) = &item.hold {
            let Some(row) = session.waiting_lock(self.consumer.id, id).await? else {
                return Ok(Opened::Decided(Plan::Gone));
            };
            attempts = row.attempts;
            item.message = Arc::new(row.message);
            item.identity = self.consumer.rules.identify(&item.message);
            if let Some(key) = row.key {
                return self
                    .take_waiting(session, item, key, row.fingerprint, attempts)
                    .await;
            }
        }
        Ok(match &item.identity {
            Err(failure) => Opened::Decided(Plan::Park(failure.clone())),
            Ok(identity) if identity.key.is_empty() => Opened::Keyless { attempts },
            Ok(identity) => match item.hold {
                Hold::Started(starts) => self.take_started(session, item, identity, starts).await?,
                _ => Opened::Key(identity.key.clone()),
            },
        })
    }

    /// Takes a key over from the row that made it wait. The row remembers the key, so that a change of
    /// the consumer's rules cannot give a waiting message another one.
    async fn take_waiting(
        &self,
        session: &mut dyn Session,
        item: &mut Item,
        key: Vec<u8>,
        fingerprint: Vec<u8>,
        attempts: i32,
    ) -> Result<Opened, ClaimError> {
        let claim = Claim {
            key: &key,
            fingerprint: &fingerprint,
            attempts: attempts + 1,
            timestamp_seconds: item.message.timestamp_seconds(),
        };
        if session.take(self.rule(), claim, Fate::Waiting).await? {
            let partition = item
                .identity
                .as_ref()
                .map(|identity| identity.partition)
                .unwrap_or_default();
            let mut kept = [0; crate::key::FINGERPRINT_BYTES];
            let length = kept.len().min(fingerprint.len());
            kept[..length].copy_from_slice(&fingerprint[..length]);
            item.identity = Ok(Identity {
                key: key.clone(),
                partition,
                fingerprint: kept,
            });
            return Ok(Opened::Decided(begin(item, attempts)));
        }
        let entry = session
            .entries(self.consumer.id, &[&key])
            .await?
            .pop()
            .flatten();
        match entry.map(|entry| entry.fate) {
            Some(fate @ (Fate::Committed | Fate::Discarded)) => {
                Ok(Opened::Decided(Plan::Duplicate(fate)))
            }
            // The operator made the ledger forget the key: the message is new again.
            None => Ok(Opened::Key(key)),
            Some(fate) => Err(ClaimError::Store(StoreError::Broken(format!(
                "a row of hapax_waiting is due, and the ledger says {fate:?} of its key"
            )))),
        }
    }

    async fn take_started(
        &self,
        session: &mut dyn Session,
        item: &Item,
        identity: &Identity,
        starts: i32,
    ) -> Result<Opened, ClaimError> {
        let claim = claim_of(item, identity, starts);
        if session.take(self.rule(), claim, Fate::Started).await? {
            return Ok(Opened::Decided(begin(item, starts - 1)));
        }
        Ok(Opened::Key(identity.key.clone()))
    }

    /// Claims the distinct keys and learns the fate of those that are not new.
    async fn claim_keys(
        &self,
        session: &mut dyn Session,
        items: &[Item],
        plans: &mut [Plan],
        first: BTreeMap<Vec<u8>, usize>,
    ) -> Result<Vec<Vec<u8>>, ClaimError> {
        let mut owned = self.held_keys(items, plans, &first);
        if first.is_empty() {
            return Ok(owned);
        }
        let claims = first
            .values()
            .filter_map(|&index| {
                let identity = items[index].identity.as_ref().ok()?;
                Some(claim_of(&items[index], identity, 1))
            })
            .collect::<Vec<_>>();
        let new = session.claim(self.rule(), &claims).await?;
        let known = first
            .iter()
            .zip(&new)
            .filter(|(_, new)| !**new)
            .map(|((key, index), _)| (key.as_slice(), *index))
            .collect::<Vec<_>>();
        for ((key, &index), new) in first.iter().zip(&new) {
            if *new {
                plans[index] = begin(&items[index], 0);
                owned.push(key.clone());
            }
        }
        if known.is_empty() {
            return Ok(owned);
        }
        let keys = known.iter().map(|(key, _)| *key).collect::<Vec<_>>();
        let entries = session.entries(self.consumer.id, &keys).await?;
        for ((key, index), entry) in known.into_iter().zip(entries) {
            // Neither new nor visible: its transaction was rolled back between the two statements.
            let entry = entry.ok_or(ClaimError::Again)?;
            let item = &items[index];
            let Ok(identity) = &item.identity else {
                continue;
            };
            plans[index] = match judge(&entry, &identity.fingerprint) {
                Judgement::Duplicate(fate) => Plan::Duplicate(fate),
                Judgement::Reused(fate) => Plan::Park(reused(key, fate)),
                Judgement::TakeOver => {
                    let claim = claim_of(item, identity, entry.attempts);
                    if !session.take(self.rule(), claim, Fate::Started).await? {
                        return Err(ClaimError::Again);
                    }
                    owned.push(key.to_vec());
                    begin(item, (entry.attempts - 1).max(0))
                }
            };
        }
        Ok(owned)
    }

    /// The keys that `open` has taken already.
    fn held_keys(
        &self,
        items: &[Item],
        plans: &[Plan],
        first: &BTreeMap<Vec<u8>, usize>,
    ) -> Vec<Vec<u8>> {
        items
            .iter()
            .zip(plans)
            .filter(|(_, plan)| matches!(plan, Plan::Run { .. } | Plan::Fail { .. }))
            .filter_map(|(item, _)| item.identity.as_ref().ok())
            .filter(|identity| !identity.key.is_empty() && !first.contains_key(&identity.key))
            .map(|identity| identity.key.clone())
            .collect()
    }

    /// Does with one item what its plan says. The transaction comes back unless it was lost on the way.
    async fn step(
        &self,
        mut transaction: Transaction,
        item: &mut Item,
        plan: Plan,
        alone: bool,
    ) -> (Option<Transaction>, Result<Plan, Setback>) {
        let Plan::Run { attempts } = plan else {
            return (Some(transaction), Ok(plan));
        };
        let key = item
            .identity
            .as_ref()
            .map_or(&[][..], |identity| &identity.key);
        let attempt = Attempt {
            message: Arc::clone(&item.message),
            key: Arc::from(key),
            number: u32::try_from(attempts + 1).unwrap_or(1),
            redelivered: item.redelivered,
            now_micros: crate::clock::now_micros(),
            lane: self.lane,
        };
        let run = self
            .plugin
            .run(&self.consumer.environment, attempt, transaction)
            .await;
        self.consumer
            .metrics
            .handler_seconds
            .observe(run.elapsed.as_secs_f64());
        let failure = match (run.verdict, run.transaction) {
            (Ran::Done, Some(kept)) => {
                return self.keep(kept, run.effects, Plan::Run { attempts }).await;
            }
            (Ran::Ignored(reason), Some(kept)) => {
                tracing::debug!(consumer = %self.consumer.name, %reason, "Message ignored by its handler");
                self.consumer.metrics.ignored.inc();
                return self.keep(kept, run.effects, Plan::Run { attempts }).await;
            }
            (Ran::Spoiled(error), kept) => {
                return (kept, Err(spoiled_setback(error, self.isolation, alone)));
            }
            (Ran::Failed(failure), Some(kept)) => {
                transaction = kept;
                failure
            }
            // The deadline dropped the handler in the middle of a host call, and its session with it.
            (Ran::Failed(failure), None) => {
                item.preset = Some(failure);
                return (None, Err(Setback::Again));
            }
            (Ran::Done | Ran::Ignored(_), None) => {
                let error =
                    StoreError::Broken("a handler ended well and lost its transaction".into());
                return (None, Err(Setback::Ours(error)));
            }
        };
        match transaction.discard().await {
            Ok(true) => (Some(transaction), Ok(Plan::Fail { failure, attempts })),
            Ok(false) => {
                item.preset = Some(failure);
                (Some(transaction), Err(Setback::Isolate))
            }
            // What failed has ended the whole transaction (SQLite does so after an interrupt).
            Err(StoreError::TransactionLost(_)) => {
                item.preset = Some(failure);
                (Some(transaction), Err(Setback::Again))
            }
            Err(error) => (Some(transaction), Err(host_error(error))),
        }
    }

    async fn keep(
        &self,
        mut transaction: Transaction,
        effects: crate::effects::Effects,
        plan: Plan,
    ) -> (Option<Transaction>, Result<Plan, Setback>) {
        match transaction.keep(effects).await {
            Ok(()) => (Some(transaction), Ok(plan)),
            Err(error) => (Some(transaction), Err(host_error(error))),
        }
    }

    /// What the database refuses at the end cannot be told apart by message; alone it is that message's.
    fn refused_setback(&self, error: StoreError, items: &mut [Item]) -> Setback {
        match (error.class(), items) {
            (Class::Message, [item]) => {
                item.preset = Some(flush_failure(&error));
                Setback::Again
            }
            (Class::Message, _) => Setback::Split(error),
            (_, items) => spoiled_setback(error, Isolation::Savepoints, items.len() == 1),
        }
    }

    /// Turns results into verdicts, and into the rows that record the failures.
    fn verdicts(&self, items: &[Item], results: Vec<Plan>) -> (Vec<Verdict>, Writes) {
        let mut writes = Writes::default();
        let mut verdicts = Vec::<Verdict>::with_capacity(items.len());
        for (item, result) in items.iter().zip(results) {
            let verdict = match result {
                Plan::Run { .. } => Verdict::Committed,
                Plan::Duplicate(fate) => Verdict::Duplicate(fate),
                Plan::Gone => Verdict::Gone,
                Plan::Fail { failure, attempts } => self.fail(item, failure, attempts, &mut writes),
                Plan::Park(failure) => self.park(item, failure, &mut writes),
                Plan::Follow(first) => match self.follow(item, &items[first], &verdicts[first]) {
                    Ok(fate) => Verdict::Duplicate(fate),
                    Err(failure) => self.park(item, failure, &mut writes),
                },
            };
            if let (Hold::Row(id), false) = (&item.hold, verdict == Verdict::Gone) {
                let replaced = matches!(&verdict, Verdict::Failed { .. })
                    && writes
                        .rows
                        .last()
                        .is_some_and(|(row, _)| row.key.is_some() && row.id == *id);
                if !replaced {
                    writes.removed.push(id.clone());
                }
            }
            verdicts.push(verdict);
        }
        (verdicts, writes)
    }

    /// The same key twice in one batch: the second is judged by what became of the first.
    fn follow(&self, item: &Item, first: &Item, verdict: &Verdict) -> Result<Fate, Failure> {
        let fate = match verdict {
            Verdict::Committed => Fate::Committed,
            Verdict::Duplicate(fate) => *fate,
            Verdict::Failed {
                status: Status::Parked,
                ..
            } => Fate::Parked,
            Verdict::Failed { .. } | Verdict::Gone => Fate::Waiting,
        };
        match (&item.identity, &first.identity) {
            (Ok(own), Ok(other)) if own.fingerprint != other.fingerprint => {
                Err(reused(&own.key, fate))
            }
            _ => Ok(fate),
        }
    }

    fn fail(&self, item: &Item, failure: Failure, attempts: i32, writes: &mut Writes) -> Verdict {
        let attempts = attempts + 1;
        let (status, delay) = waiting::after_failure(&failure, attempts, &self.consumer.retry);
        let row = waiting::row(
            self.consumer,
            self.plugin.digest(),
            item,
            &failure,
            status,
            attempts,
        );
        if let (Some(key), Ok(_)) = (&row.key, &item.identity) {
            let fate = if status == Status::Parked {
                Fate::Parked
            } else {
                Fate::Waiting
            };
            writes.settled.push((key.clone(), fate, attempts));
        }
        writes.rows.push((row, delay));
        Verdict::Failed {
            failure,
            status,
            attempts,
            delay,
        }
    }

    fn park(&self, item: &Item, failure: Failure, writes: &mut Writes) -> Verdict {
        let row = waiting::parked_row(self.consumer, self.plugin.digest(), item, &failure);
        writes.rows.push((row, Duration::ZERO));
        Verdict::Failed {
            failure,
            status: Status::Parked,
            attempts: 0,
            delay: Duration::ZERO,
        }
    }

    /// Writes the failures and the outbox, and proves that the transaction is still the one that claimed.
    async fn write(
        &self,
        session: &mut dyn Session,
        keys: &[Vec<u8>],
        writes: &Writes,
        outgoing: Vec<Arc<crate::store::OutboxRow>>,
    ) -> Result<Vec<OutboxRecord>, Setback> {
        let id = self.consumer.id;
        if !writes.removed.is_empty() {
            let ids = writes.removed.iter().map(Vec::as_slice).collect::<Vec<_>>();
            session.waiting_delete(id, &ids).await.map_err(host_error)?;
        }
        if !writes.rows.is_empty() {
            session
                .waiting_put(id, &writes.rows)
                .await
                .map_err(host_error)?;
        }
        if !writes.settled.is_empty() {
            let settlements = writes
                .settled
                .iter()
                .map(|(key, fate, attempts)| Settlement {
                    key,
                    fate: *fate,
                    attempts: *attempts,
                })
                .collect::<Vec<_>>();
            let settled = session.settle(id, &settlements).await.map_err(host_error)?;
            expect_all("settle", settled, settlements.len())?;
        }
        let mut records = Vec::with_capacity(outgoing.len());
        if !outgoing.is_empty() {
            let sequences = session
                .outbox_put(self.consumer.host, &outgoing)
                .await
                .map_err(host_error)?;
            expect_all("the outbox", sequences.len() as u64, outgoing.len())?;
            records.extend(
                sequences
                    .into_iter()
                    .zip(outgoing)
                    .filter(|(_, row)| row.delay.is_none())
                    .map(|(sequence, row)| OutboxRecord {
                        sequence,
                        attempts: 0,
                        row,
                    }),
            );
        }
        let keys = keys.iter().map(Vec::as_slice).collect::<Vec<_>>();
        let finished = session.finish(id, &keys).await.map_err(host_error)?;
        expect_all("finish", finished, keys.len())?;
        Ok(records)
    }

    fn rule(&self) -> ClaimRule<'_> {
        ClaimRule {
            consumer: self.consumer.id,
            plugin: &self.plugin.digest()[..8],
            retention: self.consumer.retention,
        }
    }
}

/// What `open` learned of an item.
enum Opened {
    Decided(Plan),
    /// It has a key that has to be claimed.
    Key(Vec<u8>),
    /// Its consumer has switched idempotency off.
    Keyless {
        attempts: i32,
    },
}

enum ClaimError {
    Again,
    Store(StoreError),
}

impl From<StoreError> for ClaimError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// An item whose key is claimed: it runs, unless it has failed before.
fn begin(item: &Item, attempts: i32) -> Plan {
    match &item.preset {
        Some(failure) => Plan::Fail {
            failure: failure.clone(),
            attempts,
        },
        None => Plan::Run { attempts },
    }
}

fn claim_of<'a>(item: &'a Item, identity: &'a Identity, attempts: i32) -> Claim<'a> {
    Claim {
        key: &identity.key,
        fingerprint: &identity.fingerprint,
        attempts,
        timestamp_seconds: item.message.timestamp_seconds(),
    }
}

fn reused(key: &[u8], fate: Fate) -> Failure {
    let fate = format!("{fate:?}").to_lowercase();
    Failure {
        again: Again::Never,
        ..Failure::never(
            code::KEY_REUSED,
            format!(
                "the key {} is known with another payload; that message is {fate}",
                crate::key::show(key)
            ),
        )
    }
}

fn expect_all(what: &str, touched: u64, wanted: usize) -> Result<(), Setback> {
    if touched == wanted as u64 {
        return Ok(());
    }
    // The claims are not in this transaction any more: nothing of it may be committed.
    Err(Setback::Split(StoreError::TransactionLost(format!(
        "{what} touched {touched} rows of {wanted}"
    ))))
}

fn no_session() -> Setback {
    Setback::World(StoreError::Unavailable("the lane has no session".into()))
}

/// An error of a statement that the host wrote.
fn host_error(error: StoreError) -> Setback {
    match error.ours() {
        error @ (StoreError::Conflict(_)
        | StoreError::LockTimeout(_)
        | StoreError::TransactionLost(_)) => Setback::Split(error),
        error if error.class() == Class::Ours => Setback::Ours(error),
        error => Setback::World(error),
    }
}

fn claim_setback(error: StoreError, alone: bool) -> Setback {
    match host_error(error) {
        Setback::Split(error @ StoreError::LockTimeout(_)) if alone => Setback::Busy(error),
        setback => setback,
    }
}

fn spoiled_setback(error: StoreError, isolation: Isolation, alone: bool) -> Setback {
    match (error, isolation) {
        (StoreError::TransactionLost(_), Isolation::Optimistic) => Setback::Isolate,
        // What a deferred statement of an earlier message was refused for.
        (error, _) if error.class() == Class::Message && !alone => Setback::Split(error),
        (error, _) => host_error(error),
    }
}
