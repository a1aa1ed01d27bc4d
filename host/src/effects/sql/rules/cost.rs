//! What one row of a statement may cost, from its text, the lengths of its parameters and the widths of its columns.
//!
//! A database looks at a statement's deadline between rows, not within a call of a function nor between the calls of
//! one row. So the walk writes a small program down as it goes, in the order of a stack machine: each expression
//! leaves one value, each call takes its arguments and leaves its result. Run with the lengths of what is bound, the
//! program tells an upper bound of the time and memory of a row, and of what an error could quote. What a subquery
//! selects is counted again wherever it is named, since a database may write it out there.
//!
//! ```text
//!  SELECT replace(note, $1, 'x') || $2      note  $1  1 byte  replace  $2  ||
//! ```
//!
//! Lengths are bytes, times nanoseconds on a slow machine. A column has the width that the catalog knows by its type;
//! one of any length counts as [`ASSUMED_BYTES`], so that a row of many long values costs what it says only as long
//! as the tables hold none that are longer.

mod builder;

use std::time::Duration;

use super::Dialect;
use super::builtins::Class;
use crate::config::Limits;
use crate::store::{ASSUMED_BYTES, ASSUMED_DIGITS, Width};

pub(super) use builder::{Builder, RECURSED};

/// The longest parameter that is looked at only once, when the statement is judged.
pub const SMALL_BYTES: u64 = 1024;

/// What a database may quote in an error, and write to its log.
const MAX_QUOTED_BYTES: f64 = 64.0 * 1024.0;
/// The same of a document, of which it quotes one word.
const MAX_QUOTED_DOCUMENT: f64 = 4.0 * 1024.0 * 1024.0;

/// What a name or a result of a few bytes counts as.
const SHORT: f64 = 128.0;
/// What an aggregate may have collected.
const COLLECTED: f64 = 16.0 * 1024.0 * 1024.0;
/// Digits that a `numeric` can have, before and after the point.
const MAX_DIGITS: f64 = 147_455.0;
/// What a value out of a column counts as where a database may quote it: only how often it is joined matters.
const STATED_COLUMN: f64 = 1024.0;

/// What a cast makes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Target {
    /// As long as what is cast, and no error quotes it.
    Text,
    /// Of a few bytes.
    Short,
    Numeric,
    Document,
    Array,
}

#[derive(Clone, PartialEq, Debug)]
enum Op {
    Push {
        bytes: u32,
        number: bool,
    },
    Parameter(u16),
    Name {
        column: u16,
        group: u16,
    },
    Group(u16),
    Call {
        class: Class,
        arity: u16,
        quoted: u8,
    },
    Cast {
        target: Target,
        arity: u16,
    },
    Cut {
        bytes: u32,
        arity: u16,
    },
    Granted {
        arity: u16,
    },
    Truncate(u32),
    Begin,
    End(u16),
}

/// The program of one statement.
#[derive(Clone, Debug, Default)]
pub struct Cost {
    ops: Vec<Op>,
    columns: Vec<String>,
    groups: Vec<Vec<u16>>,
    nodes: u16,
}

/// Bounds of what the functions of one row may take, by estimate. A database can be stopped between rows only.
#[derive(Clone, Copy, Debug)]
pub struct RowBounds {
    pub time: Duration,
    /// All the values that the functions make.
    pub bytes: u64,
}

impl RowBounds {
    pub fn of(limits: &Limits) -> Self {
        Self {
            time: limits.sql_row_time,
            bytes: limits.sql_row_bytes,
        }
    }
}

impl Default for RowBounds {
    fn default() -> Self {
        Self::of(&Limits::default())
    }
}

/// Upper bound of what a row takes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Weight {
    pub nanoseconds: f64,
    pub bytes: f64,
    quotes_too_much: bool,
}

/// The bound that a row is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Excess {
    Time,
    Memory,
    Quoted,
}

