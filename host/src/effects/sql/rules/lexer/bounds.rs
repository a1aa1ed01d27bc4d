//! Keeps the parser's tree shallow before it is built.

use super::super::words;

/// How deep parentheses may nest.
const MAX_NESTING: usize = 40;
/// How many operators may chain on the way from the root to a leaf: `1 + 1 + …` nests in the parser's tree without
/// nesting in the text, and trees are cloned and dropped recursively.
const MAX_CHAIN: usize = 400;
/// How many SELECTs may be chained with UNION and its like.
const MAX_SET_OPERATIONS: usize = 60;
/// How many operators may be used for which `sqlparser` copies the left side, which is quadratic, and how long
/// chains may be when there are any: a copy takes more of the stack than anything else.
const MAX_COPYING_OPERATORS: usize = 16;
const MAX_COPIED_CHAIN: usize = 60;
/// How many joins one statement may have. `sqlparser` recurses for joins whose conditions come later, unguarded.
const MAX_JOINS: usize = 24;

/// What has been met so far.
pub(super) struct Bounds {
    /// Operators since the last comma, for each open parenthesis.
    chains: Vec<usize>,
    chained: usize,
    set_operations: usize,
    copying: usize,
    joins: usize,
    /// The longest chain so far.
    longest: usize,
}

impl Bounds {
    pub(super) fn new() -> Self {
        Self {
            chains: vec![0],
            chained: 0,
            set_operations: 0,
            copying: 0,
            joins: 0,
            longest: 0,
        }
    }

    pub(super) fn open(&mut self) -> bool {
        self.link();
        self.chains.push(0);
        self.chains.len() <= MAX_NESTING
    }

    pub(super) fn depth(&self) -> usize {
        self.chains.len() - 1
    }

    /// Whether there was something to close.
    pub(super) fn close(&mut self) -> bool {
        if self.chains.len() < 2 {
            return false;
        }
        self.chained -= self.chains.pop().unwrap_or(0);
        true
    }

    pub(super) fn comma(&mut self) {
        if let Some(chain) = self.chains.last_mut() {
            self.chained -= *chain;
            *chain = 0;
        }
    }

    pub(super) fn link(&mut self) {
        if let Some(chain) = self.chains.last_mut() {
            *chain += 1;
            self.chained += 1;
            self.longest = self.longest.max(self.chained);
        }
    }

    pub(super) fn word(&mut self, word: &str) {
        if words::chains(word) {
            self.link();
        }
        if words::copies(word) {
            self.copying += 1;
        }
        if words::joins_queries(word) {
            self.set_operations += 1;
        }
        if words::joins_tables(word) {
            self.joins += 1;
        }
    }

    pub(super) fn exceeded(&self) -> bool {
        let chain = if self.copying > 0 {
            MAX_COPIED_CHAIN
        } else {
            MAX_CHAIN
        };
        self.longest > chain
            || self.joins > MAX_JOINS
            || self.set_operations > MAX_SET_OPERATIONS
            || self.copying > MAX_COPYING_OPERATORS
    }
}
