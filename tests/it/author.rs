//! The day of somebody who writes a handler: a new project, a build, a test, a host that swaps it.

mod languages;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use wit_component::ComponentEncoder;

use crate::Checked;
use crate::support::host::{self, Config, Consumer, Ended, Host};
use crate::support::orders::{self, Orders};
use crate::support::place::Place;
use crate::support::scene::{self, Scene};
use crate::support::servers;
use crate::support::store::Store;
use crate::support::toolchain;
use crate::support::versions::{guest, version};

pub use languages::*;

/// The repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Insists that a command has done what it should.
fn good(ended: Ended) -> anyhow::Result<Ended> {
    ensure!(ended.code == Some(0), "{}\n{}", ended.stdout, ended.stderr);
    Ok(ended)
}

/// A project without sources: a component, its configuration, its table and its messages.
fn project(
    place: &Place,
    component: &[u8],
    lines: &str,
    messages: &[Value],
) -> anyhow::Result<PathBuf> {
    let dir = place.dir.join("project");
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("plugin.wasm"), component)?;
    let config = format!(
        "[host]\ncache = \"cache\"\n[[consumer]]\nname = \"p\"\nqueue = \"in\"\nplugin = \"plugin.wasm\"\n\
         key = \"body:/order_id\"\ngrant = {{ write = [\"t_effects\"] }}\n{lines}\n"
    );
    std::fs::write(dir.join("hapax.toml"), config)?;
    let schema = "CREATE TABLE t_effects (order_id VARCHAR(600) NOT NULL, step BIGINT NOT NULL CHECK (step >= 0));";
    std::fs::write(dir.join("schema.sql"), schema)?;
    let lines: String = messages
        .iter()
        .map(|body| json!({ "body": body }).to_string() + "\n")
        .collect();
    std::fs::write(dir.join("messages.jsonl"), lines)?;
    Ok(dir)
}

async fn test(dir: &Path, more: &[&str]) -> anyhow::Result<Ended> {
    let dir = dir.to_str().context("the path is text")?;
    host::command(Path::new("."), &[&["test", dir], more].concat()).await
}

pub async fn a_new_rust_project_is_tested_built_and_swapped_while_it_runs(
    place: &Place,
) -> Checked {
    good(host::command(&place.dir, &["new", "shop-points", "--lang", "rust"]).await?)?;
    let dir = place.dir.join("shop-points");
    let again = host::command(&place.dir, &["new", "shop-points"]).await?;
    assert_eq!(again.code, Some(64), "{again:?}");
    // The versions that this repository was tested with, and no others: they are on this machine.
    std::fs::copy(root().join("Cargo.lock"), dir.join("Cargo.lock"))?;
    let natively = tokio::task::spawn_blocking({
        let dir = dir.clone();
        move || {
            Command::new("cargo")
                .args(["test", "--quiet"])
                .current_dir(&dir)
                .env_remove("CARGO_TARGET_DIR")
                .output()
        }
    });
    let natively = natively.await??;
    ensure!(
        natively.status.success(),
        "{}{}",
        String::from_utf8_lossy(&natively.stdout),
        String::from_utf8_lossy(&natively.stderr)
    );
    good(host::command(&dir, &["build", "--quiet"]).await?)?;
    ensure!(
        dir.join("target/hapax/shop-points.wasm").is_file(),
        "no component"
    );
    let report = good(test(&dir, &["--json"]).await?)?.json()?;
    assert_eq!(report["passed"], true);
    let first = &report["messages"][0];
    assert_eq!(first["outcome"], "done");
    assert_eq!(
        first["effects"][0],
        "execute INSERT INTO t_points (order_id, user_id, points) VALUES ($1, $2, $3) [\"o-1001\", \"ada\", 12]"
    );
    ensure!(first["fuel"].as_u64() > Some(1_000), "{first}");
    ensure!(first["kills"].as_u64() > Some(3), "{first}");

    dev_builds_swaps_and_tells_what_messages_do(place, &dir).await?;

    mistakes_are_told_with_the_place_that_their_author_sees(&dir).await
}

