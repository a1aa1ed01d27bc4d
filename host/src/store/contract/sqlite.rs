//! What only SQLite has: one file, one process, queues of its own, transactions that end by themselves.

use super::{Fixture, OPTIONS, assert_plain, claim, execute_all, message, rule, unique};
use crate::store::sqlite::SqliteStore;
use crate::store::{Fate, SessionOptions, Store, StoreError, Value};

#[tokio::test]
async fn a_second_process_is_kept_out_by_the_real_path() {
    let fixture = Fixture::sqlite().await;
    let directory = fixture.directory.clone().unwrap();
    let link = directory.join("link.db");
    std::os::unix::fs::symlink(directory.join("hapax.db"), &link).unwrap();
    for path in [directory.join("hapax.db"), link] {
        let Err(StoreError::Unusable(why)) = SqliteStore::open(&path, OPTIONS).map(|_| ()) else {
            panic!("{} was opened twice", path.display());
        };
        let pid = std::process::id();
        assert!(
            why.starts_with(&format!("another hapax process (pid {pid}) uses ")),
            "{why}"
        );
        assert!(why.ends_with("hapax.db"), "{why}");
    }
    fixture.remove().await;
}

#[tokio::test]
async fn the_lock_is_free_when_the_store_and_its_sessions_are_dropped() {
    let mut fixture = Fixture::sqlite().await;
    let path = fixture.directory.as_ref().unwrap().join("hapax.db");
    let other = fixture.directory.as_ref().unwrap().join("other.db");
    let session = fixture.session().await;
    fixture.store = std::sync::Arc::new(SqliteStore::open(&other, OPTIONS).unwrap());
    assert!(
        SqliteStore::open(&path, OPTIONS).is_err(),
        "a session still uses it"
    );
    drop(session);
    SqliteStore::open(&path, OPTIONS).unwrap();
    fixture.remove().await;
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused() {
    let directory = std::env::temp_dir().join(unique());
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("hapax.db");
    std::fs::write(
        &path,
        "this is not a database, but it is long enough to be looked at ".repeat(100),
    )
    .unwrap();
    let store = SqliteStore::open(&path, OPTIONS).unwrap();
    let error = store.session("test").await.map(|_| ()).unwrap_err();
    assert!(matches!(error, StoreError::Unusable(_)), "{error:?}");
    std::fs::remove_dir_all(directory).unwrap();
}

#[tokio::test]
async fn what_was_committed_is_there_after_a_restart() {
    let mut fixture = Fixture::sqlite().await;
    let consumer = fixture.consumer().await;
    super::commit_keys(&mut *fixture.session().await, consumer, &[b"k"]).await;
    let directory = fixture.directory.clone().unwrap();
    fixture.store.close().await;
    fixture.store =
        std::sync::Arc::new(SqliteStore::open(&directory.join("other.db"), OPTIONS).unwrap());
    let store = SqliteStore::open(&directory.join("hapax.db"), OPTIONS).unwrap();
    assert_eq!(
        store.pending_migrations().await.unwrap(),
        Vec::<String>::new()
    );
    let mut session = store.session("test").await.unwrap();
    assert!(session.entries(consumer, &[b"k"]).await.unwrap()[0].is_some());
    assert_eq!(store.warnings().await.unwrap(), Vec::<String>::new());
    drop(store);
    fixture.remove().await;
}

/// The file that everybody has is not the one that is written: whoever commits must not acknowledge.
#[tokio::test]
async fn a_file_that_was_moved_replaced_or_deleted_ends_all_use_of_it() {
    type Trouble = fn(&std::path::Path);
    let moved: Trouble = |file| std::fs::rename(file, file.with_extension("moved")).unwrap();
    let deleted: Trouble = |file| std::fs::remove_file(file).unwrap();
    let replaced: Trouble = |file| {
        let copy = file.with_extension("copy");
        std::fs::copy(file, &copy).unwrap();
        std::fs::rename(copy, file).unwrap();
    };
    let log: Trouble = |file| std::fs::remove_file(file.with_extension("db-wal")).unwrap();
    let index: Trouble = |file| std::fs::remove_file(file.with_extension("db-shm")).unwrap();
    for trouble in [moved, deleted, replaced, log, index] {
        let fixture = Fixture::sqlite().await;
        let consumer = fixture.consumer().await;
        let (mut busy, mut idle) = (fixture.session().await, fixture.session().await);
        super::commit_keys(&mut *busy, consumer, &[b"before"]).await;
        busy.begin().await.unwrap();
        busy.claim(rule(consumer), &[claim(b"k")]).await.unwrap();
        busy.finish(consumer, &[b"k"]).await.unwrap();
        trouble(&fixture.directory.as_ref().unwrap().join("hapax.db"));
        let said = |error: StoreError| match error {
            StoreError::Unusable(why) => assert!(why.contains("put the database back"), "{why}"),
            error => panic!("{error:?}"),
        };
        said(busy.commit().await.unwrap_err());
        busy.rollback().await.unwrap();
        said(busy.begin().await.unwrap_err());
        said(idle.ping().await.unwrap_err());
        drop((busy, idle));
        fixture.remove().await;
    }
}

/// Programs of statements share a bounded heap with everything else.
#[tokio::test]
async fn statements_that_are_kept_prepared_leave_room_for_others() {
    let fixture = Fixture::sqlite().await;
    let mut session = fixture.session().await;
    for number in 0..400 {
        let list = vec!["7"; 25_000].join(",");
        let statement = format!("SELECT {number} WHERE 7 IN ({list})");
        let rows = session.query(&statement, &[], 10, 1_000).await.unwrap();
        assert_eq!(rows.rows.len(), 1);
    }
    fixture.remove().await;
}

/// A transaction with a claim in it, and the statement of a guest that ends it: the next statements
/// would commit by themselves, without the claim.
async fn ends_the_transaction(fixture: &Fixture, prepare: &[&str], statement: &str) {
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    session
        .execute("CREATE TABLE effects (n BIGINT)", &[])
        .await
        .unwrap();
    execute_all(&mut *session, prepare).await;
    session.begin().await.unwrap();
    session.claim(rule(consumer), &[claim(b"k")]).await.unwrap();
    session.savepoint("hapax_message").await.unwrap();
    session.execute(statement, &[]).await.unwrap_err();
    assert!(!session.alive().await, "{statement}");
    assert!(session.rollback_to("hapax_message").await.is_err());
    assert!(
        session
            .execute("INSERT INTO effects VALUES (1)", &[])
            .await
            .is_err()
    );
    assert!(session.finish(consumer, &[b"k"]).await.is_err());
    assert!(session.commit().await.is_err());
    session.rollback().await.unwrap();
    let count = session
        .query("SELECT count(*) FROM effects", &[], 1, 100)
        .await
        .unwrap();
    assert_eq!(count.rows, [[Value::S64(0)]]);
    assert_eq!(session.entries(consumer, &[b"k"]).await.unwrap(), [None]);
}

#[tokio::test]
async fn or_rollback_is_noticed() {
    let fixture = Fixture::sqlite().await;
    let prepare = [
        "CREATE TABLE t (n BIGINT PRIMARY KEY)",
        "INSERT INTO t VALUES (1)",
    ];
    ends_the_transaction(&fixture, &prepare, "INSERT OR ROLLBACK INTO t VALUES (1)").await;
    fixture.remove().await;
}

#[tokio::test]
async fn a_trigger_that_rolls_back_is_noticed() {
    let fixture = Fixture::sqlite().await;
    let prepare = [
        "CREATE TABLE t (n BIGINT)",
        "CREATE TRIGGER no BEFORE INSERT ON t BEGIN SELECT RAISE(ROLLBACK, 'no'); END",
    ];
    ends_the_transaction(&fixture, &prepare, "INSERT INTO t VALUES (1)").await;
    fixture.remove().await;
}

#[tokio::test]
async fn an_interrupted_write_is_noticed() {
    let mut fixture = Fixture::sqlite().await;
    let path = fixture.directory.as_ref().unwrap().join("quick.db");
    let options = SessionOptions {
        statement_timeout: std::time::Duration::from_millis(100),
        ..OPTIONS
    };
    let store = SqliteStore::open(&path, options).unwrap();
    store.migrate().await.unwrap();
    fixture.store = std::sync::Arc::new(store);
    let endless = "INSERT INTO t WITH RECURSIVE n (n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM n) SELECT n FROM n";
    ends_the_transaction(&fixture, &["CREATE TABLE t (n BIGINT)"], endless).await;
    fixture.remove().await;
}

/// One call of a function cannot be interrupted, so it gets no values that it could be at work on for long.
#[tokio::test]
async fn values_are_bounded_and_those_of_a_search_more() {
    let fixture = Fixture::sqlite().await;
    let path = fixture.directory.as_ref().unwrap().join("bounded.db");
    let store = SqliteStore::open_for(&path, OPTIONS, 1 << 20).unwrap();
    store.migrate().await.unwrap();
    let mut session = store.session("bounded").await.unwrap();
    let text = |bytes: usize| [Value::Text("a".repeat(bytes))];
    let (join, search, plain) = (
        "SELECT length($1 || $1)",
        "SELECT 1 WHERE $1 LIKE 'b%'",
        "SELECT length($1)",
    );
    for (statement, bytes, allowed) in [
        (join, 500_000, true),
        (join, 600_000, false),
        (search, 200_000, true),
        (search, 300_000, false),
        // A search leaves no bound behind, whether it was let run or not.
        (plain, 900_000, true),
        ("SELECT replace($1, 'a', 'bb')", 200_000, false),
        (plain, 900_000, true),
    ] {
        session.begin().await.unwrap();
        let answer = session.query(statement, &text(bytes), 10, 1 << 30).await;
        match answer {
            Ok(_) => assert!(allowed, "{statement} with {bytes} bytes"),
            Err(StoreError::Limit(_)) => assert!(!allowed, "{statement} with {bytes} bytes"),
            Err(error) => panic!("{statement}: {error:?}"),
        }
        session.rollback().await.unwrap();
    }
    drop(session);
    drop(store);
    fixture.remove().await;
}

/// What stands in front of SQLite's own functions leaves what they answer as it is.
#[tokio::test]
async fn json_is_as_sqlite_has_it_and_bytes_are_read_as_text() {
    let fixture = Fixture::sqlite().await;
    let mut session = fixture.session().await;
    session.begin().await.unwrap();
    let long_path = format!("$.{}", "a.".repeat(600) + "a");
    for (statement, parameter, expected) in [
        ("json($1)", Value::Text(" [1, 2 ]".into()), Ok("[1,2]")),
        ("json($1)", Value::Bytes(b" [1, 2 ]".to_vec()), Ok("[1,2]")),
        (
            "json($1)",
            Value::Bytes(vec![0x1b, 0x0b]),
            Err("malformed JSON"),
        ),
        (
            "json_array($1)",
            Value::Bytes(vec![0x0b]),
            Err("JSON cannot hold BLOB values"),
        ),
        (
            "json_group_array($1)",
            Value::Bytes(vec![0x0b]),
            Err("JSON cannot hold BLOB values"),
        ),
        (
            "json_set('{}', $1, 1)",
            Value::Text(long_path.clone()),
            Err("path has more than 1024"),
        ),
        (
            "'{}' -> $1",
            Value::Text(long_path),
            Err("path has more than 1024"),
        ),
        (
            "json_set('{}', '$.a', json_array($1), '$.b', '[1]')",
            Value::S64(1),
            Ok(r#"{"a":[1],"b":"[1]"}"#),
        ),
        (
            "json_array(json_extract($1, '$.a'), 'x')",
            Value::Text(r#"{"a":{"b":1}}"#.into()),
            Ok(r#"[{"b":1},"x"]"#),
        ),
        (
            "json_object('a', $1, 'b', json('[2]'))",
            Value::Text("x".into()),
            Ok(r#"{"a":"x","b":[2]}"#),
        ),
        (
            "$1 -> 'a' ->> '$.b'",
            Value::Text(r#"{"a":{"b":"c"}}"#.into()),
            Ok("c"),
        ),
        (
            "json_patch($1, '{\"a\":null}')",
            Value::Text(r#"{"a":1,"b":2}"#.into()),
            Ok(r#"{"b":2}"#),
        ),
        (
            "json_remove($1, '$[0]')",
            Value::Text("[1,2]".into()),
            Ok("[2]"),
        ),
        (
            "json_valid($1) || json_type($1) || json_array_length($1)",
            Value::Text("[1,2]".into()),
            Ok("1array2"),
        ),
        ("json_group_array($1)", Value::F64(1.5), Ok("[1.5]")),
        (
            "json_group_array(json($1))",
            Value::Text("[]".into()),
            Ok("[[]]"),
        ),
        (
            "json_group_object($1, 2)",
            Value::Text("a\"".into()),
            Ok(r#"{"a\"":2}"#),
        ),
        (
            "(SELECT group_concat(w) FROM (SELECT json_group_array(n) OVER (ORDER BY n ROWS 1 PRECEDING) AS w \
              FROM (SELECT $1 AS n UNION ALL SELECT 2 UNION ALL SELECT 3)))",
            Value::S64(1),
            Ok("[1],[1,2],[2,3]"),
        ),
    ] {
        let text = format!("SELECT {statement}");
        let answer = session.query(&text, &[parameter], 10, 1 << 20).await;
        match (answer, expected) {
            (Ok(rows), Ok(expected)) => {
                assert_eq!(rows.rows, [[Value::Text(expected.into())]], "{statement}");
            }
            (Err(StoreError::Statement { message, .. }), Err(expected)) => {
                assert!(message.contains(expected), "{statement}: {message}");
            }
            (answer, _) => panic!("{statement}: {answer:?}"),
        }
    }
    session.rollback().await.unwrap();
    drop(session);
    fixture.remove().await;
}

#[tokio::test]
async fn a_full_disk_is_noticed() {
    let fixture = Fixture::sqlite().await;
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    session
        .execute("CREATE TABLE t (b BLOB)", &[])
        .await
        .unwrap();
    session.begin().await.unwrap();
    session.claim(rule(consumer), &[claim(b"k")]).await.unwrap();
    // A limit on the pages of the file answers as a disk without space does.
    session
        .query("PRAGMA max_page_count = 1", &[], 1, 100)
        .await
        .unwrap();
    let insert = "INSERT INTO t VALUES (zeroblob(10000000))";
    let error = session.execute(insert, &[]).await.unwrap_err();
    assert!(matches!(error, StoreError::Unwritable(_)), "{error:?}");
    // Whether SQLite keeps the transaction is its own choice; what matters is that it is known.
    let kept = session.alive().await;
    let finished = session.finish(consumer, &[b"k"]).await;
    assert_eq!(finished.is_ok_and(|finished| finished.claims == 1), kept);
    session.rollback().await.unwrap();
    assert_eq!(session.entries(consumer, &[b"k"]).await.unwrap(), [None]);
    drop(session);
    fixture.remove().await;
}

#[tokio::test]
async fn claims_that_were_not_finished_are_not_committed() {
    let fixture = Fixture::sqlite().await;
    let consumer = fixture.consumer().await;
    let mut session = fixture.session().await;
    session.begin().await.unwrap();
    session
        .claim(rule(consumer), &[claim(b"a"), claim(b"b")])
        .await
        .unwrap();
    assert!(matches!(session.commit().await, Err(StoreError::Broken(_))));
    assert_eq!(session.finish(consumer, &[b"a"]).await.unwrap().claims, 1);
    assert!(matches!(session.commit().await, Err(StoreError::Broken(_))));
    assert_eq!(
        session
            .finish(consumer, &[b"a", b"b"])
            .await
            .unwrap()
            .claims,
        1
    );
    session.commit().await.unwrap();
    assert_eq!(
        session.ledger_counts(consumer).await.unwrap(),
        [(Fate::Committed, 2)]
    );
    drop(session);
    fixture.remove().await;
}

#[tokio::test]
async fn a_parameter_without_a_value_is_refused_and_not_null() {
    let fixture = Fixture::sqlite().await;
    let mut session = fixture.session().await;
    for statement in [
        "SELECT $2",
        "SELECT $1, $3",
        "SELECT ?1",
        "SELECT :name",
        "SELECT $name",
        "SELECT $0",
    ] {
        let error = session
            .query(statement, &[Value::S64(1)], 1, 100)
            .await
            .unwrap_err();
        assert!(
            matches!(error, StoreError::Statement { .. }),
            "{statement}: {error:?}"
        );
    }
    let strings = session
        .query("SELECT $1, '$2'", &[Value::S64(1)], 1, 100)
        .await
        .unwrap();
    assert_eq!(
        strings.rows,
        [[Value::S64(1), Value::Text("$2".to_owned())]]
    );
    assert!(
        session
            .query("SELECT $1", &[Value::F64(f64::NAN)], 1, 100)
            .await
            .is_err()
    );
    drop(session);
    fixture.remove().await;
}

#[tokio::test]
async fn a_declared_type_names_the_kind_of_a_value() {
    let fixture = Fixture::sqlite().await;
    let mut session = fixture.session().await;
    session.execute("CREATE TABLE t (d DECIMAL(10, 2), at DATETIME DEFAULT CURRENT_TIMESTAMP, j JSON, u UUID, b BOOL)", &[]).await.unwrap();
    session
        .execute(
            "INSERT INTO t (d, j, u, b) VALUES (7, 42, 'no uuid', 2)",
            &[],
        )
        .await
        .unwrap();
    let result = session
        .query(
            "SELECT d, at, j, u, b, count(*) OVER () FROM t AS x",
            &[],
            1,
            1_000,
        )
        .await
        .unwrap();
    let row = &result.rows[0];
    assert_eq!(row[0], Value::Decimal("7".to_owned()));
    assert!(matches!(row[1], Value::Timestamp(_)), "{:?}", row[1]);
    assert_eq!(row[2], Value::Json("42".to_owned()));
    assert_eq!(row[3], Value::Text("no uuid".to_owned()));
    assert_eq!(row[4], Value::S64(2));
    let kinds: Vec<&str> = result
        .columns
        .iter()
        .map(|column| column.kind.as_str())
        .collect();
    assert_eq!(
        kinds,
        ["decimal", "datetime", "json", "uuid", "bool", "integer"]
    );
    drop(session);
    fixture.remove().await;
}

#[tokio::test]
async fn a_queue_keeps_its_messages_in_order_until_they_are_acknowledged() {
    let fixture = Fixture::sqlite().await;
    let mut session = fixture.session().await;
    let queues = session.queues().unwrap();
    assert_eq!(queues.depth("orders").await.unwrap(), None);
    queues.declare("orders").await.unwrap();
    queues.declare("orders").await.unwrap();
    queues.declare("others").await.unwrap();
    let publish: Vec<_> = ["orders", "nowhere", "orders", "others"]
        .into_iter()
        .enumerate()
        .map(|(number, queue)| (queue.to_owned(), message(&number.to_string())))
        .collect();
    assert_eq!(
        queues.publish(&publish).await.unwrap(),
        [true, false, true, true]
    );
    assert_eq!(queues.depth("orders").await.unwrap(), Some(2));

    let first = queues.deliver("orders", 0, 1, u64::MAX).await.unwrap();
    assert_eq!(
        (first.len(), first[0].deliveries, &first[0].message),
        (1, 1, &publish[0].1)
    );
    let rest = queues
        .deliver("orders", first[0].sequence, 10, u64::MAX)
        .await
        .unwrap();
    assert_eq!(
        (rest.len(), rest[0].deliveries, &rest[0].message),
        (1, 1, &publish[2].1)
    );
    queues.ack("others", &[first[0].sequence]).await.unwrap();
    assert_eq!(
        queues.depth("orders").await.unwrap(),
        Some(2),
        "the tag of another queue acks nothing"
    );
    queues.ack("orders", &[first[0].sequence]).await.unwrap();
    let again = queues.deliver("orders", 0, 10, u64::MAX).await.unwrap();
    assert_eq!(
        (again.len(), again[0].deliveries, again[0].sequence),
        (1, 2, rest[0].sequence)
    );
    drop(session);
    fixture.remove().await;
}

#[tokio::test]
async fn a_queue_delivers_no_more_bodies_than_there_is_room_for_and_one_at_least() {
    let fixture = Fixture::sqlite().await;
    let mut session = fixture.session().await;
    let queues = session.queues().unwrap();
    queues.declare("orders").await.unwrap();
    let publish =
        [10, 30, 20, 0, 1].map(|length| ("orders".to_owned(), message(&"x".repeat(length))));
    queues.publish(&publish).await.unwrap();
    let mut lengths = Vec::new();
    let mut last = 0;
    for bytes in [1, 31, 20] {
        let delivered = queues.deliver("orders", last, 10, bytes).await.unwrap();
        last = delivered.last().unwrap().sequence;
        let found = delivered.iter().map(|queued| queued.message.body.len());
        lengths.push(found.collect::<Vec<_>>());
    }
    assert_eq!(lengths, [vec![10], vec![30, 20], vec![0, 1]]);
    drop(session);
    fixture.remove().await;
}

#[tokio::test]
async fn a_table_that_something_looks_at_is_not_plain() {
    let fixture = Fixture::sqlite().await;
    let mut session = fixture.session().await;
    session.begin().await.unwrap();
    let statements = [
        "CREATE TABLE parent (id INTEGER PRIMARY KEY)",
        "CREATE TABLE Plain (id INTEGER PRIMARY KEY, parent INTEGER REFERENCES parent, total INTEGER CHECK (total > 0))",
        "CREATE TABLE tree (id INTEGER PRIMARY KEY, above INTEGER REFERENCES Tree)",
        "CREATE TABLE own_mind (id INTEGER PRIMARY KEY, name TEXT UNIQUE ON CONFLICT REPLACE)",
        "CREATE TABLE watched (id INTEGER)",
        "CREATE TRIGGER look AFTER INSERT ON Watched BEGIN DELETE FROM parent; END",
        "CREATE VIEW seen AS SELECT id FROM parent",
    ];
    execute_all(&mut *session, &statements).await;
    let tables = [
        (None, "plain", true),
        (Some("main"), "parent", true),
        (Some("temp"), "parent", false),
        (None, "tree", false),
        (None, "own_mind", false),
        (None, "watched", false),
        (None, "seen", false),
        (None, "nowhere", false),
    ];
    assert_plain(&mut *session, &tables).await;
    session.rollback().await.unwrap();
    fixture.remove().await;
}
