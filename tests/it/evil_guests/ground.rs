//! One batch with sins in it, from the queue to the tables, on either store.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::component;
use crate::support::broker::Message;
use crate::support::host::{self, Config, Consumer, Host};
use crate::support::place::Place;
use crate::support::scene::{self, IN, OUT, Scene};
use crate::support::store::Fates;
use crate::support::wait;

/// Good messages before and after each sin.
const NEIGHBOURS: usize = 4;

/// Memory that a host may take at its peak, whatever its guests do. One lane runs one instance of 64 MiB; the rest
/// is the host itself, with the compiler that it has used at its start.
const PEAK_BYTES: u64 = 400 << 20;

pub struct Ground<'p> {
    place: &'p Place,
    scene: Scene,
    guest: String,
    component: PathBuf,
    limits: String,
    functions: String,
    text_log: bool,
    /// The guest sends messages, as a good one does.
    sends: bool,
}

/// What is left when all is over.
pub struct Aftermath {
    pub parked: Vec<Parked>,
    /// What the guest said to a sin that it does not know.
    pub after_the_last: String,
    pub log: String,
    pub log_bytes: usize,
}

#[derive(Debug)]
pub struct Parked {
    pub order: String,
    pub code: String,
    pub error: String,
    pub stderr: String,
    pub backtrace: String,
}

impl Aftermath {
    /// The text of the only parked message.
    pub fn only_error(&self) -> anyhow::Result<&str> {
        match self.parked.as_slice() {
            [parked] => Ok(&parked.error),
            other => anyhow::bail!("not one parked message: {other:?}"),
        }
    }
}

