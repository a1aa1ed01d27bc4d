//! Runs messages through the real pipeline and looks at what would be left of each.
//!
//! Time and the store's secret are fixed, so that the same message does the same on every machine. The second
//! run is what a second attempt after a crash is: later, and told so. On the
//! temporary file each message is committed in the end, so that later ones see what it did. On a database
//! that was named, every transaction is rolled back, and each message meets the database as it is.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection, Executor, SqliteConnection, sqlite::SqliteConnectOptions};

use crate::commit::{self, Hold, Item, Setback, Verdict};
use crate::config::{self, Secret, StoreKind};
use crate::consumer::{Consumer, Frozen, Parts};
use crate::effects::Isolation;
use crate::host::{StartError, environment, open_store};
use crate::lane::Floor;
use crate::message::Message;
use crate::metrics::Metrics;
use crate::plugins::{PluginFile, User};
use crate::sandbox::{Cache, Plugin, Sandbox, SandboxOptions};
use crate::store::recorded::{Record, RecordedStore, Tape};
use crate::store::{ConsumerId, ConsumerRow, Fate, HostId, Session, Status, Store, StoreError};

use super::super::Error;
use super::super::project::Project;
use super::content::{every_row, own_rows};
use super::effects::{difference, ignored, lines};

/// What every first attempt sees as the time: 2026-01-01T00:00:00Z.
const FIRST: Frozen = Frozen {
    now_micros: 1_767_225_600_000_000,
    earlier_attempts: 0,
};

/// And a second one: an hour, a minute and a second and a bit later, so that no part of the time is the same.
const SECOND: Frozen = Frozen {
    now_micros: FIRST.now_micros + 3_661_234_567,
    earlier_attempts: 1,
};

/// Seeds ids and randomness.
const SECRET: &[u8] = b"hapax test";

/// No consumer of a database has this number: what is written under it meets nobody's rows.
const NOBODY: ConsumerId = ConsumerId(i32::MIN);

/// Passes over one message: after a failure that took its transaction along, it is recorded in another.
const MAX_PASSES: usize = 10;

/// What one message did, and what is wrong with it.
#[derive(Clone, Debug)]
pub struct Check {
    pub key: String,
    pub outcome: Outcome,
    pub effects: Vec<String>,
    /// What a second attempt does otherwise; empty when it does the same.
    pub second: Vec<String>,
    /// One run, host calls included.
    pub elapsed: Duration,
    pub peak_memory_bytes: u64,
    /// Instructions of one run.
    pub fuel: u64,
    /// Calls to the database at which it was killed.
    pub kills: u32,
    /// What would hurt: each is a sentence, with a difference below it.
    pub problems: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// `done`, `ignored`, `duplicate`, `retry` or `parked`.
    pub word: &'static str,
    /// Of a failure: its code and its text.
    pub reason: String,
    /// What a person needs to find a failure: the handler's backtrace and what it wrote.
    pub evidence: String,
}

/// A plugin and a store to try it on.
pub struct Rehearsal {
    /// Commits are held back.
    held: Stage,
    /// The same for second attempts.
    second: Stage,
    /// They are not. Absent on a database that was named.
    kept: Option<Stage>,
    store: Arc<dyn Store>,
    plugin: Arc<Plugin>,
    temporary: Option<Temporary>,
}

/// A consumer on a recorded store.
struct Stage {
    consumer: Consumer,
    tape: Arc<Tape>,
    records: Arc<Mutex<Vec<Record>>>,
    /// What the broker says of its messages.
    redelivered: bool,
}

