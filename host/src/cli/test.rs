//! `hapax test`: a plugin on real messages, before it meets a queue.
//!
//! Each message goes through the pipeline of the host, from its key to the commit, on a temporary SQLite
//! file or on a database of which nothing is kept. It is run twice, delivered again, and killed at each call to
//! the database: what a redelivery, a duplicate and a crash would do is seen here.

mod content;
mod effects;
mod rehearsal;
mod report;
mod snapshot;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use crate::message::Message;
use crate::operations::read_line;
use crate::output;

use super::project::{self, Project};
use super::{Error, print_json};
pub use effects::{ignored, lines};
use rehearsal::Rehearsal;
pub use rehearsal::make_tables;
use report::{Checked, Report};

/// Messages that are read of all files together.
const MAX_MESSAGES: usize = 10_000;

#[derive(Debug, Args)]
pub struct TestArgs {
    /// The plugin's directory, or its component
    #[arg(default_value = ".", value_name = "PLUGIN")]
    plugin: PathBuf,
    /// Messages, one JSON object a line; without it the project's messages.jsonl
    #[arg(long = "message", value_name = "FILE", num_args = 1..)]
    messages: Vec<PathBuf>,
    /// Run on this database, and keep nothing there; without it on a temporary SQLite file
    #[arg(long, value_name = "URL")]
    database: Option<String>,
    /// The tables for the temporary file; without it the project's schema.sql
    #[arg(long, value_name = "FILE", conflicts_with = "database")]
    schema: Option<PathBuf>,
    /// The consumer, where the configuration has several
    #[arg(long, value_name = "NAME")]
    consumer: Option<String>,
    /// Record what happens as what is expected
    #[arg(long)]
    update: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A message, and where it was read.
pub struct Sample {
    pub message: Message,
    /// `messages.jsonl:3`
    pub place: String,
}

pub async fn run(arguments: TestArgs, config: Option<PathBuf>) -> Result<ExitCode, Error> {
    let consumer = arguments.consumer.as_deref();
    let project = project::find(&arguments.plugin, config.as_deref(), consumer)?;
    if !project.consumer.plugin.is_file() {
        return Err(Error::usage(format!(
            "{} is not there; `hapax build {}` makes it",
            project.consumer.plugin.display(),
            arguments.plugin.display()
        )));
    }
    let files = message_files(&arguments.messages, &project)?;
    let mut samples = Vec::new();
    for file in &files {
        samples.push((file.clone(), read(file, &project.consumer.queue)?));
    }
    let database = arguments.database.as_deref();
    let schema = schema_file(arguments.schema.as_deref(), &project)?;
    let rehearsal = Rehearsal::open(&project, database, schema.as_deref()).await?;

    let mut report = Report::new(rehearsal.plugin(), &project.consumer.name);
    for (file, samples) in samples {
        let mut checked = Vec::with_capacity(samples.len());
        for sample in samples {
            checked.push(Checked {
                place: sample.place.clone(),
                check: rehearsal.check(sample.message).await?,
            });
        }
        let expected = snapshot::beside(&file);
        if arguments.update {
            snapshot::write(&expected, &checked)?;
        } else {
            report
                .problems
                .append(&mut snapshot::compare(&expected, &mut checked)?);
        }
        report.messages.append(&mut checked);
    }
    rehearsal.close().await;
    if arguments.json {
        print_json(&report.json())?;
    } else {
        output::print(&report.render())?;
    }
    Ok(match report.has_failed() {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}

/// The directory of the configuration, where a project keeps its files.
fn home(project: &Project) -> &Path {
    project.config.path.parent().unwrap_or(Path::new("."))
}

fn message_files(given: &[PathBuf], project: &Project) -> Result<Vec<PathBuf>, Error> {
    if !given.is_empty() {
        return Ok(given.to_vec());
    }
    let own = home(project).join("messages.jsonl");
    if own.is_file() {
        return Ok(vec![own]);
    }
    Err(Error::usage(format!(
        "there is no {}; name messages with --message FILE, one JSON object a line",
        own.display()
    )))
}

fn schema_file(given: Option<&Path>, project: &Project) -> Result<Option<PathBuf>, Error> {
    match given {
        Some(file) if file.is_file() => Ok(Some(file.to_owned())),
        Some(file) => Err(Error::usage(format!("{} is no file", file.display()))),
        None => Ok(["schema.sqlite.sql", "schema.sql"]
            .map(|name| home(project).join(name))
            .into_iter()
            .find(|file| file.is_file())),
    }
}

fn read(file: &Path, queue: &str) -> Result<Vec<Sample>, Error> {
    let failed = |reason: String| Error::usage(format!("{}: {reason}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|error| failed(error.to_string()))?;
    let name = file.file_name().unwrap_or(file.as_os_str());
    let mut samples = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim().is_empty() {
            continue;
        }
        let message = read_line(line, None)
            .or_else(|_| read_line(line, Some(queue)))
            .map_err(|error| failed(format!("line {number}: {error}")))?;
        samples.push(Sample {
            message,
            place: format!("{}:{number}", name.to_string_lossy()),
        });
        if samples.len() > MAX_MESSAGES {
            return Err(failed(format!("it has more than {MAX_MESSAGES} messages")));
        }
    }
    match samples.is_empty() {
        true => Err(failed("it holds no message".into())),
        false => Ok(samples),
    }
}
