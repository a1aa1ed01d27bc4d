//! What a day leaves behind, in a form in which two days can be compared.

use std::collections::BTreeMap;

use anyhow::ensure;

use super::stack::World;
use crate::support::store::Kind;

/// Rows of tables and messages of queues, each as a line under the name of its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    places: BTreeMap<&'static str, Vec<String>>,
    /// Finished attempts, by key. A crash may add one, and nothing else may.
    attempts: BTreeMap<String, i64>,
}

impl Outcome {
    /// Reads everything. No host may run.
    pub async fn of(world: &World) -> anyhow::Result<Outcome> {
        let (hex, key) = match world.store.kind {
            Kind::Postgres { .. } => ("encode($, 'hex')", "encode(key, 'escape')"),
            Kind::Sqlite(_) => ("lower(hex($))", "CAST(key AS TEXT)"),
        };
        let hex = |column: &str| hex.replace('$', column);
        let [fingerprint, id, body] = ["fingerprint", "id", "body"].map(hex);
        let (value, state_key) = match world.store.kind {
            Kind::Postgres { .. } => ("encode(value, 'escape')", "encode(key, 'escape')"),
            Kind::Sqlite(_) => ("CAST(value AS TEXT)", "CAST(key AS TEXT)"),
        };
        let queries = [
            (
                "hapax_ledger",
                format!("SELECT {key} || ' ' || fate || ' ' || {fingerprint} FROM hapax_ledger"),
            ),
            (
                "hapax_waiting",
                format!(
                    "SELECT {id} || ' ' || coalesce({key}, '-') || ' ' || status || ' ' || code \
                     || ' ' || {body} FROM hapax_waiting"
                ),
            ),
            (
                "hapax_outbox",
                format!("SELECT target || ' ' || {body} FROM hapax_outbox"),
            ),
            (
                "hapax_state",
                format!("SELECT {state_key} || ' ' || {value} || ' ' || version FROM hapax_state"),
            ),
            (
                "t_effects",
                "SELECT order_id || ' ' || step FROM t_effects".to_owned(),
            ),
            (
                "t_counters",
                "SELECT id || ' ' || total FROM t_counters".to_owned(),
            ),
        ];
        let mut places = BTreeMap::new();
        for (place, query) in queries {
            let mut rows = world.store.texts(&query).await?;
            rows.sort();
            places.insert(place, rows);
        }
        places.insert("the queue out, by message id", world.sent().await?);
        let left = format!("{} messages", world.left_over().await?);
        places.insert("the queue in", vec![left]);

        let mut attempts = BTreeMap::new();
        let query = format!("SELECT {key} || ' ' || attempts FROM hapax_ledger");
        for row in world.store.texts(&query).await? {
            if let Some((key, number)) = row.rsplit_once(' ') {
                attempts.insert(key.to_owned(), number.parse()?);
            }
        }
        Ok(Outcome { places, attempts })
    }

    /// Insists that `self` is what `expected` is, but for at most `crashes` more attempts of a key.
    pub fn assert_like(&self, expected: &Outcome, crashes: i64) -> anyhow::Result<()> {
        let mut complaints = String::new();
        for (place, wanted) in &expected.places {
            let found = &self.places[place];
            if found != wanted {
                complaints.push_str(&difference(place, wanted, found));
            }
        }
        for (key, wanted) in &expected.attempts {
            let found = self.attempts.get(key).copied().unwrap_or(*wanted);
            if !(*wanted..=wanted + crashes).contains(&found) {
                complaints.push_str(&format!(
                    "{key}: {found} attempts, not {wanted} and at most {crashes} more\n"
                ));
            }
        }
        ensure!(
            complaints.is_empty(),
            "the day ended otherwise than without a crash:\n{complaints}"
        );
        Ok(())
    }

    /// How many rows and messages there are, so that nobody compares nothing with nothing.
    pub fn size(&self) -> usize {
        self.places.values().map(Vec::len).sum()
    }
}

/// The lines that only one side has, copies counted.
fn difference(place: &str, wanted: &[String], found: &[String]) -> String {
    let mut balance: BTreeMap<&str, i64> = BTreeMap::new();
    for line in wanted {
        *balance.entry(line).or_default() -= 1;
    }
    for line in found {
        *balance.entry(line).or_default() += 1;
    }
    let mut text = String::new();
    for (line, count) in balance {
        match count {
            0 => {}
            1.. => text.push_str(&format!("{place}: {count} too many: {line}\n")),
            _ => text.push_str(&format!("{place}: {} missing: {line}\n", -count)),
        }
    }
    text
}
