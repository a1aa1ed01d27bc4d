//! Sleeps in the database.

use hapax_guest::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Deserialize, Serialize)]
pub struct Order {
    order_id: String,
    #[serde(default)]
    sin: Option<usize>,
}

const STATEMENTS: &[&str] = &[
    "SELECT pg_sleep(3600)",
    "SELECT PG_SLEEP(3600)",
    "SELECT pg_catalog.pg_sleep(3600)",
    "SELECT \"pg_sleep\"(3600)",
    "SELECT 1 FROM pg_sleep(3600)",
    "SELECT pg_sleep_for('1 hour')",
    "SELECT pg_sleep_until('2100-01-01')",
    "SELECT sleep(3600)",
    "SELECT benchmark(1000000000, 1)",
    "INSERT INTO t_effects (order_id, step) SELECT 'sin', 9 FROM pg_sleep(3600)",
    "SELECT CASE WHEN EXISTS (SELECT pg_sleep(3600)) THEN 1 END",
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
