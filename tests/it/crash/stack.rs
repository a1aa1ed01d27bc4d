//! The ways to run a host: on servers, or on nothing but a file. On servers the queue is one that the host declares.

use std::fmt;

use anyhow::{Context, ensure};
use hapax::failpoint::Point;

use crate::support::broker::{Message, VirtualHost};
use crate::support::declared::Declared;
use crate::support::host::{self, Config, Consumer, Host};
use crate::support::place::Place;
use crate::support::scene::{IN, OUT, RETRIES, TABLES, VERDICTS};
use crate::support::store::Store;
use crate::support::wait;

use super::scenario::Day;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stack {
    /// PostgreSQL, and a queue of RabbitMQ.
    Servers(Declared),
    /// SQLite and the broker that is in it.
    File,
}

impl Stack {
    /// Where the host is killed at every point.
    pub const ALL: [Stack; 2] = [Stack::Servers(Declared::QUORUM), Stack::File];

    /// Where it is killed at some: at those where messages come back to the queue in each way there is.
    pub const OTHERS: [Stack; 3] = [
        Stack::Servers(Declared::CLASSIC),
        Stack::Servers(Declared::QUORUM_4),
        Stack::Servers(Declared::CLASSIC_4),
    ];

    /// `Err` says why the tests on it have to be skipped.
    pub fn is_there(self) -> Result<(), String> {
        match self {
            Stack::Servers(declared) => declared.release.is_there(),
            Stack::File => Ok(()),
        }
    }

    /// The stack whose days without a crash are those of this one: a day leaves the same, whatever the queue.
    pub fn like(self) -> Stack {
        match self {
            Stack::Servers(_) => Stack::Servers(Declared::QUORUM),
            Stack::File => Stack::File,
        }
    }
}

impl fmt::Display for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stack::Servers(declared) => write!(f, "postgres_and_{declared}"),
            Stack::File => f.write_str("sqlite_and_embedded"),
        }
    }
}

/// One test's store, queues and configuration.
pub struct World {
    pub stack: Stack,
    pub store: Store,
    /// Absent where the broker is in the store.
    pub broker: Option<VirtualHost>,
    pub day: Day,
    pub consumer: Consumer,
    pub config: Config,
}

impl World {
    /// Business tables and queues. The host's own tables are not there yet.
    pub async fn new(place: &Place, stack: Stack, day: Day) -> anyhow::Result<World> {
        let (store, broker) = match stack {
            Stack::Servers(declared) => {
                let broker = declared.create_vhost().await?;
                broker.declare(&[OUT]).await?;
                (Store::postgres().await?, Some(broker))
            }
            Stack::File => (Store::sqlite(place), None),
        };
        store.execute(TABLES).await?;
        // A copy of its own, which an operator replaces.
        let plugin = place.dir.join("probe.wasm");
        std::fs::copy(host::guest("guest_probe")?, &plugin)?;
        let tables = r#"{ write = ["t_effects", "t_counters"], read = ["t_parents"] }"#;
        // Nothing is bound to it on a server; the embedded broker makes the queue of each target.
        let exchange = match stack {
            Stack::Servers(_) => "amq.direct",
            Stack::File => "",
        };
        let targets = format!(
            r#"{{ out = {{ exchange = "", routing-key = "out" }}, nowhere = {{ exchange = "{exchange}", routing-key = "nowhere" }} }}"#
        );
        let probe = Consumer::probe(IN)?
            .set("plugin", &format!("\"{}\"", plugin.display()))
            .set("grant", tables)
            .set("targets", &targets)
            .set("batch", "8")
            .set(
                "retry",
                r#"{ max-attempts = 3, delay = "20ms", max-delay = "50ms" }"#,
            );
        // SQLite has one writer, and so one lane.
        let probe = match stack {
            Stack::Servers(declared) => declared.by(probe).set("lanes", "2"),
            Stack::File => probe,
        };
        let probe = match day {
            Day::Ordinary | Day::Mended | Day::Rekeyed => probe,
            Day::Expiring => probe.set("retention", "\"1s\""),
            Day::Lines => probe
                .set("partition", "\"body:/line\"")
                .set("order", "\"strict\"")
                .set("on-duplicate", "\"reply\""),
        };
        if let (Stack::Servers(declared), Some(broker)) = (stack, &broker) {
            declared.make(place, broker, probe.clone()).await?;
        }
        let mut world = World {
            stack,
            store,
            broker,
            day,
            consumer: probe.clone(),
            config: Config::new("host", "", ""),
        };
        let url = world.store.url.clone();
        world.config = world.config_on(&url, probe);
        Ok(world)
    }

    fn config_on(&self, store_url: &str, consumer: Consumer) -> Config {
        let broker = self.broker.as_ref();
        let broker = broker.map_or("embedded:", |broker| &broker.url);
        Config::new("host", store_url, broker)
            .store_line("lock-timeout = \"300ms\"")
            .consumer(consumer)
    }

