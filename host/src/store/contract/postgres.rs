//! What only Postgres has: several hosts, roles, servers that go away, and types (`guest`).

mod guest;

use std::str::FromStr;

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Executor};

use super::{Fixture, eventually, message, on_a_server};
use crate::store::postgres::PostgresStore;
use crate::store::{HostId, OutboxRow, Session, Store, StoreError, Value};

on_a_server! {
    a_dead_transaction_refuses_the_commit_that_is_sent
    a_session_that_was_ended_by_the_server_is_unavailable
    a_commit_without_an_answer_is_in_doubt
    a_deferred_constraint_is_checked_with_its_statement
    a_constraint_that_refuses_the_commit_leaves_nothing_in_doubt
    a_deadlock_is_a_conflict
    an_older_row_that_another_host_is_taking_holds_back_the_younger
    tables_that_are_not_there_are_told_apart_from_a_failing_statement
    a_server_that_is_not_there_is_unavailable
    the_role_cannot_weaken_a_session
    two_schemas_do_not_share_their_hosts
    what_a_given_up_session_holds_is_free_for_the_next_of_its_name
}

async fn rows(session: &mut dyn Session, statement: &str, parameters: &[Value]) -> Vec<Vec<Value>> {
    session
        .query(statement, parameters, 1_000, 1 << 20)
        .await
        .unwrap()
        .rows
}

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

/// Even where a session does not know that its transaction is dead.
async fn a_dead_transaction_refuses_the_commit_that_is_sent(fixture: &Fixture) {
    let options = PgConnectOptions::from_str(fixture.postgres_url.as_ref().unwrap()).unwrap();
    let mut connection = options.connect().await.unwrap();
    connection.execute("BEGIN").await.unwrap();
    connection.execute("SELECT 1 / 0").await.unwrap_err();
    connection
        .execute("SET LOCAL statement_timeout = 0; COMMIT")
        .await
        .unwrap_err();
    connection
        .execute("COMMIT")
        .await
        .expect("Postgres answers a plain COMMIT as if all was well");
}

async fn backend(session: &mut dyn Session) -> Value {
    rows(session, "SELECT pg_backend_pid()", &[])
        .await
        .remove(0)
        .remove(0)
}

async fn a_session_that_was_ended_by_the_server_is_unavailable(fixture: &Fixture) {
    let mut session = fixture.session().await;
    let pid = backend(&mut *session).await;
    session.begin().await.unwrap();
    rows(
        &mut *fixture.session().await,
        "SELECT pg_terminate_backend($1)",
        &[pid],
    )
    .await;
    let error = session.query("SELECT 1", &[], 1, 100).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    assert!(!session.alive().await);
    assert!(matches!(
        session.commit().await,
        Err(StoreError::TransactionLost(_))
    ));
    session.rollback().await.unwrap();
    for _ in 0..2 {
        assert!(matches!(
            session.begin().await,
            Err(StoreError::Unavailable(_))
        ));
        assert!(matches!(
            session.ping().await,
            Err(StoreError::Unavailable(_))
        ));
    }
}

async fn a_commit_without_an_answer_is_in_doubt(fixture: &Fixture) {
    let mut session = fixture.session().await;
    let pid = backend(&mut *session).await;
    session
        .execute("CREATE TABLE t (n int)", &[])
        .await
        .unwrap();
    session.begin().await.unwrap();
    session
        .execute("INSERT INTO t VALUES (1)", &[])
        .await
        .unwrap();
    let mut killer = fixture.session().await;
    rows(
        &mut *killer,
        "SELECT pg_terminate_backend($1)",
        std::slice::from_ref(&pid),
    )
    .await;
    eventually("the backend is gone", async || {
        let alive = "SELECT 1 FROM pg_stat_activity WHERE pid = $1";
        rows(&mut *killer, alive, std::slice::from_ref(&pid))
            .await
            .is_empty()
            .then_some(())
    })
    .await;
    let error = session.commit().await.unwrap_err();
    assert!(matches!(error, StoreError::InDoubt(_)), "{error:?}");
    assert!(!session.alive().await);
    assert!(matches!(
        session.begin().await,
        Err(StoreError::Unavailable(_))
    ));
}

