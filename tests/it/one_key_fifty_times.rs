//! One message arrives fifty times, and things happen to it.

use anyhow::ensure;
use serde_json::{Value, json};

use crate::Checked;
use crate::support::broker::Message;
use crate::support::host::{Config, Consumer, Host};
use crate::support::place::Place;
use crate::support::proxy::{Commits, Proxy};
use crate::support::scene::{self, IN, Scene, insert, message, publish};
use crate::support::store::Fates;
use crate::support::{servers, wait};

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
    let hosts = two_hosts(place, &scene, &a_few_at_a_time(&scene)?).await?;
    scene.publish(&vec![scene::ordinary("k"); TIMES]).await?;
    finish(&scene, &hosts).await?;
    assert_eq!(sum(&hosts, "hapax_committed_total").await?, 1);
    stop(&scene, hosts).await?;
    assert_applied_once(&scene).await
}

/// One row waits, for as long as the consumer allows and no longer, whichever host has the copies; and whichever
/// host runs it, it is the next attempt.
pub async fn on_two_hosts_while_the_first_waits_the_others_are_duplicates(
    place: &Place,
) -> Checked {
    let scene = Scene::postgres(place).await?;
    let retry = r#"{ max-attempts = 5, delay = "10ms", max-delay = "1h" }"#;
    let consumer = a_few_at_a_time(&scene)?.set("retry", retry);
    let hosts = two_hosts(place, &scene, &consumer).await?;
    let wait = json!({"retry_until_attempt": 3, "after_ms": 2 * 3_600_000});
    let failing = message("k", &[insert("k", 0), publish("k"), wait]);
    scene.publish(&vec![failing; TIMES]).await?;
    until_sum(&hosts, "hapax_duplicates_total", TIMES as u64 - 1).await?;
    for attempt in 1..=2 {
        until_sum(&hosts, "hapax_failed_total", attempt).await?;
        assert_eq!(scene.store.waiting_keys().await?, ["k retry retry"]);
        assert_eq!(attempts_of_waiting(&scene).await?, attempt as i64);
        let delay =
            "SELECT round(extract(epoch FROM due_at - failed_at))::bigint FROM hapax_waiting";
        assert_eq!(scene.store.number(delay).await?, 3_600);
        make_due(&scene).await?;
    }
    until_sum(&hosts, "hapax_committed_total", 1).await?;
    finish(&scene, &hosts).await?;
    assert_counted(&hosts, &[("committed", 1), ("failed", 2), ("retried", 2)]).await?;
    stop(&scene, hosts).await?;
    assert_eq!(attempts(&scene).await?, 3);
    assert_applied_once(&scene).await
}

pub async fn on_two_hosts_when_the_first_is_parked_the_others_are_duplicates(
    place: &Place,
) -> Checked {
    parked_on_two_hosts(place, json!({"reject": "never"}), "rejected", 1).await
}

/// Both hosts together run it as often as one alone would.
pub async fn on_two_hosts_attempts_are_as_promised(place: &Place) -> Checked {
    parked_on_two_hosts(place, json!({"retry": "never today"}), "retry", 4).await
}

async fn parked_on_two_hosts(place: &Place, failure: Value, code: &str, times: u64) -> Checked {
    let scene = Scene::postgres(place).await?;
    let retry = r#"{ max-attempts = 4, delay = "10ms", max-delay = "40ms" }"#;
    let consumer = a_few_at_a_time(&scene)?.set("retry", retry);
    let hosts = two_hosts(place, &scene, &consumer).await?;
    let failing = message("k", &[insert("k", 0), publish("k"), failure]);
    scene.publish(&vec![failing; TIMES]).await?;
    until_sum(&hosts, "hapax_parked_total", 1).await?;
    finish(&scene, &hosts).await?;
    let others = TIMES as u64 - 1;
    assert_counted(
        &hosts,
        &[("failed", times), ("parked", 1), ("duplicates", others)],
    )
    .await?;
    stop(&scene, hosts).await?;
    assert_eq!(attempts_of_waiting(&scene).await?, times as i64);
    assert_parked(&scene, code).await
}

