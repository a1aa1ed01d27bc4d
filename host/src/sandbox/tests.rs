//! Messages run in small components that misbehave in one way each.

pub(crate) mod component;
mod executor;
mod loading;
mod repeating;
mod running;
mod session;
mod views;

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use lapin::BasicProperties;

use super::*;
use crate::config::{Target, Unroutable};
use crate::effects::Isolation;
use crate::effects::sql::rules::{self, Grants};
use crate::store::{ConsumerId, Traits};

use session::{FakeSession, Journal};

const MIB: u64 = 1024 * 1024;

/// One for all tests, as one serves all consumers of a process.
static SANDBOX: LazyLock<Arc<Sandbox>> = LazyLock::new(sandbox);

fn sandbox() -> Arc<Sandbox> {
    let options = SandboxOptions {
        concurrent_instances: 8,
        max_memory: 64 * MIB,
        max_table_elements: 100_000,
        metered: false,
        compile_timeout: crate::config::COMPILE_TIMEOUT,
    };
    Sandbox::new(options).expect("the engine starts")
}

pub(super) fn load(component: &[u8]) -> Plugin {
    load_into(&SANDBOX, component)
}

fn load_into(sandbox: &Arc<Sandbox>, component: &[u8]) -> Plugin {
    Plugin::from_bytes(sandbox, "test.wasm", component).expect("the component loads")
}

/// A consumer that may write the tables whose names the fake session knows. Its limits of time are for tests that
/// set them: on a busy machine anything may take long.
fn environment() -> Environment {
    let write = ["t_rows", "t_slow", "t_taken", "t_lost"];
    let none: [&str; 0] = [];
    let grants = Grants::new(rules::Dialect::Postgres, &none[..], &write[..], &none[..])
        .expect("the names are good");
    let target = Target {
        exchange: "events".into(),
        routing_key: "done".into(),
        persistent: true,
        unroutable: Unroutable::Keep,
    };
    Environment {
        consumer: "tests".into(),
        limits: Limits {
            cpu: Duration::from_secs(60),
            wall: Duration::from_secs(60),
            ..Limits::default()
        },
        config: BTreeMap::from([("rate".into(), "10".into())]).into(),
        composer: Composer {
            consumer: ConsumerId(1),
            targets: BTreeMap::from([("events".into(), target)]),
        },
        rules: Rules::new(rules::Dialect::Postgres, &grants, 100),
        random: Random::Seeded,
        idempotency: Idempotency::On,
        seeds: Seeds::new(b"the store's secret", "tests"),
        dialect: Dialect::Postgres,
        generation: 1.into(),
    }
}

fn attempt(key: &str) -> Attempt {
    Attempt {
        message: Arc::new(Message {
            exchange: String::new(),
            routing_key: "orders".into(),
            properties: BasicProperties::default(),
            body: Bytes::from_static(b"{}"),
        }),
        key: Arc::from(key.as_bytes()),
        number: 1,
        redelivered: false,
        now_micros: 1_700_000_000_123_456,
        lane: 0,
    }
}

fn transaction() -> (Transaction, Journal) {
    transaction_on(FakeSession::default())
}

/// Each statement waits for some epochs of the sandbox's clock.
fn slow_transaction() -> (Transaction, Journal) {
    transaction_on(FakeSession {
        wait: Some((Arc::clone(SANDBOX.pulse()), 5)),
        ..FakeSession::default()
    })
}

fn transaction_on(session: FakeSession) -> (Transaction, Journal) {
    let journal = Arc::clone(&session.journal);
    let traits = Traits {
        dialect: Dialect::Postgres,
        error_kills_transaction: true,
        single_writer: false,
        max_savepoints: 64,
        max_parameters: 65_535,
    };
    (
        Transaction::new(
            Box::new(session),
            traits,
            ConsumerId(1),
            Isolation::Savepoints,
            false,
        ),
        journal,
    )
}

async fn run_in(environment: Environment, component: &[u8]) -> Run {
    load(component)
        .run(&Arc::new(environment), attempt("key"), transaction().0)
        .await
}

pub(super) async fn run_loaded(plugin: &Plugin) -> Run {
    plugin
        .run(&Arc::new(environment()), attempt("key"), transaction().0)
        .await
}

async fn run(component: &[u8]) -> Run {
    run_in(environment(), component).await
}

/// The failure that a run ended in.
pub(super) fn failure(run: Run) -> Failure {
    match run.verdict {
        Verdict::Failed(failure) => failure,
        other => panic!("the run did not fail: {other:?}"),
    }
}
