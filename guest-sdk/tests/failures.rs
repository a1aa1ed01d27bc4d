//! What `?` makes of an error.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use hapax_guest::prelude::*;
use hapax_guest::sql::ErrorKind;
use hapax_guest::testing::Message;

fn violation(kind: ErrorKind) -> sql::Error {
    sql::Error {
        kind,
        code: "23000".to_owned(),
        constraint: Some("t_parent".to_owned()),
        message: "no".to_owned(),
    }
}

fn is_retry(failure: &Failure) -> bool {
    matches!(failure, Failure::Retry { after: None, .. })
}

fn is_reject(failure: &Failure) -> bool {
    matches!(failure, Failure::Reject(_))
}

/// An error type as an application has it, around one of this crate.
#[derive(Debug)]
struct Wrapped(Box<dyn Error>);

impl fmt::Display for Wrapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cannot book")
    }
}

impl Error for Wrapped {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.0)
    }
}

#[test]
fn a_missing_foreign_key_is_retried() {
    assert!(is_retry(&violation(ErrorKind::ForeignKey).into()));
}

#[test]
fn every_other_constraint_rejects() {
    use ErrorKind::{Check, Exclusion, NotNull, Other, Unique};
    for kind in [Unique, NotNull, Check, Exclusion, Other] {
        assert!(is_reject(&violation(kind).into()), "{kind:?}");
    }
}

#[test]
fn json_that_does_not_fit_rejects() {
    let error = serde_json::from_str::<i32>("[]").expect_err("a list is no number");
    assert!(is_reject(&error.into()));
}

#[test]
fn an_error_nobody_knows_is_retried() {
    let error = "x".parse::<i32>().expect_err("x is no number");
    assert!(is_retry(&error.into()));
}

#[test]
fn an_error_keeps_the_class_and_the_text_of_what_it_wraps() {
    let reject = Failure::from(Wrapped(Box::new(violation(ErrorKind::Check))));
    let text = "cannot book: check constraint t_parent violated: no";
    assert_eq!(reject, Failure::reject(text));
    let retry = Failure::from(Wrapped(Box::new(violation(ErrorKind::ForeignKey))));
    assert!(is_retry(&retry));
}

#[test]
fn a_retry_takes_a_delay_and_a_rejection_has_none() {
    let delay = Duration::from_secs(7);
    let retry = Failure::Retry {
        reason: "later".to_owned(),
        after: Some(delay),
    };
    assert_eq!(Failure::retry("later").after(delay), retry);
    assert_eq!(
        Failure::reject("never").after(delay),
        Failure::reject("never")
    );
}

#[test]
fn only_the_named_unique_constraint_is_ignored() {
    let failed = |kind| Err(violation(kind));
    assert_eq!(failed(ErrorKind::Unique).ignore_unique("t_parent"), Ok(0));
    assert_eq!(
        failed(ErrorKind::Unique).ignore_unique("t_other"),
        failed(ErrorKind::Unique)
    );
    assert_eq!(
        failed(ErrorKind::Check).ignore_unique("t_parent"),
        failed(ErrorKind::Check)
    );
    assert_eq!(Ok(1).ignore_unique("t_parent"), Ok(1));
}

#[test]
fn a_write_that_touched_nothing_can_be_a_retry() {
    assert_eq!(Ok(0).or_retry("stale"), Err(Failure::retry("stale")));
    assert_eq!(Ok(2).or_retry("stale"), Ok(2));
    assert!(is_reject(
        &Err(violation(ErrorKind::Check))
            .or_retry("stale")
            .expect_err("it failed")
    ));
}

#[test]
fn what_the_outbox_refuses_is_retried() {
    let publish = |_: &[u8]| -> Result<(), Failure> {
        outbox::to("nowhere").text("hello")?;
        Ok(())
    };
    let run = Message::bytes("").unknown_target("nowhere").run(publish);
    assert!(is_retry(&run.result.expect_err("the target is unknown")));
    for kind in [
        outbox::ErrorKind::UnknownTarget,
        outbox::ErrorKind::Invalid,
        outbox::ErrorKind::NoReplyTo,
    ] {
        let message = "no".to_owned();
        assert!(is_retry(&outbox::Error::Refused { kind, message }.into()));
    }
}
