//! A guest's parameters in the binary form of the types that the server inferred.
//!
//! A value that does not fit is refused here, before anything is sent: the transaction stays usable.
//! Nothing is rounded silently, except that a `float4` keeps what a `float4` can keep.

use chrono::{DateTime, NaiveDate, NaiveDateTime};
use sqlx::encode::{Encode, IsNull};
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgTypeInfo, PgTypeKind};
use sqlx::{Postgres, Type, TypeInfo};

use super::numeric;
use crate::store::{StoreError, Value};

/// The numbers of the built-in types. Source: `src/include/catalog/pg_type.dat` of Postgres.
pub(super) mod oid {
    pub const BOOL: u32 = 16;
    pub const BYTEA: u32 = 17;
    pub const NAME: u32 = 19;
    pub const INT8: u32 = 20;
    pub const INT2: u32 = 21;
    pub const INT4: u32 = 23;
    pub const TEXT: u32 = 25;
    pub const OID: u32 = 26;
    pub const JSON: u32 = 114;
    pub const XML: u32 = 142;
    pub const FLOAT4: u32 = 700;
    pub const FLOAT8: u32 = 701;
    pub const UNKNOWN: u32 = 705;
    pub const BPCHAR: u32 = 1042;
    pub const VARCHAR: u32 = 1043;
    pub const DATE: u32 = 1082;
    pub const TIME: u32 = 1083;
    pub const TIMESTAMP: u32 = 1114;
    pub const TIMESTAMPTZ: u32 = 1184;
    pub const INTERVAL: u32 = 1186;
    pub const TIMETZ: u32 = 1266;
    pub const NUMERIC: u32 = 1700;
    pub const VOID: u32 = 2278;
    pub const UUID: u32 = 2950;
    pub const JSONB: u32 = 3802;
}

/// Microseconds from 1970 to 2000, where Postgres begins to count.
pub(super) const EPOCH_MICROS: i64 = 946_684_800_000_000;

/// The same in days.
pub(super) const EPOCH_DAYS: i64 = 10_957;

const DAY_MICROS: i64 = 86_400_000_000;

/// The times that a server takes: from 4714 BC up to the end of 294276.
const TIMES: std::ops::Range<i64> = -211_813_488_000_000_000..9_223_371_331_200_000_000;

/// One parameter, ready to send.
pub(super) struct Encoded(Option<Vec<u8>>);

impl Encoded {
    /// An array of one dimension, from its elements. Source: `array_send` in `src/backend/utils/adt/arrayfuncs.c`
    /// of Postgres.
    pub fn array(element: u32, values: &[Self]) -> Self {
        const DIMENSIONS: i32 = 1;
        const FIRST_INDEX: i32 = 1;
        const NULL: i32 = -1;
        let has_null = i32::from(values.iter().any(|value| value.0.is_none()));
        let size: usize = values
            .iter()
            .map(|value| 4 + value.0.as_ref().map_or(0, Vec::len))
            .sum();
        let mut bytes = Vec::with_capacity(20 + size);
        let length = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
        bytes.extend_from_slice(&DIMENSIONS.to_be_bytes());
        bytes.extend_from_slice(&has_null.to_be_bytes());
        bytes.extend_from_slice(&element.to_be_bytes());
        bytes.extend_from_slice(&length(values.len()).to_be_bytes());
        bytes.extend_from_slice(&FIRST_INDEX.to_be_bytes());
        for value in values {
            match &value.0 {
                Some(value) => {
                    bytes.extend_from_slice(&length(value.len()).to_be_bytes());
                    bytes.extend_from_slice(value);
                }
                None => bytes.extend_from_slice(&NULL.to_be_bytes()),
            }
        }
        Self(Some(bytes))
    }
}

impl Type<Postgres> for Encoded {
    // Not sent: the statement was prepared with the types that the server inferred.
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("unknown")
    }
}

impl Encode<'_, Postgres> for Encoded {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        match &self.0 {
            Some(bytes) => {
                buffer.extend_from_slice(bytes);
                Ok(IsNull::No)
            }
            None => Ok(IsNull::Yes),
        }
    }
}

