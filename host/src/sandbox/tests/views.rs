//! What passes between AMQP and the WIT, without an instance.

use lapin::types::{AMQPValue, DecimalValue, FieldArray, FieldTable, LongString, ShortString};

use super::super::bindings::hapax::plugin::types::{
    HeaderParam, HeaderResult, HeaderValueParam, HeaderValueResult,
};
use super::super::envelope::{Headers, headers_from_guest};
use super::super::text::bounded;
use super::*;

fn table(fields: impl IntoIterator<Item = (&'static str, AMQPValue)>) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in fields {
        table.insert(ShortString::from(name), value);
    }
    table
}

/// What a guest sees of one header.
fn seen(value: AMQPValue) -> String {
    let mut message = Message::clone(&attempt("key").message);
    message.properties = BasicProperties::default().with_headers(table([("h", value)]));
    let headers = Headers::of(&message);
    let [HeaderParam { name: "h", value }] = &headers.lend()[..] else {
        panic!("one header is there")
    };
    match value {
        HeaderValueParam::Null => "null".into(),
        HeaderValueParam::Bool(value) => format!("bool {value}"),
        HeaderValueParam::S64(value) => format!("s64 {value}"),
        HeaderValueParam::F64(value) => format!("f64 {value}"),
        HeaderValueParam::Text(text) => format!("text {text}"),
        HeaderValueParam::Bytes(bytes) => format!("bytes {bytes:?}"),
        HeaderValueParam::Decimal(text) => format!("decimal {text}"),
        HeaderValueParam::Timestamp(micros) => format!("timestamp {micros}"),
        HeaderValueParam::Json(text) => format!("json {text}"),
    }
}

fn decimal(scale: u8, value: i32) -> AMQPValue {
    AMQPValue::DecimalValue(DecimalValue {
        scale,
        value: value.cast_unsigned(),
    })
}

#[test]
fn every_amqp_value_has_a_view() {
    let nested = table([
        ("n", AMQPValue::ShortShortUInt(200)),
        (
            "list",
            AMQPValue::FieldArray(FieldArray::from(vec![decimal(2, -5), AMQPValue::Void])),
        ),
        ("raw", AMQPValue::LongString(LongString::from(vec![0xff]))),
    ]);
    let views = [
        (AMQPValue::Void, "null"),
        (AMQPValue::Boolean(true), "bool true"),
        (AMQPValue::ShortShortInt(-1), "s64 -1"),
        (AMQPValue::LongUInt(u32::MAX), "s64 4294967295"),
        (AMQPValue::Float(0.5), "f64 0.5"),
        (AMQPValue::LongString(LongString::from("é")), "text é"),
        (
            AMQPValue::LongString(LongString::from(vec![0xff])),
            "bytes [255]",
        ),
        (AMQPValue::Timestamp(2), "timestamp 2000000"),
        (decimal(2, 1250), "decimal 12.50"),
        (decimal(2, -5), "decimal -0.05"),
        (decimal(0, 7), "decimal 7"),
        (decimal(1, i32::MIN), "decimal -214748364.8"),
        (
            AMQPValue::FieldTable(nested),
            r#"json {"list":[-0.05,null],"n":200,"raw":"/w=="}"#,
        ),
    ];
    for (value, view) in views {
        assert_eq!(seen(value), view);
    }
}

fn sent(value: HeaderValueResult) -> Result<AMQPValue, String> {
    let table = headers_from_guest(vec![HeaderResult {
        name: "h".into(),
        value,
    }])?;
    Ok(table.inner()["h"].clone())
}

#[test]
fn a_header_of_a_guest_becomes_an_amqp_value() {
    assert_eq!(
        sent(HeaderValueResult::Decimal("-0.05".into())),
        Ok(decimal(2, -5))
    );
    assert_eq!(
        sent(HeaderValueResult::Timestamp(2_999_999)),
        Ok(AMQPValue::Timestamp(2))
    );
    let json = sent(HeaderValueResult::Json(r#"{"a":[1,"x"]}"#.into()));
    let list = vec![
        AMQPValue::LongLongInt(1),
        AMQPValue::LongString(LongString::from("x")),
    ];
    let expected = table([("a", AMQPValue::FieldArray(FieldArray::from(list)))]);
    assert_eq!(json, Ok(AMQPValue::FieldTable(expected)));
}

#[test]
fn a_header_that_amqp_cannot_carry_is_refused() {
    let deep = format!("{}1{}", "[".repeat(40), "]".repeat(40));
    for value in [
        HeaderValueResult::Decimal("12345678901.0".into()),
        HeaderValueResult::Decimal("one".into()),
        HeaderValueResult::Timestamp(-1),
        HeaderValueResult::Json("{".into()),
        HeaderValueResult::Json(deep),
        HeaderValueResult::Json(format!(r#"{{"{}":1}}"#, "x".repeat(256))),
    ] {
        assert!(sent(value.clone()).is_err(), "{value:?}");
    }
    let long = HeaderResult {
        name: "x".repeat(256),
        value: HeaderValueResult::Null,
    };
    assert!(headers_from_guest(vec![long]).is_err());
}

#[test]
fn text_is_valid_bounded_and_without_nul() {
    assert_eq!(bounded(b"a\0b\xffc", 100), "a\u{fffd}b\u{fffd}c");
    assert_eq!(bounded("aé".as_bytes(), 2), "a…");
    assert_eq!(bounded(b"abc", 3), "abc");
}
