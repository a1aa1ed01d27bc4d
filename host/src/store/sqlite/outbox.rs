//! The statements of `hapax_outbox`. One host uses the file, so that rows of any other host are those of a
//! host that is gone.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use sqlx::AssertSqlSafe;
use sqlx::sqlite::SqliteRow;

use super::connection::{Slot, column, now};
use super::rows::{marks, pieces, values};
use crate::store::stored::{message, micros, text, utf8};
use crate::store::{
    ConsumerId, HostId, OutboxDepth, OutboxRecord, OutboxRow, StoreError, TAKEN_LANE,
};

/// In the order in which `record` reads them.
macro_rules! columns {
    () => {
        "sequence, attempts, consumer, lane, target, may_drop, ordering_key, exchange, routing_key, \
         properties, body"
    };
}

impl Slot {
    pub async fn outbox_put(
        &mut self,
        host: HostId,
        rows: &[Arc<OutboxRow>],
    ) -> Result<Vec<i64>, StoreError> {
        let mut sequences = Vec::with_capacity(rows.len());
        for piece in pieces(rows.len()) {
            let rows = &rows[piece];
            let text_ = format!(
                "INSERT INTO hapax_outbox (consumer, host, lane, due_at, ordering_key, target, may_drop, \
                 exchange, routing_key, properties, body, created_at) VALUES {} RETURNING sequence",
                values(rows.len(), 12)
            );
            let mut insert = sqlx::query(AssertSqlSafe(text_));
            let now = now();
            for row in rows {
                insert = insert
                    .bind(row.consumer.0)
                    .bind(host.0)
                    .bind(row.lane)
                    .bind(row.delay.map(|delay| now + micros(delay)))
                    .bind(row.ordering_key.as_deref().map(str::as_bytes))
                    .bind(text(&row.target).into_owned())
                    .bind(row.may_drop)
                    .bind(row.message.exchange.as_bytes())
                    .bind(row.message.routing_key.as_bytes())
                    .bind(row.message.encoded_properties())
                    .bind(row.message.body.as_ref())
                    .bind(now);
            }
            for row in self.rows(insert).await? {
                sequences.push(column(&row, 0)?);
            }
        }
        // The order of RETURNING is not promised; the order of the numbers is that of the inserts.
        sequences.sort_unstable();
        Ok(sequences)
    }

    pub async fn outbox_take(
        &mut self,
        host: HostId,
        limit: u32,
    ) -> Result<Vec<OutboxRecord>, StoreError> {
        let candidates = sqlx::query(
            "SELECT o.sequence FROM hapax_outbox o \
             WHERE (o.due_at <= ?1 OR (o.due_at IS NULL AND o.host <> ?2)) \
             AND (o.ordering_key IS NULL OR NOT EXISTS (SELECT 1 FROM hapax_outbox older \
             WHERE older.ordering_key = o.ordering_key AND older.sequence < o.sequence \
             AND (older.due_at > ?1 OR (older.due_at IS NULL AND older.host = ?2)))) \
             ORDER BY o.sequence LIMIT ?3",
        )
        .bind(now())
        .bind(host.0)
        .bind(limit);
        let rows = self.rows(candidates).await?;
        let sequences = rows
            .iter()
            .map(|row| column(row, 0))
            .collect::<Result<Vec<i64>, _>>()?;
        let mut taken = Vec::with_capacity(sequences.len());
        for piece in pieces(sequences.len()) {
            let sequences = &sequences[piece];
            let text = format!(
                concat!(
                    "UPDATE hapax_outbox SET host = ?, lane = ?, due_at = NULL WHERE sequence IN ({}) RETURNING ",
                    columns!()
                ),
                marks(sequences.len())
            );
            let mut update = sqlx::query(AssertSqlSafe(text))
                .bind(host.0)
                .bind(TAKEN_LANE);
            for sequence in sequences {
                update = update.bind(sequence);
            }
            for row in self.rows(update).await? {
                taken.push(record(&row)?);
            }
        }
        taken.sort_unstable_by_key(|record| record.sequence);
        Ok(taken)
    }

    pub async fn outbox_recover(
        &mut self,
        host: HostId,
        lane: i16,
        known: &[i64],
    ) -> Result<Vec<OutboxRecord>, StoreError> {
        let select = sqlx::query(concat!(
            "SELECT ",
            columns!(),
            " FROM hapax_outbox WHERE host = ? AND lane = ? AND due_at IS NULL ORDER BY sequence"
        ))
        .bind(host.0)
        .bind(lane);
        let known: HashSet<i64> = known.iter().copied().collect();
        let mut records = Vec::new();
        for row in self.rows(select).await? {
            if !known.contains(&column(&row, 0)?) {
                records.push(record(&row)?);
            }
        }
        Ok(records)
    }

