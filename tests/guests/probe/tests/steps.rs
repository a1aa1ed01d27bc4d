//! The steps, run natively, as far as a test can survive them.

use std::time::Duration;

use guest_probe::handle;
use hapax_guest::prelude::*;
use hapax_guest::sql::{ErrorKind, Value};
use hapax_guest::testing::{Message, Run, StatementKind};
use serde_json::{Value as Json, json};

fn message(steps: &Json) -> Message {
    Message::json(&json!({"order_id": "o-1", "do": steps}))
}

fn run(steps: Json) -> Run {
    message(&steps).run(handle)
}

#[test]
fn no_steps_are_done() {
    assert_eq!(run(json!([])).result, Ok(Outcome::Done));
    assert_eq!(Message::text("{}").run(handle).result, Ok(Outcome::Done));
}

#[test]
fn an_unknown_step_is_rejected() {
    let run = run(json!([{"exekute": ["SELECT 1", []]}]));
    assert!(matches!(run.result, Err(Failure::Reject(_))));
}

#[test]
fn statements_run_with_typed_parameters() {
    let run = run(json!([
        {"execute": ["A", [1, 1.5, "x", null, true]]},
        {"defer": ["B", [{"uuid": "u"}, {"decimal": "1.0"}, {"timestamp": 7}, {"bytes": "b"}]]},
        {"query": ["C", [{"json": 1}, [1], {"a": 1, "b": 2}]]},
    ]));
    let kinds: Vec<_> = run.sql.iter().map(|statement| statement.kind).collect();
    assert_eq!(
        kinds,
        [
            StatementKind::Execute,
            StatementKind::Defer,
            StatementKind::Query
        ]
    );
    assert_eq!(
        run.sql[0].parameters,
        params![1, 1.5, "x", None::<i64>, true]
    );
    let [uuid, decimal, time, bytes] = &run.sql[1].parameters[..] else {
        panic!("four")
    };
    assert_eq!(
        (uuid, decimal),
        (&Value::Uuid("u".into()), &Value::Decimal("1.0".into()))
    );
    assert_eq!(
        (time, bytes),
        (&Value::Timestamp(7), &Value::Bytes(b"b".to_vec()))
    );
    let json = |text: &str| Value::Json(text.to_owned());
    assert_eq!(
        run.sql[2].parameters,
        [json("1"), json("[1]"), json(r#"{"a":1,"b":2}"#)]
    );
}

#[test]
fn a_constraint_fails_execute_and_not_execute_ignore() {
    let violated = |steps: Json| {
        message(&steps)
            .violates("A", ErrorKind::Unique, "a_pkey")
            .run(handle)
    };
    assert!(violated(json!([{"execute": ["A", []]}])).result.is_err());
    assert_eq!(
        violated(json!([{"execute_ignore": ["A", []]}])).result,
        Ok(Outcome::Done)
    );
}

#[test]
fn rows_can_be_published() {
    let run = message(&json!([{"query": ["SELECT", []], "into": "rows"}]))
        .rows("SELECT", &["id", "name"], [params![1, "Ada"]])
        .run(handle);
    assert_eq!(
        run.outbox[0].json::<Json>(),
        json!([{"id": 1, "name": "Ada"}])
    );
}

#[test]
fn a_missing_row_is_a_retry() {
    let steps = json!([{"fail_if_missing": ["SELECT", []], "after_ms": 50}]);
    let failure = Failure::retry("the row is missing").after(Duration::from_millis(50));
    assert_eq!(message(&steps).run(handle).result, Err(failure));
    let found = message(&steps)
        .rows("SELECT", &["a"], [params![1]])
        .run(handle);
    assert_eq!(found.result, Ok(Outcome::Done));
}

#[test]
fn a_message_is_published_with_all_it_may_have() {
    let run = run(json!([{"publish": {
        "target": "out", "body": {"a": 1}, "routing_key": "r", "ordering_key": "o",
        "headers": {"n": 1}, "delay_ms": 20,
    }}]));
    let sent = &run.outbox[0];
    assert_eq!(
        (sent.target.as_str(), sent.json::<Json>()),
        ("out", json!({"a": 1}))
    );
    assert_eq!(
        (sent.routing_key.as_deref(), sent.ordering_key.as_deref()),
        (Some("r"), Some("o"))
    );
    assert_eq!(
        (sent.headers.len(), sent.delay),
        (1, Some(Duration::from_millis(20)))
    );
}

#[test]
fn state_counts() {
    let steps = json!([
        {"repeat": [3, [{"state_increment": "n"}]]},
        {"state_put": ["a", {"b": 1}]},
        {"state_put_if": ["a", 2, 1]},
        {"state_delete": "old"},
    ]);
    let run = message(&steps)
        .state("old", "x")
        .state("n", "4")
        .run(handle);
    assert_eq!(run.result, Ok(Outcome::Done));
    assert_eq!(run.state["n"], b"7");
    assert_eq!(run.state["a"], b"2");
    assert!(!run.state.contains_key("old"));
}

#[test]
fn the_first_step_that_ends_the_run_decides() {
    let ended = |step: Json| run(json!([step, {"reject": "too far"}])).result;
    assert_eq!(ended(json!({"done": true})), Ok(Outcome::Done));
    assert_eq!(
        ended(json!({"ignored": "why"})),
        Ok(Outcome::Ignored("why".to_owned()))
    );
    assert_eq!(ended(json!({"retry": "r"})), Err(Failure::retry("r")));
    let later = Failure::retry("r").after(Duration::from_millis(5));
    assert_eq!(ended(json!({"retry": "r", "after_ms": 5})), Err(later));
    let wrong = Failure::reject("1 rows, not 2");
    assert_eq!(
        ended(json!({"expect_affected": [["A", []], 2]})),
        Err(wrong)
    );
}

#[test]
fn a_message_can_fail_until_an_attempt() {
    let steps = json!([{"retry_until_attempt": 3}]);
    assert!(message(&steps).attempt(2).run(handle).result.is_err());
    assert_eq!(
        message(&steps).attempt(3).run(handle).result,
        Ok(Outcome::Done)
    );
}

#[test]
fn the_echo_tells_the_context_and_the_message() {
    let steps = json!([{"echo_context": "echo"}]);
    let run = message(&steps)
        .key([0xff])
        .attempt(2)
        .message_id("m")
        .header("h", 1.5)
        .run(handle);
    let echo: Json = run.outbox[0].json();
    assert_eq!((&echo["key"], &echo["attempt"]), (&json!([255]), &json!(2)));
    assert_eq!(
        echo["properties"],
        json!({"content_type": "application/json", "message_id": "m"})
    );
    assert_eq!(echo["headers"], json!([["h", 1.5]]));
    assert_eq!(
        (&echo["dialect"], &echo["consumer"]),
        (&json!("postgres"), &json!("test"))
    );
    assert_ne!(echo["ids"][0], echo["ids"][1]);
}

#[test]
#[should_panic(expected = "as told")]
fn panic_panics() {
    let _ = run(json!([{"log": "first"}, {"stderr": "second"}, {"panic": "as told"}]));
}
