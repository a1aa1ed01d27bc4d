//! The handler of `plugins/points` with its two effects switched by the configuration, so that
//! `hapax bench` can tell what each of them costs.
//!
//! - `sql`: `defer` (default), `execute`, `ask` for how many rows it touches, or `none`
//! - `publish`: `yes` (default) or `no`

use hapax_guest::prelude::*;
use serde::{Deserialize, Serialize};

const INSERT: &str = "INSERT INTO t_points (order_id, user_id, points) VALUES ($1, $2, $3)";

/// Whether it inserts a row, only the database can tell.
const ASK: &str =
    "INSERT INTO t_points (order_id, user_id, points) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";

/// The message: an order was paid.
#[derive(Deserialize)]
pub struct OrderPaid {
    order_id: String,
    user_id: String,
    amount_cents: i64,
}

#[derive(Serialize)]
struct Credited<'a> {
    order_id: &'a str,
    points: i64,
}

/// A point for every 100 cents.
#[hapax_guest::handler]
pub fn handle(order: Json<OrderPaid>) -> Result<Outcome, Failure> {
    let points = order.amount_cents / 100;
    let row = params![order.order_id, order.user_id, points];
    match context::config("sql").as_deref() {
        None | Some("defer") => sql::defer(INSERT, row),
        Some("execute") => drop(sql::execute(INSERT, row)?),
        Some("ask") => drop(sql::execute(ASK, row)?),
        Some("none") => {}
        Some(other) => return Err(Failure::reject(format!("sql = {other:?} is not known"))),
    }
    match context::config("publish").as_deref() {
        None | Some("yes") => {
            outbox::to("points-credited").json(&Credited {
                order_id: &order.order_id,
                points,
            })?;
        }
        Some("no") => {}
        Some(other) => return Err(Failure::reject(format!("publish = {other:?} is not known"))),
    }
    Ok(Outcome::Done)
}
