//! Keys and their fates.

use std::time::Duration;

use super::{Fixture, claim, commit_keys, eventually, in_every_dialect, in_memory, rule};
use crate::store::{
    Claim, ClaimRule, ConsumerId, Fate, Session, Settlement, Start, StoreError, Value,
};

in_every_dialect! {
    a_key_is_new_once
    of_a_batch_only_the_new_keys_are_claimed
    keys_that_look_alike_stay_different
    consumers_do_not_share_keys
    a_second_session_waits_for_a_claim_and_then_sees_it
    a_claim_that_waits_too_long_is_told_so
    a_claim_that_was_waited_for_in_vain_is_new
    the_fates_are_read_as_they_are_now_not_as_they_were_at_the_claim
    a_batch_of_a_thousand_keys_is_one_claim
    finish_does_not_count_keys_that_others_have_claimed
    only_claimed_keys_are_settled
    a_fate_is_taken_once_and_only_from_what_it_was
    a_key_that_was_taken_can_be_settled_again
    starts_are_counted_and_taken_back
    a_start_leaves_every_other_fate_alone
    a_started_key_is_taken_and_committed
    times_beyond_every_calendar_do_not_break_a_claim
    nothing_asked_is_nothing_done
    answers_are_kept_under_claimed_keys_only
}

in_memory! {
    a_key_is_new_once
    of_a_batch_only_the_new_keys_are_claimed
    keys_that_look_alike_stay_different
    consumers_do_not_share_keys
    a_second_session_waits_for_a_claim_and_then_sees_it
    a_claim_that_waits_too_long_is_told_so
    a_claim_that_was_waited_for_in_vain_is_new
    the_fates_are_read_as_they_are_now_not_as_they_were_at_the_claim
    a_batch_of_a_thousand_keys_is_one_claim
    finish_does_not_count_keys_that_others_have_claimed
    only_claimed_keys_are_settled
    a_fate_is_taken_once_and_only_from_what_it_was
    a_key_that_was_taken_can_be_settled_again
    starts_are_counted_and_taken_back
    a_start_leaves_every_other_fate_alone
    a_started_key_is_taken_and_committed
    answers_are_kept_under_claimed_keys_only
}

pub(super) async fn fates(
    session: &mut dyn Session,
    consumer: ConsumerId,
    keys: &[&[u8]],
) -> Vec<Option<Fate>> {
    let entries = session.entries(consumer, keys).await.unwrap();
    entries
        .into_iter()
        .map(|entry| entry.map(|entry| entry.fate))
        .collect()
}

/// Claims a key, settles it, commits.
async fn settle(session: &mut dyn Session, consumer: ConsumerId, key: &[u8], fate: Fate) {
    session.begin().await.unwrap();
    assert_eq!(
        session.claim(rule(consumer), &[claim(key)]).await.unwrap(),
        [true]
    );
    assert_eq!(
        session
            .settle(
                consumer,
                &[Settlement {
                    key,
                    fate,
                    attempts: 2
                }]
            )
            .await
            .unwrap(),
        1
    );
    assert_eq!(session.finish(consumer, &[key]).await.unwrap().claims, 1);
    session.commit().await.unwrap();
}

async fn a_key_is_new_once(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    commit_keys(&mut *session, consumer, &[b"k"]).await;
    session.begin().await.unwrap();
    assert_eq!(
        session.claim(rule(consumer), &[claim(b"k")]).await.unwrap(),
        [false]
    );
    let entry = session
        .entries(consumer, &[b"k"])
        .await
        .unwrap()
        .remove(0)
        .unwrap();
    assert_eq!(
        (entry.key, entry.fate, entry.attempts),
        (b"k".to_vec(), Fate::Committed, 1)
    );
    assert_eq!(entry.fingerprint, b"fingerprint");
    session.rollback().await.unwrap();
    assert_eq!(
        session.ledger_counts(consumer).await.unwrap(),
        [(Fate::Committed, 1)]
    );
}

async fn of_a_batch_only_the_new_keys_are_claimed(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    commit_keys(&mut *session, consumer, &[b"b", b"d"]).await;
    session.begin().await.unwrap();
    let claims = [
        claim(b"a"),
        claim(b"b"),
        claim(b"c"),
        claim(b"d"),
        claim(b"e"),
    ];
    assert_eq!(
        session.claim(rule(consumer), &claims).await.unwrap(),
        [true, false, true, false, true]
    );
    assert_eq!(
        session
            .finish(consumer, &[b"a", b"c", b"e"])
            .await
            .unwrap()
            .claims,
        3
    );
    session.commit().await.unwrap();
    assert_eq!(
        session.ledger_counts(consumer).await.unwrap(),
        [(Fate::Committed, 5)]
    );
}