impl Excess {
    /// What is wrong, and what to do.
    pub fn tell(self, dialect: Dialect) -> (&'static str, &'static str) {
        let too_long = "the functions of one row could run for longer than any timeout sees";
        match (self, dialect) {
            (Self::Time, Dialect::Sqlite) => (
                too_long,
                "cut long values where they are used, as in substr(x, 1, 1000), call fewer functions on them, or split the statement",
            ),
            (Self::Time, _) => (
                too_long,
                "cut long values where they are used, as in left(x, 1000), call fewer functions on them, or raise limits.sql-row-time",
            ),
            (Self::Memory, _) => (
                "the functions of one row could take more memory than the database should give",
                "cut long values where they are joined, as in left(x, 1000), join fewer of them, or raise limits.sql-row-bytes",
            ),
            (Self::Quoted, _) => (
                "a cast or a function would quote a long value in its error, and the database would log it",
                "cut the value first, as in CAST(left(x, 100) AS integer)",
            ),
        }
    }
}

impl Weight {
    pub fn excess(&self, bounds: RowBounds) -> Option<Excess> {
        if self.quotes_too_much {
            Some(Excess::Quoted)
        } else if self.nanoseconds > bounds.time.as_nanos() as f64 {
            Some(Excess::Time)
        } else if self.bytes > bounds.bytes as f64 {
            Some(Excess::Memory)
        } else {
            None
        }
    }
}

/// A value on the stack.
#[derive(Clone, Copy, Debug, Default)]
struct Size {
    bytes: f64,
    /// The same without what comes out of tables.
    stated: f64,
    number: bool,
}

impl Size {
    fn short(number: bool) -> Self {
        Self {
            bytes: SHORT,
            stated: SHORT,
            number,
        }
    }

    fn max(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.max(other.bytes),
            stated: self.stated.max(other.stated),
            number: self.number && other.number,
        }
    }
}

/// What is known of a select list: the largest value in it, and the dearest.
#[derive(Clone, Copy, Debug, Default)]
struct Node {
    size: Option<Size>,
    nanoseconds: f64,
    bytes: f64,
}

/// A run of the program.
struct Run<'a> {
    cost: &'a Cost,
    longest: f64,
    stack: Vec<Size>,
    nodes: Vec<Node>,
    begun: Vec<(f64, f64)>,
    weight: Weight,
}

impl Cost {
    /// The names that could be columns, folded.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// The weight of a row. `parameter` tells the length of `$n`, `width` that of a column that the catalog knows;
    /// no value is longer than `longest`.
    pub fn weigh(
        &self,
        parameter: impl Fn(u16) -> Width,
        width: impl Fn(usize) -> Option<Width>,
        longest: f64,
    ) -> Weight {
        let mut run = Run {
            cost: self,
            longest,
            stack: Vec::new(),
            nodes: vec![Node::default(); usize::from(self.nodes)],
            begun: Vec::new(),
            weight: Weight::default(),
        };
        for op in &self.ops {
            run.step(op, &parameter, &width);
        }
        run.weight
    }
}

