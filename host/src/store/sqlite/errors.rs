//! Reads SQLite's extended result codes: what a refusal means for the caller.
//!
//! Source: <https://www.sqlite.org/rescode.html>. Whether the transaction survived is not told by a code;
//! the connection's rollback hook tells.

use sqlx::sqlite::SqliteError;

use crate::store::{Constraint, ConstraintKind, StoreError};

/// An error of the driver, read.
pub(super) struct Refusal {
    pub error: StoreError,
    /// The connection must be opened again.
    pub lost: bool,
}

mod code {
    pub const ABORT: i32 = 4;
    pub const BUSY: i32 = 5;
    pub const LOCKED: i32 = 6;
    pub const NO_MEMORY: i32 = 7;
    pub const READ_ONLY: i32 = 8;
    pub const INTERRUPT: i32 = 9;
    pub const IO: i32 = 10;
    pub const CORRUPT: i32 = 11;
    pub const FULL: i32 = 13;
    pub const CANNOT_OPEN: i32 = 14;
    pub const PROTOCOL: i32 = 15;
    pub const SCHEMA: i32 = 17;
    pub const TOO_BIG: i32 = 18;
    pub const CONSTRAINT: i32 = 19;
    pub const NOT_A_DATABASE: i32 = 26;
}

impl Refusal {
    pub fn of(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(answer) => match answer.try_downcast_ref::<SqliteError>() {
                Some(_) => {
                    let code = answer
                        .code()
                        .and_then(|code| code.parse().ok())
                        .unwrap_or(0);
                    Self::answer(code, answer.message())
                }
                None => Self {
                    error: StoreError::Unavailable(error.to_string()),
                    lost: true,
                },
            },
            sqlx::Error::Protocol(why) => Self {
                error: StoreError::Statement {
                    code: "1".to_owned(),
                    message: why.clone(),
                },
                lost: false,
            },
            sqlx::Error::Encode(_)
            | sqlx::Error::Decode(_)
            | sqlx::Error::ColumnDecode { .. }
            | sqlx::Error::ColumnIndexOutOfBounds { .. }
            | sqlx::Error::ColumnNotFound(_)
            | sqlx::Error::RowNotFound => Self {
                error: StoreError::Broken(error.to_string()),
                lost: false,
            },
            _ => Self {
                error: StoreError::Unavailable(error.to_string()),
                lost: true,
            },
        }
    }

    fn answer(extended: i32, message: &str) -> Self {
        let text = format!("{message} ({extended})");
        let primary = extended & 0xff;
        let error = match primary {
            code::CONSTRAINT => StoreError::Constraint(Constraint {
                kind: constraint_kind(extended),
                code: extended.to_string(),
                constraint: message
                    .split_once("failed: ")
                    .map(|(_, name)| name.to_owned()),
                message: message.to_owned(),
            }),
            code::BUSY | code::LOCKED => StoreError::LockTimeout(text),
            code::SCHEMA => StoreError::Conflict(text),
            code::INTERRUPT => StoreError::Limit("the statement ran into its timeout".to_owned()),
            code::TOO_BIG | code::NO_MEMORY => StoreError::Limit(format!(
                "a value, or all of them together, is too large: {text}"
            )),
            code::ABORT => StoreError::TransactionLost(text),
            code::CORRUPT | code::NOT_A_DATABASE => StoreError::Unusable(text),
            code::FULL | code::READ_ONLY => StoreError::Unwritable(text),
            code::IO | code::CANNOT_OPEN | code::PROTOCOL => StoreError::Unavailable(text),
            _ => StoreError::Statement {
                code: extended.to_string(),
                message: message.to_owned(),
            },
        };
        let lost = matches!(
            primary,
            code::CORRUPT | code::NOT_A_DATABASE | code::IO | code::CANNOT_OPEN
        );
        Self { error, lost }
    }

    /// The same for a statement that the host wrote: refusing it is no message's fault.
    pub fn own(self) -> StoreError {
        match self.error {
            StoreError::Limit(why) => StoreError::Unavailable(why),
            StoreError::Statement { message, .. } if message.starts_with("no such") => {
                StoreError::Unusable(format!(
                    "{message}: were the tables made? see `hapax migrate`"
                ))
            }
            error => error.ours(),
        }
    }
}

fn constraint_kind(extended: i32) -> ConstraintKind {
    match extended {
        // UNIQUE, PRIMARY KEY, rowid.
        2067 | 1555 | 2579 => ConstraintKind::Unique,
        787 => ConstraintKind::ForeignKey,
        1299 => ConstraintKind::NotNull,
        275 => ConstraintKind::Check,
        _ => ConstraintKind::Other,
    }
}
