//! The daemon: builds the pipeline from a configuration, watches over it, and drains it.
//!
//! Nothing is consumed before everything that the configuration names has been found and tried. A consumer
//! whose invariants break is stopped alone, loudly; the others go on.

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
use crate::lane::{Broken, Inbox, Lane, Lanes};
use crate::metrics::Metrics;
use crate::plugins;
use crate::relay::{Relay, RelayHandle};
use crate::source::Feed;
use crate::source::amqp::AmqpSource;
use crate::source::embedded::EmbeddedSource;
use crate::store::Store;
use crate::{service, sweep, waiting};

use watch::{Watch, Watched};

pub use start::{StartError, broker_address, environment, open_store, rules, sandbox};
pub use watch::reason as pause_reason;

/// Works that an inbox holds beside the prefetch: rows of `hapax_waiting` that were handed over.
const WAITING_CAPACITY: usize = 256;

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
            give_up: CancellationToken::new(),
            workers: JoinSet::new(),
            sources: JoinSet::new(),
            relay: tokio::spawn(async {}),
            service: tokio::spawn(service::watch(readiness.consumers().to_vec())),
            servers,
            config: Arc::clone(&config),
            store: Arc::clone(&parts.store),
        };
        host.relay = tokio::spawn(relay.run(host.drain_relay.clone(), host.give_up.clone()));
        host.workers
            .spawn(plugins::watch(parts.plugins, host.stop.clone()));
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
        host.workers.spawn(watch.run(host.stop.clone()));
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
        for (number, inbox) in inboxes.into_iter().enumerate() {
            self.start_lane(&consumer, number, inbox, relay, &stop, readiness);
        }
        self.workers.spawn(waiting::run(
            Arc::clone(&consumer),
            lanes.clone(),
            stop.clone(),
        ));
        self.workers
            .spawn(sweep::run(Arc::clone(&consumer), stop.clone()));
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
                };
                self.sources.spawn(source.run());
            }
            None => {
                self.sources.spawn(EmbeddedSource { feed }.run());
            }
        }
    }

    fn start_lane(
        &mut self,
        consumer: &Arc<Consumer>,
        number: usize,
        inbox: Inbox,
        relay: &RelayHandle,
        stop: &CancellationToken,
        readiness: &Arc<Readiness>,
    ) {
        let number = i16::try_from(number).expect("the configuration bounds the lanes");
        let lane = Lane::new(
            Arc::clone(consumer),
            number,
            inbox,
            relay.clone(),
            stop.clone(),
        );
        let (stop, readiness, name) = (stop.clone(), Arc::clone(readiness), consumer.name.clone());
        let up = consumer.metrics.up.clone();
        self.workers.spawn(async move {
            // A lane of its own task: a panic in it is a broken invariant like any other.
            let ended = tokio::spawn(lane.run()).await;
            let reason = match ended {
                Ok(Ok(())) => return,
                Ok(Err(Broken { error, .. })) => error.to_string(),
                Err(panic) => format!("a lane panicked: {panic}"),
            };
            tracing::error!(
                consumer = %name, error = %reason,
                "Consumer stopped: an invariant is broken; nothing of its current batch is acknowledged"
            );
            stop.cancel();
            up.set(0);
            readiness.broken(&name, reason);
        });
    }

    /// Runs until `stop` resolves, and then drains.
    pub async fn run_until(self, stop: impl Future<Output = ()>) -> Exit {
        stop.await;
        self.drain().await
    }

    /// Stops taking messages, lets batches end, acknowledges, empties the relay, leaves.
    async fn drain(mut self) -> Exit {
        let limit = self.config.host.shutdown_timeout;
        tracing::info!(timeout_seconds = limit.as_secs_f64(), "Draining");
        service::stopping();
        let drained = tokio::time::timeout(limit, self.drain_steps())
            .await
            .is_ok();
        self.give_up.cancel();
        if !drained {
            tracing::warn!(
                "The drain was not finished in time; what is not acknowledged comes again"
            );
            // The relay and the sources close their connections when their tasks are dropped.
            self.relay.abort();
            self.sources.abort_all();
            self.workers.abort_all();
        }
        let _ = tokio::time::timeout(Duration::from_secs(1), self.servers.stop()).await;
        let _ = tokio::time::timeout(Duration::from_secs(1), self.store.close()).await;
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
        if let Err(error) = (&mut self.relay).await {
            tracing::error!(%error, "The relay has panicked; its messages are in the outbox");
        }
    }
}
