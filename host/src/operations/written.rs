//! A message as people write it: one JSON object on one line.
//!
//! ```json
//! {"exchange": "", "routing_key": "orders.paid", "properties": {"message_id": "m-1"},
//!  "headers": {"tenant": "acme"}, "body": {"order_id": "o-1"}}
//! ```
//! In place of `body`, which is sent as its very text, `body_text` gives text that is not JSON and
//! `body_base64` any bytes. What is read here can be written here, and the other way round.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use lapin::BasicProperties;
use lapin::types::ShortString;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::message::Message;

use super::headers;

/// Properties of AMQP 0-9-1 that are text, as they are written here.
const TEXTS: [&str; 10] = [
    "content_type",
    "content_encoding",
    "correlation_id",
    "reply_to",
    "expiration",
    "message_id",
    "type",
    "user_id",
    "app_id",
    "cluster_id",
];

/// What is wrong with a line, in words.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadLine(String);

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Line<'l> {
    #[serde(skip_serializing_if = "Option::is_none")]
    exchange: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    routing_key: Option<String>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    properties: Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    headers: Option<Map<String, Value>>,
    /// `null` is a body too: it is not the absence of one.
    #[serde(
        borrow,
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    body: Option<&'l RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
}

fn present<'d, D: Deserializer<'d>>(source: D) -> Result<Option<&'d RawValue>, D::Error> {
    <&RawValue>::deserialize(source).map(Some)
}

/// Reads a line. It goes where it says when it names an exchange; else to `queue`, else to the queue that
/// its routing key names.
pub fn read_line(line: &str, queue: Option<&str>) -> Result<Message, BadLine> {
    let line: Line<'_> = serde_json::from_str(line).map_err(|error| BadLine(syntax(&error)))?;
    let (exchange, routing_key) = match (line.exchange, line.routing_key, queue) {
        (Some(exchange), routing_key, _) => (exchange, routing_key.unwrap_or_default()),
        (None, _, Some(queue)) => (String::new(), queue.to_owned()),
        (None, Some(routing_key), None) => (String::new(), routing_key),
        (None, None, None) => {
            return Err(BadLine(
                "no destination: name a `routing_key`, or give --queue".into(),
            ));
        }
    };
    for (name, text) in [("exchange", &exchange), ("routing_key", &routing_key)] {
        ShortString::try_new(text.as_str()).map_err(|_| {
            BadLine(format!(
                "`{name}` has {} bytes; AMQP allows 255",
                text.len()
            ))
        })?;
    }
    let mut properties = read_properties(&line.properties)?;
    if let Some(written) = &line.headers {
        properties = properties.with_headers(headers::read_table(written).map_err(BadLine)?);
    }
    let body = match (line.body, line.body_text, line.body_base64) {
        (Some(json), None, None) => json.get().as_bytes().to_vec(),
        (None, Some(text), None) => text.into_bytes(),
        (None, None, Some(text)) => STANDARD
            .decode(text)
            .map_err(|_| BadLine("`body_base64` is not base64".into()))?,
        (None, None, None) => {
            return Err(BadLine(
                "no body: give `body`, `body_text` or `body_base64`".into(),
            ));
        }
        _ => {
            return Err(BadLine(
                "more than one of `body`, `body_text` and `body_base64`".into(),
            ));
        }
    };
    Ok(Message {
        exchange,
        routing_key,
        properties,
        body: body.into(),
    })
}

/// Serde's message without its line, which is always the first.
fn syntax(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    match text.strip_suffix(&place) {
        Some(text) => format!("{text} (column {})", error.column()),
        None => text,
    }
}

fn read_properties(written: &Map<String, Value>) -> Result<BasicProperties, BadLine> {
    let mut properties = BasicProperties::default();
    for (name, value) in written {
        properties = read_property(properties, name, value)?;
    }
    Ok(properties)
}

