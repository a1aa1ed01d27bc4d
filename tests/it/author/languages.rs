//! Handlers in Python and JavaScript: built by their toolchains and run on the real host.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::json;

use crate::Checked;
use crate::support::broker::Message;
use crate::support::host::{self, Config, Consumer, Host, UNHURRIED};
use crate::support::orders::{self, Orders};
use crate::support::place::Place;
use crate::support::scene::{self, IN, OUT, Scene};
use crate::support::servers;
use crate::support::store::Store;
use crate::support::wait;

use super::{good, root, test};

/// A language that brings its own runtime.
struct Language {
    /// As `hapax new --lang` calls it.
    name: &'static str,
    /// The plugin of this repository whose toolchain is used, and where it lies there.
    plugin: &'static str,
    toolchain: &'static str,
    /// Part of the SDK that each project has a copy of.
    sdk: &'static [&'static str],
    /// What a failure that nobody foresaw shows: the file and the line of `unforeseen` in `tests/handlers`.
    line: &'static str,
}

const PYTHON: Language = Language {
    name: "python",
    plugin: "points-python",
    toolchain: ".venv",
    sdk: &[],
    line: "handler.py\", line 43, in unforeseen",
};

const JAVASCRIPT: Language = Language {
    name: "js",
    plugin: "points-js",
    toolchain: "node_modules",
    sdk: &["hapax.js"],
    line: "unforeseen@",
};

impl Language {
    fn plugin(&self) -> PathBuf {
        root().join("plugins").join(self.plugin)
    }

    /// Lends a project the toolchain that `tests/run` has installed elsewhere.
    fn lend_toolchain(&self, project: &Path) -> Checked {
        let toolchain = self.plugin().join(self.toolchain).canonicalize()?;
        symlink(toolchain, project.join(self.toolchain))?;
        Ok(())
    }

    /// Builds a project and returns the path of its component.
    async fn build(&self, place: &Place, dir: &Path) -> anyhow::Result<PathBuf> {
        let dir = dir.to_str().context("the path is text")?;
        let built = ["build", dir, "--quiet", "--json"];
        let built = good(host::command(&place.dir, &built).await?)?.json()?;
        Ok(PathBuf::from(built["path"].as_str().context("a path")?))
    }

    /// Each order once, and a message that is none parked.
    async fn credits_points(&self, place: &Place) -> Checked {
        let component = self.build(place, &self.plugin()).await?;
        let store = Store::sqlite(place);
        orders::create_tables(&store).await?;
        let broker = servers::rabbit().await?.create_vhost().await?;
        broker.declare(&[orders::QUEUE, orders::OUTPUT]).await?;
        let orders = Orders::generate(&mut place.random(), 300, 60);
        let consumer = Consumer::points()?
            .set("plugin", &format!("\"{}\"", component.display()))
            .set("limits", UNHURRIED);
        let config = Config::new("host", &store.url, &broker.url).consumer(consumer);
        let host = Host::start_patiently(place, &config).await?;
        broker.publish(orders::QUEUE, &orders.messages).await?;
        scene::until_settled(&host, &broker, orders::QUEUE, &store).await?;
        let complaints = orders::complaints_of_store(&orders, &store).await?;
        ensure!(complaints.is_empty(), "{complaints}");

        // What the handler throws is a verdict.
        let bad = [
            json!({"order_id": "bad-1", "user_id": "ada"}),
            json!({"order_id": "order-000001", "user_id": "x", "amount_cents": 1}),
        ];
        let bad: Vec<_> = bad.iter().map(Message::json).collect();
        broker.publish(orders::QUEUE, &bad).await?;
        wait::until_equal("the parked messages", 2, async || {
            store.count("hapax_waiting").await
        })
        .await?;
        let reasons = store
            .texts("SELECT code || ' ' || CAST(error AS TEXT) FROM hapax_waiting ORDER BY 1")
            .await?;
        ensure!(reasons[0].starts_with("key-reused"), "{reasons:?}");
        ensure!(
            reasons[1].starts_with("rejected this is no order"),
            "{reasons:?}"
        );
        host.stop().await
    }

