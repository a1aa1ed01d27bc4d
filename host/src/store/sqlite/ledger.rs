//! The statements of `hapax_ledger`.
//!
//! Inside the transaction that claims it, a row's fate is provisional: zero for committed, minus the number
//! for another fate. `finish` makes provisional fates final and counts them, which proves that the
//! transaction it runs in is the one that claimed them; a transaction with provisional fates is not
//! committed.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use sqlx::AssertSqlSafe;

use super::connection::{Slot, column, now};
use super::rows::{marks, pieces, values};
use crate::store::stored::{broken, micros, timestamp_seconds};
use crate::store::{
    Claim, ClaimRule, ConsumerId, Entry, Fate, Finished, Settlement, Start, StoreError,
};

fn expires_at(rule: ClaimRule<'_>, claim: &Claim<'_>) -> Option<i64> {
    let sent = timestamp_seconds(claim.timestamp_seconds).map_or(0, |seconds| seconds * 1_000_000);
    rule.retention
        .map(|retention| now().max(sent) + micros(retention))
}

pub(super) fn fate(number: i64) -> Result<Fate, StoreError> {
    let number = if number == 0 {
        Fate::Committed as i64
    } else {
        number.abs()
    };
    let fate = i16::try_from(number).ok().and_then(Fate::from_number);
    fate.ok_or_else(|| broken("fate", number))
}

