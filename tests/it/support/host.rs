//! The real binary: a configuration on disk, `hapax run` as a child process that can be killed,
//! and its other commands.

mod config;
mod metrics;

pub use config::{Config, Consumer, UNHURRIED, guest};

use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use hapax::failpoint::Point;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::place::{self, Place};
use super::{children, wait};
use metrics::Metrics;

const BINARY: &str = env!("CARGO_BIN_EXE_hapax");

/// Every command but `run` ends by itself, and soon.
const COMMAND_PATIENCE: Duration = Duration::from_secs(60);

/// A build, of a component that brings its own runtime among them, on a busy machine.
const BUILD_PATIENCE: Duration = Duration::from_secs(300);

/// A running `hapax run`. Dropping it kills it.
pub struct Host {
    child: Child,
    config_file: PathBuf,
    log: PathBuf,
    health: SocketAddr,
}

/// A command that has ended.
#[derive(Debug)]
pub struct Ended {
    /// Absent when a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Host {
    /// Starts the host and waits until it says that it is ready.
    pub async fn start(place: &Place, config: &Config) -> anyhow::Result<Host> {
        let mut host = Host::launch(place, config)?;
        host.until_ready().await?;
        Ok(host)
    }

    /// The same for plugins that take their time to compile.
    pub async fn start_patiently(place: &Place, config: &Config) -> anyhow::Result<Host> {
        let mut host = Host::launch(place, config)?;
        host.until_ready_for(BUILD_PATIENCE).await?;
        Ok(host)
    }

    /// Starts the host and does not wait.
    pub fn launch(place: &Place, config: &Config) -> anyhow::Result<Host> {
        Host::launch_armed(place, config, None)
    }

    /// The same, with failpoints armed (`hapax::failpoint`).
    pub fn launch_armed(
        place: &Place,
        config: &Config,
        failpoints: Option<&str>,
    ) -> anyhow::Result<Host> {
        let variable = |orders: &str| (hapax::failpoint::VARIABLE, orders.to_owned());
        let variables = failpoints.map(variable);
        Host::launch_with(place, config, variables.as_slice())
    }

    /// The same, with these variables in its environment.
    pub fn launch_with(
        place: &Place,
        config: &Config,
        variables: &[(&str, String)],
    ) -> anyhow::Result<Host> {
        Host::launch_by(hapax(), place, config, variables)
    }

    /// The same, under a limit of open files as `ulimit` takes it: `-Sn 256`.
    pub fn launch_limited(place: &Place, config: &Config, limit: &str) -> anyhow::Result<Host> {
        let mut command = hapax();
        let script = format!("ulimit {limit} && exec \"$0\" \"$@\"");
        let mut shell = Command::new("sh");
        shell.args(["-c", &script]).arg(command.get_program());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        command = shell;
        Host::launch_by(command, place, config, &[])
    }

    fn launch_by(
        mut command: Command,
        place: &Place,
        config: &Config,
        variables: &[(&str, String)],
    ) -> anyhow::Result<Host> {
        let config_file = config.write(&place.dir)?;
        let log = place.dir.join(format!("{}.log", config.label));
        let file = File::options().create(true).append(true).open(&log)?;
        command
            .args(["run", "--config"])
            .arg(&config_file)
            .current_dir(&place.dir)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .envs(variables.iter().map(|(name, value)| (*name, value)));
        Ok(Host {
            child: children::spawn(command)?,
            config_file,
            log,
            health: config.health,
        })
    }

    /// Kills this host, if it still runs, and launches the one of `configs` that it was.
    pub fn relaunch(&mut self, place: &Place, configs: &[Config]) -> Result<(), anyhow::Error> {
        let config = configs.iter().find(|config| config.health == self.health);
        let config = config.context("the host is of none of these configurations")?;
        let _ = self.child.kill();
        self.child.wait()?;
        *self = Host::launch(place, config)?;
        Ok(())
    }

    /// Kills this host and launches the one of `configs` that it was.
    pub fn launch_after(mut self, place: &Place, configs: &[Config]) -> anyhow::Result<Host> {
        self.relaunch(place, configs)?;
        Ok(self)
    }

    /// Waits until `/readyz` answers 200.
    pub async fn until_ready(&mut self) -> anyhow::Result<()> {
        self.until_ready_for(wait::PATIENCE).await
    }

