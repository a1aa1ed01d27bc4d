//! The statements that operators need, and the advisory locks that are the marks of hosts.

use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};
use sqlx::postgres::PgRow;

use super::ledger::seconds;
use super::outbox::record;
use super::session::{PostgresSession, column};
use crate::store::stored::{broken, text};
use crate::store::{
    ClaimRule, ConsumerId, ConsumerMarks, Fate, JOURNAL_ENTRIES, JournalEntry, LedgerPage,
    LedgerRecord, Mark, OutboxFilter, OutboxListing, Pause, StoreError, StuckSession, Upkeep,
    WaitingFilter,
};

/// In the order in which `ledger_record` reads them.
macro_rules! columns {
    () => {
        "key, fate, attempts, fingerprint, plugin, expires_at, reply"
    };
}

/// Which rows of the outbox an operator means.
macro_rules! chosen {
    () => {
        "($1::text IS NULL OR o.consumer = (SELECT id FROM @hapax_consumer WHERE name = $1)) \
         AND ($2::text IS NULL OR o.target = $2) AND ($3::bigint IS NULL OR o.sequence = $3) \
         AND (NOT $4 OR (o.attempts > 0 AND o.due_at IS NOT NULL))"
    };
}

fn micros(time: DateTime<Utc>) -> i64 {
    time.timestamp_micros()
}

impl PostgresSession {
    /// The number of a mark's advisory lock. Other numbers than those of hosts: these have one part.
    fn mark_lock(&self, mark: Mark) -> i64 {
        let name = match mark {
            Mark::Rules(consumer) => format!("rules {}", consumer.0),
            Mark::Generation(consumer, generation) => {
                format!("generation {} {generation}", consumer.0)
            }
        };
        let digest = Sha256::digest(format!("hapax mark {name} of {}", self.lock_class));
        i64::from_be_bytes(*digest.first_chunk().expect("SHA-256 has 32 bytes"))
    }
}

#[async_trait]
impl Upkeep for PostgresSession {
    async fn clock(&mut self) -> Result<i64, StoreError> {
        let select = self.statement("SELECT clock_timestamp()");
        let row = self.row(select).await?;
        let row = row.ok_or_else(|| StoreError::Broken("the clock has no answer".to_owned()))?;
        Ok(micros(column(&row, 0)?))
    }

    async fn stuck_sessions(&mut self, names: &[String]) -> Result<Vec<StuckSession>, StoreError> {
        self.find_stuck(names).await
    }

    async fn settle_parked_apart(
        &mut self,
        consumer: ConsumerId,
        retention: Option<Duration>,
    ) -> Result<bool, StoreError> {
        self.settle_apart(consumer, retention).await
    }

    async fn hold_mark(&mut self, mark: Mark) -> Result<(), StoreError> {
        let number = self.mark_lock(mark);
        let lock = self
            .statement("SELECT pg_advisory_lock_shared($1)")
            .bind(number);
        self.touch(lock).await.map(|_| ())
    }

    async fn drop_mark(&mut self, mark: Mark) -> Result<(), StoreError> {
        let number = self.mark_lock(mark);
        let unlock = self
            .statement("SELECT pg_advisory_unlock_shared($1)")
            .bind(number);
        self.touch(unlock).await.map(|_| ())
    }

    async fn mark_holders(&mut self, mark: Mark) -> Result<u64, StoreError> {
        let number = self.mark_lock(mark);
        let select = self
            .statement(
                "SELECT count(*) FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND granted \
                 AND objsubid = 1 AND mode = 'ShareLock' \
                 AND classid::bigint = ($1::bigint >> 32) & 4294967295 \
                 AND objid::bigint = $1::bigint & 4294967295 AND database = \
                 (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())",
            )
            .bind(number);
        self.count(select).await
    }

    async fn seize_mark(&mut self, mark: Mark) -> Result<bool, StoreError> {
        let number = self.mark_lock(mark);
        let lock = self
            .statement("SELECT pg_try_advisory_lock($1)")
            .bind(number);
        match self.row(lock).await? {
            Some(row) => column(&row, 0),
            None => Ok(false),
        }
    }

