//! Notices that a plugin's file has changed: written over, renamed into place, deleted and made again, or
//! reached through a link that now leads elsewhere.
//!
//! Directories are watched, not files: a file's own watch ends when it is replaced. The system's events
//! say that something happened, and looking at the files says what. They are looked at from time to time
//! without an event, too, for file systems that send none and for directories that were away.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use notify::event::{EventKind, ModifyKind};
use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use super::PluginFile;

/// A file is read when nothing has happened to it for so long.
const QUIET: Duration = Duration::from_millis(100);

/// It is read after so long even when something happens all the time.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often files are looked at without an event.
const LOOK: Duration = Duration::from_secs(2);

/// Keeps what runs equal to what is in the files, until `stop`.
pub async fn watch(files: Vec<Arc<PluginFile>>, stop: CancellationToken) {
    let mut watches = Watches::new(&files);
    loop {
        watches.cover(&files);
        let event = tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(LOOK) => false,
            () = watches.event() => true,
        };
        if event {
            tokio::select! {
                () = stop.cancelled() => return,
                () = watches.quiet() => {}
            }
        }
        let touched = watches.touched.swap(false, Ordering::SeqCst);
        for file in &files {
            if touched || file.is_due() {
                tokio::select! {
                    // A load that has begun is of no use to a host that leaves.
                    () = stop.cancelled() => return,
                    () = file.refresh() => {}
                }
            }
        }
    }
}

/// The directories that are watched.
struct Watches {
    /// `None` where the system has no such thing, or no more of it.
    watcher: Option<RecommendedWatcher>,
    /// With what they were when the watch was set: another directory of the same name needs another one.
    directories: BTreeMap<PathBuf, Option<(u64, u64)>>,
    events: mpsc::Receiver<()>,
    /// A plugin's own file was named by an event: it is read even when it looks the same.
    touched: Arc<AtomicBool>,
}

impl Watches {
    fn new(files: &[Arc<PluginFile>]) -> Self {
        let names: Vec<OsString> = files
            .iter()
            .filter_map(|file| Some(file.path().file_name()?.to_owned()))
            .collect();
        // One event stands for all that come before it is taken.
        let (send, events) = mpsc::channel(1);
        let touched = Arc::new(AtomicBool::new(false));
        let heard = {
            let touched = Arc::clone(&touched);
            move |event: notify::Result<Event>| {
                let Ok(event) = event else {
                    // The watch itself is in trouble: look.
                    let _ = send.try_send(());
                    return;
                };
                let named = event.paths.iter().any(|path| {
                    path.file_name()
                        .is_some_and(|name| names.iter().any(|own| own == name))
                });
                if matters(&event.kind, named) {
                    if named {
                        touched.store(true, Ordering::SeqCst);
                    }
                    let _ = send.try_send(());
                }
            }
        };
        let watcher = notify::recommended_watcher(heard)
            .inspect_err(|error| {
                tracing::warn!(
                    %error, every_seconds = LOOK.as_secs(),
                    "Plugin files cannot be watched; they are looked at from time to time"
                );
            })
            .ok();
        Self {
            watcher,
            directories: BTreeMap::new(),
            events,
            touched,
        }
    }

    /// Watches the directories that count now: of each file, and of what it is a link to.
    fn cover(&mut self, files: &[Arc<PluginFile>]) {
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        let mut wanted = BTreeMap::new();
        for file in files {
            let mut paths = vec![file.path().to_owned()];
            paths.extend(file.path().canonicalize());
            for directory in paths.iter().filter_map(|path| path.parent()) {
                if let Some(there) = nearest(directory) {
                    wanted.insert(there.clone(), identity(&there));
                }
            }
        }
        if wanted == self.directories {
            return;
        }
        for (directory, was) in &self.directories {
            if wanted.get(directory) != Some(was) {
                // It may be gone, and its watch with it.
                let _ = watcher.unwatch(directory);
            }
        }
        for (directory, is) in &wanted {
            if self.directories.get(directory) != Some(is)
                && let Err(error) = watcher.watch(directory, RecursiveMode::NonRecursive)
            {
                tracing::warn!(
                    directory = %directory.display(), %error, every_seconds = LOOK.as_secs(),
                    "A directory of plugins cannot be watched; it is looked at from time to time"
                );
            }
        }
        self.directories = wanted;
    }

    async fn event(&mut self) {
        if self.events.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until nothing happens any more.
    async fn quiet(&mut self) {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            let until = end.min(Instant::now() + QUIET);
            match timeout_at(until, self.events.recv()).await {
                Ok(Some(())) => {}
                Ok(None) => return tokio::time::sleep_until(until).await,
                Err(_) => return,
            }
        }
    }
}

/// Other files of the directory may be written all the time, a database among them. Their names count,
/// since a link may be one of them; their content does not.
fn matters(kind: &EventKind, named: bool) -> bool {
    match kind {
        EventKind::Access(_) => false,
        EventKind::Modify(ModifyKind::Name(_)) | EventKind::Create(_) | EventKind::Remove(_) => {
            true
        }
        _ => named,
    }
}

/// The directory, or what is left of the way to it.
fn nearest(directory: &Path) -> Option<PathBuf> {
    directory
        .ancestors()
        .map(|ancestor| match ancestor.as_os_str().is_empty() {
            true => Path::new("."),
            false => ancestor,
        })
        .find(|ancestor| ancestor.is_dir())
        .map(Path::to_owned)
}

fn identity(directory: &Path) -> Option<(u64, u64)> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let there = std::fs::metadata(directory).ok()?;
        Some((there.dev(), there.ino()))
    }
    #[cfg(not(unix))]
    {
        directory.is_dir().then_some((0, 0))
    }
}
