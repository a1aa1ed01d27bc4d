//! Keys: their fate, forgetting, taking over.

use super::*;
use crate::store::Mark;

fn forget(keys: &[&str]) -> Forget {
    Forget {
        consumer: "points".into(),
        keys_hex: keys.iter().map(hex::encode).collect(),
        who: "ann@shop".into(),
        why: "the amount was wrong".into(),
        dry_run: false,
    }
}

async fn forgotten(place: &Place, forget: Forget) -> Vec<Forgotten> {
    match place.ask(Request::LedgerForget(forget)).await {
        Ok(Response::LedgerForget(told)) => told,
        other => panic!("{other:?}"),
    }
}

async fn show(place: &Place, key: &str) -> LedgerShown {
    let request = Request::LedgerShow {
        consumer: None,
        key_hex: hex::encode(key),
    };
    match place.ask(request).await {
        Ok(Response::LedgerShow(mut shown)) => shown.remove(0),
        other => panic!("{other:?}"),
    }
}

async fn generation(place: &Place) -> i32 {
    let mut session = place.session().await;
    let rows = session.upkeep().consumers().await.expect("rows");
    rows[0].generation
}

#[tokio::test]
async fn a_key_is_told_with_its_message_and_what_operators_did() {
    let place = Place::new().await;
    place
        .fail(&[0xaa; 32], b"o-1", RowStatus::Parked, "rejected")
        .await;
    let shown = show(&place, "o-1").await;
    let entry = shown.entry.expect("it is known");
    assert_eq!((entry.fate.as_str(), entry.attempts), ("parked", 1));
    assert_eq!(
        (entry.key.as_deref(), entry.key_hex.as_str()),
        (Some("o-1"), "6f2d31")
    );
    assert_eq!(shown.waiting.expect("a message").code, "rejected");
    place.settle(b"o-2", b"f", Fate::Committed).await;
    let shown = show(&place, "o-2").await;
    assert_eq!(shown.entry.expect("it is known").plugin, "abababababababab");
    assert!(shown.waiting.is_none());
    assert!(show(&place, "o-3").await.entry.is_none());
}

#[tokio::test]
async fn a_forgotten_key_is_new_again_and_its_next_messages_have_other_ids() {
    let place = Place::new().await;
    place.settle(b"o-1", b"f", Fate::Committed).await;
    let before = generation(&place).await;
    let told = forgotten(&place, forget(&["o-1", "o-9"])).await;
    let told = told
        .iter()
        .map(|key| (key.key_hex.as_str(), key.fate.as_deref(), key.forgotten))
        .collect::<Vec<_>>();
    assert_eq!(
        told,
        [("6f2d31", Some("committed"), true), ("6f2d39", None, false)]
    );
    assert_eq!(generation(&place).await, before + 1);
    let shown = show(&place, "o-1").await;
    assert!(shown.entry.is_none());
    assert_eq!(shown.journal[0].who, "ann@shop");
    assert_eq!(shown.journal[0].why, "the amount was wrong");
}

#[tokio::test]
async fn what_sent_nothing_is_forgotten_without_a_new_generation() {
    let place = Place::new().await;
    place.settle(b"o-1", b"f", Fate::Discarded).await;
    assert!(forgotten(&place, forget(&["o-1"])).await[0].forgotten);
    assert_eq!(generation(&place).await, 0);
}

#[tokio::test]
async fn a_key_whose_message_waits_is_not_forgotten_and_neither_are_its_neighbours() {
    let place = Place::new().await;
    place.settle(b"o-1", b"f", Fate::Committed).await;
    place
        .fail(&[0xaa; 32], b"o-2", RowStatus::Parked, "rejected")
        .await;
    place
        .fail(&[0xbb; 32], b"o-3", RowStatus::Retry, "retry")
        .await;
    let text = place
        .refused(Request::LedgerForget(forget(&["o-1", "o-2", "o-3"])))
        .await;
    assert!(
        text.contains("`o-2` is parked") && text.contains("`o-3` waits"),
        "{text}"
    );
    assert!(show(&place, "o-1").await.entry.is_some());
    let nameless = Forget {
        why: " ".into(),
        ..forget(&["o-1"])
    };
    let text = place.refused(Request::LedgerForget(nameless)).await;
    assert!(text.contains("needs a reason"), "{text}");
    let dry = Forget {
        dry_run: true,
        ..forget(&["o-1"])
    };
    assert!(!forgotten(&place, dry).await[0].forgotten);
    assert!(show(&place, "o-1").await.entry.is_some());
}

