//! The statements of a guest: prepared once per text, parameters in the types that the server inferred.

use std::sync::Arc;

use futures_util::TryStreamExt;
use sqlx::postgres::{PgArguments, PgRow, PgStatement};
use sqlx::{
    Arguments, AssertSqlSafe, Column as _, Either, Executor, Row, SqlSafeStr, Statement, TypeInfo,
    ValueRef,
};

use super::bounded::{TOO_LONG, bounded, counted};
use super::decode::{decode, readable};
use super::encode::{encode, refuse};
use super::errors::Refusal;
use super::session::{PgQuery, PostgresSession, column};
use crate::store::{
    ASSUMED_BYTES, ASSUMED_DIGITS, CatalogAnswer, CatalogQuestion, Column, NamedColumn, Rows,
    StoreError, Value, Width,
};

/// Names are looked up as a statement of the guest would. System columns have no numbers above zero, and views have
/// none of them.
const MISSING_COLUMN: &str = "\
    SELECT named.place FROM unnest($1::int[], $2::text[], $3::text[], $4::text[]) \
        AS named (place, schema_name, table_name, column_name) \
    GROUP BY named.place \
    HAVING NOT bool_or(EXISTS ( \
        SELECT FROM pg_catalog.pg_attribute AS a \
        WHERE a.attrelid = to_regclass(concat(quote_ident(named.schema_name) || '.', quote_ident(named.table_name))) \
            AND a.attname = named.column_name AND a.attnum > 0 AND NOT a.attisdropped)) \
    ORDER BY named.place LIMIT 1";

/// Functions and operators of the server itself are pinned: nothing is said to depend on them. A domain may check with
/// any function, a partition has what its parents have.
const IS_PLAIN: &str = "\
    SELECT c.relkind = 'r' AND NOT c.relhasrules AND NOT c.relrowsecurity AND NOT c.relispartition \
        AND NOT EXISTS (SELECT FROM pg_catalog.pg_trigger AS t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal) \
        AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint AS k WHERE k.conrelid = c.oid AND k.confrelid = c.oid) \
        AND NOT EXISTS (SELECT FROM pg_catalog.pg_attribute AS a \
            JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid \
            LEFT JOIN pg_catalog.pg_type AS e ON e.oid = t.typelem \
            WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
            AND (t.typtype IN ('d', 'c') OR e.typtype IN ('d', 'c'))) \
        AND NOT EXISTS (SELECT FROM ( \
            SELECT 'pg_catalog.pg_attrdef'::regclass, oid FROM pg_catalog.pg_attrdef WHERE adrelid = c.oid \
            UNION ALL SELECT 'pg_catalog.pg_constraint'::regclass, oid FROM pg_catalog.pg_constraint WHERE conrelid = c.oid \
            UNION ALL SELECT 'pg_catalog.pg_class'::regclass, indexrelid FROM pg_catalog.pg_index WHERE indrelid = c.oid \
            ) AS own (class, oid) \
            JOIN pg_catalog.pg_depend AS d ON d.classid = own.class AND d.objid = own.oid \
            LEFT JOIN pg_catalog.pg_type AS t ON d.refclassid = 'pg_catalog.pg_type'::regclass AND t.oid = d.refobjid \
            WHERE d.refclassid IN ('pg_catalog.pg_proc'::regclass, 'pg_catalog.pg_operator'::regclass) OR t.typtype = 'd') \
    FROM pg_catalog.pg_class AS c \
    WHERE c.oid = to_regclass(concat(quote_ident($1) || '.', quote_ident($2)))";

