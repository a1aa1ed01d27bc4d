//! The statements of `hapax_ledger`.
//!
//! `claim` writes the final fate at once, so that `finish` has nothing to rewrite. Claims and takes answer the
//! number of their transaction; `finish` counts what they claimed, if the transaction still has that number. Rows that it has claimed can then not be missing: no claim is made
//! under a savepoint, and nothing but the host writes the table. Looking for the rows would cost a scan of
//! the whole table as long as the planner takes it for small.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::session::{PgQuery, PostgresSession, column};
use super::stuck::SHORT_LOCK;
use crate::store::stored::{broken, timestamp_seconds};
use crate::store::{
    Claim, ClaimRule, ConsumerId, Entry, Fate, Finished, Session, Settlement, Start, StoreError,
    stored,
};

/// The keys that the open transaction has claimed.
#[derive(Default)]
pub(super) struct Claims {
    /// The number of the transaction that claimed them, by the server.
    transaction: Option<i64>,
    keys: HashSet<Box<[u8]>>,
}

impl Claims {
    /// Notes a key that a statement has claimed, in a transaction of that number.
    fn add(&mut self, transaction: i64, key: &[u8]) -> Result<(), StoreError> {
        if *self.transaction.get_or_insert(transaction) != transaction {
            return Err(StoreError::TransactionLost(
                "an earlier claim was made in another transaction".to_owned(),
            ));
        }
        self.keys.insert(key.into());
        Ok(())
    }

    fn remove(&mut self, key: &[u8]) -> bool {
        self.keys.remove(key)
    }

    fn has(&self, key: &[u8]) -> bool {
        self.keys.contains(key)
    }

    pub(super) fn clear(&mut self) {
        self.transaction = None;
        self.keys.clear();
    }
}

/// Seconds for `interval '1 second'`.
pub(super) fn seconds(duration: Duration) -> f64 {
    stored::micros(duration) as f64 / 1e6
}

