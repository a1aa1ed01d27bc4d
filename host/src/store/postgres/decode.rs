//! Rows that a guest reads, from the binary form of their types.
//!
//! `readable` says before a statement runs whether every column has a form that is known here, so that an
//! unreadable column does not cost the transaction.

use chrono::{Days, NaiveDate};
use sqlx::TypeInfo;
use sqlx::postgres::{PgTypeInfo, PgTypeKind};

use super::encode::{EPOCH_DAYS, EPOCH_MICROS, base, is_text, oid};
use super::numeric;
use crate::store::Value;

/// Whether values of the type can be read.
pub(super) fn readable(kind: &PgTypeInfo) -> bool {
    let (kind, number) = base(kind);
    match kind.kind() {
        PgTypeKind::Array(element) => {
            readable(element) && !matches!(base(element).0.kind(), PgTypeKind::Array(_))
        }
        _ => {
            is_text(kind, number)
                || matches!(
                    number,
                    oid::BOOL
                        | oid::INT2
                        | oid::INT4
                        | oid::INT8
                        | oid::OID
                        | oid::FLOAT4
                        | oid::FLOAT8
                        | oid::NUMERIC
                        | oid::BYTEA
                        | oid::UUID
                        | oid::JSON
                        | oid::JSONB
                        | oid::TIMESTAMPTZ
                        | oid::TIMESTAMP
                        | oid::DATE
                        | oid::TIME
                        | oid::TIMETZ
                        | oid::INTERVAL
                        | oid::VOID
                )
        }
    }
}

/// Reads one value that is not null; `None` when the bytes are not of the type.
pub(super) fn decode(kind: &PgTypeInfo, bytes: &[u8]) -> Option<Value> {
    let (kind, number) = base(kind);
    let other = |text: String| Value::Other {
        kind: kind.name().to_lowercase(),
        text,
    };
    let value = match number {
        oid::BOOL => Value::Bool(*bytes.first()? != 0),
        oid::INT2 => Value::S64(i16::from_be_bytes(bytes.try_into().ok()?).into()),
        oid::INT4 => Value::S64(i32::from_be_bytes(bytes.try_into().ok()?).into()),
        oid::INT8 => Value::S64(i64::from_be_bytes(bytes.try_into().ok()?)),
        oid::OID => Value::S64(u32::from_be_bytes(bytes.try_into().ok()?).into()),
        oid::FLOAT4 => Value::F64(f32::from_be_bytes(bytes.try_into().ok()?).into()),
        oid::FLOAT8 => Value::F64(f64::from_be_bytes(bytes.try_into().ok()?)),
        oid::NUMERIC => Value::Decimal(numeric::decode(bytes)?),
        oid::BYTEA => Value::Bytes(bytes.to_vec()),
        oid::UUID => Value::Uuid(uuid::Uuid::from_slice(bytes).ok()?.hyphenated().to_string()),
        oid::JSON => Value::Json(utf8(bytes)?),
        oid::JSONB => Value::Json(utf8(bytes.strip_prefix(&[1])?)?),
        oid::TIMESTAMPTZ | oid::TIMESTAMP => match i64::from_be_bytes(bytes.try_into().ok()?) {
            i64::MAX => other("infinity".to_owned()),
            i64::MIN => other("-infinity".to_owned()),
            micros => match micros.checked_add(EPOCH_MICROS) {
                Some(micros) => Value::Timestamp(micros),
                None => other(format!("{micros} microseconds after 2000-01-01")),
            },
        },
        oid::DATE => other(date(i32::from_be_bytes(bytes.try_into().ok()?))),
        oid::TIME => other(time_of_day(i64::from_be_bytes(bytes.try_into().ok()?))),
        oid::TIMETZ => {
            let (time, zone) = bytes.split_at_checked(8)?;
            // The zone is stored as seconds west of Greenwich.
            let east = -i32::from_be_bytes(zone.try_into().ok()?);
            let sign = if east < 0 { '-' } else { '+' };
            let (hours, minutes) = (east.abs() / 3600, east.abs() / 60 % 60);
            let time = time_of_day(i64::from_be_bytes(time.try_into().ok()?));
            other(format!("{time}{sign}{hours:02}:{minutes:02}"))
        }
        oid::INTERVAL => other(interval(bytes)?),
        oid::VOID => Value::Null,
        _ => match kind.kind() {
            PgTypeKind::Array(element) => other(array(element, bytes)?),
            PgTypeKind::Enum(_) => other(utf8(bytes)?),
            _ => Value::Text(utf8(bytes)?),
        },
    };
    Some(value)
}

