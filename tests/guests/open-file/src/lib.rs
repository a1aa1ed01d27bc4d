//! Reads the file that the message names, and writes one beside it; looks at its environment, too.

use hapax_guest::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Deserialize, Serialize)]
pub struct Order {
    order_id: String,
    #[serde(default)]
    sin: Option<String>,
}

#[hapax_guest::handler]
pub fn handle(order: Json<Order>) -> Result<Outcome, Failure> {
    let insert = "INSERT INTO t_effects (order_id, step) VALUES ($1, 0)";
    sql::execute(insert, params![order.order_id])?;
    outbox::to("out").json(&*order)?;
    if let Some(path) = &order.sin {
        let read = std::fs::read(path).map(|bytes| bytes.len());
        let written = std::fs::write(format!("{path}.sin"), "sin");
        let listed = std::fs::read_dir("/").map(drop);
        let known = std::env::vars().count() + std::env::args().count();
        return Err(Failure::reject(format!(
            "{read:?} {written:?} {listed:?} {known}"
        )));
    }
    Ok(Outcome::Done)
}
