//! The keys: looked up, paged through, forgotten, imported.

use super::{filter, put, settle};
use crate::store::contract::{Fixture, HOUR, claim, commit_keys, in_every_dialect, rule, waiting};
use crate::store::{Fate, Session, Status};

in_every_dialect! {
    a_key_is_found_whole
    pages_of_the_ledger_meet_every_key_once
    a_page_stops_where_its_scan_ends
    only_keys_that_nothing_waits_for_are_forgotten
    imported_keys_are_committed_and_known_ones_stay
    fingerprints_are_forgotten_page_by_page
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