    pub async fn outbox_blocked(&mut self, sequences: &[i64]) -> Result<Vec<i64>, StoreError> {
        let mut blocked = Vec::new();
        for piece in pieces(sequences.len()) {
            let sequences = &sequences[piece];
            let text = format!(
                "SELECT o.sequence FROM hapax_outbox o WHERE o.sequence IN ({}) \
                 AND EXISTS (SELECT 1 FROM hapax_outbox older WHERE older.ordering_key = o.ordering_key \
                 AND older.sequence < o.sequence)",
                marks(sequences.len())
            );
            let mut select = sqlx::query(AssertSqlSafe(text));
            for sequence in sequences {
                select = select.bind(sequence);
            }
            for row in self.rows(select).await? {
                blocked.push(column(&row, 0)?);
            }
        }
        blocked.sort_unstable();
        Ok(blocked)
    }

    pub async fn outbox_delete(&mut self, sequences: &[i64]) -> Result<(), StoreError> {
        for piece in pieces(sequences.len()) {
            let sequences = &sequences[piece];
            let text = format!(
                "DELETE FROM hapax_outbox WHERE sequence IN ({})",
                marks(sequences.len())
            );
            let mut delete = sqlx::query(AssertSqlSafe(text));
            for sequence in sequences {
                delete = delete.bind(sequence);
            }
            self.touch(delete).await?;
        }
        Ok(())
    }

    pub async fn outbox_defer(
        &mut self,
        sequence: i64,
        delay: Duration,
        error: &str,
    ) -> Result<(), StoreError> {
        let update = sqlx::query(
            "UPDATE hapax_outbox SET attempts = attempts + 1, error = ?, due_at = ? WHERE sequence = ?",
        )
        .bind(text(error).into_owned())
        .bind(now() + micros(delay))
        .bind(sequence);
        self.touch(update).await.map(|_| ())
    }

    pub async fn outbox_give_back(
        &mut self,
        host: HostId,
        sequences: &[i64],
    ) -> Result<(), StoreError> {
        for piece in pieces(sequences.len()) {
            let sequences = &sequences[piece];
            let text = format!(
                "UPDATE hapax_outbox SET due_at = coalesce((SELECT oldest.due_at FROM hapax_outbox oldest \
                 WHERE oldest.ordering_key = hapax_outbox.ordering_key ORDER BY oldest.sequence LIMIT 1), ?) \
                 WHERE host = ? AND due_at IS NULL AND sequence IN ({})",
                marks(sequences.len())
            );
            let mut update = sqlx::query(AssertSqlSafe(text)).bind(now()).bind(host.0);
            for sequence in sequences {
                update = update.bind(sequence);
            }
            self.touch(update).await?;
        }
        Ok(())
    }

    pub async fn outbox_depth(&mut self) -> Result<OutboxDepth, StoreError> {
        // A row with attempts is late, not delayed.
        let select = sqlx::query(
            "SELECT count(*), min(CASE WHEN due_at IS NULL OR due_at <= ?1 OR attempts > 0 THEN created_at END) \
             FROM hapax_outbox",
        )
        .bind(now());
        let Some(row) = self.row(select).await? else {
            return Ok(OutboxDepth::default());
        };
        let oldest: Option<i64> = column(&row, 1)?;
        Ok(OutboxDepth {
            rows: column::<i64>(&row, 0)?.unsigned_abs(),
            oldest_seconds: oldest.map_or(0.0, |oldest| (now() - oldest).max(0) as f64 / 1e6),
        })
    }
}

pub(super) fn record(row: &SqliteRow) -> Result<OutboxRecord, StoreError> {
    Ok(OutboxRecord {
        sequence: column(row, 0)?,
        attempts: column(row, 1)?,
        row: Arc::new(OutboxRow {
            consumer: ConsumerId(column(row, 2)?),
            lane: column(row, 3)?,
            target: column(row, 4)?,
            may_drop: column(row, 5)?,
            ordering_key: column::<Option<Vec<u8>>>(row, 6)?.map(utf8).transpose()?,
            delay: None,
            message: message(
                column(row, 7)?,
                column(row, 8)?,
                column(row, 9)?,
                column(row, 10)?,
            )?,
        }),
    })
}