/// The type under a domain, and its number.
pub(super) fn base(kind: &PgTypeInfo) -> (&PgTypeInfo, u32) {
    match kind.kind() {
        PgTypeKind::Domain(inner) => base(inner),
        _ => (kind, kind.oid().map_or(0, |oid| oid.0)),
    }
}

/// Types whose binary form is their text, beside the built-in ones.
pub(super) fn is_text(kind: &PgTypeInfo, oid: u32) -> bool {
    matches!(
        oid,
        oid::TEXT | oid::VARCHAR | oid::BPCHAR | oid::NAME | oid::UNKNOWN | oid::XML
    ) || matches!(kind.kind(), PgTypeKind::Enum(_))
        || kind.name().eq_ignore_ascii_case("citext")
}

/// Encodes the value for parameter `place` (from 1) of the type `kind`.
pub(super) fn encode(
    place: usize,
    value: &Value,
    kind: &PgTypeInfo,
) -> Result<Encoded, StoreError> {
    if *value == Value::Null {
        return Ok(Encoded(None));
    }
    let (kind, number) = base(kind);
    let name = kind.name().to_lowercase();
    let bytes = match number {
        oid::BOOL => boolean(value),
        oid::INT2 => integer(value)
            .and_then(|n| i16::try_from(n).ok())
            .map(|n| n.to_be_bytes().to_vec()),
        oid::INT4 => integer(value)
            .and_then(|n| i32::try_from(n).ok())
            .map(|n| n.to_be_bytes().to_vec()),
        oid::INT8 => integer(value).map(|n| n.to_be_bytes().to_vec()),
        oid::OID => integer(value)
            .and_then(|n| u32::try_from(n).ok())
            .map(|n| n.to_be_bytes().to_vec()),
        oid::FLOAT4 => float(value)
            .and_then(narrow)
            .map(|n| n.to_be_bytes().to_vec()),
        oid::FLOAT8 => float(value).map(|n| n.to_be_bytes().to_vec()),
        oid::NUMERIC => decimal(value),
        oid::BYTEA => match value {
            Value::Bytes(bytes) => Some(bytes.clone()),
            _ => None,
        },
        oid::UUID => text(value)
            .and_then(|text| uuid::Uuid::parse_str(text).ok())
            .map(|id| id.as_bytes().to_vec()),
        oid::JSON => text(value)
            .filter(|text| is_json(text))
            .map(|text| text.as_bytes().to_vec()),
        oid::JSONB => text(value)
            .filter(|text| is_json(text) && !has_nul_escape(text))
            .map(|text| {
                // Version 1 of the form, then the text.
                let mut bytes = vec![1];
                bytes.extend_from_slice(text.as_bytes());
                bytes
            }),
        oid::TIMESTAMPTZ | oid::TIMESTAMP => time(value),
        oid::DATE => date(value),
        _ if is_text(kind, number) => text(value)
            .filter(|text| !text.contains('\0'))
            .map(|text| text.as_bytes().to_vec()),
        _ => {
            return Err(refuse(
                "42804",
                format!(
                    "parameter ${place} has the type {name}, which has no value of its own: \
                     write CAST(${place} AS text)::{name}"
                ),
            ));
        }
    };
    bytes.map(|bytes| Encoded(Some(bytes))).ok_or_else(|| {
        // 22P02: invalid text representation; 22003: numeric value out of range.
        let code = if matches!(value, Value::S64(_) | Value::F64(_) | Value::Timestamp(_)) {
            "22003"
        } else {
            "22P02"
        };
        refuse(
            code,
            format!(
                "parameter ${place}: {} does not fit into the type {name}",
                describe(value)
            ),
        )
    })
}

pub(super) fn refuse(code: &str, message: String) -> StoreError {
    StoreError::Statement {
        code: code.to_owned(),
        message,
    }
}

