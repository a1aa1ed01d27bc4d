//! What every consumer goes through: it starts, is killed in the middle, starts again, empties its queue
//! and is stopped.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::bail;
use tokio::time::timeout;

use super::broker;
use super::place::{Contestant, Place};
use super::process::Process;
use super::progress::Progress;
use super::screen::Bar;

/// The kill comes after half of the deliveries, and when so many messages are underway: a crash between
/// two messages would show nothing.
const UNDERWAY: u64 = 8;

/// A process that has done everything it was given, and gets nothing for this long, has emptied its queue.
/// Whether it has is seen when it has stopped.
const QUIET: Duration = Duration::from_millis(200);

/// The same for one that was given nothing yet: it may still be starting.
const QUIET_AT_START: Duration = Duration::from_secs(3);

/// Lives after the kill. One is enough, unless a pause was taken for the end.
const LIVES: usize = 5;

/// How it went.
#[derive(Clone, Copy, Debug)]
pub struct Life {
    /// Messages that it was done with when it was killed.
    pub killed_after: u64,
    /// From the first start to the last message, the restart included.
    pub seconds: f64,
}

pub async fn live(
    place: &Place,
    contestant: Contestant,
    plugin: &Path,
    deliveries: u64,
    bar: &Bar,
) -> anyhow::Result<Life> {
    let started = Instant::now();
    let mut process = Process::start(place, contestant, plugin)?;
    let killed_after = loop {
        let Progress {
            handled, underway, ..
        } = process.next().await?;
        bar.at(handled);
        let in_the_middle = handled >= deliveries / 2 && underway >= UNDERWAY;
        if in_the_middle || handled >= deliveries / 4 * 3 {
            break handled;
        }
    };
    process.kill().await?;
    bar.killed(killed_after);

    let mut done = killed_after;
    for _ in 0..LIVES {
        let mut process = Process::start(place, contestant, plugin)?;
        let last = empty(&mut process, done, bar).await?;
        done += process.progress().handled;
        process.stop().await?;
        if broker::left(place, contestant).await? == 0 {
            let seconds = last.duration_since(started).as_secs_f64();
            bar.finish(seconds);
            return Ok(Life {
                killed_after,
                seconds,
            });
        }
    }
    bail!(
        "{} does not get to the end of its queue",
        contestant.title()
    )
}

/// Waits until the queue seems to be empty; returns when the last message was done.
async fn empty(process: &mut Process, done: u64, bar: &Bar) -> anyhow::Result<Instant> {
    let mut last = Instant::now();
    loop {
        let progress = process.progress();
        let quiet = if progress.received == 0 {
            QUIET_AT_START
        } else {
            QUIET
        };
        let news = process.next();
        let news = if progress.is_idle() {
            timeout(quiet, news).await
        } else {
            Ok(news.await)
        };
        match news {
            Ok(progress) => {
                bar.at(done + progress?.handled);
                last = Instant::now();
            }
            Err(_) => return Ok(last),
        }
    }
}
