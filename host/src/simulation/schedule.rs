//! What a schedule is made of: how the consumer is configured, what is published, and what goes wrong when.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};

use crate::config::{self, Config, Machine, OnDuplicate};
use crate::message::Message;

use super::host;

/// As in the configuration of the consumer.
pub const MAX_ATTEMPTS: i32 = 4;

/// The longest time between two attempts.
pub const MAX_DELAY: Duration = Duration::from_secs(2);

/// Messages that one partition may hold.
pub const MAX_HELD: u64 = 3;

/// The server's time when a schedule begins, in seconds since the Unix epoch.
pub const EPOCH_SECONDS: u64 = 1_700_000_000;

/// Partitions of a consumer whose order is strict.
const PARTITIONS: usize = 3;

/// Letters of a body before the key.
const LETTERS: usize = 5;

/// How the consumer of a schedule is configured, and who else has to do with it.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    pub is_strict: bool,
    pub on_duplicate: OnDuplicate,
    /// Somebody replays and discards parked messages.
    pub is_operated: bool,
    /// The ledger forgets keys while copies of their messages are still to come.
    pub forgets: bool,
}

impl Scenario {
    pub fn drawn(random: &mut fastrand::Rng) -> Self {
        let duplicates = [
            OnDuplicate::Ack,
            OnDuplicate::Ack,
            OnDuplicate::Reply,
            OnDuplicate::Park,
        ];
        Self {
            is_strict: random.u32(0..3) == 0,
            on_duplicate: duplicates[random.usize(0..duplicates.len())],
            is_operated: random.bool(),
            forgets: random.u32(0..3) == 0,
        }
    }

    pub fn config(&self) -> Config {
        let order = match self.is_strict {
            true => {
                format!(
                    "order = \"strict\"\nmax-held = {MAX_HELD}\npartition = \"property:type\"\n"
                )
            }
            false => String::new(),
        };
        let on_duplicate = match self.on_duplicate {
            OnDuplicate::Ack => "ack",
            OnDuplicate::Reply => "reply",
            OnDuplicate::Park => "park",
        };
        let retention = if self.forgets { "3s" } else { "1h" };
        // The brake looks at the machine's clock, which does not stand still here.
        let text = format!(
            "[[consumer]]\nname = \"simulated\"\nqueue = \"in\"\nplugin = \"simulation.wasm\"\n\
             key = \"message-id\"\n{order}on-duplicate = \"{on_duplicate}\"\nbatch = 4\n\
             retention = \"{retention}\"\nbrake = \"off\"\ngrant = {{ write = [\"t_effects\"] }}\n\
             limits = {{ cpu = \"1s\", wall = \"20s\" }}\n\
             retry = {{ max-attempts = {MAX_ATTEMPTS}, delay = \"100ms\", max-delay = \"{}s\" }}\n",
            MAX_DELAY.as_secs()
        );
        let mut config: Config = config::parse(Path::new("/hapax.toml"), &text, &Machine)
            .unwrap_or_else(|problems| panic!("{problems}"));
        // The database in memory has more than the one writer of SQLite, which a configuration without a server
        // names.
        config.consumers[0].lanes = host::LANES;
        config
    }
}

pub enum Event {
    Publish(Letter),
    /// SIGKILL for a host, and a new one in its place.
    Crash(usize),
    /// SIGTERM for a host, and a new one in its place.
    Leave(usize),
    /// Channels of the broker are closed: one of two, or all.
    Cut {
        all: bool,
    },
    /// The database is away for a while.
    Outage(Duration),
    /// An operator takes some of the parked messages, and changes them after a while.
    Operate {
        replay: bool,
        after: Duration,
    },
}

/// The content of a message. Its copies have the same.
#[derive(Clone, Debug)]
pub struct Letter {
    /// Five letters that the handler reads, and the key.
    pub body: String,
    pub partition: usize,
    /// Seconds since the Unix epoch, by the clock of a producer.
    sent: Option<u64>,
    /// Somebody waits for an answer to each copy.
    pub asks: bool,
}

impl Letter {
    pub fn key(&self) -> String {
        key_of_body(&self.body)
    }

