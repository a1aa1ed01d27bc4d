//! Running many inserts of one shape as one statement.
//!
//! Only a plain `INSERT INTO t (a, b) VALUES (…)` of a single row, made of parameters and literals and nothing else,
//! means the same when its rows are put into one statement. The shape is read from the pieces, after the walk has
//! allowed the statement: what is not exactly this shape does not merge.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::lexer::{PieceKind, Pieces};

/// One value of the row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RowPart {
    /// As it stands in the text: a number, a string, NULL, TRUE or FALSE.
    Literal(String),
    /// The parameter `$n`.
    Parameter(u16),
}

/// How to write the statement with any number of rows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Merge {
    /// The text up to the first row, such as `INSERT INTO t (a, b) VALUES `.
    pub prefix: String,
    /// How much of it stands before `VALUES`.
    head: usize,
    /// The values of one row, in order.
    pub row: Vec<RowPart>,
    order: Vec<u16>,
}

impl Merge {
    /// The statement with `rows` rows, parameters numbered from $1: row after row, in the order of
    /// [`Merge::parameter_order`]. The caller keeps `rows × parameter_order().len()` within
    /// [`Dialect::max_parameters`](super::Dialect::max_parameters), and at least one row.
    pub fn render(&self, rows: usize) -> String {
        self.render_with(rows, |text, number| {
            // Writing to a String cannot fail.
            let _ = write!(text, "${number}");
        })
    }

    /// The same with `?` for each parameter.
    pub fn render_positional(&self, rows: usize) -> String {
        self.render_with(rows, |text, _| text.push('?'))
    }

    /// Which of a message's parameters each placeholder of its row takes, in order.
    pub fn parameter_order(&self) -> &[u16] {
        &self.order
    }

    /// The text up to `VALUES`, such as `INSERT INTO t (a, b) `, when every value is a parameter: then the rows
    /// may come from anywhere.
    pub fn head(&self) -> Option<&str> {
        (self.order.len() == self.row.len()).then(|| &self.prefix[..self.head])
    }

    fn render_with(&self, rows: usize, parameter: impl Fn(&mut String, usize)) -> String {
        let mut text = String::with_capacity(self.prefix.len() + rows * self.row.len() * 8);
        text.push_str(&self.prefix);
        let mut number = 0;
        for row in 0..rows {
            text.push_str(if row == 0 { "(" } else { ",(" });
            for (index, part) in self.row.iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                match part {
                    RowPart::Literal(literal) => text.push_str(literal),
                    RowPart::Parameter(_) => {
                        number += 1;
                        parameter(&mut text, number);
                    }
                }
            }
            text.push(')');
        }
        text
    }
}

/// The shape, if it is the one.
pub(super) fn shape(pieces: &Pieces) -> Option<Merge> {
    let mut at = Cursor { pieces, index: 0 };
    at.word("insert")?;
    at.word("into")?;
    at.name()?;
    while at.word(".").is_some() {
        at.name()?;
    }
    at.word("(")?;
    let mut columns = 1;
    at.name()?;
    while at.word(",").is_some() {
        at.name()?;
        columns += 1;
    }
    at.word(")")?;
    let head = pieces.get(at.index)?.start;
    at.word("values")?;
    let row_start = pieces.get(at.index)?.start;
    at.word("(")?;
    let mut row = vec![at.value()?];
    while at.word(",").is_some() {
        row.push(at.value()?);
    }
    at.word(")")?;
    if at.index != pieces.len() || row.len() != columns {
        return None;
    }
    let order: Vec<u16> = row
        .iter()
        .filter_map(|part| match part {
            RowPart::Parameter(number) => Some(*number),
            RowPart::Literal(_) => None,
        })
        .collect();
    // One parameter has one type, which its places may not agree about; as two it would have two.
    if BTreeSet::from_iter(&order).len() < order.len() {
        return None;
    }
    Some(Merge {
        prefix: pieces.text[..row_start].to_owned(),
        head,
        row,
        order,
    })
}

struct Cursor<'a> {
    pieces: &'a Pieces<'a>,
    index: usize,
}

impl Cursor<'_> {
    fn word(&mut self, word: &str) -> Option<()> {
        self.pieces.is(self.index, word).then(|| self.index += 1)
    }

    fn name(&mut self) -> Option<()> {
        let kind = self.pieces.get(self.index)?.kind;
        matches!(kind, PieceKind::Word | PieceKind::Quoted).then(|| self.index += 1)
    }

    fn value(&mut self) -> Option<RowPart> {
        let piece = self.pieces.get(self.index)?;
        let text = self.pieces.text(self.index);
        let constant = |word: &str| text.eq_ignore_ascii_case(word);
        let part = match piece.kind {
            PieceKind::Parameter(number) => RowPart::Parameter(number),
            PieceKind::Number | PieceKind::Text => RowPart::Literal(text.to_owned()),
            PieceKind::Word if constant("null") || constant("true") || constant("false") => {
                RowPart::Literal(text.to_owned())
            }
            PieceKind::Symbol if text == "-" => {
                self.index += 1;
                let number = self.pieces.get(self.index)?;
                if number.kind != PieceKind::Number {
                    return None;
                }
                RowPart::Literal(format!("-{}", self.pieces.text(self.index)))
            }
            _ => return None,
        };
        self.index += 1;
        Some(part)
    }
}
