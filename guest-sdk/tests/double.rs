//! The test double behaves as the host does, where a test could tell.

use std::time::Duration;

use hapax_guest::prelude::*;
use hapax_guest::sql::ErrorKind;
use hapax_guest::testing::{Message, StatementKind};
use hapax_guest::{HeaderValue, Timestamp};
use serde_json::json;

#[hapax_guest::handler]
fn everything(
    body: Json<serde_json::Value>,
    message: &hapax_guest::Message,
) -> Result<(), Failure> {
    state::put("seen", "yes");
    log::warn!(key = message.routing_key; "Attempt {}", context::attempt());
    sql::execute("UPDATE t SET a = $1", params![body["a"].as_i64()])?;
    outbox::to("out")
        .routing_key("r")
        .header("n", 1)
        .ordering_key("o")
        .delay(Duration::from_micros(1500))
        .json(&*body)?;
    outbox::reply().text("thanks")?;
    if body["fail"] == true {
        return Err(Failure::retry("told so"));
    }
    Ok(())
}

#[test]
fn a_run_shows_what_was_asked_for() {
    let run = Message::json(&json!({"a": 5}))
        .routing_key("in")
        .reply_to("q")
        .run(everything);
    assert_eq!(run.result, Ok(Outcome::Done));
    assert_eq!(run.sql[0].kind, StatementKind::Execute);
    assert_eq!(run.sql[0].parameters, params![5]);
    let sent = &run.outbox[0];
    assert_eq!(
        (sent.target.as_str(), sent.routing_key.as_deref()),
        ("out", Some("r"))
    );
    assert_eq!(sent.headers[0].value, HeaderValue::S64(1));
    assert_eq!(sent.ordering_key.as_deref(), Some("o"));
    assert_eq!(
        sent.delay,
        Some(Duration::from_millis(2)),
        "a delay is rounded up"
    );
    assert_eq!(sent.content_type.as_deref(), Some("application/json"));
    assert_eq!(sent.json::<serde_json::Value>(), json!({"a": 5}));
    assert_eq!(run.reply.expect("it replied").body, b"thanks");
    assert_eq!(run.state["seen"], b"yes");
    assert_eq!(run.log[0].message, "Attempt 1");
    assert_eq!(run.log[0].fields, [("key".to_owned(), "in".to_owned())]);
}

#[test]
fn a_failure_leaves_no_effects_and_keeps_the_record() {
    let message = Message::json(&json!({"fail": true}))
        .reply_to("q")
        .state("seen", "no");
    let run = message.run(everything);
    assert_eq!(run.result, Err(Failure::retry("told so")));
    assert!(run.outbox.is_empty() && run.reply.is_none());
    assert_eq!(run.state["seen"], b"no");
    assert_eq!((run.sql.len(), run.log.len()), (1, 1));
}

#[test]
fn a_refused_deferred_statement_fails_a_handler_that_was_done() {
    let run = Message::bytes("")
        .violates("INTO t", ErrorKind::ForeignKey, "t_parent")
        .run(|_: &[u8]| -> Result<(), Failure> {
            sql::defer("INSERT INTO t (a) VALUES (1)", params![]);
            outbox::to("out").text("x")?;
            Ok(())
        });
    assert!(
        matches!(&run.result, Err(Failure::Retry { reason, .. }) if reason.contains("t_parent"))
    );
    assert!(run.outbox.is_empty());
}

#[test]
fn answers_are_given_in_order_and_the_last_one_stays() {
    let message = Message::bytes("")
        .affected("UPDATE", 0)
        .affected("UPDATE", 3);
    let run = message.run(|_: &[u8]| -> Result<(), Failure> {
        let touched = || sql::execute("UPDATE t SET a = 1", params![]);
        assert_eq!([touched()?, touched()?, touched()?], [0, 3, 3]);
        assert_eq!(sql::execute("DELETE FROM t", params![])?, 1);
        Ok(())
    });
    assert_eq!(run.sql.len(), 4);
}

