//! The statements that operators need.

use async_trait::async_trait;
use sqlx::AssertSqlSafe;
use sqlx::sqlite::SqliteRow;

use super::connection::{Slot, column, now};
use super::ledger::fate;
use super::outbox::record;
use super::rows::{marks, pieces, values};
use super::session::SqliteSession;
use crate::store::stored::{broken, micros, text};
use crate::store::{
    ClaimRule, ConsumerId, ConsumerMarks, Fate, JOURNAL_ENTRIES, JournalEntry, LedgerPage,
    LedgerRecord, Mark, OutboxFilter, OutboxListing, Pause, StoreError, Upkeep, WaitingFilter,
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
        "(?1 IS NULL OR consumer = (SELECT id FROM hapax_consumer WHERE name = ?1)) \
         AND (?2 IS NULL OR target = ?2) AND (?3 IS NULL OR sequence = ?3) \
         AND (NOT ?4 OR (attempts > 0 AND due_at IS NOT NULL))"
    };
}

#[async_trait]
impl Upkeep for SqliteSession {
    async fn clock(&mut self) -> Result<i64, StoreError> {
        Ok(now())
    }

    async fn hold_mark(&mut self, mark: Mark) -> Result<(), StoreError> {
        self.marks.hold(mark)
    }

    async fn drop_mark(&mut self, mark: Mark) -> Result<(), StoreError> {
        self.marks.drop_one(mark);
        Ok(())
    }

    async fn mark_holders(&mut self, mark: Mark) -> Result<u64, StoreError> {
        Ok(self.marks.holders(mark))
    }

    async fn seize_mark(&mut self, mark: Mark) -> Result<bool, StoreError> {
        Ok(self.marks.seize(mark))
    }

    async fn consumers(&mut self) -> Result<Vec<ConsumerMarks>, StoreError> {
        let select = sqlx::query(
            "SELECT id, name, key_rule, fingerprint_rule, generation, paused_at, paused_by, paused_why \
             FROM hapax_consumer ORDER BY name",
        );
        let rows = self.alone().await?.rows(select).await?;
        rows.iter().map(consumer_marks).collect()
    }

    async fn set_pause(
        &mut self,
        consumer: ConsumerId,
        pause: Option<(&str, &str)>,
    ) -> Result<(), StoreError> {
        let update = sqlx::query(
            "UPDATE hapax_consumer SET paused_by = ?2, paused_why = ?3, paused_at = ?4 WHERE id = ?1",
        )
        .bind(consumer.0)
        .bind(pause.map(|(by, _)| text(by).into_owned()))
        .bind(pause.map(|(_, why)| text(why).into_owned()))
        .bind(pause.map(|_| now()));
        self.alone().await?.touch(update).await.map(|_| ())
    }

    async fn set_rules(
        &mut self,
        consumer: ConsumerId,
        key_rule: &str,
        fingerprint_rule: &str,
    ) -> Result<(), StoreError> {
        let update = sqlx::query(
            "UPDATE hapax_consumer SET key_rule = ?2, fingerprint_rule = ?3 WHERE id = ?1",
        )
        .bind(consumer.0)
        .bind(key_rule)
        .bind(fingerprint_rule);
        self.alone().await?.touch(update).await.map(|_| ())
    }

    async fn raise_generation(&mut self, consumer: ConsumerId) -> Result<i32, StoreError> {
        let update = sqlx::query(
            "UPDATE hapax_consumer SET generation = generation + 1 WHERE id = ? RETURNING generation",
        )
        .bind(consumer.0);
        let row = self.alone().await?.row(update).await?;
        let row = row.ok_or_else(|| broken("consumer", consumer.0))?;
        column(&row, 0)
    }

    async fn ledger_find(
        &mut self,
        consumer: ConsumerId,
        keys: &[&[u8]],
    ) -> Result<Vec<Option<LedgerRecord>>, StoreError> {
        let mut slot = self.alone().await?;
        let mut found = Vec::with_capacity(keys.len());
        for key in keys {
            let select = sqlx::query(concat!(
                "SELECT ",
                columns!(),
                " FROM hapax_ledger WHERE consumer = ? AND key = ?"
            ))
            .bind(consumer.0)
            .bind(*key);
            let row = slot.row(select).await?;
            found.push(row.as_ref().map(ledger_record).transpose()?);
        }
        Ok(found)
    }

