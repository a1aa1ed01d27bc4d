//! One consumer at work: what its lanes, its source and its table of waiting messages share.

pub mod brake;
pub mod gate;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::sync::Notify;

use crate::config;
use crate::key::KeyRules;
use crate::lane::{Floor, Pulse};
use crate::metrics::ConsumerMetrics;
use crate::plugins::PluginFile;
use crate::sandbox::{Environment, Plugin};
use crate::store::{ConsumerId, HostId, Store};

use brake::Brake;
use gate::Gate;

/// What a step may take beside the run of one message: connecting, and the host's own statements, each of
/// which has its timeout.
const STEP_GRACE: Duration = Duration::from_mins(2);

/// A queue, a plugin and the rules between them.
pub struct Consumer {
    pub name: String,
    pub queue: String,
    pub id: ConsumerId,
    pub host: HostId,
    pub store: Arc<dyn Store>,
    pub rules: KeyRules,
    pub batch: BatchLimits,
    pub retry: config::Retry,
    /// `None` remembers forever.
    pub retention: Option<Duration>,
    pub environment: Arc<Environment>,
    pub metrics: ConsumerMetrics,
    pub order: config::Order,
    pub on_duplicate: config::OnDuplicate,
    pub park: Option<config::Target>,
    /// Where its handlers run, with those of all consumers of the host.
    pub floor: Floor,
    /// What holds it back.
    pub gate: Gate,
    /// Rings when the first of a line was dealt with.
    pub line_moved: Notify,
    /// Most keys of the last batch were known: a look before the next claim may save it.
    pub meets_duplicates: AtomicBool,
    /// Messages may be parked whose keys have not got that fate: a session that does not end had them.
    pub owes_fates: AtomicBool,
    /// One for each lane.
    pulses: Box<[Pulse]>,
    /// How long one step of a lane may take.
    step_bound: Duration,
    plugin: Arc<PluginFile>,
    frozen: Option<Frozen>,
}

/// What attempts see in place of what is, where attempts are compared.
#[derive(Clone, Copy, Debug)]
pub struct Frozen {
    /// The time, in microseconds since the Unix epoch.
    pub now_micros: i64,
    /// Attempts that are said to have come before.
    pub earlier_attempts: u32,
}

/// When a batch is full.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    pub messages: usize,
    pub bytes: u64,
    pub time: Duration,
}

/// What a consumer is built from, beside its configuration.
pub struct Parts {
    pub id: ConsumerId,
    pub host: HostId,
    pub store: Arc<dyn Store>,
    pub environment: Arc<Environment>,
    pub metrics: ConsumerMetrics,
    pub plugin: Arc<PluginFile>,
    /// One for all consumers of a host.
    pub floor: Floor,
    pub frozen: Option<Frozen>,
}

impl Consumer {
    pub fn new(config: &config::Consumer, parts: Parts) -> Self {
        let Parts {
            id,
            host,
            store,
            environment,
            metrics,
            plugin,
            floor,
            frozen,
        } = parts;
        Self {
            name: config.name.clone(),
            queue: config.queue.clone(),
            id,
            host,
            store,
            rules: key_rules(config),
            batch: BatchLimits {
                messages: config.batch,
                bytes: config.batch_bytes,
                time: config.batch_time,
            },
            retry: config.retry.clone(),
            retention: match config.retention {
                config::Retention::For(duration) => Some(duration),
                config::Retention::Forever => None,
            },
            environment,
            metrics,
            order: config.order,
            on_duplicate: config.on_duplicate,
            park: config.park.clone(),
            floor,
            gate: Gate::new(Brake::new(config.brake)),
            line_moved: Notify::new(),
            meets_duplicates: AtomicBool::new(false),
            owes_fates: AtomicBool::new(true),
            pulses: (0..config.lanes).map(|_| Pulse::default()).collect(),
            step_bound: config.limits.wall + STEP_GRACE,
            plugin,
            frozen,
        }
    }

    /// Stops taking messages, until `resume`: what was not begun goes back to its queue, what was begun is
    /// finished. `reason` is for the log and the status.
    pub fn pause(&self, reason: &str) {
        if self.gate.pause(reason) {
            self.metrics.paused("operator", true);
            tracing::info!(consumer = %self.name, reason, "Consumer paused");
        }
    }

    /// Ends an operator's pause.
    pub fn resume(&self) {
        if self.gate.resume() {
            self.metrics.paused("operator", false);
            tracing::info!(consumer = %self.name, "Consumer resumed");
        }
    }

