//! What comes after the ledger has forgotten, and what the ledger must not forget.

use anyhow::ensure;
use serde_json::json;

use crate::Checked;
use crate::support::broker::Message;
use crate::support::clock::now;
use crate::support::host::Host;
use crate::support::place::Place;
use crate::support::scene::{Scene, message, publish};
use crate::support::wait;

/// A message that only sends, so that a second run shows.
fn sent_at(order: &str, timestamp: Option<u64>) -> Message {
    let mut message = message(order, &[publish(order)]);
    if let Some(timestamp) = timestamp {
        message.properties = message.properties.with_timestamp(timestamp);
    }
    message
}

/// A message that was sent a minute ago and adds one to a number.
fn counted(order: &str) -> Message {
    let add = json!({"execute": ["UPDATE t_counters SET total = total + 1 WHERE id = 'a'", []]});
    let mut message = message(order, &[add, publish(order)]);
    message.properties = message.properties.with_timestamp(now() - 60);
    message
}

async fn until_forgotten(host: &Host, scene: &Scene, left: i64) -> Checked {
    host.until_metric("hapax_swept_total", 1).await?;
    wait::until_equal("the keys that are remembered", left, async || {
        scene.store.count("hapax_ledger").await
    })
    .await
}

/// A copy that comes when its key is forgotten is parked, whatever the retention is by then; one that cannot
/// be told apart runs again and is counted. A person may replay it.
pub async fn a_late_copy_of_a_forgotten_message_is_parked(place: &Place, scene: Scene) -> Checked {
    let old = now() - 3_600;
    let consumer = || Ok::<_, anyhow::Error>(scene.probe()?.set("retention", "\"1s\""));
    let host = Host::start(place, &scene.config("host", consumer()?)).await?;
    scene
        .publish(&[sent_at("late", Some(old)), sent_at("timeless", None)])
        .await?;
    host.until_metric("hapax_committed_total", 2).await?;
    until_forgotten(&host, &scene, 0).await?;
    scene.finish(host).await?;

    // A longer retention does not bring back what was forgotten, and does not hide it either.
    let config = scene.config("host", consumer()?.set("retention", "\"7d\""));
    let host = Host::start(place, &config).await?;
    scene
        .publish(&[
            sent_at("late", Some(old)),
            sent_at("timeless", None),
            sent_at("new", Some(now() + 60)),
            // A producer whose clock is two days ahead.
            sent_at("ahead", Some(now() + 2 * 86_400)),
        ])
        .await?;
    host.until_metric("hapax_committed_total", 3).await?;
    host.until_metric("hapax_parked_total", 1).await?;
    assert_eq!(scene.store.waiting_keys().await?, ["late parked too-late"]);
    assert_eq!(host.metric("hapax_unfenced_total").await?, 1);
    // Another copy is a duplicate of the parked one.
    scene.publish(&[sent_at("late", Some(old))]).await?;
    host.until_metric("hapax_duplicates_total", 1).await?;
    assert_eq!(scene.store.waiting_keys().await?.len(), 1);

    let replayed = host.cli(&["parked", "replay", "--all", "--yes"]).await?;
    ensure!(replayed.code == Some(0), "{replayed:?}");
    host.until_metric("hapax_committed_total", 4).await?;
    scene.finish(host).await?;
    assert_eq!(scene.store.waiting().await?, [""; 0]);
    assert_eq!(
        scene.sent().await?,
        ["ahead", "late", "new", "timeless"],
        "copies of one message have one id"
    );
    Ok(())
}

