//! The rows of the ledger: what is claimed, and what becomes of it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::store::{
    Claim, ClaimRule, ConsumerId, Entry, Fate, Finished, Settlement, Start, StoreError,
};

use super::super::database::{LedgerEntry, Row, place};
use super::super::faults::Sabotage;
use super::{ModelSession, unknown};

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
        self.end(own);
        Ok(Finished {
            claims: claimed as u64,
            horizon: None,
        })
    }

    pub(super) async fn ledger_keep_replies(
        &mut self,
        _: ConsumerId,
        _: &[(&[u8], Vec<u8>)],
    ) -> Result<u64, StoreError> {
        Err(unknown("replies"))
    }

    pub(super) async fn ledger_replies(
        &mut self,
        _: ConsumerId,
        _: &[&[u8]],
    ) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        Err(unknown("replies"))
    }

    pub(super) async fn ledger_note_retention(
        &mut self,
        _: ConsumerId,
        _: Duration,
    ) -> Result<(), StoreError> {
        Err(unknown("the sweep"))
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
        _: ConsumerId,
        _: Duration,
        _: &[u8],
        _: u32,
    ) -> Result<(Option<Vec<u8>>, u64), StoreError> {
        Err(unknown("the sweep"))
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
            let micros = i64::try_from(retention.as_micros()).unwrap_or(i64::MAX);
            self.database.now().max(sent).saturating_add(micros)
        })
    }

    fn fresh(&self, rule: ClaimRule<'_>, claim: &Claim<'_>, fate: Fate) -> LedgerEntry {
        LedgerEntry {
            fate,
            attempts: claim.attempts,
            fingerprint: claim.fingerprint.to_vec(),
            expires_at: self.expires_at(rule, claim),
        }
    }
}