async fn a_deferred_constraint_is_checked_with_its_statement(fixture: &Fixture) {
    let mut session = fixture.session().await;
    deferred_reference(&mut *session).await;
    session.begin().await.unwrap();
    let error = session
        .execute("INSERT INTO c VALUES (1)", &[])
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Constraint(_)), "{error:?}");
    session.rollback().await.unwrap();
}

async fn a_constraint_that_refuses_the_commit_leaves_nothing_in_doubt(fixture: &Fixture) {
    let mut session = fixture.session().await;
    deferred_reference(&mut *session).await;
    session.begin().await.unwrap();
    session
        .execute("SET CONSTRAINTS ALL DEFERRED", &[])
        .await
        .unwrap();
    session
        .execute("INSERT INTO c VALUES (1)", &[])
        .await
        .unwrap();
    let error = session.commit().await.unwrap_err();
    assert!(matches!(error, StoreError::Constraint(_)), "{error:?}");
    session.rollback().await.unwrap();
    session.begin().await.unwrap();
    assert!(rows(&mut *session, "SELECT * FROM c", &[]).await.is_empty());
    session.commit().await.unwrap();
}

async fn deferred_reference(session: &mut dyn Session) {
    let parent = "CREATE TABLE p (id int PRIMARY KEY)";
    session.execute(parent, &[]).await.unwrap();
    let child = "CREATE TABLE c (p int REFERENCES p DEFERRABLE INITIALLY DEFERRED)";
    session.execute(child, &[]).await.unwrap();
}

async fn a_deadlock_is_a_conflict(fixture: &Fixture) {
    let mut first = fixture.session().await;
    first
        .execute("CREATE TABLE t (id int PRIMARY KEY, n int)", &[])
        .await
        .unwrap();
    first
        .execute("INSERT INTO t VALUES (1, 0), (2, 0)", &[])
        .await
        .unwrap();
    let mut second = fixture.session().await;
    let update = "UPDATE t SET n = n + 1 WHERE id = $1";
    for session in [&mut first, &mut second] {
        session.begin().await.unwrap();
        // Both wait: one of them must be the victim before its lock timeout.
        session
            .execute("SET LOCAL lock_timeout = '10s'", &[])
            .await
            .unwrap();
        session
            .execute("SET LOCAL deadlock_timeout = '50ms'", &[])
            .await
            .unwrap();
    }
    first.execute(update, &[Value::S64(1)]).await.unwrap();
    second.execute(update, &[Value::S64(2)]).await.unwrap();
    let (two, one) = ([Value::S64(2)], [Value::S64(1)]);
    let (first, second) = tokio::join!(
        async {
            let result = first.execute(update, &two).await;
            first.rollback().await.unwrap();
            result
        },
        async {
            let result = second.execute(update, &one).await;
            second.rollback().await.unwrap();
            result
        }
    );
    let errors: Vec<StoreError> = [first, second]
        .into_iter()
        .filter_map(Result::err)
        .collect();
    assert!(
        matches!(errors.as_slice(), [StoreError::Conflict(_)]),
        "{errors:?}"
    );
}

async fn an_older_row_that_another_host_is_taking_holds_back_the_younger(fixture: &Fixture) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    let row = std::sync::Arc::new(OutboxRow {
        consumer,
        lane: 0,
        target: "t".to_owned(),
        may_drop: false,
        ordering_key: Some("a".to_owned()),
        delay: None,
        message: message("{}"),
    });
    let sequences = session
        .outbox_put(HostId(2), &[row.clone(), row])
        .await
        .unwrap();
    let mut other = fixture.session().await;
    other.begin().await.unwrap();
    let lock = "SELECT sequence FROM hapax_outbox WHERE sequence = $1 FOR UPDATE";
    rows(&mut *other, lock, &[Value::S64(sequences[0])]).await;
    assert!(session.outbox_take(HostId(1), 10).await.unwrap().is_empty());
    other.rollback().await.unwrap();
    assert_eq!(session.outbox_take(HostId(1), 10).await.unwrap().len(), 2);
}

