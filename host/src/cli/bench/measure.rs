//! One measurement: the queue is filled, the consumer starts, the clock runs from its first messages to its
//! last, and what it left behind is counted.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::watch;

use super::place::Place;
use super::progress::Progress;
use super::scenario::{PACED, Runner, Scenario};
use super::usage::{self, Server};
use super::{embedded, hapax, queues, rival};
use crate::cli::child::{Child, Output, this_program};
use crate::cli::demo::orders::{Order, Orders};
use crate::cli::demo::place::Surroundings;
use crate::cli::demo::process::report;

/// How long nothing may happen at all.
const STALL: Duration = Duration::from_secs(60);

/// What every measurement of a run shares.
pub struct Bench {
    pub surroundings: Surroundings,
    pub plugin: PathBuf,
    /// Of Hapax's consumer, where the store can have more than one.
    pub lanes: u16,
    pub orders: Orders,
    pub database: Option<Server>,
    pub broker: Option<Server>,
    /// Where the measurement is that runs now, or that was interrupted.
    pub place: Mutex<Option<Arc<Place>>>,
}

/// What one measurement showed.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    pub messages_per_second: f64,
    /// CPU time for 1,000 messages, in milliseconds.
    pub host_cpu: Option<f64>,
    pub database_cpu: Option<f64>,
    pub broker_cpu: Option<f64>,
    pub rss_bytes: Option<u64>,
    /// Of a paced run: from publish to the event's arrival, sorted.
    pub latencies: Vec<Duration>,
}

impl Bench {
    /// How many lanes Hapax's consumer has: SQLite's one writer is one lane.
    pub fn lanes(&self) -> u16 {
        match self.surroundings.database {
            Some(_) => self.lanes,
            None => 1,
        }
    }

    /// Runs one scenario once, in a place of its own.
    pub async fn measure(&self, scenario: Scenario) -> anyhow::Result<Measured> {
        let place = Arc::new(Place::new(&self.surroundings)?);
        *self.current() = Some(Arc::clone(&place));
        let measured = async {
            place.make().await?;
            self.measure_in(&place, scenario).await
        };
        let measured = measured
            .await
            .with_context(|| format!("{} was not measured", scenario.name()));
        let removed = self.remove().await;
        let measured = measured?;
        removed?;
        Ok(measured)
    }

    /// Removes what the last measurement has made on servers, if it did not do so itself.
    pub async fn remove(&self) -> anyhow::Result<()> {
        let place = self.current().take();
        match place {
            Some(place) => place.remove().await,
            None => Ok(()),
        }
    }

    fn current(&self) -> MutexGuard<'_, Option<Arc<Place>>> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn measure_in(&self, place: &Place, scenario: Scenario) -> anyhow::Result<Measured> {
        if let Some(rate) = scenario.rate() {
            return self.pace(place, scenario, rate).await;
        }
        let orders = &self.orders.deliveries;
        if scenario == Scenario::Duplicates {
            // What is measured comes when the ledger knows every order.
            fill(place, orders).await?;
            let mut consumer = Consumer::start(place, scenario, self)?;
            consumer.reach(orders.len() as u64, 0).await?;
            consumer.stop().await?;
        }
        fill(place, orders).await?;
        place.settle_down().await?;
        let deliveries = orders.len() as u64;
        let events = scenario.events(deliveries, self.orders.unique as u64);

        let mut consumer = Consumer::start(place, scenario, self)?;
        let (first, began) = consumer.begin().await?;
        let before = self.used(&consumer);
        consumer.reach(deliveries, events).await?;
        let ended = Instant::now();
        let after = self.used(&consumer);
        let rss_bytes = consumer.child.pid().and_then(usage::peak_rss);
        let started = consumer.started;
        consumer.stop().await?;
        self.verify(place, scenario, deliveries, events).await?;

