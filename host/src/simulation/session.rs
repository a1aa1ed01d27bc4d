//! Sessions of the database in memory, to the letter of the store's contract.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;

use crate::store::{
    Claim, ClaimRule, ConsumerId, ConsumerRow, Dialect, Entry, Expect, Fate, Finished, HostId,
    OutboxDepth, OutboxRecord, OutboxRow, Rows, Session, Settlement, Start, Status, Store,
    StoreError, TAKEN_LANE, Traits, Upkeep, Value, WaitingFilter, WaitingRecord, WaitingRow,
};

use super::database::{
    Database, LedgerEntry, OutboxEntry, Row, Transaction, WaitingEntry, all_seen, place, seen,
};
use super::faults::{CommitFault, Sabotage};

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

impl ModelSession {
    /// A round trip to the server, which may be the last one of this connection.
    async fn trip(&mut self) -> Result<(), StoreError> {
        if self.lost {
            return Err(away());
        }
        self.database.faults.round_trip().await;
        let faults = &self.database.faults;
        if faults.is_database_away() || faults.strikes() {
            self.lose();
            return Err(away());
        }
        Ok(())
    }

    /// Begins a statement: in the open transaction, or in one of its own, which the caller ends.
    async fn statement(&mut self) -> Result<bool, StoreError> {
        if self.transaction.as_ref().is_some_and(|open| open.dead) {
            return Err(over());
        }
        self.trip().await?;
        let own = self.transaction.is_none();
        if own {
            self.transaction = Some(self.database.begin());
        }
        Ok(own)
    }

    fn end(&mut self, own: bool) {
        if own && let Some(transaction) = self.transaction.take() {
            self.database.commit(transaction);
        }
    }

    fn open(&mut self) -> &mut Transaction {
        self.transaction
            .as_mut()
            .expect("a statement has begun a transaction")
    }

    async fn lock(&mut self, row: &Row, own: bool) -> Result<(), StoreError> {
        let number = self.open().number;
        if self.database.lock(number, row).await {
            return Ok(());
        }
        self.open().dead = true;
        if own && let Some(transaction) = self.transaction.take() {
            self.database.roll_back(&transaction);
        }
        Err(StoreError::LockTimeout(format!("{row:?}")))
    }

    /// The connection is gone; the server finds out later.
    fn lose(&mut self) {
        let commits = std::mem::take(&mut self.committing) && self.database.faults.coin();
        self.lose_and(commits);
    }

    /// The connection is gone, and what was open on it ends later: it commits, or is rolled back.
    fn lose_and(&mut self, commits: bool) {
        let (name, given_up) = (self.name.clone(), Arc::clone(&self.given_up));
        if let Ok(mut names) = given_up.lock() {
            names.push(name.clone());
        }
        self.leave(commits, move || {
            if let Ok(mut names) = given_up.lock()
                && let Some(place) = names.iter().position(|one| *one == name)
            {
                names.swap_remove(place);
            }
        });
    }

    fn leave(&mut self, commits: bool, ended: impl FnOnce() + Send + 'static) {
        self.lost = true;
        let (transaction, host) = (self.transaction.take(), self.host.take());
        let database = Arc::clone(&self.database);
        let notice = database.faults.notice();
        let end = move |database: &Database| {
            match transaction {
                Some(transaction) if commits => database.commit(transaction),
                Some(transaction) => database.roll_back(&transaction),
                None => {}
            }
            if let Some(host) = host {
                database.announce(host, false);
            }
            ended();
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if !notice.is_zero() => drop(runtime.spawn(async move {
                tokio::time::sleep(notice).await;
                end(&database);
            })),
            _ => end(&database),
        }
    }

    fn ledger(&self, key: &[u8], consumer: ConsumerId) -> Option<LedgerEntry> {
        let key = place(consumer, key);
        let state = self.database.state();
        let committed = &state.committed.ledger;
        match &self.transaction {
            Some(open) => seen(&open.changes.ledger, committed, &key).cloned(),
            None => committed.get(&key).cloned(),
        }
    }

