//! `hapax ledger import`: keys that another consumer has handled become committed here.
//!
//! Reads a file of any length in blocks, each of which is one transaction. Importing a key twice is
//! importing it once, so that an import that was interrupted is simply run again.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::sync::mpsc;

use crate::config::Config;
use crate::operations::{Import, ImportKey, Imported, Request, Response};
use crate::output::{self, FAINT, GOOD};

use super::super::access::Access;
use super::super::ask::who;
use super::super::typed::KeyFormat;
use super::super::{Error, print_json, unexpected};
use super::records::{Format, Found, Shape, Stop};

/// Keys in one transaction.
const BLOCK_KEYS: usize = 1000;

/// Blocks that are read ahead.
const BLOCKS_AHEAD: usize = 4;

#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The file; - for standard input
    #[arg(value_name = "FILE", default_value = "-")]
    file: PathBuf,
    /// Whose keys they are; not needed where there is one consumer
    #[arg(long)]
    consumer: Option<String>,
    /// How the file is written; without it, what its name says (.csv, .jsonl, .ndjson), else lines
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Where the key is: a column of csv, a JSON pointer of jsonl; once for each part of the key
    #[arg(long, value_name = "FIELD")]
    field: Vec<String>,
    /// How the keys are written
    #[arg(long, value_enum, default_value = "text")]
    key_format: KeyFormat,
    /// Read everything and count what is new, and import nothing
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Keys, and how many bytes of the file were read for them.
struct Block {
    keys: Vec<Found>,
    bytes: u64,
}

pub(super) async fn run(arguments: &ImportArgs, config: &Arc<Config>) -> Result<(), Error> {
    let name = super::consumer(arguments.consumer.as_deref(), config)?;
    let known = config.consumers.iter().find(|known| known.name == name);
    let Some(consumer) = known else {
        let names = config.consumers.iter().map(|known| known.name.as_str());
        return Err(Error::failed(format!(
            "there is no consumer `{name}` in {}; there is: {}",
            config.path.display(),
            names.collect::<Vec<_>>().join(", ")
        )));
    };
    let format = arguments.format.unwrap_or_else(|| by_name(&arguments.file));
    let shape = Shape {
        format,
        key_format: arguments.key_format,
        fields: arguments.field.clone(),
        consumer,
    };
    shape.check().map_err(Error::usage)?;
    let (input, size) = open(&arguments.file)?;
    let access = Access::open(config).await?;

    let started = Instant::now();
    let progress = progress(size);
    let (blocks, taken) = mpsc::channel(BLOCKS_AHEAD);
    // Reading a file waits, and so does its own thread.
    let (read, sent) = std::thread::scope(|scope| {
        let shape = &shape;
        // It takes the sender with it, so that the blocks end with the file.
        let reader = scope.spawn(move || read(shape, input, &blocks));
        let sent = tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(send(
                &access,
                &name,
                arguments.dry_run,
                taken,
                &progress,
            ))
        });
        (reader.join(), sent)
    });
    progress.finish_and_clear();
    let total = sent?;
    if total.new > 0 && !arguments.dry_run {
        let request = Request::LedgerImported {
            consumer: name.clone(),
            who: who(),
            what: format!(
                "{} new and {} known keys from {}",
                total.new,
                total.known,
                source(&arguments.file)
            ),
        };
        access.execute(request).await?;
    }
    match read {
        Ok(Ok(()) | Err(Stop::Taker)) => {}
        Ok(Err(Stop::Record(problem))) => return Err(ended(arguments, &problem, total)),
        Err(_) => return Err(Error::failed("reading the keys has panicked")),
    }
    let seconds = started.elapsed().as_secs_f64();
    if arguments.json {
        return print_json(&json!({
            "consumer": name, "new": total.new, "known": total.known, "seconds": seconds,
            "dry_run": arguments.dry_run,
        }));
    }
    let new = output::count(total.new, "key");
    let known = output::thousands(total.known);
    let text = if arguments.dry_run {
        format!(
            "{FAINT}{new} would be imported into {name}, {known} known already (--dry-run){FAINT:#}\n"
        )
    } else {
        format!(
            "{GOOD}{new}{GOOD:#} imported into {name}, {known} known already, in {seconds:.2} s\n"
        )
    };
    Ok(output::print(&text)?)
}

