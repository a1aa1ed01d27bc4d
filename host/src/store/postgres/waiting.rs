//! The statements of `hapax_waiting`.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;

use super::ledger::seconds;
use super::session::{PgQuery, PostgresSession, column};
use crate::store::stored::{
    STATEMENT_BYTES, broken, calendar_micros, distinct, encoding, split, text, waiting_message,
};
use crate::store::{
    ConsumerId, Session, Start, Status, StoreError, WaitingFilter, WaitingRecord, WaitingRow,
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
        " FROM @hapax_waiting w JOIN @hapax_consumer c ON c.id = w.consumer \
         WHERE ($1::text IS NULL OR c.name = $1) AND ($2::text IS NULL OR w.status = $2) \
         AND ($3::text IS NULL OR w.code = $3) \
         AND ($4::bytea IS NULL OR substring(w.id FOR length($4)) = $4) \
         AND ($5::bytea IS NULL OR w.key = $5) AND ($6::timestamptz IS NULL OR w.failed_at >= $6) \
         AND ($7::timestamptz IS NULL OR w.failed_at < $7)"
    };
}

fn bind_filter<'q>(query: PgQuery<'q>, filter: &'q WaitingFilter) -> PgQuery<'q> {
    query
        .bind(filter.consumer.as_deref())
        .bind(filter.status.map(Status::as_str))
        .bind(filter.code.as_deref())
        .bind(filter.id_prefix.as_deref())
        .bind(filter.key.as_deref())
        .bind(filter.since.map(time))
        .bind(filter.until.map(time))
}

/// A time of an operator, inside what the server can compare.
fn time(micros: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(calendar_micros(micros)).unwrap_or_default()
}

impl PostgresSession {
    pub(super) async fn put_waiting(
        &mut self,
        consumer: ConsumerId,
        rows: &[(WaitingRow, Duration)],
    ) -> Result<(), StoreError> {
        let rows = distinct(rows);
        for part in split(&rows, STATEMENT_BYTES, |(row, _)| row.message.size_bytes()) {
            self.put_waiting_part(consumer, part).await?;
        }
        Ok(())
    }

