//! Sessions of the database in memory, to the letter of the store's contract.

mod connection;
mod ledger;
mod outbox;
mod state;
mod waiting;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;

use crate::store::{
    Claim, ClaimRule, ConsumerId, ConsumerRow, Dialect, Entry, Expect, Fate, Finished, HostId,
    OutboxDepth, OutboxRecord, OutboxRow, Rows, Session, Settlement, Start, Status, Store,
    StoreError, Traits, Upkeep, Value, WaitingFilter, WaitingRecord, WaitingRow,
};

use super::database::{Database, Transaction};
use super::faults::CommitFault;

/// The one statement that the handler of the simulation runs.
pub const INSERT: &str = "INSERT INTO t_effects";

/// One host's way to the database.
pub struct ModelStore {
    database: Arc<Database>,
    given_up: GivenUp,
}

/// The names of sessions that this host has lost in the middle of something, until the server has ended them.
type GivenUp = Arc<Mutex<Vec<String>>>;

impl ModelStore {
    pub fn new(database: Arc<Database>) -> Self {
        Self {
            database,
            given_up: GivenUp::default(),
        }
    }
}

#[async_trait]
impl Store for ModelStore {
    fn traits(&self) -> Traits {
        Traits {
            dialect: Dialect::Sqlite,
            error_kills_transaction: true,
            single_writer: false,
            max_savepoints: 64,
            max_parameters: 1_000,
        }
    }

    async fn session(&self, name: &str) -> Result<Box<dyn Session>, StoreError> {
        let faults = &self.database.faults;
        faults.round_trip().await;
        // The lost one of this name is ended first, however long that takes.
        while self
            .given_up
            .lock()
            .is_ok_and(|names| names.iter().any(|one| one == name))
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if faults.is_database_away() || faults.strikes() {
            return Err(away());
        }
        Ok(Box::new(ModelSession {
            name: name.to_owned(),
            given_up: Arc::clone(&self.given_up),
            database: Arc::clone(&self.database),
            transaction: None,
            lost: false,
            committing: false,
            host: None,
        }))
    }

    async fn pending_migrations(&self) -> Result<Vec<String>, StoreError> {
        Ok(Vec::new())
    }

    async fn migrate(&self) -> Result<Vec<String>, StoreError> {
        Ok(Vec::new())
    }

    async fn warnings(&self) -> Result<Vec<String>, StoreError> {
        Ok(Vec::new())
    }
}

pub struct ModelSession {
    name: String,
    given_up: GivenUp,
    database: Arc<Database>,
    transaction: Option<Transaction>,
    /// The connection is gone.
    lost: bool,
    /// A COMMIT is on its way: whoever drops the session now does not know what becomes of it.
    committing: bool,
    host: Option<HostId>,
}

fn away() -> StoreError {
    StoreError::Unavailable("the database does not answer".into())
}

fn over() -> StoreError {
    StoreError::TransactionLost("something in it has failed".into())
}

fn unknown(what: &str) -> StoreError {
    StoreError::Unusable(format!("the database in memory knows nothing of {what}"))
}

#[async_trait]
impl Session for ModelSession {
    async fn ping(&mut self) -> Result<(), StoreError> {
        self.trip().await
    }

    async fn begin(&mut self) -> Result<(), StoreError> {
        self.trip().await?;
        if self.transaction.is_none() {
            self.transaction = Some(self.database.begin());
        }
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), StoreError> {
        match &self.transaction {
            Some(open) if !open.dead => {}
            _ => return Err(over()),
        }
        if self.lost {
            return Err(away());
        }
        self.committing = true;
        self.database.faults.round_trip().await;
        self.committing = false;
        let fault = match self.database.faults.is_database_away() {
            true => CommitFault::Before,
            false => self.database.faults.commit(),
        };
        if fault == CommitFault::Late {
            self.lose_and(true);
            return Err(StoreError::InDoubt("the connection was lost".into()));
        }
        if fault != CommitFault::Before
            && let Some(transaction) = self.transaction.take()
        {
            self.database.commit(transaction);
        }
        if fault != CommitFault::None {
            self.lose();
            return Err(StoreError::InDoubt("the connection was lost".into()));
        }
        self.database.faults.round_trip().await;
        Ok(())
    }

