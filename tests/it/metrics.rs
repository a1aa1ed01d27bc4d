//! Each metric that an operator is promised, on a host whose traffic is known.

use serde_json::json;

use crate::Checked;
use crate::support::host::Host;
use crate::support::place::Place;
use crate::support::scene::{self, IN, Scene, insert, message, ordinary};
use crate::support::wait;

/// Five good messages, two of them twice, one that is rejected, one that succeeds at its second attempt, and
/// one whose own message cannot be routed.
pub async fn tell_what_has_happened(place: &Place, scene: Scene) -> Checked {
    let mut messages: Vec<_> = (0..5).map(|number| ordinary(&number.to_string())).collect();
    messages.extend([ordinary("0"), ordinary("1")]);
    messages.push(message("bad", &[json!({"reject": "never"})]));
    let later = json!({"retry_until_attempt": 2});
    messages.push(message("late", &[later, scene::publish("late")]));
    let nowhere = json!({"publish": {"target": "nowhere", "body": "lost?"}});
    messages.push(message("lost", &[insert("lost", 0), nowhere]));
    let deliveries = messages.len() as u64;

    let targets = r#"{
        out = { exchange = "", routing-key = "out" },
        nowhere = { exchange = "", routing-key = "nobody" },
    }"#;
    let consumer = scene.probe()?.set("targets", &targets.replace('\n', " "));
    let host = Host::start(place, &scene.config("host", consumer)).await?;
    scene.publish(&messages).await?;
    host.until_metric("hapax_committed_total", 7).await?;
    host.until_metric("hapax_parked_total", 1).await?;
    host.until_metric("hapax_duplicates_total", 2).await?;
    host.until_metric("hapax_relay_confirmed_total", 6).await?;
    host.until_metric("hapax_relay_returned_total", 1).await?;
    // The row that nobody takes is a second old in the end, and alone.
    host.until_metric("hapax_outbox_oldest_seconds", 1).await?;
    wait::until_equal("the depth of the outbox", 1, async || {
        host.metric("hapax_outbox_depth").await
    })
    .await?;

    let exactly = [
        ("hapax_deliveries_total", ("consumer", "probe"), deliveries),
        ("hapax_redeliveries_total", ("consumer", "probe"), 0),
        ("hapax_committed_total", ("consumer", "probe"), 7),
        ("hapax_duplicates_total", ("fate", "committed"), 2),
        ("hapax_failed_total", ("code", "rejected"), 1),
        ("hapax_failed_total", ("code", "retry"), 1),
        ("hapax_failed_total", ("consumer", "probe"), 2),
        ("hapax_parked_total", ("code", "rejected"), 1),
        ("hapax_parked_total", ("consumer", "probe"), 1),
        ("hapax_retried_total", ("consumer", "probe"), 1),
        ("hapax_consumer_up", ("consumer", "probe"), 1),
        // Every delivery, and the message that ran from the table.
        (
            "hapax_batch_messages_sum",
            ("consumer", "probe"),
            deliveries + 1,
        ),
        ("hapax_end_to_end_seconds_count", ("consumer", "probe"), 7),
        ("hapax_relay_confirmed_total", ("target", "out"), 6),
        ("hapax_relay_confirmed_total", ("target", "nowhere"), 0),
        ("hapax_relay_returned_total", ("target", "out"), 0),
    ];
    for (name, label, expected) in exactly {
        let found = host.metric_where(name, &[label]).await?;
        assert_eq!(found, expected, "{name} with {label:?}");
    }
    let batches = host.metric("hapax_batch_messages_count").await?;
    assert_eq!(host.metric("hapax_batch_seconds_count").await?, batches);
    // A batch whose message fails runs again, so executions are more than attempts.
    assert!(host.metric("hapax_handler_seconds_count").await? >= 9);
    assert!(host.metric("hapax_relay_publish_seconds_count").await? >= 6);
    assert!(
        host.metric_where("hapax_relay_returned_total", &[("target", "nowhere")])
            .await?
            >= 1
    );

    let (_, text) = host.page("/metrics").await?;
    assert!(text.ends_with("# EOF\n"), "not whole: {text}");
    for histogram in [
        "batch_messages",
        "batch_seconds",
        "handler_seconds",
        "end_to_end_seconds",
        "relay_publish_seconds",
    ] {
        let kind = format!("# TYPE hapax_{histogram} histogram");
        assert!(text.contains(&kind), "{histogram} is no histogram");
    }
    host.stop().await?;
    assert_eq!(scene.broker.left_over(IN).await?, 0);
    Ok(())
}
