//! The lines of held messages.

use std::time::Duration;

use super::ledger::somebody_waits;
use super::{Fixture, in_every_dialect, in_memory, waiting};
use crate::store::{ConsumerId, Session, Status, WaitingFilter, WaitingRow};

in_every_dialect! {
    a_line_is_counted_and_rows_without_a_key_are_in_none
    rows_stand_in_the_order_in_which_they_came
    only_the_first_of_a_line_is_due
    the_first_of_a_line_is_released_and_no_other
    a_discarded_row_releases_what_it_held_back
    nobody_joins_a_line_while_its_first_row_is_being_settled
    the_longest_line_is_known
}

in_memory! {
    a_line_is_counted_and_rows_without_a_key_are_in_none
    rows_stand_in_the_order_in_which_they_came
    only_the_first_of_a_line_is_due
    the_first_of_a_line_is_released_and_no_other
    a_discarded_row_releases_what_it_held_back
    nobody_joins_a_line_while_its_first_row_is_being_settled
    the_longest_line_is_known
}

fn row(id: &[u8], status: Status) -> WaitingRow {
    waiting(id, status)
}

async fn put(session: &mut dyn Session, consumer: ConsumerId, rows: &[WaitingRow]) {
    let rows = rows
        .iter()
        .map(|row| (row.clone(), Duration::ZERO))
        .collect::<Vec<_>>();
    session.waiting_put(consumer, &rows).await.unwrap();
}

async fn due(session: &mut dyn Session, consumer: ConsumerId) -> Vec<Vec<u8>> {
    let due = session.waiting_due(consumer, true, 100).await.unwrap();
    due.into_iter().map(|(id, _)| id).collect()
}

async fn lines(
    session: &mut dyn Session,
    consumer: ConsumerId,
    partitions: &[i64],
) -> Vec<(i64, u64)> {
    session.begin().await.unwrap();
    let mut lines = session.waiting_lines(consumer, partitions).await.unwrap();
    session.rollback().await.unwrap();
    lines.sort_unstable();
    lines
}

async fn a_line_is_counted_and_rows_without_a_key_are_in_none(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    let mut keyless = row(b"keyless", Status::Parked);
    (keyless.key, keyless.partition) = (None, 9);
    let mut other = row(b"other", Status::Retry);
    other.partition = 8;
    let rows = [
        row(b"head", Status::Parked),
        row(b"b", Status::Held),
        row(b"c", Status::Held),
        other,
        keyless,
    ];
    put(&mut *session, consumer, &rows).await;
    assert_eq!(
        lines(&mut *session, consumer, &[-7, 7, 8, 9]).await,
        [(-7, 2), (8, 0)]
    );
    assert_eq!(lines(&mut *session, consumer, &[]).await, []);
}

async fn rows_stand_in_the_order_in_which_they_came(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    // Not in the order of their ids, and more than one statement takes at once.
    let ids: Vec<[u8; 1]> = (0..100_u8)
        .map(|number| [number.wrapping_mul(37)])
        .collect();
    let mut rows = vec![row(&ids[0], Status::Retry)];
    rows.extend(ids[1..].iter().map(|id| row(id, Status::Held)));
    put(&mut *session, consumer, &rows).await;
    // A newer failure of a row leaves it where it stands.
    put(&mut *session, consumer, &rows[..1]).await;
    for id in &ids {
        assert_eq!(due(&mut *session, consumer).await, [id.to_vec()]);
        session.waiting_delete(consumer, &[id]).await.unwrap();
        session
            .waiting_release(consumer, Some(&[-7]))
            .await
            .unwrap();
    }
    assert_eq!(due(&mut *session, consumer).await, Vec::<Vec<u8>>::new());
}

