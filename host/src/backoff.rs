//! Pauses between tries: exponential, with full jitter, bounded.
//!
//! Full jitter: a pause is drawn evenly from zero to the exponential bound, so that hosts that failed
//! together do not come back together (Brooker, "Exponential Backoff and Jitter", 2015).

use std::time::Duration;

/// The bound of the n-th pause (from 1): `first` doubled n − 1 times, at most `max`.
pub fn bound(first: Duration, max: Duration, n: u32) -> Duration {
    let doublings = n.saturating_sub(1).min(32);
    first
        .saturating_mul(1_u32.checked_shl(doublings).unwrap_or(u32::MAX))
        .min(max)
}

/// The n-th pause, drawn.
pub fn jittered(first: Duration, max: Duration, n: u32) -> Duration {
    bound(first, max, n).mul_f64(fastrand::f64())
}

/// Pauses of one loop that waits for the world.
#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    tries: u32,
}

impl Backoff {
    pub fn new(first: Duration, max: Duration) -> Self {
        Self {
            first,
            max,
            tries: 0,
        }
    }

    /// For servers that are away: from 50 ms to 5 s.
    pub fn for_servers() -> Self {
        Self::new(Duration::from_millis(50), Duration::from_secs(5))
    }

    /// The next pause: at least half of its bound, so that a loop never spins.
    pub fn pause(&mut self) -> Duration {
        self.tries = self.tries.saturating_add(1);
        let bound = bound(self.first, self.max, self.tries);
        bound / 2 + (bound / 2).mul_f64(fastrand::f64())
    }

    /// How many pauses there were since the last reset.
    pub fn tries(&self) -> u32 {
        self.tries
    }

    /// It works again.
    pub fn reset(&mut self) {
        self.tries = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_double_until_the_maximum_and_never_overflow() {
        let first = Duration::from_secs(1);
        let max = Duration::from_secs(300);
        let bounds = [1, 2, 3, 9, 10, 1000].map(|n| bound(first, max, n).as_secs());
        assert_eq!(bounds, [1, 2, 4, 256, 300, 300]);
    }

    #[test]
    fn a_jittered_pause_is_never_over_its_bound() {
        for n in 1..200 {
            let (first, max) = (Duration::from_millis(100), Duration::from_secs(3));
            assert!(jittered(first, max, n) <= bound(first, max, n));
        }
    }

    #[test]
    fn a_waiting_loop_always_pauses() {
        let mut backoff = Backoff::for_servers();
        assert!((0..50).all(|_| backoff.pause() >= Duration::from_millis(25)));
    }
}