    /// A copy, told from the others by its number.
    pub fn copy(&self, number: u64) -> Message {
        let mut headers = FieldTable::default();
        // It goes on in what the copy causes.
        headers.insert(
            TRACE.into(),
            AMQPValue::LongString(number.to_string().into()),
        );
        let mut properties = BasicProperties::default()
            .with_message_id(self.key().into())
            .with_type(format!("partition-{}", self.partition).into())
            .with_headers(headers);
        if let Some(sent) = self.sent {
            properties = properties.with_timestamp(sent);
        }
        if self.asks {
            properties = properties
                .with_reply_to(asker(number).into())
                .with_correlation_id(number.to_string().into());
        }
        Message {
            exchange: String::new(),
            routing_key: "in".into(),
            properties,
            body: Bytes::copy_from_slice(self.body.as_bytes()),
        }
    }
}

const TRACE: &str = "traceparent";

/// Where the answer to a copy goes.
pub fn asker(number: u64) -> String {
    format!("asker-{number}")
}

/// Which copy a message is, or was caused by.
pub fn copy_of(message: &Message) -> Option<u64> {
    let trace = message.headers()?.inner().get(TRACE)?;
    let AMQPValue::LongString(text) = trace else {
        return None;
    };
    std::str::from_utf8(text.as_bytes()).ok()?.parse().ok()
}

pub fn key_of_body(body: &str) -> String {
    body.get(LETTERS..).unwrap_or_default().to_owned()
}

pub fn key_of(message: &Message) -> String {
    key_of_body(&String::from_utf8_lossy(&message.body))
}

/// Messages of every kind.
pub fn letters(random: &mut fastrand::Rng, scenario: &Scenario) -> Vec<Letter> {
    (0..6 + random.usize(0..16))
        .map(|number| {
            let kind = match random.u32(0..10) {
                0..6 => "o0".to_owned(),
                6..9 => format!("f{}", random.u32(1..6)),
                _ => "x0".to_owned(),
            };
            let how = ["e", "d"][random.usize(0..2)];
            let order = ["-", "-", "a", "b"][random.usize(0..4)];
            let answers = ["-", "r"][random.usize(0..2)];
            // The clocks of producers are fast or slow. Without a timestamp nothing keeps a message from being
            // applied again when its key was forgotten.
            let sent = EPOCH_SECONDS + random.u64(0..12) - 6;
            Letter {
                body: format!("{kind}{how}{order}{answers}key-{number}"),
                partition: number % PARTITIONS,
                sent: (scenario.forgets || random.bool()).then_some(sent),
                asks: random.bool(),
            }
        })
        .collect()
}

/// What happens, and after how many milliseconds, in order.
pub fn events(
    random: &mut fastrand::Rng,
    scenario: &Scenario,
    letters: &[Letter],
    hosts: usize,
) -> Vec<(u64, Event)> {
    let span = if scenario.forgets { 12_000 } else { 3_000 };
    // Some come one by one, others in bursts.
    let burst = [1, 500][random.usize(0..2)];
    let mut events = Vec::new();
    for letter in letters {
        for _ in 0..1 + random.usize(0..8) / 5 {
            let at = random.u64(0..span) / burst * burst;
            events.push((at, Event::Publish(letter.clone())));
        }
    }
    for _ in 0..random.usize(0..8) {
        let event = match random.u32(0..12) {
            0..6 => Event::Crash(random.usize(0..hosts)),
            6..8 => Event::Leave(random.usize(0..hosts)),
            8..11 => Event::Cut { all: random.bool() },
            _ => Event::Outage(Duration::from_millis(random.u64(10..3_000))),
        };
        events.push((random.u64(0..span + 1_000), event));
    }
    if scenario.is_operated {
        for _ in 0..random.usize(1..8) {
            let event = Event::Operate {
                replay: random.u32(0..4) > 0,
                after: Duration::from_millis(random.u64(0..400)),
            };
            events.push((random.u64(500..span + 6_000), event));
        }
    }
    events.sort_by_key(|(at, _)| *at);
    events
}