    /// The reason of an operator's pause.
    pub fn paused(&self) -> Option<String> {
        self.gate.paused()
    }

    /// A line of held messages is full, or has room again.
    pub fn set_full(&self, full: bool) {
        if !self.gate.set_full(full) {
            return;
        }
        self.metrics.paused("full", full);
        if full {
            tracing::error!(
                consumer = %self.name,
                "Consumer takes no more: a partition holds max-held messages behind a failed one; \
                 replay or discard that one (hapax parked list)"
            );
        } else {
            tracing::info!(consumer = %self.name, "Consumer goes on: its lines have room again");
        }
    }

    /// Tells the brake what became of a message, and says so when that changes something.
    pub fn note_for_brake(&self, note: impl FnOnce(&mut Brake) -> brake::Change) {
        match self.gate.brake(note) {
            brake::Change::Nothing => {}
            brake::Change::On(code, parks) => {
                self.metrics.paused("brake", true);
                tracing::error!(
                    consumer = %self.name, %code, parks,
                    "Consumer braked: message after message is parked and none commits; what it holds is \
                     kept, and one message is tried now and then"
                );
            }
            brake::Change::Released => {
                self.metrics.paused("brake", false);
                tracing::info!(consumer = %self.name, "Consumer goes on: a message has committed");
            }
        }
    }

    /// The pulse of a lane.
    pub fn pulse(&self, lane: i16) -> &Pulse {
        let lane = usize::try_from(lane).expect("lanes are numbered from zero");
        &self.pulses[lane]
    }

    /// The name of a lane's session, as the database shows it.
    pub fn session_name(&self, lane: i16) -> String {
        format!("hapax {} {lane}", self.name)
    }

    /// The names of all its lanes' sessions.
    pub fn session_names(&self) -> Vec<String> {
        let lanes = i16::try_from(self.pulses.len()).expect("the configuration bounds the lanes");
        (0..lanes).map(|lane| self.session_name(lane)).collect()
    }

    /// Whether a lane is at a step for longer than any limit lets it be.
    pub fn is_stuck(&self) -> bool {
        self.pulses
            .iter()
            .any(|pulse| pulse.is_stuck(self.step_bound))
    }

    /// When an attempt that begins now begins, as its handler sees it. Microseconds since the Unix epoch.
    pub fn now_micros(&self) -> i64 {
        self.frozen
            .map_or_else(crate::clock::now_micros, |frozen| frozen.now_micros)
    }

    /// The number of an attempt, as its handler sees it.
    pub fn attempt_number(&self, earlier: i32) -> u32 {
        let said = self.frozen.map_or(0, |frozen| frozen.earlier_attempts);
        u32::try_from(earlier).unwrap_or(0) + 1 + said
    }

    /// The component that new batches run on.
    pub fn plugin(&self) -> Arc<Plugin> {
        self.plugin.current()
    }

    /// The file that it comes from.
    pub fn plugin_file(&self) -> &Arc<PluginFile> {
        &self.plugin
    }

    /// Later messages of a partition wait behind a failed one.
    pub fn is_strict(&self) -> bool {
        matches!(self.order, config::Order::Strict { .. })
    }

    /// A consumer whose line was full takes messages again when none holds more than this: half, so that it does
    /// not give messages back after each one that it takes.
    pub fn room_from(&self) -> u64 {
        match self.order {
            config::Order::Lane => u64::MAX,
            config::Order::Strict { max_held } => u64::from(max_held / 2),
        }
    }

    /// How often a message may begin and take the host down with it.
    pub fn max_starts(&self) -> i32 {
        max_starts(&self.retry)
    }
}

/// One more than the attempts: that the host went down with a message is not always the message's fault.
pub fn max_starts(retry: &config::Retry) -> i32 {
    i32::try_from(retry.max_attempts)
        .unwrap_or(i32::MAX)
        .saturating_add(1)
}

/// How the consumer's messages are read.
pub fn key_rules(config: &config::Consumer) -> KeyRules {
    KeyRules {
        key: match config.idempotency {
            config::Idempotency::On => config.key.clone(),
            config::Idempotency::Off => Vec::new(),
        },
        partition: config.partition.clone(),
        fingerprint: config.fingerprint.clone(),
        max_message_bytes: config.max_message_bytes,
    }
}

/// The rules of the key and of the fingerprint as the store remembers them: a host compares these texts.
pub fn rule_texts(config: &config::Consumer) -> (String, String) {
    let sources = config
        .key
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>();
    (sources.join(" + "), config.fingerprint.to_string())
}
