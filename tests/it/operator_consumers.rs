//! An operator holds consumers back, lets them go on, and changes their rules.

use anyhow::ensure;

use crate::Checked;
use crate::support::host::{Config, Host, cli, run_to_end};
use crate::support::place::Place;
use crate::support::scene::{self, Scene, ordinary};
use crate::support::wait;

async fn until_subscribed(scene: &Scene, hosts: u32) -> Checked {
    wait::until_equal("the subscriptions to the queue", hosts, async || {
        Ok(scene.broker.depth(scene::IN).await?.consumers)
    })
    .await
}

pub async fn a_pause_outlives_a_restart(place: &Place, scene: Scene) -> Checked {
    let config = scene.config("host", scene.probe()?);
    let host = Host::start(place, &config).await?;
    let paused = host
        .cli(&["consumers", "pause", "probe", "--why", "the shop moves"])
        .await?;
    ensure!(
        paused.code == Some(0) && paused.stdout.contains("1 host takes note"),
        "{paused:?}"
    );
    until_subscribed(&scene, 0).await?;
    scene
        .publish(
            &(0..5)
                .map(|n| ordinary(&format!("k{n}")))
                .collect::<Vec<_>>(),
        )
        .await?;
    host.sigkill()?;

    let host = Host::start(place, &config).await?;
    let listed = host.cli(&["consumers", "list", "--json"]).await?.json()?;
    assert_eq!(
        (&listed[0]["state"], &listed[0]["hosts"]),
        (&"paused".into(), &1.into())
    );
    let reason = listed[0]["reason"].as_str().unwrap_or_default();
    ensure!(reason.ends_with(": the shop moves"), "{listed}");
    let for_people = host.cli(&["status"]).await?;
    ensure!(
        for_people.stdout.contains("the shop moves"),
        "{for_people:?}"
    );
    // A second wish is heard after the first look, which comes after the start: nothing was taken until then.
    let again = host
        .cli(&["consumers", "pause", "probe", "--why", "the shop moves"])
        .await?;
    ensure!(again.stdout.contains("is paused already"), "{again:?}");
    let depth = scene.broker.depth(scene::IN).await?;
    assert_eq!((depth.ready, depth.consumers), (5, 0));
    assert_eq!(host.metric("hapax_deliveries_total").await?, 0);

    let resumed = host.cli(&["consumers", "resume", "--all"]).await?;
    ensure!(resumed.code == Some(0), "{resumed:?}");
    host.until_metric("hapax_committed_total", 5).await?;
    let listed = host.cli(&["consumers", "list", "--json"]).await?.json()?;
    assert_eq!(listed[0]["state"], "running");
    scene.finish(host).await?;
    assert_eq!(scene.effects().await?.len(), 5);
    Ok(())
}

/// The hosts of a server hear it from the store, whichever is asked.
pub async fn a_pause_reaches_every_host(place: &Place) -> Checked {
    let scene = Scene::postgres(place).await?;
    let one = Host::start(place, &scene.config("one", scene.probe()?)).await?;
    let two = Host::start(place, &scene.config("two", scene.probe()?)).await?;
    until_subscribed(&scene, 2).await?;
    let paused = one.cli(&["consumers", "pause", "probe"]).await?;
    ensure!(paused.stdout.contains("2 hosts take note"), "{paused:?}");
    until_subscribed(&scene, 0).await?;
    scene.publish(&[ordinary("k")]).await?;
    two.cli(&["consumers", "resume", "probe"]).await?;
    until_subscribed(&scene, 2).await?;
    scene.store.until_outbox_empty().await?;
    wait::until_equal("the effect", vec!["k/0".to_owned()], async || {
        scene.effects().await
    })
    .await?;
    one.stop().await?;
    two.stop().await
}

pub async fn other_rules_wait_for_the_last_host(place: &Place, scene: Scene) -> Checked {
    let base = Config::new("host", &scene.store.url, &scene.broker.url);
    let old = base.clone().consumer(scene.probe()?);
    let rules = r#"["body:/order_id", "routing-key"]"#;
    let new = scene
        .probe()?
        .set("key", rules)
        .set("fingerprint", "\"none\"");
    let new = base.consumer(new);
    let host = Host::start(place, &old).await?;
    scene.publish(&[ordinary("k")]).await?;
    host.until_metric("hapax_committed_total", 1).await?;
    scene.store.until_outbox_empty().await?;

    let file = new.write(&place.dir)?;
    let rekey = ["consumers", "rekey", "probe", "--yes"];
    let refused = cli(&file, &rekey).await?;
    ensure!(
        refused.code == Some(1) && refused.stderr.contains("1 host runs with the old rules"),
        "{refused:?}"
    );
    scene.finish(host).await?;
    let started = run_to_end(place, &new).await?;
    ensure!(
        started.code == Some(64) && started.stderr.contains("hapax consumers rekey probe"),
        "{started:?}"
    );
    let meant = cli(&file, &["consumers", "rekey", "probe", "--dry-run"]).await?;
    ensure!(
        meant.stdout.contains("applied again") && meant.stdout.contains("1 key of probe"),
        "{meant:?}"
    );
    let unasked = cli(&file, &["consumers", "rekey", "probe"]).await?;
    ensure!(unasked.code == Some(64), "{unasked:?}");
    let changed = cli(&file, &rekey).await?;
    ensure!(changed.code == Some(0), "{changed:?}");

    let host = Host::start(place, &new).await?;
    scene.publish(&[ordinary("j"), ordinary("j")]).await?;
    host.until_metric("hapax_committed_total", 1).await?;
    host.until_metric("hapax_duplicates_total", 1).await?;
    scene.finish(host).await?;
    // The key of the first was made by the old rule.
    let keys = scene
        .store
        .bytes("SELECT key FROM hapax_ledger ORDER BY key")
        .await?;
    assert_eq!(keys, [b"\0\0\0\x01j\0\0\0\x02in".to_vec(), b"k".to_vec()]);
    Ok(())
}
