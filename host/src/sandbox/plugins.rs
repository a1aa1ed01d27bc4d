//! One version of a component, from its file to something that can be run at once for every message.
//!
//! Loading hashes, compiles or takes the machine code from the cache, looks at what the component imports,
//! and makes one instance to see that it starts. A component that is refused says what it wants and what
//! there is. Nothing here watches files or decides which version runs.

mod cache;
mod compile;
mod shape;

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use sha2::{Digest, Sha256};
use wasmtime::component::{Component, InstancePre};
use wasmtime::{Engine, Precompiled};

use crate::config::{Idempotency, Limits, Random};
use crate::effects::outbox::Composer;
use crate::effects::sql::rules::{self, Grants, Rules};
use crate::failpoint::{self, Point};
use crate::failure::code;
use crate::message::Message;
use crate::store::{ConsumerId, Dialect};

use super::bindings::HandlerPre;
use super::engine::Sandbox;
use super::grants::{self, Import};
use super::guest::Guest;
use super::seeds::Seeds;
use super::symbols::Symbols;
use super::{Attempt, Environment, Verdict, trap};

pub use cache::{Cache, MAX_VERSIONS, PluginDigest, remove_leftovers, write as write_file};

/// What an instance may use to come into being.
const START_CPU: Duration = Duration::from_secs(2);
const START_WALL: Duration = Duration::from_secs(10);

/// The largest file that is taken for a component. Those of languages that bring their own runtime have
/// some 50 MB.
const MAX_COMPONENT_BYTES: u64 = 512 << 20;

/// The package whose interfaces a handler is built against, and its version here.
const PACKAGE: &str = "hapax:plugin/";
const PACKAGE_VERSION: &str = "0.1.0";

/// One loaded version of a component. Cheap to clone, never changes.
#[derive(Clone)]
pub struct Plugin(pub(super) Arc<Loaded>);

pub(super) struct Loaded {
    pub(super) sandbox: Arc<Sandbox>,
    pub(super) handler: HandlerPre<Guest>,
    pub(super) symbols: Symbols,
    digest: PluginDigest,
    size_bytes: u64,
    initial_memory_bytes: u64,
    imports: Vec<Import>,
    from_cache: bool,
    usage: Usage,
}

/// What a version has been doing since it was loaded.
#[derive(Debug, Default)]
pub struct Usage {
    committed: AtomicU64,
    failed: AtomicU64,
    in_flight: AtomicU64,
    run_nanos: AtomicU64,
    peak_memory_bytes: AtomicU64,
    recent_memory_bytes: AtomicU64,
    fuel: AtomicU64,
}

/// Messages that are being worked on. They are not any more when this is dropped.
#[derive(Debug)]
pub struct InFlight<'a> {
    usage: &'a Usage,
    messages: u64,
}

impl Usage {
    /// Messages begin their way through a transaction.
    pub fn begin(&self, messages: usize) -> InFlight<'_> {
        let messages = messages as u64;
        self.in_flight.fetch_add(messages, Ordering::Relaxed);
        InFlight {
            usage: self,
            messages,
        }
    }

    /// A transaction has committed so many messages, and the failures of so many others.
    pub fn count(&self, committed: u64, failed: u64) {
        self.committed.fetch_add(committed, Ordering::Relaxed);
        self.failed.fetch_add(failed, Ordering::Relaxed);
    }

    /// An instance has ended.
    pub(super) fn ran(&self, elapsed: Duration, memory_bytes: u64, fuel: u64) {
        let nanos = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        self.run_nanos.fetch_add(nanos, Ordering::Relaxed);
        for most in [&self.peak_memory_bytes, &self.recent_memory_bytes] {
            most.fetch_max(memory_bytes, Ordering::Relaxed);
        }
        self.fuel.fetch_add(fuel, Ordering::Relaxed);
    }

    /// Time in the handler, host calls included, of all runs together.
    pub fn run_time(&self) -> Duration {
        Duration::from_nanos(self.run_nanos.load(Ordering::Relaxed))
    }

    /// The most linear memory that an instance has had, in bytes.
    pub fn peak_memory_bytes(&self) -> u64 {
        self.peak_memory_bytes.load(Ordering::Relaxed)
    }

    /// The same of the instances that have ended since this was asked last; 0 when there was none.
    pub fn take_recent_memory_bytes(&self) -> u64 {
        self.recent_memory_bytes.swap(0, Ordering::Relaxed)
    }

    /// Instructions that all runs together have executed, about; 0 unless the sandbox is metered.
    pub fn fuel(&self) -> u64 {
        self.fuel.load(Ordering::Relaxed)
    }

    pub fn committed(&self) -> u64 {
        self.committed.load(Ordering::Relaxed)
    }

    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.usage
            .in_flight
            .fetch_sub(self.messages, Ordering::Relaxed);
    }
}

