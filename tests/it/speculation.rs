//! Plain INSERTs that a handler runs at once are answered before they run, and written with those of their neighbours. Nobody
//! may be able to tell: not a handler whose row is refused, not one that reads its own row, not a trigger of the table.

use serde_json::json;
use sqlx::Connection;

use crate::Checked;
use crate::support::broker::Message;
use crate::support::host::Host;
use crate::support::place::Place;
use crate::support::scene::{self, IN, INSERT, OUT, Scene};

const MESSAGES: usize = 200;

/// A trigger that writes down of how many rows each INSERT was.
const SEE: [&str; 3] = [
    "CREATE TABLE t_seen (row_count BIGINT NOT NULL)",
    "CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS \
     'BEGIN INSERT INTO t_seen (row_count) SELECT count(*) FROM new_rows; RETURN NULL; END'",
    "CREATE TRIGGER see AFTER INSERT ON t_effects REFERENCING NEW TABLE AS new_rows \
     FOR EACH STATEMENT EXECUTE FUNCTION see()",
];

/// One lane, and one batch after the other, of what is in the queue when the host starts.
async fn run(place: &Place, scene: &Scene, messages: &[Message]) -> Checked {
    scene.publish(messages).await?;
    let consumer = scene
        .probe()?
        .set("lanes", "1")
        .set("retry", "{ max-attempts = 1 }")
        .set("batch", "50")
        // A machine that is slow makes no batch smaller.
        .set("batch-time", "\"60s\"");
    let host = Host::start(place, &scene.config("speculation", consumer)).await?;
    scene::until_settled(&host, &scene.broker, IN, &scene.store).await?;
    host.stop().await
}

/// Messages that insert a row each.
fn rows(first: usize) -> Vec<Message> {
    (first..first + MESSAGES)
        .map(|number| {
            let steps = json!([{"execute": [INSERT, [number.to_string(), 1]]}]);
            Message::json(&json!({"order_id": number.to_string(), "do": steps}))
        })
        .collect()
}

pub async fn of_a_batch_are_one_statement(place: &Place) -> Checked {
    let scene = Scene::postgres(place).await?;
    run(place, &scene, &rows(0)).await?;
    assert_eq!(scene.effects().await?.len(), MESSAGES);
    // Rows of one statement carry its number in their transaction.
    let statements =
        "SELECT count(*) FROM (SELECT DISTINCT xmin::text, cmin::text FROM t_effects) AS s";
    let statements = scene.store.number(statements).await?;
    assert!(statements < MESSAGES as i64 / 5, "{statements} statements");
    Ok(())
}

pub async fn of_a_table_with_a_trigger_run_one_by_one(place: &Place) -> Checked {
    let scene = Scene::postgres(place).await?;
    for statement in SEE {
        scene.store.execute(statement).await?;
    }
    run(place, &scene, &rows(0)).await?;
    assert_eq!(scene.effects().await?.len(), MESSAGES);
    let seen = "SELECT count(*) FROM t_seen WHERE row_count = 1";
    assert_eq!(scene.store.number(seen).await?, MESSAGES as i64);
    Ok(())
}

/// The trigger comes while the host takes the table for plain.
pub async fn of_a_table_that_gets_a_trigger_run_one_by_one_from_then_on(place: &Place) -> Checked {
    let scene = Scene::postgres(place).await?;
    let (before, after) = (rows(0), rows(MESSAGES));
    scene.publish(&before).await?;
    let consumer = scene.probe()?.set("lanes", "1").set("batch", "50");
    let host = Host::start(place, &scene.config("speculation", consumer)).await?;
    host.until_metric("hapax_committed_total", MESSAGES as u64)
        .await?;
    for statement in SEE {
        scene.store.execute(statement).await?;
    }
    scene.publish(&after).await?;
    scene::until_settled(&host, &scene.broker, IN, &scene.store).await?;
    host.stop().await?;
    assert_eq!(scene.effects().await?.len(), 2 * MESSAGES);
    let seen = "SELECT count(*) FROM t_seen WHERE row_count = 1";
    assert_eq!(scene.store.number(seen).await?, MESSAGES as i64);
    Ok(())
}

