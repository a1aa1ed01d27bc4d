//! `hapax dev`: a host on this machine for the plugin that is being written.
//!
//! It runs on the embedded broker and the project's SQLite file, builds the plugin
//! again when a source changes, lets the host swap it, and tells what each message did. A build that fails
//! leaves the version before serving.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use notify::event::EventKind;
use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::config::{BrokerKind, Config, LogFormat, StoreKind};
use crate::host::{Exit, Host, open_store};
use crate::output::{self, BAD, FAINT, GOOD, STRONG, WARNING};
use crate::store::Status;
use crate::store::recorded::{Record, RecordedStore, Step, Tape};
use crate::telemetry;

use super::build::build;
use super::project::{self, Language, Project};
use super::run::Signals;
use super::test::{ignored, lines, make_tables};
use super::{Error, FAILED, USAGE};

/// Sources are built when nothing has happened to them for so long.
const QUIET: Duration = Duration::from_millis(150);

/// Directories of a project that no source is in.
const NOT_SOURCES: &[&str] = &["target", "node_modules", ".venv", "__pycache__", ".git"];

#[derive(Debug, Args)]
pub struct DevArgs {
    /// The plugin's directory
    #[arg(default_value = ".", value_name = "DIR")]
    dir: PathBuf,
    /// The consumer, where the configuration has several
    #[arg(long, value_name = "NAME")]
    consumer: Option<String>,
}

pub async fn run(arguments: DevArgs, config: Option<PathBuf>) -> Result<ExitCode, Error> {
    let dir = arguments.dir;
    if Language::of(&dir).is_none() {
        return Err(super::BuildError::NoProject(dir).into());
    }
    let project = project::find(&dir, config.as_deref(), arguments.consumer.as_deref())?;
    let mut signals = Signals::listen()
        .map_err(|error| Error::failed(format!("signals cannot be listened to: {error}")))?;
    let built = tokio::select! {
        built = build(&dir) => built?,
        () = signals.next() => return Ok(ExitCode::SUCCESS),
    };
    let config = Arc::new(settings(project, built)?);
    telemetry::start(&config.log)?;
    if let StoreKind::Sqlite { path } = &config.store.kind {
        let schema = ["schema.sqlite.sql", "schema.sql"]
            .map(|name| dir.join(name))
            .into_iter()
            .find(|file| file.is_file());
        let is_new = !path.exists();
        match make_tables(path, schema.as_deref()).await {
            // The file has them from the last time.
            Err(Error::Other { code: USAGE, text })
                if !is_new && text.contains("already exists") =>
            {
                output::complain(&format!(
                    "{WARNING}the tables are left as they are{WARNING:#}: some of them are in {} already; after a \
                     change of the schema, remove that file\n",
                    path.display()
                ));
            }
            made => made?,
        }
    }
    let store = RecordedStore {
        inner: open_store(&config)?,
        tape: Tape::new(false, |record| tell(&record)),
    };
    let host = Host::start_on(Arc::new(store), Arc::clone(&config)).await?;
    welcome(&config)?;

    let stop = CancellationToken::new();
    let rebuilding = tokio::spawn(rebuild(dir, stop.clone()));
    let exit = host
        .run_until(async { signals.next().await }, std::future::pending())
        .await;
    stop.cancel();
    // A build that has begun ends with the process.
    rebuilding.abort();
    Ok(match exit {
        Exit::Drained => ExitCode::SUCCESS,
        Exit::TimedOut => ExitCode::from(FAILED),
    })
}

/// The project's configuration, on this machine alone and one message at a time, so that each transaction
/// is one message's.
fn settings(project: Project, built: PathBuf) -> Result<Config, Error> {
    let mut config = project.config;
    let StoreKind::Sqlite { path } = &config.store.kind else {
        return Err(Error::usage(format!(
            "{}: `hapax dev` runs on a SQLite file of its own; write `url = \"sqlite:target/hapax/dev.db\"` in \
             [store], or name another configuration with --config",
            config.path.display()
        )));
    };
    let place = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(place)
        .map_err(|error| Error::failed(format!("{}: {error}", place.display())))?;
    config.store.migrate = true;
    config.broker.kind = BrokerKind::Embedded;
    config.log.filter = "warn,hapax::plugins=info".into();
    config.log.format = LogFormat::Auto;
    for consumer in &mut config.consumers {
        consumer.plugin = built.clone();
        consumer.batch = 1;
        consumer.lanes = 1;
        consumer.declare = None;
    }
    Ok(config)
}

fn welcome(config: &Config) -> Result<(), Error> {
    let mut text = String::new();
    for consumer in &config.consumers {
        let _ = writeln!(
            text,
            "{GOOD}{} waits for messages{GOOD:#} in the queue {}",
            output::clean(&consumer.name),
            output::clean(&consumer.queue)
        );
    }
    if let StoreKind::Sqlite { path } = &config.store.kind {
        let _ = writeln!(
            text,
            "{FAINT}store {}; HTTP at {}; Ctrl-C ends it{FAINT:#}",
            path.display(),
            config
                .health
                .listen
                .map_or("nowhere".to_owned(), |address| address.to_string())
        );
    }
    Ok(output::print(&text)?)
}

