//! What `hapax check` has found, for people and for programs.

use std::fmt::Write as _;

use serde::Serialize;

use crate::config::{Admin, Config, Consumer, Idempotency, Limits, Listen, Random, Retention};
use crate::http::token_place;
use crate::output::{self, BAD, FAINT, GOOD, STRONG, WARNING};
use crate::sandbox::Plugin;
use crate::sandbox::wasi::stands_behind;

/// Digits of a digest that people compare.
const DIGEST_DIGITS: usize = 12;

#[derive(Debug, Serialize)]
pub struct Report {
    pub configuration: String,
    pub store: String,
    pub broker: String,
    pub health: Option<String>,
    pub admin: Option<String>,
    /// What a caller of the admin API shows, or where it is.
    pub admin_token: Option<String>,
    /// Connections that the lanes hold.
    pub lanes: usize,
    pub max_connections: Option<u32>,
    /// How long one statement may take.
    pub statement_timeout: String,
    pub consumers: Vec<ConsumerReport>,
    pub notes: Vec<String>,
    pub warnings: Vec<String>,
    pub problems: Vec<String>,
    pub exit_code: u8,
}

#[derive(Debug, Serialize)]
pub struct ConsumerReport {
    pub name: String,
    pub queue: String,
    pub plugin_path: String,
    /// Absent when it cannot be loaded.
    pub plugin: Option<PluginReport>,
    pub key: Vec<String>,
    pub partition: Vec<String>,
    pub fingerprint: String,
    pub writes: Vec<String>,
    pub reads: Vec<String>,
    /// Beyond the built-in ones that every handler may call.
    pub functions: Vec<String>,
    pub targets: Vec<String>,
    /// It may answer a message wherever that says, beside its targets.
    pub replies: bool,
    pub idempotency: &'static str,
    pub random: &'static str,
    /// Of one message.
    pub limits: Vec<String>,
    /// What bodies may have: to be handled, to be parked whole, and together while they wait in memory.
    pub max_message_bytes: u64,
    pub max_parked_bytes: u64,
    pub prefetch_bytes: u64,
    pub lanes: usize,
    pub prefetch: u16,
    pub batch: usize,
    pub retention: String,
    pub max_attempts: u32,
}

#[derive(Debug, Serialize)]
pub struct PluginReport {
    pub digest: String,
    pub size_bytes: u64,
    pub imports: Vec<String>,
    /// What of WASI is among them.
    pub wasi: Vec<WasiReport>,
}

#[derive(Debug, Serialize)]
pub struct WasiReport {
    pub interface: String,
    /// What the handler finds there.
    pub behind: &'static str,
}

impl PluginReport {
    pub fn new(plugin: &Plugin, random: Random) -> Self {
        let names = plugin.imports().iter().map(|import| import.name.clone());
        Self::of(
            hex::encode(plugin.digest()),
            plugin.size_bytes(),
            names.collect(),
            random,
        )
    }

    fn of(digest: String, size_bytes: u64, imports: Vec<String>, random: Random) -> Self {
        let wasi = imports.iter().filter(|name| name.starts_with("wasi:"));
        Self {
            digest,
            size_bytes,
            wasi: wasi
                .map(|name| WasiReport {
                    interface: name.clone(),
                    behind: stands_behind(name, random),
                })
                .collect(),
            imports,
        }
    }

    fn may_reply(&self) -> bool {
        let outbox = |name: &String| name.starts_with("hapax:plugin/outbox");
        self.imports.iter().any(outbox)
    }
}

