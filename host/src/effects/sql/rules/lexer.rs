//! Cuts a statement into pieces that every database cuts in the same places.
//!
//! Owns the only tokenizer that counts: `sqlparser` is given these pieces and never sees the text. The lexer knows
//! far fewer shapes than any database does, and refuses whatever one of them could read in another way: comments,
//! hints, escapes, prefixed and dollar-quoted strings, adjacent literals, characters outside ASCII, junk after
//! numbers. Operators follow PostgreSQL's rule of the longest run, which cuts at least as coarsely as the others.

mod bounds;
mod pieces;

use sqlparser::tokenizer::{Location, Span, Token, TokenWithSpan};

use super::Dialect;
use super::grants::{is_host_name, starts_with};
use super::refusal::{Checked, Refusal, code};
use super::words;

use bounds::Bounds;
use pieces::Piece;

pub(super) use pieces::{PieceKind, Pieces};

/// PostgreSQL cuts identifiers off at 63 bytes without a word, so that a longer name is another name.
const MAX_IDENTIFIER_BYTES: usize = 63;

pub(super) fn cut(dialect: Dialect, text: &str) -> Checked<Pieces<'_>> {
    let mut lexer = Lexer {
        dialect,
        text,
        at: 0,
        pieces: Vec::new(),
        tokens: Vec::new(),
        bounds: Bounds::new(),
    };
    let end = lexer.run()?;
    if lexer.bounds.depth() > 0 {
        return Err(lexer.unbalanced());
    }
    if lexer.pieces.is_empty() {
        return Err(Refusal::whole(
            code::MANY_STATEMENTS,
            "the statement is empty",
            "send one SELECT, INSERT, UPDATE or DELETE",
        ));
    }
    Ok(Pieces {
        text: &text[..end],
        tokens: lexer.tokens,
        pieces: lexer.pieces,
    })
}

struct Lexer<'a> {
    dialect: Dialect,
    text: &'a str,
    at: usize,
    pieces: Vec<Piece>,
    tokens: Vec<TokenWithSpan>,
    bounds: Bounds,
}

