//! One schedule: messages, crashes, lost connections and outages, all drawn from one seed, and what must
//! hold after every commit, every acknowledgement and every arrival at the broker.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use lapin::BasicProperties;

use crate::config;
use crate::message::Message;
use crate::store::{Fate, OutboxRecord, Status};

use super::broker::Broker;
use super::database::{Committed, Database, OutboxEntry};
use super::faults::{Faults, Sabotage};
use super::host::SimulatedHost;

/// As in the configuration of the consumer.
pub const MAX_ATTEMPTS: i32 = 4;

/// How long everything may take to come to rest when nothing fails any more.
const PATIENCE: Duration = Duration::from_secs(1_800);

pub struct World {
    pub database: Arc<Database>,
    pub broker: Arc<Broker>,
    pub faults: Arc<Faults>,
    complaints: Arc<Mutex<Vec<String>>>,
    /// Of each row with an ordering key, the older ones of its key that stood beside it when it was committed.
    before: Mutex<BTreeMap<i64, Vec<(i64, String)>>>,
}

/// What a schedule was made of.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub messages: u64,
    pub crashes: u64,
    pub cuts: u64,
    pub outages: u64,
    pub commits: u64,
    pub parked: u64,
    pub copies: u64,
}

impl World {
    fn new(seed: u64, per_mille: u32, sabotage: Sabotage) -> Arc<Self> {
        let faults = Arc::new(Faults::new(seed, per_mille, sabotage));
        let lock_timeout = Duration::from_millis(500);
        let database = Database::new(Arc::clone(&faults), lock_timeout, 1_700_000_000_000_000);
        let world = Arc::new(Self {
            database: Arc::new(database),
            broker: Arc::default(),
            faults,
            complaints: Arc::default(),
            before: Mutex::default(),
        });
        let (broker, complaints) = (Arc::clone(&world.broker), Arc::clone(&world.complaints));
        world.database.watch(Box::new(move |removed, committed| {
            let found = check(removed, committed, &broker);
            complaints
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .extend(found);
        }));
        world
    }

    pub fn complain(&self, text: String) {
        let mut complaints = self
            .complaints
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        complaints.push(text);
    }

    fn complaints(&self) -> Vec<String> {
        let complaints = self
            .complaints
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        complaints.clone()
    }

    /// The broker gets an acknowledgement: the fate of what it forgets must be durable.
    pub fn acknowledge(&self, channel: u64, tag: u64, multiple: bool) {
        let acked = match self.broker.ack(channel, tag, multiple) {
            Ok(acked) => acked,
            Err(complaint) => return self.complain(complaint),
        };
        let state = self.database.state();
        for queued in acked {
            let key = key_of(&queued.message);
            let entry = state.committed.ledger.get(&(1, key.clone().into_bytes()));
            if entry.is_none_or(|entry| entry.fate == Fate::Started) {
                let fate = entry.map(|entry| entry.fate);
                self.complain(format!(
                    "{key} was acknowledged, and the ledger says {fate:?}"
                ));
            }
        }
    }

    /// A message of the relay arrives at the broker.
    pub fn arrive(&self, record: &OutboxRecord) {
        let id = id_of(&record.row.message);
        self.broker.arrive(id.clone(), &record.row.message.body);
        let Some(ordering_key) = &record.row.ordering_key else {
            return;
        };
        let before = self.before.lock().unwrap_or_else(PoisonError::into_inner);
        for (older, other) in before.get(&record.sequence).into_iter().flatten() {
            if !self.broker.has(other) {
                self.complain(format!(
                    "row {} of the ordering key {ordering_key} overtook row {older}",
                    record.sequence
                ));
            }
        }
    }

    /// Notes which rows stood before which, for those that are new.
    fn note_order(&self) {
        let state = self.database.state();
        let mut before = self.before.lock().unwrap_or_else(PoisonError::into_inner);
        for (sequence, entry) in &state.committed.outbox {
            if entry.row.ordering_key.is_none() || before.contains_key(sequence) {
                continue;
            }
            let older = state
                .committed
                .outbox
                .range(..sequence)
                .filter(|(_, other)| other.row.ordering_key == entry.row.ordering_key)
                .map(|(older, other)| (*older, id_of(&other.row.message)))
                .collect();
            before.insert(*sequence, older);
        }
    }

    fn is_at_rest(&self) -> bool {
        let state = self.database.state();
        let waits = |status: Status| status != Status::Parked;
        self.broker.is_empty()
            && state.committed.outbox.is_empty()
            && !state
                .committed
                .waiting
                .values()
                .any(|entry| waits(entry.row.status))
    }
}

