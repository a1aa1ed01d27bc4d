//! A guest's statement whose values are measured in the server, before they are sent.
//!
//! The driver reads a row whole, and one value may have a gigabyte: a short text makes it by joining, replacing or
//! collecting. So a statement that returns values of any length is put into one that fails at a row over a limit. What
//! the guest wrote stays as it is, and is evaluated once: `OFFSET 0` keeps the planner from putting an expression in
//! two places. The columns keep their names and types, so that a table that changes under a prepared statement is
//! noticed as ever.
//!
//! Does not bound the text of an error, in which a server may quote a value.

use sqlx::postgres::{PgStatement, PgTypeInfo};
use sqlx::{Column as _, Statement as _};

use super::encode::{base, oid};

/// The server quotes this in the error that stands for a row over the limit: there is no other way to raise one in
/// plain SQL that says what it means.
pub(super) const TOO_LONG: &str = "hapax_row_bytes_";

/// The text that runs in place of `statement`, or nothing if all of its values are short by their types. It takes one
/// more parameter: the limit of a row, in bytes.
pub(super) fn bounded(
    statement: &str,
    prepared: &PgStatement,
    parameters: usize,
) -> Option<String> {
    let (measured, sizes) = measured(statement, prepared, "hapax_rows.*")?;
    let limit = parameters + 1;
    Some(format!(
        "{measured} WHERE CASE WHEN {sizes} <= ${limit}::bigint THEN true \
         ELSE ('{TOO_LONG}' || ({sizes}))::integer IS NULL END"
    ))
}

/// The same where nobody wants the rows: it evaluates them and tells how many there are.
pub(super) fn counted(statement: &str, prepared: &PgStatement) -> Option<String> {
    let (measured, sizes) = measured(statement, prepared, "")?;
    Some(format!("{measured} WHERE {sizes} >= 0"))
}

/// A SELECT of `outputs` from the rows of a statement, and what they have in bytes.
fn measured(statement: &str, prepared: &PgStatement, outputs: &str) -> Option<(String, String)> {
    let columns = prepared.columns().iter().enumerate();
    let sizes: Vec<String> = columns
        .filter_map(|(index, column)| measure(column.type_info(), &format!("hapax_{index}")))
        .map(|size| format!("coalesce({size}, 0)::bigint"))
        .collect();
    if sizes.is_empty() {
        return None;
    }
    let names: Vec<String> = (0..prepared.columns().len())
        .map(|index| format!("hapax_{index}"))
        .collect();
    let (before, rows) = rows_of(statement);
    let text = format!(
        "{before}SELECT {outputs} FROM {rows}, LATERAL (SELECT hapax_rows.*) AS hapax_sizes ({})",
        names.join(", ")
    );
    Some((text, sizes.join(" + ")))
}

/// What to write before a SELECT, and in its FROM, to get the rows of a statement as `hapax_rows`.
fn rows_of(statement: &str) -> (String, String) {
    match Form::of(statement) {
        Form::Rows => (
            String::new(),
            format!(
                "(SELECT hapax_rows.* FROM ({statement}) AS hapax_rows OFFSET 0) AS hapax_rows"
            ),
        ),
        Form::Write => (
            format!("WITH hapax_rows AS ({statement}) "),
            "hapax_rows".to_owned(),
        ),
        // What writes in WITH has to stay in the outermost one.
        Form::With { last } => {
            let (with, last) = statement.split_at(last);
            (
                format!("{with}, hapax_rows AS MATERIALIZED ({last}) "),
                "hapax_rows".to_owned(),
            )
        }
    }
}

/// How long a value is, where its type does not say. The length of text and bytes is known without reading them.
fn measure(kind: &PgTypeInfo, column: &str) -> Option<String> {
    match base(kind).1 {
        oid::BYTEA => Some(format!("octet_length({column})")),
        oid::NUMERIC => Some(format!("pg_column_size({column})")),
        oid::BOOL
        | oid::INT2
        | oid::INT4
        | oid::INT8
        | oid::OID
        | oid::FLOAT4
        | oid::FLOAT8
        | oid::UUID
        | oid::TIMESTAMPTZ
        | oid::TIMESTAMP
        | oid::DATE
        | oid::TIME
        | oid::TIMETZ
        | oid::INTERVAL
        | oid::VOID => None,
        _ => Some(format!("octet_length({column}::text)")),
    }
}

/// Where a statement can stand inside of another one.
enum Form {
    /// Wherever rows are expected.
    Rows,
    /// In a WITH.
    Write,
    /// It has a WITH of its own; what follows begins at `last`.
    With { last: usize },
}

impl Form {
    fn of(statement: &str) -> Self {
        let mut words = Words {
            text: statement,
            at: 0,
            depth: 0,
        };
        match words.next() {
            Some((_, word)) if is_any(word, &["insert", "update", "delete"]) => Form::Write,
            Some((_, word)) if is_any(word, &["with"]) => {
                let last = words.find(|(_, word)| {
                    is_any(word, &["select", "values", "insert", "update", "delete"])
                });
                last.map_or(Form::Rows, |(last, _)| Form::With { last })
            }
            _ => Form::Rows,
        }
    }
}

fn is_any(word: &str, words: &[&str]) -> bool {
    words.iter().any(|other| word.eq_ignore_ascii_case(other))
}

/// The unquoted words of a statement that stand in no parenthesis, with their places. The rules have seen to it that
/// there are no comments and no other quotes.
struct Words<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl<'a> Iterator for Words<'a> {
    type Item = (usize, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = self.text.as_bytes();
        let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
        while let Some(byte) = bytes.get(self.at) {
            let rest = &bytes[self.at..];
            match byte {
                b'(' => self.depth += 1,
                b')' => self.depth = self.depth.saturating_sub(1),
                b'\'' | b'"' => {
                    let end = rest[1..].iter().position(|other| other == byte);
                    self.at += end.map_or(rest.len(), |end| end + 1);
                }
                byte if is_word(byte) => {
                    let length = rest.iter().take_while(|byte| is_word(byte)).count();
                    let start = self.at;
                    self.at += length;
                    if self.depth == 0 {
                        return Some((start, &self.text[start..start + length]));
                    }
                    continue;
                }
                _ => {}
            }
            self.at += 1;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_part_of_a_with_is_found_behind_quotes_and_parentheses() {
        let last = |statement: &str| match Form::of(statement) {
            Form::With { last } => statement[last..].to_owned(),
            Form::Write => "write".to_owned(),
            Form::Rows => "rows".to_owned(),
        };
        for (statement, expected) in [
            ("SELECT 1", "rows"),
            ("(SELECT 1) UNION SELECT 2", "rows"),
            ("VALUES (1)", "rows"),
            ("delete from t returning n", "write"),
            ("WITH a AS (SELECT ')' AS x) SELECT 2", "SELECT 2"),
            (
                "WITH RECURSIVE \"select (\" (n) AS NOT MATERIALIZED (SELECT 'it''s ('), b AS (DELETE FROM t) update t SET n = 1",
                "update t SET n = 1",
            ),
        ] {
            assert_eq!(last(statement), expected, "{statement}");
        }
    }
}
