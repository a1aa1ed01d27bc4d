//! What a lane does when a session of its does not end: it goes on with another one.
//!
//! Postgres looks for a cancel between rows only, so that one call of a function can outlive its message, its session
//! and the host. What the session has claimed is locked until its process is gone, and is rolled back then. The message
//! whose statement it is, is parked at once, beside its key: it never runs again by itself, here or after a restart.
//! The others of its batch are kept, unacknowledged, until the session is gone: nobody could claim their keys. With
//! strict order whatever comes after one of them in its partition waits behind it. Everything else goes on.
//!
//! A message whose key somebody else's transaction holds waits here, too, for a while that grows with each try.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::commit::Hold;
use crate::failure::{Failure, code};
use crate::store::{StoreError, StuckSession};

use super::alone::Started;
use super::{Ended, Lane, Settled, Work};

/// How often a lane looks whether a session that it left behind is gone.
const LOOK: Duration = Duration::from_secs(1);

/// The bounds of the pause before a message is tried again whose key another transaction holds.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(10);

/// The works of a batch whose session was left behind.
pub(super) struct Behind {
    stuck: StuckSession,
    /// In their order.
    works: Vec<Work>,
    /// The start of the only work that is on record.
    started: Option<Started>,
    /// The work whose statement it was is known, and is none of these.
    told_apart: bool,
}

/// A work whose key was in another transaction's hands.
pub(super) struct Later {
    work: Work,
    due: Instant,
    trouble: Backoff,
}

impl Later {
    fn again(work: Work, mut trouble: Backoff) -> Self {
        let due = Instant::now() + trouble.pause();
        Self { work, due, trouble }
    }
}

impl Lane {
    /// Puts a work off whose key another transaction holds.
    pub(super) fn put_off(&mut self, mut work: Work) {
        work.item.put_off = true;
        let trouble = self.trying.take();
        let trouble = trouble.unwrap_or_else(|| Backoff::new(FIRST_PAUSE, LAST_PAUSE));
        self.later.push(Later::again(work, trouble));
    }

    /// How long the lane may wait for messages before it has something else to do.
    pub(super) fn patience(&self) -> Option<Duration> {
        let due = self.later.iter().map(|later| later.due).min();
        let due = due.map(|due| due.saturating_duration_since(Instant::now()));
        let look = (!self.behind.is_empty()).then_some(LOOK);
        [due, look].into_iter().flatten().min()
    }

    /// Whether a work that was put off may be tried again.
    pub(super) fn is_due(&self) -> bool {
        let now = Instant::now();
        self.later.iter().any(|later| later.due <= now)
    }

    /// Tries what was put off and is due, until one of them is put off again: each may have to wait for a lock.
    pub(super) async fn try_later(&mut self) -> Result<(), Ended> {
        let now = Instant::now();
        let mut due = self.later.iter().filter(|later| later.due <= now).count();
        while due > 0 && self.try_one_later().await? {
            due -= 1;
        }
        Ok(())
    }

    /// Tries the first work that is due, or the first of all. False when it was put off again.
    pub(super) async fn try_one_later(&mut self) -> Result<bool, Ended> {
        let first = (0..self.later.len()).min_by_key(|place| self.later[*place].due);
        let Some(first) = first else {
            return Ok(false);
        };
        let left = self.later.len() - 1;
        let Later { work, trouble, .. } = self.later.remove(first);
        self.trying = Some(trouble);
        let tried = match work.alone {
            true => self.start_alone(work).await,
            false => self.settle_one(work).await,
        };
        self.trying = None;
        tried.map(|()| self.later.len() == left)
    }

    /// Parks the message whose statement does not end, and keeps the others of its batch.
    pub(super) async fn leave_behind(
        &mut self,
        stuck: StuckSession,
        works: impl IntoIterator<Item = Work>,
    ) -> Result<(), Ended> {
        let mut kept = Vec::new();
        let mut unstoppable = None;
        for mut work in works {
            if matches!(work.item.hold, Hold::Started(_)) {
                work.item.hold = Hold::Nothing;
            }
            if !std::mem::take(&mut work.item.suspect) {
                kept.push(work);
                continue;
            }
            let failure = Failure::never(
                code::SQL_UNSTOPPABLE,
                format!(
                    "a statement does not end, and the database does not end it: process {} of the server",
                    stuck.process
                ),
            );
            if matches!(work.item.hold, Hold::Row(_)) {
                // Its row is locked with its key.
                work.item.preset = Some(failure);
                kept.push(work);
            } else {
                work.item.apart = Some(failure);
                unstoppable = Some(work);
            }
        }
        self.consumer.owes_fates.store(true, Ordering::Relaxed);
        self.cautious = super::CAUTIOUS_BATCHES;
        self.behind.push(Behind {
            stuck,
            works: kept,
            started: None,
            told_apart: unstoppable.is_some(),
        });
        if let Some(work) = unstoppable {
            // It claims nothing, so that no key can be in its way.
            if let Settled::Busy(work) = Box::pin(self.settle_alone(work)).await? {
                self.put_off(*work);
            }
        }
        Ok(())
    }

    /// The start that is on record is that of the work which was left behind last.
    pub(super) fn leave_start_behind(&mut self) {
        match self.behind.last_mut() {
            Some(last) if !last.works.is_empty() => last.started = self.started.take(),
            // Parked: its key gets that fate in place of the start.
            _ => self.started = None,
        }
    }

    /// Takes the works up again whose session is gone.
    pub(super) async fn take_up(&mut self) {
        if self.behind.is_empty() {
            return;
        }
        let stuck = self.consumer.store.stuck_sessions();
        let (there, gone) = std::mem::take(&mut self.behind)
            .into_iter()
            .partition::<Vec<_>, _>(|behind| stuck.contains(&behind.stuck));
        self.behind = there;
        for mut behind in gone {
            if behind.started.is_some() {
                self.started = behind.started.take();
                self.take_back().await;
            }
            self.forget(&mut behind.works);
            if behind.told_apart || self.consumer.is_strict() {
                self.hold_back(behind.works);
            } else {
                // One of them may do it again: each runs by itself.
                for work in behind.works {
                    self.put_off(work);
                }
            }
        }
        let mut behind = std::mem::take(&mut self.behind);
        for one in &mut behind {
            self.forget(&mut one.works);
        }
        self.behind = behind;
    }

    /// With strict order, keeps works behind those of their partition that wait for a session's end.
    pub(super) fn keep_in_order(&mut self, batch: &mut Vec<Work>) {
        if self.behind.is_empty() || !self.consumer.is_strict() {
            return;
        }
        for work in std::mem::take(batch) {
            let partition = work.partition();
            let before = self.behind.iter_mut().find(|behind| {
                let mut others = behind.works.iter();
                partition.is_some() && others.any(|other| other.partition() == partition)
            });
            match before {
                Some(behind) => behind.works.push(work),
                None => batch.push(work),
            }
        }
    }

    /// Whether another transaction may be in the way for much longer than any takes.
    pub(super) fn meets_stuck(&self, error: &StoreError) -> bool {
        matches!(error, StoreError::LockTimeout(_))
            && !self.consumer.is_strict()
            && !self.consumer.store.stuck_sessions().is_empty()
    }
}
