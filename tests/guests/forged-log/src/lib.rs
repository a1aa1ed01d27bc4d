//! Says what steers a terminal and looks like lines of the host, everywhere it can say something.

use hapax_guest::log;
use hapax_guest::prelude::*;
use serde::{Deserialize, Serialize};

const HOSTILE: &str = "said\u{1b}]0;OWNED\u{7}\u{1b}[31m\u{9b}2J\u{202e}\r\n2026-01-01T00:00:00Z  INFO forged line\nFORGED";

#[derive(Deserialize, Serialize)]
pub struct Order {
    order_id: String,
    #[serde(default)]
    sin: String,
}

#[hapax_guest::handler]
pub fn handle(order: Json<Order>) -> Result<Outcome, Failure> {
    let insert = "INSERT INTO t_effects (order_id, step) VALUES ($1, 0)";
    sql::execute(insert, params![order.order_id])?;
    outbox::to("out").json(&*order)?;
    if order.sin.is_empty() {
        return Ok(Outcome::Done);
    }
    log::warn!(field = HOSTILE; "{HOSTILE}");
    println!("{HOSTILE}");
    eprintln!("{HOSTILE}");
    Err(Failure::reject(HOSTILE))
}
