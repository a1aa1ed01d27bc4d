//! Where log records go: standard error, as text for people and as JSON for machines.
//!
//! Guarantees that a record never holds a message: crates that print what passes through them are
//! silenced, whatever the filter says about everything else.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

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
    let builder = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_env_filter(filter);
    // A logger that is there already, as in a test, stays.
    let _ = if json {
        builder
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .try_init()
    } else {
        builder
            .with_target(false)
            .with_ansi(wants_colour())
            .try_init()
    };
    Ok(())
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
mod tests {
    use super::*;

    #[test]
    fn a_filter_for_everything_does_not_reach_the_crates_that_print_payloads() {
        let shown = filter("trace").expect("valid").to_string();
        assert!(
            shown.contains("lapin=off") && shown.contains("trace"),
            "{shown}"
        );
    }

    #[test]
    fn a_filter_that_names_a_silenced_crate_wins() {
        let shown = filter("info,lapin=debug").expect("valid").to_string();
        assert!(
            shown.contains("lapin=debug") && !shown.contains("lapin=off"),
            "{shown}"
        );
    }

    #[test]
    fn a_filter_that_is_none_is_an_error_that_quotes_it() {
        let error = filter("hapax=loud").expect_err("no level").to_string();
        assert!(
            error.contains("hapax=loud") && error.contains("write for example"),
            "{error}"
        );
    }
}
