//! Owns what the daemon was told to do: one TOML file, read, checked and resolved.
//!
//! Guarantees that a [`Config`] is valid as a whole: every value is in range, every rule
//! between values holds, every path is absolute or resolved against the directory of the file,
//! and every `{ env = … }` and `{ file = … }` has been looked up. What is wrong is reported at
//! once, as [`Problems`], each with its place in the file; a file with one problem yields no
//! configuration. Passwords and tokens are [`Secret`]s, which do not print.
//!
//! Does not touch what the configuration names: no plugin is opened, no server is asked.

mod address;
mod consumer;
mod file;
mod problem;
mod quotable;
mod reader;
mod rule;
mod secret;
mod section;
mod units;
mod value;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::env::VarError;
use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use problem::{Problem, Problems};
pub use rule::{Fingerprint, Invalid, KeySource, Pointer, Property};
pub use secret::{Secret, Settings, hide_passwords};

/// The whole configuration, as meant.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file it was read from.
    pub path: PathBuf,
    pub store: Store,
    pub broker: Broker,
    pub health: Health,
    pub admin: Admin,
    pub log: Log,
    pub host: Host,
    /// In the order of the file. May be empty: such a host still relays.
    pub consumers: Vec<Consumer>,
}

/// `[store]`: the database that keeps the ledger and the handlers' tables.
#[derive(Debug, Clone)]
pub struct Store {
    pub kind: StoreKind,
    /// Where the `hapax_*` tables live. A plain lower-case identifier of at most 63 bytes, so
    /// that it never needs quoting. SQLite has no schemas and ignores it.
    pub schema: String,
    /// Whether `run` brings the tables up to date by itself.
    pub migrate: bool,
    /// Bounds the connections the lanes hold together; at least the sum of all lanes.
    pub max_connections: Option<u32>,
    pub statement_timeout: Duration,
    pub lock_timeout: Duration,
}

#[derive(Debug, Clone)]
pub enum StoreKind {
    Sqlite { path: PathBuf },
    Postgres { url: Secret },
}

/// The store as a person may see it: the password is left out.
impl fmt::Display for StoreKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite { path } => write!(f, "sqlite:{}", path.display()),
            Self::Postgres { url } => url.fmt(f),
        }
    }
}

/// `[broker]`: where messages come from and where the outbox goes.
#[derive(Debug, Clone)]
pub struct Broker {
    pub kind: BrokerKind,
    /// Whole seconds, as AMQP counts them.
    pub heartbeat: Duration,
    pub connect_timeout: Duration,
    /// The broker's own `consumer_timeout`: how long it leaves a delivery unacknowledged. `None` where
    /// it is switched off there.
    pub consumer_timeout: Option<Duration>,
}

#[derive(Debug, Clone)]
pub enum BrokerKind {
    /// The durable queue inside the SQLite store; the store is then [`StoreKind::Sqlite`].
    Embedded,
    Amqp {
        url: Secret,
    },
}

/// The broker as a person may see it: the password is left out.
impl fmt::Display for BrokerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded => f.write_str("embedded:"),
            Self::Amqp { url } => url.fmt(f),
        }
    }
}

/// `[health]`: where `/healthz`, `/readyz` and `/metrics` answer.
#[derive(Debug, Clone)]
pub struct Health {
    /// `None` when switched off.
    pub listen: Option<SocketAddr>,
    /// Bounds the connections that are open at one time.
    pub max_connections: usize,
}

/// `[admin]`: the API that the command line talks to.
#[derive(Debug, Clone)]
pub struct Admin {
    /// `None` when switched off.
    pub listen: Option<Listen>,
    /// Always set when other machines can reach `listen`. Without one an address is guarded by a token in a file.
    pub token: Option<Secret>,
    /// Bounds the connections that are open at one time.
    pub max_connections: usize,
    /// Where the token's file may be: the host makes it in the first of these directories.
    pub state: Vec<PathBuf>,
}

/// Where the admin API is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    Tcp(SocketAddr),
    /// A socket that only the host's own user and root may connect to.
    Unix(PathBuf),
}

/// As it is written.
impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// `[log]`.
#[derive(Debug, Clone)]
pub struct Log {
    pub format: LogFormat,
    /// Directives as `tracing` writes them: `info,hapax=debug`.
    pub filter: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    Text,
    Json,
}

/// The default of `host.compile-timeout`: twenty times of what a component with Python takes on two processors.
pub const COMPILE_TIMEOUT: Duration = Duration::from_mins(5);

