//! The copy of a parked message that is sent to `park.exchange`.
//!
//! It goes through the outbox, in the transaction that parks its original, and is a courtesy: the message
//! itself is in the table. What would keep the copy from arriving (an expiration, another user's id, more
//! recipients) is left out; what made the message fail is told in headers.

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use crate::config::{Target, Unroutable};
use crate::consumer::Consumer;
use crate::message::{Message, Withheld, encode_properties};
use crate::store::{OutboxRow, WaitingRow};

/// How outbox, log and metrics name where copies go.
const TARGET: &str = "park";

/// The properties travel in one frame, and brokers allow frames of 128 KiB by default.
const MAX_PROPERTIES_BYTES: usize = 120 * 1024;

/// Text of a failure that a header carries.
const MAX_ERROR_BYTES: usize = 4 * 1024;

/// The outbox row of a parked message's copy.
pub fn copy(consumer: &Consumer, target: &Target, row: &WaitingRow, lane: i16) -> OutboxRow {
    let original = &row.message;
    let left_out = left_out(row, consumer.rules.max_message_bytes);
    let routing_key = match target.routing_key.as_str() {
        "" => original.routing_key.clone(),
        key => key.to_owned(),
    };
    let message = Message {
        exchange: target.exchange.clone(),
        routing_key,
        properties: properties(&consumer.name, target, row, left_out),
        body: match left_out {
            None => original.body.clone(),
            Some(_) => Bytes::new(),
        },
    };
    OutboxRow {
        consumer: consumer.id,
        lane,
        target: TARGET.to_owned(),
        may_drop: target.unroutable == Unroutable::Drop,
        ordering_key: None,
        delay: None,
        message,
    }
}

/// The length of a body that is not sent again: it is larger than what the consumer handles, or only its beginning is
/// here.
fn left_out(row: &WaitingRow, max_bytes: u64) -> Option<u64> {
    let original = row.withheld.as_ref().and_then(Withheld::original);
    let cut = original.and_then(|original| original.cut);
    let length = row.message.body.len() as u64;
    match cut {
        Some(cut) => Some(cut.length),
        None => (length > max_bytes).then_some(length),
    }
}

fn properties(
    consumer: &str,
    target: &Target,
    row: &WaitingRow,
    left_out: Option<u64>,
) -> BasicProperties {
    let original = &row.message.properties;
    let mut headers = FieldTable::default();
    for (name, value) in original
        .headers()
        .iter()
        .flat_map(|headers| headers.inner())
    {
        if !["CC", "BCC"].contains(&name.as_str()) {
            headers.insert(name.clone(), value.clone());
        }
    }
    let mut told = told(consumer, row);
    if let Some(length) = left_out {
        let length = i64::try_from(length).unwrap_or(i64::MAX);
        told.insert("x-hapax-body-bytes".into(), AMQPValue::LongLongInt(length));
    }
    for (name, value) in told.inner() {
        headers.insert(name.clone(), value.clone());
    }
    let mode = if target.persistent { 2 } else { 1 };
    let whole = stripped(original)
        .with_headers(headers)
        .with_delivery_mode(mode);
    let whole = match original.message_id() {
        Some(_) => whole,
        // The relay and its readers tell messages apart by their ids.
        None => whole.with_message_id(hex::encode(&row.id[..row.id.len().min(16)]).into()),
    };
    if encode_properties(&whole).len() <= MAX_PROPERTIES_BYTES {
        return whole;
    }
    whole.with_headers(told)
}

/// All properties but those that would keep a copy from arriving.
fn stripped(original: &BasicProperties) -> BasicProperties {
    let mut kept = BasicProperties::default();
    macro_rules! keep {
        ($($get:ident $with:ident,)*) => {
            $(if let Some(value) = original.$get() {
                kept = kept.$with(value.clone());
            })*
        };
    }
    keep! {
        content_type with_content_type,
        content_encoding with_content_encoding,
        priority with_priority,
        correlation_id with_correlation_id,
        reply_to with_reply_to,
        message_id with_message_id,
        timestamp with_timestamp,
        kind with_type,
        app_id with_app_id,
        cluster_id with_cluster_id,
    }
    kept
}

