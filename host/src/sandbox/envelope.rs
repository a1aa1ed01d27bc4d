//! Messages between AMQP and the WIT: properties and headers in both directions.
//!
//! Towards the guest nothing is lost that a handler could use, though integer widths merge into `s64` and
//! nested tables become JSON. What is stored for a retry is always the original, never this view.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use lapin::types::{AMQPValue, ByteArray, DecimalValue, FieldArray, FieldTable, ShortString};
use serde_json::{Map, Number, Value as Json};

use crate::message::Message;

use super::bindings::hapax::plugin::types::{
    Envelope, HeaderParam, HeaderResult, HeaderValueParam, HeaderValueResult, Properties,
};

/// How deep a header may nest, in either direction.
const MAX_DEPTH: usize = 32;

/// The headers of a message, ready to be lent to a guest.
pub(super) struct Headers<'a>(Vec<(&'a str, View<'a>)>);

/// A header's value: lent, or written out because its AMQP form is no WIT value.
enum View<'a> {
    Lent(HeaderValueParam<'a>),
    Decimal(String),
    Json(String),
}

impl<'a> Headers<'a> {
    pub(super) fn of(message: &'a Message) -> Self {
        let headers = message
            .headers()
            .map(FieldTable::inner)
            .into_iter()
            .flatten();
        Self(
            headers
                .map(|(name, value)| (name.as_str(), View::of(value)))
                .collect(),
        )
    }

    /// In the order of the names: AMQP tables have none of their own.
    pub(super) fn lend(&self) -> Vec<HeaderParam<'_>> {
        self.0
            .iter()
            .map(|(name, value)| HeaderParam {
                name,
                value: value.lend(),
            })
            .collect()
    }
}

impl<'a> View<'a> {
    fn of(value: &'a AMQPValue) -> Self {
        Self::Lent(match value {
            AMQPValue::Void => HeaderValueParam::Null,
            AMQPValue::Boolean(value) => HeaderValueParam::Bool(*value),
            AMQPValue::ShortShortInt(value) => HeaderValueParam::S64(i64::from(*value)),
            AMQPValue::ShortShortUInt(value) => HeaderValueParam::S64(i64::from(*value)),
            AMQPValue::ShortInt(value) => HeaderValueParam::S64(i64::from(*value)),
            AMQPValue::ShortUInt(value) => HeaderValueParam::S64(i64::from(*value)),
            AMQPValue::LongInt(value) => HeaderValueParam::S64(i64::from(*value)),
            AMQPValue::LongUInt(value) => HeaderValueParam::S64(i64::from(*value)),
            AMQPValue::LongLongInt(value) => HeaderValueParam::S64(*value),
            AMQPValue::Float(value) => HeaderValueParam::F64(f64::from(*value)),
            AMQPValue::Double(value) => HeaderValueParam::F64(*value),
            AMQPValue::ShortString(text) => HeaderValueParam::Text(text.as_str()),
            AMQPValue::LongString(text) => match str::from_utf8(text.as_bytes()) {
                Ok(text) => HeaderValueParam::Text(text),
                Err(_) => HeaderValueParam::Bytes(text.as_bytes()),
            },
            AMQPValue::ByteArray(bytes) => HeaderValueParam::Bytes(bytes.as_slice()),
            AMQPValue::Timestamp(seconds) => HeaderValueParam::Timestamp(micros(*seconds)),
            AMQPValue::DecimalValue(value) => return Self::Decimal(decimal_text(*value)),
            AMQPValue::FieldArray(_) | AMQPValue::FieldTable(_) => {
                return Self::Json(json_of(value, MAX_DEPTH).to_string());
            }
        })
    }

    fn lend(&self) -> HeaderValueParam<'_> {
        match self {
            Self::Lent(value) => value.clone(),
            Self::Decimal(text) => HeaderValueParam::Decimal(text),
            Self::Json(text) => HeaderValueParam::Json(text),
        }
    }
}

/// The message as its handler sees it.
pub(super) fn lend<'a>(message: &'a Message, headers: &'a [HeaderParam<'a>]) -> Envelope<'a> {
    Envelope {
        exchange: &message.exchange,
        routing_key: &message.routing_key,
        properties: properties(message),
        headers,
        body: &message.body,
    }
}

fn properties(message: &Message) -> Properties<'_> {
    let properties = &message.properties;
    fn text(value: &Option<ShortString>) -> Option<&str> {
        value.as_ref().map(ShortString::as_str)
    }
    Properties {
        content_type: text(properties.content_type()),
        content_encoding: text(properties.content_encoding()),
        delivery_mode: *properties.delivery_mode(),
        priority: *properties.priority(),
        correlation_id: text(properties.correlation_id()),
        reply_to: text(properties.reply_to()),
        expiration: text(properties.expiration()),
        message_id: text(properties.message_id()),
        timestamp: properties.timestamp().map(micros),
        type_: text(properties.kind()),
        user_id: text(properties.user_id()),
        app_id: text(properties.app_id()),
        cluster_id: text(properties.cluster_id()),
    }
}

fn micros(seconds: u64) -> i64 {
    i64::try_from(seconds)
        .unwrap_or(i64::MAX)
        .saturating_mul(1_000_000)
}

/// AMQP 0-9-1, section 4.2.5.5: a signed integer and the number of its digits behind the point. The
/// grammar calls the integer unsigned; brokers and clients read it as signed.
fn decimal_text(decimal: DecimalValue) -> String {
    let value = decimal.value.cast_signed();
    let sign = if value < 0 { "-" } else { "" };
    let scale = usize::from(decimal.scale);
    let digits = format!("{:0>width$}", value.unsigned_abs(), width = scale + 1);
    match digits.split_at(digits.len() - scale) {
        (whole, "") => format!("{sign}{whole}"),
        (whole, fraction) => format!("{sign}{whole}.{fraction}"),
    }
}

