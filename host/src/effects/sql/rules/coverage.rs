//! The second wall: every word of the text must have been understood.
//!
//! The walk judges the parser's tree. Whatever a parser reads and leaves out of its tree, or a database reads as
//! grammar where the parser saw nothing, would pass unseen; so afterwards each word must either be a name that the
//! walk has judged or plain grammar, and each call must be one that the walk has approved.

use super::Dialect;
use super::lexer::{PieceKind, Pieces};
use super::refusal::{Checked, code};
use super::words;

/// What the walk made of a piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Understood {
    #[default]
    No,
    /// A name.
    Name,
    /// A name that may be followed by a parenthesis: a function, or a table with a list of columns.
    Head,
}

pub(super) fn check(dialect: Dialect, pieces: &Pieces, understood: &[Understood]) -> Checked {
    for (index, piece) in pieces.iter().enumerate() {
        let seen = understood.get(index).copied().unwrap_or_default();
        let word = pieces.text(index);
        let name = match piece.kind {
            PieceKind::Quoted => true,
            PieceKind::Word => false,
            _ => continue,
        };
        if seen == Understood::No && (name || !words::is_grammar(word)) {
            return Err(pieces.refuse(
                index,
                code::SYNTAX,
                format!("`{word}` is not understood here"),
                "leave it out; if it is a name, quote it or write AS before it",
            ));
        }
        // `sqlparser` forgets FILTER, and the parenthesis after it, when no WHERE follows.
        let filter = seen == Understood::No && pieces.is(index, "filter");
        if filter && !(pieces.is(index + 1, "(") && pieces.is(index + 2, "where")) {
            return Err(pieces.refuse(
                index,
                code::SYNTAX,
                "FILTER is not followed by (WHERE …)",
                "write FILTER (WHERE condition)",
            ));
        }
        if !pieces.is(index + 1, "(") {
            continue;
        }
        let grammar = !name && words::before_parenthesis(word);
        if seen != Understood::Head && !(seen == Understood::No && grammar) {
            return Err(pieces.refuse(
                index,
                code::SYNTAX,
                format!("`{word}` may not be followed by a parenthesis here"),
                "if it is a name, quote it or write AS before it",
            ));
        }
        if dialect == Dialect::Mysql && words::must_touch(word) && !pieces.touch(index) {
            return Err(pieces.refuse(
                index,
                code::FUNCTION,
                format!(
                    "with a space before the parenthesis `{word}` is not the built-in function"
                ),
                "remove the space",
            ));
        }
    }
    check_into(pieces)
}

/// INTO belongs to INSERT; anywhere else it writes a table, a file or a variable.
fn check_into(pieces: &Pieces) -> Checked {
    for index in 0..pieces.len() {
        if pieces.is(index, "into") {
            let before = index.checked_sub(1);
            let insert = before
                .is_some_and(|before| pieces.is(before, "insert") || pieces.is(before, "ignore"));
            if !insert {
                return Err(pieces.refuse(
                    index,
                    code::CLAUSE,
                    "INTO is only allowed as INSERT INTO",
                    "return the rows, or use INSERT INTO … SELECT",
                ));
            }
        }
    }
    Ok(())
}
