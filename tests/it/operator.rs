//! What an operator sees of failed messages, and does about them.

use anyhow::{Context, ensure};
use lapin::types::{AMQPValue, FieldArray, FieldTable};
use serde_json::{Value, json};

use crate::Checked;
use crate::support::broker::Message;
use crate::support::host::Host;
use crate::support::place::Place;
use crate::support::scene::{self, Scene, insert, message, publish};
use crate::support::store::Fates;
use crate::support::wait;

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
    let discarded = host.cli(&["parked", "discard", &id, "--yes"]).await?;
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

/// Without a terminal nobody can be asked, and nothing is changed.
pub async fn is_refused_a_bulk_change_that_nobody_agreed_to(
    place: &Place,
    scene: Scene,
) -> Checked {
    let host = Host::start(place, &scene.config("host", scene.probe()?)).await?;
    let rejected = (0..3).map(|number| message(&format!("k{number}"), &[json!({"reject": "no"})]));
    scene.publish(&rejected.collect::<Vec<_>>()).await?;
    host.until_metric("hapax_parked_total", 3).await?;
    let all = [
        "parked",
        "discard",
        "--code",
        "rejected",
        "--consumer",
        "probe",
    ];
    let refused = host.cli(&all).await?;
    ensure!(refused.code == Some(64), "{refused:?}");
    ensure!(
        refused.stderr.contains("Discard 3 parked messages") && refused.stderr.contains("--yes"),
        "{refused:?}"
    );
    let tried = host
        .cli(&[&all[..], &["--dry-run", "--json"]].concat())
        .await?
        .json()?;
    assert_eq!(tried["messages"][0]["rows"], 3);
    let none = host
        .cli(&[&all[..], &["--older-than", "1h", "--yes", "--json"]].concat())
        .await?;
    assert_eq!(none.json()?["changed"], 0);
    assert_eq!(scene.store.waiting().await?.len(), 3);
    let done = host
        .cli(&[&all[..], &["--since", "1h", "--yes", "--json"]].concat())
        .await?;
    assert_eq!(done.json()?["changed"], 3);
    scene.finish(host).await?;
    assert_eq!(scene.store.waiting().await?, [""; 0]);
    scene
        .assert_fates(Fates {
            discarded: 3,
            ..Fates::default()
        })
        .await
}

/// The correction of a message is that message: what was published first is its duplicate.
pub async fn edits_a_body_and_the_original_is_a_duplicate_of_it(
    place: &Place,
    scene: Scene,
) -> Checked {
    let host = Host::start(place, &scene.config("host", scene.probe()?)).await?;
    // The table takes no negative step.
    let wrong = message("k", &[insert("k", -7), publish("k")]);
    scene.publish(std::slice::from_ref(&wrong)).await?;
    host.until_metric("hapax_parked_total", 1).await?;
    let id = only_parked(&host).await?;
    let edit = ["parked", "replay", &id, "--edit"];

    let same = host.cli_with(&[("EDITOR", "true")], &edit).await?;
    ensure!(
        same.code == Some(1) && same.stderr.contains("was not changed"),
        "{same:?}"
    );
    let other = [("EDITOR", "sed -i s/order_id\\\":\\\"k/order_id\\\":\\\"j/g")];
    let other = host.cli_with(&other, &edit).await?;
    ensure!(
        other.code == Some(1) && other.stderr.contains("change the key from `k` to `j`"),
        "{other:?}"
    );
    let kept = other
        .stderr
        .lines()
        .find_map(|line| line.split_once("is kept in "));
    let kept = kept.context("the refused text is not kept")?.1.trim();
    ensure!(
        std::fs::read_to_string(kept)?.contains("-7"),
        "{kept} is not the text"
    );
    let directory = std::path::Path::new(kept)
        .parent()
        .context("no directory")?;
    std::fs::remove_dir_all(directory)?;

    let edited = host
        .cli_with(&[("EDITOR", "sed -i s/-7/7/")], &edit)
        .await?;
    ensure!(edited.code == Some(0), "{edited:?}");
    host.until_metric("hapax_committed_total", 1).await?;
    scene.publish(&[wrong]).await?;
    host.until_metric("hapax_duplicates_total", 1).await?;
    scene.finish(host).await?;
    assert_eq!(scene.effects().await?, ["k/7"]);
    assert_eq!(scene.sent().await?, ["k"]);
    assert_eq!(scene.store.waiting().await?, [""; 0]);
    Ok(())
}

