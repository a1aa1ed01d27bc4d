//! How a database says no, by what the caller does about it.

use crate::failure::{Class, Code, code};

/// Which kind of constraint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConstraintKind {
    Unique,
    ForeignKey,
    NotNull,
    Check,
    Exclusion,
    Other,
}

/// A constraint refused a statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Constraint {
    pub kind: ConstraintKind,
    /// SQLSTATE, or SQLite's extended result code.
    pub code: String,
    pub constraint: Option<String>,
    pub message: String,
}

/// An error of the store. A dialect decides which one its server's error is; nobody else looks at codes.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the constraint {} refused the statement: {}", .0.constraint.as_deref().unwrap_or("(unnamed)"), .0.message)]
    Constraint(Constraint),

    /// The statement or its values are at fault: syntax, types, privileges, a value out of range.
    #[error("{message} ({code})")]
    Statement { code: String, message: String },

    /// A row or byte limit, or the statement timeout.
    #[error("{0}")]
    Limit(String),

    /// Another transaction holds the row for longer than the lock timeout.
    #[error("another transaction holds the row: {0}")]
    LockTimeout(String),

    /// A deadlock or a serialization failure: the same work succeeds when it runs again.
    #[error("another transaction won: {0}")]
    Conflict(String),

    /// The transaction is not usable any more; only a rollback may follow.
    #[error("the transaction is over: {0}")]
    TransactionLost(String),

    /// The answer to COMMIT did not arrive: it may have committed. The ledger knows.
    #[error("the commit is in doubt: {0}")]
    InDoubt(String),

    /// The database is away or stopping.
    #[error("{0}")]
    Unavailable(String),

    /// The database does not end a statement of a handler although its time is over.
    #[error("{0}")]
    Unanswered(String),

    /// The database answers and cannot write: its disk is full, or it only reads. No message can be the reason.
    #[error("{0}")]
    Unwritable(String),

    /// The database was used by another process, or its schema is not ours.
    #[error("{0}")]
    Unusable(String),

    /// An invariant of the host or of its tables does not hold.
    #[error("{0}")]
    Broken(String),
}

impl StoreError {
    /// Whose failure it is. Statements of the host itself that fail as `Statement` are ours, not the
    /// message's: see [`StoreError::ours`].
    pub fn class(&self) -> Class {
        match self {
            Self::Constraint(_) | Self::Statement { .. } | Self::Limit(_) => Class::Message,
            Self::LockTimeout(_)
            | Self::Conflict(_)
            | Self::TransactionLost(_)
            | Self::InDoubt(_)
            | Self::Unavailable(_)
            | Self::Unanswered(_)
            | Self::Unwritable(_) => Class::World,
            Self::Unusable(_) | Self::Broken(_) => Class::Ours,
        }
    }

    /// The code that a message's failure is known by.
    pub fn code(&self) -> Code {
        match self {
            Self::Constraint(_) => code::CONSTRAINT,
            Self::Limit(_) => code::SQL_LIMIT,
            Self::Conflict(_) | Self::LockTimeout(_) => code::CONFLICT,
            _ => code::SQL_ERROR,
        }
    }

    /// For a statement that the host wrote: what is refused there is a broken invariant.
    pub fn ours(self) -> Self {
        match self {
            error @ (Self::Constraint(_) | Self::Statement { .. } | Self::Limit(_)) => {
                Self::Broken(error.to_string())
            }
            error => error,
        }
    }
}
