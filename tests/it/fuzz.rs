//! A short run of the fuzz targets: the fixtures, and some thousand things that are nearly the fixtures. The targets
//! are those of host/fuzz, where the long run is.

#[path = "../../host/fuzz/targets.rs"]
mod targets;

use std::path::Path;

use anyhow::Context;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};

use crate::Checked;
use crate::support::place::Place;

const MUTATIONS: usize = 3_000;

const HERE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures");

pub async fn sql_rules(place: &Place) -> Checked {
    let mut seeds = Vec::new();
    for file in ["postgres.txt", "sqlite.txt", "mysql.txt"] {
        let text = std::fs::read_to_string(Path::new(HERE).join("sql").join(file))?;
        seeds.extend(text.lines().map(|line| line.as_bytes().to_vec()));
    }
    run(place, targets::sql_rules, &seeds)
}

pub async fn key(place: &Place) -> Checked {
    let bodies: [&[u8]; 6] = [
        br#"{"order_id": "o-1", "a": {"b": [1.50, 30000000000000000000000000000001]}}"#,
        br#"{"order_id": {"nested": [null, true]}, "order_id": 2}"#,
        b"{\"order_id\": \"\\ud800\\u0000\"}",
        b"not json",
        b"",
        b"\xff\xfe{}",
    ];
    let mut seeds = Vec::new();
    for rules in 0..12 {
        for properties in encoded() {
            for body in bodies {
                let middle = u8::try_from(properties.len()).unwrap_or(u8::MAX);
                seeds.push([&[rules, middle], &properties[..usize::from(middle)], body].concat());
            }
        }
    }
    run(place, targets::key, &seeds)
}

pub async fn headers(place: &Place) -> Checked {
    run(place, targets::headers, &encoded())
}

pub async fn config(place: &Place) -> Checked {
    let mut seeds = vec![std::fs::read(Path::new(HERE).join("config/full.toml"))?];
    for entry in std::fs::read_dir(Path::new(HERE).join("config/bad"))? {
        seeds.push(std::fs::read(entry?.path())?);
    }
    run(place, targets::config, &seeds)
}

pub async fn frames(place: &Place) -> Checked {
    let start = method(0, [10, 10], b"\0\x09\0\0\0\0\0\0\0\x05PLAIN\0\0\0\x05en_US");
    let mut properties = encoded();
    // A name that is no text, tables within tables, and what is longer than a frame.
    properties.push(b"\x00\x80\x02m\xff".to_vec());
    properties.push(nested(100));
    properties.push(
        [
            &[0x20, 0, 0, 3, 0xff, 0xff, 1, b'a', b'x', 0, 3, 0xff, 0xf8][..],
            &[1; 0x3fff8],
        ]
        .concat(),
    );
    let mut seeds = vec![
        vec![7],
        vec![7, 21, 3, 3, 0, 2],
        b"\x07HTTP/1.1 400 Bad Request".to_vec(),
        b"\x07AMQP\0\x01\0\0".to_vec(),
    ];
    for (number, properties) in properties.iter().enumerate() {
        for body in [0, 40, 1500] {
            let mut seed = vec![u8::try_from(number * 40)?];
            seed.extend(&start);
            // 128 KiB a frame.
            seed.extend(method(0, [10, 30], b"\0\x64\0\x02\0\0\0\0"));
            for tag in 1..4 {
                let names: [&[u8]; 3] = [b"\x01c\0\0\0\0\0\0\0", &[tag], b"\0\0\x03k\xc3\xa9"];
                seed.extend(method(1, [60, 60], &names.concat()));
                let size = u64::to_be_bytes(body);
                seed.extend(frame(
                    2,
                    1,
                    &[&[0, 60, 0, 0][..], &size, properties].concat(),
                ));
                if body > 0 {
                    seed.extend(frame(3, 1, &vec![tag; usize::try_from(body)?]));
                }
                seed.extend(frame(8, 0, &[]));
            }
            seeds.push(seed);
        }
    }
    run(place, targets::frames, &seeds)
}

