//! The metrics of the host, in the Prometheus text format (OpenMetrics 1.0).
//!
//! Labels are bounded: consumers and targets come from the configuration, codes from `failure::code`.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::store::OutboxDepth;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ConsumerLabel {
    pub consumer: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct CodeLabel {
    pub consumer: String,
    pub code: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct FateLabel {
    pub consumer: String,
    pub fate: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ReasonLabel {
    pub consumer: String,
    pub reason: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct TargetLabel {
    pub target: String,
}

/// Every metric, made once for the process.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    deliveries: Family<ConsumerLabel, Counter>,
    redeliveries: Family<ConsumerLabel, Counter>,
    forgotten: Family<ConsumerLabel, Counter>,
    duplicates: Family<FateLabel, Counter>,
    committed: Family<ConsumerLabel, Counter>,
    ignored: Family<ConsumerLabel, Counter>,
    retried: Family<ConsumerLabel, Counter>,
    failed: Family<CodeLabel, Counter>,
    parked: Family<CodeLabel, Counter>,
    setbacks: Family<CodeLabel, Counter>,
    batch_messages: Family<ConsumerLabel, Histogram>,
    batch_seconds: Family<ConsumerLabel, Histogram>,
    handler_seconds: Family<ConsumerLabel, Histogram>,
    end_to_end_seconds: Family<ConsumerLabel, Histogram>,
    swept: Family<ConsumerLabel, Counter>,
    held: Family<ConsumerLabel, Counter>,
    unfenced: Family<ConsumerLabel, Counter>,
    paused: Family<ReasonLabel, Gauge>,
    up: Family<ConsumerLabel, Gauge>,
    stuck_sessions: Family<ConsumerLabel, Gauge>,
    plugin_swaps: Family<ConsumerLabel, Counter>,
    plugin_refusals: Family<ConsumerLabel, Counter>,
    relay: Relay,
}

/// What the relay counts.
#[derive(Clone)]
pub struct Relay {
    pub confirmed: Family<TargetLabel, Counter>,
    pub returned: Family<TargetLabel, Counter>,
    pub failed: Family<TargetLabel, Counter>,
    pub dropped: Family<TargetLabel, Counter>,
    pub in_memory: Gauge,
    pub depth: Gauge,
    pub oldest_seconds: Gauge<f64, AtomicU64>,
    pub publish_seconds: Histogram,
}

/// What one consumer counts, looked up once.
#[derive(Clone)]
pub struct ConsumerMetrics {
    name: String,
    all: Metrics,
    pub deliveries: Counter,
    pub redeliveries: Counter,
    pub forgotten: Counter,
    pub committed: Counter,
    pub ignored: Counter,
    pub retried: Counter,
    pub swept: Counter,
    pub held: Counter,
    pub unfenced: Counter,
    /// 1 while the consumer takes messages, 0 while it waits for a server or has stopped.
    pub up: Gauge,
    /// Sessions of its lanes whose statement does not end.
    pub stuck_sessions: Gauge,
    pub batch_messages: Histogram,
    pub batch_seconds: Histogram,
    pub handler_seconds: Histogram,
    pub end_to_end_seconds: Histogram,
}

/// 0.1 ms to 100 s, three buckets a decade.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.0001, 10_f64.powf(1.0 / 3.0), 19))
}

fn messages() -> Histogram {
    Histogram::new(exponential_buckets(1.0, 2.0, 11))
}

impl Metrics {
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("hapax");
        macro_rules! register {
            ($name:literal, $help:literal, $metric:expr) => {{
                let metric = $metric;
                registry.register($name, $help, metric.clone());
                metric
            }};
        }
        let by_time = || Family::new_with_constructor(seconds as fn() -> Histogram);
        let relay = Relay {
            confirmed: register!(
                "relay_confirmed",
                "Outbox messages that the broker has confirmed",
                Family::default()
            ),
            returned: register!(
                "relay_returned",
                "Outbox messages that the broker could not route",
                Family::default()
            ),
            failed: register!(
                "relay_failed",
                "Outbox messages whose publish failed and will be tried again",
                Family::default()
            ),
            dropped: register!(
                "relay_dropped",
                "Unroutable outbox messages dropped as their target says",
                Family::default()
            ),
            in_memory: register!(
                "relay_in_memory",
                "Outbox messages that this host holds in memory",
                Gauge::default()
            ),
            depth: register!(
                "outbox_depth",
                "Rows in the outbox of the store",
                Gauge::default()
            ),
            oldest_seconds: register!(
                "outbox_oldest_seconds",
                "Age of the oldest outbox row that is not delayed",
                Gauge::default()
            ),
            publish_seconds: register!(
                "relay_publish_seconds",
                "From the commit to the broker's confirm",
                seconds()
            ),
        };
        Self {
            deliveries: register!(
                "deliveries",
                "Messages that the broker has delivered",
                Family::default()
            ),
            redeliveries: register!(
                "redeliveries",
                "Deliveries that the broker marked as redelivered",
                Family::default()
            ),
            forgotten: register!(
                "forgotten",
                "Deliveries not begun because their channel was gone; the broker delivers them again",
                Family::default()
            ),
            duplicates: register!(
                "duplicates",
                "Deliveries recognised as duplicates, by the fate of their key",
                Family::default()
            ),
            committed: register!(
                "committed",
                "Messages whose handler succeeded and whose transaction committed",
                Family::default()
            ),
            ignored: register!(
                "ignored",
                "Committed messages for which the handler had nothing to do",
                Family::default()
            ),
            failed: register!("failed", "Failed attempts, by code", Family::default()),
            retried: register!(
                "retried",
                "Attempts that ran from the table of waiting messages, whatever became of them",
                Family::default()
            ),
            parked: register!("parked", "Messages parked, by code", Family::default()),
            setbacks: register!(
                "setbacks",
                "Times that a lane was set back and tried again, by reason",
                Family::default()
            ),
            batch_messages: register!(
                "batch_messages",
                "Messages in a committed transaction",
                Family::new_with_constructor(messages as fn() -> Histogram)
            ),
            batch_seconds: register!(
                "batch_seconds",
                "From taking a batch to its commit",
                by_time()
            ),
            handler_seconds: register!(
                "handler_seconds",
                "One execution of the handler, host calls included",
                by_time()
            ),
            end_to_end_seconds: register!(
                "end_to_end_seconds",
                "From delivery to commit",
                by_time()
            ),
            swept: register!(
                "swept",
                "Expired ledger rows that were removed",
                Family::default()
            ),
            held: register!(
                "held",
                "Deliveries put into the table before they have run: behind an earlier failed message of their \
                 partition, or delivered before and without a key",
                Family::default()
            ),
            unfenced: register!(
                "unfenced",
                "Messages committed without a timestamp: a late copy of one cannot be told from a new message",
                Family::default()
            ),
            paused: register!(
                "consumer_paused",
                "1 while something keeps the consumer from taking messages: operator, brake, full",
                Family::default()
            ),
            up: register!(
                "consumer_up",
                "1 while the consumer takes messages",
                Family::default()
            ),
            stuck_sessions: register!(
                "stuck_sessions",
                "Sessions of the consumer's lanes that are at a statement which the database does not end",
                Family::default()
            ),
            plugin_swaps: register!(
                "plugin_swaps",
                "Versions of the plugin that took over while the host ran",
                Family::default()
            ),
            plugin_refusals: register!(
                "plugin_refusals",
                "Versions of the plugin that were refused while the host ran; the one before goes on",
                Family::default()
            ),
            relay,
            // Last: the lines above still register.
            registry: Arc::new(registry),
        }
    }

    /// All metrics as text.
    pub fn render(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a string cannot fail");
        text
    }

    pub fn relay(&self) -> &Relay {
        &self.relay
    }

    pub fn plugin_swapped(&self, consumer: &str) {
        self.plugin_swaps.get_or_create(&label(consumer)).inc();
    }

    pub fn plugin_refused(&self, consumer: &str) {
        self.plugin_refusals.get_or_create(&label(consumer)).inc();
    }

    /// The metrics of one consumer, at zero from the start so that a rate never misses the first event.
    pub fn consumer(&self, name: &str) -> ConsumerMetrics {
        let label = label(name);
        let _ = self.plugin_swaps.get_or_create(&label);
        let _ = self.plugin_refusals.get_or_create(&label);
        let metrics = ConsumerMetrics {
            name: name.to_owned(),
            deliveries: self.deliveries.get_or_create_owned(&label),
            redeliveries: self.redeliveries.get_or_create_owned(&label),
            forgotten: self.forgotten.get_or_create_owned(&label),
            committed: self.committed.get_or_create_owned(&label),
            ignored: self.ignored.get_or_create_owned(&label),
            retried: self.retried.get_or_create_owned(&label),
            swept: self.swept.get_or_create_owned(&label),
            held: self.held.get_or_create_owned(&label),
            unfenced: self.unfenced.get_or_create_owned(&label),
            up: self.up.get_or_create_owned(&label),
            stuck_sessions: self.stuck_sessions.get_or_create_owned(&label),
            batch_messages: self.batch_messages.get_or_create_owned(&label),
            batch_seconds: self.batch_seconds.get_or_create_owned(&label),
            handler_seconds: self.handler_seconds.get_or_create_owned(&label),
            end_to_end_seconds: self.end_to_end_seconds.get_or_create_owned(&label),
            all: self.clone(),
        };
        for reason in ["operator", "brake", "full"] {
            metrics.paused(reason, false);
        }
        metrics
    }
}

