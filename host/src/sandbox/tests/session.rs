//! A session that records what a running message asks of it. Statements that name a table `t_slow`,
//! `t_taken` or `t_lost` never answer, meet a constraint, or find the transaction gone.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;

use super::super::engine::Pulse;
use crate::store::{
    Claim, ClaimRule, Column, Constraint, ConstraintKind, ConsumerId, ConsumerRow, Entry, Expect,
    Fate, Finished, HostId, OutboxDepth, OutboxRecord, OutboxRow, Rows, Session, Settlement, Start,
    Status, StoreError, Upkeep, Value, WaitingFilter, WaitingRecord, WaitingRow,
};

/// Statements in the order in which they ran.
pub type Journal = Arc<Mutex<Vec<String>>>;

#[derive(Default)]
pub struct FakeSession {
    pub journal: Journal,
    pub state: BTreeMap<String, (Vec<u8>, u64)>,
    /// How many epochs each statement takes.
    pub wait: Option<(Arc<Pulse>, u64)>,
}

impl FakeSession {
    async fn run(&self, statement: &str) -> Result<(), StoreError> {
        self.journal
            .lock()
            .expect("no test panics with it")
            .push(statement.to_owned());
        if let Some((pulse, epochs)) = &self.wait {
            let until = pulse.epochs() + epochs;
            while pulse.epochs() < until {
                tokio::task::yield_now().await;
            }
            // The guest is charged from the next turn on, and not for the end of the wait.
            tokio::task::yield_now().await;
        }
        if statement.contains("t_slow") {
            std::future::pending::<()>().await;
        }
        if statement.contains("t_taken") {
            return Err(StoreError::Constraint(Constraint {
                kind: ConstraintKind::Unique,
                code: "23505".into(),
                constraint: Some("t_taken_pkey".into()),
                message: "duplicate key".into(),
            }));
        }
        if statement.contains("t_lost") {
            return Err(StoreError::TransactionLost("the server went away".into()));
        }
        Ok(())
    }
}

#[async_trait]
impl Session for FakeSession {
    async fn savepoint(&mut self, _: &'static str) -> Result<(), StoreError> {
        Ok(())
    }

    async fn rollback_to(&mut self, _: &'static str) -> Result<(), StoreError> {
        Ok(())
    }

    async fn release(&mut self, _: &'static str) -> Result<(), StoreError> {
        Ok(())
    }

    async fn alive(&mut self) -> bool {
        true
    }

    async fn query(
        &mut self,
        statement: &str,
        _: &[Value],
        max_rows: u64,
        _: u64,
    ) -> Result<Rows, StoreError> {
        self.run(statement).await?;
        if max_rows == 0 {
            return Err(StoreError::Limit("more than 0 rows".into()));
        }
        let columns = vec![Column {
            name: "n".into(),
            kind: "int8".into(),
        }];
        Ok(Rows {
            columns,
            rows: vec![vec![Value::S64(7)]],
        })
    }

    async fn execute(&mut self, statement: &str, _: &[Value]) -> Result<u64, StoreError> {
        self.run(statement).await?;
        Ok(1)
    }

    async fn state_get(
        &mut self,
        _: ConsumerId,
        key: &str,
    ) -> Result<Option<(Vec<u8>, u64)>, StoreError> {
        Ok(self.state.get(key).cloned())
    }

    async fn state_write(
        &mut self,
        _: ConsumerId,
        _: &str,
        _: Option<&[u8]>,
        _: Expect,
    ) -> Result<bool, StoreError> {
        unreachable!("nothing is flushed here")
    }

    async fn ping(&mut self) -> Result<(), StoreError> {
        unreachable!("ping")
    }

    async fn begin(&mut self) -> Result<(), StoreError> {
        unreachable!("begin")
    }

    async fn commit(&mut self) -> Result<(), StoreError> {
        unreachable!("commit")
    }

    async fn rollback(&mut self) -> Result<(), StoreError> {
        unreachable!("rollback")
    }

    async fn consumer(&mut self, _: &str, _: &str, _: &str) -> Result<ConsumerRow, StoreError> {
        unreachable!("consumer")
    }

    async fn secret(&mut self) -> Result<Vec<u8>, StoreError> {
        unreachable!("secret")
    }