    fn waiting(&self) -> Vec<(super::database::Place, WaitingEntry)> {
        let state = self.database.state();
        let none = BTreeMap::new();
        let changes = self
            .transaction
            .as_ref()
            .map_or(&none, |open| &open.changes.waiting);
        all_seen(changes, &state.committed.waiting)
            .into_iter()
            .map(|(place, entry)| (place, entry.clone()))
            .collect()
    }

    fn due(&self, entry: &WaitingEntry) -> bool {
        entry.row.status == Status::Retry
            && entry.due_at.is_some_and(|due| due <= self.database.now())
    }

    fn expires_at(&self, rule: ClaimRule<'_>, claim: &Claim<'_>) -> Option<i64> {
        let sent = claim
            .timestamp_seconds
            .map_or(0, |seconds| seconds.saturating_mul(1_000_000));
        rule.retention.map(|retention| {
            let micros = i64::try_from(retention.as_micros()).unwrap_or(i64::MAX);
            self.database.now().max(sent).saturating_add(micros)
        })
    }

    fn fresh(&self, rule: ClaimRule<'_>, claim: &Claim<'_>, fate: Fate) -> LedgerEntry {
        LedgerEntry {
            fate,
            attempts: claim.attempts,
            fingerprint: claim.fingerprint.to_vec(),
            expires_at: self.expires_at(rule, claim),
        }
    }
}

