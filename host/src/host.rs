//! The daemon: builds the pipeline from a configuration, watches over it, and drains it.
//!
//! Nothing is consumed before everything that the configuration names has been found and tried. A consumer
//! whose invariants break is stopped alone, loudly; the others go on.

mod guard;
mod start;
mod watch;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::consumer::Consumer;
use crate::failpoint::{self, Point};
use crate::http::{self, Readiness};
use crate::lane::{Inbox, Lane, Lanes};
use crate::metrics::Metrics;
use crate::plugins;
use crate::relay::{Relay, RelayHandle};
use crate::source::Feed;
use crate::source::amqp::AmqpSource;
use crate::source::embedded::EmbeddedSource;
use crate::store::Store;
use crate::{service, sweep, waiting};

use guard::Guard;
use watch::{Watch, Watched};

pub use start::{
    StartError, broker_address, environment, inspect, open_store, rules, sandbox, warnings,
};
pub use watch::reason as pause_reason;

/// Works that an inbox holds beside the prefetch: rows of `hapax_waiting` that were handed over.
const WAITING_CAPACITY: usize = 256;

/// How long lanes may take to roll back what they drop, and to take back the starts that are on record.
const ABANDON_PATIENCE: Duration = Duration::from_secs(2);

/// How a host ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Everything that was begun is finished or rolled back.
    Drained,
    /// `host.shutdown-timeout` was over first. Nothing is lost: what was not acknowledged comes again.
    TimedOut,
}

/// A running host.
pub struct Host {
    config: Arc<config::Config>,
    store: Arc<dyn Store>,
    /// No new messages, no new batches.
    stop: CancellationToken,
    /// The relay empties its memory.
    drain_relay: CancellationToken,
    /// Lanes drop what they run.
    abandon: CancellationToken,
    /// Whatever is left is left.
    give_up: CancellationToken,
    /// Lanes, waiting and sweep of all consumers.
    workers: JoinSet<()>,
    sources: JoinSet<()>,
    relay: tokio::task::JoinHandle<()>,
    servers: http::Servers,
    /// What the service manager hears while the host lives.
    service: tokio::task::JoinHandle<()>,
}

impl Host {
    /// Builds and starts everything.
    pub async fn start(config: Arc<config::Config>) -> Result<Self, StartError> {
        let store = open_store(&config)?;
        Self::start_on(store, config).await
    }

    /// The same on a store that is open already.
    pub async fn start_on(
        store: Arc<dyn Store>,
        config: Arc<config::Config>,
    ) -> Result<Self, StartError> {
        let metrics = Metrics::new();
        let parts = start::parts(&config, store, &metrics).await?;
        let readiness = Arc::new(Readiness::new(
            parts
                .consumers
                .iter()
                .map(|(consumer, _)| Arc::clone(consumer)),
        ));
        let servers = http::Servers::start(&config, &metrics, &readiness, &parts.store)
            .await
            .map_err(StartError::Listen)?;

        let (relay, handle) = Relay::new(
            Arc::clone(&parts.store),
            parts.host,
            parts.publisher,
            metrics.relay().clone(),
        );
        let mut watched = Vec::with_capacity(parts.consumers.len());
        let mut host = Self {
            stop: CancellationToken::new(),
            drain_relay: CancellationToken::new(),
            abandon: CancellationToken::new(),
            give_up: CancellationToken::new(),
            workers: JoinSet::new(),
            sources: JoinSet::new(),
            relay: tokio::spawn(async {}),
            service: tokio::spawn(service::watch(readiness.consumers().to_vec())),
            servers,
            config: Arc::clone(&config),
            store: Arc::clone(&parts.store),
        };
        // What all consumers depend on.
        let all = Guard {
            consumers: readiness.consumers().to_vec(),
            stop: host.stop.clone(),
            readiness: Arc::clone(&readiness),
        };
        let relay = relay.run(host.drain_relay.clone(), host.give_up.clone());
        host.relay = tokio::spawn(all.clone().over("relay", relay));
        let plugins = plugins::watch(parts.plugins, host.stop.clone());
        host.workers
            .spawn(all.clone().over("watch over plugins", plugins));
        for (consumer, settings) in parts.consumers {
            let stop = host.stop.child_token();
            watched.push(Watched::new(&consumer, settings, stop.clone()));
            host.start_consumer(
                consumer,
                settings,
                stop,
                &handle,
                parts.broker.as_ref(),
                &readiness,
            );
        }
        service::ready(readiness.consumers());
        let watch = Watch::new(Arc::clone(&parts.store), parts.session, watched, readiness);
        let watch = watch.run(host.stop.clone());
        host.workers.spawn(all.over("watch over operators", watch));
        Ok(host)
    }