    async fn until_ready_for(&mut self, patience: Duration) -> anyhow::Result<()> {
        let (child, address) = (&mut self.child, self.health);
        wait::until("the host to be ready", patience, async || {
            if let Some(status) = child.try_wait()? {
                return Ok(Some(Err(status)));
            }
            Ok((get(address, "/readyz").await?.0 == 200).then_some(Ok(())))
        })
        .await?
        .map_err(|status: ExitStatus| {
            let tail = place::tail(&self.log);
            anyhow::anyhow!("the host ended before it was ready: {status}{tail}")
        })
    }

    /// The status code and the text of a page of the health address.
    pub async fn page(&self, path: &str) -> anyhow::Result<(u16, String)> {
        get(self.health, path).await
    }

    /// The sum of a metric over all its labels; 0 when it was not counted yet.
    pub async fn metric(&self, name: &str) -> anyhow::Result<u64> {
        self.metric_where(name, &[]).await
    }

    /// The sum of a metric over the series that carry these labels.
    pub async fn metric_where(&self, name: &str, labels: &[(&str, &str)]) -> anyhow::Result<u64> {
        let (status, text) = self.page("/metrics").await?;
        ensure!(status == 200, "/metrics answered {status}");
        Ok(Metrics::parse(&text)?.sum(name, labels))
    }

    /// Waits until a metric has reached a value.
    pub async fn until_metric(&self, name: &str, at_least: u64) -> anyhow::Result<()> {
        let what = format!("{name} to reach {at_least}");
        wait::until_is(
            &what,
            async || self.metric(name).await,
            |value| *value >= at_least,
        )
        .await
    }

    /// How often the host has said something in its log.
    pub fn said(&self, words: &str) -> anyhow::Result<usize> {
        Ok(std::fs::read_to_string(&self.log)?.matches(words).count())
    }

    /// Waits until the host has said something in its log.
    pub async fn until_says(&self, words: &str) -> anyhow::Result<()> {
        let what = format!("the host to say: {words}");
        wait::until(&what, wait::PATIENCE, async || {
            let said = std::fs::read_to_string(&self.log)?;
            Ok(said.contains(words).then_some(()))
        })
        .await
    }

    /// The most memory that the process has had at one time (Linux).
    pub fn peak_memory_bytes(&self) -> anyhow::Result<u64> {
        self.memory("VmHWM:")
    }

    /// The memory that it has now (Linux).
    pub fn memory_bytes(&self) -> anyhow::Result<u64> {
        self.memory("VmRSS:")
    }

