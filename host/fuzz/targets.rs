//! What must hold for any bytes. The fuzzer and the process tests call the same functions.

#![allow(
    dead_code,
    reason = "each fuzz target is a program of its own and uses one of these"
)]

use std::io;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use amq_protocol::frame::parse_frame;
use hapax::amqp::Screen;
use hapax::amqp::frames::FrameReader;
use hapax::amqp::screen::Bounds;
use hapax::config::{self, Outside};
use hapax::effects::sql::rules::{Grants, Rules};
use hapax::key::KeyRules;
use hapax::message::{Message, decode_properties};
use hapax::operations::{read_line, write_message};
use hapax::store::Dialect;

const DIALECTS: [Dialect; 3] = [Dialect::Postgres, Dialect::Sqlite, Dialect::Mysql];

/// The corpus in tests/fixtures/sql is written for these.
const READ: [&str; 2] = ["t_prices", "shop.t_rates"];
const WRITE: [&str; 4] = ["t_orders", "t_lines", "t_users", "shop.t_stock"];

/// Every text gets a verdict. What is allowed touches granted tables only, and so does what is made of it.
pub fn sql_rules(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    for dialect in DIALECTS {
        let grants = Grants::new(dialect, &READ, &WRITE, &["score"]).expect("the names are good");
        let rules = Rules::new(dialect, &grants, 0);
        let Ok(statement) = rules.check(text) else {
            continue;
        };
        for table in &statement.writes {
            assert!(
                WRITE.contains(&table.to_string().as_str()),
                "{dialect:?} writes {table}: {text}"
            );
        }
        for table in &statement.reads {
            let name = table.to_string();
            let granted = READ.contains(&name.as_str()) || WRITE.contains(&name.as_str());
            assert!(granted, "{dialect:?} reads {name}: {text}");
        }
        let (positional, order) = statement.positional();
        assert!(
            order.iter().all(|number| *number <= statement.parameters),
            "{positional}"
        );
        if let Some(merge) = &statement.merge {
            let merged = rules
                .check(&merge.render(2))
                .expect("two of an allowed insert are allowed");
            assert_eq!(merged.writes, statement.writes, "{text}");
        }
    }
}

/// A message has a key or a failure, and always the same one. The first bytes choose the rules, and where the
/// properties end and the body begins.
pub fn key(data: &[u8]) {
    static RULES: LazyLock<Vec<KeyRules>> = LazyLock::new(key_rules);
    let [rules, middle, rest @ ..] = data else {
        return;
    };
    let rules = &RULES[usize::from(*rules) % RULES.len()];
    let (properties, body) = rest.split_at(rest.len().min(usize::from(*middle)));
    let message = Message {
        exchange: String::new(),
        routing_key: "orders".into(),
        properties: decode_properties(properties).unwrap_or_default(),
        body: bytes::Bytes::copy_from_slice(body),
    };
    let first = rules.identify(&message);
    let again = rules.identify(&message);
    match (&first, &again) {
        (Ok(one), Ok(two)) => {
            assert_eq!(one.key, two.key);
            assert_eq!(one.fingerprint, two.fingerprint);
            assert_eq!(one.partition, two.partition);
            assert!(!one.key.is_empty() && one.key.len() <= 512);
        }
        (Err(one), Err(two)) => assert_eq!(one, two),
        _ => panic!("{first:?} and then {again:?}"),
    }
}

/// Sources of every kind, alone and joined.
fn key_rules() -> Vec<KeyRules> {
    let consumers = [
        ("body:/order_id", "default"),
        ("body:/a/b/0", "none"),
        ("header:tenant", "default"),
        ("message-id", "default"),
        ("routing-key", "none"),
        ("property:correlation-id", "default"),
    ];
    let mut text = String::new();
    for (number, (source, fingerprint)) in consumers.into_iter().enumerate() {
        let second = consumers[(number + 1) % consumers.len()].0;
        for (kind, key) in [
            ("one", format!("{source:?}")),
            ("two", format!("[{source:?}, {second:?}]")),
        ] {
            text.push_str(&format!(
                "[[consumer]]\nname = \"{kind}-{number}\"\nqueue = \"{kind}-{number}\"\nplugin = \"a.wasm\"\nkey = {key}\n"
            ));
            if fingerprint == "none" {
                text.push_str("fingerprint = \"none\"\n");
            }
        }
    }
    let config = match config::parse(Path::new("fuzz.toml"), &text, &Nothing) {
        Ok(config) => config,
        Err(problems) => panic!("{problems}"),
    };
    let rules = config.consumers.into_iter().map(|consumer| KeyRules {
        key: consumer.key,
        partition: consumer.partition,
        fingerprint: consumer.fingerprint,
        max_message_bytes: 1 << 20,
    });
    rules.collect()
}

/// Properties and headers reach the handler whole, and survive being shown and read back.
pub fn headers(data: &[u8]) {
    let Ok(properties) = decode_properties(data) else {
        return;
    };
    let message = Message {
        exchange: String::new(),
        routing_key: "orders".into(),
        properties,
        body: bytes::Bytes::from_static(b"{}"),
    };
    let count = message.headers().map_or(0, |headers| headers.inner().len());
    assert_eq!(hapax::sandbox::shown_headers(&message), count);
    let shown = write_message(&message);
    // What cannot be written as a line says so; what can be is the same again.
    if let Ok(read) = read_line(&shown.to_string(), Some("orders")) {
        assert_eq!(write_message(&read), shown);
    }
}

/// Whatever a broker sends, lapin gets frames that its parser reads, and it does not matter in which pieces the bytes
/// come. The first byte chooses the pieces.
pub fn frames(data: &[u8]) {
    let [piece, stream @ ..] = data else {
        return;
    };
    let (passed, broken) = screened(stream, stream.len().max(1));
    assert_eq!(
        screened(stream, usize::from(*piece) + 1),
        (passed.clone(), broken)
    );
    let mut rest = &passed[..];
    while !rest.is_empty() {
        match parse_frame(rest) {
            Ok((behind, _)) => rest = behind,
            Err(error) => {
                assert!(error.is_incomplete(), "{error:?}");
                break;
            }
        }
    }
}

/// The bytes that a reader of frames lets through when a stream comes in such pieces, and its verdict on the protocol.
fn screened(mut stream: &[u8], piece: usize) -> (Vec<u8>, bool) {
    let bounds = Bounds {
        max_body_bytes: 1000,
        held_bytes: 3000,
    };
    let mut reader = FrameReader::new(Arc::new(Screen::new(bounds)), 0);
    let mut passed = Vec::new();
    let mut out = [0; 500];
    loop {
        match reader.give(&mut out) {
            Ok(0) => {}
            Ok(count) => {
                passed.extend_from_slice(&out[..count]);
                continue;
            }
            Err(_) => return (passed, true),
        }
        if stream.is_empty() {
            return (passed, false);
        }
        let room = reader.room();
        let count = piece.min(room.len()).min(stream.len());
        room[..count].copy_from_slice(&stream[..count]);
        stream = &stream[count..];
        reader.filled(count);
    }
}

/// Any text is a configuration or a list of problems that can be shown.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Err(problems) = config::parse(Path::new("fuzz.toml"), text, &Nothing) {
        assert!(!problems.to_string().is_empty());
    }
}

/// No variable is set and no file is there.
struct Nothing;

impl Outside for Nothing {
    fn env(&self, _: &str) -> Result<String, std::env::VarError> {
        Err(std::env::VarError::NotPresent)
    }

    fn file(&self, _: &Path) -> io::Result<String> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn host_name(&self) -> String {
        "fuzz".to_owned()
    }
}
