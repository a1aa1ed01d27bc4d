//! Messages on their way out.

use std::sync::Arc;
use std::time::Duration;

use super::{Fixture, HOUR, eventually, in_every_dialect, in_memory, message, on_a_server};
use crate::store::{ConsumerId, HostId, OutboxRow, Session, TAKEN_LANE, Value};

const ME: HostId = HostId(1);
const OTHER: HostId = HostId(-2);

in_every_dialect! {
    rows_are_numbered_in_the_order_in_which_they_are_put
    a_row_leaves_the_table_as_it_came
    rows_of_this_host_are_not_polled
    rows_of_a_host_that_is_gone_are_taken_once
    a_delayed_row_is_taken_when_it_is_due
    a_row_with_an_ordering_key_waits_for_the_older_ones
    a_poll_of_a_long_outbox_reads_few_rows
    what_blocks_a_row_is_known
    a_row_that_commits_late_is_not_skipped
    a_deferred_row_counts_its_attempts
    rows_behind_a_deferred_one_are_given_back_until_it_is_due
    rows_behind_a_deferred_one_go_together_when_it_is_due
    a_commit_in_doubt_is_found_by_its_lane
    rows_rolled_back_are_not_there
    the_depth_counts_rows_and_the_age_of_those_that_are_late
}

// SQLite has one writer, so that its rows commit in the order of their sequences.
on_a_server! {
    a_row_that_commits_after_a_later_one_is_taken
}

in_memory! {
    a_row_that_commits_after_a_later_one_is_taken
    rows_are_numbered_in_the_order_in_which_they_are_put
    a_row_leaves_the_table_as_it_came
    rows_of_this_host_are_not_polled
    rows_of_a_host_that_is_gone_are_taken_once
    a_delayed_row_is_taken_when_it_is_due
    a_row_with_an_ordering_key_waits_for_the_older_ones
    what_blocks_a_row_is_known
    a_row_that_commits_late_is_not_skipped
    a_deferred_row_counts_its_attempts
    rows_behind_a_deferred_one_are_given_back_until_it_is_due
    rows_behind_a_deferred_one_go_together_when_it_is_due
    a_commit_in_doubt_is_found_by_its_lane
    rows_rolled_back_are_not_there
}

fn row(consumer: ConsumerId, body: &str) -> OutboxRow {
    OutboxRow {
        consumer,
        lane: 3,
        target: "points".to_owned(),
        may_drop: false,
        ordering_key: None,
        delay: None,
        message: message(body),
    }
}

async fn put(session: &mut dyn Session, host: HostId, rows: Vec<OutboxRow>) -> Vec<i64> {
    let rows: Vec<Arc<OutboxRow>> = rows.into_iter().map(Arc::new).collect();
    session.outbox_put(host, &rows).await.unwrap()
}

async fn take(session: &mut dyn Session, host: HostId) -> Vec<i64> {
    session
        .outbox_take(host, 100)
        .await
        .unwrap()
        .iter()
        .map(|record| record.sequence)
        .collect()
}

async fn rows_are_numbered_in_the_order_in_which_they_are_put(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    let rows: Vec<OutboxRow> = (0..300)
        .map(|number| row(consumer, &number.to_string()))
        .collect();
    let sequences = put(&mut *session, OTHER, rows).await;
    assert!(sequences.is_sorted() && sequences.len() == 300);
    let taken = session.outbox_take(ME, 1_000).await.unwrap();
    assert_eq!(
        taken
            .iter()
            .map(|record| record.sequence)
            .collect::<Vec<_>>(),
        sequences
    );
    for (number, record) in taken.iter().enumerate() {
        assert_eq!(record.row.message.body, number.to_string().as_bytes());
    }
    assert_eq!(put(&mut *session, ME, Vec::new()).await, Vec::<i64>::new());
}

