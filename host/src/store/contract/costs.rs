//! Every built-in and operator that the rules list, with long and deep values in each place: an end comes.
//!
//! A database cannot be stopped within a call of a function, nor between the calls of one row, and SQLite's calls run
//! in this process. So each of them is tried: every argument once long, once deep, all of them at once, and repeated
//! through the columns of one row, bound and out of a table. What the rules let through must end, and leave the
//! process and the server's memory as they should be; which of them they let through stands in the fixtures. Who lists
//! a function without an example here, or changes a verdict, hears of it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use expect_test::expect_file;

use super::{Fixture, execute_all};
use crate::effects::sql::rules::{Grants, MAX_SHORT_BYTES, Rules, all_built_ins, all_operators};
use crate::store::{Dialect, Session, StoreError, Value, Width};

/// Beyond any statement timeout: the end did not come.
const NEVER: Duration = Duration::from_secs(100);
const LONG: usize = 256 << 10;
/// In a column, where nobody knows its length.
const LONG_COLUMN: usize = 1 << 20;
const DEEP: usize = 4_000;
/// Columns of one row.
const COLUMNS: usize = 60;
/// What a backend of Postgres may have had at once.
const SERVER_BYTES: u64 = 2 << 30;

/// Calls with a mark for each argument: `@` is each of the names that follow, `$t` a text, `$b` bytes, `$j` a document
/// in binary form, `$J` one in text, `$n` a number, `$a` an array of texts.
type Examples = &'static [(&'static str, &'static str)];

