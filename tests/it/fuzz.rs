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
