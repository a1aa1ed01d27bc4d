use std::sync::Arc;

use bytes::Bytes;

use super::*;
use crate::store::{ConsumerId, OutboxRow};

fn record(routing_key: &str, message_id: &str) -> OutboxRecord {
    let message = Message {
        exchange: "events".into(),
        routing_key: routing_key.into(),
        properties: BasicProperties::default().with_message_id(message_id.into()),
        body: Bytes::new(),
    };
    OutboxRecord {
        sequence: 1,
        attempts: 0,
        row: Arc::new(OutboxRow {
            consumer: ConsumerId(1),
            lane: 0,
            target: "t".into(),
            may_drop: false,
            ordering_key: None,
            delay: None,
            message,
        }),
    }
}

/// The broker returns a message, and lapin hands it over with whichever confirm comes next.
fn returned(routing_key: &str, message_id: &str) -> Confirm {
    Confirm::Ack(Some(Return {
        exchange: "events".into(),
        routing_key: routing_key.into(),
        message_id: Some(message_id.into()),
        text: "NO_ROUTE".into(),
    }))
}

fn fates(rows: &[OutboxRecord], confirms: Vec<Confirm>) -> Vec<&'static str> {
    let fates = judge(rows, confirms, true);
    let name = |fate| match fate {
        Fate::Unknown => "alone",
        Fate::Known(Sent::Confirmed) => "confirmed",
        Fate::Known(Sent::Returned(_)) => "returned",
        Fate::Known(Sent::Refused(_)) => "refused",
    };
    fates.into_iter().map(name).collect()
}

#[test]
fn a_return_belongs_to_its_row_whichever_confirm_it_comes_with() {
    let rows = [record("a", "1"), record("b", "2"), record("a", "3")];
    let confirms = vec![returned("a", "3"), Confirm::Ack(None), Confirm::Ack(None)];
    assert_eq!(
        fates(&rows, confirms),
        ["confirmed", "confirmed", "returned"]
    );
}

#[test]
fn rows_that_a_return_does_not_tell_apart_go_alone() {
    let rows = [record("a", "1"), record("a", "1"), record("a", "2")];
    let confirms = vec![returned("a", "1"), Confirm::Ack(None), Confirm::Ack(None)];
    assert_eq!(fates(&rows, confirms), ["alone", "alone", "confirmed"]);
    let rows = [record("a", "1"), record("b", "1")];
    let confirms = vec![Confirm::Ack(None), returned("a", "1")];
    assert_eq!(fates(&rows, confirms), ["returned", "confirmed"]);
}

#[test]
fn no_row_is_confirmed_beside_a_return_that_is_nobodys() {
    let rows = [record("a", "1"), record("a", "2"), record("b", "3")];
    let confirms = vec![
        returned("a", "changed on the way"),
        returned("b", "3"),
        Confirm::Nack(None),
    ];
    assert_eq!(fates(&rows, confirms), ["alone", "alone", "returned"]);
}
