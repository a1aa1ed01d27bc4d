//! How an attempt ended, told from what the engine says: whose failure it is, and which calls were open.
//!
//! Never prints an error of the engine as a whole: its debug form drags in a backtrace of the host.

use wasmtime::{PoolConcurrencyLimitError, Trap, WasmBacktrace};

use crate::failure::{Failure, code};
use crate::store::StoreError;

use super::Verdict;
use super::engine::MAX_FRAMES;
use super::guest::Stop;
use super::symbols::Frame;
use super::text::{MAX_TEXT_BYTES, bounded};

/// What the engine says when a call passes more than the hostcall fuel allows. The error has no public type.
const HOSTCALL_FUEL_TEXT: &str = "too much data is being copied between the host and the guest";

/// What is shown of a function's name.
const MAX_NAME_BYTES: usize = 256;

/// The verdict on an attempt that the engine ended, and the calls that were open, innermost first.
pub(super) fn verdict(error: wasmtime::Error, output: &str) -> (Verdict, Vec<Frame>) {
    let frames = error
        .downcast_ref::<WasmBacktrace>()
        .map(frames)
        .unwrap_or_default();
    let failure = match error.downcast::<Stop>() {
        Ok(Stop::Spoiled(error)) => return (Verdict::Spoiled(error), Vec::new()),
        Ok(Stop::Failed(failure)) => failure,
        Err(error) if error.is::<PoolConcurrencyLimitError>() => {
            let error = StoreError::Unavailable(format!(
                "the pool of instances is exhausted: {}",
                error.root_cause()
            ));
            return (Verdict::Spoiled(error), Vec::new());
        }
        Err(error) => failure(&error, output),
    };
    (Verdict::Failed(failure), frames)
}

fn frames(backtrace: &WasmBacktrace) -> Vec<Frame> {
    let frames = backtrace.frames().iter().map(|frame| Frame {
        function: match frame.func_name() {
            // It is as long as the component says, and shown for each frame.
            Some(name) => bounded(name.as_bytes(), MAX_NAME_BYTES),
            None => format!("function {}", frame.func_index()),
        },
        offset: frame.module_offset().map(|offset| offset as u64),
    });
    frames.collect()
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
