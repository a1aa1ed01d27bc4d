//! The statements of a guest: prepared once per text, parameters in the types that the server inferred.

use futures_util::TryStreamExt;
use sqlx::postgres::{PgArguments, PgRow, PgStatement};
use sqlx::{
    Arguments, AssertSqlSafe, Column as _, Either, Executor, Row, SqlSafeStr, Statement, TypeInfo,
    ValueRef,
};

use super::decode::{decode, readable};
use super::encode::{encode, refuse};
use super::session::PostgresSession;
use crate::store::{Column, Rows, StoreError, Value};

impl PostgresSession {
    pub(super) async fn guest_query(
        &mut self,
        statement: &str,
        parameters: &[Value],
        max_rows: u64,
        max_bytes: u64,
    ) -> Result<Rows, StoreError> {
        let prepared = self.prepare(statement).await?;
        let arguments = arguments(&prepared, parameters)?;
        let mut result = Rows {
            columns: columns(&prepared)?,
            rows: Vec::new(),
        };
        let mut bytes = 0;
        let mut limit = None;
        let mut connection = self.lend()?;
        let read = async {
            let query = sqlx::query_with(prepared.sql().clone(), arguments);
            let mut stream = query.fetch(&mut connection);
            while let Some(row) = stream.try_next().await? {
                // What is over the limit is read and dropped: the connection is of use again only
                // when the server has said everything, and the statement timeout bounds that.
                if limit.is_some() {
                    continue;
                }
                let values = values(&row)?;
                bytes += values
                    .iter()
                    .map(|value| value.size_bytes() as u64)
                    .sum::<u64>();
                if result.rows.len() as u64 == max_rows {
                    limit = Some(format!("the result has more than {max_rows} rows"));
                } else if bytes > max_bytes {
                    limit = Some(format!("the result has more than {max_bytes} bytes"));
                } else {
                    result.rows.push(values);
                }
            }
            Ok(())
        };
        let read = read.await;
        self.back(connection, read)
            .map_err(|refusal| refusal.error)?;
        match limit {
            Some(limit) => {
                self.fail();
                Err(StoreError::Limit(limit))
            }
            None => Ok(result),
        }
    }

    pub(super) async fn guest_execute(
        &mut self,
        statement: &str,
        parameters: &[Value],
    ) -> Result<u64, StoreError> {
        let prepared = self.prepare(statement).await?;
        let arguments = arguments(&prepared, parameters)?;
        let mut connection = self.lend()?;
        let result = sqlx::query_with(prepared.sql().clone(), arguments)
            .execute(&mut connection)
            .await;
        self.back(connection, result)
            .map(|done| done.rows_affected())
            .map_err(|refusal| refusal.error)
    }

    /// One round trip for a text that the connection has not seen lately, else none.
    pub(super) async fn prepare(&mut self, statement: &str) -> Result<PgStatement, StoreError> {
        let mut connection = self.lend()?;
        let result = connection
            .prepare(AssertSqlSafe(statement).into_sql_str())
            .await;
        self.back(connection, result)
            .map_err(|refusal| refusal.error)
    }
}

fn arguments(prepared: &PgStatement, parameters: &[Value]) -> Result<PgArguments, StoreError> {
    let kinds = match prepared.parameters() {
        Some(Either::Left(kinds)) => kinds,
        _ => &[],
    };
    if kinds.len() != parameters.len() {
        return Err(refuse(
            "08P01",
            format!(
                "the statement has {} parameters, and {} values were given",
                kinds.len(),
                parameters.len()
            ),
        ));
    }
    let mut arguments = PgArguments::default();
    for (index, (value, kind)) in parameters.iter().zip(kinds).enumerate() {
        let encoded = encode(index + 1, value, kind)?;
        arguments
            .add(encoded)
            .map_err(|error| refuse("22000", error.to_string()))?;
    }
    Ok(arguments)
}

fn columns(prepared: &PgStatement) -> Result<Vec<Column>, StoreError> {
    let mut columns = Vec::with_capacity(prepared.columns().len());
    for column in prepared.columns() {
        let kind = column.type_info().name().to_lowercase();
        if !readable(column.type_info()) {
            return Err(refuse(
                "42804",
                format!(
                    "the column {} has the type {kind}, which cannot be read: cast it to text",
                    column.name()
                ),
            ));
        }
        columns.push(Column {
            name: column.name().to_owned(),
            kind,
        });
    }
    Ok(columns)
}

fn values(row: &PgRow) -> Result<Vec<Value>, sqlx::Error> {
    row.columns()
        .iter()
        .map(|column| {
            let value = row.try_get_raw(column.ordinal())?;
            if value.is_null() {
                return Ok(Value::Null);
            }
            let bytes = value.as_bytes().map_err(sqlx::Error::Decode)?;
            decode(column.type_info(), bytes).ok_or_else(|| {
                sqlx::Error::Decode(
                    format!("the column {} holds what its type does not", column.name()).into(),
                )
            })
        })
        .collect()
}
