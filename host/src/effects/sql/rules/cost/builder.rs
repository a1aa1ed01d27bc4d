//! The program of a statement's cost, while the walk writes it.

use std::collections::{BTreeSet, HashMap};

use super::super::builtins::Class;
use super::{Cost, Op, Target};

/// The program while it is written.
#[derive(Debug)]
pub struct Builder {
    cost: Cost,
    known: HashMap<String, u16>,
    depth: u32,
}

/// The select list that a recursive query sees of itself before it is written: anything.
pub const RECURSED: u16 = 0;

impl Builder {
    pub fn new() -> Self {
        let mut builder = Self {
            cost: Cost::default(),
            known: HashMap::new(),
            depth: 0,
        };
        let recursed = builder.node();
        builder.begin();
        builder.granted(0);
        builder.end(recursed);
        builder.truncate(0);
        builder.cost.groups.push(Vec::new());
        builder
    }

    pub fn finish(self) -> Cost {
        self.cost
    }

    /// Number of values on the stack.
    pub fn mark(&self) -> u32 {
        self.depth
    }

    fn arity(&self, mark: u32) -> u16 {
        u16::try_from(self.depth.saturating_sub(mark)).unwrap_or(u16::MAX)
    }

    fn emit(&mut self, op: Op, mark: u32) {
        self.cost.ops.push(op);
        self.depth = mark + 1;
    }

    pub fn push(&mut self, bytes: usize, number: bool) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.emit(Op::Push { bytes, number }, self.depth);
    }

    pub fn parameter(&mut self, number: u16) {
        self.emit(Op::Parameter(number), self.depth);
    }

    /// A name that may stand for what these select lists make.
    pub fn name(&mut self, column: &str, nodes: &BTreeSet<u16>) {
        let group = self.group_of(nodes);
        let next = u16::try_from(self.cost.columns.len()).unwrap_or(u16::MAX);
        let column = *self.known.entry(column.to_owned()).or_insert_with(|| {
            self.cost.columns.push(column.to_owned());
            next
        });
        self.emit(Op::Name { column, group }, self.depth);
    }

    /// The value of a subquery.
    pub fn subquery(&mut self, nodes: &BTreeSet<u16>) {
        let group = self.group_of(nodes);
        self.emit(Op::Group(group), self.depth);
    }

    fn group_of(&mut self, nodes: &BTreeSet<u16>) -> u16 {
        if nodes.is_empty() {
            return 0;
        }
        let last = self.cost.groups.last();
        if !last.is_some_and(|last| last.iter().eq(nodes.iter())) {
            self.cost.groups.push(nodes.iter().copied().collect());
        }
        u16::try_from(self.cost.groups.len() - 1).unwrap_or(u16::MAX)
    }

    /// Takes what was left since the mark.
    pub fn call(&mut self, class: Class, quoted: u8, mark: u32) {
        let arity = self.arity(mark);
        self.emit(
            Op::Call {
                class,
                arity,
                quoted,
            },
            mark,
        );
    }

    pub fn cast(&mut self, target: Target, mark: u32) {
        let arity = self.arity(mark);
        self.emit(Op::Cast { target, arity }, mark);
    }

    pub fn cut(&mut self, characters: usize, mark: u32) {
        let arity = self.arity(mark);
        // A character of UTF-8 has at most four bytes.
        let bytes = u32::try_from(characters.saturating_mul(4)).unwrap_or(u32::MAX);
        self.emit(Op::Cut { bytes, arity }, mark);
    }

    /// A function of the owner's, whose cost is his word.
    pub fn granted(&mut self, mark: u32) {
        let arity = self.arity(mark);
        self.emit(Op::Granted { arity }, mark);
    }

    /// Drops what was left since the mark.
    pub fn truncate(&mut self, mark: u32) {
        if self.depth > mark {
            self.cost.ops.push(Op::Truncate(mark));
            self.depth = mark;
        }
    }

    /// A new select list.
    pub fn node(&mut self) -> u16 {
        let node = self.cost.nodes;
        self.cost.nodes = node.saturating_add(1);
        node
    }

    /// An item of a select list begins.
    pub fn begin(&mut self) {
        self.cost.ops.push(Op::Begin);
    }

    pub fn end(&mut self, node: u16) {
        self.cost.ops.push(Op::End(node));
    }
}
