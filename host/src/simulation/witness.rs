//! What must hold, and what has to be remembered to see it: looked at after every commit, every acknowledgement
//! and every arrival at the broker.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::config::OnDuplicate;
use crate::message::Message;
use crate::store::{Fate, OutboxRecord, Status};

use super::broker::{Broker, First, Queued, id_of};
use super::database::{Committed, LedgerEntry, OutboxEntry};
use super::schedule::{
    Letter, MAX_ATTEMPTS, MAX_DELAY, MAX_HELD, Scenario, asker, copy_of, key_of, key_of_body,
};

/// Longest time that a transaction goes on after its host knows that the channel is gone: half a second for a lock, up
/// to 0.8 s until the server does a COMMIT whose answer was lost, and some round trips of up to 0.2 s.
const IN_FLIGHT: Duration = Duration::from_secs(3);

/// Where the handler's messages go.
const OUT: &str = "out";

pub struct Witness {
    scenario: Scenario,
    /// The partition of each key that was published, in the order of the first copies.
    published: Vec<(String, usize)>,
    /// What was asked by each asker.
    asked: BTreeMap<String, String>,
    /// Which copy of a key has run, or is kept.
    owners: BTreeMap<String, u64>,
    /// When an answer was kept under a key.
    answered: BTreeMap<String, Instant>,
    /// What the ledger has said last of each key.
    known: BTreeMap<String, LedgerEntry>,
    /// Keys that were there, and were forgotten.
    forgotten: BTreeSet<String>,
    /// Keys whose message was given up by an operator.
    discarded: BTreeSet<String>,
    /// Effects that were looked at.
    effects: usize,
    /// Copies that were parked as duplicates.
    pub parked: BTreeSet<u64>,
    /// How many of them were the very copy that has run.
    pub raced: u64,
    /// Keys that were held behind others.
    pub held: BTreeSet<String>,
    /// Of each row with an ordering key, the older ones of its key that stood beside it when it was committed.
    before: BTreeMap<i64, Vec<(i64, String)>>,
}

impl Witness {
    pub fn new(scenario: Scenario) -> Self {
        Self {
            scenario,
            published: Vec::new(),
            asked: BTreeMap::new(),
            owners: BTreeMap::new(),
            answered: BTreeMap::new(),
            known: BTreeMap::new(),
            forgotten: BTreeSet::new(),
            discarded: BTreeSet::new(),
            effects: 0,
            parked: BTreeSet::new(),
            raced: 0,
            held: BTreeSet::new(),
            before: BTreeMap::new(),
        }
    }

    pub fn publish(&mut self, letter: &Letter, number: u64) {
        let key = letter.key();
        if self.published.iter().all(|(known, _)| *known != key) {
            self.published.push((key, letter.partition));
        }
        if letter.asks {
            self.asked.insert(asker(number), letter.body.clone());
        }
    }

    pub fn was_forgotten(&self, key: &str) -> bool {
        self.forgotten.contains(key)
    }

    pub fn was_discarded(&self, key: &str) -> bool {
        self.discarded.contains(key)
    }

    /// What must hold whenever a transaction has committed.
    pub fn commit(
        &mut self,
        now: i64,
        removed: &[OutboxEntry],
        committed: &Committed,
        broker: &Broker,
    ) -> Vec<String> {
        let mut complaints = Vec::new();
        self.note(now, committed, &mut complaints);
        self.effects(committed, &mut complaints);
        self.fates(committed, &mut complaints);
        self.waiting(now, committed, broker, &mut complaints);
        messages(removed, committed, broker, &mut complaints);
        complaints
    }

    /// Remembers what will not be seen any more, and sees that nothing is forgotten before its time.
    fn note(&mut self, now: i64, committed: &Committed, complaints: &mut Vec<String>) {
        let mut known = BTreeMap::new();
        for ((_, key), entry) in &committed.ledger {
            let key = String::from_utf8_lossy(key).into_owned();
            if entry.fate == Fate::Discarded {
                self.discarded.insert(key.clone());
            }
            if entry.reply.is_some() {
                let before = self.known.get(&key).and_then(|entry| entry.reply.as_ref());
                if before.is_none() {
                    self.answered.insert(key.clone(), Instant::now());
                }
            }
            known.insert(key, entry.clone());
        }
        for (key, entry) in &self.known {
            if known.contains_key(key) || entry.fate == Fate::Started {
                continue;
            }
            self.forgotten.insert(key.clone());
            let is_over = entry.expires_at.is_some_and(|at| at <= now);
            if !is_over || matches!(entry.fate, Fate::Waiting | Fate::Parked) {
                complaints.push(format!("{key} was forgotten, and was {entry:?}"));
            }
        }
        self.known = known;
        let kept = committed.waiting.values().map(|entry| &entry.row);
        for row in kept.filter(|row| row.key.is_some()) {
            if let Some(number) = copy_of(&row.message) {
                self.owners.insert(key_of(&row.message), number);
            }
        }
        for (sequence, entry) in &committed.outbox {
            let (message, ordering_key) = (&entry.row.message, &entry.row.ordering_key);
            if ordering_key.is_some() && !self.before.contains_key(sequence) {
                let older = committed.outbox.range(..sequence);
                let older = older
                    .filter(|(_, other)| other.row.ordering_key == *ordering_key)
                    .map(|(older, other)| (*older, id_of(&other.row.message)))
                    .collect();
                self.before.insert(*sequence, older);
            }
            if let (OUT, Some(number)) = (message.routing_key.as_str(), copy_of(message)) {
                self.owners.insert(key_of(message), number);
            }
        }
    }

