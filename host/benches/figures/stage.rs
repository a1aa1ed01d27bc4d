//! A sandbox, a store and handlers that are run one message at a time.

#![allow(
    dead_code,
    reason = "each bench is a program of its own and uses a part of this"
)]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hapax::config::{Idempotency, Limits, Random, Settings, Target, Unroutable};
use hapax::effects::outbox::Composer;
use hapax::effects::sql::rules::{Grants, Rules};
use hapax::effects::{Isolation, Transaction};
use hapax::message::Message;
use hapax::sandbox::{Attempt, Environment, Plugin, Sandbox, SandboxOptions, Seeds, Verdict};
use hapax::store::sqlite::SqliteStore;
use hapax::store::{ConsumerId, Dialect, SessionOptions, Store};

/// Executor threads. A guest that spins keeps one busy.
pub const WORKERS: usize = 2;

/// Languages that bring a runtime begin with tens of MiB.
const MEMORY_BYTES: u64 = 256 << 20;

/// A paid order, as the handlers called `points` expect it.
pub const ORDER: &str =
    r#"{"order_id": "order-000001", "user_id": "user-1", "amount_cents": 4200}"#;

/// What all parts use.
pub struct Stage {
    pub sandbox: Arc<Sandbox>,
    store: Arc<SqliteStore>,
    environment: Arc<Environment>,
    _place: tempfile::TempDir,
}

impl Stage {
    pub async fn new() -> Self {
        let place = tempfile::tempdir().expect("a directory for temporary files");
        let options = SessionOptions {
            statement_timeout: Duration::from_secs(30),
            lock_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(60),
        };
        let store = SqliteStore::open(&place.path().join("bench.db"), options).expect("a store");
        store.migrate().await.expect("its tables");
        let limits = Limits {
            memory: MEMORY_BYTES,
            ..Limits::default()
        };
        let sandbox = Sandbox::new(SandboxOptions {
            concurrent_instances: 4 * WORKERS,
            max_memory: limits.memory,
            max_table_elements: limits.table_elements,
            metered: false,
            compile_timeout: hapax::config::COMPILE_TIMEOUT,
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
            config: Settings::default(),
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

    /// A handler from its component, and the message that it is given.
    pub async fn actor(&self, component: &Path, body: &'static str) -> Actor {
        let (sandbox, path) = (Arc::clone(&self.sandbox), component.to_owned());
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
pub struct Actor {
    plugin: Plugin,
    environment: Arc<Environment>,
    store: Arc<SqliteStore>,
    message: Arc<Message>,
    transaction: Option<Transaction>,
    /// Messages so far.
    pub number: u64,
}

impl Actor {
    /// Runs it once, without the database: nothing is flushed or committed. Returns how long it took and how it ended.
    pub async fn run(&mut self) -> (Duration, Verdict) {
        let transaction = match self.transaction.take() {
            Some(transaction) => transaction,
            None => {
                let session = self.store.session("bench").await.expect("a session");
                Transaction::new(
                    session,
                    self.store.traits(),
                    ConsumerId(1),
                    Isolation::Optimistic,
                    true,
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
