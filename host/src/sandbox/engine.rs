//! The process's one WebAssembly engine: its settings, its pool of instances, and its clock.
//!
//! Instances come from a pool that is reserved once and sized to what runs at once; where the machine does
//! not give that much address space, they are made on demand, which costs about twice the time. A guest
//! waits for its turn when the pool is empty, and is not failed for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, Thread};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use wasmtime::component::Linker;
use wasmtime::{
    Config, Enabled, Engine, EngineWeak, InstanceAllocationStrategy, PoolingAllocationConfig,
    WasmBacktraceDetails,
};

use super::guest::Guest;
use super::{imports, wasi};

/// Plugins that may be tried out at the same time.
pub const MAX_LOADS: usize = 2;

/// How often a running guest is interrupted to let others run: no guest delays another by more.
pub(super) const TICK: Duration = Duration::from_millis(1);

/// Ticks without a running guest after which the clock stops until the next one.
const IDLE_TICKS: u32 = 200;

/// Frames of a guest's backtrace that are looked at; a panic in Rust has ten of its own.
pub(super) const MAX_FRAMES: usize = 24;

/// What an instance of one component may consist of. Components that toolchains for Python link have about
/// thirty core modules and a dozen tables.
const MAX_CORE_INSTANCES: u32 = 64;
const MAX_TABLES: u32 = 32;
const MAX_MEMORIES: u32 = 2;

/// Bytes of tables and other data of one instance.
const MAX_INSTANCE_BYTES: usize = 16 << 20;

/// Memory of a slot that is cleared by hand instead of being given back to the system after each message.
const KEEP_RESIDENT_BYTES: usize = 2 << 20;

/// What the sandbox is built for.
#[derive(Clone, Copy, Debug)]
pub struct SandboxOptions {
    /// Messages that run at the same time: the lanes of all consumers together.
    pub concurrent_instances: usize,
    /// The largest `limits.memory` of all consumers, in bytes.
    pub max_memory: u64,
    /// The largest `limits.table-elements` of all consumers.
    pub max_table_elements: u32,
    /// Count the instructions that guests execute, which costs time.
    pub metered: bool,
    /// How long compiling one component may take.
    pub compile_timeout: Duration,
}

/// Why there is no sandbox.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("the WebAssembly engine does not start: {0}")]
    Engine(String),
    #[error("the sandbox's clock does not start")]
    Clock(#[source] std::io::Error),
}

/// Where plugins run. One in a process.
pub struct Sandbox {
    pub(super) engine: Engine,
    pub(super) linker: Linker<Guest>,
    pub(super) max_memory: u64,
    pub(super) max_table_elements: u32,
    pub(super) metered: bool,
    pub(super) compile_timeout: Duration,
    slots: Semaphore,
    clock: Clock,
}

/// The right to have one instance. The clock runs while there is one.
pub(super) struct Slot<'a> {
    _permit: SemaphorePermit<'a>,
    clock: &'a Clock,
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.clock.pulse.running.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Sandbox {
    pub fn new(options: SandboxOptions) -> Result<Arc<Self>, SandboxError> {
        // More slots than there are lanes, so that a plugin that is being loaded takes no lane's place.
        let slots = options.concurrent_instances.max(1) + MAX_LOADS;
        let engine = pooling(&options, slots).or_else(|error| {
            tracing::warn!(
                error = %error.root_cause(),
                instances = slots,
                "No address space for a pool of instances; each message makes its own, which is slower"
            );
            Engine::new(&settings(&options)).map_err(refused)
        })?;
        let mut linker = Linker::new(&engine);
        imports::link(&mut linker).map_err(refused)?;
        wasi::link(&mut linker).map_err(refused)?;
        let clock = Clock::start(engine.weak())?;
        Ok(Arc::new(Self {
            engine,
            linker,
            max_memory: options.max_memory,
            max_table_elements: options.max_table_elements,
            metered: options.metered,
            compile_timeout: options.compile_timeout,
            slots: Semaphore::new(slots),
            clock,
        }))
    }

    /// What counts the engine's epochs.
    pub(super) fn pulse(&self) -> &Arc<Pulse> {
        &self.clock.pulse
    }

    /// Guests are not interrupted any more: what comes in real time has no place in a simulation.
    #[cfg(test)]
    pub(crate) fn stop_clock(&self) {
        self.clock.pulse.stopped.store(true, Ordering::SeqCst);
    }

    /// Waits until one more instance may be.
    pub(super) async fn slot(&self) -> Slot<'_> {
        let permit = self
            .slots
            .acquire()
            .await
            .expect("the semaphore is never closed");
        self.clock.wake();
        Slot {
            _permit: permit,
            clock: &self.clock,
        }
    }
}