/// The host with the first copy loses its database while it commits: its claim is free at once, and the other host, which
/// has met it, runs a copy as the first attempt. What the first host holds it keeps, and finds to be duplicates when it is
/// back.
pub async fn on_two_hosts_losing_the_database_of_one_is_no_attempt(place: &Place) -> Checked {
    let scene = Scene::postgres(place).await?;
    let (proxy, [first, second]) = one_behind_a_proxy(&scene, a_few_at_a_time(&scene)?).await?;
    let first = Host::start(place, &first).await?;
    proxy.commits(Commits::Hold);
    let copy = message("k", &[insert("k", 0), json!({"echo_context": "out"})]);
    scene.publish(std::slice::from_ref(&copy)).await?;
    proxy.until_holds("hapax probe", 1).await?;

    let second = Host::start(place, &second).await?;
    scene.publish(&vec![copy; TIMES - 1]).await?;
    scene::until_claim_is_met(&second).await?;
    assert_eq!(second.metric("hapax_committed_total").await?, 0);
    proxy.refuse(true);
    second.until_metric("hapax_committed_total", 1).await?;
    proxy.commits(Commits::Pass);
    proxy.refuse(false);

    let hosts = [first, second];
    until_sum(&hosts, "hapax_duplicates_total", TIMES as u64 - 1).await?;
    finish(&scene, &hosts).await?;
    assert_counted(
        &hosts,
        &[("committed", 1), ("failed", 0), ("redeliveries", 0)],
    )
    .await?;
    stop(&scene, hosts).await?;
    assert_applied_at_attempt(&scene, 1).await
}

/// The same while it runs the waiting row: the other host makes the second attempt of it, and there is no third.
pub async fn on_two_hosts_losing_the_database_in_a_retry_is_no_attempt(place: &Place) -> Checked {
    let scene = Scene::postgres(place).await?;
    let retry = r#"{ max-attempts = 2, delay = "10ms", max-delay = "1h" }"#;
    let consumer = a_few_at_a_time(&scene)?.set("retry", retry);
    let (proxy, [first, second]) = one_behind_a_proxy(&scene, consumer).await?;
    let first = Host::start(place, &first).await?;
    let wait = json!({"retry_until_attempt": 2, "after_ms": 3_600_000});
    let copy = message("k", &[insert("k", 0), json!({"echo_context": "out"}), wait]);
    scene.publish(std::slice::from_ref(&copy)).await?;
    first.until_metric("hapax_failed_total", 1).await?;
    proxy.commits(Commits::Hold);
    make_due(&scene).await?;
    proxy.until_holds("hapax probe", 1).await?;

    let second = Host::start(place, &second).await?;
    scene.publish(&vec![copy; TIMES - 1]).await?;
    scene::until_claim_is_met(&second).await?;
    assert_eq!(scene.store.waiting_keys().await?, ["k retry retry"]);
    proxy.refuse(true);
    second.until_metric("hapax_committed_total", 1).await?;
    proxy.commits(Commits::Pass);
    proxy.refuse(false);

    let hosts = [first, second];
    until_sum(&hosts, "hapax_duplicates_total", TIMES as u64 - 1).await?;
    finish(&scene, &hosts).await?;
    let counted = [("committed", 1), ("failed", 1), ("redeliveries", 0)];
    assert_counted(&hosts, &counted).await?;
    stop(&scene, hosts).await?;
    assert_applied_at_attempt(&scene, 2).await
}

/// Two hosts on one database. The first one gets there through a proxy.
async fn one_behind_a_proxy(
    scene: &Scene,
    consumer: Consumer,
) -> anyhow::Result<(Proxy, [Config; 2])> {
    let proxy = Proxy::to(servers::postgres().await?.address()).await?;
    let through = scene.store.url_through(proxy.address());
    let config = |label: &str, store: &str| {
        Config::new(label, store, &scene.broker.url)
            .store_line("lock-timeout = \"200ms\"")
            .consumer(consumer.clone())
    };
    let configs = [
        config("first", &through),
        config("second", &scene.store.url),
    ];
    Ok((proxy, configs))
}

/// So that nobody has to wait for an hour to pass.
async fn make_due(scene: &Scene) -> Checked {
    let due = "UPDATE hapax_waiting SET due_at = now()";
    scene.store.execute(due).await
}

/// So that one host does not get all copies.
fn a_few_at_a_time(scene: &Scene) -> anyhow::Result<Consumer> {
    Ok(scene.probe()?.set("prefetch", "4").set("batch", "2"))
}

