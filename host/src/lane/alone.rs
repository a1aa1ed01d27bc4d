//! Messages that may have taken a host down: each runs alone, with its start on record before it runs.
//!
//! What the broker delivers again, and what runs from the table. A start is taken back when the world fails, so
//! that only starts after which nothing was heard any more count against a message.

use std::sync::Arc;

use crate::backoff::Backoff;
use crate::commit::{Hold, Item};
use crate::failpoint::{self, Point};
use crate::failure::{Failure, code};
use crate::store::{Claim, ClaimRule, Fate, StoreError};

use super::{Ended, Lane, Settled, Work};

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

    /// Runs a message whose key was in another transaction's hands.
    pub(super) async fn try_later(&mut self, work: Work) -> Result<(), Ended> {
        if work.may_be_known() {
            // Not even its start could be recorded.
            return self.start_alone(work).await;
        }
        self.settle_alone(work).await.map(|_| ())
    }

    /// Runs a message that may have taken a host down: its start is on record before it runs.
    pub(super) async fn start_alone(&mut self, mut work: Work) -> Result<(), Ended> {
        let mut trouble = Backoff::for_servers();
        let starts = loop {
            match self.record_start(&work.item).await {
                Ok(starts) => break starts,
                Err(error) if error.class() == crate::failure::Class::Ours => {
                    return Err(Ended::Broken(error));
                }
                Err(StoreError::LockTimeout(error)) if !self.consumer.is_strict() => {
                    tracing::debug!(consumer = %self.consumer.name, %error, "Key held elsewhere");
                    self.consumer.metrics.setback("busy");
                    self.later.push(work);
                    return Ok(());
                }
                Err(error) => self.pause(&mut trouble, &error).await?,
            }
        };
        let Some(starts) = starts else {
            // Somebody else has dealt with the key, or has the row: the claim will tell.
            return self.settle_alone(work).await.map(|_| ());
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
        if matches!(settled, Err(Ended::Stopped) | Ok(Settled::GivenBack)) {
            // The world failed, not the message: what it was charged with is taken back.
            self.undo_start(&hold, key.as_deref()).await;
        }
        settled.map(|_| ())
    }

    pub(super) async fn record_start(&mut self, item: &Item) -> Result<Option<i32>, StoreError> {
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

    pub(super) async fn undo_start(&mut self, hold: &Hold, key: Option<&[u8]>) {
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
}