/// An import that met a record that it cannot read.
fn ended(arguments: &ImportArgs, problem: &str, total: Imported) -> Error {
    let before = match arguments.dry_run {
        true => "nothing was imported (--dry-run)".to_owned(),
        false => format!(
            "{} before it {} imported; run it again when the file is mended: keys that are known are passed \
             over",
            output::count(total.new + total.known, "key"),
            if total.new + total.known == 1 {
                "is"
            } else {
                "are"
            }
        ),
    };
    Error::failed(format!("{}, {problem}\n{before}", source(&arguments.file)))
}

fn by_name(file: &Path) -> Format {
    let extension = file.extension().and_then(|extension| extension.to_str());
    match extension {
        Some("csv") => Format::Csv,
        Some("jsonl" | "ndjson") => Format::Jsonl,
        _ => Format::Lines,
    }
}

fn source(file: &Path) -> String {
    match file == Path::new("-") {
        true => "standard input".to_owned(),
        false => file.display().to_string(),
    }
}

/// The input, and its size where it is known.
fn open(file: &Path) -> Result<(Box<dyn Read + Send>, Option<u64>), Error> {
    if file == Path::new("-") {
        return Ok((Box::new(io::stdin()), None));
    }
    let failed =
        |error: io::Error| Error::usage(format!("cannot read {}: {error}", file.display()));
    let input = File::open(file).map_err(failed)?;
    let data = input.metadata().map_err(failed)?;
    if data.is_dir() {
        return Err(Error::usage(format!("{} is a directory", file.display())));
    }
    let size = data.is_file().then_some(data.len());
    Ok((Box::new(input), size))
}

fn read(shape: &Shape<'_>, input: impl Read, blocks: &mpsc::Sender<Block>) -> Result<(), Stop> {
    let mut block = Block {
        keys: Vec::with_capacity(BLOCK_KEYS),
        bytes: 0,
    };
    let read = shape.read(input, |found, bytes| {
        block.keys.push(found);
        block.bytes = bytes;
        if block.keys.len() < BLOCK_KEYS {
            return Ok(());
        }
        let keys = std::mem::replace(&mut block.keys, Vec::with_capacity(BLOCK_KEYS));
        let full = Block { keys, bytes };
        blocks.blocking_send(full).map_err(|_| Stop::Taker)
    });
    if matches!(read, Err(Stop::Taker)) {
        return read;
    }
    // Also what came before a record that is wrong.
    blocks.blocking_send(block).map_err(|_| Stop::Taker)?;
    read
}

async fn send(
    access: &Access,
    consumer: &str,
    dry_run: bool,
    mut blocks: mpsc::Receiver<Block>,
    progress: &ProgressBar,
) -> Result<Imported, Error> {
    let mut total = Imported::default();
    while let Some(block) = blocks.recv().await {
        let keys = block.keys.iter().map(|found| ImportKey {
            key_hex: hex::encode(&found.key),
            fingerprint_hex: hex::encode(&found.fingerprint),
        });
        let import = Import {
            consumer: consumer.to_owned(),
            keys: keys.collect(),
            dry_run,
        };
        let Response::LedgerImport(imported) =
            access.execute(Request::LedgerImport(import)).await?
        else {
            return Err(unexpected());
        };
        total.new += imported.new;
        total.known += imported.known;
        progress.set_position(block.bytes);
        progress.set_message(format!(
            "{} keys, {} new",
            output::thousands(total.new + total.known),
            output::thousands(total.new)
        ));
    }
    Ok(total)
}

/// Shown on a terminal only.
fn progress(size: Option<u64>) -> ProgressBar {
    match size {
        Some(size) => ProgressBar::new(size).with_style(
            ProgressStyle::with_template("{bar:30} {percent}% {msg} {eta}")
                .expect("the template is a constant"),
        ),
        None => ProgressBar::new_spinner().with_style(
            ProgressStyle::with_template("{spinner} {msg} {elapsed}")
                .expect("the template is a constant"),
        ),
    }
}
