//! The host is killed, again and again, while messages flow.

use hapax::failpoint::Point;

use crate::Checked;
use crate::support::broker::VirtualHost;
use crate::support::host::{Config, Consumer, Host};
use crate::support::orders::{self, Orders};
use crate::support::place::Place;
use crate::support::proxy::{Commits, Proxy};
use crate::support::store::Store;
use crate::support::{scene, servers};

const ORDERS: usize = 20_000;
const DUPLICATES: usize = 5_000;
const KILLS: u64 = 6;
/// Kills of the two hosts, and one more portion of the orders for those that are left.
const TURNS: usize = 4;

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
    prepare(&store, &broker).await?;
    broker.publish(orders::QUEUE, &orders.messages).await?;

    let config = Config::new("host", &store.url, &broker.url).consumer(Consumer::points()?);
    let share = (ORDERS + DUPLICATES) as u64 / (KILLS + 1);
    for kill in 0..KILLS {
        // With its n-th delivery: whatever lanes, acknowledgements and relay are at in that moment. Nobody can
        // have settled more than it was given, so there is work in its hands, and work left for every life.
        let life = random.u64(share / 4..share);
        let order = format!("{}@{life}=kill", Point::AfterKey);
        let host = Host::launch_armed(place, &config, Some(&order))?;
        host.until_killed_at(Point::AfterKey).await?;
        let left = broker.left_over(orders::QUEUE).await?;
        anyhow::ensure!(left > 0, "kill {kill} left nothing in the queue");
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
    prepare(&store, &broker).await?;

    let portion = orders.messages.len().div_ceil(TURNS + 1);
    let mut configs = Vec::new();
    let mut proxies = Vec::new();
    let mut hosts = Vec::new();
    for label in ["first", "second"] {
        let proxy = Proxy::to(servers::postgres().await?.address()).await?;
        let through = store.url_through(proxy.address());
        let consumer = Consumer::points()?.set("prefetch", "256");
        let config = Config::new(label, &through, &broker.url).consumer(consumer);
        hosts.push(Some(Host::start(place, &config).await?));
        configs.push(config);
        proxies.push(proxy);
    }
    for (turn, portion) in orders.messages.chunks(portion).enumerate() {
        let (slot, proxy) = (&mut hosts[turn % 2], &proxies[turn % 2]);
        if turn == TURNS {
            broker.publish(orders::QUEUE, portion).await?;
            break;
        }
        // Both are subscribed, so both are given a part of it; one comes to a COMMIT and no further.
        proxy.commits(Commits::Hold);
        broker.publish(orders::QUEUE, portion).await?;
        // Later one at least, and not more for certain: a lane that runs what a killed host has begun has the floor
        // alone.
        let lanes = if turn == 0 { random.usize(1..=4) } else { 1 };
        proxy.until_holds("hapax points ", lanes).await?;
        let host = slot.take().expect("a host that is killed is started again");
        host.sigkill()?;
        // The end of its lines has to get through what is held.
        proxy.cut();
        proxy.commits(Commits::Pass);
        *slot = Some(Host::start(place, &configs[turn % 2]).await?);
    }
    for host in hosts.iter().flatten() {
        scene::until_settled(host, &broker, orders::QUEUE, &store).await?;
    }
    for host in hosts.into_iter().flatten() {
        host.stop().await?;
    }
    orders::assert_exactly_once(&orders, &store, &broker).await
}

/// Makes tables and queues.
async fn prepare(store: &Store, broker: &VirtualHost) -> Checked {
    orders::create_tables(store).await?;
    broker.declare(&[orders::QUEUE, orders::OUTPUT]).await
}