fn label(consumer: &str) -> ConsumerLabel {
    ConsumerLabel {
        consumer: consumer.to_owned(),
    }
}

impl Relay {
    /// Takes in how full the outbox is.
    pub fn observe_depth(&self, depth: OutboxDepth) {
        self.depth
            .set(i64::try_from(depth.rows).unwrap_or(i64::MAX));
        self.oldest_seconds.set(depth.oldest_seconds);
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl ConsumerMetrics {
    pub fn duplicate(&self, fate: &str) {
        let label = FateLabel {
            consumer: self.name.clone(),
            fate: fate.to_owned(),
        };
        self.all.duplicates.get_or_create(&label).inc();
    }

    pub fn failed(&self, code: &str) {
        self.all.failed.get_or_create(&self.code(code)).inc();
    }

    pub fn parked(&self, code: &str) {
        self.all.parked.get_or_create(&self.code(code)).inc();
    }

    pub fn paused(&self, reason: &str, paused: bool) {
        let label = ReasonLabel {
            consumer: self.name.clone(),
            reason: reason.to_owned(),
        };
        self.all.paused.get_or_create(&label).set(i64::from(paused));
    }

    pub fn setback(&self, reason: &str) {
        self.all.setbacks.get_or_create(&self.code(reason)).inc();
    }

    fn code(&self, code: &str) -> CodeLabel {
        CodeLabel {
            consumer: self.name.clone(),
            code: code.to_owned(),
        }
    }
}
