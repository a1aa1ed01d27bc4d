//! The messages that wait: tallied, listed, replayed, edited.

use super::{filter, put, settle};
use crate::store::contract::{Fixture, HOUR, in_every_dialect, waiting};
use crate::store::{Fate, Status, WaitingFilter, WaitingRow};

in_every_dialect! {
    rows_are_tallied_as_they_are_listed
    a_list_goes_on_after_its_last_row
    a_body_is_left_away_on_demand
    what_was_committed_meanwhile_is_not_replayed
    a_parked_body_is_replaced_once
}

async fn rows_are_tallied_as_they_are_listed(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    put(&mut *session, consumer, &waiting(b"a", Status::Parked)).await;
    let before = session.upkeep().clock().await.unwrap();
    put(&mut *session, consumer, &waiting(b"b", Status::Parked)).await;
    let trap = WaitingRow {
        code: "trap".to_owned(),
        ..waiting(b"c", Status::Parked)
    };
    put(&mut *session, consumer, &trap).await;
    let cases = [
        (filter(), 3),
        (
            WaitingFilter {
                since: Some(before),
                ..filter()
            },
            2,
        ),
        (
            WaitingFilter {
                until: Some(before),
                ..filter()
            },
            1,
        ),
        (
            WaitingFilter {
                key: Some(b"c".to_vec()),
                ..filter()
            },
            1,
        ),
    ];
    for (number, (filter, rows)) in cases.iter().enumerate() {
        let listed = session.waiting_list(filter).await.unwrap().len() as u64;
        let tallied = session.upkeep().waiting_tally(filter).await.unwrap();
        let tallied = tallied.iter().map(|(_, _, rows)| rows).sum::<u64>();
        assert_eq!((listed, tallied), (*rows, *rows), "case {number}");
    }
    assert_eq!(
        session.upkeep().waiting_tally(&filter()).await.unwrap(),
        [
            ("orders".to_owned(), "retry".to_owned(), 2),
            ("orders".to_owned(), "trap".to_owned(), 1)
        ]
    );
}

async fn a_list_goes_on_after_its_last_row(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    // One statement: they have failed at one moment.
    let rows = (0..7_u8)
        .map(|number| (waiting(&[number], Status::Parked), HOUR))
        .collect::<Vec<_>>();
    session.waiting_put(consumer, &rows[..4]).await.unwrap();
    session.waiting_put(consumer, &rows[4..]).await.unwrap();
    let (mut met, mut after) = (Vec::new(), None);
    loop {
        let page = session
            .waiting_list(&WaitingFilter {
                after,
                limit: 2,
                ..filter()
            })
            .await
            .unwrap();
        let Some(last) = page.last() else { break };
        after = Some((last.failed_at, last.row.id.clone()));
        met.extend(page.into_iter().map(|record| record.row.id));
    }
    let whole = session.waiting_list(&filter()).await.unwrap();
    let whole = whole.into_iter().map(|record| record.row.id);
    assert_eq!(met, whole.collect::<Vec<_>>());
    assert_eq!(met.len(), 7);
}

async fn a_body_is_left_away_on_demand(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    let row = waiting(b"a", Status::Parked);
    put(&mut *session, consumer, &row).await;
    let filter = WaitingFilter {
        without_bodies: true,
        ..filter()
    };
    let record = session.waiting_list(&filter).await.unwrap().remove(0);
    assert!(record.row.message.body.is_empty());
    assert_eq!(record.row.message.properties, row.message.properties);
}

async fn what_was_committed_meanwhile_is_not_replayed(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    for (key, fate) in [
        (b"committed", Fate::Committed),
        (b"discarded", Fate::Discarded),
        (b"parkedkey", Fate::Parked),
    ] {
        settle(&mut *session, consumer, key, fate).await;
        put(&mut *session, consumer, &waiting(key, Status::Parked)).await;
    }
    put(
        &mut *session,
        consumer,
        &waiting(b"forgotten", Status::Parked),
    )
    .await;
    let ids: [&[u8]; 4] = [b"committed", b"discarded", b"parkedkey", b"forgotten"];
    assert_eq!(session.waiting_replay(&ids).await.unwrap(), 2);
    let parked = WaitingFilter {
        status: Some(Status::Parked),
        ..filter()
    };
    let mut left = session
        .waiting_list(&parked)
        .await
        .unwrap()
        .into_iter()
        .map(|record| record.row.id)
        .collect::<Vec<_>>();
    left.sort();
    assert_eq!(left, [b"committed".to_vec(), b"discarded".to_vec()]);
}

async fn a_parked_body_is_replaced_once(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    let row = waiting(b"id", Status::Parked);
    put(&mut *session, consumer, &row).await;
    put(&mut *session, consumer, &waiting(b"mine", Status::Retry)).await;
    let old = row.message.body.clone();
    let upkeep = session.upkeep();
    assert!(!upkeep.waiting_edit(b"mine", &old, b"new").await.unwrap());
    assert!(upkeep.waiting_edit(b"id", &old, b"\xffnew").await.unwrap());
    assert!(!upkeep.waiting_edit(b"id", &old, b"newer").await.unwrap());
    let filter = WaitingFilter {
        id_prefix: Some(b"id".to_vec()),
        ..filter()
    };
    let edited = session.waiting_list(&filter).await.unwrap().remove(0).row;
    assert_eq!(edited.message.body.as_ref(), b"\xffnew");
    assert_eq!((edited.key, edited.fingerprint), (row.key, row.fingerprint));
}
