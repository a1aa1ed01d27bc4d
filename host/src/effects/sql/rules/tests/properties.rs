//! Properties over generated statements: forbidden parts are refused wherever they stand, allowed ones pass, and the
//! lexer is never surprised.

use proptest::prelude::*;

use super::*;

/// Wraps an expression into another, `$X` standing for it. Each is allowed when the expression is, on every store.
const AROUND: &[&str] = &[
    "($X)",
    "-($X)",
    "NOT ($X)",
    "$X + 1",
    "1 - ($X)",
    "($X) IS NULL",
    "coalesce($X, 1)",
    "lower($X)",
    "abs(coalesce(1, $X))",
    "count($X)",
    "CASE WHEN $X THEN 1 ELSE 2 END",
    "CASE 1 WHEN 2 THEN 3 ELSE $X END",
    "CASE $X WHEN 1 THEN 2 END",
    "($X) IN (1, 2)",
    "1 IN (2, $X)",
    "1 BETWEEN ($X) AND 5",
    "1 BETWEEN 0 AND ($X)",
    "(($X) LIKE 'a%')",
    "('a' LIKE substring($X, 1, 2) ESCAPE '!')",
    "cast($X AS decimal(10, 2))",
    "trim($X)",
    "substring($X, 1, 2)",
    "sum(1) OVER (PARTITION BY $X ORDER BY 1)",
    "sum(1) OVER (ORDER BY $X ROWS BETWEEN 1 PRECEDING AND CURRENT ROW)",
    "(SELECT $X)",
    "(SELECT n FROM t_orders WHERE $X LIMIT 1)",
    "EXISTS (SELECT 1 FROM t_orders o JOIN t_lines l ON $X)",
    "(SELECT max(v) FROM (SELECT $X AS v) AS d)",
    "(SELECT 1 FROM t_orders GROUP BY $X HAVING $X)",
    "(SELECT 1 UNION ALL SELECT $X)",
    "(WITH c AS (SELECT $X AS v) SELECT v FROM c)",
    "1 IN (SELECT n FROM t_orders WHERE n = $X)",
];

/// Wraps an expression into a statement.
const STATEMENTS: &[&str] = &[
    "SELECT $X",
    "SELECT n FROM t_orders WHERE $X",
    "SELECT n FROM t_orders ORDER BY $X DESC",
    "SELECT DISTINCT $X AS v FROM t_orders, t_lines",
    "WITH c AS (SELECT $X AS v) SELECT * FROM c, t_prices",
    "INSERT INTO t_orders (n) VALUES ($X)",
    "INSERT INTO t_orders (n, m) VALUES (1, 2), (3, $X)",
    "INSERT INTO t_orders (n) SELECT $X FROM t_prices",
    "UPDATE t_orders SET n = 1, m = $X WHERE id = 1",
    "UPDATE t_orders SET n = 1 WHERE $X",
    "DELETE FROM t_orders WHERE $X",
];

/// Expressions that are allowed on every store.
const ALLOWED: &[&str] = &[
    "1",
    "1.5",
    "'text'",
    "NULL",
    "TRUE",
    "n",
    "(SELECT t.n FROM t_orders AS t)",
    "(SELECT d.v FROM (SELECT n AS v FROM t_orders) AS d)",
    "lower('A')",
    "(SELECT max(n) FROM t_prices)",
    "(SELECT rate FROM shop.t_rates)",
    "score(1)",
];

