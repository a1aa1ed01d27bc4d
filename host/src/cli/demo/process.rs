//! A consuming process: started, watched, killed or stopped. It never outlives the demo.

use std::path::Path;
use std::time::Duration;

use anyhow::bail;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::ChildStdout;
use tokio::sync::watch;

use super::place::{Contestant, Place};
use super::progress::Progress;
use super::{hapax, peer};
use crate::cli::child::{Child, Output, this_program};

/// How long nothing may happen at all.
const STALL: Duration = Duration::from_secs(30);

/// Dropping it kills the process.
pub struct Process {
    child: Child,
    progress: watch::Receiver<Progress>,
}

impl Process {
    /// Starts a consumer. Call it from a task that is not moved between threads: see [`Child::spawn`].
    pub fn start(place: &Place, contestant: Contestant, plugin: &Path) -> anyhow::Result<Self> {
        let mut command = this_program()?;
        command.envs(place.surroundings.variables());
        let health = match contestant {
            Contestant::Peer(strategy) => {
                peer::command(&mut command, place, contestant, strategy);
                None
            }
            Contestant::Hapax => Some(hapax::command(&mut command, place, plugin)?),
        };
        let output = match health {
            Some(_) => Output::Log,
            None => Output::Pipe,
        };
        let mut child = Child::spawn(command, output, place.log_of(contestant))?;
        let (sender, progress) = watch::channel(Progress::default());
        // Both end when nobody wants to know any more.
        match (health, child.output()) {
            (Some(health), _) => tokio::spawn(hapax::watch(health, sender)),
            (None, Some(lines)) => tokio::spawn(read(lines, sender)),
            (None, None) => bail!("a consumer has no output"),
        };
        Ok(Self { child, progress })
    }

    /// Waits for the next news of how far the process is.
    pub async fn next(&mut self) -> anyhow::Result<Progress> {
        tokio::select! {
            changed = tokio::time::timeout(STALL, self.progress.changed()) => match changed {
                Ok(Ok(())) => Ok(*self.progress.borrow_and_update()),
                // Nobody watches any more: the process is about to end.
                Ok(Err(_)) => {
                    let status = self.child.ended().await?;
                    bail!("a consumer has ended too soon: {status}{}", self.child.tail())
                }
                Err(_) => bail!("a consumer has stopped working{}", self.child.tail()),
            },
            status = self.child.ended() => {
                bail!("a consumer has ended too soon: {}{}", status?, self.child.tail())
            }
        }
    }

    /// How far it is now.
    pub fn progress(&self) -> Progress {
        *self.progress.borrow()
    }

    /// SIGKILL: no time to say goodbye.
    pub async fn kill(self) -> anyhow::Result<()> {
        self.child.kill().await
    }

    /// SIGTERM, and insists on exit code 0.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.child.stop().await
    }
}

/// Hands on the lines that a consumer writes.
async fn read(lines: ChildStdout, sender: watch::Sender<Progress>) {
    let mut lines = BufReader::new(lines).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some(progress) = Progress::parse(&line) {
            report(&sender, progress);
        }
    }
}

/// Tells only what is new.
pub fn report<P: PartialEq + Copy>(sender: &watch::Sender<P>, progress: P) {
    sender.send_if_modified(|last| {
        let new = *last != progress;
        *last = progress;
        new
    });
}
