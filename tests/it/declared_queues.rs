//! Queues keep what comes back to them: those that a host declares always, and of others the host says when they do
//! not. What counts as a limit of deliveries depends on the version of RabbitMQ.

use anyhow::{Context, ensure};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::json;
use sqlx::Connection;

use crate::Checked;
use crate::support::broker::{Message, VirtualHost};
use crate::support::declared::Declared;
use crate::support::host::{self, Config, Consumer, Ended, Host, UNHURRIED};
use crate::support::place::Place;
use crate::support::proxy::Proxy;
use crate::support::scene::{self, IN, OUT, Scene};
use crate::support::servers::{self, Release};
use crate::support::store::Store;
use crate::support::wait;

const MESSAGES: usize = 40;

/// What a host says of a queue that the broker limits.
const LIMITED: &str = "given back more than 20 times";

/// Messages come back four times: from a host that is killed, one that is paused, one that loses its connection, and
/// one that is stopped. At each time one message is being worked on, held up by a lock, and the others were
/// fetched.
pub async fn keep_what_comes_back(place: &Place, scene: Scene) -> Checked {
    let rabbit = servers::rabbit_of(scene.release()).await?;
    let to_broker = Proxy::to(rabbit.address()).await?;
    let consumer = scene
        .probe()?
        .set("lanes", "1")
        .set("batch", "1")
        .set("prefetch", "100")
        .set("limits", UNHURRIED);
    let url = scene.broker.url_through(to_broker.address());
    // The drain has to end; how fast a busy machine is at that is not asked here.
    let config = Config::new("host", &scene.store.url, &url)
        .host_line("shutdown-timeout = \"5m\"")
        .store_line("lock-timeout = \"50s\"")
        .store_line("statement-timeout = \"60s\"")
        .consumer(consumer);
    scene.publish(&messages()).await?;

    let lock = lock(&scene).await?;
    let host = Host::start(place, &config).await?;
    until_delivered(&host, MESSAGES).await?;
    host.sigkill()?;
    let left = until_back(&scene.broker, MESSAGES).await?;

    let host = Host::start(place, &config).await?;
    until_delivered(&host, left).await?;
    let paused = host
        .cli(&["consumers", "pause", "probe", "--why", "a test"])
        .await?;
    ensure!(paused.code == Some(0), "{paused:?}");
    host.until_says("Consumer paused").await?;
    lock.close().await?;
    // The one that had begun is finished.
    let left = until_back(&scene.broker, left - 1).await?;
    host.stop().await?;
    let file = config.write(&place.dir)?;
    let resumed = host::cli(&file, &["consumers", "resume", "probe"]).await?;
    ensure!(resumed.code == Some(0), "{resumed:?}");

    let lock = self::lock(&scene).await?;
    let mut host = Host::start(place, &config).await?;
    until_delivered(&host, left).await?;
    to_broker.cut();
    // All of them again, but for the finished one of before: what comes back of that is acknowledged at once.
    until_delivered(&host, 2 * left - 1).await?;
    let drained = host.said("Draining")?;
    host.sigterm()?;
    wait::until_equal("the drains that have begun", drained + 1, async || {
        host.said("Draining")
    })
    .await?;
    lock.close().await?;
    let code = host.exit_code().await?;
    ensure!(code == 0, "the host ended with {code}");
    until_back(&scene.broker, left - 2).await?;

    let host = Host::start(place, &config).await?;
    scene.finish(host).await?;
    let total = "SELECT total FROM t_counters WHERE id = 'a'";
    assert_eq!(scene.store.number(total).await?, MESSAGES as i64);
    assert_eq!(scene.effects().await?.len(), MESSAGES);
    assert_eq!(scene.sent().await?.len(), MESSAGES);
    assert_eq!(scene.store.waiting().await?, [""; 0]);
    Ok(())
}

/// Each of them needs the same row.
fn messages() -> Vec<Message> {
    let count = "UPDATE t_counters SET total = total + 1 WHERE id = 'a'";
    (0..MESSAGES)
        .map(|number| {
            let order = format!("{number:02}");
            let steps = [
                json!({"execute": [count, []]}),
                scene::insert(&order, 0),
                scene::publish(&order),
            ];
            scene::message(&order, &steps)
        })
        .collect()
}

/// Locks that row until it is closed.
async fn lock(scene: &Scene) -> anyhow::Result<sqlx::PgConnection> {
    let mut connection = sqlx::PgConnection::connect(&scene.store.url).await?;
    sqlx::raw_sql("BEGIN; SELECT total FROM t_counters WHERE id = 'a' FOR UPDATE")
        .execute(&mut connection)
        .await?;
    Ok(connection)
}

