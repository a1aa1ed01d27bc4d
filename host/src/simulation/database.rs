//! A database in memory that behaves as a server does: transactions that do not see each other, rows that
//! are locked until a transaction ends, connections that are lost, and a COMMIT whose answer may not come.
//!
//! READ COMMITTED: a transaction reads what is committed at the moment of each statement, and its own writes.
//! It knows no SQL but the one statement of the simulation's handler.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::store::{ConsumerId, ConsumerRow, Fate, HostId, OutboxRow, WaitingRow};

use super::faults::Faults;

/// Consumer and key, or consumer and id of a waiting row.
pub type Place = (i32, Vec<u8>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerEntry {
    pub fate: Fate,
    pub attempts: i32,
    pub fingerprint: Vec<u8>,
    /// Microseconds since the Unix epoch, as all times here.
    pub expires_at: Option<i64>,
    /// The answer for duplicates.
    pub reply: Option<Vec<u8>>,
}

#[derive(Clone, Debug)]
pub struct WaitingEntry {
    pub row: WaitingRow,
    pub starts: i32,
    pub due_at: Option<i64>,
    /// Its place among all rows, for good.
    pub arrival: u64,
    pub first_failed_at: i64,
    pub failed_at: i64,
}

#[derive(Clone, Debug)]
pub struct OutboxEntry {
    pub row: Arc<OutboxRow>,
    pub host: HostId,
    pub lane: i16,
    pub due_at: Option<i64>,
    pub attempts: i32,
    pub created_at: i64,
}

/// A value of the state, and its version.
pub type StateEntry = (Vec<u8>, u64);

/// What is stored. A `None` in a transaction's own tables is a row that it has removed.
#[derive(Clone, Debug)]
pub struct Tables<L, W, O, S> {
    pub ledger: BTreeMap<Place, L>,
    pub waiting: BTreeMap<Place, W>,
    pub outbox: BTreeMap<i64, O>,
    pub state: BTreeMap<Place, S>,
    /// What the handlers have inserted, without any key: doubles stay visible.
    pub effects: Vec<String>,
}

impl<L, W, O, S> Default for Tables<L, W, O, S> {
    fn default() -> Self {
        Self {
            ledger: BTreeMap::new(),
            waiting: BTreeMap::new(),
            outbox: BTreeMap::new(),
            state: BTreeMap::new(),
            effects: Vec::new(),
        }
    }
}

pub type Committed = Tables<LedgerEntry, WaitingEntry, OutboxEntry, StateEntry>;
pub type Changes =
    Tables<Option<LedgerEntry>, Option<WaitingEntry>, Option<OutboxEntry>, Option<StateEntry>>;

/// What a transaction can hold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Row {
    Key(Place),
    Waiting(Place),
    Outbox(i64),
    State(Place),
}

/// An open transaction.
#[derive(Debug, Default)]
pub struct Transaction {
    pub number: u64,
    pub changes: Changes,
    /// Keys that this very transaction has claimed.
    pub claimed: BTreeSet<Place>,
    pub savepoints: Vec<(&'static str, Changes, BTreeSet<Place>)>,
    /// Something failed in it: only a rollback may follow.
    pub dead: bool,
}

#[derive(Default)]
pub struct State {
    pub committed: Committed,
    pub consumers: Vec<(String, ConsumerRow)>,
    locks: BTreeMap<Row, u64>,
    transactions: u64,
    pub sequence: i64,
    arrivals: u64,
    /// Of each consumer.
    pub shortest_retention: BTreeMap<i32, i64>,
    /// How many sessions say that a host lives.
    pub alive: BTreeMap<i32, usize>,
}

/// Looks at everything after a commit, at the server's time: what was removed, and what is there now.
pub type Watcher = Box<dyn Fn(i64, &[OutboxEntry], &Committed) + Send>;

pub struct Database {
    state: Mutex<State>,
    pub faults: Arc<Faults>,
    pub lock_timeout: Duration,
    freed: Notify,
    watcher: Mutex<Option<Watcher>>,
    started: Instant,
    epoch_micros: i64,
}

impl Database {
    pub fn new(faults: Arc<Faults>, lock_timeout: Duration, epoch_micros: i64) -> Self {
        Self {
            state: Mutex::default(),
            faults,
            lock_timeout,
            freed: Notify::new(),
            watcher: Mutex::default(),
            started: Instant::now(),
            epoch_micros,
        }
    }