    fn memory(&self, name: &str) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        Ok(kib.context("the status does not tell")?.parse::<u64>()? * 1024)
    }

    /// The files and connections that it has open (Linux).
    pub fn open_files(&self) -> anyhow::Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/fd", self.child.id()))?.count())
    }

    /// How many it may have open, and how many it could ask for (Linux).
    pub fn open_files_limits(&self) -> anyhow::Result<(String, String)> {
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", self.child.id()))?;
        let line = limits
            .lines()
            .find_map(|line| line.strip_prefix("Max open files"));
        let mut words = line.context("the limits are told")?.split_whitespace();
        let mut next = || words.next().map(str::to_owned).context("a limit");
        Ok((next()?, next()?))
    }

    pub fn is_running(&mut self) -> anyhow::Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Waits until the host has killed itself at a failpoint.
    pub async fn until_killed_at(mut self, point: Point) -> anyhow::Result<()> {
        let child = &mut self.child;
        let what = format!("the host to be killed at {point}");
        // It may have much to do before, and nothing tells how far it is.
        let patience = wait::PATIENCE * 4;
        let status = wait::until(&what, patience, async || Ok(child.try_wait()?)).await?;
        let said = std::fs::read_to_string(&self.log)?;
        ensure!(
            status.signal() == Some(9) && said.contains(&format!("failpoint {point}: kill")),
            "the host was not killed at {point}: {status}{}",
            place::tail(&self.log)
        );
        Ok(())
    }

    /// Waits until the host has stopped itself at a failpoint.
    pub async fn until_frozen(&self) -> anyhow::Result<()> {
        let stat = format!("/proc/{}/stat", self.child.id());
        wait::until("the host to stop itself", wait::PATIENCE, async || {
            let stat = std::fs::read_to_string(&stat)?;
            // The name, which may hold anything, stands in brackets before the state.
            let state = stat.rsplit(") ").next().unwrap_or_default();
            Ok(state.starts_with('T').then_some(()))
        })
        .await
    }

    /// Lets a stopped host go on.
    pub fn thaw(&self) -> anyhow::Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::CONT)?;
        Ok(())
    }

    /// No time to say goodbye.
    pub fn sigkill(mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        let status = self.child.wait()?;
        ensure!(
            status.code().is_none(),
            "the host had ended before it was killed: {status}"
        );
        Ok(())
    }

    pub fn sigterm(&self) -> anyhow::Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        Ok(())
    }

    /// Asks the host to drain and returns its exit code.
    pub async fn sigterm_and_wait(mut self) -> anyhow::Result<i32> {
        self.sigterm()?;
        self.exit_code().await
    }

    /// Asks the host to drain and insists on exit code 0.
    pub async fn stop(self) -> anyhow::Result<()> {
        let log = self.log.clone();
        let code = self.sigterm_and_wait().await?;
        ensure!(
            code == 0,
            "exit code {code} after SIGTERM{}",
            place::tail(&log)
        );
        Ok(())
    }

    /// Waits until the process has ended by itself.
    pub async fn exit_code(&mut self) -> anyhow::Result<i32> {
        let child = &mut self.child;
        let status = wait::until("the host to end", wait::PATIENCE, async || {
            Ok(child.try_wait()?)
        })
        .await?;
        status
            .code()
            .with_context(|| format!("the host was ended by a signal: {status}"))
    }

    /// Runs another command of the binary with this host's configuration.
    pub async fn cli(&self, arguments: &[&str]) -> anyhow::Result<Ended> {
        cli(&self.config_file, arguments).await
    }

    /// The same with variables of the environment.
    pub async fn cli_with(
        &self,
        variables: &[(&str, &str)],
        arguments: &[&str],
    ) -> anyhow::Result<Ended> {
        cli_with(&self.config_file, variables, arguments).await
    }
}

/// The binary. The tokens of its admin APIs lie in the place of this run.
fn hapax() -> Command {
    let mut command = Command::new(BINARY);
    command
        .env_remove("STATE_DIRECTORY")
        .env("XDG_STATE_HOME", place::root().join("state"));
    command
}

/// Runs `hapax ARGUMENTS --config FILE` as another user who may do nothing. For root only.
pub async fn cli_as_nobody(
    place: &Place,
    config_file: &Path,
    arguments: &[&str],
) -> anyhow::Result<Ended> {
    const NOBODY: u32 = 65534;
    // Others may not look into the directory of the build.
    let copy = place.dir.join("hapax");
    if !copy.exists() {
        std::fs::copy(BINARY, &copy)?;
    }
    let hapax = hapax();
    let mut command = Command::new(&copy);
    for (name, value) in hapax.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
        .args(arguments)
        .arg("--config")
        .arg(config_file)
        .env("HOME", "/nonexistent")
        .current_dir("/")
        .uid(NOBODY)
        .gid(NOBODY);
    to_its_end(command, arguments, COMMAND_PATIENCE).await
}

