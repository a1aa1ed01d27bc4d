//! Writes 20 MB to stderr, with bytes that are no text among them, and panics.

use hapax_guest::prelude::*;
use serde::{Deserialize, Serialize};
use std::io::Write;

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
        let line = [b"\0\xff\x1b[2J".as_slice(), &[b'x'; 4000]].concat();
        for _ in 0..5_000 {
            drop(std::io::stderr().write_all(&line));
        }
        panic!("the flood is over");
    }
    Ok(Outcome::Done)
}
