//! Everything that is opened, checked and refused before the first message is taken.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::time::timeout;

use crate::amqp::{self, Address, ConnectError, Screen};
use crate::config::{self, BrokerKind, Config, Order, Retention, StoreKind};
use crate::consumer::{Consumer, Parts as ConsumerParts};
use crate::effects::outbox::Composer;
use crate::effects::sql::rules::{BadGrant, Grants, RowBounds, Rules};
use crate::failpoint::{self, Point};
use crate::failure::Class;
use crate::lane::Floor;
use crate::metrics::Metrics;
use crate::plugins::{PluginFile, User, short};
use crate::relay::{AmqpPublisher, EmbeddedPublisher, Publisher};
use crate::sandbox::{Cache, Environment, LoadError, Sandbox, SandboxError, SandboxOptions, Seeds};
use crate::source::amqp::{Arguments, Broker, QueueError, prepare};
use crate::store::{
    ConsumerRow, Dialect, HostId, Session, SessionOptions, Store, StoreError,
    postgres::{self, PostgresStore},
    sqlite::SqliteStore,
};

use super::watch;

/// SQL texts that a consumer's rules remember.
const CACHED_STATEMENTS: usize = 1024;

/// Why a host does not start. Each says what, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the store {store} cannot be used: {error}")]
    Store { store: String, error: StoreError },
    #[error("the store {store} lacks migrations: {}; run `hapax migrate`, or set `store.migrate = true`", .pending.join(", "))]
    Schema { store: String, pending: Vec<String> },
    #[error(
        "the lanes want {lanes} connections, and store.max-connections is {max}; raise it, or lower `lanes`"
    )]
    Connections { lanes: usize, max: u32 },
    #[error(
        "the consumer {consumer} was run with {what} {stored}, and the configuration says {configured}: \
         changing it would apply messages again; restore it, or change what is remembered with \
         `hapax consumers rekey {consumer}` after its queue is drained"
    )]
    Rules {
        consumer: String,
        what: &'static str,
        stored: String,
        configured: String,
    },
    #[error("the consumer {consumer} cannot be started: {error}")]
    Plugin { consumer: String, error: LoadError },
    #[error("the grants of the consumer {consumer} are wrong: {}", .problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Grants {
        consumer: String,
        problems: Vec<BadGrant>,
    },
    #[error("the sandbox cannot be made: {0}")]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Broker(#[from] ConnectError),
    #[error("the consumer {consumer} cannot be started: {error}")]
    Queue { consumer: String, error: QueueError },
    #[error(transparent)]
    Listen(crate::http::ListenError),
}

impl StartError {
    /// 64 for what the configuration can mend, 69 for a server that is away, 1 for the rest.
    pub fn exit_code(&self) -> u8 {
        const CONFIGURATION: u8 = 64;
        const UNAVAILABLE: u8 = 69;
        match self {
            Self::Store { error, .. } if error.class() == Class::World => UNAVAILABLE,
            Self::Broker(ConnectError::Url(..)) => CONFIGURATION,
            Self::Broker(_)
            | Self::Queue {
                error: QueueError::Connect(_) | QueueError::Silent(_),
                ..
            } => UNAVAILABLE,
            Self::Sandbox(_) => 1,
            _ => CONFIGURATION,
        }
    }
}

/// What a host is made of.
pub struct Parts<'c> {
    pub store: Arc<dyn Store>,
    pub host: HostId,
    pub publisher: Box<dyn Publisher>,
    /// `None` for the embedded broker.
    pub broker: Option<Address>,
    pub consumers: Vec<(Arc<Consumer>, &'c config::Consumer)>,
    /// Holds the marks of the consumers.
    pub session: Box<dyn Session>,
    /// Each file once, whoever runs it.
    pub plugins: Vec<Arc<PluginFile>>,
}

/// How many messages that take all the time they may a host may run between two statements of a transaction.
const QUIET_MESSAGES: u32 = 12;

/// How often a queue is looked at when nothing is heard of it. A refusal closes a channel, and now and then the
/// client library loses its connection to that without a word.
const QUEUE_TRIES: u32 = 3;

/// Opens the store that the configuration names. Does not look at its tables.
pub fn open_store(config: &Config) -> Result<Arc<dyn Store>, StartError> {
    let options = SessionOptions {
        statement_timeout: config.store.statement_timeout,
        lock_timeout: config.store.lock_timeout,
        idle_timeout: idle_timeout(config),
    };
    let opened: Result<Arc<dyn Store>, StoreError> = match &config.store.kind {
        StoreKind::Sqlite { path } => SqliteStore::open_for(path, options, largest_value(config))
            .map(|store| Arc::new(store) as Arc<dyn Store>),
        StoreKind::Postgres { url } => {
            PostgresStore::new(url.expose(), &config.store.schema, options)
                .map(|store| Arc::new(store) as Arc<dyn Store>)
        }
    };
    opened.map_err(|error| store_error(config, error))
}