fn read_property(
    properties: BasicProperties,
    name: &str,
    value: &Value,
) -> Result<BasicProperties, BadLine> {
    let number = |what: &str| BadLine(format!("property `{name}` must be {what}"));
    match name {
        "delivery_mode" => {
            let mode = value.as_u64().filter(|mode| matches!(mode, 1 | 2));
            let mode = mode.ok_or_else(|| number("1 (transient) or 2 (persistent)"))?;
            return Ok(properties.with_delivery_mode(mode as u8));
        }
        "priority" => {
            let level = value.as_u64().and_then(|level| u8::try_from(level).ok());
            return Ok(
                properties.with_priority(level.ok_or_else(|| number("a number from 0 to 255"))?)
            );
        }
        "timestamp" => {
            let seconds = value
                .as_u64()
                .ok_or_else(|| number("whole seconds since 1970"))?;
            return Ok(properties.with_timestamp(seconds));
        }
        _ => {}
    }
    if !TEXTS.contains(&name) {
        let known = TEXTS
            .iter()
            .chain(&["delivery_mode", "priority", "timestamp"]);
        let near = known
            .clone()
            .find(|known| strsim::damerau_levenshtein(known, name) <= 2);
        return Err(BadLine(match near {
            Some(near) => format!("there is no property `{name}`; did you mean `{near}`?"),
            None => {
                let known = known.copied().collect::<Vec<_>>().join(", ");
                format!("there is no property `{name}`; there are {known}")
            }
        }));
    }
    let text = value.as_str().ok_or_else(|| number("text"))?;
    let text = ShortString::try_new(text).map_err(|_| number("at most 255 bytes"))?;
    Ok(match name {
        "content_type" => properties.with_content_type(text),
        "content_encoding" => properties.with_content_encoding(text),
        "correlation_id" => properties.with_correlation_id(text),
        "reply_to" => properties.with_reply_to(text),
        "expiration" => properties.with_expiration(text),
        "message_id" => properties.with_message_id(text),
        "type" => properties.with_type(text),
        "user_id" => properties.with_user_id(text),
        "app_id" => properties.with_app_id(text),
        _ => properties.with_cluster_id(text),
    })
}

/// Writes a message as the value that [`read_line`] reads.
pub fn write_message(message: &Message) -> Value {
    let mut properties = Map::new();
    for name in TEXTS {
        if let Some(text) = message.property(&name.replace('_', "-")) {
            properties.insert(name.to_owned(), Value::String(text));
        }
    }
    let known = &message.properties;
    let numbers = [
        ("delivery_mode", known.delivery_mode().map(u64::from)),
        ("priority", known.priority().map(u64::from)),
        ("timestamp", *known.timestamp()),
    ];
    for (name, number) in numbers {
        if let Some(number) = number {
            properties.insert(name.to_owned(), json!(number));
        }
    }
    let mut written = json!({
        "exchange": message.exchange,
        "routing_key": message.routing_key,
        "properties": properties,
    });
    if let Some(table) = message.headers() {
        written["headers"] = Value::Object(headers::write_table(table));
    }
    match str::from_utf8(&message.body) {
        Ok(text) => match as_json(text) {
            Some(json) => written["body"] = json,
            None => written["body_text"] = json!(text),
        },
        Err(_) => written["body_base64"] = json!(STANDARD.encode(&message.body)),
    }
    written
}

