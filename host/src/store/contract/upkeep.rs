//! What operators see and change: the marks, pauses and rules of a consumer, and the journal of it all.

mod ledger;
mod outbox;
mod waiting;

use super::{Fixture, HOUR, claim, eventually, in_every_dialect, rule};
use crate::store::{
    ConsumerId, Fate, JournalEntry, Mark, Session, Settlement, StoreError, WaitingFilter,
    WaitingRow,
};

in_every_dialect! {
    the_clock_goes_on
    marks_are_counted_and_end_with_their_session
    a_mark_that_is_seized_is_nobody_elses
    marks_of_other_consumers_and_generations_are_other_marks
    a_pause_is_in_the_row_until_it_is_ended
    the_rules_and_the_generation_are_changed
    the_journal_remembers_who_and_why
}

async fn the_clock_goes_on(fixture: &Fixture) {
    let mut session = fixture.session().await;
    let first = session.upkeep().clock().await.unwrap();
    let second = session.upkeep().clock().await.unwrap();
    // 2020-01-01.
    assert!(first > 1_577_836_800_000_000 && second >= first);
}

async fn marks_are_counted_and_end_with_their_session(fixture: &Fixture) {
    let mark = Mark::Rules(fixture.consumer().await);
    let mut watcher = fixture.session().await;
    assert_eq!(watcher.upkeep().mark_holders(mark).await.unwrap(), 0);
    let mut one = fixture.session().await;
    let mut other = fixture.session().await;
    one.upkeep().hold_mark(mark).await.unwrap();
    other.upkeep().hold_mark(mark).await.unwrap();
    assert_eq!(watcher.upkeep().mark_holders(mark).await.unwrap(), 2);
    other.upkeep().drop_mark(mark).await.unwrap();
    assert_eq!(watcher.upkeep().mark_holders(mark).await.unwrap(), 1);
    drop(one);
    eventually("the mark ends with its session", async || {
        (watcher.upkeep().mark_holders(mark).await.unwrap() == 0).then_some(())
    })
    .await;
}

async fn a_mark_that_is_seized_is_nobody_elses(fixture: &Fixture) {
    let mark = Mark::Rules(fixture.consumer().await);
    let mut host = fixture.impatient_session().await;
    let mut operator = fixture.session().await;
    host.upkeep().hold_mark(mark).await.unwrap();
    assert!(!operator.upkeep().seize_mark(mark).await.unwrap());
    host.upkeep().drop_mark(mark).await.unwrap();
    assert!(operator.upkeep().seize_mark(mark).await.unwrap());
    let refused = host.upkeep().hold_mark(mark).await.unwrap_err();
    assert!(matches!(refused, StoreError::LockTimeout(_)), "{refused:?}");
    assert!(!host.upkeep().seize_mark(mark).await.unwrap());
    drop(operator);
    eventually("the mark is free", async || {
        host.upkeep().hold_mark(mark).await.ok()
    })
    .await;
}

async fn marks_of_other_consumers_and_generations_are_other_marks(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut host = fixture.session().await;
    let mut operator = fixture.session().await;
    host.upkeep()
        .hold_mark(Mark::Generation(consumer, 3))
        .await
        .unwrap();
    for free in [
        Mark::Generation(consumer, 2),
        Mark::Generation(ConsumerId(consumer.0 + 1), 3),
        Mark::Rules(consumer),
    ] {
        assert_eq!(operator.upkeep().mark_holders(free).await.unwrap(), 0);
        assert!(
            operator.upkeep().seize_mark(free).await.unwrap(),
            "{free:?}"
        );
    }
    let held = Mark::Generation(consumer, 3);
    assert!(!operator.upkeep().seize_mark(held).await.unwrap());
}

async fn a_pause_is_in_the_row_until_it_is_ended(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    let upkeep = session.upkeep();
    assert_eq!(upkeep.consumers().await.unwrap()[0].pause, None);
    upkeep
        .set_pause(consumer, Some(("ann", "a move\0")))
        .await
        .unwrap();
    let rows = upkeep.consumers().await.unwrap();
    let pause = rows[0].pause.as_ref().unwrap();
    assert_eq!(
        (pause.by.as_str(), pause.why.as_str()),
        ("ann", "a move\u{2400}")
    );
    assert!(pause.since > 1_577_836_800_000_000);
    upkeep.set_pause(consumer, None).await.unwrap();
    assert_eq!(upkeep.consumers().await.unwrap()[0].pause, None);
}

async fn the_rules_and_the_generation_are_changed(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    let upkeep = session.upkeep();
    assert_eq!(upkeep.raise_generation(consumer).await.unwrap(), 1);
    assert_eq!(upkeep.raise_generation(consumer).await.unwrap(), 2);
    upkeep
        .set_rules(consumer, "body:/id", "none")
        .await
        .unwrap();
    let row = upkeep.consumers().await.unwrap().remove(0);
    assert_eq!((row.id, row.name.as_str()), (consumer, "orders"));
    assert_eq!(
        (row.key_rule.as_str(), row.fingerprint_rule.as_str()),
        ("body:/id", "none")
    );
    assert_eq!(row.generation, 2);
}

async fn the_journal_remembers_who_and_why(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    let entry = |key: Option<&[u8]>, why: &str| JournalEntry {
        at: 0,
        actor: "ann@shop".to_owned(),
        action: "forget".to_owned(),
        consumer: Some(consumer),
        key: key.map(<[u8]>::to_vec),
        why: why.to_owned(),
    };
    let upkeep = session.upkeep();
    upkeep
        .journal_add(&entry(Some(b"a\0"), "one"))
        .await
        .unwrap();
    upkeep
        .journal_add(&entry(Some(b"b"), "two\0"))
        .await
        .unwrap();
    upkeep.journal_add(&entry(None, "three")).await.unwrap();
    let all = upkeep.journal(consumer, None, 10).await.unwrap();
    let whys = all.iter().map(|entry| entry.why.as_str());
    assert_eq!(whys.collect::<Vec<_>>(), ["three", "two\u{2400}", "one"]);
    let of_key = upkeep.journal(consumer, Some(b"a\0"), 10).await.unwrap();
    assert_eq!(of_key.len(), 1);
    let clock = upkeep.clock().await.unwrap();
    assert!(of_key[0].at > 1_577_836_800_000_000 && of_key[0].at <= clock);
    assert_eq!(
        JournalEntry {
            at: 0,
            ..of_key[0].clone()
        },
        entry(Some(b"a\0"), "one")
    );
    assert_eq!(upkeep.journal(consumer, None, 2).await.unwrap().len(), 2);
    let elsewhere = ConsumerId(consumer.0 + 1);
    assert!(
        upkeep
            .journal(elsewhere, None, 10)
            .await
            .unwrap()
            .is_empty()
    );
}

/// Records what became of a key.
async fn settle(session: &mut dyn Session, consumer: ConsumerId, key: &[u8], fate: Fate) {
    session.begin().await.unwrap();
    session.claim(rule(consumer), &[claim(key)]).await.unwrap();
    let settlement = Settlement {
        key,
        fate,
        attempts: 2,
    };
    session.settle(consumer, &[settlement]).await.unwrap();
    session.finish(consumer, &[key]).await.unwrap();
    session.commit().await.unwrap();
}

fn filter() -> WaitingFilter {
    WaitingFilter {
        limit: 100,
        ..WaitingFilter::default()
    }
}

async fn put(session: &mut dyn Session, consumer: ConsumerId, row: &WaitingRow) {
    session
        .waiting_put(consumer, &[(row.clone(), HOUR)])
        .await
        .unwrap();
}
