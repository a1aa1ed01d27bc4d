//! What a handler makes up: the same in every attempt, or not.

use super::running::publisher;
use super::*;

/// What a handler published, and under which ids.
async fn published(
    plugin: &Plugin,
    environment: &Arc<Environment>,
    key: &str,
) -> Vec<(String, Bytes)> {
    let run = plugin.run(environment, attempt(key), transaction().0).await;
    assert!(matches!(run.verdict, Verdict::Done), "{:?}", run.verdict);
    let id = |row: &crate::store::OutboxRow| row.message.property("message-id").unwrap_or_default();
    run.effects
        .outbox
        .iter()
        .map(|row| (id(row), row.message.body.clone()))
        .collect()
}

/// Publishes an identifier that the host made up, and four things that differ from run to run elsewhere.
fn curious() -> Vec<u8> {
    publisher(
        r#"(import "hapax:plugin/context@0.1.0" "new-id" (func $id (param i32)))
           (import "wasi:clocks/wall-clock@0.2.6" "now" (func $wall (param i32)))
           (import "wasi:clocks/monotonic-clock@0.2.6" "now" (func $monotonic (result i64)))
           (import "wasi:random/random@0.2.6" "get-random-u64" (func $random (result i64)))
           (import "wasi:random/insecure-seed@0.2.6" "insecure-seed" (func $seed (param i32)))"#,
        // 36 characters of the id, then 16 bytes each of the wall clock and the seed, and 8 each of the rest.
        "(call $id (i32.const 4096))
         (memory.copy (i32.const 5000) (i32.load (i32.const 4096)) (i32.const 36))
         (call $wall (i32.const 5040))
         (call $seed (i32.const 5056))
         (i64.store (i32.const 5072) (call $monotonic))
         (i64.store (i32.const 5080) (call $random))
         (i32.const 5000) (i32.const 88)",
        2,
    )
}

#[tokio::test]
async fn what_a_handler_makes_up_is_equal_in_every_attempt_and_differs_between_keys() {
    let plugin = load(&curious());
    let environment = Arc::new(environment());
    let first = published(&plugin, &environment, "a").await;
    assert_eq!(first, published(&plugin, &environment, "a").await);
    assert_ne!(
        first[0].0, first[1].0,
        "two messages of one run have ids of their own"
    );
    let id = uuid::Uuid::parse_str(str::from_utf8(&first[0].1[..36]).expect("it is text"))
        .expect("it is a UUID");
    assert_eq!(id.get_version_num(), 8);

    let other = published(&plugin, &environment, "b").await;
    assert_ne!(first[0].0, other[0].0);
    for range in [0..36, 56..72, 80..88] {
        assert_ne!(
            first[0].1[range.clone()],
            other[0].1[range.clone()],
            "{range:?}"
        );
    }
}

#[tokio::test]
async fn secure_randomness_differs_between_attempts_and_identifiers_do_not() {
    let plugin = load(&curious());
    let mut environment = environment();
    environment.random = Random::Secure;
    let environment = Arc::new(environment);
    let first = published(&plugin, &environment, "a").await;
    let second = published(&plugin, &environment, "a").await;
    assert_eq!(first[0].1[..36], second[0].1[..36]);
    assert_ne!(first[0].1[56..72], second[0].1[56..72]);
    assert_ne!(first[0].1[80..88], second[0].1[80..88]);
}

#[tokio::test]
async fn without_idempotency_nothing_repeats() {
    let plugin = load(&curious());
    let mut environment = environment();
    environment.idempotency = Idempotency::Off;
    let environment = Arc::new(environment);
    let first = published(&plugin, &environment, "").await;
    let second = published(&plugin, &environment, "").await;
    assert_ne!(first[0].0, second[0].0);
    for range in [0..36, 56..72, 80..88] {
        assert_ne!(
            first[0].1[range.clone()],
            second[0].1[range.clone()],
            "{range:?}"
        );
    }
}

#[tokio::test]
async fn the_clocks_stand_at_the_attempts_start() {
    let plugin = load(&curious());
    let published = published(&plugin, &Arc::new(environment()), "a").await;
    let body = &published[0].1;
    let number = |at: usize| u64::from_le_bytes(body[at..at + 8].try_into().expect("8 bytes"));
    assert_eq!(number(40), 1_700_000_000);
    assert_eq!(number(48) as u32, 123_456_000);
    assert_eq!(number(72), 1_700_000_000_123_456_000);
}
