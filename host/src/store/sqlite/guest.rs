//! The statements of a guest.
//!
//! SQLite stores five kinds of values and keeps the declared type of a column as a note. Values without a
//! kind of their own are written as text, and a column whose declared type names them is read back as one.

use std::sync::Arc;

use futures_util::TryStreamExt;
use sqlparser::dialect::SQLiteDialect;
use sqlparser::tokenizer::{Token, Tokenizer};
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{
    Arguments, AssertSqlSafe, Column as _, ColumnOrigin, Either, Executor, Row, SqlSafeStr,
    Statement, TypeInfo, ValueRef,
};

use super::connection::{Slot, column};
use crate::effects::sql::rules::sqlite_value_bytes;
use crate::store::stored::rfc3339;
use crate::store::{Column, Rows, StoreError, Value};

/// Names are the same whatever their case. Checks and computed columns can call nothing that looks at a table. A
/// constraint that replaces rows takes away what a later row of the same statement may give back, before a reference
/// to it is missed.
const IS_PLAIN: &str = "\
    SELECT m.sql NOT LIKE 'create virtual %' AND m.sql NOT LIKE '%conflict%' \
        AND NOT EXISTS (SELECT 1 FROM main.sqlite_schema AS t \
            WHERE t.type = 'trigger' AND t.tbl_name = m.name COLLATE NOCASE) \
        AND NOT EXISTS (SELECT 1 FROM pragma_foreign_key_list(m.name) AS f \
            WHERE f.\"table\" = m.name COLLATE NOCASE) \
    FROM main.sqlite_schema AS m WHERE m.type = 'table' AND m.name = ?1 COLLATE NOCASE";

/// What is known of a statement before it runs.
pub(super) struct Described {
    parameters: usize,
    columns: Vec<Column>,
    /// How long its values may be.
    value_bytes: i32,
}

impl Slot {
    pub async fn query(
        &mut self,
        statement: &str,
        parameters: &[Value],
        max_rows: u64,
        max_bytes: u64,
    ) -> Result<Rows, StoreError> {
        let described = self.describe(statement).await?;
        let arguments = arguments(&described, parameters)?;
        let mut result = Rows {
            columns: described.columns.clone(),
            rows: Vec::new(),
        };
        let mut bytes = 0;
        self.shorten(described.value_bytes).await?;
        let limit = self.limited();
        let connection = self.usable()?;
        let read = async {
            let query = sqlx::query_with(AssertSqlSafe(statement), arguments);
            let mut stream = query.fetch(connection);
            while let Some(row) = stream.try_next().await? {
                let values = values(&row, &result.columns)?;
                bytes += values
                    .iter()
                    .map(|value| value.size_bytes() as u64)
                    .sum::<u64>();
                if result.rows.len() as u64 == max_rows {
                    return Ok(Some(format!("the result has more than {max_rows} rows")));
                }
                if bytes > max_bytes {
                    return Ok(Some(format!("the result has more than {max_bytes} bytes")));
                }
                if result.rows.is_empty() {
                    name_kinds(&mut result.columns, &row);
                }
                result.rows.push(values);
            }
            Ok(None)
        };
        let read = read.await;
        limit.lift();
        let read = match read {
            Ok(None) => Ok(result),
            Ok(Some(limit)) => Err(StoreError::Limit(limit)),
            Err(error) => Err(self.refusal(error).error),
        };
        self.lengthen(read).await
    }

    pub async fn execute(
        &mut self,
        statement: &str,
        parameters: &[Value],
    ) -> Result<u64, StoreError> {
        let described = self.describe(statement).await?;
        let arguments = arguments(&described, parameters)?;
        self.shorten(described.value_bytes).await?;
        let limit = self.limited();
        let connection = self.usable()?;
        let result = sqlx::query_with(AssertSqlSafe(statement), arguments)
            .execute(connection)
            .await;
        limit.lift();
        let result = result
            .map(|done| done.rows_affected())
            .map_err(|error| self.refusal(error).error);
        self.lengthen(result).await
    }

