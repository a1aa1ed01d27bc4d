//! One version of a component, from its file to something that can be run at once for every message.
//!
//! Loading hashes, looks at what the component imports, compiles, and makes one instance to see that it
//! starts. A component that is refused says what it wants and what there is. Nothing here watches files or
//! decides which version runs.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use sha2::{Digest, Sha256};
use wasmtime::component::{Component, InstancePre};
use wasmtime::{Engine, Precompiled};

use crate::config::{Idempotency, Limits, Random};
use crate::effects::outbox::Composer;
use crate::effects::sql::rules::{self, Grants, Rules};
use crate::message::Message;
use crate::store::{ConsumerId, Dialect};

use super::bindings::HandlerPre;
use super::engine::Sandbox;
use super::grants::{self, Import};
use super::guest::Guest;
use super::seeds::Seeds;
use super::symbols::Symbols;
use super::{Attempt, Environment, Verdict, trap};

/// What an instance may use to come into being.
const START_CPU: Duration = Duration::from_secs(2);
const START_WALL: Duration = Duration::from_secs(10);

/// One loaded version of a component. Cheap to clone, never changes.
#[derive(Clone)]
pub struct Plugin(pub(super) Arc<Loaded>);

pub(super) struct Loaded {
    pub(super) sandbox: Arc<Sandbox>,
    pub(super) handler: HandlerPre<Guest>,
    pub(super) symbols: Symbols,
    digest: [u8; 32],
    size_bytes: u64,
    initial_memory_bytes: u64,
    imports: Vec<Import>,
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
    #[error("the component wants what a handler is not granted\n{0}")]
    Imports(String),
    #[error("this is a component of another world than hapax:plugin/handler: {0}")]
    World(String),
    #[error("the component does not start: {0}")]
    Start(String),
}

impl Plugin {
    /// Loads a component. Compiles, and so takes from milliseconds to many seconds of every processor: call
    /// it where that blocks nobody.
    pub fn load(sandbox: &Arc<Sandbox>, path: &Path) -> Result<Self, LoadError> {
        let name = path.display().to_string();
        match std::fs::read(path) {
            Ok(bytes) => Self::from_bytes(sandbox, &name, &bytes),
            Err(error) => Err(LoadError {
                name,
                problem: LoadProblem::Unreadable(error),
            }),
        }
    }

    /// The same for bytes in memory; `name` is for the error.
    pub fn from_bytes(sandbox: &Arc<Sandbox>, name: &str, bytes: &[u8]) -> Result<Self, LoadError> {
        prepare(sandbox, bytes).map_err(|problem| LoadError {
            name: name.to_owned(),
            problem,
        })
    }

    /// SHA-256 of the component.
    pub fn digest(&self) -> &[u8; 32] {
        &self.0.digest
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

fn prepare(sandbox: &Arc<Sandbox>, bytes: &[u8]) -> Result<Plugin, LoadProblem> {
    recognise(bytes)?;
    let component = Component::from_binary(&sandbox.engine, bytes)
        .map_err(|error| LoadProblem::Invalid(causes(&error)))?;
    let imports = grants::imports(&sandbox.engine, &component).map_err(LoadProblem::Imports)?;
    let instance = sandbox
        .linker
        .instantiate_pre(&component)
        .map_err(|error| LoadProblem::World(causes(&error)))?;
    let handler =
        HandlerPre::new(instance.clone()).map_err(|error| LoadProblem::World(causes(&error)))?;
    let initial_memory_bytes = start(sandbox, &instance).map_err(LoadProblem::Start)?;
    Ok(Plugin(Arc::new(Loaded {
        sandbox: Arc::clone(sandbox),
        handler,
        symbols: Symbols::of(bytes),
        digest: Sha256::digest(bytes).into(),
        size_bytes: bytes.len() as u64,
        initial_memory_bytes,
        imports,
    })))
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
fn start(sandbox: &Arc<Sandbox>, instance: &InstancePre<Guest>) -> Result<u64, String> {
    thread::scope(|scope| {
        let start = scope.spawn(|| start_here(sandbox, instance));
        start
            .join()
            .unwrap_or_else(|_| Err("the host panicked while it was made".into()))
    })
}

fn start_here(sandbox: &Arc<Sandbox>, instance: &InstancePre<Guest>) -> Result<u64, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .map_err(|error| error.to_string())?;
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
                Verdict::Failed(failure) => failure.message,
                Verdict::Spoiled(error) => error.to_string(),
                Verdict::Done | Verdict::Ignored(_) => unreachable!("an error is not a success"),
            }),
            Err(_) => Err(format!("it took longer than {START_WALL:?}")),
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
        generation: 0,
    }
}
