//! SQL on the handler's own tables, inside the message's transaction.
//!
//! One statement a call: SELECT, INSERT, UPDATE or DELETE. Values are parameters, written `$1`,
//! `$2`, … on every store and passed with [`params!`](crate::params):
//!
//! ```
//! # use hapax_guest::prelude::*;
//! # fn example(user: &str) -> Result<(), Failure> {
//! let rows = sql::query("SELECT name, balance FROM accounts WHERE user_id = $1", params![user])?;
//! for row in rows.iter() {
//!     let (name, balance) = (row.get::<&str>("name")?, row.get::<i64>("balance")?);
//! }
//! # Ok(()) }
//! ```
//!
//! A constraint that says no is an [`Error`], and the transaction goes on. Every other error of
//! the database ends the run and is not seen here.

mod error;
mod recipes;
mod rows;
mod value;

use crate::host;

pub use crate::bindings::hapax::plugin::sql::{Column, ErrorKind, OtherValue, Value};
pub use error::{Error, WriteResult};
pub use recipes::{Columns, Transition, transition, upsert};
pub use rows::{ColumnError, ColumnName, Row, Rows};
pub use value::{FromValue, ToValue};

/// Runs a statement now and returns its rows: SELECT, or a write with RETURNING.
pub fn query(statement: &str, parameters: impl AsRef<[Value]>) -> Result<Rows, Error> {
    match host::sql::query(statement, parameters.as_ref()) {
        Ok(rows) => Ok(Rows::from(rows)),
        Err(error) => Err(Error::from(error)),
    }
}

/// Runs a statement now and returns the number of rows it touched.
///
/// A plain `INSERT INTO t (a, b) VALUES ($1, $2)` costs no more than a deferred one where the host can run it with
/// those of other messages unnoticed: in a table without triggers and the like.
pub fn execute(statement: &str, parameters: impl AsRef<[Value]>) -> Result<u64, Error> {
    host::sql::execute(statement, parameters.as_ref()).map_err(Error::from)
}

/// Keeps a write for the end of the message's batch, where equal statements run together: the
/// fastest way when the handler does not need to see the result.
///
/// A constraint that says no then fails the message. Later `query` and `execute` calls of this
/// message do not see the deferred write; later messages do.
pub fn defer(statement: &str, parameters: impl AsRef<[Value]>) {
    host::sql::defer(statement, parameters.as_ref());
}

/// The parameters of a statement, in order. Anything that is [`sql::ToValue`](crate::sql::ToValue);
/// nothing is moved.
///
/// ```
/// # use hapax_guest::{params, sql, Timestamp};
/// let name = String::from("Ada");
/// let values = params![name, 36, None::<&str>, Timestamp(0)];
/// assert_eq!(values[1], sql::Value::S64(36));
/// assert_eq!(values[2], sql::Value::Null);
/// ```
#[macro_export]
macro_rules! params {
    () => { <[$crate::sql::Value; 0]>::default() };
    ($($value:expr),+ $(,)?) => { [$($crate::sql::ToValue::to_value(&$value)),+] };
}