/// A component that is not run, and why.
#[derive(Debug, thiserror::Error)]
#[error("plugin {name}: {problem}")]
pub struct LoadError {
    /// The path, or what the bytes were called.
    pub name: String,
    pub problem: LoadProblem,
}

/// What is wrong with it, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum LoadProblem {
    #[error("cannot read the file: {0}")]
    Unreadable(std::io::Error),
    #[error("the file is empty")]
    Empty,
    #[error("this is no file")]
    NotAFile,
    #[error("the file has {0} bytes, and a component may have {MAX_COMPONENT_BYTES}")]
    TooLarge(u64),
    #[error("this is not WebAssembly: {0}")]
    NotWasm(&'static str),
    #[error(
        "this is a core WebAssembly module, not a component; build it for wasm32-wasip2, or wrap it with \
         `wasm-tools component new`"
    )]
    CoreModule,
    #[error(
        "this is precompiled machine code, which is not accepted from outside; give the component itself"
    )]
    Precompiled,
    #[error("the component does not compile, it may be cut off or damaged: {0}")]
    Invalid(String),
    #[error("the component is made of more than a host takes: {0}")]
    TooMuch(String),
    #[error(
        "compiling the component takes longer than {0:?} (host.compile-timeout), and is given up; if this \
         machine is slow, allow more"
    )]
    TooLong(Duration),
    #[error(
        "other components whose compiling was given up are compiled still, and this one has to wait; a restart ends them"
    )]
    Busy,
    #[error("the component wants what a handler is not granted\n{0}")]
    Imports(String),
    #[error("this is a component of another world than hapax:plugin/handler: {0}")]
    World(String),
    #[error(
        "the component was built for hapax:plugin@{0}, and this host speaks {PACKAGE_VERSION}; \
         build it with the SDK or the WIT of this version (`hapax new` brings it)"
    )]
    Version(String),
    #[error("the component does not start: {0}")]
    Start(String),
    #[error("the component does not start in time, which may be the machine's fault: {0}")]
    Slow(String),
    #[error(
        "the plugin of the consumer {consumer} begins with {needed} bytes of memory, and limits.memory is \
         {limit}: every message would fail; raise it"
    )]
    Memory {
        consumer: String,
        needed: u64,
        limit: u64,
    },
}

impl LoadProblem {
    /// Whether the same file may be a good plugin a little later.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Unreadable(_) | Self::Slow(_) | Self::Busy)
    }
}

impl Plugin {
    /// Loads a component. Compiles, and so takes from milliseconds to many seconds of every processor: call
    /// it where that blocks nobody.
    pub fn load(sandbox: &Arc<Sandbox>, path: &Path) -> Result<Self, LoadError> {
        let name = path.display().to_string();
        match read_component(path) {
            Ok(bytes) => Self::from_bytes(sandbox, &name, &bytes),
            Err(problem) => Err(LoadError { name, problem }),
        }
    }

    /// The same for bytes in memory; `name` is for the error.
    pub fn from_bytes(sandbox: &Arc<Sandbox>, name: &str, bytes: &[u8]) -> Result<Self, LoadError> {
        Self::from_cache(sandbox, name, bytes, None)
    }

    /// The same with a cache: a copy of the component is kept there first, so that a rollback finds it, and its
    /// machine code is taken from there, or kept there where it has none. What is refused is not kept.
    pub fn from_cache(
        sandbox: &Arc<Sandbox>,
        name: &str,
        bytes: &[u8],
        cache: Option<&Cache>,
    ) -> Result<Self, LoadError> {
        from_cache(sandbox, bytes, cache).map_err(|problem| LoadError {
            name: name.to_owned(),
            problem,
        })
    }

    /// SHA-256 of the component.
    pub fn digest(&self) -> &PluginDigest {
        &self.0.digest
    }

    /// What this version has been doing.
    pub fn usage(&self) -> &Usage {
        &self.0.usage
    }

    /// Whether its machine code was in the cache.
    pub fn was_cached(&self) -> bool {
        self.0.from_cache
    }

    /// What the component imports, by name.
    pub fn imports(&self) -> &[Import] {
        &self.0.imports
    }

    pub fn size_bytes(&self) -> u64 {
        self.0.size_bytes
    }

