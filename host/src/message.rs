//! One message, whole and exactly as the broker delivered it.
//!
//! The AMQP properties and headers are kept in lapin's own types, and stored in their wire encoding
//! (AMQP 0-9-1, section 4.2.6.1), so that a message that waits in a table leaves it with every property
//! and every odd header type it came with.

pub mod withheld;

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::protocol::basic::{gen_properties, parse_properties};
use lapin::types::{AMQPValue, FieldTable};

pub use withheld::Withheld;

/// What a producer published. Cheap to clone as far as the body goes.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Empty for the default exchange.
    pub exchange: String,
    pub routing_key: String,
    pub properties: BasicProperties,
    pub body: Bytes,
}

/// Stored properties that are not the wire encoding of any.
#[derive(Debug, thiserror::Error)]
#[error("the stored properties are not AMQP 0-9-1 basic properties")]
pub struct InvalidProperties;

impl Message {
    /// The headers, if the producer set any.
    pub fn headers(&self) -> Option<&FieldTable> {
        self.properties.headers().as_ref()
    }

    /// A text property by its AMQP name (`message-id`, `correlation-id`, `type`, …).
    /// Absent for an unknown name; `config` refuses those before they get here.
    pub fn property(&self, name: &str) -> Option<String> {
        let text = match name {
            "content-type" => self.properties.content_type(),
            "content-encoding" => self.properties.content_encoding(),
            "correlation-id" => self.properties.correlation_id(),
            "reply-to" => self.properties.reply_to(),
            "expiration" => self.properties.expiration(),
            "message-id" => self.properties.message_id(),
            "type" => self.properties.kind(),
            "user-id" => self.properties.user_id(),
            "app-id" => self.properties.app_id(),
            "cluster-id" => self.properties.cluster_id(),
            "timestamp" => {
                return self
                    .properties
                    .timestamp()
                    .map(|seconds| seconds.to_string());
            }
            "priority" => return self.properties.priority().map(|level| level.to_string()),
            "delivery-mode" => return self.properties.delivery_mode().map(|mode| mode.to_string()),
            _ => return None,
        };
        text.as_ref().map(|value| value.as_str().to_owned())
    }

    /// When the producer says that it sent the message, in whole seconds since the Unix epoch.
    pub fn timestamp_seconds(&self) -> Option<i64> {
        self.properties
            .timestamp()
            .and_then(|seconds| i64::try_from(seconds).ok())
    }

    /// The trace that the message belongs to, from its W3C `traceparent` header: 32 hex digits.
    pub fn trace_id(&self) -> Option<String> {
        let AMQPValue::LongString(value) = self.headers()?.inner().get("traceparent")? else {
            return None;
        };
        let trace_id = std::str::from_utf8(value.as_bytes())
            .ok()?
            .split('-')
            .nth(1)?;
        let valid = trace_id.len() == 32 && trace_id.bytes().all(|byte| byte.is_ascii_hexdigit());
        valid.then(|| trace_id.to_ascii_lowercase())
    }

    /// The memory that the message holds, about.
    pub fn size_bytes(&self) -> usize {
        self.body.len() + 512
    }

    /// The properties in their wire encoding.
    pub fn encoded_properties(&self) -> Vec<u8> {
        encode_properties(&self.properties)
    }
}

/// Properties in their wire encoding: two bytes of flags and the values that are set.
pub fn encode_properties(properties: &BasicProperties) -> Vec<u8> {
    cookie_factory::gen_simple(gen_properties(properties), Vec::with_capacity(128))
        .expect("writing to a vector cannot fail")
}

/// The inverse of [`encode_properties`].
pub fn decode_properties(encoded: &[u8]) -> Result<BasicProperties, InvalidProperties> {
    match parse_properties(encoded) {
        Ok(([], properties)) => Ok(properties),
        _ => Err(InvalidProperties),
    }
}

#[cfg(test)]
pub(crate) mod tests;
