use lapin::BasicProperties;
use lapin::types::{AMQPValue, DecimalValue, FieldArray, FieldTable, ShortString};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::message::{decode_properties, encode_properties};

use super::*;

/// Properties that are headers and nothing else: one entry, of this type and this value.
fn header(kind: u8, value: &[u8]) -> Vec<u8> {
    let entry = [&[1, b'h', kind], value].concat();
    table_of(&entry)
}

fn table_of(entries: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x20, 0];
    bytes.extend((entries.len() as u32).to_be_bytes());
    bytes.extend(entries);
    bytes
}

/// A header that holds tables or arrays within each other; the headers are the first level.
fn nested(kind: u8, levels: usize) -> Vec<u8> {
    let mut value = Vec::new();
    for level in (1..levels).rev() {
        let mut outer = if kind == b'F' || level == 1 {
            vec![1, b'n']
        } else {
            Vec::new()
        };
        outer.push(kind);
        outer.extend((value.len() as u32).to_be_bytes());
        outer.extend(value);
        value = outer;
    }
    table_of(&value)
}

#[test]
fn each_thing_that_lapin_cannot_read_is_refused_and_its_good_twin_is_not() {
    let text = |flags: u16, bytes: &[u8]| [&flags.to_be_bytes(), bytes].concat();
    let message_id = 1 << 7;
    for (good, bad, code) in [
        (
            text(message_id, b"\x02m1"),
            text(message_id, b"\x02m\xff"),
            "property-not-utf8",
        ),
        (
            text(message_id, b"\x02\xc3\xa9"),
            text(message_id, b"\x01\xc3"),
            "property-not-utf8",
        ),
        (
            text(message_id, b"\x00"),
            text(message_id, b""),
            "property-length",
        ),
        (
            text(message_id, b"\x02m1"),
            text(message_id, b"\x03m1"),
            "property-length",
        ),
        (
            text(message_id, b"\x02m1"),
            text(message_id, b"\x01m1"),
            "property-trailing-bytes",
        ),
        (text(0, b""), text(0, b"\0"), "property-trailing-bytes"),
        (text(0, b""), vec![0], "property-length"),
        (text(0, b""), text(1, b""), "property-flags-unknown"),
        (text(0, b""), text(2, b""), "property-flags-unknown"),
        (
            text(1 << 6, &[0; 8]),
            text(1 << 6, &[0; 7]),
            "property-length",
        ),
        (
            table_of(b"\x01hV"),
            table_of(b"\x01\xffV"),
            "header-name-not-utf8",
        ),
        (
            header(b'F', b"\0\0\0\x03\x01hV"),
            header(b'F', b"\0\0\0\x03\x01\xffV"),
            "header-name-not-utf8",
        ),
        (
            header(b's', b"\0\x01"),
            header(b's', b"\0"),
            "property-length",
        ),
        (
            header(b'S', b"\0\0\0\x01\xff"),
            header(b'S', b"\0\0\0\x02\xff"),
            "property-length",
        ),
        (
            header(b'x', b"\0\0\0\0"),
            header(b'x', b"\xff\xff\xff\xff"),
            "property-length",
        ),
        (header(b'V', b""), header(b'z', b""), "header-type-unknown"),
        (
            header(b'L', &[0; 8]),
            header(b'_', &[0; 8]),
            "header-type-unknown",
        ),
        (
            header(b'A', b"\0\0\0\x01V"),
            header(b'A', b"\0\0\0\x01z"),
            "header-type-unknown",
        ),
        (
            header(b'A', b"\0\0\0\x01V"),
            header(b'A', b"\0\0\0\x02V"),
            "property-length",
        ),
        (nested(b'F', 64), nested(b'F', 65), "headers-too-deep"),
        (nested(b'A', 64), nested(b'A', 65), "headers-too-deep"),
        (nested(b'A', 64), nested(b'A', 3_000), "headers-too-deep"),
    ] {
        assert!(properties(&good).is_ok(), "{code}: {good:?}");
        assert!(decode_properties(&good).is_ok(), "{code}: {good:?}");
        let refusal = properties(&bad).expect_err(code);
        assert_eq!(refusal.code(), code, "{refusal}");
        if !matches!(refusal, Refusal::TooDeep | Refusal::UnknownFlags(_)) {
            assert!(decode_properties(&bad).is_err(), "{code}: {bad:?}");
        }
    }
    let refusal = properties(&text(message_id, b"\x01\xff")).unwrap_err();
    assert_eq!(refusal.to_string(), "the property message-id is not UTF-8");
    let refusal = properties(&header(b'z', b"")).unwrap_err();
    assert_eq!(refusal.to_string(), "a header has the unknown type 0x7a");
}

