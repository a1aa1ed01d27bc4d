//! Outgoing messages: composed when the guest publishes, so that what cannot be sent is refused while
//! the guest can still see it.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use sha2::{Digest, Sha256};

use crate::config::{Target, Unroutable};
use crate::message::{Message, encode_properties};
use crate::store::{ConsumerId, OutboxRow};

/// AMQP names are short strings.
const MAX_NAME_BYTES: usize = 255;

/// The properties of a message travel in one frame, and brokers allow frames of 128 KiB by default.
const MAX_PROPERTIES_BYTES: usize = 120 * 1024;

/// What a guest wants to send.
#[derive(Debug, Clone, Default)]
pub struct Publish {
    pub target: String,
    pub routing_key: Option<String>,
    pub body: Vec<u8>,
    pub content_type: Option<String>,
    pub headers: FieldTable,
    pub ordering_key: Option<String>,
    pub delay: Option<Duration>,
}

/// Why it cannot be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    #[error("the consumer has no target named {0}; its configuration names {1}")]
    UnknownTarget(String, String),
    #[error("{0}")]
    Invalid(String),
    #[error("the message has no reply-to property")]
    NoReplyTo,
}

/// What makes the ids of a message's outgoing messages its own.
#[derive(Debug, Clone)]
pub enum IdSeed {
    /// Equal in every attempt: consumer, key, ledger generation.
    Stable {
        consumer: String,
        key: Vec<u8>,
        generation: i32,
    },
    /// Messages without a key are different messages each time.
    Fresh,
}

impl IdSeed {
    /// The id of the n-th outgoing message, 32 hex digits.
    pub fn message_id(&self, kind: &str, index: u32) -> String {
        let Self::Stable {
            consumer,
            key,
            generation,
        } = self
        else {
            return hex::encode(u128::to_be_bytes(fastrand::u128(..)));
        };
        let mut hash = Sha256::new();
        for part in [kind.as_bytes(), consumer.as_bytes(), key] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        hash.update(generation.to_be_bytes());
        hash.update(index.to_be_bytes());
        hex::encode(&hash.finalize()[..16])
    }
}

/// An answer as the ledger keeps it for duplicates of its message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredReply {
    pub content_type: Option<String>,
    pub body: Bytes,
}

impl StoredReply {
    /// The answer in an outbox row that [`Composer::reply`] made.
    pub fn of(row: &OutboxRow) -> Self {
        Self {
            content_type: row.message.property("content-type"),
            body: row.message.body.clone(),
        }
    }

    /// The length of the content type in one byte (AMQP allows 255), the content type, the body.
    pub fn encode(&self) -> Vec<u8> {
        let kind = self.content_type.as_deref().unwrap_or_default().as_bytes();
        let kind = &kind[..kind.len().min(MAX_NAME_BYTES)];
        let length = u8::try_from(kind.len()).expect("it was cut to what a byte can count");
        let mut stored = Vec::with_capacity(1 + kind.len() + self.body.len());
        stored.push(length);
        stored.extend_from_slice(kind);
        stored.extend_from_slice(&self.body);
        stored
    }

    /// The inverse of [`StoredReply::encode`]; `None` for what it never wrote.
    pub fn decode(stored: Vec<u8>) -> Option<Self> {
        let stored = Bytes::from(stored);
        let length = usize::from(*stored.first()?);
        let kind = stored.get(1..=length)?;
        let kind = std::str::from_utf8(kind).ok()?;
        Some(Self {
            content_type: (!kind.is_empty()).then(|| kind.to_owned()),
            body: stored.slice(1 + length..),
        })
    }
}

/// Composes the outbox rows of one consumer.
#[derive(Debug, Clone)]
pub struct Composer {
    pub consumer: ConsumerId,
    pub targets: BTreeMap<String, Target>,
}

