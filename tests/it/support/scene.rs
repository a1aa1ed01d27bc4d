//! What most tests begin with: a store, a virtual host with two queues, and the probe guest,
//! which does what its message says.

use std::time::Duration;

use serde_json::{Value, json};

use crate::Checked;

use super::broker::{Message, Received, VirtualHost};
use super::declared::Declared;
use super::host::{Config, Consumer, Host};
use super::place::Place;
use super::servers::{self, Release};
use super::store::{Fates, Store};
use super::wait;

/// What the probe takes its messages from, and where its target `out` leads.
pub const IN: &str = "in";
pub const OUT: &str = "out";

/// The tables that the probe may write.
pub const TABLES: &str = "
    CREATE TABLE t_effects (
        order_id VARCHAR(600) NOT NULL,
        step     BIGINT NOT NULL,
        CONSTRAINT t_effects_once UNIQUE (order_id, step),
        CONSTRAINT t_effects_positive CHECK (step >= 0)
    );
    CREATE TABLE t_counters (id VARCHAR(20) NOT NULL PRIMARY KEY, total BIGINT NOT NULL);
    CREATE TABLE t_parents (id VARCHAR(20) NOT NULL PRIMARY KEY);
    CREATE TABLE t_children (
        id     VARCHAR(20) NOT NULL PRIMARY KEY,
        parent VARCHAR(20) NOT NULL REFERENCES t_parents (id)
    );
    INSERT INTO t_counters VALUES ('a', 0), ('b', 0), ('c', 0);
";

pub struct Scene {
    pub store: Store,
    pub broker: VirtualHost,
    /// How the hosts declare the queue `in`; otherwise the test has made it.
    pub declared: Option<Declared>,
}

impl Scene {
    pub async fn postgres(_place: &Place) -> anyhow::Result<Scene> {
        Scene::with(Store::postgres().await?).await
    }

    pub async fn sqlite(place: &Place) -> anyhow::Result<Scene> {
        Scene::with(Store::sqlite(place)).await
    }

    pub async fn with(store: Store) -> anyhow::Result<Scene> {
        store.execute(TABLES).await?;
        let broker = servers::rabbit().await?.create_vhost().await?;
        broker.declare(&[IN, OUT]).await?;
        Ok(Scene {
            store,
            broker,
            declared: None,
        })
    }

    /// On PostgreSQL, with a queue that hosts declare, and one has.
    pub async fn declared(place: &Place, declared: Declared) -> anyhow::Result<Scene> {
        Scene::declared_on(Store::postgres().await?, place, declared).await
    }

    pub async fn declared_on(
        store: Store,
        place: &Place,
        declared: Declared,
    ) -> anyhow::Result<Scene> {
        store.execute(TABLES).await?;
        let broker = declared.create_vhost().await?;
        broker.declare(&[OUT]).await?;
        declared.make(place, &broker, Consumer::probe(IN)?).await?;
        Ok(Scene {
            store,
            broker,
            declared: Some(declared),
        })
    }

    /// The probe as most tests want it: retries come soon, and it may write every table.
    pub fn probe(&self) -> anyhow::Result<Consumer> {
        let tables =
            r#"{ write = ["t_effects", "t_counters", "t_children"], read = ["t_parents"] }"#;
        let probe = Consumer::probe(IN)?.set("grant", tables);
        Ok(match self.declared {
            Some(declared) => declared.by(probe),
            None => probe,
        })
    }

    /// The RabbitMQ that the queues are on.
    pub fn release(&self) -> Release {
        self.declared
            .map_or(Release::Installed, |declared| declared.release)
    }

    /// A host with one consumer.
    pub fn config(&self, label: &str, consumer: Consumer) -> Config {
        Config::new(label, &self.store.url, &self.broker.url).consumer(consumer)
    }

    /// The same through another URL of the store, such as another role's. The schema is there.
    pub fn config_on(&self, label: &str, store: &str, consumer: Consumer) -> Config {
        Config::new(label, store, &self.broker.url)
            .consumer(consumer)
            .store_line_instead("migrate", "false")
    }

    pub async fn publish(&self, messages: &[Message]) -> anyhow::Result<()> {
        self.broker.publish(IN, messages).await
    }

    /// Waits until everything has been dealt with, and stops the host.
    pub async fn finish(&self, host: Host) -> anyhow::Result<()> {
        until_settled(&host, &self.broker, IN, &self.store).await?;
        host.stop().await?;
        let left_over = self.broker.left_over(IN).await?;
        anyhow::ensure!(
            left_over == 0,
            "{left_over} messages were given back to the queue"
        );
        Ok(())
    }

