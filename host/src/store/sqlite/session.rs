//! A session: a turn on the one connection, for a call or for a transaction.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::AssertSqlSafe;
use tokio::sync::OwnedMutexGuard;

use super::connection::{Shared, Slot};
use super::marks::OwnMarks;
use crate::store::{
    Claim, ClaimRule, ConsumerId, ConsumerRow, Entry, Expect, Fate, Finished, HostId, OutboxDepth,
    OutboxRecord, OutboxRow, Queues, Rows, Session, Settlement, Start, Status, StoreError, Upkeep,
    Value, WaitingFilter, WaitingRecord, WaitingRow,
};

pub(super) struct SqliteSession {
    shared: Arc<Shared>,
    /// Held from `begin` to the end of the transaction. Dropped inside one, it leaves the rollback to
    /// the next session.
    slot: Option<OwnedMutexGuard<Slot>>,
    /// How many fates are provisional: see the ledger.
    unfinished: u64,
    pub(super) marks: OwnMarks,
}

/// The connection for one call: the transaction's, or taken for the call.
enum Lease<'a> {
    Held(&'a mut Slot),
    Taken(OwnedMutexGuard<Slot>),
}

impl Deref for Lease<'_> {
    type Target = Slot;

    fn deref(&self) -> &Slot {
        match self {
            Self::Held(slot) => slot,
            Self::Taken(slot) => slot,
        }
    }
}

impl DerefMut for Lease<'_> {
    fn deref_mut(&mut self) -> &mut Slot {
        match self {
            Self::Held(slot) => slot,
            Self::Taken(slot) => slot,
        }
    }
}

impl SqliteSession {
    pub fn new(shared: Arc<Shared>) -> Self {
        let marks = OwnMarks::new(shared.marks.clone());
        Self {
            shared,
            slot: None,
            unfinished: 0,
            marks,
        }
    }

    async fn lease(&mut self) -> Result<Lease<'_>, StoreError> {
        match self.slot.as_deref_mut() {
            Some(slot) => Ok(Lease::Held(slot)),
            None => Ok(Lease::Taken(self.shared.lock().await?)),
        }
    }

    /// For calls that are a transaction of their own.
    pub(super) async fn alone(&mut self) -> Result<OwnedMutexGuard<Slot>, StoreError> {
        if self.slot.is_some() {
            return Err(StoreError::Broken(
                "this call needs a session without an open transaction".to_owned(),
            ));
        }
        self.shared.lock().await
    }

    /// The open transaction.
    fn transaction(&mut self) -> Result<&mut Slot, StoreError> {
        let slot = self.slot.as_deref_mut();
        slot.ok_or_else(|| StoreError::TransactionLost("there is no transaction".to_owned()))
    }
}

#[async_trait]
impl Session for SqliteSession {
    async fn ping(&mut self) -> Result<(), StoreError> {
        self.lease()
            .await?
            .row(sqlx::query("SELECT 1"))
            .await
            .map(|_| ())
    }

    async fn begin(&mut self) -> Result<(), StoreError> {
        let mut slot = self.alone().await?;
        slot.begin().await?;
        self.unfinished = 0;
        self.slot = Some(slot);
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), StoreError> {
        let unfinished = self.unfinished;
        let slot = self.transaction()?;
        if unfinished > 0 && slot.alive() {
            return Err(StoreError::Broken(
                "COMMIT before the claims were finished".to_owned(),
            ));
        }
        let result = slot.commit().await;
        if matches!(result, Ok(()) | Err(StoreError::InDoubt(_))) {
            self.slot = None;
        }
        result
    }

    async fn rollback(&mut self) -> Result<(), StoreError> {
        if let Some(slot) = self.slot.as_deref_mut() {
            slot.rollback().await;
        }
        self.slot = None;
        Ok(())
    }

    async fn savepoint(&mut self, name: &'static str) -> Result<(), StoreError> {
        self.transaction()?
            .command(AssertSqlSafe(format!("SAVEPOINT {name}")))
            .await
    }

    async fn rollback_to(&mut self, name: &'static str) -> Result<(), StoreError> {
        let command = format!("ROLLBACK TO SAVEPOINT {name}; RELEASE SAVEPOINT {name}");
        self.transaction()?.command(AssertSqlSafe(command)).await
    }

    async fn release(&mut self, name: &'static str) -> Result<(), StoreError> {
        self.transaction()?
            .command(AssertSqlSafe(format!("RELEASE SAVEPOINT {name}")))
            .await
    }

    async fn alive(&mut self) -> bool {
        self.slot.as_deref().is_some_and(Slot::alive)
    }

    async fn consumer(
        &mut self,
        name: &str,
        key_rule: &str,
        fingerprint_rule: &str,
    ) -> Result<ConsumerRow, StoreError> {
        self.lease()
            .await?
            .consumer(name, key_rule, fingerprint_rule)
            .await
    }

    async fn secret(&mut self) -> Result<Vec<u8>, StoreError> {
        self.lease().await?.secret().await
    }

