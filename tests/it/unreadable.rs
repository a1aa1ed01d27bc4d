//! Messages that the AMQP client library cannot read, or that are too large to be held beside others: each is parked
//! whole, or stays where it is; its neighbours run, and nobody's deliveries are used up.

use anyhow::{Context, ensure};
use hapax::failpoint::Point;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::Checked;
use crate::support::broker::Message;
use crate::support::host::{Consumer, Host};
use crate::support::place::Place;
use crate::support::raw::{self, RawMessage, RawProducer};
use crate::support::scene::{self, OUT, Scene};
use crate::support::wait;

/// Queues that drop a message after this many returns.
const DELIVERY_LIMIT: i32 = 5;
const KINDS: [&str; 2] = ["classic", "quorum"];
const KIB: usize = 1024;
const EXCHANGE: &str = "amq.topic";
const NO_UTF8: &[u8] = b"\x01\xc4";

/// A queue of this kind; a quorum queue drops what comes back too often.
async fn declare(scene: &Scene, queue: &str, kind: &str, dead_letters: bool) -> Checked {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
    if kind == "quorum" {
        arguments.insert(
            "x-delivery-limit".into(),
            AMQPValue::LongInt(DELIVERY_LIMIT),
        );
    }
    if dead_letters {
        let to = [
            ("x-dead-letter-exchange", ""),
            ("x-dead-letter-routing-key", OUT),
        ];
        for (name, value) in to {
            arguments.insert(name.into(), AMQPValue::LongString(value.into()));
        }
    }
    scene.broker.declare_with(queue, arguments).await
}

fn consumer(scene: &Scene, queue: &str) -> anyhow::Result<Consumer> {
    let lanes = if scene.store.is_postgres() { "2" } else { "1" };
    let consumer = Consumer::probe(queue)?.set("name", &format!("\"{queue}\""));
    Ok(consumer.set("lanes", lanes))
}

fn good(order: &str) -> Message {
    scene::message(order, &[scene::insert(order, 0)])
}

/// A good message with a body of about this length.
fn padded(order: &str, bytes: usize) -> Message {
    let padding = "p".repeat(bytes);
    let steps = [scene::insert(order, 0)];
    Message::json(&json!({"order_id": order, "do": steps, "padding": padding}))
}

fn nested(kind: u8, levels: usize) -> Vec<u8> {
    let name: &[u8] = if kind == b'F' { b"\x01a" } else { b"" };
    let mut inner = Vec::new();
    for _ in 0..levels {
        inner = [name, &raw::value(kind, &inner)].concat();
    }
    inner
}

/// What the pages name, and its siblings. The reasons are parts of what `parked show` says.
fn unreadable(queue: &str) -> Vec<(RawMessage, &'static str)> {
    let body = |name: &str| json!({"order_id": name, "do": [scene::insert(name, 0)]}).to_string();
    let to = |name: &str, properties| RawMessage::to(queue, properties, body(name));
    let text = |flag| raw::text_property(flag, NO_UTF8);
    let empty = vec![0, 0];
    let one = raw::value(b'S', b"x");
    vec![
        (to("bad-id", text(raw::MESSAGE_ID)), "message-id"),
        (to("bad-type", text(raw::TYPE)), "type"),
        (to("bad-reply", text(raw::REPLY_TO)), "reply-to"),
        (
            to("bad-correlation", text(raw::CORRELATION_ID)),
            "correlation-id",
        ),
        (
            to("bad-name", raw::headers(&raw::entry(NO_UTF8, &one))),
            "header",
        ),
        (
            to(
                "bad-inner-name",
                raw::headers(&raw::entry(
                    b"a",
                    &raw::value(b'F', &raw::entry(NO_UTF8, &one)),
                )),
            ),
            "header",
        ),
        (
            to(
                "deep-arrays",
                raw::headers(&raw::entry(b"a", &nested(b'A', 2_000)[..])),
            ),
            "deeper than 64",
        ),
        (
            to("deep-tables", raw::headers(&nested(b'F', 2_000))),
            "deeper than 64",
        ),
        (
            RawMessage {
                exchange: EXCHANGE.as_bytes().to_vec(),
                routing_key: b"orders.\xff".to_vec(),
                properties: empty,
                body: body("bad-key").into_bytes(),
            },
            "routing key",
        ),
    ]
}