/// A directory that goes with this.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // What cannot be removed lies among other temporary files.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Rehearsal {
    pub async fn open(
        project: &Project,
        database: Option<&str>,
        schema: Option<&Path>,
    ) -> Result<Self, Error> {
        let mut config = project.config.clone();
        let (temporary, kind) = match database {
            Some(url) => (None, store_kind(url)?),
            None => {
                let directory = temporary()?;
                let path = directory.0.join("test.db");
                make_tables(&path, schema).await?;
                (Some(directory), StoreKind::Sqlite { path })
            }
        };
        config.store.kind = kind;
        let store = open_store(&config)?;
        prepare(&*store, temporary.is_some(), &config).await?;

        let metrics = Metrics::new();
        let plugin = load(project, &metrics).await?;
        let row = match &temporary {
            Some(_) => register(&*store, project).await?,
            None => ConsumerRow {
                id: NOBODY,
                key_rule: String::new(),
                fingerprint_rule: String::new(),
                generation: 0,
                horizon: None,
            },
        };
        let stage = |held: bool, frozen: Frozen| {
            Stage::new(project, &store, &row, &plugin, &metrics, held, frozen)
        };
        Ok(Self {
            held: stage(true, FIRST)?,
            second: stage(true, SECOND)?,
            kept: match temporary {
                Some(_) => Some(stage(false, FIRST)?),
                None => None,
            },
            plugin: plugin.current(),
            store,
            temporary,
        })
    }

    pub fn plugin(&self) -> &Plugin {
        &self.plugin
    }

    pub async fn close(self) {
        self.store.close().await;
    }

    /// Runs one message, twice, again, and killed at every call.
    pub async fn check(&self, message: Message) -> Result<Check, Error> {
        let message = Arc::new(message);
        let identity = self.held.consumer.rules.identify(&message);
        let keyed = matches!(&identity, Ok(identity) if !identity.key.is_empty());
        let mut problems = Vec::new();

        let before = Used::of(&self.plugin);
        self.plugin.usage().take_recent_memory_bytes();
        let first = once(&self.held, &message, keyed, &mut problems).await?;
        let used = Used::of(&self.plugin).since(&before);
        let peak_memory_bytes = self.plugin.usage().take_recent_memory_bytes();
        let mut differs = Vec::new();
        if first.outcome.word != "duplicate" {
            let second = once(&self.second, &message, keyed, &mut Vec::new()).await?;
            let told = |run: &Once| [vec![run.outcome.line()], run.effects.clone()].concat();
            let text = difference(&told(&first), &told(&second));
            differs.extend(text.lines().map(str::to_owned));
        }
        let kills = self.kill(&message, first.calls, &mut problems).await?;
        if let Some(kept) = &self.kept {
            let mut slot = Some(kept.session().await?);
            kept.deliver(&mut slot, &message).await?;
        }
        Ok(Check {
            key: identity
                .map(|identity| crate::key::show(&identity.key))
                .unwrap_or_default(),
            outcome: first.outcome,
            effects: first.effects,
            second: differs,
            elapsed: used.time,
            peak_memory_bytes,
            fuel: used.fuel,
            kills,
            problems,
        })
    }

    /// Drops the attempt at each of its calls to the database, as a crash would, and looks for anything
    /// that is left.
    async fn kill(
        &self,
        message: &Arc<Message>,
        calls: u32,
        problems: &mut Vec<String>,
    ) -> Result<u32, Error> {
        let before = self.content(message).await?;
        for call in 1..=calls {
            let stage = &self.held;
            let mut slot = Some(stage.session().await?);
            stage.tape.stop_at(call);
            let ended = tokio::select! {
                () = stage.tape.stopped() => None,
                verdict = stage.deliver(&mut slot, message) => Some(verdict?),
            };
            drop(slot);
            stage.tape.stop_at(0);
            stage.take_record();
            if ended.is_some() {
                problems.push(format!(
                    "the message made {calls} calls to the database, and fewer than {call} when it ran again"
                ));
                return Ok(call - 1);
            }
            let after = self.content(message).await?;
            let differs = difference(&before, &after);
            if !differs.is_empty() {
                problems.push(format!(
                    "killed at call {call} of {calls} to the database, something was left behind\n{differs}"
                ));
            }
        }
        Ok(calls)
    }

    /// What the store holds: every row of the temporary file; of a database, what belongs to this run.
    async fn content(&self, message: &Message) -> Result<Vec<String>, Error> {
        let mut session = self
            .store
            .session("hapax test")
            .await
            .map_err(store_failed)?;
        let content = match &self.temporary {
            Some(_) => every_row(&mut *session).await,
            None => own_rows(&mut *session, &self.held.consumer, message).await,
        };
        content.map_err(store_failed)
    }
}

struct Once {
    outcome: Outcome,
    effects: Vec<String>,
    calls: u32,
}

/// One run whose transaction is rolled back after the message was delivered into it again.
async fn once(
    stage: &Stage,
    message: &Arc<Message>,
    keyed: bool,
    problems: &mut Vec<String>,
) -> Result<Once, Error> {
    let mut slot = Some(stage.session().await?);
    stage.tape.stop_at(0);
    let verdict = stage.deliver(&mut slot, message).await?;
    let calls = stage.tape.calls();
    let record = stage.take_record();
    let outcome = Outcome::of(&verdict, ignored(&record.steps));
    if keyed {
        let again = stage.deliver(&mut slot, message).await?;
        let new = lines(&stage.take_record().steps);
        if !matches!(again, Verdict::Duplicate(_)) || !new.is_empty() {
            problems.push(format!(
                "delivered again, the message was not recognised as a duplicate\n{}",
                difference(&[], &new)
            ));
        }
    }
    if let Some(mut session) = slot {
        session.rollback().await.map_err(store_failed)?;
    }
    Ok(Once {
        outcome,
        effects: lines(&record.steps),
        calls,
    })
}

