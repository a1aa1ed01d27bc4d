//! Two hundred swaps while messages flow: none is lost, none is doubled, and what a swap costs is told.

use std::fmt;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::ensure;

use crate::Checked;
use crate::support::host::Host;
use crate::support::place::Place;
use crate::support::scene::{self, IN, Scene};
use crate::support::store::Store;
use crate::support::versions::{rename_into, version};
use crate::support::wait;

use super::{Stage, digest, ledger_names_the_version_that_wrote, message, status};

const SWAPS: i64 = 200;
/// Messages that are published in one go while versions change.
const BLOCK: usize = 200;

/// Swaps under a steady load, beside a time without any.
const STEADY_SWAPS: i64 = 50;
/// A steady load, far below what the host can do: what a message waits for is not other messages.
const STEADY_BLOCK: usize = 4;
const STEADY_PACE: Duration = Duration::from_millis(10);

pub async fn two_hundred_swaps_under_load_lose_and_double_nothing(place: &Place) -> Checked {
    let stage = Stage::new(place, Scene::postgres(place).await?)?;
    let store = &stage.scene.store;
    // When a message's row was written, by the clock that also says when it was published.
    store
        .execute("ALTER TABLE t_effects ADD COLUMN written TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp()")
        .await?;
    let host = Host::start(place, &stage.config()).await?;
    let done = AtomicBool::new(false);
    let mut memory = Vec::new();
    let swaps = async {
        for number in 1..=SWAPS {
            swap(&stage, &host, number).await?;
            if [1, SWAPS].contains(&number) {
                memory.push(host.memory_bytes()?);
            }
        }
        done.store(true, Ordering::SeqCst);
        Ok::<(), anyhow::Error>(())
    };
    let (published, swapped) = tokio::join!(full_load(&stage, &done), swaps);
    swapped?;
    let mut published = published?;
    scene::until_settled(&host, &stage.scene.broker, IN, store).await?;
    assert_eq!(status(&host).await?["digest"], digest(&version(SWAPS)));

    let done = AtomicBool::new(false);
    let swaps = async {
        for number in SWAPS + 1..=SWAPS + STEADY_SWAPS {
            swap(&stage, &host, number).await?;
        }
        done.store(true, Ordering::SeqCst);
        Ok::<(), anyhow::Error>(())
    };
    let (swapping, swapped) = tokio::join!(
        steady_load(&stage, "swapping", || done.load(Ordering::SeqCst)),
        swaps
    );
    swapped?;
    let swapping = swapping?;
    let mut left = swapping;
    let enough = || {
        left = left.saturating_sub(STEADY_BLOCK);
        left == 0
    };
    published += swapping + steady_load(&stage, "quiet", enough).await?;
    scene::until_settled(&host, &stage.scene.broker, IN, store).await?;

    let state = status(&host).await?;
    assert_eq!(state["digest"], digest(&version(SWAPS + STEADY_SWAPS)));
    assert_eq!(state["versions_in_memory"], 1, "earlier versions are gone");
    assert_eq!(host.metric("hapax_failed_total").await?, 0);
    assert_eq!(host.metric("hapax_plugin_refusals_total").await?, 0);
    host.stop().await?;

    let orders = store
        .number("SELECT count(DISTINCT order_id) FROM t_effects")
        .await?;
    assert_eq!(orders, published as i64, "none is lost");
    let rows = store.count("t_effects").await?;
    assert_eq!(rows, published as i64, "none is doubled");
    let versions = store
        .number("SELECT count(DISTINCT step) FROM t_effects")
        .await?;
    ensure!(
        versions > SWAPS / 2,
        "only {versions} versions have handled messages"
    );
    assert_eq!(store.waiting().await?, [""; 0]);
    ledger_names_the_version_that_wrote(store).await?;
    Report {
        quiet: Latency::of(store, "quiet").await?,
        swapping: Latency::of(store, "swapping").await?,
        memory_bytes: memory.try_into().unwrap_or_default(),
    }
    .tell()
}