/// What could be meant in place of a built-in: the best overload of the whole search path is called, wherever it
/// stands. What an extension brought is what its name says. A type is the first of its name.
const OTHERS: &str = "\
    WITH path AS (SELECT n.oid FROM pg_catalog.pg_namespace AS n \
            WHERE n.nspname = ANY(current_schemas(false)) AND n.nspname <> 'pg_catalog'), \
        others AS (\
            SELECT 1 AS place, 'the function ' || p.oid::regprocedure::text AS name, \
                'pg_catalog.pg_proc'::regclass AS class, p.oid FROM pg_catalog.pg_proc AS p \
            WHERE p.proname = ANY($1::text[]) AND p.pronamespace IN (SELECT path.oid FROM path) \
            UNION ALL SELECT 2, 'the operator ' || o.oid::regoperator::text, 'pg_catalog.pg_operator'::regclass, o.oid \
            FROM pg_catalog.pg_operator AS o JOIN pg_catalog.pg_proc AS p ON p.oid = o.oprcode \
            WHERE o.oprname = ANY($2::text[]) AND o.oprnamespace IN (SELECT path.oid FROM path) \
                AND NOT p.proname = ANY($3::text[]) \
            UNION ALL SELECT 3, 'the type ' || t.oid::regtype::text, 'pg_catalog.pg_type'::regclass, t.oid \
            FROM unnest($4::text[]) AS named (name) JOIN pg_catalog.pg_type AS t ON t.oid = to_regtype(named.name) \
            WHERE t.typnamespace <> 'pg_catalog'::regnamespace) \
    SELECT others.name FROM others \
    WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_depend AS d \
        WHERE d.classid = others.class AND d.objid = others.oid AND d.deptype = 'e') \
    ORDER BY others.place, others.name LIMIT 1";

/// How wide the widest column of each name is, by its type: $4 bytes where that says nothing, $5 digits for a number.
const WIDTHS: &str = "\
    SELECT named.place, \
        max(CASE WHEN a.attlen > 0 THEN a.attlen::bigint \
            WHEN a.atttypid = 'pg_catalog.numeric'::regtype AND a.atttypmod > 4 \
                THEN ((a.atttypmod - 4) >> 16 & 65535)::bigint \
            WHEN a.atttypid = 'pg_catalog.numeric'::regtype THEN $5::bigint \
            WHEN a.atttypid IN ('pg_catalog.varchar'::regtype, 'pg_catalog.bpchar'::regtype) AND a.atttypmod > 4 \
                THEN (a.atttypmod - 4)::bigint * 4 \
            ELSE $4::bigint END), \
        bool_and(a.attlen > 0 OR a.atttypid = 'pg_catalog.numeric'::regtype) \
    FROM unnest($1::text[]) WITH ORDINALITY AS named (name, place) \
    JOIN pg_catalog.pg_attribute AS a ON a.attname = named.name AND a.attnum > 0 AND NOT a.attisdropped \
    WHERE a.attrelid IN ( \
        SELECT to_regclass(concat(quote_ident(t.schema_name) || '.', quote_ident(t.table_name))) \
        FROM unnest($2::text[], $3::text[]) AS t (schema_name, table_name)) \
    GROUP BY named.place";

impl PostgresSession {
    pub(super) async fn guest_catalog(
        &mut self,
        question: &CatalogQuestion,
    ) -> Result<CatalogAnswer, StoreError> {
        let texts = |names: &std::collections::BTreeSet<String>| {
            names.iter().cloned().collect::<Vec<String>>()
        };
        let built_ins = &question.built_ins;
        let mut answer = CatalogAnswer::default();
        if !built_ins.is_empty() {
            let query = sqlx::query(OTHERS)
                .bind(texts(&built_ins.functions))
                .bind(texts(&built_ins.operators))
                .bind(&question.granted)
                .bind(texts(&built_ins.types));
            let row = self.look(query).await?;
            answer.other = row.map(|row| column(&row, 0)).transpose()?;
        }
        if !question.columns.is_empty() {
            answer.widths = self.widths(question).await?;
        }
        Ok(answer)
    }

