//! The corpus of hand-picked statements, properties over generated ones, and the parts that are not about verdicts.

mod corpus;
mod costs;
mod properties;

use std::sync::Arc;

use expect_test::expect;

use super::*;

/// The grants that the corpus describes in its first lines.
fn grants(dialect: Dialect) -> Grants {
    let mixed = if dialect == Dialect::Mysql {
        "`T_Mixed`"
    } else {
        "\"T_Mixed\""
    };
    Grants::new(
        dialect,
        &["t_prices", "shop.t_rates", mixed],
        &["t_orders", "t_lines", "t_users", "shop.t_stock"],
        &[
            "score",
            "shop.rank_of",
            "generate_series",
            "unnest",
            "order_status",
        ],
    )
    .expect("the grants of the corpus are valid")
}

fn rules(dialect: Dialect) -> Rules {
    Rules::new(dialect, &grants(dialect), 64)
}

fn allowed(dialect: Dialect, text: &str) -> Arc<Statement> {
    rules(dialect)
        .check(text)
        .unwrap_or_else(|refusal| panic!("{text}\n{refusal}"))
}

fn refused(dialect: Dialect, text: &str) -> Refusal {
    rules(dialect)
        .check(text)
        .expect_err("the statement is allowed")
}

#[test]
fn a_refusal_says_what_where_and_what_to_do() {
    let refusal = refused(
        Dialect::Postgres,
        "SELECT o.id\n  FROM t_orders o, t_secret s",
    );
    expect![[r#"
        Refusal {
            code: "sql-refused-table",
            message: "the statement reads `t_secret`, which the consumer is not granted",
            line: 2,
            column: 20,
            near: "t_secret",
            help: "add `t_secret` to grant.read of the consumer",
        }
    "#]]
    .assert_debug_eq(&refusal);
    expect![
        "the statement reads `t_secret`, which the consumer is not granted (line 2, column 20, at `t_secret`)"
    ]
    .assert_eq(&refusal.to_string());
}

#[test]
fn a_refusal_never_quotes_a_string_literal() {
    for text in [
        "SELECT note 'secret' FROM t_orders",
        "SELECT * FROM 'secret'",
        "SELECT (1 'secret')",
        "SELECT 1 LIMIT 1 , , 'secret'",
        "SELECT 'secret' 'secret'",
        "SELECT 'secret",
        "SELECT 'secret\\'",
        "SELECT cast('secret' AS 'secret')",
    ] {
        let refusal = refused(Dialect::Postgres, text);
        assert!(!format!("{refusal:?}").contains("secret"), "{refusal:?}");
    }
}

#[test]
fn the_same_text_is_judged_once() {
    let rules = rules(Dialect::Sqlite);
    let first = rules.check("SELECT * FROM t_orders").expect("granted");
    let second = rules.check("SELECT * FROM t_orders").expect("granted");
    assert!(Arc::ptr_eq(&first, &second));
}

#[test]
fn the_cache_keeps_the_statements_used_last() {
    let rules = Rules::new(Dialect::Sqlite, &grants(Dialect::Sqlite), 2);
    let first = rules.check("SELECT 1").expect("pure");
    rules.check("SELECT 2").expect("pure");
    rules.check("SELECT 1").expect("pure");
    rules.check("SELECT 3").expect("pure");
    let again = rules.check("SELECT 1").expect("pure");
    assert!(Arc::ptr_eq(&first, &again));
    assert_eq!(rules.lock().statements.len(), 2);
}

#[test]
fn the_cache_is_bounded_in_bytes_whatever_the_texts() {
    let rules = Rules::new(Dialect::Sqlite, &grants(Dialect::Sqlite), usize::MAX);
    for number in 0..200 {
        let text = format!("SELECT {number}{}", " ".repeat(60_000));
        rules.check(&text).expect("pure");
        rules.check(&text).expect("pure");
    }
    let cache = rules.lock();
    let kept: usize = cache.statements.iter().map(|(text, _)| text.len()).sum();
    assert_eq!(kept, cache.text_bytes);
    assert!(
        kept <= MAX_CACHE_BYTES && kept > MAX_CACHE_BYTES / 2,
        "{kept}"
    );
}

#[test]
fn no_cache_is_a_size_too() {
    let rules = Rules::new(Dialect::Sqlite, &grants(Dialect::Sqlite), 0);
    rules.check("SELECT 1").expect("pure");
    assert_eq!(rules.lock().statements.len(), 0);
}

#[test]
fn a_statement_over_the_limit_is_refused_unread() {
    let long = format!("SELECT {}", "1,".repeat(40_000));
    assert_eq!(refused(Dialect::Postgres, &long).code, code::TOO_LARGE);
    let rules = rules(Dialect::Postgres).with_max_statement_bytes(8);
    assert!(rules.check("SELECT 1").is_ok());
    assert_eq!(
        rules.check("SELECT 10").expect_err("too long").code,
        code::TOO_LARGE
    );
}

#[test]
fn the_text_that_is_sent_is_the_guests_own() {
    let text = "select  ID ,'x;y'\nFROM T_Orders  where id=$1";
    assert_eq!(allowed(Dialect::Sqlite, text).text, text);
    assert_eq!(
        allowed(Dialect::Sqlite, &format!(" {text} ; \n")).text,
        format!(" {text}")
    );
}

#[test]
fn sqlite_takes_fewer_parameters_than_the_others() {
    let text = |highest: u32| {
        let list: Vec<String> = (1..=highest).map(|n| format!("${n}")).collect();
        format!("SELECT 1 IN ({})", list.join(","))
    };
    let check = |dialect, highest| {
        let rules = rules(dialect).with_max_statement_bytes(usize::MAX);
        rules
            .check(&text(highest))
            .map(|statement| statement.parameters)
    };
    assert_eq!(check(Dialect::Sqlite, 32_766), Ok(32_766));
    assert_eq!(
        check(Dialect::Sqlite, 32_767).expect_err("too many").code,
        code::PARAMETER
    );
    assert_eq!(check(Dialect::Postgres, 65_535), Ok(65_535));
}

#[test]
fn a_statement_can_be_written_with_question_marks() {
    let statement = allowed(
        Dialect::Mysql,
        "UPDATE t_orders SET n = n + $2, note = '$1' WHERE id = $1 OR $2 > 1",
    );
    let (text, order) = statement.positional();
    assert_eq!(
        text,
        "UPDATE t_orders SET n = n + ?, note = '$1' WHERE id = ? OR ? > 1"
    );
    assert_eq!(order, [2, 1, 2]);
}

#[test]
fn plain_inserts_merge_row_by_row() {
    let statement = allowed(
        Dialect::Postgres,
        "INSERT INTO shop.t_stock (sku, \"n\", note, x) VALUES ($2, -1, 'a''(b', $1)",
    );
    let merge = statement.merge.as_ref().expect("the shape merges");
    assert_eq!(merge.parameter_order(), [2, 1]);
    assert_eq!(
        merge.render(2),
        "INSERT INTO shop.t_stock (sku, \"n\", note, x) VALUES ($1,-1,'a''(b',$2),($3,-1,'a''(b',$4)"
    );
    assert_eq!(
        merge.render_positional(2),
        "INSERT INTO shop.t_stock (sku, \"n\", note, x) VALUES (?,-1,'a''(b',?),(?,-1,'a''(b',?)"
    );
    let rendered = allowed(Dialect::Postgres, &merge.render(3));
    assert_eq!(rendered.parameters, 6);
    assert_eq!(rendered.writes, statement.writes);
}

#[test]
fn nothing_but_a_plain_insert_merges() {
    let alone = [
        "INSERT INTO t_orders VALUES ($1)",
        "INSERT INTO t_orders (a) VALUES ($1), ($2)",
        "INSERT INTO t_orders (a) VALUES ($1) RETURNING a",
        "INSERT INTO t_orders (a) VALUES ($1) ON CONFLICT DO NOTHING",
        "INSERT INTO t_orders (a) VALUES ($1) ON CONFLICT (a) DO UPDATE SET a = 1",
        "INSERT INTO t_orders (a) VALUES (DEFAULT)",
        "INSERT INTO t_orders (a) VALUES (lower($1))",
        "INSERT INTO t_orders (a) VALUES ($1 + 1)",
        "INSERT INTO t_orders (a) VALUES (($1))",
        "INSERT INTO t_orders (a) VALUES ($1::int)",
        "INSERT INTO t_orders (a) VALUES ((SELECT 1))",
        "INSERT INTO t_orders (a, b) VALUES ($1)",
        "INSERT INTO t_orders (a, b, c) VALUES ($1, $1, NULL)",
        "INSERT INTO t_orders AS o (a) VALUES ($1)",
        "INSERT INTO t_orders DEFAULT VALUES",
        "INSERT INTO t_orders (a) SELECT $1",
        "WITH x AS (SELECT 1) INSERT INTO t_orders (a) VALUES ($1)",
        "UPDATE t_orders SET a = $1",
    ];
    for text in alone {
        assert_eq!(allowed(Dialect::Postgres, text).merge, None, "{text}");
    }
}

#[test]
fn sqlites_or_ignore_does_not_merge() {
    let statement = allowed(
        Dialect::Sqlite,
        "INSERT OR IGNORE INTO t_orders (a) VALUES ($1)",
    );
    assert_eq!(statement.merge, None);
}

#[test]
fn a_grant_of_the_hosts_or_the_systems_tables_is_refused() {
    let bad = |dialect, names: &[&str]| {
        let bad = Grants::new(dialect, names, &[], &[]).expect_err("none can be granted");
        assert_eq!(bad.len(), names.len(), "{bad:?}");
        bad[0].to_string()
    };
    expect!["`hapax_ledger` in grant.read belongs to the host and can never be granted"].assert_eq(
        &bad(
            Dialect::Postgres,
            &[
                "hapax_ledger",
                "Hapax_State",
                "\"HAPAX_x\"",
                "public.hapax_ledger",
                "pg_class",
                "pg_catalog.pg_class",
                "information_schema.tables",
                "a.b.c",
                "",
                "a.",
                "\"a",
            ],
        ),
    );
    bad(
        Dialect::Sqlite,
        &[
            "sqlite_master",
            "SQLITE_SCHEMA",
            "main.sqlite_schema",
            "temp.x",
            "pragma_table_info",
        ],
    );
    bad(
        Dialect::Mysql,
        &[
            "mysql.user",
            "INFORMATION_SCHEMA.tables",
            "sys.x",
            "performance_schema.x",
        ],
    );
}

#[test]
fn every_bad_grant_is_reported_at_once() {
    let bad = Grants::new(Dialect::Sqlite, &["hapax_a"], &["a.b.c"], &["f(x"]).map(|_| ());
    let lists: Vec<&str> = bad
        .expect_err("two are bad")
        .iter()
        .map(|bad| bad.list)
        .collect();
    assert_eq!(lists, ["write", "read"]);
}

#[test]
fn what_only_the_database_can_know_to_be_a_column_is_asked_for() {
    let asked = |text: &str| {
        let statement = allowed(Dialect::Postgres, text);
        let columns = statement.named_columns.iter().map(|column| {
            let tables = column.tables.iter().map(|(schema, name)| match schema {
                Some(schema) => format!("{schema}.{name}"),
                None => name.clone(),
            });
            let tables: Vec<String> = tables.collect();
            format!("{} of {}", column.name, tables.join("/"))
        });
        columns.collect::<Vec<_>>().join(", ")
    };
    for (text, expected) in [
        ("SELECT id FROM t_orders", ""),
        (
            "SELECT o.id, o.\"Odd\" FROM t_orders AS o",
            "Odd of t_orders, id of t_orders",
        ),
        (
            "SELECT shop.t_stock.n FROM shop.t_stock",
            "n of shop.t_stock",
        ),
        (
            "SELECT c.n FROM (SELECT * FROM t_orders, t_prices) AS c",
            "n of t_orders/t_prices",
        ),
        (
            "SELECT c.n FROM (SELECT o.* FROM t_orders AS o, t_prices) AS c",
            "n of t_orders",
        ),
        ("SELECT c.n FROM (SELECT 1 AS n FROM t_orders) AS c", ""),
        (
            "SELECT o.a FROM t_orders AS o WHERE EXISTS (SELECT o.b FROM t_prices AS o)",
            "a of t_orders, b of t_orders, b of t_prices",
        ),
        (
            "INSERT INTO t_orders AS o (id) VALUES (1) ON CONFLICT (id) DO UPDATE SET n = o.n + excluded.m RETURNING o.x",
            "m of t_orders, n of t_orders, x of t_orders",
        ),
        (
            "UPDATE t_orders SET n = p.a FROM t_prices AS p WHERE t_orders.b = 1",
            "a of t_prices, b of t_orders",
        ),
        (
            "DELETE FROM t_orders USING t_prices AS p WHERE p.a = 1",
            "a of t_prices",
        ),
    ] {
        assert_eq!(asked(text), expected, "{text}");
        for other in [Dialect::Sqlite, Dialect::Mysql] {
            if let Ok(statement) = rules(other).check(text) {
                assert!(
                    statement.is_proven(),
                    "{other:?} knows no calls in disguise: {text}"
                );
            }
        }
    }
}

#[test]
fn what_a_search_looks_for_is_a_short_parameter_or_refused() {
    for (text, short) in [
        (
            "SELECT 1 FROM t_orders WHERE note LIKE '%' || $2 || '%' AND id = $1",
            vec![2],
        ),
        (
            "SELECT replace(note, $1, lower($2)) FROM t_orders",
            vec![1, 2],
        ),
        (
            "SELECT 1 FROM t_orders WHERE note LIKE substr(state, 1, 100) AND id = $1",
            vec![],
        ),
        ("SELECT 1 WHERE lower($1) = 'a'", vec![]),
    ] {
        for dialect in [Dialect::Postgres, Dialect::Sqlite] {
            assert_eq!(allowed(dialect, text).short, short, "{dialect:?}: {text}");
        }
    }
    for text in [
        "SELECT 1 FROM t_orders WHERE note LIKE state",
        "SELECT replace(note, state, 'a') FROM t_orders",
        "SELECT replace(note, 'a', state) FROM t_orders",
        "SELECT trim(note, state) FROM t_orders",
        "SELECT 1 FROM t_orders WHERE note LIKE '%' || state",
    ] {
        let refusal = refused(Dialect::Sqlite, text);
        assert_eq!(refusal.code, code::FUNCTION, "{text}");
    }
}

#[test]
fn a_statement_names_the_built_ins_that_it_counts_on() {
    let statement = allowed(
        Dialect::Postgres,
        "SELECT left(note, 3), score(1) FROM t_orders WHERE id IN ($1) AND note LIKE 'a%' AND n::text > 'a'",
    );
    let names = |names: &BTreeSet<String>| names.iter().cloned().collect::<Vec<_>>().join(" ");
    assert_eq!(names(&statement.built_ins.functions), "left");
    assert_eq!(names(&statement.built_ins.operators), "!~~ <> = > ~~");
    assert_eq!(names(&statement.built_ins.types), "text");
    let other = allowed(
        Dialect::Sqlite,
        "SELECT lower(note) FROM t_orders WHERE id = $1",
    );
    assert!(other.is_proven());
}

#[test]
fn what_doubles_at_each_step_is_refused_before_the_database_writes_it_out() {
    for step in [
        "SELECT a.x FROM $ AS a, $ AS b",
        "SELECT x || x AS x FROM $",
    ] {
        for dialect in [Dialect::Postgres, Dialect::Sqlite] {
            let text = |steps: usize| {
                let mut text = "WITH a0 AS (SELECT 'a' AS x)".to_owned();
                for number in 1..=steps {
                    let body = step.replace('$', &format!("a{}", number - 1));
                    text += &format!(", a{number} AS ({body})");
                }
                format!("{text} SELECT x FROM a{steps}")
            };
            allowed(dialect, &text(4));
            let refusal = refused(dialect, &text(24));
            assert_eq!(refusal.code, code::TOO_DEEP, "{dialect:?}: {step}");
        }
    }
}

#[test]
fn writing_includes_reading() {
    let statement = allowed(Dialect::Mysql, "SELECT * FROM t_orders");
    assert_eq!(statement.writes.len(), 0);
    assert_eq!(statement.reads.len(), 1);
}

/// A guest's fiber gives a host call little stack, and overflowing it ends the process.
#[test]
fn no_statement_overflows_a_small_stack() {
    std::thread::Builder::new()
        .stack_size(256 * 1024)
        .spawn(|| {
            for dialect in [Dialect::Postgres, Dialect::Sqlite, Dialect::Mysql] {
                let rules = rules(dialect);
                for text in deep() {
                    // The verdict does not matter here.
                    let _ = rules.check(&text);
                }
            }
        })
        .expect("a thread")
        .join()
        .expect("the stack held");
}

fn deep() -> Vec<String> {
    let mut texts = Vec::new();
    for count in [10, 15, 24, 38, 39, 60, 120, 190, 390, 1_000, 5_000] {
        for (open, middle, close) in [
            ("(", "1", ")"),
            ("NOT ", "1", ""),
            ("- ", "1", ""),
            ("1 + ", "1", ""),
            ("", "1", " + 1"),
            ("", "1", " IS NULL"),
            ("", "1", " ISNULL"),
            ("", "1", "::int"),
            ("", "a", "[1]"),
            ("", "1", " COLLATE x"),
            ("", "1", " DIV 2"),
            ("", "1", " GLOB 2"),
            ("", "1", " LIKE 2"),
            ("", "1", " IN (2)"),
            ("", "1", " AND b = 2"),
            ("", "1", " UNION SELECT 1"),
            ("", "1", " BETWEEN 1 AND 2"),
            ("", "1", " AT TIME ZONE 'x'"),
            ("CASE WHEN ", "1", " THEN 1 END"),
            ("coalesce(", "1", ")"),
            ("cast(", "1", " AS int)"),
            ("(SELECT ", "1", ")"),
            ("EXISTS (SELECT ", "1", ")"),
            ("ARRAY[", "1", "]"),
            ("INTERVAL ", "1", " DAY"),
            ("a.", "b", ""),
            ("1::", "int", "[]"),
        ] {
            texts.push(format!(
                "SELECT {}{middle}{}",
                open.repeat(count),
                close.repeat(count)
            ));
        }
        texts.push(format!(
            "SELECT {}1{} DIV 2 DIV 2",
            "(".repeat(30),
            " * 1".repeat(count)
        ));
        texts.push(format!(
            "SELECT * FROM {}t_orders{}",
            "(".repeat(count),
            ")".repeat(count)
        ));
        texts.push(format!(
            "SELECT * FROM {}t_orders{}",
            "(SELECT * FROM ".repeat(count),
            ") AS x".repeat(count)
        ));
        texts.push(format!(
            "SELECT * FROM t_orders{}",
            " JOIN t_lines ON 1".repeat(count)
        ));
        texts.push(format!(
            "SELECT * FROM t_orders{}{}",
            " JOIN t_lines".repeat(count),
            " ON 1".repeat(count)
        ));
        texts.push(format!(
            "{}SELECT 1{}",
            "WITH x AS (".repeat(count),
            ") SELECT 1".repeat(count)
        ));
    }
    texts
}