impl ConsumerReport {
    pub fn new(consumer: &Consumer, plugin: Option<PluginReport>) -> Self {
        let texts = |sources: &[crate::config::KeySource]| {
            sources.iter().map(ToString::to_string).collect()
        };
        let targets = consumer.targets.iter().map(|(name, target)| {
            let (exchange, key) = (target.exchange.as_str(), target.routing_key.as_str());
            match (exchange, key) {
                ("", "") => format!("{name} → any queue"),
                ("", queue) => format!("{name} → the queue {queue}"),
                (exchange, "") => format!("{name} → exchange {exchange}, any routing key"),
                (exchange, key) => {
                    format!(
                        "{name} → exchange {exchange}, routing key {key} unless it names another"
                    )
                }
            }
        });
        Self {
            replies: plugin.as_ref().is_none_or(PluginReport::may_reply),
            idempotency: match consumer.idempotency {
                Idempotency::On => "on",
                Idempotency::Off => "off",
            },
            random: match consumer.random {
                Random::Seeded => "seeded",
                Random::Secure => "secure",
            },
            limits: limits(&consumer.limits),
            max_message_bytes: consumer.max_message_bytes,
            max_parked_bytes: consumer.max_parked_bytes,
            prefetch_bytes: consumer.prefetch_bytes,
            name: consumer.name.clone(),
            queue: consumer.queue.clone(),
            plugin_path: consumer.plugin.display().to_string(),
            plugin,
            key: match consumer.idempotency {
                Idempotency::On => texts(&consumer.key),
                Idempotency::Off => Vec::new(),
            },
            partition: texts(&consumer.partition),
            fingerprint: consumer.fingerprint.to_string(),
            writes: consumer.grant.write.clone(),
            reads: consumer.grant.read.clone(),
            functions: consumer.grant.functions.clone(),
            targets: targets.collect(),
            lanes: consumer.lanes,
            prefetch: consumer.prefetch,
            batch: consumer.batch,
            retention: match consumer.retention {
                Retention::Forever => "forever".to_owned(),
                Retention::For(duration) => duration_text(duration.as_secs()),
            },
            max_attempts: consumer.retry.max_attempts,
        }
    }
}

/// What one message may use, by kind.
fn limits(limits: &Limits) -> Vec<String> {
    let count = |number: u32, singular| output::count(u64::from(number), singular);
    vec![
        format!(
            "{:?} of processor, {:?} in all; {} of memory, {}; {} passed to the host",
            limits.cpu,
            limits.wall,
            size(limits.memory),
            count(limits.table_elements, "table element"),
            size(limits.hostcall_bytes)
        ),
        format!(
            "SQL: {}, {}, {}; {:?} and {} for the functions of one row",
            count(limits.sql_statements, "statement"),
            count(limits.sql_rows, "row"),
            size(limits.sql_bytes),
            limits.sql_row_time,
            size(limits.sql_row_bytes)
        ),
        format!(
            "sends {}, {}; logs {}",
            count(limits.outbox_messages, "message"),
            size(limits.outbox_bytes),
            size(limits.log_bytes)
        ),
    ]
}

fn size(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units
        .into_iter()
        .find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit))
    {
        Some((unit, name)) => format!("{} {name}", bytes / unit),
        None => output::count(bytes, "byte"),
    }
}

fn duration_text(seconds: u64) -> String {
    let units = [(86_400, "d"), (3_600, "h"), (60, "m")];
    match units
        .into_iter()
        .find(|(unit, _)| seconds >= *unit && seconds.is_multiple_of(*unit))
    {
        Some((unit, name)) => format!("{}{name}", seconds / unit),
        None => format!("{seconds}s"),
    }
}

/// What opens the admin API, without the token itself.
fn admin_token(admin: &Admin, listen: &Listen) -> String {
    match (&admin.token, listen) {
        (Some(_), _) => "`admin.token` of the configuration".to_owned(),
        (None, Listen::Unix(_)) => "none: the socket is for the host's user and root".to_owned(),
        (None, Listen::Tcp(address)) => match token_place(&admin.state, *address) {
            Some(path) if path.exists() => format!("in {}", path.display()),
            Some(path) => format!("in {}, made by the first start", path.display()),
            None => "no place for it: `hapax run` leaves the admin API off".to_owned(),
        },
    }
}

impl Report {
    pub fn new(config: &Config) -> Self {
        Self {
            configuration: config.path.display().to_string(),
            store: config.store.kind.to_string(),
            broker: config.broker.kind.to_string(),
            health: config.health.listen.map(|address| address.to_string()),
            admin: config.admin.listen.as_ref().map(Listen::to_string),
            admin_token: config
                .admin
                .listen
                .as_ref()
                .map(|listen| admin_token(&config.admin, listen)),
            lanes: config.consumers.iter().map(|consumer| consumer.lanes).sum(),
            max_connections: config.store.max_connections,
            statement_timeout: format!("{:?}", config.store.statement_timeout),
            consumers: Vec::new(),
            notes: Vec::new(),
            warnings: Vec::new(),
            problems: Vec::new(),
            exit_code: 0,
        }
    }

