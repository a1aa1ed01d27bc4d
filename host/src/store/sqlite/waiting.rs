//! The statements of `hapax_waiting`.

use std::time::Duration;

use sqlx::AssertSqlSafe;
use sqlx::sqlite::SqliteRow;

use super::connection::{Slot, SqliteQuery, column, now};
use super::rows::{marks, pieces, values};
use crate::store::stored::{broken, distinct, encoding, micros, text, waiting_message};
use crate::store::{
    ConsumerId, Start, Status, StoreError, WaitingFilter, WaitingRecord, WaitingRow,
};

/// In the order in which `waiting_row` reads them.
macro_rules! columns {
    () => {
        "w.id, w.key, w.fingerprint, w.partition, w.status, w.attempts, w.code, w.error, w.stderr, \
         w.backtrace, w.plugin, w.trace_id, w.queue, w.encoding, w.withheld, w.exchange, w.routing_key, \
         w.properties"
    };
}

/// Which rows an operator means. `bind_filter` binds what it asks for.
macro_rules! filtered {
    () => {
        " FROM hapax_waiting w JOIN hapax_consumer c ON c.id = w.consumer \
         WHERE (?1 IS NULL OR c.name = ?1) AND (?2 IS NULL OR w.status = ?2) \
         AND (?3 IS NULL OR w.code = ?3) AND (?4 IS NULL OR substr(w.id, 1, length(?4)) = ?4) \
         AND (?5 IS NULL OR w.key = ?5) AND (?6 IS NULL OR w.failed_at >= ?6) \
         AND (?7 IS NULL OR w.failed_at < ?7)"
    };
}

fn bind_filter<'q>(query: SqliteQuery<'q>, filter: &'q WaitingFilter) -> SqliteQuery<'q> {
    query
        .bind(filter.consumer.as_deref())
        .bind(filter.status.map(Status::as_str))
        .bind(filter.code.as_deref())
        .bind(filter.id_prefix.as_deref())
        .bind(filter.key.as_deref())
        .bind(filter.since)
        .bind(filter.until)
}

impl Slot {
    pub async fn waiting_put(
        &mut self,
        consumer: ConsumerId,
        rows: &[(WaitingRow, Duration)],
    ) -> Result<(), StoreError> {
        let rows = distinct(rows);
        for piece in pieces(rows.len()) {
            self.waiting_put_piece(consumer, &rows[piece]).await?;
        }
        Ok(())
    }

    async fn waiting_put_piece(
        &mut self,
        consumer: ConsumerId,
        rows: &[&(WaitingRow, Duration)],
    ) -> Result<(), StoreError> {
        let text_ = format!(
            "INSERT INTO hapax_waiting (consumer, id, key, fingerprint, partition, status, attempts, code, \
             error, stderr, backtrace, plugin, trace_id, queue, exchange, routing_key, properties, body, \
             encoding, withheld, first_failed_at, failed_at, due_at) VALUES {} \
             ON CONFLICT (consumer, id) DO UPDATE SET key = excluded.key, fingerprint = excluded.fingerprint, \
             partition = excluded.partition, status = excluded.status, attempts = excluded.attempts, \
             starts = 0, code = excluded.code, error = excluded.error, stderr = excluded.stderr, \
             backtrace = excluded.backtrace, plugin = excluded.plugin, trace_id = excluded.trace_id, \
             queue = excluded.queue, exchange = excluded.exchange, routing_key = excluded.routing_key, \
             properties = excluded.properties, body = excluded.body, encoding = excluded.encoding, \
             withheld = excluded.withheld, failed_at = excluded.failed_at, \
             due_at = excluded.due_at WHERE excluded.key IS NOT NULL",
            values(rows.len(), 23)
        );
        let mut insert = sqlx::query(AssertSqlSafe(text_));
        let now = now();
        for (row, due) in rows.iter().copied() {
            insert = insert
                .bind(consumer.0)
                .bind(row.id.as_slice())
                .bind(row.key.as_deref())
                .bind(row.fingerprint.as_slice())
                .bind(row.partition)
                .bind(row.status.as_str())
                .bind(row.attempts)
                .bind(text(&row.code).into_owned())
                .bind(text(&row.error).into_owned())
                .bind(text(&row.stderr).into_owned())
                .bind(text(&row.backtrace).into_owned())
                .bind(row.plugin.as_slice())
                .bind(text(&row.trace_id).into_owned())
                .bind(text(&row.queue).into_owned())
                .bind(row.message.exchange.as_bytes())
                .bind(row.message.routing_key.as_bytes())
                .bind(row.message.encoded_properties())
                .bind(row.message.body.as_ref())
                .bind(encoding(row).0)
                .bind(encoding(row).1)
                .bind(now)
                .bind(now)
                .bind((row.status == Status::Retry).then(|| now + micros(*due)));
        }
        self.touch(insert).await.map(|_| ())
    }

