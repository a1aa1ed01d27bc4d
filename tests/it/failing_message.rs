//! One message of a batch fails; the other 255 must not notice.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection, SqliteConnection};

use crate::Checked;
use crate::support::broker::Message;
use crate::support::host::{Host, UNHURRIED};
use crate::support::place::Place;
use crate::support::proxy::{Commits, Proxy};
use crate::support::scene::{self, INSERT, Scene, defer, insert, message, publish};
use crate::support::store::{Fates, Kind};
use crate::support::{servers, wait};

const BATCH: usize = 256;

/// A way to fail, and what the operator is to read.
struct Sin {
    code: &'static str,
    limits: &'static str,
    steps: Vec<Value>,
}

fn sins() -> Vec<Sin> {
    let limited = |code, limits, step: Value| Sin {
        code,
        limits,
        steps: vec![step],
    };
    // Only what is about the processor's time is to run out of it, on whatever machine.
    let sin = |code, step| limited(code, UNHURRIED, step);
    vec![
        sin("retry", json!({"retry": "not today"})),
        sin("rejected", json!({"reject": "never"})),
        sin("trap", json!({"panic": "on purpose"})),
        sin("trap", json!({"recurse": true})),
        limited("cpu-limit", "{}", json!({"spin": true})),
        limited(
            "wall-limit",
            r#"{ wall = "300ms" }"#,
            json!({"sleep_ms": 600_000}),
        ),
        sin("memory-limit", json!({"allocate_mib": 256})),
        limited(
            "hostcall-limit",
            r#"{ hostcall-bytes = "64KiB" }"#,
            json!({"publish": {"target": "out", "body": "x".repeat(100 * 1024)}}),
        ),
        sin(
            "sql-error",
            json!({"query": ["SELECT no_such_column FROM t_effects", []]}),
        ),
        sin(
            "sql-refused",
            json!({"execute": ["DELETE FROM t_parents", []]}),
        ),
        sin(
            "sql-refused",
            json!({"execute": ["DELETE FROM hapax_ledger", []]}),
        ),
        sin("sql-refused", json!({"execute": ["COMMIT", []]})),
        sin(
            "sql-refused",
            json!({"execute": ["INSERT OR ROLLBACK INTO t_effects VALUES ('x', 1)", []]}),
        ),
        sin("constraint", json!({"defer": [INSERT, ["taken", 0]]})),
        sin("constraint", json!({"defer": [INSERT, ["negative", -1]]})),
        sin("rejected", json!({"execute": [INSERT, ["taken", 0]]})),
        sin(
            "outbox-limit",
            json!({"repeat": [1_001, [publish("too many")]]}),
        ),
        sin(
            "sql-limit",
            json!({"repeat": [1_001, [{"query": ["SELECT id FROM t_parents", []]}]]}),
        ),
    ]
}

/// Every kind of failure, each in the middle of 255 good messages: the good ones commit with
/// their rows and messages, of the bad ones nothing is to be seen but a row that says why.
///
/// Elements of tables, which the probe cannot grow, have their limit in `evil_guests`.
pub async fn takes_only_itself_out_of_its_batch(place: &Place, scene: Scene) -> Checked {
    scene
        .store
        .execute("INSERT INTO t_effects VALUES ('taken', 0)")
        .await?;
    let mut random = place.random();
    let (mut good, mut bad) = (Vec::new(), BTreeMap::new());
    for (number, sin) in sins().into_iter().enumerate() {
        // Not the last one: whether the batch begins with the plug or behind it, this one is in it.
        let position = random.usize(..BATCH - 1);
        let mut messages = Vec::new();
        for index in 0..BATCH {
            let order = format!("{number:02}-{index:03}");
            if index == position {
                messages.push(failing(&order, &sin.steps));
                bad.insert(order, sin.code);
            } else {
                messages.push(effective(&order, index));
                good.push(order);
            }
        }
        let (host, _line) = run_one_batch(place, &scene, sin.limits, number, &messages).await?;
        host.until_metric("hapax_parked_total", 1).await?;
        scene.finish(host).await?;
        good.push(plug(number));
    }
    good.sort();

    let expected: Vec<String> = bad
        .iter()
        .map(|(order, code)| format!("{order} parked {code}"))
        .collect();
    assert_eq!(scene.store.waiting_keys().await?, expected);
    scene
        .assert_fates(Fates {
            committed: i64::try_from(good.len())?,
            parked: i64::try_from(bad.len())?,
            ..Fates::default()
        })
        .await?;
    let rows: Vec<String> = good.iter().map(|order| format!("{order}/0")).collect();
    let mut effects = scene.effects().await?;
    effects.retain(|row| row != "taken/0");
    assert_eq!(effects, rows);
    assert_eq!(scene.sent().await?, good);
    Ok(())
}

