//! AMQP header values as JSON, both ways and without loss.
//!
//! What JSON has a form for is written in it: text is a long string, a whole number a signed 64-bit one, a
//! number with a fraction or an exponent a double, `null` is void; arrays and objects nest. Every other
//! type is an object with one member whose name says which: `{"$timestamp": 1700000000}`,
//! `{"$bytes": "AAE="}`. An object that would be mistaken for one is written as `{"$table": {…}}`.
//!
//! The types are those of RabbitMQ's AMQP 0-9-1 (https://www.rabbitmq.com/amqp-0-9-1-errata#section_3).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use lapin::types::{
    AMQPValue, ByteArray, DecimalValue, FieldArray, FieldTable, LongString, ShortString,
};
use serde_json::{Map, Number, Value, json};

/// Deeper values are refused: nobody means them, and the stack is finite.
const MAX_DEPTH: usize = 32;

/// Headers from a JSON object.
pub fn read_table(object: &Map<String, Value>) -> Result<FieldTable, String> {
    table(object, MAX_DEPTH)
}

/// Headers as a JSON object.
pub fn write_table(table: &FieldTable) -> Map<String, Value> {
    table
        .inner()
        .iter()
        .map(|(name, value)| (name.to_string(), write(value)))
        .collect()
}

fn table(object: &Map<String, Value>, depth: usize) -> Result<FieldTable, String> {
    let mut table = FieldTable::default();
    for (name, value) in object {
        let short = ShortString::try_new(name.as_str()).map_err(|_| {
            format!(
                "the header name `{}…` is over 255 bytes",
                super::publish::start(name)
            )
        })?;
        let value = read(value, depth).map_err(|problem| format!("header `{name}`: {problem}"))?;
        table.insert(short, value);
    }
    Ok(table)
}

fn read(value: &Value, depth: usize) -> Result<AMQPValue, String> {
    let depth = depth
        .checked_sub(1)
        .ok_or_else(|| format!("nested more than {MAX_DEPTH} deep"))?;
    Ok(match value {
        Value::Null => AMQPValue::Void,
        Value::Bool(flag) => AMQPValue::Boolean(*flag),
        Value::Number(number) => read_number(number)?,
        Value::String(text) => AMQPValue::LongString(text.as_str().into()),
        Value::Array(values) => {
            let values = values
                .iter()
                .map(|value| read(value, depth))
                .collect::<Result<Vec<_>, _>>()?;
            AMQPValue::FieldArray(FieldArray::from(values))
        }
        Value::Object(object) => match typed(object) {
            Some((kind, value)) => read_typed(kind, value, depth)?,
            None => AMQPValue::FieldTable(table(object, depth)?),
        },
    })
}

/// The one member of an object that names a type.
fn typed(object: &Map<String, Value>) -> Option<(&str, &Value)> {
    let mut members = object.iter();
    match (members.next(), members.next()) {
        (Some((name, value)), None) => Some((name.strip_prefix('$')?, value)),
        _ => None,
    }
}

fn read_number(number: &Number) -> Result<AMQPValue, String> {
    // A number keeps its text: a fraction or an exponent makes it a double.
    if number.as_str().contains(['.', 'e', 'E']) {
        let double = number.as_f64().filter(|double| double.is_finite());
        return double
            .map(AMQPValue::Double)
            .ok_or_else(|| format!("{number} is too large for a double"));
    }
    number
        .as_i64()
        .map(AMQPValue::LongLongInt)
        .ok_or_else(|| format!("{number} does not fit into 64 bits; write it as text"))
}

