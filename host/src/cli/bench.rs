//! `hapax bench`: how fast the safe way is, beside what a user would run instead, on this machine, in one
//! run.
//!
//! Every scenario gets the same messages, in rounds that go through all of them in turn, so that what slows
//! the machine down slows all of them down. A measurement counts only when what it left behind is exactly
//! what had to be done. Everything that is made on servers carries a random name and is removed.

mod embedded;
mod figures;
mod hapax;
mod measure;
mod place;
mod progress;
mod queues;
mod rival;
mod scenario;
mod screen;
mod usage;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

pub use rival::BenchConsumer;

use super::Error;
use super::demo::checkout::{BENCH, build_plugin};
use super::demo::orders::Orders;
use super::demo::place::Surroundings;
use super::demo::{INTERRUPTED, database, explain, percent};
use crate::output;
use figures::{Figures, Report, ratios};
use measure::{Bench, Measured};
use place::Place;
use scenario::{RATES, Scenario};
use screen::Screen;
use usage::Server;

/// Measures Hapax beside what else could consume the same messages: ceilings without a database, and a
/// consumer written by hand
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Messages that each scenario consumes in each round, duplicates included
    #[arg(long, value_name = "N", default_value_t = 30_000,
          value_parser = clap::value_parser!(u32).range(1_000..=10_000_000))]
    messages: u32,

    /// How many of them are duplicates
    #[arg(long, value_name = "PERCENT", default_value = "10%", value_parser = percent)]
    duplicates: f64,

    /// How often everything is measured
    #[arg(long, value_name = "N", default_value_t = 3,
          value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,

    /// Only these scenarios, by their names in the JSON
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,

    /// Repeats the messages of an earlier run
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// A RabbitMQ to use instead of the embedded broker
    #[arg(long, value_name = "URL")]
    amqp: Option<String>,

    /// A Postgres to use instead of SQLite. Needs --amqp: the embedded broker lives in SQLite
    #[arg(long, value_name = "URL", requires = "amqp")]
    database: Option<String>,

    /// Lanes of Hapax's consumer on Postgres; the servers are mostly on this machine, too [default: one for each
    /// processor, 2 at least and 4 at most]
    #[arg(long, value_name = "N", requires = "database",
          value_parser = clap::value_parser!(u16).range(1..=64))]
    lanes: Option<u16>,

    /// Print the figures as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the benchmark. Any measurement that was not exact is an error.
pub async fn run(arguments: BenchArgs) -> Result<ExitCode, Error> {
    let scenarios = chosen(&arguments)?;
    measure_all(&arguments, &scenarios).await.map_err(explain)
}

/// A consumer that Hapax is measured against, in the process that was started for it.
pub async fn run_consumer(consumer: BenchConsumer) -> Result<ExitCode, Error> {
    match rival::run(consumer).await {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => Err(explain(error)),
    }
}

fn chosen(arguments: &BenchArgs) -> Result<Vec<Scenario>, Error> {
    let surroundings = surroundings(arguments);
    let paced = RATES
        .into_iter()
        .flat_map(|rate| [false, true].map(|by_hand| Scenario::Latency { rate, by_hand }));
    let all = Scenario::THROUGHPUT
        .into_iter()
        .chain(paced)
        .filter(|scenario| Place::can(&surroundings, *scenario))
        .collect::<Vec<_>>();
    if arguments.only.is_empty() {
        return Ok(all);
    }
    for name in &arguments.only {
        if !all.iter().any(|scenario| scenario.name() == *name) {
            let names = all.iter().map(|scenario| scenario.name());
            return Err(Error::usage(format!(
                "there is no scenario `{name}` here; there are {}",
                names.collect::<Vec<_>>().join(", ")
            )));
        }
    }
    let wanted = |scenario: &Scenario| arguments.only.contains(&scenario.name());
    Ok(all.into_iter().filter(wanted).collect())
}

fn surroundings(arguments: &BenchArgs) -> Surroundings {
    Surroundings {
        amqp: arguments.amqp.clone(),
        database: arguments.database.clone(),
    }
}

async fn measure_all(arguments: &BenchArgs, scenarios: &[Scenario]) -> anyhow::Result<ExitCode> {
    if let Some(url) = &arguments.database {
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
    };
    tokio::pin!(interrupted);
    let plugin = tokio::select! {
        plugin = build_plugin(BENCH) => plugin?,
        () = &mut interrupted => return Ok(ExitCode::from(INTERRUPTED)),
    };
    let bench = prepare(arguments, plugin);
    let ended = tokio::select! {
        report = rounds(arguments, &bench, scenarios) => {
            report.and_then(|report| tell(arguments, &report))
        }
        () = interrupted => Ok(ExitCode::from(INTERRUPTED)),
    };
    // The consumer is dead by now: dropping the measurement kills it.
    let removed = bench.remove().await;
    let code = ended?;
    removed?;
    Ok(code)
}

fn prepare(arguments: &BenchArgs, plugin: PathBuf) -> Bench {
    let messages = arguments.messages as usize;
    // In range: a percentage of a number that is, and no more than all but one.
    let duplicates =
        (f64::from(arguments.messages) * arguments.duplicates.min(99.0) / 100.0) as usize;
    let seed = arguments
        .seed
        .unwrap_or_else(|| u64::from(fastrand::u32(..)));
    Bench {
        surroundings: surroundings(arguments),
        plugin,
        lanes: arguments.lanes.unwrap_or_else(lanes),
        orders: Orders::generate(messages - duplicates, duplicates, seed),
        database: server(arguments.database.as_deref(), 5432),
        broker: server(arguments.amqp.as_deref(), 5672),
        place: Mutex::new(None),
    }
}

async fn rounds(
    arguments: &BenchArgs,
    bench: &Bench,
    scenarios: &[Scenario],
) -> anyhow::Result<Report> {
    let messages = bench.orders.deliveries.len();
    let rounds = arguments.rounds as usize;
    if !arguments.json {
        let text = screen::introduction(&bench.surroundings, messages, rounds, bench.lanes());
        output::print(&text)?;
    }
    let screen = Screen::new(arguments.json, rounds * scenarios.len());
    let mut measured = scenarios
        .iter()
        .map(|scenario| (*scenario, Vec::<Measured>::with_capacity(rounds)))
        .collect::<Vec<_>>();
    for _ in 0..rounds {
        for (scenario, rounds) in &mut measured {
            screen.begin(*scenario);
            let round = bench.measure(*scenario).await?;
            screen.done(*scenario, round.messages_per_second);
            rounds.push(round);
        }
    }
    screen.end();
    Ok(Report {
        messages,
        unique: bench.orders.unique,
        rounds,
        lanes: bench.lanes(),
        seed: bench.orders.seed,
        ratios: ratios(&measured),
        scenarios: measured
            .iter()
            .map(|(scenario, rounds)| Figures::of(*scenario, rounds))
            .collect(),
    })
}

fn lanes() -> u16 {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    u16::try_from(processors.clamp(2, 4)).unwrap_or(4)
}

fn server(url: Option<&str>, default_port: u16) -> Option<Server> {
    Server::behind(url?, default_port)
}

fn tell(arguments: &BenchArgs, report: &Report) -> anyhow::Result<ExitCode> {
    if arguments.json {
        output::print(&(serde_json::to_string_pretty(report)? + "\n"))?;
    } else {
        output::print(&screen::conclusion(report))?;
    }
    Ok(ExitCode::SUCCESS)
}
