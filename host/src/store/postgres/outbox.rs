//! The statements of `hapax_outbox`, and the advisory locks that tell which hosts live.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgRow;

use super::ledger::seconds;
use super::session::{PostgresSession, column};
use crate::store::stored::{STATEMENT_BYTES, message, split, text, utf8};
use crate::store::{
    ConsumerId, HostId, OutboxDepth, OutboxRecord, OutboxRow, Session, StoreError, TAKEN_LANE,
};

/// In the order in which `record` reads them.
macro_rules! columns {
    () => {
        "sequence, attempts, consumer, lane, target, may_drop, ordering_key, exchange, routing_key, \
         properties, body"
    };
}

impl PostgresSession {
    pub(super) async fn lock_host(&mut self, host: HostId) -> Result<(), StoreError> {
        let class = self.lock_class;
        let lock = self
            .statement("SELECT pg_advisory_lock($1, $2)")
            .bind(class)
            .bind(host.0);
        self.touch(lock).await.map(|_| ())
    }

    pub(super) async fn put_outbox(
        &mut self,
        host: HostId,
        rows: &[Arc<OutboxRow>],
    ) -> Result<Vec<i64>, StoreError> {
        let mut sequences = Vec::with_capacity(rows.len());
        for part in split(rows, STATEMENT_BYTES, |row| row.message.size_bytes()) {
            self.put_outbox_part(host, part, &mut sequences).await?;
        }
        if sequences.len() != rows.len() {
            return Err(StoreError::Broken(
                "the outbox did not take every row".to_owned(),
            ));
        }
        Ok(sequences)
    }

    async fn put_outbox_part(
        &mut self,
        host: HostId,
        rows: &[Arc<OutboxRow>],
        sequences: &mut Vec<i64>,
    ) -> Result<(), StoreError> {
        fn each<'a, T>(rows: &'a [Arc<OutboxRow>], get: impl Fn(&'a OutboxRow) -> T) -> Vec<T> {
            rows.iter().map(|row| get(row)).collect()
        }
        let insert = self
            .statement(
                "INSERT INTO @hapax_outbox (consumer, host, lane, due_at, ordering_key, target, may_drop, \
                 exchange, routing_key, properties, body, created_at) \
                 SELECT r.consumer, $1, r.lane, clock_timestamp() + r.delay * interval '1 second', \
                 r.ordering_key, r.target, r.may_drop, r.exchange, r.routing_key, r.properties, r.body, now() \
                 FROM unnest($2::int[], $3::smallint[], $4::float8[], $5::bytea[], $6::text[], $7::bool[], \
                 $8::bytea[], $9::bytea[], $10::bytea[], $11::bytea[]) WITH ORDINALITY \
                 AS r (consumer, lane, delay, ordering_key, target, may_drop, exchange, routing_key, \
                 properties, body, place) ORDER BY r.place RETURNING sequence",
            )
            .bind(host.0)
            .bind(each(rows, |row| row.consumer.0))
            .bind(each(rows, |row| row.lane))
            .bind(each(rows, |row| row.delay.map(seconds)))
            .bind(each(rows, |row| row.ordering_key.as_deref().map(str::as_bytes)))
            .bind(each(rows, |row| text(&row.target)))
            .bind(each(rows, |row| row.may_drop))
            .bind(each(rows, |row| row.message.exchange.as_bytes()))
            .bind(each(rows, |row| row.message.routing_key.as_bytes()))
            .bind(each(rows, |row| row.message.encoded_properties()))
            .bind(each(rows, |row| row.message.body.as_ref()));
        for row in self.rows(insert).await? {
            sequences.push(column(&row, 0)?);
        }
        Ok(())
    }

    pub(super) async fn take_outbox(
        &mut self,
        host: HostId,
        limit: u32,
    ) -> Result<Vec<OutboxRecord>, StoreError> {
        self.begin().await?;
        let taken = self.take_outbox_rows(host, limit).await;
        self.finish_own(taken).await
    }

