//! The host is killed at every failpoint there is, on every stack, and the day ends as it does
//! without a crash.
//!
//! One test for each point and stack: the host (or the command) must die at that very point, a host
//! that is started afterwards brings the day to its end, and the ledger, the business tables, the
//! outbox, the waiting messages and the queues are compared with those of a day without a crash.
//! Messages come several times, fail and succeed later, are parked, replayed, discarded, and one
//! cannot be sent.

mod day;
mod outcome;
mod scenario;
mod stack;

use std::time::Duration;

use anyhow::{bail, ensure};
use hapax::failpoint::Point;
use sqlx::{Connection, SqliteConnection};
use tokio::sync::OnceCell;

use crate::Checked;
use crate::support::host::{self, Host};
use crate::support::place::Place;
use crate::support::proxy::{Commits, Proxy};
use crate::support::scene::IN;
use crate::support::store::Kind;
use crate::support::{servers, wait};

use day::Operated;
use outcome::Outcome;
pub use scenario::Day;
use scenario::{Scenario, When};
pub use stack::Stack;
use stack::{World, order};

/// Days without a crash, by kind, on the two stacks.
static CALM: [[OnceCell<Outcome>; 5]; 2] = [const { [const { OnceCell::const_new() }; 5] }; 2];

/// Every point with the stacks on which it can be reached; with the other kinds of queues those that matter to them.
pub fn cases() -> Vec<(String, Point, Stack)> {
    let mut cases = Vec::new();
    let mut case = |point: Point, stack: Stack| {
        let name = format!("crash::at_{}::{stack}", point.name().replace('-', "_"));
        cases.push((name, point, stack));
    };
    for &point in Point::ALL {
        for stack in Stack::ALL {
            if scenario::of(point, stack).is_ok() {
                case(point, stack);
            }
        }
    }
    for stack in Stack::OTHERS {
        for point in scenario::WHERE_MESSAGES_COME_BACK {
            case(point, stack);
        }
    }
    cases
}

/// Lives until the host has been killed at `point`, goes on, and compares.
pub async fn at(place: &Place, point: Point, stack: Stack) -> Checked {
    let scenario = match scenario::of(point, stack) {
        Ok(scenario) => scenario,
        Err(reason) => bail!("{point} has no case on {stack}: {reason}"),
    };
    let day = scenario.day();
    let world = World::new(place, stack, day).await?;
    until_killed(place, &world, point, &scenario).await?;
    let found = finish(place, &world).await?;

    let calm = &CALM[usize::from(stack == Stack::File)][day as usize];
    let expected = calm
        .get_or_try_init(|| async {
            let stack = stack.like();
            let place = Place::of(&format!("crash::calm_{day:?}::{stack}"))?;
            let world = World::new(&place, stack, day).await?;
            world.publish(&place, &day::messages(day)).await?;
            finish(&place, &world).await
        })
        .await?;
    ensure!(expected.size() > 10, "a day on which nothing happened");
    found.assert_like(expected, scenario.earlier.len() as i64 + 1)
}

/// Everything up to the death of the host at the point.
async fn until_killed(place: &Place, world: &World, point: Point, scenario: &Scenario) -> Checked {
    let order = order(point, scenario.passage);
    if scenario.when == When::Migrating {
        let file = world.config.write(&place.dir)?;
        let ended = host::cli_armed(&file, &["migrate"], Some(&order)).await?;
        ensure!(
            ended.code.is_none() && ended.stderr.contains(&format!("failpoint {point}: kill")),
            "hapax migrate was not killed at {point}: {ended:?}"
        );
        return world.publish(place, &day::messages(world.day)).await;
    }
    if scenario.when == When::InDoubt {
        return in_doubt(place, world, point, &order).await;
    }
    world.publish(place, &day::messages(world.day)).await?;
    for &earlier in scenario.earlier {
        world.killed_at(place, earlier, 1).await?;
    }
    match scenario.when {
        When::Migrating | When::InDoubt => unreachable!("done above"),
        When::Running | When::InLine => world.killed_at(place, point, scenario.passage).await,
        When::Draining => {
            let mut host = Host::launch_armed(place, &world.config, Some(&order))?;
            host.until_ready().await?;
            host.until_metric("hapax_deliveries_total", 1).await?;
            host.sigterm()?;
            host.until_killed_at(point).await
        }
        When::Swapping => swapping(place, world, point, &order).await,
        When::DrainingInTrouble => draining_in_trouble(place, world, point, &order).await,
        When::Operating | When::Mending => operating(place, world, point, &order).await,
        When::Rekeying => rekeying(place, world, point, &order).await,
        When::Expired => {
            let mut host = Host::start(place, &world.config).await?;
            world.until_settled(&mut host).await?;
            host.stop().await?;
            world.killed_at(place, point, scenario.passage).await
        }
    }
}

/// The host's own connections go through a proxy, which cuts them when a COMMIT is answered.
async fn in_doubt(place: &Place, world: &World, point: Point, order: &str) -> Checked {
    let proxy = Proxy::to(servers::postgres().await?.address()).await?;
    let through = world.store.url_through(proxy.address());
    let config = world.config.clone().with_store(&through);
    let mut host = Host::launch_armed(place, &config, Some(order))?;
    host.until_ready().await?;
    // Three other sessions than the lanes' may be at one before them.
    proxy.commits(Commits::CutAfter { times: 8 });
    world.publish(place, &day::messages(world.day)).await?;
    host.until_killed_at(point).await
}

