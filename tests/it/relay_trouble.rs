//! Outgoing messages meet exchanges that are missing, forbidden or without a binding.

use std::collections::BTreeMap;

use anyhow::ensure;
use serde_json::{Value, json};

use crate::Checked;
use crate::support::broker::Message;
use crate::support::host::{Host, UNHURRIED};
use crate::support::place::Place;
use crate::support::scene::{self, IN, OUT, Scene, insert, message, publish};
use crate::support::store::Fates;
use crate::support::wait;

const GOOD: usize = 1_000;

fn publish_to(target: &str, order: &str) -> Value {
    json!({"publish": {"target": target, "body": {"order_id": order}}})
}

pub async fn an_unroutable_message_stays_and_is_sent_once_the_binding_exists(
    place: &Place,
    scene: Scene,
) -> Checked {
    scene.broker.declare_exchange("events", false).await?;
    let targets = r#"{ events = { exchange = "events", routing-key = "paid" } }"#;
    let consumer = scene.probe()?.set("targets", targets);
    let host = Host::start(place, &scene.config("host", consumer)).await?;
    let orders = ["a", "b", "c"];
    scene
        .publish(&orders.map(|order| message(order, &[publish_to("events", order)])))
        .await?;
    host.until_metric("hapax_committed_total", 3).await?;
    host.until_metric("hapax_relay_returned_total", 3).await?;
    assert_eq!(
        scene.store.count("hapax_outbox").await?,
        3,
        "an unroutable message was dropped"
    );

    scene.broker.bind(OUT, "events", "paid").await?;
    scene.finish(host).await?;
    assert_eq!(scene.store.count("hapax_outbox").await?, 0);
    assert_eq!(scene.sent().await?, orders);
    Ok(())
}

pub async fn an_unroutable_message_may_be_dropped_where_the_target_says_so(
    place: &Place,
    scene: Scene,
) -> Checked {
    let targets = r#"{ nowhere = { exchange = "", routing-key = "nobody", unroutable = "drop" } }"#;
    let consumer = scene.probe()?.set("targets", targets);
    let host = Host::start(place, &scene.config("host", consumer)).await?;
    scene
        .publish(&[message("k", &[publish_to("nowhere", "k")])])
        .await?;
    host.until_metric("hapax_relay_dropped_total", 1).await?;
    scene.finish(host).await?;
    assert_eq!(scene.store.count("hapax_outbox").await?, 0);
    Ok(())
}

/// A missing exchange, a forbidden one, a header larger than a frame and a dead reply-to among a
/// thousand good messages: each good one arrives, at most twice. What has an exchange to hope for
/// waits visibly; a reply to somebody who is gone is dropped.
pub async fn bad_targets_do_not_hold_up_good_messages(place: &Place, scene: Scene) -> Checked {
    scene.broker.declare_exchange("internal", true).await?;
    let targets = r#"{
        out = { exchange = "", routing-key = "out" },
        missing = { exchange = "late", routing-key = "paid" },
        forbidden = { exchange = "internal", routing-key = "paid" },
    }"#
    .replace('\n', " ");
    let bad: [(&str, Value); 4] = [
        ("missing", publish_to("missing", "bad-missing")),
        ("forbidden", publish_to("forbidden", "bad-forbidden")),
        ("huge", huge_header()),
        ("dead", json!({"reply": {"order_id": "bad-dead"}})),
    ];
    let mut random = place.random();
    let mut messages: Vec<Message> = (0..GOOD)
        .map(|number| format!("good-{number:04}"))
        .map(|order| message(&order, &[insert(&order, 0), publish(&order)]))
        .collect();
    for (name, step) in &bad {
        let mut bad = message(name, std::slice::from_ref(step));
        bad.properties = bad.properties.with_reply_to("nobody.listens".into());
        messages.insert(random.usize(..messages.len()), bad);
    }
    scene.publish(&messages).await?;

    let consumer = scene.probe()?.set("targets", &targets);
    let host = Host::start(place, &scene.config("host", consumer)).await?;
    let received = scene.broker.receive(OUT, GOOD).await?;
    host.until_metric("hapax_relay_confirmed_total", GOOD as u64)
        .await?;
    host.until_metric("hapax_relay_dropped_total", 1).await?;
    wait::until_equal("the messages that cannot be sent", 2, async || {
        scene.store.count("hapax_outbox").await
    })
    .await?;

    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    for message in received.iter().chain(&scene.broker.drain(OUT).await?) {
        *times.entry(message.message_id()?.to_owned()).or_default() += 1;
    }
    assert_eq!(times.len(), GOOD, "distinct good messages");
    ensure!(
        times.values().all(|times| *times <= 2),
        "a message arrived more than twice"
    );

    // A header that no frame can hold is refused where it is published: the message fails, as often as it may.
    host.until_metric("hapax_parked_total", 1).await?;
    assert_eq!(scene.store.waiting_keys().await?, ["huge parked retry"]);

    // The exchange appears, with a binding: what waited for it is sent, the rest still waits.
    scene.broker.declare_exchange("late", false).await?;
    scene.broker.bind(OUT, "late", "paid").await?;
    let late = scene.broker.receive(OUT, 1).await?;
    assert_eq!(scene::sent(&late)?, ["bad-missing"]);
    wait::until_equal("the messages that cannot be sent", 1, async || {
        scene.store.count("hapax_outbox").await
    })
    .await?;
    host.stop().await?;
    assert_eq!(scene.broker.left_over(IN).await?, 0);
    let committed = i64::try_from(GOOD + 3)?;
    scene
        .assert_fates(Fates {
            committed,
            parked: 1,
            ..Fates::default()
        })
        .await
}

