//! A process that a command starts for itself: watched, stopped or killed, and never left behind.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{ChildStdout, Command};

/// How long a process may take to stop after SIGTERM.
const STOP_PATIENCE: Duration = Duration::from_secs(30);

/// Lines of a log that are shown when something went wrong.
const TAIL_LINES: usize = 15;

/// Dropping it kills the process.
pub struct Child {
    child: tokio::process::Child,
    log: PathBuf,
}

/// Where the standard output of a process goes. Its standard error goes to its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    Log,
    Pipe,
}

/// The program that is running, as a command.
pub fn this_program() -> anyhow::Result<Command> {
    let binary = std::env::current_exe().context("cannot find the program that is running")?;
    Ok(Command::new(binary))
}

impl Child {
    /// Starts a process. Call it from a task that is not moved between threads: see [`die_with_parent`].
    pub fn spawn(mut command: Command, output: Output, log: PathBuf) -> anyhow::Result<Self> {
        let file = File::options().create(true).append(true).open(&log)?;
        let output = match output {
            Output::Log => file.try_clone()?.into(),
            Output::Pipe => Stdio::piped(),
        };
        command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(file)
            // Ctrl-C in a terminal goes to a whole group of processes. The command's own answer to it is
            // enough.
            .process_group(0)
            .kill_on_drop(true);
        die_with_parent(&mut command);
        let child = command.spawn().context("cannot start a consumer")?;
        Ok(Self { child, log })
    }

    /// What it writes, for the one who asks first.
    pub fn output(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits for its end. Cancel safe.
    pub async fn ended(&mut self) -> anyhow::Result<ExitStatus> {
        Ok(self.child.wait().await?)
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
            bail!("a consumer does not stop after SIGTERM{}", self.tail());
        };
        let status = status?;
        if !status.success() {
            bail!("a consumer did not stop cleanly: {status}{}", self.tail());
        }
        Ok(())
    }

    /// The last lines of its log, as the end of an error.
    pub fn tail(&self) -> String {
        tail(&self.log)
    }
}

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

/// Elsewhere a consumer is killed when the command ends, but not when the command is killed itself.
#[cfg(not(target_os = "linux"))]
fn die_with_parent(_command: &mut Command) {}
