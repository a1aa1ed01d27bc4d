//! What the ledger forgets when the retention changes, and what it then says of it.

use std::time::Duration;

use super::ledger::fates;
use super::{Fixture, HOUR, claim, in_every_dialect, in_memory, rule};
use crate::store::{Claim, ClaimRule, ConsumerId, Fate, Session, Settlement};

in_every_dialect! {
    the_sweep_goes_page_by_page
    the_sweep_forgets_what_has_expired_and_nothing_else
    the_horizon_comes_with_the_end_of_a_transaction
    a_longer_retention_keeps_what_was_claimed_under_a_shorter_one
    a_shorter_retention_does_not_hide_what_was_forgotten
}

in_memory! {
    the_sweep_goes_page_by_page
    the_sweep_forgets_what_has_expired_and_nothing_else
    the_horizon_comes_with_the_end_of_a_transaction
    a_longer_retention_keeps_what_was_claimed_under_a_shorter_one
    a_shorter_retention_does_not_hide_what_was_forgotten
}

/// Claims a key with this timestamp under this retention, and commits.
async fn commit_at(
    session: &mut dyn Session,
    consumer: ConsumerId,
    key: &[u8],
    retention: Duration,
    sent: i64,
) {
    session.note_retention(consumer, retention).await.unwrap();
    session.begin().await.unwrap();
    let rule = ClaimRule {
        retention: Some(retention),
        ..rule(consumer)
    };
    let claim = Claim {
        timestamp_seconds: Some(sent),
        ..claim(key)
    };
    session.claim(rule, &[claim]).await.unwrap();
    session.finish(consumer, &[key]).await.unwrap();
    session.commit().await.unwrap();
}

async fn horizon(session: &mut dyn Session, consumer: ConsumerId) -> Option<i64> {
    session.begin().await.unwrap();
    let finished = session.finish(consumer, &[]).await.unwrap();
    session.rollback().await.unwrap();
    finished.horizon
}

async fn the_horizon_comes_with_the_end_of_a_transaction(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    assert_eq!(horizon(&mut *session, consumer).await, None);
    commit_at(&mut *session, consumer, b"k", Duration::ZERO, 0).await;
    session
        .sweep(consumer, Duration::ZERO, b"", 10)
        .await
        .unwrap();
    let row = session.consumer("orders", "message-id", "body").await;
    assert_eq!(horizon(&mut *session, consumer).await, row.unwrap().horizon);
    assert!(horizon(&mut *session, consumer).await.is_some());
}

async fn a_longer_retention_keeps_what_was_claimed_under_a_shorter_one(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    commit_at(&mut *session, consumer, b"k", Duration::ZERO, 0).await;
    session.note_retention(consumer, HOUR).await.unwrap();
    assert_eq!(
        session.sweep(consumer, HOUR, b"", 10).await.unwrap(),
        (None, 0)
    );
    assert_eq!(
        fates(&mut *session, consumer, &[b"k"]).await,
        [Some(Fate::Committed)]
    );
}

/// A producer's clock that is ahead by two hours, and a retention of an hour that becomes none: whatever the
/// arithmetic, the horizon is not before the time of the message that was forgotten.
async fn a_shorter_retention_does_not_hide_what_was_forgotten(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    let now = chrono::Utc::now().timestamp();
    let sent = now - 2 * 3_600;
    commit_at(&mut *session, consumer, b"long", HOUR, sent).await;
    commit_at(&mut *session, consumer, b"short", Duration::ZERO, sent).await;
    session
        .sweep(consumer, Duration::ZERO, b"", 10)
        .await
        .unwrap();
    let left = fates(&mut *session, consumer, &[b"long", b"short"]).await;
    assert_eq!(left, [Some(Fate::Committed), None]);
    let horizon = horizon(&mut *session, consumer).await.unwrap();
    assert!(horizon >= sent * 1_000_000, "{horizon}");
    assert!(horizon <= (now + 60) * 1_000_000, "{horizon}");
}

async fn the_sweep_forgets_what_has_expired_and_nothing_else(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    let expired = ClaimRule {
        retention: Some(std::time::Duration::ZERO),
        ..rule(consumer)
    };
    let forever = ClaimRule {
        retention: None,
        ..rule(consumer)
    };
    let future = Claim {
        timestamp_seconds: Some(4_000_000_000),
        ..claim(b"future")
    };
    session.begin().await.unwrap();
    session
        .claim(
            expired,
            &[claim(b"gone"), claim(b"parked"), claim(b"waiting")],
        )
        .await
        .unwrap();
    session.claim(expired, &[future]).await.unwrap();
    session.claim(forever, &[claim(b"forever")]).await.unwrap();
    session
        .claim(rule(consumer), &[claim(b"hour")])
        .await
        .unwrap();
    let settlements = [
        Settlement {
            key: b"parked",
            fate: Fate::Parked,
            attempts: 1,
        },
        Settlement {
            key: b"waiting",
            fate: Fate::Waiting,
            attempts: 1,
        },
    ];
    session.settle(consumer, &settlements).await.unwrap();
    let keys: [&[u8]; 6] = [
        b"forever", b"future", b"gone", b"hour", b"parked", b"waiting",
    ];
    assert_eq!(session.finish(consumer, &keys).await.unwrap().claims, 6);
    session.commit().await.unwrap();

    assert_eq!(
        session
            .sweep(consumer, Duration::ZERO, b"", 100)
            .await
            .unwrap(),
        (None, 1)
    );
    let left = fates(&mut *session, consumer, &keys).await;
    assert_eq!(
        left.iter().map(Option::is_some).collect::<Vec<_>>(),
        [true, true, false, true, true, true]
    );
    let horizon = session
        .consumer("orders", "message-id", "body")
        .await
        .unwrap()
        .horizon
        .unwrap();
    assert_eq!(
        session
            .sweep(consumer, Duration::ZERO, b"", 100)
            .await
            .unwrap(),
        (None, 0)
    );
    let again = session
        .consumer("orders", "message-id", "body")
        .await
        .unwrap()
        .horizon
        .unwrap();
    assert_eq!(again, horizon);
    let now = chrono::Utc::now().timestamp_micros();
    assert!(
        (now - horizon).abs() < HOUR.as_micros() as i64,
        "the horizon {horizon} is about now, {now}"
    );
}

async fn the_sweep_goes_page_by_page(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    let expired = ClaimRule {
        retention: Some(std::time::Duration::ZERO),
        ..rule(consumer)
    };
    session.begin().await.unwrap();
    let claims = [
        claim(b"a"),
        claim(b"b"),
        claim(b"c"),
        claim(b"d"),
        claim(b"e"),
    ];
    session.claim(expired, &claims).await.unwrap();
    session
        .finish(consumer, &[b"a", b"b", b"c", b"d", b"e"])
        .await
        .unwrap();
    session.commit().await.unwrap();
    assert_eq!(
        session
            .sweep(consumer, Duration::ZERO, b"", 2)
            .await
            .unwrap(),
        (Some(b"b".to_vec()), 2)
    );
    assert_eq!(
        session
            .sweep(consumer, Duration::ZERO, b"b", 2)
            .await
            .unwrap(),
        (Some(b"d".to_vec()), 2)
    );
    assert_eq!(
        session
            .sweep(consumer, Duration::ZERO, b"d", 2)
            .await
            .unwrap(),
        (None, 1)
    );
    assert_eq!(session.ledger_counts(consumer).await.unwrap(), []);
}
