//! Transactions, savepoints, and the ways in which they end.

use std::sync::Arc;

use super::{Fixture, claim, commit_keys, in_every_dialect, rule};
use crate::store::{Fate, Settlement, StoreError, Value};

in_every_dialect! {
    what_is_rolled_back_leaves_no_trace
    a_savepoint_takes_back_what_came_after_it_and_nothing_else
    a_released_savepoint_keeps_what_came_after_it
    an_error_is_undone_with_its_savepoint
    an_error_without_a_savepoint_is_known_at_once
    nothing_runs_in_a_dead_transaction_and_it_never_commits
    a_session_is_of_use_again_after_its_dead_transaction
    a_session_dropped_inside_a_transaction_leaves_nothing_and_blocks_nobody
    a_statement_given_up_half_way_leaves_nothing
    rollback_without_a_transaction_is_harmless
    commit_without_a_transaction_is_refused
    migrations_are_applied_once_however_many_hosts_start
    a_schema_two_versions_ahead_is_refused
    a_consumer_keeps_the_rules_it_was_made_with
    the_secret_is_made_once
}

async fn table(fixture: &Fixture) {
    fixture
        .session()
        .await
        .execute("CREATE TABLE t (n BIGINT PRIMARY KEY)", &[])
        .await
        .unwrap();
}

async fn rows(fixture: &Fixture) -> Vec<i64> {
    let mut session = fixture.session().await;
    let rows = session
        .query("SELECT n FROM t ORDER BY n", &[], 100, 10_000)
        .await
        .unwrap()
        .rows;
    let number = |row: &Vec<Value>| match row[0] {
        Value::S64(number) => number,
        ref value => panic!("{value:?} is not a number"),
    };
    rows.iter().map(number).collect()
}

const INSERT: &str = "INSERT INTO t (n) VALUES ($1)";

async fn what_is_rolled_back_leaves_no_trace(fixture: &Fixture) {
    table(fixture).await;
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    session.begin().await.unwrap();
    assert!(session.alive().await);
    session.claim(rule(consumer), &[claim(b"k")]).await.unwrap();
    session.execute(INSERT, &[Value::S64(1)]).await.unwrap();
    session.rollback().await.unwrap();
    assert!(!session.alive().await);
    assert!(rows(fixture).await.is_empty());
    assert_eq!(session.entries(consumer, &[b"k"]).await.unwrap(), [None]);
    commit_keys(&mut *session, consumer, &[b"k"]).await;
}

async fn a_savepoint_takes_back_what_came_after_it_and_nothing_else(fixture: &Fixture) {
    table(fixture).await;
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    session.begin().await.unwrap();
    session
        .claim(rule(consumer), &[claim(b"a"), claim(b"b"), claim(b"c")])
        .await
        .unwrap();
    session.execute(INSERT, &[Value::S64(1)]).await.unwrap();
    session.savepoint("hapax_message").await.unwrap();
    session.execute(INSERT, &[Value::S64(2)]).await.unwrap();
    session.rollback_to("hapax_message").await.unwrap();
    session.savepoint("hapax_message").await.unwrap();
    session.execute(INSERT, &[Value::S64(3)]).await.unwrap();
    session.savepoint("hapax_statement").await.unwrap();
    session.execute(INSERT, &[Value::S64(4)]).await.unwrap();
    session.rollback_to("hapax_message").await.unwrap();
    session.execute(INSERT, &[Value::S64(5)]).await.unwrap();
    let parked = Settlement {
        key: b"b",
        fate: Fate::Parked,
        attempts: 3,
    };
    assert_eq!(session.settle(consumer, &[parked]).await.unwrap(), 1);
    assert_eq!(
        session
            .finish(consumer, &[b"a", b"b", b"c"])
            .await
            .unwrap()
            .claims,
        3
    );
    session.commit().await.unwrap();
    assert_eq!(rows(fixture).await, [1, 5]);
    let fates: Vec<Fate> = session
        .entries(consumer, &[b"a", b"b", b"c"])
        .await
        .unwrap()
        .into_iter()
        .map(|entry| entry.unwrap().fate)
        .collect();
    assert_eq!(fates, [Fate::Committed, Fate::Parked, Fate::Committed]);
}

