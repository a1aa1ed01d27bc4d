//! The rows of `hapax_waiting` as an operator handles them.
//!
//! A row is named by the beginning of its id. Nothing is changed unless every name is understood, and only
//! parked rows are changed: a row that waits for its retry is the host's. A selection is read once, step by
//! step, the newest failure first; what is changed are the rows that were read.

mod edit;
mod ids;

use serde::{Deserialize, Serialize};

use crate::failpoint::{self, Point};
use crate::ledger::{Judgement, judge};
use crate::store::{Fate, Session, Status, WaitingFilter, WaitingRecord};

use super::wire::{Kept, Wire};
use super::{OperationError, Operations, When, fate_name, key_bytes, time};

pub use edit::Edit;
pub use ids::unique_digits;

/// Rows in one step of a choice.
const STEP_ROWS: u32 = 200;

/// Which rows to list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    pub consumer: Option<String>,
    /// `parked`, `retry` or `held`; all of them when absent.
    pub status: Option<String>,
    pub code: Option<String>,
    pub key_hex: Option<String>,
    /// Failed last in this span; the end is not in it.
    pub since: Option<When>,
    pub until: Option<When>,
    pub limit: u32,
}

/// One failed message in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// 64 hexadecimal digits.
    pub id: String,
    pub consumer: String,
    pub status: String,
    /// The key where it is text.
    pub key: Option<String>,
    pub key_hex: Option<String>,
    pub code: String,
    pub error: String,
    pub attempts: i32,
    /// RFC 3339, UTC.
    pub first_failed_at: String,
    pub failed_at: String,
    pub due_at: Option<String>,
    pub queue: String,
    /// SHA-256 of the component that ran it last; empty when none ran.
    pub plugin: String,
    pub trace_id: String,
}

/// The newest failures first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    pub entries: Vec<Entry>,
    /// There are more than the limit allowed.
    pub more: bool,
}

/// One failed message, whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    pub entry: Entry,
    pub stderr: String,
    pub backtrace: String,
    pub message: Wire,
    /// What could not be taken of the message as it came.
    pub withheld: Option<Kept>,
}

/// Which parked rows to change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Selection {
    /// Beginnings of ids.
    Ids(Vec<String>),
    /// Those of the configuration's consumers for which everything that is set holds.
    Matching {
        consumer: Option<String>,
        code: Option<String>,
        key_hex: Option<String>,
        since: Option<When>,
        until: Option<When>,
    },
}

/// A part of a choice: everything for ids, a bounded number of rows for a bulk selection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub selection: Selection,
    /// Where the last step has ended.
    pub after: Option<Cursor>,
}

/// Rows that a selection means.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    pub rows: Vec<Chosen>,
    /// Where to go on.
    pub next: Option<Cursor>,
}

/// A parked row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chosen {
    /// 64 hexadecimal digits.
    pub id: String,
    pub consumer: String,
    pub code: String,
}

/// A place in the order in which a bulk selection is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    consumer: String,
    /// The last row: when it failed, and its id. Absent at the beginning of a consumer.
    row: Option<(i64, String)>,
}

/// Parked rows by consumer and code.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    pub consumer: String,
    pub code: String,
    pub rows: u64,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    pub changed: u64,
    /// Rows that were not parked any more when their turn came.
    pub gone: u64,
    /// Rows whose key has a final fate already. They were left alone.
    pub duplicates: Vec<Duplicate>,
    /// Ids of rows that cannot run, since a part of the message is all that is stored. They were left alone.
    pub withheld: Vec<String>,
}

/// A message that needs no replay: it was dealt with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Duplicate {
    pub id: String,
    pub key_hex: String,
    /// `committed` or `discarded`.
    pub fate: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Replay,
    Discard,
}

impl Operations {
    pub(super) async fn list(
        &self,
        session: &mut dyn Session,
        filter: &Filter,
    ) -> Result<Page, OperationError> {
        let status = match &filter.status {
            Some(text) => Some(Status::from_text(text).ok_or_else(|| {
                OperationError::Refused(format!(
                    "there is no status `{text}`: parked, retry or held"
                ))
            })?),
            None => None,
        };
        let now = session.upkeep().clock().await?;
        let mut records = session
            .waiting_list(&WaitingFilter {
                consumer: filter.consumer.clone(),
                status,
                code: filter.code.clone(),
                key: filter.key_hex.as_deref().map(key_bytes).transpose()?,
                since: When::micros(filter.since, now),
                until: When::micros(filter.until, now),
                without_bodies: true,
                limit: filter.limit.saturating_add(1),
                ..WaitingFilter::default()
            })
            .await?;
        if records.is_empty() {
            self.known_consumer(filter.consumer.as_deref())?;
        }
        let limit = usize::try_from(filter.limit).unwrap_or(usize::MAX);
        let more = records.len() > limit;
        records.truncate(limit);
        Ok(Page {
            entries: records.iter().map(entry).collect(),
            more,
        })
    }

