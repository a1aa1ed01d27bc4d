//! `order = "strict"`: whatever happens to one message of a partition, the later ones come after it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, ensure};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};
use sqlx::Connection;

use crate::Checked;
use crate::support::broker::Message;
use crate::support::host::{self, Config, Consumer, Host};
use crate::support::place::Place;
use crate::support::proxy::Proxy;
use crate::support::scene::{self, OUT, Scene};
use crate::support::store::Store;
use crate::support::{servers, wait};

/// A queue with one active consumer.
const QUEUE: &str = "strict";

/// A message of an account. What it sends carries the account as ordering key, so that the order in which
/// messages committed shows in the order in which they come out.
fn message(account: &str, number: usize, steps: &[Value]) -> Message {
    let order = format!("{account}-{number:03}");
    let send = json!({"publish": {
        "target": "out", "ordering_key": account, "body": {"order_id": order, "account": account},
    }});
    let mut all = vec![scene::insert(&order, 0), send];
    all.extend_from_slice(steps);
    Message::json(&json!({"order_id": order, "account": account, "do": all}))
}

fn fine(account: &str, number: usize) -> Message {
    message(account, number, &[])
}

fn rejected_until(row: &str) -> Value {
    let update = format!("UPDATE t_counters SET total = total + 1 WHERE id = '{row}'");
    json!({"expect_affected": [[update, []], 1]})
}

fn consumer(scene: &Scene) -> anyhow::Result<Consumer> {
    let tables = r#"{ write = ["t_effects", "t_counters"] }"#;
    Ok(strict(Consumer::probe(QUEUE)?.set("grant", tables))
        .set("lanes", if scene.store.is_postgres() { "3" } else { "1" }))
}

fn strict(consumer: Consumer) -> Consumer {
    consumer
        .set("partition", "\"body:/account\"")
        .set("order", "\"strict\"")
}

async fn declare(scene: &Scene) -> Checked {
    declare_as(scene, "classic").await
}

async fn declare_as(scene: &Scene, kind: &str) -> Checked {
    let mut arguments = FieldTable::default();
    if kind != "classic" {
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
    }
    arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
    scene.broker.declare_with(QUEUE, arguments).await
}

/// The orders of each account as they came out, copies of one message once.
async fn come_out(scene: &Scene) -> anyhow::Result<BTreeMap<String, Vec<String>>> {
    let mut seen = BTreeSet::new();
    let mut orders = BTreeMap::<String, Vec<String>>::new();
    for message in scene.broker.drain(OUT).await? {
        if seen.insert(message.message_id()?.to_owned()) {
            let body = message.json()?;
            let text = |name: &str| {
                let value = body[name].as_str().map(str::to_owned);
                value.with_context(|| format!("no {name}"))
            };
            orders
                .entry(text("account")?)
                .or_default()
                .push(text("order_id")?);
        }
    }
    Ok(orders)
}

fn in_order(account: &str, numbers: impl Iterator<Item = usize>) -> Vec<String> {
    numbers
        .map(|number| format!("{account}-{number:03}"))
        .collect()
}

/// Nothing is to be done any more, and nothing is held.
async fn until_quiet(host: &Host, scene: &Scene) -> Checked {
    scene::until_settled(host, &scene.broker, QUEUE, &scene.store).await?;
    wait::until_equal("the rows that wait", 0, async || {
        let waiting = "SELECT count(*) FROM hapax_waiting WHERE status <> 'parked'";
        scene.store.number(waiting).await
    })
    .await?;
    scene::until_settled(host, &scene.broker, QUEUE, &scene.store).await
}