    async fn put_waiting_part(
        &mut self,
        consumer: ConsumerId,
        rows: &[&(WaitingRow, Duration)],
    ) -> Result<(), StoreError> {
        fn each<'a, T>(
            rows: &[&'a (WaitingRow, Duration)],
            get: impl Fn(&'a WaitingRow) -> T,
        ) -> Vec<T> {
            rows.iter().map(|row| get(&row.0)).collect()
        }
        let insert = self
            .statement(
                "INSERT INTO @hapax_waiting AS w (consumer, id, key, fingerprint, partition, status, attempts, \
                 code, error, stderr, backtrace, plugin, trace_id, queue, exchange, routing_key, properties, \
                 body, encoding, withheld, first_failed_at, failed_at, due_at) \
                 SELECT $1, r.id, r.key, r.fingerprint, r.partition, r.status, r.attempts, r.code, r.error, \
                 r.stderr, r.backtrace, r.plugin, r.trace_id, r.queue, r.exchange, r.routing_key, r.properties, \
                 r.body, r.encoding, r.withheld, clock_timestamp(), clock_timestamp(), \
                 CASE WHEN r.status = 'retry' THEN clock_timestamp() + r.due * interval '1 second' END \
                 FROM unnest($2::bytea[], $3::bytea[], $4::bytea[], $5::bigint[], $6::text[], $7::int[], \
                 $8::text[], $9::text[], $10::text[], $11::text[], $12::bytea[], $13::text[], $14::text[], \
                 $15::bytea[], $16::bytea[], $17::bytea[], $18::bytea[], $19::text[], $20::bytea[], $21::float8[]) \
                 WITH ORDINALITY \
                 AS r (id, key, fingerprint, partition, status, attempts, code, error, stderr, backtrace, \
                 plugin, trace_id, queue, exchange, routing_key, properties, body, encoding, withheld, due, \
                 place) \
                 ORDER BY r.place \
                 ON CONFLICT (consumer, id) DO UPDATE SET key = excluded.key, \
                 fingerprint = excluded.fingerprint, partition = excluded.partition, status = excluded.status, \
                 attempts = excluded.attempts, starts = 0, code = excluded.code, error = excluded.error, \
                 stderr = excluded.stderr, backtrace = excluded.backtrace, plugin = excluded.plugin, \
                 trace_id = excluded.trace_id, queue = excluded.queue, exchange = excluded.exchange, \
                 routing_key = excluded.routing_key, properties = excluded.properties, body = excluded.body, \
                 encoding = excluded.encoding, withheld = excluded.withheld, failed_at = excluded.failed_at, due_at = excluded.due_at \
                 WHERE excluded.key IS NOT NULL",
            )
            .bind(consumer.0)
            .bind(each(rows, |row| row.id.as_slice()))
            .bind(each(rows, |row| row.key.as_deref()))
            .bind(each(rows, |row| row.fingerprint.as_slice()))
            .bind(each(rows, |row| row.partition))
            .bind(each(rows, |row| row.status.as_str()))
            .bind(each(rows, |row| row.attempts))
            .bind(each(rows, |row| text(&row.code)))
            .bind(each(rows, |row| text(&row.error)))
            .bind(each(rows, |row| text(&row.stderr)))
            .bind(each(rows, |row| text(&row.backtrace)))
            .bind(each(rows, |row| row.plugin.as_slice()))
            .bind(each(rows, |row| text(&row.trace_id)))
            .bind(each(rows, |row| text(&row.queue)))
            .bind(each(rows, |row| row.message.exchange.as_bytes()))
            .bind(each(rows, |row| row.message.routing_key.as_bytes()))
            .bind(each(rows, |row| row.message.encoded_properties()))
            .bind(each(rows, |row| row.message.body.as_ref()))
            .bind(each(rows, |row| encoding(row).0))
            .bind(each(rows, |row| encoding(row).1))
            .bind(rows.iter().map(|(_, due)| seconds(*due)).collect::<Vec<_>>());
        self.touch(insert).await.map(|_| ())
    }

    pub(super) async fn due_waiting(
        &mut self,
        consumer: ConsumerId,
        in_line: bool,
        limit: u32,
    ) -> Result<Vec<(Vec<u8>, i64)>, StoreError> {
        let select = self
            .statement(
                "SELECT w.id, w.partition FROM @hapax_waiting w \
                 WHERE w.consumer = $1 AND w.status = 'retry' AND w.due_at <= statement_timestamp() \
                 AND (NOT $3 OR w.key IS NULL OR NOT EXISTS (SELECT FROM @hapax_waiting e \
                 WHERE e.consumer = $1 AND e.partition = w.partition AND e.key IS NOT NULL \
                 AND e.arrival < w.arrival)) \
                 ORDER BY w.due_at LIMIT $2",
            )
            .bind(consumer.0)
            .bind(i64::from(limit))
            .bind(in_line);
        let rows = self.rows(select).await?;
        rows.iter()
            .map(|row| Ok((column(row, 0)?, column(row, 1)?)))
            .collect()
    }

    pub(super) async fn lines_waiting(
        &mut self,
        consumer: ConsumerId,
        partitions: &[i64],
    ) -> Result<Vec<(i64, u64)>, StoreError> {
        let mut locked = Vec::new();
        // A first row that was waited for may be gone afterwards: what is counted in the end is locked.
        for _ in 0..8 {
            let lines = self.count_lines(consumer, partitions).await?;
            if lines
                .iter()
                .all(|(partition, _)| locked.contains(partition))
            {
                return Ok(lines);
            }
            let mut named: Vec<i64> = lines.iter().map(|(partition, _)| *partition).collect();
            named.sort_unstable();
            locked = self.lock_lines(consumer, &named).await?;
        }
        Err(StoreError::Conflict(
            "a line of held messages comes and goes".to_owned(),
        ))
    }

    async fn count_lines(
        &mut self,
        consumer: ConsumerId,
        partitions: &[i64],
    ) -> Result<Vec<(i64, u64)>, StoreError> {
        let select = self
            .statement(
                "SELECT partition, count(*) FILTER (WHERE status = 'held') FROM @hapax_waiting \
                 WHERE consumer = $1 AND partition = ANY($2::bigint[]) AND key IS NOT NULL GROUP BY partition",
            )
            .bind(consumer.0)
            .bind(partitions);
        let rows = self.rows(select).await?;
        rows.iter()
            .map(|row| Ok((column(row, 0)?, column::<i64>(row, 1)?.unsigned_abs())))
            .collect()
    }

    /// Locks the first row of each line, in the order of the partitions.
    async fn lock_lines(
        &mut self,
        consumer: ConsumerId,
        partitions: &[i64],
    ) -> Result<Vec<i64>, StoreError> {
        let select = self
            .statement(
                "SELECT w.partition FROM unnest($2::bigint[]) AS p (partition) CROSS JOIN LATERAL \
                 (SELECT f.partition FROM @hapax_waiting f WHERE f.consumer = $1 AND f.partition = p.partition \
                 AND f.key IS NOT NULL ORDER BY f.arrival LIMIT 1 FOR UPDATE) w",
            )
            .bind(consumer.0)
            .bind(partitions);
        let rows = self.rows(select).await?;
        rows.iter().map(|row| column(row, 0)).collect()
    }

    pub(super) async fn release_waiting(
        &mut self,
        consumer: ConsumerId,
        partitions: Option<&[i64]>,
    ) -> Result<u64, StoreError> {
        let update = self
            .statement(
                "UPDATE @hapax_waiting SET status = 'retry', due_at = now(), starts = 0 \
                 WHERE consumer = $1 AND status = 'held' AND id = ANY(ARRAY( \
                 SELECT f.id FROM (SELECT DISTINCT h.partition FROM @hapax_waiting h \
                 WHERE h.consumer = $1 AND h.status = 'held' \
                 AND ($2::bigint[] IS NULL OR h.partition = ANY($2))) p CROSS JOIN LATERAL \
                 (SELECT l.id, l.status FROM @hapax_waiting l WHERE l.consumer = $1 \
                 AND l.partition = p.partition AND l.key IS NOT NULL ORDER BY l.arrival LIMIT 1) f \
                 WHERE f.status = 'held'))",
            )
            .bind(consumer.0)
            .bind(partitions);
        self.touch(update).await
    }

    pub(super) async fn held_waiting(&mut self, consumer: ConsumerId) -> Result<u64, StoreError> {
        let select = self
            .statement(
                "SELECT coalesce(max(held), 0) FROM (SELECT count(*) AS held FROM @hapax_waiting \
                 WHERE consumer = $1 AND status = 'held' GROUP BY partition) lines",
            )
            .bind(consumer.0);
        self.count(select).await
    }

    pub(super) async fn next_waiting(
        &mut self,
        consumer: ConsumerId,
    ) -> Result<Option<Duration>, StoreError> {
        let select = self
            .statement(
                "SELECT extract(epoch FROM min(due_at) - statement_timestamp())::float8 \
                 FROM @hapax_waiting WHERE consumer = $1 AND status = 'retry'",
            )
            .bind(consumer.0);
        let Some(row) = self.row(select).await? else {
            return Ok(None);
        };
        let seconds: Option<f64> = column(&row, 0)?;
        Ok(seconds
            .map(|seconds| Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)))
    }

