//! Random kills of hosts, database and broker under load, for as long as one likes.
//!
//! `HAPAX_TEST_ENDURANCE=1800 tests/run endurance` takes half an hour; without the variable it is over
//! after a few kills. A fifth of the messages are duplicates, beside those that a producer makes who
//! publishes again what a dying broker has not confirmed. The table of the handler has no key, so that
//! nothing but Hapax keeps a message from being applied twice. The report is printed, and stands in the
//! file that `HAPAX_TEST_REPORT` names.

mod load;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::Checked;
use crate::support::host::{Config, Consumer, Host};
use crate::support::orders::{OUTPUT, QUEUE};
use crate::support::place::Place;
use crate::support::scene;
use crate::support::servers::{Postgres, Rabbit};
use crate::support::store::{Fates, Store};

use load::{Collector, Producer};

/// How long the load lasts when nobody asks for more.
const SHORT: Duration = Duration::from_secs(12);

/// The pause between two kills, on average.
const BETWEEN_KILLS: Duration = Duration::from_millis(5_500);

const TABLE: &str = "CREATE TABLE t_points (
    order_id VARCHAR(64) NOT NULL, user_id VARCHAR(64) NOT NULL, points BIGINT NOT NULL)";

#[derive(Clone, Copy, Debug, Default)]
struct Kills {
    hosts: u32,
    database: u32,
    broker: u32,
}

/// What came of it.
#[derive(Debug)]
struct Report {
    seconds: u64,
    messages: u64,
    distinct: u64,
    kills: Kills,
    lost_rows: i64,
    doubled_rows: i64,
    lost_events: u64,
    doubled_events: u64,
    /// Copies of one event with one id, which are allowed.
    copies: u64,
}

pub async fn random_kills_lose_and_double_nothing(place: &Place) -> Checked {
    let duration = match std::env::var("HAPAX_TEST_ENDURANCE") {
        Ok(seconds) => Duration::from_secs(
            seconds
                .parse()
                .context("HAPAX_TEST_ENDURANCE is not a number of seconds")?,
        ),
        Err(_) => SHORT,
    };
    let rabbit = Rabbit::start("rabbit-endurance").await?;
    let postgres = Postgres::start("postgres-endurance").await?;
    let store = Store::postgres_on(&postgres).await?;
    store.execute(TABLE).await?;
    let broker = Arc::new(rabbit.create_vhost().await?);
    broker.declare(&[QUEUE, OUTPUT]).await?;

    // What a dead host held is run again one by one: a small prefetch keeps the load a load.
    let consumer = || Ok::<_, anyhow::Error>(Consumer::points()?.set("prefetch", "256"));
    let configs = [
        Config::new("first", &store.url, &broker.url).consumer(consumer()?),
        Config::new("second", &store.url, &broker.url).consumer(consumer()?),
    ];
    let started = Instant::now();
    let enough = Arc::new(AtomicBool::new(false));
    let producer = Producer::start(broker.clone(), place.seed, enough.clone());
    let collector = Collector::start(broker.clone());
    let mut kills = Kills::default();
    // One after the other: both would make the tables.
    let first = Host::start(place, &configs[0]).await?;
    let mut hosts = vec![first, Host::start(place, &configs[1]).await?];
    let mut random = place.random();
    while started.elapsed() < duration || !kills.are_of_every_kind() {
        let pause = BETWEEN_KILLS.mul_f64(random.f64() * 2.0);
        tokio::time::sleep(pause).await;
        supervise(&mut hosts, place, &configs)?;
        match random.u32(0..100) {
            // What a short run must not leave out comes first.
            _ if kills.database == 0 && kills.hosts > 0 => {
                postgres.kill9()?;
                postgres.start_again().await?;
                kills.database += 1;
            }
            _ if kills.broker == 0 && kills.database > 0 => {
                rabbit.kill9()?;
                rabbit.start_again().await?;
                kills.broker += 1;
            }
            0..12 => {
                postgres.kill9()?;
                postgres.start_again().await?;
                kills.database += 1;
            }
            12..16 => {
                rabbit.kill9()?;
                rabbit.start_again().await?;
                kills.broker += 1;
            }
            _ => {
                let turn = random.usize(0..hosts.len());
                hosts[turn].relaunch(place, &configs)?;
                kills.hosts += 1;
            }
        }
    }
    enough.store(true, Ordering::Release);
    let published = producer.finish().await?;
    supervise(&mut hosts, place, &configs)?;
    for host in &mut hosts {
        host.until_ready().await?;
    }
    for host in &hosts {
        scene::until_settled(host, &broker, QUEUE, &store).await?;
    }
    for host in hosts {
        host.stop().await?;
    }
    let left_over = broker.left_over(QUEUE).await?;
    ensure!(left_over == 0, "{left_over} messages are left in {QUEUE}");
    let events = collector.finish(published.distinct).await?;

    let distinct = i64::try_from(published.distinct)?;
    let rows = store.count("t_points").await?;
    let different = "SELECT count(DISTINCT order_id) FROM t_points";
    let different = store.number(different).await?;
    let report = Report {
        seconds: started.elapsed().as_secs(),
        messages: published.messages,
        distinct: published.distinct,
        kills,
        lost_rows: distinct - different,
        doubled_rows: rows - different,
        lost_events: events.missing,
        doubled_events: events.doubled,
        copies: events.copies,
    };
    eprintln!("{report}");
    if let Some(file) = std::env::var_os("HAPAX_TEST_REPORT") {
        std::fs::write(file, format!("{report}\n"))?;
    }
    let committed = Fates {
        committed: distinct,
        ..Fates::default()
    };
    let fates = store.fates().await?;
    ensure!(fates == committed, "fates are {fates:?}, not {committed:?}");
    let waiting = store.waiting().await?;
    ensure!(waiting.is_empty(), "hapax_waiting holds {waiting:?}");
    ensure!(
        store.count("hapax_outbox").await? == 0,
        "the outbox is not empty"
    );
    ensure!(
        report.lost_rows == 0
            && report.doubled_rows == 0
            && report.lost_events == 0
            && report.doubled_events == 0,
        "{report}"
    );
    Ok(())
}

/// Starts a host again that has ended by itself: one that starts while a server is away says so and leaves,
/// and whatever runs it tries again.
fn supervise(hosts: &mut [Host], place: &Place, configs: &[Config]) -> Checked {
    for host in hosts {
        if !host.is_running()? {
            host.relaunch(place, configs)?;
        }
    }
    Ok(())
}

impl Kills {
    fn are_of_every_kind(&self) -> bool {
        self.hosts > 0 && self.database > 0 && self.broker > 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Kills {
            hosts,
            database,
            broker,
        } = self.kills;
        write!(
            f,
            "endurance: {} s; {} messages, {} of them distinct; {} kills ({hosts} of hosts, {database} of \
             the database, {broker} of the broker); lost {} rows and {} events, doubled {} rows and {} events \
             ({} copies of events under their old id)",
            self.seconds,
            self.messages,
            self.distinct,
            hosts + database + broker,
            self.lost_rows,
            self.lost_events,
            self.doubled_rows,
            self.doubled_events,
            self.copies,
        )
    }
}
