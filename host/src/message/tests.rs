//! A message that was stored comes back as it was.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, ByteArray, DecimalValue, FieldArray, FieldTable};

use super::{decode_properties, encode_properties};

/// Every property and every type of header that AMQP 0-9-1 and RabbitMQ know.
pub(crate) fn every_property() -> BasicProperties {
    let mut inner = FieldTable::default();
    inner.insert("nested".into(), AMQPValue::LongString("äöü".into()));
    let mut headers = FieldTable::default();
    let odd = [
        ("bool", AMQPValue::Boolean(true)),
        ("i8", AMQPValue::ShortShortInt(-128)),
        ("u8", AMQPValue::ShortShortUInt(255)),
        ("i16", AMQPValue::ShortInt(-32768)),
        ("u16", AMQPValue::ShortUInt(65535)),
        ("i32", AMQPValue::LongInt(i32::MIN)),
        ("u32", AMQPValue::LongUInt(u32::MAX)),
        ("i64", AMQPValue::LongLongInt(i64::MIN)),
        ("f32", AMQPValue::Float(1.5)),
        ("f64", AMQPValue::Double(-0.1)),
        (
            "decimal",
            AMQPValue::DecimalValue(DecimalValue {
                scale: 2,
                value: 1250,
            }),
        ),
        ("long", AMQPValue::LongString(vec![0xff, 0x00, 0xfe].into())),
        (
            "array",
            AMQPValue::FieldArray(FieldArray::from(vec![
                AMQPValue::Void,
                AMQPValue::Boolean(false),
            ])),
        ),
        ("time", AMQPValue::Timestamp(u64::MAX)),
        ("table", AMQPValue::FieldTable(inner)),
        (
            "bytes",
            AMQPValue::ByteArray(ByteArray::from(vec![0, 1, 2])),
        ),
        ("void", AMQPValue::Void),
    ];
    for (name, value) in odd {
        headers.insert(name.into(), value);
    }
    BasicProperties::default()
        .with_content_type("application/json".into())
        .with_content_encoding("identity".into())
        .with_headers(headers)
        .with_delivery_mode(2)
        .with_priority(9)
        .with_correlation_id("correlation".into())
        .with_reply_to("reply".into())
        .with_expiration("60000".into())
        .with_message_id("id".into())
        .with_timestamp(1_700_000_000)
        .with_type("kind".into())
        .with_user_id("guest".into())
        .with_app_id("app".into())
        .with_cluster_id("cluster".into())
}

#[test]
fn every_property_and_every_type_of_header_survives_its_encoding() {
    let properties = every_property();
    assert_eq!(
        decode_properties(&encode_properties(&properties)).unwrap(),
        properties
    );
}

#[test]
fn a_message_without_properties_stays_without() {
    let properties = BasicProperties::default();
    assert_eq!(
        decode_properties(&encode_properties(&properties)).unwrap(),
        properties
    );
}

#[test]
fn bytes_that_are_not_properties_are_refused() {
    for wrong in [
        &b""[..],
        b"\x80",
        b"\x80\x00",
        b"\x80\x00\x05abc",
        b"\x00\x00\x00",
    ] {
        assert!(decode_properties(wrong).is_err(), "{wrong:?}");
    }
}
