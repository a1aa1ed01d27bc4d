//! Which version of its plugin each consumer runs, and how that changes while messages flow.
//!
//! The file that the configuration names is the truth: what is in it runs, and what `load` and `rollback`
//! bring is put into it first, so that a restart keeps it. A new version is read, compiled and tried out
//! beside the one that serves; then one pointer changes. Batches that have begun end on the version that
//! they began with, and the last of them takes that version out of memory. A version that is refused
//! changes nothing.
//!
//! One change of a file at a time. Nothing here is on the way of a message but the pointer.

mod watch;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant, SystemTime};

use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use crate::clock::now_micros;
use crate::failpoint::{self, Point};
use crate::metrics::Metrics;
use crate::sandbox::{
    Cache, LoadError, LoadProblem, MAX_LOADS, MAX_VERSIONS, Plugin, PluginDigest, Sandbox,
    read_component, remove_leftovers, write_file,
};

pub use watch::watch;

/// How often a file that changes while it is read is read again before its change is waited for.
const MAX_READS: usize = 5;

/// A version that was refused for what may pass is tried again after so long.
const AGAIN: Duration = Duration::from_secs(30);

/// Plugins that are loaded at the same time: each holds its component and its machine code in memory.
static LOADS: Semaphore = Semaphore::const_new(MAX_LOADS);

/// A consumer that runs a plugin, as far as the plugin is concerned.
#[derive(Clone, Debug)]
pub struct User {
    pub consumer: String,
    /// `limits.memory`, in bytes.
    pub memory: u64,
}

/// A file that the configuration names, and the version that was loaded from it.
pub struct PluginFile {
    path: PathBuf,
    users: Vec<User>,
    sandbox: Arc<Sandbox>,
    cache: Option<Arc<Cache>>,
    metrics: Metrics,
    current: RwLock<Arc<Plugin>>,
    records: Mutex<Records>,
    /// Held while the version changes.
    turn: tokio::sync::Mutex<()>,
}

/// What is known beside the version that runs.
struct Records {
    loaded_at: i64,
    /// The versions that the file has held, the newest last.
    versions: Vec<PluginDigest>,
    /// Every version that may still be in memory.
    alive: Vec<Weak<Plugin>>,
    /// What is in the file now, when it is not what runs.
    refused: Option<Refused>,
    /// When what is in the file is tried once more, if what was wrong with it may pass by itself.
    again: Option<Instant>,
    seen: Option<Seen>,
}

/// A version that does not run, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// `None` when the file could not be read.
    pub digest: Option<PluginDigest>,
    pub problem: String,
}

/// A file as it was when it was looked at. Another file under the same name differs, a file that was
/// overwritten too.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    path: PathBuf,
    bytes: u64,
    modified: Option<SystemTime>,
    #[cfg(unix)]
    inode: (u64, u64),
}

/// A change of the version that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    pub before: PluginDigest,
    pub now: PluginDigest,
}

/// Why the version is what it was.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("{} cannot be written, so a restart would not keep the change: {error}", .path.display())]
    Write { path: PathBuf, error: io::Error },
    #[error("no version before {} is known", short(.0))]
    NothingBefore(PluginDigest),
    #[error(
        "the copy of the version before, {}, is gone from the cache (`host.cache`); load its file with `hapax plugins load`",
        short(.0)
    )]
    Gone(PluginDigest),
}

/// What a plugin is doing.
#[derive(Clone, Debug)]
pub struct State {
    pub path: PathBuf,
    pub plugin: Arc<Plugin>,
    /// Microseconds since the Unix epoch.
    pub loaded_at: i64,
    /// Versions that a rollback would go to, the next one first.
    pub earlier: Vec<PluginDigest>,
    pub refused: Option<Refused>,
    /// Versions in memory: more than one while messages end on an earlier one.
    pub in_memory: usize,
}

/// The digits of a digest that people compare.
pub fn short(digest: &PluginDigest) -> String {
    hex::encode(&digest[..6])
}