/// The longest value that anybody has to store: a message, what a handler sends or writes, and what belongs to it.
fn largest_value(config: &Config) -> u64 {
    const BESIDE_THE_BODY: u64 = 4 << 20;
    let embedded = matches!(config.broker.kind, BrokerKind::Embedded);
    let consumers = config.consumers.iter().flat_map(|consumer| {
        let limits = &consumer.limits;
        [
            // The embedded broker's messages are in the same store already.
            match embedded {
                true => consumer.max_message_bytes,
                false => consumer.max_parked_bytes,
            },
            limits.sql_bytes,
            limits.outbox_bytes,
        ]
    });
    consumers.max().unwrap_or(16 << 20) + BESIDE_THE_BODY
}

/// What lies between two statements of a transaction are the runs of the messages between them.
fn idle_timeout(config: &Config) -> Duration {
    let walls = config.consumers.iter().map(|consumer| consumer.limits.wall);
    let longest = walls.max().unwrap_or(config::Limits::default().wall);
    longest.saturating_mul(QUIET_MESSAGES)
}

/// Where the broker is; `None` for the embedded one.
pub fn broker_address(config: &Config) -> Option<Address> {
    match &config.broker.kind {
        BrokerKind::Embedded => None,
        BrokerKind::Amqp { url } => Some(Address {
            url: url.clone(),
            heartbeat: config.broker.heartbeat,
            connect_timeout: config.broker.connect_timeout,
        }),
    }
}

fn store_error(config: &Config, error: StoreError) -> StartError {
    StartError::Store {
        store: config.store.kind.to_string(),
        error,
    }
}

/// Opens and checks everything.
pub async fn parts<'c>(
    config: &'c Config,
    store: Arc<dyn Store>,
    metrics: &Metrics,
) -> Result<Parts<'c>, StartError> {
    let lanes = config
        .consumers
        .iter()
        .map(|consumer| consumer.lanes)
        .sum::<usize>();
    if let Some(max) = config
        .store
        .max_connections
        .filter(|max| (*max as usize) < lanes)
    {
        return Err(StartError::Connections { lanes, max });
    }
    prepare_schema(config, &*store).await?;
    let failed = |error| store_error(config, error);
    for warning in store.warnings().await.map_err(failed)? {
        tracing::warn!("{warning}");
    }
    for warning in warnings(config) {
        tracing::warn!("{warning}");
    }
    let mut session = store.session("hapax watch").await.map_err(failed)?;
    let secret = session.secret().await.map_err(failed)?;
    let plugins = load_plugins(config, metrics).await?;
    let broker = broker_address(config);
    check_queues(config, broker.as_ref(), &mut *session).await?;

    let host = HostId(fastrand::i32(1..));
    let floor = Floor::default();
    let mut consumers = Vec::with_capacity(config.consumers.len());
    for settings in &config.consumers {
        let plugin = Arc::clone(&plugins[&settings.plugin]);
        let row = register(config, settings, &mut *session).await?;
        failpoint::pass(Point::AfterRegister);
        let digest = short(plugin.current().digest());
        tracing::info!(
            consumer = %settings.name, queue = %settings.queue, plugin = %settings.plugin.display(),
            digest, lanes = settings.lanes, "Consumer ready"
        );
        let environment = environment(settings, &row, &secret, &*store)?;
        let parts = ConsumerParts {
            id: row.id,
            host,
            store: Arc::clone(&store),
            environment: Arc::new(environment),
            metrics: metrics.consumer(&settings.name),
            plugin,
            floor: floor.clone(),
            frozen: None,
        };
        consumers.push((Arc::new(Consumer::new(settings, parts)), settings));
    }
    // Before anything subscribes: a pause outlives the hosts that it stopped.
    for row in session.upkeep().consumers().await.map_err(failed)? {
        let paused = consumers.iter().find(|(consumer, _)| consumer.id == row.id);
        if let (Some((consumer, _)), Some(pause)) = (paused, &row.pause) {
            consumer.pause(&watch::reason(&pause.by, &pause.why));
        }
    }
    let publisher: Box<dyn Publisher> = match &broker {
        Some(address) => Box::new(AmqpPublisher::new(address.clone())),
        None => Box::new(EmbeddedPublisher::new(Arc::clone(&store))),
    };
    Ok(Parts {
        store,
        host,
        publisher,
        broker,
        consumers,
        session,
        plugins: plugins.into_values().collect(),
    })
}

