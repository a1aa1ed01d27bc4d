//! The rows of `hapax_waiting` as an operator handles them.
//!
//! A row is named by the beginning of its id. Nothing is changed unless every name is understood, and only
//! parked rows are changed: a row that waits for its retry is the host's.

use std::collections::HashSet;

use chrono::{DateTime, SecondsFormat};
use serde::{Deserialize, Serialize};

use crate::failpoint::{self, Point};
use crate::store::{Session, Status, WaitingFilter, WaitingRecord};

use super::wire::Wire;
use super::{OperationError, Operations};

/// Digits below which a name would mean too many rows.
const MIN_ID_DIGITS: usize = 4;

/// Rows that an ambiguous name is looked at for.
const AMBIGUOUS_ROWS: u32 = 64;

/// Rows in one step of a bulk operation.
const STEP_ROWS: usize = 200;

/// Which rows to list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    pub consumer: Option<String>,
    /// `parked`, `retry` or `held`; all of them when absent.
    pub status: Option<String>,
    pub code: Option<String>,
    pub key_hex: Option<String>,
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
}

/// Which parked rows to change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Selection {
    /// Beginnings of ids.
    Ids(Vec<String>),
    /// Those of the configuration's consumers.
    All {
        consumer: Option<String>,
        code: Option<String>,
    },
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    pub changed: u64,
    /// Rows that were not parked any more when their turn came.
    pub gone: u64,
}

#[derive(Clone, Copy)]
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
        let refused = |text: String| OperationError::Refused(text);
        let status = match &filter.status {
            Some(text) => Some(Status::from_text(text).ok_or_else(|| {
                refused(format!(
                    "there is no status `{text}`: parked, retry or held"
                ))
            })?),
            None => None,
        };
        let key = match &filter.key_hex {
            Some(digits) => Some(
                hex::decode(digits)
                    .map_err(|_| refused(format!("`{digits}` is not hexadecimal")))?,
            ),
            None => None,
        };
        let mut records = session
            .waiting_list(&WaitingFilter {
                consumer: filter.consumer.clone(),
                status,
                code: filter.code.clone(),
                key,
                id_prefix: None,
                limit: filter.limit.saturating_add(1),
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
        let record = find(session, id).await?;
        Ok(Shown {
            entry: entry(&record),
            stderr: record.row.stderr.clone(),
            backtrace: record.row.backtrace.clone(),
            message: Wire::from(&record.row.message),
        })
    }

    pub(super) async fn count(
        &self,
        session: &mut dyn Session,
        selection: &Selection,
    ) -> Result<u64, OperationError> {
        let (consumer, code) = match selection {
            Selection::Ids(names) => return Ok(parked(session, names).await?.len() as u64),
            Selection::All { consumer, code } => (consumer, code),
        };
        self.known_consumer(consumer.as_deref())?;
        let mut rows = 0;
        for configured in &self.config.consumers {
            if consumer
                .as_ref()
                .is_some_and(|wanted| *wanted != configured.name)
            {
                continue;
            }
            let id = self.consumer_id(session, configured).await?;
            rows += session
                .waiting_counts(id)
                .await?
                .into_iter()
                .filter(|(status, _, _)| *status == Status::Parked)
                .filter(|(_, row_code, _)| code.as_ref().is_none_or(|wanted| wanted == row_code))
                .map(|(_, _, rows)| rows)
                .sum::<u64>();
        }
        Ok(rows)
    }

    pub(super) async fn change(
        &self,
        session: &mut dyn Session,
        selection: &Selection,
        change: Change,
    ) -> Result<Changed, OperationError> {
        let mut done = Changed::default();
        match selection {
            Selection::Ids(names) => {
                let ids = parked(session, names).await?;
                done.add(apply(session, &ids, change).await?, ids.len());
            }
            Selection::All { consumer, code } => {
                self.known_consumer(consumer.as_deref())?;
                for configured in &self.config.consumers {
                    if consumer
                        .as_ref()
                        .is_none_or(|wanted| *wanted == configured.name)
                    {
                        change_all(
                            session,
                            &configured.name,
                            code.as_deref(),
                            change,
                            &mut done,
                        )
                        .await?;
                    }
                }
            }
        }
        Ok(done)
    }

    /// A name that is mistyped would mean nothing, silently.
    fn known_consumer(&self, name: Option<&str>) -> Result<(), OperationError> {
        let mut names = self
            .config
            .consumers
            .iter()
            .map(|consumer| consumer.name.as_str());
        match name {
            Some(name) if !names.clone().any(|known| known == name) => {
                let known = names.by_ref().collect::<Vec<_>>().join(", ");
                Err(OperationError::Refused(format!(
                    "there is no consumer `{name}` in {}; there is: {known}",
                    self.config.path.display()
                )))
            }
            _ => Ok(()),
        }
    }
}

impl Changed {
    fn add(&mut self, changed: u64, asked: usize) {
        self.changed += changed;
        self.gone += (asked as u64).saturating_sub(changed);
    }
}