/// A message that succeeds at its third attempt, among others of its account and of another one.
pub async fn is_kept_while_a_message_is_retried(place: &Place, scene: Scene) -> Checked {
    declare(&scene).await?;
    let mut messages = Vec::new();
    for number in 0..40 {
        let retried = [json!({"retry_until_attempt": 3})];
        let steps: &[Value] = if number % 13 == 5 { &retried } else { &[] };
        messages.push(message("a", number, steps));
        messages.push(fine("b", number));
    }
    scene.broker.publish(QUEUE, &messages).await?;
    let host = Host::start(place, &scene.config("host", consumer(&scene)?)).await?;
    host.until_metric("hapax_committed_total", 80).await?;
    ensure!(
        host.metric("hapax_held_total").await? > 0,
        "nothing had to be held"
    );
    until_quiet(&host, &scene).await?;
    host.stop().await?;
    let orders = come_out(&scene).await?;
    assert_eq!(orders["a"], in_order("a", 0..40));
    assert_eq!(orders["b"], in_order("b", 0..40));
    Ok(())
}

/// A parked message holds the later ones until somebody replays it; other accounts go on.
pub async fn is_kept_until_a_parked_message_is_replayed(place: &Place, scene: Scene) -> Checked {
    declare(&scene).await?;
    scene
        .store
        .execute("DELETE FROM t_counters WHERE id = 'a'")
        .await?;
    let mut messages = vec![fine("a", 0), message("a", 1, &[rejected_until("a")])];
    messages.extend((2..12).map(|number| fine("a", number)));
    messages.extend((0..10).map(|number| fine("b", number)));
    scene.broker.publish(QUEUE, &messages).await?;
    let config = scene.config("host", consumer(&scene)?);
    let host = Host::start(place, &config).await?;
    host.until_metric("hapax_held_total", 10).await?;
    host.until_metric("hapax_committed_total", 11).await?;
    host.stop().await?;
    assert_eq!(held(&scene).await?, 10);
    assert_eq!(parked(&scene).await?, 1);

    // What comes later, and after a restart, stands in line as well.
    scene
        .store
        .execute("INSERT INTO t_counters VALUES ('a', 0)")
        .await?;
    let host = Host::start(place, &config).await?;
    scene.broker.publish(QUEUE, &[fine("a", 12)]).await?;
    host.until_metric("hapax_held_total", 1).await?;
    let replayed = host.cli(&["parked", "replay", "--all", "--yes"]).await?;
    ensure!(replayed.code == Some(0), "{replayed:?}");
    until_quiet(&host, &scene).await?;
    host.stop().await?;
    let orders = come_out(&scene).await?;
    assert_eq!(orders["a"], in_order("a", 0..13));
    assert_eq!(orders["b"], in_order("b", 0..10));
    Ok(())
}

pub async fn goes_on_when_a_parked_message_is_discarded(place: &Place, scene: Scene) -> Checked {
    declare(&scene).await?;
    let mut messages = vec![message("a", 0, &[json!({"reject": "never"})])];
    messages.extend((1..8).map(|number| fine("a", number)));
    scene.broker.publish(QUEUE, &messages).await?;
    let host = Host::start(place, &scene.config("host", consumer(&scene)?)).await?;
    host.until_metric("hapax_held_total", 7).await?;
    assert_eq!(host.metric("hapax_committed_total").await?, 0);
    let discarded = host.cli(&["parked", "discard", "--all", "--yes"]).await?;
    ensure!(discarded.code == Some(0), "{discarded:?}");
    until_quiet(&host, &scene).await?;
    host.stop().await?;
    assert_eq!(come_out(&scene).await?["a"], in_order("a", 1..8));
    Ok(())
}

