//! SQL: judged by the rules, counted, and run in the message's transaction.

use std::sync::Arc;

use crate::effects::sql::Deferred;
use crate::effects::sql::rules::{self, Kind, MAX_SHORT_BYTES, Statement};
use crate::failpoint::{self, Point};
use crate::failure::{Failure, code};
use crate::store::{
    self, Constraint, ConstraintKind, Dialect, NamedColumn, Value as Stored, Width,
};

use super::super::bindings::hapax::plugin::sql::{
    Column, Error, ErrorKind, Host, OtherValue, Rows, Value,
};
use super::super::guest::{Guest, Stop};

impl Host for Guest {
    async fn query(
        &mut self,
        statement: String,
        parameters: Vec<Value>,
    ) -> wasmtime::Result<Result<Rows, Error>> {
        let (statement, parameters) = self.admit(&statement, parameters).await?;
        let (max_rows, max_bytes) = self.quota.next_result();
        let answer = self
            .in_transaction(async |transaction, _| {
                transaction
                    .query(&statement.text, &parameters, max_rows, max_bytes)
                    .await
            })
            .await?;
        match answer {
            Ok(rows) => {
                let bytes = rows.rows.iter().flatten().map(Stored::size_bytes).sum();
                self.quota
                    .rows(&self.environment.limits, rows.rows.len(), bytes)?;
                Ok(Ok(rows_to_guest(rows)))
            }
            Err(constraint) => Ok(Err(error_to_guest(constraint))),
        }
    }

    async fn execute(
        &mut self,
        statement: String,
        parameters: Vec<Value>,
    ) -> wasmtime::Result<Result<u64, Error>> {
        let (statement, parameters) = self.admit(&statement, parameters).await?;
        let answer = self
            .in_transaction(async |transaction, _| transaction.execute(statement, parameters).await)
            .await?;
        Ok(answer.map_err(error_to_guest))
    }

    async fn defer(&mut self, statement: String, parameters: Vec<Value>) -> wasmtime::Result<()> {
        let (statement, parameters) = self.admit(&statement, parameters).await?;
        if statement.kind == Kind::Select {
            return Err(
                refused("a SELECT cannot be deferred: nobody would see its rows".into()).into(),
            );
        }
        self.effects.deferred.push(Deferred {
            statement,
            parameters,
            answered: false,
            place: 0,
        });
        Ok(())
    }
}

impl Guest {
    /// Lets a statement pass that the rules and the limits allow.
    async fn admit(
        &mut self,
        statement: &str,
        parameters: Vec<Value>,
    ) -> Result<(Arc<Statement>, Vec<Stored>), Stop> {
        failpoint::pass_with(Point::MidHandler, &self.attempt.key);
        let parameters: Vec<_> = parameters.into_iter().map(value_from_guest).collect();
        let bytes = parameters.iter().map(Stored::size_bytes).sum();
        self.quota.statement(&self.environment.limits, bytes)?;
        let judged = self.environment.rules.admit(statement).await;
        let statement = judged.map_err(|refusal| {
            let text = format!("{}: {refusal}", refusal.code);
            refused(if refusal.help.is_empty() {
                text
            } else {
                format!("{text}; {}", refusal.help)
            })
        })?;
        if parameters.len() != usize::from(statement.parameters) {
            return Err(Stop::Failed(Failure::never(
                code::SQL_ERROR,
                format!(
                    "the statement has {} parameters, and {} values were given",
                    statement.parameters,
                    parameters.len()
                ),
            )));
        }
        let bytes = |number: u16| {
            let value = parameters.get(usize::from(number) - 1);
            value.map_or(0, Stored::size_bytes)
        };
        let long = statement
            .short
            .iter()
            .find(|number| bytes(**number) > MAX_SHORT_BYTES);
        if let Some(number) = long {
            return Err(Stop::Failed(Failure::never(
                code::SQL_LIMIT,
                format!(
                    "${number} is what a search looks for, and has more than {MAX_SHORT_BYTES} bytes"
                ),
            )));
        }
        self.prove(&statement).await?;
        within_a_row(&statement, &parameters, self.environment.dialect)?;
        Ok((statement, parameters))
    }

