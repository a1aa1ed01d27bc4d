//! Credits points for a paid order, and tells whoever listens.

use hapax_guest::prelude::*;
use serde::{Deserialize, Serialize};

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

#[hapax_guest::handler]
pub fn handle(order: Json<OrderPaid>) -> Result<Outcome, Failure> {
    let points = order.amount_cents / 100;
    sql::execute(
        "INSERT INTO t_points (order_id, user_id, points) VALUES ($1, $2, $3)",
        params![order.order_id, order.user_id, points],
    )?;
    outbox::to("points-credited").json(&Credited {
        order_id: &order.order_id,
        points,
    })?;
    Ok(Outcome::Done)
}
