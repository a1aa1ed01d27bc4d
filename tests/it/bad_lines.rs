//! The lines to the broker and to the database are slow, go dead without a word, and are reset. The host
//! notices, connects again, and applies each order once.

use std::time::Duration;

use anyhow::ensure;

use crate::Checked;
use crate::support::broker::VirtualHost;
use crate::support::host::{Config, Consumer, Host};
use crate::support::orders::{self, Orders};
use crate::support::place::Place;
use crate::support::proxy::{Commits, Proxy};
use crate::support::store::Store;
use crate::support::{scene, servers};

const ORDERS: usize = 4_000;
const DUPLICATES: usize = 1_000;

/// A host whose lines go through proxies, and its orders.
struct Lines {
    orders: Orders,
    store: Store,
    broker: VirtualHost,
    to_broker: Proxy,
    to_database: Proxy,
    host: Host,
}

impl Lines {
    async fn new(place: &Place, orders: usize, duplicates: usize) -> anyhow::Result<Lines> {
        let (rabbit, postgres) = (servers::rabbit().await?, servers::postgres().await?);
        let to_broker = Proxy::to(rabbit.address()).await?;
        let to_database = Proxy::to(postgres.address()).await?;
        let (store, broker) = (Store::postgres().await?, rabbit.create_vhost().await?);
        let orders = Orders::generate(&mut place.random(), orders, duplicates);
        orders::create_tables(&store).await?;
        broker.declare(&[orders::QUEUE, orders::OUTPUT]).await?;
        let consumer = Consumer::points()?
            .set("prefetch", "200")
            .set("batch", "20");
        let store_url = store.url_through(to_database.address());
        let broker_url = broker.url_through(to_broker.address());
        // A dead line to the broker is noticed by its missing heartbeats.
        let config = Config::new("host", &store_url, &broker_url)
            .broker_line("heartbeat = \"1s\"")
            .consumer(consumer);
        let host = Host::start(place, &config).await?;
        Ok(Lines {
            orders,
            store,
            broker,
            to_broker,
            to_database,
            host,
        })
    }

    async fn publish(&self) -> Checked {
        self.broker
            .publish(orders::QUEUE, &self.orders.messages)
            .await
    }

    /// Waits until some more orders are committed, and insists that there are others left.
    async fn until_under_load(&self) -> Checked {
        let committed = self.host.metric("hapax_committed_total").await?;
        self.host
            .until_metric("hapax_committed_total", committed + 200)
            .await?;
        let committed = self.host.metric("hapax_committed_total").await?;
        ensure!(committed < ORDERS as u64, "the trouble came too late");
        Ok(())
    }

    async fn assert_survived(mut self) -> Checked {
        scene::until_settled(&self.host, &self.broker, orders::QUEUE, &self.store).await?;
        ensure!(self.host.is_running()?, "the host has ended");
        self.host.stop().await?;
        orders::assert_exactly_once(&self.orders, &self.store, &self.broker).await
    }
}

pub async fn slow_ones_only_take_longer(place: &Place) -> Checked {
    let lines = Lines::new(place, 400, 100).await?;
    lines.to_broker.delay(Duration::from_millis(15));
    lines.to_database.delay(Duration::from_millis(15));
    lines.publish().await?;
    lines.assert_survived().await
}

pub async fn that_are_reset_again_and_again_lose_and_double_nothing(place: &Place) -> Checked {
    let lines = Lines::new(place, ORDERS, DUPLICATES).await?;
    lines.publish().await?;
    for turn in 0..6 {
        lines.until_under_load().await?;
        match turn % 2 {
            0 => lines.to_broker.reset(),
            _ => lines.to_database.reset(),
        }
    }
    lines.assert_survived().await
}

pub async fn that_go_dead_without_a_word_are_given_up(place: &Place) -> Checked {
    let lines = Lines::new(place, ORDERS, DUPLICATES).await?;
    lines.publish().await?;
    lines.until_under_load().await?;
    lines.to_broker.silence(true);
    // The host's own heartbeats tell it; nobody has closed anything.
    crate::support::wait::until(
        "the host to give the line up",
        Duration::from_secs(60),
        async || {
            let up = lines.host.metric("hapax_consumer_up").await?;
            Ok((up == 0).then_some(()))
        },
    )
    .await?;
    lines.to_broker.silence(false);
    lines.until_under_load().await?;
    lines.to_database.silence(true);
    let committed = lines.host.metric("hapax_committed_total").await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let now = lines.host.metric("hapax_committed_total").await?;
    // At most what was on its way: a batch of each lane.
    ensure!(now <= committed + 200, "{now} committed over a dead line");
    lines.to_database.silence(false);
    lines.assert_survived().await
}

pub async fn that_are_reset_in_the_answer_of_a_commit_leave_no_doubt(place: &Place) -> Checked {
    let lines = Lines::new(place, ORDERS, DUPLICATES).await?;
    lines
        .to_database
        .commits(Commits::ResetInAnswer { times: 8 });
    lines.publish().await?;
    lines
        .to_database
        .until("eight answers to be torn", |tally| {
            tally.reset_in_answer == 8
        })
        .await?;
    lines.assert_survived().await
}
