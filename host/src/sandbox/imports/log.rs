//! A handler's log lines and its output, as log records of the target `guest`, with the message's key.

use super::super::bindings::hapax::plugin::log::{Host, Level};
use super::super::guest::Guest;
use super::super::text::bounded;

/// Bytes of a key that a log record shows.
const MAX_KEY_BYTES: usize = 128;

impl Host for Guest {
    fn write(
        &mut self,
        level: Level,
        message: String,
        fields: Vec<(String, String)>,
    ) -> wasmtime::Result<()> {
        let field_bytes: usize = fields
            .iter()
            .map(|(name, value)| name.len() + value.len() + 2)
            .sum();
        if self.quota.log_line(message.len() + field_bytes) {
            let fields: Vec<_> = fields
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            self.record(level, &message, &fields.join(" "));
        }
        Ok(())
    }
}

impl Guest {
    fn record(&self, level: Level, message: &str, fields: &str) {
        macro_rules! record {
            ($level:expr) => {
                tracing::event!(
                    target: "guest",
                    $level,
                    consumer = self.environment.consumer,
                    key = bounded(&self.attempt.key, MAX_KEY_BYTES),
                    attempt = self.attempt.number,
                    fields,
                    "{message}"
                )
            };
        }
        match level {
            Level::Trace => record!(tracing::Level::TRACE),
            Level::Debug => record!(tracing::Level::DEBUG),
            Level::Info => record!(tracing::Level::INFO),
            Level::Warn => record!(tracing::Level::WARN),
            Level::Error => record!(tracing::Level::ERROR),
        }
    }
}

/// Logs what the handler wrote to stdout and stderr, and how much of its log was over the limit.
pub(in crate::sandbox) fn log_output(guest: &mut Guest, output: &str) {
    for line in output.lines().filter(|line| !line.is_empty()) {
        if guest.quota.log_line(line.len()) {
            guest.record(Level::Info, line, "");
        }
    }
    if guest.quota.dropped_lines > 0 {
        let dropped = guest.quota.dropped_lines;
        guest.record(
            Level::Warn,
            &format!("{dropped} log lines over limits.log-bytes were dropped"),
            "",
        );
    }
}