    /// Each is there once; and in strict order after all that were published before it in its partition, unless
    /// somebody has given those up.
    fn effects(&mut self, committed: &Committed, complaints: &mut Vec<String>) {
        let mut applied = BTreeSet::new();
        for (index, effect) in committed.effects.iter().enumerate() {
            let key = key_of_body(effect);
            if self.scenario.is_strict && index >= self.effects {
                self.overtaken(&key, &applied, complaints);
            }
            if !applied.insert(key) {
                complaints.push(format!("{effect} was applied more than once"));
            }
        }
        self.effects = committed.effects.len();
    }

    fn overtaken(&self, key: &str, applied: &BTreeSet<String>, complaints: &mut Vec<String>) {
        let place = self.published.iter().position(|(known, _)| known == key);
        let Some((before, partition)) =
            place.map(|place| (&self.published[..place], self.published[place].1))
        else {
            return complaints.push(format!("{key} was never published"));
        };
        for (earlier, _) in before.iter().filter(|(_, other)| *other == partition) {
            if !applied.contains(earlier) && !self.was_discarded(earlier) {
                let fate = self.known.get(earlier).map(|entry| entry.fate);
                complaints.push(format!("{key} overtook {earlier}, which is {fate:?}"));
            }
        }
    }

    /// The effect of a key is there when its fate says so, and a row is there when its fate says so.
    fn fates(&self, committed: &Committed, complaints: &mut Vec<String>) {
        let applied = committed.effects.iter().map(|effect| key_of_body(effect));
        let applied = applied.collect::<BTreeSet<_>>();
        let mut waits = BTreeSet::new();
        for entry in committed.waiting.values() {
            if let Some(key) = &entry.row.key {
                waits.insert((key.clone(), entry.row.status == Status::Parked));
            }
        }
        for ((_, key), entry) in &committed.ledger {
            let name = String::from_utf8_lossy(key);
            let is_applied = applied.contains(&*name);
            // A copy that came when its key was forgotten is too late, and has a fate of its own.
            let is_late = self.was_forgotten(&name) && entry.fate != Fate::Waiting;
            if is_applied != (entry.fate == Fate::Committed) && !(is_applied && is_late) {
                complaints.push(format!(
                    "{name} is {:?}, and its effect is {}there",
                    entry.fate,
                    if is_applied { "" } else { "not " }
                ));
            }
            let row = match entry.fate {
                Fate::Waiting => Some((key.clone(), false)),
                Fate::Parked => Some((key.clone(), true)),
                _ => None,
            };
            match row {
                Some(row) if !waits.remove(&row) => {
                    complaints.push(format!("{name} is {:?}, and has no such row", entry.fate));
                }
                _ => {}
            }
        }
        for (key, _) in waits {
            let name = String::from_utf8_lossy(&key);
            complaints.push(format!("{name} waits, and the ledger knows nothing of it"));
        }
        for name in &applied {
            if !self.known.contains_key(name) && !self.was_forgotten(name) {
                complaints.push(format!("{name} has an effect and no fate"));
            }
        }
    }

