//! What only Postgres has: types, several hosts, servers that go away.

use std::str::FromStr;

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Executor};

use super::{Fixture, eventually, message, on_a_server};
use crate::store::postgres::PostgresStore;
use crate::store::{HostId, NamedColumn, OutboxRow, RowsInsert, Session, Store, StoreError, Value};

on_a_server! {
    a_dead_transaction_refuses_the_commit_that_is_sent
    types_are_read_as_they_are
    many_rows_are_written_as_they_would_be_one_by_one
    rows_of_a_type_without_arrays_are_left_to_the_common_way
    a_value_that_does_not_fit_is_refused_before_it_is_sent
    text_takes_the_type_of_its_place
    a_type_without_a_value_of_its_own_is_told_how_to_be_written
    a_table_that_changes_under_a_statement_is_met_again
    a_name_that_is_no_column_is_told_before_it_is_a_call
    a_table_that_something_looks_at_is_not_plain
    what_writes_in_a_with_may_return_text
    a_session_that_was_ended_by_the_server_is_unavailable
    a_commit_without_an_answer_is_in_doubt
    a_deferred_constraint_is_checked_with_its_statement
    a_constraint_that_refuses_the_commit_leaves_nothing_in_doubt
    a_deadlock_is_a_conflict
    an_older_row_that_another_host_is_taking_holds_back_the_younger
    tables_that_are_not_there_are_told_apart_from_a_failing_statement
    a_server_that_is_not_there_is_unavailable
    the_role_cannot_weaken_a_session
    two_schemas_do_not_share_their_hosts
    what_a_given_up_session_holds_is_free_for_the_next_of_its_name
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

fn other(kind: &str, text: &str) -> Value {
    Value::Other {
        kind: kind.to_owned(),
        text: text.to_owned(),
    }
}

/// Even where a session does not know that its transaction is dead.
async fn a_dead_transaction_refuses_the_commit_that_is_sent(fixture: &Fixture) {
    let options = PgConnectOptions::from_str(fixture.postgres_url.as_ref().unwrap()).unwrap();
    let mut connection = options.connect().await.unwrap();
    connection.execute("BEGIN").await.unwrap();
    connection.execute("SELECT 1 / 0").await.unwrap_err();
    connection
        .execute("SET LOCAL statement_timeout = 0; COMMIT")
        .await
        .unwrap_err();
    connection
        .execute("COMMIT")
        .await
        .expect("Postgres answers a plain COMMIT as if all was well");
}

async fn types_are_read_as_they_are(fixture: &Fixture) {
    let mut session = fixture.session().await;
    session
        .execute("CREATE TYPE mood AS ENUM ('sad', 'fine')", &[])
        .await
        .unwrap();
    session
        .execute("CREATE DOMAIN age AS int CHECK (VALUE > 0)", &[])
        .await
        .unwrap();
    let big = "9".repeat(200) + "." + &"1".repeat(100);
    let cases = [
        ("1::int2", Value::S64(1)),
        ("2::int4", Value::S64(2)),
        ("1.5::float4", Value::F64(1.5)),
        ("'NaN'::numeric", Value::Decimal("NaN".to_owned())),
        ("'Infinity'::numeric", Value::Decimal("Infinity".to_owned())),
        ("12.500::numeric", Value::Decimal("12.500".to_owned())),
        ("-0.00001::numeric", Value::Decimal("-0.00001".to_owned())),
        (
            "1e20::numeric",
            Value::Decimal("100000000000000000000".to_owned()),
        ),
        (&*format!("{big}::numeric"), Value::Decimal(big.clone())),
        ("'abc'::char(5)", text("abc  ")),
        ("'abc'::name", text("abc")),
        (
            "'2026-01-02 03:04:05.000006+00'::timestamptz",
            Value::Timestamp(1_767_323_045_000_006),
        ),
        (
            "'2026-01-02 03:04:05.000006'::timestamp",
            Value::Timestamp(1_767_323_045_000_006),
        ),
        ("'infinity'::timestamptz", other("timestamptz", "infinity")),
        ("'2026-01-02'::date", other("date", "2026-01-02")),
        ("'1969-12-31'::date", other("date", "1969-12-31")),
        ("'03:04:05.5'::time", other("time", "03:04:05.500000")),
        (
            "'03:04:05+02:30'::timetz",
            other("timetz", "03:04:05+02:30"),
        ),
        (
            "'1 year 2 days 3.5 seconds'::interval",
            other("interval", "P12M2DT3.500000S"),
        ),
        (
            "'{\"b\": 1,  \"a\": 2}'::jsonb",
            Value::Json("{\"a\": 2, \"b\": 1}".to_owned()),
        ),
        ("'{\"b\":  1}'::json", Value::Json("{\"b\":  1}".to_owned())),
        ("'fine'::mood", other("mood", "fine")),
        ("7::age", Value::S64(7)),
        ("ARRAY[1, NULL, 3]", other("int4[]", "{1,NULL,3}")),
        (
            "ARRAY[['a', 'b c'], ['', 'null']]",
            other("text[]", "{{a,\"b c\"},{\"\",\"null\"}}"),
        ),
        ("'{}'::uuid[]", other("uuid[]", "{}")),
        ("NULL::inet::text", Value::Null),
    ];
    for (expression, value) in cases {
        let read = rows(&mut *session, &format!("SELECT {expression}"), &[]).await;
        assert_eq!(read, [[value]], "{expression}");
    }
    for (value, again) in [("{1,NULL,3}", "SELECT $1::text::int4[] = ARRAY[1, NULL, 3]")] {
        assert_eq!(
            rows(&mut *session, again, &[text(value)]).await,
            [[Value::Bool(true)]]
        );
    }
    let interval = rows(
        &mut *session,
        "SELECT $1::text::interval = '1 year 2 days 3.5 seconds'",
        &[text("P12M2DT3.500000S")],
    )
    .await;
    assert_eq!(interval, [[Value::Bool(true)]]);
}

const EVERY_TYPE: &str = "CREATE TABLE t_every (a boolean, b bytea, c bigint, d smallint, e integer, f text, \
     g json, h real, i double precision, j char(4), k varchar(8), l date, m timestamp, n timestamptz, \
     o numeric(12, 3), p uuid, q jsonb)";

const EVERY_HEAD: &str = "INSERT INTO t_every (a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q) ";

async fn many_rows_are_written_as_they_would_be_one_by_one(fixture: &Fixture) {
    let row = |number: i64| {
        vec![
            Value::Bool(number % 2 == 0),
            Value::Bytes(vec![0, number as u8, 255]),
            Value::S64(number << 40),
            Value::S64(-number),
            Value::S64(number),
            text("é'\"{,}\\ NULL"),
            Value::Json(format!("{{\"n\": {number}}}")),
            Value::F64(0.5),
            Value::F64(-1.25e300),
            text("ab"),
            text(""),
            text("2026-02-28"),
            Value::Timestamp(1_700_000_000_123_456),
            Value::Timestamp(-1),
            Value::Decimal(format!("{number}.125")),
            Value::Uuid("00000000-0000-4000-8000-00000000002a".to_owned()),
            Value::Json("[1, null]".to_owned()),
        ]
    };
    let mut values = (1..=300).map(row).collect::<Vec<_>>();
    values.push(vec![Value::Null; 17]);
    let rows = values.iter().map(|row| &row[..]).collect::<Vec<_>>();
    let order = (1..=17).collect::<Vec<u16>>();
    let places = order.iter().map(|n| format!("${n}")).collect::<Vec<_>>();
    let one = format!("{EVERY_HEAD}VALUES ({})", places.join(", "));
    let mut session = fixture.session().await;
    session.execute(EVERY_TYPE, &[]).await.unwrap();
    session.begin().await.unwrap();
    let insert = RowsInsert {
        text: &one,
        head: EVERY_HEAD,
        order: &order,
        rows: &rows,
    };
    let touched = session.insert_rows(insert).await.unwrap();
    assert_eq!(touched, Some(rows.len() as u64));
    const ALL: &str = "SELECT CAST(t_every AS text) FROM t_every";
    let together = self::rows(&mut *session, ALL, &[]).await;
    session.execute("DELETE FROM t_every", &[]).await.unwrap();
    for row in &rows {
        session.execute(&one, row).await.unwrap();
    }
    assert_eq!(self::rows(&mut *session, ALL, &[]).await, together);
    assert_eq!(together.len(), 301);
    session.rollback().await.unwrap();
}

async fn rows_of_a_type_without_arrays_are_left_to_the_common_way(fixture: &Fixture) {
    let mut session = fixture.session().await;
    for statement in [
        "CREATE DOMAIN positive AS integer CHECK (VALUE > 0)",
        "CREATE TABLE t_domain (n positive)",
    ] {
        session.execute(statement, &[]).await.unwrap();
    }
    session.begin().await.unwrap();
    let insert = RowsInsert {
        text: "INSERT INTO t_domain (n) VALUES ($1)",
        head: "INSERT INTO t_domain (n) ",
        order: &[1],
        rows: &[&[Value::S64(1)], &[Value::S64(2)]],
    };
    assert_eq!(session.insert_rows(insert).await.unwrap(), None);
    let count = rows(&mut *session, "SELECT count(*) FROM t_domain", &[]).await;
    assert_eq!(count, [[Value::S64(0)]]);
    session.rollback().await.unwrap();
}

async fn a_value_that_does_not_fit_is_refused_before_it_is_sent(fixture: &Fixture) {
    let mut session = fixture.session().await;
    session.begin().await.unwrap();
    let cases = [
        ("int2", Value::S64(32_768)),
        ("int4", Value::S64(1 << 31)),
        ("int4", Value::F64(1.0)),
        ("int4", text("1.5")),
        ("int8", Value::Decimal("9223372036854775808".to_owned())),
        ("float8", Value::S64((1 << 53) + 1)),
        ("float4", Value::F64(1e300)),
        ("bool", Value::S64(1)),
        ("text", Value::S64(1)),
        ("text", text("a\0b")),
        ("bytea", text("a")),
        ("uuid", text("67e55044")),
        ("jsonb", Value::Json("{".to_owned())),
        ("jsonb", Value::Json("\"\\u0000\"".to_owned())),
        ("json", text("1 2")),
        ("numeric", text("one")),
        ("timestamptz", Value::Timestamp(i64::MIN)),
        ("timestamptz", text("yesterday")),
        ("date", text("2026-02-30")),
    ];
    for (kind, value) in cases {
        let error = session
            .query(
                &format!("SELECT $1::{kind}"),
                std::slice::from_ref(&value),
                1,
                100,
            )
            .await;
        let Err(StoreError::Statement { code, .. }) = &error else {
            panic!("{kind} {value:?}: {error:?}")
        };
        assert!(code.starts_with("22"), "{kind} {value:?}: {code}");
        assert!(session.alive().await, "{kind} {value:?}");
    }
    session.commit().await.unwrap();
}

async fn text_takes_the_type_of_its_place(fixture: &Fixture) {
    let mut session = fixture.session().await;
    session
        .execute("CREATE TYPE mood AS ENUM ('sad', 'fine')", &[])
        .await
        .unwrap();
    let cases = [
        ("int4", text("-7"), Value::S64(-7)),
        (
            "uuid",
            text("67E5504410B1426F9247BB680E5FE0C8"),
            Value::Uuid("67e55044-10b1-426f-9247-bb680e5fe0c8".to_owned()),
        ),
        ("numeric", Value::S64(5), Value::Decimal("5".to_owned())),
        ("numeric", Value::F64(0.1), Value::Decimal("0.1".to_owned())),
        ("numeric", text("1.50"), Value::Decimal("1.50".to_owned())),
        ("float8", Value::S64(3), Value::F64(3.0)),
        (
            "timestamptz",
            text("2026-01-02T05:04:05.000006+02:00"),
            Value::Timestamp(1_767_323_045_000_006),
        ),
        ("date", text("2026-01-02"), other("date", "2026-01-02")),
        ("date", Value::Timestamp(-1), other("date", "1969-12-31")),
        ("mood", text("sad"), other("mood", "sad")),
        ("mood", other("mood", "fine"), other("mood", "fine")),
        ("jsonb", text("[1,2]"), Value::Json("[1, 2]".to_owned())),
        (
            "jsonb",
            Value::Json("\"\\\\u0000\"".to_owned()),
            Value::Json("\"\\\\u0000\"".to_owned()),
        ),
        ("bool", text("true"), Value::Bool(true)),
    ];
    for (kind, value, read) in cases {
        assert_eq!(
            rows(&mut *session, &format!("SELECT $1::{kind}"), &[value]).await,
            [[read]],
            "{kind}"
        );
    }
}

async fn a_type_without_a_value_of_its_own_is_told_how_to_be_written(fixture: &Fixture) {
    let mut session = fixture.session().await;
    session.begin().await.unwrap();
    let error = session
        .query("SELECT $1::inet", &[text("127.0.0.1")], 1, 100)
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("CAST($1 AS text)::inet"),
        "{error}"
    );
    let error = session
        .query("SELECT '127.0.0.1'::inet AS address", &[], 1, 100)
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("the column address has the type inet"),
        "{error}"
    );
    assert!(session.alive().await);
    let read = rows(
        &mut *session,
        "SELECT CAST($1 AS text)::inet::text",
        &[text("127.0.0.1")],
    )
    .await;
    assert_eq!(read, [[text("127.0.0.1/32")]]);
    session.commit().await.unwrap();
}