    async fn consumers(&mut self) -> Result<Vec<ConsumerMarks>, StoreError> {
        let select = self.statement(
            "SELECT id, name, key_rule, fingerprint_rule, generation, paused_at, paused_by, paused_why \
             FROM @hapax_consumer ORDER BY name",
        );
        let rows = self.rows(select).await?;
        rows.iter().map(marks).collect()
    }

    async fn set_pause(
        &mut self,
        consumer: ConsumerId,
        pause: Option<(&str, &str)>,
    ) -> Result<(), StoreError> {
        let update = self
            .statement(
                "UPDATE @hapax_consumer SET paused_by = $2, paused_why = $3, \
                 paused_at = CASE WHEN $2::text IS NOT NULL THEN clock_timestamp() END WHERE id = $1",
            )
            .bind(consumer.0)
            .bind(pause.map(|(by, _)| text(by)))
            .bind(pause.map(|(_, why)| text(why)));
        self.touch(update).await.map(|_| ())
    }

    async fn set_rules(
        &mut self,
        consumer: ConsumerId,
        key_rule: &str,
        fingerprint_rule: &str,
    ) -> Result<(), StoreError> {
        let update = self
            .statement(
                "UPDATE @hapax_consumer SET key_rule = $2, fingerprint_rule = $3 WHERE id = $1",
            )
            .bind(consumer.0)
            .bind(key_rule)
            .bind(fingerprint_rule);
        self.touch(update).await.map(|_| ())
    }

    async fn raise_generation(&mut self, consumer: ConsumerId) -> Result<i32, StoreError> {
        let update = self
            .statement(
                "UPDATE @hapax_consumer SET generation = generation + 1 WHERE id = $1 RETURNING generation",
            )
            .bind(consumer.0);
        let row = self.row(update).await?;
        let row = row.ok_or_else(|| broken("consumer", consumer.0))?;
        column(&row, 0)
    }

    async fn ledger_find(
        &mut self,
        consumer: ConsumerId,
        keys: &[&[u8]],
    ) -> Result<Vec<Option<LedgerRecord>>, StoreError> {
        let select = self
            .statement(concat!(
                "SELECT ",
                columns!(),
                " FROM @hapax_ledger WHERE consumer = $1 AND key = ANY($2::bytea[])"
            ))
            .bind(consumer.0)
            .bind(keys);
        let rows = self.rows(select).await?;
        let found = rows
            .iter()
            .map(ledger_record)
            .collect::<Result<Vec<_>, _>>()?;
        let of = |key: &&[u8]| found.iter().find(|record| record.key == **key).cloned();
        Ok(keys.iter().map(of).collect())
    }

    async fn ledger_page(
        &mut self,
        consumer: ConsumerId,
        fate: Option<Fate>,
        after: &[u8],
        scan: u32,
        limit: u32,
    ) -> Result<LedgerPage, StoreError> {
        let last = self
            .statement(
                "SELECT key FROM @hapax_ledger WHERE consumer = $1 AND key > $2 \
                 ORDER BY key OFFSET $3 LIMIT 1",
            )
            .bind(consumer.0)
            .bind(after)
            .bind(i64::from(scan.saturating_sub(1)));
        let last: Option<Vec<u8>> = match self.row(last).await? {
            Some(row) => Some(column(&row, 0)?),
            None => None,
        };
        let select = self
            .statement(concat!(
                "SELECT ",
                columns!(),
                " FROM @hapax_ledger WHERE consumer = $1 AND key > $2 AND ($3::bytea IS NULL OR key <= $3) \
                 AND ($4::smallint IS NULL OR fate = $4) ORDER BY key LIMIT $5"
            ))
            .bind(consumer.0)
            .bind(after)
            .bind(last.as_deref())
            .bind(fate.map(|fate| fate as i16))
            .bind(i64::from(limit));
        let rows = self.rows(select).await?;
        let records = rows
            .iter()
            .map(ledger_record)
            .collect::<Result<Vec<_>, _>>()?;
        Ok(LedgerPage::of(records, limit, last))
    }

