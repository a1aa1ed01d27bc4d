//! Panics, and looks in its memory for a run before this one.

use hapax_guest::prelude::*;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU32, Ordering};

#[derive(Deserialize, Serialize)]
pub struct Order {
    order_id: String,
    #[serde(default)]
    sin: bool,
}

static RUNS: AtomicU32 = AtomicU32::new(0);

#[hapax_guest::handler]
pub fn handle(order: Json<Order>) -> Result<Outcome, Failure> {
    let insert = "INSERT INTO t_effects (order_id, step) VALUES ($1, 0)";
    sql::execute(insert, params![order.order_id])?;
    outbox::to("out").json(&*order)?;
    let runs = RUNS.fetch_add(1, Ordering::SeqCst) + 1;
    if runs > 1 {
        return Err(Failure::reject("this instance has run before"));
    }
    if order.sin {
        panic!("run {runs} of this instance");
    }
    Ok(Outcome::Done)
}
