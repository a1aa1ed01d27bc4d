//! One batch, one transaction: claim, run, write, finish, commit.
//!
//! Guarantees that a batch either commits whole (the claims, what the handlers asked for, and the record
//! of each message that failed) or leaves nothing, and that `Ok` means the database said that it
//! committed. Nothing here acknowledges a message, waits for a server or decides how often to try:
//! that is the lane's.

mod claim;
mod setback;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::consumer::Consumer;
use crate::effects::{Isolation, Transaction, flush_failure};
use crate::failure::{Again, Class, Failure, code};
use crate::key::Identity;
use crate::message::Message;
use crate::sandbox::{Attempt, Plugin, Verdict as Ran};
use crate::store::{Fate, OutboxRecord, Session, Settlement, Status, StoreError, WaitingRow};
use crate::waiting;

use claim::ClaimError;
use setback::{claim_setback, expect_all, host_error, no_session, spoiled_setback};

pub use setback::Setback;

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
    let flight = pass.plugin.usage().begin(items.len());
    let result = pass.run(slot, items).await;
    drop(flight);
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
            Ok(()) => {
                self.count(&verdicts);
                Ok(Committed { verdicts, outgoing })
            }
            Err(error) => Err(self.refused_setback(error, items)),
        }
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
            now_micros: self.consumer.now_micros(),
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

    /// What this version of the plugin has done.
    fn count(&self, verdicts: &[Verdict]) {
        let of = |is: fn(&Verdict) -> bool| verdicts.iter().filter(|one| is(one)).count() as u64;
        self.plugin.usage().count(
            of(|verdict| matches!(verdict, Verdict::Committed)),
            of(|verdict| matches!(verdict, Verdict::Failed { attempts: 1.., .. })),
        );
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