#[test]
fn the_context_is_what_the_test_says() {
    let message = Message::bytes("")
        .key("k")
        .consumer("points")
        .attempt(3)
        .redelivered()
        .now(Timestamp(5))
        .config("rate", "10");
    let run = message.run(|_: &[u8]| -> Result<(), Failure> {
        assert_eq!(
            (context::key(), context::consumer().as_str()),
            (b"k".to_vec(), "points")
        );
        assert_eq!((context::attempt(), context::redelivered()), (3, true));
        assert_eq!(context::now(), Timestamp(5));
        assert_eq!(context::config("rate").as_deref(), Some("10"));
        assert_eq!(context::config("other"), None);
        outbox::to("ids").text(context::new_id().as_str())?;
        outbox::to("ids").text(context::new_id().as_str())?;
        Ok(())
    });
    let again = message.run(|_: &[u8]| -> Result<(), Failure> {
        outbox::to("ids").text(context::new_id().as_str())?;
        Ok(())
    });
    assert_ne!(run.outbox[0].body, run.outbox[1].body);
    assert_eq!(
        run.outbox[0].body, again.outbox[0].body,
        "ids are equal in every attempt"
    );
}

#[test]
fn put_if_holds_only_for_the_version_that_is_there() {
    let run = Message::bytes("")
        .state("k", "1")
        .run(|_: &[u8]| -> Result<(), Failure> {
            let entry = state::get("k").expect("the test set it");
            state::put("k", "2");
            let late = state::put_if("k", "3", Some(entry.version)).expect_err("the key changed");
            state::put_if("k", "4", late.current)?;
            assert!(state::put_if("k", "5", None).is_err(), "it exists");
            state::put_if("new", "6", None)?;
            state::delete("gone");
            Ok(())
        });
    assert_eq!(run.result, Ok(Outcome::Done));
    assert_eq!(
        (run.state["k"].as_slice(), run.state["new"].as_slice()),
        (&b"4"[..], &b"6"[..])
    );
}

#[test]
fn a_reply_needs_somewhere_to_go() {
    let run = Message::bytes("")
        .run(|_: &[u8]| -> Result<(), outbox::Error> { outbox::reply().bytes(b"x") });
    // As everything that the outbox refuses. A handler that knows better says `Failure::reject`.
    assert!(matches!(run.result, Err(Failure::Retry { .. })));
}

#[test]
fn a_panic_of_the_handler_reaches_the_test_and_ends_the_run() {
    let panic = |_: &[u8]| -> Result<(), Failure> { panic!("as told") };
    let caught = std::panic::catch_unwind(|| Message::bytes("").run(panic));
    assert!(caught.is_err());
    let next = Message::bytes("").run(|_: &[u8]| Ok::<_, Failure>(()));
    assert_eq!(next.result, Ok(Outcome::Done));
}

#[test]
#[should_panic(expected = "only inside hapax_guest::testing::Message::run")]
fn a_host_call_outside_a_run_says_what_is_missing() {
    context::attempt();
}

#[test]
fn a_body_that_is_not_text_is_rejected() {
    let run = Message::bytes([0xff]).run(|_: &str| Ok::<_, Failure>(()));
    assert_eq!(
        run.result,
        Err(Failure::reject("the body is not UTF-8 text"))
    );
}

#[test]
fn a_handler_may_take_nothing_and_much() {
    let nothing = || -> Result<(), Failure> { Ok(()) };
    assert_eq!(Message::bytes("").run(nothing).result, Ok(Outcome::Done));
    let much = |text: String, bytes: Vec<u8>, whole: hapax_guest::Message| -> Result<(), Failure> {
        assert_eq!(
            (text.as_bytes(), bytes.as_slice()),
            (&b"x"[..], whole.body.as_slice())
        );
        Ok(())
    };
    assert_eq!(Message::text("x").run(much).result, Ok(Outcome::Done));
}