/// `[host]`: this process.
#[derive(Debug, Clone)]
pub struct Host {
    /// How logs, metrics and the store name this process.
    pub name: String,
    /// How long a drain may take before the process leaves anyway.
    pub shutdown_timeout: Duration,
    /// How long compiling one component may take.
    pub compile_timeout: Duration,
    /// Where components and their machine code are kept; `None` for nowhere.
    pub cache: Option<PathBuf>,
}

/// `[[consumer]]`: one queue, one plugin, and the rules between them.
#[derive(Debug, Clone)]
pub struct Consumer {
    /// The scope of its keys in the ledger. Lower-case letters, digits, `-`, `_` and `.`; at
    /// most 64 bytes; unique in the file.
    pub name: String,
    /// At most 255 bytes. No two consumers of a file share a queue.
    pub queue: String,
    pub plugin: PathBuf,
    /// Empty only when `idempotency` is off.
    pub key: Vec<KeySource>,
    /// Messages with the same values share a lane. Empty only when there is no key either.
    pub partition: Vec<KeySource>,
    pub fingerprint: Fingerprint,
    pub prefetch: u16,
    /// Bytes of bodies that are fetched and not dealt with; one message alone may have more.
    pub prefetch_bytes: u64,
    /// Messages in one transaction, at most `prefetch`.
    pub batch: usize,
    pub batch_bytes: u64,
    pub batch_time: Duration,
    /// Always 1 on SQLite.
    pub lanes: usize,
    pub retention: Retention,
    /// A longer body is parked, and the handler does not run.
    pub max_message_bytes: u64,
    /// A longer body is parked in part: its beginning, length and digest. At least `max_message_bytes`.
    pub max_parked_bytes: u64,
    pub grant: Grant,
    pub targets: BTreeMap<String, Target>,
    pub limits: Limits,
    pub retry: Retry,
    pub random: Random,
    pub idempotency: Idempotency,
    pub order: Order,
    pub on_duplicate: OnDuplicate,
    /// Where a copy of each parked message is sent. An empty routing key stands for the message's own.
    pub park: Option<Target>,
    /// When to stop instead of parking the whole queue; `None` for never.
    pub brake: Option<Brake>,
    /// What the handler reads with `context.config(name)`. A value may be a secret of the
    /// handler: neither log nor show the values.
    pub config: Settings,
    /// Makes the host declare the queue. Never set with the embedded broker.
    pub declare: Option<Declare>,
}

/// What becomes of the later messages of a partition when one fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// They run.
    Lane,
    /// They are held behind it, so many for each partition; then the consumer takes no more.
    Strict { max_held: u32 },
}

/// What a delivery gets whose key has its fate already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDuplicate {
    Ack,
    /// The answer that its message gave, once more.
    Reply,
    /// A place among the parked messages, unless the broker itself has delivered it again.
    Park,
}

/// When a consumer stops because message after message is parked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Brake {
    /// So many in a row with one code, and no commit between.
    pub parks: u32,
    /// The pause before one message is tried. It doubles up to `max_probe`.
    pub probe: Duration,
    pub max_probe: Duration,
}

impl Default for Brake {
    fn default() -> Self {
        Self {
            parks: 100,
            probe: Duration::from_secs(10),
            max_probe: Duration::from_mins(5),
        }
    }
}

/// How long the ledger remembers a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    For(Duration),
    Forever,
}

/// What the handler's SQL may touch. Nothing unless named; writing includes reading.
#[derive(Debug, Clone, Default)]
pub struct Grant {
    pub read: Vec<String>,
    pub write: Vec<String>,
    pub functions: Vec<String>,
}

/// One place the handler may publish to.
#[derive(Debug, Clone)]
pub struct Target {
    /// Empty means the default exchange, which routes to the queue named by the routing key.
    pub exchange: String,
    pub routing_key: String,
    pub persistent: bool,
    pub unroutable: Unroutable,
}

/// What happens to a message that the broker returns because no queue takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unroutable {
    Keep,
    Drop,
}

/// Bounds of one attempt.
#[derive(Debug, Clone)]
pub struct Limits {
    pub cpu: Duration,
    pub wall: Duration,
    /// Bytes of linear memory, all memories of the instance together.
    pub memory: u64,
    pub table_elements: u32,
    pub hostcall_bytes: u64,
    pub sql_statements: u32,
    pub sql_rows: u32,
    pub sql_bytes: u64,
    /// On servers, what the functions of one row of a statement may take, by estimate.
    pub sql_row_time: Duration,
    pub sql_row_bytes: u64,
    pub outbox_messages: u32,
    pub outbox_bytes: u64,
    pub log_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        const KIB: u64 = 1024;
        const MIB: u64 = 1024 * KIB;
        Self {
            cpu: Duration::from_millis(200),
            wall: Duration::from_secs(5),
            memory: 64 * MIB,
            table_elements: 100_000,
            hostcall_bytes: 32 * MIB,
            sql_statements: 1000,
            sql_rows: 100_000,
            sql_bytes: 16 * MIB,
            sql_row_time: Duration::from_secs(2),
            sql_row_bytes: 512 * MIB,
            outbox_messages: 1000,
            outbox_bytes: 16 * MIB,
            log_bytes: 64 * KIB,
        }
    }
}

