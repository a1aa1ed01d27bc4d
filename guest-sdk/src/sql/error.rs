//! The constraint that said no, and what a handler commonly does about it.

use std::fmt;

use super::ErrorKind;
use crate::Failure;
use crate::bindings::hapax::plugin::sql as wit;

/// A constraint said no. The statement had no effect, and the transaction goes on.
#[derive(Clone, Debug, PartialEq)]
pub struct Error {
    /// Which sort of constraint.
    pub kind: ErrorKind,
    /// The store's code: SQLSTATE, or SQLite's extended result code.
    pub code: String,
    /// The constraint's name where the store tells; SQLite tells `table.column`.
    pub constraint: Option<String>,
    /// The store's message.
    pub message: String,
}

impl From<wit::Error> for Error {
    fn from(error: wit::Error) -> Self {
        let wit::Error {
            kind,
            code,
            constraint,
            message,
        } = error;
        Self {
            kind,
            code,
            constraint,
            message,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            ErrorKind::Unique => "unique constraint",
            ErrorKind::ForeignKey => "foreign key",
            ErrorKind::NotNull => "not-null constraint",
            ErrorKind::Check => "check constraint",
            ErrorKind::Exclusion => "exclusion constraint",
            ErrorKind::Other => "constraint",
        })?;
        if let Some(constraint) = &self.constraint {
            write!(f, " {constraint}")?;
        }
        write!(f, " violated: {}", self.message)
    }
}

impl std::error::Error for Error {}

/// What to make of a write, beside `?`.
pub trait WriteResult {
    /// Takes a violation of this unique constraint for "it is there already": 0 rows. The name
    /// is the store's: `t_points_pkey` on Postgres, `t_points.order_id` on SQLite. Several calls
    /// in a row cover several stores.
    ///
    /// ```
    /// # use hapax_guest::prelude::*;
    /// # fn example(order: &str) -> Result<(), Failure> {
    /// let new = sql::execute("INSERT INTO seen (order_id) VALUES ($1)", params![order])
    ///     .ignore_unique("seen_pkey")? == 1;
    /// # Ok(()) }
    /// ```
    fn ignore_unique(self, constraint: &str) -> Result<u64, Error>;

    /// Takes "no row was touched" for a reason to retry: a row changed meanwhile, or is not
    /// there yet. This is how a row with a version is updated:
    ///
    /// ```
    /// # use hapax_guest::prelude::*;
    /// # fn example(id: i64, balance: i64, version: i64) -> Result<(), Failure> {
    /// sql::execute(
    ///     "UPDATE accounts SET balance = $1, version = version + 1 WHERE id = $2 AND version = $3",
    ///     params![balance, id, version],
    /// ).or_retry("the account changed meanwhile")?;
    /// # Ok(()) }
    /// ```
    fn or_retry(self, reason: &str) -> Result<u64, Failure>;
}

impl WriteResult for Result<u64, Error> {
    fn ignore_unique(self, constraint: &str) -> Result<u64, Error> {
        match self {
            Err(error)
                if error.kind == ErrorKind::Unique
                    && error.constraint.as_deref() == Some(constraint) =>
            {
                Ok(0)
            }
            other => other,
        }
    }

    fn or_retry(self, reason: &str) -> Result<u64, Failure> {
        match self? {
            0 => Err(Failure::retry(reason)),
            touched => Ok(touched),
        }
    }
}