async fn a_table_that_changes_under_a_statement_is_met_again(fixture: &Fixture) {
    let mut session = fixture.session().await;
    session
        .execute("CREATE TABLE t (a int)", &[])
        .await
        .unwrap();
    session
        .execute("INSERT INTO t VALUES (1)", &[])
        .await
        .unwrap();
    assert_eq!(
        rows(&mut *session, "SELECT * FROM t", &[]).await,
        [[Value::S64(1)]]
    );
    fixture
        .session()
        .await
        .execute("ALTER TABLE t ADD COLUMN b text", &[])
        .await
        .unwrap();
    session.begin().await.unwrap();
    let error = session
        .query("SELECT * FROM t", &[], 10, 100)
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Conflict(_)), "{error:?}");
    session.rollback().await.unwrap();
    session.begin().await.unwrap();
    assert_eq!(
        rows(&mut *session, "SELECT * FROM t", &[]).await,
        [[Value::S64(1), Value::Null]]
    );
    session.commit().await.unwrap();
}

async fn backend(session: &mut dyn Session) -> Value {
    rows(session, "SELECT pg_backend_pid()", &[])
        .await
        .remove(0)
        .remove(0)
}

/// The case that the rules of SQL rely on, and what happens where nobody asks.
async fn a_name_that_is_no_column_is_told_before_it_is_a_call(fixture: &Fixture) {
    let mut session = fixture.session().await;
    for statement in [
        "CREATE TABLE t (id BIGINT, gone BIGINT, \"Odd\" BIGINT)",
        "ALTER TABLE t DROP COLUMN gone",
        "CREATE VIEW v AS SELECT id AS seen FROM t",
        "CREATE FUNCTION archive(t) RETURNS BIGINT LANGUAGE sql AS 'SELECT 7::bigint'",
        "INSERT INTO t VALUES (1)",
    ] {
        session.execute(statement, &[]).await.unwrap();
    }
    let call = rows(&mut *session, "SELECT t.archive FROM t", &[]).await;
    assert_eq!(call, [[Value::S64(7)]], "PostgreSQL calls the function");
    let column = |name: &str, tables: &[&str]| NamedColumn {
        name: name.to_owned(),
        tables: tables
            .iter()
            .map(|table| match table.split_once('.') {
                Some((schema, table)) => (Some(schema.to_owned()), table.to_owned()),
                None => (None, (*table).to_owned()),
            })
            .collect(),
    };
    for (column, known) in [
        (column("id", &["t"]), true),
        (column("Odd", &["t"]), true),
        (column("seen", &["v"]), true),
        (column("seen", &["t", "v"]), true),
        (column("archive", &["t"]), false),
        (column("archive", &["t", "v"]), false),
        (column("gone", &["t"]), false),
        (column("odd", &["t"]), false),
        (column("id", &["nowhere"]), false),
        (column("id", &["nowhere.t"]), false),
        (column("xmin", &["v"]), false),
    ] {
        let columns = [column];
        let missing = session.missing_column(&columns).await.unwrap();
        assert_eq!(missing.is_none(), known, "{columns:?}");
    }
    let columns = [column("id", &["t"]), column("archive", &["t"])];
    assert_eq!(session.missing_column(&columns).await.unwrap(), Some(1));
}