async fn keys_that_look_alike_stay_different(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut keys: Vec<&[u8]> = vec![
        b"1a",
        b"1A",
        "1á".as_bytes(),
        "1a\u{301}".as_bytes(),
        b"1a ",
        b" 1a",
        b"1a\0",
        b"1a\0\0",
        b"\0",
        b"",
        b"\xff\xfe",
        b"123456789012345678901234567890",
        b"123456789012345678901234567891",
        b"1.0",
        b"1.00",
        b"1e0",
        "ß".as_bytes(),
        b"ss",
    ];
    keys.sort_unstable();
    let mut session = fixture.session().await;
    commit_keys(&mut *session, consumer, &keys).await;
    let entries = session.entries(consumer, &keys).await.unwrap();
    for (key, entry) in keys.iter().zip(entries) {
        assert_eq!(entry.unwrap().key, *key);
    }
    assert_eq!(
        session.ledger_counts(consumer).await.unwrap(),
        [(Fate::Committed, keys.len() as u64)]
    );
}

async fn consumers_do_not_share_keys(fixture: &Fixture) {
    let mut session = fixture.session().await;
    for name in ["orders", "invoices"] {
        let consumer = session
            .consumer(name, "message-id", "body")
            .await
            .unwrap()
            .id;
        commit_keys(&mut *session, consumer, &[b"k"]).await;
    }
}

/// Waits until another session of the fixture waits for a lock. With one writer there is nothing to see.
pub(super) async fn somebody_waits(fixture: &Fixture) {
    if !fixture.is_postgres() {
        return;
    }
    let mut session = fixture.session().await;
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND wait_event_type = 'Lock'";
    eventually("a session waits for a lock", async || {
        let rows = session
            .query(waits, &[Value::Text(fixture.name.clone())], 1, 100)
            .await
            .unwrap()
            .rows;
        (rows[0][0] == Value::S64(1)).then_some(())
    })
    .await;
}

/// Claims `k` in a session of its own, in the background.
fn claim_elsewhere(
    mut session: Box<dyn Session>,
    consumer: ConsumerId,
) -> tokio::task::JoinHandle<Result<Vec<bool>, StoreError>> {
    tokio::spawn(async move {
        session.begin().await?;
        let new = session.claim(rule(consumer), &[claim(b"k")]).await;
        session.rollback().await?;
        new
    })
}

async fn a_second_session_waits_for_a_claim_and_then_sees_it(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut first = fixture.session().await;
    let second = fixture.session().await;
    first.begin().await.unwrap();
    first.claim(rule(consumer), &[claim(b"k")]).await.unwrap();
    let second = claim_elsewhere(second, consumer);
    somebody_waits(fixture).await;
    first.finish(consumer, &[b"k"]).await.unwrap();
    first.commit().await.unwrap();
    assert_eq!(second.await.unwrap().unwrap(), [false]);
}

async fn a_claim_that_was_waited_for_in_vain_is_new(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut first = fixture.session().await;
    let second = fixture.session().await;
    first.begin().await.unwrap();
    first.claim(rule(consumer), &[claim(b"k")]).await.unwrap();
    let second = claim_elsewhere(second, consumer);
    somebody_waits(fixture).await;
    first.rollback().await.unwrap();
    assert_eq!(second.await.unwrap().unwrap(), [true]);
}

async fn a_claim_that_waits_too_long_is_told_so(fixture: &Fixture) {
    if fixture.store.traits().single_writer {
        return; // there `begin` waits, and nobody else can hold a key
    }
    let consumer = fixture.consumer().await;
    let mut first = fixture.session().await;
    first.begin().await.unwrap();
    first.claim(rule(consumer), &[claim(b"k")]).await.unwrap();
    let mut second = fixture.impatient_session().await;
    second.begin().await.unwrap();
    let error = second
        .claim(rule(consumer), &[claim(b"k")])
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::LockTimeout(_)), "{error:?}");
    assert!(!second.alive().await);
    second.rollback().await.unwrap();
    first.finish(consumer, &[b"k"]).await.unwrap();
    first.commit().await.unwrap();
}