async fn a_row_leaves_the_table_as_it_came(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    let row = OutboxRow {
        may_drop: true,
        ordering_key: Some("a\0ü".to_owned()),
        ..row(consumer, "{}")
    };
    put(&mut *session, OTHER, vec![row.clone()]).await;
    let taken = session.outbox_take(ME, 10).await.unwrap().remove(0);
    assert_eq!(
        *taken.row,
        OutboxRow {
            lane: TAKEN_LANE,
            ..row
        }
    );
    assert_eq!(taken.attempts, 0);
    session.outbox_delete(&[taken.sequence]).await.unwrap();
    assert_eq!(session.outbox_depth().await.unwrap().rows, 0);
}

async fn rows_of_this_host_are_not_polled(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    session.announce(ME).await.unwrap();
    put(&mut *session, ME, vec![row(consumer, "a")]).await;
    assert!(take(&mut *session, ME).await.is_empty());
}

async fn rows_of_a_host_that_is_gone_are_taken_once(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    session.announce(ME).await.unwrap();
    let mut other = fixture.session().await;
    other.announce(OTHER).await.unwrap();
    let sequences = put(
        &mut *other,
        OTHER,
        vec![row(consumer, "a"), row(consumer, "b")],
    )
    .await;
    if !fixture.store.traits().single_writer {
        assert!(
            take(&mut *session, ME).await.is_empty(),
            "the other host lives"
        );
    }
    drop(other);
    // The server notices in its own time that the connection is closed.
    let taken = eventually("the rows of the dead host are taken", async || {
        let taken = take(&mut *session, ME).await;
        (!taken.is_empty()).then_some(taken)
    })
    .await;
    assert_eq!(taken, sequences);
    assert!(take(&mut *session, ME).await.is_empty());
    let recovered = session
        .outbox_recover(ME, TAKEN_LANE, &sequences[..1])
        .await
        .unwrap();
    assert_eq!(
        recovered
            .iter()
            .map(|record| record.sequence)
            .collect::<Vec<_>>(),
        sequences[1..]
    );
}

/// A relay that remembers the last number it has seen skips a row whose transaction began before and ended after
/// that of a later one.
async fn a_row_that_commits_late_is_not_skipped(fixture: &Fixture) {
    if fixture.store.traits().single_writer {
        // The transactions of its sessions do not overlap.
        return;
    }
    let consumer = fixture.consumer().await;
    let mut relay = fixture.session().await;
    relay.announce(ME).await.unwrap();
    let mut slow = fixture.session().await;
    slow.begin().await.unwrap();
    let late = put(&mut *slow, OTHER, vec![row(consumer, "late")]).await;
    let mut quick = fixture.session().await;
    let early = put(&mut *quick, OTHER, vec![row(consumer, "early")]).await;
    assert!(late < early, "its number is the smaller one");
    assert_eq!(take(&mut *relay, ME).await, early);
    relay.outbox_delete(&early).await.unwrap();
    slow.commit().await.unwrap();
    assert_eq!(take(&mut *relay, ME).await, late);
}

async fn a_delayed_row_is_taken_when_it_is_due(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    let later = OutboxRow {
        delay: Some(HOUR),
        ..row(consumer, "later")
    };
    let now = OutboxRow {
        delay: Some(Duration::ZERO),
        ..row(consumer, "now")
    };
    let far = OutboxRow {
        delay: Some(Duration::MAX),
        ..row(consumer, "far")
    };
    let sequences = put(&mut *session, ME, vec![later, now, far]).await;
    assert_eq!(take(&mut *session, ME).await, sequences[1..2]);
    assert!(take(&mut *session, ME).await.is_empty());
}

async fn a_row_with_an_ordering_key_waits_for_the_older_ones(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    let keyed = |key: &str, delay| OutboxRow {
        ordering_key: Some(key.to_owned()),
        delay,
        ..row(consumer, key)
    };
    let soon = Some(Duration::ZERO);
    session.announce(ME).await.unwrap();
    let rows = vec![
        keyed("a", None),
        keyed("a", soon),
        keyed("b", soon),
        keyed("b", soon),
        keyed("c", Some(HOUR)),
        keyed("c", soon),
    ];
    let s = put(&mut *session, ME, rows).await;
    // The older row of `a` is in this host's memory, that of `c` is not due; both of `b` go together.
    assert_eq!(take(&mut *session, ME).await, [s[2], s[3]]);
    session.outbox_delete(&[s[0]]).await.unwrap();
    assert_eq!(take(&mut *session, ME).await, [s[1]]);
    session.outbox_delete(&[s[4]]).await.unwrap();
    assert_eq!(take(&mut *session, ME).await, [s[5]]);
}

