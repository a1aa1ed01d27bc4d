//! One schedule, all drawn from one seed, and the run of it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;

use crate::config::Config;
use crate::operations::{Operations, Request};
use crate::store::{ConsumerId, ConsumerRow, Fate, OutboxRecord, Status, WaitingRow};

use super::broker::Broker;
use super::database::Database;
use super::faults::{Faults, Sabotage};
use super::host::SimulatedHost;
use super::schedule::{EPOCH_SECONDS, Event, Letter, MAX_ATTEMPTS, Scenario, events, letters};
use super::session::ModelStore;
use super::witness::{Witness, sent};

/// How long everything may take to come to rest when nothing fails any more.
const PATIENCE: Duration = Duration::from_secs(1_800);

/// After how long a person looks at what a line waits for.
const OPERATOR_PATIENCE: Duration = Duration::from_secs(5);

pub struct World {
    pub database: Arc<Database>,
    pub broker: Arc<Broker>,
    pub faults: Arc<Faults>,
    complaints: Arc<Mutex<Vec<String>>>,
    witness: Arc<Mutex<Witness>>,
}

/// What a schedule was made of.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub messages: u64,
    pub crashes: u64,
    pub leaves: u64,
    pub cuts: u64,
    pub outages: u64,
    pub commits: u64,
    pub parked: u64,
    pub copies: u64,
    /// Of a consumer whose order is strict, the messages that were held.
    pub held: u64,
    /// Copies that were parked as duplicates.
    pub duplicates: u64,
    /// Those of them that another host had run, when this one could not know.
    pub raced: u64,
    pub answers: u64,
    pub replayed: u64,
    pub discarded: u64,
    pub forgotten: u64,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    fn new(seed: u64, per_mille: u32, scenario: Scenario, sabotage: Sabotage) -> Arc<Self> {
        let faults = Arc::new(Faults::new(seed, per_mille, sabotage));
        let lock_timeout = Duration::from_millis(500);
        let epoch_micros = i64::try_from(EPOCH_SECONDS * 1_000_000).unwrap_or(i64::MAX);
        let database = Database::new(Arc::clone(&faults), lock_timeout, epoch_micros);
        let row = ConsumerRow {
            id: ConsumerId(1),
            key_rule: String::new(),
            fingerprint_rule: String::new(),
            generation: 0,
            horizon: None,
        };
        database.state().consumers.push(("simulated".into(), row));
        let is_single = scenario.is_strict && sabotage != Sabotage::DeliverToAll;
        let world = Arc::new(Self {
            database: Arc::new(database),
            broker: Arc::new(Broker::new(is_single)),
            faults,
            complaints: Arc::default(),
            witness: Arc::new(Mutex::new(Witness::new(scenario))),
        });
        let (broker, complaints) = (Arc::clone(&world.broker), Arc::clone(&world.complaints));
        let witness = Arc::clone(&world.witness);
        world
            .database
            .watch(Box::new(move |now, removed, committed| {
                let found = locked(&witness).commit(now, removed, committed, &broker);
                locked(&complaints).extend(found);
            }));
        world
    }

    pub fn complain(&self, text: String) {
        locked(&self.complaints).push(text);
    }

    fn publish(&self, letter: &Letter) {
        self.broker.publish(|number| {
            locked(&self.witness).publish(letter, number);
            letter.copy(number)
        });
    }

    /// The broker gets an acknowledgement.
    pub fn acknowledge(&self, channel: u64, tag: u64, multiple: bool) {
        let acked = match self.broker.ack(channel, tag, multiple) {
            Ok(acked) => acked,
            Err(complaint) => return self.complain(complaint),
        };
        let state = self.database.state();
        let witness = locked(&self.witness);
        for queued in acked {
            let found = witness.acknowledge(&queued, &state.committed, &self.broker);
            locked(&self.complaints).extend(found);
        }
    }

    /// A message of the relay arrives at the broker.
    pub fn arrive(&self, record: &OutboxRecord) {
        let found = {
            let state = self.database.state();
            locked(&self.witness).arrive(record, &state.committed, &self.broker)
        };
        locked(&self.complaints).extend(found);
        self.broker.arrive(&record.row.message);
    }

    /// The ids of parked rows, as an operator names them.
    fn parked(&self, mut is_meant: impl FnMut(&WaitingRow) -> bool) -> Vec<String> {
        let state = self.database.state();
        let rows = state.committed.waiting.values().map(|entry| &entry.row);
        rows.filter(|row| row.status == Status::Parked && is_meant(row))
            .map(|row| hex::encode(&row.id))
            .collect()
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

/// The hosts and the people of a schedule.
struct Run {
    world: Arc<World>,
    config: Arc<Config>,
    random: fastrand::Rng,
    hosts: Vec<Option<SimulatedHost>>,
    operations: Arc<Operations>,
    /// What operators are at.
    operators: JoinSet<()>,
    tally: Tally,
}

/// Runs the schedule of a seed. The error lists what did not hold.
pub async fn run(seed: u64, sabotage: Sabotage) -> Result<Tally, String> {
    let mut random = fastrand::Rng::with_seed(seed);
    // What the code under test draws by itself, such as jitter.
    fastrand::seed(seed);
    let scenario = Scenario::drawn(&mut random);
    // Some schedules are all crashes, others all lost connections.
    let per_mille = [0, 2, 10, 30][random.usize(0..4)];
    let world = World::new(seed, per_mille, scenario, sabotage);
    let config = Arc::new(scenario.config());
    let store = Arc::new(ModelStore::new(Arc::clone(&world.database)));
    let operations = Operations::new(Arc::clone(&config), store, Vec::new());
    let mut run = Run {
        world,
        config,
        hosts: Vec::new(),
        operations: Arc::new(operations),
        operators: JoinSet::new(),
        tally: Tally::default(),
        random,
    };
    let played = run.play(&scenario).await;
    played.map_err(|found| {
        format!("{found}\nin {scenario:?}, {per_mille} of 1000 round trips fail")
    })?;
    Ok(run.tally)
}

impl Run {
    async fn play(&mut self, scenario: &Scenario) -> Result<(), String> {
        for _ in 0..self.random.usize(1..=2) {
            let host = self.host();
            self.hosts.push(Some(host));
        }
        let letters = letters(&mut self.random, scenario);
        let events = events(&mut self.random, scenario, &letters, self.hosts.len());
        let mut now = 0;
        for (at, event) in events {
            tokio::time::sleep(Duration::from_millis(at - now)).await;
            now = at;
            self.happens(event).await;
            stop_at_complaints(&self.world)?;
        }
        self.rest(scenario).await?;
        for host in std::mem::take(&mut self.hosts).into_iter().flatten() {
            host.kill().await;
        }
        finally(&self.world, scenario, &letters, &mut self.tally);
        stop_at_complaints(&self.world)
    }

    /// A host that starts again is another one to the store, and its clock is years ahead or behind.
    fn host(&mut self) -> SimulatedHost {
        const YEARS: i64 = 10 * 365 * 24 * 3_600 * 1_000_000;
        let clock = self.world.database.now() + self.random.i64(-YEARS..YEARS);
        let number = self.random.i32(1..);
        SimulatedHost::start(&self.world, &self.config.consumers[0], number, clock)
    }

    async fn happens(&mut self, event: Event) {
        match event {
            Event::Publish(letter) => {
                self.tally.messages += 1;
                self.world.publish(&letter);
            }
            Event::Crash(turn) => {
                self.tally.crashes += 1;
                if let Some(host) = self.hosts[turn].take() {
                    host.kill().await;
                }
                let pause = self.random.u64(0..50);
                tokio::time::sleep(Duration::from_millis(pause)).await;
                self.hosts[turn] = Some(self.host());
            }
            Event::Leave(turn) => {
                self.tally.leaves += 1;
                if let Some(host) = self.hosts[turn].take()
                    && !host.leave(self.config.host.shutdown_timeout).await
                {
                    self.tally.crashes += 1;
                }
                self.hosts[turn] = Some(self.host());
            }
            Event::Cut { all } => {
                self.tally.cuts += 1;
                for channel in self.world.broker.channels() {
                    if all || self.random.bool() {
                        self.world.broker.close_channel(channel);
                    }
                }
            }
            Event::Outage(duration) => {
                self.tally.outages += 1;
                self.world.faults.database_away(duration);
            }
            Event::Operate { replay, after } => self.operate(replay, after),
        }
    }

    /// An operator looks, thinks, and acts: meanwhile everything goes on.
    fn operate(&mut self, replay: bool, after: Duration) {
        // Who replays what may have been applied, and forgotten, wants it applied again.
        let is_known = |row: &WaitingRow| row.code != "too-late";
        let random = &mut self.random;
        let ids = self
            .world
            .parked(|row| random.bool() && (!replay || is_known(row)));
        match replay {
            true => self.tally.replayed += ids.len() as u64,
            false => self.tally.discarded += ids.len() as u64,
        }
        let operations = Arc::clone(&self.operations);
        self.operators.spawn(async move {
            tokio::time::sleep(after).await;
            let request = match replay {
                true => Request::Replay(ids),
                false => Request::Discard(ids),
            };
            // What was not done stays parked.
            let _ = operations.execute(request).await;
        });
    }

    /// Nothing fails any more, and everything comes to its end.
    async fn rest(&mut self, scenario: &Scenario) -> Result<(), String> {
        self.world.faults.end();
        while self.operators.join_next().await.is_some() {}
        let mut waited = Duration::ZERO;
        while !self.world.is_at_rest() {
            let step = Duration::from_millis(100);
            tokio::time::sleep(step).await;
            stop_at_complaints(&self.world)?;
            waited += step;
            if scenario.is_strict && waited > OPERATOR_PATIENCE {
                // What stands before others and is parked waits for a person.
                let ids = self.world.parked(|row| row.key.is_some());
                let _ = self.operations.execute(Request::Discard(ids)).await;
            }
            if waited > PATIENCE {
                let unrest = unrest(&self.world);
                return Err(format!("nothing is at rest after {PATIENCE:?}: {unrest}"));
            }
        }
        Ok(())
    }
}

fn stop_at_complaints(world: &World) -> Result<(), String> {
    let complaints = locked(&world.complaints);
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
fn finally(world: &World, scenario: &Scenario, letters: &[Letter], tally: &mut Tally) {
    let state = world.database.state();
    let witness = locked(&world.witness);
    let sent = sent(&world.broker);
    {
        let queue = world.broker.queue();
        tally.copies = queue.copies;
        let answers = queue.arrived.iter();
        let answers = answers.filter(|message| message.routing_key.starts_with("asker"));
        tally.answers = answers.count() as u64;
    }
    tally.held = witness.held.len() as u64;
    tally.raced = witness.raced;
    tally.duplicates = witness.parked.len() as u64;
    let applied = state.committed.effects.iter().collect::<BTreeSet<_>>();
    for letter in letters {
        let (body, key) = (&letter.body, letter.key());
        let place = (1, key.clone().into_bytes());
        let is_applied = applied.contains(body);
        let fate = state.committed.ledger.get(&place).map(|entry| entry.fate);
        let row = state
            .committed
            .waiting
            .values()
            .find(|waiting| waiting.row.key.as_deref() == Some(key.as_bytes()));
        let code = row.map_or("", |waiting| waiting.row.code.as_str());
        tally.forgotten += u64::from(witness.was_forgotten(&key));
        let may_end = match (body.chars().next(), fate) {
            (Some('x'), _) if is_applied => false,
            // Applied, and maybe forgotten since.
            _ if is_applied => fate == Some(Fate::Committed) || witness.was_forgotten(&key),
            (_, None) => witness.was_forgotten(&key) && witness.was_discarded(&key),
            (_, Some(Fate::Discarded)) => scenario.is_operated || scenario.is_strict,
            (_, Some(Fate::Parked)) if code == "too-late" => scenario.forgets,
            (Some('x'), Some(Fate::Parked)) => code == "rejected",
            // What meets lost connections again and again, alone, is taken for their cause.
            (Some('f'), Some(Fate::Parked)) => {
                ["retry", "crash-loop", "poison", "conflict"].contains(&code)
            }
            // A good message is parked only if its host went down each time it ran.
            (_, Some(Fate::Parked)) => code == "crash-loop" && tally.crashes > MAX_ATTEMPTS as u64,
            _ => false,
        };
        if !may_end {
            world.complain(format!("{body} ended {fate:?} {code}"));
        }
        let times = sent.get(&key).copied().unwrap_or(0);
        if times != usize::from(is_applied) {
            world.complain(format!(
                "{body} is {fate:?}, and {times} different messages were sent for it"
            ));
        }
        tally.commits += u64::from(is_applied);
        tally.parked += u64::from(fate == Some(Fate::Parked));
    }
}