    async fn ledger_forget(
        &mut self,
        consumer: ConsumerId,
        keys: &[&[u8]],
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        self.outside()?;
        let delete = self
            .statement(
                "DELETE FROM @hapax_ledger WHERE consumer = $1 AND key = ANY($2::bytea[]) \
                 AND fate NOT IN (2, 3) RETURNING key",
            )
            .bind(consumer.0)
            .bind(keys);
        let rows = self.rows(delete).await?;
        rows.iter().map(|row| column(row, 0)).collect()
    }

    async fn ledger_import(
        &mut self,
        rule: ClaimRule<'_>,
        keys: &[(&[u8], &[u8])],
    ) -> Result<u64, StoreError> {
        self.outside()?;
        let (keys, fingerprints): (Vec<&[u8]>, Vec<&[u8]>) = keys.iter().copied().unzip();
        let insert = self
            .statement(
                "INSERT INTO @hapax_ledger (consumer, key, fate, attempts, fingerprint, plugin, expires_at) \
                 SELECT $1, k.key, 1, 0, k.fingerprint, $2, now() + $3::float8 * interval '1 second' \
                 FROM unnest($4::bytea[], $5::bytea[]) AS k (key, fingerprint) ON CONFLICT DO NOTHING",
            )
            .bind(rule.consumer.0)
            .bind(rule.plugin)
            .bind(rule.retention.map(seconds))
            .bind(keys)
            .bind(fingerprints);
        self.touch(insert).await
    }

    async fn forget_fingerprints(
        &mut self,
        consumer: ConsumerId,
        after: &[u8],
        limit: u32,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        self.outside()?;
        let update = self
            .statement(
                "WITH page AS MATERIALIZED (SELECT key FROM @hapax_ledger \
                 WHERE consumer = $1 AND key > $2 ORDER BY key LIMIT $3), \
                 done AS (UPDATE @hapax_ledger SET fingerprint = '' WHERE consumer = $1 \
                 AND key = ANY(ARRAY(SELECT key FROM page)) AND fingerprint <> ''), \
                 waiting AS (UPDATE @hapax_waiting SET fingerprint = '' \
                 WHERE consumer = $1 AND fingerprint <> '') \
                 SELECT count(*), (SELECT key FROM page ORDER BY key DESC LIMIT 1) FROM page",
            )
            .bind(consumer.0)
            .bind(after)
            .bind(i64::from(limit));
        let row = self.row(update).await?;
        let row = row.ok_or_else(|| StoreError::Broken("a count has no answer".to_owned()))?;
        if column::<i64>(&row, 0)? < i64::from(limit) {
            return Ok(None);
        }
        column(&row, 1)
    }

    async fn waiting_tally(
        &mut self,
        filter: &WaitingFilter,
    ) -> Result<Vec<(String, String, u64)>, StoreError> {
        self.tally_waiting(filter).await
    }

    async fn waiting_edit(
        &mut self,
        id: &[u8],
        old_body: &[u8],
        new_body: &[u8],
    ) -> Result<bool, StoreError> {
        self.edit_waiting(id, old_body, new_body).await
    }

    async fn outbox_list(
        &mut self,
        filter: &OutboxFilter,
    ) -> Result<Vec<OutboxListing>, StoreError> {
        let select = self
            .statement(concat!(
                "SELECT o.sequence, o.attempts, o.consumer, o.lane, o.target, o.may_drop, o.ordering_key, \
                 o.exchange, o.routing_key, o.properties, o.body, \
                 coalesce(c.name, ''), o.error, o.created_at, o.due_at \
                 FROM @hapax_outbox o LEFT JOIN @hapax_consumer c ON c.id = o.consumer WHERE ",
                chosen!(),
                " AND o.sequence > $5 ORDER BY o.sequence LIMIT $6"
            ))
            .bind(filter.consumer.as_deref())
            .bind(filter.target.as_deref())
            .bind(filter.sequence)
            .bind(filter.failed)
            .bind(filter.after)
            .bind(i64::from(filter.limit));
        let rows = self.rows(select).await?;
        rows.iter()
            .map(|row| {
                Ok(OutboxListing {
                    record: record(row)?,
                    consumer: column(row, 11)?,
                    error: column(row, 12)?,
                    created_at: micros(column(row, 13)?),
                    due_at: column::<Option<DateTime<Utc>>>(row, 14)?.map(micros),
                })
            })
            .collect()
    }

