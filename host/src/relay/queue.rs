//! The rows in memory: those that may go, and those that wait for an older row of their ordering key.
//!
//! Of each ordering key only the oldest row in memory is a candidate, and only after the table has said
//! that no older one exists on any host.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::store::OutboxRecord;

/// The relay's rows. Every row is in it until its removal from the table is told.
#[derive(Default)]
pub struct Queue {
    ready: VecDeque<OutboxRecord>,
    /// Rows with an ordering key, oldest first. The first one of a key may be on its way.
    ordered: BTreeMap<String, VecDeque<OutboxRecord>>,
    /// Ordering keys whose first row is in `ready` or on its way.
    moving: HashSet<String>,
    /// Since when the first row of a key waits for an older one that is not here.
    blocked: BTreeMap<String, Instant>,
    /// Every row that is here or on its way.
    known: HashMap<i64, Known>,
}

struct Known {
    ordering_key: Option<String>,
    since: Instant,
}

impl Queue {
    /// Adds rows that belong to this host. Returns those that are here already.
    pub fn extend(&mut self, records: Vec<OutboxRecord>) -> Vec<OutboxRecord> {
        let mut refused = Vec::new();
        for record in records {
            if self.known.contains_key(&record.sequence) {
                refused.push(record);
                continue;
            }
            let key = record.row.ordering_key.clone();
            let known = Known {
                ordering_key: key.clone(),
                since: Instant::now(),
            };
            self.known.insert(record.sequence, known);
            match key {
                None => self.ready.push_back(record),
                Some(key) => {
                    let rows = self.ordered.entry(key).or_default();
                    let place = rows.partition_point(|row| row.sequence < record.sequence);
                    rows.insert(place, record);
                }
            }
        }
        refused
    }

    /// Takes up to `limit` rows that may go.
    pub fn block(&mut self, limit: usize) -> Vec<OutboxRecord> {
        let count = self.ready.len().min(limit);
        self.ready.drain(..count).collect()
    }

    /// Rows that were taken and did not go, in their old place.
    pub fn put_back(&mut self, block: Vec<OutboxRecord>) {
        for record in block.into_iter().rev() {
            self.ready.push_front(record);
        }
    }

    /// These rows are not this host's any more: removed, or kept for later in the table.
    pub fn removed(&mut self, sequences: &[i64]) {
        for sequence in sequences {
            let known = self.known.remove(sequence);
            if let Some(key) = known.and_then(|known| known.ordering_key) {
                self.moving.remove(&key);
            }
        }
    }

    /// The oldest row of each ordering key that has none on its way, up to `limit`.
    pub fn heads(&self, limit: usize) -> Vec<i64> {
        self.ordered
            .iter()
            .filter(|(key, _)| !self.moving.contains(*key))
            .filter_map(|(_, rows)| rows.front().map(|row| row.sequence))
            .take(limit)
            .collect()
    }

    pub fn has_heads(&self) -> bool {
        self.ordered.keys().any(|key| !self.moving.contains(key))
    }

    /// Lets those heads go that nothing blocks, and notes which are blocked.
    pub fn release(&mut self, heads: &[i64], blocked: &[i64]) {
        for sequence in blocked {
            let known = self.known.get(sequence);
            if let Some(key) = known.and_then(|known| known.ordering_key.as_ref())
                && !self.blocked.contains_key(key)
            {
                self.blocked.insert(key.clone(), Instant::now());
            }
        }
        let blocked = blocked.iter().collect::<HashSet<_>>();
        for sequence in heads.iter().filter(|sequence| !blocked.contains(sequence)) {
            let known = self.known.get(sequence);
            let Some(key) = known.and_then(|known| known.ordering_key.as_ref()) else {
                continue;
            };
            let Some(rows) = self.ordered.get_mut(key) else {
                continue;
            };
            let Some(record) = rows.pop_front() else {
                continue;
            };
            self.blocked.remove(key);
            if rows.is_empty() {
                self.ordered.remove(key);
            }
            self.moving.insert(key.clone());
            self.ready.push_back(record);
        }
    }

    /// Rows of keys that have been blocked for so long, up to `limit`.
    pub fn stuck(&self, patience: Duration, limit: usize) -> Vec<i64> {
        self.blocked
            .iter()
            .filter(|(_, since)| since.elapsed() >= patience)
            .filter_map(|(key, _)| self.ordered.get(key))
            .flatten()
            .map(|row| row.sequence)
            .take(limit)
            .collect()
    }

    /// Takes out rows that are left to the table before they were on their way.
    pub fn leave(&mut self, sequences: &[i64]) -> Vec<OutboxRecord> {
        let mut left = Vec::with_capacity(sequences.len());
        for sequence in sequences {
            let known = self.known.remove(sequence);
            let Some(key) = known.and_then(|known| known.ordering_key) else {
                continue;
            };
            let Some(rows) = self.ordered.get_mut(&key) else {
                continue;
            };
            let place = rows.iter().position(|row| row.sequence == *sequence);
            left.extend(place.and_then(|place| rows.remove(place)));
            if rows.is_empty() {
                self.ordered.remove(&key);
                self.blocked.remove(&key);
            }
        }
        left
    }

    /// Since when a row is in memory.
    pub fn since(&self, sequence: i64) -> Option<Instant> {
        self.known.get(&sequence).map(|known| known.since)
    }

    /// Sequences of all rows that are here or on their way.
    pub fn known(&self) -> Vec<i64> {
        self.known.keys().copied().collect()
    }

    /// Rows here, those on their way included.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }
}

#[cfg(test)]
mod tests;
