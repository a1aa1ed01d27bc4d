//! What a message carries, and what its key is made of, survives everything.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, DecimalValue, FieldArray, FieldTable};
use serde_json::{Value, json};

use crate::Checked;
use crate::support::broker::Message;
use crate::support::host::Host;
use crate::support::place::Place;
use crate::support::scene::{self, Scene, insert, message, publish};
use crate::support::servers;
use crate::support::store::{Fates, Store};

fn echo() -> Value {
    json!({"echo_context": "out"})
}

/// A message with every property and an odd set of headers is seen by the handler in the same
/// way at its first attempt, after a retry, and after it was parked and replayed.
pub async fn survives_retry_park_and_replay_unchanged(place: &Place, scene: Scene) -> Checked {
    let missing = json!({"fail_if_missing": ["SELECT id FROM t_parents WHERE id = $1", ["late"]]});
    let later = json!({"retry_until_attempt": 2});
    let messages = [
        ("first", vec![echo()]),
        ("retried", vec![later, echo()]),
        ("replayed", vec![missing, echo()]),
    ]
    .map(|(order, steps)| Message {
        properties: every_property(),
        ..message(order, &steps)
    });
    let retry = r#"{ max-attempts = 2, delay = "20ms", max-delay = "50ms" }"#;
    let consumer = scene.probe()?.set("retry", retry);
    let config = scene.config("host", consumer);
    let host = Host::start(place, &config).await?;
    scene.publish(&messages).await?;
    host.until_metric("hapax_committed_total", 2).await?;
    host.until_metric("hapax_parked_total", 1).await?;
    scene.finish(host).await?;
    assert_eq!(scene.store.waiting_keys().await?, ["replayed parked retry"]);

    scene
        .store
        .execute("INSERT INTO t_parents VALUES ('late')")
        .await?;
    let host = Host::start(place, &config).await?;
    let listed = host.cli(&["parked", "list", "--json"]).await?.json()?;
    let id = listed[0]["id"]
        .as_str()
        .context("the list shows no id")?
        .to_owned();
    let replayed = host.cli(&["parked", "replay", &id]).await?;
    ensure!(replayed.code == Some(0), "{replayed:?}");
    host.until_metric("hapax_committed_total", 1).await?;
    scene.store.until_outbox_empty().await?;
    host.stop().await?;

    assert_eq!(scene.store.waiting().await?, [""; 0]);
    let mut seen = Vec::new();
    for received in scene.broker.drain(scene::OUT).await? {
        let mut context = received.json()?;
        let seen_key = context["key"].as_str().context("no key")?.to_owned();
        for moving in [
            "key",
            "body",
            "attempt",
            "now",
            "clock",
            "random",
            "ids",
            "redelivered",
        ] {
            context.as_object_mut().context("no object")?.remove(moving);
        }
        seen.push((seen_key, context));
    }
    seen.sort_by_key(|(key, _)| key.clone());
    seen.dedup();
    let keys: Vec<&str> = seen.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, ["first", "replayed", "retried"]);
    let first = &seen[0].1;
    assert_eq!(
        first["properties"].as_object().map(serde_json::Map::len),
        Some(13)
    );
    assert_eq!(
        first["headers"].as_array().map(Vec::len),
        Some(headers().inner().len())
    );
    for (key, context) in &seen {
        assert_eq!(context, first, "{key} differs from the first");
    }
    Ok(())
}

fn every_property() -> BasicProperties {
    BasicProperties::default()
        .with_content_type("application/json".into())
        .with_content_encoding("identity".into())
        .with_headers(headers())
        .with_delivery_mode(2)
        .with_priority(7)
        .with_correlation_id("correlation ü".into())
        .with_reply_to("replies".into())
        .with_expiration("600000".into())
        .with_message_id("message-1".into())
        .with_timestamp(1_700_000_000)
        .with_type("order.paid".into())
        // The broker refuses any name but the one that is logged in.
        .with_user_id("guest".into())
        .with_app_id("shop".into())
        .with_cluster_id("cluster".into())
}