    /// There is one database on this connection, and temporary tables are not of this world.
    pub async fn is_plain(
        &mut self,
        schema: Option<&str>,
        table: &str,
    ) -> Result<bool, StoreError> {
        if schema.is_some_and(|schema| !schema.eq_ignore_ascii_case("main")) {
            return Ok(false);
        }
        let look = sqlx::query(IS_PLAIN)
            .bind(table)
            .fetch_optional(self.usable()?);
        let row = look.await.map_err(|error| self.refusal(error).error)?;
        row.map_or(Ok(false), |row| column(&row, 0))
    }

    /// What comes next may have values of any length again. An error of the statement itself comes first, and
    /// leaves the rest to the rollback where the transaction is over.
    async fn lengthen<T>(&mut self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        let lengthened = match self.usable() {
            Ok(_) => self.lengthen_values().await,
            Err(_) => Ok(()),
        };
        let value = result?;
        lengthened.map(|()| value)
    }

    async fn describe(&mut self, statement: &str) -> Result<Arc<Described>, StoreError> {
        self.usable()?;
        self.keep(statement).await?;
        if let Some(described) = self.described.get(statement) {
            return Ok(Arc::clone(described));
        }
        let prepared = self
            .usable()?
            .prepare(AssertSqlSafe(statement).into_sql_str())
            .await;
        let prepared = prepared.map_err(|error| self.refusal(error).error)?;
        let parameters = match prepared.parameters() {
            Some(Either::Right(count)) => count,
            _ => 0,
        };
        let (highest, value_bytes) = words(statement)?;
        if highest != parameters {
            return Err(refuse(
                "25",
                "the parameters are not $1, $2, … without a hole",
            ));
        }
        let mut columns = Vec::with_capacity(prepared.columns().len());
        for column in prepared.columns() {
            let kind = match column.origin() {
                ColumnOrigin::Table(origin) => self.declared(&origin.table, &origin.name).await?,
                _ => String::new(),
            };
            columns.push(Column {
                name: column.name().to_owned(),
                kind,
            });
        }
        let described = Arc::new(Described {
            parameters,
            columns,
            value_bytes,
        });
        self.described
            .put(statement.to_owned(), Arc::clone(&described));
        Ok(described)
    }

    /// The declared type of a column, lower case and without its length.
    async fn declared(&mut self, table: &str, name: &str) -> Result<String, StoreError> {
        let select = sqlx::query("SELECT type FROM pragma_table_xinfo(?) WHERE name = ?")
            .bind(table)
            .bind(name);
        let Some(row) = self.row(select).await? else {
            return Ok(String::new());
        };
        let declared: String = column(&row, 0)?;
        let kind = declared.split('(').next().unwrap_or_default();
        Ok(kind.trim().to_lowercase())
    }
}

fn refuse(code: &str, message: &str) -> StoreError {
    StoreError::Statement {
        code: code.to_owned(),
        message: message.to_owned(),
    }
}

/// The highest N of `$N`, and how long values may be. SQLite would bind nothing to a parameter without a value and call
/// it NULL.
fn words(statement: &str) -> Result<(usize, i32), StoreError> {
    let tokens = Tokenizer::new(&SQLiteDialect {}, statement).tokenize();
    let tokens = tokens.map_err(|error| refuse("1", &error.to_string()))?;
    let mut highest = 0;
    let mut words = Vec::with_capacity(tokens.len());
    for token in tokens {
        match token {
            Token::Word(word) => words.push(word.value),
            Token::SingleQuotedString(_) | Token::Whitespace(_) => {}
            Token::Placeholder(name) => {
                let number = name
                    .strip_prefix('$')
                    .and_then(|number| number.parse().ok());
                let number = number.filter(|number| *number > 0);
                highest = highest
                    .max(number.ok_or_else(|| refuse("25", "parameters are written $1, $2, …"))?);
            }
            sign => words.push(sign.to_string()),
        }
    }
    let value_bytes = sqlite_value_bytes(words.iter().map(String::as_str));
    Ok((highest, i32::try_from(value_bytes).unwrap_or(i32::MAX)))
}