#[test]
fn every_octet_is_a_type_for_lapin_exactly_when_it_is_one_here() {
    for kind in 0..=u8::MAX {
        for length in 0..=9 {
            let bytes = header(kind, &vec![0; length]);
            assert_eq!(
                properties(&bytes).is_ok(),
                decode_properties(&bytes).is_ok(),
                "0x{kind:02x} of {length} bytes"
            );
        }
    }
}

pub(crate) fn values() -> impl Strategy<Value = AMQPValue> {
    let leaf = prop_oneof![
        Just(AMQPValue::Void),
        any::<bool>().prop_map(AMQPValue::Boolean),
        any::<i8>().prop_map(AMQPValue::ShortShortInt),
        any::<u16>().prop_map(AMQPValue::ShortUInt),
        any::<i64>().prop_map(AMQPValue::LongLongInt),
        any::<u64>().prop_map(AMQPValue::Timestamp),
        (any::<u8>(), any::<u32>())
            .prop_map(|(scale, value)| AMQPValue::DecimalValue(DecimalValue { scale, value })),
        vec(any::<u8>(), 0..20).prop_map(|bytes| AMQPValue::LongString(bytes.into())),
        vec(any::<u8>(), 0..20).prop_map(|bytes| AMQPValue::ByteArray(bytes.into())),
    ];
    leaf.prop_recursive(5, 40, 5, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..5)
                .prop_map(|values| AMQPValue::FieldArray(FieldArray::from(values))),
            vec(("[a-zé]{0,6}", inner), 0..5)
                .prop_map(|entries| AMQPValue::FieldTable(table_from(entries))),
        ]
    })
}

fn table_from(entries: Vec<(String, AMQPValue)>) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert(ShortString::from(name), value);
    }
    table
}

/// Properties as a producer may set them.
pub(crate) fn encoded() -> impl Strategy<Value = Vec<u8>> {
    let headers = vec(("[a-zé]{0,8}", values()), 0..6);
    (any::<u8>(), headers, "[a-zé]{0,20}").prop_map(|(which, headers, text)| {
        let text = ShortString::from(text);
        let mut properties = BasicProperties::default();
        if which & 1 != 0 {
            properties = properties.with_headers(table_from(headers));
        }
        if which & 2 != 0 {
            properties = properties
                .with_message_id(text.clone())
                .with_type(text.clone());
        }
        if which & 4 != 0 {
            properties = properties
                .with_timestamp(u64::from(which))
                .with_delivery_mode(2);
        }
        if which & 8 != 0 {
            properties = properties
                .with_content_type(text.clone())
                .with_cluster_id(text);
        }
        encode_properties(&properties)
    })
}

/// Bytes that are nearly these.
pub(crate) fn damaged(bytes: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let damage = (any::<prop::sample::Index>(), any::<u8>(), 0..4_u8);
    (bytes, vec(damage, 0..3)).prop_map(|(mut bytes, damages)| {
        for (at, byte, kind) in damages {
            if bytes.is_empty() {
                break;
            }
            let at = at.index(bytes.len());
            match kind {
                0 => bytes[at] = byte,
                1 => bytes[at] ^= 1 << (byte % 8),
                2 => drop(bytes.remove(at)),
                _ => bytes.insert(at, byte),
            }
        }
        bytes
    })
}

proptest! {
    #[test]
    fn lapin_reads_what_is_let_through_and_nothing_else(bytes in damaged(encoded())) {
        match properties(&bytes) {
            Ok(_) => prop_assert!(decode_properties(&bytes).is_ok()),
            Err(Refusal::UnknownFlags(_) | Refusal::TooDeep) => {}
            Err(refusal) => prop_assert!(decode_properties(&bytes).is_err(), "{refusal}"),
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in vec(any::<u8>(), 0..400)) {
        let _ = properties(&bytes);
        let _ = table(&bytes);
    }
}