    pub(super) async fn lock_waiting(
        &mut self,
        consumer: ConsumerId,
        id: &[u8],
    ) -> Result<Option<WaitingRow>, StoreError> {
        let select = self
            .statement(concat!(
                "SELECT ",
                columns!(),
                ", w.body FROM @hapax_waiting w WHERE w.consumer = $1 AND w.id = $2 AND w.status = 'retry' \
                 AND w.due_at <= statement_timestamp() FOR UPDATE SKIP LOCKED"
            ))
            .bind(consumer.0)
            .bind(id);
        self.row(select)
            .await?
            .as_ref()
            .map(waiting_row)
            .transpose()
    }

    pub(super) async fn delete_waiting(
        &mut self,
        consumer: ConsumerId,
        ids: &[&[u8]],
    ) -> Result<u64, StoreError> {
        let delete = self
            .statement("DELETE FROM @hapax_waiting WHERE consumer = $1 AND id = ANY($2::bytea[])")
            .bind(consumer.0)
            .bind(ids);
        self.touch(delete).await
    }

    pub(super) async fn start_waiting(
        &mut self,
        consumer: ConsumerId,
        id: &[u8],
        first: bool,
    ) -> Result<Start, StoreError> {
        self.outside()?;
        let update = self
            .statement(
                "WITH due AS MATERIALIZED (SELECT starts FROM @hapax_waiting WHERE consumer = $1 AND id = $2 \
                 AND status = 'retry' AND due_at <= statement_timestamp() FOR UPDATE SKIP LOCKED), \
                 started AS (UPDATE @hapax_waiting w SET starts = w.starts + 1 FROM due \
                 WHERE w.consumer = $1 AND w.id = $2 AND (due.starts = 0 OR NOT $3) RETURNING w.starts) \
                 SELECT (SELECT starts FROM started) FROM due",
            )
            .bind(consumer.0)
            .bind(id)
            .bind(first);
        Ok(match self.row(update).await? {
            None => Start::Elsewhere,
            Some(row) => column::<Option<i32>>(&row, 0)?.map_or(Start::Earlier, Start::Recorded),
        })
    }

