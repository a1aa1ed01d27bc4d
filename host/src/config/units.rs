//! Owns how people write durations and sizes.
//!
//! Guarantees one spelling per unit, whole numbers, and that what [`show_duration`] and
//! [`show_bytes`] print reads back as the same value. Does not know which field it reads.

use std::time::Duration;

use super::rule::Invalid;

pub(super) const DURATION_FORMS: &str =
    "write a whole number and a unit: `200ms`, `5s`, `5m`, `1h` or `7d`";
pub(super) const BYTES_FORMS: &str =
    "write a whole number of bytes, or one with a unit: `512B`, `64KiB`, `4MiB` or `1GiB`";

/// Milliseconds in each unit, smallest first.
const DURATIONS: [(&str, u64); 5] = [
    ("ms", 1),
    ("s", 1000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
];

/// Bytes in each unit, smallest first.
const SIZES: [(&str, u64); 4] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
];

/// What people write instead, compared in lower case.
const ALIASES: [(&str, &str); 25] = [
    ("msec", "ms"),
    ("millis", "ms"),
    ("milliseconds", "ms"),
    ("sec", "s"),
    ("secs", "s"),
    ("second", "s"),
    ("seconds", "s"),
    ("min", "m"),
    ("mins", "m"),
    ("minute", "m"),
    ("minutes", "m"),
    ("hour", "h"),
    ("hours", "h"),
    ("day", "d"),
    ("days", "d"),
    ("bytes", "B"),
    ("k", "KiB"),
    ("kb", "KiB"),
    ("kib", "KiB"),
    ("mb", "MiB"),
    ("mib", "MiB"),
    ("g", "GiB"),
    ("gb", "GiB"),
    ("gib", "GiB"),
    ("b", "B"),
];

pub(super) fn duration(text: &str) -> Result<Duration, Invalid> {
    scaled(text, &DURATIONS, None, "not a duration", DURATION_FORMS).map(Duration::from_millis)
}

pub(super) fn bytes(text: &str) -> Result<u64, Invalid> {
    scaled(text, &SIZES, Some("B"), "not a size", BYTES_FORMS)
}

pub(super) fn show_duration(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    show(millis, &DURATIONS)
}

pub(super) fn show_bytes(bytes: u64) -> String {
    show(bytes, &SIZES)
}

/// In the largest unit that leaves no fraction.
fn show(value: u64, units: &[(&str, u64)]) -> String {
    units
        .iter()
        .rev()
        .find(|(_, size)| value >= *size && value.is_multiple_of(*size))
        .map_or_else(
            || format!("{value}{}", units[0].0),
            |(unit, size)| format!("{}{unit}", value / size),
        )
}

fn scaled(
    text: &str,
    units: &[(&str, u64)],
    bare: Option<&str>,
    wrong: &str,
    forms: &str,
) -> Result<u64, Invalid> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let size = |unit: &str| {
        units
            .iter()
            .find(|(name, _)| *name == unit)
            .map(|(_, size)| *size)
    };
    let unit_written = if unit.is_empty() {
        bare.unwrap_or(unit)
    } else {
        unit
    };
    match (number.parse::<u64>(), size(unit_written)) {
        (Ok(number), Some(size)) => number
            .checked_mul(size)
            .ok_or_else(|| Invalid::new("too large", forms)),
        (Ok(_), None) => {
            let meant = alias(unit.trim()).filter(|unit| size(unit).is_some());
            let (label, help) = match meant {
                Some(meant) => (wrong, format!("did you mean `{number}{meant}`?")),
                None if unit.is_empty() => ("the unit is missing", forms.to_owned()),
                None => (wrong, forms.to_owned()),
            };
            Err(Invalid::new(label, help))
        }
        (Err(_), _) if digits > 0 => Err(Invalid::new("too large", forms)),
        (Err(_), _) => Err(Invalid::new(wrong, forms)),
    }
}

/// A unit people write by another name, or put a space before.
fn alias(unit: &str) -> Option<&'static str> {
    let lower = unit.to_ascii_lowercase();
    DURATIONS
        .iter()
        .chain(&SIZES)
        .map(|(name, _)| (*name, *name))
        .chain(ALIASES)
        .find(|(written, _)| *written == lower)
        .map(|(_, meant)| meant)
}
