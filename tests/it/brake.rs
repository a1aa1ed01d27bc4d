//! Message after message fails: the consumer stops instead of parking its whole queue.

use anyhow::ensure;
use serde_json::json;

use crate::Checked;
use crate::support::broker::Message;
use crate::support::host::{Consumer, Host};
use crate::support::place::Place;
use crate::support::scene::{IN, Scene, message, ordinary};
use crate::support::wait;

const BAD: usize = 12;
const GOOD: usize = 20;

fn messages() -> Vec<Message> {
    let bad = (0..BAD).map(|number| message(&format!("bad-{number}"), &[json!({"reject": "no"})]));
    let good = (0..GOOD).map(|number| ordinary(&format!("good-{number}")));
    bad.chain(good).collect()
}

fn consumer(scene: &Scene, probe: &str) -> anyhow::Result<Consumer> {
    Ok(scene.probe()?.set("lanes", "1").set("batch", "1").set(
        "brake",
        &format!("{{ parks = 5, probe = \"{probe}\", max-probe = \"{probe}\" }}"),
    ))
}

async fn until_braked(host: &Host) -> Checked {
    wait::until_equal("the brakes that are on", 1, async || {
        host.metric_where("hapax_consumer_paused", &[("reason", "brake")])
            .await
    })
    .await
}

/// What it has not tried it keeps unacknowledged: the broker still has it.
pub async fn a_braked_consumer_keeps_what_it_holds(place: &Place, scene: Scene) -> Checked {
    scene.publish(&messages()).await?;
    // It may brake before anybody has seen it ready.
    let host = Host::launch(place, &scene.config("host", consumer(&scene, "1h")?))?;
    until_braked(&host).await?;
    let status = host.cli(&["status", "--json"]).await?.json()?;
    // Only the daemon knows, and only a SQLite store is looked at through it.
    ensure!(
        scene.store.is_postgres() || status.to_string().contains("braked"),
        "the status does not tell: {status}"
    );
    let (ready, reasons) = host.page("/readyz").await?;
    assert_eq!(ready, 503);
    ensure!(reasons.contains("braked"), "{reasons}");
    assert_eq!(scene.broker.depth(IN).await?.consumers, 1);
    host.sigkill()?;
    assert_eq!(scene.store.waiting().await?, ["parked rejected"; 5]);
    let left = scene.broker.left_over(IN).await?;
    assert_eq!(left as usize, BAD + GOOD - 5);
    Ok(())
}

/// One message is tried now and then; the first that commits lets all of them in.
pub async fn it_goes_on_by_itself_when_a_message_commits(place: &Place, scene: Scene) -> Checked {
    scene.publish(&messages()).await?;
    let host = Host::launch(place, &scene.config("host", consumer(&scene, "50ms")?))?;
    host.until_metric("hapax_committed_total", GOOD as u64)
        .await?;
    let braked = host.metric_where("hapax_consumer_paused", &[("reason", "brake")]);
    assert_eq!(braked.await?, 0);
    scene.finish(host).await?;
    assert_eq!(scene.store.waiting().await?.len(), BAD);
    assert_eq!(scene.effects().await?.len(), GOOD);
    let log = std::fs::read_to_string(place.dir.join("host.log"))?;
    let told = log.matches("Consumer braked").count();
    assert_eq!(told, 1, "told once, however often it tries");
    assert_eq!(log.matches("a message has committed").count(), 1);
    Ok(())
}

/// A pause that the broker would not sit out: what is held goes back once, and one message at a time is fetched
/// to be tried.
pub async fn it_gives_back_what_the_broker_would_take_back(place: &Place) -> Checked {
    let scene = Scene::postgres(place).await?;
    let bad = (0..7).map(|number| message(&format!("bad-{number}"), &[json!({"reject": "no"})]));
    let good = (0..GOOD).map(|number| ordinary(&format!("good-{number}")));
    scene.publish(&bad.chain(good).collect::<Vec<_>>()).await?;
    let config = scene
        .config("host", consumer(&scene, "2500ms")?)
        .broker_line("consumer-timeout = \"2s\"");
    let host = Host::launch(place, &config)?;
    until_braked(&host).await?;
    host.until_metric("hapax_committed_total", GOOD as u64)
        .await?;
    scene.finish(host).await?;
    assert_eq!(scene.store.waiting().await?.len(), 7);
    assert_eq!(scene.effects().await?.len(), GOOD);
    let log = std::fs::read_to_string(place.dir.join("host.log"))?;
    ensure!(
        log.contains("half of the broker's consumer_timeout"),
        "nothing was given back"
    );
    ensure!(
        log.contains("takes more than one message again"),
        "it never fetched one message alone"
    );
    Ok(())
}