/// Every refusal of the macro, and the types that do not fit: the words, and the line and column.
async fn mistakes_are_told_with_the_place_that_their_author_sees(dir: &Path) -> Checked {
    let mistakes = [
        (
            "handler(later)",
            "",
            "fn handle(body: Vec<u8>) -> Result<Outcome, Failure>",
            "takes no arguments",
            "3:24",
        ),
        (
            "handler",
            "async ",
            "fn handle(body: Vec<u8>) -> Result<Outcome, Failure>",
            "is not async",
            "4:1",
        ),
        (
            "handler",
            "",
            "fn handle<T>(body: Vec<u8>) -> Result<Outcome, Failure>",
            "no type parameters",
            "4:11",
        ),
        (
            "handler",
            "",
            "fn handle(body: Vec<u8>)",
            "returns Result<Outcome, Failure>",
            "4:4",
        ),
        (
            "handler",
            "",
            "fn handle(body: Vec<u8>) -> u8",
            "cannot return `u8`",
            "4:29",
        ),
        (
            "handler",
            "",
            "fn handle(body: std::net::TcpStream) -> Result<Outcome, Failure>",
            "TcpStream",
            "4:17",
        ),
    ];
    for (attribute, before, signature, words, place) in mistakes {
        let text = format!(
            "use hapax_guest::prelude::*;\n\n#[hapax_guest::{attribute}]\n{before}{signature} {{\n    todo!()\n}}\n"
        );
        std::fs::write(dir.join("src/lib.rs"), text)?;
        let refused = host::command(dir, &["build", "--quiet"]).await?;
        assert_eq!(refused.code, Some(1), "{refused:?}");
        for part in [words, &format!("src/lib.rs:{place}")] {
            ensure!(refused.stderr.contains(part), "{part}: {}", refused.stderr);
        }
    }
    Ok(())
}

async fn dev_builds_swaps_and_tells_what_messages_do(place: &Place, dir: &Path) -> Checked {
    let config = std::fs::read_to_string(dir.join("hapax.toml"))?;
    let dev = host::Dev::start(place, dir).await?;
    dev.until_says("waits for messages in the queue orders.paid")
        .await?;
    let publish = |order: &str| {
        let line = json!({"body": {"order_id": order, "user_id": "ada", "amount_cents": 500}});
        std::fs::write(dir.join("one.jsonl"), line.to_string())
    };
    publish("o-1")?;
    good(
        dev.cli(&["publish", "--queue", "orders.paid", "--file", "one.jsonl"])
            .await?,
    )?;
    dev.until_says("`o-1` committed").await?;
    dev.until_says("[\"o-1\", \"ada\", 5]").await?;

    let source = dir.join("src/lib.rs");
    let text = std::fs::read_to_string(&source)?;
    std::fs::write(&source, text.replace("/ 100", "/ 100 !!"))?;
    dev.until_says("the version before goes on").await?;
    std::fs::write(&source, text.replace("/ 100", "/ 50"))?;
    dev.until_says("Plugin swapped").await?;
    publish("o-2")?;
    good(
        dev.cli(&["publish", "--queue", "orders.paid", "--file", "one.jsonl"])
            .await?,
    )?;
    dev.until_says("[\"o-2\", \"ada\", 10]").await?;
    let again = ["publish", "--queue", "orders.paid", "--file", "one.jsonl"];
    good(dev.cli(&again).await?)?;
    dev.until_says("`o-2` duplicate").await?;

    // A directory that was not there when it began.
    std::fs::create_dir(dir.join("rules"))?;
    std::fs::write(dir.join("rules/cents.rs"), "20")?;
    let included = text.replace("/ 100", "/ include!(\"../rules/cents.rs\")");
    std::fs::write(&source, included)?;
    dev.until_says_times("Plugin swapped", 2).await?;
    std::fs::write(dir.join("rules/cents.rs"), "10")?;
    dev.until_says_times("Plugin swapped", 3).await?;
    dev.stop().await?;

    // The tables are there from the last time, and the schema does not say what then.
    let schema = std::fs::read_to_string(dir.join("schema.sql"))?;
    std::fs::write(dir.join("schema.sql"), schema.replace("IF NOT EXISTS ", ""))?;
    std::fs::write(dir.join("hapax.toml"), config)?;
    let dev = host::Dev::start(place, dir).await?;
    dev.until_says("the tables are left as they are").await?;
    dev.until_says("waits for messages in the queue orders.paid")
        .await?;
    dev.stop().await
}

