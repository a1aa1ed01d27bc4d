//! Weights of single rows, by the lengths of parameters and columns.

use std::time::Duration;

use super::*;

#[test]
fn what_a_row_may_take_is_the_operators_to_say() {
    let text = "SELECT translate($1, $2, 'x')";
    let widths = [8 << 20, 1_000].map(|bytes| Width {
        bytes,
        number: false,
    });
    let excess = |time: u64, bytes: u64| {
        let bounds = RowBounds {
            time: Duration::from_secs(time),
            bytes,
        };
        let rules = rules(Dialect::Postgres).with_row_bounds(bounds);
        let statement = rules.check(text).expect("it is allowed");
        statement.excess(&widths).map(|(excess, _)| excess)
    };
    assert_eq!(excess(2, 512 << 20), Some(Excess::Time));
    assert_eq!(excess(600, 512 << 20), None);
    assert_eq!(excess(600, 1 << 20), Some(Excess::Memory));
}

/// Found by attacking the host: none of these was ended by any timeout.
#[test]
fn a_row_that_nothing_could_stop_is_refused_by_the_lengths_of_its_values() {
    const MIB: u64 = 1 << 20;
    let judged = |text: &str, bytes: &[u64], columns: Option<Width>| {
        let statement = allowed(Dialect::Postgres, text);
        let count = statement.question().columns.len();
        statement.columns_are(vec![columns; count]);
        let widths = bytes.iter().map(|bytes| Width {
            bytes: *bytes,
            number: false,
        });
        let excess = statement.excess(&widths.collect::<Vec<_>>());
        excess.map(|(excess, _)| excess)
    };
    let row = |call: &str, times: usize| format!("SELECT {}", vec![call; times].join(", "));
    let chain = format!("SELECT {}", ["$1"; 35].join(" || "));
    let (time, memory, quoted) = (Excess::Time, Excess::Memory, Excess::Quoted);
    for (text, bytes, expected) in [
        (
            "SELECT $1::jsonb - CAST($2 AS text)::text[]",
            vec![60_000, 60_000],
            Some(time),
        ),
        (
            "SELECT ts_rank(to_tsvector('simple', $1), to_tsquery('simple', $2))",
            vec![MIB, 8_000],
            Some(time),
        ),
        (
            "SELECT translate($1, $2, 'x')",
            vec![8 * MIB, 1_000],
            Some(time),
        ),
        ("SELECT translate($1, $2, 'x')", vec![1_000, 1_000], None),
        ("SELECT btrim($1, $2)", vec![4 * MIB, 1_000], Some(time)),
        ("SELECT strpos($1, $2)", vec![4 * MIB, 1_000], Some(time)),
        ("SELECT strpos($1, $2)", vec![MIB, 100], None),
        (
            &row("octet_length(sha512($1))", 400),
            vec![8 * MIB],
            Some(time),
        ),
        (&row("octet_length(sha512($1))", 4), vec![8 * MIB], None),
        (&row("length(upper($1))", 1_600), vec![MIB], Some(time)),
        (&row("length(upper($1))", 1_600), vec![100], None),
        (
            &row("length(mod($1::numeric, $2::numeric)::text)", 40),
            vec![60_000, 60_000],
            Some(time),
        ),
        (&chain, vec![12 * MIB], Some(time)),
        (&chain, vec![MIB], Some(memory)),
        (&chain, vec![10_000], None),
        (
            "SELECT CAST($1 || $1 AS integer)",
            vec![12 * MIB],
            Some(quoted),
        ),
        ("SELECT CAST($1 || $1 AS integer)", vec![5], None),
        (
            "SELECT CAST(left($1, 100) AS integer)",
            vec![12 * MIB],
            None,
        ),
        ("SELECT encode($1, $2)", vec![5, MIB], Some(quoted)),
    ] {
        assert_eq!(
            judged(text, &bytes, None),
            expected,
            "{text} with {bytes:?}"
        );
    }
    let wide = Width {
        bytes: 2 * MIB,
        number: false,
    };
    let number = Width {
        bytes: 32 << 10,
        number: true,
    };
    let from = |list: &str| format!("{list} FROM t_orders");
    for (text, width, expected) in [
        (from(&row("length(upper(note))", 200)), wide, Some(time)),
        (
            from(&row("length(upper(left(note, 1000)))", 200)),
            wide,
            None,
        ),
        (from(&row("length(upper(note))", 10)), wide, None),
        (from(&row("data - tags", 1)), wide, Some(time)),
        (from(&row("total - paid", 20)), number, None),
        (from(&row("total / paid", 100)), number, Some(time)),
        (from(&row("(data->>'n')::numeric / 100", 20)), wide, None),
        (
            format!(
                "SELECT {} FROM (SELECT upper(note) AS x FROM t_orders) AS s",
                ["length(s.x)"; 100].join(", ")
            ),
            wide,
            Some(time),
        ),
    ] {
        assert_eq!(judged(&text, &[], Some(width)), expected, "{text}");
    }
}
