//! The statements of guests: values, limits, and errors that leave a way to go on.

use super::{Fixture, in_every_dialect};
use crate::store::{ConstraintKind, Session, StoreError, Value};

in_every_dialect! {
    every_kind_of_value_comes_back_as_it_went
    null_fits_everywhere
    one_parameter_may_stand_in_two_places
    a_wrong_number_of_values_is_refused_before_it_is_sent
    an_empty_result_has_its_columns
    a_result_over_its_limit_is_refused_whole
    a_value_over_the_limit_is_refused_whatever_makes_it
    rows_that_nobody_wants_are_counted
    each_kind_of_constraint_is_told_apart_and_leaves_the_transaction_usable
    writes_tell_how_many_rows_they_touched
    a_statement_that_runs_too_long_is_stopped
}

async fn rows(session: &mut dyn Session, statement: &str, parameters: &[Value]) -> Vec<Vec<Value>> {
    session
        .query(statement, parameters, 1_000, 1 << 20)
        .await
        .unwrap()
        .rows
}

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

async fn every_kind_of_value_comes_back_as_it_went(fixture: &Fixture) {
    let mut session = fixture.session().await;
    let cases = [
        ("BOOLEAN", Value::Bool(true)),
        ("BOOLEAN", Value::Bool(false)),
        ("BIGINT", Value::S64(i64::MIN)),
        ("INTEGER", Value::S64(-1)),
        ("SMALLINT", Value::S64(32_767)),
        ("DOUBLE PRECISION", Value::F64(-0.1)),
        ("DOUBLE PRECISION", Value::F64(f64::INFINITY)),
        ("TEXT", text("ü '\"\\ $1 \u{10ffff}")),
        ("TEXT", text("")),
        ("VARCHAR(20)", text("short")),
        (
            fixture.sql("BYTEA", "BLOB"),
            Value::Bytes((0..=255).collect()),
        ),
        (fixture.sql("BYTEA", "BLOB"), Value::Bytes(Vec::new())),
        ("NUMERIC", Value::Decimal("12345.5".to_owned())),
        ("TIMESTAMP", Value::Timestamp(1_767_323_045_000_006)),
        ("TIMESTAMP", Value::Timestamp(-1)),
        (
            "UUID",
            Value::Uuid("67e55044-10b1-426f-9247-bb680e5fe0c8".to_owned()),
        ),
        (
            "JSON",
            Value::Json("{\"a\": [1, null], \"b\":1.10}".to_owned()),
        ),
    ];
    for (index, (kind, value)) in cases.iter().enumerate() {
        let table = format!("t{index}");
        session
            .execute(&format!("CREATE TABLE {table} (v {kind})"), &[])
            .await
            .unwrap();
        let insert = format!("INSERT INTO {table} (v) VALUES ($1)");
        session
            .execute(&insert, std::slice::from_ref(value))
            .await
            .unwrap();
        let read = rows(&mut *session, &format!("SELECT v FROM {table}"), &[]).await;
        assert_eq!(read, [[value.clone()]], "{kind}");
    }
}

async fn null_fits_everywhere(fixture: &Fixture) {
    let mut session = fixture.session().await;
    let blob = fixture.sql("BYTEA", "BLOB");
    let table = format!(
        "CREATE TABLE t (a BIGINT, b TEXT, c {blob}, d NUMERIC, e UUID, f JSON, g TIMESTAMP, h BOOLEAN)"
    );
    session.execute(&table, &[]).await.unwrap();
    let nulls = vec![Value::Null; 8];
    session
        .execute(
            "INSERT INTO t VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            &nulls,
        )
        .await
        .unwrap();
    assert_eq!(rows(&mut *session, "SELECT * FROM t", &[]).await, [nulls]);
}

async fn one_parameter_may_stand_in_two_places(fixture: &Fixture) {
    let mut session = fixture.session().await;
    session
        .execute("CREATE TABLE t (a BIGINT, b BIGINT, c BIGINT)", &[])
        .await
        .unwrap();
    let values = [Value::S64(1), Value::S64(2)];
    session
        .execute("INSERT INTO t (a, b, c) VALUES ($2, $1, $2)", &values)
        .await
        .unwrap();
    assert_eq!(
        rows(&mut *session, "SELECT a, b, c FROM t", &[]).await,
        [[Value::S64(2), Value::S64(1), Value::S64(2)]]
    );
}

