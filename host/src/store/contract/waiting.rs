//! Failed messages in their table.

use std::time::Duration;

use crate::message::withheld::{Cut, Original, Withheld};

use super::{Fixture, HOUR, claim, in_every_dialect, in_memory, message, rule, waiting};
use crate::store::{
    ConsumerId, Fate, Session, Settlement, Start, Status, WaitingFilter, WaitingRow,
};

in_every_dialect! {
    a_message_waits_whole_and_leaves_as_it_came
    no_content_can_make_parking_fail
    what_was_withheld_of_a_message_is_kept_beside_it_until_an_edit
    a_row_of_an_encoding_that_nobody_knows_comes_as_its_bytes
    a_newer_failure_replaces_an_older_one_of_its_key
    the_same_content_without_a_key_is_parked_once
    one_batch_may_park_the_same_content_twice
    due_rows_come_oldest_first_and_others_do_not_come
    a_row_that_runs_is_not_run_by_another_host
    starts_of_a_row_are_counted_until_it_fails_again
    a_replayed_row_runs_again_from_the_first_attempt
    a_discarded_row_is_gone_and_its_key_is_not
    only_parked_rows_are_replayed_or_discarded
    an_operator_finds_rows_by_what_is_known_of_them
    rows_are_counted_by_status_and_code
}

in_memory! {
    a_message_waits_whole_and_leaves_as_it_came
    a_row_of_an_encoding_that_nobody_knows_comes_as_its_bytes
    the_same_content_without_a_key_is_parked_once
    one_batch_may_park_the_same_content_twice
    due_rows_come_oldest_first_and_others_do_not_come
    a_row_that_runs_is_not_run_by_another_host
    starts_of_a_row_are_counted_until_it_fails_again
    a_replayed_row_runs_again_from_the_first_attempt
    a_discarded_row_is_gone_and_its_key_is_not
    only_parked_rows_are_replayed_or_discarded
    an_operator_finds_rows_by_what_is_known_of_them
    rows_are_counted_by_status_and_code
}

fn filter() -> WaitingFilter {
    WaitingFilter {
        limit: 100,
        ..WaitingFilter::default()
    }
}

async fn put(session: &mut dyn Session, consumer: ConsumerId, row: &WaitingRow, due: Duration) {
    session
        .waiting_put(consumer, &[(row.clone(), due)])
        .await
        .unwrap();
}

async fn a_message_waits_whole_and_leaves_as_it_came(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    let row = waiting(b"id", Status::Retry);
    put(&mut *session, consumer, &row, Duration::ZERO).await;
    session.begin().await.unwrap();
    assert_eq!(
        session.waiting_lock(consumer, b"id").await.unwrap(),
        Some(row.clone())
    );
    assert_eq!(session.waiting_delete(consumer, &[b"id"]).await.unwrap(), 1);
    session.commit().await.unwrap();
    assert!(session.waiting_list(&filter()).await.unwrap().is_empty());
    assert_eq!(session.waiting_delete(consumer, &[b"id"]).await.unwrap(), 0);
}

async fn no_content_can_make_parking_fail(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    let nasty = "a\0b\u{fffd}\u{10ffff}'\"\\$1 {} %s \u{202e}".to_owned();
    let mut row = WaitingRow {
        key: None,
        code: nasty.clone(),
        error: nasty.clone(),
        stderr: nasty.clone(),
        backtrace: nasty.clone(),
        trace_id: nasty.clone(),
        queue: nasty.clone(),
        plugin: Vec::new(),
        partition: i64::MIN,
        ..waiting(b"id", Status::Parked)
    };
    row.message.exchange = nasty.clone();
    row.message.routing_key = nasty.clone();
    row.message.body = (0..=255).collect::<Vec<u8>>().into();
    put(&mut *session, consumer, &row, Duration::MAX).await;
    let record = session.waiting_list(&filter()).await.unwrap().remove(0);
    assert_eq!(record.row.stderr, nasty.replace('\0', "\u{2400}"));
    assert_eq!(record.row.message, row.message);
    assert_eq!(record.due_at, None);
}

fn withheld(row: WaitingRow) -> WaitingRow {
    let original = Original {
        exchange: vec![0xff],
        routing_key: b"r".to_vec(),
        head: Some(vec![0, 0x80, 1, 0xc4]),
        cut: Some(Cut {
            length: 1 << 33,
            sha256: [9; 32],
        }),
    };
    WaitingRow {
        key: None,
        withheld: Some(Withheld::from(&original)),
        ..row
    }
}