    pub(super) async fn show(
        &self,
        session: &mut dyn Session,
        id: &str,
    ) -> Result<Shown, OperationError> {
        let record = ids::find(session, id, true).await?;
        Ok(Shown {
            entry: entry(&record),
            stderr: record.row.stderr.clone(),
            backtrace: record.row.backtrace.clone(),
            message: Wire::from(&record.row.message),
            withheld: record.row.withheld.as_ref().map(Kept::from),
        })
    }

    /// What a change would take.
    pub(super) async fn tally(
        &self,
        session: &mut dyn Session,
        selection: &Selection,
    ) -> Result<Vec<Tally>, OperationError> {
        if let Selection::Ids(names) = selection {
            let mut tallies = Vec::<Tally>::new();
            for record in ids::parked(session, names).await? {
                let same = |tally: &&mut Tally| {
                    tally.consumer == record.consumer && tally.code == record.row.code
                };
                match tallies.iter_mut().find(same) {
                    Some(tally) => tally.rows += 1,
                    None => tallies.push(Tally {
                        consumer: record.consumer,
                        code: record.row.code,
                        rows: 1,
                    }),
                }
            }
            return Ok(tallies);
        }
        let mut tallies = Vec::new();
        for consumer in self.selected(selection)? {
            let filter = self.filter(session, selection, &consumer).await?;
            let counted = session.upkeep().waiting_tally(&filter).await?;
            tallies.extend(counted.into_iter().map(|(consumer, code, rows)| Tally {
                consumer,
                code,
                rows,
            }));
        }
        Ok(tallies)
    }

    /// One step of a choice: which rows a selection means, by their whole ids. What is changed afterwards is what
    /// was chosen, and nothing that was parked since.
    pub(super) async fn choose(
        &self,
        session: &mut dyn Session,
        step: &Step,
    ) -> Result<Choice, OperationError> {
        if let Selection::Ids(names) = &step.selection {
            let records = ids::parked(session, names).await?;
            return Ok(Choice {
                rows: records.iter().map(chosen).collect(),
                next: None,
            });
        }
        let consumers = self.selected(&step.selection)?;
        let place = match &step.after {
            Some(cursor) => consumers.iter().position(|name| *name == cursor.consumer),
            None => Some(0),
        };
        let Some(consumer) = place.and_then(|place| consumers.get(place)) else {
            return Ok(Choice::default());
        };
        let mut filter = self.filter(session, &step.selection, consumer).await?;
        filter.limit = STEP_ROWS;
        filter.after = match step.after.as_ref().and_then(|cursor| cursor.row.as_ref()) {
            Some((failed_at, id)) => Some((*failed_at, key_bytes(id)?)),
            None => None,
        };
        let records = session.waiting_list(&filter).await?;
        let last = records
            .last()
            .filter(|_| records.len() == STEP_ROWS as usize);
        let next = match last {
            Some(record) => Some(Cursor {
                consumer: consumer.clone(),
                row: Some((record.failed_at, hex::encode(&record.row.id))),
            }),
            None => consumers
                .iter()
                .skip_while(|name| *name != consumer)
                .nth(1)
                .map(|next| Cursor {
                    consumer: next.clone(),
                    row: None,
                }),
        };
        Ok(Choice {
            rows: records.iter().map(chosen).collect(),
            next,
        })
    }

    /// Changes rows that were chosen; those that are not parked any more are counted as gone.
    pub(super) async fn change(
        &self,
        session: &mut dyn Session,
        chosen: &[String],
        change: Change,
    ) -> Result<Changed, OperationError> {
        let mut done = Changed::default();
        let mut ids = Vec::with_capacity(chosen.len());
        for name in chosen {
            let id = key_bytes(name)?;
            match change {
                Change::Discard => ids.push(id),
                Change::Replay => match parked_row(session, id).await? {
                    Some(record) if record.row.withheld.is_some() => {
                        done.withheld.push(name.clone());
                    }
                    Some(record) => match self.final_fate(session, &record).await? {
                        Some((key, fate)) => done.duplicates.push(Duplicate {
                            id: name.clone(),
                            key_hex: hex::encode(key),
                            fate: fate_name(fate).to_owned(),
                        }),
                        None => ids.push(record.row.id),
                    },
                    None => done.gone += 1,
                },
            }
        }
        if ids.is_empty() {
            return Ok(done);
        }
        let ids = ids.iter().map(Vec::as_slice).collect::<Vec<_>>();
        let (before, after) = match change {
            Change::Replay => (Point::BeforeReplay, Point::AfterReplay),
            Change::Discard => (Point::BeforeDiscard, Point::AfterDiscard),
        };
        failpoint::pass(before);
        let changed = match change {
            Change::Replay => session.waiting_replay(&ids).await?,
            Change::Discard => session.waiting_discard(&ids).await?,
        };
        failpoint::pass(after);
        done.changed += changed;
        done.gone += (ids.len() as u64).saturating_sub(changed);
        Ok(done)
    }

