//! What the handler sees, as JSON that names the types.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::SystemTime;

use hapax_guest::context::Dialect;
use hapax_guest::prelude::*;
use hapax_guest::sql::Value;
use hapax_guest::{HeaderValue, Properties, Timestamp};
use serde_json::{Map, Value as Json, json};

pub fn context(message: &Message) -> Json {
    json!({
        "consumer": context::consumer(),
        "key": bytes(&context::key()),
        "attempt": context::attempt(),
        "redelivered": context::redelivered(),
        "now": context::now().0,
        "clock": Timestamp::from(SystemTime::now()).0,
        "random": RandomState::new().hash_one(0),
        "ids": [context::new_id(), context::new_id()],
        "dialect": match context::dialect() {
            Dialect::Postgres => "postgres",
            Dialect::Sqlite => "sqlite",
            Dialect::Mysql => "mysql",
        },
        "trace": context::trace().map(|trace| json!({
            "trace_id": trace.trace_id, "span_id": trace.span_id, "sampled": trace.sampled,
        })),
        "exchange": message.exchange,
        "routing_key": message.routing_key,
        "properties": properties(&message.properties),
        "headers": message.headers.iter()
            .map(|header| json!([header.name, header_value(&header.value)]))
            .collect::<Json>(),
        "body": bytes(&message.body),
    })
}

/// The properties that are set.
fn properties(properties: &Properties) -> Json {
    let all = json!({
        "content_type": properties.content_type,
        "content_encoding": properties.content_encoding,
        "delivery_mode": properties.delivery_mode,
        "priority": properties.priority,
        "correlation_id": properties.correlation_id,
        "reply_to": properties.reply_to,
        "expiration": properties.expiration,
        "message_id": properties.message_id,
        "timestamp": properties.timestamp,
        "type": properties.type_,
        "user_id": properties.user_id,
        "app_id": properties.app_id,
        "cluster_id": properties.cluster_id,
    });
    let Json::Object(all) = all else { return all };
    all.into_iter()
        .filter(|(_, value)| !value.is_null())
        .collect::<Map<_, _>>()
        .into()
}

fn header_value(value: &HeaderValue) -> Json {
    match value {
        HeaderValue::Null => Json::Null,
        HeaderValue::Bool(value) => json!(value),
        HeaderValue::S64(value) => json!(value),
        HeaderValue::F64(value) => json!(value),
        HeaderValue::Text(text) => json!(text),
        HeaderValue::Bytes(value) => json!({"bytes": bytes(value)}),
        HeaderValue::Decimal(text) => json!({"decimal": text}),
        HeaderValue::Timestamp(micros) => json!({"timestamp": micros}),
        HeaderValue::Json(text) => json!({"json": text}),
    }
}

/// A value of a row. What has no JSON form of its own is an object that names its type.
pub fn value(value: &Value) -> Json {
    match value {
        Value::Null => Json::Null,
        Value::Bool(value) => json!(value),
        Value::S64(value) => json!(value),
        Value::F64(value) => json!(value),
        Value::Text(text) => json!(text),
        Value::Bytes(value) => json!({"bytes": bytes(value)}),
        Value::Decimal(text) => json!({"decimal": text}),
        Value::Timestamp(micros) => json!({"timestamp": micros}),
        Value::Uuid(text) => json!({"uuid": text}),
        Value::Json(text) => json!({"json": text}),
        Value::Other(other) => json!({"other": [other.type_, other.text]}),
    }
}

/// Text where the bytes are UTF-8, otherwise the numbers.
fn bytes(bytes: &[u8]) -> Json {
    std::str::from_utf8(bytes).map_or_else(|_| json!(bytes), |text| json!(text))
}
