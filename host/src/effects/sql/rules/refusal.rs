//! Why a statement may not run, told to the author of the plugin.
//!
//! Owns the codes that start with `sql-refused-`, one per kind of reason. A refusal quotes at most one token of the
//! statement and never a string literal, so that it can be logged.

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        $($(#[$doc])* pub const $name: &str = $text;)*
        /// Every code, for the documents.
        pub const ALL: &[&str] = &[$($name),*];
    };
}

/// The stable codes of refusals: each is explained in ERRORS.md, and the failure's text begins with it.
pub mod code {
    codes! {
        /// The text is longer than the limit.
        TOO_LARGE = "sql-refused-too-large";
        /// Nested more deeply, or chained longer, than the host is willing to follow.
        TOO_DEEP = "sql-refused-too-deep";
        /// A character or token that the database might read differently.
        TOKEN = "sql-refused-token";
        /// A comment or an optimizer hint.
        COMMENT = "sql-refused-comment";
        /// None, or more than one.
        MANY_STATEMENTS = "sql-refused-many-statements";
        /// Not understood.
        SYNTAX = "sql-refused-syntax";
        /// Not a SELECT, INSERT, UPDATE or DELETE.
        KIND = "sql-refused-kind";
        /// A clause that could reach outside the transaction, or that is not known.
        CLAUSE = "sql-refused-clause";
        /// A table without a grant.
        TABLE = "sql-refused-table";
        /// A name that no grant can give: the host's own tables, system catalogs, reserved words.
        NAME = "sql-refused-name";
        /// A function that is neither a pure built-in nor granted.
        FUNCTION = "sql-refused-function";
        /// A type that is not a plain data type.
        TYPE = "sql-refused-type";
        /// An operator that is not known to be pure.
        OPERATOR = "sql-refused-operator";
        /// One row could take longer, or more memory, than the database can be stopped at.
        TOO_COSTLY = "sql-refused-too-costly";
        /// A parameter that is not `$1`, `$2`, … without gaps.
        PARAMETER = "sql-refused-parameter";
        /// The host could not come to a verdict; the statement itself may be fine.
        UNDECIDED = "sql-refused-undecided";
    }
}

/// A statement was refused before it reached the database; the transaction is untouched.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}{}", self.place())]
pub struct Refusal {
    /// One of [`code`].
    pub code: &'static str,
    /// What is wrong, in lower case and without a period.
    pub message: String,
    /// Line and column of the offending token, from 1, in characters; 0 when it is the statement as a whole.
    pub line: u32,
    pub column: u32,
    /// The offending token, shortened.
    pub near: String,
    /// What to do about it.
    pub help: String,
}

pub(super) type Checked<T = ()> = Result<T, Refusal>;

/// Longest token that is quoted, in characters.
const MAX_NEAR: usize = 40;

impl Refusal {
    pub(super) fn whole(
        code: &'static str,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        Self {
            code,
            message: message.into(),
            line: 0,
            column: 0,
            near: String::new(),
            help: help.into(),
        }
    }

    /// Points at `start..end` of the text.
    pub(super) fn at(
        text: &str,
        start: usize,
        end: usize,
        code: &'static str,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        let before = &text[..start];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let token = &text[start..end];
        let near = if token.starts_with('\'') {
            "'…'".to_owned()
        } else if token.chars().count() > MAX_NEAR {
            token.chars().take(MAX_NEAR).chain(['…']).collect()
        } else {
            token.to_owned()
        };
        Self {
            line: count(before.matches('\n').count() + 1),
            column: count(before[line_start..].chars().count() + 1),
            near,
            ..Self::whole(code, message, help)
        }
    }

    fn place(&self) -> String {
        match (self.line, self.near.as_str()) {
            (0, _) => String::new(),
            (line, "") => format!(" (line {line}, column {})", self.column),
            (line, near) => format!(" (line {line}, column {}, at `{near}`)", self.column),
        }
    }
}

fn count(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::code;

    #[test]
    fn every_reason_is_explained_to_the_operator_and_no_other_is() {
        let text = include_str!("../../../../ERRORS.md");
        let mut explained = text
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split_once("` |"))
            .map(|(name, _)| name)
            .collect::<Vec<_>>();
        let mut codes = code::ALL.to_vec();
        explained.sort_unstable();
        codes.sort_unstable();
        assert_eq!(explained, codes);
    }
}