pub async fn what_messages_do_is_recorded_and_compared(place: &Place) -> Checked {
    let messages = [
        json!({"order_id": "a"}),
        json!({"order_id": "b"}),
        json!({"order_id": "a"}),
    ];
    let dir = project(place, &version(1), "", &messages)?;
    let first = good(test(&dir, &["--json"]).await?)?.json()?;
    assert_eq!(
        first["messages"][2]["outcome"], "duplicate",
        "later messages see what earlier ones did"
    );
    // As one types it who is there: a file of a bare name.
    let update = ["test", "--message", "messages.jsonl", "--update"];
    good(host::command(&dir, &update).await?)?;
    good(test(&dir, &[]).await?)?;

    std::fs::write(dir.join("plugin.wasm"), version(2))?;
    let other = test(&dir, &[]).await?;
    assert_eq!(other.code, Some(1), "{other:?}");
    for line in [
        "- execute INSERT INTO t_effects",
        "[\"a\", 1]",
        "[\"a\", 2]",
        "2 with problems",
    ] {
        ensure!(other.stdout.contains(line), "{line}: {}", other.stdout);
    }
    good(test(&dir, &["--update"]).await?)?;
    good(test(&dir, &[]).await?)?;

    // One message more, and later one less: a failed test that says which.
    let lines = std::fs::read_to_string(dir.join("messages.jsonl"))?;
    let more = format!("{}\n{lines}", json!({"body": {"order_id": "new"}}));
    std::fs::write(dir.join("messages.jsonl"), more)?;
    let more = test(&dir, &[]).await?;
    assert_eq!(more.code, Some(1), "{more:?}");
    for line in ["it is not recorded", "[\"new\", 2]", "1 with problems"] {
        ensure!(more.stdout.contains(line), "{line}: {}", more.stdout);
    }
    let (_, less) = lines.split_once('\n').context("there are lines")?;
    std::fs::write(dir.join("messages.jsonl"), less)?;
    let less = test(&dir, &[]).await?;
    assert_eq!(less.code, Some(1), "{less:?}");
    ensure!(
        less.stdout.contains("not there any more"),
        "{}",
        less.stdout
    );
    Ok(())
}

pub async fn a_message_that_fails_is_a_failed_test_unless_it_should(place: &Place) -> Checked {
    // A check refuses the row, and the component traps.
    let dir = project(
        place,
        &version(-1),
        "",
        &[json!({"order_id": "a"}), json!({"order": 1})],
    )?;
    let failed = test(&dir, &["--json"]).await?;
    assert_eq!(failed.code, Some(1), "{failed:?}");
    let report: Value = serde_json::from_str(&failed.stdout)?;
    assert_eq!(report["messages"][0]["outcome"], "retry");
    ensure!(
        report["messages"][0]["reason"]
            .as_str()
            .is_some_and(|reason| reason.starts_with("trap")),
        "{report}"
    );
    assert_eq!(report["messages"][1]["outcome"], "parked");
    assert_eq!(
        report["messages"][1]["reason"]
            .as_str()
            .map(|reason| &reason[..11]),
        Some("key-missing")
    );
    good(test(&dir, &["--update"]).await?)?;
    good(test(&dir, &[]).await?)?;
    Ok(())
}