impl Stage {
    fn new(
        project: &Project,
        store: &Arc<dyn Store>,
        row: &ConsumerRow,
        plugin: &Arc<PluginFile>,
        metrics: &Metrics,
        held: bool,
        frozen: Frozen,
    ) -> Result<Self, Error> {
        let records = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&records);
        let tape = Tape::new(held, move |record| {
            told.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(record);
        });
        let settings = &project.consumer;
        let recorded = RecordedStore {
            inner: Arc::clone(store),
            tape: Arc::clone(&tape),
        };
        let parts = Parts {
            id: row.id,
            host: HostId(1),
            environment: Arc::new(environment(settings, row, SECRET, &**store)?),
            store: Arc::new(recorded),
            metrics: metrics.consumer(&settings.name),
            plugin: Arc::clone(plugin),
            floor: Floor::default(),
            frozen: Some(frozen),
        };
        Ok(Self {
            consumer: Consumer::new(settings, parts),
            tape,
            records,
            redelivered: frozen.earlier_attempts > 0,
        })
    }

    async fn session(&self) -> Result<Box<dyn Session>, Error> {
        let session = self.consumer.store.session("hapax test").await;
        session.map_err(store_failed)
    }

    /// One message, to its verdict.
    async fn deliver(
        &self,
        slot: &mut Option<Box<dyn Session>>,
        message: &Arc<Message>,
    ) -> Result<Verdict, Error> {
        let mut items = [Item {
            message: Arc::clone(message),
            withheld: None,
            identity: self.consumer.rules.identify(message),
            redelivered: self.redelivered,
            hold: Hold::Nothing,
            preset: None,
            kept: false,
            in_doubt: false,
            suspect: false,
            put_off: false,
            apart: None,
            received: Instant::now(),
        }];
        for _ in 0..MAX_PASSES {
            if slot.is_none() {
                *slot = Some(self.session().await?);
            }
            let attempt =
                commit::attempt(&self.consumer, 0, slot, &mut items, Isolation::Savepoints);
            match attempt.await {
                Ok(mut committed) => return Ok(committed.verdicts.remove(0)),
                Err(Setback::Again | Setback::Isolate) => {}
                Err(Setback::Stuck(_)) => {
                    return Err(Error::failed(
                        "a statement does not end, whatever the database is told",
                    ));
                }
                Err(Setback::Full) => return Err(Error::failed("the line of the message is full")),
                Err(
                    Setback::Split(error)
                    | Setback::Busy(error)
                    | Setback::World(error)
                    | Setback::Ours(error),
                ) => return Err(store_failed(error)),
            }
        }
        Err(Error::failed("the message came to no end"))
    }

    /// What was recorded last. What came before belongs to passes that ended otherwise.
    fn take_record(&self) -> Record {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        records.drain(..).next_back().unwrap_or_default()
    }
}

impl Outcome {
    fn of(verdict: &Verdict, ignored: Option<&str>) -> Self {
        let plain = |word| Self {
            word,
            reason: String::new(),
            evidence: String::new(),
        };
        match verdict {
            Verdict::Committed => Self {
                reason: ignored.unwrap_or_default().to_owned(),
                ..plain(ignored.map_or("done", |_| "ignored"))
            },
            Verdict::Duplicate(fate) => Self {
                reason: match fate {
                    Fate::Committed => "its key is committed".into(),
                    Fate::Waiting => "its key waits for a retry".into(),
                    Fate::Parked => "its key is parked".into(),
                    Fate::Discarded => "its key was discarded".into(),
                    Fate::Started => "its key is being run".into(),
                },
                ..plain("duplicate")
            },
            Verdict::Gone => plain("gone"),
            Verdict::Held => plain("held"),
            Verdict::SetAside => plain("set aside"),
            Verdict::Failed {
                failure, status, ..
            } => Self {
                word: match status {
                    Status::Parked => "parked",
                    Status::Retry | Status::Held => "retry",
                },
                reason: format!("{}: {}", failure.code, failure.message),
                evidence: [failure.stderr.as_str(), failure.backtrace.as_str()]
                    .into_iter()
                    .filter(|text| !text.is_empty())
                    .collect::<Vec<_>>()
                    .join("\n"),
            },
        }
    }

