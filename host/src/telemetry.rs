//! Where log records go: standard error, as text for people and as JSON for machines.
//!
//! Guarantees that a record never holds a message: crates that print what passes through them are
//! silenced, whatever the filter says about everything else. What a record does hold may come from anywhere, from a
//! handler, a broker, a database: it stays on its line, does nothing to a terminal, and shows no password of a URL.

mod record;

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, IsTerminal};
use std::panic::{self, PanicHookInfo};
use std::thread;

use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{Log, LogFormat, hide_passwords};
use crate::output;

use record::{Fields, JsonLines};

/// These report at length, payloads included, what the host reports once, where it is handled. A filter
/// that names one of them wins.
const SILENCED: &str = "lapin=off,async_rs=off,sqlx=error,wasmtime=warn,hyper=warn,rustls=warn";

/// `log.filter` is not a list of directives.
#[derive(Debug, thiserror::Error)]
#[error(
    "`log.filter` = \"{filter}\" is not understood: {error}; write for example \"info,hapax=debug\""
)]
pub struct BadFilter {
    filter: String,
    error: tracing_subscriber::filter::ParseError,
}

/// Begins to log as the daemon was told to.
pub fn start(log: &Log) -> Result<(), BadFilter> {
    let filter = filter(&log.filter)?;
    let terminal = io::stderr().is_terminal();
    let json = match log.format {
        LogFormat::Auto => !terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    panic::set_hook(Box::new(|panic| output::complain(&told(panic))));
    // A logger that is there already, as in a test, stays.
    let _ = match json {
        true => as_json(filter, io::stderr).try_init(),
        false => as_text(filter, wants_colour(), io::stderr).try_init(),
    };
    Ok(())
}

fn as_text<W>(filter: EnvFilter, colour: bool, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_target(false)
        .with_ansi(colour)
        .fmt_fields(Fields)
        .finish()
}

fn as_json<W>(filter: EnvFilter, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(JsonLines(writer))
        .json()
        .flatten_event(true)
        .with_current_span(true)
        .with_span_list(false)
        .finish()
}

/// What is said of a panic. Its text may quote what the host has read.
fn told(panic: &PanicHookInfo<'_>) -> String {
    let place = panic.location().map(ToString::to_string);
    let backtrace = Backtrace::capture();
    let backtrace = match backtrace.status() {
        BacktraceStatus::Captured => format!("{backtrace}\n"),
        _ => String::new(),
    };
    format!(
        "thread '{}' panicked at {}: {}\n{backtrace}",
        thread::current().name().unwrap_or("<unnamed>"),
        place.unwrap_or_default(),
        panic_text(panic.payload()),
    )
}

fn panic_text(payload: &dyn Any) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    output::clean(&hide_passwords(text.unwrap_or("without a text")))
}

/// What commands that end by themselves log: what a person should know, in words.
pub fn quiet() {
    let log = Log {
        format: LogFormat::Text,
        filter: "warn".to_owned(),
    };
    start(&log).expect("this filter is valid");
}

/// Whether standard error shows colours, and its reader wants them.
pub fn wants_colour() -> bool {
    anstream::AutoStream::choice(&io::stderr()) != anstream::ColorChoice::Never
}

fn filter(written: &str) -> Result<EnvFilter, BadFilter> {
    EnvFilter::builder()
        .parse(format!("{SILENCED},{written}"))
        .map_err(|error| BadFilter {
            filter: written.to_owned(),
            error,
        })
}

#[cfg(test)]
mod tests;
