//! One batch, one transaction: claim, run, write, finish, commit.
//!
//! Guarantees that a batch either commits whole (the claims, what the handlers asked for, and the record
//! of each message that failed) or leaves nothing, and that `Ok` means the database said that it
//! committed. A batch is over after `batch-time`, and commits what it has begun with. Nothing here acknowledges a message, waits for a server or decides how often to try:
//! that is the lane's.

mod answers;
mod claim;
mod late;
mod lines;
mod setback;
mod verdicts;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::Instant as Clock;

use crate::consumer::Consumer;
use crate::effects::outbox::StoredReply;
use crate::effects::sql::AtWork;
use crate::effects::{Discarded, Isolation, Transaction, flush_failure};
use crate::failpoint::{self, Point};
use crate::failure::{Class, Failure};
use crate::key::Identity;
use crate::message::{Message, Withheld};
use crate::sandbox::{Attempt, Plugin, Verdict as Ran};
use crate::store::{Fate, OutboxRecord, Session, Settlement, Status, StoreError};

use claim::ClaimError;
use setback::{
    claim_setback, expect_all, host_error, is_unanswered, misjudged, no_session, spoiled_setback,
};
use verdicts::Writes;

pub use setback::Setback;

/// A message on its way through a transaction. It may pass several before one commits.
#[derive(Debug)]
pub struct Item {
    pub message: Arc<Message>,
    /// What could not be taken of it as it came. Such a message is parked, and never run.
    pub withheld: Option<Box<Withheld>>,
    pub identity: Result<Identity, Failure>,
    pub redelivered: bool,
    pub hold: Hold,
    /// A failure that was met in an earlier pass whose transaction it took along: the message is not run
    /// again, its failure is recorded.
    pub preset: Option<Failure>,
    /// It was kept in the table under its key: it is no news to the ledger, and the first of its
    /// partition's line. Found out in the transaction.
    pub kept: bool,
    /// It has been through a COMMIT whose answer did not arrive: what the store knows of its key may be itself, and
    /// what it sends may be in the outbox without this host's knowing.
    pub in_doubt: bool,
    /// The session was lost in a statement of this message.
    pub suspect: bool,
    /// Another transaction had its key when it was tried before.
    pub put_off: bool,
    /// A failure whose message is parked beside its key: a session that does not end holds the key.
    pub apart: Option<Failure>,
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
    /// It waits in the table behind an earlier message of its partition.
    Held,
    /// It runs from the table.
    SetAside,
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
    /// One for each item, in order. Fewer where the batch was over before it had begun with all of its items: of
    /// those at its end nothing is known yet.
    pub verdicts: Vec<Verdict>,
    /// What the relay may publish now.
    pub outgoing: Vec<OutboxRecord>,
    /// How long its handlers and their effects took. The rest is what any transaction costs.
    pub worked: Duration,
}

impl Committed {
    /// How many messages it is about. A row that was gone before is none of them.
    pub fn messages(&self) -> usize {
        let here = |verdict: &&Verdict| **verdict != Verdict::Gone;
        self.verdicts.iter().filter(here).count()
    }
}