    fn start_consumer(
        &mut self,
        consumer: Arc<Consumer>,
        settings: &config::Consumer,
        // A consumer of its own accord stops with its token; all of them stop with the host's.
        stop: CancellationToken,
        relay: &RelayHandle,
        broker: Option<&crate::amqp::Address>,
        readiness: &Arc<Readiness>,
    ) {
        let capacity = usize::from(settings.prefetch) + WAITING_CAPACITY;
        let (lanes, inboxes) = Lanes::new(settings.lanes, capacity);
        let guard = Guard {
            consumers: vec![Arc::clone(&consumer)],
            stop: stop.clone(),
            readiness: Arc::clone(readiness),
        };
        for (number, inbox) in inboxes.into_iter().enumerate() {
            self.start_lane(&consumer, number, inbox, relay, &guard);
        }
        let waiting = waiting::run(Arc::clone(&consumer), lanes.clone(), stop.clone());
        self.workers
            .spawn(guard.clone().over("look at waiting messages", waiting));
        let sweep = sweep::run(Arc::clone(&consumer), stop.clone());
        self.workers.spawn(guard.clone().over("sweep", sweep));
        let feed = Feed {
            consumer,
            lanes,
            prefetch: settings.prefetch,
            stop,
        };
        match broker {
            Some(address) => {
                let source = AmqpSource {
                    feed,
                    address: address.clone(),
                    declare: settings.declare.clone(),
                    consumer_timeout: self.config.broker.consumer_timeout,
                    prefetch_bytes: settings.prefetch_bytes,
                    max_parked_bytes: settings.max_parked_bytes,
                };
                self.sources.spawn(guard.over("source", source.run()));
            }
            None => {
                let source = EmbeddedSource {
                    feed,
                    prefetch_bytes: settings.prefetch_bytes,
                };
                self.sources.spawn(guard.over("source", source.run()));
            }
        }
    }

    fn start_lane(
        &mut self,
        consumer: &Arc<Consumer>,
        number: usize,
        inbox: Inbox,
        relay: &RelayHandle,
        guard: &Guard,
    ) {
        let number = i16::try_from(number).expect("the configuration bounds the lanes");
        let lane = Lane::new(
            Arc::clone(consumer),
            number,
            inbox,
            relay.clone(),
            guard.stop.clone(),
            self.abandon.clone(),
        );
        self.workers
            .spawn(guard.clone().over_lane("lane", lane.run()));
    }

    /// Runs until `stop` resolves, and then drains; until `hurry` resolves, if that is sooner than the end.
    pub async fn run_until(
        self,
        stop: impl Future<Output = ()>,
        hurry: impl Future<Output = ()>,
    ) -> Exit {
        stop.await;
        self.drain(hurry).await
    }

    /// Stops taking messages, lets batches end, acknowledges, empties the relay, leaves.
    async fn drain(mut self, hurry: impl Future<Output = ()>) -> Exit {
        let limit = self.config.host.shutdown_timeout;
        tracing::info!(timeout_seconds = limit.as_secs_f64(), "Draining");
        service::stopping();
        let drained = tokio::select! {
            drained = tokio::time::timeout(limit, self.drain_steps()) => drained.is_ok(),
            () = hurry => false,
        };
        self.give_up.cancel();
        if !drained {
            tracing::warn!(
                "The drain was not finished in time; what is not acknowledged comes again"
            );
            // What the lanes drop was ended by the host, and must not count as a crash of it.
            self.abandon.cancel();
            let ended = async { while self.workers.join_next().await.is_some() {} };
            let _ = tokio::time::timeout(ABANDON_PATIENCE, ended).await;
            // The relay and the sources close their connections when their tasks are dropped.
            self.relay.abort();
            self.sources.abort_all();
            self.workers.abort_all();
        }
        let _ = tokio::time::timeout(Duration::from_secs(1), self.servers.stop()).await;
        let _ = tokio::time::timeout(Duration::from_secs(1), self.store.close()).await;
        self.service.abort();
        if drained {
            Exit::Drained
        } else {
            Exit::TimedOut
        }
    }

    async fn drain_steps(&mut self) {
        self.stop.cancel();
        while self.workers.join_next().await.is_some() {}
        // Each leaves its queue when its lanes have ended.
        while self.sources.join_next().await.is_some() {}
        failpoint::pass(Point::AfterLastAcks);
        self.drain_relay.cancel();
        // What it has not sent is in the outbox.
        let _ = (&mut self.relay).await;
    }
}