pub async fn is_told_that_a_replay_of_what_was_committed_does_nothing(
    place: &Place,
    scene: Scene,
) -> Checked {
    let narrow = scene.probe()?.set("max-message-bytes", "\"16B\"");
    let base = scene.config("host", narrow);
    let host = Host::start(place, &base).await?;
    let large = message("k", &[insert("k", 0)]);
    scene.publish(std::slice::from_ref(&large)).await?;
    host.until_metric("hapax_parked_total", 1).await?;
    scene.finish(host).await?;

    // The limit was raised, and the producer has sent it once more.
    let host = Host::start(place, &scene.config("host", scene.probe()?)).await?;
    scene.publish(&[large]).await?;
    host.until_metric("hapax_committed_total", 1).await?;
    let id = only_parked(&host).await?;
    let replayed = host.cli(&["parked", "replay", &id]).await?;
    ensure!(
        replayed.code == Some(0) && replayed.stdout.contains("duplicate, nothing done"),
        "{replayed:?}"
    );
    let by_key = host
        .cli(&["parked", "replay", "--key", "k", "--yes"])
        .await?;
    ensure!(
        by_key.stdout.contains("duplicate, nothing done"),
        "{by_key:?}"
    );
    let discarded = host.cli(&["parked", "discard", &id, "--yes"]).await?;
    ensure!(discarded.code == Some(0), "{discarded:?}");
    scene.finish(host).await?;
    assert_eq!(scene.effects().await?, ["k/0"]);
    assert_eq!(scene.store.waiting().await?, [""; 0]);
    scene
        .assert_fates(Fates {
            committed: 1,
            ..Fates::default()
        })
        .await
}

/// What a person puts back into the queue by hand, or a shovel does, carries the marks of its death; it is
/// the same message all the same, whatever has become of it.
pub async fn may_put_a_dead_letter_back_by_hand(place: &Place, scene: Scene) -> Checked {
    let missing = json!({
        "fail_if_missing": ["SELECT id FROM t_parents WHERE id = $1", ["late"]],
        "after_ms": 600_000,
    });
    let steps = [missing, insert("k", 0), publish("k")];
    let retry = r#"{ max-attempts = 2, max-delay = "20m" }"#;
    let config = scene.config("host", scene.probe()?.set("retry", retry));
    let host = Host::start(place, &config).await?;
    let original = message("k", &steps);
    let dead = dead_letter(&original);
    scene.publish(std::slice::from_ref(&original)).await?;
    wait::until_equal(
        "the waiting row",
        vec!["retry retry".to_owned()],
        async || scene.store.waiting().await,
    )
    .await?;
    scene.publish(std::slice::from_ref(&dead)).await?;
    host.until_metric("hapax_duplicates_total", 1).await?;

    // Parked: the second attempt is made now.
    host.stop().await?;
    scene
        .store
        .execute("UPDATE hapax_waiting SET due_at = failed_at")
        .await?;
    let host = Host::start(place, &config).await?;
    host.until_metric("hapax_parked_total", 1).await?;
    scene.publish(std::slice::from_ref(&dead)).await?;
    host.until_metric("hapax_duplicates_total", 1).await?;
    assert_eq!(scene.store.waiting().await?, ["parked retry"]);

    host.stop().await?;
    scene
        .store
        .execute("INSERT INTO t_parents VALUES ('late')")
        .await?;
    let host = Host::start(place, &config).await?;
    let id = only_parked(&host).await?;
    let replayed = host.cli(&["parked", "replay", &id]).await?;
    ensure!(replayed.code == Some(0), "{replayed:?}");
    host.until_metric("hapax_committed_total", 1).await?;
    scene.publish(&[dead]).await?;
    host.until_metric("hapax_duplicates_total", 1).await?;
    scene.finish(host).await?;
    assert_eq!(scene.effects().await?, ["k/0"]);
    assert_eq!(scene.sent().await?, ["k"]);
    assert_eq!(scene.store.waiting().await?, [""; 0]);
    Ok(())
}

/// A message as RabbitMQ dead-letters it and a person publishes it again.
fn dead_letter(message: &Message) -> Message {
    let text = |text: &str| AMQPValue::LongString(text.into());
    let mut death = FieldTable::default();
    death.insert("queue".into(), text(scene::IN));
    death.insert("reason".into(), text("rejected"));
    death.insert("count".into(), AMQPValue::LongLongInt(1));
    death.insert("exchange".into(), text(""));
    death.insert("time".into(), AMQPValue::Timestamp(1_700_000_000));
    let keys = FieldArray::from(vec![text(scene::IN)]);
    death.insert("routing-keys".into(), AMQPValue::FieldArray(keys));
    let mut headers = FieldTable::default();
    let deaths = FieldArray::from(vec![AMQPValue::FieldTable(death)]);
    headers.insert("x-death".into(), AMQPValue::FieldArray(deaths));
    for name in [
        "x-first-death-queue",
        "x-first-death-reason",
        "x-first-death-exchange",
    ] {
        headers.insert(name.into(), text(scene::IN));
    }
    Message {
        body: message.body.clone(),
        properties: message.properties.clone().with_headers(headers),
    }
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