    async fn claim(&mut self, _: ClaimRule<'_>, _: &[Claim<'_>]) -> Result<Vec<bool>, StoreError> {
        unreachable!("claim")
    }

    async fn entries(
        &mut self,
        _: ConsumerId,
        _: &[&[u8]],
    ) -> Result<Vec<Option<Entry>>, StoreError> {
        unreachable!("entries")
    }

    async fn take(&mut self, _: ClaimRule<'_>, _: Claim<'_>, _: Fate) -> Result<bool, StoreError> {
        unreachable!("take")
    }

    async fn unclaim(&mut self, _: ConsumerId, _: &[&[u8]]) -> Result<u64, StoreError> {
        unreachable!("unclaim")
    }

    async fn settle(&mut self, _: ConsumerId, _: &[Settlement<'_>]) -> Result<u64, StoreError> {
        unreachable!("settle")
    }

    async fn finish(&mut self, _: ConsumerId, _: &[&[u8]]) -> Result<Finished, StoreError> {
        unreachable!("finish")
    }

    async fn keep_replies(
        &mut self,
        _: ConsumerId,
        _: &[(&[u8], Vec<u8>)],
    ) -> Result<u64, StoreError> {
        unreachable!("keep_replies")
    }

    async fn replies(
        &mut self,
        _: ConsumerId,
        _: &[&[u8]],
    ) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        unreachable!("replies")
    }

    async fn note_retention(&mut self, _: ConsumerId, _: Duration) -> Result<(), StoreError> {
        unreachable!("note_retention")
    }

    async fn record_start(
        &mut self,
        _: ClaimRule<'_>,
        _: Claim<'_>,
        _: bool,
    ) -> Result<Start, StoreError> {
        unreachable!("record_start")
    }

    async fn undo_start(&mut self, _: ConsumerId, _: &[u8]) -> Result<(), StoreError> {
        unreachable!("undo_start")
    }

    async fn ledger_counts(&mut self, _: ConsumerId) -> Result<Vec<(Fate, u64)>, StoreError> {
        unreachable!("ledger_counts")
    }

    async fn sweep(
        &mut self,
        _: ConsumerId,
        _: Duration,
        _: &[u8],
        _: u32,
    ) -> Result<(Option<Vec<u8>>, u64), StoreError> {
        unreachable!("sweep")
    }

    async fn waiting_put(
        &mut self,
        _: ConsumerId,
        _: &[(WaitingRow, Duration)],
    ) -> Result<(), StoreError> {
        unreachable!("waiting_put")
    }

    async fn waiting_due(
        &mut self,
        _: ConsumerId,
        _: bool,
        _: u32,
    ) -> Result<Vec<(Vec<u8>, i64)>, StoreError> {
        unreachable!("waiting_due")
    }

    async fn waiting_lines(
        &mut self,
        _: ConsumerId,
        _: &[i64],
    ) -> Result<Vec<(i64, u64)>, StoreError> {
        unreachable!("waiting_lines")
    }

    async fn waiting_release(
        &mut self,
        _: ConsumerId,
        _: Option<&[i64]>,
    ) -> Result<u64, StoreError> {
        unreachable!("waiting_release")
    }

    async fn waiting_held(&mut self, _: ConsumerId) -> Result<u64, StoreError> {
        unreachable!("waiting_held")
    }

    async fn waiting_next(&mut self, _: ConsumerId) -> Result<Option<Duration>, StoreError> {
        unreachable!("waiting_next")
    }

    async fn waiting_lock(
        &mut self,
        _: ConsumerId,
        _: &[u8],
    ) -> Result<Option<WaitingRow>, StoreError> {
        unreachable!("waiting_lock")
    }

    async fn waiting_delete(&mut self, _: ConsumerId, _: &[&[u8]]) -> Result<u64, StoreError> {
        unreachable!("waiting_delete")
    }

    async fn waiting_start(
        &mut self,
        _: ConsumerId,
        _: &[u8],
        _: bool,
    ) -> Result<Start, StoreError> {
        unreachable!("waiting_start")
    }

    async fn waiting_unstart(&mut self, _: ConsumerId, _: &[u8]) -> Result<(), StoreError> {
        unreachable!("waiting_unstart")
    }

    async fn waiting_list(&mut self, _: &WaitingFilter) -> Result<Vec<WaitingRecord>, StoreError> {
        unreachable!("waiting_list")
    }

    async fn waiting_replay(&mut self, _: &[&[u8]]) -> Result<u64, StoreError> {
        unreachable!("waiting_replay")
    }

    async fn waiting_discard(&mut self, _: &[&[u8]]) -> Result<u64, StoreError> {
        unreachable!("waiting_discard")
    }

    async fn waiting_counts(
        &mut self,
        _: ConsumerId,
    ) -> Result<Vec<(Status, String, u64)>, StoreError> {
        unreachable!("waiting_counts")
    }

    async fn announce(&mut self, _: HostId) -> Result<(), StoreError> {
        unreachable!("announce")
    }

    async fn outbox_put(
        &mut self,
        _: HostId,
        _: &[Arc<OutboxRow>],
    ) -> Result<Vec<i64>, StoreError> {
        unreachable!("outbox_put")
    }

    async fn outbox_take(&mut self, _: HostId, _: u32) -> Result<Vec<OutboxRecord>, StoreError> {
        unreachable!("outbox_take")
    }

    async fn outbox_recover(
        &mut self,
        _: HostId,
        _: i16,
        _: &[i64],
    ) -> Result<Vec<OutboxRecord>, StoreError> {
        unreachable!("outbox_recover")
    }

    async fn outbox_blocked(&mut self, _: &[i64]) -> Result<Vec<i64>, StoreError> {
        unreachable!("outbox_blocked")
    }

    async fn outbox_delete(&mut self, _: &[i64]) -> Result<(), StoreError> {
        unreachable!("outbox_delete")
    }

    async fn outbox_defer(&mut self, _: i64, _: Duration, _: &str) -> Result<(), StoreError> {
        unreachable!("outbox_defer")
    }

    async fn outbox_give_back(&mut self, _: HostId, _: &[i64]) -> Result<(), StoreError> {
        unreachable!("outbox_give_back")
    }

    async fn outbox_depth(&mut self) -> Result<OutboxDepth, StoreError> {
        unreachable!("outbox_depth")
    }

    fn upkeep(&mut self) -> &mut dyn Upkeep {
        unreachable!("upkeep")
    }
}
