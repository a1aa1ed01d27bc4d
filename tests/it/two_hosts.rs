//! Two hosts on one database, and one of them in trouble or in the other's way. Their queues are those that they
//! declare themselves.

use anyhow::ensure;
use hapax::failpoint::Point;
use serde_json::json;

use crate::Checked;
use crate::support::declared::Declared;
use crate::support::host::{Config, Consumer, Host};
use crate::support::orders::{self, Orders};
use crate::support::place::Place;
use crate::support::proxy::{Commits, Proxy};
use crate::support::scene::{self, IN, OUT, Scene, message};
use crate::support::store::{Kind, Store};
use crate::support::{servers, wait};

/// A server on which transactions are serializable unless somebody says otherwise: the host says otherwise.
pub async fn apply_each_order_once_where_transactions_are_serializable(place: &Place) -> Checked {
    let store = Store::postgres().await?;
    let Kind::Postgres { database, .. } = &store.kind else {
        unreachable!("it was just made")
    };
    store
        .execute(&format!(
            "ALTER DATABASE {database} SET default_transaction_isolation = 'serializable'"
        ))
        .await?;
    let broker = servers::rabbit().await?.create_vhost().await?;
    let orders = Orders::generate(&mut place.random(), 2_000, 6_000);
    orders::create_tables(&store).await?;
    broker.declare(&[orders::OUTPUT]).await?;
    let consumer = || {
        let points = Consumer::points()?.set("prefetch", "64");
        Ok::<_, anyhow::Error>(Declared::CLASSIC.by(points))
    };
    let configs =
        ["first", "second"].map(|label| (label, Config::new(label, &store.url, &broker.url)));
    let mut hosts = Vec::new();
    for (_, config) in configs {
        hosts.push(Host::start(place, &config.consumer(consumer()?)).await?);
    }
    broker.publish(orders::QUEUE, &orders.messages).await?;
    wait::until_equal("the committed keys", 2_000, async || {
        Ok(store.fates().await?.committed)
    })
    .await?;
    for host in &hosts {
        scene::until_settled(host, &broker, orders::QUEUE, &store).await?;
        ensure!(
            host.metric("hapax_committed_total").await? > 0,
            "one host did nothing"
        );
    }
    for host in hosts {
        host.stop().await?;
    }
    orders::assert_exactly_once(&orders, &store, &broker).await
}

/// A message with an ordering key.
fn ordered(order: &str) -> crate::support::broker::Message {
    let send = json!({"publish": {
        "target": "out", "ordering_key": "account", "body": {"order_id": order},
    }});
    message(order, &[send])
}

/// One host dies between its commit and its publish; the other one, which has a later message of the same
/// ordering key, waits, and sends both in their order.
pub async fn keep_the_order_of_a_key_when_one_dies_before_it_publishes(place: &Place) -> Checked {
    let scene = Scene::declared(place, Declared::QUORUM).await?;
    scene.broker.declare(&["other"]).await?;
    let first = scene.config("first", scene.probe()?);
    let consumer = Consumer::probe("other")?.set("name", "\"other\"");
    let second = Host::start(place, &scene.config("second", consumer)).await?;
    let frozen = Host::launch_armed(place, &first, Some("before-publish=stop"))?;
    scene.publish(&[ordered("1")]).await?;
    frozen.until_frozen().await?;
    scene.broker.publish("other", &[ordered("2")]).await?;
    second.until_metric("hapax_committed_total", 1).await?;
    // The one that is frozen is not dead: its row is its own, and nothing may overtake it.
    // It is tried, and put back for later.
    let put_back = "SELECT count(*) FROM hapax_outbox WHERE due_at IS NOT NULL";
    wait::until_equal("the rows that have been put back", 1, async || {
        scene.store.number(put_back).await
    })
    .await?;
    assert_eq!(scene.broker.depth(OUT).await?.ready, 0);
    frozen.sigkill()?;
    let mut received = Vec::new();
    for message in scene.broker.receive(OUT, 2).await? {
        received.push(message.json()?["order_id"].as_str().map(str::to_owned));
    }
    assert_eq!(received, [Some("1".to_owned()), Some("2".to_owned())]);
    second.stop().await
}

/// An idle transaction lives as long as a statement and twelve messages may take.
fn impatient(scene: &Scene, wall: &str) -> anyhow::Result<Consumer> {
    let limits = format!("{{ wall = \"{wall}\" }}");
    Ok(scene.probe()?.set("lanes", "1").set("limits", &limits))
}

fn impatient_store(config: Config) -> Config {
    config
        .store_line("statement-timeout = \"1s\"")
        .store_line("lock-timeout = \"200ms\"")
}