async fn what_was_withheld_of_a_message_is_kept_beside_it_until_an_edit(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    let row = withheld(waiting(b"id", Status::Parked));
    put(&mut *session, consumer, &row, Duration::ZERO).await;
    assert_eq!(session.waiting_list(&filter()).await.unwrap()[0].row, row);
    let (old, new) = (row.message.body.to_vec(), b"{\"a\":1}");
    assert!(
        session
            .upkeep()
            .waiting_edit(b"id", &old, new)
            .await
            .unwrap()
    );
    let edited = session.waiting_list(&filter()).await.unwrap().remove(0).row;
    assert_eq!(
        (edited.withheld, edited.message.body.as_ref()),
        (None, &new[..])
    );
}

async fn a_row_of_an_encoding_that_nobody_knows_comes_as_its_bytes(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    let row = WaitingRow {
        withheld: Some(Withheld {
            encoding: "kafka/3".to_owned(),
            bytes: vec![0, 0xff],
        }),
        ..waiting(b"id", Status::Retry)
    };
    put(&mut *session, consumer, &row, Duration::ZERO).await;
    assert_eq!(session.waiting_list(&filter()).await.unwrap()[0].row, row);
    session.begin().await.unwrap();
    assert_eq!(
        session.waiting_lock(consumer, b"id").await.unwrap(),
        Some(row)
    );
    session.rollback().await.unwrap();
}

async fn a_newer_failure_replaces_an_older_one_of_its_key(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    let mut row = waiting(b"id", Status::Retry);
    put(&mut *session, consumer, &row, Duration::ZERO).await;
    let first = session.waiting_list(&filter()).await.unwrap().remove(0);
    row.attempts = 3;
    row.status = Status::Parked;
    row.error = "never".to_owned();
    row.message = message("other");
    put(&mut *session, consumer, &row, Duration::ZERO).await;
    let second = session.waiting_list(&filter()).await.unwrap().remove(0);
    assert_eq!(second.row, row);
    assert_eq!(second.first_failed_at, first.first_failed_at);
    assert!(second.failed_at > first.failed_at);
}

async fn the_same_content_without_a_key_is_parked_once(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    let first = WaitingRow {
        key: None,
        ..waiting(b"id", Status::Parked)
    };
    let second = WaitingRow {
        error: "again".to_owned(),
        ..first.clone()
    };
    put(&mut *session, consumer, &first, Duration::ZERO).await;
    put(&mut *session, consumer, &second, Duration::ZERO).await;
    let records = session.waiting_list(&filter()).await.unwrap();
    assert_eq!(
        records.iter().map(|record| &record.row).collect::<Vec<_>>(),
        [&first]
    );
}

async fn one_batch_may_park_the_same_content_twice(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    let keyless = WaitingRow {
        key: None,
        ..waiting(b"keyless", Status::Parked)
    };
    let keyed = waiting(b"keyed", Status::Parked);
    let later = WaitingRow {
        error: "later".to_owned(),
        ..keyed.clone()
    };
    let rows =
        [keyless.clone(), keyed, keyless.clone(), later.clone()].map(|row| (row, Duration::ZERO));
    session.waiting_put(consumer, &rows).await.unwrap();
    let mut records = session.waiting_list(&filter()).await.unwrap();
    records.sort_by(|a, b| a.row.id.cmp(&b.row.id));
    assert_eq!(
        records.iter().map(|record| &record.row).collect::<Vec<_>>(),
        [&later, &keyless]
    );
}

async fn due_rows_come_oldest_first_and_others_do_not_come(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    assert_eq!(session.waiting_next(consumer).await.unwrap(), None);
    put(
        &mut *session,
        consumer,
        &waiting(b"later", Status::Retry),
        HOUR,
    )
    .await;
    put(
        &mut *session,
        consumer,
        &waiting(b"held", Status::Held),
        Duration::ZERO,
    )
    .await;
    put(
        &mut *session,
        consumer,
        &waiting(b"parked", Status::Parked),
        Duration::ZERO,
    )
    .await;
    let next = session.waiting_next(consumer).await.unwrap().unwrap();
    assert!(next > HOUR / 2 && next <= HOUR, "{next:?}");
    assert!(
        session
            .waiting_due(consumer, false, 10)
            .await
            .unwrap()
            .is_empty()
    );
    put(
        &mut *session,
        consumer,
        &waiting(b"b", Status::Retry),
        Duration::ZERO,
    )
    .await;
    put(
        &mut *session,
        consumer,
        &waiting(b"a", Status::Retry),
        Duration::ZERO,
    )
    .await;
    assert_eq!(
        session.waiting_next(consumer).await.unwrap(),
        Some(Duration::ZERO)
    );
    let due = session.waiting_due(consumer, false, 10).await.unwrap();
    assert_eq!(due, [(b"b".to_vec(), -7), (b"a".to_vec(), -7)]);
    assert_eq!(
        session.waiting_due(consumer, false, 1).await.unwrap().len(),
        1
    );
    for id in [&b"later"[..], b"held", b"parked", b"absent"] {
        assert_eq!(session.waiting_lock(consumer, id).await.unwrap(), None);
        for first in [true, false] {
            let start = session.waiting_start(consumer, id, first).await.unwrap();
            assert_eq!(start, Start::Elsewhere);
        }
    }
}