/// A poll reads about what it takes, however many rows there are that are not due or belong to a host that lives.
/// SQLite does not count what it reads.
async fn a_poll_of_a_long_outbox_reads_few_rows(fixture: &Fixture) {
    if fixture.postgres_url.is_none() {
        return;
    }
    const BACKLOG: usize = 20_000;
    let consumer = fixture.consumer().await;
    let mut other = fixture.session().await;
    other.announce(OTHER).await.unwrap();
    let with = |delay: Option<Duration>, count: usize| {
        let rows = (0..count).map(|_| OutboxRow {
            delay,
            ..row(consumer, "x")
        });
        rows.collect::<Vec<_>>()
    };
    put(&mut *other, OTHER, with(Some(HOUR), BACKLOG / 2)).await;
    put(&mut *other, OTHER, with(None, BACKLOG / 2)).await;
    put(&mut *other, OTHER, with(Some(Duration::ZERO), 50)).await;
    // Seen by the others when the session that has read them has ended.
    let read = async |session: &mut dyn Session| {
        let sql = "SELECT coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0) \
                   FROM pg_stat_user_tables WHERE relid = 'hapax_outbox'::regclass";
        let rows = session.query(sql, &[], 1, 100).await.unwrap().rows;
        match &rows[0][0] {
            Value::S64(count) => *count,
            count => panic!("{count:?}"),
        }
    };
    let before = read(&mut *other).await;
    let mut relay = fixture.session().await;
    assert_eq!(relay.outbox_take(ME, 20).await.unwrap().len(), 20);
    drop(relay);
    let after = eventually("the reads are counted", async || {
        let after = read(&mut *other).await;
        (after > before).then_some(after)
    })
    .await;
    assert!(
        after - before < 1_000,
        "{} rows were read to take 20",
        after - before
    );
}

async fn what_blocks_a_row_is_known(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    let keyed = |key: &str| OutboxRow {
        ordering_key: Some(key.to_owned()),
        ..row(consumer, key)
    };
    let rows = vec![
        keyed("a"),
        keyed("b"),
        keyed("a"),
        row(consumer, ""),
        row(consumer, ""),
        keyed("a"),
    ];
    let s = put(&mut *session, ME, rows).await;
    assert_eq!(session.outbox_blocked(&s).await.unwrap(), [s[2], s[5]]);
    assert_eq!(session.outbox_blocked(&[s[5]]).await.unwrap(), [s[5]]);
    session.outbox_delete(&[s[0]]).await.unwrap();
    assert_eq!(session.outbox_blocked(&s[1..]).await.unwrap(), [s[5]]);
    assert_eq!(
        session.outbox_blocked(&[]).await.unwrap(),
        Vec::<i64>::new()
    );
}

async fn a_deferred_row_counts_its_attempts(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    session.announce(ME).await.unwrap();
    let s = put(&mut *session, ME, vec![row(consumer, "a")]).await;
    session
        .outbox_defer(s[0], HOUR, "no route\0")
        .await
        .unwrap();
    assert!(take(&mut *session, ME).await.is_empty());
    session
        .outbox_defer(s[0], Duration::ZERO, "no route")
        .await
        .unwrap();
    let taken = session.outbox_take(ME, 10).await.unwrap();
    assert_eq!((taken.len(), taken[0].attempts), (1, 2));
}

