//! A producer uses a key again, for another payload.

use serde_json::json;

use crate::Checked;
use crate::support::broker::Message;
use crate::support::host::Host;
use crate::support::place::Place;
use crate::support::scene::{self, Scene, insert, message, publish};
use crate::support::store::Fates;

/// Another payload for the key: it would write another row.
fn other(order: &str) -> Message {
    message(
        order,
        &[insert(order, 7), publish("from the wrong payload")],
    )
}

pub async fn within_one_batch_the_second_payload_is_parked(place: &Place, scene: Scene) -> Checked {
    let batch = [
        scene::ordinary("x"),
        scene::ordinary("k"),
        other("k"),
        scene::ordinary("y"),
    ];
    scene.publish(&batch).await?;
    let host = Host::start(place, &scene.config("host", scene.probe()?)).await?;
    host.until_metric("hapax_parked_total", 1).await?;
    scene.finish(host).await?;
    assert_first_payload_won(&scene, &["k", "x", "y"]).await
}

pub async fn across_batches_the_second_payload_is_parked(place: &Place, scene: Scene) -> Checked {
    let host = Host::start(place, &scene.config("host", scene.probe()?)).await?;
    scene.publish(&[scene::ordinary("k")]).await?;
    host.until_metric("hapax_committed_total", 1).await?;
    scene.publish(&[other("k")]).await?;
    host.until_metric("hapax_parked_total", 1).await?;
    scene.finish(host).await?;
    assert_first_payload_won(&scene, &["k"]).await
}

/// The duplicate stands behind the other payload in one batch: it is compared with what has committed.
pub async fn a_duplicate_behind_the_second_payload_is_no_mistake(
    place: &Place,
    scene: Scene,
) -> Checked {
    let config = scene.config("host", scene.probe()?);
    let host = Host::start(place, &config).await?;
    scene.publish(&[scene::ordinary("k")]).await?;
    host.until_metric("hapax_committed_total", 1).await?;
    scene.finish(host).await?;
    scene
        .publish(&[other("k"), scene::ordinary("k"), other("k")])
        .await?;
    let host = Host::start(place, &config).await?;
    host.until_metric("hapax_deliveries_total", 3).await?;
    scene.finish(host).await?;
    assert_first_payload_won(&scene, &["k"]).await
}

pub async fn while_the_first_payload_waits_the_second_is_parked(
    place: &Place,
    scene: Scene,
) -> Checked {
    let retry = r#"{ max-attempts = 5, delay = "50ms", max-delay = "20m" }"#;
    let config = scene.config("host", scene.probe()?.set("retry", retry));
    let host = Host::start(place, &config).await?;
    let again = json!({"retry_until_attempt": 2, "after_ms": 600_000});
    let first = message("k", &[again, insert("k", 0), publish("k")]);
    scene.publish(&[first]).await?;
    host.until_metric("hapax_failed_total", 1).await?;
    scene.publish(&[other("k")]).await?;
    host.until_metric("hapax_parked_total", 1).await?;
    let waiting = scene.store.waiting().await?;
    assert_eq!(waiting, ["parked key-reused", "retry retry"]);
    host.stop().await?;

    let now = "UPDATE hapax_waiting SET due_at = failed_at WHERE status = 'retry'";
    scene.store.execute(now).await?;
    let host = Host::start(place, &config).await?;
    host.until_metric("hapax_committed_total", 1).await?;
    scene.finish(host).await?;
    assert_first_payload_won(&scene, &["k"]).await
}

pub async fn the_same_payload_written_differently_is_a_duplicate(
    place: &Place,
    scene: Scene,
) -> Checked {
    let written = [
        r#"{"order_id": "k", "do": [], "amount": 10, "tags": ["a", "b"]}"#,
        r#"{ "tags":["a","b"],"amount":10,   "do":[],"order_id":"\u006b" }"#,
    ];
    let host = Host::start(place, &scene.config("host", scene.probe()?)).await?;
    scene.publish(&written.map(Message::bytes)).await?;
    host.until_metric("hapax_duplicates_total", 1).await?;
    scene.finish(host).await?;
    assert_eq!(scene.store.waiting().await?, [""; 0]);
    scene
        .assert_fates(Fates {
            committed: 1,
            ..Fates::default()
        })
        .await
}

/// The first payload's row and message are there, the second's are not; its message is parked
/// and the key's row in the ledger says committed.
async fn assert_first_payload_won(scene: &Scene, orders: &[&str]) -> Checked {
    assert_eq!(scene.store.waiting().await?, ["parked key-reused"]);
    let of_a_key = "SELECT count(*) FROM hapax_waiting WHERE key IS NOT NULL";
    assert_eq!(
        scene.store.number(of_a_key).await?,
        0,
        "the parked row claims a key"
    );
    let rows: Vec<String> = orders.iter().map(|order| format!("{order}/0")).collect();
    assert_eq!(scene.effects().await?, rows);
    assert_eq!(scene.sent().await?, orders);
    let committed = i64::try_from(orders.len())?;
    scene
        .assert_fates(Fates {
            committed,
            ..Fates::default()
        })
        .await
}