fn frame(kind: u8, channel: u8, payload: &[u8]) -> Vec<u8> {
    let size = u32::to_be_bytes(payload.len() as u32);
    [&[kind, 0, channel][..], &size, payload, &[0xce]].concat()
}

fn method(channel: u8, [class, id]: [u8; 2], arguments: &[u8]) -> Vec<u8> {
    frame(1, channel, &[&[0, class, 0, id], arguments].concat())
}

/// Properties whose headers are tables within each other.
fn nested(levels: usize) -> Vec<u8> {
    let mut table = Vec::new();
    for _ in 1..levels {
        let size = u32::to_be_bytes(table.len() as u32);
        table = [&[1, b'n', b'F'][..], &size, &table].concat();
    }
    let size = u32::to_be_bytes(table.len() as u32);
    [&[0x20, 0][..], &size, &table].concat()
}

/// AMQP properties as they stand in a frame.
fn encoded() -> Vec<Vec<u8>> {
    let mut table = FieldTable::default();
    table.insert("tenant".into(), AMQPValue::LongString("a".into()));
    table.insert("number".into(), AMQPValue::LongLongInt(i64::MIN));
    table.insert("odd".into(), AMQPValue::Double(f64::NAN));
    table.insert("none".into(), AMQPValue::Void);
    let mut nested = FieldTable::default();
    nested.insert("inner".into(), AMQPValue::FieldTable(table.clone()));
    let full = BasicProperties::default()
        .with_message_id("m-1".into())
        .with_correlation_id("c-1".into())
        .with_headers(nested)
        .with_timestamp(u64::MAX);
    let flat = BasicProperties::default().with_headers(table);
    [BasicProperties::default(), flat, full]
        .iter()
        .map(hapax::message::encode_properties)
        .collect()
}

/// Calls a target with every seed and with mutations of them. A panic says which bytes it was.
fn run(place: &Place, target: fn(&[u8]), seeds: &[Vec<u8>]) -> Checked {
    let mut random = place.random();
    let file = place.dir.join("input");
    let call = |bytes: &[u8]| -> Checked {
        std::panic::catch_unwind(|| target(bytes)).map_err(|panic| {
            // Beside the logs, for a closer look; the text below is enough to repeat it.
            let _ = std::fs::write(&file, bytes);
            let text = crate::message(panic.as_ref());
            anyhow::anyhow!(
                "{text}\nthe input, also in {}: {:?}",
                file.display(),
                String::from_utf8_lossy(bytes)
            )
        })
    };
    for seed in seeds {
        call(seed)?;
    }
    for _ in 0..MUTATIONS {
        let seed = random.choice(seeds).context("there is a seed")?;
        let other = random.choice(seeds).context("there is a seed")?;
        call(&mutated(seed, other, &mut random))?;
    }
    Ok(())
}

/// A few bytes changed, added, doubled or gone, or the end of another seed.
fn mutated(seed: &[u8], other: &[u8], random: &mut fastrand::Rng) -> Vec<u8> {
    const PIECES: [&str; 16] = [
        ";",
        "'",
        "\"",
        "(",
        ")",
        "--",
        "/*",
        "*/",
        "$1",
        "\0",
        "hapax_ledger",
        "COMMIT",
        "pg_sleep(1)",
        "\u{a0}",
        "=",
        "\n[[consumer]]\n",
    ];
    let mut bytes = seed.to_vec();
    for _ in 0..random.usize(1..5) {
        let at = random.usize(..=bytes.len());
        match random.u8(..6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.u8(..8),
            1 => bytes.truncate(at),
            2 => {
                let piece = random.choice(PIECES).unwrap_or_default();
                bytes.splice(at..at, piece.bytes());
            }
            3 => {
                let end = random.usize(at..=bytes.len());
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            4 => {
                let end = random.usize(at..=bytes.len());
                bytes.drain(at..end);
            }
            _ => {
                bytes.truncate(at);
                bytes.extend_from_slice(&other[random.usize(..=other.len())..]);
            }
        }
    }
    bytes
}