impl Drop for ModelSession {
    fn drop(&mut self) {
        match (self.lost, self.committing) {
            (true, _) => {}
            (false, true) => self.lose(),
            // Closed, not lost: the next of its name does not wait for it.
            (false, false) => self.leave(false, || {}),
        }
    }
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
        let own = self.statement().await?;
        let mut new = Vec::with_capacity(claims.len());
        for claim in claims {
            let key = place(rule.consumer, claim.key);
            // A row that is there is no obstacle; one that is being inserted is waited for.
            let mut there = self.ledger(claim.key, rule.consumer).is_some();
            if !there {
                self.lock(&Row::Key(key.clone()), own).await?;
                there = self.ledger(claim.key, rule.consumer).is_some();
            }
            if !there {
                let entry = self.fresh(rule, claim, Fate::Committed);
                if self.database.faults.sabotage == Sabotage::ClaimOutside {
                    let mut other = self.database.begin();
                    other
                        .changes
                        .ledger
                        .insert(key.clone(), Some(entry.clone()));
                    self.database.commit(other);
                }
                let open = self.open();
                open.changes.ledger.insert(key.clone(), Some(entry));
                open.claimed.insert(key);
            }
            new.push(!there);
        }
        self.end(own);
        Ok(new)
    }

    async fn entries(
        &mut self,
        consumer: ConsumerId,
        keys: &[&[u8]],
    ) -> Result<Vec<Option<Entry>>, StoreError> {
        let own = self.statement().await?;
        let entries = keys
            .iter()
            .map(|key| {
                self.ledger(key, consumer).map(|entry| Entry {
                    key: key.to_vec(),
                    fate: entry.fate,
                    fingerprint: entry.fingerprint,
                    attempts: entry.attempts,
                })
            })
            .collect();
        self.end(own);
        Ok(entries)
    }

    async fn take(
        &mut self,
        rule: ClaimRule<'_>,
        claim: Claim<'_>,
        from: Fate,
    ) -> Result<bool, StoreError> {
        let own = self.statement().await?;
        let key = place(rule.consumer, claim.key);
        if self.ledger(claim.key, rule.consumer).is_none() {
            self.end(own);
            return Ok(false);
        }
        self.lock(&Row::Key(key.clone()), own).await?;
        let taken = self
            .ledger(claim.key, rule.consumer)
            .is_some_and(|entry| entry.fate == from);
        if taken {
            let entry = self.fresh(rule, &claim, Fate::Committed);
            let open = self.open();
            open.changes.ledger.insert(key.clone(), Some(entry));
            open.claimed.insert(key);
        }
        self.end(own);
        Ok(taken)
    }

    async fn unclaim(&mut self, consumer: ConsumerId, keys: &[&[u8]]) -> Result<u64, StoreError> {
        let own = self.statement().await?;
        let mut removed = 0;
        for key in keys {
            let key = place(consumer, key);
            let open = self.open();
            if open.claimed.remove(&key) {
                open.changes.ledger.remove(&key);
                removed += 1;
            }
        }
        self.end(own);
        Ok(removed)
    }

    async fn settle(
        &mut self,
        consumer: ConsumerId,
        settlements: &[Settlement<'_>],
    ) -> Result<u64, StoreError> {
        let own = self.statement().await?;
        let mut changed = 0;
        for settlement in settlements {
            let key = place(consumer, settlement.key);
            let open = self.open();
            if !open.claimed.contains(&key) {
                continue;
            }
            if let Some(Some(entry)) = open.changes.ledger.get_mut(&key) {
                entry.fate = settlement.fate;
                entry.attempts = settlement.attempts;
                changed += 1;
            }
        }
        self.end(own);
        Ok(changed)
    }

    async fn finish(
        &mut self,
        consumer: ConsumerId,
        keys: &[&[u8]],
    ) -> Result<Finished, StoreError> {
        let own = self.statement().await?;
        let open = self.open();
        let claimed = keys
            .iter()
            .filter(|key| open.claimed.contains(&place(consumer, key)))
            .count();
        self.end(own);
        Ok(Finished {
            claims: claimed as u64,
            horizon: None,
        })
    }

    async fn keep_replies(
        &mut self,
        _: ConsumerId,
        _: &[(&[u8], Vec<u8>)],
    ) -> Result<u64, StoreError> {
        Err(unknown("replies"))
    }

    async fn replies(
        &mut self,
        _: ConsumerId,
        _: &[&[u8]],
    ) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        Err(unknown("replies"))
    }

    async fn note_retention(&mut self, _: ConsumerId, _: Duration) -> Result<(), StoreError> {
        Err(unknown("the sweep"))
    }

    async fn record_start(
        &mut self,
        rule: ClaimRule<'_>,
        claim: Claim<'_>,
        first: bool,
    ) -> Result<Start, StoreError> {
        let own = self.statement().await?;
        let key = place(rule.consumer, claim.key);
        self.lock(&Row::Key(key.clone()), own).await?;
        let start = match self.ledger(claim.key, rule.consumer) {
            Some(entry) if entry.fate != Fate::Started => Start::Elsewhere,
            Some(_) if first => Start::Earlier,
            known => {
                let starts = known.map_or(0, |entry| entry.attempts) + 1;
                let entry = LedgerEntry {
                    attempts: starts,
                    ..self.fresh(rule, &claim, Fate::Started)
                };
                self.open().changes.ledger.insert(key, Some(entry));
                Start::Recorded(starts)
            }
        };
        self.end(own);
        Ok(start)
    }

    async fn undo_start(&mut self, consumer: ConsumerId, key: &[u8]) -> Result<(), StoreError> {
        let own = self.statement().await?;
        let row = place(consumer, key);
        self.lock(&Row::Key(row.clone()), own).await?;
        if let Some(mut entry) = self.ledger(key, consumer)
            && entry.fate == Fate::Started
        {
            entry.attempts -= 1;
            let left = (entry.attempts > 0).then_some(entry);
            self.open().changes.ledger.insert(row, left);
        }
        self.end(own);
        Ok(())
    }

    async fn ledger_counts(
        &mut self,
        consumer: ConsumerId,
    ) -> Result<Vec<(Fate, u64)>, StoreError> {
        self.trip().await?;
        let state = self.database.state();
        let mut counts = BTreeMap::<i16, u64>::new();
        for ((owner, _), entry) in &state.committed.ledger {
            if *owner == consumer.0 {
                *counts.entry(entry.fate as i16).or_default() += 1;
            }
        }
        Ok(counts
            .into_iter()
            .filter_map(|(fate, count)| Some((Fate::from_number(fate)?, count)))
            .collect())
    }

    async fn sweep(
        &mut self,
        _: ConsumerId,
        _: Duration,
        _: &[u8],
        _: u32,
    ) -> Result<(Option<Vec<u8>>, u64), StoreError> {
        Err(unknown("the sweep"))
    }

    async fn waiting_put(
        &mut self,
        consumer: ConsumerId,
        rows: &[(WaitingRow, Duration)],
    ) -> Result<(), StoreError> {
        let own = self.statement().await?;
        let now = self.database.now();
        for (row, due) in rows {
            let id = place(consumer, &row.id);
            self.lock(&Row::Waiting(id.clone()), own).await?;
            let known = self.waiting().into_iter().find(|(place, _)| *place == id);
            if known.is_some() && row.key.is_none() {
                continue;
            }
            let micros = i64::try_from(due.as_micros()).unwrap_or(i64::MAX);
            let entry = WaitingEntry {
                row: row.clone(),
                starts: 0,
                due_at: (row.status != Status::Parked).then(|| now.saturating_add(micros)),
            };
            self.open().changes.waiting.insert(id, Some(entry));
        }
        self.end(own);
        Ok(())
    }

    async fn waiting_due(
        &mut self,
        consumer: ConsumerId,
        in_line: bool,
        limit: u32,
    ) -> Result<Vec<(Vec<u8>, i64)>, StoreError> {
        if in_line {
            return Err(unknown("lines"));
        }
        let own = self.statement().await?;
        let mut due = self
            .waiting()
            .into_iter()
            .filter(|((owner, _), entry)| *owner == consumer.0 && self.due(entry))
            .map(|((_, id), entry)| (entry.due_at, id, entry.row.partition))
            .collect::<Vec<_>>();
        due.sort();
        due.truncate(limit as usize);
        self.end(own);
        Ok(due.into_iter().map(|(_, id, at)| (id, at)).collect())
    }

    async fn waiting_lines(
        &mut self,
        _: ConsumerId,
        _: &[i64],
    ) -> Result<Vec<(i64, u64)>, StoreError> {
        Err(unknown("lines"))
    }

    async fn waiting_release(
        &mut self,
        _: ConsumerId,
        _: Option<&[i64]>,
    ) -> Result<u64, StoreError> {
        // The consumer of the simulation keeps no lines: nothing is held.
        self.trip().await.map(|()| 0)
    }

    async fn waiting_held(&mut self, _: ConsumerId) -> Result<u64, StoreError> {
        self.trip().await.map(|()| 0)
    }

    fn upkeep(&mut self) -> &mut dyn Upkeep {
        unreachable!("nobody operates the simulation")
    }

    async fn waiting_next(&mut self, consumer: ConsumerId) -> Result<Option<Duration>, StoreError> {
        let own = self.statement().await?;
        let now = self.database.now();
        let next = self
            .waiting()
            .into_iter()
            .filter(|((owner, _), entry)| *owner == consumer.0 && entry.row.status == Status::Retry)
            .filter_map(|(_, entry)| entry.due_at)
            .min();
        self.end(own);
        Ok(next.map(|due| Duration::from_micros(u64::try_from(due - now).unwrap_or(0))))
    }

    async fn waiting_lock(
        &mut self,
        consumer: ConsumerId,
        id: &[u8],
    ) -> Result<Option<WaitingRow>, StoreError> {
        let own = self.statement().await?;
        let id = place(consumer, id);
        let number = self.open().number;
        let row = match self.database.try_lock(number, &Row::Waiting(id.clone())) {
            // SKIP LOCKED.
            false => None,
            true => self
                .waiting()
                .into_iter()
                .find(|(place, entry)| *place == id && self.due(entry))
                .map(|(_, entry)| entry.row),
        };
        self.end(own);
        Ok(row)
    }

    async fn waiting_delete(
        &mut self,
        consumer: ConsumerId,
        ids: &[&[u8]],
    ) -> Result<u64, StoreError> {
        let own = self.statement().await?;
        let mut deleted = 0;
        for id in ids {
            let id = place(consumer, id);
            self.lock(&Row::Waiting(id.clone()), own).await?;
            if self.waiting().iter().any(|(place, _)| *place == id) {
                self.open().changes.waiting.insert(id, None);
                deleted += 1;
            }
        }
        self.end(own);
        Ok(deleted)
    }

    async fn waiting_start(
        &mut self,
        consumer: ConsumerId,
        id: &[u8],
        first: bool,
    ) -> Result<Start, StoreError> {
        let own = self.statement().await?;
        let id = place(consumer, id);
        let number = self.open().number;
        let free = self.database.try_lock(number, &Row::Waiting(id.clone()));
        let known = self.waiting().into_iter().find(|(place, _)| *place == id);
        let starts = match known {
            Some((_, entry)) if free && self.due(&entry) && first && entry.starts > 0 => {
                Start::Earlier
            }
            Some((_, mut entry)) if free && self.due(&entry) => {
                entry.starts += 1;
                let starts = entry.starts;
                self.open().changes.waiting.insert(id, Some(entry));
                Start::Recorded(starts)
            }
            _ => Start::Elsewhere,
        };
        self.end(own);
        Ok(starts)
    }

    async fn waiting_unstart(&mut self, consumer: ConsumerId, id: &[u8]) -> Result<(), StoreError> {
        let own = self.statement().await?;
        let id = place(consumer, id);
        self.lock(&Row::Waiting(id.clone()), own).await?;
        let known = self.waiting().into_iter().find(|(place, _)| *place == id);
        if let Some((_, mut entry)) = known {
            entry.starts = (entry.starts - 1).max(0);
            self.open().changes.waiting.insert(id, Some(entry));
        }
        self.end(own);
        Ok(())
    }

    async fn waiting_list(&mut self, _: &WaitingFilter) -> Result<Vec<WaitingRecord>, StoreError> {
        Err(unknown("operators"))
    }

    async fn waiting_replay(&mut self, ids: &[&[u8]]) -> Result<u64, StoreError> {
        let own = self.statement().await?;
        let mut replayed = 0;
        for (id, mut entry) in self.waiting() {
            if !ids.contains(&id.1.as_slice()) {
                continue;
            }
            self.lock(&Row::Waiting(id.clone()), own).await?;
            if entry.row.status != Status::Parked {
                continue;
            }
            let consumer = ConsumerId(id.0);
            if let Some(key) = &entry.row.key {
                let row = place(consumer, key);
                self.lock(&Row::Key(row.clone()), own).await?;
                if let Some(mut known) = self.ledger(key, consumer)
                    && known.fate == Fate::Parked
                {
                    known.fate = Fate::Waiting;
                    known.attempts = 0;
                    self.open().changes.ledger.insert(row, Some(known));
                }
            }
            entry.row.status = Status::Retry;
            entry.row.attempts = 0;
            entry.starts = 0;
            entry.due_at = Some(self.database.now());
            self.open().changes.waiting.insert(id, Some(entry));
            replayed += 1;
        }
        self.end(own);
        Ok(replayed)
    }

    async fn waiting_discard(&mut self, _: &[&[u8]]) -> Result<u64, StoreError> {
        Err(unknown("operators"))
    }

    async fn waiting_counts(
        &mut self,
        _: ConsumerId,
    ) -> Result<Vec<(Status, String, u64)>, StoreError> {
        Err(unknown("operators"))
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
        let own = self.statement().await?;
        let now = self.database.now();
        let mut sequences = Vec::with_capacity(rows.len());
        for row in rows {
            let sequence = {
                let mut state = self.database.state();
                state.sequence += 1;
                state.sequence
            };
            let delay = row.delay.map(|delay| delay.as_micros());
            let entry = OutboxEntry {
                row: Arc::clone(row),
                host,
                lane: row.lane,
                due_at: delay
                    .map(|micros| now.saturating_add(i64::try_from(micros).unwrap_or(i64::MAX))),
                attempts: 0,
                created_at: now,
            };
            self.open().changes.outbox.insert(sequence, Some(entry));
            sequences.push(sequence);
        }
        self.end(own);
        Ok(sequences)
    }

    async fn outbox_take(
        &mut self,
        host: HostId,
        limit: u32,
    ) -> Result<Vec<OutboxRecord>, StoreError> {
        let own = self.statement().await?;
        let now = self.database.now();
        let number = self.open().number;
        let rows = self.database.state().committed.outbox.clone();
        let free = |entry: &OutboxEntry| match entry.due_at {
            Some(due) => due <= now,
            None => entry.host != host && !self.database.lives(entry.host),
        };
        let mut taken = BTreeMap::<i64, OutboxEntry>::new();
        for (sequence, entry) in &rows {
            let blocked = entry.row.ordering_key.is_some()
                && rows.range(..sequence).any(|(older, other)| {
                    other.row.ordering_key == entry.row.ordering_key && !taken.contains_key(older)
                });
            let row = Row::Outbox(*sequence);
            if taken.len() < limit as usize
                && free(entry)
                && !blocked
                && self.database.try_lock(number, &row)
            {
                let mut entry = entry.clone();
                entry.host = host;
                entry.lane = TAKEN_LANE;
                entry.due_at = None;
                taken.insert(*sequence, entry);
            }
        }
        let records = taken
            .iter()
            .map(|(sequence, entry)| record(*sequence, entry));
        let records = records.collect();
        for (sequence, entry) in taken {
            self.open().changes.outbox.insert(sequence, Some(entry));
        }
        self.end(own);
        // Taken, and nobody knows: what a COMMIT in doubt is to a statement of its own.
        if self.database.faults.strikes() {
            self.lose();
            return Err(StoreError::InDoubt("the connection was lost".into()));
        }
        Ok(records)
    }

    async fn outbox_recover(
        &mut self,
        host: HostId,
        lane: i16,
        known: &[i64],
    ) -> Result<Vec<OutboxRecord>, StoreError> {
        let own = self.statement().await?;
        let rows = self.database.state().committed.outbox.clone();
        self.end(own);
        Ok(rows
            .iter()
            .filter(|(sequence, entry)| {
                entry.host == host
                    && entry.lane == lane
                    && entry.due_at.is_none()
                    && !known.contains(sequence)
            })
            .map(|(sequence, entry)| record(*sequence, entry))
            .collect())
    }

    async fn outbox_blocked(&mut self, sequences: &[i64]) -> Result<Vec<i64>, StoreError> {
        let own = self.statement().await?;
        let rows = self.database.state().committed.outbox.clone();
        self.end(own);
        let blocked = |sequence: &i64| {
            let key = rows.get(sequence).map(|entry| &entry.row.ordering_key);
            key.is_some_and(|key| {
                key.is_some()
                    && rows
                        .range(..sequence)
                        .any(|(_, other)| other.row.ordering_key == *key)
            })
        };
        let mut found = sequences
            .iter()
            .copied()
            .filter(blocked)
            .collect::<Vec<_>>();
        found.sort_unstable();
        Ok(found)
    }

    async fn outbox_delete(&mut self, sequences: &[i64]) -> Result<(), StoreError> {
        let own = self.statement().await?;
        for sequence in sequences {
            self.lock(&Row::Outbox(*sequence), own).await?;
            self.open().changes.outbox.insert(*sequence, None);
        }
        self.end(own);
        Ok(())
    }

    async fn outbox_defer(
        &mut self,
        sequence: i64,
        delay: Duration,
        _error: &str,
    ) -> Result<(), StoreError> {
        let own = self.statement().await?;
        self.lock(&Row::Outbox(sequence), own).await?;
        let entry = self
            .database
            .state()
            .committed
            .outbox
            .get(&sequence)
            .cloned();
        if let Some(mut entry) = entry {
            entry.attempts += 1;
            let micros = i64::try_from(delay.as_micros()).unwrap_or(i64::MAX);
            entry.due_at = Some(self.database.now() + micros);
            self.open().changes.outbox.insert(sequence, Some(entry));
        }
        self.end(own);
        Ok(())
    }

    async fn outbox_give_back(
        &mut self,
        host: HostId,
        sequences: &[i64],
    ) -> Result<(), StoreError> {
        let own = self.statement().await?;
        let now = self.database.now();
        let rows = self.database.state().committed.outbox.clone();
        for sequence in sequences {
            let Some(entry) = rows.get(sequence) else {
                continue;
            };
            if entry.host != host || entry.due_at.is_some() {
                continue;
            }
            self.lock(&Row::Outbox(*sequence), own).await?;
            let oldest = rows
                .values()
                .find(|other| other.row.ordering_key == entry.row.ordering_key);
            let mut entry = entry.clone();
            entry.due_at = Some(oldest.and_then(|oldest| oldest.due_at).unwrap_or(now));
            self.open().changes.outbox.insert(*sequence, Some(entry));
        }
        self.end(own);
        Ok(())
    }

    async fn outbox_depth(&mut self) -> Result<OutboxDepth, StoreError> {
        self.trip().await?;
        let now = self.database.now();
        let state = self.database.state();
        let rows = &state.committed.outbox;
        let oldest = rows
            .values()
            .filter(|entry| entry.attempts > 0 || entry.due_at.is_none_or(|due| due <= now))
            .map(|entry| entry.created_at)
            .min();
        Ok(OutboxDepth {
            rows: rows.len() as u64,
            oldest_seconds: oldest.map_or(0.0, |oldest| (now - oldest).max(0) as f64 / 1e6),
        })
    }

    async fn state_get(
        &mut self,
        consumer: ConsumerId,
        key: &str,
    ) -> Result<Option<(Vec<u8>, u64)>, StoreError> {
        let own = self.statement().await?;
        let row = place(consumer, key.as_bytes());
        self.lock(&Row::State(row.clone()), own).await?;
        let found = {
            let state = self.database.state();
            let changes = &self.transaction.as_ref().ok_or_else(over)?.changes.state;
            seen(changes, &state.committed.state, &row).cloned()
        };
        self.end(own);
        Ok(found)
    }

    async fn state_write(
        &mut self,
        consumer: ConsumerId,
        key: &str,
        value: Option<&[u8]>,
        expect: Expect,
    ) -> Result<bool, StoreError> {
        let own = self.statement().await?;
        let row = place(consumer, key.as_bytes());
        self.lock(&Row::State(row.clone()), own).await?;
        let found = {
            let state = self.database.state();
            let changes = &self.transaction.as_ref().ok_or_else(over)?.changes.state;
            seen(changes, &state.committed.state, &row).cloned()
        };
        let version = found.map(|(_, version)| version);
        let expected = match expect {
            Expect::Anything => true,
            Expect::Absent => version.is_none(),
            Expect::Version(wanted) => version == Some(wanted),
        };
        if expected {
            let next = version.map_or(1, |version| version + 1);
            let change = value.map(|value| (value.to_vec(), next));
            self.open().changes.state.insert(row, change);
        }
        self.end(own);
        Ok(expected)
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
}

fn record(sequence: i64, entry: &OutboxEntry) -> OutboxRecord {
    OutboxRecord {
        sequence,
        attempts: entry.attempts,
        row: Arc::new(OutboxRow {
            lane: entry.lane,
            delay: None,
            ..(*entry.row).clone()
        }),
    }
}
