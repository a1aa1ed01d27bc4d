//! Reads SQLSTATEs: what a refusal means for the caller, and whether the connection survives it.
//!
//! Source: the Postgres manual, appendix A (error codes).

use sqlx::error::DatabaseError;
use sqlx::postgres::PgDatabaseError;

use crate::store::{Constraint, ConstraintKind, StoreError};

/// An error of the driver, read.
pub(super) struct Refusal {
    pub error: StoreError,
    /// The connection is gone, or leads to a server that cannot write.
    pub lost: bool,
    /// The table under a prepared statement has changed; preparing again helps.
    pub stale_plan: bool,
    /// The transaction is over without a trace, if this was the answer to COMMIT.
    pub rolled_back: bool,
}

impl Refusal {
    pub fn of(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(answer) => match answer.try_downcast_ref::<PgDatabaseError>() {
                Some(answer) => Self::answer(answer),
                None => Self::gone(error.to_string()),
            },
            sqlx::Error::Encode(_)
            | sqlx::Error::Decode(_)
            | sqlx::Error::ColumnDecode { .. }
            | sqlx::Error::ColumnIndexOutOfBounds { .. }
            | sqlx::Error::ColumnNotFound(_)
            | sqlx::Error::TypeNotFound { .. }
            | sqlx::Error::RowNotFound => Self::kept(StoreError::Broken(error.to_string())),
            // An error of the socket or of the protocol: what the server did is not known any more.
            _ => Self::gone(error.to_string()),
        }
    }

    fn gone(why: String) -> Self {
        Self {
            error: StoreError::Unavailable(why),
            lost: true,
            stale_plan: false,
            rolled_back: false,
        }
    }

    fn kept(error: StoreError) -> Self {
        Self {
            error,
            lost: false,
            stale_plan: false,
            rolled_back: false,
        }
    }

    fn answer(answer: &PgDatabaseError) -> Self {
        let code = answer.code();
        let text = match answer.detail() {
            Some(detail) => format!("{}: {detail}", answer.message()),
            None => answer.message().to_owned(),
        };
        let error = match code {
            _ if code.starts_with("23") => StoreError::Constraint(Constraint {
                kind: constraint_kind(code),
                code: code.to_owned(),
                constraint: constraint_name(answer),
                message: answer.message().to_owned(),
            }),
            "40001" | "40P01" => StoreError::Conflict(text),
            "55P03" => StoreError::LockTimeout(text),
            "57014" => StoreError::Limit(text),
            "25P02" => StoreError::TransactionLost(text),
            // 25006 is what a server says that became a standby under an open connection, 53100 is a full disk.
            "25006" | "53100" => StoreError::Unwritable(text),
            "25P03" => StoreError::Unavailable(text),
            _ if code.starts_with("08")
                || code.starts_with("53")
                || code.starts_with("57P")
                || code.starts_with("58") =>
            {
                StoreError::Unavailable(text)
            }
            "0A000" if is_stale_plan(answer) => StoreError::Conflict(text),
            _ => StoreError::Statement {
                code: code.to_owned(),
                message: text,
            },
        };
        Self {
            lost: code.starts_with("08")
                || code.starts_with("57P")
                || matches!(code, "25006" | "25P03"),
            stale_plan: code == "0A000" && is_stale_plan(answer),
            rolled_back: matches!(error, StoreError::Constraint(_) | StoreError::Conflict(_)),
            error,
        }
    }

    /// The same for a statement that a guest wrote: what cannot be read of its answer is no broken invariant of ours.
    pub fn guests(self) -> StoreError {
        match self.error {
            StoreError::Broken(message) => StoreError::Statement {
                code: "22000".to_owned(),
                message,
            },
            error => error,
        }
    }

    /// The same for a statement that the host wrote: refusing it is no message's fault.
    pub fn own(self) -> StoreError {
        match self.error {
            StoreError::Limit(why) => StoreError::Unavailable(why),
            // Undefined table, schema or column, or no privilege on it: the schema is not ours.
            StoreError::Statement { code, message }
                if matches!(&*code, "42P01" | "3F000" | "42703" | "42501") =>
            {
                StoreError::Unusable(format!(
                    "{message} ({code}): were the tables made, and may this role use them? see `hapax migrate`"
                ))
            }
            error => error.ours(),
        }
    }
}

/// The message is translated by the server; the routine is not.
fn is_stale_plan(answer: &PgDatabaseError) -> bool {
    answer.routine() == Some("RevalidateCachedQuery")
}

/// A NOT NULL has no name of its own in most versions: `table.column` says as much.
fn constraint_name(answer: &PgDatabaseError) -> Option<String> {
    match (
        DatabaseError::constraint(answer),
        answer.table(),
        answer.column(),
    ) {
        (Some(name), _, _) => Some(name.to_owned()),
        (None, Some(table), Some(column)) => Some(format!("{table}.{column}")),
        _ => None,
    }
}

fn constraint_kind(code: &str) -> ConstraintKind {
    match code {
        "23505" => ConstraintKind::Unique,
        "23503" | "23001" => ConstraintKind::ForeignKey,
        "23502" => ConstraintKind::NotNull,
        "23514" => ConstraintKind::Check,
        "23P01" => ConstraintKind::Exclusion,
        _ => ConstraintKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A column of a guest's that cannot be read must not stop the consumer, again after each start.
    #[test]
    fn what_cannot_be_read_is_the_guests_failure_and_our_defect_in_our_own_tables() {
        let unreadable = || Refusal::of(sqlx::Error::Decode("not of its type".into()));
        let guests = unreadable().guests();
        assert!(matches!(guests, StoreError::Statement { .. }), "{guests:?}");
        let own = unreadable().own();
        assert!(matches!(own, StoreError::Broken(_)), "{own:?}");
    }
}
