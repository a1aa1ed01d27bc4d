//! Consumers as an operator handles them: what they do, pause and resume, and a change of their rules.
//!
//! A pause is written into the consumer's row, so that it survives restarts and reaches every host; hosts
//! look every second, and the daemon that is asked itself acts at once.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::failpoint::{self, Point};
use crate::host::pause_reason;
use crate::store::{ConsumerMarks, JournalEntry, Mark, Session};

use super::status::{self, ConsumerStatus};
use super::{OperationError, Operations, time};

/// Rows in one step of a change of the fingerprint rule.
const STEP_ROWS: u32 = 5_000;

/// One consumer of the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConsumerState {
    pub name: String,
    /// Absent for a consumer that the configuration does not name.
    pub queue: Option<String>,
    /// `running`, `stopped` (no host has it), `paused`, or what the gate of the daemon says: `braked`, `full`.
    pub state: String,
    /// Why it takes no messages.
    pub reason: Option<String>,
    pub paused_at: Option<String>,
    /// How many hosts have it.
    pub hosts: u64,
    pub ready: Option<u64>,
    /// SHA-256 of the component; absent when it is not known.
    pub plugin: Option<String>,
    /// Keys by fate.
    pub ledger: BTreeMap<String, u64>,
    /// Failed messages by status.
    pub waiting: BTreeMap<String, u64>,
    pub key_rule: String,
    pub fingerprint_rule: String,
    /// The configuration has other rules: a host would not start.
    pub rules_differ: bool,
    pub generation: i32,
}

/// A wish to pause, or to go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PauseWish {
    /// All of the configuration's when it is empty.
    pub consumers: Vec<String>,
    /// False to resume.
    pub pause: bool,
    pub who: String,
    pub why: String,
}

/// What became of the wish for one consumer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PauseDone {
    pub name: String,
    /// It was otherwise before.
    pub changed: bool,
    /// Hosts that take note.
    pub hosts: u64,
}

/// Other rules for a consumer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rekey {
    pub consumer: String,
    pub key_rule: String,
    pub fingerprint_rule: String,
    pub who: String,
    /// Find out what it means, and change nothing.
    pub dry_run: bool,
}

/// What a change of rules means.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rekeyed {
    pub old_key_rule: String,
    pub old_fingerprint_rule: String,
    pub key_rule: String,
    pub fingerprint_rule: String,
    /// The rules were changed.
    pub changed: bool,
    /// Keys that the ledger knows, made by the old rule.
    pub keys: u64,
    /// Failed messages; they keep their keys.
    pub waiting: u64,
    /// Messages in the queue; absent when it is not known.
    pub ready: Option<u64>,
}

impl Operations {
    pub(super) async fn consumers(
        &self,
        session: &mut dyn Session,
    ) -> Result<Vec<ConsumerState>, OperationError> {
        for configured in &self.config.consumers {
            self.consumer_id(session, configured).await?;
        }
        let rows = session.upkeep().consumers().await?;
        let status = self.status(session).await?;
        let mut states = Vec::with_capacity(rows.len());
        for row in rows {
            let known = status
                .consumers
                .iter()
                .find(|consumer| consumer.name == row.name);
            states.push(self.state(session, row, known).await?);
        }
        Ok(states)
    }

    async fn state(
        &self,
        session: &mut dyn Session,
        row: ConsumerMarks,
        known: Option<&ConsumerStatus>,
    ) -> Result<ConsumerState, OperationError> {
        let rules = self
            .configured(&row.name)
            .ok()
            .map(crate::consumer::rule_texts);
        let hosts = session.upkeep().mark_holders(Mark::Rules(row.id)).await?;
        let (ledger, waiting) = match known {
            Some(known) => (known.ledger.clone(), known.waiting.clone()),
            None => status::counts(session, row.id).await?,
        };
        let paused = row
            .pause
            .as_ref()
            .map(|pause| pause_reason(&pause.by, &pause.why));
        let (state, reason) = self.doing(&row.name, hosts, paused);
        Ok(ConsumerState {
            queue: known.map(|known| known.queue.clone()),
            state: state.to_owned(),
            reason,
            paused_at: row.pause.as_ref().map(|pause| time(pause.since)),
            hosts,
            ready: known.and_then(|known| known.ready),
            plugin: known.and_then(|known| known.plugin.clone()),
            ledger,
            waiting: waiting
                .into_iter()
                .map(|(status, codes)| (status, codes.values().sum()))
                .collect(),
            rules_differ: rules
                .is_some_and(|rules| rules != (row.key_rule.clone(), row.fingerprint_rule.clone())),
            key_rule: row.key_rule,
            fingerprint_rule: row.fingerprint_rule,
            generation: row.generation,
            name: row.name,
        })
    }

    /// What a consumer does, in a word, and why. The daemon knows of its own brake and of full lines.
    pub(super) fn doing(
        &self,
        name: &str,
        hosts: u64,
        paused: Option<String>,
    ) -> (&'static str, Option<String>) {
        if paused.is_some() {
            return ("paused", paused);
        }
        if let Some(gate) = self.live(name).map(|live| &live.gate) {
            if let Some(code) = gate.braked() {
                let reason = format!("message after message was parked as {code}");
                return ("braked", Some(reason));
            }
            if gate.is_full() {
                let reason = "a partition holds max-held messages behind a failed one";
                return ("full", Some(reason.to_owned()));
            }
        }
        match hosts {
            0 => ("stopped", None),
            _ => ("running", None),
        }
    }

