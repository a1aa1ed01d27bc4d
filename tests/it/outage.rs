//! Messages cannot be worked on for long: what the broker counts against them must stay small, and nobody sits
//! on them for longer than the broker lets him.

use anyhow::ensure;
use lapin::types::{AMQPValue, FieldTable};
use sqlx::Connection;

use crate::Checked;
use crate::support::broker::Message;
use crate::support::host::{self, Consumer, Host};
use crate::support::place::Place;
use crate::support::proxy::Proxy;
use crate::support::scene::{self, Scene};
use crate::support::servers::Postgres;
use crate::support::store::Store;
use crate::support::{servers, wait};

const QUEUE: &str = "limited";
const MESSAGES: usize = 300;

/// A quorum queue that drops a message after so many deliveries that came to nothing.
async fn declare(scene: &Scene, limit: i32) -> Checked {
    let mut arguments = FieldTable::default();
    arguments.insert(
        "x-queue-type".into(),
        AMQPValue::LongString("quorum".into()),
    );
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(limit));
    scene.broker.declare_with(QUEUE, arguments).await
}

fn messages() -> Vec<Message> {
    (0..MESSAGES)
        .map(|number| scene::ordinary(&format!("{number:03}")))
        .collect()
}

fn consumer() -> anyhow::Result<Consumer> {
    Ok(Consumer::probe(QUEUE)?.set("batch", "16"))
}

async fn assert_all_applied(scene: &Scene, host: Host) -> Checked {
    host.until_metric("hapax_committed_total", 1).await?;
    scene::until_settled(&host, &scene.broker, QUEUE, &scene.store).await?;
    host.stop().await?;
    assert_eq!(scene.effects().await?.len(), MESSAGES);
    assert_eq!(scene.sent().await?.len(), MESSAGES);
    assert_eq!(scene.store.waiting().await?, [""; 0]);
    assert_eq!(scene.broker.left_over(QUEUE).await?, 0);
    Ok(())
}

/// Five starts without a database, the first one killed with its hands full: none of them costs a delivery more.
pub async fn across_five_restarts_it_loses_no_message(place: &Place) -> Checked {
    let proxy = Proxy::to(servers::postgres().await?.address()).await?;
    let scene = Scene::postgres(place).await?;
    declare(&scene, 2).await?;
    let config = scene
        .config("host", consumer()?)
        .with_store(&scene.store.url_through(proxy.address()));
    let host = Host::start(place, &config).await?;
    proxy.refuse(true);
    proxy.cut();
    scene.broker.publish(QUEUE, &messages()).await?;
    host.until_metric("hapax_deliveries_total", MESSAGES as u64)
        .await?;
    host.sigkill()?;
    for start in 0..5 {
        let ended = host::run_to_end(place, &config).await?;
        assert_eq!(ended.code, Some(69), "start {start}: {ended:?}");
    }
    scene.broker.until_left(QUEUE, MESSAGES).await?;
    proxy.refuse(false);
    let host = Host::start(place, &config).await?;
    assert_all_applied(&scene, host).await
}

/// A pause that the broker would not sit out: the messages go back once, and come again when the database does.
pub async fn longer_than_the_broker_waits_it_gives_messages_back_once(place: &Place) -> Checked {
    let proxy = Proxy::to(servers::postgres().await?.address()).await?;
    let scene = Scene::postgres(place).await?;
    declare(&scene, 2).await?;
    let config = scene
        .config("host", consumer()?)
        .with_store(&scene.store.url_through(proxy.address()))
        .broker_line("consumer-timeout = \"8s\"");
    let host = Host::start(place, &config).await?;
    proxy.refuse(true);
    proxy.cut();
    scene.broker.publish(QUEUE, &messages()).await?;
    host.until_metric("hapax_deliveries_total", 1).await?;
    scene.broker.until_left(QUEUE, MESSAGES).await?;
    let deliveries = host.metric("hapax_deliveries_total").await?;
    ensure!(
        deliveries <= MESSAGES as u64,
        "{deliveries} deliveries before the messages went back"
    );
    // It looks for the database meanwhile, and not for messages.
    let log = || std::fs::read_to_string(place.dir.join("host.log"));
    wait::until("the host to miss the store", wait::PATIENCE, async || {
        Ok(log()?
            .contains("does not subscribe before it does")
            .then_some(()))
    })
    .await?;
    assert_eq!(
        host.metric("hapax_deliveries_total").await?,
        deliveries,
        "deliveries while the database was away"
    );
    proxy.refuse(false);
    wait::until("the host to subscribe again", wait::PATIENCE, async || {
        Ok((host.metric("hapax_committed_total").await? > 0).then_some(()))
    })
    .await?;
    ensure!(
        log()?.matches("Messages given back").count() == 1,
        "the messages went to and fro"
    );
    assert_all_applied(&scene, host).await
}