/// How often a failed message runs again, and how far apart.
#[derive(Debug, Clone)]
pub struct Retry {
    pub max_attempts: u32,
    /// The first pause, before jitter. At most `max_delay`.
    pub delay: Duration,
    pub max_delay: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            max_attempts: 5,
            delay: Duration::from_secs(1),
            max_delay: Duration::from_mins(5),
        }
    }
}

/// Where the handler's randomness comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Random {
    /// Equal in every attempt for one key, and not guessable.
    Seeded,
    /// Fresh in every attempt.
    Secure,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idempotency {
    On,
    /// For handlers without side effects: no claims, no fates.
    Off,
}

/// The queue as the host declares it.
#[derive(Debug, Clone)]
pub struct Declare {
    pub kind: QueueKind,
    pub bind: Vec<Binding>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueKind {
    Classic,
    Quorum,
}

#[derive(Debug, Clone)]
pub struct Binding {
    pub exchange: String,
    pub routing_key: String,
}

/// What a configuration may refer to outside of its file. Tests bring their own.
pub trait Outside {
    fn env(&self, name: &str) -> Result<String, VarError>;
    fn file(&self, path: &Path) -> io::Result<String>;
    /// The default of `host.name`.
    fn host_name(&self) -> String;
}

/// The process's environment and the machine's files.
pub struct Machine;

impl Outside for Machine {
    fn env(&self, name: &str) -> Result<String, VarError> {
        std::env::var(name)
    }

    fn file(&self, path: &Path) -> io::Result<String> {
        fs::read_to_string(path)
    }

    /// Containers and shells say it in `HOSTNAME`, Linux says it in `/proc`, others in `/etc`.
    fn host_name(&self) -> String {
        self.env("HOSTNAME")
            .ok()
            .into_iter()
            .chain(
                ["/proc/sys/kernel/hostname", "/etc/hostname"]
                    .map(|path| self.file(Path::new(path)).unwrap_or_default()),
            )
            .map(|name| name.trim().to_owned())
            .find(|name| !name.is_empty())
            .unwrap_or_else(|| "localhost".to_owned())
    }
}

/// No configuration file was named, and none is where one is looked for.
#[derive(Debug, thiserror::Error)]
#[error("no configuration file: there is no {}; name one with --config or HAPAX_CONFIG", PLACES.join(" and no "))]
pub struct NotFound;

/// Where a configuration is looked for when nobody names one.
const PLACES: [&str; 2] = ["./hapax.toml", "/etc/hapax/hapax.toml"];

/// Which file to load: the one given (`--config`), else `HAPAX_CONFIG`, else the first of
/// [`PLACES`] that exists. A file that was named is not looked for elsewhere: when it is
/// missing, [`load`] says so.
pub fn find(given: Option<&Path>) -> Result<PathBuf, NotFound> {
    choose(
        given,
        std::env::var_os("HAPAX_CONFIG").map(PathBuf::from),
        Path::exists,
    )
}

fn choose(
    given: Option<&Path>,
    variable: Option<PathBuf>,
    exists: impl Fn(&Path) -> bool,
) -> Result<PathBuf, NotFound> {
    given
        .map(Path::to_owned)
        .or(variable.filter(|path| !path.as_os_str().is_empty()))
        .or_else(|| PLACES.iter().map(PathBuf::from).find(|place| exists(place)))
        .ok_or(NotFound)
}

/// Where components and their machine code are kept on this machine when nobody says otherwise.
pub fn default_cache() -> Option<PathBuf> {
    section::cache_place(&|name| Machine.env(name).ok())
}

/// Reads a configuration from a file.
pub fn load(path: &Path) -> Result<Config, Problems> {
    match fs::read(path).map(String::from_utf8) {
        Ok(Ok(text)) => parse(path, &text, &Machine),
        Ok(Err(error)) => Err(Problems::not_utf8(path, &error)),
        Err(error) => Err(Problems::unreadable(path, &error)),
    }
}

/// Reads a configuration from text. `path` names it in problems, and relative paths in the text
/// start from its directory.
pub fn parse(path: &Path, text: &str, outside: &dyn Outside) -> Result<Config, Problems> {
    file::read(path, text, outside)
}