    async fn widths(
        &mut self,
        question: &CatalogQuestion,
    ) -> Result<Vec<Option<Width>>, StoreError> {
        let (schemas, tables): (Vec<Option<String>>, Vec<String>) =
            question.tables.iter().cloned().unzip();
        let limit = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let query = sqlx::query(WIDTHS)
            .bind(&question.columns)
            .bind(schemas)
            .bind(tables)
            .bind(limit(ASSUMED_BYTES))
            .bind(limit(ASSUMED_DIGITS));
        let mut connection = self.lend()?;
        let result = query.fetch_all(&mut connection).await;
        let rows = self.back(connection, result).map_err(Refusal::guests)?;
        let mut widths = vec![None; question.columns.len()];
        for row in rows {
            let place = usize::try_from(column::<i64>(&row, 0)?).unwrap_or_default();
            let width = Width {
                bytes: u64::try_from(column::<i64>(&row, 1)?).unwrap_or_default(),
                number: column(&row, 2)?,
            };
            if let Some(known) = place.checked_sub(1).and_then(|place| widths.get_mut(place)) {
                *known = Some(width);
            }
        }
        Ok(widths)
    }

    pub(super) async fn guest_is_plain(
        &mut self,
        schema: Option<&str>,
        table: &str,
    ) -> Result<bool, StoreError> {
        let query = sqlx::query(IS_PLAIN).bind(schema).bind(table);
        let row = self.look(query).await?;
        // What is no table is the statement's to hear about.
        row.map_or(Ok(false), |row| column(&row, 0))
    }

    pub(super) async fn guest_missing_column(
        &mut self,
        columns: &[NamedColumn],
    ) -> Result<Option<usize>, StoreError> {
        let (mut places, mut schemas, mut tables, mut names) = (vec![], vec![], vec![], vec![]);
        for (place, column) in columns.iter().enumerate() {
            for (schema, table) in &column.tables {
                places.push(i32::try_from(place).unwrap_or(i32::MAX));
                schemas.push(schema.as_deref());
                tables.push(table.as_str());
                names.push(column.name.as_str());
            }
        }
        let query = sqlx::query(MISSING_COLUMN)
            .bind(places)
            .bind(schemas)
            .bind(tables)
            .bind(names);
        let row = self.look(query).await?;
        let place = row.map(|row| column::<i32>(&row, 0)).transpose()?;
        Ok(place.and_then(|place| usize::try_from(place).ok()))
    }

    /// Looks something up in the catalog for a statement of the guest.
    async fn look(&mut self, query: PgQuery<'_>) -> Result<Option<PgRow>, StoreError> {
        let mut connection = self.lend()?;
        let result = query.fetch_optional(&mut connection).await;
        // A schema that the role may not use is the guest's to hear about, as with its statement.
        self.back(connection, result).map_err(Refusal::guests)
    }

    pub(super) async fn guest_query(
        &mut self,
        statement: &str,
        parameters: &[Value],
        max_rows: u64,
        max_bytes: u64,
    ) -> Result<Rows, StoreError> {
        let mut prepared = self.prepare(statement).await?;
        let mut columns = match columns(&prepared) {
            Ok(columns) => columns,
            // What is wrong with a value is told first: it may explain the column.
            Err(unreadable) => {
                return Err(arguments(&prepared, parameters).err().unwrap_or(unreadable));
            }
        };
        let bounded = match self.bounded.get(statement) {
            Some(known) => known.clone(),
            None => {
                let text = bounded(statement, &prepared, parameters.len()).map(Arc::from);
                self.bounded.put(statement.to_owned(), text.clone());
                text
            }
        };
        let arguments = match bounded {
            None => arguments(&prepared, parameters)?,
            Some(text) => {
                prepared = self.prepare(&text).await?;
                // Of the statement that runs: between the two a column may have got another name.
                columns = self::columns(&prepared)?;
                let limit = Value::S64(i64::try_from(max_bytes).unwrap_or(i64::MAX));
                arguments(&prepared, &[parameters, &[limit]].concat())?
            }
        };
        let mut result = Rows {
            columns,
            rows: Vec::new(),
        };
        let mut bytes = 0;
        let mut refused = None;
        let mut connection = self.lend_to_guest()?;
        let read = async {
            let query = sqlx::query_with(prepared.sql().clone(), arguments);
            let mut stream = query.fetch(&mut connection);
            while let Some(row) = stream.try_next().await? {
                // What is over the limit is read and dropped: the connection is of use again only
                // when the server has said everything, and the statement timeout bounds that.
                if refused.is_some() {
                    continue;
                }
                let values = match values(&row) {
                    Ok(values) => values,
                    Err(error) => {
                        refused = Some(error);
                        continue;
                    }
                };
                bytes += values
                    .iter()
                    .map(|value| value.size_bytes() as u64)
                    .sum::<u64>();
                if result.rows.len() as u64 == max_rows {
                    let text = format!("the result has more than {max_rows} rows");
                    refused = Some(StoreError::Limit(text));
                } else if bytes > max_bytes {
                    let text = format!("the result has more than {max_bytes} bytes");
                    refused = Some(StoreError::Limit(text));
                } else {
                    result.rows.push(values);
                }
            }
            Ok(())
        };
        let read = self.answered(read).await?;
        if let Err(error) = self.back(connection, read) {
            return Err(self.answer_of_bounded(error.guests(), max_bytes));
        }
        match refused {
            Some(error) => {
                self.fail();
                Err(error)
            }
            None => Ok(result),
        }
    }

