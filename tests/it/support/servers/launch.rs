//! How a private server is run: as a child process where its programs are installed, or with
//! Docker Compose where `HAPAX_TEST_SERVERS=compose` says so (`tests/run` does).
//!
//! Both can be stopped, killed and started again on the same port with the same data.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::support::children;

/// How long a server may take to stop when asked to, before it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(20);

pub enum Launch {
    Process(Process),
    Compose(Compose),
}

pub struct Process {
    pub command: Box<dyn Fn() -> Command + Send + Sync>,
    pub stop: Signal,
    pub log: PathBuf,
    child: Mutex<Option<Child>>,
}

pub struct Compose {
    file: PathBuf,
    project: String,
}

/// Are the servers to be run with Docker Compose?
pub fn compose_wanted() -> bool {
    std::env::var("HAPAX_TEST_SERVERS").is_ok_and(|value| value == "compose")
}

impl Launch {
    pub fn process(
        log: PathBuf,
        stop: Signal,
        command: impl Fn() -> Command + Send + Sync + 'static,
    ) -> Launch {
        Launch::Process(Process {
            command: Box::new(command),
            stop,
            log,
            child: Mutex::new(None),
        })
    }

    /// One service, described by its lines of a compose file, each indented by four spaces.
    pub fn compose(dir: &Path, name: &str, service: &str) -> anyhow::Result<Launch> {
        let file = dir.join("compose.yaml");
        std::fs::write(&file, format!("services:\n  {name}:\n{service}"))?;
        Ok(Launch::Compose(Compose {
            file,
            project: format!("hapax-it-{}-{}", std::process::id(), fastrand::u32(..)),
        }))
    }

    /// Starts the server, or starts it again. Does not wait until it answers.
    pub fn start(&self) -> anyhow::Result<()> {
        match self {
            Launch::Process(process) => process.start(),
            Launch::Compose(compose) => compose.run(&["up", "--detach"]),
        }
    }

    /// Asks the server to stop, and waits until it has.
    pub fn stop(&self) -> anyhow::Result<()> {
        match self {
            Launch::Process(process) => process.stop(),
            Launch::Compose(compose) => compose.run(&["stop"]),
        }
    }

    /// Kills the server without a word.
    pub fn kill9(&self) -> anyhow::Result<()> {
        match self {
            Launch::Process(process) => process.kill9(),
            Launch::Compose(compose) => compose.run(&["kill", "--signal", "SIGKILL"]),
        }
    }

    /// Has the server ended by itself?
    pub fn has_ended(&self) -> bool {
        match self {
            Launch::Process(process) => process.has_ended(),
            Launch::Compose(_) => false,
        }
    }

    /// Ends the server for good. Its data is of no use to anybody any more, so it is killed.
    pub fn discard(&self) {
        // Nothing depends on the result: what is left over dies with this process.
        let _ = match self {
            Launch::Process(process) => process.kill9(),
            Launch::Compose(compose) => compose.run(&["down", "--volumes", "--timeout", "0"]),
        };
    }

    pub fn log_tail(&self) -> String {
        match self {
            Launch::Process(process) => crate::support::place::tail(&process.log),
            Launch::Compose(compose) => compose.log_tail(),
        }
    }
}

impl Process {
    fn start(&self) -> anyhow::Result<()> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = (self.command)();
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let name = command.get_program().to_string_lossy().into_owned();
        let child = children::spawn(command).with_context(|| format!("cannot start {name}"))?;
        *self.child.lock().expect("no holder of this lock panics") = Some(child);
        Ok(())
    }

    fn stop(&self) -> anyhow::Result<()> {
        let mut slot = self.child.lock().expect("no holder of this lock panics");
        let Some(mut child) = slot.take() else {
            bail!("the server does not run");
        };
        let pid = Pid::from_child(&child);
        kill_process(pid, self.stop)?;
        let started = Instant::now();
        while child.try_wait()?.is_none() {
            if started.elapsed() > STOP_PATIENCE {
                child.kill()?;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn kill9(&self) -> anyhow::Result<()> {
        let mut slot = self.child.lock().expect("no holder of this lock panics");
        if let Some(mut child) = slot.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    fn has_ended(&self) -> bool {
        let mut slot = self.child.lock().expect("no holder of this lock panics");
        match slot.as_mut().map(Child::try_wait) {
            Some(Ok(None)) => false,
            Some(Ok(Some(_)) | Err(_)) | None => true,
        }
    }
}

impl Compose {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command
            .arg("compose")
            .arg("--file")
            .arg(&self.file)
            .args(["--project-name", &self.project])
            .args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let output = self.command(arguments).output()?;
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            bail!("docker compose {}: {error}", arguments.join(" "));
        }
        Ok(())
    }

    fn log_tail(&self) -> String {
        let logs = self.command(&["logs", "--tail", "40"]).output();
        logs.map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
            .unwrap_or_default()
    }
}
