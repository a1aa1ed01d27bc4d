//! A statement that has been cut: its pieces, their text, and what the tree of `sqlparser` says about them.

use sqlparser::tokenizer::{Span, TokenWithSpan};

use super::super::refusal::Refusal;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in super::super) enum PieceKind {
    /// A keyword or an unquoted name.
    Word,
    /// A quoted name.
    Quoted,
    /// A string literal.
    Text,
    Number,
    /// `$n`
    Parameter(u16),
    /// An operator or punctuation.
    Symbol,
}

#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Piece {
    pub kind: PieceKind,
    pub start: usize,
    pub end: usize,
}

/// A statement cut into pieces. `tokens` are the same pieces for `sqlparser`, the index of a piece hidden in the
/// column of its span, so that a node of the tree leads back to its piece.
#[derive(Debug)]
pub(in super::super) struct Pieces<'a> {
    /// The statement without white space and a semicolon at its end.
    pub text: &'a str,
    pub tokens: Vec<TokenWithSpan>,
    pub(super) pieces: Vec<Piece>,
}

impl<'a> Pieces<'a> {
    pub fn iter(&self) -> impl Iterator<Item = &Piece> {
        self.pieces.iter()
    }

    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    pub fn get(&self, index: usize) -> Option<&Piece> {
        self.pieces.get(index)
    }

    /// The text of a piece; empty beyond the end.
    pub fn text(&self, index: usize) -> &'a str {
        self.get(index)
            .map_or("", |piece| &self.text[piece.start..piece.end])
    }

    /// Whether the piece is this keyword or symbol.
    pub fn is(&self, index: usize, word: &str) -> bool {
        self.get(index).is_some_and(|piece| {
            matches!(piece.kind, PieceKind::Word | PieceKind::Symbol)
                && self.text(index).eq_ignore_ascii_case(word)
        })
    }

    /// Whether two neighbours touch.
    pub fn touch(&self, left: usize) -> bool {
        match (self.get(left), self.get(left + 1)) {
            (Some(left), Some(right)) => left.end == right.start,
            _ => false,
        }
    }

    /// The index hidden in a span, if the span is one of ours.
    pub fn index(&self, span: Span) -> Option<usize> {
        let index = usize::try_from(span.start.column).ok()?.checked_sub(1)?;
        (span.start.line == 1 && index < self.pieces.len()).then_some(index)
    }

    pub fn refuse(
        &self,
        index: usize,
        code: &'static str,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Refusal {
        match self.get(index) {
            Some(piece) => Refusal::at(self.text, piece.start, piece.end, code, message, help),
            None => Refusal::whole(code, message, help),
        }
    }
}
