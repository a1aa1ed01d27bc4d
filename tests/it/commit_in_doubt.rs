//! The host cannot know whether its COMMIT took effect. The broker is well all the while.

use std::cell::Cell;
use std::future::pending;

use anyhow::ensure;

use crate::Checked;
use crate::support::host::{Config, Host};
use crate::support::place::Place;
use crate::support::proxy::{Commits, Proxy};
use crate::support::scene::{self, IN, Scene};
use crate::support::servers::{self, Postgres};
use crate::support::store::{Fates, Store};
use crate::support::wait;

const MESSAGES: usize = 2_000;

pub async fn the_line_is_cut_before_the_server_sees_it(place: &Place) -> Checked {
    cut(place, Commits::CutBefore { times: 5 }).await
}

pub async fn the_line_is_cut_after_the_server_has_committed(place: &Place) -> Checked {
    cut(place, Commits::CutAfter { times: 5 }).await
}

/// A message whose commit was in doubt and did take effect finds itself in the ledger: no second message.
pub async fn no_message_is_parked_as_a_duplicate_of_itself(place: &Place) -> Checked {
    cut_with(place, Commits::CutAfter { times: 5 }, "park").await
}

async fn cut(place: &Place, rule: Commits) -> Checked {
    cut_with(place, rule, "ack").await
}

async fn cut_with(place: &Place, rule: Commits, on_duplicate: &str) -> Checked {
    let scene = Scene::postgres(place).await?;
    let proxy = Proxy::to(servers::postgres().await?.address()).await?;
    let through = scene.store.url_through(proxy.address());
    let consumer = scene
        .probe()?
        .set("on-duplicate", &format!("\"{on_duplicate}\""));
    let config = Config::new("host", &through, &scene.broker.url).consumer(consumer);
    let host = Host::start(place, &config).await?;
    proxy.commits(rule);
    let orders = publish(&scene).await?;
    proxy
        .until("five commits to be cut", |tally| {
            tally.cut_before + tally.cut_after == 5
        })
        .await?;
    finish_undisturbed(&scene, host).await?;
    assert_each_once(&scene, &orders).await
}

/// The server commits, and then waits for a standby that does not exist. Cancelled, it answers
/// the COMMIT with a warning: nothing is acknowledged that no standby has, and what finds itself in the ledger waits
/// for one as well.
pub async fn the_server_answers_it_with_a_warning(place: &Place) -> Checked {
    let server = Postgres::start("postgres-warning").await?;
    let scene = Scene::with(Store::postgres_on(&server).await?).await?;
    let consumer = scene.probe()?.set("lanes", "1").set("prefetch", "64");
    let host = Host::start(place, &scene.config("host", consumer)).await?;

    let store = &scene.store;
    commits_wait_for_a_standby(store).await?;
    let orders = publish(&scene).await?;
    let mut lane = until_a_lane_waits(store, 0).await?;
    for _ in 0..2 {
        let cancel = format!("SELECT pg_cancel_backend({lane})");
        store.execute(&cancel).await?;
        // It claims again on another connection.
        lane = until_a_lane_waits(store, lane).await?;
    }
    for name in ["committed", "duplicates"] {
        let counted = host.metric(&format!("hapax_{name}_total")).await?;
        assert_eq!(counted, 0, "{name}");
    }
    let received = host.metric("hapax_deliveries_total").await?;
    ensure!(received <= 64, "some were acknowledged: {received} came");
    commits_wait_no_more(store).await?;

    finish_undisturbed(&scene, host).await?;
    assert_each_once(&scene, &orders).await
}

pub async fn the_server_ends_the_session_in_the_middle_of_it(place: &Place) -> Checked {
    let server = Postgres::start("postgres-ended").await?;
    let scene = Scene::with(Store::postgres_on(&server).await?).await?;
    let config = scene.config("host", scene.probe()?);
    let host = Host::start(place, &config).await?;

    let store = &scene.store;
    commits_wait_for_a_standby(store).await?;
    let orders = publish(&scene).await?;
    until_one_waits(store).await?;
    store
        .execute("ALTER SYSTEM RESET synchronous_standby_names")
        .await?;
    let those =
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    store.execute(those).await?;
    store.execute("SELECT pg_reload_conf()").await?;

    finish_undisturbed(&scene, host).await?;
    assert_each_once(&scene, &orders).await
}