fn key_of(message: &Message) -> String {
    message.property("message-id").unwrap_or_default()
}

fn id_of(message: &Message) -> String {
    message.property("message-id").unwrap_or_default()
}

/// What must hold whenever a transaction has committed.
fn check(removed: &[OutboxEntry], committed: &Committed, broker: &Broker) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut effects = BTreeMap::<&str, usize>::new();
    for effect in &committed.effects {
        *effects.entry(effect.as_str()).or_default() += 1;
    }
    for (effect, times) in &effects {
        if *times > 1 {
            complaints.push(format!("{effect} was applied {times} times"));
        }
    }
    let mut waits = BTreeSet::new();
    for entry in committed.waiting.values() {
        if let Some(key) = &entry.row.key {
            waits.insert((key.clone(), entry.row.status == Status::Parked));
        }
        if entry.row.attempts > MAX_ATTEMPTS + 1 {
            complaints.push(format!("{} attempts", entry.row.attempts));
        }
    }
    let applied = committed.effects.iter().map(|effect| key_of_body(effect));
    let applied = applied.collect::<BTreeSet<_>>();
    for ((_, key), entry) in &committed.ledger {
        let name = String::from_utf8_lossy(key);
        let is_applied = applied.contains(&*name);
        if is_applied != (entry.fate == Fate::Committed) {
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
        if !committed
            .ledger
            .contains_key(&(1, name.clone().into_bytes()))
        {
            complaints.push(format!("{name} has an effect and no fate"));
        }
        let leaves = committed
            .outbox
            .values()
            .any(|entry| key_of_bytes(&entry.row.message.body) == *name);
        let has_left = || {
            let queue = broker.queue();
            queue
                .arrived
                .iter()
                .any(|(_, body)| key_of_bytes(body) == *name)
        };
        if !leaves && !has_left() {
            complaints.push(format!("the message of {name} is nowhere"));
        }
    }
    for entry in removed {
        let id = id_of(&entry.row.message);
        if !broker.has(&id) {
            complaints.push(format!("row {id} has left the outbox and never arrived"));
        }
    }
    complaints
}

/// A body is four letters and the key.
fn key_of_body(body: &str) -> String {
    body.get(4..).unwrap_or_default().to_owned()
}

fn key_of_bytes(body: &[u8]) -> String {
    key_of_body(&String::from_utf8_lossy(body))
}

/// Runs the schedule of a seed. The error lists what did not hold.
pub async fn run(
    seed: u64,
    settings: &config::Consumer,
    sabotage: Sabotage,
) -> Result<Tally, String> {
    let mut random = fastrand::Rng::with_seed(seed);
    // What the code under test draws by itself, such as jitter.
    fastrand::seed(seed);
    // Some schedules are all crashes, others all lost connections.
    let per_mille = [0, 2, 10, 30][random.usize(0..4)];
    let world = World::new(seed, per_mille, sabotage);
    let mut tally = Tally::default();
    let mut hosts = (0..1 + random.i32(0..2))
        .map(|_| Some(SimulatedHost::start(&world, settings, random.i32(1..))))
        .collect::<Vec<_>>();

    let bodies = bodies(&mut random);
    let mut events = Vec::new();
    for body in &bodies {
        for _ in 0..1 + random.usize(0..8) / 5 {
            events.push((random.u64(0..3_000), Event::Publish(body.clone())));
        }
    }
    tally.messages = events.len() as u64;
    for _ in 0..random.usize(0..7) {
        let at = random.u64(0..4_000);
        events.push((
            at,
            match random.u32(0..10) {
                0..6 => Event::Crash(random.usize(0..hosts.len())),
                6..9 => Event::Cut,
                _ => Event::Outage(Duration::from_millis(random.u64(10..3_000))),
            },
        ));
    }
    events.sort_by_key(|(at, _)| *at);

    let mut now = 0;
    for (at, event) in events {
        tokio::time::sleep(Duration::from_millis(at - now)).await;
        now = at;
        match event {
            Event::Publish(body) => world.broker.publish(message(&body)),
            Event::Crash(turn) => {
                tally.crashes += 1;
                if let Some(host) = hosts[turn].take() {
                    host.kill().await;
                }
                tokio::time::sleep(Duration::from_millis(random.u64(0..50))).await;
                // A host that starts again is another one to the store.
                hosts[turn] = Some(SimulatedHost::start(&world, settings, random.i32(1..)));
            }
            Event::Cut => {
                tally.cuts += 1;
                for channel in world.broker.channels() {
                    world.broker.close_channel(channel);
                }
            }
            Event::Outage(duration) => {
                tally.outages += 1;
                world.faults.database_away(duration);
            }
        }
        world.note_order();
        stop_at_complaints(&world)?;
    }
    world.faults.end();
    let mut waited = Duration::ZERO;
    while !world.is_at_rest() {
        let step = Duration::from_millis(100);
        tokio::time::sleep(step).await;
        world.note_order();
        stop_at_complaints(&world)?;
        waited += step;
        if waited > PATIENCE {
            return Err(format!(
                "nothing is at rest after {PATIENCE:?}: {}",
                unrest(&world)
            ));
        }
    }
    for host in hosts.into_iter().flatten() {
        host.kill().await;
    }
    finally(&world, &bodies, &mut tally);
    stop_at_complaints(&world)?;
    Ok(tally)
}

