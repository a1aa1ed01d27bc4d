//! How much text of a handler's statements one connection keeps prepared.
//!
//! What a prepared statement takes grows with its text, in the server's process or in SQLite's heap: some 7 MB for
//! 58 KiB of it. A number of statements bounds nothing, so their bytes are counted; over the bound, all of them are
//! forgotten, and those that come again are prepared again.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

/// The bound, for one connection.
pub(super) const KEPT_BYTES: usize = 512 << 10;

/// The texts that a connection has prepared since it forgot all of them.
#[derive(Default)]
pub(super) struct KeptTexts {
    known: HashSet<u64>,
    bytes: usize,
    hasher: RandomState,
}

impl KeptTexts {
    /// Notes a text that is prepared next. True when what was prepared before has to be forgotten first.
    pub fn note(&mut self, text: &str) -> bool {
        let hash = self.hasher.hash_one(text);
        if self.known.contains(&hash) {
            return false;
        }
        let over = self.bytes > 0 && self.bytes + text.len() > KEPT_BYTES;
        if over {
            self.clear();
        }
        self.known.insert(hash);
        self.bytes += text.len();
        over
    }

    /// The connection has forgotten all of them.
    pub fn clear(&mut self) {
        self.known.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_bounded_in_bytes_and_a_text_that_is_known_costs_nothing() {
        let mut kept = KeptTexts::default();
        let text = |number: usize| format!("{number:0>1000}");
        let most = KEPT_BYTES / 1000;
        assert!((0..most).all(|number| !kept.note(&text(number))));
        assert!((0..most).all(|number| !kept.note(&text(number))));
        assert!(kept.note(&text(most)), "the bound");
        assert!(!kept.note(&text(most)));
        assert!(!kept.note(&text(0)), "it has room again");
        let long = "x".repeat(2 * KEPT_BYTES);
        assert!(kept.note(&long), "alone");
        assert!(kept.note("SELECT 1"), "and nothing beside it");
    }
}
