//! One simulated host: the real lanes, the real relay and the real look after waiting messages, between a
//! broker and a database in memory.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::ack::{AckQueue, Window};
use crate::config::{self, Unroutable};
use crate::consumer::{Consumer, Parts};
use crate::effects::outbox::Composer;
use crate::effects::sql::rules::{Grants, Rules};
use crate::lane::{Floor, Lane, Lanes, Origin, Work};
use crate::metrics::Metrics;
use crate::relay::{Lost, Publisher, Relay, Sent};
use crate::sandbox::{Environment, Seeds};
use crate::store::{ConsumerId, Dialect, HostId, OutboxRecord, Store};
use crate::waiting;

use super::faults::Sabotage;
use super::guest::{INSERT_ONE, PLUGIN};
use super::session::ModelStore;
use super::world::World;

const PREFETCH: u16 = 12;
pub const LANES: usize = 2;

/// A running host. Dropping it is a SIGKILL: every task ends where it is, and nobody says goodbye.
pub struct SimulatedHost {
    tasks: JoinSet<()>,
}

impl SimulatedHost {
    pub fn start(world: &Arc<World>, settings: &config::Consumer, number: i32) -> Self {
        let store: Arc<dyn Store> = Arc::new(ModelStore::new(Arc::clone(&world.database)));
        let metrics = Metrics::new();
        let host = HostId(number);
        let consumer = Arc::new(consumer(settings, host, &store, &metrics));
        let publisher = Box::new(SimulatedPublisher {
            world: Arc::clone(world),
        });
        let (relay, handle) =
            Relay::new(Arc::clone(&store), host, publisher, metrics.relay().clone());
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(relay.run(CancellationToken::new(), CancellationToken::new()));
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
        tasks.spawn(waiting::run(Arc::clone(&consumer), lanes.clone(), stop));
        tasks.spawn(source(Arc::clone(world), consumer, lanes));
        Self { tasks }
    }

    /// Ends it without a word, and waits until it is gone.
    pub async fn kill(mut self) {
        self.tasks.abort_all();
        while self.tasks.join_next().await.is_some() {}
    }
}

fn consumer(
    settings: &config::Consumer,
    host: HostId,
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
        frozen: None,
    };
    Consumer::new(settings, parts)
}

/// Consumes, and acknowledges what is settled, on one channel after the other.
async fn source(world: Arc<World>, consumer: Arc<Consumer>, lanes: Lanes) {
    let started = Instant::now();
    let epoch = std::time::Instant::now();
    loop {
        world.faults.round_trip().await;
        let channel = Channel(Arc::clone(&world), world.broker.open_channel());
        let (acks, mut settled) = AckQueue::new();
        let acks = Arc::new(acks);
        let mut window = Window::new(PREFETCH);
        loop {
            let more = world.broker.more.notified();
            while let Some((tag, queued)) = world.broker.deliver(channel.1, PREFETCH.into()) {
                world.faults.round_trip().await;
                if world.faults.sabotage == Sabotage::AckFirst {
                    acks.settle(vec![tag]);
                }
                let origin = Origin::Queue {
                    acks: Arc::clone(&acks),
                    tag,
                };
                let redelivered = queued.redelivered;
                let work = Work::delivered(&consumer, queued.message, redelivered, origin);
                let identity = work.item.identity.as_ref();
                let partition = identity.map_or(0, |identity| identity.partition);
                lanes.send(partition, work).await;
            }
            if world.faults.strikes() {
                world.broker.close_channel(channel.1);
            }
            if !world.broker.is_open(channel.1) {
                break;
            }
            tokio::select! {
                biased;
                tags = settled.recv() => {
                    for tag in tags.into_iter().flatten() {
                        window.settle(tag);
                    }
                }
                () = more => {}
                () = tokio::time::sleep(Duration::from_millis(250)) => {}
            }
            // The window looks at a clock of the machine; here the stopped one stands for it.
            for frame in window.frames(epoch + started.elapsed()) {
                world.faults.round_trip().await;
                world.acknowledge(channel.1, frame.tag, frame.multiple);
            }
        }
        acks.close();
        tokio::time::sleep(Duration::from_millis(world.faults.below(300))).await;
    }
}

/// A channel that gives back what it holds when its host is gone.
struct Channel(Arc<World>, u64);

impl Drop for Channel {
    fn drop(&mut self) {
        self.0.broker.close_channel(self.1);
    }
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
            if faults.strikes() {
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