async fn a_table_that_something_looks_at_is_not_plain(fixture: &Fixture) {
    let mut session = fixture.session().await;
    for statement in [
        "CREATE FUNCTION two() RETURNS bigint LANGUAGE sql AS 'SELECT 2::bigint'",
        "CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "CREATE DOMAIN small AS bigint CHECK (VALUE < 10)",
        "CREATE TABLE parent (id bigint PRIMARY KEY)",
        "CREATE TABLE plain (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, parent bigint REFERENCES parent, \
         at timestamptz DEFAULT now(), total bigint CHECK (total > 0), twice bigint GENERATED ALWAYS AS (total * 2) STORED)",
        "CREATE INDEX ON plain (abs(total))",
        "CREATE TABLE \"Odd\" (id bigint)",
        "CREATE TABLE own_default (id bigint DEFAULT two())",
        "CREATE TABLE own_check (id bigint CHECK (id > two()))",
        "CREATE TABLE of_a_domain (id small)",
        "CREATE TABLE of_domains (ids small[])",
        "CREATE TYPE pair AS (one bigint, other small)",
        "CREATE TABLE of_a_pair (id pair)",
        "CREATE TABLE cast_to_a_domain (id bigint CHECK (id::small > 1))",
        "CREATE FUNCTION same(bigint, text) RETURNS boolean LANGUAGE sql AS 'SELECT true'",
        "CREATE OPERATOR === (LEFTARG = bigint, RIGHTARG = text, FUNCTION = same)",
        "CREATE TABLE own_operator (id bigint CHECK (id === 'x'))",
        "CREATE FUNCTION three(bigint) RETURNS bigint IMMUTABLE LANGUAGE sql AS 'SELECT $1'",
        "CREATE TABLE own_index (id bigint)",
        "CREATE UNIQUE INDEX ON own_index (three(id))",
        "CREATE TYPE mood AS ENUM ('good', 'bad')",
        "CREATE TABLE of_an_enum (id mood DEFAULT 'good', tags text[], seen tstzrange, \
         EXCLUDE USING gist (seen WITH &&))",
        "CREATE TABLE tree (id bigint PRIMARY KEY, above bigint REFERENCES tree)",
        "CREATE TABLE policed (id bigint)",
        "ALTER TABLE policed ENABLE ROW LEVEL SECURITY",
        "CREATE TABLE ruled (id bigint)",
        "CREATE RULE nothing AS ON INSERT TO ruled DO INSTEAD NOTHING",
        "CREATE TABLE watched (id bigint)",
        "CREATE TRIGGER look AFTER INSERT ON watched EXECUTE FUNCTION look()",
        "CREATE VIEW seen AS SELECT id FROM parent",
        "CREATE TABLE parted (id bigint) PARTITION BY RANGE (id)",
        "CREATE TABLE part PARTITION OF parted DEFAULT",
    ] {
        session.execute(statement, &[]).await.unwrap();
    }
    for (schema, table, plain) in [
        (None, "plain", true),
        (None, "parent", true),
        (None, "Odd", true),
        (Some(fixture.name.as_str()), "plain", true),
        (None, "odd", false),
        (Some("nowhere"), "plain", false),
        (None, "of_an_enum", true),
        (None, "of_domains", false),
        (None, "of_a_pair", false),
        (None, "cast_to_a_domain", false),
        (None, "own_operator", false),
        (None, "own_index", false),
        (None, "part", false),
        (None, "own_default", false),
        (None, "own_check", false),
        (None, "of_a_domain", false),
        (None, "tree", false),
        (None, "policed", false),
        (None, "ruled", false),
        (None, "watched", false),
        (None, "seen", false),
        (None, "parted", false),
        (None, "nowhere", false),
    ] {
        let answer = session.is_plain(schema, table).await.unwrap();
        assert_eq!(answer, plain, "{schema:?} {table}");
    }
}

