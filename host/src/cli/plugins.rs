//! `hapax plugins`: which version of its plugin each consumer runs, a new one, and the one before.
//!
//! A running daemon is asked. Where none runs, a new version is tried out here and put into the file that
//! the configuration names, for the next start to find.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, Local};
use clap::{Args, Subcommand};

use crate::config::{self, Config};
use crate::host::sandbox;
use crate::metrics::Metrics;
use crate::operations::{PluginChanged, PluginRequest, PluginStatus, Request, Response};
use crate::output::{self, FAINT, GOOD, STRONG, Table, WARNING, thousands};
use crate::plugins::{PluginFile, User};
use crate::sandbox::{Cache, read_component};

use super::access::Access;
use super::{Error, print_json};

/// Digits of a digest that people compare.
const DIGEST_DIGITS: usize = 12;

#[derive(Debug, Subcommand)]
pub enum PluginsCommand {
    /// Show what runs
    List(ListArgs),
    /// Try a component out, run it from now on, and put it into the consumer's file
    Load(LoadArgs),
    /// Go back to the version that ran before
    Rollback(RollbackArgs),
}

#[derive(Debug, Args)]
pub struct ListArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct LoadArgs {
    /// The consumer that runs it
    name: String,
    /// The component, as `hapax build` makes it
    file: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct RollbackArgs {
    /// The consumer that runs it
    name: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub async fn run(command: PluginsCommand, config: Arc<Config>) -> Result<(), Error> {
    match command {
        PluginsCommand::List(arguments) => list(&arguments, &config).await,
        PluginsCommand::Load(arguments) => {
            let settings = consumer(&config, &arguments.name)?;
            let bytes = read(&arguments.file)?;
            let changed = match Access::running(&config).await? {
                Some(daemon) => ask(&daemon, PluginRequest::load(&arguments.name, &bytes)).await?,
                None => {
                    let file = offline(&config, settings, &bytes).await?;
                    let change = file.replace(bytes).await.map_err(refused)?;
                    offline_change(&file, change)
                }
            };
            told(&changed, arguments.json)
        }
        PluginsCommand::Rollback(arguments) => {
            consumer(&config, &arguments.name)?;
            let Some(daemon) = Access::running(&config).await? else {
                return Err(no_daemon(&config));
            };
            let request = PluginRequest::RollBack {
                consumer: arguments.name,
            };
            told(&ask(&daemon, request).await?, arguments.json)
        }
    }
}

async fn ask(daemon: &Access, request: PluginRequest) -> Result<PluginChanged, Error> {
    match daemon.execute(Request::Plugins(request)).await? {
        Response::PluginChanged(changed) => Ok(changed),
        _ => Err(super::unexpected()),
    }
}

fn consumer<'c>(config: &'c Config, name: &str) -> Result<&'c config::Consumer, Error> {
    let found = config.consumers.iter().find(|one| one.name == name);
    found.ok_or_else(|| {
        let names: Vec<_> = config
            .consumers
            .iter()
            .map(|one| one.name.as_str())
            .collect();
        Error::usage(format!(
            "the configuration has no consumer {name}; there is: {}",
            names.join(", ")
        ))
    })
}

fn read(file: &Path) -> Result<Vec<u8>, Error> {
    read_component(file).map_err(|problem| Error::usage(format!("{}: {problem}", file.display())))
}

fn no_daemon(config: &Config) -> Error {
    let listen = match &config.admin.listen {
        Some(listen) => format!("no daemon answers at {listen} (`admin.listen`)"),
        None => "no daemon can be asked: `admin.listen` is off".to_owned(),
    };
    Error::unavailable(format!(
        "{listen}; `hapax check` shows what is in the files"
    ))
}