/// What the other tests of this module say of batches is about batches of this size.
pub async fn none_makes_one_transaction_of_its_batch(place: &Place, scene: Scene) -> Checked {
    let messages: Vec<_> = (0..BATCH)
        .map(|index| effective(&format!("{index:03}"), index))
        .collect();
    let (host, _line) = run_one_batch(place, &scene, "{}", 0, &messages).await?;
    host.until_metric("hapax_committed_total", 1 + BATCH as u64)
        .await?;
    let up_to = |messages| host.metric_where("hapax_batch_messages_bucket", messages);
    assert_eq!(up_to(&[("le", "256.0")]).await?, 2);
    assert_eq!(up_to(&[("le", "128.0")]).await?, 1);
    scene.finish(host).await
}

/// The database finds each transaction with this message at odds with others. In the end that is the message's
/// own failure.
pub async fn that_always_conflicts_takes_only_itself_out(place: &Place) -> Checked {
    let scene = Scene::postgres(place).await?;
    scene
        .store
        .execute(
            "CREATE FUNCTION at_odds() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN RAISE EXCEPTION 'at odds' USING ERRCODE = 'serialization_failure'; END $$; \
             CREATE TRIGGER at_odds BEFORE INSERT ON t_effects \
             FOR EACH ROW WHEN (NEW.order_id = 'odd') EXECUTE FUNCTION at_odds()",
        )
        .await?;
    let orders: Vec<String> = (0..BATCH).map(|index| format!("{index:03}")).collect();
    let mut messages: Vec<_> = orders
        .iter()
        .enumerate()
        .map(|(index, order)| effective(order, index))
        .collect();
    let position = place.random().usize(..BATCH - 1);
    messages[position] = scene::ordinary("odd");
    let (host, _line) = run_one_batch(place, &scene, "{}", 0, &messages).await?;
    host.until_metric("hapax_failed_total", 1).await?;
    scene
        .store
        .execute("DROP TRIGGER at_odds ON t_effects")
        .await?;
    scene.finish(host).await?;
    // The good ones committed beside it, and it from the table, when nothing was at odds any more.
    let mut good = orders;
    good[position] = "odd".to_owned();
    good.push(plug(0));
    good.sort();
    assert_eq!(scene.sent().await?, good);
    let odd = "SELECT CAST(attempts AS BIGINT) FROM hapax_ledger WHERE key = 'odd'";
    assert_eq!(scene.store.number(odd).await?, 2);
    Ok(())
}

fn plug(number: usize) -> String {
    format!("{number:02}-plug")
}

/// A host with one lane, which takes all of these messages at once: they were delivered while it could not
/// commit another one.
async fn run_one_batch(
    place: &Place,
    scene: &Scene,
    limits: &str,
    number: usize,
    messages: &[Message],
) -> anyhow::Result<(Host, Stop)> {
    let consumer = scene
        .probe()?
        .set("lanes", "1")
        .set("batch", &BATCH.to_string())
        // The plug takes long, and must not make the next batch a narrow one.
        .set("batch-time", "\"1m\"")
        .set("limits", limits)
        .set(
            "retry",
            r#"{ max-attempts = 2, delay = "20ms", max-delay = "50ms" }"#,
        );
    let mut config = scene.config("host", consumer);
    let mut stop = Stop::at(scene).await?;
    if let Stop::Line(proxy) = &stop {
        config = config.with_store(&scene.store.url_through(proxy.address()));
    }
    let host = Host::start(place, &config).await?;
    stop.hold().await?;
    scene.publish(&[scene::ordinary(&plug(number))]).await?;
    host.until_metric("hapax_deliveries_total", 1).await?;
    if let Stop::Line(proxy) = &stop {
        proxy.until_holds("hapax probe ", 1).await?;
    }
    scene.publish(messages).await?;
    host.until_metric("hapax_deliveries_total", 1 + messages.len() as u64)
        .await?;
    assert_eq!(host.metric("hapax_committed_total").await?, 0);
    stop.let_go().await?;
    Ok((host, stop))
}

/// What keeps a lane from committing, and its line to the database as long as the test lasts.
enum Stop {
    Line(Proxy),
    /// SQLite has one writer, and that is somebody else.
    File(SqliteConnection),
}

impl Stop {
    async fn at(scene: &Scene) -> anyhow::Result<Stop> {
        Ok(match &scene.store.kind {
            Kind::Postgres { .. } => {
                Stop::Line(Proxy::to(servers::postgres().await?.address()).await?)
            }
            Kind::Sqlite(file) => {
                let options = SqliteConnectOptions::new()
                    .filename(file)
                    .busy_timeout(wait::PATIENCE);
                Stop::File(SqliteConnection::connect_with(&options).await?)
            }
        })
    }