/// It has to stay in the outermost WITH of what runs.
async fn what_writes_in_a_with_may_return_text(fixture: &Fixture) {
    let mut session = fixture.session().await;
    for statement in [
        "CREATE TABLE t (note TEXT)",
        "INSERT INTO t VALUES ('a'), ('b')",
    ] {
        session.execute(statement, &[]).await.unwrap();
    }
    let moved = "WITH gone AS (DELETE FROM t WHERE note <> $1 RETURNING note || ' (' AS note) SELECT note FROM gone";
    assert_eq!(
        rows(&mut *session, moved, &[text("b")]).await,
        [[text("a (")]]
    );
    assert_eq!(
        rows(&mut *session, "SELECT note FROM t", &[]).await.len(),
        1
    );
}

async fn a_session_that_was_ended_by_the_server_is_unavailable(fixture: &Fixture) {
    let mut session = fixture.session().await;
    let pid = backend(&mut *session).await;
    session.begin().await.unwrap();
    rows(
        &mut *fixture.session().await,
        "SELECT pg_terminate_backend($1)",
        &[pid],
    )
    .await;
    let error = session.query("SELECT 1", &[], 1, 100).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    assert!(!session.alive().await);
    assert!(matches!(
        session.commit().await,
        Err(StoreError::TransactionLost(_))
    ));
    session.rollback().await.unwrap();
    for _ in 0..2 {
        assert!(matches!(
            session.begin().await,
            Err(StoreError::Unavailable(_))
        ));
        assert!(matches!(
            session.ping().await,
            Err(StoreError::Unavailable(_))
        ));
    }
}

