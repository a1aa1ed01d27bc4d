//! Messages that write now, write later, read, and fail by their own will, by a trap or by a limit, in random mixtures: running them in
//! batches must leave what running them one by one leaves, and so must running them in several lanes, where the messages of one
//! account keep their order and accounts have nothing in common.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::Checked;
use crate::support::broker::Message;
use crate::support::host::{Host, UNHURRIED};
use crate::support::place::Place;
use crate::support::scene::{self, IN, INSERT, OUT, Scene};

const MESSAGES: usize = 400;
/// Rows are written to so few places that messages meet each other often.
const PLACES: usize = 60;

/// How a host goes through the messages.
struct Way {
    label: &'static str,
    lanes: usize,
    batch: usize,
}

const ONE_BY_ONE: Way = Way {
    label: "serial",
    lanes: 1,
    batch: 1,
};
const IN_BATCHES: Way = Way {
    label: "batched",
    lanes: 1,
    batch: 64,
};
const IN_LANES: Way = Way {
    label: "lanes",
    lanes: 4,
    batch: 64,
};

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
    let scenes = [Scene::postgres(place).await?, Scene::postgres(place).await?];
    compare(place, scenes, IN_BATCHES, 1).await
}

pub async fn leave_in_batches_what_they_leave_one_by_one_on_sqlite(place: &Place) -> Checked {
    let (first, second) = (Place::of("schedules-one")?, Place::of("schedules-two")?);
    let scenes = [Scene::sqlite(&first).await?, Scene::sqlite(&second).await?];
    compare(place, scenes, IN_BATCHES, 1).await
}

/// Each account is a partition: its lane sees its messages in their order, whatever other lanes do meanwhile.
pub async fn leave_in_several_lanes_what_they_leave_one_by_one(place: &Place) -> Checked {
    let scenes = [Scene::postgres(place).await?, Scene::postgres(place).await?];
    compare(place, scenes, IN_LANES, 12).await
}

async fn compare(place: &Place, scenes: [Scene; 2], way: Way, accounts: usize) -> Checked {
    let mut random = place.random();
    let messages: Vec<Message> = (0..MESSAGES)
        .map(|number| schedule(&mut random, &format!("{number:03}"), accounts))
        .collect();
    let [first, second] = scenes;
    let one_by_one = run(place, &first, ONE_BY_ONE, accounts, &messages).await?;
    let another_way = run(place, &second, way, accounts, &messages).await?;
    assert_eq!(another_way.effects, one_by_one.effects);
    assert_eq!(another_way.counters, one_by_one.counters);
    assert_eq!(another_way.waiting, one_by_one.waiting);
    assert_eq!(another_way.state, one_by_one.state);
    assert_eq!(another_way.sent, one_by_one.sent);
    // A schedule in which nothing fails or nothing succeeds would prove little.
    assert!((10..MESSAGES - 10).contains(&one_by_one.waiting.len()));
    Ok(())
}

async fn run(
    place: &Place,
    scene: &Scene,
    way: Way,
    accounts: usize,
    messages: &[Message],
) -> anyhow::Result<Result> {
    for account in 0..accounts {
        let [a, b, c] = counters_of(account);
        let rows = format!("INSERT INTO t_counters VALUES ('{a}', 0), ('{b}', 0), ('{c}', 0)");
        scene.store.execute(&rows).await?;
    }
    scene.publish(messages).await?;
    let consumer = scene
        .probe()?
        .set("partition", "\"body:/account\"")
        .set("lanes", &way.lanes.to_string())
        // What a second attempt meets depends on when it comes.
        .set("retry", "{ max-attempts = 1 }")
        .set("limits", UNHURRIED)
        .set("batch", &way.batch.to_string());
    let host = Host::start(place, &scene.config(way.label, consumer)).await?;
    scene::until_settled(&host, &scene.broker, IN, &scene.store).await?;
    if scene.store.is_postgres() {
        // A lane connects when it has something to do.
        let lanes = "SELECT count(DISTINCT application_name) FROM pg_stat_activity \
                     WHERE application_name LIKE 'hapax probe %' AND datname = current_database()";
        assert_eq!(scene.store.number(lanes).await?, way.lanes as i64);
    }
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

/// One to six random steps at one of the accounts, then perhaps a failure.
fn schedule(random: &mut fastrand::Rng, order: &str, accounts: usize) -> Message {
    let account = random.usize(..accounts);
    let places = PLACES / accounts;
    let mut steps: Vec<Value> = (0..random.usize(1..=6))
        .map(|_| step(random, account, places))
        .collect();
    if random.usize(..6) == 0 {
        let failure = match random.usize(..4) {
            0 | 1 => json!({"reject": "by lot"}),
            2 => json!({"panic": "by lot"}),
            _ => json!({"allocate_mib": 200}),
        };
        steps.insert(random.usize(..=steps.len()), failure);
    }
    Message::json(&json!({"order_id": order, "account": account, "do": steps}))
}

/// A step that touches what belongs to the account, and nothing else.
fn step(random: &mut fastrand::Rng, account: usize, places: usize) -> Value {
    let place = format!("{account}-row-{}", random.usize(..places));
    let row = json!([place, random.u8(..3)]);
    let counter = &counters_of(account)[random.usize(..3)];
    let all = [format!("{account}-%")];
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
            "query": ["SELECT id, total FROM t_counters WHERE id LIKE $1 ORDER BY id", all],
            "into": "out",
        }),
        8 => json!({
            "query": [
                "SELECT order_id, step FROM t_effects WHERE order_id LIKE $1 ORDER BY order_id, step",
                all,
            ],
            "into": "out",
        }),
        _ => json!({"state_increment": counter}),
    }
}

fn counters_of(account: usize) -> [String; 3] {
    ["a", "b", "c"].map(|counter| format!("{account}-{counter}"))
}