    async fn hold(&mut self) -> Checked {
        match self {
            Stop::Line(proxy) => proxy.commits(Commits::Hold),
            Stop::File(other) => {
                sqlx::raw_sql("BEGIN IMMEDIATE").execute(other).await?;
            }
        }
        Ok(())
    }

    async fn let_go(&mut self) -> Checked {
        match self {
            Stop::Line(proxy) => proxy.commits(Commits::Pass),
            Stop::File(other) => {
                sqlx::raw_sql("ROLLBACK").execute(other).await?;
            }
        }
        Ok(())
    }
}

/// A message that asks for another attempt runs again from the table, and commits.
pub async fn commits_later_from_the_table(place: &Place, scene: Scene) -> Checked {
    let mut random = place.random();
    let late = random.usize(..BATCH);
    let orders: Vec<String> = (0..BATCH).map(|index| format!("{index:03}")).collect();
    let mut messages: Vec<Message> = orders
        .iter()
        .enumerate()
        .map(|(index, order)| effective(order, index))
        .collect();
    let order = &orders[late];
    let again = json!({"retry_until_attempt": 3});
    messages[late] = message(order, &[insert(order, 0), publish(order), again]);
    scene.publish(&messages).await?;

    let consumer = scene.probe()?.set("lanes", "1");
    let host = Host::start(place, &scene.config("host", consumer)).await?;
    host.until_metric("hapax_committed_total", BATCH as u64)
        .await?;
    assert_eq!(
        host.metric_where("hapax_failed_total", &[("code", "retry")])
            .await?,
        2
    );
    scene.finish(host).await?;

    let rows: Vec<String> = orders.iter().map(|order| format!("{order}/0")).collect();
    assert_eq!(scene.effects().await?, rows);
    assert_eq!(scene.sent().await?, orders);
    assert_eq!(scene.store.waiting().await?, [""; 0]);
    let attempts =
        "SELECT CAST(attempts AS BIGINT) FROM hapax_ledger ORDER BY attempts DESC LIMIT 1";
    assert_eq!(scene.store.number(attempts).await?, 3);
    let committed = i64::try_from(BATCH)?;
    scene
        .assert_fates(Fates {
            committed,
            ..Fates::default()
        })
        .await
}

/// The copy tells why, and whoever moves it back into the queue finds that its key is known.
pub async fn is_copied_where_its_consumer_says(place: &Place, scene: Scene) -> Checked {
    let mut bad = message("k", &[insert("k", 0), json!({"reject": "never"})]);
    bad.properties = bad
        .properties
        .with_message_id("original".into())
        .with_expiration("3600000".into());
    let consumer = scene
        .probe()?
        .set("park", r#"{ exchange = "", routing-key = "out" }"#);
    let host = Host::start(place, &scene.config("host", consumer)).await?;
    scene.publish(std::slice::from_ref(&bad)).await?;
    let copies = scene.broker.receive("out", 1).await?;
    let copy = &copies[0];
    assert_eq!(copy.body, bad.body);
    assert_eq!(copy.message_id()?, "original");
    assert_eq!(copy.properties.expiration(), &None);
    let headers = copy.properties.headers().clone().unwrap_or_default();
    let code = headers.inner().get("x-hapax-code");
    assert_eq!(
        code,
        Some(&lapin::types::AMQPValue::LongString("rejected".into()))
    );
    assert_eq!(scene.store.waiting_keys().await?, ["k parked rejected"]);

    let moved = Message {
        body: copy.body.clone(),
        properties: copy.properties.clone(),
    };
    scene.publish(&[moved]).await?;
    host.until_metric("hapax_duplicates_total", 1).await?;
    scene.finish(host).await?;
    assert_eq!(scene.store.waiting_keys().await?, ["k parked rejected"]);
    assert_eq!(scene.effects().await?, [""; 0]);
    Ok(())
}

/// A good message; some write now, some later, so that a failing neighbour meets both.
fn effective(order: &str, index: usize) -> Message {
    let write = if index.is_multiple_of(3) {
        defer(order, 0)
    } else {
        insert(order, 0)
    };
    message(order, &[write, publish(order)])
}

/// Does what a good message does, on both ways, and then fails.
fn failing(order: &str, sin: &[Value]) -> Message {
    let mut steps = vec![insert(order, 1), defer(order, 2), publish(order)];
    steps.extend_from_slice(sin);
    message(order, &steps)
}
