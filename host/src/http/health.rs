//! `/healthz`, `/readyz`, `/metrics`: for orchestrators and Prometheus, without a token.
//!
//! Alive is whoever answers. Ready is a host whose consumers all take messages and whose store answers;
//! anything else is 503 with the reasons. Nothing here holds a secret or a message.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;

use crate::consumer::Consumer;
use crate::metrics::Metrics;
use crate::store::{OutboxDepth, Session, Store, StoreError};

/// Probes give up after a second or more; the answer should be there before.
const STORE_PATIENCE: Duration = Duration::from_millis(800);

/// The outbox is counted no more often than this.
const COUNT_EVERY: Duration = Duration::from_secs(1);

/// What is known of the consumers without asking anybody.
pub struct Readiness {
    consumers: Vec<Arc<Consumer>>,
    broken: Mutex<BTreeMap<String, String>>,
    /// What keeps nobody from being ready and is to be known.
    notes: Mutex<Vec<String>>,
}

impl Readiness {
    pub fn new(consumers: impl Iterator<Item = Arc<Consumer>>) -> Self {
        Self {
            consumers: consumers.collect(),
            broken: Mutex::default(),
            notes: Mutex::default(),
        }
    }

    /// Replaces what is to be known beside the reasons.
    pub fn note(&self, notes: Vec<String>) {
        *self.notes.lock().unwrap_or_else(PoisonError::into_inner) = notes;
    }

    fn notes(&self) -> Vec<String> {
        let notes = self.notes.lock();
        notes.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A consumer has stopped for good.
    pub fn broken(&self, consumer: &str, reason: String) {
        self.lock().insert(consumer.to_owned(), reason);
    }

    pub fn consumers(&self) -> &[Arc<Consumer>] {
        &self.consumers
    }

    /// Why the consumers are not ready; empty when they are.
    fn reasons(&self) -> Vec<Reason> {
        let broken = self.lock();
        let not_ready = self.consumers.iter().filter_map(|consumer| {
            let reason = match broken.get(&consumer.name) {
                Some(reason) => format!("stopped: {reason}"),
                // What an operator has asked for is no reason to be taken for ill.
                None if consumer.paused().is_some() => return None,
                None => match consumer.gate.reason() {
                    Some(reason) => reason,
                    None if consumer.metrics.up.get() == 0 => {
                        format!("not subscribed to the queue {}", consumer.queue)
                    }
                    None => return None,
                },
            };
            Some(Reason {
                consumer: Some(consumer.name.clone()),
                reason,
            })
        });
        not_ready.collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, String>> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Serialize)]
struct Reason {
    #[serde(skip_serializing_if = "Option::is_none")]
    consumer: Option<String>,
    reason: String,
}

#[derive(Serialize)]
struct Ready {
    ready: bool,
    reasons: Vec<Reason>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
}

struct Health {
    metrics: Metrics,
    readiness: Arc<Readiness>,
    store: Arc<dyn Store>,
    /// Kept, so that a probe costs one round trip.
    session: tokio::sync::Mutex<Option<Box<dyn Session>>>,
    /// When the outbox was counted last.
    counted: Mutex<Option<Instant>>,
}

pub(super) fn router(metrics: Metrics, readiness: Arc<Readiness>, store: Arc<dyn Store>) -> Router {
    let health = Health {
        metrics,
        readiness,
        store,
        session: tokio::sync::Mutex::new(None),
        counted: Mutex::new(None),
    };
    Router::new()
        .route("/healthz", get(async || "alive\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics_text))
        .with_state(Arc::new(health))
}

async fn ready(State(health): State<Arc<Health>>) -> impl IntoResponse {
    let mut reasons = health.readiness.reasons();
    match tokio::time::timeout(STORE_PATIENCE, health.ping()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            reasons.push(Reason {
                consumer: None,
                reason: format!("the store does not answer: {error}"),
            });
        }
        Err(_) => reasons.push(Reason {
            consumer: None,
            reason: format!("the store does not answer within {STORE_PATIENCE:?}"),
        }),
    }
    let ready = reasons.is_empty();
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let notes = health.readiness.notes();
    let answer = Ready {
        ready,
        reasons,
        notes,
    };
    (status, Json(answer))
}

async fn metrics_text(State(health): State<Arc<Health>>) -> impl IntoResponse {
    // Counted when somebody looks, but not again at once: counting a long outbox takes a while. A store that
    // does not answer leaves the last figure.
    if health.may_count() {
        let depth = health.outbox_depth();
        if let Ok(Ok(depth)) = tokio::time::timeout(STORE_PATIENCE, depth).await {
            health.metrics.relay().observe_depth(depth);
        }
    }
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], health.metrics.render())
}

impl Health {
    /// Whether the outbox was not counted lately; then it is now.
    fn may_count(&self) -> bool {
        let now = Instant::now();
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        if counted.is_some_and(|last| now.duration_since(last) < COUNT_EVERY) {
            return false;
        }
        *counted = Some(now);
        true
    }

    async fn ping(&self) -> Result<(), StoreError> {
        let mut slot = self.session.lock().await;
        let mut session = self.take(&mut slot).await?;
        session.ping().await?;
        *slot = Some(session);
        Ok(())
    }

    async fn outbox_depth(&self) -> Result<OutboxDepth, StoreError> {
        let mut slot = self.session.lock().await;
        let mut session = self.take(&mut slot).await?;
        let depth = session.outbox_depth().await?;
        *slot = Some(session);
        Ok(depth)
    }

    /// Takes the session out: one whose future was dropped is not used again.
    async fn take(
        &self,
        slot: &mut Option<Box<dyn Session>>,
    ) -> Result<Box<dyn Session>, StoreError> {
        match slot.take() {
            Some(session) => Ok(session),
            None => self.store.session("hapax health").await,
        }
    }
}