async fn a_released_savepoint_keeps_what_came_after_it(fixture: &Fixture) {
    table(fixture).await;
    let mut session = fixture.session().await;
    session.begin().await.unwrap();
    session.savepoint("hapax_message").await.unwrap();
    session.execute(INSERT, &[Value::S64(1)]).await.unwrap();
    session.release("hapax_message").await.unwrap();
    assert!(session.rollback_to("hapax_message").await.is_err());
    session.rollback().await.unwrap();
    session.begin().await.unwrap();
    session.savepoint("hapax_message").await.unwrap();
    session.execute(INSERT, &[Value::S64(2)]).await.unwrap();
    session.release("hapax_message").await.unwrap();
    session.commit().await.unwrap();
    assert_eq!(rows(fixture).await, [2]);
}

async fn an_error_is_undone_with_its_savepoint(fixture: &Fixture) {
    table(fixture).await;
    let mut session = fixture.session().await;
    session.begin().await.unwrap();
    session.execute(INSERT, &[Value::S64(1)]).await.unwrap();
    for wrong in [
        "SELECT * FROM nowhere",
        "SELEC",
        "INSERT INTO t (n) VALUES (1)",
    ] {
        session.savepoint("hapax_statement").await.unwrap();
        session.execute(wrong, &[]).await.unwrap_err();
        session.rollback_to("hapax_statement").await.unwrap();
        assert!(session.alive().await);
    }
    session.execute(INSERT, &[Value::S64(2)]).await.unwrap();
    session.commit().await.unwrap();
    assert_eq!(rows(fixture).await, [1, 2]);
}

async fn an_error_without_a_savepoint_is_known_at_once(fixture: &Fixture) {
    table(fixture).await;
    let mut session = fixture.session().await;
    session.begin().await.unwrap();
    session
        .execute("SELECT * FROM nowhere", &[])
        .await
        .unwrap_err();
    assert_eq!(
        session.alive().await,
        !fixture.store.traits().error_kills_transaction
    );
    session.rollback().await.unwrap();
}

async fn nothing_runs_in_a_dead_transaction_and_it_never_commits(fixture: &Fixture) {
    table(fixture).await;
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    session.begin().await.unwrap();
    session.claim(rule(consumer), &[claim(b"k")]).await.unwrap();
    fixture.kill(&mut *session).await;

    let lost =
        |error: StoreError| assert!(matches!(error, StoreError::TransactionLost(_)), "{error:?}");
    lost(session.execute(INSERT, &[Value::S64(1)]).await.unwrap_err());
    lost(
        session
            .claim(rule(consumer), &[claim(b"l")])
            .await
            .unwrap_err(),
    );
    lost(session.savepoint("hapax_message").await.unwrap_err());
    lost(session.finish(consumer, &[b"k"]).await.unwrap_err());
    lost(session.commit().await.unwrap_err());
    lost(session.commit().await.unwrap_err());
    session.rollback().await.unwrap();
    assert!(rows(fixture).await.is_empty());
    assert_eq!(
        session.entries(consumer, &[b"k", b"l"]).await.unwrap(),
        [None, None]
    );
}

async fn a_session_is_of_use_again_after_its_dead_transaction(fixture: &Fixture) {
    table(fixture).await;
    let mut session = fixture.session().await;
    session.begin().await.unwrap();
    fixture.kill(&mut *session).await;
    session.rollback().await.unwrap();
    session.ping().await.unwrap();
    session.begin().await.unwrap();
    session.execute(INSERT, &[Value::S64(1)]).await.unwrap();
    session.commit().await.unwrap();
    assert_eq!(rows(fixture).await, [1]);
}

async fn a_session_dropped_inside_a_transaction_leaves_nothing_and_blocks_nobody(
    fixture: &Fixture,
) {
    table(fixture).await;
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    session.begin().await.unwrap();
    session.claim(rule(consumer), &[claim(b"k")]).await.unwrap();
    session.execute(INSERT, &[Value::S64(1)]).await.unwrap();
    drop(session);
    let mut session = fixture.session().await;
    // The server may still be busy to roll back; the claim waits for that.
    commit_keys(&mut *session, consumer, &[b"k"]).await;
    assert!(rows(fixture).await.is_empty());
}

