//! What a guest writes to stdout and stderr: kept in the order in which it was written, up to a limit.
//! What is over is counted and dropped; the guest does not notice.
//!
//! Also the end that a guest may put to itself with `exit`.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use wasmtime::component::Resource;
use wasmtime_wasi::p2::bindings::cli::{exit, stderr, stdout};
use wasmtime_wasi::p2::{DynOutputStream, OutputStream, Pollable, StreamResult};

use crate::failure::{Failure, code};

use super::super::guest::{Guest, Stop};

/// What one write may carry.
const CHUNK_BYTES: usize = 64 * 1024;

/// The captured output of one instance. Streams share it; there is none before the first stream.
pub(in crate::sandbox) struct Output {
    limit_bytes: usize,
    captured: Option<Arc<Mutex<Captured>>>,
}

struct Captured {
    bytes: Vec<u8>,
    limit_bytes: usize,
    dropped_bytes: u64,
}

impl Output {
    pub(super) fn new(limit_bytes: u64) -> Self {
        Self {
            limit_bytes: usize::try_from(limit_bytes).unwrap_or(usize::MAX),
            captured: None,
        }
    }

    /// Everything so far, as valid text.
    pub(super) fn text(&self) -> String {
        let Some(captured) = &self.captured else {
            return String::new();
        };
        let captured = captured.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::from_utf8_lossy(&captured.bytes).into_owned();
        if captured.dropped_bytes > 0 {
            text.push_str(&format!(
                "\n[{} more bytes dropped]",
                captured.dropped_bytes
            ));
        }
        text
    }

    fn stream(&mut self) -> DynOutputStream {
        let captured = self.captured.get_or_insert_with(|| {
            Arc::new(Mutex::new(Captured {
                bytes: Vec::new(),
                limit_bytes: self.limit_bytes,
                dropped_bytes: 0,
            }))
        });
        Box::new(Writer(Arc::clone(captured)))
    }
}

struct Writer(Arc<Mutex<Captured>>);

#[async_trait::async_trait]
impl Pollable for Writer {
    async fn ready(&mut self) {}
}

impl OutputStream for Writer {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        let mut captured = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = captured.limit_bytes.saturating_sub(captured.bytes.len());
        let (kept, dropped) = bytes.split_at(room.min(bytes.len()));
        captured.bytes.extend_from_slice(kept);
        captured.dropped_bytes += dropped.len() as u64;
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(CHUNK_BYTES)
    }
}

impl stdout::Host for Guest {
    fn get_stdout(&mut self) -> wasmtime::Result<Resource<DynOutputStream>> {
        Ok(self.wasi.table.push(self.wasi.output.stream())?)
    }
}

impl stderr::Host for Guest {
    fn get_stderr(&mut self) -> wasmtime::Result<Resource<DynOutputStream>> {
        Ok(self.wasi.table.push(self.wasi.output.stream())?)
    }
}

impl exit::Host for Guest {
    fn exit(&mut self, status: Result<(), ()>) -> wasmtime::Result<()> {
        self.exit_with_code(u8::from(status.is_err()))
    }

    fn exit_with_code(&mut self, status_code: u8) -> wasmtime::Result<()> {
        let text = format!("the handler exited with status {status_code} instead of returning");
        Err(Stop::Failed(Failure::later(code::TRAP, text)).into())
    }
}