impl Run<'_> {
    fn step(
        &mut self,
        op: &Op,
        parameter: &impl Fn(u16) -> Width,
        width: &impl Fn(usize) -> Option<Width>,
    ) {
        match op {
            Op::Push { bytes, number } => self.push(Size {
                bytes: f64::from(*bytes),
                stated: f64::from(*bytes),
                number: *number,
            }),
            Op::Parameter(number) => {
                let width = parameter(*number);
                let bytes = width.bytes as f64;
                self.push(Size {
                    bytes,
                    stated: bytes,
                    number: width.number,
                });
            }
            Op::Name { column, group } => {
                let behind = self.group(*group);
                let known = width(usize::from(*column));
                let column = known.or_else(|| {
                    behind.is_none().then_some(Width {
                        bytes: ASSUMED_BYTES,
                        number: false,
                    })
                });
                let column = column.map(|width| Size {
                    bytes: width.bytes as f64,
                    stated: (width.bytes as f64).min(STATED_COLUMN),
                    number: width.number,
                });
                let size = match (column, behind) {
                    (Some(column), Some(behind)) => column.max(behind),
                    (column, behind) => column.or(behind).unwrap_or_default(),
                };
                self.push(size);
            }
            Op::Group(group) => {
                let size = self.group(*group).unwrap_or(Size::short(true));
                self.push(size);
            }
            Op::Call {
                class,
                arity,
                quoted,
            } => {
                let arguments = self.take(*arity);
                let quotes = arguments.iter().enumerate().any(|(place, argument)| {
                    place < 8 && quoted & (1 << place) != 0 && argument.stated > MAX_QUOTED_BYTES
                });
                self.weight.quotes_too_much |= quotes;
                let (result, nanoseconds) = call(*class, &arguments);
                self.spend(nanoseconds, result);
            }
            Op::Cast { target, arity } => {
                let arguments = self.take(*arity);
                self.cast(*target, &arguments);
            }
            Op::Cut { bytes, arity } => {
                let arguments = self.take(*arity);
                let (whole, nanoseconds) = call(
                    Class::Linear {
                        ns: 4.0,
                        grows: 1.0,
                    },
                    arguments.get(..1).unwrap_or_default(),
                );
                let most = f64::from(*bytes);
                self.spend(
                    nanoseconds,
                    Size {
                        bytes: whole.bytes.min(most),
                        stated: whole.stated.min(most),
                        number: false,
                    },
                );
            }
            Op::Granted { arity } => {
                self.take(*arity);
                self.push(Size {
                    bytes: ASSUMED_BYTES as f64,
                    stated: STATED_COLUMN,
                    number: false,
                });
            }
            Op::Truncate(depth) => self.stack.truncate(*depth as usize),
            Op::Begin => self
                .begun
                .push((self.weight.nanoseconds, self.weight.bytes)),
            Op::End(node) => {
                let (nanoseconds, bytes) = self.begun.pop().unwrap_or_default();
                let top = self.stack.last().copied();
                let (nanoseconds, bytes) = (
                    self.weight.nanoseconds - nanoseconds,
                    self.weight.bytes - bytes,
                );
                if let (Some(node), Some(top)) = (self.nodes.get_mut(usize::from(*node)), top) {
                    node.size = Some(node.size.map_or(top, |size| size.max(top)));
                    node.nanoseconds = node.nanoseconds.max(nanoseconds);
                    node.bytes = node.bytes.max(bytes);
                }
            }
        }
    }

    fn push(&mut self, size: Size) {
        self.stack.push(Size {
            bytes: size.bytes.min(self.longest),
            stated: size.stated.min(self.longest),
            ..size
        });
    }

    fn take(&mut self, arity: u16) -> Vec<Size> {
        let rest = self.stack.len().saturating_sub(usize::from(arity));
        self.stack.split_off(rest)
    }

    fn spend(&mut self, nanoseconds: f64, result: Size) {
        self.weight.nanoseconds += nanoseconds;
        self.weight.bytes += result.bytes.min(self.longest);
        self.push(result);
    }

    /// The largest of what these select lists make, which is made once more.
    fn group(&mut self, group: u16) -> Option<Size> {
        let nodes = self.cost.groups.get(usize::from(group))?;
        let mut largest: Option<Size> = None;
        let (mut nanoseconds, mut bytes) = (0.0_f64, 0.0_f64);
        for node in nodes {
            let node = self.nodes.get(usize::from(*node)).copied()?;
            nanoseconds = nanoseconds.max(node.nanoseconds);
            bytes = bytes.max(node.bytes);
            if let Some(size) = node.size {
                largest = Some(largest.map_or(size, |largest| largest.max(size)));
            }
        }
        self.weight.nanoseconds += nanoseconds;
        self.weight.bytes += bytes;
        largest
    }

    fn cast(&mut self, target: Target, arguments: &[Size]) {
        let from = sum(arguments);
        let all = |most: f64, ns: f64, grows: f64, number: bool| {
            let size = Size {
                bytes: (from.bytes * grows).min(most),
                stated: (from.stated * grows).min(most),
                number,
            };
            (ns * from.bytes, size)
        };
        let (quotable, (nanoseconds, result)) = match target {
            Target::Text => (f64::MAX, all(f64::MAX, 4.0, 1.0, false)),
            Target::Short => (MAX_QUOTED_BYTES, all(SHORT, 4.0, 1.0, true)),
            // What comes out of a table may be one of its numbers, as text.
            Target::Numeric if from.stated <= 4.0 * STATED_COLUMN => (
                MAX_QUOTED_BYTES,
                all(ASSUMED_DIGITS as f64, 30.0, 1.0, true),
            ),
            Target::Numeric => (MAX_QUOTED_BYTES, all(MAX_DIGITS, 30.0, 1.0, true)),
            Target::Document => (MAX_QUOTED_DOCUMENT, all(f64::MAX, 60.0, 2.0, false)),
            Target::Array => (MAX_QUOTED_BYTES, all(f64::MAX, 60.0, 8.0, false)),
        };
        // A number is made of a number without a word.
        self.weight.quotes_too_much |= from.stated > quotable && !from.number;
        self.spend(nanoseconds, result);
    }
}