    /// Insists on the fates of all keys.
    pub async fn assert_fates(&self, expected: Fates) -> anyhow::Result<()> {
        let found = self.store.fates().await?;
        anyhow::ensure!(found == expected, "fates are {found:?}, not {expected:?}");
        Ok(())
    }

    /// What the probe's messages wrote to `t_effects`, as `order/step`, sorted.
    pub async fn effects(&self) -> anyhow::Result<Vec<String>> {
        let sql = "SELECT order_id || '/' || step FROM t_effects";
        let mut effects = self.store.texts(sql).await?;
        effects.sort();
        Ok(effects)
    }

    /// The order ids in the bodies of what was sent, sorted. Copies with one message id count
    /// once: the broker may get a message twice.
    pub async fn sent(&self) -> anyhow::Result<Vec<String>> {
        sent(&self.broker.drain(OUT).await?)
    }
}

/// Waits until the host has come upon the claim of another.
pub async fn until_claim_is_met(host: &Host) -> Checked {
    wait::until("the claim to be met", wait::PATIENCE, async || {
        let busy = host.metric_where("hapax_setbacks_total", &[("code", "busy")]);
        Ok((busy.await? > 0).then_some(()))
    })
    .await
}

/// Waits until every message of the queue was delivered and has its verdict, nothing waits for a
/// retry and the outbox is empty.
///
/// The broker does not tell quickly how many messages are out with a consumer, so the host's
/// counters are compared: each delivery has one verdict or was forgotten with its channel, and each run
/// from the table has one.
pub async fn until_settled(
    host: &Host,
    broker: &VirtualHost,
    queue: &str,
    store: &Store,
) -> anyhow::Result<()> {
    let mut before = None;
    wait::until_is(
        "every delivery to have its verdict",
        async || {
            let ready = broker.depth(queue).await?.ready;
            let deliveries = host.metric("hapax_deliveries_total").await?;
            let mut verdicts = 0;
            for name in VERDICTS {
                verdicts += host.metric(name).await?;
            }
            let from_the_table = host.metric("hapax_retried_total").await?;
            let retries = store.number(RETRIES).await?;
            let settled = ready == 0 && retries == 0 && verdicts >= deliveries + from_the_table;
            // Twice the same: what the broker has sent may not have arrived the first time.
            let unchanged = before.replace(deliveries) == Some(deliveries);
            tokio::time::sleep(Duration::from_millis(20)).await;
            Ok((settled && unchanged, ready, deliveries, verdicts, retries))
        },
        |(is_settled, ..)| *is_settled,
    )
    .await?;
    store.until_outbox_empty().await
}

/// What the operator sees of a row that could not be sent, which is nothing while it is tried again.
pub async fn failed_row(host: &Host) -> anyhow::Result<Value> {
    wait::until("a row that failed", wait::PATIENCE, async || {
        let listed = host
            .cli(&["outbox", "list", "--failed", "--json"])
            .await?
            .json()?;
        Ok(listed.get(0).cloned())
    })
    .await
}

pub const VERDICTS: [&str; 5] = [
    "hapax_committed_total",
    "hapax_duplicates_total",
    "hapax_failed_total",
    "hapax_held_total",
    "hapax_forgotten_total",
];
pub const RETRIES: &str = "SELECT count(*) FROM hapax_waiting WHERE status = 'retry'";

pub fn sent(received: &[Received]) -> anyhow::Result<Vec<String>> {
    let mut messages = Vec::new();
    for message in received {
        let order = message.json()?["order_id"].as_str().map(str::to_owned);
        messages.push((message.message_id()?.to_owned(), order.unwrap_or_default()));
    }
    messages.sort();
    messages.dedup();
    let mut orders: Vec<String> = messages.into_iter().map(|(_, order)| order).collect();
    orders.sort();
    Ok(orders)
}

/// A message for the probe.
pub fn message(order: &str, steps: &[Value]) -> Message {
    Message::json(&json!({"order_id": order, "do": steps}))
}

/// A message that writes one row and sends one message.
pub fn ordinary(order: &str) -> Message {
    message(order, &[insert(order, 0), publish(order)])
}

/// Writes a row now.
pub fn insert(order: &str, step: i64) -> Value {
    json!({"execute": [INSERT, [order, step]]})
}

/// Writes a row before the commit.
pub fn defer(order: &str, step: i64) -> Value {
    json!({"defer": [INSERT, [order, step]]})
}

/// Sends a message that names the order.
pub fn publish(order: &str) -> Value {
    json!({"publish": {"target": "out", "body": {"order_id": order}}})
}

pub const INSERT: &str = "INSERT INTO t_effects (order_id, step) VALUES ($1, $2)";
