//! Keys from a file: lines, JSON lines, CSV, or messages as `hapax publish` takes them. Reads as it goes;
//! one record is held at a time.

use std::io::{self, BufRead, Read};

use serde_json::Value;

use crate::config;
use crate::key::{KeyRules, MAX_KEY_BYTES, join_parts, json_key};
use crate::operations::read_line;

use super::super::typed::KeyFormat;

/// The longest record: a message with its body.
const MAX_RECORD_BYTES: u64 = 64 << 20;

/// How the records are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// One key a line
    Lines,
    /// One JSON object a line; the key is what --field names
    Jsonl,
    /// Comma-separated values with a header; the key is what --field names
    Csv,
    /// One message a line, as `hapax publish` takes it; the key is read by the consumer's own rule
    Messages,
}

/// What is known of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub key: Vec<u8>,
    /// Empty when the payload is not known.
    pub fingerprint: Vec<u8>,
}

/// Where the keys are in a record.
pub struct Shape<'c> {
    pub format: Format,
    pub key_format: KeyFormat,
    /// Columns, or JSON pointers; one for each part of the consumer's key.
    pub fields: Vec<String>,
    pub consumer: &'c config::Consumer,
}

/// What is wrong with the shape, or with a record.
pub type Problem = String;

impl Shape<'_> {
    /// Refuses what cannot lead to the keys of the consumer.
    pub fn check(&self) -> Result<(), Problem> {
        let parts = self.consumer.key.len();
        let rule = self
            .consumer
            .key
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(" + ");
        let fields = self.fields.len();
        match self.format {
            Format::Lines | Format::Messages if fields > 0 => {
                Err("--field is for the formats jsonl and csv".to_owned())
            }
            Format::Lines if parts > 1 => Err(format!(
                "the key of {} is made of {parts} parts ({rule}), and a line holds one: use --format jsonl or \
                 csv with a --field for each part, or --format messages",
                self.consumer.name
            )),
            Format::Jsonl | Format::Csv if fields != parts => Err(format!(
                "the key of {} is made of {parts} part{} ({rule}): name as many with --field, in this order",
                self.consumer.name,
                if parts == 1 { "" } else { "s" }
            )),
            Format::Jsonl => match self.fields.iter().find(|field| !field.starts_with('/')) {
                Some(field) => Err(format!(
                    "--field {field} is no JSON pointer: write /{field} for the member `{field}`"
                )),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// Reads all records and hands each key to `take`, with the bytes that were read up to it. The problem
    /// names the line, or the record. Blank lines are no records.
    pub fn read(
        &self,
        input: impl Read,
        mut take: impl FnMut(Found, u64) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        if self.format == Format::Csv {
            return self.read_csv(input, take);
        }
        let rules = crate::consumer::key_rules(self.consumer);
        let mut input = io::BufReader::with_capacity(1 << 16, input);
        let (mut number, mut bytes, mut line) = (0_u64, 0_u64, Vec::new());
        loop {
            line.clear();
            number += 1;
            let at = |problem: String| Stop::Record(format!("line {number}: {problem}"));
            let read = input
                .by_ref()
                .take(MAX_RECORD_BYTES)
                .read_until(b'\n', &mut line)
                .map_err(|error| at(format!("cannot be read: {error}")))?;
            if read == 0 {
                return Ok(());
            }
            if read as u64 == MAX_RECORD_BYTES {
                return Err(at(format!("longer than {MAX_RECORD_BYTES} bytes")));
            }
            bytes += read as u64;
            while matches!(line.last(), Some(b'\n' | b'\r')) {
                line.pop();
            }
            if line.is_empty() {
                continue;
            }
            let found = self.line(&line, &rules).map_err(at)?;
            take(found, bytes)?;
        }
    }

    fn line(&self, line: &[u8], rules: &KeyRules) -> Result<Found, Problem> {
        if self.format == Format::Lines && self.key_format == KeyFormat::Text {
            return found(line.to_vec());
        }
        let text = str::from_utf8(line).map_err(|_| "not UTF-8".to_owned())?;
        match self.format {
            Format::Lines | Format::Csv => found(self.key_format.read(text.trim())?),
            Format::Jsonl => {
                let json = serde_json::from_str::<Value>(text)
                    .map_err(|error| format!("not JSON: {error}"))?;
                let parts = self.fields.iter().map(|pointer| {
                    let value = json
                        .pointer(pointer)
                        .ok_or_else(|| format!("{pointer} is not in the record"))?;
                    self.json_part(pointer, value)
                });
                found(join_parts(parts.collect::<Result<_, _>>()?))
            }
            Format::Messages => {
                let message = read_line(text, Some("")).map_err(|error| error.to_string())?;
                let identity = rules
                    .identify(&message)
                    .map_err(|failure| format!("{}: {}", failure.code, failure.message))?;
                Ok(Found {
                    key: identity.key,
                    fingerprint: identity.fingerprint.to_vec(),
                })
            }
        }
    }

    fn json_part(&self, pointer: &str, value: &Value) -> Result<Vec<u8>, Problem> {
        if let (Value::String(text), KeyFormat::Hex | KeyFormat::Base64) = (value, self.key_format)
        {
            return self.key_format.read(text);
        }
        match json_key(value) {
            Ok(Some(part)) if !part.is_empty() => Ok(part),
            Ok(_) => Err(format!("{pointer} is empty")),
            Err(what) => Err(format!("{pointer} {what}")),
        }
    }

    fn read_csv(
        &self,
        input: impl Read,
        mut take: impl FnMut(Found, u64) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(input);
        let header = reader
            .byte_headers()
            .map_err(|error| Stop::Record(format!("the header cannot be read: {error}")))?
            .clone();
        let mut places = Vec::with_capacity(self.fields.len());
        for field in &self.fields {
            let place = header.iter().position(|name| name == field.as_bytes());
            places.push(place.ok_or_else(|| {
                let names = header.iter().map(crate::output::bytes);
                Stop::Record(format!(
                    "there is no column `{field}`; there is {}",
                    names.collect::<Vec<_>>().join(", ")
                ))
            })?);
        }
        let mut record = csv::ByteRecord::new();
        // Records, not lines: one may hold several.
        for number in 1_u64.. {
            let at = |problem: String| Stop::Record(format!("record {number}: {problem}"));
            if !reader
                .read_byte_record(&mut record)
                .map_err(|error| at(format!("not CSV: {error}")))?
            {
                break;
            }
            let parts = places.iter().zip(&self.fields).map(|(place, field)| {
                let cell = record
                    .get(*place)
                    .filter(|cell| !cell.is_empty())
                    .ok_or_else(|| format!("`{field}` is empty"))?;
                match self.key_format {
                    KeyFormat::Text => Ok(cell.to_vec()),
                    format => format.read(&String::from_utf8_lossy(cell)),
                }
            });
            let parts = parts.collect::<Result<Vec<_>, _>>().map_err(at)?;
            let found = found(join_parts(parts)).map_err(at)?;
            take(found, reader.position().byte())?;
        }
        Ok(())
    }
}

/// Why reading has ended early.
#[derive(Debug)]
pub enum Stop {
    /// A record is wrong: which, and why.
    Record(Problem),
    /// Whoever takes the keys has ended it.
    Taker,
}

fn found(key: Vec<u8>) -> Result<Found, Problem> {
    match key.len() {
        0 => Err("the key is empty".to_owned()),
        bytes if bytes > MAX_KEY_BYTES => Err(format!(
            "the key has {bytes} bytes; at most {MAX_KEY_BYTES} are allowed"
        )),
        _ => Ok(Found {
            key,
            fingerprint: Vec::new(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn consumer(key: &str) -> config::Consumer {
        let text = format!(
            "[[consumer]]\nname = \"points\"\nqueue = \"q\"\nplugin = \"p.wasm\"\nkey = {key}\n"
        );
        let path = Path::new("hapax.toml");
        let config = config::parse(path, &text, &config::Machine).expect("a configuration");
        config.consumers[0].clone()
    }

    fn shape<'c>(format: Format, fields: &[&str], consumer: &'c config::Consumer) -> Shape<'c> {
        Shape {
            format,
            key_format: KeyFormat::Text,
            fields: fields.iter().map(|field| (*field).to_owned()).collect(),
            consumer,
        }
    }

    fn keys(shape: &Shape<'_>, text: &[u8]) -> Result<Vec<Vec<u8>>, String> {
        let mut keys = Vec::new();
        let read = shape.read(text, |found, _| {
            keys.push(found.key);
            Ok(())
        });
        match read {
            Ok(()) => Ok(keys),
            Err(Stop::Record(problem)) => Err(problem),
            Err(Stop::Taker) => panic!("nobody has ended it"),
        }
    }

    #[test]
    fn a_line_is_a_key_as_it_stands() {
        let consumer = consumer("\"message-id\"");
        let lines = shape(Format::Lines, &[], &consumer);
        let read = keys(&lines, b"a \r\n\n0xff\n\xff\x00\nlast");
        let expected: [&[u8]; 4] = [b"a ", b"0xff", b"\xff\x00", b"last"];
        assert_eq!(read.expect("keys"), expected);
        let long = "x".repeat(513);
        let problem = keys(&lines, format!("ok\n{long}\n").as_bytes()).expect_err("too long");
        assert!(
            problem.starts_with("line 2:") && problem.contains("513"),
            "{problem}"
        );
        let hex = Shape {
            key_format: KeyFormat::Hex,
            ..shape(Format::Lines, &[], &consumer)
        };
        assert_eq!(
            keys(&hex, b"0xff00\n6f\n").expect("keys"),
            [&b"\xff\x00"[..], b"o"]
        );
        assert!(
            keys(&hex, b"xyz")
                .expect_err("no digits")
                .contains("line 1:")
        );
    }

    #[test]
    fn a_json_key_is_what_a_message_with_that_member_would_have() {
        let consumer = consumer("\"body:/order/id\"");
        let jsonl = shape(Format::Jsonl, &["/order/id"], &consumer);
        let text = br#"{"order": {"id": "o-1"}}
{"order": {"id": 123456789012345678901234567890}}
{"order": {"id": true}}"#;
        let expected: [&[u8]; 3] = [b"o-1", b"123456789012345678901234567890", b"true"];
        assert_eq!(keys(&jsonl, text).expect("keys"), expected);
        for (text, part) in [
            (&b"{}"[..], "/order/id is not in the record"),
            (b"{\"order\": {\"id\": null}}", "/order/id is empty"),
            (b"{\"order\": {\"id\": [1]}}", "is an array"),
            (b"nonsense", "not JSON"),
        ] {
            let problem = keys(&jsonl, text).expect_err("no key");
            assert!(
                problem.starts_with("line 1:") && problem.contains(part),
                "{problem}"
            );
        }
    }

    #[test]
    fn columns_are_found_by_their_names_and_joined_as_the_rule_joins_them() {
        let consumer = consumer("[\"header:tenant\", \"body:/order_id\"]");
        let csv = shape(Format::Csv, &["tenant", "order id"], &consumer);
        let text = b"at,order id,tenant\n1,\"o,1\nx\",acme\r\n2,o-2,\n";
        let problem = keys(&csv, text).expect_err("an empty column");
        assert!(
            problem.contains("`tenant` is empty") && problem.contains("record 2:"),
            "{problem}"
        );
        let read = keys(&csv, b"at,order id,tenant\n1,\"o,1\nx\",acme\r\n").expect("keys");
        assert_eq!(
            read,
            [join_parts(vec![b"acme".to_vec(), b"o,1\nx".to_vec()])]
        );
        let problem = keys(&csv, b"at,id\n").expect_err("no such column");
        assert!(
            problem.contains("no column `tenant`; there is at, id"),
            "{problem}"
        );
    }

    #[test]
    fn a_message_has_the_key_and_the_fingerprint_that_it_would_have_in_the_queue() {
        let consumer = consumer("[\"header:tenant\", \"body:/order_id\"]");
        let messages = shape(Format::Messages, &[], &consumer);
        let line = r#"{"headers": {"tenant": "acme"}, "body": {"order_id": 7, "amount": 1.50}}"#;
        let rules = crate::consumer::key_rules(&consumer);
        let message = read_line(line, Some("q")).expect("a message");
        let identity = rules.identify(&message).expect("a key");
        let mut found = Vec::new();
        let read = messages.read(line.as_bytes(), |key, bytes| {
            found.push((key, bytes));
            Ok(())
        });
        assert!(read.is_ok());
        assert_eq!(found[0].0.key, identity.key);
        assert_eq!(found[0].0.fingerprint, identity.fingerprint);
        assert_eq!(found[0].1, line.len() as u64);
        let problem = keys(&messages, b"{\"body\": {}}").expect_err("no tenant");
        assert!(problem.contains("key-missing"), "{problem}");
    }

    #[test]
    fn a_shape_that_cannot_lead_to_the_keys_is_refused() {
        let one = consumer("\"message-id\"");
        let two = consumer("[\"header:tenant\", \"body:/order_id\"]");
        for (shape, part) in [
            (shape(Format::Lines, &[], &two), "made of 2 parts"),
            (shape(Format::Lines, &["id"], &one), "--field is for"),
            (shape(Format::Csv, &[], &one), "made of 1 part (message-id)"),
            (shape(Format::Jsonl, &["/a"], &two), "name as many"),
            (shape(Format::Jsonl, &["id"], &one), "write /id"),
        ] {
            let problem = shape.check().expect_err(part);
            assert!(problem.contains(part), "{problem}");
        }
        assert!(shape(Format::Messages, &[], &two).check().is_ok());
        assert!(shape(Format::Csv, &["a", "b"], &two).check().is_ok());
    }
}