#[tokio::test]
async fn a_key_is_forgotten_only_when_every_host_has_taken_note() {
    let place = Place::new().await;
    place.settle(b"o-1", b"f", Fate::Committed).await;
    let mut host = place.session().await;
    let old = Mark::Generation(place.consumer, 0);
    host.upkeep().hold_mark(old).await.expect("a mark");
    let noticing = async {
        while generation(&place).await == 0 {
            tokio::task::yield_now().await;
        }
        // Until the host takes note, the key is known: a delivery now is a duplicate.
        let entries = host.entries(place.consumer, &[b"o-1"]).await;
        assert!(entries.expect("entries")[0].is_some());
        host.upkeep().drop_mark(old).await.expect("no mark");
    };
    let (told, ()) = tokio::join!(forgotten(&place, forget(&["o-1"])), noticing);
    assert!(told[0].forgotten);
}

fn import(keys: &[&str]) -> Import {
    Import {
        consumer: "points".into(),
        keys: keys
            .iter()
            .map(|key| ImportKey {
                key_hex: hex::encode(key),
                fingerprint_hex: String::new(),
            })
            .collect(),
        dry_run: false,
    }
}

#[tokio::test]
async fn imported_keys_are_committed_and_an_import_again_changes_nothing() {
    let place = Place::new().await;
    place
        .fail(&[0xaa; 32], b"o-2", RowStatus::Parked, "rejected")
        .await;
    let dry = Import {
        dry_run: true,
        ..import(&["o-1", "o-2", "o-1"])
    };
    let counted = |new, known| Ok(Response::LedgerImport(Imported { new, known }));
    assert_eq!(place.ask(Request::LedgerImport(dry)).await, counted(1, 2));
    let keys = ["o-1", "o-2", "o-1"];
    assert_eq!(
        place.ask(Request::LedgerImport(import(&keys))).await,
        counted(1, 2)
    );
    assert_eq!(
        place.ask(Request::LedgerImport(import(&keys))).await,
        counted(0, 3)
    );
    let entry = show(&place, "o-1").await.entry.expect("it is known");
    assert_eq!((entry.fate.as_str(), entry.attempts), ("committed", 0));
    assert!(entry.expires_at.is_some() && entry.fingerprint.is_empty());
    assert_eq!(
        show(&place, "o-2").await.entry.expect("it stays").fate,
        "parked"
    );
    let long = "x".repeat(513);
    for bad in ["", long.as_str()] {
        let text = place.refused(Request::LedgerImport(import(&[bad]))).await;
        assert!(text.contains("1 to 512"), "{text}");
    }
}

#[tokio::test]
async fn a_list_of_keys_goes_on_where_it_ended() {
    let place = Place::new().await;
    for key in ["a", "b", "c"] {
        place.settle(key.as_bytes(), b"f", Fate::Committed).await;
    }
    place.settle(b"d", b"f", Fate::Discarded).await;
    let list = async |fate: Option<&str>, after: Option<&str>, limit| {
        let query = LedgerQuery {
            consumer: "points".into(),
            fate: fate.map(str::to_owned),
            after_hex: after.map(hex::encode),
            limit,
        };
        match place.ask(Request::LedgerList(query)).await {
            Ok(Response::LedgerList(rows)) => {
                let keys = rows.entries.into_iter().filter_map(|entry| entry.key);
                (keys.collect::<Vec<_>>().concat(), rows.next_hex)
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(list(None, None, 10).await, ("abcd".to_owned(), None));
    let (first, next) = list(None, None, 2).await;
    assert_eq!((first.as_str(), next.as_deref()), ("ab", Some("62")));
    assert_eq!(list(None, Some("b"), 10).await.0, "cd");
    assert_eq!(list(Some("discarded"), None, 10).await.0, "d");
    let query = LedgerQuery {
        consumer: "points".into(),
        fate: Some("lost".into()),
        ..LedgerQuery::default()
    };
    let text = place.refused(Request::LedgerList(query)).await;
    assert!(text.contains("there is no fate `lost`"), "{text}");
}
