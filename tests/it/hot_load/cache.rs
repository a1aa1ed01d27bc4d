//! The cache of plugins when it is warm, damaged, full, only to be read, and shared.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use crate::Checked;
use crate::support::host::{Config, Consumer, Host};
use crate::support::mount::Mount;
use crate::support::place::Place;
use crate::support::scene::{IN, Scene};
use crate::support::store::Store;
use crate::support::versions::{rename_into, version};

use super::{Stage, status};

/// The files of machine code in a cache.
pub fn code_files(cache: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(cache.join("code"))?;
    Ok(entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?)
}

pub async fn a_damaged_cache_is_compiled_again(place: &Place) -> Checked {
    let mut stage = Stage::new(place, Scene::sqlite(place).await?)?;
    let cache = place.dir.join("cache");
    let config = stage.config().cache(&cache);
    let host = Host::start(place, &config).await?;
    assert_eq!(status(&host).await?["from_cache"], false);
    host.stop().await?;

    let host = Host::start(place, &config).await?;
    assert_eq!(status(&host).await?["from_cache"], true);
    assert_eq!(stage.ask().await?, 0);
    host.stop().await?;

    let damages: [fn(&mut Vec<u8>); 4] = [
        |code| code.clear(),
        |code| code.truncate(code.len() / 2),
        |code| {
            let middle = code.len() / 2;
            code[middle] ^= 0x40;
        },
        |code| code.fill(0xff),
    ];
    for damage in damages {
        let files = code_files(&cache)?;
        let [file] = files.as_slice() else {
            anyhow::bail!("there should be one file of machine code: {files:?}");
        };
        let whole = std::fs::read(file)?;
        let mut code = whole.clone();
        damage(&mut code);
        std::fs::write(file, &code)?;
        let host = Host::start(place, &config).await?;
        assert_eq!(status(&host).await?["from_cache"], false);
        assert_eq!(stage.ask().await?, 0);
        host.stop().await?;
        ensure!(
            std::fs::read(file)?.len() == whole.len(),
            "it was not made again"
        );
    }
    Ok(())
}

pub async fn without_a_cache_everything_but_going_back_works(place: &Place) -> Checked {
    let mut stage = Stage::new(place, Scene::sqlite(place).await?)?;
    let no_directory = place.dir.join("a-file");
    std::fs::write(&no_directory, "")?;
    let host = Host::start(place, &stage.config().cache(&no_directory)).await?;
    rename_into(&stage.file, &version(1))?;
    stage.until_serves(1).await?;
    let back = host.cli(&["plugins", "rollback", "numbered"]).await?;
    assert_eq!(back.code, Some(1), "{back:?}");
    ensure!(back.stderr.contains("host.cache"), "{back:?}");
    host.stop().await
}

pub async fn a_full_cache_costs_the_copies_and_nothing_else(place: &Place) -> Checked {
    let mut stage = Stage::new(place, Scene::sqlite(place).await?)?;
    // Room for some components, and for no machine code.
    let cache = Mount::small(&place.dir.join("cache"), "16k")?;
    let config = stage.config().cache(&cache.directory);
    let host = Host::start(place, &config).await?;
    assert_eq!(stage.ask().await?, 0);
    rename_into(&stage.file, &version(1))?;
    stage.until_serves(1).await?;
    ensure!(
        place
            .log("host")?
            .contains("The plugin cache cannot be written"),
        "nobody was told"
    );
    ensure!(code_files(&cache.directory)?.is_empty(), "code was kept");

    cache.again("size=64m")?;
    rename_into(&stage.file, &version(2))?;
    stage.until_serves(2).await?;
    host.stop().await?;
    let host = Host::start(place, &config).await?;
    assert_eq!(status(&host).await?["from_cache"], true, "there was room");
    host.stop().await
}

pub async fn a_cache_that_is_only_read_is_read(place: &Place) -> Checked {
    let mut stage = Stage::new(place, Scene::sqlite(place).await?)?;
    let cache = Mount::small(&place.dir.join("cache"), "64m")?;
    let config = stage.config().cache(&cache.directory);
    Host::start(place, &config).await?.stop().await?;

    cache.again("ro")?;
    let host = Host::start(place, &config).await?;
    assert_eq!(status(&host).await?["from_cache"], true);
    rename_into(&stage.file, &version(1))?;
    stage.until_serves(1).await?;
    ensure!(
        place
            .log("host")?
            .contains("The plugin cache cannot be written"),
        "nobody was told"
    );
    let back = host.cli(&["plugins", "rollback", "numbered"]).await?;
    ensure!(back.code == Some(0), "its copy was kept before: {back:?}");
    assert_eq!(stage.ask().await?, 0);
    host.stop().await
}

/// Two projects whose configurations say the same words, and one cache: the history of one is not the other's.
pub async fn projects_that_name_their_plugins_alike_go_back_to_their_own(place: &Place) -> Checked {
    let cache = place.dir.join("cache");
    let mut projects = Vec::new();
    for (name, number) in [("one", 1), ("other", 5)] {
        let project = Place {
            dir: place.dir.join(name),
            seed: place.seed,
        };
        std::fs::create_dir_all(&project.dir)?;
        std::fs::write(project.dir.join("numbered.wasm"), version(number))?;
        let store = Store::sqlite(&project);
        let consumer = Consumer::running("numbered", IN, Path::new("numbered.wasm"));
        let config = Config::new("host", &store.url, "embedded:")
            .cache(&cache)
            .consumer(consumer);
        projects.push((project, config));
    }
    let rollback = ["plugins", "rollback", "numbered"];
    let (one, config) = &projects[0];
    let host = Host::start(one, config).await?;
    rename_into(&one.dir.join("numbered.wasm"), &version(2))?;
    host.until_metric("hapax_plugin_swaps_total", 1).await?;
    host.stop().await?;

    let (other, config) = &projects[1];
    let host = Host::start(other, config).await?;
    let back = host.cli(&rollback).await?;
    ensure!(back.stderr.contains("no version before"), "{back:?}");
    host.stop().await?;
    assert_eq!(std::fs::read(other.dir.join("numbered.wasm"))?, version(5));

    // And its own is known by the words that were written.
    let (one, config) = &projects[0];
    let host = Host::start(one, config).await?;
    ensure!(host.cli(&rollback).await?.code == Some(0));
    assert_eq!(std::fs::read(one.dir.join("numbered.wasm"))?, version(1));
    host.stop().await
}

pub async fn a_warm_start_compiles_nothing(place: &Place) -> Checked {
    const PLUGINS: i64 = 20;
    let store = Store::sqlite(place);
    let mut config = Config::new("host", &store.url, "embedded:").cache(&place.dir.join("cache"));
    for number in 0..PLUGINS {
        let file = place.dir.join(format!("{number}.wasm"));
        std::fs::write(&file, version(number))?;
        let name = format!("numbered-{number}");
        config = config.consumer(Consumer::running(&name, &name, &file));
    }
    for warm in [false, true] {
        let host = Host::start(place, &config).await?;
        let list = host.cli(&["plugins", "list", "--json"]).await?.json()?;
        let list = list.as_array().context("a list")?;
        assert_eq!(list.len() as i64, PLUGINS);
        ensure!(
            list.iter().all(|plugin| plugin["from_cache"] == warm),
            "{list:?}"
        );
        host.stop().await?;
    }
    Ok(())
}
