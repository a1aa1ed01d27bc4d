//! The embedded broker: queue, ledger and outbox in one SQLite file, and the host is killed.

use anyhow::{Context, ensure};
use hapax::failpoint::Point;

use crate::Checked;
use crate::support::host::{self, Config, Consumer, Host};
use crate::support::orders::{self, Orders};
use crate::support::place::Place;
use crate::support::store::Store;
use crate::support::wait;

const ORDERS: usize = 8_000;
const DUPLICATES: usize = 2_000;
const KILLS: u64 = 4;

pub async fn sigkills_lose_and_double_nothing(place: &Place) -> Checked {
    let mut random = place.random();
    let store = Store::sqlite(place);
    orders::create_tables(&store).await?;
    let orders = Orders::generate(&mut random, ORDERS, DUPLICATES);
    let config = Config::new("host", &store.url, "embedded:").consumer(Consumer::points()?);
    publish(place, &config, &orders).await?;

    let share = (ORDERS + DUPLICATES) as u64 / (KILLS + 1);
    for kill in 0..KILLS {
        // With its n-th delivery, as in `exactly_once`: it cannot have settled more.
        let life = random.u64(share / 4..share);
        let order = format!("{}@{life}=kill", Point::AfterKey);
        let host = Host::launch_armed(place, &config, Some(&order))?;
        host.until_killed_at(Point::AfterKey).await?;
        ensure!(
            left(&store, orders::QUEUE).await? > 0,
            "kill {kill} left nothing in the queue"
        );
    }
    let host = Host::start(place, &config).await?;
    wait::until_equal("the messages in the queue", 0, async || {
        left(&store, orders::QUEUE).await
    })
    .await?;
    store.until_outbox_empty().await?;
    host.stop().await?;

    let complaints = orders::complaints_of_store(&orders, &store).await?;
    ensure!(complaints.is_empty(), "{complaints}");
    // Copies with one message id count once, as with any broker; the id is in the properties.
    let events = "SELECT DISTINCT hex(properties) || ' ' || CAST(body AS TEXT) FROM hapax_message \
         WHERE queue = (SELECT id FROM hapax_queue WHERE name = 'points.credited')";
    let mut emitted = Vec::new();
    for event in store.texts(events).await? {
        let (_, body) = event
            .split_once(' ')
            .context("the query puts a space there")?;
        let body: serde_json::Value = serde_json::from_str(body)?;
        emitted.push(body["order_id"].as_str().context("no order id")?.to_owned());
    }
    let complaints = orders::difference("distinct ids emitted", &orders.ids, &emitted);
    ensure!(complaints.is_empty(), "{complaints}");
    Ok(())
}

/// Puts the orders into the embedded queue with the command that users have for it.
async fn publish(place: &Place, config: &Config, orders: &Orders) -> Checked {
    let file = place.dir.join("orders.jsonl");
    let mut lines = String::new();
    for message in &orders.messages {
        lines.push_str("{\"body\": ");
        lines.push_str(std::str::from_utf8(&message.body)?);
        lines.push_str("}\n");
    }
    std::fs::write(&file, lines)?;
    let config_file = config.write(&place.dir)?;
    let file = file.to_str().context("the path is not UTF-8")?;
    let published = host::cli(
        &config_file,
        &["publish", "--queue", orders::QUEUE, "--file", file],
    )
    .await?;
    ensure!(published.code == Some(0), "{published:?}");
    Ok(())
}

/// The messages of a queue that were not acknowledged.
async fn left(store: &Store, queue: &str) -> anyhow::Result<i64> {
    let sql = format!(
        "SELECT count(*) FROM hapax_message WHERE queue = \
         (SELECT id FROM hapax_queue WHERE name = '{queue}')"
    );
    store.number(&sql).await
}