impl Slot {
    pub async fn claim(
        &mut self,
        rule: ClaimRule<'_>,
        claims: &[Claim<'_>],
    ) -> Result<Vec<bool>, StoreError> {
        let mut new: HashSet<Vec<u8>> = HashSet::new();
        for piece in pieces(claims.len()) {
            let claims = &claims[piece];
            let text = format!(
                "INSERT INTO hapax_ledger (consumer, key, fate, attempts, fingerprint, plugin, expires_at) \
                 VALUES {} ON CONFLICT DO NOTHING RETURNING key",
                values(claims.len(), 7)
            );
            let mut insert = sqlx::query(AssertSqlSafe(text));
            for claim in claims {
                insert = insert
                    .bind(rule.consumer.0)
                    .bind(claim.key)
                    .bind(0)
                    .bind(claim.attempts)
                    .bind(claim.fingerprint)
                    .bind(rule.plugin)
                    .bind(expires_at(rule, claim));
            }
            for row in self.rows(insert).await? {
                new.insert(column(&row, 0)?);
            }
        }
        Ok(claims.iter().map(|claim| new.contains(claim.key)).collect())
    }

    pub async fn entries(
        &mut self,
        consumer: ConsumerId,
        keys: &[&[u8]],
    ) -> Result<Vec<Option<Entry>>, StoreError> {
        let mut found = HashMap::new();
        for piece in pieces(keys.len()) {
            let keys = &keys[piece];
            let text = format!(
                "SELECT key, fate, fingerprint, attempts FROM hapax_ledger WHERE consumer = ? AND key IN ({})",
                marks(keys.len())
            );
            let mut select = sqlx::query(AssertSqlSafe(text)).bind(consumer.0);
            for key in keys {
                select = select.bind(*key);
            }
            for row in self.rows(select).await? {
                let entry = Entry {
                    key: column(&row, 0)?,
                    fate: fate(column(&row, 1)?)?,
                    fingerprint: column(&row, 2)?,
                    attempts: column(&row, 3)?,
                };
                found.insert(entry.key.clone(), entry);
            }
        }
        Ok(keys.iter().map(|key| found.get(*key).cloned()).collect())
    }

    pub async fn take(
        &mut self,
        rule: ClaimRule<'_>,
        claim: Claim<'_>,
        from: Fate,
    ) -> Result<bool, StoreError> {
        let update = sqlx::query(
            "UPDATE hapax_ledger SET fate = 0, attempts = ?, fingerprint = ?, plugin = ?, expires_at = ? \
             WHERE consumer = ? AND key = ? AND fate = ?",
        )
        .bind(claim.attempts)
        .bind(claim.fingerprint)
        .bind(rule.plugin)
        .bind(expires_at(rule, &claim))
        .bind(rule.consumer.0)
        .bind(claim.key)
        .bind(from as i16);
        Ok(self.touch(update).await? == 1)
    }

    pub async fn unclaim(
        &mut self,
        consumer: ConsumerId,
        keys: &[&[u8]],
    ) -> Result<u64, StoreError> {
        let mut removed = 0;
        for piece in pieces(keys.len()) {
            let keys = &keys[piece];
            let text = format!(
                "DELETE FROM hapax_ledger WHERE consumer = ? AND key IN ({}) AND fate <= 0",
                marks(keys.len())
            );
            let mut delete = sqlx::query(AssertSqlSafe(text)).bind(consumer.0);
            for key in keys {
                delete = delete.bind(*key);
            }
            removed += self.touch(delete).await?;
        }
        Ok(removed)
    }

    pub async fn settle(
        &mut self,
        consumer: ConsumerId,
        settlements: &[Settlement<'_>],
    ) -> Result<u64, StoreError> {
        let mut changed = 0;
        for piece in pieces(settlements.len()) {
            let settlements = &settlements[piece];
            let text = format!(
                "WITH settled (key, fate, attempts) AS (VALUES {}) \
                 UPDATE hapax_ledger SET fate = -settled.fate, attempts = settled.attempts FROM settled \
                 WHERE hapax_ledger.consumer = ? AND hapax_ledger.key = settled.key AND hapax_ledger.fate <= 0",
                values(settlements.len(), 3)
            );
            let mut update = sqlx::query(AssertSqlSafe(text));
            for settlement in settlements {
                update = update
                    .bind(settlement.key)
                    .bind(settlement.fate as i16)
                    .bind(settlement.attempts);
            }
            changed += self.touch(update.bind(consumer.0)).await?;
        }
        Ok(changed)
    }

    pub async fn finish(
        &mut self,
        consumer: ConsumerId,
        keys: &[&[u8]],
    ) -> Result<Finished, StoreError> {
        let mut claims = 0;
        for piece in pieces(keys.len()) {
            let keys = &keys[piece];
            let text = format!(
                "UPDATE hapax_ledger SET fate = CASE fate WHEN 0 THEN 1 ELSE -fate END \
                 WHERE consumer = ? AND key IN ({}) AND fate <= 0",
                marks(keys.len())
            );
            let mut update = sqlx::query(AssertSqlSafe(text)).bind(consumer.0);
            for key in keys {
                update = update.bind(*key);
            }
            claims += self.touch(update).await?;
        }
        let horizon =
            sqlx::query("SELECT horizon FROM hapax_consumer WHERE id = ?").bind(consumer.0);
        let horizon = match self.row(horizon).await? {
            Some(row) => column(&row, 0)?,
            None => None,
        };
        Ok(Finished { claims, horizon })
    }

    pub async fn keep_replies(
        &mut self,
        consumer: ConsumerId,
        replies: &[(&[u8], Vec<u8>)],
    ) -> Result<u64, StoreError> {
        let mut changed = 0;
        for (key, reply) in replies {
            let update = sqlx::query(
                "UPDATE hapax_ledger SET reply = ? WHERE consumer = ? AND key = ? AND fate <= 0",
            )
            .bind(reply.as_slice())
            .bind(consumer.0)
            .bind(*key);
            changed += self.touch(update).await?;
        }
        Ok(changed)
    }

    pub async fn replies(
        &mut self,
        consumer: ConsumerId,
        keys: &[&[u8]],
    ) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        let mut replies = Vec::with_capacity(keys.len());
        for key in keys {
            let select =
                sqlx::query("SELECT reply FROM hapax_ledger WHERE consumer = ? AND key = ?")
                    .bind(consumer.0)
                    .bind(*key);
            replies.push(match self.row(select).await? {
                Some(row) => column(&row, 0)?,
                None => None,
            });
        }
        Ok(replies)
    }

    pub async fn note_retention(
        &mut self,
        consumer: ConsumerId,
        retention: Duration,
    ) -> Result<(), StoreError> {
        let update = sqlx::query(
            "UPDATE hapax_consumer SET shortest_retention = min(coalesce(shortest_retention, ?1), ?1) \
             WHERE id = ?2",
        )
        .bind(micros(retention))
        .bind(consumer.0);
        self.touch(update).await.map(|_| ())
    }

    pub async fn record_start(
        &mut self,
        rule: ClaimRule<'_>,
        claim: Claim<'_>,
        first: bool,
    ) -> Result<Start, StoreError> {
        let upsert = sqlx::query(
            "INSERT INTO hapax_ledger (consumer, key, fate, attempts, fingerprint, plugin, expires_at) \
             VALUES (?, ?, 5, 1, ?, ?, ?) ON CONFLICT (consumer, key) DO UPDATE SET attempts = attempts + 1, \
             fingerprint = excluded.fingerprint, plugin = excluded.plugin, expires_at = excluded.expires_at \
             WHERE fate = 5 AND NOT ?",
        )
        .bind(rule.consumer.0)
        .bind(claim.key)
        .bind(claim.fingerprint)
        .bind(rule.plugin)
        .bind(expires_at(rule, &claim))
        .bind(first);
        let recorded = self.touch(upsert).await? == 1;
        let entry = self
            .entries(rule.consumer, &[claim.key])
            .await?
            .swap_remove(0);
        let entry = entry
            .ok_or_else(|| StoreError::Broken("a row that was just written is gone".to_owned()))?;
        Ok(match (recorded, entry.fate) {
            (true, _) => Start::Recorded(entry.attempts),
            (false, Fate::Started) => Start::Earlier,
            (false, _) => Start::Elsewhere,
        })
    }

    pub async fn undo_start(&mut self, consumer: ConsumerId, key: &[u8]) -> Result<(), StoreError> {
        let delete =
            sqlx::query("DELETE FROM hapax_ledger WHERE consumer = ? AND key = ? AND fate = 5 AND attempts <= 1")
                .bind(consumer.0)
                .bind(key);
        if self.touch(delete).await? == 0 {
            let update = sqlx::query(
                "UPDATE hapax_ledger SET attempts = attempts - 1 WHERE consumer = ? AND key = ? AND fate = 5",
            )
            .bind(consumer.0)
            .bind(key);
            self.touch(update).await?;
        }
        Ok(())
    }

    pub async fn ledger_counts(
        &mut self,
        consumer: ConsumerId,
    ) -> Result<Vec<(Fate, u64)>, StoreError> {
        let select =
            sqlx::query("SELECT fate, count(*) FROM hapax_ledger WHERE consumer = ? GROUP BY fate ORDER BY fate")
                .bind(consumer.0);
        let mut counts = Vec::new();
        for row in self.rows(select).await? {
            counts.push((
                fate(column(&row, 0)?)?,
                column::<i64>(&row, 1)?.unsigned_abs(),
            ));
        }
        Ok(counts)
    }

    pub async fn sweep(
        &mut self,
        consumer: ConsumerId,
        retention: Duration,
        after: &[u8],
        limit: u32,
    ) -> Result<(Option<Vec<u8>>, u64), StoreError> {
        let shortest = sqlx::query("SELECT shortest_retention FROM hapax_consumer WHERE id = ?")
            .bind(consumer.0);
        let shortest = match self.row(shortest).await? {
            Some(row) => column::<Option<i64>>(&row, 0)?,
            None => None,
        };
        let retention = micros(retention);
        let shortest = shortest.unwrap_or(retention);
        let page = sqlx::query(
            "SELECT key, fate, expires_at FROM hapax_ledger WHERE consumer = ? AND key > ? ORDER BY key LIMIT ?",
        )
        .bind(consumer.0)
        .bind(after)
        .bind(limit);
        let page = self.rows(page).await?;
        // A row that was claimed under the shortest retention has lived for the one of now when this is over.
        let over = now() - (retention - shortest);
        let (mut expired, mut horizon): (Vec<&[u8]>, i64) = (Vec::new(), 0);
        for row in &page {
            let waits = matches!(fate(column(row, 1)?)?, Fate::Waiting | Fate::Parked);
            match column::<Option<i64>>(row, 2)? {
                Some(expires_at) if expires_at <= over && !waits => {
                    expired.push(column(row, 0)?);
                    horizon = horizon.max(expires_at - shortest);
                }
                _ => {}
            }
        }
        for piece in pieces(expired.len()) {
            let keys = &expired[piece];
            let text = format!(
                "DELETE FROM hapax_ledger WHERE consumer = ? AND key IN ({})",
                marks(keys.len())
            );
            let mut delete = sqlx::query(AssertSqlSafe(text)).bind(consumer.0);
            for key in keys {
                delete = delete.bind(*key);
            }
            self.touch(delete).await?;
        }
        if !expired.is_empty() {
            let raise = sqlx::query(
                "UPDATE hapax_consumer SET horizon = max(coalesce(horizon, 0), ?) WHERE id = ?",
            )
            .bind(horizon)
            .bind(consumer.0);
            self.touch(raise).await?;
        }
        let last = match page.last() {
            Some(row) if page.len() as u64 == u64::from(limit) => Some(column(row, 0)?),
            _ => None,
        };
        Ok((last, expired.len() as u64))
    }
}