impl Lexer<'_> {
    /// Reads everything; the end of the statement is the end of its last piece.
    fn run(&mut self) -> Checked<usize> {
        while let Some(byte) = self.peek(0) {
            match byte {
                b' ' | b'\t' | b'\n' | b'\r' => self.at += 1,
                b';' => {
                    self.semicolon()?;
                    break;
                }
                _ => self.piece(byte)?,
            }
        }
        Ok(self.pieces.last().map_or(0, |piece| piece.end))
    }

    fn peek(&self, ahead: usize) -> Option<u8> {
        self.text.as_bytes().get(self.at + ahead).copied()
    }

    fn piece(&mut self, byte: u8) -> Checked {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'_' => self.word(),
            b'0'..=b'9' => self.number(),
            b'\'' => self.string(),
            b'"' if self.dialect != Dialect::Mysql => self.quoted(b'"'),
            b'`' if self.dialect == Dialect::Mysql => self.quoted(b'`'),
            b'$' => self.parameter(),
            b'(' | b')' | b',' | b'.' | b'[' | b']' | b':' => self.punctuation(byte),
            b'#' if self.dialect == Dialect::Mysql => Err(self.comment()),
            b'@' => Err(self.refuse(
                1,
                code::TOKEN,
                "`@` is not allowed: variables outlive the transaction, and operators with it read differently",
                "pass values as parameters; for PostgreSQL's `@>` use jsonb_contains or arraycontains",
            )),
            b'?' => Err(self.refuse(
                1,
                code::TOKEN,
                "`?` is not a parameter here",
                "write parameters as $1, $2, … on every store; for PostgreSQL's JSON `?` use jsonb_exists",
            )),
            b'+' | b'-' | b'*' | b'/' | b'<' | b'>' | b'=' | b'~' | b'!' | b'#' | b'%' | b'^'
            | b'&' | b'|' => self.operator(),
            b'"' | b'`' => Err(self.refuse(
                1,
                code::TOKEN,
                format!("this quote does not quote names in {}", self.dialect.name()),
                if self.dialect == Dialect::Mysql {
                    "quote names with `backticks`, and pass strings as parameters"
                } else {
                    "quote names with \"double quotes\""
                },
            )),
            _ => Err(self.odd_character()),
        }
    }

    fn odd_character(&self) -> Refusal {
        let character = self.text[self.at..].chars().next().unwrap_or('\0');
        self.refuse(
            character.len_utf8(),
            code::TOKEN,
            format!("the character {character:?} is not allowed outside of a string literal"),
            "use plain ASCII for keywords and names, and pass text as parameters",
        )
    }

    fn comment(&self) -> Refusal {
        self.refuse(
            1,
            code::COMMENT,
            "comments and hints are not allowed: databases do not agree on what is a comment",
            "remove it; for two minus signs in a row, put a space or a parenthesis between them",
        )
    }

    /// One semicolon may end the statement; it is not sent.
    fn semicolon(&mut self) -> Checked {
        let rest = &self.text[self.at + 1..];
        if let Some(more) = rest.find(|c: char| !matches!(c, ' ' | '\t' | '\n' | '\r')) {
            self.at += 1 + more;
            let length = self.text[self.at..]
                .chars()
                .next()
                .map_or(0, char::len_utf8);
            return Err(self.refuse(
                length,
                code::MANY_STATEMENTS,
                "there is more text after the semicolon",
                "send one statement per call",
            ));
        }
        Ok(())
    }

    fn word(&mut self) -> Checked {
        let length = self.run_of(|b| b.is_ascii_alphanumeric() || b == b'_');
        let word = &self.text[self.at..self.at + length];
        self.check_name(word, length)?;
        self.bounds.word(word);
        let token = Token::make_word(word, None);
        self.push(PieceKind::Word, length, token)
    }

    fn quoted(&mut self, quote: u8) -> Checked {
        let rest = &self.text[self.at + 1..];
        let Some(length) = rest.bytes().position(|b| b == quote) else {
            return Err(self.refuse(
                1,
                code::TOKEN,
                "this quoted name does not end",
                "close the quote",
            ));
        };
        let name = &rest[..length];
        let plain = |c: char| {
            let letter = if self.dialect == Dialect::Mysql {
                // MySQL compares names by a collation, and collations fold letters in ways of their own.
                c.is_ascii_alphanumeric()
            } else {
                c.is_alphanumeric()
            };
            letter || matches!(c, '_' | '-' | ' ')
        };
        if name.is_empty()
            || !name.chars().all(plain)
            || name.starts_with(' ')
            || name.ends_with(' ')
            || rest.as_bytes().get(length + 1) == Some(&quote)
        {
            return Err(self.refuse(
                length + 2,
                code::TOKEN,
                "this quoted name has characters that are not allowed",
                "use letters, digits, `_`, `-` and single words in names",
            ));
        }
        self.check_name(name, length + 2)?;
        let token = Token::make_word(name, Some(char::from(quote)));
        self.push(PieceKind::Quoted, length + 2, token)
    }

    /// What no word may be, wherever it stands.
    fn check_name(&self, name: &str, length: usize) -> Checked {
        if name.len() > MAX_IDENTIFIER_BYTES {
            return Err(self.refuse(
                length,
                code::NAME,
                format!("names are at most {MAX_IDENTIFIER_BYTES} bytes long"),
                "databases cut longer names off; use the short one",
            ));
        }
        let system = match self.dialect {
            Dialect::Postgres => {
                name.eq_ignore_ascii_case("information_schema")
                    || ["pg_catalog", "pg_toast", "pg_temp"]
                        .iter()
                        .any(|prefix| starts_with(name, prefix))
            }
            Dialect::Sqlite => starts_with(name, "sqlite_"),
            Dialect::Mysql => {
                name.eq_ignore_ascii_case("information_schema")
                    || name.eq_ignore_ascii_case("performance_schema")
            }
        };
        if is_host_name(name) || system {
            return Err(self.refuse(
                length,
                code::NAME,
                format!("`{name}` belongs to the host or to the database system"),
                "these names can never be granted; use another name for your own tables and columns",
            ));
        }
        Ok(())
    }

    fn number(&mut self) -> Checked {
        let digits = |from: usize| {
            self.text.as_bytes()[from..]
                .iter()
                .take_while(|b| b.is_ascii_digit())
                .count()
        };
        let mut length = digits(self.at);
        if self.peek(length) == Some(b'.') {
            let fraction = digits(self.at + length + 1);
            if fraction == 0 {
                return Err(self.refuse(
                    length + 1,
                    code::TOKEN,
                    "a number may not end with a point",
                    "write 1.0",
                ));
            }
            length += 1 + fraction;
        }
        if matches!(self.peek(length), Some(b'e' | b'E')) {
            let sign = usize::from(matches!(self.peek(length + 1), Some(b'+' | b'-')));
            let exponent = digits(self.at + length + 1 + sign);
            // Without digits the `e` is left over, and found to touch the number.
            if exponent > 0 {
                length += 1 + sign + exponent;
            }
        }
        let token = Token::Number(self.text[self.at..self.at + length].to_owned(), false);
        self.push(PieceKind::Number, length, token)
    }

    fn string(&mut self) -> Checked {
        let bytes = self.text.as_bytes();
        let mut end = self.at + 1;
        loop {
            match bytes.get(end) {
                Some(b'\'') if bytes.get(end + 1) == Some(&b'\'') => end += 2,
                Some(b'\'') => break,
                Some(b'\\') if self.dialect != Dialect::Sqlite => {
                    return Err(self.refuse(
                        end - self.at,
                        code::TOKEN,
                        "backslashes in string literals are not allowed: settings of the server decide what they mean",
                        "pass the string as a parameter",
                    ));
                }
                Some(0) => {
                    return Err(self.refuse(
                        end - self.at,
                        code::TOKEN,
                        "a string literal may not contain NUL",
                        "pass the value as bytes, as a parameter",
                    ));
                }
                Some(_) => end += 1,
                None => {
                    return Err(self.refuse(
                        1,
                        code::TOKEN,
                        "this string literal does not end",
                        "close the quote",
                    ));
                }
            }
        }
        self.check_before_string()?;
        let value = self.text[self.at + 1..end].replace("''", "'");
        let length = end + 1 - self.at;
        self.push(PieceKind::Text, length, Token::SingleQuotedString(value))
    }

    /// A word before a literal may be a prefix that changes what it means (`E`, `U&`, `N`, `X`, `_utf8`), or a type
    /// that casts it, so only words that cannot be either may stand there.
    fn check_before_string(&self) -> Checked {
        let Some(before) = self.pieces.last() else {
            return Ok(());
        };
        let word = &self.text[before.start..before.end];
        let harmless = match before.kind {
            PieceKind::Word => words::before_string(word),
            PieceKind::Symbol => !matches!(word, ")" | "]" | "."),
            _ => false,
        };
        if harmless {
            return Ok(());
        }
        let before = match before.kind {
            PieceKind::Text => "another one".to_owned(),
            _ => format!("`{word}`"),
        };
        Err(self.refuse(
            1,
            code::TOKEN,
            format!(
                "a string literal may not follow {before}: databases disagree about what that means"
            ),
            "use a parameter or cast(… as …); write AS before an alias, and join strings with ||",
        ))
    }

    fn parameter(&mut self) -> Checked {
        let digits = self.text.as_bytes()[self.at + 1..]
            .iter()
            .take_while(|b| b.is_ascii_digit())
            .count();
        let length = 1 + digits;
        let name = &self.text[self.at..self.at + length];
        let number = name[1..].parse::<u16>().ok().filter(|n| *n > 0);
        let (Some(number), false) = (number, name.starts_with("$0")) else {
            return Err(self.refuse(
                length,
                code::PARAMETER,
                "parameters are written $1, $2, … up to $65535",
                "dollar-quoted strings are not allowed; pass text as a parameter",
            ));
        };
        // SQLite reads `$1(…)` and `$1::…` as one variable.
        let next = self.peek(length);
        if next == Some(b'(') || (next == Some(b':') && self.dialect == Dialect::Sqlite) {
            return Err(self.refuse(
                length + 1,
                code::PARAMETER,
                "a parameter may not be followed by this",
                "put a space after it",
            ));
        }
        let token = Token::Placeholder(name.to_owned());
        self.push(PieceKind::Parameter(number), length, token)
    }

    fn punctuation(&mut self, byte: u8) -> Checked {
        let postgres = self.dialect == Dialect::Postgres;
        let (length, token) = match byte {
            b'(' => (1, Token::LParen),
            b')' => (1, Token::RParen),
            b',' => (1, Token::Comma),
            b'.' => {
                self.check_dot()?;
                (1, Token::Period)
            }
            b'[' if postgres => (1, Token::LBracket),
            b']' if postgres => (1, Token::RBracket),
            b':' if postgres && self.peek(1) == Some(b':') => (2, Token::DoubleColon),
            _ => {
                return Err(self.refuse(
                    1,
                    code::TOKEN,
                    format!("`{}` is not allowed here", char::from(byte)),
                    "write parameters as $1, and quote names with the standard quotes",
                ));
            }
        };
        match byte {
            b'(' | b'[' if !self.bounds.open() => return Err(self.too_deep()),
            b')' | b']' if !self.bounds.close() => return Err(self.unbalanced()),
            b',' => self.bounds.comma(),
            b':' => self.bounds.link(),
            _ => {}
        }
        self.push(PieceKind::Symbol, length, token)
    }

    /// A point joins two names and touches both; `.5`, `1.`, `(row).field` and `a . b` are all read in several ways.
    fn check_dot(&self) -> Checked {
        let before = self.pieces.last().is_some_and(|piece| {
            matches!(piece.kind, PieceKind::Word | PieceKind::Quoted) && piece.end == self.at
        });
        let after = match self.peek(1) {
            Some(b'a'..=b'z' | b'A'..=b'Z' | b'_' | b'*') => true,
            Some(b'"') => self.dialect != Dialect::Mysql,
            Some(b'`') => self.dialect == Dialect::Mysql,
            _ => false,
        };
        if before && after {
            return Ok(());
        }
        Err(self.refuse(
            1,
            code::TOKEN,
            "a point may only stand between two names, without spaces",
            "write schema.table, table.column or 0.5",
        ))
    }

    fn operator(&mut self) -> Checked {
        let length = self.run_of(|b| b"+-*/<>=~!@#%^&|?".contains(&b));
        let run = &self.text[self.at..self.at + length];
        if run.contains("--")
            || run.contains("/*")
            || run.contains("*/")
            || (self.dialect == Dialect::Mysql && run.contains('#'))
        {
            return Err(self.comment());
        }
        // PostgreSQL: an operator of several characters ends with + or - only if it also has one of these.
        let mut operator = run;
        while operator.len() > 1
            && operator.ends_with(['+', '-'])
            && !operator.contains(['~', '!', '@', '#', '%', '^', '&', '|', '`', '?'])
        {
            operator = &operator[..operator.len() - 1];
        }
        let Some(token) = operator_token(self.dialect, operator) else {
            return Err(self.refuse(
                length,
                code::OPERATOR,
                format!("the operator `{operator}` is not known to be pure on {}", self.dialect.name()),
                "put spaces between operators, or use a function instead (MySQL: concat() for `||`, AND for `&&`)",
            ));
        };
        self.bounds.link();
        let length = operator.len();
        self.push(PieceKind::Symbol, length, token)
    }

    fn run_of(&self, member: impl Fn(u8) -> bool) -> usize {
        self.text.as_bytes()[self.at..]
            .iter()
            .take_while(|b| member(**b))
            .count()
    }

    fn push(&mut self, kind: PieceKind, length: usize, token: Token) -> Checked {
        if kind != PieceKind::Symbol
            && self
                .pieces
                .last()
                .is_some_and(|before| before.end == self.at && before.kind != PieceKind::Symbol)
        {
            return Err(self.refuse(
                length,
                code::TOKEN,
                "this touches what stands before it, and databases disagree about where one ends",
                "put a space between them",
            ));
        }
        // `U&"…"` and its like: a quote right after an ampersand.
        if matches!(kind, PieceKind::Quoted | PieceKind::Text)
            && self.text[..self.at].ends_with('&')
        {
            return Err(self.refuse(
                length,
                code::TOKEN,
                "a quote right after `&` may start an escaped string or name",
                "put a space between them",
            ));
        }
        if let Some(too_deep) = self.bounds.exceeded().then(|| self.too_deep()) {
            return Err(too_deep);
        }
        let column = self.tokens.len() as u64 + 1;
        let span = Span::new(Location::new(1, column), Location::new(1, column + 1));
        self.tokens.push(TokenWithSpan::new(token, span));
        self.pieces.push(Piece {
            kind,
            start: self.at,
            end: self.at + length,
        });
        self.at += length;
        Ok(())
    }

    /// The parser would notice, unless it forgets a token.
    fn unbalanced(&self) -> Refusal {
        self.refuse(
            1,
            code::SYNTAX,
            "the parentheses do not match",
            "close each one that is opened",
        )
    }

    fn too_deep(&self) -> Refusal {
        self.refuse(
            1,
            code::TOO_DEEP,
            "the statement is nested too deeply, or chains too many operators",
            "use IN lists and parameters instead of long chains, or split the statement",
        )
    }

    fn refuse(
        &self,
        length: usize,
        code: &'static str,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Refusal {
        let end = (self.at + length).min(self.text.len());
        Refusal::at(self.text, self.at, end, code, message, help)
    }
}