    pub async fn waiting_due(
        &mut self,
        consumer: ConsumerId,
        in_line: bool,
        limit: u32,
    ) -> Result<Vec<(Vec<u8>, i64)>, StoreError> {
        let select = sqlx::query(
            "SELECT w.id, w.partition FROM hapax_waiting w \
             WHERE w.consumer = ?1 AND w.status = 'retry' AND w.due_at <= ?2 \
             AND (NOT ?3 OR w.key IS NULL OR NOT EXISTS (SELECT 1 FROM hapax_waiting e \
             WHERE e.consumer = ?1 AND e.partition = w.partition AND e.key IS NOT NULL \
             AND e.arrival < w.arrival)) ORDER BY w.due_at LIMIT ?4",
        )
        .bind(consumer.0)
        .bind(now())
        .bind(in_line)
        .bind(limit);
        self.rows(select)
            .await?
            .iter()
            .map(|row| Ok((column(row, 0)?, column(row, 1)?)))
            .collect()
    }

    /// One writer: nobody else sees a line while a transaction is open.
    pub async fn waiting_lines(
        &mut self,
        consumer: ConsumerId,
        partitions: &[i64],
    ) -> Result<Vec<(i64, u64)>, StoreError> {
        let mut lines = Vec::new();
        for piece in pieces(partitions.len()) {
            let partitions = &partitions[piece];
            let text = format!(
                "SELECT partition, count(*) FILTER (WHERE status = 'held') FROM hapax_waiting \
                 WHERE consumer = ? AND partition IN ({}) AND key IS NOT NULL GROUP BY partition",
                marks(partitions.len())
            );
            let mut select = sqlx::query(AssertSqlSafe(text)).bind(consumer.0);
            for partition in partitions {
                select = select.bind(*partition);
            }
            for row in self.rows(select).await? {
                lines.push((column(&row, 0)?, column::<i64>(&row, 1)?.unsigned_abs()));
            }
        }
        Ok(lines)
    }

    pub async fn waiting_release(
        &mut self,
        consumer: ConsumerId,
        partitions: Option<&[i64]>,
    ) -> Result<u64, StoreError> {
        let Some(partitions) = partitions else {
            let held = sqlx::query(
                "SELECT DISTINCT partition FROM hapax_waiting WHERE consumer = ? AND status = 'held'",
            )
            .bind(consumer.0);
            let all = self
                .rows(held)
                .await?
                .iter()
                .map(|row| column(row, 0))
                .collect::<Result<Vec<i64>, _>>()?;
            return self.release_lines(consumer, &all).await;
        };
        self.release_lines(consumer, partitions).await
    }

    async fn release_lines(
        &mut self,
        consumer: ConsumerId,
        partitions: &[i64],
    ) -> Result<u64, StoreError> {
        let mut released = 0;
        for partition in partitions {
            let update = sqlx::query(
                "UPDATE hapax_waiting SET status = 'retry', due_at = ?1, starts = 0 \
                 WHERE status = 'held' AND arrival = (SELECT min(arrival) FROM hapax_waiting \
                 WHERE consumer = ?2 AND partition = ?3 AND key IS NOT NULL)",
            )
            .bind(now())
            .bind(consumer.0)
            .bind(partition);
            released += self.touch(update).await?;
        }
        Ok(released)
    }

    pub async fn waiting_held(&mut self, consumer: ConsumerId) -> Result<u64, StoreError> {
        let select = sqlx::query(
            "SELECT coalesce(max(held), 0) FROM (SELECT count(*) AS held FROM hapax_waiting \
             WHERE consumer = ? AND status = 'held' GROUP BY partition)",
        )
        .bind(consumer.0);
        match self.row(select).await? {
            Some(row) => Ok(column::<i64>(&row, 0)?.unsigned_abs()),
            None => Ok(0),
        }
    }

    pub async fn waiting_next(
        &mut self,
        consumer: ConsumerId,
    ) -> Result<Option<Duration>, StoreError> {
        let select = sqlx::query(
            "SELECT min(due_at) FROM hapax_waiting WHERE consumer = ? AND status = 'retry'",
        )
        .bind(consumer.0);
        let Some(row) = self.row(select).await? else {
            return Ok(None);
        };
        let due_at: Option<i64> = column(&row, 0)?;
        Ok(due_at.map(|due_at| Duration::from_micros(u64::try_from(due_at - now()).unwrap_or(0))))
    }

