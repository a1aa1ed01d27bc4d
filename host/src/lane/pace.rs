//! How many messages a batch may hold, and how long it may fill.

use std::time::Duration;

use crate::consumer::BatchLimits;

/// While it is behind, a lane lets a batch fill for as long as the last one took, and for no longer than this: every
/// batch has its round trips, its commit and its acknowledgement, and a fuller one shares them among more messages.
const LINGER_MAX: Duration = Duration::from_millis(15);

pub(super) struct Pace {
    limits: BatchLimits,
    /// How many messages a batch may hold at the moment: halved by conflicts, grown by success.
    pub(super) width: usize,
    /// How long a batch may fill while the lane is behind.
    pub(super) linger: Duration,
    /// How long the handlers and effects of the last batch took.
    pub(super) worked: Duration,
}

impl Pace {
    pub(super) fn new(limits: BatchLimits) -> Self {
        Self {
            limits,
            width: limits.messages,
            linger: Duration::ZERO,
            worked: Duration::ZERO,
        }
    }

    /// After a conflict.
    pub(super) fn halve(&mut self) {
        self.width = (self.width / 2).max(1);
    }

    /// Batches that worked too long get narrower, others may grow. A batch may always work for as long as its
    /// transaction costs besides: where the database is far away or waits for a standby, narrow ones would only be
    /// more of them.
    pub(super) fn widen(&mut self, elapsed: Duration, messages: usize) {
        self.linger = elapsed.min(LINGER_MAX);
        let allowed = self.limits.time.max(elapsed.saturating_sub(self.worked));
        let share = allowed.as_secs_f64() / self.worked.as_secs_f64().max(1e-6);
        self.width = if share < 1.0 {
            ((messages as f64 * share) as usize).max(1)
        } else {
            (self.width + self.width / 8 + 1).min(self.limits.messages)
        };
    }
}
