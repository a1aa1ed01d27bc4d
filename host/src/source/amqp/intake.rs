//! How many deliveries a subscription asks for, so that their bodies fit into `prefetch-bytes`.
//!
//! ```text
//!          more than the budget came at once, or the connection ended quickly, twice
//!   full ───────────────────────────────────────────────────────────────────────────▶ narrow
//!    ▲                                                                                  │
//!    └───────── as many deliveries have come as may have gone back to the queue ────────┘
//! ```
//! A subscription that ends returns what it holds, and every return counts against the limit that a quorum queue may
//! have. So a narrow one stays narrow until all that its end has returned has been delivered again. Pure.

/// Quick ends of a subscription before it takes its deliveries one at a time.
const QUICK_ENDS: u32 = 2;

/// Deliveries that could not be read, each on a connection of its own, before the next one is kept as bytes.
const UNREAD: u32 = 2;

/// How a subscription ended that was lost soon after it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lost {
    /// The broker has closed it, with deliveries in hand.
    Holding,
    /// The client library could not read what the broker had sent.
    Unread,
}

/// The width of one consumer's subscriptions.
#[derive(Debug)]
pub(super) struct Intake {
    /// `prefetch` of the configuration.
    full: u16,
    /// `prefetch-bytes` of the configuration.
    budget: u64,
    width: u16,
    /// Deliveries until the width is looked at again.
    left: u32,
    /// The largest body since the width was looked at.
    largest: u64,
    quick_ends: u32,
    unread: u32,
}

impl Intake {
    pub fn new(full: u16, budget: u64) -> Self {
        Self {
            full,
            budget,
            width: full,
            left: 0,
            largest: 0,
            quick_ends: 0,
            unread: 0,
        }
    }

    /// The prefetch of the next subscription.
    pub fn width(&self) -> u16 {
        self.width
    }

    /// Whether the next delivery is to be kept as bytes, since nothing else has let the client library live.
    pub fn is_distrustful(&self) -> bool {
        self.width == 1 && self.unread >= UNREAD
    }

    /// A delivery with a body of this length was taken. True when the next subscription may be wider.
    pub fn took(&mut self, bytes: u64) -> bool {
        self.unread = 0;
        self.largest = self.largest.max(bytes);
        if self.width == self.full {
            return false;
        }
        self.left = self.left.saturating_sub(1);
        if self.left > 0 {
            return false;
        }
        let width = self.fitting();
        self.largest = 0;
        if width > self.width {
            self.width = width;
            self.left = u32::from(width);
            return true;
        }
        self.left = u32::from(self.width);
        false
    }

    /// A body of this length did not fit beside what is held: the subscription ends, and the next is narrower.
    pub fn overflowed(&mut self, bytes: u64) {
        self.largest = self.largest.max(bytes);
        self.narrow(self.fitting());
    }

    /// The subscription was lost soon after it began.
    pub fn lost(&mut self, how: Lost) {
        match how {
            Lost::Unread if self.width == 1 => self.unread += 1,
            Lost::Holding | Lost::Unread => {}
        }
        self.quick_ends += 1;
        if self.quick_ends >= QUICK_ENDS {
            self.narrow(1);
        }
    }

    /// The subscription has lived for long.
    pub fn calm(&mut self) {
        self.quick_ends = 0;
    }

    fn narrow(&mut self, width: u16) {
        self.left = self.left.max(u32::from(self.width));
        // Something has to give: a width that was found too large is not tried again at once.
        self.width = width.min(self.width / 2).max(1);
    }

    /// As many of the largest body as the budget allows.
    fn fitting(&self) -> u16 {
        let fitting = self.budget / self.largest.max(1);
        u16::try_from(fitting)
            .unwrap_or(u16::MAX)
            .clamp(1, self.full)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_subscription_that_overflows_becomes_as_narrow_as_the_largest_body_wants() {
        let mut intake = Intake::new(1024, 64 * MIB);
        assert!(!intake.took(16 * MIB));
        assert_eq!(intake.width(), 1024, "nothing has overflowed");
        intake.overflowed(16 * MIB);
        assert_eq!(intake.width(), 4);
        intake.overflowed(100 * MIB);
        assert_eq!(intake.width(), 1, "one is always let through");
        intake.overflowed(100 * MIB);
        assert_eq!(intake.width(), 1);
    }

    #[test]
    fn it_widens_when_all_that_may_have_gone_back_has_come_again() {
        let mut intake = Intake::new(100, 64 * MIB);
        intake.overflowed(80 * MIB);
        for _ in 0..99 {
            assert!(!intake.took(10), "others may still come back");
        }
        assert!(!intake.took(10), "the large one was among these");
        assert!(
            intake.took(10),
            "a narrow one looks again after its own width"
        );
        assert_eq!(intake.width(), 100);
    }

    #[test]
    fn a_budget_that_is_met_again_and_again_narrows_each_time() {
        let mut intake = Intake::new(64, 100);
        let mut widths = Vec::new();
        for _ in 0..4 {
            // What came before has made room meanwhile: the bodies alone would fit.
            intake.overflowed(1);
            widths.push(intake.width());
        }
        assert_eq!(widths, [32, 16, 8, 4]);
    }

    #[test]
    fn two_quick_ends_make_it_take_one_at_a_time_and_calm_forgives_the_first() {
        let mut intake = Intake::new(64, MIB);
        intake.lost(Lost::Holding);
        intake.calm();
        intake.lost(Lost::Holding);
        assert_eq!(intake.width(), 64);
        intake.lost(Lost::Holding);
        assert_eq!(intake.width(), 1);
    }

    #[test]
    fn what_cannot_be_read_alone_twice_is_kept_as_bytes_and_the_next_is_trusted_again() {
        let mut intake = Intake::new(64, MIB);
        for _ in 0..3 {
            assert!(!intake.is_distrustful());
            intake.lost(Lost::Unread);
        }
        assert!(!intake.is_distrustful(), "only one was alone");
        intake.lost(Lost::Unread);
        assert!(intake.is_distrustful());
        intake.took(10);
        assert!(!intake.is_distrustful());
        assert_eq!(intake.width(), 1, "the neighbours have not all come again");
    }
}