async fn two_hosts(place: &Place, scene: &Scene, consumer: &Consumer) -> anyhow::Result<[Host; 2]> {
    let start = async |label: &str| {
        let config = scene.config(label, consumer.clone());
        Host::start(place, &config).await
    };
    Ok([start("first").await?, start("second").await?])
}

/// What both hosts have counted together.
async fn sum(hosts: &[Host; 2], name: &str) -> anyhow::Result<u64> {
    let [first, second] = hosts;
    Ok(first.metric(name).await? + second.metric(name).await?)
}

async fn assert_counted(hosts: &[Host; 2], expected: &[(&str, u64)]) -> Checked {
    for (name, count) in expected {
        let counted = sum(hosts, &format!("hapax_{name}_total")).await?;
        assert_eq!(counted, *count, "{name}");
    }
    Ok(())
}

async fn until_sum(hosts: &[Host; 2], name: &str, expected: u64) -> Checked {
    wait::until_equal(name, expected, async || sum(hosts, name).await).await
}

/// Waits until both hosts have dealt with everything. Each of them had some.
async fn finish(scene: &Scene, hosts: &[Host; 2]) -> Checked {
    for host in hosts {
        scene::until_settled(host, &scene.broker, IN, &scene.store).await?;
    }
    for host in hosts {
        let deliveries = host.metric("hapax_deliveries_total").await?;
        ensure!(deliveries > 0, "one host got all the messages");
    }
    Ok(())
}

async fn stop(scene: &Scene, hosts: [Host; 2]) -> Checked {
    for host in hosts {
        host.stop().await?;
    }
    assert_eq!(scene.broker.left_over(IN).await?, 0);
    Ok(())
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
    assert_parked(&scene, "rejected").await
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
    assert_eq!(attempts_of_waiting(&scene).await?, 4);
    assert_parked(&scene, "retry").await
}

pub async fn losing_the_database_is_no_attempt(place: &Place) -> Checked {
    let scene = Scene::postgres(place).await?;
    let proxy = Proxy::to(servers::postgres().await?.address()).await?;
    let through = scene.store.url_through(proxy.address());
    let config =
        Config::new("host", &through, &scene.broker.url).consumer(scene.probe()?.set("lanes", "1"));
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
    assert_applied_at_attempt(&scene, 1).await
}

async fn attempts(scene: &Scene) -> anyhow::Result<i64> {
    let sql = "SELECT CAST(attempts AS BIGINT) FROM hapax_ledger";
    scene.store.number(sql).await
}

async fn attempts_of_waiting(scene: &Scene) -> anyhow::Result<i64> {
    let sql = "SELECT CAST(attempts AS BIGINT) FROM hapax_waiting";
    scene.store.number(sql).await
}

async fn assert_applied_once(scene: &Scene) -> Checked {
    assert_one_row(scene).await?;
    assert_eq!(scene.sent().await?, ["k"]);
    Ok(())
}

/// The same for messages that send what they know of their attempt.
async fn assert_applied_at_attempt(scene: &Scene, attempt: i64) -> Checked {
    assert_one_row(scene).await?;
    assert_eq!(attempts(scene).await?, attempt);
    let sent = scene.broker.drain(scene::OUT).await?;
    ensure!(!sent.is_empty(), "nothing was sent");
    for message in &sent {
        assert_eq!(message.json()?["attempt"], attempt);
        assert_eq!(message.message_id()?, sent[0].message_id()?);
    }
    Ok(())
}

async fn assert_one_row(scene: &Scene) -> Checked {
    scene.assert_fates(COMMITTED).await?;
    assert_eq!(scene.store.waiting().await?, [""; 0]);
    assert_eq!(scene.effects().await?, ["k/0"]);
    Ok(())
}

/// One row shows it to a person, and nothing of it was applied.
async fn assert_parked(scene: &Scene, code: &str) -> Checked {
    scene.assert_fates(PARKED).await?;
    let row = format!("k parked {code}");
    assert_eq!(scene.store.waiting_keys().await?, [row]);
    assert_eq!(scene.effects().await?, [""; 0]);
    assert_eq!(scene.sent().await?, [""; 0]);
    Ok(())
}
