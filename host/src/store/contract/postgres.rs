//! What only Postgres has: several hosts, roles, servers that go away, and types (`guest`).

mod guest;

use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Executor};

use super::{Fixture, eventually, message, on_a_server};
use crate::failure::code;
use crate::store::postgres::PostgresStore;
use crate::store::{Fate, HostId, OutboxRow, Session, Status, Store, StoreError, Value};

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
    a_database_of_another_encoding_is_refused_with_the_way_out
    statements_that_are_kept_prepared_are_bounded_in_bytes
    a_message_that_was_parked_beside_its_key_gets_its_fate_when_the_key_is_free
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

async fn a_database_of_another_encoding_is_refused_with_the_way_out(fixture: &Fixture) {
    let url = fixture.postgres_url.as_ref().unwrap();
    let options = PgConnectOptions::from_str(url).unwrap();
    let mut connection = options.connect().await.unwrap();
    let name = format!("{}_latin1", fixture.name);
    let create = format!(
        "CREATE DATABASE {name} TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'"
    );
    connection.execute(AssertSqlSafe(create)).await.unwrap();
    let (server, _) = url.rsplit_once('/').unwrap();
    let store = PostgresStore::new(&format!("{server}/{name}"), "public", super::OPTIONS).unwrap();
    let answers = [
        store.session("test").await.map(|_| ()).unwrap_err(),
        store.pending_migrations().await.unwrap_err(),
        store.warnings().await.unwrap_err(),
    ];
    for error in answers {
        let StoreError::Unusable(why) = error else {
            panic!("{error:?}");
        };
        assert!(
            why.contains("has the encoding LATIN1") && why.contains("ENCODING 'UTF8'"),
            "{why}"
        );
    }
    let drop = format!("DROP DATABASE {name} WITH (FORCE)");
    connection.execute(AssertSqlSafe(drop)).await.unwrap();
}

/// Each of them takes a hundred times its length in the server's process, which keeps it for as long as the session.
async fn statements_that_are_kept_prepared_are_bounded_in_bytes(fixture: &Fixture) {
    let mut session = fixture.session().await;
    let statement = |number: usize| {
        let list = vec!["7"; 8_000].join(",");
        format!("SELECT {number} WHERE 7 IN ({list})")
    };
    for number in 0..100 {
        let answer = rows(&mut *session, &statement(number), &[]).await;
        assert_eq!(answer.len(), 1);
    }
    let kept = "SELECT coalesce(sum(length(statement)), 0)::bigint FROM pg_prepared_statements";
    let kept = rows(&mut *session, kept, &[]).await;
    let [Value::S64(bytes)] = kept[0][..] else {
        panic!("{kept:?}");
    };
    // The host's own are few and short.
    assert!(
        bytes < (1 << 20) - (1 << 18),
        "{bytes} bytes of statements are kept"
    );
    // In the middle of a transaction nothing but the time is lost by it.
    session.begin().await.unwrap();
    for number in 0..100 {
        session.execute(&statement(number), &[]).await.unwrap();
    }
    assert!(session.alive().await);
    session.commit().await.unwrap();
}

/// As long as a session that does not end has the key, it cannot be given a fate; afterwards no copy runs.
async fn a_message_that_was_parked_beside_its_key_gets_its_fate_when_the_key_is_free(
    fixture: &Fixture,
) {
    let consumer = fixture.consumer().await;
    let mut stuck = fixture.session().await;
    stuck.begin().await.unwrap();
    let claimed = stuck
        .claim(super::rule(consumer), &[super::claim(b"k")])
        .await;
    assert_eq!(claimed.unwrap(), [true]);

    let mut session = fixture.session().await;
    let mut row = super::waiting(b"k", Status::Parked);
    row.code = code::SQL_UNSTOPPABLE.to_string();
    let other = super::waiting(b"other", Status::Parked);
    let rows = [(row, Duration::ZERO), (other, Duration::ZERO)];
    session.waiting_put(consumer, &rows).await.unwrap();
    let ids = [b"k".to_vec(), b"other".to_vec()];
    let apart = session.parked_apart(consumer, &ids).await.unwrap();
    assert_eq!(apart, [b"k"]);
    let retention = Some(Duration::from_secs(3600));
    let settled = session.upkeep().settle_parked_apart(consumer, retention);
    assert!(!settled.await.unwrap(), "the key is locked");

    stuck.rollback().await.unwrap();
    for _ in 0..2 {
        let settled = session.upkeep().settle_parked_apart(consumer, retention);
        assert!(settled.await.unwrap());
    }
    let entries = session.entries(consumer, &[b"k", b"other"]).await.unwrap();
    assert_eq!(entries[0].as_ref().unwrap().fate, Fate::Parked);
    assert!(entries[1].is_none(), "that is another failure");
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