pub async fn a_handler_that_does_something_else_each_time_is_found(place: &Place) -> Checked {
    let declarations = r#"(import "hapax:plugin/context@0.1.0" "key" (func $key (param i32)))
        (import "hapax:plugin/sql@0.1.0" "execute" (func $execute (param i32 i32 i32 i32 i32)))
        (import "wasi:random/random@0.2.6" "get-random-u64" (func $random (result i64)))
        (data (i32.const 3072) "INSERT INTO t_effects (order_id, step) VALUES ($1, $2)")"#;
    let body = "(call $key (i32.const 4096))
        (i32.store8 (i32.const 4200) (i32.const 4))
        (i32.store (i32.const 4208) (i32.load (i32.const 4096)))
        (i32.store (i32.const 4212) (i32.load (i32.const 4100)))
        (i32.store8 (i32.const 4224) (i32.const 2))
        (i64.store (i32.const 4232) (i64.shr_u (call $random) (i64.const 1)))
        (call $execute (i32.const 3072) (i32.const 54) (i32.const 4200) (i32.const 2) (i32.const 4400))
        (i32.const 1024)";
    let component = guest(declarations, body);
    let messages = [json!({"order_id": "a"})];
    // Randomness comes from the message unless its consumer wants another.
    let dir = project(place, &component, "", &messages)?;
    good(test(&dir, &[]).await?)?;
    let dir = project(place, &component, "random = \"secure\"", &messages)?;
    let found = test(&dir, &[]).await?;
    assert_eq!(found.code, Some(1), "{found:?}");
    ensure!(
        found
            .stdout
            .contains("two runs of the same message did different things"),
        "{}",
        found.stdout
    );
    Ok(())
}

/// A second attempt is later, is told so, and sends its own idea of things.
pub async fn a_handler_that_another_attempt_changes_is_found(place: &Place) -> Checked {
    let probe = std::fs::read(host::guest("guest_probe")?)?;
    let send = |publish: Value| json!({"order_id": "a", "do": [{"publish": publish}]});
    let same = send(json!({"target": "out", "body": "x", "headers": {"tenant": "north"}}));
    let targets = "targets = { out = { exchange = \"\", routing-key = \"out\" } }";
    let dir = project(place, &probe, targets, std::slice::from_ref(&same))?;
    let report = good(test(&dir, &["--json"]).await?)?.json()?;
    let effect = report["messages"][0]["effects"][0].to_string();
    ensure!(effect.contains("tenant = \\\"north\\\""), "{effect}");

    let changing = [
        json!({"order_id": "a", "do": [{"echo_context": "out"}]}),
        json!({"order_id": "b", "do": [{"retry_until_attempt": 2}]}),
    ];
    let dir = project(place, &probe, targets, &changing)?;
    let found = test(&dir, &[]).await?;
    assert_eq!(found.code, Some(1), "{found:?}");
    for words in [
        "two runs of the same message did different things",
        "\"attempt\":1",
        "\"attempt\":2",
        "\"redelivered\":true",
        "+ done",
        "2 with problems",
    ] {
        ensure!(found.stdout.contains(words), "{words}: {}", found.stdout);
    }
    // Where it is meant it is recorded, and then nothing else will do.
    good(test(&dir, &["--update"]).await?)?;
    good(test(&dir, &[]).await?)?;
    std::fs::write(
        dir.join("messages.jsonl"),
        json!({"body": same}).to_string(),
    )?;
    assert_eq!(test(&dir, &[]).await?.code, Some(1));
    Ok(())
}

pub async fn the_memory_that_is_told_is_the_message_s_own(place: &Place) -> Checked {
    let probe = std::fs::read(host::guest("guest_probe")?)?;
    let messages = [
        json!({"order_id": "large", "do": [{"allocate_mib": 24}]}),
        json!({"order_id": "small", "do": [{"ignored": "it is old"}]}),
    ];
    let dir = project(place, &probe, "", &messages)?;
    let report = good(test(&dir, &["--json"]).await?)?.json()?;
    let memory = |at: usize| report["messages"][at]["peak_memory_bytes"].as_u64();
    ensure!(memory(0) > Some(24 << 20), "{report}");
    ensure!(memory(1) < Some(8 << 20), "{report}");
    assert_eq!(report["messages"][1]["outcome"], "ignored");
    assert_eq!(report["messages"][1]["reason"], "it is old");
    Ok(())
}