/// All rows of a consumer that are parked now. Those that are parked while it works, again or for the
/// first time, are left alone: a row is changed once.
async fn change_all(
    session: &mut dyn Session,
    consumer: &str,
    code: Option<&str>,
    change: Change,
    done: &mut Changed,
) -> Result<(), OperationError> {
    let mut seen = HashSet::new();
    let mut newest = None;
    let mut passed_over = 0;
    loop {
        let limit = STEP_ROWS + passed_over;
        let page = session
            .waiting_list(&WaitingFilter {
                consumer: Some(consumer.to_owned()),
                status: Some(Status::Parked),
                code: code.map(str::to_owned),
                limit: u32::try_from(limit).unwrap_or(u32::MAX),
                ..WaitingFilter::default()
            })
            .await?;
        let Some(first) = page.first() else {
            return Ok(());
        };
        // The list begins with the newest: what failed after the first look is new.
        let newest = *newest.get_or_insert(first.failed_at);
        let fresh = page
            .iter()
            .filter(|record| record.failed_at <= newest && seen.insert(record.row.id.clone()))
            .map(|record| record.row.id.clone())
            .collect::<Vec<_>>();
        passed_over = page.len() - fresh.len();
        done.add(apply(session, &fresh, change).await?, fresh.len());
        if page.len() < limit {
            return Ok(());
        }
    }
}

async fn apply(
    session: &mut dyn Session,
    ids: &[Vec<u8>],
    change: Change,
) -> Result<u64, OperationError> {
    if ids.is_empty() {
        return Ok(0);
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
    Ok(changed)
}

/// The ids that the names mean, each of a parked row; else everything that is wrong with the names.
async fn parked(
    session: &mut dyn Session,
    names: &[String],
) -> Result<Vec<Vec<u8>>, OperationError> {
    let mut ids = Vec::with_capacity(names.len());
    let mut problems = Vec::new();
    for name in names {
        match find(session, name).await {
            Ok(record) if record.row.status == Status::Parked => {
                if !ids.contains(&record.row.id) {
                    ids.push(record.row.id);
                }
            }
            Ok(record) => problems.push(format!(
                "{name} is not parked: its status is `{}`, and the host runs it by itself{}",
                record.row.status.as_str(),
                record
                    .due_at
                    .map(|due| format!(" (due {})", time(due)))
                    .unwrap_or_default()
            )),
            Err(OperationError::Refused(problem)) => problems.push(problem),
            Err(error) => return Err(error),
        }
    }
    if problems.is_empty() {
        Ok(ids)
    } else {
        Err(OperationError::Refused(problems.join("\n")))
    }
}

/// The one row whose id begins with these digits.
async fn find(session: &mut dyn Session, name: &str) -> Result<WaitingRecord, OperationError> {
    let digits = name.to_ascii_lowercase();
    if digits.len() < MIN_ID_DIGITS || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(OperationError::Refused(format!(
            "`{}` is not an id: give at least {MIN_ID_DIGITS} of its hexadecimal digits, as \
             `hapax parked list` shows them",
            crate::output::clean(name)
        )));
    }
    // A last odd digit is half a byte: the store cannot look for it.
    let whole = digits.len() / 2 * 2;
    let prefix = hex::decode(&digits[..whole]).expect("these are pairs of hexadecimal digits");
    let mut records = session
        .waiting_list(&WaitingFilter {
            id_prefix: Some(prefix),
            limit: AMBIGUOUS_ROWS,
            ..WaitingFilter::default()
        })
        .await?;
    records.retain(|record| hex::encode(&record.row.id).starts_with(&digits));
    if records.len() > 1 {
        let ids = records
            .iter()
            .map(|record| hex::encode(&record.row.id))
            .collect::<Vec<_>>();
        let shortest = unique_digits(ids.iter().map(String::as_str)).max(digits.len() + 1);
        let shown = ids
            .iter()
            .take(5)
            .map(|id| &id[..shortest.min(id.len())])
            .collect::<Vec<_>>()
            .join(", ");
        return Err(OperationError::Refused(format!(
            "{name} is the beginning of {} ids: {shown}{}",
            records.len(),
            if records.len() > 5 { ", …" } else { "" }
        )));
    }
    records.pop().ok_or_else(|| {
        OperationError::Refused(format!(
            "there is no failed message {name}: it has run, or was discarded; `hapax parked list --all` \
             shows what there is"
        ))
    })
}

/// How many digits tell these ids apart; at least eight.
pub fn unique_digits<'i>(ids: impl Iterator<Item = &'i str>) -> usize {
    let mut sorted = ids.collect::<Vec<_>>();
    sorted.sort_unstable();
    sorted.dedup();
    let shared = |pair: &[&str]| {
        pair[0]
            .bytes()
            .zip(pair[1].bytes())
            .take_while(|(a, b)| a == b)
            .count()
    };
    sorted
        .windows(2)
        .map(|pair| shared(pair) + 1)
        .max()
        .unwrap_or_default()
        .max(8)
}

fn entry(record: &WaitingRecord) -> Entry {
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

fn time(micros: i64) -> String {
    match DateTime::from_timestamp_micros(micros) {
        Some(time) => time.to_rfc3339_opts(SecondsFormat::Millis, true),
        None => format!("{micros} µs after 1970"),
    }
}
