//! What a handler asked for, as lines that people read and that can be compared.

use crate::message::Message;
use crate::operations::write_table;
use crate::output;
use crate::store::recorded::Step;
use crate::store::{OutboxRow, Value};

/// One line for each effect, in order. The record of what the handler said is no effect of it.
pub fn lines(steps: &[Step]) -> Vec<String> {
    steps
        .iter()
        .filter_map(|step| match step {
            Step::Query {
                statement,
                parameters,
            } => Some(format!(
                "query {} {}",
                one_line(statement),
                values(parameters)
            )),
            Step::Execute {
                statement,
                parameters,
            } => Some(format!(
                "execute {} {}",
                one_line(statement),
                values(parameters)
            )),
            Step::State { key, value } => Some(match value {
                Some(value) => format!("state {key} = {}", output::bytes(value)),
                None => format!("state {key} removed"),
            }),
            Step::Send(row) => Some(sent(row)),
            Step::Ignored(_) | Step::Failed(_) => None,
        })
        .collect()
}

/// Statements are written over several lines; their line breaks mean nothing.
fn one_line(statement: &str) -> String {
    statement.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn values(values: &[Value]) -> String {
    let shown: Vec<_> = values.iter().map(value).collect();
    format!("[{}]", shown.join(", "))
}

fn value(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::S64(value) => value.to_string(),
        Value::F64(value) => format!("{value:?}"),
        Value::Text(text) => format!("{text:?}"),
        Value::Bytes(bytes) => format!("0x{}", hex::encode(bytes)),
        Value::Decimal(text) | Value::Uuid(text) | Value::Json(text) => text.clone(),
        Value::Timestamp(micros) => chrono::DateTime::from_timestamp_micros(*micros)
            .map_or_else(|| micros.to_string(), |time| time.to_rfc3339()),
        Value::Other { kind, text } => format!("{kind} {text}"),
    }
}

fn sent(row: &OutboxRow) -> String {
    let Message {
        exchange,
        routing_key,
        properties,
        body,
    } = &row.message;
    let mut line = format!("send to {}", row.target);
    if exchange.is_empty() {
        line += &format!(" (queue {routing_key})");
    } else {
        line += &format!(" (exchange {exchange}, routing key {routing_key})");
    }
    if let Some(key) = &row.ordering_key {
        line += &format!(" ordered by {key}");
    }
    if let Some(delay) = row.delay {
        line += &format!(" after {delay:?}");
    }
    if let Some(kind) = properties.content_type() {
        line += &format!(" as {kind}");
    }
    if let Some(headers) = properties.headers() {
        let headers: Vec<_> = write_table(headers)
            .iter()
            .filter(|(name, _)| !name.starts_with("hapax-"))
            .map(|(name, value)| format!("{name} = {value}"))
            .collect();
        if !headers.is_empty() {
            line += &format!(" with {}", headers.join(", "));
        }
    }
    format!("{line}: {}", output::bytes(body))
}

/// Why the handler had nothing to do, if it said so.
pub fn ignored(steps: &[Step]) -> Option<&str> {
    steps.iter().find_map(|step| match step {
        Step::Ignored(reason) => Some(reason.as_str()),
        _ => None,
    })
}

/// The lines that differ, `-` before what was first and `+` before what came instead.
pub fn difference(first: &[String], second: &[String]) -> String {
    let same_before = first
        .iter()
        .zip(second)
        .take_while(|(one, other)| one == other)
        .count();
    let (first, second) = (&first[same_before..], &second[same_before..]);
    let same_after = first
        .iter()
        .rev()
        .zip(second.iter().rev())
        .take_while(|(one, other)| one == other)
        .count();
    let gone = first[..first.len() - same_after]
        .iter()
        .map(|line| format!("- {line}"));
    let new = second[..second.len() - same_after]
        .iter()
        .map(|line| format!("+ {line}"));
    gone.chain(new).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use lapin::BasicProperties;
    use lapin::types::{AMQPValue, FieldTable};

    use super::*;
    use crate::store::ConsumerId;

    #[test]
    fn what_is_sent_is_told_with_its_content_type_and_its_headers() {
        let mut headers = FieldTable::default();
        headers.insert("tenant".into(), AMQPValue::LongString("north".into()));
        headers.insert("hapax-key".into(), AMQPValue::LongString("o-1".into()));
        let row = OutboxRow {
            consumer: ConsumerId(1),
            lane: 0,
            target: "out".into(),
            may_drop: false,
            message: Message {
                exchange: String::new(),
                routing_key: "q".into(),
                properties: BasicProperties::default()
                    .with_content_type("text/plain".into())
                    .with_headers(headers),
                body: bytes::Bytes::from_static(b"hello"),
            },
            ordering_key: None,
            delay: None,
        };
        assert_eq!(
            lines(&[Step::Send(Arc::new(row))]),
            [r#"send to out (queue q) as text/plain with tenant = "north": hello"#]
        );
    }

    #[test]
    fn what_differs_stands_between_what_does_not() {
        let lines = |text: &str| text.chars().map(String::from).collect::<Vec<_>>();
        assert_eq!(difference(&lines("abcd"), &lines("abcd")), "");
        assert_eq!(difference(&lines("abcd"), &lines("axd")), "- b\n- c\n+ x");
        assert_eq!(difference(&lines("ab"), &lines("abb")), "+ b");
        assert_eq!(difference(&lines("ab"), &lines("")), "- a\n- b");
    }

    #[test]
    fn a_statement_is_one_line_with_its_values() {
        let step = Step::Execute {
            statement: "UPDATE t\n   SET a = $1".into(),
            parameters: vec![Value::Text("x\"".into()), Value::Null, Value::F64(1.0)],
        };
        assert_eq!(
            lines(&[step]),
            [r#"execute UPDATE t SET a = $1 ["x\"", null, 1.0]"#]
        );
    }
}
