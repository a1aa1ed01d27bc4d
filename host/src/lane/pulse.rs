//! Whether a lane gets on: it says when it begins a step and when it rests.
//!
//! A lane that waits for messages, for the world or for an operator rests, and so does one whose COMMIT waits
//! for a standby: nothing is wrong with it. One that works is stuck when a step takes longer than every limit
//! in it allows.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

static BEGINNING: LazyLock<Instant> = LazyLock::new(Instant::now);

/// One lane's pulse.
#[derive(Debug, Default)]
pub struct Pulse {
    /// Milliseconds since the beginning at which the step began, plus one; zero while the lane rests.
    since: AtomicU64,
}

impl Pulse {
    /// A step begins.
    pub fn beat(&self) {
        let elapsed = BEGINNING.elapsed().as_millis();
        let since = u64::try_from(elapsed).unwrap_or(u64::MAX - 1) + 1;
        self.since.store(since, Ordering::Relaxed);
    }

    /// Nothing to do, or nothing that could be hurried.
    pub fn rest(&self) {
        self.since.store(0, Ordering::Relaxed);
    }

    /// Whether a step has begun and not ended for longer than `bound`.
    pub fn is_stuck(&self, bound: Duration) -> bool {
        self.worked_for().is_some_and(|worked| worked > bound)
    }

    fn worked_for(&self) -> Option<Duration> {
        let since = self.since.load(Ordering::Relaxed).checked_sub(1)?;
        BEGINNING
            .elapsed()
            .checked_sub(Duration::from_millis(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_is_stuck_in_a_step_and_never_while_it_rests() {
        let pulse = Pulse::default();
        assert!(!pulse.is_stuck(Duration::ZERO), "it has not begun");
        pulse.beat();
        std::thread::sleep(Duration::from_millis(3));
        assert!(pulse.is_stuck(Duration::ZERO));
        assert!(!pulse.is_stuck(Duration::from_secs(3600)));
        pulse.rest();
        assert!(!pulse.is_stuck(Duration::ZERO));
    }
}
