//! Hosts whose clocks are wrong by days. What has to agree between hosts goes by the clock of the database; a SQLite
//! file has no other clock than its host's.

use anyhow::Context;
use serde_json::json;

use crate::Checked;
use crate::support::broker::Message;
use crate::support::clock;
use crate::support::host::{Config, Consumer, Host};
use crate::support::place::Place;
use crate::support::scene::{OUT, Scene, insert, message};

const TWO_DAYS: i64 = 2 * 86_400;
const RETENTION: &str = "\"5m\"";

/// A host that is ahead forgets nothing before its time, tries nothing before it is due, and turns nothing away that
/// is not too late; one that is behind forgets, tries and sends like any other.
pub async fn are_not_asked_where_the_database_has_one(place: &Place) -> Checked {
    let scene = Scene::postgres(place).await?;
    let ahead = start(place, &scene, "ahead", TWO_DAYS).await?;
    keeps_the_time(&scene, &ahead, "ahead", TWO_DAYS).await?;
    ahead.stop().await?;
    let behind = start(place, &scene, "behind", -TWO_DAYS).await?;
    keeps_the_time(&scene, &behind, "behind", -TWO_DAYS).await?;

    // Each knows what the other one has done.
    scene.publish(&[applied("ahead-done")]).await?;
    behind.until_metric("hapax_duplicates_total", 1).await?;
    behind.stop().await?;
    let lives = "SELECT count(*) FROM hapax_ledger \
                 WHERE abs(extract(epoch FROM expires_at - now())) > 3600";
    assert_eq!(scene.store.number(lives).await?, 0);
    let delays = "SELECT count(*) FROM hapax_waiting WHERE status = 'retry' AND attempts = 1 \
                  AND round(extract(epoch FROM due_at - failed_at)) = 3600";
    assert_eq!(scene.store.number(delays).await?, 2);
    assert_eq!(
        scene.store.waiting_keys().await?,
        [
            "ahead-forgotten parked too-late",
            "ahead-later retry retry",
            "behind-forgotten parked too-late",
            "behind-later retry retry",
        ]
    );
    let once = ["done", "forgotten", "fresh", "soon"];
    let once = ["ahead", "behind"].map(|name| once.map(|order| format!("{name}-{order}/0")));
    assert_eq!(scene.effects().await?, once.concat());
    Ok(())
}

/// Everything that depends on the time, on one host with keys of its own.
async fn keeps_the_time(scene: &Scene, host: &Host, name: &str, skew: i64) -> Checked {
    let order = |what: &str| format!("{name}-{what}");
    let soon = json!({"retry_until_attempt": 2, "after_ms": 200});
    let later = json!({"retry": "in an hour", "after_ms": 3_600_000});
    let delayed = json!({"publish": {"target": "out", "body": {}, "delay_ms": 200}});
    let soon = [insert(&order("soon"), 0), delayed, soon];
    scene
        .publish(&[
            message(&order("later"), &[later]),
            message(&order("soon"), &soon),
            applied(&order("done")),
            applied(&order("forgotten")),
        ])
        .await?;
    host.until_metric("hapax_committed_total", 3).await?;

    // The sweep that finds it has looked at the others, too.
    let expired = format!(
        "UPDATE hapax_ledger SET expires_at = now() - interval '1s' WHERE key = '{name}-forgotten'"
    );
    scene.store.execute(&expired).await?;
    host.until_metric("hapax_swept_total", 1).await?;
    let known = format!(
        "SELECT order_id FROM (SELECT convert_from(key, 'UTF8') AS order_id FROM hapax_ledger) known \
         WHERE order_id LIKE '{name}-%' ORDER BY order_id"
    );
    assert_eq!(
        scene.store.texts(&known).await?,
        [order("done"), order("later"), order("soon")]
    );

    // Everything before the last five minutes may be forgotten.
    scene
        .publish(&[
            sent_at(&order("forgotten"), clock::now() - 3_600),
            sent_at(&order("fresh"), clock::now() - 60),
        ])
        .await?;
    host.until_metric("hapax_parked_total", 1).await?;
    host.until_metric("hapax_committed_total", 4).await?;
    scene.store.until_outbox_empty().await?;
    assert_eq!(host.metric("hapax_retried_total").await?, 1);

    // The handlers have seen the wrong clock: the host has no other.
    let sent = scene.broker.drain(OUT).await?;
    let delayed = sent.iter().filter(|sent| &sent.body[..] == b"{}").count();
    assert_eq!(delayed, 1, "delayed messages");
    for sent in sent.iter().filter(|sent| &sent.body[..] != b"{}") {
        let seen = sent.json()?["now"].as_i64().context("a time")? / 1_000_000;
        let wrong_by = seen - i64::try_from(clock::now())?;
        assert!((wrong_by - skew).abs() < 3_600, "{wrong_by} s");
    }
    Ok(())
}

/// The clock of the machine jumps two days ahead, and is put back too far: what was applied before, and while it was
/// wrong, is not applied again.
pub async fn that_jump_ahead_and_back_apply_nothing_twice(place: &Place) -> Checked {
    let scene = Scene::sqlite(place).await?;
    let early = sent_at("early", clock::now());
    let host = start(place, &scene, "right", 0).await?;
    scene.publish(std::slice::from_ref(&early)).await?;
    host.until_metric("hapax_committed_total", 1).await?;
    scene.finish(host).await?;

    let host = start(place, &scene, "ahead", TWO_DAYS).await?;
    host.until_metric("hapax_swept_total", 1).await?;
    let late = sent_at("ahead", clock::now());
    scene.publish(&[early.clone(), late.clone()]).await?;
    host.until_metric("hapax_parked_total", 1).await?;
    host.until_metric("hapax_committed_total", 1).await?;
    scene.finish(host).await?;
    assert_eq!(scene.store.waiting_keys().await?, ["early parked too-late"]);

    let host = start(place, &scene, "behind", -TWO_DAYS).await?;
    scene
        .publish(&[early, late, sent_at("new", clock::now())])
        .await?;
    host.until_metric("hapax_duplicates_total", 2).await?;
    host.until_metric("hapax_committed_total", 1).await?;
    scene.finish(host).await?;
    assert_eq!(scene.store.waiting_keys().await?, ["early parked too-late"]);
    assert_eq!(scene.effects().await?, ["ahead/0", "early/0", "new/0"]);
    Ok(())
}

/// A host whose clock is wrong by `seconds`.
async fn start(place: &Place, scene: &Scene, label: &str, seconds: i64) -> anyhow::Result<Host> {
    let consumer: Consumer = scene.probe()?.set("retention", RETENTION).set(
        "retry",
        r#"{ max-attempts = 3, delay = "10ms", max-delay = "1h" }"#,
    );
    // It would take the files of other hosts for old ones.
    let config: Config = scene
        .config(label, consumer)
        .cache(&place.dir.join("cache"));
    let mut host = Host::launch_with(place, &config, &clock::skewed_by(seconds).await?)?;
    host.until_ready().await?;
    Ok(host)
}

/// A message that writes a row and tells which time its handler sees.
fn applied(order: &str) -> Message {
    message(order, &[insert(order, 0), json!({"echo_context": "out"})])
}

fn sent_at(order: &str, timestamp: u64) -> Message {
    let mut message = applied(order);
    message.properties = message.properties.with_timestamp(timestamp);
    message
}
