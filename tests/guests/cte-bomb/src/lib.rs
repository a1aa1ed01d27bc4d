//! Doubles what the database has to plan at each step of a short text.

use hapax_guest::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Deserialize, Serialize)]
pub struct Order {
    order_id: String,
    #[serde(default)]
    sin: Option<usize>,
}

/// What stands at the beginning, at each step, and at the end.
const STATEMENTS: &[[&str; 3]] = &[
    [
        "SELECT 1 AS x",
        "SELECT a.x FROM a$ AS a, a$ AS b",
        "SELECT count(*) FROM a$",
    ],
    [
        "SELECT 1 AS x",
        "SELECT a.x FROM a$ AS a WHERE EXISTS (SELECT 1 FROM a$)",
        "SELECT count(*) FROM a$",
    ],
    [
        "SELECT 'x' AS x",
        "SELECT x || x AS x FROM a$",
        "SELECT length(x) FROM a$",
    ],
];

fn bomb([first, step, last]: [&str; 3]) -> String {
    let mut text = format!("WITH a0 AS ({first})");
    for level in 1..=24 {
        let before = format!("a{}", level - 1);
        text += &format!(", a{level} AS ({})", step.replace("a$", &before));
    }
    format!("{text} {}", last.replace("a$", "a24"))
}

#[hapax_guest::handler]
pub fn handle(order: Json<Order>) -> Result<Outcome, Failure> {
    let insert = "INSERT INTO t_effects (order_id, step) VALUES ($1, 0)";
    sql::execute(insert, params![order.order_id])?;
    outbox::to("out").json(&*order)?;
    if let Some(number) = order.sin {
        let Some(parts) = STATEMENTS.get(number) else {
            return Err(Failure::reject("there are no more of them"));
        };
        let statement = bomb(*parts);
        sql::query(&statement, params![])?;
        return Err(Failure::reject(format!("it ran: {statement}")));
    }
    Ok(Outcome::Done)
}
