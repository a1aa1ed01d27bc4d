//! `hapax parked show`: one failed message, whole.

use std::fmt::Write as _;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde_json::{Value, json};

use crate::config::Config;
use crate::message::Message;
use crate::operations::{Kept, Request, Response, Shown, write_message};
use crate::output;

use super::super::access::Access;
use super::super::{Error, print_json, unexpected};
use super::list::key;

/// Bytes of a body that is no text, in the dump.
const DUMP_BYTES: usize = 1024;

/// Characters of a body that is text.
const BODY_CHARACTERS: usize = 64 * 1024;

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The beginning of its id
    id: String,
    /// Print JSON; its `message` is a line that `hapax publish` takes
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(arguments: &ShowArgs, config: &Arc<Config>) -> Result<(), Error> {
    let access = Access::open(config).await?;
    let Response::Show(shown) = access.execute(Request::Show(arguments.id.clone())).await? else {
        return Err(unexpected());
    };
    let message = Message::try_from(shown.message.clone())?;
    if arguments.json {
        let mut value = serde_json::to_value(&shown.entry).expect("an entry is plain data");
        value["stderr"] = json!(shown.stderr);
        value["backtrace"] = json!(shown.backtrace);
        value["message"] = write_message(&message);
        value["withheld"] = json!(shown.withheld);
        return print_json(&value);
    }
    Ok(output::print(&render(&shown, &message))?)
}

fn render(shown: &Shown, message: &Message) -> String {
    let entry = &shown.entry;
    let mut text = String::new();
    let mut field = |name: &str, value: &str| text.push_str(&output::field(name, value));
    field("id", &entry.id);
    field("consumer", &entry.consumer);
    field("key", &key(entry));
    field("status", &entry.status);
    field("code", &entry.code);
    field("error", &entry.error);
    field("attempts", &entry.attempts.to_string());
    field("first failed", &entry.first_failed_at);
    field("last failed", &entry.failed_at);
    field("due", entry.due_at.as_deref().unwrap_or_default());
    field("queue", &entry.queue);
    field("plugin", &entry.plugin);
    field("trace", &entry.trace_id);
    field(
        "exchange",
        if message.exchange.is_empty() {
            "(default)"
        } else {
            &message.exchange
        },
    );
    field("routing key", &message.routing_key);

    section(&mut text, "stderr", &shown.stderr);
    section(&mut text, "backtrace", &shown.backtrace);
    if let Some(kept) = &shown.withheld {
        section(&mut text, "as it came", &as_it_came(kept));
    }
    text.push_str(&content(message));
    text
}

/// What could not be taken of a message: bytes in hexadecimal digits and characters.
fn as_it_came(kept: &Kept) -> String {
    let mut text = String::new();
    if let (Some(bytes), Some(sha256)) = (kept.body_bytes, &kept.body_sha256) {
        let bytes = output::count(bytes, "byte");
        let _ = writeln!(
            text,
            "the body had {bytes}, SHA-256 {sha256}; its beginning is stored"
        );
    }
    let parts = [
        ("exchange", &kept.exchange),
        ("routing key", &kept.routing_key),
        ("properties", &kept.properties),
    ];
    for (name, part) in parts {
        if let Some(part) = part {
            let bytes = STANDARD.decode(part).unwrap_or_default();
            let _ = write!(text, "{name} ({})\n{}", kept.encoding, dump(&bytes));
        }
    }
    text
}

/// Properties, headers and body of a message, for people.
pub(in crate::cli) fn content(message: &Message) -> String {
    let mut text = String::new();
    let mut written = write_message(message);
    for name in ["properties", "headers"] {
        section(&mut text, name, &members(written[name].take()));
    }
    let title = format!("body, {}", output::count(message.body.len() as u64, "byte"));
    section(&mut text, &title, &body(&message.body));
    text
}

fn section(text: &mut String, title: &str, content: &str) {
    text.push_str(&output::section(title, content));
}

fn members(value: Value) -> String {
    let Value::Object(members) = value else {
        return String::new();
    };
    let line = |(name, value): (String, Value)| match value {
        Value::String(text) => format!("{name}: {}\n", output::clean(&text)),
        other => format!("{name}: {other}\n"),
    };
    members.into_iter().map(line).collect()
}