/// Every kind of value that RabbitMQ takes, and names that are odd.
fn headers() -> FieldTable {
    let mut nested = FieldTable::default();
    nested.insert("inner".into(), AMQPValue::LongLongInt(-1));
    let mut array = FieldArray::default();
    array.push(AMQPValue::LongString("one".into()));
    array.push(AMQPValue::FieldTable(nested.clone()));
    array.push(AMQPValue::Void);

    let mut headers = FieldTable::default();
    let mut put = |name: &str, value: AMQPValue| {
        headers.insert(name.into(), value);
    };
    put("void", AMQPValue::Void);
    put("yes", AMQPValue::Boolean(true));
    put("i8", AMQPValue::ShortShortInt(-8));
    put("u8", AMQPValue::ShortShortUInt(200));
    put("i16", AMQPValue::ShortInt(-1_600));
    put("u16", AMQPValue::ShortUInt(60_000));
    put("i32", AMQPValue::LongInt(-320_000));
    put("u32", AMQPValue::LongUInt(4_000_000_000));
    put("i64", AMQPValue::LongLongInt(i64::MIN));
    put("f32", AMQPValue::Float(1.5));
    put("f64", AMQPValue::Double(-2.25));
    put(
        "decimal",
        AMQPValue::DecimalValue(DecimalValue {
            scale: 2,
            value: 1_250,
        }),
    );
    put("text", AMQPValue::LongString("Grüße 👋".into()));
    put("empty", AMQPValue::LongString("".into()));
    put(
        "no text",
        AMQPValue::LongString(vec![0xff, 0x00, 0xfe].into()),
    );
    put("bytes", AMQPValue::ByteArray(vec![0, 1, 2, 255].into()));
    put("timestamp", AMQPValue::Timestamp(1_700_000_001));
    put("table", AMQPValue::FieldTable(nested));
    put("array", AMQPValue::FieldArray(array));
    put("x-death", AMQPValue::FieldArray(FieldArray::default()));
    put("CC", AMQPValue::FieldArray(FieldArray::default()));
    put(&"n".repeat(255), AMQPValue::Boolean(false));
    headers
}

/// Keys that a database's collation or a parser of numbers would take for one another.
pub async fn keys_that_look_alike_stay_different(place: &Place, scene: Scene) -> Checked {
    let keys: Vec<Value> = [
        json!("1a"),
        json!("1A"),
        json!("1á"),
        json!("1a\u{301}"),
        json!("1a "),
        json!(" 1a"),
        json!("1a\u{0}"),
        json!("1a\u{0}b"),
        json!("1a\n"),
        json!("ß"),
        json!("ss"),
        json!("İ"),
        json!("i"),
        json!("\u{200b}1a"),
    ]
    .to_vec();
    let numbers = [
        "123456789012345678901234567890",
        "123456789012345678901234567891",
        "9007199254740993",
        "9007199254740992",
        "1.0",
        "1.00",
        // An exponent always has its sign: the JSON parser writes it so.
        "1e+0",
        "-0",
    ];
    let mut bodies: Vec<String> = keys
        .iter()
        .enumerate()
        .map(|(number, key)| body(&key.to_string(), number))
        .collect();
    for number in numbers {
        bodies.push(body(number, bodies.len()));
    }
    // Each twice: the second of each is a duplicate, of its own key only.
    let messages: Vec<Message> = bodies
        .iter()
        .chain(&bodies)
        .map(|body| Message::bytes(body.as_bytes()))
        .collect();
    scene.publish(&messages).await?;
    let host = Host::start(place, &scene.config("host", scene.probe()?)).await?;
    scene.finish(host).await?;

    assert_eq!(scene.store.waiting().await?, [""; 0]);
    assert_eq!(scene.effects().await?.len(), bodies.len());
    let stored: BTreeSet<Vec<u8>> = scene
        .store
        .bytes("SELECT key FROM hapax_ledger")
        .await?
        .into_iter()
        .collect();
    let texts = keys
        .iter()
        .filter_map(Value::as_str)
        .map(|key| key.as_bytes().to_vec());
    let expected: BTreeSet<Vec<u8>> = texts
        .chain(numbers.iter().map(|number| number.as_bytes().to_vec()))
        .collect();
    assert_eq!(stored, expected);
    let committed = i64::try_from(bodies.len())?;
    scene
        .assert_fates(Fates {
            committed,
            ..Fates::default()
        })
        .await
}

