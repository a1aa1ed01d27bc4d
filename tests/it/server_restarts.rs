//! A server goes away under load and comes back. The host waits and goes on by itself.

use anyhow::ensure;

use crate::Checked;
use crate::support::broker::VirtualHost;
use crate::support::host::{Config, Consumer, Host};
use crate::support::orders::{self, Orders};
use crate::support::place::Place;
use crate::support::proxy::Proxy;
use crate::support::servers::{self, Postgres, Rabbit};
use crate::support::store::Store;
use crate::support::{scene, wait};

const ORDERS: usize = 8_000;
const DUPLICATES: usize = 2_000;

struct Load {
    orders: Orders,
    store: Store,
    broker: VirtualHost,
}

impl Load {
    async fn new(place: &Place, store: Store, broker: VirtualHost) -> anyhow::Result<Load> {
        let orders = Orders::generate(&mut place.random(), ORDERS, DUPLICATES);
        orders::create_tables(&store).await?;
        broker.declare(&[orders::QUEUE, orders::OUTPUT]).await?;
        broker.publish(orders::QUEUE, &orders.messages).await?;
        Ok(Load {
            orders,
            store,
            broker,
        })
    }

    /// Messages are still to come when the trouble begins, and the host has begun its work.
    async fn until_under_load(&self, host: &Host, committed: u64) -> Checked {
        host.until_metric("hapax_committed_total", committed)
            .await?;
        let committed = host.metric("hapax_committed_total").await?;
        ensure!(committed < ORDERS as u64, "the trouble came too late");
        Ok(())
    }

    /// The same process has come through, and each order was applied once.
    async fn assert_survived(&self, mut host: Host) -> Checked {
        scene::until_settled(&host, &self.broker, orders::QUEUE, &self.store).await?;
        ensure!(host.is_running()?, "the host has ended");
        host.stop().await?;
        orders::assert_exactly_once(&self.orders, &self.store, &self.broker).await
    }
}

pub async fn the_broker_is_restarted_and_then_killed(place: &Place) -> Checked {
    let rabbit = Rabbit::start("rabbit-restarted").await?;
    let broker = rabbit.create_vhost().await?;
    let load = Load::new(place, Store::postgres().await?, broker).await?;
    let consumer = Consumer::points()?
        .set("prefetch", "200")
        .set("batch", "50");
    let config = Config::new("host", &load.store.url, &load.broker.url).consumer(consumer);
    let host = Host::start(place, &config).await?;
    load.until_under_load(&host, 300).await?;
    rabbit.restart().await?;
    let committed = host.metric("hapax_committed_total").await?;
    load.until_under_load(&host, committed + 300).await?;
    rabbit.kill9()?;
    rabbit.start_again().await?;
    load.assert_survived(host).await
}

pub async fn the_database_is_restarted_and_then_killed(place: &Place) -> Checked {
    let postgres = Postgres::start("postgres-restarted").await?;
    let store = Store::postgres_on(&postgres).await?;
    let broker = servers::rabbit().await?.create_vhost().await?;
    let load = Load::new(place, store, broker).await?;
    let consumer = Consumer::points()?.set("batch", "20");
    let config = Config::new("host", &load.store.url, &load.broker.url).consumer(consumer);
    let host = Host::start(place, &config).await?;
    load.until_under_load(&host, 300).await?;
    postgres.restart().await?;
    let committed = host.metric("hapax_committed_total").await?;
    load.until_under_load(&host, committed + 300).await?;
    postgres.kill9()?;
    postgres.start_again().await?;
    load.assert_survived(host).await
}

pub async fn the_line_to_the_broker_is_cut_again_and_again(place: &Place) -> Checked {
    let rabbit = servers::rabbit().await?;
    let proxy = Proxy::to(rabbit.address()).await?;
    let load = Load::new(
        place,
        Store::postgres().await?,
        rabbit.create_vhost().await?,
    )
    .await?;
    let url = load.broker.url_through(proxy.address());
    let consumer = Consumer::points()?
        .set("prefetch", "200")
        .set("batch", "50");
    let host = Host::start(
        place,
        &Config::new("host", &load.store.url, &url).consumer(consumer),
    )
    .await?;
    for _ in 0..4 {
        let committed = host.metric("hapax_committed_total").await?;
        load.until_under_load(&host, committed + 200).await?;
        proxy.cut();
    }
    load.assert_survived(host).await
}

pub async fn the_line_to_the_database_falls_silent_and_is_refused(place: &Place) -> Checked {
    let postgres = servers::postgres().await?;
    let proxy = Proxy::to(postgres.address()).await?;
    let broker = servers::rabbit().await?.create_vhost().await?;
    let load = Load::new(place, Store::postgres().await?, broker).await?;
    let url = load.store.url_through(proxy.address());
    let consumer = Consumer::points()?.set("batch", "20");
    let config = Config::new("host", &url, &load.broker.url).consumer(consumer);
    let host = Host::start(place, &config).await?;
    load.until_under_load(&host, 200).await?;
    proxy.silence(true);
    // The deliveries that a silent database holds up are neither acknowledged nor given back.
    let ready = load.broker.depth(orders::QUEUE).await?.ready;
    proxy.refuse(true);
    proxy.silence(false);
    wait::until("the host to meet the refusal", wait::PATIENCE, async || {
        let setbacks = host
            .metric_where("hapax_setbacks_total", &[("code", "world")])
            .await?;
        Ok((setbacks > 0).then_some(()))
    })
    .await?;
    let now = load.broker.depth(orders::QUEUE).await?;
    ensure!(
        now.ready <= ready + 1_024,
        "messages were given back in a loop: {now:?}"
    );
    proxy.refuse(false);
    load.assert_survived(host).await
}
