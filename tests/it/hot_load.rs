//! Plugins change while messages flow: by their file, by the command line, and under `kill -9`. What runs
//! is told by what it does.

mod cache;
mod kills;
mod under_load;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sqlx::{Connection, Executor, PgConnection};

use crate::Checked;
use crate::support::broker::Message;
use crate::support::host::{self, Config, Consumer, Host};
use crate::support::place::Place;
use crate::support::scene::{IN, Scene};
use crate::support::store::Store;
use crate::support::versions::{guest, rename_into, version};
use crate::support::wait;

pub use cache::*;
pub use kills::*;
pub use under_load::*;

/// A consumer on a plugin of the test's own.
struct Stage {
    scene: Scene,
    file: PathBuf,
    orders: usize,
}

impl Stage {
    fn new(place: &Place, scene: Scene) -> anyhow::Result<Stage> {
        let directory = place.dir.join("plugins");
        std::fs::create_dir_all(&directory)?;
        let file = directory.join("numbered.wasm");
        std::fs::write(&file, version(0))?;
        Ok(Stage {
            scene,
            file,
            orders: 0,
        })
    }

    fn config(&self) -> Config {
        let consumer = Consumer::running("numbered", IN, &self.file)
            .set("grant", r#"{ write = ["t_effects"] }"#);
        self.scene.config("host", consumer)
    }

    /// Publishes one message and returns the version that handled it.
    async fn ask(&mut self) -> anyhow::Result<i64> {
        self.orders += 1;
        let order = format!("asked-{}", self.orders);
        self.scene.publish(&[message(&order)]).await?;
        let sql = format!("SELECT step FROM t_effects WHERE order_id = '{order}'");
        wait::until("the message to be handled", wait::PATIENCE, async || {
            let sql = format!("SELECT coalesce(max(step), -1) FROM ({sql}) AS one");
            let step = self.scene.store.number(&sql).await?;
            Ok((step >= 0).then_some(step))
        })
        .await
    }

    /// Waits until messages are handled by a version.
    async fn until_serves(&mut self, number: i64) -> Checked {
        for _ in 0..600 {
            if self.ask().await? == number {
                return Ok(());
            }
        }
        anyhow::bail!("version {number} does not take over")
    }
}

fn message(order: &str) -> Message {
    Message::json(&json!({ "order_id": order }))
}

fn digest(component: &[u8]) -> String {
    hex::encode(Sha256::digest(component))
}

/// What `hapax plugins list` tells of the only consumer.
async fn status(host: &Host) -> anyhow::Result<Value> {
    let list = host.cli(&["plugins", "list", "--json"]).await?.json()?;
    list.get(0).cloned().context("there is a consumer")
}

/// The digest in the ledger is of the version whose number is beside the order.
async fn ledger_names_the_version_that_wrote(store: &Store) -> Checked {
    let pairs = store
        .texts(
            "SELECT DISTINCT e.step || ' ' || encode(l.plugin, 'hex') FROM t_effects e \
             JOIN hapax_ledger l ON l.key = convert_to(e.order_id, 'UTF8')",
        )
        .await?;
    let mut named = BTreeMap::new();
    for pair in &pairs {
        let (step, plugin) = pair
            .split_once(' ')
            .context("the query puts a space there")?;
        let step: i64 = step.parse()?;
        ensure!(
            named.insert(step, plugin.to_owned()).is_none(),
            "version {step} has two digests"
        );
        assert_eq!(plugin, &digest(&version(step))[..16], "version {step}");
    }
    ensure!(!named.is_empty(), "the ledger knows no message");
    Ok(())
}

pub async fn running_messages_end_on_the_version_they_began_with(place: &Place) -> Checked {
    let mut stage = Stage::new(place, Scene::postgres(place).await?)?;
    let config = stage
        .config()
        .store_line("lock-timeout = \"50s\"")
        .store_line("statement-timeout = \"50s\"");
    let consumer = Consumer::running("numbered", IN, &stage.file)
        .set("grant", r#"{ write = ["t_effects"] }"#)
        .set("limits", r#"{ wall = "55s" }"#)
        .set("lanes", "4");
    let config = config.only(consumer);
    let host = Host::start(place, &config).await?;

    // The handler of version 0 waits for a row that this transaction holds.
    let mut other = PgConnection::connect(&stage.scene.store.url).await?;
    let mut held = other.begin().await?;
    held.execute("INSERT INTO t_effects VALUES ('held', 0)")
        .await?;
    stage.scene.publish(&[message("held")]).await?;
    wait::until("the message to be in flight", wait::PATIENCE, async || {
        Ok((status(&host).await?["in_flight"] == 1).then_some(()))
    })
    .await?;

    rename_into(&stage.file, &version(1))?;
    host.until_metric("hapax_plugin_swaps_total", 1).await?;
    let state = status(&host).await?;
    assert_eq!(state["digest"], digest(&version(1)));
    assert_eq!(state["versions_in_memory"], 2, "version 0 is still at work");

    held.rollback().await?;
    host.until_metric("hapax_committed_total", 1).await?;
    wait::until(
        "version 0 to leave the memory",
        wait::PATIENCE,
        async || Ok((status(&host).await?["versions_in_memory"] == 1).then_some(())),
    )
    .await?;
    assert_eq!(stage.ask().await?, 1);
    host.stop().await?;
    assert_eq!(stage.scene.effects().await?, ["asked-1/1", "held/0"]);
    ledger_names_the_version_that_wrote(&stage.scene.store).await
}

pub async fn a_broken_component_leaves_the_old_one_serving(place: &Place) -> Checked {
    let mut stage = Stage::new(place, Scene::sqlite(place).await?)?;
    let host = Host::start(place, &stage.config()).await?;
    assert_eq!(stage.ask().await?, 0);
    let good = version(1);
    let wat = |text: &str| wat::parse_str(text).expect("the component is well-formed");
    let broken = [
        ("cut off or damaged", good[..good.len() / 2].to_vec()),
        ("another world", wat("(component)")),
        (
            "may not",
            wat(r#"(component (import "wasi:http/outgoing-handler@0.2.0"
                     (instance (export "handle" (func)))))"#),
        ),
        (
            "does not start",
            guest(
                "(func $boom unreachable)\n(start $boom)",
                "(i32.const 1024)",
            ),
        ),
        (
            "hapax:plugin@0.2.0",
            wat(r#"(component (import "hapax:plugin/context@0.2.0"
                     (instance (export "now" (func (result s64))))))"#),
        ),
        ("it is text", b"not a component".to_vec()),
        ("the file is empty", Vec::new()),
    ];
    for (count, (words, component)) in (1..).zip(broken) {
        rename_into(&stage.file, &component)?;
        host.until_metric("hapax_plugin_refusals_total", count)
            .await?;
        let state = status(&host).await?;
        assert_eq!(state["digest"], digest(&version(0)));
        let problem = state["refused"]["problem"].as_str().unwrap_or_default();
        ensure!(problem.contains(words), "{words}: {problem}");
        assert_eq!(stage.ask().await?, 0, "{words}");
    }
    std::fs::remove_file(&stage.file)?;
    host.until_metric("hapax_plugin_refusals_total", 8).await?;
    assert_eq!(stage.ask().await?, 0);

    rename_into(&stage.file, &good)?;
    stage.until_serves(1).await?;
    assert_eq!(status(&host).await?["refused"], Value::Null);
    assert_eq!(host.metric("hapax_failed_total").await?, 0);
    host.stop().await
}

/// Written over in place, slowly, a piece at a time: what is read on the way is torn.
pub async fn a_file_that_is_overwritten_while_it_is_read_is_loaded_in_the_end(
    place: &Place,
) -> Checked {
    use std::io::Write;
    let mut stage = Stage::new(place, Scene::sqlite(place).await?)?;
    let mut random = place.random();
    let host = Host::start(place, &stage.config()).await?;
    for number in 1..=3 {
        let component = version(number);
        let mut file = std::fs::File::create(&stage.file)?;
        for piece in component.chunks(component.len() / 40 + 1) {
            // As long as a piece is missing, nothing of it serves.
            assert_eq!(status(&host).await?["digest"], digest(&version(number - 1)));
            file.write_all(piece)?;
            // Longer than the quiet that the host waits for, now and then: it will read half a file.
            tokio::time::sleep(Duration::from_millis(random.u64(0..60))).await;
        }
        drop(file);
        stage.until_serves(number).await?;
    }
    assert_eq!(host.metric("hapax_failed_total").await?, 0);
    host.stop().await
}

/// `plugins/numbered.wasm` → `..data/numbered.wasm`, `..data` → a directory that another takes the place of.
pub async fn a_link_that_is_swapped_is_followed(place: &Place) -> Checked {
    use std::os::unix::fs::symlink;
    let mut stage = Stage::new(place, Scene::sqlite(place).await?)?;
    let root = stage
        .file
        .parent()
        .context("it is in a directory")?
        .to_owned();
    let generation = |number: i64| -> anyhow::Result<()> {
        let directory = root.join(format!("..gen-{number}"));
        std::fs::create_dir(&directory)?;
        std::fs::write(directory.join("numbered.wasm"), version(number))?;
        let new = root.join("..data_tmp");
        symlink(format!("..gen-{number}"), &new)?;
        std::fs::rename(new, root.join("..data"))?;
        Ok(())
    };
    std::fs::remove_file(&stage.file)?;
    generation(0)?;
    symlink("..data/numbered.wasm", &stage.file)?;
    let host = Host::start(place, &stage.config()).await?;
    assert_eq!(stage.ask().await?, 0);
    for number in 1..=3 {
        generation(number)?;
        std::fs::remove_dir_all(root.join(format!("..gen-{}", number - 1)))?;
        stage.until_serves(number).await?;
    }
    host.stop().await
}

pub async fn a_file_or_directory_that_is_deleted_and_made_again_is_loaded(
    place: &Place,
) -> Checked {
    let mut stage = Stage::new(place, Scene::sqlite(place).await?)?;
    let host = Host::start(place, &stage.config()).await?;
    let directory = stage
        .file
        .parent()
        .context("it is in a directory")?
        .to_owned();
    for number in [1, 3] {
        std::fs::remove_file(&stage.file)?;
        std::fs::write(&stage.file, version(number))?;
        stage.until_serves(number).await?;
        std::fs::remove_dir_all(&directory)?;
        assert_eq!(stage.ask().await?, number);
        std::fs::create_dir(&directory)?;
        std::fs::write(&stage.file, version(number + 1))?;
        stage.until_serves(number + 1).await?;
    }
    host.stop().await
}

pub async fn an_operator_loads_and_rolls_back(place: &Place) -> Checked {
    let mut stage = Stage::new(place, Scene::sqlite(place).await?)?;
    let config = stage.config().cache(&place.dir.join("cache"));
    let host = Host::start(place, &config).await?;
    let next = place.dir.join("next.wasm");
    let path = next.to_str().context("the path is text")?.to_owned();
    let load = ["plugins", "load", "numbered", &path];

    std::fs::write(&next, version(1))?;
    let loaded = host.cli(&[&load[..], &["--json"]].concat()).await?.json()?;
    assert_eq!(loaded["before"], digest(&version(0)));
    assert_eq!(loaded["now"], digest(&version(1)));
    assert_eq!(
        stage.ask().await?,
        1,
        "it runs as soon as the command says so"
    );
    assert_eq!(
        std::fs::read(&stage.file)?,
        version(1),
        "a restart keeps it"
    );

    std::fs::write(&next, &version(2)[..100])?;
    let refused = host.cli(&load).await?;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    ensure!(refused.stderr.contains("cut off or damaged"), "{refused:?}");
    assert_eq!(
        std::fs::read(&stage.file)?,
        version(1),
        "nothing has changed"
    );

    std::fs::write(&next, version(2))?;
    ensure!(host.cli(&load).await?.code == Some(0));
    assert_eq!(stage.ask().await?, 2);
    let state = status(&host).await?;
    assert_eq!(state["messages"], 1);
    assert_eq!(state["failures"], 0);
    assert_eq!(state["size_bytes"], version(2).len());
    assert_eq!(
        state["earlier"],
        json!([digest(&version(1)), digest(&version(0))])
    );
    let table = host.cli(&["plugins", "list"]).await?;
    for word in [
        "numbered",
        &digest(&version(2))[..12],
        "context, sql",
        "can go back to",
    ] {
        ensure!(table.stdout.contains(word), "{word}: {table:?}");
    }

    let rollback = ["plugins", "rollback", "numbered"];
    for number in [1, 0] {
        let back = host.cli(&rollback).await?;
        ensure!(back.code == Some(0), "{back:?}");
        assert_eq!(stage.ask().await?, number);
        assert_eq!(std::fs::read(&stage.file)?, version(number));
    }
    let nothing = host.cli(&rollback).await?;
    assert_eq!(nothing.code, Some(1), "{nothing:?}");
    ensure!(nothing.stderr.contains("no version before"), "{nothing:?}");
    let unknown = host.cli(&["plugins", "rollback", "nobody"]).await?;
    assert_eq!(unknown.code, Some(64), "{unknown:?}");

    // What it could go back to is known after a restart; a file with rubbish gets back what ran.
    ensure!(host.cli(&load).await?.code == Some(0));
    host.stop().await?;
    let host = Host::start(place, &config).await?;
    rename_into(&stage.file, b"rubbish")?;
    host.until_metric("hapax_plugin_refusals_total", 1).await?;
    ensure!(host.cli(&rollback).await?.code == Some(0));
    assert_eq!(std::fs::read(&stage.file)?, version(2));
    ensure!(host.cli(&rollback).await?.code == Some(0));
    assert_eq!(stage.ask().await?, 0);
    host.stop().await?;

    // Without a daemon the file is for the next start.
    let config_file = config.write(&place.dir)?;
    let away = host::cli(&config_file, &["plugins", "list"]).await?;
    assert_eq!(away.code, Some(69), "{away:?}");
    ensure!(host::cli(&config_file, &load).await?.code == Some(0));
    assert_eq!(std::fs::read(&stage.file)?, version(2));
    let host = Host::start(place, &config).await?;
    assert_eq!(stage.ask().await?, 2);
    host.stop().await
}
