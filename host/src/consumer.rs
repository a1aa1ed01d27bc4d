//! One consumer at work: what its lanes, its source and its table of waiting messages share.

use std::sync::Arc;
use std::time::Duration;

use crate::config;
use crate::key::KeyRules;
use crate::metrics::ConsumerMetrics;
use crate::plugins::PluginFile;
use crate::sandbox::{Environment, Plugin};
use crate::store::{ConsumerId, HostId, Store};

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
    plugin: Arc<PluginFile>,
    frozen: Option<i64>,
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
    /// The time that every attempt sees, where attempts are compared. Microseconds since the Unix epoch.
    pub frozen: Option<i64>,
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
            plugin,
            frozen,
        }
    }

    /// When an attempt that begins now begins, as its handler sees it. Microseconds since the Unix epoch.
    pub fn now_micros(&self) -> i64 {
        self.frozen.unwrap_or_else(crate::clock::now_micros)
    }

    /// The component that new batches run on.
    pub fn plugin(&self) -> Arc<Plugin> {
        self.plugin.current()
    }

    /// The file that it comes from.
    pub fn plugin_file(&self) -> &Arc<PluginFile> {
        &self.plugin
    }

    /// How often a message may begin and take the host down with it.
    pub fn max_starts(&self) -> i32 {
        i32::try_from(self.retry.max_attempts)
            .unwrap_or(i32::MAX)
            .saturating_add(1)
    }
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