    pub(super) async fn unstart_waiting(
        &mut self,
        consumer: ConsumerId,
        id: &[u8],
    ) -> Result<(), StoreError> {
        let update = self
            .statement(
                "UPDATE @hapax_waiting SET starts = starts - 1 WHERE consumer = $1 AND id = $2 AND starts > 0",
            )
            .bind(consumer.0)
            .bind(id);
        self.touch(update).await.map(|_| ())
    }

    pub(super) async fn list_waiting(
        &mut self,
        filter: &WaitingFilter,
    ) -> Result<Vec<WaitingRecord>, StoreError> {
        let select = self.statement(concat!(
            "SELECT ",
            columns!(),
            ", CASE WHEN $8 THEN ''::bytea ELSE w.body END, c.name, w.first_failed_at, w.failed_at, w.due_at",
            filtered!(),
            " AND ($9::timestamptz IS NULL OR w.failed_at < $9 OR (w.failed_at = $9 AND w.id > $10)) \
             ORDER BY w.failed_at DESC, w.id LIMIT $11"
        ));
        let (after, after_id) = filter.after.clone().unzip();
        let select = bind_filter(select, filter)
            .bind(filter.without_bodies)
            .bind(after.map(time))
            .bind(after_id)
            .bind(i64::from(filter.limit));
        let rows = self.rows(select).await?;
        rows.iter()
            .map(|row| {
                Ok(WaitingRecord {
                    consumer: column(row, 19)?,
                    row: waiting_row(row)?,
                    first_failed_at: column::<DateTime<Utc>>(row, 20)?.timestamp_micros(),
                    failed_at: column::<DateTime<Utc>>(row, 21)?.timestamp_micros(),
                    due_at: column::<Option<DateTime<Utc>>>(row, 22)?
                        .map(|time| time.timestamp_micros()),
                })
            })
            .collect()
    }