/// A host stops in the middle of a transaction and keeps its claims: others wait for that key alone, and only
/// as long as the server lets an idle transaction live.
pub async fn do_not_wait_for_one_that_hangs(place: &Place) -> Checked {
    let scene = Scene::declared(place, Declared::CLASSIC).await?;
    let config = |label: &str| {
        // Twenty seconds: by then the others are long done.
        let consumer = impatient(&scene, "1500ms")?.set("prefetch", "8");
        Ok::<_, anyhow::Error>(impatient_store(scene.config(label, consumer)))
    };
    let hanging = Host::launch_armed(place, &config("hanging")?, Some("after-claim=stop"))?;
    scene.publish(&[scene::ordinary("k")]).await?;
    hanging.until_frozen().await?;
    let host = Host::start(place, &config("host")?).await?;
    // The broker deals them out in turn, and the one that hangs keeps what it is given.
    let mut messages = vec![scene::ordinary("k"); 4];
    messages.extend((0..40).map(|number| scene::ordinary(&format!("{number:02}"))));
    scene.publish(&messages).await?;
    host.until_metric("hapax_committed_total", 30).await?;
    scene::until_claim_is_met(&host).await?;
    let key = "SELECT count(*) FROM hapax_ledger WHERE key = convert_to('k', 'UTF8')";
    assert_eq!(scene.store.number(key).await?, 0);
    wait::until(
        "the hanging transaction to be ended",
        wait::PATIENCE,
        async || Ok((scene.store.number(key).await? == 1).then_some(())),
    )
    .await?;
    hanging.sigkill()?;
    scene::until_settled(&host, &scene.broker, IN, &scene.store).await?;
    host.stop().await?;
    assert_eq!(scene.effects().await?.len(), 41);
    assert_eq!(scene.sent().await?.len(), 41);
    Ok(())
}

/// A host is cut off from broker and database in the middle of a transaction, and nobody closes anything: the broker
/// misses its heartbeats and gives its message to another host, which waits for the claim no longer than the
/// server lets an idle transaction live.
pub async fn do_not_wait_for_one_that_is_cut_off(place: &Place) -> Checked {
    let scene = Scene::declared(place, Declared::QUORUM).await?;
    let to_database = Proxy::to(servers::postgres().await?.address()).await?;
    let to_broker = Proxy::to(servers::rabbit().await?.address()).await?;
    let config = |label: &str, store: &str, broker: &str| {
        let config = Config::new(label, store, broker).broker_line("heartbeat = \"1s\"");
        Ok::<_, anyhow::Error>(impatient_store(config).consumer(impatient(&scene, "500ms")?))
    };
    let through = scene.store.url_through(to_database.address());
    let broker = scene.broker.url_through(to_broker.address());
    let cut_off = Host::start(place, &config("cut-off", &through, &broker)?).await?;
    to_database.commits(Commits::Hold);
    scene.publish(&[scene::ordinary("k")]).await?;
    let open = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' \
                AND application_name = 'hapax probe 0' AND backend_xid IS NOT NULL AND datname = current_database()";
    wait::until_equal("the open transaction", 1, async || {
        scene.store.number(open).await
    })
    .await?;
    to_database.silence(true);
    to_broker.silence(true);

    let host = Host::start(place, &config("host", &scene.store.url, &scene.broker.url)?).await?;
    host.until_metric("hapax_committed_total", 1).await?;
    assert_eq!(scene.effects().await?, ["k/0"]);

    // What comes back finds its transaction ended, and its message dealt with.
    to_database.commits(Commits::Pass);
    to_database.silence(false);
    to_broker.silence(false);
    scene::until_settled(&host, &scene.broker, IN, &scene.store).await?;
    cut_off.stop().await?;
    scene.finish(host).await?;
    assert_eq!(scene.effects().await?, ["k/0"]);
    assert_eq!(scene.sent().await?, ["k"]);
    Ok(())
}

/// A host is killed in the middle of a transaction: the server notices at once and the other host goes on.
pub async fn do_not_wait_for_one_that_was_killed(place: &Place, scene: Scene) -> Checked {
    let config =
        |label: &str| Ok::<_, anyhow::Error>(scene.config(label, scene.probe()?.set("lanes", "1")));
    let killed = Host::launch_armed(place, &config("killed")?, Some("after-claim=kill"))?;
    scene.publish(&[scene::ordinary("k")]).await?;
    killed.until_killed_at(Point::AfterClaim).await?;
    let host = Host::start(place, &config("host")?).await?;
    host.until_metric("hapax_committed_total", 1).await?;
    scene.finish(host).await?;
    assert_eq!(scene.effects().await?, ["k/0"]);
    assert_eq!(scene.sent().await?, ["k"]);
    Ok(())
}