fn refused(error: wasmtime::Error) -> SandboxError {
    SandboxError::Engine(error.root_cause().to_string())
}

fn settings(options: &SandboxOptions) -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .consume_fuel(options.metered)
        .concurrency_support(false)
        // The engine would read all debug information anew for each frame, on the thread of the trap:
        // `symbols` does it once, elsewhere.
        .wasm_backtrace_details(WasmBacktraceDetails::Disable)
        .wasm_backtrace_max_frames(std::num::NonZeroUsize::new(MAX_FRAMES))
        .wasm_memory64(false);
    config
}

fn pooling(options: &SandboxOptions, slots: usize) -> wasmtime::Result<Engine> {
    let slots = u32::try_from(slots)?;
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(slots)
        .total_core_instances(slots.saturating_mul(MAX_CORE_INSTANCES))
        .max_core_instances_per_component(MAX_CORE_INSTANCES)
        .total_memories(slots.saturating_mul(MAX_MEMORIES))
        .max_memories_per_component(MAX_MEMORIES)
        .max_memories_per_module(MAX_MEMORIES)
        .total_tables(slots.saturating_mul(MAX_TABLES))
        .max_tables_per_component(MAX_TABLES)
        .max_tables_per_module(MAX_TABLES)
        .table_elements(usize::try_from(options.max_table_elements)?)
        // A dropped attempt may give its stack back a little later than its permit.
        .total_stacks(slots.saturating_mul(2))
        .max_component_instance_size(MAX_INSTANCE_BYTES)
        .max_core_instance_size(MAX_INSTANCE_BYTES)
        .max_memory_size(usize::try_from(options.max_memory)?)
        .pagemap_scan(Enabled::Auto);
    if PoolingAllocationConfig::is_pagemap_scan_available() {
        // The kernel tells which pages were written: only those are cleared.
        pool.linear_memory_keep_resident(KEEP_RESIDENT_BYTES)
            .table_keep_resident(KEEP_RESIDENT_BYTES);
    }
    Engine::new(settings(options).allocation_strategy(InstanceAllocationStrategy::Pooling(pool)))
}

/// The thread that makes the engine's epochs pass.
struct Clock {
    pulse: Arc<Pulse>,
    thread: Thread,
}

/// What the clock's thread shares with those who need it.
#[derive(Default)]
pub(super) struct Pulse {
    /// Epochs that have passed.
    epochs: AtomicU64,
    /// Slots that are taken.
    running: AtomicUsize,
    asleep: AtomicBool,
    stopped: AtomicBool,
}

impl Clock {
    fn start(engine: EngineWeak) -> Result<Self, SandboxError> {
        let pulse = Arc::new(Pulse::default());
        let thread = thread::Builder::new()
            .name("hapax-epochs".into())
            .spawn({
                let pulse = Arc::clone(&pulse);
                move || pulse.run(&engine)
            })
            .map_err(SandboxError::Clock)?
            .thread()
            .clone();
        Ok(Self { pulse, thread })
    }

    /// Called before a guest runs.
    fn wake(&self) {
        self.pulse.running.fetch_add(1, Ordering::SeqCst);
        if self.pulse.asleep.load(Ordering::SeqCst) {
            self.thread.unpark();
        }
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        self.pulse.stopped.store(true, Ordering::SeqCst);
        self.thread.unpark();
    }
}

impl Pulse {
    /// Epochs that have passed. They stand still while nothing runs.
    pub(super) fn epochs(&self) -> u64 {
        self.epochs.load(Ordering::Relaxed)
    }

    fn run(&self, engine: &EngineWeak) {
        let mut idle_ticks = 0;
        loop {
            thread::sleep(TICK);
            if self.stopped.load(Ordering::SeqCst) {
                return;
            }
            let Some(engine) = engine.upgrade() else {
                return;
            };
            engine.increment_epoch();
            self.epochs.fetch_add(1, Ordering::Relaxed);
            idle_ticks = if self.running.load(Ordering::SeqCst) == 0 {
                idle_ticks + 1
            } else {
                0
            };
            if idle_ticks >= IDLE_TICKS {
                self.sleep();
                idle_ticks = 0;
            }
        }
    }

    /// Waits for the next guest. It is announced in `running` before `asleep` is read, and looked for after
    /// `asleep` is set, so that none is overlooked.
    fn sleep(&self) {
        self.asleep.store(true, Ordering::SeqCst);
        while self.running.load(Ordering::SeqCst) == 0 && !self.stopped.load(Ordering::SeqCst) {
            thread::park();
        }
        self.asleep.store(false, Ordering::SeqCst);
    }
}
