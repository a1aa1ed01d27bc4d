//! Calls functions without a parenthesis: PostgreSQL reads `u.f` as `f(u)` where `u` has no column `f`.

use hapax_guest::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Deserialize, Serialize)]
pub struct Order {
    order_id: String,
    #[serde(default)]
    sin: Option<usize>,
}

const STATEMENTS: &[&str] = &[
    "SELECT t_parents.archive FROM t_parents",
    "SELECT p.archive FROM t_parents AS p",
    "SELECT p.\"archive\" FROM t_parents AS p WHERE p.archive IS NOT NULL",
    "SELECT 1 FROM t_parents ORDER BY t_parents.archive",
    "SELECT (SELECT max(t_parents.archive)) FROM t_parents",
    "SELECT d.archive FROM (SELECT * FROM t_parents) AS d",
    "WITH p AS (SELECT * FROM t_parents) SELECT p.archive FROM p",
    "INSERT INTO t_effects (order_id, step) VALUES ('sin', 9) RETURNING t_effects.archive",
    "INSERT INTO t_effects (order_id, step) VALUES ('sin', 9) ON CONFLICT (order_id, step) DO UPDATE SET step = length(excluded.archive)",
    "UPDATE t_effects SET step = length(p.archive) FROM t_parents AS p",
    "DELETE FROM t_effects WHERE t_effects.archive = ''",
    "SELECT u.ts_stat::text FROM unnest(ARRAY['SELECT ''a''::tsvector']) AS u",
    "SELECT u.nextval FROM unnest(ARRAY['evil']) AS u (sequence)",
    "SELECT g.lo_creat FROM generate_series(1, 1) AS g",
];

#[hapax_guest::handler]
pub fn handle(order: Json<Order>) -> Result<Outcome, Failure> {
    let insert = "INSERT INTO t_effects (order_id, step) VALUES ($1, 0)";
    sql::execute(insert, params![order.order_id])?;
    // What is a column may be qualified.
    let parent = "SELECT t_parents.id FROM t_parents WHERE t_parents.id = $1";
    sql::query(parent, params!["1"])?;
    outbox::to("out").json(&*order)?;
    if let Some(number) = order.sin {
        let Some(statement) = STATEMENTS.get(number) else {
            return Err(Failure::reject("there are no more of them"));
        };
        match number % 3 {
            0 => drop(sql::query(statement, params![])),
            1 if !statement.starts_with("SELECT") => sql::defer(statement, params![]),
            _ => drop(sql::execute(statement, params![])),
        }
        return Err(Failure::reject(format!("it ran: {statement}")));
    }
    Ok(Outcome::Done)
}