/// Each message adds one to one number in the state; whatever the lanes do to each other, none is lost.
pub async fn lose_no_increment_of_one_state_key(place: &Place) -> Checked {
    let scene = Scene::declared(place, Declared::QUORUM).await?;
    let hosts = increments(place, &scene, &["first", "second"]).await?;
    for host in hosts {
        host.stop().await?;
    }
    assert_eq!(counted(&scene).await?, INCREMENTS.to_string());
    Ok(())
}

const INCREMENTS: usize = 10_000;

async fn increments(place: &Place, scene: &Scene, labels: &[&str]) -> anyhow::Result<Vec<Host>> {
    let messages: Vec<_> = (0..INCREMENTS)
        .map(|number| message(&number.to_string(), &[json!({"state_increment": "n"})]))
        .collect();
    scene.publish(&messages).await?;
    let lanes = if scene.store.is_postgres() { "2" } else { "1" };
    let mut hosts = Vec::new();
    for label in labels {
        let consumer = scene.probe()?.set("lanes", lanes).set("prefetch", "256");
        hosts.push(Host::start(place, &scene.config(label, consumer)).await?);
    }
    wait::until_equal("the committed keys", INCREMENTS as i64, async || {
        Ok(scene.store.fates().await?.committed)
    })
    .await?;
    Ok(hosts)
}

async fn counted(scene: &Scene) -> anyhow::Result<String> {
    let values = scene.store.bytes("SELECT value FROM hapax_state").await?;
    ensure!(values.len() == 1, "{} keys", values.len());
    Ok(String::from_utf8(values[0].clone())?)
}

/// One SQLite file, and everybody at it: lane, relay, sweep, the operator's commands.
pub async fn share_a_sqlite_file_between_lane_relay_sweep_and_commands(place: &Place) -> Checked {
    let scene = Scene::sqlite(place).await?;
    let messages: Vec<_> = (0..4_000)
        .map(|number| {
            let order = format!("{number:04}");
            let mut steps = vec![json!({"state_increment": "n"}), scene::publish(&order)];
            if number % 100 == 7 {
                steps.push(json!({"reject": "no"}));
            }
            message(&order, &steps)
        })
        .collect();
    scene.publish(&messages).await?;
    let consumer = scene
        .probe()?
        .set("retention", "\"1s\"")
        .set("brake", "\"off\"");
    let config = scene.config("host", consumer);
    let host = Host::start(place, &config).await?;
    let mut asked = 0;
    let mut swept = 0;
    while swept == 0 || host.metric("hapax_committed_total").await? < 3_960 {
        for command in [&["status", "--json"][..], &["parked", "list", "--json"]] {
            let answer = host.cli(command).await?;
            ensure!(answer.code == Some(0), "{answer:?}");
            asked += 1;
        }
        swept = host.metric("hapax_swept_total").await?;
        ensure!(asked < 10_000, "it takes too long");
    }
    let discarded = host.cli(&["parked", "discard", "--all", "--yes"]).await?;
    ensure!(discarded.code == Some(0), "{discarded:?}");
    scene.finish(host).await?;
    assert_eq!(counted(&scene).await?, "3960");
    assert_eq!(scene.sent().await?.len(), 3_960);
    assert_eq!(scene.store.waiting().await?, [""; 0]);
    Ok(())
}

pub async fn a_message_that_kills_the_host_is_parked_alone_on_sqlite(place: &Place) -> Checked {
    let scene = on_sqlite(place).await?;
    a_message_that_kills_the_host_is_parked_alone(place, scene).await
}

pub async fn a_message_without_a_key_that_kills_the_host_is_parked_on_sqlite(
    place: &Place,
) -> Checked {
    let scene = on_sqlite(place).await?;
    a_message_without_a_key_that_kills_the_host_is_parked(place, scene).await
}

async fn on_sqlite(place: &Place) -> anyhow::Result<Scene> {
    Scene::declared_on(Store::sqlite(place), place, Declared::QUORUM).await
}

