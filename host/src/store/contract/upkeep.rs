//! What operators see and change.

use std::sync::Arc;

use super::{
    Fixture, HOUR, claim, commit_keys, eventually, in_every_dialect, message, rule, waiting,
};
use crate::store::{
    ConsumerId, Fate, HostId, JournalEntry, Mark, OutboxFilter, OutboxRow, Session, Settlement,
    Status, StoreError, WaitingFilter, WaitingRow,
};

in_every_dialect! {
    the_clock_goes_on
    marks_are_counted_and_end_with_their_session
    a_mark_that_is_seized_is_nobody_elses
    marks_of_other_consumers_and_generations_are_other_marks
    a_pause_is_in_the_row_until_it_is_ended
    the_rules_and_the_generation_are_changed
    a_key_is_found_whole
    pages_of_the_ledger_meet_every_key_once
    a_page_stops_where_its_scan_ends
    only_keys_that_nothing_waits_for_are_forgotten
    imported_keys_are_committed_and_known_ones_stay
    fingerprints_are_forgotten_page_by_page
    rows_are_tallied_as_they_are_listed
    a_list_goes_on_after_its_last_row
    a_body_is_left_away_on_demand
    what_was_committed_meanwhile_is_not_replayed
    a_parked_body_is_replaced_once
    the_outbox_is_listed_in_order_and_by_what_is_known
    a_row_that_waits_is_sent_now_and_one_in_memory_is_left_alone
    the_journal_remembers_who_and_why
}

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

async fn a_key_is_found_whole(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    commit_keys(&mut *session, consumer, &[b"a\0", b"b"]).await;
    let found = session
        .upkeep()
        .ledger_find(consumer, &[b"b", b"absent", b"a\0"])
        .await
        .unwrap();
    assert!(found[1].is_none());
    let record = found[2].as_ref().unwrap();
    assert_eq!(
        (record.key.as_slice(), record.fate),
        (&b"a\0"[..], Fate::Committed)
    );
    assert_eq!(record.fingerprint, b"fingerprint");
    assert_eq!(
        (record.plugin.as_slice(), record.attempts),
        (&b"plugin01"[..], 1)
    );
    let now = session.upkeep().clock().await.unwrap();
    let left = record.expires_at.unwrap() - now;
    assert!(left > 0 && left <= HOUR.as_micros() as i64, "{left}");
}

async fn pages_of_the_ledger_meet_every_key_once(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    let keys = (0..25_u8).map(|number| vec![number]).collect::<Vec<_>>();
    let borrowed = keys.iter().map(Vec::as_slice).collect::<Vec<_>>();
    commit_keys(&mut *session, consumer, &borrowed).await;
    settle(&mut *session, consumer, b"parked", Fate::Parked).await;
    let (mut met, mut after) = (Vec::new(), Some(Vec::new()));
    while let Some(place) = after {
        let page = session
            .upkeep()
            .ledger_page(consumer, Some(Fate::Committed), &place, 7, 3)
            .await
            .unwrap();
        assert!(page.records.len() <= 3);
        met.extend(page.records.into_iter().map(|record| record.key));
        after = page.next;
    }
    assert_eq!(met, keys);
}

async fn a_page_stops_where_its_scan_ends(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    commit_keys(&mut *session, consumer, &[b"a", b"b", b"c"]).await;
    settle(&mut *session, consumer, b"d", Fate::Discarded).await;
    let discarded = Some(Fate::Discarded);
    let page = session
        .upkeep()
        .ledger_page(consumer, discarded, b"", 2, 10)
        .await
        .unwrap();
    assert_eq!((page.records.len(), page.next), (0, Some(b"b".to_vec())));
    let page = session
        .upkeep()
        .ledger_page(consumer, discarded, b"b", 10, 10)
        .await
        .unwrap();
    assert_eq!((page.records.len(), page.next), (1, None));
}