/// Expressions that are refused on every store, each for a reason of its own.
const FORBIDDEN: &[&str] = &[
    "pg_sleep(1)",
    "sleep(1)",
    "load_extension('x')",
    "unknown(1)",
    "other.score(1)",
    "now()",
    "current_timestamp",
    "random()",
    "nextval('s')",
    "(SELECT x FROM t_secret)",
    "(SELECT x FROM hapax_ledger)",
    "(SELECT x FROM Hapax_State)",
    "(SELECT x FROM elsewhere.t_orders)",
    "EXISTS (SELECT 1 FROM t_orders, t_secret)",
    "(WITH t_secret AS (SELECT 1 FROM t_secret) SELECT 1)",
    "(SELECT x INTO y FROM t_orders)",
    "1 -- x",
    "1 /* x */",
    "/*! 1 */ 1",
    "/*M! 1 */ 1",
    "@x",
    "?",
    ":x",
    "E'x'",
    "N'x'",
    "X'00'",
    "_utf8'x'",
    "'a' 'b'",
    "$0",
    "$$x$$",
    "{x}",
    "1; SELECT 1",
    "1); COMMIT; SELECT (1",
    "1\u{0}",
    "n\u{e9}",
    "\u{2003}1",
    "\u{ff07}x\u{ff07}",
    "hapax_x",
    "cast(1 AS regclass)",
    "(n).m",
    "(DELETE FROM t_orders RETURNING n)",
    "n COLLATE \"a\".\"b\"",
    "a.b.c.d",
    "1 OPERATOR(x.+) 1",
    "1 !! 2",
    "current_date",
];

fn nested(
    depth: impl Into<proptest::collection::SizeRange>,
) -> impl Strategy<Value = Vec<&'static str>> {
    proptest::collection::vec(proptest::sample::select(AROUND), depth)
}

fn dialects() -> impl Strategy<Value = Dialect> {
    proptest::sample::select(&[Dialect::Postgres, Dialect::Sqlite, Dialect::Mysql][..])
}

fn build(statement: &str, around: &[&str], core: &str) -> String {
    let mut expression = core.to_owned();
    for wrapper in around {
        expression = wrapper.replacen("$X", &expression, 1).replace("$X", "1");
    }
    statement.replace("$X", &expression)
}

/// Changes what no database cares about: the case of letters outside of quotes, and white space.
fn disguise(text: &str, upper: &[bool], spaces: &[u8]) -> String {
    let mut quoted = false;
    let mut choices = upper.iter().cycle();
    let mut gaps = spaces.iter().cycle();
    text.chars()
        .flat_map(|c| {
            if matches!(c, '\'' | '"' | '`') {
                quoted = !quoted;
            }
            let c = match (quoted, choices.next()) {
                (false, Some(true)) => c.to_ascii_uppercase(),
                (false, _) if c != ' ' => c.to_ascii_lowercase(),
                _ => c,
            };
            let gap = match (quoted, c, gaps.next()) {
                (false, ' ', Some(1)) => "\n",
                (false, ' ', Some(2)) => " \t\r\n ",
                (false, '(', Some(3)) => "( ",
                _ => return vec![c],
            };
            gap.chars().collect()
        })
        .collect()
}

