//! The contract of a store, as tests: every sentence holds in every dialect.
//!
//! SQLite is always tested. Postgres is tested where `HAPAX_TEST_POSTGRES_URL` names a database that the
//! tests may use: each test makes a schema of its own there and drops it when it passes.

mod costs;
mod guest;
mod hostile;
mod ledger;
mod lines;
mod outbox;
mod postgres;
mod retention;
mod sqlite;
mod state;
mod transactions;
mod unclaim;
mod upkeep;
mod waiting;

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::postgres::PostgresStore;
use super::sqlite::SqliteStore;
use super::{
    Claim, ClaimRule, ConsumerId, Dialect, Session, SessionOptions, Status, Store, StoreError,
    WaitingRow,
};
use crate::message::Message;
use crate::message::tests::every_property;

const OPTIONS: SessionOptions = SessionOptions {
    statement_timeout: Duration::from_secs(10),
    lock_timeout: Duration::from_secs(8),
    idle_timeout: Duration::from_secs(60),
};

/// For those who shall wait in vain.
const SHORT: Duration = Duration::from_millis(300);

const HOUR: Duration = Duration::from_secs(3_600);

/// A store with tables and nothing in them.
struct Fixture {
    store: Arc<dyn Store>,
    /// Unlike that of any other fixture: the schema's name, or the directory's.
    name: String,
    directory: Option<PathBuf>,
    postgres_url: Option<String>,
}

fn unique() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!(
        "hapax_contract_{}_{}",
        std::process::id(),
        NUMBER.fetch_add(1, Ordering::Relaxed)
    )
}

impl Fixture {
    async fn sqlite() -> Self {
        let name = unique();
        let directory = std::env::temp_dir().join(&name);
        std::fs::create_dir_all(&directory).unwrap();
        let store = SqliteStore::open(&directory.join("hapax.db"), OPTIONS).unwrap();
        store.migrate().await.unwrap();
        Self {
            store: Arc::new(store),
            name,
            directory: Some(directory),
            postgres_url: None,
        }
    }

    /// `None`, and a line that is not captured, where there is no server.
    async fn postgres(test: &str) -> Option<Self> {
        let Ok(url) = std::env::var("HAPAX_TEST_POSTGRES_URL") else {
            let line = format!(
                "skipped: {test} on Postgres, because HAPAX_TEST_POSTGRES_URL is not set\n"
            );
            let _ = std::io::stderr().write_all(line.as_bytes());
            return None;
        };
        let name = unique();
        let store = PostgresStore::new(&url, &name, OPTIONS).unwrap();
        store.migrate().await.unwrap();
        Some(Self {
            store: Arc::new(store),
            name,
            directory: None,
            postgres_url: Some(url),
        })
    }

    fn memory() -> Self {
        Self {
            store: Arc::new(crate::simulation::calm_store(SHORT)),
            name: unique(),
            directory: None,
            postgres_url: None,
        }
    }

    async fn remove(self) {
        if self.postgres_url.is_some() {
            let mut session = self.session().await;
            session
                .execute(&format!("DROP SCHEMA {} CASCADE", self.name), &[])
                .await
                .unwrap();
        }
        if let Some(directory) = self.directory {
            std::fs::remove_dir_all(directory).unwrap();
        }
    }

    async fn session(&self) -> Box<dyn Session> {
        self.store.session(&self.name).await.unwrap()
    }

    /// One that does not wait long for a lock.
    async fn impatient_session(&self) -> Box<dyn Session> {
        let mut session = self.session().await;
        if self.is_postgres() {
            let short = format!("SET lock_timeout = {}", SHORT.as_millis());
            session.execute(&short, &[]).await.unwrap();
        }
        session
    }

    async fn consumer(&self) -> ConsumerId {
        self.session()
            .await
            .consumer("orders", "message-id", "body")
            .await
            .unwrap()
            .id
    }

    fn is_postgres(&self) -> bool {
        self.store.traits().dialect == Dialect::Postgres
    }

    /// The statement of this dialect.
    fn sql<'a>(&self, postgres: &'a str, sqlite: &'a str) -> &'a str {
        if self.is_postgres() { postgres } else { sqlite }
    }

