//! The language of the message's body.

use std::collections::BTreeMap;

use hapax_guest::sql::{ToValue, Value};
use hapax_guest::{Decimal, HeaderValue, Timestamp, Uuid};
use serde::Deserialize;
use serde_json::Value as Json;

/// The body. It may have more members: keys, partitions and what else the host reads from it.
#[derive(Deserialize)]
pub struct Instructions {
    #[serde(default, rename = "do")]
    pub steps: Vec<Step>,
}

/// One step: `{"NAME": argument}`, for some steps with a second member.
#[derive(Deserialize)]
pub struct Step {
    #[serde(flatten)]
    pub action: Action,
    /// For the steps that retry: the handler's wish for the delay.
    pub after_ms: Option<u64>,
    /// For `query`: the target to publish the rows to.
    pub into: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    Execute(Sql),
    ExecuteIgnore(Sql),
    ExpectAffected(Sql, u64),
    Defer(Sql),
    Query(Sql),
    FailIfMissing(Sql),
    Publish(Publish),
    Reply(Json),
    StatePut(String, Json),
    StatePutIf(String, Json, Option<u64>),
    StateIncrement(String),
    StateDelete(String),
    EchoContext(String),
    Log(String),
    Stderr(String),
    Repeat(u32, Vec<Step>),
    Done(bool),
    Ignored(String),
    Retry(String),
    RetryUntilAttempt(u32),
    Reject(String),
    Panic(String),
    Spin(bool),
    Recurse(bool),
    AllocateMib(u32),
    SleepMs(u64),
}

/// `["statement", [parameters]]`, the parameters as plain JSON or as `{"uuid": "…"}` and the like.
#[derive(Deserialize)]
#[serde(from = "(String, Vec<Json>)")]
pub struct Sql {
    pub statement: String,
    parameters: Vec<Json>,
}

impl From<(String, Vec<Json>)> for Sql {
    fn from((statement, parameters): (String, Vec<Json>)) -> Self {
        Self {
            statement,
            parameters,
        }
    }
}

impl Sql {
    pub fn values(&self) -> Vec<Value> {
        self.parameters.iter().map(parameter).collect()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Publish {
    pub target: String,
    #[serde(default)]
    pub body: Json,
    pub routing_key: Option<String>,
    pub ordering_key: Option<String>,
    #[serde(default)]
    pub headers: BTreeMap<String, Json>,
    pub delay_ms: Option<u64>,
}

fn parameter(json: &Json) -> Value {
    match json {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(integer), _) => Value::S64(integer),
            (None, float) => float.to_value(),
        },
        Json::String(text) => Value::Text(text.clone()),
        Json::Array(_) => json.to_value(),
        Json::Object(members) => match members.iter().next() {
            Some((name, value)) if members.len() == 1 => typed(name, value),
            _ => json.to_value(),
        },
    }
}

fn typed(name: &str, value: &Json) -> Value {
    match (name, value) {
        ("uuid", Json::String(text)) => Uuid(text.clone()).to_value(),
        ("decimal", Json::String(text)) => Decimal(text.clone()).to_value(),
        ("timestamp", Json::Number(micros)) => micros.as_i64().map(Timestamp).to_value(),
        ("bytes", Json::String(text)) => text.as_bytes().to_value(),
        ("json", value) => value.to_value(),
        (name, value) => Json::from_iter([(name, value.clone())]).to_value(),
    }
}

pub fn header_value(json: &Json) -> HeaderValue {
    match parameter(json) {
        Value::Null => HeaderValue::Null,
        Value::Bool(value) => value.into(),
        Value::S64(value) => value.into(),
        Value::F64(value) => value.into(),
        Value::Text(text) | Value::Uuid(text) => text.into(),
        Value::Bytes(bytes) => bytes.into(),
        Value::Decimal(text) => HeaderValue::Decimal(text),
        Value::Timestamp(micros) => HeaderValue::Timestamp(micros),
        Value::Json(text) => HeaderValue::Json(text),
        Value::Other(other) => other.text.into(),
    }
}