/// At the cap the consumer stops taking messages; it loses none, and goes on by itself.
pub async fn at_its_cap_the_consumer_takes_no_more_and_loses_nothing(
    place: &Place,
    scene: Scene,
) -> Checked {
    declare(&scene).await?;
    let mut messages = vec![message("a", 0, &[json!({"reject": "never"})])];
    messages.extend((1..40).map(|number| fine("a", number)));
    scene.broker.publish(QUEUE, &messages).await?;
    let consumer = consumer(&scene)?
        .set("max-held", "8")
        .set("batch", "3")
        .set("prefetch", "16");
    // It may be full before anybody has seen it ready.
    let host = Host::launch(place, &scene.config("host", consumer))?;
    let full = [("reason", "full")];
    wait::until_equal("the reasons to take no more", 1, async || {
        host.metric_where("hapax_consumer_paused", &full).await
    })
    .await?;
    wait::until(
        "the messages to be given back",
        wait::PATIENCE,
        async || {
            let depth = scene.broker.depth(QUEUE).await?;
            Ok((depth.consumers == 0 && depth.ready > 0).then_some(()))
        },
    )
    .await?;
    ensure!(held(&scene).await? <= 8, "more are held than may be");
    let discarded = host.cli(&["parked", "discard", "--all", "--yes"]).await?;
    ensure!(discarded.code == Some(0), "{discarded:?}");
    host.until_metric("hapax_committed_total", 39).await?;
    until_quiet(&host, &scene).await?;
    host.stop().await?;
    assert_eq!(scene.broker.left_over(QUEUE).await?, 0);
    assert_eq!(come_out(&scene).await?["a"], in_order("a", 1..40));
    Ok(())
}

/// Accounts whose messages fail now and then, and a host that is killed again and again.
pub async fn is_kept_through_sigkills(place: &Place, scene: Scene) -> Checked {
    declare(&scene).await?;
    let mut random = place.random();
    let (accounts, each) = (["a", "b", "c", "d", "e"], 60);
    let mut messages = Vec::new();
    for number in 0..each {
        for account in accounts {
            let attempts = random.u32(2..4);
            let retried = [json!({"retry_until_attempt": attempts})];
            let fails = random.usize(..10) == 0;
            messages.push(message(account, number, if fails { &retried } else { &[] }));
        }
    }
    scene.broker.publish(QUEUE, &messages).await?;
    let config = scene.config("host", consumer(&scene)?.set("batch", "8"));
    for _ in 0..4 {
        let host = Host::start(place, &config).await?;
        host.until_metric("hapax_committed_total", random.u64(5..40))
            .await?;
        host.sigkill()?;
    }
    let host = Host::start(place, &config).await?;
    until_quiet(&host, &scene).await?;
    host.stop().await?;
    let orders = come_out(&scene).await?;
    for account in accounts {
        assert_eq!(orders[account], in_order(account, 0..each));
    }
    Ok(())
}

/// How the active host ends.
#[derive(Clone, Copy)]
enum End {
    Killed,
    Drained,
}

/// Two hosts; the active one is killed, and the other one takes over behind it.
pub async fn is_kept_when_another_host_takes_over(place: &Place) -> Checked {
    taken_over(place, "classic", End::Killed).await
}

/// A rolling restart: the active host drains with its hands full, and the other one takes over behind it.
pub async fn is_kept_when_the_active_host_drains(place: &Place) -> Checked {
    taken_over(place, "classic", End::Drained).await
}

pub async fn is_kept_when_the_active_host_of_a_quorum_queue_drains(place: &Place) -> Checked {
    taken_over(place, "quorum", End::Drained).await
}

