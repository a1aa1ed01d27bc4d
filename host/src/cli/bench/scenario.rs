//! What is measured: each scenario with what consumes, what it writes and what it sends.

use std::time::Duration;

use super::rival::Kind;

/// How many times faster a paced publisher is than the slower one.
pub const RATES: [u32; 2] = [500, 2_000];

/// How long a paced publisher publishes.
pub const PACED: Duration = Duration::from_secs(10);

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// Consume with block acks, no database: the ceiling of consuming.
    Drain,
    /// Consume, publish with confirms, block acks, no database: the ceiling of consuming and emitting.
    Forward,
    /// What a careful engineer writes.
    ByHand,
    ByHandNoOutbox,
    /// Deferred SQL, outbox and relay: the points plugin as it is.
    Relay,
    NoOutbox,
    /// One immediate statement for each message, outbox and relay: a plain INSERT, which can share a statement.
    Immediate,
    ImmediateNoOutbox,
    /// The same with a statement that only the database can answer.
    RoundTrip,
    /// Every message is known already.
    Duplicates,
    /// The handler does nothing: claim, instance, finish, commit.
    Noop,
    /// From publish to the event's arrival, at a fixed rate.
    Latency {
        rate: u32,
        by_hand: bool,
    },
}

/// Who consumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runner {
    Rival(Kind),
    Hapax(Handler),
}

/// The variant of `plugins/bench`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handler {
    pub sql: &'static str,
    pub publish: bool,
}

impl Scenario {
    /// In the order in which each round runs them, so that what is compared stands side by side.
    pub const THROUGHPUT: [Self; 11] = [
        Self::Drain,
        Self::NoOutbox,
        Self::Duplicates,
        Self::Noop,
        Self::Forward,
        Self::Relay,
        Self::ByHand,
        Self::Immediate,
        Self::RoundTrip,
        Self::ByHandNoOutbox,
        Self::ImmediateNoOutbox,
    ];

    /// The name in the JSON and for `--only`.
    pub fn name(self) -> String {
        match self {
            Self::Drain => "drain".into(),
            Self::Forward => "forward".into(),
            Self::ByHand => "by_hand".into(),
            Self::ByHandNoOutbox => "by_hand_no_outbox".into(),
            Self::Relay => "hapax_relay".into(),
            Self::NoOutbox => "hapax_no_outbox".into(),
            Self::Immediate => "immediate".into(),
            Self::ImmediateNoOutbox => "immediate_no_outbox".into(),
            Self::RoundTrip => "round_trip".into(),
            Self::Duplicates => "duplicates".into(),
            Self::Noop => "noop".into(),
            Self::Latency { rate, by_hand } => {
                let who = if by_hand { "by_hand" } else { "hapax" };
                format!("latency_{rate}_{who}")
            }
        }
    }

    /// As people read it.
    pub fn title(self) -> String {
        match self {
            Self::Drain => "drain: consume, no database".into(),
            Self::Forward => "forward: consume and publish, no database".into(),
            Self::ByHand => "by hand: ledger, row, outbox, relay".into(),
            Self::ByHandNoOutbox => "by hand, no outbox".into(),
            Self::Relay => "Hapax: ledger, row, outbox, relay".into(),
            Self::NoOutbox => "Hapax, no outbox".into(),
            Self::Immediate => "Hapax, immediate SQL, outbox, relay".into(),
            Self::ImmediateNoOutbox => "Hapax, immediate SQL, no outbox".into(),
            Self::RoundTrip => "Hapax, SQL with an answer, outbox, relay".into(),
            Self::Duplicates => "Hapax, duplicates only".into(),
            Self::Noop => "Hapax, handler does nothing".into(),
            Self::Latency { rate, by_hand } => {
                let who = if by_hand { "by hand" } else { "Hapax" };
                format!("{who} at {rate} msg/s")
            }
        }
    }

    pub fn runner(self) -> Runner {
        let hapax = |sql, publish| Runner::Hapax(Handler { sql, publish });
        match self {
            Self::Drain => Runner::Rival(Kind::Drain),
            Self::Forward => Runner::Rival(Kind::Forward),
            Self::ByHand | Self::Latency { by_hand: true, .. } => Runner::Rival(Kind::ByHand),
            Self::ByHandNoOutbox => Runner::Rival(Kind::ByHandNoOutbox),
            Self::Relay | Self::Latency { .. } => hapax("defer", true),
            Self::NoOutbox | Self::Duplicates => hapax("defer", false),
            Self::Immediate => hapax("execute", true),
            Self::ImmediateNoOutbox => hapax("execute", false),
            Self::RoundTrip => hapax("ask", true),
            Self::Noop => hapax("none", false),
        }
    }

    /// Whether each unique message leaves a row in the business table.
    pub fn writes(self) -> bool {
        !matches!(self, Self::Drain | Self::Forward | Self::Noop)
    }

    /// How many events come out of so many deliveries, so many of them unique.
    pub fn events(self, deliveries: u64, unique: u64) -> u64 {
        match self.runner() {
            Runner::Rival(Kind::Forward) => deliveries,
            Runner::Rival(Kind::ByHand) | Runner::Hapax(Handler { publish: true, .. }) => unique,
            Runner::Rival(_) | Runner::Hapax(_) => 0,
        }
    }

    /// The rate of its publisher, when it is paced.
    pub fn rate(self) -> Option<u32> {
        match self {
            Self::Latency { rate, .. } => Some(rate),
            _ => None,
        }
    }
}

/// What is compared, by the names of the JSON: one scenario's throughput over another's.
pub const RATIOS: [(&str, Scenario, Scenario); 8] = [
    ("hapax_relay/by_hand", Scenario::Relay, Scenario::ByHand),
    ("hapax_relay/forward", Scenario::Relay, Scenario::Forward),
    ("hapax_no_outbox/drain", Scenario::NoOutbox, Scenario::Drain),
    (
        "hapax_no_outbox/by_hand_no_outbox",
        Scenario::NoOutbox,
        Scenario::ByHandNoOutbox,
    ),
    ("duplicates/drain", Scenario::Duplicates, Scenario::Drain),
    ("immediate/by_hand", Scenario::Immediate, Scenario::ByHand),
    ("round_trip/by_hand", Scenario::RoundTrip, Scenario::ByHand),
    (
        "immediate_no_outbox/by_hand_no_outbox",
        Scenario::ImmediateNoOutbox,
        Scenario::ByHandNoOutbox,
    ),
];
