//! What an operator sees of messages that could not be sent, and does about them.

use anyhow::{Context, ensure};
use serde_json::json;

use crate::Checked;
use crate::support::host::Host;
use crate::support::place::Place;
use crate::support::scene::{self, Scene, message, publish};
use crate::support::wait;

pub async fn sees_what_could_not_be_sent_and_sends_it(place: &Place, scene: Scene) -> Checked {
    let targets = r#"{ out = { exchange = "late", routing-key = "out" } }"#;
    let config = scene.config("host", scene.probe()?.set("targets", targets));
    let host = Host::start(place, &config).await?;
    scene.publish(&[message("k", &[publish("k")])]).await?;
    let row = scene::failed_row(&host).await?;
    let error = row["error"].as_str().context("no error")?;
    ensure!(
        error.contains("late"),
        "the missing exchange is not named: {row}"
    );
    assert_eq!(
        (&row["consumer"], &row["target"]),
        (&json!("probe"), &json!("out"))
    );
    let id = row["id"].to_string();
    let shown = host.cli(&["outbox", "show", &id, "--json"]).await?.json()?;
    assert_eq!(shown["message"]["body"], json!({"order_id": "k"}));
    // While it is being tried again, that is told.
    wait::until("people to be told", wait::PATIENCE, async || {
        let for_people = host.cli(&["outbox", "show", &id]).await?;
        let told = for_people.stdout.contains("could not be sent");
        Ok(told.then_some(()))
    })
    .await?;

    let refused = host.cli(&["outbox", "retry", "--target", "out"]).await?;
    ensure!(
        refused.code == Some(64) && refused.stderr.contains("--yes"),
        "{refused:?}"
    );
    scene.broker.declare_exchange("late", false).await?;
    scene.broker.bind(scene::OUT, "late", "out").await?;
    let sent = host
        .cli(&["outbox", "retry", "--target", "out", "--yes"])
        .await?;
    ensure!(sent.code == Some(0), "{sent:?}");
    scene.store.until_outbox_empty().await?;
    let gone = host.cli(&["outbox", "show", &id]).await?;
    ensure!(
        gone.code == Some(1) && gone.stderr.contains("has confirmed it"),
        "{gone:?}"
    );
    scene.finish(host).await?;
    assert_eq!(scene.sent().await?, ["k"]);
    Ok(())
}

/// It would be due in an hour.
pub async fn sends_a_delayed_message_now(place: &Place, scene: Scene) -> Checked {
    let host = Host::start(place, &scene.config("host", scene.probe()?)).await?;
    let later = json!({"publish": {
        "target": "out", "body": {"order_id": "k"}, "delay_ms": 3_600_000
    }});
    scene.publish(&[message("k", &[later])]).await?;
    host.until_metric("hapax_committed_total", 1).await?;
    let listed = host.cli(&["outbox", "list", "--json"]).await?.json()?;
    assert_eq!(
        (&listed[0]["state"], &listed[0]["attempts"]),
        (&json!("delayed"), &json!(0))
    );
    let bulk = host
        .cli(&["outbox", "retry", "--all", "--yes", "--json"])
        .await?
        .json()?;
    assert_eq!(
        bulk["changed"], 0,
        "a bulk retry leaves what its handler wanted later"
    );
    let id = listed[0]["id"].to_string();
    let sent = host
        .cli(&["outbox", "retry", &id, "--json"])
        .await?
        .json()?;
    assert_eq!(sent["changed"], 1);
    scene.finish(host).await?;
    assert_eq!(scene.sent().await?, ["k"]);
    Ok(())
}
