//! The rows of the ledger: what is claimed, and what becomes of it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::store::{
    Claim, ClaimRule, ConsumerId, Entry, Fate, Finished, Settlement, Start, StoreError,
};

use super::super::database::{LedgerEntry, Row, place, seen};
use super::super::faults::Sabotage;
use super::ModelSession;

impl ModelSession {
    pub(super) async fn ledger_claim(
        &mut self,
        rule: ClaimRule<'_>,
        claims: &[Claim<'_>],
    ) -> Result<Vec<bool>, StoreError> {
        let own = self.statement().await?;
        let mut new = Vec::with_capacity(claims.len());
        for claim in claims {
            let key = place(rule.consumer, claim.key);
            // A row that is there is no obstacle; one that is being inserted is waited for.
            let mut there = self.ledger(claim.key, rule.consumer).is_some();
            if !there {
                self.lock(&Row::Key(key.clone()), own).await?;
                there = self.ledger(claim.key, rule.consumer).is_some();
            }
            if !there {
                let entry = self.fresh(rule, claim, Fate::Committed);
                if self.database.faults.sabotage == Sabotage::ClaimOutside {
                    let mut other = self.database.begin();
                    other
                        .changes
                        .ledger
                        .insert(key.clone(), Some(entry.clone()));
                    self.database.commit(other);
                }
                let open = self.open();
                open.changes.ledger.insert(key.clone(), Some(entry));
                open.claimed.insert(key);
            }
            new.push(!there);
        }
        self.end(own);
        Ok(new)
    }

    pub(super) async fn ledger_entries(
        &mut self,
        consumer: ConsumerId,
        keys: &[&[u8]],
    ) -> Result<Vec<Option<Entry>>, StoreError> {
        let own = self.statement().await?;
        let entries = keys
            .iter()
            .map(|key| {
                self.ledger(key, consumer).map(|entry| Entry {
                    key: key.to_vec(),
                    fate: entry.fate,
                    fingerprint: entry.fingerprint,
                    attempts: entry.attempts,
                })
            })
            .collect();
        self.end(own);
        Ok(entries)
    }

    pub(super) async fn ledger_take(
        &mut self,
        rule: ClaimRule<'_>,
        claim: Claim<'_>,
        from: Fate,
    ) -> Result<bool, StoreError> {
        let own = self.statement().await?;
        let key = place(rule.consumer, claim.key);
        if self.ledger(claim.key, rule.consumer).is_none() {
            self.end(own);
            return Ok(false);
        }
        self.lock(&Row::Key(key.clone()), own).await?;
        let taken = self
            .ledger(claim.key, rule.consumer)
            .is_some_and(|entry| entry.fate == from);
        if taken {
            let entry = self.fresh(rule, &claim, Fate::Committed);
            let open = self.open();
            open.changes.ledger.insert(key.clone(), Some(entry));
            open.claimed.insert(key);
        }
        self.end(own);
        Ok(taken)
    }

    pub(super) async fn ledger_unclaim(
        &mut self,
        consumer: ConsumerId,
        keys: &[&[u8]],
    ) -> Result<u64, StoreError> {
        let own = self.statement().await?;
        let mut removed = 0;
        for key in keys {
            let key = place(consumer, key);
            let open = self.open();
            if open.claimed.remove(&key) {
                open.changes.ledger.remove(&key);
                removed += 1;
            }
        }
        self.end(own);
        Ok(removed)
    }

    pub(super) async fn ledger_settle(
        &mut self,
        consumer: ConsumerId,
        settlements: &[Settlement<'_>],
    ) -> Result<u64, StoreError> {
        let own = self.statement().await?;
        let mut changed = 0;
        for settlement in settlements {
            let key = place(consumer, settlement.key);
            let open = self.open();
            if !open.claimed.contains(&key) {
                continue;
            }
            if let Some(Some(entry)) = open.changes.ledger.get_mut(&key) {
                entry.fate = settlement.fate;
                entry.attempts = settlement.attempts;
                changed += 1;
            }
        }
        self.end(own);
        Ok(changed)
    }

    pub(super) async fn ledger_finish(
        &mut self,
        consumer: ConsumerId,
        keys: &[&[u8]],
    ) -> Result<Finished, StoreError> {
        let own = self.statement().await?;
        let open = self.open();
        let claimed = keys
            .iter()
            .filter(|key| open.claimed.contains(&place(consumer, key)))
            .count();
        // Read after the claims.
        let horizon = self.database.horizon(consumer);
        self.end(own);
        Ok(Finished {
            claims: claimed as u64,
            horizon,
        })
    }

    pub(super) async fn ledger_keep_replies(
        &mut self,
        consumer: ConsumerId,
        replies: &[(&[u8], Vec<u8>)],
    ) -> Result<u64, StoreError> {
        let own = self.statement().await?;
        let mut changed = 0;
        for (key, reply) in replies {
            let key = place(consumer, key);
            let open = self.open();
            let claimed = open.claimed.contains(&key);
            if let (true, Some(Some(entry))) = (claimed, open.changes.ledger.get_mut(&key)) {
                entry.reply = Some(reply.clone());
                changed += 1;
            }
        }
        self.end(own);
        Ok(changed)
    }

    pub(super) async fn ledger_replies(
        &mut self,
        consumer: ConsumerId,
        keys: &[&[u8]],
    ) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        let own = self.statement().await?;
        let mut replies = Vec::with_capacity(keys.len());
        for key in keys {
            let entry = self.ledger(key, consumer);
            let lost = self.database.faults.sabotage == Sabotage::ForgetReplies;
            replies.push(entry.and_then(|entry| entry.reply).filter(|_| !lost));
        }
        self.end(own);
        Ok(replies)
    }

    pub(super) async fn ledger_note_retention(
        &mut self,
        consumer: ConsumerId,
        retention: Duration,
    ) -> Result<(), StoreError> {
        self.trip().await?;
        let mut state = self.database.state();
        let micros = micros(retention);
        let shortest = state.shortest_retention.entry(consumer.0).or_insert(micros);
        *shortest = micros.min(*shortest);
        Ok(())
    }

    pub(super) async fn ledger_record_start(
        &mut self,
        rule: ClaimRule<'_>,
        claim: Claim<'_>,
        first: bool,
    ) -> Result<Start, StoreError> {
        let own = self.statement().await?;
        let key = place(rule.consumer, claim.key);
        self.lock(&Row::Key(key.clone()), own).await?;
        let start = match self.ledger(claim.key, rule.consumer) {
            Some(entry) if entry.fate != Fate::Started => Start::Elsewhere,
            Some(_) if first => Start::Earlier,
            known => {
                let starts = known.map_or(0, |entry| entry.attempts) + 1;
                let entry = LedgerEntry {
                    attempts: starts,
                    ..self.fresh(rule, &claim, Fate::Started)
                };
                self.open().changes.ledger.insert(key, Some(entry));
                Start::Recorded(starts)
            }
        };
        self.end(own);
        Ok(start)
    }

    pub(super) async fn ledger_undo_start(
        &mut self,
        consumer: ConsumerId,
        key: &[u8],
    ) -> Result<(), StoreError> {
        let own = self.statement().await?;
        let row = place(consumer, key);
        self.lock(&Row::Key(row.clone()), own).await?;
        if let Some(mut entry) = self.ledger(key, consumer)
            && entry.fate == Fate::Started
        {
            entry.attempts -= 1;
            let left = (entry.attempts > 0).then_some(entry);
            self.open().changes.ledger.insert(row, left);
        }
        self.end(own);
        Ok(())
    }

    pub(super) async fn ledger_count(
        &mut self,
        consumer: ConsumerId,
    ) -> Result<Vec<(Fate, u64)>, StoreError> {
        self.trip().await?;
        let state = self.database.state();
        let mut counts = BTreeMap::<i16, u64>::new();
        for ((owner, _), entry) in &state.committed.ledger {
            if *owner == consumer.0 {
                *counts.entry(entry.fate as i16).or_default() += 1;
            }
        }
        Ok(counts
            .into_iter()
            .filter_map(|(fate, count)| Some((Fate::from_number(fate)?, count)))
            .collect())
    }

    pub(super) async fn ledger_sweep(
        &mut self,
        consumer: ConsumerId,
        retention: Duration,
        after: &[u8],
        limit: u32,
    ) -> Result<(Option<Vec<u8>>, u64), StoreError> {
        let own = self.statement().await?;
        let number = self.open().number;
        let retention = micros(retention);
        let (page, shortest) = {
            let state = self.database.state();
            let rows = state.committed.ledger.range(place(consumer, after)..);
            let page = rows
                .filter(|((owner, key), _)| *owner == consumer.0 && key.as_slice() > after)
                .map(|(key, entry)| (key.clone(), entry.clone()))
                .take(limit as usize)
                .collect::<Vec<_>>();
            let shortest = state.shortest_retention.get(&consumer.0).copied();
            (page, shortest.unwrap_or(retention))
        };
        let over = self.database.now() - (retention - shortest);
        let (mut gone, mut horizon) = (0, None);
        for (key, entry) in &page {
            let waits = matches!(entry.fate, Fate::Waiting | Fate::Parked)
                && self.database.faults.sabotage != Sabotage::ForgetParked;
            let Some(expires_at) = entry.expires_at.filter(|at| *at <= over && !waits) else {
                continue;
            };
            // SKIP LOCKED.
            if self.database.try_lock(number, &Row::Key(key.clone())) {
                self.open().changes.ledger.insert(key.clone(), None);
                horizon = horizon.max(Some(expires_at - shortest));
                gone += 1;
            }
        }
        if let Some(horizon) = horizon {
            self.database.raise_horizon(consumer, horizon);
        }
        self.end(own);
        let last = page.last().filter(|_| page.len() == limit as usize);
        Ok((last.map(|((_, key), _)| key.clone()), gone))
    }

    /// Changes the entry of a parked key, with the time of now.
    pub(super) async fn move_fate(
        &mut self,
        consumer: ConsumerId,
        key: &[u8],
        own: bool,
        change: impl FnOnce(&mut LedgerEntry, i64) + Send,
    ) -> Result<(), StoreError> {
        let row = place(consumer, key);
        self.lock(&Row::Key(row.clone()), own).await?;
        let known = self.ledger(key, consumer);
        if let Some(mut known) = known.filter(|known| known.fate == Fate::Parked) {
            change(&mut known, self.database.now());
            self.open().changes.ledger.insert(row, Some(known));
        }
        Ok(())
    }

    pub(super) fn ledger(&self, key: &[u8], consumer: ConsumerId) -> Option<LedgerEntry> {
        let key = place(consumer, key);
        let state = self.database.state();
        let committed = &state.committed.ledger;
        match &self.transaction {
            Some(open) => seen(&open.changes.ledger, committed, &key).cloned(),
            None => committed.get(&key).cloned(),
        }
    }

    fn expires_at(&self, rule: ClaimRule<'_>, claim: &Claim<'_>) -> Option<i64> {
        let sent = claim
            .timestamp_seconds
            .map_or(0, |seconds| seconds.saturating_mul(1_000_000));
        rule.retention.map(|retention| {
            let now = self.database.now();
            now.max(sent).saturating_add(micros(retention))
        })
    }

    fn fresh(&self, rule: ClaimRule<'_>, claim: &Claim<'_>, fate: Fate) -> LedgerEntry {
        LedgerEntry {
            fate,
            attempts: claim.attempts,
            fingerprint: claim.fingerprint.to_vec(),
            expires_at: self.expires_at(rule, claim),
            reply: None,
        }
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}
