//! What people type for keys and times.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use chrono::{DateTime, NaiveDate, NaiveDateTime};
use clap::ValueEnum;

use crate::operations::When;
use crate::output;

use super::Error;

/// How the bytes of a key are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum KeyFormat {
    /// As they are
    Text,
    /// Pairs of hexadecimal digits, with or without 0x
    Hex,
    /// Base64, of either alphabet
    Base64,
}

impl KeyFormat {
    /// The bytes of a key, or what is wrong with it.
    pub fn read(self, typed: &str) -> Result<Vec<u8>, String> {
        match self {
            Self::Text => Ok(typed.as_bytes().to_vec()),
            Self::Hex => hex::decode(typed.strip_prefix("0x").unwrap_or(typed))
                .map_err(|_| format!("`{}` is not hexadecimal", shown(typed))),
            Self::Base64 => [STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD]
                .iter()
                .find_map(|alphabet| alphabet.decode(typed).ok())
                .ok_or_else(|| format!("`{}` is not base64", shown(typed))),
        }
    }
}

fn shown(typed: &str) -> String {
    output::cut(&output::clean(typed), 40)
}

/// The hexadecimal digits of a key that was typed: text, hexadecimal after 0x, or as `--key-format` says.
pub(super) fn key_hex(typed: &str, format: Option<KeyFormat>) -> Result<String, Error> {
    let format = format.unwrap_or(match typed.starts_with("0x") {
        true => KeyFormat::Hex,
        false => KeyFormat::Text,
    });
    match format.read(typed) {
        Ok(key) => Ok(hex::encode(key)),
        Err(problem) => Err(Error::usage(format!(
            "{problem}; a key that begins with 0x and is text needs --key-format text"
        ))),
    }
}

/// A time for clap: `2h` ago, a day, or a moment.
pub(super) fn when(typed: &str) -> Result<When, String> {
    if let Ok(ago) = duration(typed) {
        return Ok(When::Ago(ago));
    }
    let moment = DateTime::parse_from_rfc3339(typed)
        .map(|time| time.timestamp_micros())
        .or_else(|_| {
            ["%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M"]
                .into_iter()
                .find_map(|form| NaiveDateTime::parse_from_str(typed, form).ok())
                .or_else(|| {
                    let day = NaiveDate::parse_from_str(typed, "%Y-%m-%d").ok()?;
                    day.and_hms_opt(0, 0, 0)
                })
                .map(|time| time.and_utc().timestamp_micros())
                .ok_or(())
        });
    moment.map(When::At).map_err(|()| {
        "write how long ago (`90s`, `15m`, `2h`, `7d`), a day (`2026-01-31`) or a moment \
         (`2026-01-31T12:00:00Z`); without a zone it is UTC"
            .to_owned()
    })
}

/// A duration for clap.
pub(super) fn duration(typed: &str) -> Result<Duration, String> {
    let digits = typed.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let seconds = match &typed[digits.len()..] {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err("write a whole number and a unit: `90s`, `15m`, `2h` or `7d`".to_owned()),
    };
    let number = digits.parse::<u64>().ok();
    let total = number.and_then(|number| number.checked_mul(seconds));
    total
        .map(Duration::from_secs)
        .ok_or_else(|| "not a whole number".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_typed_as_text_or_in_hexadecimal_or_as_its_format_says() {
        let read = |typed, format| key_hex(typed, format).map_err(|error| error.code());
        assert_eq!(read("o-1", None).as_deref(), Ok("6f2d31"));
        assert_eq!(read("0xFF00", None).as_deref(), Ok("ff00"));
        assert_eq!(read("0xf", None), Err(64));
        assert_eq!(read("0xf", Some(KeyFormat::Text)).as_deref(), Ok("307866"));
        assert_eq!(read("ff00", Some(KeyFormat::Hex)).as_deref(), Ok("ff00"));
        assert_eq!(read("/wA=", Some(KeyFormat::Base64)).as_deref(), Ok("ff00"));
        assert_eq!(read("_wA", Some(KeyFormat::Base64)).as_deref(), Ok("ff00"));
        assert_eq!(read("%", Some(KeyFormat::Base64)), Err(64));
    }

    #[test]
    fn a_time_is_so_long_ago_or_a_moment_in_utc() {
        let moment = 1_767_225_600_000_000;
        assert_eq!(when("2h"), Ok(When::Ago(Duration::from_secs(7_200))));
        for typed in [
            "2026-01-01",
            "2026-01-01 00:00",
            "2026-01-01T00:00:00",
            "2026-01-01T00:00:00Z",
            "2026-01-01T01:00:00+01:00",
        ] {
            assert_eq!(when(typed), Ok(When::At(moment)), "{typed}");
        }
        for typed in [
            "yesterday",
            "2",
            "-2h",
            "2026-02-30",
            "",
            "99999999999999999999d",
        ] {
            assert!(when(typed).is_err(), "{typed}");
        }
    }
}
