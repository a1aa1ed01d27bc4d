//! Runs the handler natively.

use hapax_guest::prelude::*;
use hapax_guest::sql::ErrorKind;
use hapax_guest::testing::{Message, Run, StatementKind};
use points::handle;
use serde_json::{Value, json};

fn order(amount_cents: Value) -> Message {
    Message::json(&json!({"order_id": "o-1", "user_id": "ada", "amount_cents": amount_cents}))
}

fn nothing_left(run: &Run) -> bool {
    run.outbox.is_empty() && run.reply.is_none()
}

#[test]
fn a_paid_order_credits_a_point_for_every_100_cents() {
    let run = order(json!(1299)).run(handle);
    assert_eq!(run.result, Ok(Outcome::Done));
    assert_eq!(run.sql.len(), 1);
    assert_eq!(run.sql[0].kind, StatementKind::Defer);
    assert_eq!(run.sql[0].parameters, params!["o-1", "ada", 12]);
}

#[test]
fn the_credit_is_published() {
    let run = order(json!(1299)).run(handle);
    assert_eq!(run.outbox.len(), 1);
    assert_eq!(run.outbox[0].target, "points-credited");
    assert_eq!(
        run.outbox[0].json::<Value>(),
        json!({"order_id": "o-1", "points": 12})
    );
}

#[test]
fn an_order_that_is_credited_already_is_rejected_and_publishes_nothing() {
    let run = order(json!(100))
        .violates("INSERT INTO t_points", ErrorKind::Unique, "t_points_pkey")
        .run(handle);
    assert!(
        matches!(&run.result, Err(Failure::Reject(reason)) if reason.contains("t_points_pkey"))
    );
    assert!(nothing_left(&run));
}

#[test]
fn a_body_that_is_no_order_is_rejected_before_anything_is_asked_for() {
    let run = order(json!("twelve")).run(handle);
    assert!(matches!(&run.result, Err(Failure::Reject(reason)) if reason.contains("twelve")));
    assert!(run.sql.is_empty() && nothing_left(&run));
}

#[test]
fn every_sample_message_is_handled() {
    for line in include_str!("../messages.jsonl").lines() {
        let sample: Value = serde_json::from_str(line).expect("each line is JSON");
        let run = Message::json(&sample["body"]).run(handle);
        assert_eq!(run.result, Ok(Outcome::Done), "{line}");
    }
}
