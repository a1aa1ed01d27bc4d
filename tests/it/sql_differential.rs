//! Every statement of the corpus that the rules allow runs on the real database, and the tables that the database
//! touches are compared with those that the rules have found. PostgreSQL tells by its locks, SQLite by the program
//! that it has compiled. Whatever ran, the session is afterwards what it was.

#[path = "../fixtures/sql/reader.rs"]
mod reader;

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, ensure};
use hapax::effects::sql::rules::{Grants, Rules, Statement};
use hapax::store::postgres::PostgresStore;
use hapax::store::{Dialect, Session, SessionOptions, Store as _, StoreError, Value};
use sqlx::postgres::PgConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, PgConnection, Row, SqliteConnection};

use crate::Checked;
use crate::support::place::Place;
use crate::support::store::Store;

const POSTGRES_TABLES: &str = r#"
    CREATE SCHEMA shop;
    CREATE TYPE order_status AS ENUM ('new', 'paid');
    CREATE FUNCTION score(integer) RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT $1';
    CREATE FUNCTION shop.rank_of(integer, integer) RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT $1';
    CREATE TABLE t_orders (
        id BIGINT CONSTRAINT t_orders_pkey UNIQUE, user_id BIGINT, open BOOLEAN, n INTEGER, state TEXT, note TEXT,
        amount_cents BIGINT, data JSONB, tags TEXT[], created_at TIMESTAMPTZ, closed BOOLEAN, sku TEXT,
        price NUMERIC, "naïve" TEXT
    );
    CREATE TABLE t_lines (order_id BIGINT);
    CREATE TABLE t_users (id BIGINT);
    CREATE TABLE t_prices (sku TEXT, price NUMERIC, n INTEGER, p INTEGER);
    CREATE TABLE "T_Mixed" (id BIGINT);
    CREATE TABLE shop.t_rates (currency TEXT, rate NUMERIC);
    CREATE TABLE shop.t_stock (sku TEXT, n INTEGER);
    INSERT INTO t_prices VALUES ('a', 1, 1, 1);
"#;

const SQLITE_TABLES: &str = r#"
    ATTACH ':memory:' AS shop;
    CREATE TABLE t_orders (
        id INTEGER UNIQUE, user_id INTEGER, n INTEGER, m INTEGER, state TEXT, note TEXT, amount_cents INTEGER,
        data TEXT, created_at TEXT, sku TEXT, price NUMERIC, "größe" TEXT
    );
    CREATE TABLE t_lines (order_id INTEGER);
    CREATE TABLE t_users (id INTEGER);
    CREATE TABLE t_prices (sku TEXT, price NUMERIC, n INTEGER, p INTEGER);
    CREATE TABLE t_mixed (id INTEGER);
    CREATE TABLE shop.t_rates (currency TEXT, rate NUMERIC);
    CREATE TABLE shop.t_stock (sku TEXT, n INTEGER);
"#;

/// Allowed by the rules, which know no types; refused by these tables.
const POSTGRES_REFUSES: &[&str] = &[
    "SELECT $1::order_status, cast($2 AS order_status), NULL::inet",
    "SELECT (amount_cents * 119 + 50) / 100 % 7 ^ 2, -amount_cents, +1, ~1, 1 << 2, 1 & 3 | 4 # 5 FROM t_orders",
    "SELECT * FROM t_orders WHERE created_at > $1 - INTERVAL '1 day' AND created_at < DATE '2030-01-01'",
    "SELECT cast(amount_cents AS numeric(10, 2)), amount_cents::double precision, note::varchar(10), id::uuid::text FROM t_orders",
];

/// The same. The functions are those that the owner of the database would have made, or that SQLite has where it was
/// built with them.
const SQLITE_REFUSES: &[&str] = &[
    "INSERT INTO t_orders VALUES ($1, -1, TRUE)",
    "SELECT * FROM generate_series(1, 10)",
    "SELECT max(1, n), min(n, 2), abs(n), round(n, 2), sign(n), ceil(n), floor(n), pow(n, 2) FROM t_orders",
    "SELECT score($1)",
    "WITH p AS (SELECT * FROM t_prices) INSERT INTO t_orders SELECT * FROM p",
];

/// Tables by what was done to them.
#[derive(Debug, Default, PartialEq, Eq)]
struct Touched {
    any: BTreeSet<String>,
    written: BTreeSet<String>,
}

impl Touched {
    fn by_the_rules(statement: &Statement) -> Self {
        let names = |tables: &BTreeSet<_>| tables.iter().map(ToString::to_string).collect();
        let written: BTreeSet<String> = names(&statement.writes);
        let mut any: BTreeSet<String> = names(&statement.reads);
        any.extend(written.iter().cloned());
        Self { any, written }
    }
}