/// The kind of a value, never its content: error texts end in tables and logs.
fn describe(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "this bool",
        Value::S64(_) => "this s64",
        Value::F64(_) => "this f64",
        Value::Text(_) => "this text",
        Value::Bytes(_) => "this value of bytes",
        Value::Decimal(_) => "this decimal",
        Value::Timestamp(_) => "this timestamp",
        Value::Uuid(_) => "this uuid",
        Value::Json(_) => "this json",
        Value::Other { .. } => "this value",
    }
}

/// The text of a value that is text.
fn text(value: &Value) -> Option<&str> {
    match value {
        Value::Text(text)
        | Value::Decimal(text)
        | Value::Uuid(text)
        | Value::Json(text)
        | Value::Other { text, .. } => Some(text),
        _ => None,
    }
}

fn boolean(value: &Value) -> Option<Vec<u8>> {
    match (value, text(value)) {
        (Value::Bool(truth), _) => Some(vec![u8::from(*truth)]),
        (_, Some("true" | "t")) => Some(vec![1]),
        (_, Some("false" | "f")) => Some(vec![0]),
        _ => None,
    }
}

fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::S64(number) => Some(*number),
        _ => text(value)?.trim().parse().ok(),
    }
}

fn float(value: &Value) -> Option<f64> {
    match value {
        Value::F64(number) => Some(*number),
        // Whole numbers up to 2^53 are exact.
        Value::S64(number) => (number.unsigned_abs() <= 1 << 53).then_some(*number as f64),
        _ => text(value)?.trim().parse().ok(),
    }
}

/// A number that is finite stays finite.
fn narrow(number: f64) -> Option<f32> {
    let narrow = number as f32;
    (narrow.is_finite() || !number.is_finite()).then_some(narrow)
}

fn decimal(value: &Value) -> Option<Vec<u8>> {
    match value {
        Value::S64(number) => numeric::encode(&number.to_string()),
        Value::F64(number) => numeric::encode(&number.to_string()),
        _ => numeric::encode(text(value)?),
    }
}

fn time(value: &Value) -> Option<Vec<u8>> {
    let micros = match value {
        Value::Timestamp(micros) => *micros,
        _ => match text(value)? {
            "infinity" => return Some(i64::MAX.to_be_bytes().to_vec()),
            "-infinity" => return Some(i64::MIN.to_be_bytes().to_vec()),
            text => parse_time(text)?,
        },
    };
    let micros = micros.checked_sub(EPOCH_MICROS)?;
    TIMES
        .contains(&micros)
        .then(|| micros.to_be_bytes().to_vec())
}

/// RFC 3339, or the same without an offset, which means UTC.
fn parse_time(text: &str) -> Option<i64> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Some(time.timestamp_micros());
    }
    ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f"]
        .iter()
        .find_map(|form| NaiveDateTime::parse_from_str(text, form).ok())
        .map(|time| time.and_utc().timestamp_micros())
}

fn date(value: &Value) -> Option<Vec<u8>> {
    let days = match value {
        Value::Timestamp(micros) => micros.div_euclid(DAY_MICROS),
        _ => {
            let date = NaiveDate::parse_from_str(text(value)?, "%Y-%m-%d").ok()?;
            date.signed_duration_since(NaiveDate::default()).num_days()
        }
    };
    // The first day is 4714-11-24 BC, as for timestamps; the last is 5874897-12-31.
    let days = i32::try_from(days - EPOCH_DAYS).ok()?;
    (-2_451_545..2_145_031_949)
        .contains(&days)
        .then(|| days.to_be_bytes().to_vec())
}

fn is_json(text: &str) -> bool {
    serde_json::from_str::<&serde_json::value::RawValue>(text).is_ok()
}

/// jsonb cannot hold NUL, not even escaped.
fn has_nul_escape(text: &str) -> bool {
    text.match_indices("\\u0000").any(|(at, _)| {
        let before = text[..at]
            .bytes()
            .rev()
            .take_while(|byte| *byte == b'\\')
            .count();
        before % 2 == 0
    })
}
