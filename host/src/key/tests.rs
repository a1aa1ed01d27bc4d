use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{DecimalValue, FieldArray, FieldTable, LongString};
use proptest::prelude::*;

use super::*;

fn rules(key: &[&str]) -> KeyRules {
    let sources = |all: &[&str]| {
        all.iter()
            .map(|text| text.parse().expect("a valid source"))
            .collect()
    };
    KeyRules {
        key: sources(key),
        partition: sources(key),
        fingerprint: Fingerprint::Body,
        max_message_bytes: 1024,
    }
}

fn message(body: &str) -> Message {
    Message {
        exchange: String::new(),
        routing_key: "orders.paid".into(),
        properties: BasicProperties::default().with_message_id("m-1".into()),
        body: Bytes::copy_from_slice(body.as_bytes()),
    }
}

fn with_header(value: AMQPValue) -> Message {
    let mut headers = FieldTable::default();
    headers.insert("id".into(), value);
    Message {
        properties: BasicProperties::default().with_headers(headers),
        ..message("{}")
    }
}

fn key(rule: &str, message: &Message) -> Result<String, &'static str> {
    match rules(&[rule]).identify(message) {
        Ok(identity) => Ok(String::from_utf8_lossy(&identity.key).into_owned()),
        Err(failure) => {
            assert_eq!(failure.again, crate::failure::Again::Never);
            Err(failure.code.0)
        }
    }
}