impl Drop for Host {
    fn drop(&mut self) {
        // It may have ended already, which is just as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ended {
    pub fn json(&self) -> anyhow::Result<Value> {
        ensure!(self.code == Some(0), "the command failed: {self:?}");
        serde_json::from_str(&self.stdout).with_context(|| format!("not JSON: {}", self.stdout))
    }
}

/// Runs `hapax ARGUMENTS --config FILE` to its end.
pub async fn cli(config_file: &Path, arguments: &[&str]) -> anyhow::Result<Ended> {
    cli_with(config_file, &[], arguments).await
}

/// The same, with failpoints armed.
pub async fn cli_armed(
    config_file: &Path,
    arguments: &[&str],
    failpoints: Option<&str>,
) -> anyhow::Result<Ended> {
    let armed = failpoints.map(|failpoints| (hapax::failpoint::VARIABLE, failpoints));
    cli_with(config_file, armed.as_slice(), arguments).await
}

async fn cli_with(
    config_file: &Path,
    variables: &[(&str, &str)],
    arguments: &[&str],
) -> anyhow::Result<Ended> {
    let mut command = hapax();
    command
        .args(arguments)
        .arg("--config")
        .arg(config_file)
        .envs(variables.iter().copied());
    to_its_end(command, arguments, COMMAND_PATIENCE).await
}

/// Runs `hapax ARGUMENTS` in a directory to its end: a command that may build something.
pub async fn command(directory: &Path, arguments: &[&str]) -> anyhow::Result<Ended> {
    command_in(directory, arguments, &[]).await
}

/// The same with variables of its own.
pub async fn command_in(
    directory: &Path,
    arguments: &[&str],
    variables: &[(&str, &str)],
) -> anyhow::Result<Ended> {
    let mut command = hapax();
    command.args(arguments).current_dir(directory);
    for_a_project(&mut command);
    command.envs(variables.iter().copied());
    to_its_end(command, arguments, BUILD_PATIENCE).await
}

/// A project has a target directory of its own, and all of them share the tests' cache.
fn for_a_project(command: &mut Command) {
    command
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("CACHE_DIRECTORY")
        .env("XDG_CACHE_HOME", place::root().join("cache"));
}

async fn to_its_end(
    mut command: Command,
    arguments: &[&str],
    patience: Duration,
) -> anyhow::Result<Ended> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = children::spawn(command)?;
    let pid = Pid::from_child(&child);
    let output = tokio::task::spawn_blocking(move || child.wait_with_output());
    let Ok(output) = tokio::time::timeout(patience, output).await else {
        kill_process(pid, Signal::KILL)?;
        bail!("hapax {} did not end", arguments.join(" "));
    };
    let output = output??;
    Ok(Ended {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Runs `hapax run` with a configuration that cannot work, to its end.
pub async fn run_to_end(place: &Place, config: &Config) -> anyhow::Result<Ended> {
    let file = config.write(&place.dir)?;
    cli(&file, &["run"]).await
}

async fn get(address: SocketAddr, path: &str) -> anyhow::Result<(u16, String)> {
    let url = format!("http://{address}{path}");
    tokio::task::spawn_blocking(move || {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(10)))
            .http_status_as_error(false)
            .build()
            .into();
        let mut answer = agent.get(&url).call()?;
        let text = answer.body_mut().read_to_string()?;
        Ok((answer.status().as_u16(), text))
    })
    .await?
}

/// A running `hapax dev`. Dropping it kills it.
pub struct Dev {
    child: Child,
    directory: PathBuf,
    log: PathBuf,
}

impl Dev {
    /// Starts it in a project, on ports of its own.
    pub async fn start(place: &Place, directory: &Path) -> anyhow::Result<Dev> {
        let file = directory.join("hapax.toml");
        let mut config = std::fs::read_to_string(&file)?;
        for section in ["health", "admin"] {
            let port = super::ports::free();
            config.push_str(&format!("\n[{section}]\nlisten = \"127.0.0.1:{port}\"\n"));
        }
        std::fs::write(&file, config)?;
        let log = place.dir.join("dev.log");
        let output = File::create(&log)?;
        let mut command = hapax();
        command
            .arg("dev")
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        for_a_project(&mut command);
        Ok(Dev {
            child: children::spawn(command)?,
            directory: directory.to_owned(),
            log,
        })
    }

    /// Waits until it has written something.
    pub async fn until_says(&self, words: &str) -> anyhow::Result<()> {
        wait::until(words, BUILD_PATIENCE, async || {
            let said = std::fs::read_to_string(&self.log)?;
            Ok(said.contains(words).then_some(()))
        })
        .await
    }

    /// Waits until it has written something so often.
    pub async fn until_says_times(&self, words: &str, times: usize) -> anyhow::Result<()> {
        let what = format!("{words}, {times} times");
        wait::until(&what, BUILD_PATIENCE, async || {
            let said = std::fs::read_to_string(&self.log)?;
            Ok((said.matches(words).count() >= times).then_some(()))
        })
        .await
    }

    /// Runs another command in the project, against its store.
    pub async fn cli(&self, arguments: &[&str]) -> anyhow::Result<Ended> {
        command(&self.directory, arguments).await
    }

    /// Ends it as Ctrl-C does.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::INT)?;
        let child = &mut self.child;
        let status = wait::until("hapax dev to end", wait::PATIENCE, async || {
            Ok(child.try_wait()?)
        })
        .await?;
        ensure!(status.success(), "{status}{}", place::tail(&self.log));
        Ok(())
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // It may have ended already, which is just as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
