//! What a person can type, and how it ends: one file a command.
//!
//! Every command ends with 0 done, 1 failed, 64 bad usage or configuration, 69 service unavailable. What
//! went wrong is said once, on standard error, in words: what, where, what to do.

mod access;
mod ask;
mod bench;
mod build;
mod check;
mod child;
mod consumers;
mod demo;
mod dev;
mod ledger;
mod migrate;
mod new;
mod outbox;
mod parked;
mod plugins;
mod project;
mod publish;
mod run;
mod status;
mod test;
mod typed;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

use crate::config::{self, Config};
use crate::host::StartError;
use crate::operations::OperationError;
use crate::output;
use crate::telemetry::BadFilter;

pub use access::Access;
pub use build::{BuildError, build};

const FAILED: u8 = 1;
const USAGE: u8 = 64;
const UNAVAILABLE: u8 = 69;

/// Run message handlers so that each message takes effect once
#[derive(Debug, Parser)]
#[command(
    name = "hapax",
    version,
    arg_required_else_help = true,
    disable_help_subcommand = true
)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 64 bad usage or configuration, 69 service unavailable"
)]
pub struct Arguments {
    /// The configuration: without it HAPAX_CONFIG, ./hapax.toml or /etc/hapax/hapax.toml
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Consume, until a signal asks to stop
    Run,
    /// Show what duplicates and a crash do to Hapax and to three other consumers
    Demo(demo::Demo),
    #[command(hide = true)]
    DemoConsumer(demo::DemoConsumer),
    /// Measure Hapax beside what else could consume the same messages
    Bench(bench::BenchArgs),
    #[command(hide = true)]
    BenchConsumer(bench::BenchConsumer),
    /// Check the configuration and the plugins it names
    Check(check::CheckArgs),
    /// Bring the tables of the store up to date
    Migrate(migrate::MigrateArgs),
    /// Make a project for a plugin
    New(new::NewArgs),
    /// Build a plugin into a component
    Build(build::BuildArgs),
    /// Run a host for a plugin that is being written: builds it again, swaps it, tells what messages do
    Dev(dev::DevArgs),
    /// Run messages through a plugin, and look for what would hurt
    Test(test::TestArgs),
    /// Publish messages from a file, one JSON object a line
    Publish(publish::PublishArgs),
    /// Look at failed messages, run them again, or give them up
    #[command(subcommand)]
    Parked(parked::ParkedCommand),
    /// Look after outgoing messages that could not be sent
    #[command(subcommand)]
    Outbox(outbox::OutboxCommand),
    /// Look up keys, make the ledger forget some, or take over those of another consumer
    #[command(subcommand)]
    Ledger(ledger::LedgerCommand),
    /// See what consumers do, hold them back, let them go on, change their rules
    #[command(subcommand)]
    Consumers(consumers::ConsumersCommand),
    /// Show which plugin versions run, load a new one, or go back
    #[command(subcommand)]
    Plugins(plugins::PluginsCommand),
    /// Show consumers, queues, fates and the outbox
    Status(status::StatusArgs),
}

impl Arguments {
    /// Reads what was typed. The error may be a request for help, which is none.
    pub fn read(arguments: impl Iterator<Item = OsString>) -> Result<Self, Error> {
        Self::try_parse_from(arguments).map_err(Error::Typed)
    }
}

impl Command {
    pub fn needs_config(&self) -> bool {
        !matches!(
            self,
            Self::New(_)
                | Self::Build(_)
                | Self::Dev(_)
                | Self::Test(_)
                | Self::Demo(_)
                | Self::DemoConsumer(_)
                | Self::Bench(_)
                | Self::BenchConsumer(_)
        )
    }

    pub fn is_daemon(&self) -> bool {
        matches!(self, Self::Run | Self::Dev(_))
    }
}

/// Why a command ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What was typed is not a command, or asks for help.
    #[error("{0}")]
    Typed(clap::Error),
    #[error("{}", .0.render(false))]
    Config(config::Problems),
    #[error("{text}")]
    Other { code: u8, text: String },
    /// Whoever read the output has left, as `head` does.
    #[error("nobody reads the output")]
    Unread,
}

impl Error {
    pub fn failed(text: impl Into<String>) -> Self {
        Self::Other {
            code: FAILED,
            text: text.into(),
        }
    }

    pub fn usage(text: impl Into<String>) -> Self {
        Self::Other {
            code: USAGE,
            text: text.into(),
        }
    }

    pub fn unavailable(text: impl Into<String>) -> Self {
        Self::Other {
            code: UNAVAILABLE,
            text: text.into(),
        }
    }