async fn the_fates_are_read_as_they_are_now_not_as_they_were_at_the_claim(fixture: &Fixture) {
    if fixture.store.traits().single_writer {
        return; // nothing commits meanwhile
    }
    let consumer = fixture.consumer().await;
    let mut first = fixture.session().await;
    first.begin().await.unwrap();
    first.claim(rule(consumer), &[claim(b"a")]).await.unwrap();
    assert_eq!(fates(&mut *first, consumer, &[b"k"]).await, [None]);
    commit_keys(&mut *fixture.session().await, consumer, &[b"k"]).await;
    assert_eq!(
        fates(&mut *first, consumer, &[b"k"]).await,
        [Some(Fate::Committed)]
    );
    first.rollback().await.unwrap();
}

async fn a_batch_of_a_thousand_keys_is_one_claim(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let keys: Vec<String> = (0..1_024)
        .map(|number| format!("key-{number:04}"))
        .collect();
    let keys: Vec<&[u8]> = keys.iter().map(|key| key.as_bytes()).collect();
    let mut session = fixture.session().await;
    commit_keys(&mut *session, consumer, &keys).await;
    assert!(
        session
            .entries(consumer, &keys)
            .await
            .unwrap()
            .iter()
            .all(Option::is_some)
    );
}

async fn finish_does_not_count_keys_that_others_have_claimed(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    commit_keys(&mut *session, consumer, &[b"old"]).await;
    session.begin().await.unwrap();
    session
        .claim(rule(consumer), &[claim(b"new"), claim(b"old")])
        .await
        .unwrap();
    assert_eq!(
        session
            .finish(consumer, &[b"absent", b"new", b"old"])
            .await
            .unwrap()
            .claims,
        1
    );
    session.rollback().await.unwrap();
}

async fn only_claimed_keys_are_settled(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    commit_keys(&mut *session, consumer, &[b"old"]).await;
    session.begin().await.unwrap();
    session
        .claim(rule(consumer), &[claim(b"a"), claim(b"b")])
        .await
        .unwrap();
    let waiting = |key| Settlement {
        key,
        fate: Fate::Waiting,
        attempts: 4,
    };
    assert_eq!(
        session
            .settle(consumer, &[waiting(b"b"), waiting(b"old")])
            .await
            .unwrap(),
        1
    );
    assert_eq!(
        session
            .finish(consumer, &[b"a", b"b"])
            .await
            .unwrap()
            .claims,
        2
    );
    session.commit().await.unwrap();
    let all = fates(&mut *session, consumer, &[b"a", b"b", b"old"]).await;
    assert_eq!(
        all,
        [
            Some(Fate::Committed),
            Some(Fate::Waiting),
            Some(Fate::Committed)
        ]
    );
    assert_eq!(
        session.entries(consumer, &[b"b"]).await.unwrap()[0]
            .as_ref()
            .unwrap()
            .attempts,
        4
    );
}

async fn a_fate_is_taken_once_and_only_from_what_it_was(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    settle(&mut *session, consumer, b"k", Fate::Waiting).await;
    session.begin().await.unwrap();
    let again = Claim {
        attempts: 3,
        fingerprint: b"other",
        ..claim(b"k")
    };
    assert!(
        !session
            .take(rule(consumer), again, Fate::Parked)
            .await
            .unwrap()
    );
    assert!(
        session
            .take(rule(consumer), again, Fate::Waiting)
            .await
            .unwrap()
    );
    assert!(
        !session
            .take(rule(consumer), again, Fate::Waiting)
            .await
            .unwrap()
    );
    assert_eq!(session.finish(consumer, &[b"k"]).await.unwrap().claims, 1);
    session.commit().await.unwrap();
    let entry = session
        .entries(consumer, &[b"k"])
        .await
        .unwrap()
        .remove(0)
        .unwrap();
    assert_eq!(
        (entry.fate, entry.attempts, entry.fingerprint),
        (Fate::Committed, 3, b"other".to_vec())
    );
}

async fn a_key_that_was_taken_can_be_settled_again(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    settle(&mut *session, consumer, b"k", Fate::Waiting).await;
    session.begin().await.unwrap();
    assert!(
        session
            .take(rule(consumer), claim(b"k"), Fate::Waiting)
            .await
            .unwrap()
    );
    let parked = Settlement {
        key: b"k",
        fate: Fate::Parked,
        attempts: 5,
    };
    assert_eq!(session.settle(consumer, &[parked]).await.unwrap(), 1);
    assert_eq!(session.finish(consumer, &[b"k"]).await.unwrap().claims, 1);
    session.commit().await.unwrap();
    assert_eq!(
        fates(&mut *session, consumer, &[b"k"]).await,
        [Some(Fate::Parked)]
    );
}

