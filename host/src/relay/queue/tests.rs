use std::sync::Arc;

use bytes::Bytes;
use lapin::BasicProperties;

use super::*;
use crate::message::Message;
use crate::store::{ConsumerId, OutboxRow};

fn record(sequence: i64, ordering_key: Option<&str>) -> OutboxRecord {
    let message = Message {
        exchange: String::new(),
        routing_key: "q".into(),
        properties: BasicProperties::default(),
        body: Bytes::new(),
    };
    let row = OutboxRow {
        consumer: ConsumerId(1),
        lane: 0,
        target: "t".into(),
        may_drop: false,
        ordering_key: ordering_key.map(str::to_owned),
        delay: None,
        message,
    };
    OutboxRecord {
        sequence,
        attempts: 0,
        row: Arc::new(row),
    }
}

fn sequences(block: &[OutboxRecord]) -> Vec<i64> {
    block.iter().map(|record| record.sequence).collect()
}

#[test]
fn rows_without_an_ordering_key_go_at_once_and_in_order() {
    let mut queue = Queue::default();
    queue.extend(vec![record(1, None), record(2, None)]);
    assert_eq!(sequences(&queue.block(10)), [1, 2]);
    assert!(
        !queue.is_empty(),
        "they are this host's until they are removed"
    );
    queue.removed(&[1, 2]);
    assert!(queue.is_empty());
}

#[test]
fn a_row_is_not_taken_in_twice() {
    let mut queue = Queue::default();
    queue.extend(vec![record(1, None)]);
    assert_eq!(
        sequences(&queue.extend(vec![record(1, None), record(2, None)])),
        [1]
    );
    assert_eq!(sequences(&queue.block(10)), [1, 2]);
}

#[test]
fn the_second_row_of_an_ordering_key_waits_until_the_first_is_removed() {
    let mut queue = Queue::default();
    queue.extend(vec![
        record(7, Some("a")),
        record(5, Some("a")),
        record(6, Some("b")),
    ]);
    assert_eq!(
        queue.block(10).len(),
        0,
        "nothing goes before the table was asked"
    );
    let mut heads = queue.heads(10);
    heads.sort_unstable();
    assert_eq!(heads, [5, 6]);
    queue.release(&heads, &[6]);
    let block = queue.block(10);
    assert_eq!(sequences(&block), [5]);
    assert_eq!(queue.heads(10), [6], "7 waits for 5");
    queue.removed(&[5]);
    let mut heads = queue.heads(10);
    heads.sort_unstable();
    assert_eq!(heads, [6, 7]);
}

#[test]
fn a_block_that_did_not_go_keeps_its_place() {
    let mut queue = Queue::default();
    queue.extend(vec![record(1, None), record(2, None), record(3, None)]);
    let block = queue.block(2);
    queue.put_back(block);
    assert_eq!(sequences(&queue.block(10)), [1, 2, 3]);
}

#[test]
fn rows_of_a_key_that_is_blocked_for_long_can_leave_and_come_back() {
    let mut queue = Queue::default();
    queue.extend(vec![
        record(5, Some("a")),
        record(6, Some("b")),
        record(7, Some("a")),
        record(8, None),
    ]);
    queue.release(&[5, 6], &[5]);
    assert_eq!(queue.stuck(Duration::from_secs(3_600), 10), [0; 0]);
    assert_eq!(queue.stuck(Duration::ZERO, 10), [5, 7]);
    assert_eq!(queue.stuck(Duration::ZERO, 1), [5]);
    assert_eq!(sequences(&queue.leave(&[5, 7])), [5, 7]);
    assert_eq!(queue.stuck(Duration::ZERO, 10), [0; 0]);
    assert_eq!(queue.len(), 2, "6 and 8 are still here");
    assert!(queue.extend(vec![record(5, Some("a"))]).is_empty());
    assert_eq!(queue.heads(10), [5]);
    queue.release(&[5], &[]);
    assert_eq!(sequences(&queue.block(10)), [8, 6, 5]);
}