    /// Asks the database for what the text of a statement leaves open, once for all messages.
    async fn prove(&mut self, statement: &Statement) -> Result<(), Stop> {
        if statement.is_proven() {
            return Ok(());
        }
        let question = statement.question();
        if !question.is_empty() {
            let answer = self
                .in_transaction(async |transaction, _| transaction.catalog(&question).await)
                .await?;
            if let Some(other) = answer.other {
                // The owner may take it away again.
                return Err(Stop::Failed(Failure::later(
                    code::SQL_REFUSED,
                    format!(
                        "{}: {other} has the name of a built-in and could be meant instead of it; rename it, \
                         take its schema out of search_path, or grant the function by name",
                        rules::code::NAME
                    ),
                )));
            }
            statement.columns_are(answer.widths);
        }
        if statement.named_columns.is_empty() {
            statement.proven();
            return Ok(());
        }
        let missing = self
            .in_transaction(async |transaction, _| {
                transaction.missing_column(&statement.named_columns).await
            })
            .await?;
        let Some(column) = missing.and_then(|place| statement.named_columns.get(place)) else {
            statement.proven();
            return Ok(());
        };
        // The column may come with a migration that is late.
        Err(Stop::Failed(Failure::later(
            code::SQL_REFUSED,
            format!(
                "{}: `{}` is no column of {}, and could be read as a call of a function of that name",
                rules::code::NAME,
                column.name,
                tables(column)
            ),
        )))
    }
}

/// Insists that one row of the statement ends soon, with these parameters.
fn within_a_row(
    statement: &Statement,
    parameters: &[Stored],
    dialect: Dialect,
) -> Result<(), Stop> {
    let widths: Vec<Width> = parameters.iter().map(width).collect();
    let Some((excess, whatever_is_bound)) = statement.excess(&widths) else {
        return Ok(());
    };
    let (message, help) = excess.tell(dialect);
    if whatever_is_bound {
        let code = rules::code::TOO_COSTLY;
        return Err(refused(format!("{code}: {message}; {help}")));
    }
    Err(Stop::Failed(Failure::never(
        code::SQL_LIMIT,
        format!("with parameters as long as these, {message}; {help}"),
    )))
}

fn width(value: &Stored) -> Width {
    Width {
        bytes: value.size_bytes() as u64,
        number: matches!(
            value,
            Stored::Null
                | Stored::Bool(_)
                | Stored::S64(_)
                | Stored::F64(_)
                | Stored::Timestamp(_)
                | Stored::Decimal(_)
        ),
    }
}

/// `t_orders or shop.t_stock`
fn tables(column: &NamedColumn) -> String {
    let names = column.tables.iter().map(|(schema, name)| match schema {
        Some(schema) => format!("{schema}.{name}"),
        None => name.clone(),
    });
    names.collect::<Vec<_>>().join(" or ")
}

fn refused(text: String) -> Stop {
    Stop::Failed(Failure::never(code::SQL_REFUSED, text))
}

fn value_from_guest(value: Value) -> Stored {
    match value {
        Value::Null => Stored::Null,
        Value::Bool(value) => Stored::Bool(value),
        Value::S64(value) => Stored::S64(value),
        Value::F64(value) => Stored::F64(value),
        Value::Text(text) => Stored::Text(text),
        Value::Bytes(bytes) => Stored::Bytes(bytes),
        Value::Decimal(text) => Stored::Decimal(text),
        Value::Timestamp(micros) => Stored::Timestamp(micros),
        Value::Uuid(text) => Stored::Uuid(text),
        Value::Json(text) => Stored::Json(text),
        Value::Other(OtherValue { type_, text }) => Stored::Other { kind: type_, text },
    }
}

fn value_to_guest(value: Stored) -> Value {
    match value {
        Stored::Null => Value::Null,
        Stored::Bool(value) => Value::Bool(value),
        Stored::S64(value) => Value::S64(value),
        Stored::F64(value) => Value::F64(value),
        Stored::Text(text) => Value::Text(text),
        Stored::Bytes(bytes) => Value::Bytes(bytes),
        Stored::Decimal(text) => Value::Decimal(text),
        Stored::Timestamp(micros) => Value::Timestamp(micros),
        Stored::Uuid(text) => Value::Uuid(text),
        Stored::Json(text) => Value::Json(text),
        Stored::Other { kind, text } => Value::Other(OtherValue { type_: kind, text }),
    }
}

fn rows_to_guest(rows: store::Rows) -> Rows {
    Rows {
        columns: rows
            .columns
            .into_iter()
            .map(|column| Column {
                name: column.name,
                type_: column.kind,
            })
            .collect(),
        rows: rows
            .rows
            .into_iter()
            .map(|row| row.into_iter().map(value_to_guest).collect())
            .collect(),
    }
}

fn error_to_guest(constraint: Constraint) -> Error {
    Error {
        kind: match constraint.kind {
            ConstraintKind::Unique => ErrorKind::Unique,
            ConstraintKind::ForeignKey => ErrorKind::ForeignKey,
            ConstraintKind::NotNull => ErrorKind::NotNull,
            ConstraintKind::Check => ErrorKind::Check,
            ConstraintKind::Exclusion => ErrorKind::Exclusion,
            ConstraintKind::Other => ErrorKind::Other,
        },
        code: constraint.code,
        constraint: constraint.constraint,
        message: constraint.message,
    }
}