/// MySQL's table names keep their case, so there only white space is changed.
fn case_for(dialect: Dialect, upper: Vec<bool>) -> Vec<bool> {
    if dialect == Dialect::Mysql {
        Vec::new()
    } else {
        upper
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn allowed_parts_pass_at_any_depth(
        dialect in dialects(),
        statement in proptest::sample::select(STATEMENTS),
        around in nested(0..6),
        core in proptest::sample::select(ALLOWED),
        upper in proptest::collection::vec(any::<bool>(), 1..40),
        spaces in proptest::collection::vec(0u8..4, 1..40),
    ) {
        let plain = build(statement, &around, core);
        let text = if dialect == Dialect::Mysql { plain } else { disguise(&plain, &upper, &spaces) };
        let verdict = rules(dialect).check(&text);
        prop_assert!(verdict.is_ok(), "{dialect:?}: {text}\n{verdict:?}");
    }

    #[test]
    fn forbidden_parts_are_refused_at_any_depth(
        dialect in dialects(),
        statement in proptest::sample::select(STATEMENTS),
        around in nested(0..6),
        core in proptest::sample::select(FORBIDDEN),
        upper in proptest::collection::vec(any::<bool>(), 1..40),
        spaces in proptest::collection::vec(0u8..4, 1..40),
    ) {
        let text = disguise(&build(statement, &around, core), &case_for(dialect, upper), &spaces);
        let verdict = rules(dialect).check(&text);
        prop_assert!(verdict.is_err(), "{dialect:?}: {text}\n{verdict:?}");
    }

    #[test]
    fn a_forbidden_piece_between_any_two_words_is_never_allowed(
        dialect in dialects(),
        statement in proptest::sample::select(STATEMENTS),
        around in nested(0..4),
        word in proptest::sample::select(&[
            "; COMMIT", "INTO outfile", "INTO", "PROCEDURE x()", "hapax_ledger", "pg_sleep(1)", "--", "/*", "*/", "#!",
            "@", "\\", "?", "$$", "\u{a0}", "LOCK IN SHARE MODE", "TABLESAMPLE SYSTEM (1)", "INTO OUTFILE 'x'", "\0",
        ][..]),
        place in any::<proptest::sample::Index>(),
    ) {
        let text = build(statement, &around, "n");
        let gaps: Vec<usize> = text.match_indices(' ').map(|(gap, _)| gap).collect();
        let gap = *place.get(&gaps);
        // Inside a literal it would be text.
        prop_assume!(text[..gap].matches('\'').count().is_multiple_of(2));
        let broken = format!("{} {word} {}", &text[..gap], &text[gap..]);
        let verdict = rules(dialect).check(&broken);
        prop_assert!(verdict.is_err(), "{dialect:?}: {broken}\n{verdict:?}");
    }

    /// Field notation runs a function unless the database is asked about the column first, or never runs.
    #[test]
    fn a_call_in_disguise_never_passes_unasked(
        statement in proptest::sample::select(STATEMENTS),
        around in nested(0..6),
        core in proptest::sample::select(&[
            "(SELECT o.archive FROM t_orders AS o)",
            "(SELECT t_orders.archive FROM t_orders)",
            "(SELECT d.archive FROM (SELECT * FROM t_orders) AS d)",
            "(SELECT d.archive FROM (SELECT id FROM t_orders) AS d)",
            "(SELECT c.archive FROM unnest($1::text[]) AS c (id))",
            "(SELECT g.archive FROM generate_series(1, 2) AS g)",
            "(WITH c AS (SELECT * FROM t_orders) SELECT c.archive FROM c)",
            "(WITH c (id) AS (SELECT * FROM t_orders) SELECT c.archive FROM c)",
            "t_orders.archive",
            "excluded.archive",
        ][..]),
        upper in proptest::collection::vec(any::<bool>(), 1..40),
        spaces in proptest::collection::vec(0u8..4, 1..40),
    ) {
        let text = disguise(&build(statement, &around, core), &upper, &spaces);
        if let Ok(statement) = rules(Dialect::Postgres).check(&text) {
            let asked = statement.named_columns.iter().any(|column| column.name == "archive");
            prop_assert!(asked && !statement.is_proven(), "{text}");
        }
    }

    #[test]
    fn any_text_gets_a_verdict(dialect in dialects(), text in "\\PC{0,200}") {
        let _ = rules(dialect).check(&text);
    }

    #[test]
    fn any_soup_of_tokens_gets_a_verdict_and_no_table_out_of_thin_air(
        dialect in dialects(),
        soup in proptest::collection::vec(proptest::sample::select(&[
            "SELECT", "FROM", "WHERE", "t_orders", "t_secret", "hapax_ledger", "(", ")", ",", "*", ".", "=", "+", "-",
            "'a'", "\"t_secret\"", "`t_secret`", "1", "$1", "AS", "WITH", "x", "INSERT", "INTO", "VALUES", "UPDATE",
            "SET", "DELETE", "JOIN", "ON", "UNION", "RETURNING", "lower", "pg_sleep", "sleep", "CASE", "WHEN", "THEN",
            "END", "NOT", "IN", "EXISTS", "LIMIT", "FOR", "::", "int", "regclass", "[", "]", ";", "LATERAL", "USING",
        ][..]), 0..30),
        tight in any::<bool>(),
    ) {
        let text = soup.join(if tight { "" } else { " " });
        if let Ok(statement) = rules(dialect).check(&text) {
            for table in statement.reads.iter().chain(&statement.writes) {
                prop_assert_eq!(&table.name, "t_orders", "{}", text);
            }
            prop_assert!(!text.to_lowercase().contains("sleep("), "{}", text);
        }
    }
}