    fn waiting(
        &mut self,
        now: i64,
        committed: &Committed,
        broker: &Broker,
        complaints: &mut Vec<String>,
    ) {
        let mut held = BTreeMap::<i64, u64>::new();
        let longest = i64::try_from(MAX_DELAY.as_micros()).unwrap_or(i64::MAX);
        for entry in committed.waiting.values() {
            let row = &entry.row;
            let key = key_of(&row.message);
            if row.attempts > MAX_ATTEMPTS + 1 {
                complaints.push(format!("{} attempts", row.attempts));
            }
            // Whatever the hosts take for the time.
            if entry.due_at.is_some_and(|due| due > now + longest) {
                complaints.push(format!("{key} is due after more than {MAX_DELAY:?}"));
            }
            if row.status == Status::Held {
                *held.entry(row.partition).or_default() += 1;
                self.held.insert(key.clone());
            }
            if row.code == "duplicate" && row.status == Status::Parked {
                if self.scenario.on_duplicate != OnDuplicate::Park {
                    complaints.push(format!("a duplicate of {key} was parked"));
                }
                let number = copy_of(&row.message).unwrap_or_default();
                let is_new = self.parked.insert(number);
                if is_new && self.owners.get(&key) == Some(&number) {
                    // Another host has run it. One that cannot know yet that its channel is gone takes it for
                    // another copy.
                    match broker.first_channel(number) {
                        First::Lost => self.raced += 1,
                        First::Noticed(since) if since.elapsed() < IN_FLIGHT => self.raced += 1,
                        First::Noticed(since) => complaints.push(format!(
                            "{key} was parked as a duplicate of itself, {:?} after its host knew that its channel is gone",
                            since.elapsed()
                        )),
                        First::Open => complaints.push(format!(
                            "{key} was parked as a duplicate of itself, and its channel is open"
                        )),
                    }
                }
            }
        }
        let most = if self.scenario.is_strict { MAX_HELD } else { 0 };
        for (partition, held) in held {
            if held > most {
                complaints.push(format!("the partition {partition} holds {held} messages"));
            }
        }
    }

    /// The broker forgets a message: its fate must be durable, and whoever asked after the answer was kept must
    /// get it.
    pub fn acknowledge(
        &self,
        queued: &Queued,
        committed: &Committed,
        broker: &Broker,
    ) -> Vec<String> {
        let mut complaints = Vec::new();
        let key = key_of(&queued.message);
        let entry = committed.ledger.get(&(1, key.clone().into_bytes()));
        if entry.is_none_or(|entry| entry.fate == Fate::Started) && !self.was_forgotten(&key) {
            let fate = entry.map(|entry| entry.fate);
            complaints.push(format!(
                "{key} was acknowledged, and the ledger says {fate:?}"
            ));
        }
        let kept = entry.is_some_and(|entry| entry.reply.is_some());
        let since = self.answered.get(&key);
        let asker = asker(queued.order);
        if kept && since < queued.delivered.as_ref() && self.asked.contains_key(&asker) {
            let is_his = |message: &Message| message.routing_key == asker;
            let mut leaves = committed.outbox.values();
            let leaves = leaves.any(|entry| is_his(&entry.row.message));
            if !leaves && !broker.queue().arrived.iter().any(is_his) {
                complaints.push(format!("{asker} gets no answer about {key}"));
            }
        }
        complaints
    }

    /// A message arrives at the broker: an answer must be one, to what was asked, and none overtakes an older one
    /// of its ordering key.
    pub fn arrive(
        &self,
        record: &OutboxRecord,
        committed: &Committed,
        broker: &Broker,
    ) -> Vec<String> {
        let (sequence, message) = (record.sequence, &record.row.message);
        let to = &message.routing_key;
        let mut complaints = Vec::new();
        for (older, id) in self.before.get(&sequence).into_iter().flatten() {
            if !broker.has(id) {
                complaints.push(format!("row {sequence} overtook row {older} of its key"));
            }
        }
        if to == OUT {
            return complaints;
        }
        let asked = self.asked.get(to).map_or("", String::as_str);
        let correlation = message.property("correlation-id").unwrap_or_default();
        let is_right = asked.as_bytes() == message.body && *to == format!("asker-{correlation}");
        if !is_right || !committed.effects.iter().any(|effect| effect == asked) {
            complaints.push(format!("the answer to {to} is {message:?}"));
        }
        complaints
    }
}

/// What the handler of an effect sends is in the outbox or has arrived, and nothing leaves the outbox unsent.
fn messages(
    removed: &[OutboxEntry],
    committed: &Committed,
    broker: &Broker,
    complaints: &mut Vec<String>,
) {
    let mut sent = sent(broker);
    for entry in committed.outbox.values() {
        if entry.row.message.routing_key == OUT {
            sent.insert(key_of(&entry.row.message), 1);
        }
    }
    for effect in &committed.effects {
        let key = key_of_body(effect);
        if !sent.contains_key(&key) {
            complaints.push(format!("the message of {key} is nowhere"));
        }
    }
    for entry in removed {
        let id = id_of(&entry.row.message);
        if !broker.has(&id) {
            complaints.push(format!("row {id} has left the outbox and never arrived"));
        }
    }
}

/// How many different messages have arrived for each key.
pub fn sent(broker: &Broker) -> BTreeMap<String, usize> {
    let queue = broker.queue();
    let mut sent = BTreeMap::<String, usize>::new();
    for message in queue.arrived.iter().filter(|one| one.routing_key == OUT) {
        *sent.entry(key_of(message)).or_default() += 1;
    }
    sent
}
