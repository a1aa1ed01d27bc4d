//! Tries to find out what time it is and to draw lots; tells all it has learned on stderr.

use hapax_guest::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::hint::black_box;
use std::time::{Instant, SystemTime};

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
        let clocks = || (SystemTime::now(), Instant::now(), context::now().0);
        let before = clocks();
        for round in 0..20_000_000_u64 {
            black_box(round);
        }
        if clocks() != before {
            return Err(Failure::reject("the clock moves"));
        }
        let lots = (
            RandomState::new().hash_one(0),
            context::new_id(),
            context::new_id(),
        );
        eprintln!("lots {lots:?}");
        panic!("again");
    }
    Ok(Outcome::Done)
}