fn read_typed(kind: &str, value: &Value, depth: usize) -> Result<AMQPValue, String> {
    let wrong = || format!("{value} is not a value of type ${kind}");
    let bytes = || {
        let text = value.as_str().ok_or_else(wrong)?;
        STANDARD
            .decode(text)
            .map_err(|_| format!("the value of ${kind} is not base64"))
    };
    macro_rules! number {
        ($variant:ident, $read:ident) => {
            value
                .$read()
                .and_then(|number| number.try_into().ok())
                .map(AMQPValue::$variant)
                .ok_or_else(wrong)
        };
    }
    match kind {
        "int8" => number!(ShortShortInt, as_i64),
        "uint8" => number!(ShortShortUInt, as_u64),
        "int16" => number!(ShortInt, as_i64),
        "uint16" => number!(ShortUInt, as_u64),
        "int32" => number!(LongInt, as_i64),
        "uint32" => number!(LongUInt, as_u64),
        "timestamp" => value.as_u64().map(AMQPValue::Timestamp).ok_or_else(wrong),
        "float" => float(value)
            .map(|number| AMQPValue::Float(number as f32))
            .ok_or_else(wrong),
        "double" => float(value).map(AMQPValue::Double).ok_or_else(wrong),
        "decimal" => {
            let member = |name: &str| value.get(name).and_then(Value::as_u64);
            let scale = member("scale").and_then(|scale| scale.try_into().ok());
            let digits = member("value").and_then(|digits| digits.try_into().ok());
            match (scale, digits) {
                (Some(scale), Some(value)) => {
                    Ok(AMQPValue::DecimalValue(DecimalValue { scale, value }))
                }
                _ => Err(wrong()),
            }
        }
        "short_string" => {
            let text = value
                .as_str()
                .and_then(|text| ShortString::try_new(text).ok());
            text.map(AMQPValue::ShortString).ok_or_else(wrong)
        }
        "text_bytes" => Ok(AMQPValue::LongString(LongString::from(bytes()?))),
        "bytes" => Ok(AMQPValue::ByteArray(ByteArray::from(bytes()?.as_slice()))),
        "table" => match value {
            Value::Object(object) => Ok(AMQPValue::FieldTable(table(object, depth)?)),
            _ => Err(wrong()),
        },
        _ => Err(format!(
            "there is no type ${kind}: int8, uint8, int16, uint16, int32, uint32, float, double, decimal, \
             timestamp, short_string, text_bytes, bytes or table"
        )),
    }
}

/// A number, or the text of one that JSON cannot write.
fn float(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str()?.parse().ok())
}

