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

/// A point for every 100 cents.
#[hapax_guest::handler]
pub fn handle(order: Json<OrderPaid>) -> Result<Outcome, Failure> {
    let points = order.amount_cents / 100;
    // Deferred, because nothing here reads it back: Hapax writes the rows of many messages with
    // one statement. An order that is there already still fails the message.
    sql::defer(
        "INSERT INTO t_points (order_id, user_id, points) VALUES ($1, $2, $3)",
        params![order.order_id, order.user_id, points],
    );
    outbox::to("points-credited").json(&Credited {
        order_id: &order.order_id,
        points,
    })?;
    Ok(Outcome::Done)
}
