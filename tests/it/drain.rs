//! The host is asked to stop in the middle of its work.

use anyhow::ensure;
use hapax::failpoint::Point;

use crate::Checked;
use crate::support::host::{Config, Consumer, Host};
use crate::support::orders::{self, Orders};
use crate::support::place::Place;
use crate::support::scene::{self, IN, Scene, message};
use crate::support::store::Store;
use crate::support::{servers, wait};

const ORDERS: usize = 10_000;
const DUPLICATES: usize = 2_500;

/// A rolling restart: each life ends with exit code 0, and nothing is lost or doubled.
pub async fn with_sigterm_under_load_every_life_ends_well(place: &Place) -> Checked {
    let mut random = place.random();
    let store = Store::postgres().await?;
    let broker = servers::rabbit().await?.create_vhost().await?;
    let orders = Orders::generate(&mut random, ORDERS, DUPLICATES);
    orders::create_tables(&store).await?;
    broker.declare(&[orders::QUEUE, orders::OUTPUT]).await?;
    broker.publish(orders::QUEUE, &orders.messages).await?;
    let config = Config::new("host", &store.url, &broker.url).consumer(Consumer::points()?);
    for life in 0..3 {
        // It is asked in the middle: stopped with its n-th delivery, it finds the signal when it goes on.
        let order = format!("{}@{}=stop", Point::AfterKey, random.u64(300..3_000));
        let mut host = Host::launch_armed(place, &config, Some(&order))?;
        host.until_frozen().await?;
        host.sigterm()?;
        host.thaw()?;
        assert_eq!(host.exit_code().await?, 0);
        let unsent = store.count("hapax_outbox").await?;
        ensure!(
            unsent == 0,
            "life {life} left {unsent} messages in the outbox"
        );
        ensure!(
            broker.left_over(orders::QUEUE).await? > 0,
            "life {life} lasted too long"
        );
    }
    let host = Host::start(place, &config).await?;
    scene::until_settled(&host, &broker, orders::QUEUE, &store).await?;
    host.stop().await?;
    orders::assert_exactly_once(&orders, &store, &broker).await
}

/// A second signal does not wait for a handler that hangs. The message is still there.
pub async fn a_second_signal_ends_it_at_once_and_loses_nothing(place: &Place) -> Checked {
    let scene = Scene::postgres(place).await?;
    // Longer than this test waits for anything, and so is the drain.
    let mut host = hanging(place, &scene, "shutdown-timeout = \"10m\"").await?;
    host.sigterm()?;
    host.until_says("Draining").await?;
    ensure!(
        host.is_running()?,
        "the first signal did not wait for the handler"
    );
    host.sigterm()?;
    assert_eq!(host.exit_code().await?, 1);
    scene.broker.until_left(IN, 1).await?;
    assert_eq!(scene.effects().await?, [""; 0]);
    Ok(())
}

/// A handler that takes longer than the drain may: the host leaves with exit code 1, and loses nothing.
pub async fn a_drain_that_takes_too_long_is_given_up(place: &Place) -> Checked {
    let scene = Scene::postgres(place).await?;
    let mut host = hanging(place, &scene, "shutdown-timeout = \"300ms\"").await?;
    host.sigterm()?;
    assert_eq!(host.exit_code().await?, 1);
    scene.broker.until_left(IN, 1).await?;
    assert_eq!(scene.effects().await?, [""; 0]);
    Ok(())
}

/// A message that was redelivered, and takes longer than any drain: the host is what ends it, by its timeout or at a
/// second signal, and no start stays on record.
pub async fn what_it_gives_up_is_held_against_no_message(place: &Place) -> Checked {
    let scene = Scene::postgres(place).await?;
    let hang = serde_json::json!({"query": ["SELECT pg_sleep(25)", []]});
    let grant = r#"{ write = ["t_effects"], functions = ["pg_sleep"] }"#;
    let consumer = scene
        .probe()?
        .set("grant", grant)
        .set("limits", r#"{ wall = "60s" }"#);
    let config = |shutdown: &str| {
        scene
            .config("host", consumer.clone())
            .store_line("statement-timeout = \"60s\"")
            .host_line(&format!("shutdown-timeout = \"{shutdown}\""))
    };
    scene
        .publish(&[message("k", &[scene::insert("k", 0), hang])])
        .await?;
    let asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' \
                  AND datname = current_database()";
    let falls_asleep = async || {
        wait::until_equal("handlers that hang", 1, async || {
            scene.store.number(asleep).await
        })
        .await
    };
    let host = Host::start(place, &config("60s")).await?;
    falls_asleep().await?;
    host.sigkill()?;
    let drains = || {
        let log = std::fs::read_to_string(place.dir.join("host.log"));
        Ok(log?.matches("Draining").count())
    };
    for (life, (shutdown, signals)) in [("300ms", 1), ("60s", 2)].into_iter().enumerate() {
        let mut host = Host::start(place, &config(shutdown)).await?;
        let started = "SELECT count(*) FROM hapax_ledger WHERE fate = 5";
        wait::until_equal("starts on record", 1, async || {
            scene.store.number(started).await
        })
        .await?;
        falls_asleep().await?;
        for _ in 0..signals {
            host.sigterm()?;
            wait::until_equal("drains", life + 1, async || drains()).await?;
        }
        assert_eq!(host.exit_code().await?, 1);
        assert_eq!(scene.store.count("hapax_ledger").await?, 0, "{shutdown}");
        scene.broker.until_left(IN, 1).await?;
    }
    assert_eq!(scene.effects().await?, [""; 0]);
    Ok(())
}

/// A host with one message, whose handler hangs in the database.
async fn hanging(place: &Place, scene: &Scene, host_line: &str) -> anyhow::Result<Host> {
    let hang = serde_json::json!({"query": ["SELECT pg_sleep(600)", []]});
    let grant = r#"{ write = ["t_effects"], functions = ["pg_sleep"] }"#;
    let consumer = scene
        .probe()?
        .set("grant", grant)
        .set("limits", r#"{ wall = "10m" }"#);
    let config = scene
        .config("host", consumer)
        .store_line("statement-timeout = \"10m\"")
        .host_line(host_line);
    let host = Host::start(place, &config).await?;
    scene
        .publish(&[message("k", &[scene::insert("k", 0), hang])])
        .await?;
    let asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' \
                  AND datname = current_database()";
    wait::until_equal("handlers that hang", 1, async || {
        scene.store.number(asleep).await
    })
    .await?;
    Ok(host)
}

/// What a host has fetched and not begun goes back to the queue.
pub async fn what_was_only_fetched_goes_back(place: &Place, scene: Scene) -> Checked {
    let messages: Vec<_> = (0..2_000)
        .map(|number| scene::ordinary(&number.to_string()))
        .collect();
    let config = scene.config("host", scene.probe()?.set("batch", "8"));
    let host = Host::start(place, &config).await?;
    scene.publish(&messages).await?;
    host.until_metric("hapax_committed_total", 1).await?;
    host.stop().await?;
    let committed = scene.store.fates().await?.committed;
    let left = 2_000 - usize::try_from(committed)?;
    scene.broker.until_left(IN, left).await?;
    assert_eq!(i64::try_from(scene.sent().await?.len())?, committed);
    Ok(())
}
