//! What goes wrong, drawn from the seed, and how long everything takes.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How a COMMIT ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitFault {
    None,
    /// The connection is lost, and the server rolls back.
    Before,
    /// The server commits, and the connection is lost before its answer arrives.
    After,
    /// The connection is lost while the server is at it: it commits later.
    Late,
}

/// A mistake that the program does not make, made in its place, to see that it is found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    None,
    /// A message is acknowledged when a lane gets it.
    AckFirst,
    /// A row of the outbox is taken for confirmed, and removed, while its message is on its way.
    DeleteFirst,
    /// Keys are claimed for good, whatever becomes of the transaction that claims them.
    ClaimOutside,
    /// The broker delivers to every host of a queue that has one active consumer.
    DeliverToAll,
    /// What the broker says of a message that it has delivered before is not heard.
    ForgetRedelivered,
    /// An answer that is kept for duplicates is not found.
    ForgetReplies,
    /// The sweep forgets keys that wait or are parked.
    ForgetParked,
}

pub struct Faults {
    inner: Mutex<Inner>,
    pub sabotage: Sabotage,
}

struct Inner {
    random: fastrand::Rng,
    /// Of a thousand round trips, how many lose their connection. Zero: nothing fails, nothing takes time.
    per_mille: u32,
    calm: bool,
    /// Until when the database is away.
    away_until: Option<Instant>,
}

impl Faults {
    pub fn new(seed: u64, per_mille: u32, sabotage: Sabotage) -> Self {
        let inner = Inner {
            random: fastrand::Rng::with_seed(seed),
            per_mille,
            calm: false,
            away_until: None,
        };
        Self {
            inner: Mutex::new(inner),
            sabotage,
        }
    }

    /// Nothing fails, and nothing takes time.
    pub fn none() -> Self {
        let faults = Self::new(0, 0, Sabotage::None);
        faults.with(|inner| inner.calm = true);
        faults
    }

    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        act(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on nothing fails any more; things still take their time.
    pub fn end(&self) {
        self.with(|inner| {
            inner.per_mille = 0;
            inner.away_until = None;
        });
    }

    pub fn database_away(&self, duration: Duration) {
        self.with(|inner| inner.away_until = Some(Instant::now() + duration));
    }

    pub fn is_database_away(&self) -> bool {
        self.with(|inner| inner.away_until.is_some_and(|until| until > Instant::now()))
    }

    /// How long a round trip takes. Mostly little, now and then long.
    pub async fn round_trip(&self) {
        let micros = self.with(|inner| match (inner.calm, inner.random.u32(0..50)) {
            (true, _) => 0,
            (false, 0) => inner.random.u64(10_000..200_000),
            (false, _) => inner.random.u64(0..2_000),
        });
        if micros > 0 {
            tokio::time::sleep(Duration::from_micros(micros)).await;
        }
    }

    /// Whether this connection is lost now.
    pub fn strikes(&self) -> bool {
        self.with(|inner| inner.per_mille > 0 && inner.random.u32(0..1_000) < inner.per_mille)
    }

    pub fn commit(&self) -> CommitFault {
        // A COMMIT is where it hurts.
        self.with(|inner| match inner.random.u32(0..1_000) {
            drawn if drawn < inner.per_mille * 2 => CommitFault::Before,
            drawn if drawn < inner.per_mille * 3 => CommitFault::After,
            drawn if drawn < inner.per_mille * 4 => CommitFault::Late,
            _ => CommitFault::None,
        })
    }

    /// After how long the server notices that a client is gone.
    pub fn notice(&self) -> Duration {
        self.with(|inner| match inner.calm {
            true => Duration::ZERO,
            false => Duration::from_millis(inner.random.u64(0..800)),
        })
    }

    pub fn coin(&self) -> bool {
        self.with(|inner| inner.random.bool())
    }

    pub fn below(&self, bound: u64) -> u64 {
        self.with(|inner| inner.random.u64(0..bound))
    }
}