/// Builds when a source changes, until `stop`. The host sees the new component by itself.
async fn rebuild(dir: PathBuf, stop: CancellationToken) {
    let (send, mut changes) = mpsc::channel(1);
    // Events name files as their directory was named when its watch was set.
    let dir = dir.canonicalize().unwrap_or(dir);
    let root = dir.clone();
    let heard = move |event: notify::Result<Event>| {
        let source = event.is_ok_and(|event| {
            !matches!(event.kind, EventKind::Access(_))
                && event.paths.iter().any(|path| is_source(&root, path))
        });
        if source {
            // One stands for all that come before it is taken.
            let _ = send.try_send(());
        }
    };
    let watcher = notify::recommended_watcher(heard).and_then(|mut watcher| {
        watch_sources(&mut watcher, &dir)?;
        Ok(watcher)
    });
    let mut watcher = match watcher {
        Ok(watcher) => watcher,
        Err(error) => {
            output::complain(&format!(
                "{WARNING}sources cannot be watched{WARNING:#}: {error}\n"
            ));
            return;
        }
    };
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            change = changes.recv() => if change.is_none() { return },
        }
        while timeout(QUIET, changes.recv())
            .await
            .is_ok_and(|one| one.is_some())
        {}
        // Directories that are new have sources too. What changes in them before this is built below.
        if let Err(error) = watch_sources(&mut watcher, &dir) {
            output::complain(&format!(
                "{WARNING}some sources cannot be watched{WARNING:#}: {error}\n"
            ));
        }
        if let Err(error) = build(&dir).await {
            output::complain(&format!(
                "{BAD}not built{BAD:#}, the version before goes on: {}\n",
                output::clean_lines(&error.to_string())
            ));
        }
    }
}

/// Each directory of sources by itself: a recursive watch would take in what toolchains write.
fn watch_sources(watcher: &mut RecommendedWatcher, dir: &Path) -> notify::Result<()> {
    watcher.watch(dir, RecursiveMode::NonRecursive)?;
    for entry in std::fs::read_dir(dir)?.flatten() {
        let path = entry.path();
        if path.is_dir() && is_source(dir, &path) {
            watcher.watch(&path, RecursiveMode::Recursive)?;
        }
    }
    Ok(())
}

/// Whether a file below the project's directory is built from. The way to that directory does not matter.
fn is_source(dir: &Path, path: &Path) -> bool {
    let path = path.strip_prefix(dir).unwrap_or(path);
    let none = |name: &str| NOT_SOURCES.contains(&name);
    !path.iter().any(|part| part.to_str().is_some_and(none))
        && path.extension().is_none_or(|ending| {
            !["db", "db-wal", "db-shm", "lock", "jsonl", "md"]
                .iter()
                .any(|other| ending == *other)
        })
}

/// What a message did, as soon as it is committed.
fn tell(record: &Record) {
    if let Some(text) = told(record) {
        // A terminal that is gone is no reason to stop.
        let _ = output::print(&text);
    }
}

/// `None` for a transaction that was about no message.
fn told(record: &Record) -> Option<String> {
    let key = match (record.keys.first(), record.known.first()) {
        (None, None) if record.steps.is_empty() => return None,
        (new, known) => new.or(known).map(|key| crate::key::show(key)),
    };
    let is_duplicate = record.keys.is_empty() && !record.known.is_empty();
    let failed = record.steps.iter().find_map(|step| match step {
        Step::Failed(row) => Some(row),
        _ => None,
    });
    let mut text = format!(
        "{STRONG}{}{STRONG:#} ",
        output::clean(&key.unwrap_or_default())
    );
    let _ = match (failed, ignored(&record.steps)) {
        (None, None) if is_duplicate => writeln!(text, "{FAINT}duplicate{FAINT:#}"),
        (None, None) => writeln!(text, "{GOOD}committed{GOOD:#}"),
        (None, Some(reason)) => {
            writeln!(text, "{GOOD}ignored{GOOD:#} {}", output::clean(reason))
        }
        (Some(row), _) => {
            let word = match row.status {
                Status::Parked => "parked",
                Status::Retry | Status::Held => "will be retried",
            };
            writeln!(
                text,
                "{BAD}{word}{BAD:#} {}: {}\n{FAINT}{}{FAINT:#}",
                row.code,
                output::clean(&row.error),
                output::clean_lines(&[row.stderr.as_str(), row.backtrace.as_str()].join("\n"))
            )
        }
    };
    for line in lines(&record.steps) {
        let _ = writeln!(text, "  {}", output::clean(&line));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_became_of_a_message_is_told_in_one_word() {
        let told = |keys: &[&str], known: &[&str], steps: Vec<Step>| {
            let bytes = |keys: &[&str]| keys.iter().map(|key| key.as_bytes().to_vec()).collect();
            let record = Record {
                keys: bytes(keys),
                known: bytes(known),
                steps,
            };
            told(&record).map(|text| anstream::adapter::strip_str(&text).to_string())
        };
        let line = |text: &str| Some(text.to_owned());
        assert_eq!(told(&["o-1"], &[], vec![]), line("`o-1` committed\n"));
        assert_eq!(told(&[], &["o-1"], vec![]), line("`o-1` duplicate\n"));
        let ignored = vec![Step::Ignored("it is old".into())];
        assert_eq!(
            told(&["o-1"], &[], ignored),
            line("`o-1` ignored it is old\n")
        );
        // Waiting rows were looked for, say.
        assert_eq!(told(&[], &[], vec![]), None);
    }

    #[test]
    fn what_toolchains_and_the_host_write_is_no_source() {
        // The way to the project says nothing about its files.
        let dir = Path::new("/home/ada/target/points");
        for source in ["src/lib.rs", "handler.py", "Cargo.toml", "wit/plugin.wit"] {
            assert!(is_source(dir, &dir.join(source)), "{source}");
        }
        for other in [
            "target/hapax/a.wasm",
            "node_modules/x/a.js",
            "Cargo.lock",
            "hapax.db-wal",
        ] {
            assert!(!is_source(dir, &dir.join(other)), "{other}");
        }
    }
}