async fn tables_that_are_not_there_are_told_apart_from_a_failing_statement(fixture: &Fixture) {
    let url = fixture.postgres_url.as_ref().unwrap();
    let store = PostgresStore::new(url, "hapax_no_such_schema", super::OPTIONS).unwrap();
    let mut session = store.session("test").await.unwrap();
    let error = session.secret().await.unwrap_err();
    assert!(
        matches!(&error, StoreError::Unusable(why) if why.contains("hapax migrate")),
        "{error:?}"
    );
    assert_eq!(
        store
            .pending_migrations()
            .await
            .unwrap()
            .first()
            .map(String::as_str),
        Some("0001_spine")
    );
}

async fn a_server_that_is_not_there_is_unavailable(_fixture: &Fixture) {
    let store =
        PostgresStore::new("postgres://nobody@127.0.0.1:1/none", "s", super::OPTIONS).unwrap();
    assert!(matches!(
        store.session("test").await.map(|_| ()),
        Err(StoreError::Unavailable(_))
    ));
    assert!(matches!(
        PostgresStore::new("not a URL", "s", super::OPTIONS).map(|_| ()),
        Err(StoreError::Unusable(_))
    ));
}

async fn the_role_cannot_weaken_a_session(fixture: &Fixture) {
    let url = fixture.postgres_url.as_ref().unwrap();
    let separator = if url.contains('?') { '&' } else { '?' };
    let weak = "options=-c%20synchronous_commit%3Doff%20-c%20default_transaction_isolation%3Dserializable%20-c%20standard_conforming_strings%3Doff";
    let store = PostgresStore::new(
        &format!("{url}{separator}{weak}"),
        &fixture.name,
        super::OPTIONS,
    )
    .unwrap();
    let mut session = store.session("weak").await.unwrap();
    session.begin().await.unwrap();
    for (setting, value) in [
        ("synchronous_commit", "on"),
        ("transaction_isolation", "read committed"),
        ("standard_conforming_strings", "on"),
        ("application_name", "weak"),
        ("lock_timeout", "8s"),
        ("statement_timeout", "10s"),
        ("search_path", &*format!("{}, public", fixture.name)),
    ] {
        let read = rows(
            &mut *session,
            "SELECT current_setting($1)",
            &[text(setting)],
        )
        .await;
        assert_eq!(read, [[text(value)]], "{setting}");
    }
    session.commit().await.unwrap();
    let warnings = store.warnings().await.unwrap();
    assert!(
        !warnings
            .iter()
            .any(|warning| warning.contains("synchronous_commit")),
        "{warnings:?}"
    );
}

async fn two_schemas_do_not_share_their_hosts(fixture: &Fixture) {
    let elsewhere = Fixture::postgres("").await.unwrap();
    let mut there = elsewhere.session().await;
    there.announce(HostId(5)).await.unwrap();
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    let row = OutboxRow {
        consumer,
        lane: 0,
        target: "t".to_owned(),
        may_drop: false,
        ordering_key: None,
        delay: None,
        message: message("{}"),
    };
    session
        .outbox_put(HostId(5), &[std::sync::Arc::new(row)])
        .await
        .unwrap();
    assert_eq!(session.outbox_take(HostId(1), 10).await.unwrap().len(), 1);
    elsewhere.remove().await;
}

/// The server would find out by itself, when it next looks whether the client is there, or when the statement ends.
async fn what_a_given_up_session_holds_is_free_for_the_next_of_its_name(fixture: &Fixture) {
    let mut session = fixture.session().await;
    session
        .execute("CREATE TABLE t_held (id INTEGER)", &[])
        .await
        .unwrap();
    session.begin().await.unwrap();
    session
        .execute("LOCK TABLE t_held IN ACCESS EXCLUSIVE MODE", &[])
        .await
        .unwrap();
    let endless = "SELECT count(*) FROM generate_series(1, 100000) a, generate_series(1, 100000) b";
    let given_up = tokio::time::timeout(
        std::time::Duration::from_millis(50),
        session.query(endless, &[], 1, 100),
    );
    assert!(given_up.await.is_err(), "the statement has ended");
    drop(session);

    let mut next = fixture.session().await;
    next.begin().await.unwrap();
    next.execute("LOCK TABLE t_held IN ACCESS EXCLUSIVE MODE NOWAIT", &[])
        .await
        .expect("nobody holds it any more");
    next.rollback().await.unwrap();
}