const POSTGRES: Examples = &[
    (
        "@($t)",
        "length char_length character_length octet_length bit_length ascii md5 lower upper initcap reverse \
        quote_literal quote_ident to_json to_jsonb json_build_array jsonb_build_array row count min max any_value \
        coalesce greatest least num_nulls num_nonnulls array_agg json_agg jsonb_agg to_tsvector plainto_tsquery \
        websearch_to_tsquery phraseto_tsquery to_tsquery row_to_json isfinite grouping",
    ),
    (
        "@($t, $t)",
        "concat nullif starts_with strpos btrim ltrim rtrim regexp_match regexp_like regexp_count \
        regexp_substr regexp_instr string_to_array string_agg json_build_object jsonb_build_object concat_ws \
        json_object_agg jsonb_object_agg to_number to_date to_timestamp",
    ),
    ("@($t, $t, $t)", "replace translate regexp_replace"),
    ("@($t, $t, 2)", "split_part"),
    ("@($t, 2)", "left right"),
    ("@($t, 2, 3)", "substr"),
    ("@($n, $t)", "to_char"),
    ("@($b)", "sha224 sha256 sha384 sha512"),
    ("@($b, 1)", "get_byte"),
    ("@($b, $t)", "encode convert_from"),
    ("@($t, 'hex')", "decode"),
    ("@($t, 'UTF8')", "convert_to"),
    (
        "@($n)",
        "abs ceil ceiling floor round sign trunc scale min_scale trim_scale sum avg sqrt exp ln log log10 \
        radians degrees sin cos tan asin acos atan cot sinh cosh tanh cbrt stddev stddev_pop stddev_samp variance \
        var_pop var_samp",
    ),
    (
        "@($n, $n)",
        "mod div power pow gcd lcm atan2 corr covar_pop covar_samp",
    ),
    ("@($n, 1, 9, 3)", "width_bucket"),
    (
        "@(CAST($t AS integer))",
        "chr to_hex bit_and bit_or bit_xor ntile",
    ),
    ("@($t = 'a')", "bool_and bool_or every"),
    (
        "@()",
        "pi row_number rank dense_rank percent_rank cume_dist",
    ),
    ("@($t) OVER ()", "lag lead first_value last_value"),
    ("@($t, 1) OVER ()", "nth_value"),
    ("@() WITHIN GROUP (ORDER BY $t)", "mode"),
    (
        "@(0.5) WITHIN GROUP (ORDER BY $n)",
        "percentile_cont percentile_disc",
    ),
    (
        "@($t, CAST('2020-01-01' AS timestamp))",
        "date_trunc date_part timezone",
    ),
    (
        "@(CAST('1 day' AS interval), CAST($t AS timestamp), CAST('2020-01-01' AS timestamp))",
        "date_bin",
    ),
    (
        "@(CAST($t AS timestamp), CAST('2020-01-01' AS timestamp))",
        "age",
    ),
    (
        "@(CAST($t AS interval))",
        "justify_days justify_hours justify_interval",
    ),
    ("@(2020, 1, CAST($t AS integer))", "make_date make_time"),
    ("@(2020, 1, 1, 1, 1, 1)", "make_timestamp"),
    ("@(2020, 1, 1, 1, 1, 1, $t)", "make_timestamptz"),
    ("@(days => 1)", "make_interval"),
    (
        "@($j)",
        "jsonb_array_length jsonb_strip_nulls jsonb_pretty jsonb_typeof",
    ),
    ("@($J)", "json_array_length json_strip_nulls json_typeof"),
    (
        "@($j, $t)",
        "jsonb_extract_path jsonb_extract_path_text jsonb_exists jsonb_delete",
    ),
    ("@($J, $t)", "json_extract_path json_extract_path_text"),
    (
        "@($j, CAST('$.a' AS jsonpath))",
        "jsonb_path_exists jsonb_path_match jsonb_path_query_array \
        jsonb_path_query_first",
    ),
    ("@($j, $a, $j)", "jsonb_set jsonb_insert"),
    ("@($j, $j)", "jsonb_contains jsonb_contained"),
    ("@($j, $a)", "jsonb_exists_any jsonb_exists_all"),
    (
        "@($a, $a)",
        "json_object jsonb_object array_cat arraycontains arraycontained arrayoverlap",
    ),
    ("@($a)", "cardinality array_ndims"),
    ("@($a, 1)", "array_length array_upper array_lower"),
    (
        "@($a, $t)",
        "array_append array_position array_positions array_remove array_to_string",
    ),
    ("@($t, $a)", "array_prepend"),
    ("@($a, $t, $t)", "array_replace"),
    ("@(SELECT $t)", "array"),
    (
        "@(to_tsvector('simple', $t), plainto_tsquery('simple', $t))",
        "ts_rank ts_match_vq",
    ),
    // Operators, and what the grammar has words for.
    (
        "$t @ $t",
        "= != <> < > <= >= || ~ ~* !~ !~* ~~ ~~* !~~ !~~* LIKE",
    ),
    ("$n @ $n", "+ * / % ^"),
    ("$n @ 2", "- "),
    ("CAST($t AS integer) @ 2", "& | # << >>"),
    ("$j @ $t", "-> ->>"),
    ("$j @ $a", "#> #>>"),
    ("$a @ $a", "&&"),
    ("make_interval(days @ 1)", "=>"),
    ("$j @ $j", "||jsonb"),
    ("$j @ $a", "-array"),
    ("$j @ $t", "-key"),
    ("$t @", "SIMILAR(TO('%a')"),
];

const SQLITE: Examples = &[
    (
        "@($t)",
        "length octet_length lower upper trim ltrim rtrim hex unhex quote unicode typeof count min max sum avg \
        total group_concat string_agg coalesce iif concat abs ceil ceiling floor round sign radians degrees sin cos tan \
        asin acos atan acosh asinh atanh cosh sinh tanh sqrt exp ln log log10 log2 trunc char likely unlikely \
        json json_valid json_type json_array_length json_quote json_array json_group_array date time datetime julianday \
        unixepoch",
    ),
    (
        "@($t, $t)",
        "instr glob nullif ifnull concat_ws mod pow power atan2 json_extract json_remove json_patch \
        json_object json_group_object timediff strftime",
    ),
    ("@($t, $t, $t)", "replace json_set json_insert json_replace"),
    ("@($t, 2, 3)", "substr substring"),
    ("@($t, 0.5)", "likelihood"),
    (
        "@()",
        "pi row_number rank dense_rank percent_rank cume_dist",
    ),
    ("@(CAST($t AS integer)) OVER ()", "ntile"),
    ("@($t) OVER ()", "lag lead first_value last_value"),
    ("@($t, 1) OVER ()", "nth_value"),
    (
        "$t @ $t",
        "= == <> != < > <= >= || -> ->> + - * / % & | << >> LIKE GLOB",
    ),
    ("@ CAST($t AS integer)", "~"),
];