/// A nested value as JSON: timestamps are microseconds, bytes that are no text are base64. What is nested
/// deeper than anybody means to is left out.
fn json_of(value: &AMQPValue, depth: usize) -> Json {
    let Some(depth) = depth.checked_sub(1) else {
        return Json::Null;
    };
    match value {
        AMQPValue::FieldArray(array) => array
            .as_slice()
            .iter()
            .map(|value| json_of(value, depth))
            .collect(),
        AMQPValue::FieldTable(table) => {
            let members = table.inner().iter();
            Json::Object(
                members
                    .map(|(name, value)| (name.to_string(), json_of(value, depth)))
                    .collect(),
            )
        }
        scalar => match View::of(scalar) {
            View::Lent(HeaderValueParam::Bool(value)) => value.into(),
            View::Lent(HeaderValueParam::S64(value) | HeaderValueParam::Timestamp(value)) => {
                value.into()
            }
            View::Lent(HeaderValueParam::F64(value)) => value.into(),
            View::Lent(HeaderValueParam::Text(text)) => text.into(),
            View::Lent(HeaderValueParam::Bytes(bytes)) => BASE64.encode(bytes).into(),
            View::Decimal(text) => text.parse::<Number>().map_or(Json::Null, Json::Number),
            View::Lent(_) | View::Json(_) => Json::Null,
        },
    }
}

/// Headers that RabbitMQ reads as routing keys beside the message's own: they would send it past the targets.
/// Source: <https://www.rabbitmq.com/docs/sender-selected>; the names are compared as they are.
const ROUTING_HEADERS: [&str; 2] = ["CC", "BCC"];

/// The headers of an outgoing message. The error is for the author of the handler.
pub(super) fn headers_from_guest(headers: Vec<HeaderResult>) -> Result<FieldTable, String> {
    let mut table = FieldTable::default();
    for HeaderResult { name, value } in headers {
        if ROUTING_HEADERS.contains(&name.as_str()) {
            return Err(format!(
                "the header {name} sends copies to other queues: publish to a target for each instead"
            ));
        }
        let value = value_from_guest(&name, value)?;
        table.insert(header_name(name)?, value);
    }
    Ok(table)
}

fn header_name(name: String) -> Result<ShortString, String> {
    if name.contains('\0') {
        return Err("a header's name contains a NUL character".into());
    }
    ShortString::try_new(name).map_err(|error| format!("a header's name is too long: {error}"))
}

fn value_from_guest(name: &str, value: HeaderValueResult) -> Result<AMQPValue, String> {
    Ok(match value {
        HeaderValueResult::Null => AMQPValue::Void,
        HeaderValueResult::Bool(value) => AMQPValue::Boolean(value),
        HeaderValueResult::S64(value) => AMQPValue::LongLongInt(value),
        HeaderValueResult::F64(value) => AMQPValue::Double(value),
        HeaderValueResult::Text(text) => AMQPValue::LongString(text.into()),
        HeaderValueResult::Bytes(bytes) => AMQPValue::ByteArray(ByteArray::from(bytes)),
        HeaderValueResult::Decimal(text) => {
            AMQPValue::DecimalValue(decimal_of(&text).ok_or_else(|| {
                format!("the header {name} is not a decimal that AMQP can carry (32 bits): {text}")
            })?)
        }
        HeaderValueResult::Timestamp(micros) => {
            let seconds = u64::try_from(micros.div_euclid(1_000_000))
                .map_err(|_| format!("the header {name} is a time before 1970"))?;
            AMQPValue::Timestamp(seconds)
        }
        HeaderValueResult::Json(text) => {
            let json: Json = serde_json::from_str(&text)
                .map_err(|error| format!("the header {name} is not JSON: {error}"))?;
            amqp_of(json, MAX_DEPTH).ok_or_else(|| {
                format!("the header {name} nests too deep, or a name in it is over 255 bytes")
            })?
        }
    })
}

fn decimal_of(text: &str) -> Option<DecimalValue> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let value: i32 = format!("{whole}{fraction}").parse().ok()?;
    Some(DecimalValue {
        scale: u8::try_from(fraction.len()).ok()?,
        value: value.cast_unsigned(),
    })
}

fn amqp_of(json: Json, depth: usize) -> Option<AMQPValue> {
    let depth = depth.checked_sub(1)?;
    Some(match json {
        Json::Null => AMQPValue::Void,
        Json::Bool(value) => AMQPValue::Boolean(value),
        Json::Number(number) => match number.as_i64() {
            Some(value) => AMQPValue::LongLongInt(value),
            None => AMQPValue::Double(number.as_f64()?),
        },
        Json::String(text) => AMQPValue::LongString(text.into()),
        Json::Array(values) => {
            let mut array = FieldArray::default();
            for value in values {
                array.push(amqp_of(value, depth)?);
            }
            AMQPValue::FieldArray(array)
        }
        Json::Object(members) => AMQPValue::FieldTable(table_of(members, depth)?),
    })
}

fn table_of(members: Map<String, Json>, depth: usize) -> Option<FieldTable> {
    let mut table = FieldTable::default();
    for (name, value) in members {
        table.insert(header_name(name).ok()?, amqp_of(value, depth)?);
    }
    Some(table)
}