/// Each of them between good ones, on queues that count returns.
pub async fn are_parked_as_bytes_and_their_neighbours_run(place: &Place, scene: Scene) -> Checked {
    for kind in KINDS {
        declare(&scene, kind, kind, false).await?;
        scene.broker.bind(kind, EXCHANGE, "#").await?;
        let bad = unreadable(kind);
        let mut producer = RawProducer::connect(&scene.broker).await?;
        let mut orders = Vec::new();
        for (number, (message, _)) in bad.iter().enumerate() {
            let neighbours = ["a", "b", "c"].map(|name| format!("{kind}-{number}-{name}"));
            let messages = neighbours.each_ref().map(|order| good(order));
            scene.broker.publish(kind, &messages).await?;
            producer.publish(message).await?;
            orders.extend(neighbours);
        }
        // A header of streams on a queue that is none says nothing about the queue.
        let stream = raw::headers(&raw::entry(b"x-stream-offset", b"l\0\0\0\0\0\0\0\x05"));
        let order = format!("{kind}-stream");
        let message = RawMessage::to(kind, stream, good(&order).body);
        producer.publish(&message).await?;
        orders.push(order);

        let config = scene.config(kind, consumer(&scene, kind)?);
        let host = Host::start(place, &config).await?;
        let (good, bad_ones) = (orders.len() as u64, bad.len() as u64);
        host.until_metric("hapax_committed_total", good).await?;
        host.until_metric("hapax_parked_total", bad_ones).await?;
        let deliveries = host.metric("hapax_deliveries_total").await?;
        ensure!(
            deliveries == good + bad_ones,
            "something was returned: {deliveries} deliveries"
        );
        for (_, reason) in &bad {
            assert_shown(&host, reason).await?;
        }
        host.stop().await?;
        ensure!(
            scene.broker.left_over(kind).await? == 0,
            "something is left in {kind}"
        );
        assert_eq!(
            scene.store.waiting().await?,
            vec!["parked unreadable"; bad.len()]
        );
        let of_kind = |effect: &String| effect.starts_with(kind);
        let effects = scene.effects().await?.into_iter().filter(of_kind).count();
        assert_eq!(effects, orders.len());
        scene.store.execute("DELETE FROM hapax_waiting").await?;
    }
    Ok(())
}

async fn assert_shown(host: &Host, reason: &str) -> Checked {
    let listed = host.cli(&["parked", "list", "--json"]).await?.json()?;
    let rows = listed.as_array().context("a list")?;
    let told = |row: &&Value| {
        let error = row["error"].as_str();
        error.is_some_and(|error| error.contains(reason))
    };
    let row = rows.iter().find(told);
    let row = row.with_context(|| format!("no row says {reason}: {listed}"))?;
    let id = row["id"].as_str().context("an id")?;
    let shown = host.cli(&["parked", "show", id]).await?;
    ensure!(shown.stdout.contains("as it came"), "{shown:?}");
    let replayed = host.cli(&["parked", "replay", id]).await?;
    ensure!(replayed.stdout.contains("cannot run"), "{replayed:?}");
    Ok(())
}

/// A crash between commit and acknowledgement: the broker counts the delivery in a header of its own, and the message
/// is the same all the same.
pub async fn are_one_row_however_often_they_come(place: &Place, scene: Scene) -> Checked {
    declare(&scene, "quorum", "quorum", false).await?;
    let mut producer = RawProducer::connect(&scene.broker).await?;
    let bad = unreadable("quorum");
    let named = |name: &str| {
        bad.iter()
            .find(|(message, _)| contains(&message.body, name))
    };
    for name in ["bad-id", "bad-name", "deep-tables"] {
        producer
            .publish(&named(name).context("a message")?.0)
            .await?;
    }
    let config = scene.config("host", consumer(&scene, "quorum")?);
    let armed = format!("{}=kill", Point::BeforeAck.name());
    let host = Host::launch_armed(place, &config, Some(&armed))?;
    host.until_killed_at(Point::BeforeAck).await?;
    let host = Host::start(place, &config).await?;
    host.until_metric("hapax_parked_total", 3).await?;
    host.stop().await?;
    ensure!(
        scene.broker.left_over("quorum").await? == 0,
        "something is left"
    );
    assert_eq!(scene.store.waiting().await?, vec!["parked unreadable"; 3]);
    Ok(())
}