/// The rows of others are written in the time of the message that asks the database next. When that takes too long, it is
/// not its fault.
pub async fn that_wait_for_a_lock_are_not_held_against_a_neighbour(place: &Place) -> Checked {
    let scene = Scene::postgres(place).await?;
    let other = scene
        .store
        .hold("LOCK TABLE t_effects IN ACCESS EXCLUSIVE MODE")
        .await?;
    let asks =
        json!({"query": ["SELECT total FROM t_counters WHERE id = $1", ["a"]], "into": "out"});
    let messages = [
        scene::message("waits", &[scene::insert("waits", 0)]),
        scene::message("asks", &[asks]),
    ];
    scene.publish(&messages).await?;
    let consumer = scene
        .probe()?
        .set("lanes", "1")
        .set("retry", r#"{ max-attempts = 3, delay = "50ms" }"#)
        .set("limits", r#"{ wall = "1s" }"#);
    // Both outlast the messages: it is their own limit that ends them.
    let mut config = scene.config("speculation", consumer);
    for line in ["lock-timeout = \"60s\"", "statement-timeout = \"60s\""] {
        config = config.store_line(line);
    }
    let host = Host::start(place, &config).await?;
    host.until_metric("hapax_committed_total", 1).await?;
    host.until_metric("hapax_parked_total", 1).await?;
    other.close().await?;
    host.stop().await?;
    assert_eq!(
        scene.store.waiting_keys().await?,
        ["waits parked wall-limit"]
    );
    assert_eq!(scene.broker.drain(OUT).await?.len(), 1);
    Ok(())
}

/// Every tenth row is there already: its handler is told, goes on, and says so; the others do not notice.
pub async fn that_are_refused_are_heard_by_their_handler(place: &Place, scene: Scene) -> Checked {
    let messages: Vec<Message> = (0..MESSAGES)
        .map(|number| {
            let row = json!([(number - usize::from(number % 10 == 9)).to_string(), 1]);
            let publish = json!({"publish": {"target": "out", "body": number}});
            let steps = match number % 10 {
                9 => json!([{"execute_ignore": [INSERT, row]}, publish]),
                _ => json!([{"execute": [INSERT, row]}]),
            };
            Message::json(&json!({"order_id": number.to_string(), "do": steps}))
        })
        .collect();
    run(place, &scene, &messages).await?;
    assert_eq!(scene.effects().await?.len(), MESSAGES - MESSAGES / 10);
    assert_eq!(scene.broker.drain(OUT).await?.len(), MESSAGES / 10);
    assert_eq!(scene.store.waiting_keys().await?, Vec::<String>::new());
    Ok(())
}

/// Messages that would fail for the wrong reason if they were left with the answer that they were given first.
pub async fn that_were_answered_wrongly_do_not_fail_for_it(place: &Place, scene: Scene) -> Checked {
    let messages: Vec<Message> = (0..MESSAGES)
        .map(|number| {
            let row = json!([(number / 2).to_string(), 1]);
            // The second of a pair is refused its row, which rejects it before it panics.
            let steps = match number % 2 {
                0 => json!([{"execute": [INSERT, row]}]),
                _ => json!([{"execute": [INSERT, row]}, {"panic": "it was told that the row is new"}]),
            };
            Message::json(&json!({"order_id": number.to_string(), "do": steps}))
        })
        .collect();
    run(place, &scene, &messages).await?;
    assert_eq!(scene.effects().await?.len(), MESSAGES / 2);
    let waiting = scene.store.waiting_keys().await?;
    assert_eq!(waiting.len(), MESSAGES / 2);
    for key in waiting {
        assert!(key.ends_with(" parked rejected"), "{key}");
    }
    Ok(())
}

/// A row is there for the query of its own message, and so is every earlier one; a deferred one of the same message is not.
pub async fn are_there_for_a_query_of_their_message(place: &Place, scene: Scene) -> Checked {
    let messages: Vec<Message> = (0..MESSAGES)
        .map(|number| {
            let steps = json!([
                {"defer": [INSERT, [number.to_string(), 2]]},
                {"execute": [INSERT, [number.to_string(), 1]]},
                {"query": ["SELECT count(*) AS seen FROM t_effects", []], "into": "out"},
            ]);
            Message::json(&json!({"order_id": number.to_string(), "do": steps}))
        })
        .collect();
    run(place, &scene, &messages).await?;
    let mut seen = Vec::new();
    for message in scene.broker.drain(OUT).await? {
        seen.push(message.json()?[0]["seen"].as_u64());
    }
    seen.sort_unstable();
    let expected: Vec<_> = (0..MESSAGES as u64)
        .map(|number| Some(2 * number + 1))
        .collect();
    assert_eq!(seen, expected);
    Ok(())
}