async fn a_row_that_runs_is_not_run_by_another_host(fixture: &Fixture) {
    if fixture.store.traits().single_writer {
        return; // there is no other host
    }
    let consumer = fixture.consumer().await;
    let mut first = fixture.session().await;
    put(
        &mut *first,
        consumer,
        &waiting(b"id", Status::Retry),
        Duration::ZERO,
    )
    .await;
    first.begin().await.unwrap();
    assert!(first.waiting_lock(consumer, b"id").await.unwrap().is_some());
    let mut second = fixture.session().await;
    assert_eq!(second.waiting_lock(consumer, b"id").await.unwrap(), None);
    let start = second.waiting_start(consumer, b"id", false).await.unwrap();
    assert_eq!(start, Start::Elsewhere);
    assert_eq!(
        second.waiting_due(consumer, false, 10).await.unwrap().len(),
        1
    );
    first.rollback().await.unwrap();
    assert!(
        second
            .waiting_lock(consumer, b"id")
            .await
            .unwrap()
            .is_some()
    );
}

async fn starts_of_a_row_are_counted_until_it_fails_again(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    let row = waiting(b"id", Status::Retry);
    put(&mut *session, consumer, &row, Duration::ZERO).await;
    for (first, start) in [
        (true, Start::Recorded(1)),
        (true, Start::Earlier),
        (false, Start::Recorded(2)),
    ] {
        let recorded = session.waiting_start(consumer, b"id", first);
        assert_eq!(recorded.await.unwrap(), start);
    }
    session.waiting_unstart(consumer, b"id").await.unwrap();
    assert_eq!(
        session.waiting_start(consumer, b"id", false).await.unwrap(),
        Start::Recorded(2)
    );
    put(&mut *session, consumer, &row, Duration::ZERO).await;
    session.waiting_unstart(consumer, b"id").await.unwrap();
    assert_eq!(
        session.waiting_start(consumer, b"id", true).await.unwrap(),
        Start::Recorded(1)
    );
}

/// Parks a key, in the ledger and in the table.
async fn park(session: &mut dyn Session, consumer: ConsumerId, key: &[u8]) {
    session.begin().await.unwrap();
    session.claim(rule(consumer), &[claim(key)]).await.unwrap();
    let parked = Settlement {
        key,
        fate: Fate::Parked,
        attempts: 5,
    };
    session.settle(consumer, &[parked]).await.unwrap();
    put(
        session,
        consumer,
        &waiting(key, Status::Parked),
        Duration::ZERO,
    )
    .await;
    session.finish(consumer, &[key]).await.unwrap();
    session.commit().await.unwrap();
}

async fn fate(session: &mut dyn Session, consumer: ConsumerId, key: &[u8]) -> (Fate, i32) {
    let entry = session
        .entries(consumer, &[key])
        .await
        .unwrap()
        .remove(0)
        .unwrap();
    (entry.fate, entry.attempts)
}

async fn a_replayed_row_runs_again_from_the_first_attempt(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    park(&mut *session, consumer, b"a").await;
    park(&mut *session, consumer, b"b").await;
    assert_eq!(session.waiting_replay(&[b"a", b"absent"]).await.unwrap(), 1);
    assert_eq!(
        fate(&mut *session, consumer, b"a").await,
        (Fate::Waiting, 0)
    );
    assert_eq!(fate(&mut *session, consumer, b"b").await, (Fate::Parked, 5));
    assert_eq!(
        session.waiting_due(consumer, false, 10).await.unwrap(),
        [(b"a".to_vec(), -7)]
    );
    let row = session.waiting_lock(consumer, b"a").await.unwrap().unwrap();
    assert_eq!(
        row,
        WaitingRow {
            attempts: 0,
            ..waiting(b"a", Status::Retry)
        }
    );
    assert_eq!(session.waiting_replay(&[b"a"]).await.unwrap(), 0);
}