async fn a_commit_without_an_answer_is_in_doubt(fixture: &Fixture) {
    let mut session = fixture.session().await;
    let pid = backend(&mut *session).await;
    session
        .execute("CREATE TABLE t (n int)", &[])
        .await
        .unwrap();
    session.begin().await.unwrap();
    session
        .execute("INSERT INTO t VALUES (1)", &[])
        .await
        .unwrap();
    let mut killer = fixture.session().await;
    rows(
        &mut *killer,
        "SELECT pg_terminate_backend($1)",
        std::slice::from_ref(&pid),
    )
    .await;
    eventually("the backend is gone", async || {
        let alive = "SELECT 1 FROM pg_stat_activity WHERE pid = $1";
        rows(&mut *killer, alive, std::slice::from_ref(&pid))
            .await
            .is_empty()
            .then_some(())
    })
    .await;
    let error = session.commit().await.unwrap_err();
    assert!(matches!(error, StoreError::InDoubt(_)), "{error:?}");
    assert!(!session.alive().await);
    assert!(matches!(
        session.begin().await,
        Err(StoreError::Unavailable(_))
    ));
}

async fn a_deferred_constraint_is_checked_with_its_statement(fixture: &Fixture) {
    let mut session = fixture.session().await;
    deferred_reference(&mut *session).await;
    session.begin().await.unwrap();
    let error = session
        .execute("INSERT INTO c VALUES (1)", &[])
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Constraint(_)), "{error:?}");
    session.rollback().await.unwrap();
}