/// The key as it is to stand in the JSON text: a parser of this test must not touch numbers.
fn body(key: &str, number: usize) -> String {
    let steps = json!([insert(&format!("row-{number}"), 0), publish("x")]);
    format!(r#"{{"order_id": {key}, "do": {steps}}}"#)
}

/// Without idempotency nothing is a duplicate: equal messages run, and send, twice.
pub async fn equal_messages_without_idempotency_send_different_ids(
    place: &Place,
    scene: Scene,
) -> Checked {
    let consumer = scene.probe()?.set("idempotency", "\"off\"");
    let host = Host::start(place, &scene.config("host", consumer)).await?;
    scene
        .publish(&vec![message("k", &[publish("k")]); 2])
        .await?;
    host.until_metric("hapax_committed_total", 2).await?;
    scene.store.until_outbox_empty().await?;
    host.stop().await?;
    let sent = scene.broker.drain(scene::OUT).await?;
    assert_eq!(sent.len(), 2);
    assert_ne!(sent[0].message_id()?, sent[1].message_id()?);
    Ok(())
}

/// The ids that a handler makes, its random numbers and the ids of what it sends are the same in
/// every attempt. Shown on two copies of one store: in the one the first attempt commits, in the
/// other the third.
pub async fn ids_are_equal_in_every_attempt(place: &Place) -> Checked {
    let original = Scene::sqlite(place).await?;
    let host = Host::start(place, &original.config("original", original.probe()?)).await?;
    host.stop().await?;
    let copied = Place::of("ids-of-a-copy")?;
    for file in ["hapax.db", "hapax.db-wal"] {
        let from = place.dir.join(file);
        if from.exists() {
            std::fs::copy(from, copied.dir.join(file))?;
        }
    }
    let copy = Scene {
        store: Store::sqlite(&copied),
        broker: servers::rabbit().await?.create_vhost().await?,
        declared: None,
    };
    copy.broker.declare(&[scene::IN, scene::OUT]).await?;

    let at_once = ids_seen(place, &original, &[echo()]).await?;
    let later = json!({"retry_until_attempt": 3});
    let at_last = ids_seen(&copied, &copy, &[later, echo()]).await?;
    assert_eq!(at_once["attempt"], 1);
    assert_eq!(at_last["attempt"], 3);
    for name in ["ids", "random", "message_id"] {
        assert!(!at_once[name].is_null(), "{name} is not told: {at_once}");
        assert_eq!(at_once[name], at_last[name], "{name}");
    }
    Ok(())
}

/// Runs one message with the key `k`; returns the context that it saw and its message's id.
async fn ids_seen(place: &Place, scene: &Scene, steps: &[Value]) -> anyhow::Result<Value> {
    let host = Host::start(place, &scene.config("host", scene.probe()?)).await?;
    scene.publish(&[message("k", steps)]).await?;
    host.until_metric("hapax_committed_total", 1).await?;
    scene.store.until_outbox_empty().await?;
    host.stop().await?;
    let sent = scene.broker.drain(scene::OUT).await?;
    let sent = sent.first().context("nothing was sent")?;
    let mut context = sent.json()?;
    context["message_id"] = sent.message_id()?.into();
    Ok(context)
}
