//! Takes locks that outlive the transaction, or that make other hosts believe that this one is alive.

use hapax_guest::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Deserialize, Serialize)]
pub struct Order {
    order_id: String,
    #[serde(default)]
    sin: Option<usize>,
}

const STATEMENTS: &[&str] = &[
    "SELECT pg_advisory_lock(1)",
    "SELECT pg_advisory_xact_lock(1)",
    "SELECT pg_try_advisory_lock(1)",
    "SELECT pg_catalog.pg_advisory_lock_shared(1, 2)",
    "SELECT pg_advisory_unlock_all()",
    "SELECT \"pg_advisory_lock\"(1)",
    "SELECT get_lock('evil', 10)",
    "SELECT release_all_locks()",
    "UPDATE t_effects SET step = pg_advisory_lock(1)",
    "SELECT 1 FROM pg_locks",
    "SELECT pg_notify('evil', 'sin')",
    "LISTEN evil",
    "NOTIFY evil",
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
