//! The rows of failed messages, and the lines that they form.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::store::{
    ConsumerId, Fate, Start, Status, StoreError, WaitingFilter, WaitingRecord, WaitingRow,
};

use super::super::database::{Place, Row, WaitingEntry, all_seen, place, seen};
use super::{ModelSession, unknown};

/// How often a line may change while its first row is waited for.
const MAX_CHANGES: u32 = 8;

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
            let known = self.row(&id);
            if known.is_some() && row.key.is_none() {
                continue;
            }
            let micros = i64::try_from(due.as_micros()).unwrap_or(i64::MAX);
            let entry = WaitingEntry {
                row: row.clone(),
                starts: 0,
                due_at: (row.status == Status::Retry).then(|| now.saturating_add(micros)),
                arrival: match &known {
                    Some(known) => known.arrival,
                    None => self.database.next_arrival(),
                },
                first_failed_at: known.map_or(now, |known| known.first_failed_at),
                failed_at: now,
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
        let own = self.statement().await?;
        let lines = self.lines(consumer, None);
        let stands_behind = |id: &Place, entry: &WaitingEntry| {
            let first = lines.get(&entry.row.partition).map(|line| &line.first);
            in_line && entry.row.key.is_some() && first != Some(id)
        };
        let mut due = self
            .waiting()
            .into_iter()
            .filter(|(id, entry)| {
                id.0 == consumer.0 && self.due(entry) && !stands_behind(id, entry)
            })
            .map(|((_, id), entry)| (entry.due_at, id, entry.row.partition))
            .collect::<Vec<_>>();
        due.sort();
        due.truncate(limit as usize);
        self.end(own);
        Ok(due.into_iter().map(|(_, id, at)| (id, at)).collect())
    }

    pub(super) async fn lines_waiting(
        &mut self,
        consumer: ConsumerId,
        partitions: &[i64],
    ) -> Result<Vec<(i64, u64)>, StoreError> {
        let own = self.statement().await?;
        let mut locked = BTreeSet::new();
        // A first row that was waited for may be gone afterwards: what is counted in the end is locked.
        for _ in 0..MAX_CHANGES {
            let lines = self.lines(consumer, Some(partitions));
            if lines.values().all(|line| locked.contains(&line.first)) {
                self.end(own);
                return Ok(lines
                    .into_iter()
                    .map(|(at, line)| (at, line.held))
                    .collect());
            }
            for line in lines.into_values() {
                self.lock(&Row::Waiting(line.first.clone()), own).await?;
                locked.insert(line.first);
            }
        }
        self.end(own);
        Err(StoreError::Conflict("a line comes and goes".into()))
    }

    pub(super) async fn release_waiting(
        &mut self,
        consumer: ConsumerId,
        partitions: Option<&[i64]>,
    ) -> Result<u64, StoreError> {
        let own = self.statement().await?;
        let released = self.release_lines(consumer, partitions, own).await?;
        self.end(own);
        Ok(released)
    }

    async fn release_lines(
        &mut self,
        consumer: ConsumerId,
        partitions: Option<&[i64]>,
        own: bool,
    ) -> Result<u64, StoreError> {
        let mut released = 0;
        for line in self.lines(consumer, partitions).into_values() {
            let is_held =
                |entry: Option<WaitingEntry>| entry.filter(|one| one.row.status == Status::Held);
            if is_held(self.row(&line.first)).is_none() {
                continue;
            }
            self.lock(&Row::Waiting(line.first.clone()), own).await?;
            if let Some(mut entry) = is_held(self.row(&line.first)) {
                entry.row.status = Status::Retry;
                entry.due_at = Some(self.database.now());
                entry.starts = 0;
                let changes = &mut self.open().changes;
                changes.waiting.insert(line.first, Some(entry));
                released += 1;
            }
        }
        Ok(released)
    }

    pub(super) async fn held_waiting(&mut self, consumer: ConsumerId) -> Result<u64, StoreError> {
        let own = self.statement().await?;
        let lines = self.lines(consumer, None);
        self.end(own);
        Ok(lines.values().map(|line| line.held).max().unwrap_or(0))
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
            true => self.row(&id).filter(|entry| self.due(entry)),
        };
        self.end(own);
        Ok(row.map(|entry| entry.row))
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
            if self.row(&id).is_some() {
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
        let starts = match self.row(&id).filter(|entry| free && self.due(entry)) {
            Some(entry) if first && entry.starts > 0 => Start::Earlier,
            Some(mut entry) => {
                entry.starts += 1;
                let starts = entry.starts;
                self.open().changes.waiting.insert(id, Some(entry));
                Start::Recorded(starts)
            }
            None => Start::Elsewhere,
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
        if let Some(mut entry) = self.row(&id) {
            entry.starts = (entry.starts - 1).max(0);
            self.open().changes.waiting.insert(id, Some(entry));
        }
        self.end(own);
        Ok(())
    }

    /// Knows of a filter what the simulation's operator asks for.
    pub(super) async fn list_waiting(
        &mut self,
        filter: &WaitingFilter,
    ) -> Result<Vec<WaitingRecord>, StoreError> {
        if filter.since.is_some() || filter.until.is_some() || filter.after.is_some() {
            return Err(unknown("spans and pages"));
        }
        let own = self.statement().await?;
        let consumers = self.database.state().consumers.clone();
        let name_of = |id: &Place| {
            let known = consumers.iter().find(|(_, row)| row.id.0 == id.0);
            known.map_or("", |(name, _)| name)
        };
        let is_meant = |id: &Place, row: &WaitingRow| {
            let prefix = filter.id_prefix.as_ref();
            filter
                .consumer
                .as_ref()
                .is_none_or(|name| name == name_of(id))
                && filter.status.is_none_or(|status| status == row.status)
                && filter.code.as_ref().is_none_or(|code| *code == row.code)
                && prefix.is_none_or(|prefix| row.id.starts_with(prefix))
                && filter
                    .key
                    .as_ref()
                    .is_none_or(|key| row.key.as_ref() == Some(key))
        };
        let mut records = self
            .waiting()
            .into_iter()
            .filter(|(id, entry)| is_meant(id, &entry.row))
            .map(|(id, mut entry)| {
                if filter.without_bodies {
                    entry.row.message.body = bytes::Bytes::new();
                }
                WaitingRecord {
                    consumer: name_of(&id).to_owned(),
                    row: entry.row,
                    first_failed_at: entry.first_failed_at,
                    failed_at: entry.failed_at,
                    due_at: entry.due_at,
                }
            })
            .collect::<Vec<_>>();
        records.sort_by(|a, b| {
            let newest_first = b.failed_at.cmp(&a.failed_at);
            newest_first.then_with(|| a.row.id.cmp(&b.row.id))
        });
        records.truncate(filter.limit as usize);
        self.end(own);
        Ok(records)
    }

    pub(super) async fn replay_waiting(&mut self, ids: &[&[u8]]) -> Result<u64, StoreError> {
        let own = self.statement().await?;
        let mut replayed = 0;
        for id in self.named(ids) {
            let Some(mut entry) = self.lock_parked(&id, own).await? else {
                continue;
            };
            let consumer = ConsumerId(id.0);
            if let Some(key) = &entry.row.key {
                let known = self.ledger(key, consumer).map(|known| known.fate);
                if matches!(known, Some(Fate::Committed | Fate::Discarded)) {
                    continue;
                }
                self.move_fate(consumer, key, own, |known, _| {
                    known.fate = Fate::Waiting;
                    known.attempts = 0;
                })
                .await?;
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

    pub(super) async fn discard_waiting(&mut self, ids: &[&[u8]]) -> Result<u64, StoreError> {
        let own = self.statement().await?;
        let mut discarded = 0;
        for id in self.named(ids) {
            let Some(entry) = self.lock_parked(&id, own).await? else {
                continue;
            };
            let consumer = ConsumerId(id.0);
            if let Some(key) = &entry.row.key {
                // Remembered for as long again as it was when the message failed.
                self.move_fate(consumer, key, own, |known, now| {
                    known.fate = Fate::Discarded;
                    known.expires_at = known
                        .expires_at
                        .map(|at| at.max(now + (at - entry.failed_at)));
                })
                .await?;
            }
            self.open().changes.waiting.insert(id, None);
            let partition = [entry.row.partition];
            self.release_lines(consumer, Some(&partition), own).await?;
            discarded += 1;
        }
        self.end(own);
        Ok(discarded)
    }

    pub(super) async fn counts_waiting(
        &mut self,
        consumer: ConsumerId,
    ) -> Result<Vec<(Status, String, u64)>, StoreError> {
        let own = self.statement().await?;
        let mut counts = BTreeMap::<(&str, String), (Status, u64)>::new();
        for (id, entry) in self.waiting() {
            if id.0 == consumer.0 {
                let name = (entry.row.status.as_str(), entry.row.code);
                counts.entry(name).or_insert((entry.row.status, 0)).1 += 1;
            }
        }
        self.end(own);
        Ok(counts
            .into_iter()
            .map(|((_, code), (status, count))| (status, code, count))
            .collect())
    }

    /// The places of rows with these ids, of whichever consumer.
    fn named(&self, ids: &[&[u8]]) -> Vec<Place> {
        let all = self.waiting().into_iter().map(|(place, _)| place);
        all.filter(|place| ids.contains(&place.1.as_slice()))
            .collect()
    }

    /// A row that is parked when it is this transaction's.
    async fn lock_parked(
        &mut self,
        id: &Place,
        own: bool,
    ) -> Result<Option<WaitingEntry>, StoreError> {
        self.lock(&Row::Waiting(id.clone()), own).await?;
        let entry = self.row(id);
        Ok(entry.filter(|entry| entry.row.status == Status::Parked))
    }

    fn waiting(&self) -> Vec<(Place, WaitingEntry)> {
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

    fn row(&self, id: &Place) -> Option<WaitingEntry> {
        let state = self.database.state();
        let open = self.transaction.as_ref()?;
        seen(&open.changes.waiting, &state.committed.waiting, id).cloned()
    }

    fn due(&self, entry: &WaitingEntry) -> bool {
        entry.row.status == Status::Retry
            && entry.due_at.is_some_and(|due| due <= self.database.now())
    }

    /// The lines of these partitions, or all of a consumer's.
    fn lines(&self, consumer: ConsumerId, partitions: Option<&[i64]>) -> BTreeMap<i64, Line> {
        let mut rows = self.waiting();
        rows.retain(|(id, entry)| {
            let at = &entry.row.partition;
            let asked = partitions.is_none_or(|partitions| partitions.contains(at));
            id.0 == consumer.0 && entry.row.key.is_some() && asked
        });
        rows.sort_by_key(|(_, entry)| entry.arrival);
        let mut lines = BTreeMap::new();
        for (id, entry) in rows {
            let line = lines
                .entry(entry.row.partition)
                .or_insert(Line { first: id, held: 0 });
            line.held += u64::from(entry.row.status == Status::Held);
        }
        lines
    }
}

/// The rows of one partition that have a key.
struct Line {
    first: Place,
    held: u64,
}