async fn taken_over(place: &Place, kind: &str, end: End) -> Checked {
    let scene = Scene::postgres(place).await?;
    declare_as(&scene, kind).await?;
    let mut random = place.random();
    let (accounts, each) = (["a", "b", "c"], 100);
    let mut messages = Vec::new();
    for number in 0..each {
        for account in accounts {
            let retried = [json!({"retry_until_attempt": 2})];
            let fails = random.usize(..12) == 0;
            messages.push(message(account, number, if fails { &retried } else { &[] }));
        }
    }
    // The backlog is larger than what one host fetches.
    let consumer = consumer(&scene)?.set("batch", "8").set("prefetch", "40");
    let configs = ["first", "second"].map(|label| scene.config(label, consumer.clone()));
    let mut hosts = Vec::new();
    for config in &configs {
        hosts.push(Host::start(place, config).await?);
    }
    scene.broker.publish(QUEUE, &messages).await?;
    let goal = i64::from(each as i32) * 3;
    for kill in 1..=4_i64 {
        wait::until("messages to commit", wait::PATIENCE, async || {
            let committed = scene.store.fates().await?.committed;
            Ok((committed >= kill * 30).then_some(()))
        })
        .await?;
        let mut victim = hosts.remove(0);
        if matches!(end, End::Drained) {
            victim.sigterm()?;
            assert_eq!(victim.exit_code().await?, 0);
        }
        let mut next = victim.launch_after(place, &configs)?;
        next.until_ready().await?;
        hosts.push(next);
    }
    wait::until_equal("the committed keys", goal, async || {
        Ok(scene.store.fates().await?.committed)
    })
    .await?;
    scene.store.until_outbox_empty().await?;
    for host in hosts {
        host.stop().await?;
    }
    let orders = come_out(&scene).await?;
    for account in accounts {
        assert_eq!(orders[account], in_order(account, 0..each));
    }
    Ok(())
}

/// An operator's pause reaches the active host first, and the other one while its database is slow to answer: the
/// one that leaves must not leave to the other what comes after its own messages.
pub async fn is_kept_when_a_pause_reaches_one_host_before_the_other(place: &Place) -> Checked {
    let scene = Scene::postgres(place).await?;
    declare(&scene).await?;
    let messages = (0..300).map(|number| fine("a", number));
    let consumer = consumer(&scene)?.set("batch", "4").set("prefetch", "40");
    let proxy = Proxy::to(servers::postgres().await?.address()).await?;
    let through = scene.store.url_through(proxy.address());
    let active = Host::start(place, &scene.config("active", consumer.clone())).await?;
    let deaf = scene.config("deaf", consumer).with_store(&through);
    let deaf = Host::start(place, &deaf).await?;
    let subscribed = async |hosts: u32| {
        wait::until_equal("the hosts that are subscribed", hosts, async || {
            Ok(scene.broker.depth(QUEUE).await?.consumers)
        })
        .await
    };
    subscribed(2).await?;
    proxy.silence(true);
    // The active one stops in the middle of its first messages, however fast it is, until it has heard of the pause.
    let mut other = scene
        .store
        .hold("LOCK TABLE t_effects IN ACCESS EXCLUSIVE MODE")
        .await?;
    scene
        .broker
        .publish(QUEUE, &messages.collect::<Vec<_>>())
        .await?;
    active.until_metric("hapax_deliveries_total", 40).await?;
    let told = active.cli(&["consumers", "pause", "probe"]).await?;
    ensure!(told.code == Some(0), "{told:?}");
    let operator = [("reason", "operator")];
    wait::until_equal("the pauses that the active one heard of", 1, async || {
        active
            .metric_where("hapax_consumer_paused", &operator)
            .await
    })
    .await?;
    sqlx::raw_sql("ROLLBACK").execute(&mut other).await?;
    other.close().await?;
    subscribed(1).await?;
    deaf.until_metric("hapax_deliveries_total", 1).await?;
    proxy.silence(false);
    subscribed(0).await?;
    let told = active.cli(&["consumers", "resume", "probe"]).await?;
    ensure!(told.code == Some(0), "{told:?}");
    wait::until_equal("the committed keys", 300, async || {
        Ok(scene.store.fates().await?.committed)
    })
    .await?;
    scene.store.until_outbox_empty().await?;
    active.stop().await?;
    deaf.stop().await?;
    assert_eq!(come_out(&scene).await?["a"], in_order("a", 0..300));
    Ok(())
}

