//! `kill -9` at every step of a swap, and a host that leaves while it compiles.

use std::fs::File;
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use hapax::failpoint::Point;

use crate::Checked;
use crate::support::host::Host;
use crate::support::place::Place;
use crate::support::scene::Scene;
use crate::support::versions::{heavy, rename_into, version};
use crate::support::wait;

use super::{Stage, digest, ledger_names_the_version_that_wrote, message};

/// How a version comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Somebody puts it into the file.
    File,
    /// `hapax plugins load`.
    Load,
}

/// Where the host is killed. The first passage of the first two is its start.
const KILLS: [(Way, Point, u64); 7] = [
    (Way::File, Point::AfterPluginCopy, 2),
    (Way::File, Point::AfterPluginCompile, 2),
    (Way::File, Point::AfterPluginSwap, 1),
    (Way::Load, Point::AfterPluginCopy, 2),
    (Way::Load, Point::AfterPluginCompile, 2),
    (Way::Load, Point::AfterPluginWrite, 1),
    (Way::Load, Point::AfterPluginSwap, 1),
];

pub async fn kill_9_at_every_step_of_a_swap_loses_and_doubles_nothing(place: &Place) -> Checked {
    let mut stage = Stage::new(place, Scene::postgres(place).await?)?;
    let config = stage.config().cache(&place.dir.join("cache"));
    let mut published = 0;
    for (number, (way, point, passage)) in (1..).zip(KILLS) {
        let order = format!("{point}@{passage}=kill");
        let mut host = Host::launch_armed(place, &config, Some(&order))?;
        host.until_ready().await?;
        let block: Vec<_> = (published..published + 2_000)
            .map(|number| message(&format!("order-{number}")))
            .collect();
        published += block.len();
        stage.scene.publish(&block).await?;
        match way {
            Way::File => rename_into(&stage.file, &version(number))?,
            Way::Load => {
                let component = place.dir.join("next.wasm");
                std::fs::write(&component, version(number))?;
                let file = component.to_str().context("the path is text")?;
                let load = host.cli(&["plugins", "load", "numbered", file]).await?;
                ensure!(load.code != Some(0), "{load:?}");
            }
        }
        host.until_killed_at(point).await?;
        let is_there = way == Way::File || point_writes(point);
        let there = std::fs::read(&stage.file)?;
        assert_eq!(
            digest(&there),
            digest(&version(number - i64::from(!is_there))),
            "what a restart finds after {way:?} and {point}"
        );
        rename_into(&stage.file, &version(number))?;
    }
    let host = Host::start(place, &config).await?;
    assert_eq!(stage.ask().await?, KILLS.len() as i64);
    stage.scene.finish(host).await?;
    let store = &stage.scene.store;
    let orders = store
        .number("SELECT count(DISTINCT order_id) FROM t_effects")
        .await?;
    assert_eq!(orders, published as i64 + 1, "none is lost");
    assert_eq!(
        store.count("t_effects").await?,
        published as i64 + 1,
        "none is doubled"
    );
    ledger_names_the_version_that_wrote(store).await
}

/// Whether the file has been written when a load comes to this point.
fn point_writes(point: Point) -> bool {
    matches!(point, Point::AfterPluginWrite | Point::AfterPluginSwap)
}

pub async fn what_a_killed_host_left_beside_the_file_is_removed(place: &Place) -> Checked {
    let stage = Stage::new(place, Scene::sqlite(place).await?)?;
    let left = stage.file.with_file_name(".hapax-new-left");
    File::create(&left)?.set_modified(SystemTime::now() - Duration::from_secs(24 * 3600))?;
    let host = Host::start(place, &stage.config()).await?;
    ensure!(!left.exists(), "it is still there");
    host.stop().await
}

/// The compiler would keep a thread busy for many seconds more. Had anybody waited for it, its code would be
/// in the cache.
pub async fn a_host_that_compiles_leaves_when_it_is_asked_to(place: &Place) -> Checked {
    let stage = Stage::new(place, Scene::sqlite(place).await?)?;
    let cache = place.dir.join("cache");
    let host = Host::start(place, &stage.config().cache(&cache)).await?;
    let heavy = heavy();
    rename_into(&stage.file, &heavy)?;
    let copy = cache.join(format!("components/{}.wasm", digest(&heavy)));
    wait::until("the component to be copied", wait::PATIENCE, async || {
        Ok(copy.exists().then_some(()))
    })
    .await?;
    host.stop().await?;
    let code = super::cache::code_files(&cache)?;
    ensure!(
        code.len() == 1,
        "the host has waited for the compiler: {code:?}"
    );
    Ok(())
}