async fn a_wrong_number_of_values_is_refused_before_it_is_sent(fixture: &Fixture) {
    let mut session = fixture.session().await;
    session
        .execute("CREATE TABLE t (a BIGINT, b BIGINT)", &[])
        .await
        .unwrap();
    session.begin().await.unwrap();
    let one = [Value::S64(1)];
    let three = [Value::S64(1), Value::S64(2), Value::S64(3)];
    for values in [&[][..], &one, &three] {
        let error = session
            .execute("INSERT INTO t VALUES ($1, $2)", values)
            .await
            .unwrap_err();
        assert!(matches!(error, StoreError::Statement { .. }), "{error:?}");
        assert!(session.alive().await);
    }
    session
        .execute("INSERT INTO t VALUES ($1, $2)", &three[..2])
        .await
        .unwrap();
    session.commit().await.unwrap();
}

async fn an_empty_result_has_its_columns(fixture: &Fixture) {
    let mut session = fixture.session().await;
    session
        .execute("CREATE TABLE t (id BIGINT, name TEXT)", &[])
        .await
        .unwrap();
    let result = session
        .query("SELECT id, name AS called FROM t", &[], 10, 100)
        .await
        .unwrap();
    assert!(result.rows.is_empty());
    let columns: Vec<(&str, &str)> = result
        .columns
        .iter()
        .map(|column| (column.name.as_str(), column.kind.as_str()))
        .collect();
    assert_eq!(
        columns,
        [("id", fixture.sql("int8", "bigint")), ("called", "text")]
    );
}

async fn a_result_over_its_limit_is_refused_whole(fixture: &Fixture) {
    let mut session = fixture.session().await;
    session
        .execute("CREATE TABLE t (v TEXT)", &[])
        .await
        .unwrap();
    for _ in 0..10 {
        session
            .execute("INSERT INTO t VALUES ($1)", &[text("0123456789")])
            .await
            .unwrap();
    }
    let all = "SELECT v FROM t";
    assert_eq!(
        session.query(all, &[], 10, 100).await.unwrap().rows.len(),
        10
    );
    for (max_rows, max_bytes) in [(9, 100), (10, 99), (0, 100)] {
        let error = session
            .query(all, &[], max_rows, max_bytes)
            .await
            .unwrap_err();
        assert!(matches!(error, StoreError::Limit(_)), "{error:?}");
    }
    session.begin().await.unwrap();
    session.savepoint("hapax_statement").await.unwrap();
    session.query(all, &[], 1, 100).await.unwrap_err();
    session.rollback_to("hapax_statement").await.unwrap();
    assert!(session.alive().await);
    assert_eq!(
        session.query(all, &[], 10, 100).await.unwrap().rows.len(),
        10
    );
    session.commit().await.unwrap();
}

async fn a_value_over_the_limit_is_refused_whatever_makes_it(fixture: &Fixture) {
    let mut session = fixture.session().await;
    let table = "CREATE TABLE t (n BIGINT, note TEXT)";
    session.execute(table, &[]).await.unwrap();
    let long = [text(&"a".repeat(600))];
    for (statement, rows) in [
        ("SELECT 1 AS n, $1 || 'b' AS note", vec!["n", "note"]),
        ("SELECT $1 AS note ORDER BY 1 LIMIT 1", vec!["note"]),
        ("VALUES (1, $1)", vec!["column1", "column2"]),
        (
            "SELECT note, 'x' AS note FROM (SELECT $1 AS note) AS d",
            vec!["note", "note"],
        ),
        ("WITH a AS (SELECT $1 AS x) SELECT x FROM a", vec!["x"]),
        (
            "INSERT INTO t (n, note) VALUES (1, $1) RETURNING note, n",
            vec!["note", "n"],
        ),
        (
            "WITH a AS (SELECT $1 AS x) INSERT INTO t (n, note) SELECT 2, x FROM a RETURNING note",
            vec!["note"],
        ),
    ] {
        session.begin().await.unwrap();
        let found = session.query(statement, &long, 10, 1_000).await.unwrap();
        let names: Vec<&str> = found.columns.iter().map(|column| &*column.name).collect();
        assert_eq!((names, found.rows.len()), (rows, 1), "{statement}");
        session.rollback().await.unwrap();

        session.begin().await.unwrap();
        let error = session.query(statement, &long, 10, 500).await.unwrap_err();
        assert!(
            matches!(error, StoreError::Limit(_)),
            "{statement}: {error:?}"
        );
        session.rollback().await.unwrap();
    }
}

async fn rows_that_nobody_wants_are_counted(fixture: &Fixture) {
    let mut session = fixture.session().await;
    let table = "CREATE TABLE t (n BIGINT, note TEXT)";
    session.execute(table, &[]).await.unwrap();
    let insert = "INSERT INTO t (n, note) VALUES (1, $1), (2, 'b') RETURNING note";
    let touched = session.execute(insert, &[text("a")]).await.unwrap();
    assert_eq!(touched, 2);
    assert_eq!(rows(&mut *session, "SELECT n FROM t", &[]).await.len(), 2);
}