fn contains(body: &[u8], name: &str) -> bool {
    body.windows(name.len()).any(|part| part == name.as_bytes())
}

/// More bodies than `prefetch-bytes` come at once: the subscription narrows, and nobody is returned again and again.
/// What is over `max-message-bytes` is parked whole.
pub async fn large_ones_are_held_within_the_budget(place: &Place, scene: Scene) -> Checked {
    const LARGE: usize = 12;
    for kind in KINDS {
        declare(&scene, kind, kind, false).await?;
        let mut messages = Vec::new();
        for number in 0..LARGE {
            messages.extend(["a", "b"].map(|name| good(&format!("{kind}-{number}-{name}"))));
            messages.push(padded(&format!("{kind}-{number}-large"), 60 * KIB));
            messages.push(padded(&format!("{kind}-{number}-too-large"), 150 * KIB));
        }
        scene.broker.publish(kind, &messages).await?;
        let consumer = consumer(&scene, kind)?
            .set("prefetch-bytes", "\"128KiB\"")
            .set("max-message-bytes", "\"100KiB\"")
            .set("max-parked-bytes", "\"1MiB\"");
        let host = Host::start(place, &scene.config(kind, consumer)).await?;
        host.until_metric("hapax_committed_total", 3 * LARGE as u64)
            .await?;
        host.until_metric("hapax_parked_total", LARGE as u64)
            .await?;
        ensure!(
            host.said("does not fit beside what is held")? > 0,
            "the budget was never met"
        );
        host.stop().await?;
        ensure!(
            scene.broker.left_over(kind).await? == 0,
            "something is left in {kind}"
        );
        assert_eq!(
            scene.store.waiting().await?,
            vec!["parked message-too-large"; LARGE]
        );
        let short = "SELECT count(*) FROM hapax_waiting WHERE length(body) < 153600";
        assert_eq!(scene.store.number(short).await?, 0, "a body was cut");
        scene.store.execute("DELETE FROM hapax_waiting").await?;
    }
    Ok(())
}

/// What cannot be parked whole is parked in part and goes to the dead letters of its queue.
pub async fn what_is_too_large_to_park_goes_to_the_dead_letters(
    place: &Place,
    scene: Scene,
) -> Checked {
    for kind in KINDS {
        declare(&scene, kind, kind, true).await?;
        let messages = [
            good(&format!("{kind}-a")),
            padded(kind, 300 * KIB),
            good(&format!("{kind}-b")),
        ];
        scene.broker.publish(kind, &messages).await?;
        let host = Host::start(place, &scene.config(kind, narrow(&scene, kind)?)).await?;
        host.until_metric("hapax_committed_total", 2).await?;
        let dead = scene.broker.receive(OUT, 1).await?;
        assert_eq!(dead[0].body, messages[1].body, "the whole message");
        assert_cut(&host, &messages[1].body).await?;
        host.stop().await?;
        ensure!(
            scene.broker.left_over(kind).await? == 0,
            "something is left in {kind}"
        );
        scene.store.execute("DELETE FROM hapax_waiting").await?;
    }
    Ok(())
}