fn huge_header() -> Value {
    let value = "h".repeat(200 * 1024);
    json!({"publish": {"target": "out", "body": {"order_id": "huge"}, "headers": {"huge": value}}})
}

fn ordered(target: &str, order: &str) -> Value {
    json!({"publish": {"target": target, "ordering_key": "account", "body": {"order_id": order}}})
}

/// The later messages of an ordering key wait for one that has nowhere to go. A host that stops leaves all of
/// them to whoever comes next, and they come out in their order.
pub async fn messages_behind_one_that_cannot_be_sent_do_not_hold_up_the_drain(
    place: &Place,
    scene: Scene,
) -> Checked {
    scene.broker.declare_exchange("events", false).await?;
    let targets = r#"{ events = { exchange = "events", routing-key = "paid" } }"#;
    let consumer = scene.probe()?.set("targets", targets).set("lanes", "1");
    let config = scene.config("host", consumer);
    let host = Host::start(place, &config).await?;
    let orders: Vec<String> = (0..20).map(|number| format!("{number:02}")).collect();
    let (early, late) = orders.split_at(10);
    let messages = |orders: &[String]| {
        let orders = orders.iter();
        let messages = orders.map(|order| message(order, &[ordered("events", order)]));
        messages.collect::<Vec<_>>()
    };
    scene.publish(&messages(early)).await?;
    host.until_metric("hapax_committed_total", 10).await?;
    host.until_metric("hapax_relay_returned_total", 1).await?;
    // Some of them have left memory by themselves when others come.
    wait::until_equal("the messages in memory", 0, async || {
        host.metric("hapax_relay_in_memory").await
    })
    .await?;
    scene.publish(&messages(late)).await?;
    host.until_metric("hapax_committed_total", 20).await?;
    host.stop().await?;
    assert_eq!(scene.store.count("hapax_outbox").await?, 20);

    scene.broker.bind(OUT, "events", "paid").await?;
    let host = Host::start(place, &config).await?;
    scene.finish(host).await?;
    let mut received = Vec::new();
    for message in scene.broker.drain(OUT).await? {
        let order = message.json()?["order_id"].as_str().map(str::to_owned);
        received.extend(order);
    }
    received.dedup();
    assert_eq!(received, orders);
    Ok(())
}

/// More messages than the relay keeps in memory wait for one that has nowhere to go: the lanes go on.
pub async fn messages_behind_one_that_cannot_be_sent_do_not_stop_the_lanes(
    place: &Place,
    scene: Scene,
) -> Checked {
    const EACH: usize = 1_000;
    const MESSAGES: usize = 17;
    scene.broker.declare_exchange("events", false).await?;
    let targets = r#"{ events = { exchange = "events", routing-key = "paid" }, out = { exchange = "", routing-key = "out" } }"#;
    let consumer = scene
        .probe()?
        .set("targets", targets)
        .set("lanes", "1")
        .set("limits", UNHURRIED);
    let host = Host::start(place, &scene.config("host", consumer)).await?;
    let many = json!({"repeat": [EACH, [ordered("events", "late")]]});
    let messages: Vec<Message> = (0..MESSAGES)
        .map(|number| message(&number.to_string(), std::slice::from_ref(&many)))
        .collect();
    scene.publish(&messages).await?;
    host.until_metric("hapax_committed_total", MESSAGES as u64)
        .await?;
    scene.publish(&[scene::ordinary("k")]).await?;
    let received = scene.broker.receive(OUT, 1).await?;
    assert_eq!(scene::sent(&received)?, ["k"]);
    let waiting = i64::try_from(EACH * MESSAGES)?;
    wait::until_equal("the messages that wait", waiting, async || {
        scene.store.count("hapax_outbox").await
    })
    .await?;
    host.stop().await
}

/// A host is killed between commit and publish: the next one sends what it left behind.
pub async fn what_a_killed_host_left_behind_is_sent(place: &Place, scene: Scene) -> Checked {
    scene.broker.declare_exchange("events", false).await?;
    let targets = r#"{ events = { exchange = "events", routing-key = "paid" } }"#;
    let consumer = scene.probe()?.set("targets", targets);
    let config = scene.config("host", consumer);
    let orders: Vec<String> = (0..100).map(|number| format!("{number:03}")).collect();
    let messages: Vec<Message> = orders
        .iter()
        .map(|order| message(order, &[publish_to("events", order)]))
        .collect();
    scene.publish(&messages).await?;
    let host = Host::start(place, &config).await?;
    host.until_metric("hapax_committed_total", 100).await?;
    host.sigkill()?;
    assert_eq!(scene.store.count("hapax_outbox").await?, 100);

    scene.broker.bind(OUT, "events", "paid").await?;
    let host = Host::start(place, &config).await?;
    scene.finish(host).await?;
    assert_eq!(scene.sent().await?, orders);
    Ok(())
}