/// The operators that are pure on every type that comes with the database.
fn operator_token(dialect: Dialect, operator: &str) -> Option<Token> {
    let postgres = dialect == Dialect::Postgres;
    let sqlite = dialect == Dialect::Sqlite;
    let mysql = dialect == Dialect::Mysql;
    Some(match operator {
        "+" => Token::Plus,
        "-" => Token::Minus,
        "*" => Token::Mul,
        "/" => Token::Div,
        "%" => Token::Mod,
        "=" => Token::Eq,
        "<" => Token::Lt,
        ">" => Token::Gt,
        "<=" => Token::LtEq,
        ">=" => Token::GtEq,
        "<>" | "!=" => Token::Neq,
        "&" => Token::Ampersand,
        "|" => Token::Pipe,
        "~" => Token::Tilde,
        "<<" => Token::ShiftLeft,
        ">>" => Token::ShiftRight,
        "^" if postgres || mysql => Token::Caret,
        "||" if postgres || sqlite => Token::StringConcat,
        "->" if postgres || sqlite => Token::Arrow,
        "->>" if postgres || sqlite => Token::LongArrow,
        "==" if sqlite => Token::DoubleEq,
        "<=>" if mysql => Token::Spaceship,
        "#" if postgres => Token::Sharp,
        "#>" if postgres => Token::HashArrow,
        "#>>" if postgres => Token::HashLongArrow,
        "&&" if postgres => Token::Overlap,
        "=>" if postgres => Token::RArrow,
        "~*" if postgres => Token::TildeAsterisk,
        "!~" if postgres => Token::ExclamationMarkTilde,
        "!~*" if postgres => Token::ExclamationMarkTildeAsterisk,
        "~~" if postgres => Token::DoubleTilde,
        "~~*" if postgres => Token::DoubleTildeAsterisk,
        "!~~" if postgres => Token::ExclamationMarkDoubleTilde,
        "!~~*" if postgres => Token::ExclamationMarkDoubleTildeAsterisk,
        _ => return None,
    })
}

/// Every operator that passes, sorted.
#[cfg(test)]
pub fn all_operators(dialect: Dialect) -> Vec<&'static str> {
    const SIGNS: &str = "+-*/<>=~!@#%^&|?";
    let mut longest = vec![String::new()];
    let mut all = Vec::new();
    for _ in 0..4 {
        longest = longest
            .iter()
            .flat_map(|run| SIGNS.chars().map(move |sign| format!("{run}{sign}")))
            .collect();
        let passes = longest
            .iter()
            .filter(|run| operator_token(dialect, run).is_some());
        all.extend(passes.cloned().map(|run| &*run.leak()));
    }
    all.sort_unstable();
    all
}