/// A queue without dead letters would lose it: it stays there, and the consumer stops, on each start again, until a
/// person has dealt with it.
pub async fn what_is_too_large_to_park_stays_where_nobody_keeps_it(
    place: &Place,
    scene: Scene,
) -> Checked {
    for kind in KINDS {
        declare(&scene, kind, kind, false).await?;
        let messages = [
            good(&format!("{kind}-a")),
            padded(kind, 300 * KIB),
            good(&format!("{kind}-b")),
        ];
        scene.broker.publish(kind, &messages).await?;
        let config = scene.config(kind, narrow(&scene, kind)?);
        let host = Host::start(place, &config).await?;
        let paused = async |host: &Host| {
            wait::until("the consumer to be paused", wait::PATIENCE, async || {
                let listed = host.cli(&["consumers", "list", "--json"]).await?.json()?;
                let named = |row: &&Value| row["name"] == *kind;
                let row = listed.as_array().and_then(|rows| rows.iter().find(named));
                let row = row.context("the consumer")?;
                let state = row["state"].as_str().map(str::to_owned);
                let reason = row["reason"].as_str().unwrap_or_default();
                let named = reason.contains("max-parked-bytes");
                Ok((state.as_deref() == Some("paused") && named).then_some(()))
            })
            .await
        };
        paused(&host).await?;
        assert_cut(&host, &messages[1].body).await?;
        host.stop().await?;
        let host = Host::start(place, &config).await?;
        paused(&host).await?;
        host.stop().await?;
        let left = scene.broker.drain(kind).await?;
        ensure!(
            left.iter().any(|message| message.body == messages[1].body),
            "the message is lost"
        );
        let again = left
            .iter()
            .filter(|message| message.body != messages[1].body);
        let again = again
            .map(|message| Message::bytes(message.body.clone()))
            .collect::<Vec<_>>();
        scene.broker.publish(kind, &again).await?;

        // It was taken out of the queue: the consumer goes on.
        let host = Host::start(place, &config).await?;
        let resumed = host.cli(&["consumers", "resume", kind]).await?;
        ensure!(resumed.code == Some(0), "{resumed:?}");
        scene::until_settled(&host, &scene.broker, kind, &scene.store).await?;
        host.stop().await?;
        let of_kind = |effect: &String| effect.starts_with(kind);
        assert_eq!(
            scene.effects().await?.into_iter().filter(of_kind).count(),
            2
        );
        assert_eq!(
            scene.store.waiting().await?,
            ["parked message-too-large"],
            "one row"
        );
        scene.store.execute("DELETE FROM hapax_waiting").await?;
    }
    Ok(())
}

fn narrow(scene: &Scene, queue: &str) -> anyhow::Result<Consumer> {
    Ok(consumer(scene, queue)?
        .set("max-message-bytes", "\"100KiB\"")
        .set("max-parked-bytes", "\"200KiB\""))
}

/// The row tells what the whole was.
async fn assert_cut(host: &Host, body: &[u8]) -> Checked {
    let listed = host.cli(&["parked", "list", "--json"]).await?.json()?;
    let id = listed[0]["id"].as_str().context("an id")?;
    let shown = host.cli(&["parked", "show", id, "--json"]).await?.json()?;
    assert_eq!(shown["withheld"]["body_bytes"], json!(body.len()));
    assert_eq!(
        shown["withheld"]["body_sha256"],
        json!(hex::encode(Sha256::digest(body)))
    );
    Ok(())
}

/// Bodies of 256 MiB in the queue, all of which the prefetch alone would let into memory.
pub async fn large_ones_do_not_fill_the_memory(place: &Place) -> Checked {
    const MESSAGES: usize = 64;
    const MOST: u64 = 200 << 20;
    let scene = Scene::postgres(place).await?;
    let large = (0..MESSAGES).map(|number| padded(&format!("large-{number}"), 4_000 * KIB));
    for message in large {
        scene.publish(&[message]).await?;
    }
    let consumer = scene.probe()?.set("prefetch-bytes", "\"16MiB\"");
    let config = scene
        .config("host", consumer)
        .broker_line("heartbeat = \"5s\"");
    let host = Host::start(place, &config).await?;
    host.until_metric("hapax_committed_total", MESSAGES as u64)
        .await?;
    let peak = host.peak_memory_bytes()?;
    ensure!(peak < MOST, "the host took {} MiB", peak >> 20);
    scene.finish(host).await
}
