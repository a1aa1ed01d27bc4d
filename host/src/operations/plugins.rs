//! Which version of its plugin each consumer runs, and how an operator changes it.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::consumer::Consumer;
use crate::plugins::{Change, ChangeError};

use super::{OperationError, Operations, Response};

/// What an operator wants of the plugins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum PluginRequest {
    List,
    /// Runs this component from now on, and puts it into the consumer's file.
    Load {
        consumer: String,
        /// Base64.
        component: String,
    },
    /// Goes back to the version that ran before.
    RollBack {
        consumer: String,
    },
}

/// The plugin of one consumer, as the daemon has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PluginStatus {
    pub consumer: String,
    /// The file that the configuration names.
    pub path: String,
    /// SHA-256 of the component that runs.
    pub digest: String,
    pub size_bytes: u64,
    pub initial_memory_bytes: u64,
    pub imports: Vec<String>,
    /// Microseconds since the Unix epoch.
    pub loaded_at: i64,
    /// Whether its machine code was in the cache.
    pub from_cache: bool,
    /// Messages that this version has committed.
    pub messages: u64,
    /// Attempts of this version that failed.
    pub failures: u64,
    /// Messages that are in a transaction of this version now.
    pub in_flight: u64,
    /// The most linear memory that one message has had.
    pub peak_memory_bytes: u64,
    /// Versions in memory: more than one while messages end on an earlier one.
    pub versions_in_memory: usize,
    /// SHA-256 of the versions that a rollback would go to, the next one first.
    pub earlier: Vec<String>,
    pub refused: Option<RefusedStatus>,
}

/// What is in the file, where that is not what runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RefusedStatus {
    /// Absent when the file cannot be read.
    pub digest: Option<String>,
    pub problem: String,
}

/// What an operator has changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PluginChanged {
    pub path: String,
    pub before: String,
    pub now: String,
}

impl PluginRequest {
    /// A request to load these bytes.
    pub fn load(consumer: &str, component: &[u8]) -> Self {
        Self::Load {
            consumer: consumer.to_owned(),
            component: STANDARD.encode(component),
        }
    }
}

impl From<ChangeError> for OperationError {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::Write { .. } => Self::Failed(error.to_string()),
            _ => Self::Refused(error.to_string()),
        }
    }
}

impl Operations {
    pub(super) async fn plugins(&self, request: PluginRequest) -> Result<Response, OperationError> {
        match request {
            PluginRequest::List => {
                let plugins = self.live.iter().map(|consumer| status(consumer));
                Ok(Response::Plugins(plugins.collect()))
            }
            PluginRequest::Load {
                consumer,
                component,
            } => {
                let consumer = self.running(&consumer)?;
                let component = STANDARD.decode(component).map_err(|_| {
                    OperationError::Refused("the component is not encoded as it should be".into())
                })?;
                let change = consumer.plugin_file().replace(component).await?;
                Ok(changed(consumer, change))
            }
            PluginRequest::RollBack { consumer } => {
                let consumer = self.running(&consumer)?;
                let change = consumer.plugin_file().roll_back().await?;
                Ok(changed(consumer, change))
            }
        }
    }

    fn running(&self, name: &str) -> Result<&Arc<Consumer>, OperationError> {
        self.live(name).ok_or_else(|| {
            let names: Vec<_> = self.live.iter().map(|live| live.name.as_str()).collect();
            OperationError::Refused(format!(
                "this daemon has no consumer {name}; there is: {}",
                names.join(", ")
            ))
        })
    }
}

fn changed(consumer: &Consumer, change: Change) -> Response {
    Response::PluginChanged(PluginChanged {
        path: consumer.plugin_file().path().display().to_string(),
        before: hex::encode(change.before),
        now: hex::encode(change.now),
    })
}

fn status(consumer: &Consumer) -> PluginStatus {
    let state = consumer.plugin_file().state();
    let (plugin, usage) = (&state.plugin, state.plugin.usage());
    PluginStatus {
        consumer: consumer.name.clone(),
        path: state.path.display().to_string(),
        digest: hex::encode(plugin.digest()),
        size_bytes: plugin.size_bytes(),
        initial_memory_bytes: plugin.initial_memory_bytes(),
        imports: plugin
            .imports()
            .iter()
            .map(|import| import.name.clone())
            .collect(),
        loaded_at: state.loaded_at,
        from_cache: plugin.was_cached(),
        messages: usage.committed(),
        failures: usage.failed(),
        in_flight: usage.in_flight(),
        peak_memory_bytes: usage.peak_memory_bytes(),
        versions_in_memory: state.in_memory,
        earlier: state.earlier.iter().map(hex::encode).collect(),
        refused: state.refused.map(|refused| RefusedStatus {
            digest: refused.digest.map(hex::encode),
            problem: refused.problem,
        }),
    }
}