async fn a_constraint_that_refuses_the_commit_leaves_nothing_in_doubt(fixture: &Fixture) {
    let mut session = fixture.session().await;
    deferred_reference(&mut *session).await;
    session.begin().await.unwrap();
    session
        .execute("SET CONSTRAINTS ALL DEFERRED", &[])
        .await
        .unwrap();
    session
        .execute("INSERT INTO c VALUES (1)", &[])
        .await
        .unwrap();
    let error = session.commit().await.unwrap_err();
    assert!(matches!(error, StoreError::Constraint(_)), "{error:?}");
    session.rollback().await.unwrap();
    session.begin().await.unwrap();
    assert!(rows(&mut *session, "SELECT * FROM c", &[]).await.is_empty());
    session.commit().await.unwrap();
}

async fn deferred_reference(session: &mut dyn Session) {
    let parent = "CREATE TABLE p (id int PRIMARY KEY)";
    session.execute(parent, &[]).await.unwrap();
    let child = "CREATE TABLE c (p int REFERENCES p DEFERRABLE INITIALLY DEFERRED)";
    session.execute(child, &[]).await.unwrap();
}

async fn a_deadlock_is_a_conflict(fixture: &Fixture) {
    let mut first = fixture.session().await;
    first
        .execute("CREATE TABLE t (id int PRIMARY KEY, n int)", &[])
        .await
        .unwrap();
    first
        .execute("INSERT INTO t VALUES (1, 0), (2, 0)", &[])
        .await
        .unwrap();
    let mut second = fixture.session().await;
    let update = "UPDATE t SET n = n + 1 WHERE id = $1";
    for session in [&mut first, &mut second] {
        session.begin().await.unwrap();
        // Both wait: one of them must be the victim before its lock timeout.
        session
            .execute("SET LOCAL lock_timeout = '10s'", &[])
            .await
            .unwrap();
        session
            .execute("SET LOCAL deadlock_timeout = '50ms'", &[])
            .await
            .unwrap();
    }
    first.execute(update, &[Value::S64(1)]).await.unwrap();
    second.execute(update, &[Value::S64(2)]).await.unwrap();
    let (two, one) = ([Value::S64(2)], [Value::S64(1)]);
    let (first, second) = tokio::join!(
        async {
            let result = first.execute(update, &two).await;
            first.rollback().await.unwrap();
            result
        },
        async {
            let result = second.execute(update, &one).await;
            second.rollback().await.unwrap();
            result
        }
    );
    let errors: Vec<StoreError> = [first, second]
        .into_iter()
        .filter_map(Result::err)
        .collect();
    assert!(
        matches!(errors.as_slice(), [StoreError::Conflict(_)]),
        "{errors:?}"
    );
}

