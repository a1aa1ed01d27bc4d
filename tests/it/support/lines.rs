//! A host whose lines to the broker and to the database can be broken, and its orders in portions.
//!
//! Each trouble gets a portion of its own, and comes when the host is in the middle of it for certain: every
//! lane has come to a COMMIT that is held, so its transaction is open and its messages are not acknowledged,
//! however fast the machine is.

use anyhow::ensure;

use super::broker::VirtualHost;
use super::host::{Config, Consumer, Host};
use super::orders::{self, Orders};
use super::place::Place;
use super::proxy::{Commits, Proxy};
use super::scene;
use super::servers::{Postgres, Rabbit};
use super::store::Store;

/// Lanes of the host, and messages that it takes before it has acknowledged any.
pub const LANES: usize = 4;
pub const PREFETCH: u64 = 200;

pub struct Lines {
    orders: Orders,
    /// Messages of a portion, and how many are published.
    portion: usize,
    published: usize,
    pub store: Store,
    pub broker: VirtualHost,
    pub to_broker: Proxy,
    pub to_database: Proxy,
    pub host: Host,
}

impl Lines {
    /// A host between these servers, with nothing to do yet.
    pub async fn between(
        place: &Place,
        rabbit: &Rabbit,
        postgres: &Postgres,
        orders: usize,
        portions: usize,
    ) -> anyhow::Result<Lines> {
        let to_broker = Proxy::to(rabbit.address()).await?;
        let to_database = Proxy::to(postgres.address()).await?;
        let store = Store::postgres_on(postgres).await?;
        let broker = rabbit.create_vhost().await?;
        let orders = Orders::generate(&mut place.random(), orders, orders / 4);
        orders::create_tables(&store).await?;
        broker.declare(&[orders::QUEUE, orders::OUTPUT]).await?;
        let consumer = Consumer::points()?
            .set("lanes", &LANES.to_string())
            .set("prefetch", &PREFETCH.to_string())
            .set("batch", "20");
        let store_url = store.url_through(to_database.address());
        let broker_url = broker.url_through(to_broker.address());
        // A dead line to the broker is noticed by its missing heartbeats.
        let config = Config::new("host", &store_url, &broker_url)
            .broker_line("heartbeat = \"1s\"")
            .consumer(consumer);
        let host = Host::start(place, &config).await?;
        Ok(Lines {
            portion: orders.messages.len().div_ceil(portions),
            published: 0,
            orders,
            store,
            broker,
            to_broker,
            to_database,
            host,
        })
    }

    /// Publishes the next portion.
    pub async fn publish(&mut self) -> anyhow::Result<()> {
        let to = (self.published + self.portion).min(self.orders.messages.len());
        ensure!(to > self.published, "there are no more messages");
        let portion = &self.orders.messages[self.published..to];
        self.broker.publish(orders::QUEUE, portion).await?;
        self.published = to;
        Ok(())
    }

    /// Publishes the next portion and waits until the host is in the middle of it. No COMMIT gets through from
    /// here on, until [`Lines::go_on`].
    pub async fn until_in_the_middle(&mut self) -> anyhow::Result<()> {
        self.to_database.commits(Commits::Hold);
        self.publish().await?;
        self.to_database.until_holds("hapax points ", LANES).await
    }

    pub fn go_on(&self) {
        self.to_database.commits(Commits::Pass);
    }

    /// What the host has counted of lanes that lost the database in the middle of a transaction.
    pub async fn setbacks(&self) -> anyhow::Result<u64> {
        self.host
            .metric_where("hapax_setbacks_total", &[("code", "world")])
            .await
    }

    /// Waits until the host is done with what is published.
    pub async fn until_settled(&self) -> anyhow::Result<()> {
        scene::until_settled(&self.host, &self.broker, orders::QUEUE, &self.store).await
    }

    /// The same process has come through, and each order was applied once.
    pub async fn assert_survived(mut self) -> anyhow::Result<()> {
        while self.published < self.orders.messages.len() {
            self.publish().await?;
        }
        self.until_settled().await?;
        ensure!(self.host.is_running()?, "the host has ended");
        self.host.stop().await?;
        orders::assert_exactly_once(&self.orders, &self.store, &self.broker).await
    }
}
