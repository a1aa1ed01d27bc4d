//! One simulated host: the real lanes, the real relay and the real look after waiting messages, between a
//! broker and a database in memory.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::{self, Unroutable};
use crate::consumer::{Consumer, Frozen, Parts};
use crate::effects::outbox::Composer;
use crate::effects::sql::rules::{Grants, Rules};
use crate::lane::{Floor, Lane, Lanes};
use crate::metrics::Metrics;
use crate::relay::{Lost, Publisher, Relay, Sent};
use crate::sandbox::{Environment, Seeds};
use crate::store::{ConsumerId, Dialect, HostId, OutboxRecord, Store};
use crate::{sweep, waiting};

use super::faults::Sabotage;
use super::guest::{INSERT_ONE, PLUGIN};
use super::session::ModelStore;
use super::source;
use super::world::World;

pub const LANES: usize = 2;

/// A running host. Dropping it is a SIGKILL: every task ends where it is, and nobody says goodbye.
pub struct SimulatedHost {
    tasks: JoinSet<()>,
    relay: JoinSet<()>,
    stop: CancellationToken,
    drain_relay: CancellationToken,
}

impl SimulatedHost {
    /// `clock_micros` is what the host takes for the time, whatever the store says.
    pub fn start(
        world: &Arc<World>,
        settings: &config::Consumer,
        number: i32,
        clock_micros: i64,
    ) -> Self {
        let store: Arc<dyn Store> = Arc::new(ModelStore::new(Arc::clone(&world.database)));
        let metrics = Metrics::new();
        let host = HostId(number);
        let consumer = Arc::new(consumer(settings, host, clock_micros, &store, &metrics));
        let publisher = Box::new(SimulatedPublisher {
            world: Arc::clone(world),
        });
        let (relay, handle) =
            Relay::new(Arc::clone(&store), host, publisher, metrics.relay().clone());
        let (stop, drain_relay) = (CancellationToken::new(), CancellationToken::new());
        let (mut tasks, mut relays) = (JoinSet::new(), JoinSet::new());
        relays.spawn(relay.run(drain_relay.clone(), CancellationToken::new()));
        let (lanes, inboxes) = Lanes::new(LANES, 64);
        for (number, inbox) in inboxes.into_iter().enumerate() {
            let number = i16::try_from(number).unwrap_or_default();
            let lane = Lane::new(
                Arc::clone(&consumer),
                number,
                inbox,
                handle.clone(),
                stop.clone(),
                CancellationToken::new(),
            );
            let world = Arc::clone(world);
            tasks.spawn(async move {
                if let Err(broken) = lane.run().await {
                    world.complain(format!("a lane has stopped: {broken}"));
                }
            });
        }
        tasks.spawn(waiting::run(
            Arc::clone(&consumer),
            lanes.clone(),
            stop.clone(),
        ));
        tasks.spawn(sweep::run(Arc::clone(&consumer), stop.clone()));
        tasks.spawn(source::run(
            Arc::clone(world),
            consumer,
            lanes,
            stop.clone(),
        ));
        Self {
            tasks,
            relay: relays,
            stop,
            drain_relay,
        }
    }

    /// Ends it without a word, and waits until it is gone.
    pub async fn kill(mut self) {
        for tasks in [&mut self.tasks, &mut self.relay] {
            tasks.abort_all();
        }
        for tasks in [&mut self.tasks, &mut self.relay] {
            while tasks.join_next().await.is_some() {}
        }
    }

    /// SIGTERM: it finishes what it has begun. False when it could not, and was killed.
    pub async fn leave(mut self, shutdown_timeout: Duration) -> bool {
        self.stop.cancel();
        let drained = tokio::time::timeout(shutdown_timeout, async {
            while self.tasks.join_next().await.is_some() {}
            self.drain_relay.cancel();
            while self.relay.join_next().await.is_some() {}
        });
        let drained = drained.await.is_ok();
        self.kill().await;
        drained
    }
}

fn consumer(
    settings: &config::Consumer,
    host: HostId,
    clock_micros: i64,
    store: &Arc<dyn Store>,
    metrics: &Metrics,
) -> Consumer {
    let none: [&str; 0] = [];
    let grants = Grants::new(Dialect::Sqlite, &none, &["t_effects"], &none);
    let grants = grants.expect("the name is good");
    let target = config::Target {
        exchange: "".into(),
        routing_key: "out".into(),
        persistent: true,
        unroutable: Unroutable::Keep,
    };
    let environment = Environment {
        consumer: settings.name.clone(),
        limits: settings.limits.clone(),
        config: Default::default(),
        composer: Composer {
            consumer: ConsumerId(1),
            targets: [("out".to_owned(), target)].into(),
        },
        rules: Rules::new(Dialect::Sqlite, &grants, 16),
        random: config::Random::Seeded,
        idempotency: config::Idempotency::On,
        seeds: Seeds::new(b"simulation", &settings.name),
        dialect: Dialect::Sqlite,
        generation: 0.into(),
    };
    // A statement that is new is judged on another thread, and comes back in real time.
    let insert = environment.rules.check(INSERT_ONE);
    insert.expect("the handler's statement is allowed");
    let parts = Parts {
        id: ConsumerId(1),
        host,
        store: Arc::clone(store),
        environment: Arc::new(environment),
        metrics: metrics.consumer(&settings.name),
        plugin: Arc::clone(&PLUGIN),
        floor: Floor::default(),
        frozen: Some(Frozen {
            now_micros: clock_micros,
            earlier_attempts: 0,
        }),
    };
    Consumer::new(settings, parts)
}

struct SimulatedPublisher {
    world: Arc<World>,
}

#[async_trait]
impl Publisher for SimulatedPublisher {
    async fn publish(&mut self, rows: &[OutboxRecord]) -> Result<Vec<Sent>, Lost> {
        let faults = &self.world.faults;
        let mut sent = Vec::with_capacity(rows.len());
        for record in rows {
            faults.round_trip().await;
            if faults.strikes() {
                return Err(Lost("the connection was lost".into()));
            }
            // What may be dropped is not published as mandatory.
            if !record.row.may_drop && faults.strikes() {
                sent.push(Sent::Returned("no queue is bound".into()));
                continue;
            }
            if faults.sabotage == Sabotage::DeleteFirst {
                let (world, record) = (Arc::clone(&self.world), record.clone());
                tokio::spawn(async move {
                    world.faults.round_trip().await;
                    world.arrive(&record);
                });
            } else {
                self.world.arrive(record);
            }
            sent.push(Sent::Confirmed);
        }
        faults.round_trip().await;
        if faults.strikes() {
            return Err(Lost("the connection was lost before the confirms".into()));
        }
        Ok(sent)
    }

    async fn close(&mut self) {}
}