    async fn ledger_page(
        &mut self,
        consumer: ConsumerId,
        fate: Option<Fate>,
        after: &[u8],
        scan: u32,
        limit: u32,
    ) -> Result<LedgerPage, StoreError> {
        let mut slot = self.alone().await?;
        let last = sqlx::query(
            "SELECT key FROM hapax_ledger WHERE consumer = ? AND key > ? ORDER BY key LIMIT 1 OFFSET ?",
        )
        .bind(consumer.0)
        .bind(after)
        .bind(scan.saturating_sub(1));
        let last: Option<Vec<u8>> = match slot.row(last).await? {
            Some(row) => Some(column(&row, 0)?),
            None => None,
        };
        let select = sqlx::query(concat!(
            "SELECT ",
            columns!(),
            " FROM hapax_ledger WHERE consumer = ?1 AND key > ?2 AND (?3 IS NULL OR key <= ?3) \
             AND (?4 IS NULL OR fate = ?4) ORDER BY key LIMIT ?5"
        ))
        .bind(consumer.0)
        .bind(after)
        .bind(last.as_deref())
        .bind(fate.map(|fate| fate as i16))
        .bind(limit);
        let rows = slot.rows(select).await?;
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
        let mut slot = self.alone().await?;
        slot.begin().await?;
        let result = forget(&mut slot, consumer, keys).await;
        slot.end(result).await
    }

    async fn ledger_import(
        &mut self,
        rule: ClaimRule<'_>,
        keys: &[(&[u8], &[u8])],
    ) -> Result<u64, StoreError> {
        let mut slot = self.alone().await?;
        slot.begin().await?;
        let result = import(&mut slot, rule, keys).await;
        slot.end(result).await
    }

    async fn forget_fingerprints(
        &mut self,
        consumer: ConsumerId,
        after: &[u8],
        limit: u32,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let mut slot = self.alone().await?;
        slot.begin().await?;
        let result = forget_fingerprints(&mut slot, consumer, after, limit).await;
        slot.end(result).await
    }

    async fn waiting_tally(
        &mut self,
        filter: &WaitingFilter,
    ) -> Result<Vec<(String, String, u64)>, StoreError> {
        self.alone().await?.waiting_tally(filter).await
    }

    async fn waiting_edit(
        &mut self,
        id: &[u8],
        old_body: &[u8],
        new_body: &[u8],
    ) -> Result<bool, StoreError> {
        self.alone()
            .await?
            .waiting_edit(id, old_body, new_body)
            .await
    }

    async fn outbox_list(
        &mut self,
        filter: &OutboxFilter,
    ) -> Result<Vec<OutboxListing>, StoreError> {
        let select = sqlx::query(concat!(
            "SELECT sequence, attempts, consumer, lane, target, may_drop, ordering_key, exchange, \
             routing_key, properties, body, coalesce((SELECT name FROM hapax_consumer c \
             WHERE c.id = hapax_outbox.consumer), ''), error, created_at, due_at FROM hapax_outbox WHERE ",
            chosen!(),
            " AND sequence > ?5 ORDER BY sequence LIMIT ?6"
        ))
        .bind(filter.consumer.as_deref())
        .bind(filter.target.as_deref())
        .bind(filter.sequence)
        .bind(filter.failed)
        .bind(filter.after)
        .bind(filter.limit);
        let rows = self.alone().await?.rows(select).await?;
        rows.iter()
            .map(|row| {
                Ok(OutboxListing {
                    record: record(row)?,
                    consumer: column(row, 11)?,
                    error: column(row, 12)?,
                    created_at: column(row, 13)?,
                    due_at: column(row, 14)?,
                })
            })
            .collect()
    }

    async fn outbox_retry(&mut self, filter: &OutboxFilter) -> Result<u64, StoreError> {
        let update = sqlx::query(concat!(
            "UPDATE hapax_outbox SET due_at = ?5 WHERE due_at > ?5 AND ",
            chosen!()
        ))
        .bind(filter.consumer.as_deref())
        .bind(filter.target.as_deref())
        .bind(filter.sequence)
        .bind(filter.failed)
        .bind(now());
        self.alone().await?.touch(update).await
    }

    async fn journal_add(&mut self, entry: &JournalEntry) -> Result<(), StoreError> {
        let mut slot = self.alone().await?;
        let insert = sqlx::query(
            "INSERT INTO hapax_journal (at, actor, action, consumer, key, why) \
             VALUES (?, ?, ?, ?, ?, ?) RETURNING id",
        )
        .bind(now())
        .bind(text(&entry.actor).into_owned())
        .bind(text(&entry.action).into_owned())
        .bind(entry.consumer.map(|consumer| consumer.0))
        .bind(entry.key.as_deref())
        .bind(text(&entry.why).into_owned());
        let Some(row) = slot.row(insert).await? else {
            return Err(StoreError::Broken("the journal took no entry".to_owned()));
        };
        let oldest = column::<i64>(&row, 0)? - JOURNAL_ENTRIES;
        let delete = sqlx::query("DELETE FROM hapax_journal WHERE id <= ?").bind(oldest);
        slot.touch(delete).await.map(|_| ())
    }

