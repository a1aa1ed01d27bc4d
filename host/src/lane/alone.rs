//! Messages that may have taken a host down: each runs alone, with its start on record before it runs.
//!
//! What the broker delivers again, and what runs from the table. A recorded start is a charge that stands for as
//! long as nothing is heard: whoever records one takes it back unless the message came to a verdict, whatever
//! else happened. So only a process that died can leave one behind. The first one that it leaves accuses all that
//! ran; while any later one is on record, nothing but its message runs (`Floor`). A message is parked for the
//! crashes that it has lived through, and all but the first of those it went through by itself.

use std::sync::Arc;

use crate::backoff::Backoff;
use crate::commit::{Hold, Item};
use crate::failpoint::{self, Point};
use crate::failure::{Class, Failure, code};
use crate::store::{Claim, ClaimRule, Fate, Start, StoreError};

use super::floor::Leave;
use super::{Ended, Lane, Settled, Stopped, Work};

/// A start that is on record.
#[derive(Clone, Debug)]
pub(super) enum Started {
    Key(Vec<u8>),
    Row(Vec<u8>),
}

impl Lane {
    /// Redelivered messages whose key has a fate need no run of their own: they are duplicates like others.
    pub(super) async fn recognise(&mut self, mut batch: Vec<Work>) -> Result<Vec<Work>, Ended> {
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
                Err(error) => {
                    self.note_outside(&error);
                    self.pause(&mut trouble, &error).await?;
                }
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
    pub(super) async fn start_alone(&mut self, mut work: Work) -> Result<(), Ended> {
        let mut trouble = Backoff::for_servers();
        let started = started(&work.item);
        let mut leave = self.share_floor().await?;
        // Starts that may be on record, and whose answer did not arrive.
        let mut unheard = 0;
        let starts = loop {
            self.started.clone_from(&started);
            // A message that is under suspicion is charged with nothing while others run.
            let recorded = self.record_start(&work.item, leave.is_shared()).await;
            if unheard == 0 && !may_be_on_record(&recorded) {
                self.started = None;
            }
            match recorded {
                Ok(Start::Recorded(starts)) => break starts,
                Ok(Start::Earlier) => {
                    drop(leave);
                    leave = self.have_floor_alone().await?;
                }
                Ok(Start::Elsewhere) => {
                    // Somebody else has dealt with the key, or has the row: the claim will tell.
                    self.take_back().await;
                    drop(leave);
                    return self.settle_one(work).await;
                }
                Err(error) if error.class() == Class::Ours => return Err(Ended::Broken(error)),
                Err(error @ StoreError::LockTimeout(_)) if !self.consumer.is_strict() => {
                    self.note_outside(&error);
                    self.take_back().await;
                    self.put_off(work);
                    return Ok(());
                }
                Err(error) => {
                    self.note_outside(&error);
                    unheard += i32::from(!matches!(error, StoreError::LockTimeout(_)));
                    self.pause(&mut trouble, &error).await?;
                }
            }
        };
        // Rather one start too few than one too many.
        let surplus = unheard.min(starts - 1);
        for _ in 0..surplus {
            self.take_back().await;
            self.started.clone_from(&started);
        }
        let starts = starts - surplus;
        if work.item.hold == Hold::Nothing {
            work.item.hold = Hold::Started(starts);
        }
        failpoint::pass(Point::AfterStart);
        if starts > self.consumer.max_starts() {
            let crashes = starts - 1;
            let text = format!("the host went down {crashes} times while it ran this message");
            work.item.preset = Some(Failure::never(code::CRASH_LOOP, text));
        }
        match self.settle_alone(work).await? {
            Settled::Done => self.started = None,
            // It did not come to an end here, and what it is charged with goes before others run.
            Settled::NotRun => self.take_back().await,
            Settled::Busy(mut work) => {
                self.take_back().await;
                if matches!(work.item.hold, Hold::Started(_)) {
                    work.item.hold = Hold::Nothing;
                }
                self.put_off(*work);
            }
            Settled::Left => self.leave_start_behind(),
        }
        drop(leave);
        Ok(())
    }

    /// Waits until this lane may run something beside the others.
    pub(super) async fn share_floor(&mut self) -> Result<Leave, Stopped> {
        let floor = self.consumer.floor.clone();
        self.wait_for_floor(floor.share()).await
    }

    async fn have_floor_alone(&mut self) -> Result<Leave, Stopped> {
        let floor = self.consumer.floor.clone();
        self.wait_for_floor(floor.have_alone()).await
    }

    async fn wait_for_floor(
        &mut self,
        floor: impl Future<Output = Leave>,
    ) -> Result<Leave, Stopped> {
        let pulse = self.consumer.pulse(self.number);
        pulse.rest();
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(Stopped),
            leave = floor => {
                pulse.beat();
                Ok(leave)
            }
        }
    }

    async fn record_start(&mut self, item: &Item, first: bool) -> Result<Start, StoreError> {
        let consumer = Arc::clone(&self.consumer);
        let session = self.connect().await?;
        failpoint::pass(Point::BeforeStart);
        if let Hold::Row(id) = &item.hold {
            return session.waiting_start(consumer.id, id, first).await;
        }
        let Ok(identity) = &item.identity else {
            return Ok(Start::Elsewhere);
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
        session.record_start(rule, claim, first).await
    }

    /// Takes back the start that is on record, however long the database lets it wait. The host, which gives up
    /// some day, is who ends it.
    pub(super) async fn take_back(&mut self) {
        let mut trouble = Backoff::for_servers();
        while let Some(started) = self.started.clone() {
            match self.undo_start(&started).await {
                Ok(()) => self.started = None,
                Err(error) if error.class() == Class::Ours => {
                    tracing::warn!(consumer = %self.consumer.name, %error, "A recorded start stays on record");
                    self.started = None;
                }
                Err(error) => {
                    if !matches!(error, StoreError::LockTimeout(_)) {
                        self.session = None;
                    }
                    self.consumer.pulse(self.number).rest();
                    tokio::time::sleep(trouble.pause()).await;
                }
            }
        }
    }

    async fn undo_start(&mut self, started: &Started) -> Result<(), StoreError> {
        failpoint::pass(Point::BeforeUndoStart);
        let id = self.consumer.id;
        let session = self.connect().await?;
        match started {
            Started::Row(row) => session.waiting_unstart(id, row).await,
            Started::Key(key) => session.undo_start(id, key).await,
        }
    }
}

/// Whether the start may be on record by this answer, or by none.
fn may_be_on_record(recorded: &Result<Start, StoreError>) -> bool {
    match recorded {
        Ok(start) => matches!(start, Start::Recorded(_)),
        Err(StoreError::LockTimeout(_)) => false,
        Err(error) => error.class() != Class::Ours,
    }
}

/// What a start of this message is on record under.
fn started(item: &Item) -> Option<Started> {
    match (&item.hold, &item.identity) {
        (Hold::Row(id), _) => Some(Started::Row(id.clone())),
        (_, Ok(identity)) => Some(Started::Key(identity.key.clone())),
        _ => None,
    }
}