impl PluginFile {
    /// Loads what is in the file now.
    pub async fn open(
        sandbox: &Arc<Sandbox>,
        path: &Path,
        users: Vec<User>,
        cache: Option<Arc<Cache>>,
        metrics: &Metrics,
    ) -> Result<Arc<Self>, LoadError> {
        let (sandbox, path) = (Arc::clone(sandbox), path.to_owned());
        let permit = LOADS.acquire().await.expect("nobody closes it");
        let opened = tokio::task::spawn_blocking({
            let (cache, users) = (cache.clone(), users.clone());
            let (sandbox, path) = (Arc::clone(&sandbox), path.clone());
            move || {
                if let Some(directory) = real(&path).parent() {
                    remove_leftovers(directory);
                }
                let seen = Seen::look(&path);
                let bytes = read(&path)?;
                let plugin = prepare(&sandbox, &path, &users, cache.as_deref(), &bytes)?;
                let mut versions = cache
                    .as_deref()
                    .map(|cache| cache.versions(&path))
                    .unwrap_or_default();
                if remember(&mut versions, *plugin.digest())
                    && let Some(cache) = &cache
                {
                    cache.keep_versions(&path, &versions);
                }
                Ok::<_, LoadError>((seen, plugin, versions))
            }
        });
        let (seen, plugin, versions) = opened.await.expect("loading does not panic")?;
        drop(permit);
        let plugin = Arc::new(plugin);
        Ok(Arc::new(Self {
            records: Mutex::new(Records {
                loaded_at: now_micros(),
                versions,
                alive: vec![Arc::downgrade(&plugin)],
                refused: None,
                again: None,
                seen,
            }),
            path,
            users,
            sandbox,
            cache,
            metrics: metrics.clone(),
            current: RwLock::new(plugin),
            turn: tokio::sync::Mutex::new(()),
        }))
    }

    /// The same for a host that is yet to start: where the file holds nothing that runs, these bytes are
    /// put into it if they do.
    pub async fn open_or_make(
        sandbox: &Arc<Sandbox>,
        path: &Path,
        users: Vec<User>,
        cache: Option<Arc<Cache>>,
        metrics: &Metrics,
        bytes: &[u8],
    ) -> Result<Arc<Self>, ChangeError> {
        let open = || Self::open(sandbox, path, users.clone(), cache.clone(), metrics);
        if let Ok(file) = open().await {
            return Ok(file);
        }
        prepare(sandbox, path, &users, cache.as_deref(), bytes)?;
        put(path, bytes).map_err(|error| ChangeError::Write {
            path: path.to_owned(),
            error,
        })?;
        Ok(open().await?)
    }

    /// A version that comes from no file and never changes.
    #[cfg(test)]
    pub(crate) fn fixed(sandbox: &Arc<Sandbox>, plugin: Plugin) -> Arc<Self> {
        let plugin = Arc::new(plugin);
        Arc::new(Self {
            records: Mutex::new(Records {
                loaded_at: now_micros(),
                versions: vec![*plugin.digest()],
                alive: vec![Arc::downgrade(&plugin)],
                refused: None,
                again: None,
                seen: None,
            }),
            path: PathBuf::new(),
            users: Vec::new(),
            sandbox: Arc::clone(sandbox),
            cache: None,
            metrics: Metrics::new(),
            current: RwLock::new(plugin),
            turn: tokio::sync::Mutex::new(()),
        })
    }

    /// The version that new batches run on.
    pub fn current(&self) -> Arc<Plugin> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn state(&self) -> State {
        let plugin = self.current();
        let mut records = self.records();
        records.alive.retain(|version| version.strong_count() > 0);
        State {
            path: self.path.clone(),
            loaded_at: records.loaded_at,
            earlier: earlier(&records.versions, plugin.digest())
                .rev()
                .copied()
                .collect(),
            refused: records.refused.clone(),
            in_memory: records.alive.len(),
            plugin,
        }
    }

    /// Loads what is in the file if it is not what runs. What is refused is told once, and tried again only when
    /// what was wrong with it may have passed.
    pub async fn refresh(&self) {
        let _turn = self.turn.lock().await;
        let (path, looked) = (self.path.clone(), Instant::now());
        let read = tokio::task::spawn_blocking(move || (Seen::look(&path), read(&path))).await;
        let (seen, read) = read.expect("reading does not panic");
        self.records().seen = seen;
        let bytes = match read {
            Ok(bytes) => bytes,
            Err(error) => return self.refuse(None, &error),
        };
        let digest: PluginDigest = Sha256::digest(&bytes).into();
        if *self.current().digest() == digest {
            self.records().accept();
            return;
        }
        if self.records().refuses_for_good(digest) {
            return;
        }
        match self.prepare(bytes).await {
            Ok(plugin) => {
                self.swap(plugin, looked);
                self.keep_versions().await;
            }
            Err(error) => self.refuse(Some(digest), &error),
        }
    }