/// What of the incoming message shapes its outgoing ones.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    pub message: &'a Message,
    pub seed: &'a IdSeed,
    pub lane: i16,
    /// Seconds since the Unix epoch: the frozen time of the attempt.
    pub now_seconds: u64,
}

impl Composer {
    /// The row of a message to a named target.
    pub fn publish(
        &self,
        origin: Origin<'_>,
        index: u32,
        publish: Publish,
    ) -> Result<OutboxRow, PublishError> {
        let Some(target) = self.targets.get(&publish.target) else {
            let known = self.targets.keys().cloned().collect::<Vec<_>>().join(", ");
            let known = if known.is_empty() {
                "none".to_owned()
            } else {
                known
            };
            return Err(PublishError::UnknownTarget(publish.target, known));
        };
        let routing_key = publish
            .routing_key
            .unwrap_or_else(|| target.routing_key.clone());
        short("routing key", &routing_key)?;
        // The default exchange has every queue of the broker behind it, under its name.
        if target.exchange.is_empty()
            && !target.routing_key.is_empty()
            && routing_key != target.routing_key
        {
            return Err(PublishError::Invalid(format!(
                "the target {} is the queue {}, and another routing key would be another queue",
                publish.target, target.routing_key
            )));
        }
        if let Some(key) = &publish.ordering_key {
            short("ordering key", key)?;
        }
        let properties = self
            .properties(
                origin,
                "outbox",
                index,
                publish.content_type,
                publish.headers,
            )?
            .with_delivery_mode(if target.persistent { 2 } else { 1 });
        let message = Message {
            exchange: target.exchange.clone(),
            routing_key,
            properties: bounded(properties)?,
            body: Bytes::from(publish.body),
        };
        Ok(OutboxRow {
            consumer: self.consumer,
            lane: origin.lane,
            target: publish.target,
            may_drop: target.unroutable == Unroutable::Drop,
            ordering_key: publish.ordering_key,
            delay: publish.delay.filter(|delay| !delay.is_zero()),
            message,
        })
    }

    /// The row of the answer to the message's `reply-to`. The asker may be gone: it may be dropped. Its id
    /// is the same whenever the same asker gets an answer about the same key, and another one for another
    /// asker.
    pub fn reply(
        &self,
        origin: Origin<'_>,
        body: Vec<u8>,
        content_type: Option<String>,
    ) -> Result<OutboxRow, PublishError> {
        let asked = &origin.message.properties;
        let Some(reply_to) = asked
            .reply_to()
            .as_ref()
            .filter(|name| !name.as_str().is_empty())
        else {
            return Err(PublishError::NoReplyTo);
        };
        let correlation = asked.correlation_id().as_ref();
        let kind = format!(
            "reply\0{reply_to}\0{}",
            correlation.map_or("", |id| id.as_str())
        );
        let mut properties = self
            .properties(origin, &kind, 0, content_type, FieldTable::default())?
            .with_delivery_mode(2);
        if let Some(correlation) = correlation {
            properties = properties.with_correlation_id(correlation.clone());
        }
        let message = Message {
            exchange: String::new(),
            routing_key: reply_to.as_str().to_owned(),
            properties: bounded(properties)?,
            body: Bytes::from(body),
        };
        Ok(OutboxRow {
            consumer: self.consumer,
            lane: origin.lane,
            target: "reply".to_owned(),
            may_drop: true,
            ordering_key: None,
            delay: None,
            message,
        })
    }

    fn properties(
        &self,
        origin: Origin<'_>,
        kind: &str,
        index: u32,
        content_type: Option<String>,
        mut headers: FieldTable,
    ) -> Result<BasicProperties, PublishError> {
        let mut properties = BasicProperties::default()
            .with_message_id(short("message id", &origin.seed.message_id(kind, index))?)
            .with_timestamp(origin.now_seconds);
        if let Some(content_type) = content_type {
            properties = properties.with_content_type(short("content type", &content_type)?);
        }
        continue_trace(origin.message, &mut headers);
        if !headers.inner().is_empty() {
            properties = properties.with_headers(headers);
        }
        Ok(properties)
    }
}

