//! How an attempt ended, told from what the engine says: whose failure it is, and where in the handler.
//!
//! Never prints an error of the engine as a whole: its debug form drags in a backtrace of the host.

use wasmtime::{PoolConcurrencyLimitError, Trap, WasmBacktrace};

use crate::failure::{Failure, code};
use crate::store::StoreError;

use super::Verdict;
use super::engine::MAX_FRAMES;
use super::guest::Stop;
use super::text::{MAX_TEXT_BYTES, bounded};

/// What the engine says when a call passes more than the hostcall fuel allows. The error has no public type.
const HOSTCALL_FUEL_TEXT: &str = "too much data is being copied between the host and the guest";

/// Where the sources of languages' own libraries were when those were built: Rust's, and C's under it.
const LIBRARIES: &[&str] = &["/rustc/", "wasisdk://"];

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
        // Languages that keep their stack in linear memory run out of that first.
        Some(Trap::MemoryOutOfBounds) if is_deep(error) => {
            "out of bounds memory access in a deep recursion: the stack may be exhausted".to_owned()
        }
        _ => cause.trim_start_matches("wasm trap: ").to_owned(),
    };
    Failure::later(code::TRAP, bounded(text.as_bytes(), MAX_TEXT_BYTES))
}

/// The guest had at least as many calls open as are looked at.
fn is_deep(error: &wasmtime::Error) -> bool {
    error
        .downcast_ref::<WasmBacktrace>()
        .is_some_and(|backtrace| backtrace.frames().len() >= MAX_FRAMES)
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

/// One frame a line, innermost first: `handle at points/src/lib.rs:9:41`. Functions that were inlined into
/// one another are frames of their own. Frames of the language's own library are left out when there are
/// others: what led there is in the panic's text.
fn render(backtrace: &WasmBacktrace) -> String {
    let (mut own, mut all) = (Vec::new(), Vec::new());
    for frame in backtrace.frames() {
        let function = || match frame.func_name() {
            Some(name) => name.to_owned(),
            None => format!("function {}", frame.func_index()),
        };
        if frame.symbols().is_empty() {
            all.push(function());
        }
        for symbol in frame.symbols() {
            let name = symbol.name().map_or_else(function, str::to_owned);
            let Some(file) = symbol.file() else {
                all.push(name);
                continue;
            };
            let (line, column) = (symbol.line().unwrap_or(0), symbol.column().unwrap_or(0));
            let text = format!("{name} at {}:{line}:{column}", short_path(file));
            if !LIBRARIES.iter().any(|library| file.starts_with(library)) {
                own.push(text.clone());
            }
            all.push(text);
        }
    }
    let lines = if own.is_empty() { all } else { own };
    bounded(folded(&lines).as_bytes(), MAX_TEXT_BYTES)
}

/// `points/src/lib.rs` for a path of the machine that built the component.
fn short_path(file: &str) -> &str {
    let Some(source) = file.rfind("/src/") else {
        return file;
    };
    let package = file[..source].rfind('/').map_or(0, |slash| slash + 1);
    &file[package..]
}

/// Lines, with those that repeat written once and counted.
fn folded(lines: &[String]) -> String {
    let runs = lines.chunk_by(|a, b| a == b).map(|run| match run {
        [line] => line.clone(),
        _ => format!("{} ({} times)", run[0], run.len()),
    });
    runs.collect::<Vec<_>>().join("\n")
}
