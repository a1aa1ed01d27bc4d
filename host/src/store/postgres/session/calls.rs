//! The calls of the contract: those of the transaction itself, and those that a table's module answers.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::{Connection, Executor};

use super::{BEGIN, PostgresSession, Refusal};
use crate::store::postgres::stuck::SHORT_LOCK;
use crate::store::postgres::warnings::listening;
use crate::store::{
    CatalogAnswer, CatalogQuestion, Claim, ClaimRule, ConsumerId, ConsumerRow, Entry, Expect, Fate,
    Finished, HostId, NamedColumn, OutboxDepth, OutboxRecord, OutboxRow, Rows, RowsInsert, Session,
    Settlement, Start, Status, StoreError, StuckSession, Upkeep, Value, WaitingFilter,
    WaitingRecord, WaitingRow,
};

#[async_trait]
impl Session for PostgresSession {
    fn stuck_before(&self) -> Option<StuckSession> {
        self.stuck_before.clone()
    }

    async fn ping(&mut self) -> Result<(), StoreError> {
        let mut connection = self.lend()?;
        let result = connection.ping().await;
        self.back(connection, result).map_err(Refusal::own)
    }

    async fn begin(&mut self) -> Result<(), StoreError> {
        self.outside()?;
        // What a session that does not end holds, is held for long: whoever meets it comes again later.
        let begin = match self.remains.given_up.any_left() {
            true => format!(
                "{BEGIN}; SET LOCAL lock_timeout = {}",
                SHORT_LOCK.as_millis()
            ),
            false => BEGIN.to_owned(),
        };
        self.command(begin).await?;
        self.open = true;
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), StoreError> {
        if !self.open {
            return Err(StoreError::TransactionLost(
                "there is no transaction".to_owned(),
            ));
        }
        let mut connection = self.lend()?;
        self.lost = "the session was given up during COMMIT".to_owned();
        // Postgres answers COMMIT of a dead transaction with the tag ROLLBACK and no error; SET LOCAL
        // fails there instead, and nothing after it is run. The timeout must not fire while COMMIT waits
        // for a standby: it would end the wait with a warning, and the commit would look replicated.
        let commit = connection.execute("SET LOCAL statement_timeout = 0; COMMIT");
        let (result, warning) = listening(commit).await;
        match (result, warning) {
            (Ok(_), None) => {
                self.connection = Some(connection);
                self.end();
                Ok(())
            }
            (Ok(_), Some(warning)) => {
                self.end();
                self.lost = format!("COMMIT was answered with a warning: {warning}");
                Err(StoreError::InDoubt(self.lost.clone()))
            }
            (Err(error), _) => Err(self.uncommitted(connection, Refusal::of(error))),
        }
    }

    async fn rollback(&mut self) -> Result<(), StoreError> {
        if !self.open {
            return Ok(());
        }
        self.end();
        // Where the connection is lost, the transaction is too: nothing is left to undo.
        let _ = self.undo("ROLLBACK".to_owned()).await;
        Ok(())
    }

    async fn savepoint(&mut self, name: &'static str) -> Result<(), StoreError> {
        self.command(format!("SAVEPOINT {name}")).await?;
        self.savepoints.push(name);
        Ok(())
    }

    async fn rollback_to(&mut self, name: &'static str) -> Result<(), StoreError> {
        self.forget(name)?;
        self.undo(format!(
            "ROLLBACK TO SAVEPOINT {name}; RELEASE SAVEPOINT {name}"
        ))
        .await?;
        self.failed = false;
        Ok(())
    }

    async fn release(&mut self, name: &'static str) -> Result<(), StoreError> {
        self.command(format!("RELEASE SAVEPOINT {name}")).await?;
        self.forget(name)
    }

    async fn alive(&mut self) -> bool {
        self.open && !self.failed && self.connection.is_some()
    }

    async fn consumer(
        &mut self,
        name: &str,
        key_rule: &str,
        fingerprint_rule: &str,
    ) -> Result<ConsumerRow, StoreError> {
        self.get_consumer(name, key_rule, fingerprint_rule).await
    }

    async fn secret(&mut self) -> Result<Vec<u8>, StoreError> {
        self.get_secret().await
    }