async fn each_kind_of_constraint_is_told_apart_and_leaves_the_transaction_usable(
    fixture: &Fixture,
) {
    let mut session = fixture.session().await;
    session
        .execute("CREATE TABLE parent (id BIGINT PRIMARY KEY)", &[])
        .await
        .unwrap();
    let table = "CREATE TABLE child (id BIGINT PRIMARY KEY, parent BIGINT REFERENCES parent (id), \
                 name TEXT NOT NULL, code TEXT CONSTRAINT child_code_key UNIQUE, \
                 age BIGINT CONSTRAINT child_age_check CHECK (age >= 0))";
    session.execute(table, &[]).await.unwrap();
    session
        .execute("INSERT INTO child VALUES (1, NULL, 'a', 'x', 1)", &[])
        .await
        .unwrap();
    let cases = [
        (
            "(1, NULL, 'a', 'y', 1)",
            ConstraintKind::Unique,
            Some(fixture.sql("child_pkey", "child.id")),
        ),
        (
            "(2, NULL, 'a', 'x', 1)",
            ConstraintKind::Unique,
            Some(fixture.sql("child_code_key", "child.code")),
        ),
        (
            "(2, 9, 'a', 'y', 1)",
            ConstraintKind::ForeignKey,
            fixture.is_postgres().then_some("child_parent_fkey"),
        ),
        (
            "(2, NULL, NULL, 'y', 1)",
            ConstraintKind::NotNull,
            Some("child.name"),
        ),
        (
            "(2, NULL, 'a', 'y', -1)",
            ConstraintKind::Check,
            Some("child_age_check"),
        ),
    ];
    session.begin().await.unwrap();
    for (values, kind, name) in cases {
        session.savepoint("hapax_statement").await.unwrap();
        let error = session
            .execute(&format!("INSERT INTO child VALUES {values}"), &[])
            .await
            .unwrap_err();
        let StoreError::Constraint(constraint) = error else {
            panic!("{values}: {error:?}")
        };
        assert_eq!(
            (constraint.kind, constraint.constraint.as_deref()),
            (kind, name),
            "{values}"
        );
        session.rollback_to("hapax_statement").await.unwrap();
        assert!(session.alive().await);
    }
    session
        .execute("INSERT INTO child VALUES (2, NULL, 'b', 'y', 1)", &[])
        .await
        .unwrap();
    session.commit().await.unwrap();
    assert_eq!(
        rows(&mut *session, "SELECT count(*) FROM child", &[]).await,
        [[Value::S64(2)]]
    );
}

async fn writes_tell_how_many_rows_they_touched(fixture: &Fixture) {
    let mut session = fixture.session().await;
    session
        .execute("CREATE TABLE t (n BIGINT)", &[])
        .await
        .unwrap();
    assert_eq!(
        session
            .execute("INSERT INTO t VALUES (1), (2), (3)", &[])
            .await
            .unwrap(),
        3
    );
    assert_eq!(
        session
            .execute("UPDATE t SET n = n + 1 WHERE n > $1", &[Value::S64(1)])
            .await
            .unwrap(),
        2
    );
    assert_eq!(
        session
            .execute("UPDATE t SET n = 0 WHERE n > $1", &[Value::S64(99)])
            .await
            .unwrap(),
        0
    );
    assert_eq!(session.execute("DELETE FROM t", &[]).await.unwrap(), 3);
    let returned = rows(&mut *session, "INSERT INTO t VALUES (7) RETURNING n", &[]).await;
    assert_eq!(returned, [[Value::S64(7)]]);
}

async fn a_statement_that_runs_too_long_is_stopped(fixture: &Fixture) {
    let mut session = fixture.session().await;
    session.begin().await.unwrap();
    // The timeout of the other tests is too long to wait for.
    let endless = if fixture.is_postgres() {
        session
            .execute("SET LOCAL statement_timeout = 100", &[])
            .await
            .unwrap();
        "SELECT pg_sleep(60)"
    } else {
        session.rollback().await.unwrap();
        let directory = fixture.directory.as_ref().unwrap();
        let options = crate::store::SessionOptions {
            statement_timeout: std::time::Duration::from_millis(100),
            ..super::OPTIONS
        };
        let store =
            crate::store::sqlite::SqliteStore::open(&directory.join("quick.db"), options).unwrap();
        session = crate::store::Store::session(&store, "quick").await.unwrap();
        session.begin().await.unwrap();
        "WITH RECURSIVE n (n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM n) SELECT count(*) FROM n"
    };
    let error = session.execute(endless, &[]).await.unwrap_err();
    assert!(matches!(error, StoreError::Limit(_)), "{error:?}");
    session.rollback().await.unwrap();
    session.ping().await.unwrap();
}