/// Pretty JSON, else text, else the first bytes in hexadecimal digits.
fn body(bytes: &[u8]) -> String {
    let Ok(text) = str::from_utf8(bytes) else {
        return dump(bytes);
    };
    let pretty = serde_json::from_str::<Value>(text)
        .map(|json| format!("{json:#}"))
        .unwrap_or_else(|_| text.to_owned());
    match pretty.char_indices().nth(BODY_CHARACTERS) {
        Some((end, _)) => format!("{}\n… (use --json for all of it)", &pretty[..end]),
        None => pretty,
    }
}

fn dump(bytes: &[u8]) -> String {
    const WIDTH: usize = 16;
    let mut text = String::new();
    for (row, chunk) in bytes[..bytes.len().min(DUMP_BYTES)]
        .chunks(WIDTH)
        .enumerate()
    {
        let digits = chunk
            .iter()
            .map(|byte| format!("{byte:02x} "))
            .collect::<String>();
        let characters = chunk.iter().map(|byte| match byte {
            b' '..=b'~' => char::from(*byte),
            _ => '.',
        });
        let characters = characters.collect::<String>();
        let _ = writeln!(
            text,
            "{:08x}  {digits:<width$} {characters}",
            row * WIDTH,
            width = WIDTH * 3
        );
    }
    if bytes.len() > DUMP_BYTES {
        let _ = writeln!(text, "… (use --json for all of it)");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operations::Entry;
    use expect_test::expect;

    #[test]
    fn a_body_is_pretty_json_or_text_or_a_dump() {
        assert_eq!(
            body(br#"{"b":1.50,"a":[true]}"#),
            "{\n  \"a\": [\n    true\n  ],\n  \"b\": 1.50\n}"
        );
        assert_eq!(body(b"plain"), "plain");
        expect![[r#"
            00000000  ff 00 41 20 62                                   ..A b
        "#]]
        .assert_eq(&body(b"\xff\x00A b"));
    }

    #[test]
    fn a_long_body_is_cut_and_says_so() {
        assert!(body(&[0xff; 4096]).lines().count() < 80);
        let text = body("é".repeat(100_000).as_bytes());
        assert!(text.ends_with("(use --json for all of it)") && text.chars().count() < 70_000);
    }

    #[test]
    fn control_characters_of_a_message_do_not_reach_the_terminal() {
        let message = Message {
            exchange: "e\u{1b}[2J".into(),
            routing_key: "r".into(),
            properties: lapin::BasicProperties::default().with_message_id("m\r\n".into()),
            body: bytes::Bytes::from_static(b"\x1b]0;title\x07"),
        };
        let entry = Entry {
            id: "00ff".into(),
            consumer: "points".into(),
            status: "parked".into(),
            key: Some("k\u{202e}".into()),
            key_hex: Some("6b".into()),
            code: "rejected".into(),
            error: "no\u{1b}[31m".into(),
            attempts: 1,
            first_failed_at: "2026-01-01T00:00:00Z".into(),
            failed_at: "2026-01-01T00:00:00Z".into(),
            due_at: None,
            queue: "q".into(),
            plugin: String::new(),
            trace_id: String::new(),
        };
        let shown = Shown {
            entry,
            stderr: "panicked\u{7}\nat once".into(),
            backtrace: String::new(),
            message: crate::operations::Wire::from(&message),
            withheld: Some(Kept {
                encoding: "amqp-withheld/1".into(),
                exchange: None,
                routing_key: None,
                properties: Some(STANDARD.encode([0x00, 0x80, 0x01, 0xc4])),
                body_bytes: Some(300),
                body_sha256: Some("ab".into()),
            }),
        };
        let plain = anstream::adapter::strip_str(&render(&shown, &message)).to_string();
        expect![[r#"
            id            00ff
            consumer      points
            key           k\u{202e}
            status        parked
            code          rejected
            error         no\u{1b}[31m
            attempts      1
            first failed  2026-01-01T00:00:00Z
            last failed   2026-01-01T00:00:00Z
            queue         q
            exchange      e\u{1b}[2J
            routing key   r

            stderr
              panicked\u{7}
              at once

            as it came
              the body had 300 bytes, SHA-256 ab; its beginning is stored
              properties (amqp-withheld/1)
              00000000  00 80 01 c4                                      ....

            properties
              message_id: m\r\n

            body, 10 bytes
              \u{1b}]0;title\u{7}
        "#]]
        .assert_eq(&plain);
    }
}
