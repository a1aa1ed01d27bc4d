//! How an attempt ended, told from what the engine says: whose failure it is, and where in the handler.
//!
//! Never prints an error of the engine as a whole: its debug form drags in a backtrace of the host.

use wasmtime::{PoolConcurrencyLimitError, Trap, WasmBacktrace};

use crate::failure::{Failure, code};
use crate::store::StoreError;

use super::Verdict;
use super::guest::Stop;
use super::text::{MAX_TEXT_BYTES, bounded};

/// What the engine says when a call passes more than the hostcall fuel allows. The error has no public type.
const HOSTCALL_FUEL_TEXT: &str = "too much data is being copied between the host and the guest";

/// The verdict on an attempt that the engine ended.
pub(super) fn verdict(error: wasmtime::Error, output: &str) -> Verdict {
    let backtrace = error
        .downcast_ref::<WasmBacktrace>()
        .map(render)
        .unwrap_or_default();
    let mut failure = match error.downcast::<Stop>() {
        Ok(Stop::Spoiled(error)) => return Verdict::Spoiled(error),
        Ok(Stop::Failed(failure)) => failure,
        Err(error) if error.is::<PoolConcurrencyLimitError>() => {
            return Verdict::Spoiled(StoreError::Unavailable(format!(
                "the pool of instances is exhausted: {}",
                error.root_cause()
            )));
        }
        Err(error) => failure(&error, output),
    };
    failure.backtrace = backtrace;
    Verdict::Failed(failure)
}

fn failure(error: &wasmtime::Error, output: &str) -> Failure {
    let cause = error.root_cause().to_string();
    if cause.starts_with(HOSTCALL_FUEL_TEXT) {
        return Failure::later(
            code::HOSTCALL_LIMIT,
            "passed more to the host in one call than limits.hostcall-bytes allows",
        );
    }
    let text = match error.downcast_ref::<Trap>() {
        Some(Trap::StackOverflow) => {
            "call stack exhausted: the handler recursed too deep".to_owned()
        }
        // A panic of Rust, an abort of C: what the handler wrote says more.
        Some(Trap::UnreachableCodeReached) => {
            panic_text(output).unwrap_or_else(|| "the handler aborted".to_owned())
        }
        _ => cause.trim_start_matches("wasm trap: ").to_owned(),
    };
    Failure::later(code::TRAP, bounded(text.as_bytes(), MAX_TEXT_BYTES))
}

/// The last panic in a guest's output, as one line: `panicked at src/lib.rs:9:41: no such user`.
///
/// Rust writes `thread 'main' (1) panicked at PLACE:`, the message on the lines after it, and a note on
/// backtraces that means nothing here.
fn panic_text(output: &str) -> Option<String> {
    let start = output.rfind("panicked at ")?;
    let mut lines = output[start..]
        .lines()
        .take_while(|line| !line.starts_with("note: "))
        .map(str::trim)
        .filter(|line| !line.is_empty());
    let place = lines.next()?;
    let message = lines.collect::<Vec<_>>().join(" ");
    Some(format!("{place} {message}").trim_end().to_owned())
}

/// One frame a line, innermost first: `points::handle at src/lib.rs:9:41`. Functions that were inlined into
/// one another are frames of their own.
fn render(backtrace: &WasmBacktrace) -> String {
    let mut lines = Vec::new();
    for frame in backtrace.frames() {
        let function = || match frame.func_name() {
            Some(name) => name.to_owned(),
            None => format!("function {}", frame.func_index()),
        };
        if frame.symbols().is_empty() {
            lines.push(match frame.module_offset() {
                Some(offset) => format!("{} at offset {offset:#x}", function()),
                None => function(),
            });
        }
        for symbol in frame.symbols() {
            let name = symbol.name().map_or_else(function, str::to_owned);
            let place = match (symbol.file(), symbol.line()) {
                (Some(file), Some(line)) => {
                    format!(" at {file}:{line}:{}", symbol.column().unwrap_or(0))
                }
                (Some(file), None) => format!(" at {file}"),
                (None, _) => String::new(),
            };
            lines.push(format!("{name}{place}"));
        }
    }
    bounded(lines.join("\n").as_bytes(), MAX_TEXT_BYTES)
}