/// Another transaction holds the key of one message for longer than the broker waits, while others are finished
/// all the time: their acknowledgements do not hide it.
pub async fn one_message_for_long_is_given_back_beside_busy_lanes(place: &Place) -> Checked {
    let scene = Scene::postgres(place).await?;
    declare(&scene, 100).await?;
    let config = scene
        .config("host", consumer()?)
        .store_line("lock-timeout = \"200ms\"")
        .broker_line("consumer-timeout = \"2s\"");
    let host = Host::start(place, &config).await?;
    let mut other = scene
        .store
        .hold(
            "INSERT INTO hapax_ledger (consumer, key, fate, attempts, fingerprint, plugin) \
         SELECT id, 'held', 1, 1, '', '' FROM hapax_consumer",
        )
        .await?;
    scene
        .broker
        .publish(QUEUE, &[scene::ordinary("held")])
        .await?;
    let mut others = 0;
    wait::until("the message to be given back", wait::PATIENCE, async || {
        let order = format!("{others:04}");
        let published = [scene::ordinary(&order)];
        scene.broker.publish(QUEUE, &published).await?;
        others += 1;
        let log = std::fs::read_to_string(place.dir.join("host.log"))?;
        let told = log.contains("three quarters of the broker's consumer_timeout");
        Ok(told.then_some(()))
    })
    .await?;
    sqlx::raw_sql("ROLLBACK").execute(&mut other).await?;
    other.close().await?;
    host.until_metric("hapax_committed_total", others + 1)
        .await?;
    scene::until_settled(&host, &scene.broker, QUEUE, &scene.store).await?;
    host.stop().await?;
    assert_eq!(scene.effects().await?.len() as u64, others + 1);
    Ok(())
}

/// The host lives on without one of its consumers: what that one had fetched is for others.
pub async fn a_consumer_that_is_stopped_gives_back_what_it_holds(place: &Place) -> Checked {
    let scene = Scene::postgres(place).await?;
    declare(&scene, 100).await?;
    let config = scene
        .config("host", consumer()?)
        .store_line("lock-timeout = \"200ms\"");
    let mut host = Host::start(place, &config).await?;
    // Whoever waits for its claim waits for as long as it takes.
    let mut other = scene
        .store
        .hold("LOCK TABLE hapax_ledger IN ACCESS EXCLUSIVE MODE")
        .await?;
    scene.broker.publish(QUEUE, &messages()).await?;
    host.until_metric("hapax_deliveries_total", MESSAGES as u64)
        .await?;
    let rules = "UPDATE hapax_consumer SET key_rule = ";
    let before = scene
        .store
        .texts("SELECT key_rule FROM hapax_consumer")
        .await?;
    scene.store.execute(&format!("{rules}'another'")).await?;
    scene.broker.until_left(QUEUE, MESSAGES).await?;
    ensure!(host.is_running()?, "the host has ended");
    sqlx::raw_sql("ROLLBACK").execute(&mut other).await?;
    other.close().await?;
    host.stop().await?;

    let restored = format!("{rules}'{}'", before[0].replace('\'', "''"));
    scene.store.execute(&restored).await?;
    let host = Host::start(place, &config).await?;
    assert_all_applied(&scene, host).await
}

/// A server that only reads for a while, as one that became a standby: nothing is counted and nothing is parked, however
/// often it is tried.
pub async fn that_only_reads_is_no_messages_failure(place: &Place) -> Checked {
    let server = Postgres::start("postgres-that-reads").await?;
    let scene = Scene::with(Store::postgres_on(&server).await?).await?;
    let consumer = Consumer::probe(scene::IN)?.set("lanes", "1");
    let host = Host::start(place, &scene.config("host", consumer)).await?;
    let reads_only = async |on: &str| {
        let set = format!("ALTER SYSTEM SET default_transaction_read_only = {on}");
        scene.store.execute(&set).await?;
        scene.store.execute("SELECT pg_reload_conf()").await
    };
    reads_only("on").await?;
    let refused = async || {
        let setting = "SELECT count(*) FROM pg_settings \
                       WHERE name = 'default_transaction_read_only' AND setting = 'on'";
        Ok((scene.store.number(setting).await? == 1).then_some(()))
    };
    wait::until("the server to only read", wait::PATIENCE, refused).await?;
    let orders = ["1", "2"];
    let messages: Vec<_> = orders.iter().map(|order| scene::ordinary(order)).collect();
    scene.publish(&messages).await?;
    let setbacks = async || {
        let world = [("code", "world")];
        let count = host.metric_where("hapax_setbacks_total", &world).await?;
        Ok((count >= 8).then_some(()))
    };
    wait::until("eight setbacks", wait::PATIENCE, setbacks).await?;
    reads_only("off").await?;
    host.until_metric("hapax_committed_total", 2).await?;
    assert_eq!(host.metric("hapax_failed_total").await?, 0);
    scene.finish(host).await?;
    assert_eq!(scene.sent().await?, orders);
    assert_eq!(scene.store.waiting().await?, [""; 0]);
    Ok(())
}