async fn an_older_row_that_another_host_is_taking_holds_back_the_younger(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    let row = std::sync::Arc::new(OutboxRow {
        consumer,
        lane: 0,
        target: "t".to_owned(),
        may_drop: false,
        ordering_key: Some("a".to_owned()),
        delay: None,
        message: message("{}"),
    });
    let sequences = session
        .outbox_put(HostId(2), &[row.clone(), row])
        .await
        .unwrap();
    let mut other = fixture.session().await;
    other.begin().await.unwrap();
    let lock = "SELECT sequence FROM hapax_outbox WHERE sequence = $1 FOR UPDATE";
    rows(&mut *other, lock, &[Value::S64(sequences[0])]).await;
    assert!(session.outbox_take(HostId(1), 10).await.unwrap().is_empty());
    other.rollback().await.unwrap();
    assert_eq!(session.outbox_take(HostId(1), 10).await.unwrap().len(), 2);
}

async fn tables_that_are_not_there_are_told_apart_from_a_failing_statement(fixture: &Fixture) {
    let url = fixture.postgres_url.as_ref().unwrap();
    let store = PostgresStore::new(url, "hapax_no_such_schema", super::OPTIONS).unwrap();
    let mut session = store.session("test").await.unwrap();
    let error = session.secret().await.unwrap_err();
    assert!(
        matches!(&error, StoreError::Unusable(why) if why.contains("hapax migrate")),
        "{error:?}"
    );
    assert_eq!(
        store
            .pending_migrations()
            .await
            .unwrap()
            .first()
            .map(String::as_str),
        Some("0001_spine")
    );
}