        // So few that they were done when somebody looked first: the start of the process counts, too.
        let at_once = first.handled >= deliveries;
        let messages = if at_once {
            deliveries
        } else {
            deliveries - first.handled
        } as f64;
        let began = if at_once { started } else { began };
        let seconds = ended.duration_since(began).as_secs_f64();
        let each = |place: usize| {
            if at_once {
                return None;
            }
            let used = after[place]?.checked_sub(before[place]?)?;
            Some(used.as_secs_f64() * 1e6 / messages)
        };
        Ok(Measured {
            messages_per_second: messages / seconds,
            host_cpu: each(0),
            database_cpu: each(1),
            broker_cpu: each(2),
            rss_bytes,
            latencies: Vec::new(),
        })
    }

    async fn pace(&self, place: &Place, scenario: Scenario, rate: u32) -> anyhow::Result<Measured> {
        let url = self.surroundings.amqp.as_deref();
        let url = url.context("a paced run needs --amqp")?;
        let consumer = Consumer::start(place, scenario, self)?;
        // The first second warms everything up, and is not counted.
        let warm = rate as usize;
        let wanted = warm + rate as usize * usize::try_from(PACED.as_secs())?;
        let orders = Orders::generate(wanted, 0, self.orders.seed);
        queues::pace(url, place, &orders.deliveries[..warm], rate).await?;
        let before = self.used(&consumer);
        let began = Instant::now();
        let paced = &orders.deliveries[warm..];
        let mut latencies = queues::pace(url, place, paced, rate).await?;
        let seconds = began.elapsed().as_secs_f64();
        let after = self.used(&consumer);
        let rss_bytes = consumer.child.pid().and_then(usage::peak_rss);
        consumer.stop().await?;
        latencies.sort_unstable();
        let each = |place: usize| {
            let used = after[place]?.checked_sub(before[place]?)?;
            Some(used.as_secs_f64() * 1e6 / paced.len() as f64)
        };
        Ok(Measured {
            messages_per_second: paced.len() as f64 / seconds,
            host_cpu: each(0),
            database_cpu: each(1),
            broker_cpu: each(2),
            rss_bytes,
            latencies,
        })
    }

    /// CPU time so far: of the consumer, the database, the broker.
    fn used(&self, consumer: &Consumer) -> [Option<Duration>; 3] {
        [
            consumer.child.pid().and_then(usage::cpu),
            self.database.and_then(Server::cpu),
            self.broker.and_then(Server::cpu),
        ]
    }

    /// A figure counts only when everything was done, and done once.
    async fn verify(
        &self,
        place: &Place,
        scenario: Scenario,
        deliveries: u64,
        events: u64,
    ) -> anyhow::Result<()> {
        let (left, emitted) = place.depths().await?;
        ensure!(
            left == 0,
            "{left} of {deliveries} messages are still in the queue"
        );
        ensure!(
            emitted == events,
            "{emitted} events came out in place of {events}"
        );
        if scenario.writes() {
            let unique = self.orders.unique as u64;
            let (rows, distinct) = place.rows(scenario.runner()).await?;
            ensure!(
                (rows, distinct) == (unique, unique),
                "the table has {rows} rows of {distinct} orders in place of {unique}"
            );
        }
        Ok(())
    }
}

async fn fill(place: &Place, orders: &[Order]) -> anyhow::Result<()> {
    match &place.surroundings.amqp {
        Some(url) => queues::fill(url, place, orders).await,
        None => embedded::fill(place, orders).await,
    }
}

/// The measured process.
struct Consumer {
    started: Instant,
    child: Child,
    progress: watch::Receiver<Progress>,
}

impl Consumer {
    fn start(place: &Place, scenario: Scenario, bench: &Bench) -> anyhow::Result<Self> {
        let started = Instant::now();
        let mut command = this_program()?;
        command.envs(place.surroundings.variables());
        let (sender, progress) = watch::channel(Progress::default());
        let child = match scenario.runner() {
            Runner::Hapax(handler) => {
                let (plugin, lanes) = (&bench.plugin, bench.lanes());
                let health = hapax::command(&mut command, place, plugin, handler, lanes)?;
                let child = Child::spawn(command, Output::Log, place.log())?;
                tokio::spawn(hapax::watch(health, sender));
                child
            }
            Runner::Rival(kind) => {
                rival::command(&mut command, place, kind);
                let mut child = Child::spawn(command, Output::Pipe, place.log())?;
                let output = child.output().context("a consumer has no output")?;
                tokio::spawn(async move {
                    let mut lines = BufReader::new(output).lines();
                    while let Ok(Some(line)) = lines.next_line().await {
                        if let Some(progress) = Progress::parse(&line) {
                            report(&sender, progress);
                        }
                    }
                });
                child
            }
        };
        Ok(Self {
            started,
            child,
            progress,
        })
    }

    /// Waits for the first messages: what came before is the start of a process.
    async fn begin(&mut self) -> anyhow::Result<(Progress, Instant)> {
        let progress = self.until(|progress| progress.handled > 0).await?;
        Ok((progress, Instant::now()))
    }

    /// Waits until everything is done.
    async fn reach(&mut self, deliveries: u64, events: u64) -> anyhow::Result<()> {
        let done =
            |progress: &Progress| progress.handled >= deliveries && progress.emitted >= events;
        self.until(done).await?;
        Ok(())
    }

    async fn until(&mut self, done: impl Fn(&Progress) -> bool) -> anyhow::Result<Progress> {
        loop {
            let progress = *self.progress.borrow_and_update();
            if done(&progress) {
                return Ok(progress);
            }
            tokio::select! {
                changed = tokio::time::timeout(STALL, self.progress.changed()) => {
                    if changed.is_err() {
                        bail!("a consumer has stopped working{}", self.child.tail());
                    }
                }
                status = self.child.ended() => {
                    bail!("a consumer has ended too soon: {}{}", status?, self.child.tail());
                }
            }
        }
    }

    async fn stop(self) -> anyhow::Result<()> {
        self.child.stop().await
    }
}
