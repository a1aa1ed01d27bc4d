//! The outgoing messages: listed, and sent now.

use std::sync::Arc;

use crate::store::contract::{Fixture, HOUR, in_every_dialect, message};
use crate::store::{ConsumerId, HostId, OutboxFilter, OutboxRow, Session};

in_every_dialect! {
    the_outbox_is_listed_in_order_and_by_what_is_known
    a_row_that_waits_is_sent_now_and_one_in_memory_is_left_alone
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