/// Hosts that compete for a queue cannot keep an order: the queue must let only one of them consume.
pub async fn needs_a_queue_with_one_active_consumer(place: &Place) -> Checked {
    let scene = Scene::sqlite(place).await?;
    let competing = strict(Consumer::probe(scene::IN)?);
    let config = scene.config("host", competing.clone());
    let ended = host::run_to_end(place, &config).await?;
    assert_eq!(ended.code, Some(64));
    for part in ["order = \"strict\"", "x-single-active-consumer"] {
        ensure!(ended.stderr.contains(part), "{part} is not told: {ended:?}");
    }
    // `declare` makes it as it has to be, for both kinds of queues.
    for kind in ["classic", "quorum"] {
        let consumer = competing
            .clone()
            .set("queue", &format!("\"own-{kind}\""))
            .set("declare", &format!("{{ type = \"{kind}\" }}"));
        let config = scene.config(kind, consumer);
        Host::start(place, &config).await?.stop().await?;
        // And finds it again.
        Host::start(place, &config).await?.stop().await?;
    }
    Ok(())
}

/// The same on the embedded broker.
pub async fn is_kept_on_the_embedded_broker(place: &Place) -> Checked {
    let store = Store::sqlite(place);
    store.execute(scene::TABLES).await?;
    let tables = r#"{ write = ["t_effects", "t_counters"] }"#;
    let consumer = strict(Consumer::probe(QUEUE)?.set("grant", tables))
        .set("max-held", "5")
        .set("batch", "4");
    let config = Config::new("host", &store.url, "embedded:").consumer(consumer);
    let mut lines = String::new();
    for number in 0..30 {
        let steps: &[Value] = match number {
            0 => &[json!({"retry_until_attempt": 3})],
            10 => &[json!({"reject": "never"})],
            _ => &[],
        };
        let body = String::from_utf8(message("a", number, steps).body)?;
        lines.push_str(&format!("{{\"body\": {body}}}\n"));
    }
    let file = place.dir.join("messages.jsonl");
    std::fs::write(&file, lines)?;
    let file = file.to_str().context("the path is not UTF-8")?;
    let config_file = config.write(&place.dir)?;
    let published = host::cli(&config_file, &["publish", "--queue", QUEUE, "--file", file]).await?;
    ensure!(published.code == Some(0), "{published:?}");

    let host = Host::launch(place, &config)?;
    let full = [("reason", "full")];
    wait::until(
        "the line behind the parked message to be full",
        wait::PATIENCE,
        async || {
            let paused = host.metric_where("hapax_consumer_paused", &full).await?;
            let parked = host.metric("hapax_parked_total").await?;
            Ok((paused == 1 && parked == 1).then_some(()))
        },
    )
    .await?;
    host.sigkill()?;
    let mut host = Host::launch(place, &config)?;
    wait::until_equal("the host to answer", 200, async || {
        Ok(host.page("/healthz").await?.0)
    })
    .await?;
    let discarded = host.cli(&["parked", "discard", "--all", "--yes"]).await?;
    ensure!(discarded.code == Some(0), "{discarded:?}");
    host.until_ready().await?;
    wait::until_equal("the committed keys", 29, async || {
        Ok(store.fates().await?.committed)
    })
    .await?;
    host.stop().await?;
    let events = "SELECT CAST(body AS TEXT) FROM hapax_message WHERE queue = \
         (SELECT id FROM hapax_queue WHERE name = 'out') GROUP BY properties ORDER BY min(sequence)";
    let mut orders = Vec::new();
    for event in store.texts(events).await? {
        let body: Value = serde_json::from_str(&event)?;
        orders.push(body["order_id"].as_str().context("no order")?.to_owned());
    }
    assert_eq!(
        orders,
        in_order("a", (0..30).filter(|number| *number != 10))
    );
    Ok(())
}

async fn held(scene: &Scene) -> anyhow::Result<i64> {
    let held = "SELECT count(*) FROM hapax_waiting WHERE status = 'held'";
    scene.store.number(held).await
}

async fn parked(scene: &Scene) -> anyhow::Result<i64> {
    let parked = "SELECT count(*) FROM hapax_waiting WHERE status = 'parked'";
    scene.store.number(parked).await
}