async fn only_keys_that_nothing_waits_for_are_forgotten(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    commit_keys(&mut *session, consumer, &[b"committed", b"stays"]).await;
    settle(&mut *session, consumer, b"discarded", Fate::Discarded).await;
    settle(&mut *session, consumer, b"parked", Fate::Parked).await;
    settle(&mut *session, consumer, b"waiting", Fate::Waiting).await;
    let keys: [&[u8]; 5] = [b"absent", b"committed", b"discarded", b"parked", b"waiting"];
    let mut gone = session
        .upkeep()
        .ledger_forget(consumer, &keys)
        .await
        .unwrap();
    gone.sort();
    assert_eq!(gone, [b"committed".to_vec(), b"discarded".to_vec()]);
    assert_eq!(
        session.ledger_counts(consumer).await.unwrap(),
        [(Fate::Committed, 1), (Fate::Waiting, 1), (Fate::Parked, 1)]
    );
    session.begin().await.unwrap();
    let claimed = session.claim(rule(consumer), &[claim(b"committed")]).await;
    assert_eq!(claimed.unwrap(), [true], "it is new again");
    session.rollback().await.unwrap();
}

async fn imported_keys_are_committed_and_known_ones_stay(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    settle(&mut *session, consumer, b"b", Fate::Parked).await;
    let keys: [(&[u8], &[u8]); 3] = [(b"a", b""), (b"b", b""), (b"c", b"known")];
    let import = async |session: &mut dyn Session| {
        session
            .upkeep()
            .ledger_import(rule(consumer), &keys)
            .await
            .unwrap()
    };
    assert_eq!(import(&mut *session).await, 2);
    assert_eq!(import(&mut *session).await, 0);
    let found = session
        .upkeep()
        .ledger_find(consumer, &[b"a", b"b", b"c"])
        .await
        .unwrap();
    let told = found
        .iter()
        .flatten()
        .map(|record| (record.fate, record.attempts, record.fingerprint.as_slice()))
        .collect::<Vec<_>>();
    assert_eq!(
        told,
        [
            (Fate::Committed, 0, &b""[..]),
            (Fate::Parked, 2, b"fingerprint"),
            (Fate::Committed, 0, b"known")
        ]
    );
    assert!(found[0].as_ref().unwrap().expires_at.is_some());
    // More than one statement holds anywhere.
    let many = (0..2_000_u32).map(u32::to_be_bytes).collect::<Vec<_>>();
    let many = many
        .iter()
        .map(|key| (&key[..], &b""[..]))
        .collect::<Vec<_>>();
    let imported = session.upkeep().ledger_import(rule(consumer), &many).await;
    assert_eq!(imported.unwrap(), 2_000);
    assert_eq!(
        session
            .upkeep()
            .ledger_import(rule(consumer), &[])
            .await
            .unwrap(),
        0
    );
}