    async fn outbox_retry(&mut self, filter: &OutboxFilter) -> Result<u64, StoreError> {
        self.outside()?;
        let update = self
            .statement(concat!(
                "UPDATE @hapax_outbox o SET due_at = now() WHERE o.due_at > now() AND ",
                chosen!()
            ))
            .bind(filter.consumer.as_deref())
            .bind(filter.target.as_deref())
            .bind(filter.sequence)
            .bind(filter.failed);
        self.touch(update).await
    }

    async fn journal_add(&mut self, entry: &JournalEntry) -> Result<(), StoreError> {
        self.outside()?;
        let insert = self
            .statement(
                "WITH added AS (INSERT INTO @hapax_journal (at, actor, action, consumer, key, why) \
                 VALUES (clock_timestamp(), $1, $2, $3, $4, $5) RETURNING id) \
                 DELETE FROM @hapax_journal WHERE id <= (SELECT id FROM added) - $6",
            )
            .bind(text(&entry.actor))
            .bind(text(&entry.action))
            .bind(entry.consumer.map(|consumer| consumer.0))
            .bind(entry.key.as_deref())
            .bind(text(&entry.why))
            .bind(JOURNAL_ENTRIES);
        self.touch(insert).await.map(|_| ())
    }

    async fn journal(
        &mut self,
        consumer: ConsumerId,
        key: Option<&[u8]>,
        limit: u32,
    ) -> Result<Vec<JournalEntry>, StoreError> {
        let select = self
            .statement(
                "SELECT at, actor, action, consumer, key, why FROM @hapax_journal \
                 WHERE consumer = $1 AND ($2::bytea IS NULL OR key = $2) ORDER BY id DESC LIMIT $3",
            )
            .bind(consumer.0)
            .bind(key)
            .bind(i64::from(limit));
        let rows = self.rows(select).await?;
        rows.iter()
            .map(|row| {
                Ok(JournalEntry {
                    at: micros(column(row, 0)?),
                    actor: column(row, 1)?,
                    action: column(row, 2)?,
                    consumer: column::<Option<i32>>(row, 3)?.map(ConsumerId),
                    key: column(row, 4)?,
                    why: column(row, 5)?,
                })
            })
            .collect()
    }
}

fn marks(row: &PgRow) -> Result<ConsumerMarks, StoreError> {
    let since: Option<DateTime<Utc>> = column(row, 5)?;
    let by: Option<String> = column(row, 6)?;
    let why: Option<String> = column(row, 7)?;
    Ok(ConsumerMarks {
        id: ConsumerId(column(row, 0)?),
        name: column(row, 1)?,
        key_rule: column(row, 2)?,
        fingerprint_rule: column(row, 3)?,
        generation: column(row, 4)?,
        pause: since.map(|since| Pause {
            by: by.unwrap_or_default(),
            why: why.unwrap_or_default(),
            since: micros(since),
        }),
    })
}

fn ledger_record(row: &PgRow) -> Result<LedgerRecord, StoreError> {
    let number: i16 = column(row, 1)?;
    Ok(LedgerRecord {
        key: column(row, 0)?,
        fate: Fate::from_number(number).ok_or_else(|| broken("fate", number))?,
        attempts: column(row, 2)?,
        fingerprint: column(row, 3)?,
        plugin: column(row, 4)?,
        expires_at: column::<Option<DateTime<Utc>>>(row, 5)?.map(micros),
        reply: column(row, 6)?,
    })
}
