//! Nothing is acknowledged before its transaction is durable.

use crate::Checked;
use crate::support::host::{Config, Host};
use crate::support::place::Place;
use crate::support::proxy::{Commits, Proxy};
use crate::support::scene::{self, IN, Scene};
use crate::support::servers;
use crate::support::store::Fates;

const MESSAGES: u32 = 600;

/// Every COMMIT is held back, the host is killed, and the broker gives every message out again.
pub async fn does_not_happen_while_the_commit_is_on_its_way(place: &Place) -> Checked {
    let scene = Scene::postgres(place).await?;
    let proxy = Proxy::to(servers::postgres().await?.address()).await?;
    let through = scene.store.url_through(proxy.address());
    let config = Config::new("held", &through, &scene.broker.url).consumer(scene.probe()?);
    let host = Host::start(place, &config).await?;
    proxy.commits(Commits::Hold);
    let messages: Vec<_> = (0..MESSAGES)
        .map(|number| scene::ordinary(&number.to_string()))
        .collect();
    scene.publish(&messages).await?;
    // Each lane comes to a COMMIT and no further.
    proxy
        .until("four commits to be held", |tally| tally.held >= 4)
        .await?;
    host.until_metric("hapax_deliveries_total", u64::from(MESSAGES))
        .await?;
    assert_eq!(
        scene.effects().await?,
        [""; 0],
        "effects are visible before the commit"
    );
    assert_eq!(host.metric("hapax_committed_total").await?, 0);

    host.sigkill()?;
    proxy.cut();
    assert_eq!(
        scene.broker.left_over(IN).await?,
        MESSAGES,
        "messages were acknowledged"
    );

    proxy.commits(Commits::Pass);
    let config = scene.config("host", scene.probe()?);
    let host = Host::start(place, &config).await?;
    scene.finish(host).await?;
    assert_eq!(scene.effects().await?.len(), MESSAGES as usize);
    assert_eq!(scene.sent().await?.len(), MESSAGES as usize);
    scene
        .assert_fates(Fates {
            committed: i64::from(MESSAGES),
            ..Fates::default()
        })
        .await
}

/// SIGKILL as soon as something was committed: what was acknowledged is in the database.
pub async fn does_not_happen_at_any_other_moment(place: &Place, scene: Scene) -> Checked {
    let mut random = place.random();
    let messages: Vec<_> = (0..MESSAGES)
        .map(|number| scene::ordinary(&number.to_string()))
        .collect();
    scene.publish(&messages).await?;
    let config = scene.config("host", scene.probe()?.set("batch", "16"));
    let host = Host::start(place, &config).await?;
    host.until_metric("hapax_committed_total", random.u64(1..400))
        .await?;
    host.sigkill()?;
    let left_over = i64::from(scene.broker.left_over(IN).await?);
    let committed = scene.store.fates().await?.committed;
    let acknowledged = i64::from(MESSAGES) - left_over;
    assert!(
        acknowledged <= committed,
        "{acknowledged} messages were acknowledged and {committed} committed"
    );
    let host = Host::start(place, &config).await?;
    scene.finish(host).await?;
    assert_eq!(scene.sent().await?.len(), MESSAGES as usize);
    scene
        .assert_fates(Fates {
            committed: i64::from(MESSAGES),
            ..Fates::default()
        })
        .await
}