    pub fn watch(&self, watcher: Watcher) {
        *self.watcher.lock().unwrap_or_else(PoisonError::into_inner) = Some(watcher);
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server's clock.
    pub fn now(&self) -> i64 {
        let elapsed = i64::try_from(self.started.elapsed().as_micros()).unwrap_or(i64::MAX);
        self.epoch_micros.saturating_add(elapsed)
    }

    /// The number of a row that is new in `hapax_waiting`.
    pub fn next_arrival(&self) -> u64 {
        let mut state = self.state();
        state.arrivals += 1;
        state.arrivals
    }

    /// Up to when keys may have been forgotten, by the time of their messages.
    pub fn horizon(&self, consumer: ConsumerId) -> Option<i64> {
        let state = self.state();
        let row = state.consumers.iter().find(|(_, row)| row.id == consumer);
        row.and_then(|(_, row)| row.horizon)
    }

    pub fn raise_horizon(&self, consumer: ConsumerId, horizon: i64) {
        let mut state = self.state();
        let row = state.consumers.iter_mut();
        for (_, row) in row.filter(|(_, row)| row.id == consumer) {
            row.horizon = row.horizon.max(Some(horizon));
        }
    }

    pub fn begin(&self) -> Transaction {
        let mut state = self.state();
        state.transactions += 1;
        Transaction {
            number: state.transactions,
            ..Transaction::default()
        }
    }

    /// Makes a transaction's writes everybody's.
    pub fn commit(&self, transaction: Transaction) {
        let mut state = self.state();
        let Changes {
            ledger,
            waiting,
            outbox,
            state: values,
            effects,
        } = transaction.changes;
        let mut removed = Vec::new();
        apply(&mut state.committed.ledger, ledger, |_| {});
        apply(&mut state.committed.waiting, waiting, |_| {});
        apply(&mut state.committed.outbox, outbox, |row| removed.push(row));
        apply(&mut state.committed.state, values, |_| {});
        state.committed.effects.extend(effects);
        let number = transaction.number;
        state.locks.retain(|_, holder| *holder != number);
        if let Some(watcher) = &*self.watcher.lock().unwrap_or_else(PoisonError::into_inner) {
            watcher(self.now(), &removed, &state.committed);
        }
        drop(state);
        self.freed.notify_waiters();
    }

    pub fn roll_back(&self, transaction: &Transaction) {
        self.state()
            .locks
            .retain(|_, holder| *holder != transaction.number);
        self.freed.notify_waiters();
    }

    /// Waits until the row is this transaction's; false when it takes too long.
    pub async fn lock(&self, transaction: u64, row: &Row) -> bool {
        let deadline = Instant::now() + self.lock_timeout;
        loop {
            let freed = self.freed.notified();
            if self.try_lock(transaction, row) {
                return true;
            }
            if tokio::time::timeout_at(deadline, freed).await.is_err() {
                return false;
            }
        }
    }

    /// Takes the row if nobody else holds it.
    pub fn try_lock(&self, transaction: u64, row: &Row) -> bool {
        let mut state = self.state();
        match state.locks.get(row) {
            Some(holder) => *holder == transaction,
            None => {
                state.locks.insert(row.clone(), transaction);
                true
            }
        }
    }

    /// A session says that its host lives, or does not say so any more.
    pub fn announce(&self, host: HostId, lives: bool) {
        let mut state = self.state();
        let sessions = state.alive.entry(host.0).or_default();
        *sessions = if lives {
            *sessions + 1
        } else {
            sessions.saturating_sub(1)
        };
    }

    pub fn lives(&self, host: HostId) -> bool {
        self.state()
            .alive
            .get(&host.0)
            .is_some_and(|count| *count > 0)
    }
}

fn apply<K: Ord, V>(
    table: &mut BTreeMap<K, V>,
    changes: BTreeMap<K, Option<V>>,
    mut removed: impl FnMut(V),
) {
    for (key, change) in changes {
        match change {
            Some(value) => drop(table.insert(key, value)),
            None => table.remove(&key).into_iter().for_each(&mut removed),
        }
    }
}

/// A row as a transaction sees it.
pub fn seen<'a, K: Ord, V>(
    changes: &'a BTreeMap<K, Option<V>>,
    committed: &'a BTreeMap<K, V>,
    key: &K,
) -> Option<&'a V> {
    match changes.get(key) {
        Some(change) => change.as_ref(),
        None => committed.get(key),
    }
}

/// All rows as a transaction sees them, in their order.
pub fn all_seen<'a, K: Ord + Clone, V>(
    changes: &'a BTreeMap<K, Option<V>>,
    committed: &'a BTreeMap<K, V>,
) -> BTreeMap<K, &'a V> {
    let mut rows = committed
        .iter()
        .map(|(key, value)| (key.clone(), value))
        .collect::<BTreeMap<_, _>>();
    for (key, change) in changes {
        match change {
            Some(value) => drop(rows.insert(key.clone(), value)),
            None => drop(rows.remove(key)),
        }
    }
    rows
}

/// A consumer's rows.
pub fn place(consumer: ConsumerId, bytes: &[u8]) -> Place {
    (consumer.0, bytes.to_vec())
}