/// The server is still at the COMMIT when the line goes, and it commits later: while the host looks for what
/// became of it, there is nothing to be seen.
pub async fn the_line_is_reset_while_the_server_is_at_it(place: &Place) -> Checked {
    let server = Postgres::start("postgres-late").await?;
    let proxy = Proxy::to(server.address()).await?;
    let scene = Scene::with(Store::postgres_on(&server).await?).await?;
    let through = scene.store.url_through(proxy.address());
    let config = Config::new("host", &through, &scene.broker.url).consumer(scene.probe()?);
    let host = Host::start(place, &config).await?;

    let store = &scene.store;
    commits_wait_for_a_standby(store).await?;
    scene.publish(&[scene::ordinary("k")]).await?;
    let waiting = until_one_waits(store).await?;
    proxy.tear_commits();
    // The server's process outlives its client, until it looks for it or is told to end. Others may wait by then.
    let there = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {waiting}");
    wait::until_equal("processes that commit", 0, async || {
        store.number(&there).await
    })
    .await?;
    commits_wait_no_more(store).await?;

    host.until_metric("hapax_duplicates_total", 1).await?;
    scene.finish(host).await?;
    assert_each_once(&scene, &["k".to_owned()]).await
}

async fn commits_wait_for_a_standby(store: &Store) -> Checked {
    store
        .execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        .await?;
    store.execute("SELECT pg_reload_conf()").await?;
    // It does when it comes to it.
    wait::until("commits to wait", wait::PATIENCE, async || {
        let waits = Cell::new(false);
        let write = store.execute("SELECT pg_logical_emit_message(true, 'tests', '')");
        let cancel = async {
            let process = until_one_waits(store).await?;
            waits.set(true);
            let cancel = format!("SELECT pg_cancel_backend({process})");
            store.execute(&cancel).await?;
            pending::<anyhow::Result<()>>().await
        };
        tokio::select! {
            written = write => written?,
            cancelled = cancel => cancelled?,
        }
        Ok(waits.get().then_some(()))
    })
    .await
}

async fn commits_wait_no_more(store: &Store) -> Checked {
    store
        .execute("ALTER SYSTEM RESET synchronous_standby_names")
        .await?;
    store.execute("SELECT pg_reload_conf()").await
}

/// Waits until a process of the server waits for the standby, and says which.
async fn until_one_waits(store: &Store) -> anyhow::Result<i64> {
    until_waiting(store, "a commit to wait for the standby", "true").await
}

/// The same for a lane, on another process than this one.
async fn until_a_lane_waits(store: &Store, but: i64) -> anyhow::Result<i64> {
    let lane = format!("pid <> {but} AND application_name LIKE 'hapax probe%'");
    until_waiting(store, "a lane to wait for the standby", &lane).await
}

async fn until_waiting(store: &Store, what: &str, which: &str) -> anyhow::Result<i64> {
    let waiting = format!(
        "SELECT coalesce(max(pid), 0)::bigint FROM pg_stat_activity \
         WHERE wait_event = 'SyncRep' AND {which}"
    );
    wait::until(what, wait::PATIENCE, async || {
        let process = store.number(&waiting).await?;
        Ok((process != 0).then_some(process))
    })
    .await
}

/// The host's one subscription has lasted: nothing was delivered twice, or was forgotten with its channel.
async fn finish_undisturbed(scene: &Scene, mut host: Host) -> Checked {
    scene::until_settled(&host, &scene.broker, IN, &scene.store).await?;
    ensure!(host.is_running()?, "the host gave up");
    assert_eq!(host.said("\"Subscribed\"")?, 1, "subscriptions");
    for name in ["deliveries", "committed"] {
        let counted = host.metric(&format!("hapax_{name}_total")).await?;
        assert!(counted <= MESSAGES as u64, "{counted} {name}");
    }
    for name in ["redeliveries", "forgotten"] {
        assert_eq!(host.metric(&format!("hapax_{name}_total")).await?, 0);
    }
    scene.finish(host).await
}

async fn publish(scene: &Scene) -> anyhow::Result<Vec<String>> {
    let orders: Vec<String> = (0..MESSAGES).map(|number| format!("{number:04}")).collect();
    let messages: Vec<_> = orders.iter().map(|order| scene::ordinary(order)).collect();
    scene.publish(&messages).await?;
    Ok(orders)
}

async fn assert_each_once(scene: &Scene, orders: &[String]) -> Checked {
    let rows: Vec<String> = orders.iter().map(|order| format!("{order}/0")).collect();
    ensure!(
        scene.effects().await? == rows,
        "the rows are not those of the orders"
    );
    ensure!(
        scene.sent().await? == orders,
        "the messages sent are not those of the orders"
    );
    assert_eq!(scene.store.waiting().await?, [""; 0]);
    assert_eq!(scene.store.count("hapax_outbox").await?, 0);
    let committed = i64::try_from(orders.len())?;
    scene
        .assert_fates(Fates {
            committed,
            ..Fates::default()
        })
        .await
}