    async fn take_outbox_rows(
        &mut self,
        host: HostId,
        limit: u32,
    ) -> Result<Vec<OutboxRecord>, StoreError> {
        // The table is small but churns: its pages are many times its rows, and only the indexes know
        // the few that are due. Or it is huge, and mostly not due: each way to a row has its own index, or the
        // planner walks over all of them in the order of their numbers. What was true of a row is asked again when
        // it is locked: another host may have taken it in between.
        self.command("SET LOCAL enable_seqscan = off".to_owned())
            .await?;
        let dead = self.dead_hosts(host).await?;
        let candidates = self
            .statement(
                "SELECT o.sequence FROM @hapax_outbox o WHERE o.sequence = ANY(ARRAY( \
                 (SELECT due.sequence FROM @hapax_outbox due WHERE due.due_at <= now() \
                 AND due.ordering_key IS NULL ORDER BY due.due_at LIMIT $2) \
                 UNION ALL SELECT keyed.sequence FROM @hapax_outbox keyed WHERE keyed.due_at <= now() \
                 AND keyed.ordering_key IS NOT NULL \
                 UNION ALL SELECT dead.sequence FROM @hapax_outbox dead WHERE dead.due_at IS NULL \
                 AND dead.host = ANY($1::int[]))) \
                 AND (o.due_at <= now() OR (o.due_at IS NULL AND o.host = ANY($1::int[]))) \
                 AND (o.ordering_key IS NULL OR NOT EXISTS (SELECT FROM @hapax_outbox older \
                 WHERE older.ordering_key = o.ordering_key AND older.sequence < o.sequence \
                 AND (older.due_at > now() OR (older.due_at IS NULL AND older.host <> ALL($1::int[]))))) \
                 ORDER BY o.sequence LIMIT $2 FOR UPDATE SKIP LOCKED",
            )
            .bind(&dead)
            .bind(i64::from(limit));
        let mut locked = Vec::new();
        for row in self.rows(candidates).await? {
            locked.push(column::<i64>(&row, 0)?);
        }
        if locked.is_empty() {
            return Ok(Vec::new());
        }
        // SKIP LOCKED can step over an older row of a key that another host is just taking.
        let update = self
            .statement(concat!(
                "UPDATE @hapax_outbox SET host = $1, lane = $2, due_at = NULL WHERE sequence IN \
                 (SELECT o.sequence FROM @hapax_outbox o WHERE o.sequence = ANY($3::bigint[]) \
                 AND (o.ordering_key IS NULL OR NOT EXISTS (SELECT FROM @hapax_outbox older \
                 WHERE older.ordering_key = o.ordering_key AND older.sequence < o.sequence \
                 AND older.sequence <> ALL($3::bigint[])))) RETURNING ",
                columns!()
            ))
            .bind(host.0)
            .bind(TAKEN_LANE)
            .bind(&locked);
        let rows = self.rows(update).await?;
        let mut taken = rows.iter().map(record).collect::<Result<Vec<_>, _>>()?;
        taken.sort_unstable_by_key(|record| record.sequence);
        Ok(taken)
    }

    /// Hosts that have rows of their own and do not hold their lock. Skips from host to host in the
    /// index, so that the rows of a busy host are not read.
    async fn dead_hosts(&mut self, host: HostId) -> Result<Vec<i32>, StoreError> {
        let class = self.lock_class;
        let select = self
            .statement(
                "WITH RECURSIVE owner (host) AS ( \
                 (SELECT host FROM @hapax_outbox WHERE due_at IS NULL ORDER BY host LIMIT 1) \
                 UNION ALL SELECT (SELECT o.host FROM @hapax_outbox o WHERE o.due_at IS NULL \
                 AND o.host > owner.host ORDER BY o.host LIMIT 1) FROM owner WHERE owner.host IS NOT NULL) \
                 SELECT host FROM owner WHERE host IS NOT NULL AND host <> $1 AND NOT EXISTS ( \
                 SELECT FROM pg_catalog.pg_locks l WHERE l.locktype = 'advisory' AND l.granted \
                 AND l.objsubid = 2 AND l.classid::bigint = $2::bigint & 4294967295 \
                 AND l.objid::bigint = owner.host::bigint & 4294967295 AND l.database = \
                 (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()))",
            )
            .bind(host.0)
            .bind(i64::from(class));
        let rows = self.rows(select).await?;
        rows.iter().map(|row| column(row, 0)).collect()
    }

