//! Messages that write now, write later, read, and fail by their own will, by a trap or by a limit, in random mixtures: running them in
//! batches must leave what running them one by one leaves.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::Checked;
use crate::support::broker::Message;
use crate::support::host::Host;
use crate::support::place::Place;
use crate::support::scene::{INSERT, OUT, Scene, message};

const MESSAGES: usize = 400;
/// Rows are written to so few places that messages meet each other often.
const PLACES: usize = 60;

/// What a run has left behind.
#[derive(Debug, PartialEq)]
struct Result {
    effects: Vec<String>,
    counters: Vec<String>,
    waiting: Vec<String>,
    state: Vec<String>,
    /// The bodies by message id: what the handlers read shows in them.
    sent: BTreeMap<String, Value>,
}

pub async fn leave_in_batches_what_they_leave_one_by_one_on_postgres(place: &Place) -> Checked {
    compare(
        place,
        Scene::postgres(place).await?,
        Scene::postgres(place).await?,
    )
    .await
}

pub async fn leave_in_batches_what_they_leave_one_by_one_on_sqlite(place: &Place) -> Checked {
    let (first, second) = (Place::of("schedules-one")?, Place::of("schedules-two")?);
    compare(
        place,
        Scene::sqlite(&first).await?,
        Scene::sqlite(&second).await?,
    )
    .await
}

async fn compare(place: &Place, batched: Scene, serial: Scene) -> Checked {
    let mut random = place.random();
    let messages: Vec<Message> = (0..MESSAGES)
        .map(|number| schedule(&mut random, &format!("{number:03}")))
        .collect();
    let one_by_one = run(place, &serial, "serial", 1, &messages).await?;
    let in_batches = run(place, &batched, "batched", 64, &messages).await?;
    assert_eq!(in_batches.effects, one_by_one.effects);
    assert_eq!(in_batches.counters, one_by_one.counters);
    assert_eq!(in_batches.waiting, one_by_one.waiting);
    assert_eq!(in_batches.state, one_by_one.state);
    assert_eq!(in_batches.sent, one_by_one.sent);
    // A schedule in which nothing fails or nothing succeeds would prove little.
    assert!((10..MESSAGES - 10).contains(&one_by_one.waiting.len()));
    Ok(())
}

async fn run(
    place: &Place,
    scene: &Scene,
    label: &str,
    batch: usize,
    messages: &[Message],
) -> anyhow::Result<Result> {
    scene.publish(messages).await?;
    let consumer = scene
        .probe()?
        .set("lanes", "1")
        // What a second attempt meets depends on when it comes.
        .set("retry", "{ max-attempts = 1 }")
        .set("batch", &batch.to_string());
    let host = Host::start(place, &scene.config(label, consumer)).await?;
    super::support::scene::until_settled(
        &host,
        &scene.broker,
        super::support::scene::IN,
        &scene.store,
    )
    .await?;
    host.stop().await?;
    let counters = "SELECT id || '=' || total FROM t_counters ORDER BY id";
    let state = if scene.store.is_postgres() {
        "SELECT encode(key, 'hex') || '=' || encode(value, 'hex') FROM hapax_state ORDER BY 1"
    } else {
        "SELECT hex(key) || '=' || hex(value) FROM hapax_state ORDER BY 1"
    };
    let mut sent = BTreeMap::new();
    for message in scene.broker.drain(OUT).await? {
        sent.insert(message.message_id()?.to_owned(), message.json()?);
    }
    Ok(Result {
        effects: scene.effects().await?,
        counters: scene.store.texts(counters).await?,
        waiting: scene.store.waiting_keys().await?,
        state: scene.store.texts(state).await?,
        sent,
    })
}

/// One to six random steps, then perhaps a failure.
fn schedule(random: &mut fastrand::Rng, order: &str) -> Message {
    let mut steps: Vec<Value> = (0..random.usize(1..=6)).map(|_| step(random)).collect();
    if random.usize(..6) == 0 {
        let failure = match random.usize(..4) {
            0 | 1 => json!({"reject": "by lot"}),
            2 => json!({"panic": "by lot"}),
            _ => json!({"allocate_mib": 200}),
        };
        steps.insert(random.usize(..=steps.len()), failure);
    }
    message(order, &steps)
}

fn step(random: &mut fastrand::Rng) -> Value {
    let row = json!([format!("row-{}", random.usize(..PLACES)), random.u8(..3)]);
    let counter = ["a", "b", "c"][random.usize(..3)];
    let add = "UPDATE t_counters SET total = total + $2 WHERE id = $1";
    let touch = json!([counter, random.u8(1..10)]);
    match random.usize(..10) {
        0 => json!({"execute": [INSERT, row]}),
        1 => json!({"execute_ignore": [INSERT, row]}),
        2 | 3 => json!({"defer": [INSERT, row]}),
        4 => json!({"execute": [add, touch]}),
        5 => json!({"defer": [add, touch]}),
        6 => json!({"execute": ["DELETE FROM t_effects WHERE order_id = $1", [row[0]]]}),
        7 => json!({
            "query": ["SELECT id, total FROM t_counters ORDER BY id", []], "into": "out",
        }),
        8 => json!({
            "query": ["SELECT order_id, step FROM t_effects ORDER BY order_id, step", []],
            "into": "out",
        }),
        _ => json!({"state_increment": counter}),
    }
}
