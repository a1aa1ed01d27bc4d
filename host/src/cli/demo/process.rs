//! A consuming process: started, watched, killed or stopped. It never outlives the demo.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::place::{Contestant, Place};
use super::progress::Progress;
use super::{hapax, peer};

/// How long a process may take to stop after SIGTERM.
const STOP_PATIENCE: Duration = Duration::from_secs(30);

/// How long nothing may happen at all.
const STALL: Duration = Duration::from_secs(30);

/// Lines of a log that are shown when something went wrong.
const TAIL_LINES: usize = 15;

/// Dropping it kills the process.
pub struct Process {
    child: Child,
    progress: watch::Receiver<Progress>,
    watcher: JoinHandle<()>,
    log: PathBuf,
}

impl Process {
    /// Starts a consumer. Call it from a task that is not moved between threads: see [`die_with_parent`].
    pub fn start(place: &Place, contestant: Contestant, plugin: &Path) -> anyhow::Result<Self> {
        let binary = std::env::current_exe().context("cannot find the program that is running")?;
        let mut command = Command::new(binary);
        let log = place.log_of(contestant);
        let file = File::options().create(true).append(true).open(&log)?;
        let health = match contestant {
            Contestant::Peer(strategy) => {
                peer::command(&mut command, place, contestant, strategy).stdout(Stdio::piped());
                None
            }
            Contestant::Hapax => {
                let health = hapax::command(&mut command, place, plugin)?;
                command.stdout(file.try_clone()?);
                Some(health)
            }
        };
        command
            .envs(place.surroundings.variables())
            .stdin(Stdio::null())
            .stderr(file)
            // Ctrl-C in a terminal goes to a whole group of processes. The demo's own answer to it is enough.
            .process_group(0)
            .kill_on_drop(true);
        die_with_parent(&mut command);
        let mut child = command.spawn().context("cannot start a consumer")?;
        let (sender, progress) = watch::channel(Progress::default());
        let watcher = match (health, child.stdout.take()) {
            (Some(health), _) => tokio::spawn(hapax::watch(health, sender)),
            (None, Some(lines)) => tokio::spawn(read(lines, sender)),
            (None, None) => bail!("a consumer has no output"),
        };
        Ok(Self {
            child,
            progress,
            watcher,
            log,
        })
    }

    /// Waits for the next news of how far the process is.
    pub async fn next(&mut self) -> anyhow::Result<Progress> {
        tokio::select! {
            changed = tokio::time::timeout(STALL, self.progress.changed()) => match changed {
                Ok(Ok(())) => Ok(*self.progress.borrow_and_update()),
                // Nobody watches any more: the process is about to end.
                Ok(Err(_)) => {
                    let status = self.child.wait().await?;
                    bail!("a consumer has ended too soon: {status}{}", tail(&self.log))
                }
                Err(_) => bail!("a consumer has stopped working{}", tail(&self.log)),
            },
            status = self.child.wait() => {
                bail!("a consumer has ended too soon: {}{}", status?, tail(&self.log))
            }
        }
    }

    /// How far it is now.
    pub fn progress(&self) -> Progress {
        *self.progress.borrow()
    }

    /// SIGKILL: no time to say goodbye.
    pub async fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill().await.context("cannot kill a consumer")
    }

    /// SIGTERM, and insists on exit code 0.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        let pid = self
            .child
            .id()
            .and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        kill_process(pid.context("a consumer has ended too soon")?, Signal::TERM)?;
        let Ok(status) = tokio::time::timeout(STOP_PATIENCE, self.child.wait()).await else {
            bail!("a consumer does not stop after SIGTERM{}", tail(&self.log));
        };
        let status = status?;
        if !status.success() {
            bail!(
                "a consumer did not stop cleanly: {status}{}",
                tail(&self.log)
            );
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.watcher.abort();
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
pub fn report(sender: &watch::Sender<Progress>, progress: Progress) {
    sender.send_if_modified(|last| std::mem::replace(last, progress) != progress);
}

/// The last lines of a log.
fn tail(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines = text.lines().collect::<Vec<_>>();
    let from = lines.len().saturating_sub(TAIL_LINES);
    if lines.is_empty() {
        String::new()
    } else {
        format!("; its log ends with\n{}", lines[from..].join("\n"))
    }
}

/// Linux kills the child when the thread that started it ends. So consumers are started from the task that
/// the main thread runs.
#[cfg(target_os = "linux")]
fn die_with_parent(command: &mut Command) {
    // SAFETY: the closure makes one prctl system call, which is async-signal-safe, and touches no memory of
    // the parent.
    unsafe {
        command.pre_exec(|| {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            Ok(())
        });
    }
}

/// Elsewhere a consumer is killed when the demo ends, but not when the demo is killed itself.
#[cfg(not(target_os = "linux"))]
fn die_with_parent(_command: &mut Command) {}
