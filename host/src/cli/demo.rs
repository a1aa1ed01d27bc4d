//! `hapax demo`: four consumers get the same messages and the same kill, at the same time, and what each of
//! them did is counted from what it left behind.
//!
//! Owns the story. Everything it makes, on disk and on servers, carries a random name and is removed at
//! the end, also after Ctrl-C. Touches nothing else.

pub(super) mod broker;
pub(super) mod checkout;
pub(super) mod database;
mod hapax;
mod life;
pub(super) mod orders;
pub(super) mod peer;
pub(super) mod place;
pub(super) mod process;
mod progress;
mod screen;
pub(super) mod sqlite;
mod tally;

use std::io;
use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use futures_util::future::try_join_all;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

pub use peer::DemoConsumer;

use super::{BuildError, Error};
use crate::output;
use orders::Orders;
use place::{Contestant, Place, Surroundings};
use screen::Screen;
use tally::Tally;

/// Shows what duplicates and a crash do to four consumers: no protection, two kinds of flags, and Hapax
#[derive(Debug, Args)]
pub struct Demo {
    /// How many distinct orders to publish
    #[arg(long, visible_alias = "messages", value_name = "N", default_value_t = 10_000,
          value_parser = clap::value_parser!(u32).range(1_000..=1_000_000))]
    orders: u32,

    /// How many duplicates to add to them
    #[arg(long, value_name = "PERCENT", default_value = "30%", value_parser = percent)]
    duplicates: f64,

    /// Repeats the messages of an earlier run
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// A RabbitMQ to use instead of the embedded broker
    #[arg(long, value_name = "URL")]
    amqp: Option<String>,

    /// A Postgres to use instead of SQLite. Needs --amqp: the embedded broker lives in SQLite
    #[arg(long, value_name = "URL", requires = "amqp")]
    database: Option<String>,

    /// Print the figures as JSON
    #[arg(long)]
    json: bool,
}

/// The figures.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Published to each consumer, duplicates included.
    pub messages: usize,
    pub unique: usize,
    pub seed: u64,
    pub consumers: Vec<Consumer>,
}

/// What one consumer did.
#[derive(Debug, Serialize)]
pub struct Consumer {
    pub name: &'static str,
    #[serde(flatten)]
    pub tally: Tally,
    /// Messages it was done with when it was killed.
    pub killed_after: u64,
    pub seconds: f64,
}

/// What only the person who typed the command can put right. Everything else that goes wrong on the way
/// is an error of the demo itself.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Unavailable(String),
}

/// What the shell reports of a command that Ctrl-C has ended.
pub(super) const INTERRUPTED: u8 = 130;

/// Runs the demo. The exit code is 1 when Hapax has lost or doubled anything.
pub async fn run(demo: Demo) -> Result<ExitCode, Error> {
    play(&demo).await.map_err(explain)
}

async fn play(demo: &Demo) -> anyhow::Result<ExitCode> {
    if let Some(url) = &demo.database {
        // Before anything is built for it.
        database::options(url, None)?;
    }
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let interrupted = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        ExitCode::from(INTERRUPTED)
    };
    tokio::pin!(interrupted);
    let plugin = tokio::select! {
        plugin = checkout::build_plugin(checkout::POINTS) => plugin?,
        code = &mut interrupted => return Ok(code),
    };
    let place = Place::make(Surroundings {
        amqp: demo.amqp.clone(),
        database: demo.database.clone(),
    })?;
    let ended = tokio::select! {
        report = story(demo, &place, &plugin) => report.and_then(|report| tell(demo, &report)),
        code = &mut interrupted => Ok(code),
    };
    // The consumers are dead by now: dropping the story kills them.
    let removed = remove(&place).await;
    let code = ended?;
    removed?;
    Ok(code)
}

