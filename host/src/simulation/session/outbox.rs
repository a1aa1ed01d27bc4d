//! The rows of the outbox: whose they are, and who may take them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::store::{HostId, OutboxDepth, OutboxRecord, OutboxRow, StoreError, TAKEN_LANE};

use super::super::database::{OutboxEntry, Row};
use super::ModelSession;

impl ModelSession {
    pub(super) async fn put_outbox(
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

    pub(super) async fn take_outbox(
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

    pub(super) async fn recover_outbox(
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

    pub(super) async fn blocked_outbox(
        &mut self,
        sequences: &[i64],
    ) -> Result<Vec<i64>, StoreError> {
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

    pub(super) async fn delete_outbox(&mut self, sequences: &[i64]) -> Result<(), StoreError> {
        let own = self.statement().await?;
        for sequence in sequences {
            self.lock(&Row::Outbox(*sequence), own).await?;
            self.open().changes.outbox.insert(*sequence, None);
        }
        self.end(own);
        Ok(())
    }

    pub(super) async fn defer_outbox(
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

    pub(super) async fn give_back_outbox(
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

    pub(super) async fn depth_outbox(&mut self) -> Result<OutboxDepth, StoreError> {
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
