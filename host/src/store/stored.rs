//! What the dialects store alike: text that every server takes, times inside its range, messages from
//! their columns. Pure.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::Duration;

use super::{StoreError, WaitingRow};
use crate::message::withheld::WHOLE;
use crate::message::{Message, Withheld, decode_properties};

/// Text that a person reads. NUL is shown as its picture, because Postgres refuses it in text, and a
/// failed message must be written whatever its handler printed.
pub(super) fn text(text: &str) -> Cow<'_, str> {
    if text.contains('\0') {
        text.replace('\0', "\u{2400}").into()
    } else {
        text.into()
    }
}

/// The end of the year 9999, in seconds: times of a producer are not trusted to fit a server's type.
const LAST_SECOND: i64 = 253_402_300_799;

/// A producer's timestamp inside what every dialect can add a retention to.
pub(super) fn timestamp_seconds(seconds: Option<i64>) -> Option<i64> {
    seconds.map(|seconds| seconds.clamp(0, LAST_SECOND))
}

/// A time that somebody has typed, inside what every dialect can compare with its own. Microseconds since the epoch.
pub(super) fn calendar_micros(micros: i64) -> i64 {
    micros.clamp(0, LAST_SECOND * 1_000_000)
}

/// A duration inside what every dialect can add to a time: a thousand years at most.
pub(super) fn micros(duration: Duration) -> i64 {
    const THOUSAND_YEARS: i64 = 1_000 * 366 * 24 * 3_600 * 1_000_000;
    i64::try_from(duration.as_micros())
        .unwrap_or(i64::MAX)
        .min(THOUSAND_YEARS)
}

/// A message from its columns.
pub(super) fn message(
    exchange: Vec<u8>,
    routing_key: Vec<u8>,
    properties: &[u8],
    body: Vec<u8>,
) -> Result<Message, StoreError> {
    Ok(Message {
        exchange: utf8(exchange)?,
        routing_key: utf8(routing_key)?,
        properties: decode_properties(properties)
            .map_err(|error| StoreError::Broken(error.to_string()))?,
        body: body.into(),
    })
}

/// A waiting message from its columns. A row that this version cannot read, since a later one or a person has
/// written it, comes as what it is: its bytes, withheld.
pub(super) fn waiting_message(
    encoding: String,
    withheld: Option<Vec<u8>>,
    exchange: Vec<u8>,
    routing_key: Vec<u8>,
    properties: &[u8],
    body: Vec<u8>,
) -> (Message, Option<Withheld>) {
    let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let decoded = decode_properties(properties);
    let readable = decoded.is_ok()
        && std::str::from_utf8(&exchange).is_ok()
        && std::str::from_utf8(&routing_key).is_ok();
    let message = Message {
        exchange: lossy(&exchange),
        routing_key: lossy(&routing_key),
        properties: decoded.unwrap_or_default(),
        body: body.into(),
    };
    let withheld = match withheld {
        Some(bytes) => Some(Withheld { encoding, bytes }),
        None if readable && encoding == WHOLE => None,
        None => Some(Withheld {
            encoding,
            bytes: properties.to_vec(),
        }),
    };
    (message, withheld)
}

/// The columns `encoding` and `withheld` of a row.
pub(super) fn encoding(row: &WaitingRow) -> (&str, Option<&[u8]>) {
    match &row.withheld {
        None => (WHOLE, None),
        Some(withheld) => (&withheld.encoding, Some(&withheld.bytes)),
    }
}

/// Text that was stored as bytes.
pub(super) fn utf8(bytes: Vec<u8>) -> Result<String, StoreError> {
    String::from_utf8(bytes)
        .map_err(|error| StoreError::Broken(format!("stored text is not UTF-8: {error}")))
}

/// A number that a table can only hold when somebody else wrote it.
pub(super) fn broken(what: &str, value: impl std::fmt::Display) -> StoreError {
    StoreError::Broken(format!("a row of the host's tables has the {what} {value}"))
}

/// One row for each id, so that one statement never meets a row twice: of rows with a key the last, of
/// rows without one the first, as if they had been written one after another.
pub(super) fn distinct(rows: &[(WaitingRow, Duration)]) -> Vec<&(WaitingRow, Duration)> {
    let mut places: HashMap<&[u8], usize> = HashMap::with_capacity(rows.len());
    let mut kept: Vec<&(WaitingRow, Duration)> = Vec::with_capacity(rows.len());
    for row in rows {
        match places.get(row.0.id.as_slice()) {
            None => {
                places.insert(&row.0.id, kept.len());
                kept.push(row);
            }
            Some(place) if row.0.key.is_some() => kept[*place] = row,
            Some(_) => {}
        }
    }
    kept
}

/// The bytes of values that one statement carries at most; the protocols' own limit is 1 GiB.
pub(crate) const STATEMENT_BYTES: usize = 32 << 20;

/// Splits rows so that no statement carries more than `bytes_max` bytes, one row at least.
pub(crate) fn split<T>(
    rows: &[T],
    bytes_max: usize,
    size_bytes: impl Fn(&T) -> usize,
) -> Vec<&[T]> {
    let mut parts = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (index, row) in rows.iter().enumerate() {
        let size = size_bytes(row);
        if index > start && bytes + size > bytes_max {
            parts.push(&rows[start..index]);
            (start, bytes) = (index, 0);
        }
        bytes += size;
    }
    if start < rows.len() {
        parts.push(&rows[start..]);
    }
    parts
}

/// Microseconds since the Unix epoch as `2026-01-02T03:04:05.000006Z`; `None` beyond the calendar.
pub(super) fn rfc3339(micros: i64) -> Option<String> {
    let time = chrono::DateTime::from_timestamp_micros(micros)?;
    Some(time.to_rfc3339_opts(chrono::SecondsFormat::Micros, true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_cannot_be_read_comes_as_its_bytes_and_is_nobodys_broken_invariant() {
        let whole = |properties: &[u8], exchange: &[u8], encoding: &str| {
            let (exchange, key, body) = (exchange.to_vec(), b"r".to_vec(), b"{}".to_vec());
            waiting_message(encoding.to_owned(), None, exchange, key, properties, body)
        };
        let (message, withheld) = whole(&[0, 0], b"e", WHOLE);
        assert_eq!((message.exchange.as_str(), withheld), ("e", None));
        for (properties, exchange, encoding) in [
            (&[0, 0][..], &b"e"[..], "kafka/3"),
            (&[0xff], b"e", WHOLE),
            (&[0, 0], b"\xff", WHOLE),
        ] {
            let (message, withheld) = whole(properties, exchange, encoding);
            let withheld = withheld.expect("something was withheld");
            assert_eq!(
                (withheld.encoding.as_str(), &withheld.bytes[..]),
                (encoding, properties)
            );
            assert_eq!(withheld.original(), None);
            assert_eq!(message.body.as_ref(), b"{}");
        }
    }
}
