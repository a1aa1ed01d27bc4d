//! The rows of failed messages, and the lines that they form.

use std::time::Duration;

use crate::store::{
    ConsumerId, Fate, Start, Status, StoreError, WaitingFilter, WaitingRecord, WaitingRow,
};

use super::super::database::{Row, WaitingEntry, place};
use super::{ModelSession, unknown};

impl ModelSession {
    pub(super) async fn put_waiting(
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

    pub(super) async fn due_waiting(
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

    pub(super) async fn lines_waiting(
        &mut self,
        _: ConsumerId,
        _: &[i64],
    ) -> Result<Vec<(i64, u64)>, StoreError> {
        Err(unknown("lines"))
    }

    pub(super) async fn release_waiting(
        &mut self,
        _: ConsumerId,
        _: Option<&[i64]>,
    ) -> Result<u64, StoreError> {
        // The consumer of the simulation keeps no lines: nothing is held.
        self.trip().await.map(|()| 0)
    }

    pub(super) async fn held_waiting(&mut self, _: ConsumerId) -> Result<u64, StoreError> {
        self.trip().await.map(|()| 0)
    }

    pub(super) async fn next_waiting(
        &mut self,
        consumer: ConsumerId,
    ) -> Result<Option<Duration>, StoreError> {
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

    pub(super) async fn lock_waiting(
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

    pub(super) async fn delete_waiting(
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

    pub(super) async fn start_waiting(
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

    pub(super) async fn unstart_waiting(
        &mut self,
        consumer: ConsumerId,
        id: &[u8],
    ) -> Result<(), StoreError> {
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

    pub(super) async fn list_waiting(
        &mut self,
        _: &WaitingFilter,
    ) -> Result<Vec<WaitingRecord>, StoreError> {
        Err(unknown("operators"))
    }

    pub(super) async fn replay_waiting(&mut self, ids: &[&[u8]]) -> Result<u64, StoreError> {
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

    pub(super) async fn discard_waiting(&mut self, _: &[&[u8]]) -> Result<u64, StoreError> {
        Err(unknown("operators"))
    }

    pub(super) async fn counts_waiting(
        &mut self,
        _: ConsumerId,
    ) -> Result<Vec<(Status, String, u64)>, StoreError> {
        Err(unknown("operators"))
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
}
