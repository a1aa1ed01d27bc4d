//! What is said of a batch, in metrics and in the log, and to the brake.

use std::time::Instant;

use crate::commit::{Hold, Item, Setback, Verdict};
use crate::consumer::brake::Brake;
use crate::store::{Status, StoreError};

use super::Lane;

impl Lane {
    pub(super) fn report(&self, item: &Item, verdict: &Verdict) {
        let metrics = &self.consumer.metrics;
        if matches!(item.hold, Hold::Row(_)) && *verdict != Verdict::Gone {
            metrics.retried.inc();
        }
        match verdict {
            Verdict::Held | Verdict::SetAside => {
                metrics.held.inc();
            }
            Verdict::Committed => {
                metrics.committed.inc();
                let fenced = item.message.timestamp_seconds().is_some();
                if !fenced && self.consumer.retention.is_some() {
                    metrics.unfenced.inc();
                }
                metrics
                    .end_to_end_seconds
                    .observe(item.received.elapsed().as_secs_f64());
            }
            Verdict::Duplicate(fate) => metrics.duplicate(&format!("{fate:?}").to_lowercase()),
            Verdict::Gone => {}
            Verdict::Failed {
                failure,
                status,
                attempts,
                delay,
            } => {
                metrics.failed(failure.code.0);
                let key = item
                    .identity
                    .as_ref()
                    .map(|known| crate::key::show(&known.key));
                let key = key.unwrap_or_default();
                if *status == Status::Parked {
                    metrics.parked(failure.code.0);
                    tracing::warn!(
                        consumer = %self.consumer.name, code = %failure.code, %key, attempts,
                        error = %failure.message, "Message parked"
                    );
                } else {
                    tracing::debug!(
                        consumer = %self.consumer.name, code = %failure.code, %key, attempts,
                        error = %failure.message, delay_seconds = delay.as_secs_f64(), "Message failed"
                    );
                }
            }
        }
    }

    pub(super) fn note(&self, setback: &Setback) {
        let (reason, error) = match setback {
            Setback::Isolate => ("isolate", None),
            Setback::Split(error) => ("split", Some(error)),
            Setback::Again => ("again", None),
            Setback::Full => ("full", None),
            Setback::Busy(error) => ("busy", Some(error)),
            Setback::World(error) => ("world", Some(error)),
            Setback::Stuck(_) => ("stuck", None),
            Setback::Ours(error) => ("ours", Some(error)),
        };
        self.count_setback(reason, error);
    }

    /// The store has failed this lane between two batches.
    pub(super) fn note_outside(&self, error: &StoreError) {
        let reason = match error {
            StoreError::LockTimeout(_) => "busy",
            _ => "world",
        };
        self.count_setback(reason, Some(error));
    }

    fn count_setback(&self, reason: &str, error: Option<&StoreError>) {
        self.consumer.metrics.setback(reason);
        if let Some(error) = error {
            tracing::debug!(consumer = %self.consumer.name, reason, %error, "Lane set back");
        }
    }

    /// Tells the brake of a batch in its order; commits one after another count as one.
    pub(super) fn tell_brake(&self, verdicts: &[Verdict]) {
        let mut committed = false;
        for verdict in verdicts {
            match verdict {
                Verdict::Committed if committed => {}
                Verdict::Committed => {
                    committed = true;
                    self.consumer.note_for_brake(Brake::committed);
                }
                Verdict::Failed {
                    failure, status, ..
                } => {
                    committed = false;
                    let (code, now) = (failure.code, Instant::now());
                    let parked = *status == Status::Parked;
                    self.consumer.note_for_brake(|brake| match parked {
                        true => brake.parked(code, now),
                        false => brake.failed(now),
                    });
                }
                Verdict::Duplicate(_) | Verdict::Held | Verdict::SetAside | Verdict::Gone => {}
            }
        }
    }
}
