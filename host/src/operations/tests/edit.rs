//! Replays of what was dealt with, and edited bodies.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::*;

fn edit(id: &str, new_body: &str) -> Edit {
    Edit {
        id: id.to_owned(),
        old_body: STANDARD.encode("{\"order_id\":1}"),
        new_body: STANDARD.encode(new_body),
        who: "ann@shop".into(),
        dry_run: false,
    }
}

#[tokio::test]
async fn a_message_that_was_committed_meanwhile_is_a_duplicate_and_stays_as_it_is() {
    let place = Place::new().await;
    // Parked without its key, and committed when it came again.
    let mut session = place.session().await;
    let whole = message(b"{\"order_id\":1}");
    let rules = crate::consumer::key_rules(&place.operations.config.consumers[0]);
    let identity = rules.identify(&whole).expect("a key");
    let row = WaitingRow {
        id: vec![0xaa; 32],
        key: None,
        fingerprint: Vec::new(),
        partition: 0,
        status: RowStatus::Parked,
        attempts: 0,
        code: "message-too-large".into(),
        error: "too large".into(),
        stderr: String::new(),
        backtrace: String::new(),
        plugin: Vec::new(),
        trace_id: String::new(),
        queue: "orders.paid".into(),
        message: whole,
        withheld: None,
    };
    session
        .waiting_put(place.consumer, &[(row, Duration::ZERO)])
        .await
        .expect("a row");
    drop(session);
    place
        .settle(b"1", &identity.fingerprint, Fate::Committed)
        .await;

    let changed = place.changed(Request::Replay(one("aaaa"))).await;
    let duplicate = Duplicate {
        id: hex::encode([0xaa; 32]),
        key_hex: hex::encode("1"),
        fate: "committed".into(),
    };
    assert_eq!(
        changed,
        Changed {
            duplicates: vec![duplicate],
            ..Changed::default()
        }
    );
    assert_eq!(place.ids(parked()).await.len(), 1, "nothing was done");
    assert_eq!(
        place.changed(Request::Discard(one("aaaa"))).await.changed,
        1
    );
    let mut session = place.session().await;
    let entries = session
        .entries(place.consumer, &[b"1"])
        .await
        .expect("entries");
    let entry = entries[0].as_ref().expect("the key stays");
    assert_eq!(entry.fate, Fate::Committed);
}

#[tokio::test]
async fn an_edited_message_keeps_its_key_and_its_fingerprint_and_runs_again() {
    let place = Place::new().await;
    place
        .fail(&[0xaa; 32], b"1", RowStatus::Parked, "rejected")
        .await;
    let body = "{\"order_id\":1,\"amount\":5}";
    let changed = place.changed(Request::Edit(edit("aaaa", body))).await;
    assert_eq!(changed.changed, 1);
    let mut session = place.session().await;
    session.begin().await.expect("a transaction");
    let row = session
        .waiting_lock(place.consumer, &[0xaa; 32])
        .await
        .expect("an answer")
        .expect("it is due");
    assert_eq!(row.message.body.as_ref(), body.as_bytes());
    assert_eq!(row.message.properties, message(b"").properties);
    assert_eq!(
        (row.key.as_deref(), row.fingerprint.as_slice()),
        (Some(&b"1"[..]), &b"f"[..])
    );
    assert_eq!((row.attempts, row.status), (0, RowStatus::Retry));
    session.rollback().await.expect("the end");
    let journal = session
        .upkeep()
        .journal(place.consumer, Some(b"1"), 9)
        .await;
    let journal = journal.expect("a journal");
    assert_eq!(
        (journal[0].actor.as_str(), journal[0].action.as_str()),
        ("ann@shop", "edit")
    );
}

#[tokio::test]
async fn an_edit_that_makes_another_message_or_none_is_refused() {
    let place = Place::new().await;
    place
        .fail(&[0xaa; 32], b"1", RowStatus::Parked, "rejected")
        .await;
    let other = place
        .refused(Request::Edit(edit("aaaa", "{\"order_id\":2}")))
        .await;
    assert!(
        other.contains("`1` to `2`") && other.contains("hapax publish"),
        "{other}"
    );
    let none = place.refused(Request::Edit(edit("aaaa", "{}"))).await;
    assert!(none.contains("key-missing"), "{none}");
    let stale = Edit {
        old_body: STANDARD.encode("{}"),
        ..edit("aaaa", "{\"order_id\":1,\"a\":2}")
    };
    let stale = place.refused(Request::Edit(stale)).await;
    assert!(stale.contains("has changed while"), "{stale}");
    let tried = Edit {
        dry_run: true,
        ..edit("aaaa", "{\"order_id\":1,\"a\":2}")
    };
    assert_eq!(place.changed(Request::Edit(tried)).await.changed, 1);
    let Ok(Response::Show(shown)) = place.ask(Request::Show("aaaa".into())).await else {
        panic!("it is gone")
    };
    let kept = Message::try_from(shown.message.clone()).expect("a message");
    assert_eq!(kept, message(b"{\"order_id\":1}"));
    assert_eq!(shown.entry.status, "parked");
}

#[tokio::test]
async fn a_selection_by_time_goes_by_the_clock_of_the_database() {
    let place = Place::new().await;
    place
        .fail(&[0xaa; 32], b"1", RowStatus::Parked, "rejected")
        .await;
    let hour = When::Ago(Duration::from_secs(3600));
    let with = |since, until| Filter {
        since,
        until,
        ..parked()
    };
    assert_eq!(place.ids(with(Some(hour), None)).await.len(), 1);
    assert_eq!(place.ids(with(None, Some(hour))).await.len(), 0);
    assert_eq!(
        place.ids(with(Some(When::At(i64::MAX)), None)).await.len(),
        0
    );
    let old = Selection::Matching {
        consumer: None,
        code: None,
        key_hex: None,
        since: None,
        until: Some(hour),
    };
    assert_eq!(place.change_all(Request::Discard, old).await, 0);
    let of_key = Selection::Matching {
        consumer: None,
        code: None,
        key_hex: Some(hex::encode("1")),
        since: Some(hour),
        until: None,
    };
    assert_eq!(place.change_all(Request::Discard, of_key).await, 1);
}