    /// The linear memory that an instance has before it handles anything. A consumer whose limit is lower
    /// can run no message.
    pub fn initial_memory_bytes(&self) -> u64 {
        self.0.initial_memory_bytes
    }
}

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Plugin({})", hex::encode(&self.0.digest[..8]))
    }
}

/// Reads a file that should hold a component. Bounded.
pub fn read_component(path: &Path) -> Result<Vec<u8>, LoadProblem> {
    let there = std::fs::metadata(path).map_err(LoadProblem::Unreadable)?;
    // Reading a pipe or a device would not end.
    if !there.is_file() {
        return Err(LoadProblem::NotAFile);
    }
    if there.len() > MAX_COMPONENT_BYTES {
        return Err(LoadProblem::TooLarge(there.len()));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(there.len()).unwrap_or_default());
    let file = std::fs::File::open(path).map_err(LoadProblem::Unreadable)?;
    // It may grow while it is read.
    file.take(MAX_COMPONENT_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(LoadProblem::Unreadable)?;
    match bytes.len() as u64 {
        size if size > MAX_COMPONENT_BYTES => Err(LoadProblem::TooLarge(size)),
        _ => Ok(bytes),
    }
}

fn from_cache(
    sandbox: &Arc<Sandbox>,
    bytes: &[u8],
    cache: Option<&Cache>,
) -> Result<Plugin, LoadProblem> {
    recognise(bytes)?;
    let digest: PluginDigest = Sha256::digest(bytes).into();
    let Some(cache) = cache else {
        return prepare(sandbox, digest, bytes, None);
    };
    let is_new = cache.keep_component(&digest, bytes);
    failpoint::pass(Point::AfterPluginCopy);
    let prepared = prepare(sandbox, digest, bytes, Some(cache));
    if is_new && prepared.is_err() {
        cache.forget_component(&digest);
    }
    prepared
}

fn prepare(
    sandbox: &Arc<Sandbox>,
    digest: PluginDigest,
    bytes: &[u8],
    cache: Option<&Cache>,
) -> Result<Plugin, LoadProblem> {
    shape::check(bytes).map_err(LoadProblem::TooMuch)?;
    let engine = &sandbox.engine;
    let cached = cache.and_then(|cache| cache.code(engine, &digest));
    let from_cache = cached.is_some();
    let component = match cached {
        Some(component) => component,
        None => compile(sandbox, bytes)?,
    };
    let imports = grants::imports(engine, &component).map_err(LoadProblem::Imports)?;
    same_version(&imports)?;
    let instance = sandbox
        .linker
        .instantiate_pre(&component)
        .map_err(|error| LoadProblem::World(causes(&error)))?;
    let handler =
        HandlerPre::new(instance.clone()).map_err(|error| LoadProblem::World(causes(&error)))?;
    let initial_memory_bytes = start(sandbox, &instance)?;
    if let Some(cache) = cache.filter(|_| !from_cache) {
        cache.keep_code(engine, &digest, &component);
    }
    failpoint::pass(Point::AfterPluginCompile);
    Ok(Plugin(Arc::new(Loaded {
        sandbox: Arc::clone(sandbox),
        handler,
        symbols: Symbols::of(bytes),
        digest,
        size_bytes: bytes.len() as u64,
        initial_memory_bytes,
        imports,
        from_cache,
        usage: Usage::default(),
    })))
}

fn compile(sandbox: &Sandbox, bytes: &[u8]) -> Result<Component, LoadProblem> {
    let (engine, bytes) = (sandbox.engine.clone(), bytes.to_vec());
    let most = sandbox.compile_timeout;
    match compile::apart(most, move || Component::from_binary(&engine, &bytes)) {
        Ok(compiled) => compiled.map_err(|error| LoadProblem::Invalid(causes(&error))),
        Err(compile::Late::TooLong) => Err(LoadProblem::TooLong(most)),
        Err(compile::Late::Busy) => Err(LoadProblem::Busy),
    }
}

/// Interfaces of another version have other shapes, and the linker's words for that name one function.
fn same_version(imports: &[Import]) -> Result<(), LoadProblem> {
    let series = |version: &str| {
        let mut parts = version.split('.');
        (
            parts.next().map(str::to_owned),
            parts.next().map(str::to_owned),
        )
    };
    let other = imports
        .iter()
        .filter(|import| import.name.starts_with(PACKAGE))
        .filter_map(|import| import.name.split_once('@'))
        .find(|(_, version)| series(version) != series(PACKAGE_VERSION));
    match other {
        Some((_, version)) => Err(LoadProblem::Version(version.to_owned())),
        None => Ok(()),
    }
}

/// What the bytes are, by their first few: the compiler's own words for anything but a component help nobody.
fn recognise(bytes: &[u8]) -> Result<(), LoadProblem> {
    match bytes {
        [] => Err(LoadProblem::Empty),
        // The layer field of the preamble: 0 is a module, 1 a component.
        [0, b'a', b's', b'm', _, _, 0, 0, ..] => Err(LoadProblem::CoreModule),
        [0, b'a', b's', b'm', ..] => Ok(()),
        _ if matches!(
            Engine::detect_precompiled(bytes),
            Some(Precompiled::Module | Precompiled::Component)
        ) =>
        {
            Err(LoadProblem::Precompiled)
        }
        _ if bytes.trim_ascii_start().starts_with(b"(") => Err(LoadProblem::NotWasm(
            "it looks like the text format; translate it with `wasm-tools parse` first",
        )),
        _ if str::from_utf8(bytes).is_ok() => Err(LoadProblem::NotWasm(
            "it is text; the path must name a compiled component (`hapax build` makes one)",
        )),
        _ => Err(LoadProblem::NotWasm(
            "it does not begin with the four bytes of a WebAssembly file",
        )),
    }
}

/// Every cause on one line, outermost first.
fn causes(error: &wasmtime::Error) -> String {
    error
        .chain()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

/// Makes one instance, as every message will, and returns the memory that it begins with. On a thread of its
/// own, so that it does not matter what kind of thread the caller is on.
fn start(sandbox: &Arc<Sandbox>, instance: &InstancePre<Guest>) -> Result<u64, LoadProblem> {
    thread::scope(|scope| {
        let start = scope.spawn(|| start_here(sandbox, instance));
        start.join().unwrap_or_else(|_| {
            let panic = "the host panicked while it was made";
            Err(LoadProblem::Start(panic.into()))
        })
    })
}

fn start_here(sandbox: &Arc<Sandbox>, instance: &InstancePre<Guest>) -> Result<u64, LoadProblem> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .map_err(|error| LoadProblem::Start(error.to_string()))?;
    let environment = Arc::new(nobody(sandbox));
    let attempt = Attempt {
        message: Arc::new(Message {
            exchange: String::new(),
            routing_key: String::new(),
            properties: Default::default(),
            body: Default::default(),
        }),
        key: Arc::from(&b""[..]),
        number: 1,
        redelivered: false,
        now_micros: 0,
        lane: 0,
    };
    runtime.block_on(async {
        let _slot = sandbox.slot().await;
        let mut store = sandbox.store(Guest::new(environment, attempt, None));
        let ended = tokio::time::timeout(START_WALL, instance.instantiate_async(&mut store)).await;
        let guest = store.data();
        match ended {
            Ok(Ok(_)) => Ok(guest.space.memory_bytes()),
            Ok(Err(error)) => Err(match trap::verdict(error, &guest.wasi.written()).0 {
                Verdict::Failed(failure) if failure.code == code::CPU_LIMIT => {
                    LoadProblem::Slow(failure.message)
                }
                Verdict::Failed(failure) => LoadProblem::Start(failure.message),
                Verdict::Spoiled(error) => LoadProblem::Start(error.to_string()),
                Verdict::Done | Verdict::Ignored(_) => unreachable!("an error is not a success"),
            }),
            Err(_) => Err(LoadProblem::Slow(format!(
                "it took longer than {START_WALL:?}"
            ))),
        }
    })
}

/// The surroundings of a component that is tried out: no message, no grants, generous limits.
fn nobody(sandbox: &Sandbox) -> Environment {
    let none: &[&str] = &[];
    let grants = Grants::new(rules::Dialect::Sqlite, none, none, none)
        .expect("only a name can be a bad grant");
    Environment {
        consumer: String::new(),
        limits: Limits {
            cpu: START_CPU,
            wall: START_WALL,
            memory: sandbox.max_memory,
            table_elements: sandbox.max_table_elements,
            ..Limits::default()
        },
        config: Default::default(),
        composer: Composer {
            consumer: ConsumerId(0),
            targets: Default::default(),
        },
        rules: Rules::new(rules::Dialect::Sqlite, &grants, 0),
        random: Random::Secure,
        idempotency: Idempotency::Off,
        seeds: Seeds::new(b"", ""),
        dialect: Dialect::Sqlite,
        generation: 0.into(),
    }
}