async fn until_delivered(host: &Host, messages: usize) -> Checked {
    host.until_metric("hapax_deliveries_total", messages as u64)
        .await
}

/// Waits until nobody consumes from the queue any more.
async fn until_deaf(broker: &VirtualHost) -> Checked {
    wait::until_equal("the subscriptions to the queue", 0, async || {
        Ok(broker.depth(IN).await?.consumers)
    })
    .await
}

/// Waits until the queue, from which nobody consumes, has at least this number of messages, and returns how many it has.
async fn until_back(broker: &VirtualHost, at_least: usize) -> anyhow::Result<usize> {
    until_deaf(broker).await?;
    let what = format!("at least {at_least} messages to be back");
    let mut left = 0;
    wait::until_is(
        &what,
        async || {
            left = broker.depth(IN).await?.ready as usize;
            Ok(left)
        },
        |left| *left >= at_least,
    )
    .await?;
    Ok(left)
}

/// RabbitMQ 4 has a limit unless it is told that there is none, and older ones take that for a limit; so the host asks
/// for the version, at each time at which it declares the queue.
pub async fn get_no_limit_by_the_version_of_the_broker(place: &Place, release: Release) -> Checked {
    let declared = Declared {
        kind: "quorum",
        release,
    };
    let expected = match limits_by_itself(release).await? {
        true => json!({"x-queue-type": "quorum", "x-delivery-limit": -1}),
        false => json!({"x-queue-type": "quorum"}),
    };
    let broker = declared.create_vhost().await?;
    broker.declare(&[OUT]).await?;
    let config = config(place, "host", &broker.url, declared.by(probe()?)).await?;
    let host = Host::start(place, &config).await?;
    let as_expected = ("quorum".to_owned(), expected);
    assert_eq!(broker.declared_as(IN).await?, as_expected);
    broker.delete_queue(IN).await?;
    wait::until_equal("the queue that is made again", as_expected, async || {
        broker.declared_as(IN).await
    })
    .await?;
    ensure!(host.said("delivery-limit")? == 0, "it is warned of");
    host.stop().await?;
    // And finds it again.
    Host::start(place, &config).await?.stop().await
}

/// A queue that somebody else has made without a limit is used, and where the broker has one that is said.
pub async fn are_warned_of_where_the_broker_limits_them(
    place: &Place,
    release: Release,
) -> Checked {
    let broker = servers::rabbit_of(release).await?.create_vhost().await?;
    broker.declare(&[OUT]).await?;
    broker.declare_with(IN, typed("quorum")).await?;
    let limited = limits_by_itself(release).await?;
    let quorum = Declared {
        kind: "quorum",
        release,
    };
    for (label, consumer) in [("premade", probe()?), ("declared", quorum.by(probe()?))] {
        let config = config(place, label, &broker.url, consumer).await?;
        let checked = check(place, &config).await?;
        ensure!(
            checked.code == Some(0) && checked.stderr.contains(LIMITED) == limited,
            "{label}: {checked:?}"
        );
        let host = Host::start(place, &config).await?;
        assert_eq!(host.said(LIMITED)?, usize::from(limited), "{label}");
        broker.publish(IN, &[scene::ordinary(label)]).await?;
        host.until_metric("hapax_committed_total", 1).await?;
        host.stop().await?;
    }
    Ok(())
}

/// What the warning advises is true: under such a policy the queue keeps what comes back, and without it it does not.
pub async fn keep_what_comes_back_by_a_policy(_place: &Place) -> Checked {
    let rabbit = servers::rabbit_of(Release::Four).await?;
    let broker = rabbit.create_vhost().await?;
    let messages = vec![scene::ordinary("1"); 3];
    broker
        .set_policy("^kept$", json!({"delivery-limit": -1}))
        .await?;
    for (queue, left) in [("kept", 3), ("dropped", 0)] {
        broker.declare_with(queue, typed("quorum")).await?;
        broker.publish(queue, &messages).await?;
        broker.take_and_leave(queue, 30).await?;
        broker.until_left(queue, left).await?;
    }
    Ok(())
}