fn write(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::Void => Value::Null,
        AMQPValue::Boolean(flag) => Value::Bool(*flag),
        AMQPValue::LongLongInt(number) => json!(number),
        AMQPValue::Double(number) => Number::from_f64(*number)
            .map_or_else(|| json!({ "$double": number.to_string() }), Value::Number),
        AMQPValue::Float(number) => match Number::from_f64(f64::from(*number)) {
            Some(number) => json!({ "$float": number }),
            None => json!({ "$float": number.to_string() }),
        },
        AMQPValue::ShortShortInt(number) => json!({ "$int8": number }),
        AMQPValue::ShortShortUInt(number) => json!({ "$uint8": number }),
        AMQPValue::ShortInt(number) => json!({ "$int16": number }),
        AMQPValue::ShortUInt(number) => json!({ "$uint16": number }),
        AMQPValue::LongInt(number) => json!({ "$int32": number }),
        AMQPValue::LongUInt(number) => json!({ "$uint32": number }),
        AMQPValue::Timestamp(seconds) => json!({ "$timestamp": seconds }),
        AMQPValue::DecimalValue(DecimalValue { scale, value }) => {
            json!({ "$decimal": { "scale": scale, "value": value } })
        }
        AMQPValue::ShortString(text) => json!({ "$short_string": text.as_str() }),
        AMQPValue::LongString(text) => match str::from_utf8(text.as_bytes()) {
            Ok(text) => Value::String(text.to_owned()),
            Err(_) => json!({ "$text_bytes": STANDARD.encode(text.as_bytes()) }),
        },
        AMQPValue::ByteArray(bytes) => json!({ "$bytes": STANDARD.encode(bytes.as_slice()) }),
        AMQPValue::FieldArray(values) => values.as_slice().iter().map(write).collect(),
        AMQPValue::FieldTable(table) => {
            let object = write_table(table);
            if typed(&object).is_some() {
                json!({ "$table": object })
            } else {
                Value::Object(object)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read_text(text: &str) -> Result<AMQPValue, String> {
        read(&serde_json::from_str(text).expect("JSON"), MAX_DEPTH)
    }

    #[test]
    fn json_has_its_natural_types() {
        let cases = [
            ("\"a\"", AMQPValue::LongString("a".into())),
            ("7", AMQPValue::LongLongInt(7)),
            ("7.0", AMQPValue::Double(7.0)),
            ("7e2", AMQPValue::Double(700.0)),
            ("true", AMQPValue::Boolean(true)),
            ("null", AMQPValue::Void),
            (r#"{"$timestamp": 5}"#, AMQPValue::Timestamp(5)),
            (
                r#"{"$bytes": "AAE="}"#,
                AMQPValue::ByteArray(ByteArray::from(&[0, 1][..])),
            ),
        ];
        for (text, value) in cases {
            assert_eq!(read_text(text), Ok(value), "{text}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_and_not_rounded() {
        for text in [
            "9223372036854775808",
            "1e999",
            r#"{"$int8": 200}"#,
            r#"{"$uint8": -1}"#,
            r#"{"$bytes": "?"}"#,
            r#"{"$colour": 1}"#,
            r#"{"$decimal": {"scale": 1}}"#,
        ] {
            assert!(read_text(text).is_err(), "{text}");
        }
        let deep = "[".repeat(100) + &"]".repeat(100);
        assert!(read_text(&deep).unwrap_err().contains("deep"));
    }

    #[test]
    fn a_table_that_looks_like_a_type_stays_a_table() {
        let mut table = FieldTable::default();
        table.insert("$timestamp".into(), AMQPValue::LongString("no".into()));
        let value = AMQPValue::FieldTable(table);
        assert_eq!(read(&write(&value), MAX_DEPTH), Ok(value));
    }

    fn any_value() -> impl Strategy<Value = AMQPValue> {
        let leaf = prop_oneof![
            Just(AMQPValue::Void),
            any::<bool>().prop_map(AMQPValue::Boolean),
            any::<i8>().prop_map(AMQPValue::ShortShortInt),
            any::<u8>().prop_map(AMQPValue::ShortShortUInt),
            any::<i16>().prop_map(AMQPValue::ShortInt),
            any::<u16>().prop_map(AMQPValue::ShortUInt),
            any::<i32>().prop_map(AMQPValue::LongInt),
            any::<u32>().prop_map(AMQPValue::LongUInt),
            any::<i64>().prop_map(AMQPValue::LongLongInt),
            any::<f32>()
                .prop_filter("NaN is no equal", |n| !n.is_nan())
                .prop_map(AMQPValue::Float),
            any::<f64>()
                .prop_filter("NaN is no equal", |n| !n.is_nan())
                .prop_map(AMQPValue::Double),
            any::<(u8, u32)>()
                .prop_map(|(scale, value)| AMQPValue::DecimalValue(DecimalValue { scale, value })),
            any::<u64>().prop_map(AMQPValue::Timestamp),
            "[a-z$]{0,9}".prop_map(|text| AMQPValue::ShortString(text.into())),
            any::<Vec<u8>>().prop_map(|bytes| AMQPValue::LongString(bytes.into())),
            any::<Vec<u8>>()
                .prop_map(|bytes| AMQPValue::ByteArray(ByteArray::from(bytes.as_slice()))),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4)
                    .prop_map(|values| AMQPValue::FieldArray(values.into())),
                prop::collection::btree_map("[$a-z]{0,6}", inner, 0..4).prop_map(|members| {
                    let members = members
                        .into_iter()
                        .map(|(name, value)| (name.into(), value));
                    AMQPValue::FieldTable(
                        members.collect::<std::collections::BTreeMap<_, _>>().into(),
                    )
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn every_header_survives_json(value in any_value()) {
            let text = write(&value).to_string();
            prop_assert_eq!(read_text(&text), Ok(value), "{}", text);
        }
    }
}