impl PostgresSession {
    pub(super) async fn ledger_claim(
        &mut self,
        rule: ClaimRule<'_>,
        claims: &[Claim<'_>],
    ) -> Result<Vec<bool>, StoreError> {
        let keys: Vec<&[u8]> = claims.iter().map(|claim| claim.key).collect();
        let fingerprints: Vec<&[u8]> = claims.iter().map(|claim| claim.fingerprint).collect();
        let attempts: Vec<i32> = claims.iter().map(|claim| claim.attempts).collect();
        let times: Vec<Option<i64>> = claims
            .iter()
            .map(|claim| timestamp_seconds(claim.timestamp_seconds))
            .collect();
        let insert = self
            .statement(
                "INSERT INTO @hapax_ledger (consumer, key, fate, attempts, fingerprint, plugin, expires_at) \
                 SELECT $1, c.key, 1, c.attempts, c.fingerprint, $2, \
                 greatest(now(), to_timestamp(c.at)) + $3::float8 * interval '1 second' \
                 FROM unnest($4::bytea[], $5::bytea[], $6::int[], $7::bigint[]) \
                 AS c (key, fingerprint, attempts, at) \
                 ON CONFLICT DO NOTHING RETURNING txid_current(), key",
            )
            .bind(rule.consumer.0)
            .bind(rule.plugin)
            .bind(rule.retention.map(seconds))
            .bind(&keys)
            .bind(fingerprints)
            .bind(attempts)
            .bind(times);
        self.without_savepoint()?;
        let rows = self.rows(insert).await?;
        let mut new = HashSet::with_capacity(rows.len());
        for row in &rows {
            let key = column(row, 1)?;
            self.claims.add(column(row, 0)?, key)?;
            new.insert(key);
        }
        Ok(keys.iter().map(|key| new.contains(key)).collect())
    }

    pub(super) async fn ledger_entries(
        &mut self,
        consumer: ConsumerId,
        keys: &[&[u8]],
    ) -> Result<Vec<Option<Entry>>, StoreError> {
        // One look into the index for each key, planned anew: for as long as the table was not analyzed, or
        // when a plan was kept from its first days, the planner would rather read all of the consumer.
        let select = self
            .statement(
                "SELECT l.key, l.fate, l.fingerprint, l.attempts FROM unnest($2::bytea[]) AS k (key) \
                 CROSS JOIN LATERAL (SELECT * FROM @hapax_ledger WHERE consumer = $1 AND key = k.key LIMIT 1) AS l",
            )
            .persistent(false)
            .bind(consumer.0)
            .bind(keys);
        let mut found = HashMap::new();
        for row in self.rows(select).await? {
            let number: i16 = column(&row, 1)?;
            let entry = Entry {
                key: column(&row, 0)?,
                fate: Fate::from_number(number).ok_or_else(|| broken("fate", number))?,
                fingerprint: column(&row, 2)?,
                attempts: column(&row, 3)?,
            };
            found.insert(entry.key.clone(), entry);
        }
        Ok(keys.iter().map(|key| found.get(*key).cloned()).collect())
    }

    pub(super) async fn ledger_take(
        &mut self,
        rule: ClaimRule<'_>,
        claim: Claim<'_>,
        from: Fate,
    ) -> Result<bool, StoreError> {
        let update = self
            .statement(
                "UPDATE @hapax_ledger SET fate = 1, attempts = $4, fingerprint = $5, plugin = $6, \
                 expires_at = greatest(now(), to_timestamp($7::bigint)) + $8::float8 * interval '1 second' \
                 WHERE consumer = $1 AND key = $2 AND fate = $3 RETURNING txid_current()",
            )
            .bind(rule.consumer.0)
            .bind(claim.key)
            .bind(from as i16)
            .bind(claim.attempts)
            .bind(claim.fingerprint)
            .bind(rule.plugin)
            .bind(timestamp_seconds(claim.timestamp_seconds))
            .bind(rule.retention.map(seconds));
        self.without_savepoint()?;
        let Some(row) = self.row(update).await? else {
            return Ok(false);
        };
        self.claims.add(column(&row, 0)?, claim.key)?;
        Ok(true)
    }

    pub(super) async fn ledger_unclaim(
        &mut self,
        consumer: ConsumerId,
        keys: &[&[u8]],
    ) -> Result<u64, StoreError> {
        self.without_savepoint()?;
        let claimed = keys.iter().filter(|key| self.claims.remove(key));
        let claimed: Vec<&[u8]> = claimed.copied().collect();
        // Planned anew, as in `ledger_entries`. A join with the keys would read the whole of a young table.
        let delete = self
            .statement("DELETE FROM @hapax_ledger WHERE consumer = $1 AND key = ANY($2::bytea[])")
            .persistent(false)
            .bind(consumer.0)
            .bind(claimed);
        self.touch(delete).await
    }

    /// What is claimed under a savepoint would be undone with it.
    fn without_savepoint(&self) -> Result<(), StoreError> {
        if self.savepoints.is_empty() {
            return Ok(());
        }
        Err(StoreError::Broken(
            "a key is claimed under a savepoint".to_owned(),
        ))
    }

    pub(super) async fn ledger_settle(
        &mut self,
        consumer: ConsumerId,
        settlements: &[Settlement<'_>],
    ) -> Result<u64, StoreError> {
        let claimed = settlements
            .iter()
            .filter(|settlement| self.claims.has(settlement.key))
            .collect::<Vec<_>>();
        let keys: Vec<&[u8]> = claimed.iter().map(|settlement| settlement.key).collect();
        let fates: Vec<i16> = claimed
            .iter()
            .map(|settlement| settlement.fate as i16)
            .collect();
        let attempts: Vec<i32> = claimed
            .iter()
            .map(|settlement| settlement.attempts)
            .collect();
        // What this transaction has claimed is there: the insert always meets it, and finds it by the index
        // whatever the planner thinks of the table.
        let upsert = self
            .statement(
                "INSERT INTO @hapax_ledger AS l (consumer, key, fate, attempts, fingerprint, plugin) \
                 SELECT $1, s.key, s.fate, s.attempts, '', '' \
                 FROM unnest($2::bytea[], $3::smallint[], $4::int[]) AS s (key, fate, attempts) \
                 ON CONFLICT (consumer, key) DO UPDATE \
                 SET fate = excluded.fate, attempts = excluded.attempts",
            )
            .bind(consumer.0)
            .bind(keys)
            .bind(fates)
            .bind(attempts);
        self.touch(upsert).await
    }

    /// A transaction that has claimed nothing may write nothing, and its COMMIT waits for nothing. Its duplicates are
    /// acknowledged after it all the same, and a standby may still lack the commits that they are duplicates of:
    /// with a note in the log it waits for one that has everything before it.
    pub(super) async fn ledger_finish(
        &mut self,
        consumer: ConsumerId,
        keys: &[&[u8]],
    ) -> Result<Finished, StoreError> {
        let select = self
            .statement(
                "SELECT coalesce(txid_current_if_assigned() = $2, false), \
                 (SELECT (extract(epoch FROM horizon) * 1000000)::bigint FROM @hapax_consumer WHERE id = $1), \
                 CASE WHEN $2 IS NULL AND current_setting('synchronous_standby_names') <> '' \
                 THEN pg_logical_emit_message(true, 'hapax', ''::text) IS NOT NULL END",
            )
            .bind(consumer.0)
            .bind(self.claims.transaction);
        let row = self.row(select).await?;
        let row = row.ok_or_else(|| StoreError::Broken("finish has no answer".to_owned()))?;
        let claimed = keys.iter().filter(|key| self.claims.has(key)).count();
        Ok(Finished {
            claims: if column(&row, 0)? { claimed as u64 } else { 0 },
            horizon: column(&row, 1)?,
        })
    }

    pub(super) async fn ledger_keep_replies(
        &mut self,
        consumer: ConsumerId,
        replies: &[(&[u8], Vec<u8>)],
    ) -> Result<u64, StoreError> {
        let (keys, texts): (Vec<&[u8]>, Vec<&[u8]>) = replies
            .iter()
            .filter(|(key, _)| self.claims.has(key))
            .map(|(key, reply)| (*key, reply.as_slice()))
            .unzip();
        // As in `ledger_settle`.
        let upsert = self
            .statement(
                "INSERT INTO @hapax_ledger AS l (consumer, key, fate, attempts, fingerprint, plugin, reply) \
                 SELECT $1, r.key, 1, 0, '', '', r.reply FROM unnest($2::bytea[], $3::bytea[]) AS r (key, reply) \
                 ON CONFLICT (consumer, key) DO UPDATE SET reply = excluded.reply",
            )
            .bind(consumer.0)
            .bind(keys)
            .bind(texts);
        self.touch(upsert).await
    }

    pub(super) async fn ledger_replies(
        &mut self,
        consumer: ConsumerId,
        keys: &[&[u8]],
    ) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        // As in `ledger_entries`.
        let select = self
            .statement(
                "SELECT l.key, l.reply FROM unnest($2::bytea[]) AS k (key) CROSS JOIN LATERAL \
                 (SELECT * FROM @hapax_ledger WHERE consumer = $1 AND key = k.key LIMIT 1) AS l \
                 WHERE l.reply IS NOT NULL",
            )
            .persistent(false)
            .bind(consumer.0)
            .bind(keys);
        let mut found = HashMap::<Vec<u8>, Vec<u8>>::new();
        for row in self.rows(select).await? {
            found.insert(column(&row, 0)?, column(&row, 1)?);
        }
        Ok(keys.iter().map(|key| found.get(*key).cloned()).collect())
    }

    pub(super) async fn ledger_note_retention(
        &mut self,
        consumer: ConsumerId,
        retention: Duration,
    ) -> Result<(), StoreError> {
        let update = self
            .statement(
                "UPDATE @hapax_consumer SET shortest_retention = least(shortest_retention, $2) \
                 WHERE id = $1 AND (shortest_retention IS NULL OR shortest_retention > $2)",
            )
            .bind(consumer.0)
            .bind(stored::micros(retention));
        self.touch(update).await.map(|_| ())
    }

    pub(super) async fn ledger_record_start(
        &mut self,
        rule: ClaimRule<'_>,
        claim: Claim<'_>,
        first: bool,
    ) -> Result<Start, StoreError> {
        self.outside()?;
        let hurried = self.remains.given_up.any_left();
        if hurried {
            self.wait_for_rows(SHORT_LOCK).await?;
        }
        let started = self.upsert_start(rule, claim, first).await;
        if hurried && !matches!(started, Err(StoreError::Unavailable(_))) {
            let usual = self.lock_timeout;
            self.wait_for_rows(usual).await?;
        }
        started
    }

    async fn upsert_start(
        &mut self,
        rule: ClaimRule<'_>,
        claim: Claim<'_>,
        first: bool,
    ) -> Result<Start, StoreError> {
        // The row can go between the two statements; it does not go again and again.
        for _ in 0..8 {
            let upsert = self
                .statement(
                    "INSERT INTO @hapax_ledger AS l \
                     (consumer, key, fate, attempts, fingerprint, plugin, expires_at) \
                     VALUES ($1, $2, 5, 1, $3, $4, \
                     greatest(now(), to_timestamp($5::bigint)) + $6::float8 * interval '1 second') \
                     ON CONFLICT (consumer, key) DO UPDATE SET attempts = l.attempts + 1, \
                     fingerprint = excluded.fingerprint, plugin = excluded.plugin, \
                     expires_at = excluded.expires_at WHERE l.fate = 5 AND NOT $7 RETURNING attempts",
                )
                .bind(rule.consumer.0)
                .bind(claim.key)
                .bind(claim.fingerprint)
                .bind(rule.plugin)
                .bind(timestamp_seconds(claim.timestamp_seconds))
                .bind(rule.retention.map(seconds))
                .bind(first);
            if let Some(row) = self.row(upsert).await? {
                return Ok(Start::Recorded(column(&row, 0)?));
            }
            let keys = [claim.key];
            let entry = self.ledger_entries(rule.consumer, &keys).await?;
            match entry.into_iter().flatten().next().map(|entry| entry.fate) {
                Some(Fate::Started) if first => return Ok(Start::Earlier),
                Some(Fate::Started) | None => {}
                Some(_) => return Ok(Start::Elsewhere),
            }
        }
        Err(StoreError::Conflict(
            "the row of the key comes and goes".to_owned(),
        ))
    }

    pub(super) async fn ledger_undo_start(
        &mut self,
        consumer: ConsumerId,
        key: &[u8],
    ) -> Result<(), StoreError> {
        let undo = self
            .statement(
                "WITH last AS (DELETE FROM @hapax_ledger \
                 WHERE consumer = $1 AND key = $2 AND fate = 5 AND attempts <= 1) \
                 UPDATE @hapax_ledger SET attempts = attempts - 1 \
                 WHERE consumer = $1 AND key = $2 AND fate = 5 AND attempts > 1",
            )
            .bind(consumer.0)
            .bind(key);
        self.touch(undo).await.map(|_| ())
    }

    pub(super) async fn ledger_count(
        &mut self,
        consumer: ConsumerId,
    ) -> Result<Vec<(Fate, u64)>, StoreError> {
        let select = self
            .statement("SELECT fate, count(*) FROM @hapax_ledger WHERE consumer = $1 GROUP BY fate ORDER BY fate")
            .bind(consumer.0);
        let mut counts = Vec::new();
        for row in self.rows(select).await? {
            let number: i16 = column(&row, 0)?;
            let fate = Fate::from_number(number).ok_or_else(|| broken("fate", number))?;
            counts.push((fate, column::<i64>(&row, 1)?.unsigned_abs()));
        }
        Ok(counts)
    }

    pub(super) async fn ledger_sweep(
        &mut self,
        consumer: ConsumerId,
        retention: Duration,
        after: &[u8],
        limit: u32,
    ) -> Result<(Option<Vec<u8>>, u64), StoreError> {
        self.begin().await?;
        let swept = self.sweep_page(consumer, retention, after, limit).await;
        self.finish_own(swept).await
    }

    async fn sweep_page(
        &mut self,
        consumer: ConsumerId,
        retention: Duration,
        after: &[u8],
        limit: u32,
    ) -> Result<(Option<Vec<u8>>, u64), StoreError> {
        // Until the table is analyzed for the first time, the planner would rather read and sort the
        // whole consumer than follow the index for one page.
        self.command("SET LOCAL enable_bitmapscan = off; SET LOCAL enable_sort = off".to_owned())
            .await?;
        // Rows that somebody has locked are skipped, so that the sweep never waits for a lane.
        let sweep = self
            .statement(
                "WITH shortest AS MATERIALIZED (SELECT coalesce(shortest_retention, $4) AS micros \
                 FROM @hapax_consumer WHERE id = $1), \
                 page AS MATERIALIZED (SELECT key FROM @hapax_ledger \
                 WHERE consumer = $1 AND key > $2 ORDER BY key LIMIT $3), \
                 expired AS MATERIALIZED (SELECT key FROM @hapax_ledger \
                 WHERE consumer = $1 AND key = ANY(ARRAY(SELECT key FROM page)) \
                 AND expires_at <= now() - ($4 - (SELECT micros FROM shortest)) * interval '1 microsecond' \
                 AND fate NOT IN (2, 3) FOR UPDATE SKIP LOCKED), \
                 gone AS (DELETE FROM @hapax_ledger \
                 WHERE consumer = $1 AND key = ANY(ARRAY(SELECT key FROM expired)) RETURNING expires_at), \
                 raised AS (UPDATE @hapax_consumer SET \
                 horizon = greatest(horizon, (SELECT max(expires_at) FROM gone) \
                 - (SELECT micros FROM shortest) * interval '1 microsecond') \
                 WHERE id = $1 AND EXISTS (SELECT FROM gone)) \
                 SELECT (SELECT count(*) FROM page), (SELECT key FROM page ORDER BY key DESC LIMIT 1), \
                 (SELECT count(*) FROM gone)",
            )
            .bind(consumer.0)
            .bind(after)
            .bind(i64::from(limit))
            .bind(stored::micros(retention));
        let row = self.row(sweep).await?;
        let row = row.ok_or_else(|| StoreError::Broken("the sweep has no answer".to_owned()))?;
        let last = if column::<i64>(&row, 0)? < i64::from(limit) {
            None
        } else {
            column(&row, 1)?
        };
        Ok((last, column::<i64>(&row, 2)?.unsigned_abs()))
    }

    /// The number that a statement answers.
    pub(super) async fn count(&mut self, query: PgQuery<'_>) -> Result<u64, StoreError> {
        match self.row(query).await? {
            Some(row) => Ok(column::<i64>(&row, 0)?.unsigned_abs()),
            None => Ok(0),
        }
    }
}
