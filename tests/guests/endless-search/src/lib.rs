//! Searches for one long value in another, in one call that no deadline can interrupt.

use hapax_guest::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Deserialize, Serialize)]
pub struct Order {
    order_id: String,
    #[serde(default)]
    sin: Option<usize>,
}

const STATEMENTS: &[&str] = &[
    "SELECT 1 WHERE $1 LIKE $2",
    "SELECT rtrim($1, $2)",
    "SELECT length(replace($1, $2, 'x'))",
    "SELECT 1 WHERE $1 LIKE '%' || $2 || '%'",
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
        let (hay, needle) = ("a".repeat(4_000_000), "a".repeat(2_000_000) + "b");
        sql::query(statement, params![hay, needle])?;
        return Err(Failure::reject(format!("it ran: {statement}")));
    }
    Ok(Outcome::Done)
}
