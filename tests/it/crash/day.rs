//! What happens on a day without a crash, and what an operator does about it.

use anyhow::{Context, ensure};
use hapax::failpoint;
use serde_json::{Value, json};

use crate::support::broker::Message;
use crate::support::host::{self, Config, Host};
use crate::support::place::Place;
use crate::support::scene::{OUT, defer, insert, message, publish};

use super::scenario::Day;
use super::stack::{Stack, World};

pub fn messages(day: Day) -> Vec<Message> {
    match day {
        Day::Ordinary | Day::Mended => of_every_kind(),
        // What the ledger forgets must not come again.
        Day::Expiring | Day::Rekeyed => distinct(),
        Day::Lines => in_lines(),
    }
}

/// Good ones, some of them several times, and each way to fail.
fn of_every_kind() -> Vec<Message> {
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
    let nowhere = json!({"publish": {"target": "nowhere", "body": "lost?"}});
    messages.push(message("u-0", &[insert("u-0", 0), nowhere]));
    messages.push(Message::json(&json!({"do": []})));
    messages.push(message("a-0", &[insert("another payload", 0)]));
    let copies = messages.iter().step_by(5).cloned().collect::<Vec<_>>();
    messages.extend(copies);
    messages
}

/// Good messages, each once.
fn distinct() -> Vec<Message> {
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

/// The first of each line fails once, and the others wait behind it. All of them give an answer, and some are
/// asked twice.
fn in_lines() -> Vec<Message> {
    let mut messages = Vec::new();
    for number in 0..4 {
        for line in ["k", "l", "m"] {
            let order = format!("{line}-{number}");
            let mut steps = vec![
                insert(&order, 0),
                json!({"reply": {"order_id": order, "line": line}}),
            ];
            if number == 0 {
                steps.push(json!({"retry_until_attempt": 2}));
            }
            let mut message = Message::json(&json!({"order_id": order, "line": line, "do": steps}));
            message.properties = message.properties.with_reply_to(OUT.into());
            messages.push(message);
        }
    }
    let copies = messages.iter().step_by(4).cloned().collect::<Vec<_>>();
    messages.extend(copies);
    messages
}

/// How far the operator came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operated {
    Done,
    /// A command was killed, or took the host along.
    Interrupted,
}

/// Does what is to be done on this day. Can be done again after it was interrupted.
pub async fn operate(
    place: &Place,
    world: &World,
    host: &mut Host,
    failpoints: Option<&str>,
) -> anyhow::Result<Operated> {
    let operator = Operator {
        host,
        failpoints,
        stack: world.stack,
    };
    let done = match world.day {
        Day::Mended => operator.mend(place).await,
        _ => operator.replay_and_discard(world).await,
    };
    match done {
        Ok(()) => Ok(Operated::Done),
        Err(error) if error.is::<Interrupted>() => Ok(Operated::Interrupted),
        Err(error) => Err(error),
    }
}

/// The rules that a day's consumer gets when it is over.
pub fn rekeyed(world: &World) -> anyhow::Result<Config> {
    let consumer = world.consumer.clone().set("fingerprint", "\"none\"");
    Ok(world.config.clone().only(consumer))
}

/// Makes the store take them. No host may run.
pub async fn rekey(
    place: &Place,
    world: &World,
    failpoints: Option<&str>,
) -> anyhow::Result<host::Ended> {
    let file = rekeyed(world)?.write(&place.dir)?;
    let arguments = ["consumers", "rekey", "probe", "--yes"];
    host::cli_armed(&file, &arguments, failpoints).await
}

/// A command was killed, or took the host along.
#[derive(Debug, thiserror::Error)]
#[error("the operator was interrupted")]
struct Interrupted;

/// A person at the command line, whose commands may be killed.
struct Operator<'a> {
    host: &'a Host,
    failpoints: Option<&'a str>,
    stack: Stack,
}

impl Operator<'_> {
    async fn run(&self, arguments: &[&str]) -> anyhow::Result<host::Ended> {
        self.run_with(&[], arguments).await
    }

    async fn run_with(
        &self,
        variables: &[(&str, &str)],
        arguments: &[&str],
    ) -> anyhow::Result<host::Ended> {
        let armed = self.failpoints.map(|orders| (failpoint::VARIABLE, orders));
        let variables = variables.iter().copied().chain(armed).collect::<Vec<_>>();
        let ended = self.host.cli_with(&variables, arguments).await?;
        let killed = ended.code.is_none() && ended.stderr.contains("hapax: failpoint");
        // A command whose daemon is gone says that it cannot reach it.
        let may_lose_its_daemon = self.failpoints.is_some() && self.stack == Stack::File;
        if killed || (may_lose_its_daemon && ended.code != Some(0)) {
            return Err(Interrupted.into());
        }
        Ok(ended)
    }

    async fn done(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let ended = self.run(arguments).await?;
        ensure!(ended.code == Some(0), "{arguments:?}: {ended:?}");
        Ok(())
    }

    /// The parked messages of keys that begin with a letter, by id and key.
    async fn parked(&self) -> anyhow::Result<Vec<(String, String)>> {
        let listed = self.host.cli(&["parked", "list", "--json"]).await?.json()?;
        let listed = listed.as_array().context("not a list")?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let parked = |entry: &Value| Some((text(&entry["id"])?, text(&entry["key"])?));
        Ok(listed.iter().filter_map(parked).collect())
    }

    /// Mends what made `f-` fail and replays it; gives `x-` up.
    async fn replay_and_discard(&self, world: &World) -> anyhow::Result<()> {
        let mended = "INSERT INTO t_parents VALUES ('late') ON CONFLICT DO NOTHING";
        world.store.execute(mended).await?;
        for (id, key) in self.parked().await? {
            match key.chars().next() {
                Some('f') => self.done(&["parked", "replay", &id]).await?,
                Some('x') => self.done(&["parked", "discard", &id, "--yes"]).await?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Everything else: a pause, a correction, another try, keys that are taken over, and one that is forgotten.
    async fn mend(&self, place: &Place) -> anyhow::Result<()> {
        self.done(&["consumers", "pause", "probe", "--why", "the shop moves"])
            .await?;
        self.done(&["consumers", "resume", "probe"]).await?;

        let editor = [("EDITOR", "sed -i s/reject/ignored/")];
        for (id, key) in self.parked().await? {
            if !key.starts_with("j-") {
                continue;
            }
            let edit = ["parked", "replay", &id, "--edit"];
            let edited = self.run_with(&editor, &edit).await?;
            if edited.code == Some(1) && edited.stderr.contains("was not changed") {
                // It was, before the interruption.
                self.done(&["parked", "replay", &id]).await?;
            } else {
                ensure!(edited.code == Some(0), "{edited:?}");
            }
        }

        self.done(&["outbox", "retry", "--all", "--yes"]).await?;

        let keys = place.dir.join("keys.txt");
        std::fs::write(&keys, "i-0\ni-1\n")?;
        let keys = keys.to_str().context("the path is not UTF-8")?;
        self.done(&["ledger", "import", keys]).await?;

        if self.host.cli(&["ledger", "show", "a-1"]).await?.code == Some(0) {
            let why = ["--why", "by mistake", "--yes"];
            self.done(&[&["ledger", "forget", "a-1"][..], &why].concat())
                .await?;
        }
        Ok(())
    }
}