async fn a_discarded_row_is_gone_and_its_key_is_not(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    park(&mut *session, consumer, b"a").await;
    park(&mut *session, consumer, b"b").await;
    assert_eq!(session.waiting_discard(&[b"a", b"b"]).await.unwrap(), 2);
    assert_eq!(fate(&mut *session, consumer, b"a").await.0, Fate::Discarded);
    assert!(session.waiting_list(&filter()).await.unwrap().is_empty());
    assert_eq!(
        session
            .sweep(consumer, Duration::ZERO, b"", 10)
            .await
            .unwrap(),
        (None, 0)
    );
    assert_eq!(session.waiting_discard(&[b"a"]).await.unwrap(), 0);
}

async fn only_parked_rows_are_replayed_or_discarded(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    put(
        &mut *session,
        consumer,
        &waiting(b"retry", Status::Retry),
        HOUR,
    )
    .await;
    put(
        &mut *session,
        consumer,
        &waiting(b"held", Status::Held),
        HOUR,
    )
    .await;
    assert_eq!(
        session.waiting_replay(&[b"retry", b"held"]).await.unwrap(),
        0
    );
    assert_eq!(
        session.waiting_discard(&[b"retry", b"held"]).await.unwrap(),
        0
    );
    assert_eq!(session.waiting_list(&filter()).await.unwrap().len(), 2);
}

async fn an_operator_finds_rows_by_what_is_known_of_them(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    let other = session
        .consumer("invoices", "message-id", "body")
        .await
        .unwrap()
        .id;
    put(
        &mut *session,
        consumer,
        &waiting(b"\xab\x01one", Status::Parked),
        HOUR,
    )
    .await;
    let trap = WaitingRow {
        code: "trap".to_owned(),
        ..waiting(b"\xab\x02two", Status::Retry)
    };
    put(&mut *session, consumer, &trap, HOUR).await;
    put(
        &mut *session,
        other,
        &waiting(b"\xcd\x03three", Status::Parked),
        HOUR,
    )
    .await;

    let cases: [(&str, WaitingFilter, &[&[u8]]); 7] = [
        (
            "all",
            filter(),
            &[b"\xcd\x03three", b"\xab\x02two", b"\xab\x01one"],
        ),
        (
            "consumer",
            WaitingFilter {
                consumer: Some("invoices".into()),
                ..filter()
            },
            &[b"\xcd\x03three"],
        ),
        (
            "status",
            WaitingFilter {
                status: Some(Status::Parked),
                ..filter()
            },
            &[b"\xcd\x03three", b"\xab\x01one"],
        ),
        (
            "code",
            WaitingFilter {
                code: Some("trap".into()),
                ..filter()
            },
            &[b"\xab\x02two"],
        ),
        (
            "prefix",
            WaitingFilter {
                id_prefix: Some(vec![0xab]),
                ..filter()
            },
            &[b"\xab\x02two", b"\xab\x01one"],
        ),
        (
            "key",
            WaitingFilter {
                key: Some(b"\xab\x01one".to_vec()),
                ..filter()
            },
            &[b"\xab\x01one"],
        ),
        (
            "limit",
            WaitingFilter {
                limit: 1,
                ..filter()
            },
            &[b"\xcd\x03three"],
        ),
    ];
    for (name, filter, ids) in cases {
        let records = session.waiting_list(&filter).await.unwrap();
        assert_eq!(
            records
                .iter()
                .map(|record| record.row.id.as_slice())
                .collect::<Vec<_>>(),
            ids,
            "{name}"
        );
    }
    let records = session.waiting_list(&filter()).await.unwrap();
    assert_eq!(
        (records[0].consumer.as_str(), records[0].due_at),
        ("invoices", None)
    );
    assert_eq!(records[1].consumer, "orders");
    let due_in = Duration::from_micros((records[1].due_at.unwrap() - records[1].failed_at) as u64);
    assert!(due_in >= HOUR && due_in < HOUR * 2, "{due_in:?}");
}

async fn rows_are_counted_by_status_and_code(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    put(
        &mut *session,
        consumer,
        &waiting(b"a", Status::Parked),
        HOUR,
    )
    .await;
    put(
        &mut *session,
        consumer,
        &waiting(b"b", Status::Parked),
        HOUR,
    )
    .await;
    put(&mut *session, consumer, &waiting(b"c", Status::Retry), HOUR).await;
    let counts = session.waiting_counts(consumer).await.unwrap();
    assert_eq!(
        counts,
        [
            (Status::Parked, "retry".to_owned(), 2),
            (Status::Retry, "retry".to_owned(), 1)
        ]
    );
}