    /// The outcome as one line.
    pub fn line(&self) -> String {
        match self.reason.as_str() {
            "" => self.word.to_owned(),
            reason => format!("{} {reason}", self.word),
        }
    }

    pub fn is_failure(&self) -> bool {
        matches!(self.word, "retry" | "parked")
    }
}

/// What runs have used so far.
struct Used {
    time: Duration,
    fuel: u64,
}

impl Used {
    fn of(plugin: &Plugin) -> Self {
        Self {
            time: plugin.usage().run_time(),
            fuel: plugin.usage().fuel(),
        }
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            time: self.time.saturating_sub(before.time),
            fuel: self.fuel.saturating_sub(before.fuel),
        }
    }
}

fn store_failed(error: StoreError) -> Error {
    use crate::failure::Class;
    let text = format!("the database has failed: {error}");
    match error.class() {
        Class::World => Error::unavailable(text),
        Class::Message | Class::Ours => Error::failed(text),
    }
}

fn store_kind(url: &str) -> Result<StoreKind, Error> {
    match url.split_once(':') {
        Some(("sqlite", file)) => Ok(StoreKind::Sqlite {
            path: file.strip_prefix("//").unwrap_or(file).into(),
        }),
        Some(("postgres" | "postgresql", _)) => Ok(StoreKind::Postgres {
            url: Secret::url(url),
        }),
        _ => Err(Error::usage(
            "--database wants `sqlite:FILE` or `postgres://USER:PASSWORD@HOST/DATABASE`",
        )),
    }
}

fn temporary() -> Result<Temporary, Error> {
    let name = format!(
        "hapax-test-{}-{:08x}",
        std::process::id(),
        fastrand::u32(..)
    );
    let directory = std::env::temp_dir().join(name);
    std::fs::create_dir(&directory)
        .map_err(|error| Error::failed(format!("{}: {error}", directory.display())))?;
    Ok(Temporary(directory))
}

/// Makes the tables of a handler in a SQLite file.
pub async fn make_tables(path: &Path, schema: Option<&Path>) -> Result<(), Error> {
    let Some(schema) = schema else {
        return Ok(());
    };
    let failed = |error: &dyn std::fmt::Display| {
        Error::usage(format!(
            "{} does not make tables in SQLite: {error}\nname another file with --schema, or test on your own \
             database with --database",
            schema.display()
        ))
    };
    let sql = std::fs::read_to_string(schema).map_err(|error| failed(&error))?;
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true);
    let mut connection = SqliteConnection::connect_with(&options)
        .await
        .map_err(|error| failed(&error))?;
    connection
        .execute(sqlx::raw_sql(AssertSqlSafe(sql)))
        .await
        .map_err(|error| failed(&error))?;
    connection.close().await.map_err(|error| failed(&error))
}

async fn prepare(store: &dyn Store, temporary: bool, config: &config::Config) -> Result<(), Error> {
    if temporary {
        store.migrate().await.map_err(store_failed)?;
        return Ok(());
    }
    let pending = store.pending_migrations().await.map_err(store_failed)?;
    if pending.is_empty() {
        return Ok(());
    }
    let store = config.store.kind.to_string();
    Err(StartError::Schema { store, pending }.into())
}

async fn load(project: &Project, metrics: &Metrics) -> Result<Arc<PluginFile>, Error> {
    let limits = &project.consumer.limits;
    let sandbox = Sandbox::new(SandboxOptions {
        concurrent_instances: 1,
        max_memory: limits.memory,
        max_table_elements: limits.table_elements,
        metered: true,
        compile_timeout: config::COMPILE_TIMEOUT,
    })
    .map_err(StartError::Sandbox)?;
    let cache = project.config.host.cache.as_deref();
    let cache = cache.and_then(Cache::open).map(Arc::new);
    let users = vec![User {
        consumer: project.consumer.name.clone(),
        memory: limits.memory,
    }];
    PluginFile::open(&sandbox, &project.consumer.plugin, users, cache, metrics)
        .await
        .map_err(|error| Error::failed(error.to_string()))
}

async fn register(store: &dyn Store, project: &Project) -> Result<ConsumerRow, Error> {
    let mut session = store.session("hapax test").await.map_err(store_failed)?;
    let (key, fingerprint) = crate::consumer::rule_texts(&project.consumer);
    let row = session
        .consumer(&project.consumer.name, &key, &fingerprint)
        .await;
    row.map_err(store_failed)
}