async fn rows_behind_a_deferred_one_are_given_back_until_it_is_due(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    session.announce(ME).await.unwrap();
    let keyed = |key: &str| OutboxRow {
        ordering_key: Some(key.to_owned()),
        ..row(consumer, key)
    };
    let rows = vec![keyed("a"), keyed("a"), keyed("a"), keyed("b"), keyed("b")];
    let s = put(&mut *session, ME, rows).await;
    session.outbox_defer(s[0], HOUR, "no route").await.unwrap();
    session.outbox_give_back(ME, &s[1..3]).await.unwrap();
    // The oldest of `b` has no time of its own: what is behind it waits for nothing but its going.
    session.outbox_give_back(ME, &s[4..]).await.unwrap();
    assert!(take(&mut *session, ME).await.is_empty());
    session.outbox_delete(&[s[3]]).await.unwrap();
    assert_eq!(take(&mut *session, ME).await, [s[4]]);
    // Somebody else's rows are none of ours to give.
    session.outbox_give_back(OTHER, &[s[4]]).await.unwrap();
    assert!(take(&mut *session, ME).await.is_empty());
    // The older one goes, and the others are due no sooner than it would have been.
    session.outbox_delete(&[s[0]]).await.unwrap();
    assert!(take(&mut *session, ME).await.is_empty());
}

async fn rows_behind_a_deferred_one_go_together_when_it_is_due(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    session.announce(ME).await.unwrap();
    let keyed = || OutboxRow {
        ordering_key: Some("a".to_owned()),
        ..row(consumer, "a")
    };
    let s = put(&mut *session, ME, vec![keyed(), keyed(), keyed()]).await;
    session
        .outbox_defer(s[0], Duration::ZERO, "no route")
        .await
        .unwrap();
    session.outbox_give_back(ME, &s[1..]).await.unwrap();
    let taken = session.outbox_take(ME, 10).await.unwrap();
    let taken = taken
        .iter()
        .map(|record| (record.sequence, record.attempts));
    assert_eq!(taken.collect::<Vec<_>>(), [(s[0], 1), (s[1], 0), (s[2], 0)]);
}

async fn a_commit_in_doubt_is_found_by_its_lane(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    let known = put(&mut *session, ME, vec![row(consumer, "known")]).await;
    let delayed = OutboxRow {
        delay: Some(HOUR),
        ..row(consumer, "delayed")
    };
    let doubt = put(&mut *session, ME, vec![row(consumer, "doubt"), delayed]).await;
    put(
        &mut *session,
        ME,
        vec![OutboxRow {
            lane: 4,
            ..row(consumer, "other lane")
        }],
    )
    .await;
    let recovered = session.outbox_recover(ME, 3, &known).await.unwrap();
    assert_eq!(
        recovered
            .iter()
            .map(|record| record.sequence)
            .collect::<Vec<_>>(),
        doubt[..1]
    );
}

async fn rows_rolled_back_are_not_there(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    session.begin().await.unwrap();
    put(&mut *session, OTHER, vec![row(consumer, "a")]).await;
    session.rollback().await.unwrap();
    assert!(take(&mut *session, ME).await.is_empty());
}

async fn the_depth_counts_rows_and_the_age_of_those_that_are_late(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    assert_eq!(session.outbox_depth().await.unwrap(), Default::default());
    put(
        &mut *session,
        ME,
        vec![OutboxRow {
            delay: Some(HOUR),
            ..row(consumer, "delayed")
        }],
    )
    .await;
    let depth = session.outbox_depth().await.unwrap();
    assert_eq!((depth.rows, depth.oldest_seconds), (1, 0.0));
    put(&mut *session, ME, vec![row(consumer, "a")]).await;
    let depth = session.outbox_depth().await.unwrap();
    assert!(
        depth.rows == 2 && depth.oldest_seconds > 0.0 && depth.oldest_seconds < 60.0,
        "{depth:?}"
    );
}

/// Sequences are drawn in one order and committed in another: no cursor over them sees every row.
async fn a_row_that_commits_after_a_later_one_is_taken(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let (mut slow, mut session) = (fixture.session().await, fixture.session().await);
    slow.begin().await.unwrap();
    let first = put(&mut *slow, OTHER, vec![row(consumer, "a")]).await;
    let second = put(&mut *session, OTHER, vec![row(consumer, "b")]).await;
    assert!(first < second);
    assert_eq!(take(&mut *session, ME).await, second);
    slow.commit().await.unwrap();
    assert_eq!(take(&mut *session, ME).await, first);
}