/// The value that a text is, when it is written back as the same text: spaces and the order of members are
/// part of a body too.
fn as_json(text: &str) -> Option<Value> {
    let value = serde_json::from_str::<Value>(text).ok()?;
    let again = value.to_string();
    (again == text).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::encode_properties;

    fn problem(line: &str) -> String {
        read_line(line, Some("q")).expect_err(line).to_string()
    }

    #[test]
    fn a_body_is_sent_as_the_very_text_of_the_line() {
        let message = read_line(
            r#"{"body": {"b": 1.50,  "a": 12345678901234567890123}}"#,
            Some("q"),
        )
        .expect("good");
        assert_eq!(
            message.body.as_ref(),
            br#"{"b": 1.50,  "a": 12345678901234567890123}"#
        );
        let null = read_line(r#"{"body": null}"#, Some("q")).expect("good");
        assert_eq!(null.body.as_ref(), b"null");
    }

    #[test]
    fn other_bodies_are_text_or_bytes() {
        let text = read_line(r#"{"body_text": "a\u0000b"}"#, Some("q")).expect("good");
        assert_eq!(text.body.as_ref(), b"a\0b");
        let bytes = read_line(r#"{"body_base64": "/wA="}"#, Some("q")).expect("good");
        assert_eq!(bytes.body.as_ref(), b"\xff\0");
    }

    #[test]
    fn an_exchange_in_the_line_wins_over_the_queue_and_a_routing_key_alone_does_not() {
        let to = |line: &str, queue| {
            let message = read_line(line, queue).expect("good");
            (message.exchange, message.routing_key)
        };
        let both = r#"{"exchange": "e", "routing_key": "r", "body": 1}"#;
        assert_eq!(to(both, Some("q")), ("e".into(), "r".into()));
        let key = r#"{"routing_key": "r", "body": 1}"#;
        assert_eq!(to(key, Some("q")), (String::new(), "q".into()));
        assert_eq!(to(key, None), (String::new(), "r".into()));
        assert_eq!(
            read_line(r#"{"body": 1}"#, None)
                .map_err(|error| error.to_string())
                .unwrap_err(),
            "no destination: name a `routing_key`, or give --queue"
        );
    }

    #[test]
    fn every_property_is_read_and_written() {
        let line = r#"{"exchange":"e","routing_key":"r","properties":{"content_type":"application/json","content_encoding":"gzip","correlation_id":"c","reply_to":"back","expiration":"60000","message_id":"m","type":"t","user_id":"u","app_id":"a","cluster_id":"x","delivery_mode":1,"priority":9,"timestamp":1700000000},"headers":{"tenant":"acme","n":[1,null]},"body":{"order_id":"o"}}"#;
        let message = read_line(line, None).expect("good");
        let properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_content_encoding("gzip".into())
            .with_correlation_id("c".into())
            .with_reply_to("back".into())
            .with_expiration("60000".into())
            .with_message_id("m".into())
            .with_type("t".into())
            .with_user_id("u".into())
            .with_app_id("a".into())
            .with_cluster_id("x".into())
            .with_delivery_mode(1)
            .with_priority(9)
            .with_timestamp(1_700_000_000)
            .with_headers(message.headers().expect("headers").clone());
        assert_eq!(
            encode_properties(&message.properties),
            encode_properties(&properties)
        );
        let expected: Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(write_message(&message), expected);
    }

    #[test]
    fn what_is_written_reads_back_as_the_same_message() {
        for body in [
            &b"{\"a\":1}"[..],
            b"{ \"a\": 1 }",
            b"plain",
            b"\xff\xfe",
            b"",
            b"null",
            b"\"\0\"",
        ] {
            let message = Message {
                exchange: "e".into(),
                routing_key: "r".into(),
                properties: BasicProperties::default(),
                body: bytes::Bytes::copy_from_slice(body),
            };
            let line = write_message(&message).to_string();
            assert_eq!(read_line(&line, None), Ok(message), "{line}");
        }
    }

    #[test]
    fn a_bad_line_says_what_is_wrong_with_it() {
        assert!(problem("{").contains("(column 1)"), "{}", problem("{"));
        assert!(problem(r#"{"body": 1, "bdy": 2}"#).contains("unknown field `bdy`"));
        assert!(
            problem(r#"{"properties": {"mesage_id": "m"}, "body": 1}"#)
                .contains("did you mean `message_id`")
        );
        assert!(problem(r#"{"properties": {"priority": 256}, "body": 1}"#).contains("0 to 255"));
        assert!(
            problem(r#"{"headers": {"n": 99999999999999999999}, "body": 1}"#).contains("64 bits")
        );
        assert!(problem("{}").contains("no body"));
        assert!(problem(r#"{"body": 1, "body_text": "a"}"#).contains("more than one"));
        assert!(problem(r#"{"body_base64": "%"}"#).contains("not base64"));
        assert!(
            problem(&format!(
                r#"{{"exchange": "{}", "body": 1}}"#,
                "x".repeat(256)
            ))
            .contains("255")
        );
    }
}
