//! Nothing that a message can carry, a handler can answer or an operator can write is a broken invariant, which would
//! stop the consumer, and stop it again after each restart: it is stored and comes back, or is the message's failure.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use lapin::types::{AMQPValue, FieldTable};

use super::{Fixture, HOUR, in_every_dialect};
use crate::failure::Class;
use crate::store::{
    Claim, ClaimRule, ConsumerId, Expect, Fate, HostId, OutboxRow, Settlement, Status, StoreError,
    WaitingFilter, WaitingRow,
};

in_every_dialect! {
    no_hostile_content_is_a_broken_invariant
}

const ROUNDS: u64 = 60;

const NUMBERS: [i64; 9] = [
    0,
    -1,
    i64::MIN,
    i64::MAX,
    // The last second of a year with four digits, and what Postgres and chrono know as the last one.
    253_402_300_799,
    253_402_300_800,
    9_224_318_015_999,
    8_210_266_876_799,
    1_764_500_000_000_000_000,
];

/// Text with what trips stores: NUL, halves of a pair written as bytes, marks, quotes, ends of statements.
fn text(random: &mut Rng) -> String {
    const PIECES: [&str; 14] = [
        "\0",
        "\u{fffd}",
        "\u{10ffff}",
        "\u{feff}",
        "\u{202e}",
        "'",
        "\"",
        "\\",
        "\r\n",
        "$1",
        "%s",
        "é",
        "\u{1}",
        "; --",
    ];
    let mut text = String::new();
    for _ in 0..random.usize(0..40) {
        text.push_str(PIECES[random.usize(0..PIECES.len())]);
    }
    text
}

fn bytes(random: &mut Rng, most: usize) -> Vec<u8> {
    let length = random.usize(0..=most);
    (0..length).map(|_| random.u8(..)).collect()
}

fn number(random: &mut Rng) -> i64 {
    match random.bool() {
        true => NUMBERS[random.usize(0..NUMBERS.len())],
        false => random.i64(..),
    }
}

fn duration(random: &mut Rng) -> Duration {
    match random.u8(0..3) {
        0 => Duration::ZERO,
        1 => Duration::MAX,
        _ => Duration::from_millis(random.u64(..)),
    }
}

fn row(random: &mut Rng, key: Option<Vec<u8>>, status: Status) -> WaitingRow {
    let mut headers = FieldTable::default();
    headers.insert(
        text(random).chars().take(20).collect::<String>().into(),
        AMQPValue::LongString(bytes(random, 300).into()),
    );
    headers.insert(
        "at".into(),
        AMQPValue::Timestamp(number(random).unsigned_abs()),
    );
    let mut row = WaitingRow {
        key,
        fingerprint: bytes(random, 40),
        partition: number(random),
        attempts: i32::MAX,
        code: text(random),
        error: text(random),
        stderr: text(random),
        backtrace: text(random),
        plugin: bytes(random, 40),
        trace_id: text(random),
        queue: text(random),
        ..super::waiting(&bytes(random, 64), status)
    };
    row.message.exchange = text(random);
    row.message.routing_key = text(random);
    row.message.body = bytes(random, 2_000).into();
    row.message.properties = row
        .message
        .properties
        .clone()
        .with_headers(headers)
        .with_timestamp(number(random).unsigned_abs());
    row
}

/// Stored, or refused as somebody else's failure than ours.
fn judged<T>(what: &str, seed: u64, answer: Result<T, StoreError>) -> Option<T> {
    match answer {
        Err(error) if error.class() == Class::Ours => panic!("{what}, seed {seed}: {error:?}"),
        answer => answer.ok(),
    }
}

async fn no_hostile_content_is_a_broken_invariant(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    for seed in 0..ROUNDS {
        let mut random = Rng::with_seed(seed);
        let random = &mut random;
        round(fixture, consumer, seed, random).await;
    }
}

async fn round(fixture: &Fixture, consumer: ConsumerId, seed: u64, random: &mut Rng) {
    let mut session = fixture.session().await;
    let (key, other) = (bytes(random, 512), bytes(random, 512));
    let fingerprint = bytes(random, 40);
    let plugin = bytes(random, 8);
    let rule = ClaimRule {
        consumer,
        plugin: &plugin,
        retention: [Some(HOUR), Some(Duration::MAX), None][random.usize(0..3)],
    };
    let claim = |key| Claim {
        key,
        fingerprint: &fingerprint,
        attempts: i32::MAX,
        timestamp_seconds: Some(NUMBERS[seed as usize % NUMBERS.len()]),
    };
    let started = session.record_start(rule, claim(&other), false).await;
    judged("a start", seed, started);
    let row = row(random, Some(key.clone()), Status::Retry);
    let keyless = self::row(random, None, Status::Parked);

    session.begin().await.unwrap();
    let claimed = judged("a claim", seed, session.claim(rule, &[claim(&key)]).await);
    assert!(claimed.is_some(), "seed {seed}");
    let settlement = Settlement {
        key: &key,
        fate: Fate::Waiting,
        attempts: i32::MAX,
    };
    judged(
        "a fate",
        seed,
        session.settle(consumer, &[settlement]).await,
    )
    .unwrap();
    let delays = [duration(random), duration(random)];
    let rows = [(row.clone(), delays[0]), (keyless, delays[1])];
    judged(
        "a failed message",
        seed,
        session.waiting_put(consumer, &rows).await,
    )
    .unwrap();
    let outgoing = OutboxRow {
        consumer,
        lane: i16::MIN,
        target: "points".to_owned(),
        may_drop: false,
        ordering_key: Some(text(random)),
        delay: Some(duration(random)),
        message: row.message.clone(),
    };
    let host = HostId(i32::MAX);
    let sequences = session.outbox_put(host, &[Arc::new(outgoing)]).await;
    let sequences = judged("an outgoing message", seed, sequences).unwrap();
    judged("the end", seed, session.finish(consumer, &[&key]).await).unwrap();
    judged("the commit", seed, session.commit().await).unwrap();

    for sequence in sequences {
        let error = text(random);
        let deferred = session
            .outbox_defer(sequence, duration(random), &error)
            .await;
        judged("a publish that failed", seed, deferred).unwrap();
    }
    judged("the outbox", seed, session.outbox_take(host, 10).await).unwrap();
    let filter = WaitingFilter {
        limit: 1_000,
        since: Some(number(random)),
        until: Some(number(random)),
        ..WaitingFilter::default()
    };
    judged("a list", seed, session.waiting_list(&filter).await).unwrap();
    let all = WaitingFilter {
        limit: 1_000,
        ..WaitingFilter::default()
    };
    let listed = judged("all of them", seed, session.waiting_list(&all).await).unwrap();
    let kept = listed.iter().find(|record| record.row.id == row.id);
    assert_eq!(kept.unwrap().row.message, row.message, "seed {seed}");
    judged(
        "entries",
        seed,
        session.entries(consumer, &[&key, &other]).await,
    )
    .unwrap();
    judged("what is next", seed, session.waiting_next(consumer).await).unwrap();

    session.begin().await.unwrap();
    // A name with NUL is refused before it comes here.
    let state = text(random).replace('\0', "");
    let value = bytes(random, 600);
    let written = session
        .state_write(consumer, &state, Some(&value), Expect::Anything)
        .await;
    judged("state", seed, written).unwrap();
    session.rollback().await.unwrap();
}