async fn only_the_first_of_a_line_is_due(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    let rows = [row(b"parked", Status::Parked), row(b"retry", Status::Retry)];
    put(&mut *session, consumer, &rows).await;
    assert_eq!(due(&mut *session, consumer).await, Vec::<Vec<u8>>::new());
    let unordered = session.waiting_due(consumer, false, 100).await.unwrap();
    assert_eq!(unordered, [(b"retry".to_vec(), -7)]);
    session.waiting_replay(&[b"parked"]).await.unwrap();
    assert_eq!(due(&mut *session, consumer).await, [b"parked".to_vec()]);
}

async fn the_first_of_a_line_is_released_and_no_other(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    let rows = [
        row(b"a", Status::Retry),
        row(b"b", Status::Held),
        row(b"c", Status::Held),
    ];
    put(&mut *session, consumer, &rows).await;
    for partitions in [Some(&[-7][..]), Some(&[1]), Some(&[]), None] {
        assert_eq!(
            session.waiting_release(consumer, partitions).await.unwrap(),
            0,
            "the first one is not held: {partitions:?}"
        );
    }
    session.waiting_delete(consumer, &[b"a"]).await.unwrap();
    assert_eq!(
        session.waiting_release(consumer, Some(&[1])).await.unwrap(),
        0
    );
    assert_eq!(session.waiting_release(consumer, None).await.unwrap(), 1);
    assert_eq!(session.waiting_release(consumer, None).await.unwrap(), 0);
    assert_eq!(due(&mut *session, consumer).await, [b"b".to_vec()]);
    session.begin().await.unwrap();
    let released = session.waiting_lock(consumer, b"b").await.unwrap();
    assert_eq!(released.unwrap().status, Status::Retry);
    session.rollback().await.unwrap();
}

async fn a_discarded_row_releases_what_it_held_back(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    let rows = [row(b"head", Status::Parked), row(b"next", Status::Held)];
    put(&mut *session, consumer, &rows).await;
    assert_eq!(session.waiting_discard(&[b"head"]).await.unwrap(), 1);
    assert_eq!(due(&mut *session, consumer).await, [b"next".to_vec()]);
    let filter = WaitingFilter {
        limit: 10,
        ..WaitingFilter::default()
    };
    let left = session.waiting_list(&filter).await.unwrap();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].row.status, Status::Retry);
}

/// The race that loses a message: one host finds a line with a first row and puts another behind it, while
/// a second host commits that first row and finds nobody to release.
async fn nobody_joins_a_line_while_its_first_row_is_being_settled(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let (mut settles, mut joins) = (fixture.session().await, fixture.session().await);
    put(&mut *settles, consumer, &[row(b"head", Status::Retry)]).await;
    settles.begin().await.unwrap();
    settles
        .waiting_lock(consumer, b"head")
        .await
        .unwrap()
        .unwrap();
    settles.waiting_delete(consumer, &[b"head"]).await.unwrap();
    let join = tokio::spawn(async move {
        joins.begin().await.unwrap();
        let lines = joins.waiting_lines(consumer, &[-7]).await.unwrap();
        joins.rollback().await.unwrap();
        lines
    });
    somebody_waits(fixture).await;
    // Where nothing is to be seen, long enough for it to wait; it sees the same whether or not it has begun to.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!join.is_finished(), "it has to wait for the first row");
    settles
        .waiting_release(consumer, Some(&[-7]))
        .await
        .unwrap();
    settles.commit().await.unwrap();
    assert_eq!(
        join.await.unwrap(),
        [],
        "the line is gone: the message may run"
    );
}

async fn the_longest_line_is_known(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    assert_eq!(session.waiting_held(consumer).await.unwrap(), 0);
    let mut other = row(b"x", Status::Held);
    other.partition = 8;
    let rows = [
        row(b"a", Status::Parked),
        row(b"b", Status::Held),
        row(b"c", Status::Held),
        other,
    ];
    put(&mut *session, consumer, &rows).await;
    assert_eq!(session.waiting_held(consumer).await.unwrap(), 2);
}