async fn a_server_that_is_not_there_is_unavailable(_fixture: &Fixture) {
    let store =
        PostgresStore::new("postgres://nobody@127.0.0.1:1/none", "s", super::OPTIONS).unwrap();
    assert!(matches!(
        store.session("test").await.map(|_| ()),
        Err(StoreError::Unavailable(_))
    ));
    assert!(matches!(
        PostgresStore::new("not a URL", "s", super::OPTIONS).map(|_| ()),
        Err(StoreError::Unusable(_))
    ));
}

async fn the_role_cannot_weaken_a_session(fixture: &Fixture) {
    let url = fixture.postgres_url.as_ref().unwrap();
    let separator = if url.contains('?') { '&' } else { '?' };
    let weak = "options=-c%20synchronous_commit%3Doff%20-c%20default_transaction_isolation%3Dserializable%20-c%20standard_conforming_strings%3Doff";
    let store = PostgresStore::new(
        &format!("{url}{separator}{weak}"),
        &fixture.name,
        super::OPTIONS,
    )
    .unwrap();
    let mut session = store.session("weak").await.unwrap();
    session.begin().await.unwrap();
    for (setting, value) in [
        ("synchronous_commit", "on"),
        ("transaction_isolation", "read committed"),
        ("standard_conforming_strings", "on"),
        ("application_name", "weak"),
        ("lock_timeout", "300ms"),
        ("statement_timeout", "10s"),
        ("search_path", &*format!("{}, public", fixture.name)),
    ] {
        let read = rows(
            &mut *session,
            "SELECT current_setting($1)",
            &[text(setting)],
        )
        .await;
        assert_eq!(read, [[text(value)]], "{setting}");
    }
    session.commit().await.unwrap();
    let warnings = store.warnings().await.unwrap();
    assert!(
        !warnings
            .iter()
            .any(|warning| warning.contains("synchronous_commit")),
        "{warnings:?}"
    );
}

async fn two_schemas_do_not_share_their_hosts(fixture: &Fixture) {
    let elsewhere = Fixture::postgres("").await.unwrap();
    let mut there = elsewhere.session().await;
    there.announce(HostId(5)).await.unwrap();
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    let row = OutboxRow {
        consumer,
        lane: 0,
        target: "t".to_owned(),
        may_drop: false,
        ordering_key: None,
        delay: None,
        message: message("{}"),
    };
    session
        .outbox_put(HostId(5), &[std::sync::Arc::new(row)])
        .await
        .unwrap();
    assert_eq!(session.outbox_take(HostId(1), 10).await.unwrap().len(), 1);
    elsewhere.remove().await;
}

/// The server would find out by itself, when it next looks whether the client is there, or when the statement ends.
async fn what_a_given_up_session_holds_is_free_for_the_next_of_its_name(fixture: &Fixture) {
    let mut session = fixture.session().await;
    session
        .execute("CREATE TABLE t_held (id INTEGER)", &[])
        .await
        .unwrap();
    session.begin().await.unwrap();
    session
        .execute("LOCK TABLE t_held IN ACCESS EXCLUSIVE MODE", &[])
        .await
        .unwrap();
    let endless = "SELECT count(*) FROM generate_series(1, 100000) a, generate_series(1, 100000) b";
    let given_up = tokio::time::timeout(
        std::time::Duration::from_millis(50),
        session.query(endless, &[], 1, 100),
    );
    assert!(given_up.await.is_err(), "the statement has ended");
    drop(session);

    let mut next = fixture.session().await;
    next.begin().await.unwrap();
    next.execute("LOCK TABLE t_held IN ACCESS EXCLUSIVE MODE NOWAIT", &[])
        .await
        .expect("nobody holds it any more");
    next.rollback().await.unwrap();
}