    async fn claim(
        &mut self,
        rule: ClaimRule<'_>,
        claims: &[Claim<'_>],
    ) -> Result<Vec<bool>, StoreError> {
        self.ledger_claim(rule, claims).await
    }

    async fn entries(
        &mut self,
        consumer: ConsumerId,
        keys: &[&[u8]],
    ) -> Result<Vec<Option<Entry>>, StoreError> {
        self.ledger_entries(consumer, keys).await
    }

    async fn take(
        &mut self,
        rule: ClaimRule<'_>,
        claim: Claim<'_>,
        from: Fate,
    ) -> Result<bool, StoreError> {
        self.ledger_take(rule, claim, from).await
    }

    async fn unclaim(&mut self, consumer: ConsumerId, keys: &[&[u8]]) -> Result<u64, StoreError> {
        self.ledger_unclaim(consumer, keys).await
    }

    async fn settle(
        &mut self,
        consumer: ConsumerId,
        settlements: &[Settlement<'_>],
    ) -> Result<u64, StoreError> {
        self.ledger_settle(consumer, settlements).await
    }

    async fn finish(
        &mut self,
        consumer: ConsumerId,
        keys: &[&[u8]],
    ) -> Result<Finished, StoreError> {
        self.ledger_finish(consumer, keys).await
    }

    async fn keep_replies(
        &mut self,
        consumer: ConsumerId,
        replies: &[(&[u8], Vec<u8>)],
    ) -> Result<u64, StoreError> {
        self.ledger_keep_replies(consumer, replies).await
    }

    async fn replies(
        &mut self,
        consumer: ConsumerId,
        keys: &[&[u8]],
    ) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        self.ledger_replies(consumer, keys).await
    }

    async fn record_start(
        &mut self,
        rule: ClaimRule<'_>,
        claim: Claim<'_>,
        first: bool,
    ) -> Result<Start, StoreError> {
        self.ledger_record_start(rule, claim, first).await
    }

    async fn undo_start(&mut self, consumer: ConsumerId, key: &[u8]) -> Result<(), StoreError> {
        self.ledger_undo_start(consumer, key).await
    }

    async fn ledger_counts(
        &mut self,
        consumer: ConsumerId,
    ) -> Result<Vec<(Fate, u64)>, StoreError> {
        self.ledger_count(consumer).await
    }

    async fn note_retention(
        &mut self,
        consumer: ConsumerId,
        retention: Duration,
    ) -> Result<(), StoreError> {
        self.ledger_note_retention(consumer, retention).await
    }

    async fn sweep(
        &mut self,
        consumer: ConsumerId,
        retention: Duration,
        after: &[u8],
        limit: u32,
    ) -> Result<(Option<Vec<u8>>, u64), StoreError> {
        self.ledger_sweep(consumer, retention, after, limit).await
    }

    async fn waiting_put(
        &mut self,
        consumer: ConsumerId,
        rows: &[(WaitingRow, Duration)],
    ) -> Result<(), StoreError> {
        self.put_waiting(consumer, rows).await
    }

    async fn waiting_due(
        &mut self,
        consumer: ConsumerId,
        in_line: bool,
        limit: u32,
    ) -> Result<Vec<(Vec<u8>, i64)>, StoreError> {
        self.due_waiting(consumer, in_line, limit).await
    }

    async fn waiting_lines(
        &mut self,
        consumer: ConsumerId,
        partitions: &[i64],
    ) -> Result<Vec<(i64, u64)>, StoreError> {
        self.lines_waiting(consumer, partitions).await
    }

    async fn waiting_release(
        &mut self,
        consumer: ConsumerId,
        partitions: Option<&[i64]>,
    ) -> Result<u64, StoreError> {
        self.release_waiting(consumer, partitions).await
    }

    async fn waiting_held(&mut self, consumer: ConsumerId) -> Result<u64, StoreError> {
        self.held_waiting(consumer).await
    }

    async fn waiting_next(&mut self, consumer: ConsumerId) -> Result<Option<Duration>, StoreError> {
        self.next_waiting(consumer).await
    }

    async fn waiting_lock(
        &mut self,
        consumer: ConsumerId,
        id: &[u8],
    ) -> Result<Option<WaitingRow>, StoreError> {
        self.lock_waiting(consumer, id).await
    }

    async fn parked_apart(
        &mut self,
        consumer: ConsumerId,
        ids: &[Vec<u8>],
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        self.find_parked_apart(consumer, ids).await
    }

    async fn waiting_delete(
        &mut self,
        consumer: ConsumerId,
        ids: &[&[u8]],
    ) -> Result<u64, StoreError> {
        self.delete_waiting(consumer, ids).await
    }

    async fn waiting_start(
        &mut self,
        consumer: ConsumerId,
        id: &[u8],
        first: bool,
    ) -> Result<Start, StoreError> {
        self.start_waiting(consumer, id, first).await
    }

    async fn waiting_unstart(&mut self, consumer: ConsumerId, id: &[u8]) -> Result<(), StoreError> {
        self.unstart_waiting(consumer, id).await
    }

    async fn waiting_list(
        &mut self,
        filter: &WaitingFilter,
    ) -> Result<Vec<WaitingRecord>, StoreError> {
        self.list_waiting(filter).await
    }

    async fn waiting_replay(&mut self, ids: &[&[u8]]) -> Result<u64, StoreError> {
        self.replay_waiting(ids).await
    }

    async fn waiting_discard(&mut self, ids: &[&[u8]]) -> Result<u64, StoreError> {
        self.discard_waiting(ids).await
    }

    async fn waiting_counts(
        &mut self,
        consumer: ConsumerId,
    ) -> Result<Vec<(Status, String, u64)>, StoreError> {
        self.count_waiting(consumer).await
    }

    async fn announce(&mut self, host: HostId) -> Result<(), StoreError> {
        self.lock_host(host).await
    }

    async fn outbox_put(
        &mut self,
        host: HostId,
        rows: &[Arc<OutboxRow>],
    ) -> Result<Vec<i64>, StoreError> {
        self.put_outbox(host, rows).await
    }

    async fn outbox_take(
        &mut self,
        host: HostId,
        limit: u32,
    ) -> Result<Vec<OutboxRecord>, StoreError> {
        self.take_outbox(host, limit).await
    }

    async fn outbox_recover(
        &mut self,
        host: HostId,
        lane: i16,
        known: &[i64],
    ) -> Result<Vec<OutboxRecord>, StoreError> {
        self.recover_outbox(host, lane, known).await
    }

    async fn outbox_blocked(&mut self, sequences: &[i64]) -> Result<Vec<i64>, StoreError> {
        self.blocked_outbox(sequences).await
    }

    async fn outbox_delete(&mut self, sequences: &[i64]) -> Result<(), StoreError> {
        self.delete_outbox(sequences).await
    }

    async fn outbox_defer(
        &mut self,
        sequence: i64,
        delay: Duration,
        error: &str,
    ) -> Result<(), StoreError> {
        self.defer_outbox(sequence, delay, error).await
    }

    async fn outbox_give_back(
        &mut self,
        host: HostId,
        sequences: &[i64],
    ) -> Result<(), StoreError> {
        self.give_back_outbox(host, sequences).await
    }

    async fn outbox_depth(&mut self) -> Result<OutboxDepth, StoreError> {
        self.measure_outbox().await
    }

    async fn state_get(
        &mut self,
        consumer: ConsumerId,
        key: &str,
    ) -> Result<Option<(Vec<u8>, u64)>, StoreError> {
        self.get_state(consumer, key).await
    }

    async fn state_write(
        &mut self,
        consumer: ConsumerId,
        key: &str,
        value: Option<&[u8]>,
        expect: Expect,
    ) -> Result<bool, StoreError> {
        self.write_state(consumer, key, value, expect).await
    }

    async fn missing_column(
        &mut self,
        columns: &[NamedColumn],
    ) -> Result<Option<usize>, StoreError> {
        self.guest_missing_column(columns).await
    }

    async fn catalog(&mut self, question: &CatalogQuestion) -> Result<CatalogAnswer, StoreError> {
        self.guest_catalog(question).await
    }

    async fn query(
        &mut self,
        statement: &str,
        parameters: &[Value],
        max_rows: u64,
        max_bytes: u64,
    ) -> Result<Rows, StoreError> {
        self.guest_query(statement, parameters, max_rows, max_bytes)
            .await
    }

    async fn insert_rows(&mut self, insert: RowsInsert<'_>) -> Result<Option<u64>, StoreError> {
        self.guest_insert_rows(insert).await
    }

    async fn is_plain(&mut self, schema: Option<&str>, table: &str) -> Result<bool, StoreError> {
        self.guest_is_plain(schema, table).await
    }

    async fn execute(&mut self, statement: &str, parameters: &[Value]) -> Result<u64, StoreError> {
        self.guest_execute(statement, parameters).await
    }

    fn upkeep(&mut self) -> &mut dyn Upkeep {
        self
    }
}