    /// Another version of the plugin, which does the same.
    pub fn next_version(&self, place: &Place) -> anyhow::Result<String> {
        let mut component = std::fs::read(host::guest("guest_probe")?)?;
        // A custom section of three bytes, which hold its name.
        component.extend([0, 3, 2, b'v', b'2']);
        let file = place.dir.join("next.wasm");
        std::fs::write(&file, component)?;
        Ok(file.to_str().context("the path is not UTF-8")?.to_owned())
    }

    pub async fn publish(&self, place: &Place, messages: &[Message]) -> anyhow::Result<()> {
        if let Some(broker) = &self.broker {
            return broker.publish(IN, messages).await;
        }
        let mut lines = String::new();
        for message in messages {
            let body = std::str::from_utf8(&message.body)?;
            let properties = match message.properties.reply_to() {
                Some(queue) => format!("{{\"reply_to\": \"{queue}\"}}"),
                None => "{}".to_owned(),
            };
            lines.push_str(&format!(
                "{{\"properties\": {properties}, \"body\": {body}}}\n"
            ));
        }
        let file = place.dir.join("messages.jsonl");
        std::fs::write(&file, lines)?;
        let file = file.to_str().context("the path is not UTF-8")?;
        let arguments = ["publish", "--queue", IN, "--file", file];
        let published = host::cli(&self.config.write(&place.dir)?, &arguments).await?;
        ensure!(published.code == Some(0), "{published:?}");
        Ok(())
    }

    /// Runs a host until it kills itself at `point`, if it does so without being asked for anything.
    pub async fn killed_at(&self, place: &Place, point: Point, passage: u64) -> anyhow::Result<()> {
        let order = order(point, passage);
        let host = Host::launch_armed(place, &self.config, Some(&order))?;
        host.until_killed_at(point).await
    }

    /// Waits until every delivery has its verdict, nothing waits for a retry, and all that could be sent is.
    pub async fn until_settled(&self, host: &mut Host) -> anyhow::Result<()> {
        let mut before = None;
        wait::until("everything to be settled", wait::PATIENCE, async || {
            let deliveries = host.metric("hapax_deliveries_total").await?;
            let from_the_table = host.metric("hapax_retried_total").await?;
            let mut verdicts = 0;
            for name in VERDICTS {
                verdicts += host.metric(name).await?;
            }
            let left = match &self.broker {
                Some(broker) => {
                    let depth = broker.depth(IN).await?;
                    // A quorum queue whose leader is slow to answer says that it is empty and has no consumers.
                    let paused = "SELECT count(*) FROM hapax_consumer WHERE paused_at IS NOT NULL";
                    if depth.consumers == 0 && self.store.number(paused).await? == 0 {
                        return Ok(None);
                    }
                    i64::from(depth.ready)
                }
                None => self.left_in_file(IN).await?,
            };
            let unsent = "SELECT count(*) FROM hapax_outbox WHERE error IS NULL";
            let settled = left == 0
                && verdicts >= deliveries + from_the_table
                && self.store.number(RETRIES).await? == 0
                && self.store.number(unsent).await? == 0;
            // Twice the same: what the broker has sent may not have arrived the first time.
            let now = settled.then_some(deliveries);
            Ok((settled && std::mem::replace(&mut before, now) == now).then_some(()))
        })
        .await?;
        ensure!(host.is_running()?, "the host has ended");
        Ok(())
    }

    /// Messages that are left in the queue when no host runs.
    pub async fn left_over(&self) -> anyhow::Result<i64> {
        match &self.broker {
            Some(broker) => Ok(i64::from(broker.left_over(IN).await?)),
            None => self.left_in_file(IN).await,
        }
    }

    async fn left_in_file(&self, queue: &str) -> anyhow::Result<i64> {
        let sql = format!(
            "SELECT count(*) FROM hapax_message WHERE queue = \
             (SELECT id FROM hapax_queue WHERE name = '{queue}')"
        );
        self.store.number(&sql).await
    }

    /// `message id` and body of everything that was sent, copies once.
    pub async fn sent(&self) -> anyhow::Result<Vec<String>> {
        let mut sent = Vec::new();
        if let Some(broker) = &self.broker {
            for received in broker.drain(OUT).await? {
                let body = String::from_utf8_lossy(&received.body);
                sent.push(format!("{} {body}", received.message_id()?));
            }
        } else {
            let columns = |column: &str| {
                format!(
                    "SELECT {column} FROM hapax_message WHERE queue = \
                     (SELECT id FROM hapax_queue WHERE name = '{OUT}') ORDER BY sequence"
                )
            };
            let properties = self.store.bytes(&columns("properties")).await?;
            let bodies = self.store.bytes(&columns("body")).await?;
            for (properties, body) in properties.iter().zip(bodies) {
                let properties = hapax::message::decode_properties(properties)
                    .context("the stored properties cannot be read")?;
                let id = properties.message_id().as_ref().context("no message id")?;
                sent.push(format!("{id} {}", String::from_utf8_lossy(&body)));
            }
        }
        sent.sort();
        sent.dedup();
        Ok(sent)
    }
}

/// The order that kills at a passage of a point.
pub fn order(point: Point, passage: u64) -> String {
    format!("{point}@{passage}=kill")
}
