//! A statement that the database does not end, whatever it is told: a call of a function that never looks up, as a
//! server process that is stopped by a signal does not. Its message is parked, and nothing else suffers.

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::Checked;
use crate::support::host::{Config, Host};
use crate::support::place::Place;
use crate::support::scene::{self, Scene, insert, message};
use crate::support::servers::Postgres;
use crate::support::store::{Fates, Store};
use crate::support::wait;

/// In its batch, and after it.
const NEIGHBOURS: [&str; 3] = ["n1", "n2", "n3"];
const OTHERS: usize = 36;

const SESSIONS: &str = "hapax_stuck_sessions";

/// A server of the test's own: a stopped process holds up more than its own database.
struct Stuck {
    scene: Scene,
    config: Config,
    process: Pid,
    _server: Postgres,
}

impl Stuck {
    /// A host whose message is at a statement that does not end. Its neighbours were in the queue with it.
    async fn begin(place: &Place, server: &str) -> anyhow::Result<(Stuck, Host)> {
        let server = Postgres::start(server).await?;
        let scene = Scene::with(Store::postgres_on(&server).await?).await?;
        let grant = r#"{ write = ["t_effects"], functions = ["pg_sleep"] }"#;
        let consumer = scene
            .probe()?
            .set("grant", grant)
            .set("lanes", "1")
            .set("limits", r#"{ wall = "8s" }"#);
        let config = scene
            .config("host", consumer)
            .store_line("statement-timeout = \"8s\"")
            .store_line("lock-timeout = \"300ms\"");
        let mut messages = NEIGHBOURS.map(scene::ordinary).to_vec();
        messages.insert(2, unstoppable());
        scene.publish(&messages).await?;
        let host = Host::start(place, &config).await?;
        let asleep = "SELECT pid::text FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
        let process = wait::until("the statement to begin", wait::PATIENCE, async || {
            Ok(scene.store.texts(asleep).await?.pop())
        })
        .await?;
        let process = Pid::from_raw(process.parse()?).context("a process has a number")?;
        kill_process(process, Signal::STOP)?;
        let stuck = Stuck {
            scene,
            config,
            process,
            _server: server,
        };
        Ok((stuck, host))
    }

    /// Waits until the host has told of it everywhere, and has parked its message.
    async fn until_told(&self, host: &Host) -> Checked {
        host.until_metric(SESSIONS, 1).await?;
        host.until_says("A statement does not end").await?;
        let (status, page) = host.page("/readyz").await?;
        assert_eq!(status, 200, "{page}");
        let named = format!("process {} of the database", self.process.as_raw_nonzero());
        assert!(page.contains(&named), "{page}");
        assert_eq!(self.scene.store.waiting_keys().await?, [PARKED]);
        Ok(())
    }

    /// Waits until those are applied that came after it. Of its neighbours some may have been in a batch before it.
    async fn until_others(&self) -> Checked {
        let others = "SELECT count(*) FROM t_effects WHERE order_id LIKE 'o%'";
        wait::until_equal("the others", OTHERS as i64, async || {
            self.scene.store.number(others).await
        })
        .await
    }

    /// Waits until this number of messages is committed, by any host.
    async fn until_committed(&self, all: usize) -> Checked {
        wait::until_equal("committed messages", all as i64, async || {
            Ok(self.scene.store.fates().await?.committed)
        })
        .await
    }

    /// Lets the process go on, which is told to end, and waits until nothing is said of it any more.
    async fn end(&self, host: &Host) -> Checked {
        kill_process(self.process, Signal::CONT)?;
        wait::until_equal("the sessions that do not end", 0, async || {
            host.metric(SESSIONS).await
        })
        .await?;
        host.until_says("The session whose statement did not end is gone")
            .await?;
        let (status, page) = host.page("/readyz").await?;
        assert_eq!(
            (status, page.contains("does not end")),
            (200, false),
            "{page}"
        );
        Ok(())
    }

    /// Everything was applied once, but for the message that was parked; another copy of that one is its duplicate.
    async fn assert_ended(&self, host: Host, committed: usize) -> Checked {
        self.scene.publish(&[unstoppable()]).await?;
        host.until_metric("hapax_duplicates_total", 1).await?;
        self.scene.finish(host).await?;
        let fates = Fates {
            committed: i64::try_from(committed)?,
            parked: 1,
            ..Fates::default()
        };
        self.scene.assert_fates(fates).await?;
        assert_eq!(self.scene.store.waiting_keys().await?, [PARKED]);
        assert_eq!(self.scene.effects().await?.len(), committed);
        assert_eq!(self.scene.sent().await?.len(), committed);
        Ok(())
    }
}

const PARKED: &str = "bad parked sql-unstoppable";

fn unstoppable() -> crate::support::broker::Message {
    let steps = [
        insert("bad", 0),
        json!({"query": ["SELECT pg_sleep(600)", []]}),
    ];
    message("bad", &steps)
}

fn others(name: &str) -> Vec<crate::support::broker::Message> {
    (0..OTHERS)
        .map(|number| scene::ordinary(&format!("{name}{number}")))
        .collect()
}

/// The keys of its batch are locked by its session for as long as that is there; they come afterwards.
pub async fn costs_its_message_and_nothing_else(place: &Place) -> Checked {
    let (stuck, host) = Stuck::begin(place, "postgres-stuck").await?;
    host.until_metric("hapax_parked_total", 1).await?;
    stuck.until_told(&host).await?;
    stuck.scene.publish(&others("o")).await?;
    assert_eq!(host.metric("hapax_parked_total").await?, 1);
    stuck.until_others().await?;

    stuck.end(&host).await?;
    let all = OTHERS + NEIGHBOURS.len();
    stuck.until_committed(all).await?;
    stuck.assert_ended(host, all).await
}

/// The next host finds keys that it cannot claim, and a session that it did not make. It runs what it can, and does
/// not run the message again, neither before nor after the end of the session.
pub async fn outlives_a_restart_and_is_not_begun_again(place: &Place) -> Checked {
    let (stuck, host) = Stuck::begin(place, "postgres-stuck-on").await?;
    host.until_metric("hapax_parked_total", 1).await?;
    host.sigkill()?;
    let host = Host::start(place, &stuck.config).await?;
    stuck.scene.publish(&others("o")).await?;
    stuck.until_others().await?;
    stuck.until_told(&host).await?;

    stuck.end(&host).await?;
    let all = OTHERS + NEIGHBOURS.len();
    stuck.until_committed(all).await?;
    assert_eq!(host.metric("hapax_parked_total").await?, 0);
    stuck.assert_ended(host, all).await
}
