//! What is kept of plugins on disk: components by their digest, machine code by digest and engine, and
//! which versions a plugin's file has held.
//!
//! Everything here can be lost and made again, so nothing here fails a load: what cannot be read is
//! compiled, what cannot be written is not kept, and a person is told. Files are written under another
//! name, synced and renamed; machine code is read into memory of its own and never mapped, so that no
//! file that changes can change what runs. Code is accepted only with the checksum that was made of it,
//! from a directory that nobody else can write to.

use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

/// What stands before the machine code: this, and the SHA-256 of what follows.
const MAGIC: &[u8; 8] = b"hapax-c1";
const CHECKSUM_BYTES: usize = 32;

/// What is kept of each kind, oldest use first out. A version that is still in use is loaded again.
const MAX_BYTES: u64 = 2 << 30;

/// Versions that one plugin's file is remembered to have held.
pub const MAX_VERSIONS: usize = 16;

/// How the names of files begin that are being written.
const NEW: &str = ".hapax-new-";

/// What a process that was killed left behind is removed after this long.
const STALE: Duration = Duration::from_secs(3600);

/// SHA-256 of a component.
pub type PluginDigest = [u8; 32];

/// A directory of the cache. Several processes may share it.
#[derive(Debug)]
pub struct Cache {
    root: PathBuf,
    /// A person was told that nothing can be written.
    complained: AtomicBool,
}

impl Cache {
    /// Opens the cache in a directory, which is made when it is not there. `None`, and a warning, when it
    /// is not fit to take machine code from.
    pub fn open(root: &Path) -> Option<Self> {
        let cache = Self {
            root: root.to_owned(),
            complained: AtomicBool::new(false),
        };
        for part in [Part::Components, Part::Code, Part::Versions] {
            let directory = cache.directory(part);
            if let Err(error) = make_private(&directory) {
                tracing::warn!(
                    directory = %directory.display(), %error,
                    "Plugins are not cached: each start compiles them again, and no earlier version is kept"
                );
                return None;
            }
            remove_leftovers(&directory);
        }
        Some(cache)
    }

    /// The machine code of a component, if it is there and as it was written.
    pub(super) fn code(&self, engine: &Engine, digest: &PluginDigest) -> Option<Component> {
        let path = self.code_path(engine, digest);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "Cached machine code cannot be read");
                return None;
            }
        };
        let code = checked(&bytes).and_then(|code| {
            // SAFETY: the bytes are what this engine serialised: their checksum was written with them,
            // into a directory that only this user can write to. They are copied, not mapped.
            unsafe { Component::deserialize(engine, code) }
                .map_err(|error| error.root_cause().to_string())
        });
        match code {
            Ok(component) => {
                touch(&path);
                Some(component)
            }
            Err(error) => {
                tracing::warn!(
                    file = %path.display(), error,
                    "Cached machine code is damaged; the plugin is compiled again"
                );
                let _ = fs::remove_file(&path);
                None
            }
        }
    }

    /// Keeps the machine code of a component.
    pub(super) fn keep_code(&self, engine: &Engine, digest: &PluginDigest, component: &Component) {
        let path = self.code_path(engine, digest);
        let written = component
            .serialize()
            .map_err(|error| io::Error::other(error.root_cause().to_string()))
            .and_then(|code| {
                let checksum: [u8; CHECKSUM_BYTES] = Sha256::digest(&code).into();
                write(&path, &[MAGIC, &checksum, &code])
            });
        self.settle(Part::Code, &path, written);
    }

    /// The bytes of a component that was loaded before.
    pub fn component(&self, digest: &PluginDigest) -> Option<Vec<u8>> {
        let path = self.component_path(digest);
        let bytes = fs::read(&path).ok()?;
        let found: PluginDigest = Sha256::digest(&bytes).into();
        if found == *digest {
            touch(&path);
            return Some(bytes);
        }
        tracing::warn!(file = %path.display(), "The kept copy of a plugin is damaged");
        let _ = fs::remove_file(&path);
        None
    }

    /// Keeps a component, so that a rollback finds it when its file holds another one. A copy that is damaged
    /// is written anew. Says whether there was none.
    pub(super) fn keep_component(&self, digest: &PluginDigest, bytes: &[u8]) -> bool {
        let path = self.component_path(digest);
        let there = fs::read(&path).ok();
        if there.as_deref() == Some(bytes) {
            touch(&path);
            return false;
        }
        let written = write(&path, &[bytes]);
        self.settle(Part::Components, &path, written);
        there.is_none()
    }

    /// Does not keep a component after all.
    pub(super) fn forget_component(&self, digest: &PluginDigest) {
        // Where it cannot be removed it takes room, until it has not been used for longest.
        let _ = fs::remove_file(self.component_path(digest));
    }

    /// Which versions a plugin's file has held, the newest last. Empty when that is not known.
    pub fn versions(&self, file: &Path) -> Vec<PluginDigest> {
        let text = fs::read_to_string(self.versions_path(file)).unwrap_or_default();
        let digests = text.lines().filter_map(|line| {
            let mut digest = PluginDigest::default();
            hex::decode_to_slice(line, &mut digest).ok()?;
            Some(digest)
        });
        digests.collect()
    }

    /// Remembers them. Only the newest [`MAX_VERSIONS`] are kept.
    pub fn keep_versions(&self, file: &Path, versions: &[PluginDigest]) {
        let newest = &versions[versions.len().saturating_sub(MAX_VERSIONS)..];
        let lines: String = newest
            .iter()
            .map(|digest| hex::encode(digest) + "\n")
            .collect();
        let path = self.versions_path(file);
        let written = write(&path, &[lines.as_bytes()]);
        self.settle(Part::Versions, &path, written);
    }

    fn directory(&self, part: Part) -> PathBuf {
        self.root.join(match part {
            Part::Components => "components",
            Part::Code => "code",
            Part::Versions => "versions",
        })
    }

    fn component_path(&self, digest: &PluginDigest) -> PathBuf {
        let name = format!("{}.wasm", hex::encode(digest));
        self.directory(Part::Components).join(name)
    }

    fn code_path(&self, engine: &Engine, digest: &PluginDigest) -> PathBuf {
        let name = format!("{}-{:016x}", hex::encode(digest), engine_hash(engine));
        self.directory(Part::Code).join(name)
    }

    /// Projects name their files alike, and share a cache: what counts is the whole path. Links in it are
    /// not followed, since a history belongs to the name and not to what it leads to today.
    fn versions_path(&self, file: &Path) -> PathBuf {
        let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
        let name = hex::encode(&Sha256::digest(file.as_os_str().as_encoded_bytes())[..16]);
        self.directory(Part::Versions).join(name)
    }

    /// Tells a person once when nothing can be kept, and makes room when something was.
    fn settle(&self, part: Part, path: &Path, written: io::Result<()>) {
        match written {
            Ok(()) => trim(&self.directory(part), path),
            Err(error) if !self.complained.swap(true, Ordering::Relaxed) => {
                tracing::warn!(
                    file = %path.display(), %error,
                    "The plugin cache cannot be written; plugins run as well, and are compiled at each start"
                );
            }
            Err(_) => {}
        }
    }
}

