//! The rows a query returned, with access by column name or position.

use std::any::type_name;
use std::fmt;

use super::{Column, FromValue, Value};
use crate::bindings::hapax::plugin::sql as wit;

/// The whole result of a query.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows {
    columns: Vec<Column>,
    rows: Vec<Vec<Value>>,
}

impl Rows {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The columns, in order.
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// The rows, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Row<'_>> {
        self.rows.iter().map(|values| Row {
            columns: &self.columns,
            values,
        })
    }

    /// The first row, if there is one.
    pub fn first(&self) -> Option<Row<'_>> {
        self.iter().next()
    }

    /// The first column of the first row: `SELECT count(*) …`. `None` when there is no row.
    ///
    /// ```
    /// # use hapax_guest::prelude::*;
    /// # fn example(user: &str) -> Result<(), Failure> {
    /// let balance = sql::query("SELECT balance FROM accounts WHERE user_id = $1", params![user])?
    ///     .scalar::<i64>()?
    ///     .ok_or_else(|| Failure::retry("no account yet"))?;
    /// # Ok(()) }
    /// ```
    pub fn scalar<'r, T: FromValue<'r>>(&'r self) -> Result<Option<T>, ColumnError> {
        self.first().map(|row| row.get(0)).transpose()
    }
}

impl From<wit::Rows> for Rows {
    fn from(rows: wit::Rows) -> Self {
        Self {
            columns: rows.columns,
            rows: rows.rows,
        }
    }
}

/// One row.
#[derive(Clone, Copy, Debug)]
pub struct Row<'r> {
    columns: &'r [Column],
    values: &'r [Value],
}

impl<'r> Row<'r> {
    /// The value of a column, by name or by position from 0. Use `Option<T>` for a column that
    /// may be NULL.
    pub fn get<T: FromValue<'r>>(&self, column: impl ColumnName) -> Result<T, ColumnError> {
        let found = column
            .position(self.columns)
            .and_then(|at| self.values.get(at));
        let Some(value) = found else {
            return Err(ColumnError::missing(&column));
        };
        T::from_value(value).ok_or_else(|| ColumnError::unfit(&column, value, type_name::<T>()))
    }

    /// The values, in the order of the columns.
    pub fn values(&self) -> &'r [Value] {
        self.values
    }
}

/// How a column can be named: by its name or by its position.
pub trait ColumnName: fmt::Display {
    /// Where it is.
    fn position(&self, columns: &[Column]) -> Option<usize>;
}

impl ColumnName for &str {
    fn position(&self, columns: &[Column]) -> Option<usize> {
        columns.iter().position(|column| column.name == *self)
    }
}

impl ColumnName for usize {
    fn position(&self, _columns: &[Column]) -> Option<usize> {
        Some(*self)
    }
}

/// A row does not have what was asked of it.
#[derive(Clone, Debug, PartialEq)]
pub struct ColumnError(String);

impl ColumnError {
    fn missing(column: &dyn fmt::Display) -> Self {
        Self(format!("the row has no column {column}"))
    }

    fn unfit(column: &dyn fmt::Display, value: &Value, wanted: &str) -> Self {
        Self(format!(
            "column {column} is {}, which is not a {wanted}",
            type_of(value)
        ))
    }
}

/// The type alone: the value may be what nobody should read in a log.
fn type_of(value: &Value) -> &str {
    match value {
        Value::Null => "NULL",
        Value::Bool(_) => "a bool",
        Value::S64(_) => "an integer",
        Value::F64(_) => "a float",
        Value::Text(_) => "text",
        Value::Bytes(_) => "bytes",
        Value::Decimal(_) => "a decimal",
        Value::Timestamp(_) => "a timestamp",
        Value::Uuid(_) => "a UUID",
        Value::Json(_) => "JSON",
        Value::Other(other) => &other.type_,
    }
}

impl fmt::Display for ColumnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ColumnError {}