    pub(super) async fn recover_outbox(
        &mut self,
        host: HostId,
        lane: i16,
        known: &[i64],
    ) -> Result<Vec<OutboxRecord>, StoreError> {
        let select = self
            .statement(concat!(
                "SELECT ",
                columns!(),
                " FROM @hapax_outbox WHERE host = $1 AND lane = $2 AND due_at IS NULL \
                 AND sequence <> ALL($3::bigint[]) ORDER BY sequence"
            ))
            .bind(host.0)
            .bind(lane)
            .bind(known);
        self.rows(select).await?.iter().map(record).collect()
    }

    pub(super) async fn blocked_outbox(
        &mut self,
        sequences: &[i64],
    ) -> Result<Vec<i64>, StoreError> {
        let select = self
            .statement(
                "SELECT o.sequence FROM @hapax_outbox o WHERE o.sequence = ANY($1::bigint[]) \
                 AND EXISTS (SELECT FROM @hapax_outbox older WHERE older.ordering_key = o.ordering_key \
                 AND older.sequence < o.sequence) ORDER BY o.sequence",
            )
            .bind(sequences);
        self.rows(select)
            .await?
            .iter()
            .map(|row| column(row, 0))
            .collect()
    }

    pub(super) async fn delete_outbox(&mut self, sequences: &[i64]) -> Result<(), StoreError> {
        let delete = self
            .statement("DELETE FROM @hapax_outbox WHERE sequence = ANY($1::bigint[])")
            .persistent(false)
            .bind(sequences);
        self.touch(delete).await.map(|_| ())
    }

    pub(super) async fn defer_outbox(
        &mut self,
        sequence: i64,
        delay: Duration,
        error: &str,
    ) -> Result<(), StoreError> {
        let update = self
            .statement(
                "UPDATE @hapax_outbox SET attempts = attempts + 1, error = $3, \
                 due_at = clock_timestamp() + $2::float8 * interval '1 second' WHERE sequence = $1",
            )
            .bind(sequence)
            .bind(seconds(delay))
            .bind(text(error));
        self.touch(update).await.map(|_| ())
    }

    pub(super) async fn give_back_outbox(
        &mut self,
        host: HostId,
        sequences: &[i64],
    ) -> Result<(), StoreError> {
        let update = self
            .statement(
                "UPDATE @hapax_outbox o SET due_at = coalesce((SELECT oldest.due_at FROM @hapax_outbox oldest \
                 WHERE oldest.ordering_key = o.ordering_key ORDER BY oldest.sequence LIMIT 1), \
                 clock_timestamp()) \
                 WHERE o.sequence = ANY($2::bigint[]) AND o.host = $1 AND o.due_at IS NULL",
            )
            .bind(host.0)
            .bind(sequences);
        self.touch(update).await.map(|_| ())
    }

    pub(super) async fn measure_outbox(&mut self) -> Result<OutboxDepth, StoreError> {
        // A row with attempts is late, not delayed.
        let select = self.statement(
            "SELECT count(*), coalesce(extract(epoch FROM clock_timestamp() - min(created_at) \
             FILTER (WHERE due_at IS NULL OR due_at <= now() OR attempts > 0)), 0)::float8 FROM @hapax_outbox",
        );
        let Some(row) = self.row(select).await? else {
            return Ok(OutboxDepth::default());
        };
        Ok(OutboxDepth {
            rows: column::<i64>(&row, 0)?.unsigned_abs(),
            oldest_seconds: column::<f64>(&row, 1)?.max(0.0),
        })
    }
}

pub(super) fn record(row: &PgRow) -> Result<OutboxRecord, StoreError> {
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
