use super::*;
use crate::failure::code;

fn retry() -> Retry {
    Retry {
        max_attempts: 3,
        delay: Duration::from_secs(1),
        max_delay: Duration::from_secs(10),
    }
}

#[test]
fn attempts_end_in_the_parking_place() {
    let failure = Failure::later(code::RETRY, "later");
    let statuses = [1, 2, 3, 4].map(|attempts| after_failure(&failure, attempts, &retry()).0);
    assert_eq!(
        statuses,
        [Status::Retry, Status::Retry, Status::Parked, Status::Parked]
    );
}

#[test]
fn a_rejected_message_is_parked_at_once() {
    let failure = Failure::never(code::REJECTED, "no such product");
    assert_eq!(
        after_failure(&failure, 1, &retry()),
        (Status::Parked, Duration::ZERO)
    );
}

#[test]
fn the_wish_of_the_handler_is_honoured_up_to_the_maximum() {
    let wish = |seconds| Failure {
        again: Again::Later(Some(Duration::from_secs(seconds))),
        ..Failure::later(code::RETRY, "later")
    };
    assert_eq!(
        after_failure(&wish(7), 1, &retry()),
        (Status::Retry, Duration::from_secs(7))
    );
    assert_eq!(
        after_failure(&wish(700), 1, &retry()),
        (Status::Retry, Duration::from_secs(10))
    );
}

#[test]
fn a_row_runs_once_at_a_time_on_one_host() {
    let running = Running::default();
    let first = running.begin(b"row");
    assert!(first.is_some());
    assert!(running.begin(b"row").is_none());
    assert!(running.begin(b"other").is_some());
    drop(first);
    assert!(running.begin(b"row").is_some());
}