#[test]
fn a_key_is_read_from_each_source() {
    let order = message(r#"{"order": {"id": "o-1"}, "lines": [{"sku": "a/b"}]}"#);
    assert_eq!(key("message-id", &order), Ok("m-1".into()));
    assert_eq!(key("routing-key", &order), Ok("orders.paid".into()));
    assert_eq!(key("body:/order/id", &order), Ok("o-1".into()));
    assert_eq!(key("body:/lines/0/sku", &order), Ok("a/b".into()));
    let typed = Message {
        properties: BasicProperties::default().with_type("paid".into()),
        ..message("")
    };
    assert_eq!(key("property:type", &typed), Ok("paid".into()));
}

#[test]
fn a_number_keeps_the_text_it_came_in() {
    for text in ["123456789012345678901234567890", "1.0", "1.00", "1", "-0"] {
        let order = message(&format!(r#"{{"id": {text}}}"#));
        assert_eq!(key("body:/id", &order), Ok(text.into()));
    }
    // Only an exponent is spelled one way: the JSON parser gives it its sign.
    let spelled = ["1e3", "1E3", "1e+3"]
        .map(|text| key("body:/id", &message(&format!(r#"{{"id": {text}}}"#))));
    assert_eq!(
        spelled,
        ["1e+3", "1e+3", "1e+3"].map(|text| Ok(text.into()))
    );
}

#[test]
fn what_is_missing_or_empty_is_never_guessed() {
    for body in ["{}", r#"{"id": null}"#, r#"{"id": ""}"#, "[]", "7"] {
        assert_eq!(
            key("body:/id", &message(body)),
            Err("key-missing"),
            "{body}"
        );
    }
    assert_eq!(key("header:id", &message("{}")), Err("key-missing"));
    assert_eq!(
        key("header:id", &with_header(AMQPValue::Void)),
        Err("key-missing")
    );
    assert_eq!(
        key("header:id", &with_header(AMQPValue::LongString("".into()))),
        Err("key-missing")
    );
    assert_eq!(
        key("property:correlation-id", &message("{}")),
        Err("key-missing")
    );
}

#[test]
fn what_cannot_be_a_key_is_refused() {
    for body in ["", "{", "not json", r#"{"id": {}}"#, r#"{"id": [1]}"#] {
        assert_eq!(
            key("body:/id", &message(body)),
            Err("key-invalid"),
            "{body}"
        );
    }
    let decimal = DecimalValue {
        scale: 2,
        value: 100,
    };
    for value in [
        AMQPValue::Double(1.5),
        AMQPValue::DecimalValue(decimal),
        AMQPValue::FieldArray(FieldArray::default()),
        AMQPValue::FieldTable(FieldTable::default()),
    ] {
        assert_eq!(key("header:id", &with_header(value)), Err("key-invalid"));
    }
}

#[test]
fn a_key_of_512_bytes_is_taken_and_one_of_513_is_not() {
    let body = |length| message(&format!(r#"{{"id": "{}"}}"#, "x".repeat(length)));
    assert_eq!(key("body:/id", &body(512)), Ok("x".repeat(512)));
    assert_eq!(key("body:/id", &body(513)), Err("key-invalid"));
}

#[test]
fn a_body_over_the_limit_is_not_even_parsed() {
    assert_eq!(
        key("message-id", &message(&"x".repeat(1025))),
        Err("message-too-large")
    );
}

#[test]
fn any_bytes_of_a_header_are_a_key() {
    let bytes = vec![0, 255, b'a'];
    let header = with_header(AMQPValue::LongString(LongString::from(bytes.clone())));
    let identity = rules(&["header:id"]).identify(&header).expect("a key");
    assert_eq!(identity.key, bytes);
    assert_eq!(
        key("header:id", &with_header(AMQPValue::LongLongInt(-7))),
        Ok("-7".into())
    );
}

#[test]
fn joined_parts_cannot_be_shifted_into_each_other() {
    let rules = rules(&["body:/a", "body:/b"]);
    let joined = |body| rules.identify(&message(body)).expect("a key").key;
    assert_ne!(
        joined(r#"{"a": "ab", "b": "c"}"#),
        joined(r#"{"a": "a", "b": "bc"}"#)
    );
}

#[test]
fn the_fingerprint_of_json_does_not_depend_on_its_spelling() {
    let print = |body: &str| {
        rules(&["message-id"])
            .identify(&message(body))
            .expect("a key")
            .fingerprint
    };
    assert_eq!(
        print(r#"{"a": 1, "b": [true, null]}"#),
        print("{\"b\":[true,null],\n\"a\":1}")
    );
    assert_ne!(print(r#"{"a": 1}"#), print(r#"{"a": 1.0}"#));
    assert_ne!(print(r#"{"a": 1}"#), print(r#"{"a": "1"}"#));
    assert_ne!(print("not json"), print("not json "));
}

#[test]
fn a_fingerprint_may_look_at_a_part_only() {
    let with = |fingerprint: Fingerprint, body: &str| {
        let rules = KeyRules {
            fingerprint,
            ..rules(&["message-id"])
        };
        rules.identify(&message(body)).expect("a key").fingerprint
    };
    let pointers = |all: &[&str]| -> Vec<Pointer> {
        all.iter()
            .map(|text| text.parse().expect("a pointer"))
            .collect()
    };
    let (first, second) = (
        r#"{"id": 1, "sent_at": "10:00", "lines": [{"t": 1}, 2]}"#,
        r#"{"id": 1, "sent_at": "10:01", "lines": [{"t": 9}, 2]}"#,
    );
    let except = Fingerprint::Except(pointers(&["/sent_at", "/lines/0/t"]));
    assert_eq!(with(except.clone(), first), with(except.clone(), second));
    assert_ne!(
        with(except.clone(), first),
        with(except, &first.replace("\"id\": 1", "\"id\": 2"))
    );
    let only = Fingerprint::Pointers(pointers(&["/id"]));
    assert_eq!(with(only.clone(), first), with(only, second));
    assert_eq!(
        with(Fingerprint::None, first),
        with(Fingerprint::None, "anything")
    );
}

#[test]
fn a_message_without_a_partition_is_a_partition_of_its_own() {
    let rules = KeyRules {
        partition: vec!["body:/account".parse().expect("a source")],
        ..rules(&["message-id"])
    };
    let partition = |body| rules.identify(&message(body)).expect("a key").partition;
    assert_eq!(
        partition(r#"{"account": 7, "x": 1}"#),
        partition(r#"{"account": "7", "x": 2}"#)
    );
    assert_eq!(partition("{}"), partition("no json at all"));
    assert_ne!(partition("{}"), partition(r#"{"account": 7}"#));
}

#[test]
fn a_key_is_shown_as_text_only_when_it_is_text() {
    assert_eq!(show(b"o-1"), "`o-1`");
    assert_eq!(show(&[0, 255]), "0x00ff");
    assert_eq!(show("a\u{1b}[31m".as_bytes()), "0x611b5b33316d");
    assert!(show(&[b'x'; 300]).len() < 120);
}

proptest! {
    #[test]
    fn no_bytes_make_reading_a_message_fail_otherwise_than_with_a_code(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let message = Message { body: Bytes::from(body), ..message("") };
        for source in ["body:/a/0", "message-id"] {
            if let Err(failure) = rules(&[source]).identify(&message) {
                prop_assert!(failure.code.0.starts_with("key-"));
            }
        }
    }

    #[test]
    fn different_texts_are_different_keys(one in "\\PC{1,20}", other in "\\PC{1,20}") {
        let read = |text: &str| {
            let body = serde_json::json!({ "id": text }).to_string();
            rules(&["body:/id"]).identify(&message(&body)).expect("a key").key
        };
        prop_assert_eq!(one == other, read(&one) == read(&other));
    }
}