    /// The summary, without problems.
    pub fn render(&self) -> String {
        let mut text = String::new();
        let off = || "off".to_owned();
        line(&mut text, "configuration", &self.configuration);
        line(&mut text, "store", &self.store);
        line(&mut text, "broker", &self.broker);
        line(
            &mut text,
            "health",
            &self.health.clone().unwrap_or_else(off),
        );
        line(&mut text, "admin", &self.admin.clone().unwrap_or_else(off));
        if let Some(token) = &self.admin_token {
            line(&mut text, "admin token", token);
        }
        let bound = match self.max_connections {
            Some(max) => format!("store.max-connections is {max}"),
            None => "store.max-connections is not set".to_owned(),
        };
        line(
            &mut text,
            "lanes",
            &format!(
                "{} to the store; {bound}",
                output::count(self.lanes as u64, "connection")
            ),
        );
        line(
            &mut text,
            "statements",
            &format!("{} each at most", self.statement_timeout),
        );
        for consumer in &self.consumers {
            consumer.render(&mut text);
        }
        if !self.notes.is_empty() {
            text.push('\n');
        }
        for note in &self.notes {
            let _ = writeln!(text, "{FAINT}{}{FAINT:#}", output::clean(note));
        }
        if self.problems.is_empty() {
            let _ = writeln!(text, "\n{GOOD}no problems{GOOD:#}");
        }
        text
    }

    /// Warnings and problems.
    pub fn render_problems(&self) -> String {
        let mut text = String::new();
        for warning in &self.warnings {
            let _ = writeln!(
                text,
                "{WARNING}warning{WARNING:#}: {}",
                output::clean_lines(warning)
            );
        }
        for problem in &self.problems {
            let _ = writeln!(text, "{BAD}error{BAD:#}: {}", output::clean_lines(problem));
        }
        text
    }
}

impl ConsumerReport {
    fn render(&self, text: &mut String) {
        let _ = writeln!(text, "\n{STRONG}{}{STRONG:#}", output::clean(&self.name));
        line(text, "  queue", &self.queue);
        match &self.plugin {
            Some(plugin) => {
                let digest = plugin.digest.get(..DIGEST_DIGITS).unwrap_or(&plugin.digest);
                let size = plugin.size_bytes.div_ceil(1024);
                line(
                    text,
                    "  plugin",
                    &format!("{} ({digest}, {size} KiB)", self.plugin_path),
                );
                let own = plugin.imports.iter();
                let own = own.filter(|import| import.starts_with("hapax:"));
                line(text, "  imports", &listed(&own.collect::<Vec<_>>()));
                plugin.render_wasi(text);
            }
            None => line(
                text,
                "  plugin",
                &format!("{} (cannot be loaded)", self.plugin_path),
            ),
        }
        line(
            text,
            "  key",
            &if self.key.is_empty() {
                "none (idempotency = \"off\"): what is delivered again is applied again".to_owned()
            } else {
                self.key.join(" + ")
            },
        );
        if self.partition != self.key && !self.partition.is_empty() {
            line(text, "  partition", &self.partition.join(" + "));
        }
        line(text, "  fingerprint", &self.fingerprint);
        line(
            text,
            "  tables",
            &format!(
                "writes {}; reads {}",
                listed(&self.writes),
                listed(&self.reads)
            ),
        );
        if !self.functions.is_empty() {
            line(text, "  functions", &listed(&self.functions));
        }
        match self.targets.as_slice() {
            [] => line(text, "  targets", "none"),
            targets => targets
                .iter()
                .for_each(|target| line(text, "  target", target)),
        }
        if self.replies {
            line(
                text,
                "  reply",
                "to the queue that a message names as its reply-to",
            );
        }
        line(
            text,
            "  random",
            match self.random {
                "seeded" => "seeded: equal in every attempt",
                _ => "secure: drawn anew in each attempt",
            },
        );
        for (index, limit) in self.limits.iter().enumerate() {
            line(text, if index == 0 { "  limits" } else { "" }, limit);
        }
        line(
            text,
            "  bodies",
            &format!(
                "up to {} handled, up to {} parked whole; {} fetched ahead",
                size(self.max_message_bytes),
                size(self.max_parked_bytes),
                size(self.prefetch_bytes)
            ),
        );
        line(
            text,
            "  runs",
            &format!(
                "{}, prefetch {}, batch {}, {}, remembered {}",
                output::count(self.lanes as u64, "lane"),
                self.prefetch,
                self.batch,
                output::count(u64::from(self.max_attempts), "attempt"),
                self.retention
            ),
        );
    }
}

impl PluginReport {
    /// The interfaces of WASI by what stands behind them: none of them leads anywhere.
    fn render_wasi(&self, text: &mut String) {
        let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
        for WasiReport { interface, behind } in &self.wasi {
            let name = interface
                .split_once('@')
                .map_or(&**interface, |(name, _)| name);
            let name = name.strip_prefix("wasi:").unwrap_or(name);
            match groups.iter_mut().find(|(known, _)| known == behind) {
                Some((_, names)) => names.push(name),
                None => groups.push((behind, vec![name])),
            }
        }
        for (index, (behind, names)) in groups.iter().enumerate() {
            let label = if index == 0 { "  wasi" } else { "" };
            line(text, label, &format!("{}: {behind}", listed(names)));
        }
    }
}