/// The statements of the corpus that are allowed, as the rules see them.
fn allowed(dialect: Dialect, file: &str) -> anyhow::Result<Vec<std::sync::Arc<Statement>>> {
    let path = format!(
        "{}/../tests/fixtures/sql/{file}",
        env!("CARGO_MANIFEST_DIR")
    );
    let cases = reader::parse(&std::fs::read_to_string(path)?);
    let read = ["t_prices", "shop.t_rates", "\"T_Mixed\""];
    let write = ["t_orders", "t_lines", "t_users", "shop.t_stock"];
    let functions = [
        "score",
        "shop.rank_of",
        "generate_series",
        "unnest",
        "order_status",
    ];
    let grants = Grants::new(dialect, &read, &write, &functions)
        .map_err(|bad| anyhow::anyhow!("{bad:?}"))?;
    let rules = Rules::new(dialect, &grants, 0);
    let allowed: Vec<_> = cases
        .iter()
        .filter(|case| case.verdict.starts_with("allowed"))
        .map(|case| {
            rules
                .check(&case.text)
                .map_err(|refusal| anyhow::anyhow!("{refusal}"))
        })
        .collect::<Result<_, _>>()?;
    ensure!(allowed.len() >= 70, "only {} are allowed", allowed.len());
    Ok(allowed)
}

/// Insists that exactly these statements did not run.
fn assert_refused(refused: &BTreeMap<String, String>, expected: &[&str]) -> Checked {
    let found: BTreeSet<&str> = refused.keys().map(String::as_str).collect();
    let expected: BTreeSet<&str> = expected.iter().copied().collect();
    ensure!(found == expected, "these did not run: {refused:#?}");
    Ok(())
}

pub async fn what_is_allowed_touches_what_was_granted_on_postgres(_place: &Place) -> Checked {
    let store = Store::postgres().await?;
    store.execute(POSTGRES_TABLES).await?;
    let options = SessionOptions {
        statement_timeout: Duration::from_secs(10),
        lock_timeout: Duration::from_secs(10),
        idle_timeout: Duration::from_secs(60),
    };
    let hapax = PostgresStore::new(&store.url, "public", options)?;
    let mut session = hapax.session("differential").await?;
    let mut observer = PgConnectOptions::from_str(&store.url)?.connect().await?;

    let mut refused = BTreeMap::new();
    for statement in allowed(Dialect::Postgres, "postgres.txt")? {
        let nulls = vec![Value::Null; usize::from(statement.parameters)];
        session.begin().await?;
        let before = state(&mut *session).await?;
        session.savepoint("sp").await?;
        let missing = session.missing_column(&statement.named_columns).await?;
        ensure!(missing.is_none(), "{}: {missing:?}", statement.text);
        match session.query(&statement.text, &nulls, 1_000, 1 << 20).await {
            Ok(_) => {
                let touched = locked(&mut observer).await?;
                let expected = Touched::by_the_rules(&statement);
                ensure!(
                    touched == expected,
                    "{}\nPostgreSQL: {touched:?}\nthe rules:  {expected:?}",
                    statement.text
                );
                session.release("sp").await?;
            }
            Err(error @ (StoreError::Statement { .. } | StoreError::Constraint(_))) => {
                refused.insert(statement.text.clone(), error.to_string());
                session.rollback_to("sp").await?;
            }
            Err(error) => return Err(error).context(statement.text.clone()),
        }
        let after = state(&mut *session).await?;
        ensure!(
            before == after,
            "{}\nbefore {before:?}\nafter {after:?}",
            statement.text
        );
        session.rollback().await?;
    }
    assert_refused(&refused, POSTGRES_REFUSES)
}

/// Everything that a statement could change of a session, its transaction included.
async fn state(session: &mut dyn Session) -> anyhow::Result<Vec<String>> {
    let query = "SELECT name || '=' || setting FROM pg_settings \
         UNION ALL SELECT 'role=' || current_user || ' of ' || session_user \
         UNION ALL SELECT 'transaction=' || pg_current_xact_id()::text \
         UNION ALL SELECT 'advisory locks=' || count(*) FROM pg_locks \
             WHERE locktype = 'advisory' AND pid = pg_backend_pid() \
         UNION ALL SELECT 'temporary schema=' || pg_my_temp_schema()::text \
         UNION ALL SELECT 'channels=' || count(*) FROM pg_listening_channels() \
         UNION ALL SELECT 'cursors=' || count(*) FROM pg_cursors WHERE is_holdable \
         ORDER BY 1";
    let rows = session.query(query, &[], 10_000, 1 << 20).await?.rows;
    let text = |row: Vec<Value>| match row.into_iter().next() {
        Some(Value::Text(text)) => Ok(text),
        other => anyhow::bail!("not a text: {other:?}"),
    };
    let state = rows
        .into_iter()
        .map(text)
        .collect::<anyhow::Result<Vec<_>>>()?;
    for setting in [
        "search_path=public, public",
        "standard_conforming_strings=on",
        "TimeZone=UTC",
    ] {
        ensure!(
            state.iter().any(|line| line == setting),
            "{setting} is not in {state:?}"
        );
    }
    Ok(state)
}

