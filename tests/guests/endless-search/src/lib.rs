//! Searches for one long value in another, in one call that no deadline can interrupt, and calls many functions of one
//! row, between which no database looks for a deadline either.

use hapax_guest::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Deserialize, Serialize)]
pub struct Order {
    order_id: String,
    #[serde(default)]
    sin: Option<usize>,
}

const STATEMENTS: &[&str] = &[
    "SELECT 1 WHERE $1 LIKE $2",
    "SELECT rtrim($1, $2)",
    "SELECT length(replace($1, $2, 'x'))",
    "SELECT 1 WHERE $1 LIKE '%' || $2 || '%'",
    ROW_OF_CALLS,
    LONG_CHAIN,
];

macro_rules! twenty {
    ($text:literal) => {
        concat!(
            $text, $text, $text, $text, $text, $text, $text, $text, $text, $text, $text, $text,
            $text, $text, $text, $text, $text, $text, $text, $text
        )
    };
}

const ROW_OF_CALLS: &str = concat!(
    "SELECT length($2)",
    twenty!(", length(upper($1)), length(lower($1)), length(upper(lower($1)))")
);

const LONG_CHAIN: &str = concat!("SELECT length($2", twenty!(" || $1 || $1"), ")");

#[hapax_guest::handler]
pub fn handle(order: Json<Order>) -> Result<Outcome, Failure> {
    let insert = "INSERT INTO t_effects (order_id, step) VALUES ($1, 0)";
    sql::execute(insert, params![order.order_id])?;
    outbox::to("out").json(&*order)?;
    if let Some(number) = order.sin {
        let Some(statement) = STATEMENTS.get(number) else {
            return Err(Failure::reject("there are no more of them"));
        };
        let (hay, needle) = ("a".repeat(4_000_000), "a".repeat(2_000_000) + "b");
        sql::query(statement, params![hay, needle])?;
        return Err(Failure::reject(format!("it ran: {statement}")));
    }
    Ok(Outcome::Done)
}