    async fn claim(
        &mut self,
        rule: ClaimRule<'_>,
        claims: &[Claim<'_>],
    ) -> Result<Vec<bool>, StoreError> {
        let slot = self.transaction()?;
        let new = slot.claim(rule, claims).await?;
        self.unfinished += new.iter().filter(|new| **new).count() as u64;
        Ok(new)
    }

    async fn entries(
        &mut self,
        consumer: ConsumerId,
        keys: &[&[u8]],
    ) -> Result<Vec<Option<Entry>>, StoreError> {
        self.lease().await?.entries(consumer, keys).await
    }

    async fn take(
        &mut self,
        rule: ClaimRule<'_>,
        claim: Claim<'_>,
        from: Fate,
    ) -> Result<bool, StoreError> {
        let taken = self.transaction()?.take(rule, claim, from).await?;
        self.unfinished += u64::from(taken);
        Ok(taken)
    }

    async fn unclaim(&mut self, consumer: ConsumerId, keys: &[&[u8]]) -> Result<u64, StoreError> {
        let removed = self.transaction()?.unclaim(consumer, keys).await?;
        self.unfinished = self.unfinished.saturating_sub(removed);
        Ok(removed)
    }

    async fn settle(
        &mut self,
        consumer: ConsumerId,
        settlements: &[Settlement<'_>],
    ) -> Result<u64, StoreError> {
        self.transaction()?.settle(consumer, settlements).await
    }

    async fn finish(
        &mut self,
        consumer: ConsumerId,
        keys: &[&[u8]],
    ) -> Result<Finished, StoreError> {
        let finished = self.transaction()?.finish(consumer, keys).await?;
        self.unfinished = self.unfinished.saturating_sub(finished.claims);
        Ok(finished)
    }

    async fn keep_replies(
        &mut self,
        consumer: ConsumerId,
        replies: &[(&[u8], Vec<u8>)],
    ) -> Result<u64, StoreError> {
        self.transaction()?.keep_replies(consumer, replies).await
    }

    async fn replies(
        &mut self,
        consumer: ConsumerId,
        keys: &[&[u8]],
    ) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        self.lease().await?.replies(consumer, keys).await
    }

    async fn record_start(
        &mut self,
        rule: ClaimRule<'_>,
        claim: Claim<'_>,
        first: bool,
    ) -> Result<Start, StoreError> {
        let mut slot = self.alone().await?;
        slot.begin().await?;
        let result = slot.record_start(rule, claim, first).await;
        slot.end(result).await
    }

    async fn undo_start(&mut self, consumer: ConsumerId, key: &[u8]) -> Result<(), StoreError> {
        self.lease().await?.undo_start(consumer, key).await
    }

    async fn ledger_counts(
        &mut self,
        consumer: ConsumerId,
    ) -> Result<Vec<(Fate, u64)>, StoreError> {
        self.lease().await?.ledger_counts(consumer).await
    }

    async fn note_retention(
        &mut self,
        consumer: ConsumerId,
        retention: Duration,
    ) -> Result<(), StoreError> {
        self.lease()
            .await?
            .note_retention(consumer, retention)
            .await
    }

    async fn sweep(
        &mut self,
        consumer: ConsumerId,
        retention: Duration,
        after: &[u8],
        limit: u32,
    ) -> Result<(Option<Vec<u8>>, u64), StoreError> {
        let mut slot = self.alone().await?;
        slot.begin().await?;
        let result = slot.sweep(consumer, retention, after, limit).await;
        slot.end(result).await
    }

    async fn waiting_put(
        &mut self,
        consumer: ConsumerId,
        rows: &[(WaitingRow, Duration)],
    ) -> Result<(), StoreError> {
        self.lease().await?.waiting_put(consumer, rows).await
    }

    async fn waiting_due(
        &mut self,
        consumer: ConsumerId,
        in_line: bool,
        limit: u32,
    ) -> Result<Vec<(Vec<u8>, i64)>, StoreError> {
        self.lease()
            .await?
            .waiting_due(consumer, in_line, limit)
            .await
    }

    async fn waiting_lines(
        &mut self,
        consumer: ConsumerId,
        partitions: &[i64],
    ) -> Result<Vec<(i64, u64)>, StoreError> {
        self.transaction()?
            .waiting_lines(consumer, partitions)
            .await
    }

    async fn waiting_release(
        &mut self,
        consumer: ConsumerId,
        partitions: Option<&[i64]>,
    ) -> Result<u64, StoreError> {
        self.lease()
            .await?
            .waiting_release(consumer, partitions)
            .await
    }

    async fn waiting_held(&mut self, consumer: ConsumerId) -> Result<u64, StoreError> {
        self.lease().await?.waiting_held(consumer).await
    }

    async fn waiting_next(&mut self, consumer: ConsumerId) -> Result<Option<Duration>, StoreError> {
        self.lease().await?.waiting_next(consumer).await
    }

    async fn waiting_lock(
        &mut self,
        consumer: ConsumerId,
        id: &[u8],
    ) -> Result<Option<WaitingRow>, StoreError> {
        self.lease().await?.waiting_lock(consumer, id).await
    }

    async fn waiting_delete(
        &mut self,
        consumer: ConsumerId,
        ids: &[&[u8]],
    ) -> Result<u64, StoreError> {
        self.lease().await?.waiting_delete(consumer, ids).await
    }

    async fn waiting_start(
        &mut self,
        consumer: ConsumerId,
        id: &[u8],
        first: bool,
    ) -> Result<Start, StoreError> {
        let mut slot = self.alone().await?;
        slot.begin().await?;
        let result = slot.waiting_start(consumer, id, first).await;
        slot.end(result).await
    }

    async fn waiting_unstart(&mut self, consumer: ConsumerId, id: &[u8]) -> Result<(), StoreError> {
        self.lease().await?.waiting_unstart(consumer, id).await
    }

    async fn waiting_list(
        &mut self,
        filter: &WaitingFilter,
    ) -> Result<Vec<WaitingRecord>, StoreError> {
        self.lease().await?.waiting_list(filter).await
    }

    async fn waiting_replay(&mut self, ids: &[&[u8]]) -> Result<u64, StoreError> {
        let mut slot = self.alone().await?;
        slot.begin().await?;
        let result = slot.waiting_replay(ids).await;
        slot.end(result).await
    }

    async fn waiting_discard(&mut self, ids: &[&[u8]]) -> Result<u64, StoreError> {
        let mut slot = self.alone().await?;
        slot.begin().await?;
        let result = slot.waiting_discard(ids).await;
        slot.end(result).await
    }

    async fn waiting_counts(
        &mut self,
        consumer: ConsumerId,
    ) -> Result<Vec<(Status, String, u64)>, StoreError> {
        self.lease().await?.waiting_counts(consumer).await
    }

    async fn announce(&mut self, _host: HostId) -> Result<(), StoreError> {
        // The process lock of the store says that this host lives, and that no other one does.
        Ok(())
    }

    async fn outbox_put(
        &mut self,
        host: HostId,
        rows: &[Arc<OutboxRow>],
    ) -> Result<Vec<i64>, StoreError> {
        self.lease().await?.outbox_put(host, rows).await
    }

    async fn outbox_take(
        &mut self,
        host: HostId,
        limit: u32,
    ) -> Result<Vec<OutboxRecord>, StoreError> {
        let mut slot = self.alone().await?;
        slot.begin().await?;
        let result = slot.outbox_take(host, limit).await;
        slot.end(result).await
    }

    async fn outbox_recover(
        &mut self,
        host: HostId,
        lane: i16,
        known: &[i64],
    ) -> Result<Vec<OutboxRecord>, StoreError> {
        self.lease().await?.outbox_recover(host, lane, known).await
    }

    async fn outbox_blocked(&mut self, sequences: &[i64]) -> Result<Vec<i64>, StoreError> {
        self.lease().await?.outbox_blocked(sequences).await
    }

    async fn outbox_delete(&mut self, sequences: &[i64]) -> Result<(), StoreError> {
        if self.slot.is_some() {
            return self.lease().await?.outbox_delete(sequences).await;
        }
        // One sync to the disk for all pieces.
        let mut slot = self.alone().await?;
        slot.begin().await?;
        let result = slot.outbox_delete(sequences).await;
        slot.end(result).await
    }

    async fn outbox_defer(
        &mut self,
        sequence: i64,
        delay: Duration,
        error: &str,
    ) -> Result<(), StoreError> {
        self.lease()
            .await?
            .outbox_defer(sequence, delay, error)
            .await
    }

    async fn outbox_give_back(
        &mut self,
        host: HostId,
        sequences: &[i64],
    ) -> Result<(), StoreError> {
        self.lease().await?.outbox_give_back(host, sequences).await
    }

    async fn outbox_depth(&mut self) -> Result<OutboxDepth, StoreError> {
        self.lease().await?.outbox_depth().await
    }

    async fn state_get(
        &mut self,
        consumer: ConsumerId,
        key: &str,
    ) -> Result<Option<(Vec<u8>, u64)>, StoreError> {
        self.lease().await?.state_get(consumer, key).await
    }

    async fn state_write(
        &mut self,
        consumer: ConsumerId,
        key: &str,
        value: Option<&[u8]>,
        expect: Expect,
    ) -> Result<bool, StoreError> {
        self.lease()
            .await?
            .state_write(consumer, key, value, expect)
            .await
    }

    async fn query(
        &mut self,
        statement: &str,
        parameters: &[Value],
        max_rows: u64,
        max_bytes: u64,
    ) -> Result<Rows, StoreError> {
        self.lease()
            .await?
            .query(statement, parameters, max_rows, max_bytes)
            .await
    }

    async fn execute(&mut self, statement: &str, parameters: &[Value]) -> Result<u64, StoreError> {
        self.lease().await?.execute(statement, parameters).await
    }

    async fn is_plain(&mut self, schema: Option<&str>, table: &str) -> Result<bool, StoreError> {
        self.lease().await?.is_plain(schema, table).await
    }

    fn upkeep(&mut self) -> &mut dyn Upkeep {
        self
    }

    fn queues(&mut self) -> Option<&mut dyn Queues> {
        Some(self)
    }
}