/// Settings that contradict each other in the long run, as sentences for the operator.
pub fn warnings(config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    if let StoreKind::Postgres { url } = &config.store.kind {
        warnings.extend(postgres::line_warning(url.expose()));
    }
    for consumer in &config.consumers {
        let name = &consumer.name;
        let retry = &consumer.retry;
        let chain = retry.max_delay * (retry.max_attempts - 1);
        if let Retention::For(retention) = consumer.retention
            && retention < chain
        {
            warnings.push(format!(
                "consumer {name}: retention is {retention:?}, and a message can be retried for {chain:?}: copies \
                 that a producer sends in that time may come after the key is forgotten; raise retention, or \
                 lower retry.max-delay"
            ));
        }
        if let (BrokerKind::Amqp { .. }, Some(timeout)) =
            (&config.broker.kind, config.broker.consumer_timeout)
            && consumer.limits.wall > timeout / 2
        {
            warnings.push(format!(
                "consumer {name}: one message may take {:?} (limits.wall), and the broker takes deliveries back \
                 after {timeout:?} (broker.consumer-timeout): raise the one or lower the other",
                consumer.limits.wall
            ));
        }
    }
    warnings
}

async fn prepare_schema(config: &Config, store: &dyn Store) -> Result<(), StartError> {
    let failed = |error| store_error(config, error);
    let pending = store.pending_migrations().await.map_err(failed)?;
    if pending.is_empty() {
        return Ok(());
    }
    if !config.store.migrate {
        return Err(StartError::Schema {
            store: config.store.kind.to_string(),
            pending,
        });
    }
    let applied = store.migrate().await.map_err(failed)?;
    tracing::info!(migrations = applied.join(", "), "Store migrated");
    Ok(())
}

/// Where plugins run: as many at a time as there are lanes.
pub fn sandbox(config: &Config) -> Result<Arc<Sandbox>, SandboxError> {
    let limits = || config.consumers.iter().map(|consumer| &consumer.limits);
    Sandbox::new(SandboxOptions {
        concurrent_instances: config.consumers.iter().map(|consumer| consumer.lanes).sum(),
        max_memory: limits()
            .map(|limits| limits.memory)
            .max()
            .unwrap_or_default(),
        max_table_elements: limits()
            .map(|limits| limits.table_elements)
            .max()
            .unwrap_or_default(),
        metered: false,
        compile_timeout: config.host.compile_timeout,
    })
}

/// Loads every file that a consumer names, once.
async fn load_plugins(
    config: &Config,
    metrics: &Metrics,
) -> Result<BTreeMap<PathBuf, Arc<PluginFile>>, StartError> {
    let started = Instant::now();
    let sandbox = sandbox(config)?;
    let cache = config
        .host
        .cache
        .as_deref()
        .and_then(Cache::open)
        .map(Arc::new);
    let mut users = BTreeMap::<PathBuf, Vec<User>>::new();
    for settings in &config.consumers {
        users
            .entry(settings.plugin.clone())
            .or_default()
            .push(User {
                consumer: settings.name.clone(),
                memory: settings.limits.memory,
            });
    }
    let loaded = join_all(users.into_iter().map(async |(path, users)| {
        let consumer = users[0].consumer.clone();
        match PluginFile::open(&sandbox, &path, users, cache.clone(), metrics).await {
            Ok(file) => Ok((path, file)),
            Err(error) => Err(StartError::Plugin { consumer, error }),
        }
    }))
    .await;
    let plugins = loaded.into_iter().collect::<Result<BTreeMap<_, _>, _>>()?;
    let cached = plugins.values().filter(|file| file.current().was_cached());
    tracing::info!(
        plugins = plugins.len(),
        from_cache = cached.count(),
        load_seconds = started.elapsed().as_secs_f64(),
        "Plugins loaded"
    );
    Ok(plugins)
}

