//! Takes memory without end, touches it, and gives nothing back.

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
        loop {
            std::mem::forget(black_box(vec![1_u8; 1 << 20]));
        }
    }
    Ok(Outcome::Done)
}