/// What is tried that has no name of its own.
const CASTS: &[&str] = &[
    "integer",
    "bigint",
    "smallint",
    "numeric",
    "real",
    "float8",
    "boolean",
    "date",
    "time",
    "timestamp",
    "timestamptz",
    "interval",
    "uuid",
    "inet",
    "cidr",
    "macaddr",
    "money",
    "json",
    "jsonb",
    "jsonpath",
    "bytea",
    "text[]",
    "integer[]",
    "tsvector",
    "tsquery",
    "int4range",
    "tsrange",
    "int4multirange",
    "varbit",
    "bpchar",
];

/// A place of a call.
#[derive(Clone, Copy, PartialEq)]
enum Fill {
    Short,
    Long,
    Deep,
    Column,
}

/// One statement to try, with what is bound.
struct Attempt {
    text: String,
    parameters: Vec<Value>,
}

/// The value of a kind, as a parameter.
fn value(dialect: Dialect, kind: char, fill: Fill) -> Value {
    let deep = || format!("{}{}", "[".repeat(DEEP), "]".repeat(DEEP));
    let list = |element: &str, count: usize| vec![element; count].join(",");
    match (kind, fill) {
        ('n', _) => Value::Decimal("7".repeat(100_000)),
        ('b', _) => Value::Bytes(vec![b'a'; LONG]),
        ('j' | 'J', Fill::Deep) => Value::Json(deep()),
        ('j' | 'J', _) => Value::Json(format!("[{}]", list("\"aaaa\"", LONG / 8))),
        ('a', _) => Value::Text(format!("{{{}}}", list("ab", LONG / 3))),
        (_, Fill::Deep) if dialect == Dialect::Sqlite => Value::Bytes(nested_jsonb(150_000)),
        (_, Fill::Deep) => Value::Text(deep()),
        _ => Value::Text("a".repeat(LONG)),
    }
}

/// Arrays in arrays, as SQLite keeps them.
fn nested_jsonb(levels: usize) -> Vec<u8> {
    // From the inside out, so written backwards: each header says how long what follows is.
    let mut reversed = vec![0x0b];
    for _ in 1..levels {
        let length = reversed.len();
        let bytes = u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes();
        if length <= 11 {
            reversed.push((u8::try_from(length).unwrap_or(0) << 4) | 0x0b);
        } else {
            // The size in the four bytes after the header.
            reversed.extend_from_slice(&bytes);
            reversed.push(0xeb);
        }
    }
    reversed.reverse();
    reversed
}

/// How a place is written in Postgres: short in the text, long as a parameter or a column.
fn written(dialect: Dialect, kind: char, fill: Fill, number: usize) -> String {
    if dialect == Dialect::Sqlite {
        return match fill {
            Fill::Short => "'ab'".to_owned(),
            Fill::Column => "c_t".to_owned(),
            Fill::Long | Fill::Deep => format!("${number}"),
        };
    }
    match (fill, kind) {
        (Fill::Column, 'J') => "c_js".to_owned(),
        (Fill::Column, kind) => format!("c_{kind}"),
        (Fill::Short, 'b') => "convert_to('ab', 'UTF8')".to_owned(),
        (Fill::Short, 'j') => "CAST('[\"ab\"]' AS jsonb)".to_owned(),
        (Fill::Short, 'J') => "CAST('[\"ab\"]' AS json)".to_owned(),
        (Fill::Short, 'n') => "1.5".to_owned(),
        (Fill::Short, 'a') => "ARRAY['a', 'b']".to_owned(),
        (Fill::Short, _) => "'ab'".to_owned(),
        (_, 'b') => format!("CAST(${number} AS bytea)"),
        (_, 'j') => format!("CAST(${number} AS jsonb)"),
        (_, 'J') => format!("CAST(${number} AS json)"),
        (_, 'n') => format!("CAST(${number} AS numeric)"),
        (_, 'a') => format!("CAST(CAST(${number} AS text) AS text[])"),
        _ => format!("CAST(${number} AS text)"),
    }
}