/// The error as the command line tells it, with its exit code.
pub(super) fn explain(error: anyhow::Error) -> Error {
    let error = match error.downcast::<BuildError>() {
        Ok(error) => return error.into(),
        Err(error) => error,
    };
    let error = match error.downcast::<io::Error>() {
        Ok(error) if error.kind() == io::ErrorKind::BrokenPipe => return error.into(),
        Ok(error) => error.into(),
        Err(error) => error,
    };
    let text = format!("{error:#}");
    match error.downcast::<Trouble>() {
        Ok(Trouble::Usage(text)) => Error::usage(text),
        Ok(Trouble::Unavailable(text)) => Error::unavailable(text),
        Err(_) => Error::failed(text),
    }
}

/// One of the consumers, in the process that the demo has started for it.
pub async fn run_consumer(consumer: DemoConsumer) -> Result<ExitCode, Error> {
    match peer::run(consumer).await {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => Err(explain(error)),
    }
}

async fn story(demo: &Demo, place: &Place, plugin: &Path) -> anyhow::Result<Report> {
    let duplicates = (f64::from(demo.orders) * demo.duplicates / 100.0).round();
    let seed = demo.seed.unwrap_or_else(|| u64::from(fastrand::u32(..)));
    // In range: a percentage of a number that is.
    let orders = Orders::generate(demo.orders as usize, duplicates as usize, seed);
    if !demo.json {
        output::print(&screen::introduction(&orders, &place.surroundings))?;
    }
    let screen = Screen::new(demo.json);
    {
        let _publishing = screen.doing("publishing");
        for contestant in Contestant::ALL {
            if place.surroundings.database.is_some() || contestant != Contestant::Hapax {
                database::create(place, contestant).await?;
            }
        }
        broker::publish(place, &orders).await?;
        if place.surroundings.database.is_none() {
            database::create(place, Contestant::Hapax).await?;
        }
    }
    let deliveries = orders.deliveries.len();
    let ids = orders.ids();
    let bars = Contestant::ALL.map(|contestant| screen.bar(contestant, deliveries as u64));
    // At the same time: each waits for the disk and for its own threads for most of it.
    let contests = Contestant::ALL
        .into_iter()
        .zip(&bars)
        .map(async |(contestant, bar)| {
            let life = life::live(place, contestant, plugin, deliveries as u64, bar).await?;
            let effects = database::effects(place, contestant).await?;
            let events = broker::events(place, contestant).await?;
            anyhow::Ok(Consumer {
                name: contestant.title(),
                tally: Tally::count(deliveries, &ids, &effects, &events),
                killed_after: life.killed_after,
                seconds: life.seconds,
            })
        });
    let consumers = try_join_all(contests).await?;
    screen.end();
    Ok(Report {
        messages: deliveries,
        unique: orders.unique,
        seed,
        consumers,
    })
}

fn tell(demo: &Demo, report: &Report) -> anyhow::Result<ExitCode> {
    if demo.json {
        output::print(&(serde_json::to_string_pretty(report)? + "\n"))?;
    } else {
        output::print(&screen::conclusion(report))?;
    }
    Ok(if report.is_exact() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Removes what is on servers. The directory goes when the place is dropped.
async fn remove(place: &Place) -> anyhow::Result<()> {
    let queues = broker::remove(place).await;
    database::remove(place).await?;
    queues
}

impl Report {
    /// Whether Hapax kept its promise.
    pub fn is_exact(&self) -> bool {
        self.consumers
            .iter()
            .any(|consumer| consumer.is_hapax() && consumer.tally.is_exact())
    }
}

impl Consumer {
    pub fn is_hapax(&self) -> bool {
        self.name == Contestant::Hapax.title()
    }
}

/// `30%` or `30`.
pub(super) fn percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim();
    match number.parse::<f64>() {
        Ok(percent) if (0.0..=1_000.0).contains(&percent) => Ok(percent),
        Ok(_) => Err("from 0 to 1000 percent".to_owned()),
        Err(_) => Err("not a percentage: write for example 30%".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentage_may_have_its_sign() {
        assert_eq!(percent("30%"), Ok(30.0));
        assert_eq!(percent("12.5"), Ok(12.5));
        for text in ["", "%", "many", "-1%", "1001", "NaN"] {
            assert!(percent(text).is_err(), "{text}");
        }
    }
}