    /// The exit code.
    pub fn code(&self) -> u8 {
        match self {
            Self::Typed(error) => match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => 0,
                _ => USAGE,
            },
            Self::Config(_) => USAGE,
            Self::Other { code, .. } => *code,
            Self::Unread => 0,
        }
    }

    /// Says it to the person, and turns it into the exit code.
    pub fn report(&self) -> ExitCode {
        match self {
            Self::Typed(error) => {
                // Nothing can be done for a terminal that is gone.
                let _ = error.print();
            }
            Self::Config(problems) => {
                output::complain(&problems.render(crate::telemetry::wants_colour()))
            }
            Self::Other { text, .. } => {
                let style = output::BAD;
                output::complain(&format!(
                    "{style}error{style:#}: {}\n",
                    output::clean_lines(&config::hide_passwords(text))
                ));
            }
            Self::Unread => {}
        }
        ExitCode::from(self.code())
    }
}

impl From<config::NotFound> for Error {
    fn from(error: config::NotFound) -> Self {
        Self::usage(error.to_string())
    }
}

impl From<config::Problems> for Error {
    fn from(problems: config::Problems) -> Self {
        Self::Config(problems)
    }
}

impl From<BadFilter> for Error {
    fn from(error: BadFilter) -> Self {
        Self::usage(error.to_string())
    }
}

impl From<StartError> for Error {
    fn from(error: StartError) -> Self {
        Self::Other {
            code: error.exit_code(),
            text: error.to_string(),
        }
    }
}

impl From<OperationError> for Error {
    fn from(error: OperationError) -> Self {
        match error {
            OperationError::Unavailable(text) => Self::unavailable(text),
            OperationError::Refused(text) | OperationError::Failed(text) => Self::failed(text),
        }
    }
}

impl From<io::Error> for Error {
    /// Of the output; other files say where they are.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::Unread,
            _ => Self::failed(format!("the output cannot be written: {error}")),
        }
    }
}

impl Command {
    /// A command that has no use for a configuration, or finds its own. `config` is what was typed.
    pub async fn run_alone(self, config: Option<PathBuf>) -> Result<ExitCode, Error> {
        match self {
            Self::New(arguments) => {
                new::run(&arguments)?;
                Ok(ExitCode::SUCCESS)
            }
            Self::Dev(arguments) => dev::run(arguments, config).await,
            Self::Test(arguments) => test::run(arguments, config).await,
            Self::Build(arguments) => {
                build::command(arguments).await?;
                Ok(ExitCode::SUCCESS)
            }
            Self::Demo(demo) => demo::run(demo).await,
            Self::DemoConsumer(consumer) => demo::run_consumer(consumer).await,
            Self::Bench(bench) => bench::run(bench).await,
            Self::BenchConsumer(consumer) => bench::run_consumer(consumer).await,
            _ => Err(Error::usage("this command needs a configuration")),
        }
    }
}

/// A command that works with a configuration.
pub async fn run(command: Command, config: Arc<Config>) -> Result<ExitCode, Error> {
    match command {
        Command::Run => return run::run(config).await,
        Command::Check(arguments) => return check::run(&arguments, config).await,
        Command::Migrate(arguments) => migrate::run(&arguments, &config).await?,
        Command::Publish(arguments) => publish::run(&arguments, config).await?,
        Command::Parked(command) => parked::run(command, config).await?,
        Command::Outbox(command) => outbox::run(command, config).await?,
        Command::Ledger(command) => ledger::run(command, config).await?,
        Command::Consumers(command) => consumers::run(command, config).await?,
        Command::Plugins(command) => plugins::run(command, config).await?,
        Command::Status(arguments) => status::run(&arguments, config).await?,
        alone @ (Command::New(_)
        | Command::Build(_)
        | Command::Dev(_)
        | Command::Test(_)
        | Command::Demo(_)
        | Command::DemoConsumer(_)
        | Command::Bench(_)
        | Command::BenchConsumer(_)) => {
            return alone.run_alone(None).await;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints data for programs.
fn print_json(value: &impl serde::Serialize) -> Result<(), Error> {
    let text = serde_json::to_string_pretty(value).expect("these values are plain data");
    Ok(output::print(&(text + "\n"))?)
}

/// How far a long operation is. Shown on a terminal only.
fn progress(total: u64) -> indicatif::ProgressBar {
    let style =
        indicatif::ProgressStyle::with_template("{bar:40} {human_pos}/{human_len} {per_sec} {eta}")
            .expect("the template is a constant");
    indicatif::ProgressBar::new(total).with_style(style)
}

/// An answer to another question. Versions differ, or the daemon has a defect.
fn unexpected() -> Error {
    Error::failed("the daemon has answered another question; is it of another version?")
}

#[cfg(test)]
mod tests;
