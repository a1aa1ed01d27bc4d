//! What does it cost to run one message in a fresh instance, and to run it beside handlers that misbehave?
//!
//!     cargo build --profile plugin --target wasm32-wasip2 -p points -p 'guest-*'
//!     cargo bench --bench sandbox                  all of it but the last
//!     cargo bench --bench sandbox -- beside        one part
//!     cargo bench --bench sandbox -- memory --long memory after 10,000 and after 1,000,000 messages

#[path = "figures.rs"]
mod figures;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use figures::{Figures, component, has_flag, resident_kib, wanted};
use hapax::config::{Idempotency, Limits, Random, Target, Unroutable};
use hapax::effects::outbox::Composer;
use hapax::effects::sql::rules::{Grants, Rules};
use hapax::effects::{Isolation, Transaction};
use hapax::message::Message;
use hapax::sandbox::{Attempt, Environment, Plugin, Sandbox, SandboxOptions, Seeds, Verdict};
use hapax::store::sqlite::SqliteStore;
use hapax::store::{ConsumerId, Dialect, SessionOptions, Store};

/// Executor threads. A guest that spins keeps one busy.
const WORKERS: usize = 2;

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

/// What all parts use.
struct Stage {
    sandbox: Arc<Sandbox>,
    store: Arc<SqliteStore>,
    environment: Arc<Environment>,
    _place: tempfile::TempDir,
}

impl Stage {
    async fn new() -> Self {
        let place = tempfile::tempdir().expect("a directory for temporary files");
        let options = SessionOptions {
            statement_timeout: Duration::from_secs(30),
            lock_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(60),
        };
        let store = SqliteStore::open(&place.path().join("bench.db"), options).expect("a store");
        store.migrate().await.expect("its tables");
        let limits = Limits::default();
        let sandbox = Sandbox::new(SandboxOptions {
            concurrent_instances: 4 * WORKERS,
            max_memory: limits.memory,
            max_table_elements: limits.table_elements,
            metered: false,
        })
        .expect("the engine starts");
        let none: [&str; 0] = [];
        let write = ["t_points"];
        let grants = Grants::new(Dialect::Sqlite, &none[..], &write[..], &none[..])
            .expect("the names are good");
        let target = Target {
            exchange: String::new(),
            routing_key: "out".into(),
            persistent: true,
            unroutable: Unroutable::Keep,
        };
        let environment = Environment {
            consumer: "bench".into(),
            limits,
            config: BTreeMap::new(),
            composer: Composer {
                consumer: ConsumerId(1),
                targets: ["points-credited", "out"]
                    .map(|name| (name.to_owned(), target.clone()))
                    .into(),
            },
            rules: Rules::new(Dialect::Sqlite, &grants, 1024),
            random: Random::Seeded,
            idempotency: Idempotency::On,
            seeds: Seeds::new(b"a secret", "bench"),
            dialect: Dialect::Sqlite,
            generation: 0.into(),
        };
        Self {
            sandbox,
            store: Arc::new(store),
            environment: Arc::new(environment),
            _place: place,
        }
    }

    async fn actor(&self, guest: &str, body: &'static str) -> Actor {
        let (sandbox, path) = (Arc::clone(&self.sandbox), component(guest));
        let plugin = tokio::task::spawn_blocking(move || Plugin::load(&sandbox, &path));
        Actor {
            plugin: plugin.await.expect("no panic").expect("it loads"),
            environment: Arc::clone(&self.environment),
            store: Arc::clone(&self.store),
            message: Arc::new(Message {
                exchange: String::new(),
                routing_key: "in".into(),
                properties: Default::default(),
                body: bytes::Bytes::from_static(body.as_bytes()),
            }),
            transaction: None,
            number: 0,
        }
    }
}

/// A handler that is given the same message under another key each time.
struct Actor {
    plugin: Plugin,
    environment: Arc<Environment>,
    store: Arc<SqliteStore>,
    message: Arc<Message>,
    transaction: Option<Transaction>,
    number: u64,
}

impl Actor {
    /// Runs it once, without the database: nothing is flushed or committed. Returns how long it took and how it ended.
    async fn run(&mut self) -> (Duration, Verdict) {
        let transaction = match self.transaction.take() {
            Some(transaction) => transaction,
            None => {
                let session = self.store.session("bench").await.expect("a session");
                Transaction::new(
                    session,
                    self.store.traits(),
                    ConsumerId(1),
                    Isolation::Optimistic,
                )
            }
        };
        self.number += 1;
        let attempt = Attempt {
            message: Arc::clone(&self.message),
            key: Arc::from(&self.number.to_be_bytes()[..]),
            number: 1,
            redelivered: false,
            now_micros: hapax::clock::now_micros(),
            lane: 0,
        };
        let started = Instant::now();
        let run = self
            .plugin
            .run(&self.environment, attempt, transaction)
            .await;
        let elapsed = started.elapsed();
        self.transaction = run.transaction;
        (elapsed, run.verdict)
    }
}

const ORDER: &str = r#"{"order_id": "order-000001", "user_id": "user-1", "amount_cents": 4200}"#;

const PANIC: &str = r#"{"do": [{"panic": "on purpose"}]}"#;

/// A fresh instance, JSON, one deferred statement, one message: the README's handler.
async fn points(stage: &Stage) {
    let mut actor = stage.actor("points", ORDER).await;
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
    let mut actor = stage.actor("guest_probe", PANIC).await;
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
        let mut actor = stage.actor("guest_probe", body).await;
        let stop = Arc::clone(&stop);
        tasks.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                actor.run().await;
            }
        }));
    }
    let mut actor = stage.actor("points", ORDER).await;
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
    let mut actor = stage.actor("points", ORDER).await;
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