/// Why the message was parked, and where it came from.
fn told(consumer: &str, row: &WaitingRow) -> FieldTable {
    let error = &row.error[..row.error.floor_char_boundary(MAX_ERROR_BYTES)];
    let id = hex::encode(&row.id);
    let texts = [
        ("x-hapax-consumer", consumer),
        ("x-hapax-id", &id),
        ("x-hapax-code", &row.code),
        ("x-hapax-error", error),
        ("x-hapax-queue", &row.queue),
        ("x-hapax-exchange", &row.message.exchange),
        ("x-hapax-routing-key", &row.message.routing_key),
    ];
    let mut headers = FieldTable::default();
    for (name, text) in texts {
        headers.insert(ShortString::from(name), AMQPValue::LongString(text.into()));
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::tests::every_property;
    use crate::message::withheld::{Cut, Original};
    use crate::store::Status;

    fn row(properties: BasicProperties) -> WaitingRow {
        WaitingRow {
            id: vec![7; 32],
            key: None,
            fingerprint: Vec::new(),
            partition: 0,
            status: Status::Parked,
            attempts: 1,
            code: "trap".to_owned(),
            error: "é".repeat(MAX_ERROR_BYTES),
            stderr: String::new(),
            backtrace: String::new(),
            plugin: Vec::new(),
            trace_id: String::new(),
            queue: "orders.paid".to_owned(),
            message: Message {
                exchange: "shop".to_owned(),
                routing_key: "orders.paid".to_owned(),
                properties,
                body: bytes::Bytes::from_static(b"{}"),
            },
            withheld: None,
        }
    }

    fn target() -> Target {
        Target {
            exchange: "dead".to_owned(),
            routing_key: String::new(),
            persistent: true,
            unroutable: Unroutable::Keep,
        }
    }

    fn header<'a>(copy: &'a BasicProperties, name: &str) -> Option<&'a AMQPValue> {
        copy.headers().as_ref()?.inner().get(name)
    }

    #[test]
    fn what_would_keep_a_copy_from_arriving_is_left_out() {
        let mut headers = FieldTable::default();
        headers.insert("CC".into(), AMQPValue::LongString("elsewhere".into()));
        headers.insert("tenant".into(), AMQPValue::LongString("a".into()));
        let original = every_property()
            .with_headers(headers)
            .with_user_id("somebody".into())
            .with_expiration("1".into());
        let copy = properties("points", &target(), &row(original.clone()), None);
        assert_eq!((copy.user_id(), copy.expiration()), (&None, &None));
        assert_eq!(header(&copy, "CC"), None);
        assert_eq!(
            header(&copy, "tenant"),
            Some(&AMQPValue::LongString("a".into()))
        );
        assert_eq!(copy.message_id(), original.message_id());
        assert_eq!(copy.correlation_id(), original.correlation_id());
        assert_eq!(
            header(&copy, "x-hapax-code"),
            Some(&AMQPValue::LongString("trap".into()))
        );
    }

    #[test]
    fn a_body_that_is_not_handled_is_not_sent_again_and_its_length_is_told() {
        let mut large = row(BasicProperties::default());
        assert_eq!(left_out(&large, 2), None);
        assert_eq!(left_out(&large, 1), Some(2));
        let original = Original {
            cut: Some(Cut {
                length: 1 << 32,
                sha256: [0; 32],
            }),
            ..Original::default()
        };
        large.withheld = Some(Withheld::from(&original));
        assert_eq!(left_out(&large, 2), Some(1 << 32));
        let copy = properties("points", &target(), &large, Some(1 << 32));
        assert_eq!(
            header(&copy, "x-hapax-body-bytes"),
            Some(&AMQPValue::LongLongInt(1 << 32))
        );
    }

    #[test]
    fn a_copy_always_has_an_id_and_fits_into_a_frame() {
        let mut headers = FieldTable::default();
        let long = "x".repeat(MAX_PROPERTIES_BYTES);
        headers.insert("long".into(), AMQPValue::LongString(long.into()));
        let original = BasicProperties::default().with_headers(headers);
        let copy = properties("points", &target(), &row(original), None);
        assert!(copy.message_id().is_some());
        assert!(encode_properties(&copy).len() <= MAX_PROPERTIES_BYTES);
        assert_eq!(header(&copy, "long"), None);
        assert!(header(&copy, "x-hapax-error").is_some());
    }
}