    /// Does what ends a transaction of this dialect without a word.
    async fn kill(&self, session: &mut dyn Session) {
        let error = if self.is_postgres() {
            session.execute("SELECT 1 / 0", &[]).await.unwrap_err()
        } else {
            session
                .execute(
                    "CREATE TABLE mine (id INTEGER UNIQUE ON CONFLICT ROLLBACK)",
                    &[],
                )
                .await
                .unwrap();
            session
                .execute("INSERT INTO mine VALUES (1)", &[])
                .await
                .unwrap();
            session
                .execute("INSERT INTO mine VALUES (1)", &[])
                .await
                .unwrap_err()
        };
        assert!(
            matches!(
                error,
                StoreError::Statement { .. } | StoreError::Constraint(_)
            ),
            "{error:?}"
        );
        assert!(!session.alive().await);
    }
}

/// Declares the tests of a file, once for each dialect.
macro_rules! in_every_dialect {
    ($($name:ident)*) => {
        mod in_sqlite {
            $(#[tokio::test]
            async fn $name() {
                let fixture = crate::store::contract::Fixture::sqlite().await;
                super::$name(&fixture).await;
                fixture.remove().await;
            })*
        }
        mod in_postgres {
            $(#[tokio::test]
            async fn $name() {
                if let Some(fixture) = crate::store::contract::Fixture::postgres(stringify!($name)).await {
                    super::$name(&fixture).await;
                    fixture.remove().await;
                }
            })*
        }
    };
}
use in_every_dialect;

/// Declares tests that need a server.
macro_rules! on_a_server {
    ($($name:ident)*) => {
        mod on_a_server {
            $(#[tokio::test]
            async fn $name() {
                if let Some(fixture) = crate::store::contract::Fixture::postgres(stringify!($name)).await {
                    super::$name(&fixture).await;
                    fixture.remove().await;
                }
            })*
        }
    };
}
use on_a_server;

/// Declares those tests of a file that hold for the simulation's database too. It knows no SQL, and of operators
/// only that they replay and discard.
macro_rules! in_memory {
    ($($name:ident)*) => {
        mod in_memory {
            $(#[tokio::test]
            async fn $name() {
                super::$name(&crate::store::contract::Fixture::memory()).await;
            })*
        }
    };
}
use in_memory;

/// Runs statements that a test begins with.
async fn execute_all(session: &mut dyn Session, statements: &[&str]) {
    for statement in statements {
        session.execute(statement, &[]).await.unwrap();
    }
}

/// Which tables may be written by many rows at once.
async fn assert_plain(session: &mut dyn Session, tables: &[(Option<&str>, &str, bool)]) {
    for (schema, table, plain) in tables {
        let answer = session.is_plain(*schema, table).await.unwrap();
        assert_eq!(answer, *plain, "{schema:?} {table}");
    }
}

fn rule(consumer: ConsumerId) -> ClaimRule<'static> {
    ClaimRule {
        consumer,
        plugin: b"plugin01",
        retention: Some(HOUR),
    }
}

fn claim(key: &[u8]) -> Claim<'_> {
    Claim {
        key,
        fingerprint: b"fingerprint",
        attempts: 1,
        timestamp_seconds: None,
    }
}

/// Claims keys and commits.
async fn commit_keys(session: &mut dyn Session, consumer: ConsumerId, keys: &[&[u8]]) {
    session.begin().await.unwrap();
    let claims: Vec<Claim<'_>> = keys.iter().map(|key| claim(key)).collect();
    assert_eq!(
        session.claim(rule(consumer), &claims).await.unwrap(),
        vec![true; keys.len()]
    );
    assert_eq!(
        session.finish(consumer, keys).await.unwrap().claims,
        keys.len() as u64
    );
    session.commit().await.unwrap();
}

fn message(body: &str) -> Message {
    Message {
        exchange: "orders".to_owned(),
        routing_key: "order.\0paid.ü".to_owned(),
        properties: every_property(),
        body: Bytes::copy_from_slice(body.as_bytes()),
    }
}

fn waiting(id: &[u8], status: Status) -> WaitingRow {
    WaitingRow {
        id: id.to_vec(),
        key: Some(id.to_vec()),
        fingerprint: b"fingerprint".to_vec(),
        partition: -7,
        status,
        attempts: 2,
        code: "retry".to_owned(),
        error: "not yet".to_owned(),
        stderr: "a line\n".to_owned(),
        backtrace: "handle at src/lib.rs:9:41".to_owned(),
        plugin: vec![0xab; 32],
        trace_id: "0af7651916cd43dd8448eb211c80319c".to_owned(),
        queue: "orders.paid".to_owned(),
        message: message("{}"),
        withheld: None,
    }
}

/// Asks again until there is an answer. For what a server does in its own time: a limit, not a wait.
async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..500 {
        if let Some(answer) = ask().await {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it did not come to pass within five seconds: {what}");
}