#[derive(Clone, Copy)]
enum Part {
    Components,
    Code,
    Versions,
}

/// What depends on the engine's version, its settings and the processor.
fn engine_hash(engine: &Engine) -> u64 {
    let mut hasher = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    hasher.finish()
}

fn checked(bytes: &[u8]) -> Result<&[u8], String> {
    let body = bytes
        .strip_prefix(MAGIC)
        .ok_or("it is no file of this cache")?;
    let (checksum, code) = body
        .split_at_checked(CHECKSUM_BYTES)
        .ok_or("it is cut off")?;
    if Sha256::digest(code).as_slice() == checksum {
        Ok(code)
    } else {
        Err("its checksum does not fit".into())
    }
}

/// Writes a file in one step: whoever reads it sees the old one or the new one, whole.
pub fn write(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        // A bare name has a parent, which is empty.
        _ => Path::new("."),
    };
    let new = directory.join(new_name());
    let fill = || {
        let mut file = OpenOptions::new().write(true).create_new(true).open(&new)?;
        for part in parts {
            file.write_all(part)?;
        }
        if let Ok(old) = fs::metadata(path) {
            file.set_permissions(old.permissions())?;
        }
        file.sync_all()?;
        fs::rename(&new, path)?;
        // The name is durable when its directory is.
        #[cfg(unix)]
        File::open(directory)?.sync_all()?;
        Ok(())
    };
    fill().inspect_err(|_| {
        let _ = fs::remove_file(&new);
    })
}

/// A name that nobody else chooses. In containers that share a directory every host has the same process id,
/// and each one begins to count anew.
fn new_name() -> String {
    format!("{NEW}{:016x}", RandomState::new().hash_one(()))
}

/// Makes a directory that nobody else can write to, or insists that it is one.
fn make_private(directory: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::DirBuilderExt;
        builder.mode(0o700);
    }
    builder.create(directory)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let there = fs::metadata(directory)?;
        let own = rustix::process::geteuid().as_raw();
        if there.mode() & 0o022 != 0 || (there.uid() != own && there.uid() != 0) {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "other users can write to it; machine code is taken from no such place",
            ));
        }
    }
    Ok(())
}

/// Removes what [`write`] has left in a directory when its process was killed.
pub fn remove_leftovers(directory: &Path) {
    for (path, there) in entries(directory) {
        let new = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(NEW.as_bytes()));
        let age = there
            .modified()
            .ok()
            .and_then(|time| SystemTime::now().duration_since(time).ok());
        if new && age.is_some_and(|age| age > STALE) {
            let _ = fs::remove_file(path);
        }
    }
}

/// Removes what was not used for longest, until the rest is small enough.
fn trim(directory: &Path, keep: &Path) {
    let mut files = entries(directory);
    let mut bytes: u64 = files.iter().map(|(_, there)| there.len()).sum();
    if bytes <= MAX_BYTES {
        return;
    }
    files.sort_by_key(|(_, there)| there.modified().unwrap_or(SystemTime::UNIX_EPOCH));
    for (path, there) in files {
        if bytes <= MAX_BYTES {
            break;
        }
        if path != keep && fs::remove_file(&path).is_ok() {
            bytes -= there.len();
        }
    }
}

fn entries(directory: &Path) -> Vec<(PathBuf, fs::Metadata)> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            Some((entry.path(), entry.metadata().ok()?))
        })
        .collect()
}

/// Marks a file as just used. It may be somebody else's to mark, which is no matter.
fn touch(path: &Path) {
    let _ = File::options()
        .append(true)
        .open(path)
        .and_then(|file| file.set_modified(SystemTime::now()));
}

#[cfg(test)]
mod tests;