/// A message that takes the host down with it, in the middle of 1,024: it alone is parked.
pub async fn a_message_that_kills_the_host_is_parked_alone(place: &Place, scene: Scene) -> Checked {
    const POISON: usize = 500;
    let messages: Vec<_> = (0..1_024)
        .map(|number| scene::ordinary(&format!("{number:04}")))
        .collect();
    let consumer = scene.probe()?.set(
        "retry",
        r#"{ max-attempts = 2, delay = "10ms", max-delay = "10ms" }"#,
    );
    let config = scene.config("host", consumer);
    // The queue is full before the host begins, so that the message stands in a full batch.
    scene.publish(&messages).await?;
    let order = format!("mid-handler@key={POISON:04}=kill");
    let mut deaths = 0;
    let host = loop {
        let mut host = Host::launch_armed(place, &config, Some(&order))?;
        let died = wait::until("the host to die or to finish", wait::PATIENCE, async || {
            if !host.is_running()? {
                return Ok(Some(true));
            }
            Ok((host.metric("hapax_parked_total").await? > 0).then_some(false))
        })
        .await?;
        match died {
            true => deaths += 1,
            false => break host,
        }
        ensure!(deaths < 10, "the message is never parked");
    };
    scene.finish(host).await?;
    // In its batch once, and alone as often as it may: max-attempts and one.
    assert_eq!(deaths, 4);
    let parked = format!("{POISON:04} parked crash-loop");
    assert_eq!(scene.store.waiting_keys().await?, [parked]);
    let effects = scene.effects().await?;
    assert_eq!(effects.len(), 1_023);
    ensure!(
        !effects.contains(&format!("{POISON:04}/0")),
        "it was applied"
    );
    assert_eq!(scene.sent().await?.len(), 1_023);
    Ok(())
}

/// Messages that take their time, in other lanes than one that takes the host down again and again: a crash
/// accuses them too, and they are never parked for it.
pub async fn slow_neighbours_of_a_message_that_kills_the_host_are_not_parked(
    place: &Place,
    scene: Scene,
) -> Checked {
    let nap = serde_json::json!({"query": ["SELECT pg_sleep(0.5)", []]});
    let slow = |order: &str| {
        scene::message(
            order,
            &[nap.clone(), scene::insert(order, 0), scene::publish(order)],
        )
    };
    let innocents = ["a", "b", "c", "d", "e", "f"];
    let mut messages: Vec<_> = innocents.iter().map(|order| slow(order)).collect();
    messages.push(scene::ordinary("poison"));
    let consumer = scene
        .probe()?
        .set(
            "grant",
            r#"{ write = ["t_effects"], functions = ["pg_sleep"] }"#,
        )
        .set("lanes", "8")
        .set("batch", "1")
        .set(
            "retry",
            r#"{ max-attempts = 1, delay = "10ms", max-delay = "10ms" }"#,
        );
    let config = scene.config("host", consumer);
    scene.publish(&messages).await?;
    let host = until_parked(place, &config, "mid-handler@key=poison=kill").await?;
    scene.finish(host).await?;
    assert_eq!(
        scene.store.waiting_keys().await?,
        ["poison parked crash-loop"]
    );
    assert_eq!(scene.sent().await?, innocents);
    Ok(())
}

/// A message without a key is found out as well: it runs from the table.
pub async fn a_message_without_a_key_that_kills_the_host_is_parked(
    place: &Place,
    scene: Scene,
) -> Checked {
    let consumer = scene.probe()?.set("idempotency", "\"off\"").set(
        "retry",
        r#"{ max-attempts = 1, delay = "10ms", max-delay = "10ms" }"#,
    );
    let config = scene.config("host", consumer);
    scene.publish(&[scene::ordinary("poison")]).await?;
    let host = until_parked(place, &config, "mid-handler=kill").await?;
    scene.finish(host).await?;
    assert_eq!(scene.store.waiting().await?, ["parked crash-loop"]);
    // Those that were delivered again beside such a message only take the way through the table.
    let orders = ["1", "2", "3"];
    let messages: Vec<_> = orders.iter().map(|order| scene::ordinary(order)).collect();
    scene.publish(&messages).await?;
    let host = Host::launch_armed(place, &config, Some("after-claim=kill"))?;
    host.until_killed_at(hapax::failpoint::Point::AfterClaim)
        .await?;
    let host = Host::start(place, &config).await?;
    scene.finish(host).await?;
    assert_eq!(scene.store.waiting().await?, ["parked crash-loop"]);
    assert_eq!(scene.sent().await?, orders);
    assert_eq!(scene.effects().await?, ["1/0", "2/0", "3/0"]);
    Ok(())
}

/// Starts the host again until it has parked a message. How often it dies is bounded.
async fn until_parked(place: &Place, config: &Config, order: &str) -> anyhow::Result<Host> {
    for _ in 0..10 {
        let mut host = Host::launch_armed(place, config, Some(order))?;
        let died = wait::until("the host to die or to park", wait::PATIENCE, async || {
            if !host.is_running()? {
                return Ok(Some(true));
            }
            Ok((host.metric("hapax_parked_total").await? > 0).then_some(false))
        })
        .await?;
        if !died {
            return Ok(host);
        }
    }
    anyhow::bail!("the message is never parked")
}