/// The trace of the incoming message goes on in the outgoing one, unless the guest set its own.
fn continue_trace(message: &Message, headers: &mut FieldTable) {
    for name in ["traceparent", "tracestate"] {
        let Some(value) = message
            .headers()
            .and_then(|incoming| incoming.inner().get(name))
        else {
            continue;
        };
        if matches!(value, AMQPValue::LongString(_)) && !headers.contains_key(name) {
            headers.insert(ShortString::from(name), value.clone());
        }
    }
}

fn short(what: &str, text: &str) -> Result<ShortString, PublishError> {
    ShortString::try_new(text).map_err(|_| {
        PublishError::Invalid(format!(
            "the {what} has {} bytes; AMQP allows {MAX_NAME_BYTES}",
            text.len()
        ))
    })
}

fn bounded(properties: BasicProperties) -> Result<BasicProperties, PublishError> {
    let size = encode_properties(&properties).len();
    if size > MAX_PROPERTIES_BYTES {
        return Err(PublishError::Invalid(format!(
            "the properties and headers have {size} bytes; at most {MAX_PROPERTIES_BYTES} fit into a frame"
        )));
    }
    Ok(properties)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_reply_is_read_as_it_was_written() {
        for content_type in [
            None,
            Some("application/json".to_owned()),
            Some("x".repeat(255)),
        ] {
            for body in [&b""[..], b"{}", &[0, 255, 10]] {
                let reply = StoredReply {
                    content_type: content_type.clone(),
                    body: Bytes::copy_from_slice(body),
                };
                assert_eq!(StoredReply::decode(reply.encode()), Some(reply));
            }
        }
    }

    /// Whoever may send to one queue may not send to all of them.
    #[test]
    fn a_target_that_is_one_queue_takes_no_other_routing_key() {
        let target = |exchange: &str, routing_key: &str| Target {
            exchange: exchange.to_owned(),
            routing_key: routing_key.to_owned(),
            persistent: true,
            unroutable: Unroutable::Keep,
        };
        let targets = [
            ("queue", target("", "out")),
            ("any", target("", "")),
            ("exchange", target("shop", "out")),
        ];
        let composer = Composer {
            consumer: ConsumerId(1),
            targets: targets
                .map(|(name, target)| (name.to_owned(), target))
                .into(),
        };
        let message = Message {
            exchange: String::new(),
            routing_key: "in".to_owned(),
            properties: BasicProperties::default(),
            body: Bytes::new(),
        };
        let published = |target: &str, routing_key: Option<&str>| {
            let origin = Origin {
                message: &message,
                seed: &IdSeed::Fresh,
                lane: 0,
                now_seconds: 0,
            };
            let publish = Publish {
                target: target.to_owned(),
                routing_key: routing_key.map(str::to_owned),
                body: Vec::new(),
                content_type: None,
                headers: FieldTable::default(),
                ordering_key: None,
                delay: None,
            };
            composer
                .publish(origin, 0, publish)
                .map(|row| row.message.routing_key)
        };
        for (target, routing_key, expected) in [
            ("queue", None, Some("out")),
            ("queue", Some("out"), Some("out")),
            ("queue", Some("other"), None),
            ("queue", Some(""), None),
            ("any", Some("other"), Some("other")),
            ("exchange", Some("other"), Some("other")),
        ] {
            let found = published(target, routing_key).ok();
            assert_eq!(found.as_deref(), expected, "{target} {routing_key:?}");
        }
    }

    #[test]
    fn what_is_no_stored_reply_is_not_taken_for_one() {
        for stored in [&b""[..], &[5, b'a'], &[1, 0xff]] {
            assert_eq!(StoredReply::decode(stored.to_vec()), None);
        }
    }
}