    /// Queries, values, state, context, reply, log and retry, on Postgres, which has a type for each value.
    async fn uses_all_of_the_world(&self, place: &Place) -> Checked {
        let dir = place.dir.join("handler");
        std::fs::create_dir(&dir)?;
        let sources = root().join("tests/handlers").join(self.name);
        for entry in std::fs::read_dir(sources)? {
            let path = entry?.path();
            std::fs::copy(&path, dir.join(path.file_name().context("it has a name")?))?;
        }
        for file in self.sdk {
            std::fs::copy(
                root().join("guest-sdk").join(self.name).join(file),
                dir.join(file),
            )?;
        }
        self.lend_toolchain(&dir)?;
        let component = self.build(place, &dir).await?;

        let scene = Scene::postgres(place).await?;
        scene
            .store
            .execute(
                "CREATE TABLE t_values (id TEXT PRIMARY KEY, flag BOOLEAN, whole BIGINT, part FLOAT8, \
                 exact NUMERIC(10, 2), words TEXT, raw BYTEA, moment TIMESTAMPTZ, number UUID, tree JSONB, \
                 nothing TEXT)",
            )
            .await?;
        let consumer = Consumer::running("all-of-it", IN, &component)
            .set("grant", r#"{ write = ["t_values"] }"#)
            .set("config", r#"{ rate = "10" }"#)
            .set("limits", UNHURRIED)
            .set(
                "targets",
                r#"{ out = { exchange = "", routing-key = "out" } }"#,
            );
        let host = Host::start_patiently(place, &scene.config("host", consumer)).await?;
        let wishes = [
            json!({"order_id": "o-1", "wish": "all"}),
            json!({"order_id": "o-2", "wish": "ignored"}),
            json!({"order_id": "o-3", "wish": "unforeseen"}),
        ];
        let wishes: Vec<_> = wishes.iter().map(asked).collect();
        scene.publish(&wishes).await?;
        scene::until_settled(&host, &scene.broker, IN, &scene.store).await?;

        let parked =
            "SELECT code || ' ' || encode(key, 'escape') || ' ' || error FROM hapax_waiting";
        let parked = scene.store.texts(parked).await?;
        ensure!(
            parked.len() == 1 && parked[0].contains("o-3"),
            "the handler says: {parked:?}"
        );
        let shown = host.cli(&["parked", "list", "--json"]).await?.json()?;
        let id = shown[0]["id"].as_str().context("an id")?;
        let shown = host.cli(&["parked", "show", id]).await?;
        ensure!(
            shown.stdout.contains(self.line),
            "no line: {}",
            shown.stdout
        );

        assert_eq!(host.metric("hapax_ignored_total").await?, 1);
        assert_eq!(host.metric("hapax_committed_total").await?, 2);
        host.stop().await?;
        let mut sent = Vec::new();
        for message in scene.broker.drain(OUT).await? {
            sent.push(String::from_utf8(message.body)?);
        }
        sent.sort();
        let sent: Vec<_> = sent.iter().map(|body| body.replace(' ', "")).collect();
        assert_eq!(sent, [r#"{"answer":42}"#, r#"{"attempt":2}"#]);
        ensure!(place.log("host")?.contains("all is well"), "no log line");
        Ok(())
    }

    /// What `hapax new` makes is built by its toolchain, and does what its sample says.
    async fn begins_a_project(&self, place: &Place) -> Checked {
        let new = ["new", "shop-points", "--lang", self.name];
        good(host::command(&place.dir, &new).await?)?;
        let dir = place.dir.join("shop-points");
        self.lend_toolchain(&dir)?;
        self.build(place, &dir).await?;
        let report = good(test(&dir, &["--json"]).await?)?.json()?;
        assert_eq!(report["passed"], true);
        assert_eq!(report["messages"][0]["outcome"], "done");
        let effects = report["messages"][0]["effects"].to_string();
        ensure!(effects.contains("INSERT INTO t_points"), "{effects}");
        ensure!(effects.contains("send to points-credited"), "{effects}");
        Ok(())
    }
}

/// A message with everything that a handler may look at.
fn asked(body: &serde_json::Value) -> Message {
    let mut headers = FieldTable::default();
    headers.insert("tenant".into(), AMQPValue::LongString("north".into()));
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    headers.insert("traceparent".into(), AMQPValue::LongString(trace.into()));
    Message {
        body: body.to_string().into_bytes(),
        properties: BasicProperties::default()
            .with_content_type("application/json".into())
            .with_correlation_id("c-1".into())
            .with_reply_to(OUT.into())
            .with_headers(headers),
    }
}

pub async fn the_points_handler_in_python_credits_each_order_once(place: &Place) -> Checked {
    PYTHON.credits_points(place).await
}

pub async fn the_points_handler_in_javascript_credits_each_order_once(place: &Place) -> Checked {
    JAVASCRIPT.credits_points(place).await
}

pub async fn a_handler_in_python_uses_all_of_the_world(place: &Place) -> Checked {
    PYTHON.uses_all_of_the_world(place).await
}

pub async fn a_handler_in_javascript_uses_all_of_the_world(place: &Place) -> Checked {
    JAVASCRIPT.uses_all_of_the_world(place).await
}

pub async fn a_new_python_project_is_built_and_tested(place: &Place) -> Checked {
    PYTHON.begins_a_project(place).await
}

pub async fn a_new_javascript_project_is_built_and_tested(place: &Place) -> Checked {
    JAVASCRIPT.begins_a_project(place).await
}

/// The tests that those handlers bring along, which are also those of their SDKs.
pub async fn the_handlers_in_other_languages_pass_their_own_tests(_place: &Place) -> Checked {
    let plugins = root().join("plugins");
    let sdk = root().join("guest-sdk/python");
    let runs: [(&str, &str, &[&str]); 2] = [
        ("points-python", "python3", &["-B", "-m", "unittest"]),
        ("points-js", "node", &["--test"]),
    ];
    for (plugin, program, arguments) in runs {
        let output = Command::new(program)
            .args(arguments)
            .current_dir(plugins.join(plugin))
            .env("PYTHONPATH", &sdk)
            .output()?;
        ensure!(
            output.status.success(),
            "{plugin}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}
