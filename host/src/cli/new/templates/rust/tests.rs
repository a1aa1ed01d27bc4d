//! Runs the handler natively: `cargo test`.

use hapax_guest::prelude::*;
use hapax_guest::testing::Message;
use {{crate}}::handle;
use serde_json::{Value, json};

#[test]
fn a_paid_order_credits_a_point_for_every_100_cents() {
    let order = json!({"order_id": "o-1", "user_id": "ada", "amount_cents": 1299});
    let run = Message::json(&order).run(handle);
    assert_eq!(run.result, Ok(Outcome::Done));
    assert_eq!(run.sql[0].parameters, params!["o-1", "ada", 12]);
    assert_eq!(run.outbox[0].json::<Value>(), json!({"order_id": "o-1", "points": 12}));
}

#[test]
fn a_body_that_is_no_order_is_rejected() {
    let run = Message::json(&json!({"order_id": 1})).run(handle);
    assert!(matches!(run.result, Err(Failure::Reject(_))), "{:?}", run.result);
    assert!(run.sql.is_empty());
}
