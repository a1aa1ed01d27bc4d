//! The SQL of guests on Postgres: types, many rows at once, names and tables that are looked up.

use super::{rows, text};
use crate::store::contract::{Fixture, assert_plain, execute_all, on_a_server};
use crate::store::{
    ASSUMED_BYTES, ASSUMED_DIGITS, BuiltIns, CatalogQuestion, NamedColumn, RowsInsert, StoreError,
    Value, Width,
};

on_a_server! {
    types_are_read_as_they_are
    many_rows_are_written_as_they_would_be_one_by_one
    rows_of_a_type_without_arrays_are_left_to_the_common_way
    a_value_that_does_not_fit_is_refused_before_it_is_sent
    text_takes_the_type_of_its_place
    a_type_without_a_value_of_its_own_is_told_how_to_be_written
    a_table_that_changes_under_a_statement_is_met_again
    a_name_that_is_no_column_is_told_before_it_is_a_call
    what_has_the_name_of_a_built_in_is_told
    columns_are_as_wide_as_their_types
    a_table_that_something_looks_at_is_not_plain
    what_writes_in_a_with_may_return_text
}

fn other(kind: &str, text: &str) -> Value {
    Value::Other {
        kind: kind.to_owned(),
        text: text.to_owned(),
    }
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
    let statements = [
        "CREATE DOMAIN positive AS integer CHECK (VALUE > 0)",
        "CREATE TABLE t_domain (n positive)",
    ];
    execute_all(&mut *session, &statements).await;
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

/// The case that the rules of SQL rely on, and what happens where nobody asks.
async fn a_name_that_is_no_column_is_told_before_it_is_a_call(fixture: &Fixture) {
    let mut session = fixture.session().await;
    let statements = [
        "CREATE TABLE t (id BIGINT, gone BIGINT, \"Odd\" BIGINT)",
        "ALTER TABLE t DROP COLUMN gone",
        "CREATE VIEW v AS SELECT id AS seen FROM t",
        "CREATE FUNCTION archive(t) RETURNS BIGINT LANGUAGE sql AS 'SELECT 7::bigint'",
        "INSERT INTO t VALUES (1)",
    ];
    execute_all(&mut *session, &statements).await;
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

/// The server calls the best overload of the whole path: the rules' lists of names say nothing about the owner's.
async fn what_has_the_name_of_a_built_in_is_told(fixture: &Fixture) {
    let mut session = fixture.session().await;
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let question = |functions: &[&str], operators: &[&str], types: &[&str]| CatalogQuestion {
        built_ins: BuiltIns {
            functions: set(functions),
            operators: set(operators),
            types: set(types),
        },
        granted: vec!["same".to_owned()],
        ..CatalogQuestion::default()
    };
    let all = question(
        &["left", "lower"],
        &["=", "<", "||"],
        &["text", "uuid", "citext"],
    );
    assert_eq!(session.catalog(&all).await.unwrap().other, None);
    let statements = [
        "CREATE FUNCTION \"left\"(text) RETURNS text LANGUAGE sql AS 'SELECT ''mine''::text'",
        "CREATE TYPE pair AS (a int, b int)",
        "CREATE FUNCTION same(pair, pair) RETURNS boolean LANGUAGE sql AS 'SELECT true'",
        "CREATE FUNCTION less(pair, pair) RETURNS boolean LANGUAGE sql AS 'SELECT true'",
        "CREATE OPERATOR = (LEFTARG = pair, RIGHTARG = pair, FUNCTION = same)",
        "CREATE OPERATOR < (LEFTARG = pair, RIGHTARG = pair, FUNCTION = less)",
        "CREATE DOMAIN citext AS text",
    ];
    execute_all(&mut *session, &statements).await;
    let hijacked = rows(&mut *session, "SELECT left('a')", &[]).await;
    assert_eq!(hijacked, [[Value::Text("mine".into())]]);
    for (question, other) in [
        (
            question(&["left"], &[], &[]),
            Some("the function \"left\"(text)"),
        ),
        (question(&["lower"], &["||"], &["text"]), None),
        (question(&[], &["="], &[]), None),
        (
            question(&[], &["<"], &[]),
            Some("the operator <(pair,pair)"),
        ),
        (question(&[], &[], &["citext"]), Some("the type citext")),
    ] {
        let answer = session.catalog(&question).await.unwrap();
        assert_eq!(answer.other.as_deref(), other, "{question:?}");
    }
}

async fn columns_are_as_wide_as_their_types(fixture: &Fixture) {
    let mut session = fixture.session().await;
    let table = "CREATE TABLE t (id BIGINT, name VARCHAR(10), note TEXT, price NUMERIC(8, 2), total NUMERIC, data JSONB)";
    execute_all(&mut *session, &[table, "CREATE TABLE u (note INT, id INT)"]).await;
    let columns = ["id", "name", "note", "price", "total", "data", "nothing"];
    let question = CatalogQuestion {
        tables: vec![(None, "t".to_owned()), (None, "u".to_owned())],
        columns: columns.map(str::to_owned).to_vec(),
        ..CatalogQuestion::default()
    };
    let widths = session.catalog(&question).await.unwrap().widths;
    let of = |bytes, number| Some(Width { bytes, number });
    let expected = [
        of(8, true),
        of(40, false),
        of(ASSUMED_BYTES, false),
        of(8, true),
        of(ASSUMED_DIGITS, true),
        of(ASSUMED_BYTES, false),
        None,
    ];
    assert_eq!(widths, expected);
}

async fn a_table_that_something_looks_at_is_not_plain(fixture: &Fixture) {
    let mut session = fixture.session().await;
    let statements = [
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
    ];
    execute_all(&mut *session, &statements).await;
    let tables = [
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
    ];
    assert_plain(&mut *session, &tables).await;
}

/// It has to stay in the outermost WITH of what runs.
async fn what_writes_in_a_with_may_return_text(fixture: &Fixture) {
    let mut session = fixture.session().await;
    let statements = [
        "CREATE TABLE t (note TEXT)",
        "INSERT INTO t VALUES ('a'), ('b')",
    ];
    execute_all(&mut *session, &statements).await;
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
