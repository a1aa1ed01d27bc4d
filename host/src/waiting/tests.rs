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

#[test]
fn a_message_without_a_key_is_parked_once_however_often_it_is_delivered() {
    use lapin::types::{AMQPValue, FieldTable};
    let message = |headers: &[(&str, i64)]| {
        let mut properties = BasicProperties::default().with_app_id("shop".into());
        if !headers.is_empty() {
            let mut table = FieldTable::default();
            for (name, value) in headers {
                table.insert((*name).into(), AMQPValue::LongLongInt(*value));
            }
            properties = properties.with_headers(table);
        }
        Message {
            exchange: String::new(),
            routing_key: "orders".to_owned(),
            properties,
            body: bytes::Bytes::from_static(b"{}"),
        }
    };
    let id = |headers: &[(&str, i64)]| content_id("points", &message(headers), None);
    assert_eq!(id(&[]), id(&[("x-delivery-count", 1)]));
    assert_eq!(
        id(&[("tenant", 7)]),
        id(&[("tenant", 7), ("x-delivery-count", 2)])
    );
    assert_eq!(
        id(&[("tenant", 7), ("x-acquired-count", 3), ("x-death", 1)]),
        id(&[
            ("tenant", 7),
            ("x-acquired-count", 4),
            ("x-delivery-count", 1)
        ])
    );
    assert_ne!(id(&[("tenant", 7)]), id(&[("tenant", 8)]));
}