    pub(super) async fn pause(
        &self,
        session: &mut dyn Session,
        wish: &PauseWish,
    ) -> Result<Vec<PauseDone>, OperationError> {
        for configured in &self.config.consumers {
            self.consumer_id(session, configured).await?;
        }
        let rows = session.upkeep().consumers().await?;
        let wanted = self.wanted(wish, &rows)?;
        let mut done = Vec::with_capacity(wanted.len());
        for row in wanted {
            let pause = wish.pause.then_some((wish.who.as_str(), wish.why.as_str()));
            let changed = match (&row.pause, pause) {
                (None, None) => false,
                (Some(before), Some((_, why))) => before.why != why,
                _ => true,
            };
            if changed {
                session.upkeep().set_pause(row.id, pause).await?;
                failpoint::pass(Point::AfterPause);
                let entry = JournalEntry {
                    at: 0,
                    actor: wish.who.clone(),
                    action: if wish.pause { "pause" } else { "resume" }.to_owned(),
                    consumer: Some(row.id),
                    key: None,
                    why: wish.why.clone(),
                };
                self.note(session, entry).await?;
            }
            if let Some(live) = self.live(&row.name) {
                match pause {
                    Some((who, why)) if changed => live.pause(&pause_reason(who, why)),
                    Some(_) => {}
                    None => live.resume(),
                }
            }
            done.push(PauseDone {
                name: row.name.clone(),
                changed,
                hosts: session.upkeep().mark_holders(Mark::Rules(row.id)).await?,
            });
        }
        Ok(done)
    }

    fn wanted<'r>(
        &self,
        wish: &PauseWish,
        rows: &'r [ConsumerMarks],
    ) -> Result<Vec<&'r ConsumerMarks>, OperationError> {
        if wish.consumers.is_empty() {
            let configured =
                |row: &&ConsumerMarks| self.config.consumers.iter().any(|c| c.name == row.name);
            return Ok(rows.iter().filter(configured).collect());
        }
        wish.consumers
            .iter()
            .map(|name| {
                rows.iter().find(|row| row.name == *name).ok_or_else(|| {
                    let known = rows.iter().map(|row| row.name.as_str());
                    OperationError::Refused(format!(
                        "there is no consumer `{name}` in the store; there is: {}",
                        known.collect::<Vec<_>>().join(", ")
                    ))
                })
            })
            .collect()
    }

    /// Replaces the rules that the store remembers. The marks of hosts tell whether any runs with the old
    /// ones; while it works, none can start.
    pub(super) async fn rekey(
        &self,
        session: &mut dyn Session,
        rekey: &Rekey,
    ) -> Result<Rekeyed, OperationError> {
        let rows = session.upkeep().consumers().await?;
        let row = rows.iter().find(|row| row.name == rekey.consumer);
        let Some(row) = row else {
            return Err(OperationError::Refused(format!(
                "the store knows no consumer `{}` yet: it takes the rules of its first host",
                rekey.consumer
            )));
        };
        let other_key = row.key_rule != rekey.key_rule;
        let other_fingerprint = row.fingerprint_rule != rekey.fingerprint_rule;
        let status = self.status(session).await?;
        let known = status.consumers.iter().find(|known| known.name == row.name);
        let (ledger, waiting) = status::counts(session, row.id).await?;
        let mut rekeyed = Rekeyed {
            old_key_rule: row.key_rule.clone(),
            old_fingerprint_rule: row.fingerprint_rule.clone(),
            key_rule: rekey.key_rule.clone(),
            fingerprint_rule: rekey.fingerprint_rule.clone(),
            changed: false,
            keys: ledger.values().sum(),
            waiting: waiting.values().flat_map(BTreeMap::values).sum(),
            ready: known.and_then(|known| known.ready),
        };
        if !other_key && !other_fingerprint {
            return Ok(rekeyed);
        }
        if !session.upkeep().seize_mark(Mark::Rules(row.id)).await? {
            let hosts = session.upkeep().mark_holders(Mark::Rules(row.id)).await?;
            return Err(OperationError::Refused(format!(
                "{} with the old rules of {}: let its queue drain, stop it, and then change the rules",
                match hosts {
                    1 => "1 host runs".to_owned(),
                    hosts => format!("{hosts} hosts run"),
                },
                row.name
            )));
        }
        if rekey.dry_run {
            return Ok(rekeyed);
        }
        if other_fingerprint {
            // Made by the old rule, they would look like other payloads of the same keys.
            let mut after = Some(Vec::new());
            while let Some(key) = after {
                after = session
                    .upkeep()
                    .forget_fingerprints(row.id, &key, STEP_ROWS)
                    .await?;
                failpoint::pass(Point::MidRekey);
            }
        }
        let entry = JournalEntry {
            at: 0,
            actor: rekey.who.clone(),
            action: "rekey".to_owned(),
            consumer: Some(row.id),
            key: None,
            why: format!(
                "key {} became {}, fingerprint {} became {}",
                row.key_rule, rekey.key_rule, row.fingerprint_rule, rekey.fingerprint_rule
            ),
        };
        self.note(session, entry).await?;
        session
            .upkeep()
            .set_rules(row.id, &rekey.key_rule, &rekey.fingerprint_rule)
            .await?;
        failpoint::pass(Point::AfterRekey);
        rekeyed.changed = true;
        Ok(rekeyed)
    }
}
