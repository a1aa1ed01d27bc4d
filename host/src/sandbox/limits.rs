//! What one message may use: memory, processor time, statements, rows, outgoing messages, log.
//!
//! A limit that is reached ends the attempt with the limit's own code. Logs are the exception: what is
//! over is dropped and counted, because a talkative handler has done nothing wrong.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use wasmtime::{ResourceLimiter, UpdateDeadline};

use crate::config::Limits;
use crate::failure::{Code, Failure, code};

use super::engine::{Pulse, TICK};
use super::guest::Stop;

/// Log lines of one message, beside the bound on their bytes.
const MAX_LOG_LINES: u32 = 1_000;

/// Component-model handles, and host objects behind them, that one instance may hold.
pub(super) const MAX_HANDLES: usize = 10_000;

/// The linear memory and the tables of one instance, all of them together.
pub(super) struct Space {
    memory_bytes: Used,
    table_elements: Used,
}

/// Something that grows up to a limit.
struct Used {
    now: u64,
    /// Added last; taken back when the growth fails for another reason.
    last: u64,
    limit: u64,
}

impl Used {
    fn new(limit: u64) -> Self {
        Self {
            now: 0,
            last: 0,
            limit,
        }
    }

    /// False when it does not fit.
    fn grow(&mut self, current: usize, desired: usize) -> bool {
        let growth = desired.saturating_sub(current) as u64;
        let wanted = self.now.saturating_add(growth);
        if wanted > self.limit {
            return false;
        }
        self.last = growth;
        self.now = wanted;
        true
    }

    fn undo(&mut self) {
        self.now -= std::mem::take(&mut self.last);
    }
}

impl Space {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            memory_bytes: Used::new(limits.memory),
            table_elements: Used::new(u64::from(limits.table_elements)),
        }
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        self.memory_bytes.now
    }
}

impl ResourceLimiter for Space {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if self.memory_bytes.grow(current, desired) {
            return Ok(true);
        }
        let allowed = self.memory_bytes.limit;
        Err(over(
            code::MEMORY_LIMIT,
            format!("wanted {desired} bytes of memory; limits.memory allows {allowed}"),
        ))
    }

    fn memory_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.memory_bytes.undo();
        Ok(())
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if self.table_elements.grow(current, desired) {
            return Ok(true);
        }
        let allowed = self.table_elements.limit;
        Err(over(
            code::MEMORY_LIMIT,
            format!("wanted {desired} table elements; limits.table-elements allows {allowed}"),
        ))
    }

    fn table_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.table_elements.undo();
        Ok(())
    }
}

/// Epochs that a guest is charged with at once, at most: a machine that stopped for a while, and the host with
/// it, must not look like a handler that did not stop.
const MAX_CHARGE: u64 = 16;

/// Processor time, counted in epochs that pass while the guest has a thread, its host calls included.
pub(super) struct Processor {
    ticks_left: u64,
    meter: Meter,
}

/// When the guest was last given a thread, or was last charged: an epoch.
#[derive(Clone, Default)]
pub(super) struct Meter {
    pulse: Arc<Pulse>,
    since: Arc<AtomicU64>,
}

impl Meter {
    /// Runs a guest. What passes while it waits, for the database or for its turn, is not its own.
    pub(super) async fn charge<T>(&self, guest: impl Future<Output = T>) -> T {
        let mut guest = pin!(guest);
        poll_fn(|context| {
            self.reset();
            guest.as_mut().poll(context)
        })
        .await
    }

    fn reset(&self) {
        self.since.store(self.pulse.epochs(), Ordering::Relaxed);
    }

    /// The epochs since the last reset.
    fn read(&self) -> u64 {
        let since = self.since.load(Ordering::Relaxed);
        self.pulse.epochs().saturating_sub(since).min(MAX_CHARGE)
    }
}

impl Processor {
    pub(super) fn new(limits: &Limits) -> Self {
        let ticks = limits.cpu.as_micros().div_ceil(TICK.as_micros());
        Self {
            ticks_left: u64::try_from(ticks).unwrap_or(u64::MAX),
            meter: Meter::default(),
        }
    }

    /// Counts by the epochs of an engine, from now on.
    pub(super) fn start(&mut self, pulse: &Arc<Pulse>) {
        self.meter.pulse = Arc::clone(pulse);
        self.meter.reset();
    }

    pub(super) fn meter(&self) -> Meter {
        self.meter.clone()
    }