fn arguments(described: &Described, parameters: &[Value]) -> Result<SqliteArguments, StoreError> {
    if described.parameters != parameters.len() {
        let message = format!(
            "the statement has {} parameters, and {} values were given",
            described.parameters,
            parameters.len()
        );
        return Err(refuse("25", &message));
    }
    let mut arguments = SqliteArguments::default();
    for value in parameters {
        let added = match value {
            Value::Null => arguments.add(None::<i64>),
            Value::Bool(truth) => arguments.add(i64::from(*truth)),
            Value::S64(number) => arguments.add(*number),
            // SQLite would store it as NULL.
            Value::F64(number) if number.is_nan() => {
                return Err(refuse("20", "NaN is no value of SQLite"));
            }
            Value::F64(number) => arguments.add(*number),
            Value::Bytes(bytes) => arguments.add(bytes.clone()),
            Value::Timestamp(micros) => match rfc3339(*micros) {
                Some(text) => arguments.add(text),
                None => return Err(refuse("20", "a timestamp is beyond the calendar")),
            },
            Value::Text(text)
            | Value::Decimal(text)
            | Value::Uuid(text)
            | Value::Json(text)
            | Value::Other { text, .. } => arguments.add(text.clone()),
        };
        added.map_err(|error| refuse("20", &error.to_string()))?;
    }
    Ok(arguments)
}

/// A column of an expression has no declared type; the first row's value names one.
fn name_kinds(columns: &mut [Column], row: &SqliteRow) {
    for (index, column) in columns.iter_mut().enumerate() {
        if let (true, Ok(value)) = (column.kind.is_empty(), row.try_get_raw(index)) {
            column.kind = value.type_info().name().to_lowercase();
        }
    }
}

fn values(row: &SqliteRow, columns: &[Column]) -> Result<Vec<Value>, sqlx::Error> {
    (0..row.len())
        .map(|index| {
            let raw = row.try_get_raw(index)?;
            if raw.is_null() {
                return Ok(Value::Null);
            }
            let class = raw.type_info().name().to_owned();
            let stored = match class.as_str() {
                "INTEGER" => Value::S64(row.try_get_unchecked(index)?),
                "REAL" => Value::F64(row.try_get_unchecked(index)?),
                "TEXT" => match row.try_get_unchecked(index) {
                    Ok(text) => Value::Text(text),
                    // SQLite does not check that text is UTF-8.
                    Err(_) => Value::Bytes(row.try_get_unchecked(index)?),
                },
                _ => Value::Bytes(row.try_get_unchecked(index)?),
            };
            Ok(declared_value(
                columns.get(index).map_or("", |column| &column.kind),
                stored,
            ))
        })
        .collect()
}

/// The value that the declared type of its column means; as it is stored where that does not fit.
fn declared_value(kind: &str, stored: Value) -> Value {
    match (kind, stored) {
        ("boolean" | "bool", Value::S64(0)) => Value::Bool(false),
        ("boolean" | "bool", Value::S64(1)) => Value::Bool(true),
        ("timestamp" | "timestamptz" | "datetime", Value::Text(text)) => match parse_time(&text) {
            Some(micros) => Value::Timestamp(micros),
            None => Value::Text(text),
        },
        ("decimal" | "numeric", Value::Text(text)) => Value::Decimal(text),
        ("decimal" | "numeric", Value::S64(number)) => Value::Decimal(number.to_string()),
        ("decimal" | "numeric", Value::F64(number)) => Value::Decimal(number.to_string()),
        ("uuid", Value::Text(text)) => match uuid::Uuid::parse_str(&text) {
            Ok(id) => Value::Uuid(id.hyphenated().to_string()),
            Err(_) => Value::Text(text),
        },
        // The type's affinity is numeric: a document that is only a number was stored as one.
        ("json", Value::Text(text)) => Value::Json(text),
        ("json", Value::S64(number)) => Value::Json(number.to_string()),
        ("json", Value::F64(number)) => Value::Json(number.to_string()),
        (_, stored) => stored,
    }
}

/// The form that this store writes, and the one of CURRENT_TIMESTAMP.
fn parse_time(text: &str) -> Option<i64> {
    if let Ok(time) = chrono::DateTime::parse_from_rfc3339(text) {
        return Some(time.timestamp_micros());
    }
    let time = chrono::NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f").ok()?;
    Some(time.and_utc().timestamp_micros())
}