/// The statement that has an example in `columns` columns, its places filled.
fn attempt(dialect: Dialect, example: &str, fills: &[Fill], columns: usize) -> Attempt {
    let mut parameters = Vec::new();
    let mut call = String::new();
    let mut places = fills.iter();
    let mut rest = example;
    while let Some(at) = rest.find('$') {
        let kind = rest[at + 1..].chars().next().unwrap_or(' ');
        if !"tbjJna".contains(kind) {
            call += &rest[..=at];
            rest = &rest[at + 1..];
            continue;
        }
        call += &rest[..at];
        let fill = places.next().copied().unwrap_or(Fill::Short);
        if matches!(fill, Fill::Long | Fill::Deep) {
            parameters.push(value(dialect, kind, fill));
        }
        call += &written(dialect, kind, fill, parameters.len());
        rest = &rest[at + 2..];
    }
    call += rest;
    let from = match fills.contains(&Fill::Column) {
        true => " FROM t_long",
        false => "",
    };
    let list = vec![call; columns].join(", ");
    Attempt {
        text: format!("SELECT {list}{from}"),
        parameters,
    }
}

fn rules(dialect: Dialect) -> Rules {
    let grants = Grants::new(dialect, &["t_long"], &[], &[]).expect("a table");
    Rules::new(dialect, &grants, 64)
}

/// What becomes of a statement: who refuses it, or that it ends.
async fn verdict(session: &mut dyn Session, rules: &Rules, attempt: &Attempt) -> String {
    let statement = match rules.check(&attempt.text) {
        Ok(statement) => statement,
        Err(refusal) => return refusal.code.trim_start_matches("sql-refused-").to_owned(),
    };
    let long = |number: &u16| {
        let value = attempt.parameters.get(usize::from(*number) - 1);
        value.is_some_and(|value| value.size_bytes() > MAX_SHORT_BYTES)
    };
    if statement.short.iter().any(long) {
        return "short".to_owned();
    }
    session.begin().await.unwrap();
    let answer = session.catalog(&statement.question()).await.unwrap();
    assert_eq!(answer.other, None);
    statement.columns_are(answer.widths);
    let widths = attempt.parameters.iter().map(|value| Width {
        bytes: value.size_bytes() as u64,
        number: matches!(value, Value::Decimal(_)),
    });
    if let Some((excess, _)) = statement.excess(&widths.collect::<Vec<_>>()) {
        session.rollback().await.unwrap();
        return format!("{excess:?}").to_lowercase();
    }
    let query = session.query(&attempt.text, &attempt.parameters, 10, 8 << 20);
    let end = tokio::time::timeout(NEVER, query).await;
    let end = end.unwrap_or_else(|_| panic!("no end comes: {}", short(&attempt.text)));
    // Whichever end it is, the time and the machine decide: rows, an error, a limit, or the cancel.
    if let Err(StoreError::Unavailable(why) | StoreError::Broken(why)) = end {
        panic!("{}: {why}", short(&attempt.text));
    }
    let _ = session.rollback().await;
    "ends".to_owned()
}

fn short(text: &str) -> String {
    text.chars().take(200).collect()
}

/// Tries all, and tells the verdicts, a line for each name.
async fn try_all(session: &mut dyn Session, dialect: Dialect, examples: Examples) -> String {
    let rules = rules(dialect);
    let mut all = BTreeMap::new();
    for (example, names) in examples {
        for name in names.split_ascii_whitespace() {
            let written = match name {
                "||jsonb" => "||",
                "-array" | "-key" => "-",
                name => name,
            };
            let example = example.replace('@', &written.replace('(', " ").replace(')', ""));
            all.insert(name.to_owned(), example);
        }
    }
    if dialect == Dialect::Postgres {
        for kind in CASTS {
            all.insert(format!("CAST {kind}"), format!("CAST($t AS {kind})"));
        }
    }
    let mut listed = all_built_ins(dialect);
    listed.extend(all_operators(dialect));
    let missing = listed.iter().filter(|name| !all.contains_key(**name));
    let missing = missing.collect::<Vec<_>>();
    assert!(missing.is_empty(), "without an example here: {missing:?}");
    let mut table = String::new();
    for (name, example) in &all {
        let places = example
            .match_indices('$')
            .filter(|(at, _)| example[at + 1..].starts_with(|c| "tbjJna".contains(c)))
            .count();
        let mut line = Vec::new();
        for (what, fill) in [("long", Fill::Long), ("deep", Fill::Deep)] {
            for place in 0..places {
                let mut fills = vec![Fill::Short; places];
                fills[place] = fill;
                let tried = attempt(dialect, example, &fills, 1);
                let end = verdict(session, &rules, &tried).await;
                line.push((format!("{what} {}", place + 1), end));
            }
            if places > 1 {
                let tried = attempt(dialect, example, &vec![fill; places], 1);
                let end = verdict(session, &rules, &tried).await;
                line.push((format!("all {what}"), end));
            }
        }
        let mut repeated = vec![Fill::Short; places];
        for (what, fill) in [("many long", Fill::Long), ("many columns", Fill::Column)] {
            if let Some(first) = repeated.first_mut() {
                *first = fill;
                let tried = attempt(dialect, example, &repeated, COLUMNS);
                line.push((what.to_owned(), verdict(session, &rules, &tried).await));
            }
        }
        if places > 1 {
            let tried = attempt(dialect, example, &vec![Fill::Column; places], COLUMNS);
            line.push((
                "all columns".to_owned(),
                verdict(session, &rules, &tried).await,
            ));
        }
        let mut ends: Vec<String> = Vec::new();
        let ending = line.iter().filter(|(_, end)| end == "ends").count();
        for (what, end) in line.iter().filter(|(_, end)| end != "ends") {
            ends.push(format!("{what}: {end}"));
        }
        let _ = writeln!(
            table,
            "{name}: {ending} of {} end; {}",
            line.len(),
            ends.join(", ")
        );
    }
    table.replace("; \n", "\n")
}