    /// Puts a component into the file and runs it, if it can run.
    pub async fn replace(&self, bytes: Vec<u8>) -> Result<Change, ChangeError> {
        let _turn = self.turn.lock().await;
        let change = self.install(bytes).await?;
        self.keep_versions().await;
        Ok(change)
    }

    /// Goes back to the version that ran before; from there, to the one before that. Where the file holds
    /// something that was refused, it gets back what runs.
    pub async fn roll_back(&self) -> Result<Change, ChangeError> {
        let _turn = self.turn.lock().await;
        let now = *self.current().digest();
        let target = {
            let records = self.records();
            match records.refused {
                Some(_) => now,
                None => *earlier(&records.versions, &now)
                    .next_back()
                    .ok_or(ChangeError::NothingBefore(now))?,
            }
        };
        let kept = self.cache.clone();
        let kept = tokio::task::spawn_blocking(move || kept?.component(&target)).await;
        let bytes = kept
            .expect("reading does not panic")
            .ok_or(ChangeError::Gone(target))?;
        let change = self.install(bytes).await?;
        {
            let mut records = self.records();
            if let Some(at) = records
                .versions
                .iter()
                .rposition(|version| *version == now)
                .filter(|_| target != now)
            {
                records.versions.truncate(at);
            }
        }
        self.keep_versions().await;
        Ok(change)
    }

    /// Tries a component out, writes the file, swaps. Whoever calls it has the turn.
    async fn install(&self, bytes: Vec<u8>) -> Result<Change, ChangeError> {
        let started = Instant::now();
        let before = *self.current().digest();
        let digest: PluginDigest = Sha256::digest(&bytes).into();
        let bytes: Arc<[u8]> = bytes.into();
        let plugin = match digest == before {
            true => None,
            false => Some(self.prepare_shared(Arc::clone(&bytes)).await?),
        };
        let path = self.path.clone();
        let written = tokio::task::spawn_blocking(move || put(&path, &bytes)).await;
        written
            .expect("writing does not panic")
            .map_err(|error| ChangeError::Write {
                path: self.path.clone(),
                error,
            })?;
        failpoint::pass(Point::AfterPluginWrite);
        match plugin {
            Some(plugin) => self.swap(plugin, started),
            None => self.records().accept(),
        }
        Ok(Change {
            before,
            now: digest,
        })
    }

    async fn prepare(&self, bytes: Vec<u8>) -> Result<Plugin, LoadError> {
        self.prepare_shared(bytes.into()).await
    }

    async fn prepare_shared(&self, bytes: Arc<[u8]>) -> Result<Plugin, LoadError> {
        let _permit = LOADS.acquire().await.expect("nobody closes it");
        let (sandbox, path) = (Arc::clone(&self.sandbox), self.path.clone());
        let (users, cache) = (self.users.clone(), self.cache.clone());
        let prepared = tokio::task::spawn_blocking(move || {
            prepare(&sandbox, &path, &users, cache.as_deref(), &bytes)
        });
        prepared.await.expect("loading does not panic")
    }

