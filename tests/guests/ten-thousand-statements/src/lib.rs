//! Runs 10,000 statements.

use hapax_guest::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Deserialize, Serialize)]
pub struct Order {
    order_id: String,
    #[serde(default)]
    sin: bool,
}

#[hapax_guest::handler]
pub fn handle(order: Json<Order>) -> Result<Outcome, Failure> {
    let insert = "INSERT INTO t_effects (order_id, step) VALUES ($1, 0)";
    sql::execute(insert, params![order.order_id])?;
    outbox::to("out").json(&*order)?;
    if order.sin {
        for step in 1..10_000_i64 {
            let insert = "INSERT INTO t_effects (order_id, step) VALUES ($1, $2)";
            sql::execute(insert, params![order.order_id, step])?;
        }
    }
    Ok(Outcome::Done)
}