impl<'p> Ground<'p> {
    pub fn new(place: &'p Place, scene: Scene, guest: &str) -> anyhow::Result<Ground<'p>> {
        let component = match guest {
            "table_bomb" => component::of_table_bomb(&place.dir)?,
            "hostile_debug_information" => component::with_hostile_debug_information(
                &place.dir,
                &host::guest("guest_recursion")?,
            )?,
            _ => host::guest(&format!("guest_{guest}"))?,
        };
        Ok(Ground {
            place,
            scene,
            guest: guest.to_owned(),
            component,
            limits: "{}".to_owned(),
            functions: "[]".to_owned(),
            text_log: false,
            sends: true,
        })
    }

    pub fn limits(mut self, toml: &str) -> Self {
        self.limits = toml.to_owned();
        self
    }

    pub fn functions(mut self, toml: &str) -> Self {
        self.functions = toml.to_owned();
        self
    }

    /// The host's log is as people read it.
    pub fn text_log(mut self) -> Self {
        self.text_log = true;
        self
    }

    /// The guest sends nothing, even when it is good.
    pub fn silent(mut self) -> Self {
        self.sends = false;
        self
    }

    /// Runs one sin after another, each between good neighbours, and insists that all of them are parked with
    /// `code` and that everything else has committed. The last sin is followed by one that the guest may not know.
    pub async fn run(self, sins: &[Value], code: &str) -> anyhow::Result<Aftermath> {
        self.run_each(sins, &vec![code; sins.len()]).await
    }

    /// The same where each sin has a code of its own.
    pub async fn run_each(self, sins: &[Value], codes: &[&str]) -> anyhow::Result<Aftermath> {
        self.prepare().await?;
        let (mut messages, mut good, mut bad) = (Vec::new(), Vec::new(), Vec::new());
        let mut neighbours = |messages: &mut Vec<Value>, number: usize| {
            for index in 0..NEIGHBOURS {
                let order = format!("good-{number:02}-{index}");
                messages.push(json!({"order_id": order}));
                good.push(order);
            }
        };
        for (number, (sin, code)) in sins.iter().zip(codes).enumerate() {
            neighbours(&mut messages, number);
            let order = format!("sin-{number:02}");
            messages.push(json!({"order_id": order, "sin": sin}));
            bad.push(format!("{order} {code}"));
        }
        neighbours(&mut messages, sins.len());
        // Statements have numbers, and the guest says when there are no more.
        let unknown = sins.first().is_some_and(Value::is_number) && sins.len() > 1;
        if unknown {
            messages.push(json!({"order_id": "unknown", "sin": sins.len()}));
            bad.push("unknown rejected".to_owned());
        }
        self.publish(&messages).await?;

        let config = self.config()?;
        let mut host = Host::start(self.place, &config).await?;
        host.until_metric("hapax_parked_total", bad.len() as u64)
            .await?;
        host.until_metric("hapax_committed_total", good.len() as u64)
            .await?;
        ensure!(host.is_running()?, "the host is gone");
        let peak = host.peak_memory_bytes()?;
        ensure!(
            peak < PEAK_BYTES,
            "the host has taken {peak} bytes of memory"
        );
        self.until_sent(&host).await?;
        host.stop().await?;

        let mut parked = self.parked().await?;
        let found: Vec<String> = parked
            .iter()
            .map(|parked| format!("{} {}", parked.order, parked.code))
            .collect();
        ensure!(found == bad, "parked are {parked:#?}, not {bad:?}");
        self.assert_effects(&good).await?;
        let fates = Fates {
            committed: i64::try_from(good.len())?,
            parked: i64::try_from(bad.len())?,
            ..Fates::default()
        };
        self.scene.assert_fates(fates).await?;

        let after_the_last = match unknown {
            true => parked.pop().map(|parked| parked.error).unwrap_or_default(),
            false => String::new(),
        };
        let log = std::fs::read(self.place.dir.join("host.log"))?;
        Ok(Aftermath {
            parked,
            after_the_last,
            log_bytes: log.len(),
            log: String::from_utf8_lossy(&log).into_owned(),
        })
    }

    /// A hundred rows that the guest may read, and a million pairs of pairs.
    async fn prepare(&self) -> anyhow::Result<()> {
        let rows: Vec<String> = (0..100).map(|number| format!("('{number}')")).collect();
        let parents = format!("INSERT INTO t_parents (id) VALUES {}", rows.join(", "));
        self.scene.store.execute(&parents).await
    }

    fn config(&self) -> anyhow::Result<Config> {
        let retry = r#"{ max-attempts = 2, delay = "20ms", max-delay = "50ms" }"#;
        let consumer = Consumer::running(&self.guest.replace('_', "-"), IN, &self.component)
            .set("lanes", "1")
            .set("retry", retry)
            .set("limits", &self.limits)
            .set(
                "grant",
                &format!(
                    r#"{{ write = ["t_effects"], read = ["t_parents"], functions = {} }}"#,
                    self.functions
                ),
            )
            .set(
                "targets",
                r#"{ out = { exchange = "", routing-key = "out" } }"#,
            );
        let config = match self.scene.store.is_postgres() {
            true => self.scene.config("host", consumer),
            false => Config::new("host", &self.scene.store.url, "embedded:").consumer(consumer),
        };
        Ok(match self.text_log {
            true => config.log_line("format = \"text\""),
            false => config,
        })
    }

    async fn publish(&self, messages: &[Value]) -> anyhow::Result<()> {
        if self.scene.store.is_postgres() {
            let messages: Vec<Message> = messages.iter().map(Message::json).collect();
            return self.scene.publish(&messages).await;
        }
        let lines: Vec<String> = messages
            .iter()
            .map(|message| format!("{}\n", json!({"body": message})))
            .collect();
        let file = self.place.dir.join("messages.jsonl");
        std::fs::write(&file, lines.concat())?;
        let file = file.to_str().context("the path is not UTF-8")?;
        let config = self.config()?.write(&self.place.dir)?;
        let published = host::cli(&config, &["publish", "--queue", IN, "--file", file]).await?;
        ensure!(published.code == Some(0), "{published:?}");
        Ok(())
    }

    async fn until_sent(&self, host: &Host) -> anyhow::Result<()> {
        let store = &self.scene.store;
        if store.is_postgres() {
            return scene::until_settled(host, &self.scene.broker, IN, store).await;
        }
        wait::until_equal("the messages in the queue", 0, async || {
            store.number(&in_queue("count(*)", IN)).await
        })
        .await?;
        store.until_outbox_empty().await
    }

    /// Nothing but what the good messages did, and what a guest may not make is not there.
    async fn assert_effects(&self, good: &[String]) -> anyhow::Result<()> {
        let store = &self.scene.store;
        let rows: Vec<String> = good.iter().map(|order| format!("{order}/0")).collect();
        ensure!(
            self.scene.effects().await? == rows,
            "{:?}",
            self.scene.effects().await?
        );

        let mut sent = match store.is_postgres() {
            true => self.scene.sent().await?,
            false => {
                // Copies with one message id count once.
                let rows = format!(
                    "DISTINCT hex(properties), CAST(body AS TEXT) AS body FROM ({})",
                    in_queue("*", OUT)
                );
                let bodies = store
                    .texts(&format!("SELECT body FROM (SELECT {rows})"))
                    .await?;
                let order = |body: &String| {
                    let body: Value = serde_json::from_str(body)?;
                    Ok(body["order_id"].as_str().context("no order")?.to_owned())
                };
                bodies.iter().map(order).collect::<anyhow::Result<_>>()?
            }
        };
        sent.sort();
        match self.sends {
            true => ensure!(sent == good, "sent were {sent:?}"),
            false => ensure!(sent.is_empty(), "sent were {sent:?}"),
        }

        let evil = match store.is_postgres() {
            true => {
                "SELECT (SELECT count(*) FROM pg_class WHERE relname LIKE 'evil%') + \
                 (SELECT count(*) FROM pg_proc WHERE proname LIKE 'evil%') + \
                 (SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'evil%') + \
                 (SELECT count(*) FROM pg_prepared_xacts)"
            }
            false => "SELECT count(*) FROM sqlite_master WHERE name LIKE 'evil%'",
        };
        ensure!(
            store.number(evil).await? == 0,
            "the guest has changed the schema"
        );
        let counters = "SELECT CAST(count(*) + sum(total) AS BIGINT) FROM t_counters";
        ensure!(
            store.number(counters).await? == 3,
            "another consumer's table was written"
        );
        Ok(())
    }

    /// What is parked, by order.
    async fn parked(&self) -> anyhow::Result<Vec<Parked>> {
        let key = match self.scene.store.is_postgres() {
            true => "convert_from(key, 'UTF8')",
            false => "CAST(key AS TEXT)",
        };
        let sql = format!(
            "SELECT {key} || '\u{1}' || code || '\u{1}' || error || '\u{1}' || stderr \
             || '\u{1}' || backtrace FROM hapax_waiting \
             WHERE status = 'parked' ORDER BY key"
        );
        let rows = self.scene.store.texts(&sql).await?;
        let parked = rows.iter().map(|row| {
            let mut fields = row.splitn(5, '\u{1}').map(str::to_owned);
            let mut next = || fields.next().context("the query returns five fields");
            Ok(Parked {
                order: next()?,
                code: next()?,
                error: next()?,
                stderr: next()?,
                backtrace: next()?,
            })
        });
        parked.collect()
    }
}

/// A query over the messages of an embedded queue.
fn in_queue(columns: &str, queue: &str) -> String {
    format!(
        "SELECT {columns} FROM hapax_message WHERE queue = \
         (SELECT id FROM hapax_queue WHERE name = '{queue}')"
    )
}