/// A parked message is replayed after everything else has expired: its key was not forgotten, and of the copies
/// that came meanwhile none was applied.
pub async fn a_replay_after_expiry_is_applied_once(place: &Place, scene: Scene) -> Checked {
    scene
        .store
        .execute("DELETE FROM t_counters WHERE id = 'a'")
        .await?;
    let update = "UPDATE t_counters SET total = total + 1 WHERE id = 'a'";
    let gate = json!({"expect_affected": [[update, []], 1]});
    let copy = || {
        let mut copy = message("k", &[gate.clone(), publish("k")]);
        copy.properties = copy.properties.with_timestamp(now() - 60);
        copy
    };
    let consumer = scene.probe()?.set("retention", "\"1s\"");
    let config = scene.config("host", consumer);
    let host = Host::start(place, &config).await?;
    scene.publish(&[copy(), sent_at("other", None)]).await?;
    host.until_metric("hapax_parked_total", 1).await?;
    until_forgotten(&host, &scene, 1).await?;
    scene.publish(&[copy(), copy()]).await?;
    host.until_metric("hapax_duplicates_total", 2).await?;
    scene.finish(host).await?;
    scene
        .store
        .execute("INSERT INTO t_counters VALUES ('a', 0)")
        .await?;

    let host = Host::start(place, &config).await?;
    let replayed = host.cli(&["parked", "replay", "--all", "--yes"]).await?;
    ensure!(replayed.code == Some(0), "{replayed:?}");
    host.until_metric("hapax_committed_total", 1).await?;
    scene.publish(&[copy()]).await?;
    scene.finish(host).await?;
    let total = "SELECT total FROM t_counters WHERE id = 'a'";
    assert_eq!(scene.store.number(total).await?, 1);
    Ok(())
}

/// A message is parked before anyone has looked at its key, and the copy that its producer sends instead is applied
/// and forgotten: a replay comes too late.
pub async fn a_replay_after_its_copy_was_forgotten_is_not_applied(
    place: &Place,
    scene: Scene,
) -> Checked {
    let consumer = || Ok::<_, anyhow::Error>(scene.probe()?.set("retention", "\"1s\""));
    let narrow = consumer()?.set("max-message-bytes", "\"16B\"");
    scene.publish(&[counted("k")]).await?;
    let host = Host::start(place, &scene.config("host", narrow)).await?;
    host.until_metric("hapax_parked_total", 1).await?;
    scene.finish(host).await?;
    assert_eq!(scene.store.waiting().await?, ["parked message-too-large"]);

    let host = Host::start(place, &scene.config("host", consumer()?)).await?;
    scene.publish(&[counted("k")]).await?;
    host.until_metric("hapax_committed_total", 1).await?;
    until_forgotten(&host, &scene, 0).await?;
    replay_too_late(&scene, host).await
}

/// The same for a copy that was parked because it is one, while the ledger still knew that.
pub async fn a_replay_of_a_parked_duplicate_after_expiry_is_not_applied(
    place: &Place,
    scene: Scene,
) -> Checked {
    let consumer = scene
        .probe()?
        .set("retention", "\"1s\"")
        .set("on-duplicate", "\"park\"");
    scene.publish(&[counted("k"), counted("k")]).await?;
    let host = Host::start(place, &scene.config("host", consumer)).await?;
    host.until_metric("hapax_committed_total", 1).await?;
    host.until_metric("hapax_parked_total", 1).await?;
    assert_eq!(scene.store.waiting().await?, ["parked duplicate"]);
    until_forgotten(&host, &scene, 0).await?;
    replay_too_late(&scene, host).await
}

/// Replays the one message that is parked: it is parked again, under its key, and applied it was once.
async fn replay_too_late(scene: &Scene, host: Host) -> Checked {
    let too_late = [("code", "too-late")];
    let replayed = host.cli(&["parked", "replay", "--all", "--yes"]).await?;
    ensure!(replayed.code == Some(0), "{replayed:?}");
    wait::until_equal("messages that are too late", 1, async || {
        host.metric_where("hapax_parked_total", &too_late).await
    })
    .await?;
    scene.finish(host).await?;
    assert_eq!(scene.store.waiting().await?, ["parked too-late"]);
    assert_eq!(scene.store.waiting_keys().await?, ["k parked too-late"]);
    let total = "SELECT total FROM t_counters WHERE id = 'a'";
    assert_eq!(scene.store.number(total).await?, 1);
    assert_eq!(scene.sent().await?, ["k"]);
    Ok(())
}