fn utf8(bytes: &[u8]) -> Option<String> {
    String::from_utf8(bytes.to_vec()).ok()
}

/// Days since 2000-01-01 as ISO 8601. Years beyond the calendar's library are given as the distance.
fn date(days: i32) -> String {
    match days {
        i32::MAX => return "infinity".to_owned(),
        i32::MIN => return "-infinity".to_owned(),
        _ => {}
    }
    let distance = i64::from(days) + EPOCH_DAYS;
    let start = NaiveDate::default();
    let date = match u64::try_from(distance) {
        Ok(after) => start.checked_add_days(Days::new(after)),
        Err(_) => start.checked_sub_days(Days::new(distance.unsigned_abs())),
    };
    date.map_or_else(
        || format!("{days} days after 2000-01-01"),
        |date| date.to_string(),
    )
}

/// Microseconds since midnight as `13:14:15` or `13:14:15.000016`.
fn time_of_day(micros: i64) -> String {
    let seconds = micros / 1_000_000;
    let clock = format!(
        "{:02}:{:02}:{:02}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    );
    match micros % 1_000_000 {
        0 => clock,
        rest => format!("{clock}.{rest:06}"),
    }
}

/// ISO 8601, which Postgres and most libraries read: `P1M2DT3.5S`.
fn interval(bytes: &[u8]) -> Option<String> {
    let (time, rest) = bytes.split_at_checked(8)?;
    let (days, months) = rest.split_at_checked(4)?;
    let micros = i64::from_be_bytes(time.try_into().ok()?);
    let days = i32::from_be_bytes(days.try_into().ok()?);
    let months = i32::from_be_bytes(months.try_into().ok()?);
    let sign = if micros < 0 { "-" } else { "" };
    let micros = micros.unsigned_abs();
    Some(format!(
        "P{months}M{days}DT{sign}{}.{:06}S",
        micros / 1_000_000,
        micros % 1_000_000
    ))
}

/// The form that Postgres writes and reads: `{1,NULL,"a b"}`.
fn array(element: &PgTypeInfo, bytes: &[u8]) -> Option<String> {
    let mut reader = Reader(bytes);
    let dimensions = usize::try_from(reader.number()?).ok()?;
    reader.number()?; // whether there are nulls
    reader.number()?; // the type of the elements, which the column has told
    let mut sizes = Vec::new();
    for _ in 0..dimensions {
        sizes.push(usize::try_from(reader.number()?).ok()?);
        reader.number()?; // the lower bound
    }
    if sizes.is_empty() {
        return Some("{}".to_owned());
    }
    let mut text = String::new();
    elements(element, &sizes, &mut reader, &mut text)?;
    Some(text)
}

fn elements(
    element: &PgTypeInfo,
    sizes: &[usize],
    reader: &mut Reader<'_>,
    text: &mut String,
) -> Option<()> {
    text.push('{');
    for index in 0..sizes[0] {
        if index > 0 {
            text.push(',');
        }
        if sizes.len() > 1 {
            elements(element, &sizes[1..], reader, text)?;
            continue;
        }
        match usize::try_from(reader.number()?) {
            Ok(length) => quote(&plain(decode(element, reader.bytes(length)?)?), text),
            Err(_) => text.push_str("NULL"),
        }
    }
    text.push('}');
    Some(())
}

/// The text of a value inside an array.
fn plain(value: Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Bool(truth) => if truth { "t" } else { "f" }.to_owned(),
        Value::S64(number) => number.to_string(),
        Value::F64(number) => number.to_string(),
        Value::Bytes(bytes) => format!("\\x{}", hex::encode(bytes)),
        Value::Timestamp(micros) => {
            crate::store::stored::rfc3339(micros).unwrap_or_else(|| micros.to_string())
        }
        Value::Text(text)
        | Value::Decimal(text)
        | Value::Uuid(text)
        | Value::Json(text)
        | Value::Other { text, .. } => text,
    }
}

fn quote(plain: &str, text: &mut String) {
    let special = |c: char| matches!(c, '{' | '}' | ',' | '"' | '\\') || c.is_whitespace();
    if !plain.is_empty() && !plain.contains(special) && !plain.eq_ignore_ascii_case("null") {
        text.push_str(plain);
        return;
    }
    text.push('"');
    for c in plain.chars() {
        if matches!(c, '"' | '\\') {
            text.push('\\');
        }
        text.push(c);
    }
    text.push('"');
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    fn number(&mut self) -> Option<i32> {
        Some(i32::from_be_bytes(self.bytes(4)?.try_into().ok()?))
    }
}
