//! What a message gets whose key has its fate already.

use anyhow::ensure;
use serde_json::json;

use crate::Checked;
use crate::support::broker::Message;
use crate::support::host::Host;
use crate::support::place::Place;
use crate::support::scene::{self, OUT, Scene, insert, message, publish};
use crate::support::store::Fates;

/// A request, asked by `reply_to` under `correlation`.
fn request(reply_to: &str, correlation: &str) -> Message {
    let answer = json!({"reply": {"order_id": "k", "points": 42}});
    let mut request = message("k", &[insert("k", 0), answer]);
    request.properties = request
        .properties
        .with_reply_to(reply_to.into())
        .with_correlation_id(correlation.into());
    request
}

/// Whoever asks again gets the answer again, in the same batch, later, and after a restart; one who is gone
/// harms nobody.
pub async fn get_the_stored_answer_where_the_consumer_replies(
    place: &Place,
    scene: Scene,
) -> Checked {
    let consumer = scene.probe()?.set("on-duplicate", "\"reply\"");
    let config = scene.config("host", consumer);
    scene
        .publish(&[request(OUT, "1"), request(OUT, "2"), request("gone", "3")])
        .await?;
    let host = Host::start(place, &config).await?;
    host.until_metric("hapax_duplicates_total", 2).await?;
    scene.finish(host).await?;

    let host = Host::start(place, &config).await?;
    let ordinary = message("other", &[insert("other", 0), publish("other")]);
    scene
        .publish(&[
            request("gone too", "4"),
            ordinary,
            request(OUT, "5"),
            request(OUT, "1"),
            // It asks nobody.
            message(
                "k",
                &[
                    insert("k", 0),
                    json!({"reply": {"order_id": "k", "points": 42}}),
                ],
            ),
        ])
        .await?;
    host.until_metric("hapax_committed_total", 1).await?;
    scene.finish(host).await?;

    let mut answers = Vec::new();
    let mut ids = std::collections::BTreeMap::new();
    for received in scene.broker.drain(OUT).await? {
        let body = received.json()?;
        if body["order_id"] == "other" {
            continue;
        }
        assert_eq!(body["points"], 42);
        let correlation = received.properties.correlation_id().clone();
        let correlation = correlation.map(|id| id.to_string()).unwrap_or_default();
        let known = ids.insert(correlation.clone(), received.message_id()?.to_owned());
        ensure!(
            known.is_none_or(|known| ids[&correlation] == known),
            "the same asker gets the same answer under another id"
        );
        answers.push(correlation);
    }
    answers.sort();
    assert_eq!(answers, ["1", "1", "2", "5"]);
    assert_eq!(scene.effects().await?, ["k/0", "other/0"]);
    assert_eq!(scene.store.waiting().await?, [""; 0]);
    scene
        .assert_fates(Fates {
            committed: 2,
            ..Fates::default()
        })
        .await
}

/// A second message of a key is shown to a person; what the broker delivers again is not.
pub async fn are_parked_where_the_consumer_wants_to_see_them(
    place: &Place,
    scene: Scene,
) -> Checked {
    let consumer = scene.probe()?.set("on-duplicate", "\"park\"");
    let config = scene.config("host", consumer);
    let messages: Vec<Message> = (0..40)
        .map(|number| scene::ordinary(&format!("{number:02}")))
        .collect();
    scene.publish(&messages).await?;
    // Killed between commit and acknowledgement: everything comes again, and is no duplicate.
    let host = Host::launch_armed(place, &config, Some("before-ack=kill"))?;
    host.until_killed_at(hapax::failpoint::Point::BeforeAck)
        .await?;
    let host = Host::start(place, &config).await?;
    scene::until_settled(&host, &scene.broker, scene::IN, &scene.store).await?;
    assert_eq!(scene.store.waiting().await?, [""; 0]);
    scene.publish(&[messages[7].clone()]).await?;
    host.until_metric("hapax_parked_total", 1).await?;
    assert_eq!(scene.store.waiting().await?, ["parked duplicate"]);
    // A replay does nothing, and says so: the row stays until somebody discards it.
    let replayed = host.cli(&["parked", "replay", "--all", "--yes"]).await?;
    ensure!(format!("{replayed:?}").contains("uplicate"), "{replayed:?}");
    assert_eq!(scene.store.waiting().await?, ["parked duplicate"]);
    let discarded = host.cli(&["parked", "discard", "--all", "--yes"]).await?;
    ensure!(discarded.code == Some(0), "{discarded:?}");
    scene.finish(host).await?;
    assert_eq!(scene.store.waiting().await?, [""; 0]);
    assert_eq!(scene.effects().await?.len(), 40);
    Ok(())
}
