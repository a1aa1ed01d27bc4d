//! What happens on a day without a crash, and what an operator does about it.

use anyhow::{Context, ensure};
use serde_json::json;

use crate::support::broker::Message;
use crate::support::host::Host;
use crate::support::scene::{defer, insert, message, publish};

use super::stack::World;

/// Messages of every kind: good ones, some of them several times, and each way to fail.
pub fn messages() -> Vec<Message> {
    let mut messages = Vec::new();
    for number in 0..10 {
        let order = format!("a-{number}");
        messages.push(message(&order, &[insert(&order, 0), publish(&order)]));
        let order = format!("d-{number}");
        messages.push(message(&order, &[defer(&order, 0), publish(&order)]));
    }
    for number in 0..4 {
        let count = "UPDATE t_counters SET total = total + 1 WHERE id = 'a'";
        let steps = [
            json!({"execute": [count, []]}),
            json!({"state_increment": "n"}),
        ];
        messages.push(message(&format!("c-{number}"), &steps));
        let order = format!("r-{number}");
        let later = json!({"retry_until_attempt": 2});
        messages.push(message(
            &order,
            &[insert(&order, 0), later, publish(&order)],
        ));
    }
    let reject = json!({"reject": "never"});
    for order in ["j-0", "j-1", "x-0", "x-1"] {
        messages.push(message(order, &[insert(order, 0), reject.clone()]));
    }
    for order in ["f-0", "f-1"] {
        let parent = json!({"fail_if_missing": ["SELECT id FROM t_parents WHERE id = 'late'", []]});
        messages.push(message(order, &[insert(order, 0), parent, publish(order)]));
    }
    let nowhere = json!({"publish": {"target": "out", "routing_key": "nowhere", "body": "lost?"}});
    messages.push(message("u-0", &[insert("u-0", 0), nowhere]));
    messages.push(Message::json(&json!({"do": []})));
    messages.push(message("a-0", &[insert("another payload", 0)]));
    let copies = messages.iter().step_by(5).cloned().collect::<Vec<_>>();
    messages.extend(copies);
    messages
}

/// Good messages, each once: what the ledger forgets must not come again.
pub fn distinct_messages() -> Vec<Message> {
    let order = |number| format!("a-{number}");
    (0..10)
        .map(|number| {
            message(
                &order(number),
                &[insert(&order(number), 0), publish(&order(number))],
            )
        })
        .collect()
}

/// How far the operator came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operated {
    Done,
    /// A command was killed, or took the host along.
    Interrupted,
}

/// Mends what made `f-` fail and replays it; gives `x-` up. Can be done again after it was interrupted.
pub async fn operate(
    world: &World,
    host: &mut Host,
    failpoints: Option<&str>,
) -> anyhow::Result<Operated> {
    let mended = "INSERT INTO t_parents VALUES ('late') ON CONFLICT DO NOTHING";
    world.store.execute(mended).await?;
    let listed = host.cli(&["parked", "list", "--json"]).await?.json()?;
    for entry in listed.as_array().context("not a list")? {
        let id = entry["id"].as_str().context("no id")?;
        let (command, agreed) = match entry["key"].as_str().and_then(|key| key.chars().next()) {
            Some('f') => ("replay", None),
            Some('x') => ("discard", Some("--yes")),
            _ => continue,
        };
        let arguments = ["parked", command, id].into_iter().chain(agreed);
        let arguments = arguments.collect::<Vec<_>>();
        let ended = host.cli_armed(&arguments, failpoints).await?;
        let killed = ended.code.is_none() && ended.stderr.contains("hapax: failpoint");
        if killed || (failpoints.is_some() && ended.code != Some(0)) {
            return Ok(Operated::Interrupted);
        }
        ensure!(ended.code == Some(0), "parked {command}: {ended:?}");
    }
    Ok(Operated::Done)
}
