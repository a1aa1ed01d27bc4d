//! What an operator learns of keys, and makes the ledger forget or remember.

use std::collections::BTreeSet;
use std::fmt::Write;

use anyhow::{Context, ensure};
use serde_json::json;

use crate::Checked;
use crate::support::host::{Host, cli};
use crate::support::place::Place;
use crate::support::scene::{self, Scene, insert, message, ordinary, publish};
use crate::support::store::Fates;

/// The message is applied again, and what it sends is not taken for what it sent before.
pub async fn forgets_a_key_and_its_message_is_applied_again(
    place: &Place,
    scene: Scene,
) -> Checked {
    let host = Host::start(place, &scene.config("host", scene.probe()?)).await?;
    let add = json!({"execute": ["UPDATE t_counters SET total = total + 1 WHERE id = $1", ["a"]]});
    let again = message("k", &[add, publish("k")]);
    scene.publish(std::slice::from_ref(&again)).await?;
    host.until_metric("hapax_committed_total", 1).await?;
    let shown = host.cli(&["ledger", "show", "k", "--json"]).await?.json()?;
    assert_eq!(shown[0]["entry"]["fate"], "committed");
    assert_eq!(shown[0]["entry"]["attempts"], 1);

    let forget = ["ledger", "forget", "k", "--why", "counted by mistake"];
    let refused = host.cli(&forget).await?;
    ensure!(
        refused.code == Some(64) && refused.stderr.contains("applied again"),
        "{refused:?}"
    );
    scene.publish(std::slice::from_ref(&again)).await?;
    host.until_metric("hapax_duplicates_total", 1).await?;
    let forgotten = host.cli(&[&forget[..], &["--yes"]].concat()).await?;
    ensure!(
        forgotten.code == Some(0) && forgotten.stdout.contains("it was committed"),
        "{forgotten:?}"
    );
    let shown = host.cli(&["ledger", "show", "k"]).await?;
    ensure!(shown.code == Some(1), "nobody knows it: {shown:?}");
    ensure!(shown.stdout.contains("counted by mistake"), "{shown:?}");
    let unknown = host.cli(&[&forget[..], &["--yes"]].concat()).await?;
    ensure!(unknown.code == Some(1), "{unknown:?}");

    scene.publish(&[again]).await?;
    host.until_metric("hapax_committed_total", 2).await?;
    scene.finish(host).await?;
    assert_eq!(
        scene
            .store
            .number("SELECT total FROM t_counters WHERE id = 'a'")
            .await?,
        2
    );
    let sent = scene.broker.drain(scene::OUT).await?;
    let ids = sent
        .iter()
        .map(|sent| sent.message_id())
        .collect::<Result<BTreeSet<_>, _>>()?;
    assert_eq!(
        ids.len(),
        2,
        "the second run's message has an id of its own"
    );
    scene
        .assert_fates(Fates {
            committed: 1,
            ..Fates::default()
        })
        .await
}

/// Another consumer has handled what is still in the queue: its keys come from its own records.
pub async fn takes_over_a_live_queue(place: &Place, scene: Scene) -> Checked {
    let old = (0..2_500)
        .map(|number| format!("old-{number:04}"))
        .collect::<Vec<_>>();
    let config = scene.config("host", scene.probe()?);
    let file = config.write(&place.dir)?;
    let migrated = cli(&file, &["migrate"]).await?;
    ensure!(migrated.code == Some(0), "{migrated:?}");
    let lines = place.dir.join("keys.txt");
    std::fs::write(&lines, old[..2_000].join("\n"))?;
    let lines = lines.to_str().context("the path is not UTF-8")?;
    let import = ["ledger", "import", lines, "--json"];
    let tried = cli(&file, &[&import[..], &["--dry-run"]].concat())
        .await?
        .json()?;
    assert_eq!((&tried["new"], &tried["known"]), (&json!(2_000), &json!(0)));
    for (new, known) in [(2_000, 0), (0, 2_000)] {
        let imported = cli(&file, &import).await?.json()?;
        assert_eq!(
            (&imported["new"], &imported["known"]),
            (&json!(new), &json!(known))
        );
    }

    let messages = old
        .iter()
        .map(|key| ordinary(key))
        .chain([message("new", &[insert("new", 0)])]);
    let messages = messages.collect::<Vec<_>>();
    // The rest while a host runs, from a table; the last line is no record.
    let host = Host::start(place, &config).await?;
    let mut table = "at,\"order\"\n".to_owned();
    for key in &old[1_990..] {
        writeln!(table, "2026-01-01,{key}")?;
    }
    let csv = place.dir.join("keys.csv");
    std::fs::write(&csv, format!("{table}2026-01-01,\n"))?;
    let csv = csv.to_str().context("the path is not UTF-8")?;
    let import = ["ledger", "import", csv, "--field", "order", "--json"];
    let ended = host.cli(&import).await?;
    ensure!(
        ended.code == Some(1)
            && ended.stderr.contains("record 511")
            && ended.stderr.contains("510 keys before it are imported"),
        "{ended:?}"
    );
    std::fs::write(csv, table)?;
    let imported = host.cli(&import).await?.json()?;
    assert_eq!(
        (&imported["new"], &imported["known"]),
        (&json!(0), &json!(510))
    );

    scene.publish(&messages).await?;
    host.until_metric("hapax_duplicates_total", 2_500).await?;
    host.until_metric("hapax_committed_total", 1).await?;
    let listed = host
        .cli(&["ledger", "list", "--json", "--limit", "3000"])
        .await?
        .json()?;
    assert_eq!(listed.as_array().map(Vec::len), Some(2_501));
    assert_eq!(listed[0]["key"], "new");
    scene.finish(host).await?;
    assert_eq!(scene.effects().await?, ["new/0"]);
    assert_eq!(scene.sent().await?, [""; 0]);
    scene
        .assert_fates(Fates {
            committed: 2_501,
            ..Fates::default()
        })
        .await
}
