//! What an operator sees of failed messages, and does about them.

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::Checked;
use crate::support::host::Host;
use crate::support::place::Place;
use crate::support::scene::{self, Scene, insert, message, publish};
use crate::support::store::Fates;

pub async fn sees_why_a_message_was_parked(place: &Place, scene: Scene) -> Checked {
    let steps = [
        json!({"stderr": "about to fail"}),
        json!({"panic": "this went wrong"}),
    ];
    let retry = r#"{ max-attempts = 1 }"#;
    let host = Host::start(
        place,
        &scene.config("host", scene.probe()?.set("retry", retry)),
    )
    .await?;
    scene.publish(&[message("k", &steps)]).await?;
    host.until_metric("hapax_parked_total", 1).await?;
    assert_eq!(
        host.metric_where("hapax_parked_total", &[("code", "trap")])
            .await?,
        1
    );
    let id = only_parked(&host).await?;
    let shown = host.cli(&["parked", "show", &id, "--json"]).await?;
    for part in ["trap", "this went wrong", "about to fail", "src/lib.rs"] {
        ensure!(
            shown.stdout.contains(part),
            "{part:?} is not shown:\n{}",
            shown.stdout
        );
    }
    let for_people = host.cli(&["parked", "show", &id]).await?;
    ensure!(
        for_people.stdout.contains("this went wrong"),
        "{for_people:?}"
    );
    scene.finish(host).await
}

pub async fn replays_a_message_once_its_cause_is_gone(place: &Place, scene: Scene) -> Checked {
    scene
        .store
        .execute("INSERT INTO t_effects VALUES ('taken', 0)")
        .await?;
    let steps = [scene::defer("taken", 0), publish("k")];
    let config = scene.config("host", scene.probe()?);
    let host = Host::start(place, &config).await?;
    scene.publish(&[message("k", &steps)]).await?;
    host.until_metric("hapax_parked_total", 1).await?;
    scene.finish(host).await?;
    scene.store.execute("DELETE FROM t_effects").await?;

    let host = Host::start(place, &config).await?;
    let id = only_parked(&host).await?;
    let replayed = host.cli(&["parked", "replay", &id]).await?;
    ensure!(replayed.code == Some(0), "{replayed:?}");
    host.until_metric("hapax_committed_total", 1).await?;
    // The same message once more, from the queue: it is a duplicate of what was replayed.
    scene.publish(&[message("k", &steps)]).await?;
    host.until_metric("hapax_duplicates_total", 1).await?;
    scene.store.until_outbox_empty().await?;
    host.stop().await?;
    assert_eq!(scene.effects().await?, ["taken/0"]);
    assert_eq!(scene.sent().await?, ["k"]);
    assert_eq!(scene.store.waiting().await?, [""; 0]);
    scene
        .assert_fates(Fates {
            committed: 1,
            ..Fates::default()
        })
        .await
}

pub async fn discards_a_message_for_good(place: &Place, scene: Scene) -> Checked {
    let config = scene.config("host", scene.probe()?);
    let host = Host::start(place, &config).await?;
    let rejected = message("k", &[insert("k", 0), json!({"reject": "never"})]);
    scene.publish(std::slice::from_ref(&rejected)).await?;
    host.until_metric("hapax_parked_total", 1).await?;
    let id = only_parked(&host).await?;
    let discarded = host.cli(&["parked", "discard", &id]).await?;
    ensure!(discarded.code == Some(0), "{discarded:?}");
    scene.publish(&[rejected]).await?;
    host.until_metric("hapax_duplicates_total", 1).await?;
    scene.finish(host).await?;
    assert_eq!(scene.effects().await?, [""; 0]);
    assert_eq!(scene.store.waiting().await?, [""; 0]);
    scene
        .assert_fates(Fates {
            discarded: 1,
            ..Fates::default()
        })
        .await
}

pub async fn is_told_of_an_id_that_does_not_exist(place: &Place, scene: Scene) -> Checked {
    let host = Host::start(place, &scene.config("host", scene.probe()?)).await?;
    for command in ["show", "replay", "discard"] {
        let ended = host.cli(&["parked", command, &"ab".repeat(32)]).await?;
        ensure!(ended.code == Some(1), "{command}: {ended:?}");
        ensure!(ended.stderr.lines().count() <= 3, "{command}: {ended:?}");
    }
    host.stop().await
}

/// `hapax publish` sends what `messages.jsonl` of the example holds, and `status` counts it.
pub async fn publishes_a_file_and_reads_the_status(place: &Place, scene: Scene) -> Checked {
    let file = place.dir.join("messages.jsonl");
    let lines: Vec<String> = (0..20)
        .map(|number| line(&format!("{number:02}")))
        .collect();
    std::fs::write(&file, lines.join("\n") + "\n")?;
    let host = Host::start(place, &scene.config("host", scene.probe()?)).await?;
    let file = file.to_str().context("the path is not UTF-8")?;
    let published = host
        .cli(&["publish", "--queue", scene::IN, "--file", file])
        .await?;
    ensure!(published.code == Some(0), "{published:?}");
    host.until_metric("hapax_committed_total", 20).await?;
    let status = host.cli(&["status", "--json"]).await?.json()?;
    ensure!(
        status.to_string().contains("probe"),
        "the status names no consumer: {status}"
    );
    scene.finish(host).await?;
    assert_eq!(scene.effects().await?.len(), 20);
    Ok(())
}

fn line(order: &str) -> String {
    let body = json!({"order_id": order, "do": [insert(order, 0)]});
    let properties =
        json!({"message_id": format!("m-{order}"), "content_type": "application/json"});
    json!({"properties": properties, "headers": {"tenant": "acme"}, "body": body}).to_string()
}

/// The id of the one parked message.
async fn only_parked(host: &Host) -> anyhow::Result<String> {
    let listed: Value = host.cli(&["parked", "list", "--json"]).await?.json()?;
    let all = listed
        .as_array()
        .with_context(|| format!("not a list: {listed}"))?;
    ensure!(all.len() == 1, "not one parked message: {listed}");
    let id = all[0]["id"].as_str();
    Ok(id.with_context(|| format!("no id: {listed}"))?.to_owned())
}
