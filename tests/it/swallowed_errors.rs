//! A handler ignores an error of the database and goes on. Nothing half done may stay.

use anyhow::ensure;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

use crate::Checked;
use crate::support::host::Host;
use crate::support::place::Place;
use crate::support::scene::{self, INSERT, Scene, insert, message, publish};
use crate::support::store::Fates;
use crate::support::wait;

const COMMITTED: Fates = Fates {
    committed: 1,
    waiting: 0,
    parked: 0,
    discarded: 0,
    started: 0,
};

fn ignoring(statement: &str, parameters: Value) -> Value {
    json!({"execute_ignore": [statement, parameters]})
}

/// Constraints are told to the handler. What failed has no effect, what follows has.
pub async fn a_constraint_leaves_the_transaction_usable(place: &Place, scene: Scene) -> Checked {
    scene
        .store
        .execute("INSERT INTO t_effects VALUES ('taken', 0)")
        .await?;
    let children = "INSERT INTO t_children (id, parent) VALUES ($1, $2)";
    let violations = [
        ("unique", ignoring(INSERT, json!(["taken", 0]))),
        ("check", ignoring(INSERT, json!(["negative", -1]))),
        ("not-null", ignoring(INSERT, json!(["null", null]))),
        (
            "foreign-key",
            ignoring(children, json!(["child", "nobody"])),
        ),
    ];
    let mut messages = Vec::new();
    for (kind, violation) in violations {
        let steps = [insert(kind, 0), violation, insert(kind, 1), publish(kind)];
        messages.push(message(kind, &steps));
    }
    scene.publish(&messages).await?;
    let host = Host::start(place, &scene.config("host", scene.probe()?)).await?;
    host.until_metric("hapax_committed_total", 4).await?;
    scene.finish(host).await?;

    let kinds = ["check", "foreign-key", "not-null", "unique"];
    let mut rows: Vec<String> = kinds
        .iter()
        .flat_map(|kind| [format!("{kind}/0"), format!("{kind}/1")])
        .collect();
    rows.push("taken/0".to_owned());
    rows.sort();
    assert_eq!(scene.effects().await?, rows);
    assert_eq!(scene.store.count("t_children").await?, 0);
    assert_eq!(scene.sent().await?, kinds);
    assert_eq!(scene.store.waiting().await?, [""; 0]);
    Ok(())
}

/// The statements that would end the transaction behind the host's back.
pub async fn a_conflict_clause_cannot_end_the_transaction(place: &Place, scene: Scene) -> Checked {
    scene
        .store
        .execute("INSERT INTO t_effects VALUES ('taken', 0)")
        .await?;
    let clauses = ["ROLLBACK", "FAIL", "ABORT"];
    let mut messages = Vec::new();
    for clause in clauses {
        let order = clause.to_lowercase();
        let statement =
            format!("INSERT OR {clause} INTO t_effects (order_id, step) VALUES ($1, $2)");
        let steps = [
            insert(&order, 0),
            ignoring(&statement, json!(["taken", 0])),
            insert(&order, 1),
            publish(&order),
        ];
        messages.push(message(&order, &steps));
        messages.push(scene::ordinary(&format!("good-{order}")));
    }
    scene.publish(&messages).await?;
    let host = Host::start(place, &scene.config("host", scene.probe()?)).await?;
    host.until_metric("hapax_parked_total", 3).await?;
    scene.finish(host).await?;
    let expected = clauses.map(|clause| format!("{} parked sql-refused", clause.to_lowercase()));
    let mut expected = expected.to_vec();
    expected.sort();
    assert_eq!(scene.store.waiting_keys().await?, expected);
    assert_eq!(
        scene.effects().await?,
        ["good-abort/0", "good-fail/0", "good-rollback/0", "taken/0"]
    );
    Ok(())
}

/// A statement over its time is interrupted. On SQLite that may end the transaction.
pub async fn an_interrupted_statement_leaves_nothing_behind(
    place: &Place,
    scene: Scene,
) -> Checked {
    let rows: Vec<String> = (0..1_000).map(|number| format!("('{number}')")).collect();
    let parents = format!("INSERT INTO t_parents (id) VALUES {}", rows.join(", "));
    scene.store.execute(&parents).await?;
    let endless = "INSERT INTO t_effects (order_id, step) \
         SELECT 'endless', count(*) FROM t_parents a, t_parents b, t_parents c";
    let steps = [
        insert("slow", 0),
        ignoring(endless, json!([])),
        insert("slow", 1),
        publish("slow"),
    ];
    let messages = [
        scene::ordinary("before"),
        message("slow", &steps),
        scene::ordinary("after"),
    ];
    scene.publish(&messages).await?;
    let retry = r#"{ max-attempts = 2, delay = "20ms", max-delay = "50ms" }"#;
    let consumer = scene.probe()?.set("retry", retry);
    let config = scene
        .config("host", consumer)
        .store_line("statement-timeout = \"300ms\"");
    let host = Host::start(place, &config).await?;
    host.until_metric("hapax_parked_total", 1).await?;
    scene.finish(host).await?;
    assert_eq!(scene.store.waiting_keys().await?, ["slow parked sql-limit"]);
    assert_eq!(scene.effects().await?, ["after/0", "before/0"]);
    assert_eq!(scene.sent().await?, ["after", "before"]);
    Ok(())
}

