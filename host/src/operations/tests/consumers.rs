//! Pause, resume and other rules.

use super::*;
use crate::store::Mark;

async fn states(place: &Place) -> Vec<ConsumerState> {
    match place.ask(Request::Consumers).await {
        Ok(Response::Consumers(states)) => states,
        other => panic!("{other:?}"),
    }
}

fn wish(consumers: &[&str], pause: bool) -> Request {
    Request::Pause(PauseWish {
        consumers: consumers.iter().map(|name| (*name).to_owned()).collect(),
        pause,
        who: "ann@shop".into(),
        why: if pause { "the shop moves" } else { "" }.into(),
    })
}

async fn done(place: &Place, request: Request) -> Vec<(String, bool, u64)> {
    match place.ask(request).await {
        Ok(Response::Pause(done)) => done
            .into_iter()
            .map(|done| (done.name, done.changed, done.hosts))
            .collect(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_pause_is_told_with_who_and_why_until_it_is_ended() {
    let place = Place::new().await;
    assert_eq!(states(&place).await[0].state, "stopped");
    let points = || "points".to_owned();
    assert_eq!(
        done(&place, wish(&["points"], true)).await,
        [(points(), true, 0)]
    );
    assert_eq!(done(&place, wish(&[], true)).await, [(points(), false, 0)]);
    let paused = states(&place).await.remove(0);
    assert_eq!(paused.state, "paused");
    assert_eq!(
        paused.reason.as_deref(),
        Some("by ann@shop: the shop moves")
    );
    assert!(paused.paused_at.is_some());
    let status = place.status().await;
    assert_eq!(status.consumers[0].state, "paused");
    assert_eq!(
        done(&place, wish(&["points"], false)).await,
        [(points(), true, 0)]
    );
    assert_eq!(
        done(&place, wish(&["points"], false)).await,
        [(points(), false, 0)]
    );
    assert_eq!(states(&place).await[0].state, "stopped");
    let text = place.refused(wish(&["pionts"], true)).await;
    assert!(
        text.contains("no consumer `pionts`") && text.contains("points"),
        "{text}"
    );
}

#[tokio::test]
async fn a_consumer_runs_where_hosts_hold_its_mark() {
    let place = Place::new().await;
    let mut host = place.session().await;
    let mark = Mark::Rules(place.consumer);
    host.upkeep().hold_mark(mark).await.expect("a mark");
    let state = states(&place).await.remove(0);
    assert_eq!((state.state.as_str(), state.hosts), ("running", 1));
    assert!(!state.rules_differ);
    drop(host);
    assert_eq!(states(&place).await[0].state, "stopped");
}

fn rekey(key_rule: &str, fingerprint_rule: &str) -> Rekey {
    Rekey {
        consumer: "points".into(),
        key_rule: key_rule.into(),
        fingerprint_rule: fingerprint_rule.into(),
        who: "ann@shop".into(),
        dry_run: false,
    }
}

async fn rekeyed(place: &Place, rekey: Rekey) -> Rekeyed {
    match place.ask(Request::Rekey(rekey)).await {
        Ok(Response::Rekey(rekeyed)) => rekeyed,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn rules_are_changed_only_while_no_host_runs_by_them() {
    let place = Place::new().await;
    place.settle(b"o-1", b"f", Fate::Committed).await;
    let mut host = place.session().await;
    let mark = Mark::Rules(place.consumer);
    host.upkeep().hold_mark(mark).await.expect("a mark");
    let text = place
        .refused(Request::Rekey(rekey("message-id", "body")))
        .await;
    assert!(text.contains("1 host runs with the old rules"), "{text}");
    drop(host);

    let dry = Rekey {
        dry_run: true,
        ..rekey("message-id", "body")
    };
    let before = rekeyed(&place, dry).await;
    assert_eq!((before.changed, before.keys), (false, 1));
    assert_eq!(before.old_key_rule, "body:/order_id");
    assert!(rekeyed(&place, rekey("message-id", "body")).await.changed);
    let state = states(&place).await.remove(0);
    assert_eq!(state.key_rule, "message-id");
    assert!(
        state.rules_differ,
        "the configuration still has the old one"
    );
    assert!(
        !rekeyed(&place, rekey("message-id", "body")).await.changed,
        "it is so already"
    );
    let mut session = place.session().await;
    let entries = session
        .entries(place.consumer, &[b"o-1"])
        .await
        .expect("entries");
    assert_eq!(entries[0].as_ref().expect("it stays").fingerprint, b"f");
}

#[tokio::test]
async fn another_fingerprint_rule_makes_old_fingerprints_unknown() {
    let place = Place::new().await;
    place.settle(b"o-1", b"f", Fate::Committed).await;
    place
        .fail(&[0xaa; 32], b"o-2", RowStatus::Parked, "rejected")
        .await;
    let done = rekeyed(&place, rekey("body:/order_id", "none")).await;
    assert_eq!((done.changed, done.keys, done.waiting), (true, 2, 1));
    let mut session = place.session().await;
    let keys: [&[u8]; 2] = [b"o-1", b"o-2"];
    for entry in session
        .entries(place.consumer, &keys)
        .await
        .expect("entries")
    {
        assert!(entry.expect("it stays").fingerprint.is_empty());
    }
}

#[tokio::test]
async fn a_consumer_that_the_store_does_not_know_has_no_rules_to_change() {
    let place = Place::new().await;
    let other = Rekey {
        consumer: "mail".into(),
        ..rekey("message-id", "body")
    };
    let text = place.refused(Request::Rekey(other)).await;
    assert!(text.contains("knows no consumer `mail`"), "{text}");
}
