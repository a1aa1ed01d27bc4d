//! Makes one value of hundreds of megabytes out of a short text and small parameters.

use hapax_guest::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Deserialize, Serialize)]
pub struct Order {
    order_id: String,
    #[serde(default)]
    sin: Option<usize>,
}

const STATEMENTS: &[&str] = &[
    "SELECT replace($1, 'a', $2)",
    "WITH a AS (SELECT $1 || $1 || $2 AS x), b AS (SELECT x || x AS x FROM a), c AS (SELECT x || x AS x FROM b), \
     d AS (SELECT x || x AS x FROM c), e AS (SELECT x || x AS x FROM d), f AS (SELECT x || x AS x FROM e) \
     SELECT x || x FROM f",
    "SELECT string_agg($1 || $2, '') FROM t_parents AS a, t_parents AS b",
    "INSERT INTO t_effects (order_id, step) VALUES ('sin', 9) RETURNING replace($1, 'a', $2)",
];

#[hapax_guest::handler]
pub fn handle(order: Json<Order>) -> Result<Outcome, Failure> {
    let insert = "INSERT INTO t_effects (order_id, step) VALUES ($1, 0)";
    sql::execute(insert, params![order.order_id])?;
    outbox::to("out").json(&*order)?;
    if let Some(number) = order.sin {
        let Some(statement) = STATEMENTS.get(number) else {
            return Err(Failure::reject("there are no more of them"));
        };
        let (long, short) = ("a".repeat(200_000), "b".repeat(1_000));
        // Less of it where it meets ten thousand rows.
        let long = if statement.contains("string_agg") {
            &long[..20_000]
        } else {
            &long[..]
        };
        sql::query(statement, params![long, short])?;
        return Err(Failure::reject(format!("it ran: {statement}")));
    }
    Ok(Outcome::Done)
}