/// What the transaction will do with an item.
enum Plan {
    /// Run it; so many attempts came before.
    Run {
        attempts: i32,
    },
    /// It has run, and has given this answer.
    Ran {
        reply: Option<StoredReply>,
    },
    /// Record a failure of a key that this transaction has claimed; it is the last of so many attempts.
    Fail {
        failure: Failure,
        attempts: i32,
    },
    /// It was parked before, and its key gets that fate now. The key is claimed.
    ParkedBefore,
    /// Put it behind an earlier message of its partition. Its key is claimed.
    Hold,
    /// It may have taken a host down, and has no key to record a start under: it goes to the table, and runs from
    /// there.
    SetAside,
    /// Park it under an id of its own, and leave its key alone.
    Park(Failure),
    /// Park it as the message of its key, which gets its fate when the session is gone that holds it.
    ParkApart(Failure),
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

/// Notes whose statement the session was lost in, where that can be told.
fn suspect(items: &mut [Item], at_work: &AtWork) {
    if let Some(item) = at_work.place().and_then(|place| items.get_mut(place)) {
        item.suspect = true;
    }
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
        failpoint::pass(Point::AfterBegin);
        let alone = items.len() == 1;
        let claimed = async {
            let claimed = self.claim(&mut *session, items).await?;
            let lines = self.lines(&mut *session, items, &claimed.plans).await?;
            Ok((claimed, lines))
        };
        let (mut claimed, mut lines) = match claimed.await {
            Ok(claimed) => claimed,
            Err(error) => {
                *slot = Some(session);
                return Err(match error {
                    ClaimError::Again => Setback::Again,
                    ClaimError::Store(error) => claim_setback(error, alone),
                });
            }
        };

        failpoint::pass(Point::AfterClaim);
        let traits = self.consumer.store.traits();
        let id = self.consumer.id;
        let mut transaction = Transaction::new(session, traits, id, self.isolation, alone);
        let at_work = transaction.at_work();
        let mut results = Vec::with_capacity(items.len());
        let began = Clock::now();
        let mut plans = std::mem::take(&mut claimed.plans).into_iter();
        for (index, item) in items.iter_mut().enumerate() {
            let over = began.elapsed() >= self.consumer.batch.time || transaction.is_full();
            if over && index >= claimed.run_until {
                break;
            }
            let Some(plan) = plans.next() else { break };
            let plan = match lines.place(item, plan) {
                Ok(plan) => plan,
                Err(full) => {
                    *slot = Some(transaction.session);
                    return Err(full);
                }
            };
            transaction.run_next(index);
            let (kept, result) = self.step(transaction, item, plan, alone).await;
            match (kept, result) {
                (Some(kept), Ok(result)) => {
                    transaction = kept;
                    lines.note(item, &result);
                    results.push(result);
                }
                (kept, result) => {
                    *slot = kept.map(|kept| kept.session);
                    let setback = result.err().unwrap_or(Setback::Again);
                    if slot.is_none() || is_unanswered(&setback) {
                        suspect(items, &at_work);
                    }
                    return Err(setback);
                }
            }
        }

        // The batch is over; what has not begun leaves it, and its keys with it.
        let (items, left) = items.split_at_mut(results.len());
        let left_keys = claim::keys_of(left, plans.as_slice());

        failpoint::pass(Point::BeforeEffects);
        let flushed = transaction.flush().await;
        let worked = began.elapsed();
        failpoint::pass_if(Point::AfterEffects, flushed.is_ok());
        let outgoing = transaction.take_outgoing();
        let speculated = transaction.has_speculated();
        let session = slot.insert(transaction.session);
        if let Err(error) = flushed {
            if matches!(error, StoreError::Unanswered(_)) {
                suspect(items, &at_work);
            }
            return Err(match misjudged(&error, speculated) {
                true => Setback::Isolate,
                false => self.refused_setback(error, items),
            });
        }
        if !left_keys.is_empty() {
            claimed.keys.retain(|key| !left_keys.contains(key));
            let keys = left_keys.iter().map(Vec::as_slice).collect::<Vec<_>>();
            let unclaimed = session.unclaim(self.consumer.id, &keys).await;
            expect_all("unclaim", unclaimed.map_err(host_error)?, keys.len())?;
        }
        let fresh = self.fresh(items, &results);
        let answers = self.answers(&mut **session, items, &results).await?;
        let (verdicts, mut writes) = self.verdicts(items, results);
        writes.outgoing.extend(outgoing);
        writes.outgoing.extend(answers);
        let (outgoing, horizon) = self.write(&mut **session, &claimed.keys, writes).await?;
        if late::mark(items, &fresh, horizon) {
            return Err(Setback::Again);
        }
        failpoint::pass(Point::BeforeCommit);
        // It may wait for a standby, and is never hurried.
        self.consumer.pulse(self.lane).rest();
        match failpoint::pass_while(Point::AtCommit, session.commit()).await {
            Ok(()) => {
                failpoint::pass(Point::AfterCommit);
                self.count(&verdicts);
                Ok(Committed {
                    verdicts,
                    outgoing,
                    worked,
                })
            }
            Err(error) => {
                if matches!(error, StoreError::InDoubt(_)) {
                    items.iter_mut().for_each(|item| item.in_doubt = true);
                }
                Err(self.refused_setback(error, items))
            }
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
        self.consumer.pulse(self.lane).beat();
        let key = item
            .identity
            .as_ref()
            .map_or(&[][..], |identity| &identity.key);
        let attempt = Attempt {
            message: Arc::clone(&item.message),
            key: Arc::from(key),
            number: self.consumer.attempt_number(attempts),
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
            (Ran::Done, Some(kept)) => return self.keep(kept, run.effects).await,
            (Ran::Ignored(reason), Some(mut kept)) => {
                tracing::debug!(consumer = %self.consumer.name, %reason, "Message ignored by its handler");
                self.consumer.metrics.ignored.inc();
                kept.session.note_ignored(&reason);
                return self.keep(kept, run.effects).await;
            }
            (Ran::Spoiled(error), kept) => {
                let speculated = kept.as_ref().is_some_and(Transaction::has_speculated);
                let setback = match misjudged(&error, speculated) {
                    true => Setback::Isolate,
                    false => spoiled_setback(error, self.isolation, alone),
                };
                return (kept, Err(setback));
            }
            (Ran::Failed(failure), Some(kept)) => {
                transaction = kept;
                failure
            }
            // The deadline dropped the handler in the middle of a host call, and its session with it. The call may
            // have been at what the messages before it had asked for.
            (Ran::Failed(_), None) if self.isolation == Isolation::Optimistic && !alone => {
                return (None, Err(Setback::Isolate));
            }
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
            Ok(Discarded::Undone) => {
                let attempts = attempts.saturating_add(1);
                (Some(transaction), Ok(Plan::Fail { failure, attempts }))
            }
            Ok(Discarded::Entangled) => {
                item.preset = Some(failure);
                (Some(transaction), Err(Setback::Isolate))
            }
            Ok(Discarded::Unproven) => (Some(transaction), Err(Setback::Isolate)),
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
        mut effects: crate::effects::Effects,
    ) -> (Option<Transaction>, Result<Plan, Setback>) {
        let reply = effects.reply.take();
        match transaction.keep(effects).await {
            Ok(()) => (Some(transaction), Ok(Plan::Ran { reply })),
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

    /// Writes the failures, the answers and the outbox, and proves that the transaction is still the one that
    /// claimed. Returns what the relay may publish, and the horizon.
    async fn write(
        &self,
        session: &mut dyn Session,
        keys: &[Vec<u8>],
        writes: Writes,
    ) -> Result<(Vec<OutboxRecord>, Option<i64>), Setback> {
        let id = self.consumer.id;
        if !writes.removed.is_empty() {
            let ids = writes.removed.iter().map(Vec::as_slice).collect::<Vec<_>>();
            session.waiting_delete(id, &ids).await.map_err(host_error)?;
            failpoint::pass(Point::AfterRemove);
        }
        if !writes.rows.is_empty() {
            session
                .waiting_put(id, &writes.rows)
                .await
                .map_err(host_error)?;
            failpoint::pass_if(Point::MidRetry, writes.holds(Status::Retry));
            failpoint::pass_if(Point::MidPark, writes.holds(Status::Parked));
            failpoint::pass_if(Point::MidHold, writes.holds(Status::Held));
        }
        if !writes.released.is_empty() {
            session
                .waiting_release(id, Some(&writes.released))
                .await
                .map_err(host_error)?;
            failpoint::pass(Point::AfterRelease);
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
            failpoint::pass(Point::AfterFates);
        }
        if !writes.replies.is_empty() {
            let replies = writes
                .replies
                .iter()
                .map(|(key, reply)| (key.as_slice(), reply.encode()))
                .collect::<Vec<_>>();
            let kept = session
                .keep_replies(id, &replies)
                .await
                .map_err(host_error)?;
            expect_all("keep_replies", kept, replies.len())?;
            failpoint::pass(Point::AfterReplies);
        }
        let outgoing = writes.outgoing;
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
            failpoint::pass(Point::AfterOutbox);
        }
        let keys = keys.iter().map(Vec::as_slice).collect::<Vec<_>>();
        let finished = session.finish(id, &keys).await.map_err(host_error)?;
        expect_all("finish", finished.claims, keys.len())?;
        Ok((records, finished.horizon))
    }
}