    pub async fn waiting_lock(
        &mut self,
        consumer: ConsumerId,
        id: &[u8],
    ) -> Result<Option<WaitingRow>, StoreError> {
        let select = sqlx::query(concat!(
            "SELECT ",
            columns!(),
            ", w.body FROM hapax_waiting w WHERE w.consumer = ? AND w.id = ? AND w.status = 'retry' AND w.due_at <= ?"
        ))
        .bind(consumer.0)
        .bind(id)
        .bind(now());
        self.row(select)
            .await?
            .as_ref()
            .map(waiting_row)
            .transpose()
    }

    pub async fn waiting_delete(
        &mut self,
        consumer: ConsumerId,
        ids: &[&[u8]],
    ) -> Result<u64, StoreError> {
        let mut deleted = 0;
        for piece in pieces(ids.len()) {
            let ids = &ids[piece];
            let text = format!(
                "DELETE FROM hapax_waiting WHERE consumer = ? AND id IN ({})",
                marks(ids.len())
            );
            let mut delete = sqlx::query(AssertSqlSafe(text)).bind(consumer.0);
            for id in ids {
                delete = delete.bind(*id);
            }
            deleted += self.touch(delete).await?;
        }
        Ok(deleted)
    }

    pub async fn waiting_start(
        &mut self,
        consumer: ConsumerId,
        id: &[u8],
        first: bool,
    ) -> Result<Start, StoreError> {
        let due = sqlx::query(
            "SELECT starts FROM hapax_waiting \
             WHERE consumer = ? AND id = ? AND status = 'retry' AND due_at <= ?",
        )
        .bind(consumer.0)
        .bind(id)
        .bind(now());
        let Some(row) = self.row(due).await? else {
            return Ok(Start::Elsewhere);
        };
        let starts: i32 = column(&row, 0)?;
        if first && starts > 0 {
            return Ok(Start::Earlier);
        }
        let update = sqlx::query(
            "UPDATE hapax_waiting SET starts = starts + 1 WHERE consumer = ? AND id = ?",
        )
        .bind(consumer.0)
        .bind(id);
        self.touch(update).await?;
        Ok(Start::Recorded(starts + 1))
    }

    pub async fn waiting_unstart(
        &mut self,
        consumer: ConsumerId,
        id: &[u8],
    ) -> Result<(), StoreError> {
        let update =
            sqlx::query("UPDATE hapax_waiting SET starts = starts - 1 WHERE consumer = ? AND id = ? AND starts > 0")
                .bind(consumer.0)
                .bind(id);
        self.touch(update).await.map(|_| ())
    }

    pub async fn waiting_list(
        &mut self,
        filter: &WaitingFilter,
    ) -> Result<Vec<WaitingRecord>, StoreError> {
        let select = sqlx::query(concat!(
            "SELECT ",
            columns!(),
            ", CASE WHEN ?8 THEN x'' ELSE w.body END, c.name, w.first_failed_at, w.failed_at, w.due_at",
            filtered!(),
            " AND (?9 IS NULL OR w.failed_at < ?9 OR (w.failed_at = ?9 AND w.id > ?10)) \
             ORDER BY w.failed_at DESC, w.id LIMIT ?11"
        ));
        let (after, after_id) = filter.after.clone().unzip();
        let select = bind_filter(select, filter)
            .bind(filter.without_bodies)
            .bind(after)
            .bind(after_id)
            .bind(filter.limit);
        let rows = self.rows(select).await?;
        rows.iter()
            .map(|row| {
                Ok(WaitingRecord {
                    consumer: column(row, 19)?,
                    row: waiting_row(row)?,
                    first_failed_at: column(row, 20)?,
                    failed_at: column(row, 21)?,
                    due_at: column(row, 22)?,
                })
            })
            .collect()
    }

    pub async fn waiting_replay(&mut self, ids: &[&[u8]]) -> Result<u64, StoreError> {
        let mut replayed = 0;
        for piece in pieces(ids.len()) {
            let ids = &ids[piece];
            let text = format!(
                "UPDATE hapax_waiting SET status = 'retry', attempts = 0, starts = 0, due_at = ? \
                 WHERE consumer IN (SELECT id FROM hapax_consumer) AND id IN ({}) AND status = 'parked' \
                 AND NOT EXISTS (SELECT 1 FROM hapax_ledger l WHERE l.consumer = hapax_waiting.consumer \
                 AND l.key = hapax_waiting.key AND l.fate IN (1, 4)) RETURNING consumer, key",
                marks(ids.len())
            );
            let mut update = sqlx::query(AssertSqlSafe(text)).bind(now());
            for id in ids {
                update = update.bind(*id);
            }
            for row in self.rows(update).await? {
                let fate = sqlx::query(
                    "UPDATE hapax_ledger SET fate = 2, attempts = 0 WHERE consumer = ? AND key = ? AND fate = 3",
                )
                .bind(column::<i32>(&row, 0)?)
                .bind(column::<Option<Vec<u8>>>(&row, 1)?);
                self.touch(fate).await?;
                replayed += 1;
            }
        }
        Ok(replayed)
    }