/// Puts a version into the file and waits until it serves.
async fn swap(stage: &Stage, host: &Host, number: i64) -> Checked {
    rename_into(&stage.file, &version(number))?;
    wait::until(&format!("swap {number}"), wait::PATIENCE, async || {
        let swaps = host.metric("hapax_plugin_swaps_total").await?;
        Ok((swaps >= number as u64).then_some(()))
    })
    .await
}

/// As many messages as the host takes, until `done`. Returns how many there were.
async fn full_load(stage: &Stage, done: &AtomicBool) -> anyhow::Result<usize> {
    let mut published = 0;
    while !done.load(Ordering::SeqCst) {
        let block: Vec<_> = (published..published + BLOCK)
            .map(|number| message(&format!("order-{number}")))
            .collect();
        stage.scene.publish(&block).await?;
        published += BLOCK;
        // A queue that only grows would make the test longer, and no harder.
        wait::until("the queue to be short", wait::PATIENCE, async || {
            let depth = stage.scene.broker.depth(IN).await?;
            Ok((depth.ready < 2_000).then_some(()))
        })
        .await?;
    }
    Ok(published)
}

/// A few messages at a time, whose order ids say when they were published.
async fn steady_load(
    stage: &Stage,
    name: &str,
    mut is_enough: impl FnMut() -> bool,
) -> anyhow::Result<usize> {
    let mut pace = tokio::time::interval(STEADY_PACE);
    let mut published = 0;
    while !is_enough() {
        pace.tick().await;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros();
        let block: Vec<_> = (published..published + STEADY_BLOCK)
            .map(|number| message(&format!("{name}-{number}@{now}")))
            .collect();
        stage.scene.publish(&block).await?;
        published += STEADY_BLOCK;
    }
    Ok(published)
}

/// From a message's publishing to its row, in microseconds.
struct Latency {
    messages: i64,
    p50: i64,
    p99: i64,
    max: i64,
}

impl Latency {
    async fn of(store: &Store, name: &str) -> anyhow::Result<Self> {
        let late = format!(
            "FROM (SELECT (extract(epoch FROM written) * 1000000)::bigint \
             - split_part(order_id, '@', 2)::bigint AS micros \
             FROM t_effects WHERE order_id LIKE '{name}-%') AS late"
        );
        let at = async |part: f64| {
            let sql =
                format!("SELECT percentile_disc({part}) WITHIN GROUP (ORDER BY micros) {late}");
            store.number(&sql).await
        };
        Ok(Self {
            messages: store.number(&format!("SELECT count(*) {late}")).await?,
            p50: at(0.5).await?,
            p99: at(0.99).await?,
            max: at(1.0).await?,
        })
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = |micros: i64| micros as f64 / 1e3;
        write!(
            f,
            "p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms of {} messages",
            milliseconds(self.p50),
            milliseconds(self.p99),
            milliseconds(self.max),
            self.messages
        )
    }
}

/// What swaps cost. Figures, of which none is insisted on.
struct Report {
    quiet: Latency,
    swapping: Latency,
    /// After the first swap and after the last one.
    memory_bytes: [u64; 2],
}

impl Report {
    /// Prints it, and adds it to the file that `HAPAX_TEST_REPORT` names.
    fn tell(&self) -> Checked {
        eprintln!("{self}");
        if let Some(file) = std::env::var_os("HAPAX_TEST_REPORT") {
            let mut file = std::fs::File::options()
                .create(true)
                .append(true)
                .open(file)?;
            writeln!(file, "{self}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes >> 20;
        let [first, last] = self.memory_bytes;
        write!(
            f,
            "swaps: from publishing to the row without swaps {}; with {STEADY_SWAPS} swaps {}; resident memory \
             {} MiB after 1 swap, {} MiB after {SWAPS}",
            self.quiet,
            self.swapping,
            mib(first),
            mib(last)
        )
    }
}