/// A negative limit is no limit, or one that every message has passed when it comes back once.
pub async fn with_a_negative_limit_are_refused_where_they_lose_messages(
    place: &Place,
    release: Release,
) -> Checked {
    let broker = servers::rabbit_of(release).await?.create_vhost().await?;
    broker.declare(&[OUT]).await?;
    let mut arguments = typed("quorum");
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(-1));
    broker.declare_with(IN, arguments).await?;
    let keeps = limits_by_itself(release).await?;
    let quorum = Declared {
        kind: "quorum",
        release,
    };
    for (label, consumer) in [("premade", probe()?), ("declared", quorum.by(probe()?))] {
        let config = config(place, label, &broker.url, consumer).await?;
        let checked = check(place, &config).await?;
        if keeps {
            ensure!(
                checked.code == Some(0) && !checked.stderr.contains("delivery-limit"),
                "{label}: {checked:?}"
            );
            let host = Host::start(place, &config).await?;
            assert_eq!(host.said("delivery-limit")?, 0, "{label}");
            host.stop().await?;
            continue;
        }
        for ended in [checked, host::run_to_end(place, &config).await?] {
            assert_eq!(ended.code, Some(64), "{label}: {ended:?}");
            for part in ["x-delivery-limit is -1", "shovel", "`declare`"] {
                ensure!(
                    ended.stderr.contains(part),
                    "{label}: {part} is not told: {ended:?}"
                );
            }
        }
    }
    Ok(())
}

/// What the broker makes of a queue that is declared without a type does not matter.
pub async fn are_what_they_say_where_the_virtual_host_has_another_type(
    place: &Place,
    release: Release,
) -> Checked {
    let rabbit = servers::rabbit_of(release).await?;
    let broker = rabbit.create_vhost_of_quorum_queues().await?;
    broker.declare(&[OUT]).await?;
    let classic = Declared {
        kind: "classic",
        release,
    };
    let own = config(place, "own", &broker.url, classic.by(probe()?)).await?;
    Host::start(place, &own).await?.stop().await?;
    assert_eq!(broker.declared_as(IN).await?.0, "classic");

    // One that somebody else has made is seen as what it is.
    let limited = broker.declared_as(OUT).await?.0 == "quorum" && limits_by_itself(release).await?;
    let premade = probe()?.set("queue", &format!("\"{OUT}\""));
    let premade = config(place, "premade", &broker.url, premade).await?;
    let host = Host::start(place, &premade).await?;
    assert_eq!(host.said(LIMITED)?, usize::from(limited));
    host.stop().await
}

/// Whether or not the host may declare queues, it sees that this is none whose messages come back; and it does not take
/// others for one.
pub async fn that_are_streams_are_refused(place: &Place, release: Release) -> Checked {
    let broker = servers::rabbit_of(release).await?.create_vhost().await?;
    broker.declare(&[OUT, "classic"]).await?;
    broker.declare_with(IN, typed("stream")).await?;
    broker.declare_with("quorum", typed("quorum")).await?;
    let reader = broker.url_of_a_reader().await?;
    for (label, url) in [("owner", &broker.url), ("reader", &reader)] {
        let stream = config(place, label, url, probe()?).await?;
        for ended in [
            check(place, &stream).await?,
            host::run_to_end(place, &stream).await?,
        ] {
            assert_eq!(ended.code, Some(64), "{label}: {ended:?}");
            let told = ended.stderr.contains("the queue in is a stream");
            ensure!(told, "{label}: {ended:?}");
        }
        for queue in ["classic", "quorum"] {
            let consumer = probe()?.set("queue", &format!("\"{queue}\""));
            let label = format!("{label}-{queue}");
            let config = config(place, &label, url, consumer).await?;
            broker.publish(queue, &[scene::ordinary(&label)]).await?;
            let host = Host::start(place, &config).await?;
            host.until_metric("hapax_committed_total", 1).await?;
            host.stop().await?;
            broker.until_left(queue, 0).await?;
        }
    }
    Ok(())
}

fn typed(kind: &str) -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
    arguments
}

fn probe() -> anyhow::Result<Consumer> {
    Consumer::probe(IN)
}

/// A host with a SQLite file of its own.
async fn config(
    place: &Place,
    label: &str,
    broker: &str,
    consumer: Consumer,
) -> anyhow::Result<Config> {
    let own = Place {
        dir: place.dir.join(label),
        seed: place.seed,
    };
    std::fs::create_dir_all(&own.dir)?;
    let store = Store::sqlite(&own);
    store.execute(scene::TABLES).await?;
    Ok(Config::new(label, &store.url, broker).consumer(consumer))
}

async fn check(place: &Place, config: &Config) -> anyhow::Result<Ended> {
    host::cli(&config.write(&place.dir)?, &["check", "--connect"]).await
}

/// Whether this RabbitMQ is of version 4 or later.
async fn limits_by_itself(release: Release) -> anyhow::Result<bool> {
    let version = servers::rabbit_of(release).await?.version();
    let major = version.split('.').next().context("a version has numbers")?;
    Ok(major.parse::<u32>()? >= 4)
}
