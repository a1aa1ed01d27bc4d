//! What does it cost to judge a statement: one that was seen before, a new one, and the worst that fits?
//!
//!     cargo bench --bench sql_rules

#[path = "figures.rs"]
mod figures;

use std::time::Instant;

use figures::Figures;
use hapax::effects::sql::rules::{Grants, Rules};
use hapax::store::Dialect;

/// What a handler sends, from the smallest to the largest that people write.
const STATEMENTS: [(&str, &str); 3] = [
    (
        "insert",
        "INSERT INTO t_points (order_id, user_id, points) VALUES ($1, $2, $3)",
    ),
    (
        "upsert",
        "INSERT INTO t_points AS p (user_id, points) VALUES ($1, $2) \
         ON CONFLICT (user_id) DO UPDATE SET points = p.points + excluded.points RETURNING points",
    ),
    (
        "query",
        "WITH paid AS (SELECT user_id, sum(amount_cents) AS cents FROM t_orders WHERE state = 'paid' GROUP BY user_id) \
         SELECT p.user_id, p.points, coalesce(paid.cents, 0) FROM t_points p LEFT JOIN paid ON paid.user_id = p.user_id \
         WHERE p.points > $1 AND p.user_id IN ($2, $3, $4) ORDER BY p.points DESC LIMIT 10 FOR UPDATE OF p",
    ),
];

fn main() {
    let none: [&str; 0] = [];
    let grants = Grants::new(Dialect::Postgres, &["t_orders"], &["t_points"], &none)
        .expect("the names are good");
    let rules = Rules::new(Dialect::Postgres, &grants, 1024);

    for (name, text) in STATEMENTS {
        rules.check(text).expect("the statement is allowed");
        // Too short for a clock to time each one.
        const TIMES: u32 = 1_000_000;
        let started = Instant::now();
        for _ in 0..TIMES {
            std::hint::black_box(rules.check(std::hint::black_box(text))).expect("it is allowed");
        }
        println!(
            "{:<58} {:.0?} each, n {TIMES}",
            format!("cached {name}"),
            started.elapsed() / TIMES
        );
    }
    for (name, text) in STATEMENTS {
        let mut number = 0;
        let judge = || {
            number += 1;
            rules
                .check(
                    &format!("{text} {}", " ".repeat(number % 1_000 + 1))
                        .replace("$1", &format!("$1 + {number}")),
                )
                .is_ok()
        };
        Figures::of(&format!("new {name}"), 2_000, judge).show();
    }
    let list = |item: &str| {
        let count = 65_000 / (item.len() + 1);
        format!("SELECT 1 IN ({})", vec![item; count].join(","))
    };
    let deep = |open: &str, close: &str, depth: usize| {
        format!("SELECT {}1{}", open.repeat(depth), close.repeat(depth))
    };
    for (name, text) in [
        ("64 KiB of numbers", list("1")),
        ("64 KiB of calls", list("lower('a')")),
        (
            "64 KiB of joins",
            format!(
                "SELECT 1 FROM t_orders{}",
                " JOIN t_orders ON true".repeat(2_900)
            ),
        ),
        (
            "64 KiB of sums",
            format!("SELECT 1{}", " + 1".repeat(16_000)),
        ),
        ("deep parentheses", deep("(", ")", 38)),
        ("deep subqueries", deep("(SELECT ", ")", 38)),
        ("deep cases", deep("CASE WHEN ", " THEN 1 END", 38)),
    ] {
        let verdict = match rules.check(&text) {
            Ok(_) => "allowed",
            Err(refusal) => refusal.code,
        };
        let fresh = Rules::new(Dialect::Postgres, &grants, 0);
        Figures::of(&format!("new {name}: {verdict}"), 50, || {
            fresh.check(&text).is_ok()
        })
        .show();
    }
}
