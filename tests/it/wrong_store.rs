//! The store is not what the host takes it for: a file that nobody has any more, a database that cannot hold what is to
//! be written.

use crate::Checked;
use crate::support::host::{self, Host};
use crate::support::place::Place;
use crate::support::scene::{self, IN, Scene};
use crate::support::store::Kind;

pub async fn a_sqlite_file_that_was_moved_away_is_noticed_before_anything_is_acknowledged(
    place: &Place,
) -> Checked {
    let scene = Scene::sqlite(place).await?;
    let Kind::Sqlite(file) = &scene.store.kind else {
        anyhow::bail!("the scene is on SQLite");
    };
    let config = scene.config("host", scene.probe()?);
    let host = Host::start(place, &config).await?;
    scene.publish(&[scene::ordinary("before")]).await?;
    host.until_metric("hapax_committed_total", 1).await?;

    let away = place.dir.join("away");
    std::fs::create_dir(&away)?;
    let parts = ["hapax.db", "hapax.db-wal", "hapax.db-shm"];
    for part in parts {
        std::fs::rename(file.with_file_name(part), away.join(part))?;
    }
    let after = ["a1", "a2", "a3", "a4", "a5"];
    scene.publish(&after.map(scene::ordinary)).await?;
    host.until_says("was moved, replaced or deleted").await?;
    let (status, page) = host.page("/readyz").await?;
    assert_eq!(status, 503, "{page}");
    host.sigkill()?;
    assert_eq!(scene.broker.left_over(IN).await?, 5);

    for part in parts {
        std::fs::rename(away.join(part), file.with_file_name(part))?;
    }
    let host = Host::start(place, &config).await?;
    scene.finish(host).await?;
    let effects = scene.effects().await?;
    assert_eq!(
        effects,
        ["a1/0", "a2/0", "a3/0", "a4/0", "a5/0", "before/0"]
    );
    Ok(())
}

pub async fn a_database_that_cannot_hold_all_text_is_refused_at_the_start(
    place: &Place,
) -> Checked {
    let scene = Scene::postgres(place).await?;
    let (server, database) = scene.store.url.rsplit_once('/').expect("a URL has a path");
    let latin = format!("{database}_latin1");
    let create = "TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'";
    let create = format!("CREATE DATABASE {latin} {create}");
    scene.store.execute(&create).await?;
    let config = scene
        .config("host", scene.probe()?)
        .with_store(&format!("{server}/{latin}"));
    let ended = host::run_to_end(place, &config).await?;
    assert_eq!(ended.code, Some(64), "{ended:?}");
    assert!(ended.stderr.contains("the encoding LATIN1"), "{ended:?}");
    let file = config.write(&place.dir)?;
    let checked = host::cli(&file, &["check", "--connect"]).await?;
    assert_eq!(checked.code, Some(64), "{checked:?}");
    let said = format!("{}{}", checked.stdout, checked.stderr);
    assert!(said.contains("ENCODING 'UTF8'"), "{checked:?}");
    Ok(())
}