    /// The moment of change: from here on batches begin with the new version.
    fn swap(&self, plugin: Plugin, started: Instant) {
        let new = Arc::new(plugin);
        let old = {
            let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *current, Arc::clone(&new))
        };
        let mut records = self.records();
        records.loaded_at = now_micros();
        records.accept();
        remember(&mut records.versions, *new.digest());
        records.alive.retain(|version| version.strong_count() > 0);
        records.alive.push(Arc::downgrade(&new));
        drop(records);
        failpoint::pass(Point::AfterPluginSwap);
        for user in &self.users {
            self.metrics.plugin_swapped(&user.consumer);
            tracing::info!(
                consumer = %user.consumer, digest = short(new.digest()), before = short(old.digest()),
                cached = new.was_cached(), load_seconds = started.elapsed().as_secs_f64(),
                "Plugin swapped"
            );
        }
    }

    fn refuse(&self, digest: Option<PluginDigest>, error: &LoadError) {
        let serving = self.current();
        let problem = error.problem.to_string();
        let refused = Refused { digest, problem };
        let told = {
            let mut records = self.records();
            records.again = error.problem.may_pass().then(|| Instant::now() + AGAIN);
            records.refused.replace(refused.clone()).as_ref() == Some(&refused)
        };
        if told {
            return;
        }
        for user in &self.users {
            self.metrics.plugin_refused(&user.consumer);
            tracing::warn!(
                consumer = %user.consumer, serving = short(serving.digest()), error = %error,
                "Plugin refused; the version that was loaded before goes on"
            );
        }
    }

    async fn keep_versions(&self) {
        let Some(cache) = self.cache.clone() else {
            return;
        };
        let (path, versions) = (self.path.clone(), self.records().versions.clone());
        let kept = tokio::task::spawn_blocking(move || cache.keep_versions(&path, &versions)).await;
        kept.expect("writing does not panic");
    }

    /// Whether the file is another one than the one that was read last, or is to be tried once more.
    fn is_due(&self) -> bool {
        let seen = Seen::look(&self.path);
        let records = self.records();
        seen != records.seen || records.again.is_some_and(|again| again <= Instant::now())
    }

    fn records(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Records {
    /// What is in the file runs.
    fn accept(&mut self) {
        self.refused = None;
        self.again = None;
    }

    fn refuses_for_good(&self, digest: PluginDigest) -> bool {
        let refused = self.refused.as_ref();
        self.again.is_none() && refused.is_some_and(|refused| refused.digest == Some(digest))
    }
}

/// Everything that a version must pass before it runs. Blocks for as long as compiling takes.
fn prepare(
    sandbox: &Arc<Sandbox>,
    path: &Path,
    users: &[User],
    cache: Option<&Cache>,
    bytes: &[u8],
) -> Result<Plugin, LoadError> {
    let name = path.display().to_string();
    let plugin = Plugin::from_cache(sandbox, &name, bytes, cache)?;
    let needed = plugin.initial_memory_bytes();
    if let Some(user) = users.iter().find(|user| user.memory < needed) {
        let problem = LoadProblem::Memory {
            consumer: user.consumer.clone(),
            needed,
            limit: user.memory,
        };
        return Err(LoadError { name, problem });
    }
    Ok(plugin)
}

/// The file's bytes as they were at one moment, if it stands still for long enough. When it does not, what
/// was read last: a torn component is refused, and the end of the writing is seen by the watch.
fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    let mut bytes = Err(LoadProblem::NotAFile);
    for _ in 0..MAX_READS {
        let before = Seen::look(path);
        bytes = read_component(path);
        if before.is_some() && before == Seen::look(path) {
            break;
        }
    }
    bytes.map_err(|problem| LoadError {
        name: path.display().to_string(),
        problem,
    })
}

/// Replaces the file, or what a link in its place leads to.
fn put(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_file(&real(path), &[bytes])
}

/// The file itself, where the path is a link to it.
fn real(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// Appends a version unless it is the newest already; says whether it did.
fn remember(versions: &mut Vec<PluginDigest>, digest: PluginDigest) -> bool {
    if versions.last() == Some(&digest) {
        return false;
    }
    versions.push(digest);
    let excess = versions.len().saturating_sub(MAX_VERSIONS);
    versions.drain(..excess);
    true
}

/// The versions before this one, the oldest first.
fn earlier<'v>(
    versions: &'v [PluginDigest],
    now: &PluginDigest,
) -> impl DoubleEndedIterator<Item = &'v PluginDigest> {
    let end = versions
        .iter()
        .rposition(|version| version == now)
        .unwrap_or(versions.len());
    let now = *now;
    versions[..end]
        .iter()
        .filter(move |version| **version != now)
}

impl Seen {
    /// `None` when there is no file.
    fn look(path: &Path) -> Option<Self> {
        let path = path.canonicalize().ok()?;
        let there = fs::metadata(&path).ok()?;
        Some(Self {
            bytes: there.len(),
            modified: there.modified().ok(),
            #[cfg(unix)]
            inode: {
                use std::os::unix::fs::MetadataExt;
                (there.dev(), there.ino())
            },
            path,
        })
    }
}

#[cfg(test)]
mod tests;
