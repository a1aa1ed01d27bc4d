//! The host is killed, again and again, while messages flow.

use crate::Checked;
use crate::support::broker::VirtualHost;
use crate::support::host::{Config, Consumer, Host};
use crate::support::orders::{self, Orders};
use crate::support::place::Place;
use crate::support::store::Store;
use crate::support::{scene, servers};

const ORDERS: usize = 20_000;
const DUPLICATES: usize = 5_000;
const KILLS: u64 = 6;

pub async fn six_sigkills_lose_and_double_nothing_on_postgres(place: &Place) -> Checked {
    six_sigkills(place, Store::postgres().await?).await
}

pub async fn six_sigkills_lose_and_double_nothing_on_sqlite(place: &Place) -> Checked {
    six_sigkills(place, Store::sqlite(place)).await
}

async fn six_sigkills(place: &Place, store: Store) -> Checked {
    let mut random = place.random();
    let broker = servers::rabbit().await?.create_vhost().await?;
    let orders = Orders::generate(&mut random, ORDERS, DUPLICATES);
    prepare(&store, &broker, &orders).await?;

    let config = Config::new("host", &store.url, &broker.url).consumer(Consumer::points()?);
    let deliveries = (ORDERS + DUPLICATES) as u64;
    for kill in 0..KILLS {
        let host = Host::start(place, &config).await?;
        // Each life gets a random part of an even share, so that work is left for every life.
        let share = deliveries / (KILLS + 1);
        let life = random.u64(share / 4..share);
        host.until_metric("hapax_committed_total", life).await?;
        let pause = random.u64(0..20);
        tokio::time::sleep(std::time::Duration::from_millis(pause)).await;
        host.sigkill()?;
        let left = broker.left_over(orders::QUEUE).await?;
        anyhow::ensure!(left > 0, "kill {kill} came too late: the queue was empty");
    }
    let host = Host::start(place, &config).await?;
    scene::until_settled(&host, &broker, orders::QUEUE, &store).await?;
    host.stop().await?;
    orders::assert_exactly_once(&orders, &store, &broker).await
}

pub async fn two_hosts_on_one_queue_are_killed_in_turn(place: &Place) -> Checked {
    let mut random = place.random();
    let store = Store::postgres().await?;
    let broker = servers::rabbit().await?.create_vhost().await?;
    let orders = Orders::generate(&mut random, ORDERS, DUPLICATES);
    prepare(&store, &broker, &orders).await?;

    let consumer = || Ok::<_, anyhow::Error>(Consumer::points()?.set("prefetch", "256"));
    let configs = [
        Config::new("first", &store.url, &broker.url).consumer(consumer()?),
        Config::new("second", &store.url, &broker.url).consumer(consumer()?),
    ];
    let mut hosts = Vec::new();
    for config in &configs {
        hosts.push(Some(Host::start(place, config).await?));
    }
    for turn in 0..4 {
        let (slot, config) = (&mut hosts[turn % 2], &configs[turn % 2]);
        let host = slot.take().expect("a host that is killed is started again");
        host.until_metric("hapax_committed_total", random.u64(200..1_500))
            .await?;
        host.sigkill()?;
        let left = broker.depth(orders::QUEUE).await?.ready;
        anyhow::ensure!(left > 0, "kill {turn} came too late: the queue was empty");
        *slot = Some(Host::start(place, config).await?);
    }
    for host in hosts.iter().flatten() {
        scene::until_settled(host, &broker, orders::QUEUE, &store).await?;
    }
    for host in hosts.into_iter().flatten() {
        host.stop().await?;
    }
    orders::assert_exactly_once(&orders, &store, &broker).await
}

/// Makes tables and queues and fills the queue.
async fn prepare(store: &Store, broker: &VirtualHost, orders: &Orders) -> Checked {
    orders::create_tables(store).await?;
    broker.declare(&[orders::QUEUE, orders::OUTPUT]).await?;
    broker.publish(orders::QUEUE, &orders.messages).await
}