async fn starts_are_counted_and_taken_back(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    for (first, start) in [
        (true, Start::Recorded(1)),
        (true, Start::Earlier),
        (false, Start::Recorded(2)),
        (true, Start::Earlier),
        (false, Start::Recorded(3)),
    ] {
        let recorded = session.record_start(rule(consumer), claim(b"k"), first);
        assert_eq!(recorded.await.unwrap(), start);
    }
    session.undo_start(consumer, b"k").await.unwrap();
    let entry = session
        .entries(consumer, &[b"k"])
        .await
        .unwrap()
        .remove(0)
        .unwrap();
    assert_eq!((entry.fate, entry.attempts), (Fate::Started, 2));
    session.undo_start(consumer, b"k").await.unwrap();
    session.undo_start(consumer, b"k").await.unwrap();
    assert_eq!(fates(&mut *session, consumer, &[b"k"]).await, [None]);
    session.undo_start(consumer, b"k").await.unwrap();
}

async fn a_start_leaves_every_other_fate_alone(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    for fate in [
        Fate::Committed,
        Fate::Waiting,
        Fate::Parked,
        Fate::Discarded,
    ] {
        let key = [fate as u8];
        settle(&mut *session, consumer, &key, fate).await;
        for first in [true, false] {
            let recorded = session.record_start(rule(consumer), claim(&key), first);
            assert_eq!(recorded.await.unwrap(), Start::Elsewhere);
        }
        session.undo_start(consumer, &key).await.unwrap();
        assert_eq!(fates(&mut *session, consumer, &[&key]).await, [Some(fate)]);
    }
}

async fn a_started_key_is_taken_and_committed(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    session
        .record_start(rule(consumer), claim(b"k"), true)
        .await
        .unwrap();
    session.begin().await.unwrap();
    assert_eq!(
        session.claim(rule(consumer), &[claim(b"k")]).await.unwrap(),
        [false]
    );
    assert!(
        session
            .take(rule(consumer), claim(b"k"), Fate::Started)
            .await
            .unwrap()
    );
    assert_eq!(session.finish(consumer, &[b"k"]).await.unwrap().claims, 1);
    session.commit().await.unwrap();
    assert_eq!(
        fates(&mut *session, consumer, &[b"k"]).await,
        [Some(Fate::Committed)]
    );
}

async fn times_beyond_every_calendar_do_not_break_a_claim(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    let rule = ClaimRule {
        retention: Some(std::time::Duration::MAX),
        ..rule(consumer)
    };
    session.begin().await.unwrap();
    for (key, seconds) in [(b"a", i64::MAX), (b"b", i64::MIN), (b"c", -1)] {
        let claim = Claim {
            timestamp_seconds: Some(seconds),
            ..claim(key)
        };
        assert_eq!(session.claim(rule, &[claim]).await.unwrap(), [true]);
    }
    assert_eq!(
        session
            .finish(consumer, &[b"a", b"b", b"c"])
            .await
            .unwrap()
            .claims,
        3
    );
    session.commit().await.unwrap();
    assert_eq!(
        session
            .sweep(consumer, Duration::ZERO, b"", 10)
            .await
            .unwrap(),
        (None, 0)
    );
}

async fn nothing_asked_is_nothing_done(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    session.begin().await.unwrap();
    assert!(session.claim(rule(consumer), &[]).await.unwrap().is_empty());
    assert!(session.entries(consumer, &[]).await.unwrap().is_empty());
    assert_eq!(session.settle(consumer, &[]).await.unwrap(), 0);
    assert_eq!(session.finish(consumer, &[]).await.unwrap().claims, 0);
    session.commit().await.unwrap();
}

async fn answers_are_kept_under_claimed_keys_only(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    super::commit_keys(&mut *session, consumer, &[b"old"]).await;
    session.begin().await.unwrap();
    session
        .claim(rule(consumer), &[claim(b"new")])
        .await
        .unwrap();
    let answer = vec![0, 1, 255];
    let both: [(&[u8], Vec<u8>); 2] = [(b"new", answer.clone()), (b"old", answer.clone())];
    assert_eq!(session.keep_replies(consumer, &both).await.unwrap(), 1);
    assert_eq!(
        session.finish(consumer, &[b"new"]).await.unwrap().claims,
        1,
        "an answer is no second claim"
    );
    session.commit().await.unwrap();
    let keys: [&[u8]; 3] = [b"old", b"new", b"absent"];
    assert_eq!(
        session.replies(consumer, &keys).await.unwrap(),
        [None, Some(answer), None]
    );
    assert!(session.replies(consumer, &[]).await.unwrap().is_empty());
}
