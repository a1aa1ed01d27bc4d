//! The configuration file of a host under test: what every test needs, and whatever one of them
//! wants to say differently.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use crate::support::{place, ports};

/// For messages that something else is to end than their time, however long they have to wait for a processor.
pub const UNHURRIED: &str = r#"{ cpu = "30s", wall = "60s" }"#;

/// A whole file. Each has addresses of its own, so that several hosts can run side by side.
#[derive(Clone)]
pub struct Config {
    /// Names the file and the log of this host.
    pub label: String,
    pub health: SocketAddr,
    store: String,
    broker: String,
    /// What the admin API listens on.
    pub admin: String,
    /// Lines as they stand in their section.
    store_lines: Vec<String>,
    broker_lines: Vec<String>,
    host_lines: Vec<String>,
    log_lines: Vec<String>,
    /// Where plugins are cached: one place for all tests, unless a test is about it.
    cache: PathBuf,
    consumers: Vec<Consumer>,
}

/// One `[[consumer]]`: its fields as TOML.
#[derive(Clone)]
pub struct Consumer {
    fields: Vec<(String, String)>,
}

impl Config {
    /// A host that makes its own tables in the store.
    pub fn new(label: &str, store_url: &str, broker_url: &str) -> Config {
        let address = || SocketAddr::from(([127, 0, 0, 1], ports::free()));
        Config {
            label: label.to_owned(),
            health: address(),
            store: store_url.to_owned(),
            broker: broker_url.to_owned(),
            admin: address().to_string(),
            store_lines: vec!["migrate = true".to_owned()],
            broker_lines: Vec::new(),
            host_lines: Vec::new(),
            log_lines: Vec::new(),
            cache: place::root().join("cache/hapax"),
            consumers: Vec::new(),
        }
    }

    pub fn consumer(mut self, consumer: Consumer) -> Config {
        self.consumers.push(consumer);
        self
    }

    /// The same host with its admin API somewhere else.
    pub fn with_admin(mut self, listen: &str) -> Config {
        self.admin = listen.to_owned();
        self
    }

    /// The same host on another store, or on another way to it.
    pub fn with_store(mut self, url: &str) -> Config {
        self.store = url.to_owned();
        self
    }

    /// Adds a line to `[store]`.
    pub fn store_line(mut self, line: &str) -> Config {
        self.store_lines.push(line.to_owned());
        self
    }

    /// Adds a line to `[broker]`.
    pub fn broker_line(mut self, line: &str) -> Config {
        self.broker_lines.push(line.to_owned());
        self
    }

    /// Adds a line to `[host]`.
    pub fn host_line(mut self, line: &str) -> Config {
        self.host_lines.push(line.to_owned());
        self
    }

    /// Adds a line to `[log]`.
    pub fn log_line(mut self, line: &str) -> Config {
        self.log_lines.push(line.to_owned());
        self
    }

    /// Has this consumer and no other.
    pub fn only(mut self, consumer: Consumer) -> Config {
        self.consumers = vec![consumer];
        self
    }

    /// Keeps components and machine code somewhere else.
    pub fn cache(mut self, place: &Path) -> Config {
        self.cache = place.to_owned();
        self
    }

    /// Sets a field of `[store]` in place of what it was.
    pub fn store_line_instead(mut self, field: &str, value: &str) -> Config {
        let other = |line: &String| !line.starts_with(&format!("{field} ="));
        self.store_lines.retain(other);
        self.store_line(&format!("{field} = {value}"))
    }

    /// Writes the file and returns its path.
    pub fn write(&self, dir: &Path) -> anyhow::Result<PathBuf> {
        let file = dir.join(format!("{}.toml", self.label));
        std::fs::write(&file, self.text()?)?;
        Ok(file)
    }

    fn text(&self) -> anyhow::Result<String> {
        let mut text = String::new();
        writeln!(text, "[store]\nurl = \"{}\"", self.store)?;
        for line in &self.store_lines {
            writeln!(text, "{line}")?;
        }
        writeln!(text, "[broker]\nurl = \"{}\"", self.broker)?;
        for line in &self.broker_lines {
            writeln!(text, "{line}")?;
        }
        writeln!(text, "[host]\ncache = \"{}\"", self.cache.display())?;
        for line in &self.host_lines {
            writeln!(text, "{line}")?;
        }
        writeln!(text, "[log]")?;
        for line in &self.log_lines {
            writeln!(text, "{line}")?;
        }
        writeln!(text, "[health]\nlisten = \"{}\"", self.health)?;
        writeln!(text, "[admin]\nlisten = \"{}\"", self.admin)?;
        for consumer in &self.consumers {
            writeln!(text, "[[consumer]]")?;
            for (field, value) in &consumer.fields {
                writeln!(text, "{field} = {value}")?;
            }
        }
        Ok(text)
    }
}

impl Consumer {
    /// The example of the README: a paid order becomes a row and an event.
    pub fn points() -> anyhow::Result<Consumer> {
        let targets = r#"{ points-credited = { exchange = "", routing-key = "points.credited" } }"#;
        Ok(
            Consumer::running("points", "orders.paid", &guest("points")?)
                .set("grant", r#"{ write = ["t_points"] }"#)
                .set("targets", targets),
        )
    }

    /// The guest that does what the message says, with one target, `out`, a queue of that name.
    pub fn probe(queue: &str) -> anyhow::Result<Consumer> {
        let targets = r#"{ out = { exchange = "", routing-key = "out" } }"#;
        Ok(Consumer::running("probe", queue, &guest("guest_probe")?)
            .set("grant", r#"{ write = ["t_effects"] }"#)
            .set("targets", targets))
    }

    /// Another plugin. Retries come soon: tests wait for them.
    pub fn running(name: &str, queue: &str, plugin: &Path) -> Consumer {
        Consumer { fields: Vec::new() }
            .set("name", &format!("\"{name}\""))
            .set("queue", &format!("\"{queue}\""))
            .set("plugin", &format!("\"{}\"", plugin.display()))
            .set("key", "\"body:/order_id\"")
            .set(
                "retry",
                r#"{ max-attempts = 5, delay = "50ms", max-delay = "200ms" }"#,
            )
    }

    /// Sets a field to a TOML value, in place of what it was.
    pub fn set(mut self, field: &str, value: &str) -> Consumer {
        self.fields.retain(|(name, _)| name != field);
        self.fields.push((field.to_owned(), value.to_owned()));
        self
    }
}

/// The component of a guest that `tests/run` has built.
pub fn guest(name: &str) -> anyhow::Result<PathBuf> {
    let profile = Path::new(super::BINARY).parent();
    let target = profile
        .and_then(Path::parent)
        .context("the binary lies in a target directory")?;
    let component = target.join(format!("wasm32-wasip2/plugin/{name}.wasm"));
    ensure!(
        component.exists(),
        "{} is missing: run tests/run, or cargo build --profile plugin --target wasm32-wasip2 \
         -p points -p 'guest-*'",
        component.display()
    );
    Ok(component)
}
