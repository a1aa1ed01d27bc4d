//! Names of rows: the beginnings of their ids, as people copy them from a list.

use crate::store::{Session, Status, WaitingFilter, WaitingRecord};

use super::super::{OperationError, time};

/// Digits below which a name would mean too many rows.
const MIN_ID_DIGITS: usize = 4;

/// Rows that an ambiguous name is looked at for.
const AMBIGUOUS_ROWS: u32 = 64;

/// The rows that the names mean, each of them parked, without their bodies; else everything that is wrong
/// with the names.
pub(super) async fn parked(
    session: &mut dyn Session,
    names: &[String],
) -> Result<Vec<WaitingRecord>, OperationError> {
    let mut records = Vec::<WaitingRecord>::with_capacity(names.len());
    let mut problems = Vec::new();
    for name in names {
        match find(session, name, false).await {
            Ok(record) if record.row.status == Status::Parked => {
                if records.iter().all(|known| known.row.id != record.row.id) {
                    records.push(record);
                }
            }
            Ok(record) => problems.push(not_parked(name, &record)),
            Err(OperationError::Refused(problem)) => problems.push(problem),
            Err(error) => return Err(error),
        }
    }
    if problems.is_empty() {
        Ok(records)
    } else {
        Err(OperationError::Refused(problems.join("\n")))
    }
}

/// Why a row is left to the host.
pub(super) fn not_parked(name: &str, record: &WaitingRecord) -> String {
    let due = record
        .due_at
        .map(|due| format!(" (due {})", time(due)))
        .unwrap_or_default();
    format!(
        "{name} is not parked: its status is `{}`, and the host runs it by itself{due}",
        record.row.status.as_str()
    )
}

/// The one row whose id begins with these digits.
pub(super) async fn find(
    session: &mut dyn Session,
    name: &str,
    whole: bool,
) -> Result<WaitingRecord, OperationError> {
    let digits = name.to_ascii_lowercase();
    if digits.len() < MIN_ID_DIGITS || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(OperationError::Refused(format!(
            "`{}` is not an id: give at least {MIN_ID_DIGITS} of its hexadecimal digits, as \
             `hapax parked list` shows them",
            crate::output::clean(name)
        )));
    }
    // A last odd digit is half a byte: the store cannot look for it.
    let even = digits.len() / 2 * 2;
    let prefix = hex::decode(&digits[..even]).expect("these are pairs of hexadecimal digits");
    let mut records = session
        .waiting_list(&WaitingFilter {
            id_prefix: Some(prefix),
            limit: AMBIGUOUS_ROWS,
            without_bodies: !whole,
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
            "there is no failed message {name}: it was committed or discarded meanwhile \
             (`hapax ledger show KEY` tells which), or it never was one"
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