/// The message has written one row when it meets another session that holds the next one, and
/// the database chooses the message's transaction as the victim.
pub async fn a_deadlock_leaves_nothing_behind(place: &Place) -> Checked {
    let scene = Scene::postgres(place).await?;
    let mut other = PgConnection::connect(&scene.store.url).await?;
    // The other session does not look for deadlocks, so the victim is not this one.
    sqlx::raw_sql(
        "SET deadlock_timeout = '1min'; BEGIN; UPDATE t_counters SET total = 100 WHERE id = 'b'",
    )
    .execute(&mut other)
    .await?;
    let add = "UPDATE t_counters SET total = total + 1 WHERE id = $1";
    let steps = [
        json!({"execute": [add, ["a"]]}),
        ignoring(add, json!(["b"])),
        insert("k", 0),
        publish("k"),
    ];
    scene.publish(&[message("k", &steps)]).await?;
    // The lock must outlast the server's search for deadlocks, which starts after a second.
    let config = scene
        .config("host", scene.probe()?)
        .store_line("lock-timeout = \"30s\"");
    let config = config.store_line("statement-timeout = \"30s\"");
    let host = Host::start(place, &config).await?;
    until_blocked(&scene, true).await?;
    // Closes the circle; returns when the message's transaction has been thrown out.
    sqlx::raw_sql("UPDATE t_counters SET total = 100 WHERE id = 'a'")
        .execute(&mut other)
        .await?;
    assert_eq!(
        scene.effects().await?,
        [""; 0],
        "half of a message is visible"
    );
    sqlx::raw_sql("COMMIT").execute(&mut other).await?;
    other.close().await?;

    host.until_metric("hapax_committed_total", 1).await?;
    scene.finish(host).await?;
    scene.assert_fates(COMMITTED).await?;
    assert_eq!(scene.effects().await?, ["k/0"]);
    assert_eq!(scene.sent().await?, ["k"]);
    let totals = scene
        .store
        .texts("SELECT id || '=' || total FROM t_counters ORDER BY id")
        .await?;
    assert_eq!(totals, ["a=101", "b=101", "c=0"]);
    Ok(())
}

/// The message gives up waiting for a lock; the transaction is dead although the handler goes on.
pub async fn a_lock_timeout_leaves_nothing_behind(place: &Place) -> Checked {
    let scene = Scene::postgres(place).await?;
    let mut other = scene
        .store
        .hold("UPDATE t_counters SET total = 100 WHERE id = 'b'")
        .await?;
    let add = "UPDATE t_counters SET total = total + 1 WHERE id = $1";
    let steps = [
        insert("k", 0),
        ignoring(add, json!(["b"])),
        insert("k", 1),
        publish("k"),
    ];
    scene.publish(&[message("k", &steps)]).await?;
    let config = scene
        .config("host", scene.probe()?)
        .store_line("lock-timeout = \"300ms\"");
    let host = Host::start(place, &config).await?;
    until_blocked(&scene, true).await?;
    until_blocked(&scene, false).await?;
    assert_eq!(
        scene.effects().await?,
        [""; 0],
        "half of a message is visible"
    );
    sqlx::raw_sql("COMMIT").execute(&mut other).await?;
    other.close().await?;

    host.until_metric("hapax_committed_total", 1).await?;
    scene.finish(host).await?;
    scene.assert_fates(COMMITTED).await?;
    assert_eq!(scene.effects().await?, ["k/0", "k/1"]);
    assert_eq!(scene.sent().await?, ["k"]);
    Ok(())
}

/// The other writer of a SQLite file is a person with a shell. The message waits for them.
pub async fn a_busy_sqlite_file_leaves_nothing_behind(place: &Place) -> Checked {
    let scene = Scene::sqlite(place).await?;
    let host = Host::start(place, &scene.config("host", scene.probe()?)).await?;
    let crate::support::store::Kind::Sqlite(file) = &scene.store.kind else {
        anyhow::bail!("the scene is on SQLite");
    };
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file);
    let mut other = sqlx::SqliteConnection::connect_with(&options).await?;
    sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut other).await?;
    scene.publish(&[scene::ordinary("k")]).await?;
    // The host has waited for the file, has given up, and has tried again.
    wait::until("the lane to fail at the lock", wait::PATIENCE, async || {
        Ok((host.metric("hapax_setbacks_total").await? >= 2).then_some(()))
    })
    .await?;
    assert_eq!(host.metric("hapax_committed_total").await?, 0);
    sqlx::raw_sql("ROLLBACK").execute(&mut other).await?;
    other.close().await?;
    host.until_metric("hapax_committed_total", 1).await?;
    scene.finish(host).await?;
    scene.assert_fates(COMMITTED).await?;
    assert_eq!(scene.effects().await?, ["k/0"]);
    Ok(())
}

/// Waits until a lane of the host waits for a lock, or no longer does.
async fn until_blocked(scene: &Scene, blocked: bool) -> Checked {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' \
               AND datname = current_database() AND application_name LIKE 'hapax probe %'";
    wait::until(
        "a session to wait for a lock, or to give up",
        wait::PATIENCE,
        async || {
            let waiting = scene.store.number(sql).await?;
            ensure!(waiting <= 1, "{waiting} sessions wait for locks");
            Ok(((waiting == 1) == blocked).then_some(()))
        },
    )
    .await
}