async fn a_statement_given_up_half_way_leaves_nothing(fixture: &Fixture) {
    table(fixture).await;
    let mut session = fixture.session().await;
    session.begin().await.unwrap();
    session.execute(INSERT, &[Value::S64(1)]).await.unwrap();
    {
        // One that cannot be done before the look.
        let slow = fixture.sql("INSERT INTO t (n) SELECT $1 FROM pg_sleep(5)", INSERT);
        let mut insert = session.execute(slow, &[Value::S64(2)]);
        // One look sends the statement; the answer is not waited for.
        let pending = futures_util::future::poll_fn(|context| {
            std::task::Poll::Ready(insert.as_mut().poll(context).is_pending())
        })
        .await;
        // The thread of SQLite may have been faster than the look.
        assert!(pending || !fixture.is_postgres());
    }
    drop(session);
    fixture.session().await.ping().await.unwrap();
    assert!(rows(fixture).await.is_empty());
}

async fn rollback_without_a_transaction_is_harmless(fixture: &Fixture) {
    let mut session = fixture.session().await;
    session.rollback().await.unwrap();
    session.ping().await.unwrap();
}

async fn commit_without_a_transaction_is_refused(fixture: &Fixture) {
    let mut session = fixture.session().await;
    assert!(matches!(
        session.commit().await,
        Err(StoreError::TransactionLost(_))
    ));
}

async fn migrations_are_applied_once_however_many_hosts_start(fixture: &Fixture) {
    let mut session = fixture.session().await;
    for table in [
        "ledger", "waiting", "outbox", "state", "consumer", "meta", "journal",
    ] {
        session
            .execute(&format!("DROP TABLE hapax_{table}"), &[])
            .await
            .unwrap();
    }
    if !fixture.is_postgres() {
        session
            .execute("DROP TABLE hapax_queue", &[])
            .await
            .unwrap();
        session
            .execute("DROP TABLE hapax_message", &[])
            .await
            .unwrap();
    }
    let pending = fixture.store.pending_migrations().await.unwrap();
    assert_eq!(pending.first().map(String::as_str), Some("0001_spine"));
    let hosts: Vec<_> = (0..4)
        .map(|_| {
            let store = Arc::clone(&fixture.store);
            tokio::spawn(async move { store.migrate().await.unwrap() })
        })
        .collect();
    let mut applied = Vec::new();
    for host in hosts {
        applied.extend(host.await.unwrap());
    }
    assert_eq!(applied, pending);
    assert_eq!(
        fixture.store.pending_migrations().await.unwrap(),
        Vec::<String>::new()
    );
}

async fn a_schema_two_versions_ahead_is_refused(fixture: &Fixture) {
    let mut session = fixture.session().await;
    let set =
        |number: i64| format!("UPDATE hapax_meta SET value = '{number}' WHERE name = 'schema'");
    let known = crate::store::migrate::known();
    session.execute(&set(known + 1), &[]).await.unwrap();
    assert_eq!(
        fixture.store.pending_migrations().await.unwrap(),
        Vec::<String>::new()
    );
    assert_eq!(fixture.store.migrate().await.unwrap(), Vec::<String>::new());
    session.execute(&set(known + 2), &[]).await.unwrap();
    assert!(matches!(
        fixture.store.pending_migrations().await,
        Err(StoreError::Unusable(_))
    ));
    assert!(matches!(
        fixture.store.migrate().await,
        Err(StoreError::Unusable(_))
    ));
}

async fn a_consumer_keeps_the_rules_it_was_made_with(fixture: &Fixture) {
    let mut session = fixture.session().await;
    let first = session
        .consumer("orders", "message-id", "body")
        .await
        .unwrap();
    assert_eq!((first.generation, first.horizon), (0, None));
    let again = session
        .consumer("orders", "header:id", "none")
        .await
        .unwrap();
    assert_eq!(again.id, first.id);
    assert_eq!(
        (again.key_rule.as_str(), again.fingerprint_rule.as_str()),
        ("message-id", "body")
    );
    assert_ne!(
        session
            .consumer("invoices", "message-id", "body")
            .await
            .unwrap()
            .id,
        first.id
    );
}

async fn the_secret_is_made_once(fixture: &Fixture) {
    let secret = fixture.session().await.secret().await.unwrap();
    assert_eq!(secret.len(), 32);
    assert_eq!(fixture.session().await.secret().await.unwrap(), secret);
    fixture
        .session()
        .await
        .execute("DELETE FROM hapax_meta WHERE name = 'secret'", &[])
        .await
        .unwrap();
    assert_ne!(fixture.session().await.secret().await.unwrap(), secret);
}