/// Makes sure that every queue is there. The embedded broker makes those that the configuration names.
async fn check_queues(
    config: &Config,
    broker: Option<&Address>,
    session: &mut dyn Session,
) -> Result<(), StartError> {
    let Some(address) = broker else {
        let Some(queues) = session.queues() else {
            return Ok(());
        };
        let targets = config
            .consumers
            .iter()
            .flat_map(|consumer| consumer.targets.values());
        let parks = config
            .consumers
            .iter()
            .filter_map(|consumer| consumer.park.as_ref());
        let targets = targets
            .chain(parks)
            .map(|target| target.routing_key.as_str());
        let sources = config
            .consumers
            .iter()
            .map(|consumer| consumer.queue.as_str());
        for queue in sources.chain(targets).filter(|queue| !queue.is_empty()) {
            queues
                .declare(queue)
                .await
                .map_err(|error| store_error(config, error))?;
        }
        return Ok(());
    };
    for settings in &config.consumers {
        let failed = |error| StartError::Queue {
            consumer: settings.name.clone(),
            error,
        };
        for left in (0..QUEUE_TRIES).rev() {
            let screen = Arc::new(Screen::open());
            let connection = address
                .connect_screened("hapax start", Arc::clone(&screen))
                .await?;
            let broker = Broker::of(&connection, &screen);
            match timeout(address.connect_timeout, check_queue(broker, settings)).await {
                Ok(checked) => {
                    checked.map_err(failed)?;
                    amqp::close(&connection).await;
                    break;
                }
                Err(_) if left > 0 => tracing::debug!(queue = %settings.queue, "No answer"),
                Err(_) => return Err(failed(QueueError::Silent(settings.queue.clone()))),
            }
        }
    }
    Ok(())
}

/// Makes sure that a queue is there and can keep the consumer's promises; warns of what would break them.
async fn check_queue(broker: Broker<'_>, settings: &config::Consumer) -> Result<(), QueueError> {
    prepare(
        broker,
        &settings.queue,
        settings.declare.as_ref(),
        is_strict(settings),
    )
    .await?;
    for warning in inspect(broker, settings).await? {
        tracing::warn!(consumer = %settings.name, "{warning}");
    }
    Ok(())
}

/// Looks at a queue that is there. What makes it lose messages now and then comes back as sentences; a queue that
/// cannot keep the consumer's promises is an error.
pub async fn inspect(
    broker: Broker<'_>,
    settings: &config::Consumer,
) -> Result<Vec<String>, QueueError> {
    let queue = &settings.queue;
    match Arguments::of(broker, queue).await? {
        Some(arguments) => {
            if is_strict(settings) && !arguments.is_single_active() {
                return Err(QueueError::NotSingleActive(queue.clone()));
            }
            let starts = crate::consumer::max_starts(&settings.retry);
            Ok(arguments.warnings(queue, starts))
        }
        None if is_strict(settings) => Err(QueueError::Unseen(queue.clone())),
        None => {
            tracing::debug!(consumer = %settings.name, %queue, "The queue's arguments cannot be seen");
            Ok(Vec::new())
        }
    }
}

fn is_strict(settings: &config::Consumer) -> bool {
    matches!(settings.order, Order::Strict { .. })
}

/// The consumer's row, if it was made by the same rules. Other rules would give old messages new keys.
async fn register(
    config: &Config,
    settings: &config::Consumer,
    session: &mut dyn Session,
) -> Result<ConsumerRow, StartError> {
    let (key_rule, fingerprint_rule) = crate::consumer::rule_texts(settings);
    let row = watch::mark(session, &settings.name, &key_rule, &fingerprint_rule)
        .await
        .map_err(|error| store_error(config, error))?;
    let rules = [
        ("the key", row.key_rule.clone(), key_rule),
        (
            "the fingerprint",
            row.fingerprint_rule.clone(),
            fingerprint_rule,
        ),
    ];
    for (what, stored, configured) in rules {
        if stored != configured {
            let consumer = settings.name.clone();
            return Err(StartError::Rules {
                consumer,
                what,
                stored,
                configured,
            });
        }
    }
    if let Retention::For(retention) = settings.retention {
        session
            .note_retention(row.id, retention)
            .await
            .map_err(|error| store_error(config, error))?;
    }
    Ok(row)
}

/// What stays the same for all messages of a consumer.
pub fn environment(
    settings: &config::Consumer,
    row: &ConsumerRow,
    secret: &[u8],
    store: &dyn Store,
) -> Result<Environment, StartError> {
    let dialect = store.traits().dialect;
    Ok(Environment {
        consumer: settings.name.clone(),
        limits: settings.limits.clone(),
        config: settings.config.clone(),
        composer: Composer {
            consumer: row.id,
            targets: settings.targets.clone(),
        },
        rules: rules(settings, dialect)?,
        random: settings.random,
        idempotency: settings.idempotency,
        seeds: Seeds::new(secret, &settings.name),
        dialect,
        generation: row.generation.into(),
    })
}

/// What a consumer's SQL may touch.
pub fn rules(settings: &config::Consumer, dialect: Dialect) -> Result<Rules, StartError> {
    let grant = &settings.grant;
    let grants =
        Grants::new(dialect, &grant.read, &grant.write, &grant.functions).map_err(|problems| {
            StartError::Grants {
                consumer: settings.name.clone(),
                problems,
            }
        })?;
    let bounds = RowBounds::of(&settings.limits);
    Ok(Rules::new(dialect, &grants, CACHED_STATEMENTS).with_row_bounds(bounds))
}
