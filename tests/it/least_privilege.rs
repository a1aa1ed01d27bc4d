//! The role that host/ROLES.md describes: enough for the host, and a second wall behind the rules of SQL. The
//! statements of the document are the ones that run here.

use anyhow::{Context, ensure};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::Checked;
use crate::support::host::Host;
use crate::support::place::Place;
use crate::support::scene::{self, Scene, defer, insert, message, publish};
use crate::support::servers::Postgres;
use crate::support::store::{Fates, Kind, Store};

const DOCUMENT: &str = include_str!("../../host/ROLES.md");

/// The statements below a heading of the document, with the names of this test put in.
fn grants(database: &str) -> anyhow::Result<String> {
    let (_, rest) = DOCUMENT.split_once("## Postgres").context("no heading")?;
    let (_, rest) = rest.split_once("```sql").context("no statements")?;
    let (statements, _) = rest.split_once("```").context("no end")?;
    let statements = statements
        .replace("DATABASE shop", &format!("DATABASE {database}"))
        .replace("ON t_points TO", "ON t_effects, t_counters, t_children TO")
        .replace("ON t_prices TO", "ON t_parents TO");
    for name in [database, "t_effects", "t_parents"] {
        ensure!(
            statements.contains(name),
            "the document does not name what {name} stands for"
        );
    }
    Ok(statements)
}

/// What operators do, with the host's own configuration and so under its role: each of these is noted in the journal.
async fn operate(place: &Place, host: &Host) -> Checked {
    let keys = place.dir.join("keys.txt");
    std::fs::write(&keys, "before\nlong-before\n")?;
    let keys = keys.to_str().context("the path is not UTF-8")?;
    let commands: [&[&str]; 6] = [
        &["consumers", "pause", "probe", "--why", "the shop moves"],
        &["consumers", "resume", "probe"],
        &["ledger", "import", keys],
        &["ledger", "forget", "before", "--why", "by mistake", "--yes"],
        &["ledger", "list", "--json"],
        &["outbox", "list", "--json"],
    ];
    for command in commands {
        let done = host.cli(command).await?;
        ensure!(done.code == Some(0), "{command:?}: {done:?}");
    }
    let parked = host.cli(&["parked", "list", "--json"]).await?.json()?;
    let id = parked[0]["id"].as_str().context("nothing is parked")?;
    // What was rejected on purpose is logged instead.
    let editor = [("EDITOR", "sed -i s/reject/log/")];
    let edited = host
        .cli_with(&editor, &["parked", "replay", id, "--edit"])
        .await?;
    ensure!(edited.code == Some(0), "{edited:?}");
    host.until_metric("hapax_committed_total", 4).await
}

pub async fn is_enough_for_the_host_and_for_nothing_else(place: &Place) -> Checked {
    let server = Postgres::start("postgres-roles").await?;
    let scene = Scene::with(Store::postgres_on(&server).await?).await?;
    let Kind::Postgres { database, .. } = &scene.store.kind else {
        anyhow::bail!("the store is Postgres");
    };
    // A table of somebody else's, in the same schema.
    scene
        .store
        .execute("CREATE TABLE t_secret (id INTEGER)")
        .await?;

    let probe = || -> anyhow::Result<_> {
        let retry = r#"{ max-attempts = 2, delay = "20ms", max-delay = "50ms" }"#;
        Ok(scene.probe()?.set("retry", retry))
    };
    let owners = scene.config("owner", probe()?);
    let migrated = crate::support::host::cli(&owners.write(&place.dir)?, &["migrate"]).await?;
    ensure!(migrated.code == Some(0), "{migrated:?}");
    scene.store.execute(&grants(database)?).await?;

    let url = format!("postgres://hapax_host@{}/{database}", server.address());
    let config = scene.config_on("host", &url, probe()?);
    let steps = [
        insert("all", 0),
        defer("all", 1),
        publish("all"),
        json!({"state_increment": "count"}),
        json!({"state_put": ["gone", 1]}),
        json!({"state_delete": "gone"}),
        json!({"query": ["SELECT id FROM t_parents", []]}),
        json!({"query": ["SELECT total FROM t_counters WHERE id = 'a' FOR UPDATE", []]}),
        json!({"execute": ["UPDATE t_counters SET total = total + 1 WHERE id = 'a'", []]}),
        json!({"execute": ["DELETE FROM t_children", []]}),
    ];
    let messages = [
        message("all", &steps),
        message(
            "again",
            &[insert("again", 0), json!({"retry_until_attempt": 2})],
        ),
        message("bad", &[json!({"reject": "on purpose"})]),
        scene::ordinary("twice"),
        scene::ordinary("twice"),
    ];
    scene.publish(&messages).await?;
    let host = Host::start(place, &config).await?;
    host.until_metric("hapax_committed_total", 3).await?;
    host.until_metric("hapax_parked_total", 1).await?;
    let parked = host.cli(&["parked", "list", "--json"]).await?.json()?;
    ensure!(parked.to_string().contains("on purpose"), "{parked}");
    let status = host.cli(&["status", "--json"]).await?;
    ensure!(status.code == Some(0), "{status:?}");
    operate(place, &host).await?;
    scene.finish(host).await?;
    assert_eq!(
        scene.effects().await?,
        ["again/0", "all/0", "all/1", "twice/0"]
    );
    assert_eq!(scene.sent().await?, ["all", "twice"]);
    let fates = Fates {
        committed: 5,
        ..Fates::default()
    };
    scene.assert_fates(fates).await?;

    let other = scene.config_on("host", &url, probe()?.set("fingerprint", "\"none\""));
    let rekey = ["consumers", "rekey", "probe", "--yes"];
    let rekeyed = crate::support::host::cli(&other.write(&place.dir)?, &rekey).await?;
    ensure!(rekeyed.code == Some(0), "{rekeyed:?}");

    let mut session = PgConnection::connect(&url).await?;
    for statement in [
        "CREATE TABLE evil (id INTEGER)",
        "CREATE TEMPORARY TABLE evil (id INTEGER)",
        "CREATE SCHEMA evil",
        "CREATE EXTENSION dblink",
        "ALTER TABLE t_effects ADD COLUMN evil INTEGER",
        "DROP TABLE t_effects",
        "TRUNCATE t_effects",
        "INSERT INTO t_parents (id) VALUES ('evil')",
        "SELECT id FROM t_secret",
        "UPDATE hapax_meta SET value = 'evil'",
        "COPY t_effects TO PROGRAM 'true'",
        "COPY t_effects TO '/tmp/evil'",
        "SELECT pg_read_file('/etc/passwd')",
        "SET ROLE hapax",
        "CREATE ROLE evil",
        "ALTER SYSTEM SET fsync = off",
    ] {
        let refused = session.execute(AssertSqlSafe(statement)).await;
        let error = match refused {
            Ok(_) => anyhow::bail!("the role may: {statement}"),
            Err(error) => error,
        };
        let code = error.as_database_error().and_then(|error| error.code());
        ensure!(code.as_deref() == Some("42501"), "{statement}: {error}");
    }
    session.close().await?;
    Ok(())
}