    /// The key of a row, and its fate where the ledger says that the same message was dealt with. A row that
    /// was parked without its key is read again by the rules that hold now.
    async fn final_fate(
        &self,
        session: &mut dyn Session,
        record: &WaitingRecord,
    ) -> Result<Option<(Vec<u8>, Fate)>, OperationError> {
        let consumer = self
            .config
            .consumers
            .iter()
            .find(|consumer| consumer.name == record.consumer);
        let Some(consumer) = consumer else {
            return Ok(None);
        };
        let (key, fingerprint) = match &record.row.key {
            Some(key) => (key.clone(), record.row.fingerprint.clone()),
            None => {
                let whole = ids::find(session, &hex::encode(&record.row.id), true).await?;
                match crate::consumer::key_rules(consumer).identify(&whole.row.message) {
                    Ok(identity) if !identity.key.is_empty() => {
                        (identity.key, identity.fingerprint.to_vec())
                    }
                    _ => return Ok(None),
                }
            }
        };
        let id = self.consumer_id(session, consumer).await?;
        let entry = session.entries(id, &[&key]).await?.pop().flatten();
        Ok(match entry.map(|entry| judge(&entry, &fingerprint)) {
            Some(Judgement::Duplicate(fate @ (Fate::Committed | Fate::Discarded))) => {
                Some((key, fate))
            }
            _ => None,
        })
    }

    /// The consumers that a bulk selection means, by name.
    fn selected(&self, selection: &Selection) -> Result<Vec<String>, OperationError> {
        let Selection::Matching { consumer, .. } = selection else {
            return Ok(Vec::new());
        };
        self.known_consumer(consumer.as_deref())?;
        let names = self.config.consumers.iter().map(|known| known.name.clone());
        Ok(names
            .filter(|name| consumer.as_ref().is_none_or(|wanted| wanted == name))
            .collect())
    }

    async fn filter(
        &self,
        session: &mut dyn Session,
        selection: &Selection,
        consumer: &str,
    ) -> Result<WaitingFilter, OperationError> {
        let mut filter = WaitingFilter {
            consumer: Some(consumer.to_owned()),
            status: Some(Status::Parked),
            without_bodies: true,
            ..WaitingFilter::default()
        };
        if let Selection::Matching {
            code,
            key_hex,
            since,
            until,
            ..
        } = selection
        {
            let now = session.upkeep().clock().await?;
            filter.code.clone_from(code);
            filter.key = key_hex.as_deref().map(key_bytes).transpose()?;
            filter.since = When::micros(*since, now);
            filter.until = When::micros(*until, now);
        }
        Ok(filter)
    }
}

fn chosen(record: &WaitingRecord) -> Chosen {
    Chosen {
        id: hex::encode(&record.row.id),
        consumer: record.consumer.clone(),
        code: record.row.code.clone(),
    }
}

/// The row of a whole id, while it is parked; without its body.
async fn parked_row(
    session: &mut dyn Session,
    id: Vec<u8>,
) -> Result<Option<WaitingRecord>, OperationError> {
    let mut records = session
        .waiting_list(&WaitingFilter {
            id_prefix: Some(id.clone()),
            status: Some(Status::Parked),
            limit: 1,
            without_bodies: true,
            ..WaitingFilter::default()
        })
        .await?;
    records.retain(|record| record.row.id == id);
    Ok(records.pop())
}

pub(super) fn entry(record: &WaitingRecord) -> Entry {
    let row = &record.row;
    Entry {
        id: hex::encode(&row.id),
        consumer: record.consumer.clone(),
        status: row.status.as_str().to_owned(),
        key: row
            .key
            .as_ref()
            .and_then(|key| String::from_utf8(key.clone()).ok()),
        key_hex: row.key.as_ref().map(hex::encode),
        code: row.code.clone(),
        error: row.error.clone(),
        attempts: row.attempts,
        first_failed_at: time(record.first_failed_at),
        failed_at: time(record.failed_at),
        due_at: record.due_at.map(time),
        queue: row.queue.clone(),
        plugin: hex::encode(&row.plugin),
        trace_id: row.trace_id.clone(),
    }
}