    async fn rollback(&mut self) -> Result<(), StoreError> {
        self.trip().await?;
        if let Some(transaction) = self.transaction.take() {
            self.database.roll_back(&transaction);
        }
        Ok(())
    }

    async fn savepoint(&mut self, name: &'static str) -> Result<(), StoreError> {
        self.statement().await?;
        let open = self.open();
        let point = (name, open.changes.clone(), open.claimed.clone());
        open.savepoints.push(point);
        Ok(())
    }

    async fn rollback_to(&mut self, name: &'static str) -> Result<(), StoreError> {
        self.trip().await?;
        let open = self.transaction.as_mut().ok_or_else(over)?;
        let at = open.savepoints.iter().rposition(|point| point.0 == name);
        let at = at.ok_or_else(over)?;
        let point = open.savepoints.drain(at..).next();
        let (_, changes, claimed) = point.ok_or_else(over)?;
        open.changes = changes;
        open.claimed = claimed;
        open.dead = false;
        Ok(())
    }

    async fn release(&mut self, name: &'static str) -> Result<(), StoreError> {
        self.statement().await?;
        let open = self.open();
        let at = open.savepoints.iter().rposition(|point| point.0 == name);
        open.savepoints.truncate(at.ok_or_else(over)?);
        Ok(())
    }

    async fn alive(&mut self) -> bool {
        !self.lost && self.transaction.as_ref().is_some_and(|open| !open.dead)
    }

    async fn consumer(
        &mut self,
        name: &str,
        key_rule: &str,
        fingerprint_rule: &str,
    ) -> Result<ConsumerRow, StoreError> {
        self.trip().await?;
        let mut state = self.database.state();
        if let Some((_, row)) = state.consumers.iter().find(|(known, _)| known == name) {
            return Ok(row.clone());
        }
        let row = ConsumerRow {
            id: ConsumerId(i32::try_from(state.consumers.len()).unwrap_or(i32::MAX) + 1),
            key_rule: key_rule.into(),
            fingerprint_rule: fingerprint_rule.into(),
            generation: 0,
            horizon: None,
        };
        state.consumers.push((name.into(), row.clone()));
        Ok(row)
    }

    async fn secret(&mut self) -> Result<Vec<u8>, StoreError> {
        self.trip().await?;
        Ok(vec![7; 32])
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

    async fn note_retention(
        &mut self,
        consumer: ConsumerId,
        retention: Duration,
    ) -> Result<(), StoreError> {
        self.ledger_note_retention(consumer, retention).await
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

    fn upkeep(&mut self) -> &mut dyn Upkeep {
        unreachable!("the operator of the simulation replays and discards, and no more")
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
        self.counts_waiting(consumer).await
    }

    async fn announce(&mut self, host: HostId) -> Result<(), StoreError> {
        self.trip().await?;
        self.database.announce(host, true);
        self.host = Some(host);
        Ok(())
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
        self.depth_outbox().await
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

    async fn query(
        &mut self,
        statement: &str,
        _: &[Value],
        _: u64,
        _: u64,
    ) -> Result<Rows, StoreError> {
        Err(unknown(statement))
    }

    async fn execute(&mut self, statement: &str, parameters: &[Value]) -> Result<u64, StoreError> {
        if !statement.starts_with(INSERT) {
            return Err(unknown(statement));
        }
        let own = self.statement().await?;
        for parameter in parameters {
            let Value::Text(text) = parameter else {
                return Err(unknown("values that are no text"));
            };
            let text = text.clone();
            self.open().changes.effects.push(text);
        }
        self.end(own);
        Ok(parameters.len() as u64)
    }

    /// Now it is, now it is not, so that both ways of running a statement are taken.
    async fn is_plain(&mut self, _: Option<&str>, _: &str) -> Result<bool, StoreError> {
        let own = self.statement().await?;
        let plain = self.open().number.is_multiple_of(2);
        self.end(own);
        Ok(plain)
    }
}