pub async fn a_test_on_a_database_leaves_nothing_there(place: &Place) -> Checked {
    let scene = Scene::postgres(place).await?;
    let dir = project(
        place,
        &version(7),
        "",
        &[json!({"order_id": "a"}), json!({"order_id": "b"})],
    )?;
    let database = ["--database", &scene.store.url, "--json"];
    let early = test(&dir, &database).await?;
    assert_eq!(early.code, Some(64), "the tables are missing: {early:?}");
    ensure!(early.stderr.contains("hapax migrate"), "{early:?}");

    let host = Host::start(place, &scene.config("host", scene.probe()?)).await?;
    host.stop().await?;
    let before = scene.store.count("hapax_consumer").await?;
    let report = good(test(&dir, &database).await?)?.json()?;
    assert_eq!(report["messages"][0]["outcome"], "done");
    assert_eq!(
        report["messages"][1]["effects"][0]
            .as_str()
            .map(|text| text.ends_with("[\"b\", 7]")),
        Some(true)
    );
    ensure!(
        report["messages"][0]["kills"].as_u64() > Some(3),
        "{report}"
    );
    for table in ["t_effects", "hapax_ledger", "hapax_outbox", "hapax_waiting"] {
        assert_eq!(scene.store.count(table).await?, 0, "{table}");
    }
    assert_eq!(scene.store.count("hapax_consumer").await?, before);
    Ok(())
}

/// No WASI at all: a core module for `wasm32-unknown-unknown`, made into a component by another tool.
pub async fn a_module_without_wasi_becomes_a_component_that_runs(place: &Place) -> Checked {
    let module = std::fs::read(toolchain::bare_module()?)?;
    let component = ComponentEncoder::default().module(&module)?.encode()?;
    let file = place.dir.join("bare.wasm");
    std::fs::write(&file, component)?;
    let store = Store::sqlite(place);
    orders::create_tables(&store).await?;
    let broker = servers::rabbit().await?.create_vhost().await?;
    broker.declare(&[orders::QUEUE, orders::OUTPUT]).await?;
    let orders = Orders::generate(&mut place.random(), 200, 50);
    let config = Config::new("host", &store.url, &broker.url)
        .consumer(Consumer::points()?.set("plugin", &format!("\"{}\"", file.display())));
    let host = Host::start(place, &config).await?;
    let list = host.cli(&["plugins", "list", "--json"]).await?.json()?;
    let imports = list[0]["imports"].as_array().context("imports")?;
    ensure!(
        imports.iter().all(|import| import
            .as_str()
            .is_some_and(|name| name.starts_with("hapax:plugin/"))),
        "{imports:?}"
    );
    broker.publish(orders::QUEUE, &orders.messages).await?;
    scene::until_settled(&host, &broker, orders::QUEUE, &store).await?;
    host.stop().await?;
    orders::assert_exactly_once(&orders, &store, &broker).await
}

/// What is missing is named, with what to type.
pub async fn a_missing_toolchain_is_named(place: &Place) -> Checked {
    for (lang, name, words) in [
        ("python", "in-python", "pip install componentize-py==0.25.1"),
        ("js", "in-js", "npm install"),
    ] {
        good(host::command(&place.dir, &["new", name, "--lang", lang]).await?)?;
        let nothing =
            host::command_in(&place.dir.join(name), &["build"], &[("VIRTUAL_ENV", "")]).await?;
        if lang == "python" && nothing.code == Some(0) {
            // It is installed for everybody here.
            continue;
        }
        assert_eq!(nothing.code, Some(69), "{nothing:?}");
        ensure!(
            nothing.stderr.contains(words) || nothing.stderr.contains("install Node.js"),
            "{nothing:?}"
        );
    }
    let nowhere = host::command(&place.dir, &["build", "."]).await?;
    assert_eq!(nowhere.code, Some(64), "{nowhere:?}");
    Ok(())
}