    /// An epoch has passed: the guest makes room for others, or has used up its time.
    pub(super) fn tick(&mut self, limits: &Limits) -> wasmtime::Result<UpdateDeadline> {
        let Some(left) = self.ticks_left.checked_sub(self.meter.read()) else {
            return Err(over(
                code::CPU_LIMIT,
                format!(
                    "used more than {:?} of processor time (limits.cpu)",
                    limits.cpu
                ),
            ));
        };
        self.ticks_left = left;
        self.meter.reset();
        // Not `Yield`, after which the executor may take the guest up again dozens of times before it looks at
        // its sockets and timers: this way it looks at them first.
        Ok(UpdateDeadline::YieldCustom(
            1,
            Box::pin(tokio::task::yield_now()),
        ))
    }
}

/// What is left of the countable limits.
pub(super) struct Quota {
    statements: u32,
    rows: u64,
    sql_bytes: u64,
    messages: u32,
    outbox_bytes: u64,
    log_bytes: u64,
    log_lines: u32,
    pub(super) dropped_lines: u64,
}

impl Quota {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            statements: limits.sql_statements,
            rows: u64::from(limits.sql_rows),
            sql_bytes: limits.sql_bytes,
            messages: limits.outbox_messages,
            outbox_bytes: limits.outbox_bytes,
            log_bytes: limits.log_bytes,
            log_lines: MAX_LOG_LINES,
            dropped_lines: 0,
        }
    }

    /// Counts a statement, or an access to the state, with the bytes it carries.
    pub(super) fn statement(&mut self, limits: &Limits, bytes: usize) -> Result<(), Stop> {
        let Some(statements) = self.statements.checked_sub(1) else {
            return Err(sql_limit(format!(
                "ran more than {} statements (limits.sql-statements)",
                limits.sql_statements
            )));
        };
        self.statements = statements;
        self.sql_bytes(limits, bytes)
    }

    /// Counts bytes that went to the database, or came from it.
    pub(super) fn sql_bytes(&mut self, limits: &Limits, bytes: usize) -> Result<(), Stop> {
        let Some(left) = self.sql_bytes.checked_sub(bytes as u64) else {
            return Err(sql_limit(format!(
                "exchanged more than {} bytes with the database (limits.sql-bytes)",
                limits.sql_bytes
            )));
        };
        self.sql_bytes = left;
        Ok(())
    }

    /// How many rows, and how many bytes of them, the next result may have.
    pub(super) fn next_result(&self) -> (u64, u64) {
        (self.rows, self.sql_bytes)
    }

    pub(super) fn rows(&mut self, limits: &Limits, rows: usize, bytes: usize) -> Result<(), Stop> {
        let Some(left) = self.rows.checked_sub(rows as u64) else {
            return Err(sql_limit(format!(
                "read more than {} rows (limits.sql-rows)",
                limits.sql_rows
            )));
        };
        self.rows = left;
        self.sql_bytes(limits, bytes)
    }

    /// Counts an outgoing message.
    pub(super) fn message(&mut self, limits: &Limits, bytes: usize) -> Result<(), Stop> {
        let Some(messages) = self.messages.checked_sub(1) else {
            return Err(outbox_limit(format!(
                "sent more than {} messages (limits.outbox-messages)",
                limits.outbox_messages
            )));
        };
        let Some(left) = self.outbox_bytes.checked_sub(bytes as u64) else {
            return Err(outbox_limit(format!(
                "sent more than {} bytes of messages (limits.outbox-bytes)",
                limits.outbox_bytes
            )));
        };
        (self.messages, self.outbox_bytes) = (messages, left);
        Ok(())
    }

    /// Whether a log line of so many bytes is kept. Those that are not are counted.
    pub(super) fn log_line(&mut self, bytes: usize) -> bool {
        match (
            self.log_lines.checked_sub(1),
            self.log_bytes.checked_sub(bytes as u64),
        ) {
            (Some(lines), Some(left)) => {
                (self.log_lines, self.log_bytes) = (lines, left);
                true
            }
            _ => {
                self.dropped_lines += 1;
                false
            }
        }
    }
}

fn sql_limit(text: String) -> Stop {
    Stop::Failed(Failure::later(code::SQL_LIMIT, text))
}

fn outbox_limit(text: String) -> Stop {
    Stop::Failed(Failure::later(code::OUTBOX_LIMIT, text))
}

fn over(code: Code, text: String) -> wasmtime::Error {
    Stop::Failed(Failure::later(code, text)).into()
}