    pub(super) async fn replay_waiting(&mut self, ids: &[&[u8]]) -> Result<u64, StoreError> {
        self.outside()?;
        let replay = self
            .statement(
                "WITH moved AS (UPDATE @hapax_waiting AS w SET status = 'retry', attempts = 0, starts = 0, \
                 due_at = now() WHERE consumer IN (SELECT id FROM @hapax_consumer) \
                 AND id = ANY($1::bytea[]) AND status = 'parked' AND NOT EXISTS (SELECT FROM @hapax_ledger l \
                 WHERE l.consumer = w.consumer AND l.key = w.key \
                 AND l.fate IN (1, 4)) RETURNING consumer, key), \
                 fates AS (UPDATE @hapax_ledger l SET fate = 2, attempts = 0 FROM moved \
                 WHERE l.consumer = moved.consumer AND l.key = moved.key AND l.fate = 3) \
                 SELECT count(*) FROM moved",
            )
            .bind(ids);
        self.count(replay).await
    }

    pub(super) async fn discard_waiting(&mut self, ids: &[&[u8]]) -> Result<u64, StoreError> {
        self.begin().await?;
        let result = self.discard_parked(ids).await;
        self.finish_own(result).await
    }

    async fn discard_parked(&mut self, ids: &[&[u8]]) -> Result<u64, StoreError> {
        // The key is remembered for as long again as it was when the message failed: it may have been
        // parked for longer than the retention, and a late redelivery must still find it.
        let discard = self
            .statement(
                "WITH gone AS (DELETE FROM @hapax_waiting WHERE consumer IN (SELECT id FROM @hapax_consumer) \
                 AND id = ANY($1::bytea[]) AND status = 'parked' \
                 RETURNING consumer, partition, key, failed_at), \
                 fates AS (UPDATE @hapax_ledger l SET fate = 4, \
                 expires_at = greatest(l.expires_at, now() + (l.expires_at - gone.failed_at)) FROM gone \
                 WHERE l.consumer = gone.consumer AND l.key = gone.key AND l.fate = 3) \
                 SELECT consumer, partition FROM gone",
            )
            .bind(ids);
        let gone = self.rows(discard).await?;
        // A statement of its own: it sees what was put behind a row while that row was waited for.
        let mut lines = BTreeMap::<i32, Vec<i64>>::new();
        for row in &gone {
            lines
                .entry(column(row, 0)?)
                .or_default()
                .push(column(row, 1)?);
        }
        for (consumer, partitions) in lines {
            self.release_waiting(ConsumerId(consumer), Some(&partitions))
                .await?;
        }
        Ok(gone.len() as u64)
    }

    pub(super) async fn tally_waiting(
        &mut self,
        filter: &WaitingFilter,
    ) -> Result<Vec<(String, String, u64)>, StoreError> {
        let select = self.statement(concat!(
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

    pub(super) async fn edit_waiting(
        &mut self,
        id: &[u8],
        old_body: &[u8],
        new_body: &[u8],
    ) -> Result<bool, StoreError> {
        self.outside()?;
        let update = self
            .statement(
                "UPDATE @hapax_waiting SET body = $3, encoding = 'amqp/1', withheld = NULL \
                 WHERE consumer IN (SELECT id FROM @hapax_consumer) \
                 AND id = $1 AND status = 'parked' AND body = $2",
            )
            .bind(id)
            .bind(old_body)
            .bind(new_body);
        Ok(self.touch(update).await? == 1)
    }

    pub(super) async fn count_waiting(
        &mut self,
        consumer: ConsumerId,
    ) -> Result<Vec<(Status, String, u64)>, StoreError> {
        let select = self
            .statement(
                "SELECT status, code, count(*) FROM @hapax_waiting WHERE consumer = $1 \
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

fn waiting_row(row: &PgRow) -> Result<WaitingRow, StoreError> {
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