/// The tables on which the session holds locks. A row lock counts as a write, as it does for the rules.
async fn locked(observer: &mut PgConnection) -> anyhow::Result<Touched> {
    let locks = sqlx::query(
        "SELECT CASE n.nspname WHEN 'public' THEN c.relname ELSE n.nspname || '.' || c.relname END, l.mode \
         FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid AND a.application_name = 'differential' \
             AND a.datname = current_database() \
         JOIN pg_class c ON c.oid = l.relation JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE l.locktype = 'relation' AND c.relkind IN ('r', 'v', 'p') AND n.nspname IN ('public', 'shop') \
             AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())",
    )
    .fetch_all(observer)
    .await?;
    let mut touched = Touched::default();
    for lock in locks {
        let table: String = lock.try_get(0)?;
        match lock.try_get::<&str, _>(1)? {
            "AccessShareLock" => {}
            "RowShareLock" | "RowExclusiveLock" => {
                touched.written.insert(table.clone());
            }
            stronger => anyhow::bail!("{table} is locked with {stronger}"),
        }
        touched.any.insert(table);
    }
    Ok(touched)
}

pub async fn what_is_allowed_touches_what_was_granted_on_sqlite(_place: &Place) -> Checked {
    let mut connection = SqliteConnectOptions::from_str("sqlite::memory:")?
        .connect()
        .await?;
    connection.execute(SQLITE_TABLES).await?;
    let tables = tables(&mut connection).await?;
    let mut refused = BTreeMap::new();
    for statement in allowed(Dialect::Sqlite, "sqlite.txt")? {
        let touched = match opened(&mut connection, &statement.text, &tables).await {
            Ok(touched) => touched,
            Err(error) => {
                refused.insert(statement.text.clone(), error.to_string());
                continue;
            }
        };
        let expected = Touched::by_the_rules(&statement);
        ensure!(
            touched == expected,
            "{}\nSQLite:    {touched:?}\nthe rules: {expected:?}",
            statement.text
        );
        connection.execute("BEGIN").await?;
        let mut query = sqlx::query(AssertSqlSafe(statement.text.clone()));
        for number in 1..=i64::from(statement.parameters) {
            query = query.bind(number);
        }
        query
            .fetch_all(&mut connection)
            .await
            .context(statement.text.clone())?;
        // Without a transaction there would be nothing to roll back, and SQLite would say so.
        connection.execute("ROLLBACK").await?;
    }
    assert_refused(&refused, SQLITE_REFUSES)
}

/// Tables by database and root page; an index counts as its table.
async fn tables(connection: &mut SqliteConnection) -> anyhow::Result<BTreeMap<(i64, i64), String>> {
    let mut tables = BTreeMap::new();
    for (number, database, prefix) in [(0, "main", ""), (2, "shop", "shop.")] {
        let query =
            format!("SELECT rootpage, tbl_name FROM {database}.sqlite_schema WHERE rootpage > 0");
        for row in sqlx::query(AssertSqlSafe(query))
            .fetch_all(&mut *connection)
            .await?
        {
            let name: String = row.try_get(1)?;
            tables.insert((number, row.try_get(0)?), format!("{prefix}{name}"));
        }
    }
    Ok(tables)
}

/// The tables that the compiled statement opens.
async fn opened(
    connection: &mut SqliteConnection,
    statement: &str,
    tables: &BTreeMap<(i64, i64), String>,
) -> anyhow::Result<Touched> {
    let program = sqlx::query(AssertSqlSafe(format!("EXPLAIN {statement}")))
        .fetch_all(connection)
        .await?;
    let mut touched = Touched::default();
    for step in program {
        let opcode: String = step.try_get("opcode")?;
        let (database, root): (i64, i64) = match opcode.as_str() {
            "OpenRead" | "OpenWrite" | "ReopenIdx" => (step.try_get("p3")?, step.try_get("p2")?),
            "Clear" => (step.try_get("p2")?, step.try_get("p1")?),
            _ => continue,
        };
        let table = tables
            .get(&(database, root))
            .context("a table that was not made here")?;
        if matches!(opcode.as_str(), "OpenWrite" | "Clear") {
            touched.written.insert(table.clone());
        }
        touched.any.insert(table.clone());
    }
    Ok(touched)
}