    /// What an error means that may come from the statement around the guest's own.
    fn answer_of_bounded(&mut self, error: StoreError, max_bytes: u64) -> StoreError {
        match error {
            StoreError::Statement { message, .. } if message.contains(TOO_LONG) => {
                StoreError::Limit(format!(
                    "a row of the result has more than {max_bytes} bytes"
                ))
            }
            StoreError::Statement { code, message } => {
                // The table may have lost a column that the statement around it counts on: write that anew.
                self.stale_plans |= code.starts_with("42");
                StoreError::Statement { code, message }
            }
            error => error,
        }
    }

    pub(super) async fn guest_execute(
        &mut self,
        statement: &str,
        parameters: &[Value],
    ) -> Result<u64, StoreError> {
        let mut prepared = self.prepare(statement).await?;
        // Nobody looks at its rows: those that could be long are not sent.
        if let Some(text) = counted(statement, &prepared) {
            prepared = self.prepare(&text).await?;
        }
        let arguments = arguments(&prepared, parameters)?;
        let mut connection = self.lend_to_guest()?;
        let result = sqlx::query_with(prepared.sql().clone(), arguments).execute(&mut connection);
        let result = self.answered(result).await?;
        self.back(connection, result)
            .map(|done| done.rows_affected())
            .map_err(Refusal::guests)
    }

    /// One round trip for a text that the connection has not seen lately, else none.
    pub(super) async fn prepare(&mut self, statement: &str) -> Result<PgStatement, StoreError> {
        self.keep(statement).await?;
        // Its literals are read by their types' own functions.
        let mut connection = self.lend_to_guest()?;
        let result = connection.prepare(AssertSqlSafe(statement).into_sql_str());
        let result = self.answered(result).await?;
        self.back(connection, result).map_err(Refusal::guests)
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

/// The values of a row. What cannot be read is the message's to fail for: the tables are its
/// owner's, and so is what a server of another encoding keeps in them.
fn values(row: &PgRow) -> Result<Vec<Value>, StoreError> {
    let unreadable = |why: String| refuse("22021", why);
    row.columns()
        .iter()
        .map(|column| {
            let value = row
                .try_get_raw(column.ordinal())
                .map_err(|error| unreadable(error.to_string()))?;
            if value.is_null() {
                return Ok(Value::Null);
            }
            let bytes = value
                .as_bytes()
                .map_err(|error| unreadable(error.to_string()))?;
            decode(column.type_info(), bytes).ok_or_else(|| {
                unreadable(format!(
                    "the column {} holds what its type does not",
                    column.name()
                ))
            })
        })
        .collect()
}