/// The host is frozen when a start is on record; the tables are locked meanwhile, so that the message
/// cannot be run, and it is asked to stop.
async fn draining_in_trouble(place: &Place, world: &World, point: Point, order: &str) -> Checked {
    let stops = (1..=8).map(|passage| format!("after-start@{passage}=stop;"));
    let orders = stops.collect::<String>() + order;
    let mut host = Host::launch_armed(place, &world.config, Some(&orders))?;
    let lock = loop {
        host.until_frozen().await?;
        // The host may have been frozen in the middle of a transaction: then again at the next start.
        if let Some(lock) = lock(world).await? {
            break lock;
        }
        host.thaw()?;
    };
    host.thaw()?;
    wait::until("the host to meet the lock", wait::PATIENCE, async || {
        // It takes its start back as soon as it has met the lock, and then there is nothing to ask it for.
        if !host.is_running()? {
            return Ok(Some(()));
        }
        // It freezes at the other starts as well.
        host.thaw()?;
        let setbacks = host.metric("hapax_setbacks_total").await?;
        Ok((setbacks > 0).then_some(()))
    })
    .await?;
    if host.is_running()? {
        host.sigterm()?;
    }
    host.until_killed_at(point).await?;
    lock.release().await
}

enum Lock {
    Tables(sqlx::PgConnection),
    File(SqliteConnection),
}

/// Locks what messages write to; `None` when somebody else holds it.
async fn lock(world: &World) -> anyhow::Result<Option<Lock>> {
    match &world.store.kind {
        Kind::Postgres { .. } => {
            let mut connection = sqlx::PgConnection::connect(&world.store.url).await?;
            let locked = sqlx::raw_sql(
                "BEGIN; SET LOCAL lock_timeout = '100ms'; \
                 LOCK TABLE t_effects, t_counters, hapax_waiting, hapax_outbox, hapax_state",
            )
            .execute(&mut connection)
            .await;
            Ok(locked.is_ok().then_some(Lock::Tables(connection)))
        }
        Kind::Sqlite(file) => {
            let options = sqlx::sqlite::SqliteConnectOptions::new()
                .filename(file)
                .busy_timeout(Duration::from_millis(100));
            let mut connection = SqliteConnection::connect_with(&options).await?;
            let locked = sqlx::raw_sql("BEGIN IMMEDIATE")
                .execute(&mut connection)
                .await;
            Ok(locked.is_ok().then_some(Lock::File(connection)))
        }
    }
}

impl Lock {
    async fn release(self) -> Checked {
        match self {
            Lock::Tables(connection) => connection.close().await?,
            Lock::File(connection) => connection.close().await?,
        }
        Ok(())
    }
}

/// The daemon dies while it carries the command out.
async fn swapping(place: &Place, world: &World, point: Point, order: &str) -> Checked {
    let mut host = Host::launch_armed(place, &world.config, Some(order))?;
    host.until_ready().await?;
    let next = world.next_version(place)?;
    let load = ["plugins", "load", "probe", &next];
    let ended = host.cli(&load).await?;
    ensure!(ended.code != Some(0), "the host went on after {point}");
    host.until_killed_at(point).await
}

/// The operator's command dies, or the daemon that carries it out.
async fn operating(place: &Place, world: &World, point: Point, order: &str) -> Checked {
    let mut host = Host::launch_armed(place, &world.config, Some(order))?;
    host.until_ready().await?;
    world.until_settled(&mut host).await?;
    let operated = day::operate(place, world, &mut host, Some(order)).await?;
    ensure!(
        operated == Operated::Interrupted,
        "the operator was not interrupted at {point}"
    );
    match world.stack {
        // The command works on the store itself, and has died by itself.
        Stack::Servers(_) => host.sigkill(),
        Stack::File => host.until_killed_at(point).await,
    }
}

/// The command that changes the rules dies, when the last host has stopped.
async fn rekeying(place: &Place, world: &World, point: Point, order: &str) -> Checked {
    let mut host = Host::start(place, &world.config).await?;
    world.until_settled(&mut host).await?;
    host.stop().await?;
    let ended = day::rekey(place, world, Some(order)).await?;
    ensure!(
        ended.code.is_none() && ended.stderr.contains(&format!("failpoint {point}: kill")),
        "hapax consumers rekey was not killed at {point}: {ended:?}"
    );
    Ok(())
}

/// A host without failpoints brings the day to its end.
async fn finish(place: &Place, world: &World) -> anyhow::Result<Outcome> {
    if world.day == Day::Rekeyed {
        return finish_rekeyed(place, world).await;
    }
    if let Some(broker) = &world.broker {
        // What the dead host held is back.
        broker.left_over(IN).await?;
    }
    let mut host = Host::start(place, &world.config).await?;
    world.until_settled(&mut host).await?;
    if world.day == Day::Expiring {
        wait::until_equal("the committed keys that are remembered", 0, async || {
            world.store.count("hapax_ledger").await
        })
        .await?;
    } else {
        let operated = day::operate(place, world, &mut host, None).await?;
        ensure!(operated == Operated::Done, "the operator was interrupted");
        world.until_settled(&mut host).await?;
    }
    host.stop().await?;
    Outcome::of(world).await
}

/// The rules are changed as often as it takes, and a host starts by the new ones.
async fn finish_rekeyed(place: &Place, world: &World) -> anyhow::Result<Outcome> {
    if world.store.count("hapax_ledger").await.unwrap_or_default() == 0 {
        let mut host = Host::start(place, &world.config).await?;
        world.until_settled(&mut host).await?;
        host.stop().await?;
    }
    let changed = day::rekey(place, world, None).await?;
    ensure!(changed.code == Some(0), "{changed:?}");
    let mut host = Host::start(place, &day::rekeyed(world)?).await?;
    world.until_settled(&mut host).await?;
    host.stop().await?;
    Outcome::of(world).await
}
