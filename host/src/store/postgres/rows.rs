//! Many rows of a guest's INSERT as one statement: a column of values becomes an array, and `unnest` makes
//! rows of them again.
//!
//! One text serves any number of rows, so that it is prepared once. The types are those that the server
//! inferred for the statement of one row; what has no array type known here takes the common way.

use std::fmt::Write;

use sqlx::postgres::{PgArguments, PgStatement};
use sqlx::{Arguments, AssertSqlSafe, Either, Statement};

use super::encode::{Encoded, base, encode, oid, refuse};
use super::errors::Refusal;
use super::session::PostgresSession;
use crate::store::stored::{STATEMENT_BYTES, split};
use crate::store::{RowsInsert, StoreError, Value};

/// A type whose arrays can be written: its number, and its name in a cast.
#[derive(Clone, Copy)]
struct Element {
    oid: u32,
    name: &'static str,
}

const ELEMENTS: [Element; 17] = [
    element(oid::BOOL, "boolean"),
    element(oid::BYTEA, "bytea"),
    element(oid::INT8, "bigint"),
    element(oid::INT2, "smallint"),
    element(oid::INT4, "integer"),
    element(oid::TEXT, "text"),
    element(oid::JSON, "json"),
    element(oid::FLOAT4, "real"),
    element(oid::FLOAT8, "double precision"),
    element(oid::BPCHAR, "bpchar"),
    element(oid::VARCHAR, "varchar"),
    element(oid::DATE, "date"),
    element(oid::TIMESTAMP, "timestamp"),
    element(oid::TIMESTAMPTZ, "timestamptz"),
    element(oid::NUMERIC, "numeric"),
    element(oid::UUID, "uuid"),
    element(oid::JSONB, "jsonb"),
];

const fn element(oid: u32, name: &'static str) -> Element {
    Element { oid, name }
}

impl PostgresSession {
    pub(super) async fn guest_insert_rows(
        &mut self,
        insert: RowsInsert<'_>,
    ) -> Result<Option<u64>, StoreError> {
        let prepared = self.prepare(insert.text).await?;
        let Some(elements) = elements(&prepared, insert.order) else {
            return Ok(None);
        };
        let text = text(insert.head, &elements);
        let bytes = |row: &&[Value]| row.iter().map(Value::size_bytes).sum();
        let mut touched = 0;
        for rows in split(insert.rows, STATEMENT_BYTES, bytes) {
            let arguments = arguments(&prepared, insert.order, &elements, rows)?;
            touched += self.run(&text, arguments).await?;
        }
        Ok(Some(touched))
    }

    async fn run(&mut self, text: &str, arguments: PgArguments) -> Result<u64, StoreError> {
        self.keep(text).await?;
        let mut connection = self.lend_to_guest()?;
        let result = sqlx::query_with(AssertSqlSafe(text), arguments).execute(&mut connection);
        let result = self.answered(result).await?;
        self.back(connection, result)
            .map(|done| done.rows_affected())
            .map_err(Refusal::guests)
    }
}

/// The type of each column's values.
fn elements(prepared: &PgStatement, order: &[u16]) -> Option<Vec<Element>> {
    let Some(Either::Left(kinds)) = prepared.parameters() else {
        return None;
    };
    let element = |number: &u16| {
        let kind = kinds.get(usize::from(*number).checked_sub(1)?)?;
        let (_, oid) = base(kind);
        // A domain checks what its base type does not.
        let known = kind.oid().is_some_and(|own| own.0 == oid);
        ELEMENTS
            .into_iter()
            .find(|element| known && element.oid == oid)
    };
    order.iter().map(element).collect()
}

fn text(head: &str, elements: &[Element]) -> String {
    let mut text = String::with_capacity(head.len() + elements.len() * 16 + 32);
    text.push_str(head);
    text.push_str("SELECT * FROM unnest(");
    for (index, element) in elements.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        // Writing to a String cannot fail.
        let _ = write!(text, "{comma}${}::{}[]", index + 1, element.name);
    }
    text.push(')');
    text
}

fn arguments(
    prepared: &PgStatement,
    order: &[u16],
    elements: &[Element],
    rows: &[&[Value]],
) -> Result<PgArguments, StoreError> {
    let kinds = match prepared.parameters() {
        Some(Either::Left(kinds)) => kinds,
        _ => &[],
    };
    let mut arguments = PgArguments::default();
    for (number, element) in order.iter().zip(elements) {
        let place = usize::from(*number);
        let mut values = Vec::with_capacity(rows.len());
        for row in rows {
            let value = row.get(place - 1).ok_or_else(|| {
                let text = format!("parameter ${place} of a deferred statement has no value");
                refuse("07001", text)
            })?;
            values.push(encode(place, value, &kinds[place - 1])?);
        }
        arguments
            .add(Encoded::array(element.oid, &values))
            .map_err(|error| refuse("22000", error.to_string()))?;
    }
    Ok(arguments)
}