enum Event {
    Publish(String),
    /// SIGKILL for a host, and a new one in its place.
    Crash(usize),
    /// Every channel of the broker is closed.
    Cut,
    /// The database is away for a while.
    Outage(Duration),
}

/// Messages of every kind; the key is at the end.
fn bodies(random: &mut fastrand::Rng) -> Vec<String> {
    (0..6 + random.usize(0..16))
        .map(|number| {
            let kind = match random.u32(0..10) {
                0..6 => "o0".to_owned(),
                6..9 => format!("f{}", random.u32(1..6)),
                _ => "x0".to_owned(),
            };
            let how = ["e", "d"][random.usize(0..2)];
            let order = ["-", "-", "a", "b"][random.usize(0..4)];
            format!("{kind}{how}{order}key-{number}")
        })
        .collect()
}

fn message(body: &str) -> Message {
    Message {
        exchange: String::new(),
        routing_key: "in".into(),
        properties: BasicProperties::default().with_message_id(key_of_body(body).into()),
        body: Bytes::copy_from_slice(body.as_bytes()),
    }
}

fn stop_at_complaints(world: &World) -> Result<(), String> {
    let complaints = world.complaints();
    if complaints.is_empty() {
        return Ok(());
    }
    Err(complaints[..complaints.len().min(10)].join("\n"))
}

fn unrest(world: &World) -> String {
    let state = world.database.state();
    format!(
        "the queue is empty: {}; outbox rows: {}; waiting: {:?}",
        world.broker.is_empty(),
        state.committed.outbox.len(),
        state
            .committed
            .waiting
            .values()
            .map(|entry| (entry.row.status, entry.row.code.clone()))
            .collect::<Vec<_>>()
    )
}

/// What must hold when all is done: each message has its fate, each effect its one outgoing message.
fn finally(world: &World, bodies: &[String], tally: &mut Tally) {
    let state = world.database.state();
    let queue = world.broker.queue();
    tally.copies = queue.copies;
    let mut sent = BTreeMap::<String, usize>::new();
    for (_, body) in &queue.arrived {
        *sent.entry(key_of_bytes(body)).or_default() += 1;
    }
    for body in bodies {
        let key = key_of_body(body);
        let place = (1, key.clone().into_bytes());
        let Some(entry) = state.committed.ledger.get(&place) else {
            world.complain(format!("{body} is lost"));
            continue;
        };
        let row = state
            .committed
            .waiting
            .values()
            .find(|waiting| waiting.row.key.as_deref() == Some(key.as_bytes()));
        let code = row.map_or("", |waiting| waiting.row.code.as_str());
        let may_end = match (body.chars().next(), entry.fate) {
            (Some('x'), Fate::Parked) => code == "rejected",
            (_, Fate::Committed) => !body.starts_with('x'),
            // What meets lost connections again and again, alone, is taken for their cause.
            (Some('f'), Fate::Parked) => {
                ["retry", "crash-loop", "poison", "conflict"].contains(&code)
            }
            // A good message is parked only if its host went down each time it ran.
            (_, Fate::Parked) => code == "crash-loop" && tally.crashes > MAX_ATTEMPTS as u64,
            _ => false,
        };
        if !may_end {
            world.complain(format!("{body} ended {:?} {code}", entry.fate));
        }
        let expected = usize::from(entry.fate == Fate::Committed);
        let times = sent.get(&key).copied().unwrap_or(0);
        if times != expected {
            world.complain(format!(
                "{body} is {:?}, and {times} different messages were sent for it",
                entry.fate
            ));
        }
        tally.commits += expected as u64;
        tally.parked += 1 - expected as u64;
    }
}
