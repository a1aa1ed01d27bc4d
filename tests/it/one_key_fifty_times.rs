//! One message arrives fifty times, and things happen to it.

use anyhow::ensure;
use serde_json::json;

use crate::Checked;
use crate::support::broker::Message;
use crate::support::host::Host;
use crate::support::place::Place;
use crate::support::proxy::{Commits, Proxy};
use crate::support::scene::{self, IN, Scene, insert, message, publish};
use crate::support::servers;
use crate::support::store::Fates;

const TIMES: usize = 50;

const COMMITTED: Fates = Fates {
    committed: 1,
    waiting: 0,
    parked: 0,
    discarded: 0,
    started: 0,
};
const PARKED: Fates = Fates {
    committed: 0,
    waiting: 0,
    parked: 1,
    discarded: 0,
    started: 0,
};

pub async fn in_one_batch_it_is_applied_once(place: &Place, scene: Scene) -> Checked {
    in_batches_of(place, scene, 256).await
}

pub async fn in_adjacent_batches_it_is_applied_once(place: &Place, scene: Scene) -> Checked {
    in_batches_of(place, scene, 7).await
}

async fn in_batches_of(place: &Place, scene: Scene, batch: usize) -> Checked {
    scene.publish(&vec![scene::ordinary("k"); TIMES]).await?;
    let consumer = scene.probe()?.set("batch", &batch.to_string());
    let host = Host::start(place, &scene.config("host", consumer)).await?;
    host.until_metric("hapax_duplicates_total", TIMES as u64 - 1)
        .await?;
    assert_eq!(host.metric("hapax_committed_total").await?, 1);
    scene.finish(host).await?;
    assert_applied_once(&scene).await
}

pub async fn on_two_hosts_it_is_applied_once(place: &Place) -> Checked {
    let scene = Scene::postgres(place).await?;
    let consumer = || Ok::<_, anyhow::Error>(scene.probe()?.set("prefetch", "4").set("batch", "2"));
    let first = Host::start(place, &scene.config("first", consumer()?)).await?;
    let second = Host::start(place, &scene.config("second", consumer()?)).await?;
    scene.publish(&vec![scene::ordinary("k"); TIMES]).await?;
    scene::until_settled(&first, &scene.broker, IN, &scene.store).await?;
    scene::until_settled(&second, &scene.broker, IN, &scene.store).await?;
    let mut verdicts = 0;
    for host in [&first, &second] {
        let deliveries = host.metric("hapax_deliveries_total").await?;
        ensure!(deliveries > 0, "one host got all the messages");
        verdicts += host.metric("hapax_committed_total").await?;
    }
    assert_eq!(verdicts, 1);
    first.stop().await?;
    second.stop().await?;
    assert_applied_once(&scene).await
}

pub async fn while_the_first_waits_the_others_are_duplicates(
    place: &Place,
    scene: Scene,
) -> Checked {
    let wait = json!({"retry_until_attempt": 3, "after_ms": 400});
    let failing = message("k", &[insert("k", 0), publish("k"), wait]);
    let retry = r#"{ max-attempts = 5, delay = "10ms", max-delay = "1m" }"#;
    let consumer = scene.probe()?.set("retry", retry);
    let host = Host::start(place, &scene.config("host", consumer)).await?;
    scene.publish(&vec![failing; TIMES]).await?;
    host.until_metric("hapax_duplicates_total", TIMES as u64 - 1)
        .await?;
    let rows = scene.store.count("hapax_waiting").await?;
    ensure!(rows <= 1, "one key waits in {rows} rows");
    host.until_metric("hapax_committed_total", 1).await?;
    assert_eq!(
        host.metric("hapax_failed_total").await?,
        2,
        "attempts before the third"
    );
    scene.finish(host).await?;
    assert_eq!(attempts(&scene).await?, 3);
    assert_applied_once(&scene).await
}

pub async fn when_the_first_is_parked_the_others_are_duplicates(
    place: &Place,
    scene: Scene,
) -> Checked {
    let rejected = message(
        "k",
        &[insert("k", 0), publish("k"), json!({"reject": "never"})],
    );
    scene.publish(&vec![rejected; TIMES]).await?;
    let host = Host::start(place, &scene.config("host", scene.probe()?)).await?;
    host.until_metric("hapax_duplicates_total", TIMES as u64 - 1)
        .await?;
    assert_eq!(host.metric("hapax_failed_total").await?, 1);
    scene.finish(host).await?;
    scene.assert_fates(PARKED).await?;
    assert_eq!(scene.store.waiting_keys().await?, ["k parked rejected"]);
    assert_eq!(scene.effects().await?, [""; 0]);
    assert_eq!(scene.sent().await?, [""; 0]);
    Ok(())
}

pub async fn attempts_and_backoff_are_as_promised(place: &Place, scene: Scene) -> Checked {
    let failing: Message = message("k", &[json!({"retry": "never today"})]);
    let retry = r#"{ max-attempts = 4, delay = "10ms", max-delay = "40ms" }"#;
    let consumer = scene.probe()?.set("retry", retry);
    scene.publish(&vec![failing; TIMES]).await?;
    let host = Host::start(place, &scene.config("host", consumer)).await?;
    host.until_metric("hapax_parked_total", 1).await?;
    assert_eq!(host.metric("hapax_failed_total").await?, 4);
    scene.finish(host).await?;
    scene.assert_fates(PARKED).await?;
    assert_eq!(scene.store.waiting_keys().await?, ["k parked retry"]);
    let counted = "SELECT CAST(attempts AS BIGINT) FROM hapax_waiting";
    assert_eq!(scene.store.number(counted).await?, 4);
    Ok(())
}

pub async fn losing_the_database_is_no_attempt(place: &Place) -> Checked {
    let scene = Scene::postgres(place).await?;
    let proxy = Proxy::to(servers::postgres().await?.address()).await?;
    let through = scene.store.url_through(proxy.address());
    let config = crate::support::host::Config::new("host", &through, &scene.broker.url)
        .consumer(scene.probe()?.set("lanes", "1"));
    let host = Host::start(place, &config).await?;
    // A third one would count: a message that alone loses its connection three times, while the database
    // answers in between, is taken for the cause.
    proxy.commits(Commits::CutBefore { times: 2 });
    let echo = json!({"echo_context": "out"});
    let steps = [insert("k", 0), echo];
    scene.publish(&vec![message("k", &steps); TIMES]).await?;
    proxy
        .until("two commits to be cut", |tally| tally.cut_before == 2)
        .await?;
    scene.finish(host).await?;
    scene.assert_fates(COMMITTED).await?;
    assert_eq!(scene.store.waiting().await?, [""; 0]);
    assert_eq!(scene.effects().await?, ["k/0"]);
    let sent = scene.broker.drain(scene::OUT).await?;
    ensure!(!sent.is_empty(), "nothing was sent");
    for message in &sent {
        assert_eq!(message.json()?["attempt"], 1);
        assert_eq!(message.message_id()?, sent[0].message_id()?);
    }
    Ok(())
}

async fn attempts(scene: &Scene) -> anyhow::Result<i64> {
    let sql = "SELECT CAST(attempts AS BIGINT) FROM hapax_ledger";
    scene.store.number(sql).await
}

async fn assert_applied_once(scene: &Scene) -> Checked {
    scene.assert_fates(COMMITTED).await?;
    assert_eq!(scene.store.waiting().await?, [""; 0]);
    assert_eq!(scene.effects().await?, ["k/0"]);
    assert_eq!(scene.sent().await?, ["k"]);
    Ok(())
}
