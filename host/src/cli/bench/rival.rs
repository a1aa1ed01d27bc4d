//! What Hapax is measured against, in a process of its own: two ceilings without a database, and the
//! consumer that a careful engineer writes.
//!
//! The hand-written one keeps the same promise with the same rows and the same messages: ledger, business
//! row and outbox row in one transaction, the acknowledgement after it, a relay that deletes what the
//! broker has confirmed. It works on 32 messages at a time, each in a transaction of its own.

mod by_hand;
mod ceiling;
mod hand;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::place::{Corner, Place};
use super::progress::Progress;
use crate::cli::demo::place::Surroundings;

/// How often the process says how far it is.
const REPORT_EVERY: Duration = Duration::from_millis(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    Drain,
    Forward,
    ByHand,
    ByHandNoOutbox,
}

/// A consumer that Hapax is measured against, in a process of its own.
#[derive(Debug, Args)]
pub struct BenchConsumer {
    #[arg(long)]
    kind: Kind,
    /// Where its files are
    #[arg(long)]
    dir: PathBuf,
    /// The schema of its tables and the beginning of its queues' names
    #[arg(long)]
    name: String,
}

/// What the consumers count.
#[derive(Default)]
pub struct Counts {
    handled: AtomicU64,
    emitted: AtomicU64,
}

impl Counts {
    fn handled(&self, messages: usize) {
        self.handled.fetch_add(messages as u64, Ordering::Relaxed);
    }

    fn emitted(&self, events: usize) {
        self.emitted.fetch_add(events as u64, Ordering::Relaxed);
    }

    fn report(&self) -> anyhow::Result<()> {
        let progress = Progress {
            handled: self.handled.load(Ordering::Relaxed),
            emitted: self.emitted.load(Ordering::Relaxed),
        };
        progress.print().context("the benchmark no longer listens")
    }
}

/// Consumes until SIGTERM.
pub async fn run(arguments: BenchConsumer) -> anyhow::Result<()> {
    let mut stopped = signal(SignalKind::terminate())?;
    let corner = Corner {
        surroundings: Surroundings::from_environment(),
        dir: arguments.dir,
        name: arguments.name,
    };
    let counts = Arc::new(Counts::default());
    let stop = CancellationToken::new();
    let mut work = tokio::spawn({
        let (counts, stop) = (Arc::clone(&counts), stop.clone());
        async move {
            match arguments.kind {
                Kind::Drain => ceiling::run(&corner, false, &counts, &stop).await,
                Kind::Forward => ceiling::run(&corner, true, &counts, &stop).await,
                Kind::ByHand => by_hand::run(&corner, true, counts, stop).await,
                Kind::ByHandNoOutbox => by_hand::run(&corner, false, counts, stop).await,
            }
        }
    });
    let mut report = tokio::time::interval(REPORT_EVERY);
    loop {
        tokio::select! {
            _ = stopped.recv() => stop.cancel(),
            _ = report.tick() => counts.report()?,
            ended = &mut work => {
                counts.report()?;
                return ended?;
            }
        }
    }
}

/// How to run such a consumer.
pub fn command(command: &mut Command, place: &Place, kind: Kind) {
    let kind = kind.to_possible_value().expect("no kind is hidden");
    command
        .arg("bench-consumer")
        .args(["--kind", kind.get_name()])
        .args(["--name", &place.name])
        .arg("--dir")
        .arg(&place.dir);
}
