//! Calls itself without end.

use hapax_guest::prelude::*;
use serde::{Deserialize, Serialize};
use std::hint::black_box;

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
        recurse(0);
    }
    Ok(Outcome::Done)
}

/// What happens after the call keeps it from becoming a loop.
#[expect(unconditional_recursion, reason = "that is the sin")]
fn recurse(depth: u64) {
    let frame = [depth; 32];
    recurse(black_box(&frame)[0] + 1);
    black_box(&frame);
}
