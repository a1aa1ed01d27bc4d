//! A host that cannot work says so once, clearly, with the right exit code, and takes nothing.

use std::path::PathBuf;

use anyhow::ensure;

use crate::Checked;
use crate::support::host::{self, Config, Consumer};
use crate::support::place::Place;
use crate::support::ports;
use crate::support::scene::{self, IN, Scene};

const USAGE: i32 = 64;
const UNAVAILABLE: i32 = 69;

/// A complaint of a sane length; a stack trace is longer.
const MOST_LINES: usize = 25;

/// Publishes a message, starts the host, and insists on the exit code, on words in the complaint
/// that say what and where, and on the message being still there.
async fn refuses(
    place: &Place,
    scene: &Scene,
    config: &Config,
    code: i32,
    words: &[&str],
) -> Checked {
    scene.publish(&[scene::ordinary("k")]).await?;
    let ended = host::run_to_end(place, config).await?;
    let text = &ended.stderr;
    ensure!(
        ended.code == Some(code),
        "exit code {:?}, not {code}:\n{text}",
        ended.code
    );
    for word in words {
        ensure!(
            text.contains(word),
            "the complaint does not say {word:?}:\n{text}"
        );
    }
    for noise in ["panicked", "stack backtrace", "Stack backtrace", ".rs:"] {
        ensure!(
            !text.contains(noise),
            "the complaint shows internals:\n{text}"
        );
    }
    let lines = text.lines().count();
    ensure!(
        (1..=MOST_LINES).contains(&lines),
        "the complaint has {lines} lines:\n{text}"
    );
    ensure!(
        scene.broker.left_over(IN).await? == 1,
        "the message was consumed"
    );
    Ok(())
}

pub async fn an_unknown_field_is_named(place: &Place) -> Checked {
    let scene = Scene::postgres(place).await?;
    let config = scene.config("host", scene.probe()?.set("prefetsch", "10"));
    refuses(
        place,
        &scene,
        &config,
        USAGE,
        &["prefetsch", "prefetch", "host.toml"],
    )
    .await
}

pub async fn a_wrong_type_is_named(place: &Place) -> Checked {
    let scene = Scene::postgres(place).await?;
    let config = scene.config("host", scene.probe()?.set("batch", "\"many\""));
    refuses(
        place,
        &scene,
        &config,
        USAGE,
        &["batch", "many", "host.toml"],
    )
    .await
}

pub async fn all_problems_of_the_file_are_told_at_once(place: &Place) -> Checked {
    let scene = Scene::postgres(place).await?;
    let consumer = scene
        .probe()?
        .set("prefetsch", "10")
        .set("retention", "\"soon\"");
    let config = scene.config("host", consumer);
    refuses(
        place,
        &scene,
        &config,
        USAGE,
        &["prefetsch", "retention", "soon"],
    )
    .await
}

pub async fn a_missing_plugin_is_named(place: &Place) -> Checked {
    let scene = Scene::postgres(place).await?;
    let config = scene.config("host", scene.probe()?.set("plugin", "\"nowhere.wasm\""));
    refuses(place, &scene, &config, USAGE, &["nowhere.wasm"]).await
}

pub async fn a_file_that_is_no_component_is_named(place: &Place) -> Checked {
    let text = b"this is a text, not a component".as_slice();
    refuses_plugin(place, "text.wasm", text).await
}

pub async fn a_core_module_is_no_component(place: &Place) -> Checked {
    refuses_plugin(place, "core.wasm", b"\0asm\x01\0\0\0").await
}

pub async fn a_component_of_another_world_is_refused(place: &Place) -> Checked {
    // The empty component: valid, and it exports no handler.
    refuses_plugin(place, "empty.wasm", b"\0asm\x0d\0\x01\0").await
}

async fn refuses_plugin(place: &Place, name: &str, content: &[u8]) -> Checked {
    let scene = Scene::postgres(place).await?;
    let file: PathBuf = place.dir.join(name);
    std::fs::write(&file, content)?;
    let consumer = scene
        .probe()?
        .set("plugin", &format!("\"{}\"", file.display()));
    refuses(
        place,
        &scene,
        &scene.config("host", consumer),
        USAGE,
        &[name],
    )
    .await
}

pub async fn a_missing_queue_is_named(place: &Place) -> Checked {
    let scene = Scene::postgres(place).await?;
    let config = scene.config("host", scene.probe()?.set("queue", "\"no.such.queue\""));
    refuses(place, &scene, &config, USAGE, &["no.such.queue"]).await
}

pub async fn an_unreachable_database_is_named(place: &Place) -> Checked {
    let scene = Scene::postgres(place).await?;
    let port = ports::free();
    let url = format!("postgres://hapax:secret@127.0.0.1:{port}/shop");
    let config = Config::new("host", &url, &scene.broker.url).consumer(scene.probe()?);
    let words = ["127.0.0.1", &port.to_string()];
    refuses(place, &scene, &config, UNAVAILABLE, &words).await?;
    keeps_the_secret(place, &config).await
}

pub async fn an_unreachable_broker_is_named(place: &Place) -> Checked {
    let scene = Scene::postgres(place).await?;
    let port = ports::free();
    let url = format!("amqp://hapax:secret@127.0.0.1:{port}/%2f");
    let config = Config::new("host", &scene.store.url, &url).consumer(scene.probe()?);
    let words = ["127.0.0.1", &port.to_string()];
    refuses(place, &scene, &config, UNAVAILABLE, &words).await?;
    keeps_the_secret(place, &config).await
}

/// The password of an URL is not in what the host says.
async fn keeps_the_secret(place: &Place, config: &Config) -> Checked {
    let ended = host::run_to_end(place, config).await?;
    let said = format!("{}{}", ended.stdout, ended.stderr);
    ensure!(!said.contains("secret"), "a password was shown:\n{said}");
    Ok(())
}

pub async fn a_second_host_on_one_sqlite_file_is_kept_out(place: &Place) -> Checked {
    let scene = Scene::sqlite(place).await?;
    let first = host::Host::start(place, &scene.config("first", scene.probe()?)).await?;
    // Through a link: what counts is the file, not its name.
    let link = place.dir.join("link.db");
    std::os::unix::fs::symlink(place.dir.join("hapax.db"), &link)?;
    let url = format!("sqlite:{}", link.display());
    let consumer: Consumer = scene.probe()?;
    let second = Config::new("second", &url, &scene.broker.url).consumer(consumer);
    let ended = host::run_to_end(place, &second).await?;
    ensure!(
        ended.code.is_some_and(|code| code != 0),
        "the second host ran: {ended:?}"
    );
    ensure!(
        ended.stderr.contains("hapax.db") || ended.stderr.contains("link.db"),
        "{ended:?}"
    );
    first.stop().await
}