fn listed<T: AsRef<str>>(names: &[T]) -> String {
    match names {
        [] => "none".to_owned(),
        names => names
            .iter()
            .map(AsRef::as_ref)
            .collect::<Vec<_>>()
            .join(", "),
    }
}

fn line(text: &mut String, name: &str, value: &str) {
    let _ = writeln!(text, "{name:<14} {}", output::clean(value));
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{self, Machine};
    use expect_test::expect;

    fn report(plugin: Option<PluginReport>) -> Report {
        let text = r#"
            [store]
            url = "postgres://hapax:hunter2@db.example/shop"
            max-connections = 20
            [broker]
            url = "amqp://guest:hunter2@mq.example:5672/%2f"
            [admin]
            listen = "off"
            [[consumer]]
            name = "points"
            queue = "orders.paid"
            plugin = "points.wasm"
            key = ["header:tenant", "body:/order_id"]
            partition = "body:/user_id"
            grant = { write = ["t_points"], functions = ["tax_rate"] }
            targets = { points-credited = { exchange = "", routing-key = "points.credited" } }
        "#;
        let config = config::parse(Path::new("/etc/hapax/hapax.toml"), text, &Machine)
            .unwrap_or_else(|problems| panic!("{}", problems.render(false)));
        let mut report = Report::new(&config);
        report
            .consumers
            .push(ConsumerReport::new(&config.consumers[0], plugin));
        report
    }

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn the_summary_tells_each_consumers_way_and_no_password() {
        let imports = [
            "hapax:plugin/sql@0.1.0",
            "hapax:plugin/outbox@0.1.0",
            "wasi:io/streams@0.2.6",
            "wasi:clocks/wall-clock@0.2.6",
            "wasi:cli/environment@0.2.6",
            "wasi:filesystem/types@0.2.6",
            "wasi:sockets/tcp@0.2.6",
            "wasi:random/random@0.2.6",
        ];
        let report = report(Some(PluginReport::of(
            "3f2a91c0b2d4e5f6".repeat(4),
            114_000,
            imports.map(str::to_owned).to_vec(),
            Random::Seeded,
        )));
        expect![[r#"
            configuration  /etc/hapax/hapax.toml
            store          postgres://hapax:***@db.example/shop
            broker         amqp://guest:***@mq.example:5672/%2f
            health         127.0.0.1:9471
            admin          off
            lanes          4 connections to the store; store.max-connections is 20
            statements     5s each at most

            points
              queue        orders.paid
              plugin       /etc/hapax/points.wasm (3f2a91c0b2d4, 112 KiB)
              imports      hapax:plugin/sql@0.1.0, hapax:plugin/outbox@0.1.0
              wasi         io/streams: carries what the others have
                           clocks/wall-clock: stands still at the attempt's start
                           cli/environment, filesystem/types: empty
                           sockets/tcp: denied
                           random/random: equal in every attempt, and not guessable
              key          header:tenant + body:/order_id
              partition    body:/user_id
              fingerprint  body
              tables       writes t_points; reads none
              functions    tax_rate
              target       points-credited → the queue points.credited
              reply        to the queue that a message names as its reply-to
              random       seeded: equal in every attempt
              limits       200ms of processor, 5s in all; 64 MiB of memory, 100,000 table elements; 32 MiB passed to the host
                           SQL: 1,000 statements, 100,000 rows, 16 MiB; 2s and 512 MiB for the functions of one row
                           sends 1,000 messages, 16 MiB; logs 64 KiB
              bodies       up to 4 MiB handled, up to 128 MiB parked whole; 64 MiB fetched ahead
              runs         4 lanes, prefetch 1024, batch 256, 5 attempts, remembered 7d

            no problems
        "#]]
        .assert_eq(&plain(&report.render()));
    }

    #[test]
    fn a_plugin_that_cannot_be_loaded_is_a_problem_beside_the_others() {
        let mut report = report(None);
        report.problem(69, "the broker is away");
        report.problem(64, "consumer points: no such file");
        report.warnings.push("fsync is off".into());
        assert_eq!(report.exit_code, 64);
        expect![[r#"
            warning: fsync is off
            error: the broker is away
            error: consumer points: no such file
        "#]]
        .assert_eq(&plain(&report.render_problems()));
        assert!(!report.render().contains("no problems"));
    }
}