/// The consumer's file as a host would open it. One that cannot be opened is put in its place first: there
/// is nothing in it to lose.
async fn offline(
    config: &Config,
    settings: &config::Consumer,
    bytes: &[u8],
) -> Result<Arc<PluginFile>, Error> {
    let sandbox = sandbox(config).map_err(crate::host::StartError::Sandbox)?;
    let sharing = config
        .consumers
        .iter()
        .filter(|one| one.plugin == settings.plugin);
    let users: Vec<User> = sharing
        .map(|one| User {
            consumer: one.name.clone(),
            memory: one.limits.memory,
        })
        .collect();
    let cache = config
        .host
        .cache
        .as_deref()
        .and_then(Cache::open)
        .map(Arc::new);
    PluginFile::open_or_make(
        &sandbox,
        &settings.plugin,
        users,
        cache,
        &Metrics::new(),
        bytes,
    )
    .await
    .map_err(refused)
}

fn refused(error: impl std::fmt::Display) -> Error {
    Error::failed(error.to_string())
}

fn offline_change(file: &PluginFile, change: crate::plugins::Change) -> PluginChanged {
    PluginChanged {
        path: file.path().display().to_string(),
        before: hex::encode(change.before),
        now: hex::encode(change.now),
    }
}

fn told(changed: &PluginChanged, json: bool) -> Result<(), Error> {
    if json {
        return print_json(changed);
    }
    let digits = |digest: &str| digest.chars().take(DIGEST_DIGITS).collect::<String>();
    let text = if changed.before == changed.now {
        format!("{} runs already\n", digits(&changed.now))
    } else {
        format!(
            "{GOOD}{}{GOOD:#} runs, {} did before\n{FAINT}in {}{FAINT:#}\n",
            digits(&changed.now),
            digits(&changed.before),
            output::clean(&changed.path)
        )
    };
    Ok(output::print(&text)?)
}

async fn list(arguments: &ListArgs, config: &Config) -> Result<(), Error> {
    let Some(daemon) = Access::running(config).await? else {
        return Err(no_daemon(config));
    };
    let Response::Plugins(plugins) = daemon
        .execute(Request::Plugins(PluginRequest::List))
        .await?
    else {
        return Err(super::unexpected());
    };
    if arguments.json {
        return print_json(&plugins);
    }
    Ok(output::print(&render(&plugins))?)
}

fn render(plugins: &[PluginStatus]) -> String {
    let mut table = Table::new(&[
        "CONSUMER",
        "DIGEST",
        "KIB",
        "SINCE",
        "MESSAGES",
        "FAILURES",
        "IN FLIGHT",
        "IMPORTS",
    ]);
    for plugin in plugins {
        table.row([
            plugin.consumer.clone(),
            plugin.digest.chars().take(DIGEST_DIGITS).collect(),
            thousands(plugin.size_bytes.div_ceil(1024)),
            since(plugin.loaded_at),
            thousands(plugin.messages),
            thousands(plugin.failures),
            thousands(plugin.in_flight),
            imports(&plugin.imports),
        ]);
    }
    let mut text = table.render();
    for plugin in plugins {
        let name = output::clean(&plugin.consumer);
        if let Some(refused) = &plugin.refused {
            let _ = writeln!(
                text,
                "{WARNING}{name}{WARNING:#}: {} holds what does not run: {}",
                output::clean(&plugin.path),
                output::clean_lines(&refused.problem)
            );
        }
        if let Some(earlier) = plugin.earlier.first() {
            let digits: String = earlier.chars().take(DIGEST_DIGITS).collect();
            let _ = writeln!(
                text,
                "{STRONG}{name}{STRONG:#} {FAINT}can go back to {digits}{FAINT:#}"
            );
        }
    }
    text
}

fn since(micros: i64) -> String {
    DateTime::from_timestamp_micros(micros)
        .map(|time| {
            time.with_timezone(&Local)
                .format("%Y-%m-%d %H:%M:%S")
                .to_string()
        })
        .unwrap_or_default()
}

/// What a handler can do is in the interfaces of Hapax; what WASI there is has nothing behind it.
fn imports(names: &[String]) -> String {
    let own = names.iter().filter_map(|name| {
        let interface = name.strip_prefix("hapax:plugin/")?;
        let name = interface.split('@').next()?;
        (name != "types").then_some(name)
    });
    let mut words: Vec<String> = own.map(str::to_owned).collect();
    let wasi = names
        .iter()
        .filter(|name| name.starts_with("wasi:"))
        .count();
    if wasi > 0 {
        words.push(format!("wasi ×{wasi}"));
    }
    words.join(", ")
}