    async fn journal(
        &mut self,
        consumer: ConsumerId,
        key: Option<&[u8]>,
        limit: u32,
    ) -> Result<Vec<JournalEntry>, StoreError> {
        let select = sqlx::query(
            "SELECT at, actor, action, consumer, key, why FROM hapax_journal \
             WHERE consumer = ?1 AND (?2 IS NULL OR key = ?2) ORDER BY id DESC LIMIT ?3",
        )
        .bind(consumer.0)
        .bind(key)
        .bind(limit);
        let rows = self.alone().await?.rows(select).await?;
        rows.iter()
            .map(|row| {
                Ok(JournalEntry {
                    at: column(row, 0)?,
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

async fn forget(
    slot: &mut Slot,
    consumer: ConsumerId,
    keys: &[&[u8]],
) -> Result<Vec<Vec<u8>>, StoreError> {
    let mut gone = Vec::new();
    for piece in pieces(keys.len()) {
        let keys = &keys[piece];
        let text = format!(
            "DELETE FROM hapax_ledger WHERE consumer = ? AND key IN ({}) AND fate NOT IN (2, 3) RETURNING key",
            marks(keys.len())
        );
        let mut delete = sqlx::query(AssertSqlSafe(text)).bind(consumer.0);
        for key in keys {
            delete = delete.bind(*key);
        }
        for row in slot.rows(delete).await? {
            gone.push(column(&row, 0)?);
        }
    }
    Ok(gone)
}

async fn import(
    slot: &mut Slot,
    rule: ClaimRule<'_>,
    keys: &[(&[u8], &[u8])],
) -> Result<u64, StoreError> {
    let expires_at = rule.retention.map(|retention| now() + micros(retention));
    let mut new = 0;
    for piece in pieces(keys.len()) {
        let keys = &keys[piece];
        let text = format!(
            "INSERT INTO hapax_ledger (consumer, key, fate, attempts, fingerprint, plugin, expires_at) \
             VALUES {} ON CONFLICT DO NOTHING",
            values(keys.len(), 7)
        );
        let mut insert = sqlx::query(AssertSqlSafe(text));
        for (key, fingerprint) in keys {
            insert = insert
                .bind(rule.consumer.0)
                .bind(*key)
                .bind(Fate::Committed as i16)
                .bind(0)
                .bind(*fingerprint)
                .bind(rule.plugin)
                .bind(expires_at);
        }
        new += slot.touch(insert).await?;
    }
    Ok(new)
}

async fn forget_fingerprints(
    slot: &mut Slot,
    consumer: ConsumerId,
    after: &[u8],
    limit: u32,
) -> Result<Option<Vec<u8>>, StoreError> {
    let last = sqlx::query(
        "SELECT key FROM hapax_ledger WHERE consumer = ? AND key > ? ORDER BY key LIMIT 1 OFFSET ?",
    )
    .bind(consumer.0)
    .bind(after)
    .bind(limit.saturating_sub(1));
    let last: Option<Vec<u8>> = match slot.row(last).await? {
        Some(row) => Some(column(&row, 0)?),
        None => None,
    };
    let keys = sqlx::query(
        "UPDATE hapax_ledger SET fingerprint = x'' \
         WHERE consumer = ?1 AND key > ?2 AND (?3 IS NULL OR key <= ?3) AND fingerprint <> x''",
    )
    .bind(consumer.0)
    .bind(after)
    .bind(last.as_deref());
    slot.touch(keys).await?;
    let waiting = sqlx::query(
        "UPDATE hapax_waiting SET fingerprint = x'' WHERE consumer = ? AND fingerprint <> x''",
    )
    .bind(consumer.0);
    slot.touch(waiting).await?;
    Ok(last)
}

fn consumer_marks(row: &SqliteRow) -> Result<ConsumerMarks, StoreError> {
    let since: Option<i64> = column(row, 5)?;
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
            since,
        }),
    })
}

fn ledger_record(row: &SqliteRow) -> Result<LedgerRecord, StoreError> {
    Ok(LedgerRecord {
        key: column(row, 0)?,
        fate: fate(column(row, 1)?)?,
        attempts: column(row, 2)?,
        fingerprint: column(row, 3)?,
        plugin: column(row, 4)?,
        expires_at: column(row, 5)?,
        reply: column(row, 6)?,
    })
}
