//! From what became of each message to what the transaction writes about it.

use std::sync::Arc;
use std::time::Duration;

use crate::config::OnDuplicate;
use crate::effects::outbox::StoredReply;
use crate::failure::{Again, Failure, code};
use crate::store::{Fate, OutboxRow, Status, WaitingRow};
use crate::waiting;

use super::{Hold, Item, Pass, Plan, Verdict};

/// When a message that was put aside runs. Its acknowledgement goes first: a host that went down with it before would
/// get it again, and put it aside once more.
const SET_ASIDE: Duration = Duration::from_secs(2);

/// What a pass has to write before it finishes.
#[derive(Default)]
pub(super) struct Writes {
    pub rows: Vec<(WaitingRow, Duration)>,
    pub settled: Vec<(Vec<u8>, Fate, i32)>,
    pub removed: Vec<Vec<u8>>,
    /// Partitions whose first row has gone.
    pub released: Vec<i64>,
    pub replies: Vec<(Vec<u8>, StoredReply)>,
    pub outgoing: Vec<Arc<OutboxRow>>,
}

impl Writes {
    pub fn holds(&self, status: Status) -> bool {
        self.rows.iter().any(|(row, _)| row.status == status)
    }
}

impl Pass<'_> {
    /// Turns results into verdicts, and into the rows that record the failures.
    pub(super) fn verdicts(&self, items: &[Item], results: Vec<Plan>) -> (Vec<Verdict>, Writes) {
        let mut writes = Writes::default();
        let mut verdicts = Vec::<Verdict>::with_capacity(items.len());
        for (item, result) in items.iter().zip(results) {
            let rows_before = writes.rows.len();
            let verdict = match result {
                Plan::Run { .. } => unreachable!("a planned run has an end, or the pass has none"),
                Plan::Ran { reply } => {
                    self.keep_reply(item, reply, &mut writes);
                    Verdict::Committed
                }
                Plan::Duplicate(fate) => Verdict::Duplicate(fate),
                Plan::Gone => Verdict::Gone,
                Plan::Fail { failure, attempts } => self.fail(item, failure, attempts, &mut writes),
                Plan::ParkedBefore => {
                    if let Ok(identity) = &item.identity {
                        writes.settled.push((identity.key.clone(), Fate::Parked, 1));
                    }
                    Verdict::Duplicate(Fate::Parked)
                }
                Plan::Hold => self.hold(item, &mut writes),
                Plan::SetAside => self.set_aside(item, &mut writes),
                Plan::Park(failure) => self.park(item, failure, &mut writes),
                Plan::ParkApart(failure) => self.park_apart(item, failure, &mut writes),
                Plan::Follow(first) => match self.follow(item, &items[first], &verdicts[first]) {
                    Ok(fate) => Verdict::Duplicate(fate),
                    Err(failure) => self.park(item, failure, &mut writes),
                },
            };
            if let (Hold::Row(id), false) = (&item.hold, verdict == Verdict::Gone) {
                let replaced = writes.rows[rows_before..]
                    .iter()
                    .any(|(row, _)| row.key.is_some() && row.id == *id);
                if !replaced {
                    writes.removed.push(id.clone());
                    self.release(item, &mut writes);
                }
            }
            verdicts.push(verdict);
        }
        (verdicts, writes)
    }

    /// The first of a line has gone: what stands behind it is next.
    fn release(&self, item: &Item, writes: &mut Writes) {
        if let (true, true, Ok(identity)) = (self.consumer.is_strict(), item.kept, &item.identity) {
            writes.released.push(identity.partition);
        }
    }

    fn keep_reply(&self, item: &Item, reply: Option<StoredReply>, writes: &mut Writes) {
        let keeps = self.consumer.on_duplicate == OnDuplicate::Reply;
        if let (true, Some(reply), Ok(identity)) = (keeps, reply, &item.identity)
            && !identity.key.is_empty()
        {
            writes.replies.push((identity.key.clone(), reply));
        }
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
            Verdict::Failed { .. } | Verdict::Held | Verdict::SetAside | Verdict::Gone => {
                Fate::Waiting
            }
        };
        match (&item.identity, &first.identity) {
            (Ok(own), Ok(other)) if own.fingerprint != other.fingerprint => {
                Err(reused(&own.key, fate))
            }
            (Ok(own), _) if self.parks_duplicate(item) => Err(duplicate(&own.key, fate)),
            _ => Ok(fate),
        }
    }

    /// Whether a duplicate is to be seen by a person. What the broker delivers again is no second message,
    /// what a person has replayed he has seen, and what was in doubt may be known by its own commit.
    pub(super) fn parks_duplicate(&self, item: &Item) -> bool {
        self.consumer.on_duplicate == OnDuplicate::Park
            && !item.redelivered
            && !item.in_doubt
            && !matches!(item.hold, Hold::Row(_))
    }

    fn fail(&self, item: &Item, failure: Failure, attempts: i32, writes: &mut Writes) -> Verdict {
        let (status, delay) = waiting::after_failure(&failure, attempts, &self.consumer.retry);
        let plugin = self.plugin.digest();
        let row = waiting::row(self.consumer, plugin, item, &failure, status, attempts);
        if let (Some(key), Ok(_)) = (&row.key, &item.identity) {
            let fate = if status == Status::Parked {
                Fate::Parked
            } else {
                Fate::Waiting
            };
            writes.settled.push((key.clone(), fate, attempts));
        }
        self.put(row, delay, writes);
        Verdict::Failed {
            failure,
            status,
            attempts,
            delay,
        }
    }

    fn hold(&self, item: &Item, writes: &mut Writes) -> Verdict {
        let text = "waits behind an earlier message of its partition";
        let failure = Failure::never(code::HELD, text);
        let row = waiting::row(self.consumer, &[], item, &failure, Status::Held, 0);
        if let Some(key) = &row.key {
            writes.settled.push((key.clone(), Fate::Waiting, 0));
        }
        self.put(row, Duration::ZERO, writes);
        Verdict::Held
    }

    /// Due soon, under an id of its own: its starts are counted there.
    fn set_aside(&self, item: &Item, writes: &mut Writes) -> Verdict {
        let text = "was delivered before, and has no key: it runs from the table, alone";
        let failure = Failure::never(code::REDELIVERED, text);
        let row = waiting::row(self.consumer, &[], item, &failure, Status::Retry, 0);
        self.put(row, SET_ASIDE, writes);
        Verdict::SetAside
    }

    fn park(&self, item: &Item, failure: Failure, writes: &mut Writes) -> Verdict {
        let row = waiting::parked_row(self.consumer, self.plugin.digest(), item, &failure);
        self.put(row, Duration::ZERO, writes);
        Verdict::Failed {
            failure,
            status: Status::Parked,
            attempts: 0,
            delay: Duration::ZERO,
        }
    }

    /// Its row is that of its key, so that an operator and its partition's line find it there.
    fn park_apart(&self, item: &Item, failure: Failure, writes: &mut Writes) -> Verdict {
        let plugin = self.plugin.digest();
        let row = waiting::row(self.consumer, plugin, item, &failure, Status::Parked, 1);
        self.put(row, Duration::ZERO, writes);
        Verdict::Failed {
            failure,
            status: Status::Parked,
            attempts: 1,
            delay: Duration::ZERO,
        }
    }

    /// Writes a row, and the copy of a parked message where one is wanted.
    fn put(&self, row: WaitingRow, delay: Duration, writes: &mut Writes) {
        if let (Status::Parked, Some(target)) = (row.status, &self.consumer.park) {
            let copy = waiting::copy(self.consumer, target, &row, self.lane);
            writes.outgoing.push(Arc::new(copy));
        }
        writes.rows.push((row, delay));
    }
}

/// Another payload under a known key: a producer's mistake.
pub(super) fn reused(key: &[u8], fate: Fate) -> Failure {
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

/// The same message once more, where the consumer wants to see it.
pub(super) fn duplicate(key: &[u8], fate: Fate) -> Failure {
    let fate = format!("{fate:?}").to_lowercase();
    let key = crate::key::show(key);
    Failure::never(
        code::DUPLICATE,
        format!("the message of the key {key} is {fate}; this is another copy"),
    )
}
