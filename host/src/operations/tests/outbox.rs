//! Messages on their way out.

use super::*;
use crate::store::{HostId, OutboxRow};

async fn send(place: &Place, target: &str) -> i64 {
    let row = OutboxRow {
        consumer: place.consumer,
        lane: 0,
        target: target.to_owned(),
        may_drop: false,
        ordering_key: None,
        delay: None,
        message: message(b"{}"),
    };
    let mut session = place.session().await;
    let sequences = session.outbox_put(HostId(1), &[Arc::new(row)]).await;
    sequences.expect("a row")[0]
}

async fn defer(place: &Place, id: i64) {
    let mut session = place.session().await;
    let hour = Duration::from_secs(3600);
    session
        .outbox_defer(id, hour, "no exchange 'shop'")
        .await
        .expect("a later time");
}

async fn list(place: &Place, query: OutboxQuery) -> Vec<OutboxEntry> {
    match place.ask(Request::OutboxList(query)).await {
        Ok(Response::OutboxList(page)) => page.entries,
        other => panic!("{other:?}"),
    }
}

fn every() -> OutboxQuery {
    OutboxQuery {
        limit: 10,
        ..OutboxQuery::default()
    }
}

#[tokio::test]
async fn rows_are_told_with_what_keeps_them() {
    let place = Place::new().await;
    let failed = send(&place, "mail").await;
    defer(&place, failed).await;
    send(&place, "points").await;
    let entries = list(&place, every()).await;
    let told = entries
        .iter()
        .map(|entry| (entry.target.as_str(), entry.state.as_str(), entry.attempts))
        .collect::<Vec<_>>();
    assert_eq!(told, [("mail", "retry", 1), ("points", "sending", 0)]);
    assert_eq!(entries[0].error.as_deref(), Some("no exchange 'shop'"));
    assert_eq!(entries[0].consumer, "points");
    assert!(entries[0].age_seconds >= 0.0 && entries[0].due_at.is_some());
    let failed = OutboxQuery {
        failed: true,
        ..every()
    };
    assert_eq!(list(&place, failed).await.len(), 1);
    let text = place
        .refused(Request::OutboxList(OutboxQuery {
            consumer: Some("pionts".into()),
            ..every()
        }))
        .await;
    assert!(text.contains("no consumer `pionts`"), "{text}");
}

#[tokio::test]
async fn a_retry_makes_failed_rows_due_and_says_why_it_leaves_others() {
    let place = Place::new().await;
    let failed = send(&place, "mail").await;
    defer(&place, failed).await;
    let sending = send(&place, "mail").await;
    let one = |id| OutboxQuery {
        id: Some(id),
        ..every()
    };
    let shown = place.ask(Request::OutboxShow(failed)).await;
    assert!(
        matches!(&shown, Ok(Response::OutboxShow(shown)) if shown.entry.id == failed),
        "{shown:?}"
    );
    let text = place.refused(Request::OutboxRetry(one(sending))).await;
    assert!(text.contains("in the memory of a host"), "{text}");
    let text = place
        .refused(Request::OutboxRetry(one(failed + 1_000)))
        .await;
    assert!(text.contains("there is no message"), "{text}");
    let bulk = OutboxQuery {
        target: Some("mail".into()),
        failed: true,
        ..every()
    };
    assert_eq!(
        place.ask(Request::OutboxRetry(bulk)).await,
        Ok(Response::Count(1))
    );
    let mut session = place.session().await;
    let taken = session.outbox_take(HostId(1), 10).await.expect("rows");
    assert_eq!(
        taken.iter().map(|row| row.sequence).collect::<Vec<_>>(),
        [failed]
    );
}
