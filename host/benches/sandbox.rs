//! What does it cost to run one message in a fresh instance, and to run it beside handlers that misbehave?
//!
//!     cargo build --profile plugin --target wasm32-wasip2 -p points -p 'guest-*'
//!     cargo bench --bench sandbox                  all of it but the last
//!     cargo bench --bench sandbox -- beside        one part
//!     cargo bench --bench sandbox -- memory --long memory after 10,000 and after 1,000,000 messages

#[path = "figures.rs"]
mod figures;
#[path = "figures/stage.rs"]
mod stage;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use figures::{Figures, component, has_flag, resident_kib, wanted};
use hapax::sandbox::Verdict;
use stage::{ORDER, Stage, WORKERS};

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .expect("a runtime starts");
    let stage = runtime.block_on(Stage::new());
    if wanted("points") {
        runtime.block_on(points(&stage));
    }
    if wanted("traps") {
        runtime.block_on(traps(&stage));
    }
    if wanted("beside") {
        const SPIN: &str = r#"{"do": [{"spin": true}]}"#;
        const BOMB: &str = r#"{"do": [{"allocate_mib": 256}]}"#;
        for spinners in [0, 1, WORKERS, 2 * WORKERS] {
            runtime.block_on(beside(&stage, spinners, "spinning", SPIN));
        }
        runtime.block_on(beside(&stage, 1, "taking memory", BOMB));
        runtime.block_on(beside(&stage, 1, "panicking", PANIC));
    }
    if wanted("memory") && has_flag("--long") {
        runtime.block_on(memory(&stage));
    }
}

const PANIC: &str = r#"{"do": [{"panic": "on purpose"}]}"#;

/// A fresh instance, JSON, one deferred statement, one message: the README's handler.
async fn points(stage: &Stage) {
    let mut actor = stage.actor(&component("points"), ORDER).await;
    for _ in 0..2_000 {
        actor.run().await;
    }
    let mut figures = Figures::new("points: fresh instance and handle");
    for _ in 0..50_000 {
        let (elapsed, verdict) = actor.run().await;
        assert!(matches!(verdict, Verdict::Done), "{verdict:?}");
        figures.add(elapsed);
    }
    figures.show();
}

/// A panic, with its backtrace read from the debug information.
async fn traps(stage: &Stage) {
    let mut actor = stage.actor(&component("guest_probe"), PANIC).await;
    let mut first = Figures::new("traps: the first, which reads the debug information");
    first.add(actor.run().await.0);
    first.show();
    let mut figures = Figures::new("traps: the others");
    for _ in 0..1_000 {
        let (elapsed, verdict) = actor.run().await;
        let Verdict::Failed(failure) = verdict else {
            panic!("{verdict:?}");
        };
        assert!(
            failure.backtrace.contains("probe/src/lib.rs"),
            "{failure:?}"
        );
        figures.add(elapsed);
    }
    figures.show();
}

/// One consumer's messages, one at a time, with pauses, beside lanes of another one that run a bad guest again and
/// again. What the pauses wake up for is what a guest that keeps its thread would hold up.
async fn beside(stage: &Stage, sinners: usize, sin: &str, body: &'static str) {
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = Vec::new();
    for _ in 0..sinners {
        let mut actor = stage.actor(&component("guest_probe"), body).await;
        let stop = Arc::clone(&stop);
        tasks.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                actor.run().await;
            }
        }));
    }
    let mut actor = stage.actor(&component("points"), ORDER).await;
    let messages = tokio::spawn(async move {
        let mut run = Figures::new("");
        let mut late = Figures::new("");
        for _ in 0..2_000 {
            let due = Instant::now() + Duration::from_millis(2);
            tokio::time::sleep_until(due.into()).await;
            late.add(due.elapsed());
            run.add(actor.run().await.0);
        }
        (run, late)
    });
    let (run, late) = messages.await.expect("no panic");
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.expect("no panic");
    }
    run.named(format!("beside {sinners} {sin}: handle")).show();
    late.named(format!("beside {sinners} {sin}: woken late by"))
        .show();
}

/// Whether a long life makes a host larger.
async fn memory(stage: &Stage) {
    let mut actor = stage.actor(&component("points"), ORDER).await;
    for (messages, until) in [
        ("10,000", 10_000),
        ("100,000", 100_000),
        ("1,000,000", 1_000_000),
    ] {
        while actor.number < until {
            actor.run().await;
        }
        println!(
            "memory: {:>9} messages  {:>8} KiB resident",
            messages,
            resident_kib()
        );
    }
}