fn sum(sizes: &[Size]) -> Size {
    Size {
        bytes: sizes.iter().map(|size| size.bytes).sum(),
        stated: sizes.iter().map(|size| size.stated).sum(),
        number: sizes.iter().all(|size| size.number),
    }
}

/// The result of a call, and its time.
fn call(class: Class, arguments: &[Size]) -> (Size, f64) {
    let all = sum(arguments);
    let first = arguments.first().copied().unwrap_or_default();
    let rest = sum(arguments.get(1..).unwrap_or_default());
    let product = first.bytes.max(1.0) * rest.bytes.max(1.0);
    let grown = |by: f64| {
        if by == 0.0 {
            Size::short(true)
        } else {
            Size {
                bytes: all.bytes * by,
                stated: all.stated * by,
                number: all.number,
            }
        }
    };
    match class {
        Class::Free => (Size::short(true), 0.0),
        Class::Pick => (
            arguments
                .iter()
                .copied()
                .reduce(Size::max)
                .unwrap_or(Size::short(true)),
            0.0,
        ),
        Class::Linear { ns, grows } => (grown(grows), ns * all.bytes),
        Class::Equal => (Size::short(true), 2.0 * first.bytes.min(rest.bytes)),
        Class::Search { ns, grows } => (grown(grows), ns * product),
        Class::Replace { ns } => {
            let (pattern, by) = match arguments {
                [_, pattern, by, ..] => (*pattern, *by),
                _ => (Size::default(), rest),
            };
            let result = Size {
                bytes: first.bytes * (by.bytes / pattern.bytes.max(1.0)).max(1.0),
                stated: first.stated * (by.stated / pattern.stated.max(1.0)).max(1.0),
                number: false,
            };
            (result, ns * product + result.bytes)
        }
        Class::Expand { ns } => {
            let by = arguments.get(1..).unwrap_or_default();
            let by = by.get(1).or(by.first()).copied().unwrap_or_default();
            let result = Size {
                bytes: first.bytes * by.bytes.max(1.0),
                stated: first.stated * by.stated.max(1.0),
                number: false,
            };
            (result, ns * product + result.bytes)
        }
        Class::Joined => {
            let times = arguments.len() as f64;
            let result = Size {
                bytes: rest.bytes + first.bytes * times,
                stated: rest.stated + first.stated * times,
                number: false,
            };
            (result, 4.0 * result.bytes)
        }
        Class::Square { ns } => (grown(1.0), ns * all.bytes * all.bytes),
        Class::Digits { ns } => {
            let digits = |size: Size| size.bytes.clamp(1.0, MAX_DIGITS);
            let result = Size {
                bytes: all.bytes.min(MAX_DIGITS),
                stated: all.stated.min(MAX_DIGITS),
                number: true,
            };
            let other = if arguments.len() > 1 { rest } else { first };
            (result, ns * digits(first) * digits(other))
        }
        Class::Minus if all.number => (grown(1.0), 4.0 * all.bytes),
        Class::Minus => (
            Size {
                number: false,
                ..all
            },
            3.0 * product,
        ),
        Class::Rank => {
            // Each pair of the query's words compares their positions, of which a word has at most 255.
            let words = (rest.bytes / 2.0).max(1.0);
            let pairs = words * words / 2.0 * 255.0 * 255.0;
            let places = first.bytes / 2.0;
            (Size::short(true), 12.0 * pairs.min(places * places))
        }
        Class::Cut => (
            Size {
                number: false,
                ..first
            },
            4.0 * first.bytes,
        ),
        Class::Collect => (
            Size {
                bytes: COLLECTED,
                stated: STATED_COLUMN.max(all.stated),
                number: false,
            },
            4.0 * all.bytes,
        ),
    }
}
