//! One message of a batch fails; the other 255 must not notice.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::Checked;
use crate::support::broker::Message;
use crate::support::host::Host;
use crate::support::place::Place;
use crate::support::scene::{INSERT, Scene, defer, insert, message, publish};
use crate::support::store::Fates;

const BATCH: usize = 256;

/// A way to fail, and what the operator is to read.
struct Sin {
    code: &'static str,
    steps: Vec<Value>,
}

fn sins() -> Vec<Sin> {
    let sin = |code, step: Value| Sin {
        code,
        steps: vec![step],
    };
    vec![
        sin("retry", json!({"retry": "not today"})),
        sin("rejected", json!({"reject": "never"})),
        sin("trap", json!({"panic": "on purpose"})),
        sin("trap", json!({"recurse": true})),
        sin("cpu-limit", json!({"spin": true})),
        sin("memory-limit", json!({"allocate_mib": 256})),
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
pub async fn takes_only_itself_out_of_its_batch(place: &Place, scene: Scene) -> Checked {
    scene
        .store
        .execute("INSERT INTO t_effects VALUES ('taken', 0)")
        .await?;
    let mut random = place.random();
    let (mut messages, mut good) = (Vec::new(), Vec::new());
    let mut bad = BTreeMap::new();
    for (number, sin) in sins().into_iter().enumerate() {
        let position = random.usize(..BATCH);
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
    }
    scene.publish(&messages).await?;

    let retry = r#"{ max-attempts = 2, delay = "20ms", max-delay = "50ms" }"#;
    let consumer = scene.probe()?.set("lanes", "1").set("retry", retry);
    let host = Host::start(place, &scene.config("host", consumer)).await?;
    host.until_metric("hapax_parked_total", bad.len() as u64)
        .await?;
    scene.finish(host).await?;

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