#[tokio::test]
async fn every_call_of_sqlite_comes_to_an_end_whatever_it_is_given() {
    let fixture = Fixture::sqlite().await;
    let mut session = fixture.session().await;
    execute_all(&mut *session, &["CREATE TABLE t_long (c_t TEXT)"]).await;
    session.begin().await.unwrap();
    let long = Value::Text("a".repeat(LONG_COLUMN));
    for value in [long, Value::Bytes(nested_jsonb(150_000))] {
        let insert = "INSERT INTO t_long VALUES ($1)";
        session.execute(insert, &[value]).await.unwrap();
    }
    session.commit().await.unwrap();
    let table = try_all(&mut *session, Dialect::Sqlite, SQLITE).await;
    expect_file!["../../../../tests/fixtures/sql/costs_sqlite.txt"].assert_eq(&table);
    drop(session);
    fixture.remove().await;
}

#[tokio::test]
async fn every_call_of_postgres_comes_to_an_end_whatever_it_is_given() {
    let Some(fixture) = Fixture::postgres("every call comes to an end").await else {
        return;
    };
    let mut session = fixture.session().await;
    let fill = format!(
        "INSERT INTO t_long SELECT repeat('a', {LONG_COLUMN}), convert_to(repeat('a', {LONG_COLUMN}), 'UTF8'), \
         (SELECT jsonb_agg('aaaa' || i) FROM generate_series(1, 60000) AS i), \
         (SELECT json_agg('aaaa' || i) FROM generate_series(1, 60000) AS i), \
         repeat('7', 100000)::numeric, (SELECT array_agg('a' || i) FROM generate_series(1, 100000) AS i)"
    );
    let statements = [
        "CREATE TABLE t_long (c_t text, c_b bytea, c_j jsonb, c_js json, c_n numeric, c_a text[])",
        &fill,
    ];
    execute_all(&mut *session, &statements).await;
    let table = try_all(&mut *session, Dialect::Postgres, POSTGRES).await;
    expect_file!["../../../../tests/fixtures/sql/costs_postgres.txt"].assert_eq(&table);
    session.begin().await.unwrap();
    let pid = session.query("SELECT pg_backend_pid()", &[], 1, 64).await;
    session.rollback().await.unwrap();
    if let [[Value::S64(pid)]] = pid
        .unwrap()
        .rows
        .iter()
        .map(Vec::as_slice)
        .collect::<Vec<_>>()[..]
        && let Some(bytes) = peak_bytes(*pid)
    {
        assert!(bytes < SERVER_BYTES, "the server took {bytes} bytes");
    }
    drop(session);
    fixture.remove().await;
}

/// The most memory that a server on this machine has had.
fn peak_bytes(pid: i64) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.starts_with("Name:\tpostgres").then_some(())?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim()
        .strip_suffix("kB")?
        .trim()
        .parse::<u64>()
        .ok()
        .map(|kib| kib << 10)
}
