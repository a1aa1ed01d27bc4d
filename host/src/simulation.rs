//! Thousands of schedules on a clock that is stopped: the real lanes, commits, ledger decisions, waiting
//! messages, acknowledgements and relay, between a broker and a database in memory that fail as real ones do.
//!
//! Everything is drawn from one seed and runs on one thread, so that a seed is a schedule: crashes of one of
//! two hosts, cut channels, outages, connections that are lost at any round trip, COMMITs without an answer,
//! servers that notice late, duplicates, failures, and rows that cannot be routed. So is the consumer: in strict
//! order or not, with each way of taking duplicates, with an operator who replays and discards, with a ledger that
//! forgets, on hosts whose clocks are years apart. Invariants are checked after every commit, every
//! acknowledgement and every arrival. A failure prints its seed.
//!
//! `HAPAX_TEST_SEED=number` runs one schedule, `HAPAX_SIMULATED_SEEDS=number` that many, from a random one on.
//!
//! What it catches is tried in every run: mistakes that would break a promise are made in the program's place
//! (`Sabotage`), and each is found within some schedules, by the invariant that is about it.
//!
//! The brake and the broker's `consumer_timeout` are not in it: they look at the machine's clock, which cannot be
//! stopped.

mod broker;
mod database;
mod faults;
mod guest;
mod host;
mod schedule;
mod session;
mod source;
mod witness;
mod world;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use world::Tally;

pub(crate) use database::Database;
pub(crate) use faults::Faults;
use faults::Sabotage;
pub(crate) use session::ModelStore;

/// Schedules of an ordinary test run.
const SEEDS: u64 = 2_500;

/// Schedules within which a mistake must be found. Most find it: whoever breaks an invariant does not break it
/// once in a million.
const SABOTAGED_SEEDS: u64 = 500;

/// Real time after which a schedule is taken for one without an end.
const SPIN: Duration = Duration::from_secs(120);

fn simulate(seed: u64, sabotage: Sabotage) -> Result<Tally, String> {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .map_err(|error| error.to_string())?
        .block_on(world::run(seed, sabotage))
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is not a number")),
    )
}

#[test]
fn no_schedule_loses_or_doubles_anything() {
    let (first, count) = match number("HAPAX_TEST_SEED") {
        Some(seed) => (seed, 1),
        None => (
            fastrand::u64(0..1 << 40),
            number("HAPAX_SIMULATED_SEEDS").unwrap_or(SEEDS),
        ),
    };
    let started = Instant::now();
    let all = Mutex::new(Tally::default());
    let next = AtomicU64::new(first);
    let turn = || {
        while let seed = next.fetch_add(1, Ordering::Relaxed)
            && seed < first + count
        {
            let watched = Watched::new(seed);
            match simulate(seed, Sabotage::None) {
                Ok(tally) => all.lock().expect("nobody panics with it").add(tally),
                Err(complaints) => panic!("HAPAX_TEST_SEED={seed} repeats it:\n{complaints}"),
            }
            drop(watched);
        }
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = (0..threads).map(|_| scope.spawn(turn)).collect::<Vec<_>>();
        for thread in threads {
            if let Err(panic) = thread.join() {
                // The others need not go on.
                next.store(u64::MAX - 64, Ordering::Relaxed);
                std::panic::resume_unwind(panic);
            }
        }
    });
    let all = all.into_inner().expect("nobody panics with it");
    println!(
        "{count} schedules from {first} in {:?}: {all:?}",
        started.elapsed()
    );
    // A simulation in which nothing happens finds nothing.
    if count >= SEEDS {
        assert!(all.crashes > count / 2 && all.cuts > 0 && all.outages > 0);
        assert!(all.parked > 0 && all.copies > 0 && all.commits > count);
        assert!(all.leaves > 0 && all.held > 0 && all.duplicates > 0 && all.answers > 0);
        assert!(all.replayed > 0 && all.discarded > 0 && all.forgotten > 0);
    }
}

/// Names the seed of a schedule in which the stopped clock stands still for good.
struct Watched(#[expect(dead_code, reason = "held for its drop")] std::sync::mpsc::Sender<()>);

impl Watched {
    fn new(seed: u64) -> Self {
        let (done, watch) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let timeout = std::sync::mpsc::RecvTimeoutError::Timeout;
            if watch.recv_timeout(SPIN) == Err(timeout) {
                eprintln!("HAPAX_TEST_SEED={seed} does not come to an end");
                std::process::abort();
            }
        });
        Self(done)
    }
}

/// A simulation that finds nothing may be one that sees nothing: the mistake must show, and as what it is.
fn assert_found_out(sabotage: Sabotage, complaint: &str) {
    for seed in 0..SABOTAGED_SEEDS {
        let watched = Watched::new(seed);
        if let Err(complaints) = simulate(seed, sabotage) {
            assert!(
                complaints.contains(complaint),
                "seed {seed} finds {sabotage:?} to be something else: {complaints}"
            );
            println!("{} schedules find {sabotage:?}", seed + 1);
            return;
        }
        drop(watched);
    }
    panic!("{SABOTAGED_SEEDS} schedules do not find {sabotage:?}");
}

#[test]
fn an_ack_before_the_commit_is_found_out() {
    assert_found_out(
        Sabotage::AckFirst,
        "was acknowledged, and the ledger says None",
    );
}

#[test]
fn a_row_that_is_removed_before_its_confirm_is_found_out() {
    assert_found_out(
        Sabotage::DeleteFirst,
        "has left the outbox and never arrived",
    );
}

#[test]
fn a_claim_outside_of_the_transaction_is_found_out() {
    assert_found_out(
        Sabotage::ClaimOutside,
        "is Committed, and its effect is not there",
    );
}

#[test]
fn a_second_consumer_beside_the_active_one_is_found_out() {
    assert_found_out(Sabotage::DeliverToAll, " overtook key-");
}

#[test]
fn a_message_that_is_its_own_duplicate_is_found_out() {
    assert_found_out(
        Sabotage::ForgetRedelivered,
        "was parked as a duplicate of itself",
    );
}

#[test]
fn an_answer_that_is_not_sent_again_is_found_out() {
    assert_found_out(Sabotage::ForgetReplies, "gets no answer about");
}

#[test]
fn a_key_that_is_forgotten_while_it_is_parked_is_found_out() {
    assert_found_out(Sabotage::ForgetParked, "was forgotten, and was");
}

#[test]
fn a_seed_is_a_schedule() {
    for seed in 0..20 {
        let [first, second] = [(); 2].map(|()| simulate(seed, Sabotage::None));
        assert_eq!(format!("{first:?}"), format!("{second:?}"), "seed {seed}");
    }
}

impl Tally {
    fn add(&mut self, other: Tally) {
        self.messages += other.messages;
        self.crashes += other.crashes;
        self.leaves += other.leaves;
        self.cuts += other.cuts;
        self.outages += other.outages;
        self.commits += other.commits;
        self.parked += other.parked;
        self.copies += other.copies;
        self.held += other.held;
        self.duplicates += other.duplicates;
        self.raced += other.raced;
        self.answers += other.answers;
        self.replayed += other.replayed;
        self.discarded += other.discarded;
        self.forgotten += other.forgotten;
    }
}

/// A store for the tests of the contract: nothing fails in it, and nothing takes time.
pub(crate) fn calm_store(lock_timeout: Duration) -> ModelStore {
    let now = crate::clock::now_micros();
    ModelStore::new(Arc::new(Database::new(
        Arc::new(Faults::none()),
        lock_timeout,
        now,
    )))
}