async fn fingerprints_are_forgotten_page_by_page(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    commit_keys(&mut *session, consumer, &[b"a", b"b", b"c", b"d", b"e"]).await;
    let other = session
        .consumer("invoices", "message-id", "body")
        .await
        .unwrap()
        .id;
    commit_keys(&mut *session, other, &[b"a"]).await;
    put(&mut *session, consumer, &waiting(b"w", Status::Parked)).await;
    let (mut after, mut steps) = (Some(Vec::new()), 0);
    while let Some(place) = after {
        after = session
            .upkeep()
            .forget_fingerprints(consumer, &place, 2)
            .await
            .unwrap();
        steps += 1;
    }
    assert_eq!(steps, 3);
    let keys: [&[u8]; 5] = [b"a", b"b", b"c", b"d", b"e"];
    let found = session.upkeep().ledger_find(consumer, &keys).await.unwrap();
    assert!(
        found
            .iter()
            .all(|record| record.as_ref().unwrap().fingerprint.is_empty())
    );
    let spared = session.upkeep().ledger_find(other, &[b"a"]).await.unwrap();
    assert_eq!(spared[0].as_ref().unwrap().fingerprint, b"fingerprint");
    let row = session.waiting_list(&filter()).await.unwrap().remove(0).row;
    assert!(row.fingerprint.is_empty());
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

const ME: HostId = HostId(1);

async fn send(session: &mut dyn Session, rows: Vec<OutboxRow>) -> Vec<i64> {
    let rows = rows.into_iter().map(Arc::new).collect::<Vec<_>>();
    session.outbox_put(ME, &rows).await.unwrap()
}

fn outgoing(consumer: ConsumerId, target: &str) -> OutboxRow {
    OutboxRow {
        consumer,
        lane: 0,
        target: target.to_owned(),
        may_drop: false,
        ordering_key: None,
        delay: None,
        message: message("{}"),
    }
}

fn every() -> OutboxFilter {
    OutboxFilter {
        limit: 100,
        ..OutboxFilter::default()
    }
}

async fn the_outbox_is_listed_in_order_and_by_what_is_known(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    let other = session
        .consumer("invoices", "message-id", "body")
        .await
        .unwrap()
        .id;
    let rows = vec![
        outgoing(consumer, "points"),
        outgoing(consumer, "mail"),
        outgoing(other, "mail"),
    ];
    let s = send(&mut *session, rows).await;
    session
        .outbox_defer(s[1], HOUR, "no exchange\0")
        .await
        .unwrap();
    let cases = [
        ("all", every(), vec![s[0], s[1], s[2]]),
        (
            "consumer",
            OutboxFilter {
                consumer: Some("orders".into()),
                ..every()
            },
            vec![s[0], s[1]],
        ),
        (
            "unknown consumer",
            OutboxFilter {
                consumer: Some("nobody".into()),
                ..every()
            },
            vec![],
        ),
        (
            "target",
            OutboxFilter {
                target: Some("mail".into()),
                ..every()
            },
            vec![s[1], s[2]],
        ),
        (
            "failed",
            OutboxFilter {
                failed: true,
                ..every()
            },
            vec![s[1]],
        ),
        (
            "id",
            OutboxFilter {
                sequence: Some(s[2]),
                ..every()
            },
            vec![s[2]],
        ),
        (
            "after and limit",
            OutboxFilter {
                after: s[0],
                limit: 1,
                ..every()
            },
            vec![s[1]],
        ),
    ];
    for (name, filter, expected) in cases {
        let rows = session.upkeep().outbox_list(&filter).await.unwrap();
        let found = rows.iter().map(|row| row.record.sequence);
        assert_eq!(found.collect::<Vec<_>>(), expected, "{name}");
    }
    let rows = session.upkeep().outbox_list(&every()).await.unwrap();
    assert_eq!(
        (rows[0].consumer.as_str(), rows[0].due_at),
        ("orders", None)
    );
    assert_eq!(rows[1].record.attempts, 1);
    assert_eq!(rows[1].error.as_deref(), Some("no exchange\u{2400}"));
    assert!(rows[1].due_at.unwrap() > rows[1].created_at);
    assert_eq!(rows[2].record.row.message, message("{}"));
}

async fn a_row_that_waits_is_sent_now_and_one_in_memory_is_left_alone(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    session.announce(ME).await.unwrap();
    let delayed = OutboxRow {
        delay: Some(HOUR),
        ..outgoing(consumer, "delayed")
    };
    let rows = vec![
        outgoing(consumer, "memory"),
        outgoing(consumer, "failed"),
        delayed,
    ];
    let s = send(&mut *session, rows).await;
    session.outbox_defer(s[1], HOUR, "no route").await.unwrap();
    let failed = OutboxFilter {
        failed: true,
        ..every()
    };
    assert_eq!(session.upkeep().outbox_retry(&failed).await.unwrap(), 1);
    let taken = session.outbox_take(ME, 10).await.unwrap();
    assert_eq!(taken.len(), 1);
    assert_eq!((taken[0].sequence, taken[0].attempts), (s[1], 1));
    assert_eq!(session.upkeep().outbox_retry(&failed).await.unwrap(), 0);
    let one = |sequence| OutboxFilter {
        sequence: Some(sequence),
        ..every()
    };
    assert_eq!(session.upkeep().outbox_retry(&one(s[0])).await.unwrap(), 0);
    assert_eq!(session.upkeep().outbox_retry(&one(s[2])).await.unwrap(), 1);
    assert_eq!(session.outbox_take(ME, 10).await.unwrap().len(), 1);
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
