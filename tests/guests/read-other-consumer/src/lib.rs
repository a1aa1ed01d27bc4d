//! Reads a table that is another consumer's.

use hapax_guest::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Deserialize, Serialize)]
pub struct Order {
    order_id: String,
    #[serde(default)]
    sin: Option<usize>,
}

const STATEMENTS: &[&str] = &[
    "SELECT id FROM t_counters",
    "SELECT id FROM public.t_counters",
    "SELECT id FROM \"t_counters\"",
    "SELECT id FROM T_COUNTERS",
    "SELECT t.id FROM t_parents p, t_counters t",
    "SELECT 1 FROM t_parents p JOIN t_counters t ON p.id = t.id",
    "SELECT (SELECT max(total) FROM t_counters)",
    "SELECT 1 FROM t_parents WHERE EXISTS (SELECT 1 FROM t_counters)",
    "WITH x AS (SELECT id FROM t_counters) SELECT id FROM x",
    "WITH t_counters AS (SELECT id FROM t_counters) SELECT id FROM t_counters",
    "SELECT id FROM t_parents UNION SELECT id FROM t_counters",
    "INSERT INTO t_effects (order_id, step) SELECT id, total FROM t_counters",
    "UPDATE t_effects SET step = t.total FROM t_counters t",
    "DELETE FROM t_effects WHERE order_id IN (SELECT id FROM t_counters)",
    "INSERT INTO t_effects (order_id, step) VALUES ('sin', 9) RETURNING (SELECT max(total) FROM t_counters)",
    "SELECT id FROM t_parents ORDER BY (SELECT max(total) FROM t_counters)",
    "SELECT id FROM t_parents FOR UPDATE",
    "TABLE t_counters",
    "SELECT table_name FROM information_schema.tables",
    "SELECT relname FROM pg_class",
    "SELECT sql FROM sqlite_master",
    "SELECT query FROM pg_stat_activity",
];

#[hapax_guest::handler]
pub fn handle(order: Json<Order>) -> Result<Outcome, Failure> {
    let insert = "INSERT INTO t_effects (order_id, step) VALUES ($1, 0)";
    sql::execute(insert, params![order.order_id])?;
    outbox::to("out").json(&*order)?;
    if let Some(number) = order.sin {
        let Some(statement) = STATEMENTS.get(number) else {
            return Err(Failure::reject("there are no more of them"));
        };
        match number % 3 {
            0 => drop(sql::execute(statement, params![])),
            1 if !statement.starts_with("SELECT") => sql::defer(statement, params![]),
            _ => drop(sql::query(statement, params![])),
        }
        return Err(Failure::reject(format!("it ran: {statement}")));
    }
    Ok(Outcome::Done)
}