    pub async fn waiting_discard(&mut self, ids: &[&[u8]]) -> Result<u64, StoreError> {
        let mut discarded = 0;
        for piece in pieces(ids.len()) {
            let ids = &ids[piece];
            let text = format!(
                "DELETE FROM hapax_waiting WHERE consumer IN (SELECT id FROM hapax_consumer) AND id IN ({}) \
                 AND status = 'parked' RETURNING consumer, key, failed_at, partition",
                marks(ids.len())
            );
            let mut delete = sqlx::query(AssertSqlSafe(text));
            for id in ids {
                delete = delete.bind(*id);
            }
            for row in self.rows(delete).await? {
                // The key is remembered for as long again as it was when the message failed: it may
                // have been parked for longer than the retention, and a late redelivery must find it.
                let fate = sqlx::query(
                    "UPDATE hapax_ledger SET fate = 4, expires_at = max(expires_at, ? + (expires_at - ?)) \
                     WHERE consumer = ? AND key = ? AND fate = 3",
                )
                .bind(now())
                .bind(column::<i64>(&row, 2)?)
                .bind(column::<i32>(&row, 0)?)
                .bind(column::<Option<Vec<u8>>>(&row, 1)?);
                self.touch(fate).await?;
                let consumer = ConsumerId(column(&row, 0)?);
                self.release_lines(consumer, &[column(&row, 3)?]).await?;
                discarded += 1;
            }
        }
        Ok(discarded)
    }

    pub async fn waiting_tally(
        &mut self,
        filter: &WaitingFilter,
    ) -> Result<Vec<(String, String, u64)>, StoreError> {
        let select = sqlx::query(concat!(
            "SELECT c.name, w.code, count(*)",
            filtered!(),
            " GROUP BY c.name, w.code ORDER BY c.name, w.code"
        ));
        let rows = self.rows(bind_filter(select, filter)).await?;
        rows.iter()
            .map(|row| {
                Ok((
                    column(row, 0)?,
                    column(row, 1)?,
                    column::<i64>(row, 2)?.unsigned_abs(),
                ))
            })
            .collect()
    }

    pub async fn waiting_edit(
        &mut self,
        id: &[u8],
        old_body: &[u8],
        new_body: &[u8],
    ) -> Result<bool, StoreError> {
        let update = sqlx::query(
            "UPDATE hapax_waiting SET body = ?3, encoding = 'amqp/1', withheld = NULL \
             WHERE consumer IN (SELECT id FROM hapax_consumer) AND id = ?1 AND status = 'parked' AND body = ?2",
        )
        .bind(id)
        .bind(old_body)
        .bind(new_body);
        Ok(self.touch(update).await? == 1)
    }

    pub async fn waiting_counts(
        &mut self,
        consumer: ConsumerId,
    ) -> Result<Vec<(Status, String, u64)>, StoreError> {
        let select = sqlx::query(
            "SELECT status, code, count(*) FROM hapax_waiting WHERE consumer = ? \
             GROUP BY status, code ORDER BY status, code",
        )
        .bind(consumer.0);
        let rows = self.rows(select).await?;
        rows.iter()
            .map(|row| {
                Ok((
                    status(column(row, 0)?)?,
                    column(row, 1)?,
                    column::<i64>(row, 2)?.unsigned_abs(),
                ))
            })
            .collect()
    }
}

fn status(text: &str) -> Result<Status, StoreError> {
    Status::from_text(text).ok_or_else(|| broken("status", text))
}

fn waiting_row(row: &SqliteRow) -> Result<WaitingRow, StoreError> {
    let (message, withheld) = waiting_message(
        column(row, 13)?,
        column(row, 14)?,
        column(row, 15)?,
        column(row, 16)?,
        column(row, 17)?,
        column(row, 18)?,
    );
    Ok(WaitingRow {
        id: column(row, 0)?,
        key: column(row, 1)?,
        fingerprint: column(row, 2)?,
        partition: column(row, 3)?,
        status: status(column(row, 4)?)?,
        attempts: column(row, 5)?,
        code: column(row, 6)?,
        error: column(row, 7)?,
        stderr: column(row, 8)?,
        backtrace: column(row, 9)?,
        plugin: column(row, 10)?,
        trace_id: column(row, 11)?,
        queue: column(row, 12)?,
        message,
        withheld,
    })
}
