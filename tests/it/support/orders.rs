//! Paid orders, some of them several times, and the assertion that each was applied once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use anyhow::{Context, ensure};
use serde_json::json;

use super::broker::{Message, Received, VirtualHost};
use super::store::{Fates, Store};

/// Names that are shown of a set of orders that is not as it should be.
const SHOWN: usize = 10;

pub const QUEUE: &str = "orders.paid";
pub const OUTPUT: &str = "points.credited";

/// What is published, in order, and which orders it holds.
pub struct Orders {
    pub ids: BTreeSet<String>,
    pub messages: Vec<Message>,
}

impl Orders {
    /// `distinct` orders and `duplicates` more copies of some of them, shuffled.
    pub fn generate(random: &mut fastrand::Rng, distinct: usize, duplicates: usize) -> Orders {
        let copies = (0..duplicates).map(|_| random.usize(..distinct));
        let mut order: Vec<usize> = (0..distinct).chain(copies.collect::<Vec<_>>()).collect();
        random.shuffle(&mut order);
        Orders {
            ids: (0..distinct).map(id).collect(),
            messages: order.iter().map(|&number| message(number)).collect(),
        }
    }
}

fn id(number: usize) -> String {
    format!("order-{number:06}")
}

fn message(number: usize) -> Message {
    Message::json(&json!({
        "order_id": id(number),
        "user_id": format!("user-{}", number % 997),
        "amount_cents": 100 + number % 5_000,
    }))
}

/// The tables of the points plugin, as its README has a user make them.
pub async fn create_tables(store: &Store) -> anyhow::Result<()> {
    let plugin = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins/points");
    let dialect = if store.is_postgres() {
        "postgres"
    } else {
        "sqlite"
    };
    let own = plugin.join(format!("schema.{dialect}.sql"));
    let file = if own.exists() {
        own
    } else {
        plugin.join("schema.sql")
    };
    let schema = std::fs::read_to_string(&file)
        .with_context(|| format!("cannot read {}", file.display()))?;
    store.execute(&schema).await
}

/// Insists that each order was applied once: one row, one committed key and one message id for
/// each, and nothing left in the queue, the outbox or `hapax_waiting`. For a host that has ended.
pub async fn assert_exactly_once(
    orders: &Orders,
    store: &Store,
    broker: &VirtualHost,
) -> anyhow::Result<()> {
    let left_over = broker.left_over(QUEUE).await?;
    let events = broker.drain(OUTPUT).await?;
    let mut complaints = complaints_of_store(orders, store).await?;
    if left_over > 0 {
        writeln!(complaints, "{left_over} messages are left in {QUEUE}")?;
    }
    complaints.push_str(&complaints_of_events(orders, &events)?);
    ensure!(
        complaints.is_empty(),
        "{} distinct orders in {} messages were not each applied once:\n{complaints}",
        orders.ids.len(),
        orders.messages.len(),
    );
    Ok(())
}

/// The same, as far as the store can tell.
pub async fn complaints_of_store(orders: &Orders, store: &Store) -> anyhow::Result<String> {
    let mut complaints = String::new();
    let rows = store.texts("SELECT order_id FROM t_points").await?;
    complaints.push_str(&difference("rows in t_points", &orders.ids, &rows));

    let keys = store
        .bytes("SELECT key FROM hapax_ledger WHERE fate = 1")
        .await?;
    let keys: Vec<String> = keys
        .iter()
        .map(|key| String::from_utf8_lossy(key).into_owned())
        .collect();
    complaints.push_str(&difference("committed keys", &orders.ids, &keys));

    let fates = store.fates().await?;
    let committed = Fates {
        committed: fates.committed,
        ..Fates::default()
    };
    if fates != committed {
        writeln!(complaints, "the ledger has other fates too: {fates:?}")?;
    }
    let waiting = store.waiting().await?;
    if !waiting.is_empty() {
        writeln!(complaints, "hapax_waiting is not empty: {waiting:?}")?;
    }
    let unsent = store.count("hapax_outbox").await?;
    if unsent > 0 {
        writeln!(complaints, "{unsent} messages are left in the outbox")?;
    }
    Ok(complaints)
}

/// One message id for each order. The same id may have reached the broker twice.
fn complaints_of_events(orders: &Orders, events: &[Received]) -> anyhow::Result<String> {
    let mut order_of: BTreeMap<&str, String> = BTreeMap::new();
    let mut complaints = String::new();
    for event in events {
        let order = event.json()?["order_id"]
            .as_str()
            .context("an event names no order")?
            .to_owned();
        let id = event.message_id()?;
        if let Some(other) = order_of.insert(id, order.clone())
            && other != order
        {
            writeln!(
                complaints,
                "message id {id} stands for {order} and for {other}"
            )?;
        }
    }
    let emitted: Vec<String> = order_of.into_values().collect();
    complaints.push_str(&difference("distinct ids emitted", &orders.ids, &emitted));
    Ok(complaints)
}

/// What is missing, doubled or unexpected in `found`; empty when nothing is.
pub fn difference(what: &str, expected: &BTreeSet<String>, found: &[String]) -> String {
    let mut times: BTreeMap<&str, usize> = BTreeMap::new();
    for name in found {
        *times.entry(name).or_default() += 1;
    }
    let missing: Vec<&str> = expected
        .iter()
        .map(String::as_str)
        .filter(|name| !times.contains_key(name))
        .collect();
    let doubled: Vec<&str> = times
        .iter()
        .filter(|(_, times)| **times > 1)
        .map(|(name, _)| *name)
        .collect();
    let unexpected: Vec<&str> = times
        .keys()
        .copied()
        .filter(|name| !expected.contains(*name))
        .collect();
    let lists = [
        ("missing", missing),
        ("doubled", doubled),
        ("unexpected", unexpected),
    ];
    let mut text = String::new();
    for (problem, names) in lists {
        if !names.is_empty() {
            let shown = names[..names.len().min(SHOWN)].join(", ");
            text.push_str(&format!("{what}: {} {problem}: {shown}\n", names.len()));
        }
    }
    text
}
