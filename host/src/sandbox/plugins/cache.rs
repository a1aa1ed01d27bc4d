//! What is kept of plugins on disk: components by their digest, machine code by digest and engine, and
//! which versions a plugin's file has held.
//!
//! Everything here can be lost and made again, so nothing here fails a load: what cannot be read is
//! compiled, what cannot be written is not kept, and a person is told. Files are written under another
//! name, synced and renamed; machine code is read into memory of its own and never mapped, so that no
//! file that changes can change what runs. Code is accepted only with the checksum that was made of it,
//! through a handle of a directory to which nobody else has, or can make, a way.

mod directory;

use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

use directory::Directory;

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
    components: Directory,
    code: Directory,
    versions: Directory,
    /// A person was told that nothing can be written.
    complained: AtomicBool,
}

impl Cache {
    /// Opens the cache in a directory, which is made when it is not there. `None`, and a warning, when it
    /// is not fit to take machine code from.
    pub fn open(root: &Path) -> Option<Self> {
        let open = |part: &str| {
            let path = root.join(part);
            let opened = Directory::open(&path).inspect(Directory::remove_leftovers);
            opened.map_err(|error| (path, error))
        };
        let cache = open("components").and_then(|components| {
            Ok(Self {
                components,
                code: open("code")?,
                versions: open("versions")?,
                complained: AtomicBool::new(false),
            })
        });
        cache
            .inspect_err(|(directory, error)| {
                tracing::warn!(
                    directory = %directory.display(), %error,
                    "Plugins are not cached: each start compiles them again, and no earlier version is kept"
                );
            })
            .ok()
    }

    /// The machine code of a component, if it is there and as it was written.
    pub(super) fn code(&self, engine: &Engine, digest: &PluginDigest) -> Option<Component> {
        let name = code_name(engine, digest);
        let bytes = match self.code.read(&name) {
            Ok(bytes) => Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => Err(error.to_string()),
        };
        let code = bytes.and_then(|bytes| {
            let code = checked(&bytes)?;
            // SAFETY: the bytes are what this engine serialised: their checksum was written with them,
            // by this user into a directory that nobody else can write to. They are copied, not mapped.
            unsafe { Component::deserialize(engine, code) }
                .map_err(|error| error.root_cause().to_string())
        });
        match code {
            Ok(component) => {
                self.code.touch(&name);
                Some(component)
            }
            Err(error) => {
                tracing::warn!(
                    file = %self.code.path_of(&name).display(), error,
                    "Cached machine code is not taken; the plugin is compiled again"
                );
                let _ = self.code.remove(&name);
                None
            }
        }
    }

    /// Keeps the machine code of a component.
    pub(super) fn keep_code(&self, engine: &Engine, digest: &PluginDigest, component: &Component) {
        let name = code_name(engine, digest);
        let written = component
            .serialize()
            .map_err(|error| io::Error::other(error.root_cause().to_string()))
            .and_then(|code| {
                let checksum: [u8; CHECKSUM_BYTES] = Sha256::digest(&code).into();
                self.code.write(&name, &[MAGIC, &checksum, &code])
            });
        self.settle(&self.code, &name, written);
    }

    /// The bytes of a component that was loaded before.
    pub fn component(&self, digest: &PluginDigest) -> Option<Vec<u8>> {
        let name = component_name(digest);
        let bytes = self.components.read(&name).ok()?;
        let found: PluginDigest = Sha256::digest(&bytes).into();
        if found == *digest {
            self.components.touch(&name);
            return Some(bytes);
        }
        let file = self.components.path_of(&name);
        tracing::warn!(file = %file.display(), "The kept copy of a plugin is damaged");
        let _ = self.components.remove(&name);
        None
    }

    /// Keeps a component, so that a rollback finds it when its file holds another one. A copy that is damaged
    /// is written anew. Says whether there was none.
    pub(super) fn keep_component(&self, digest: &PluginDigest, bytes: &[u8]) -> bool {
        let name = component_name(digest);
        let there = self.components.read(&name);
        if there.as_deref().is_ok_and(|there| there == bytes) {
            self.components.touch(&name);
            return false;
        }
        let written = self.components.write(&name, &[bytes]);
        self.settle(&self.components, &name, written);
        there.is_err()
    }

    /// Does not keep a component after all.
    pub(super) fn forget_component(&self, digest: &PluginDigest) {
        // Where it cannot be removed it takes room, until it has not been used for longest.
        let _ = self.components.remove(&component_name(digest));
    }

    /// Which versions a plugin's file has held, the newest last. Empty when that is not known.
    pub fn versions(&self, file: &Path) -> Vec<PluginDigest> {
        let text = self.versions.read(&versions_name(file)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
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
        let name = versions_name(file);
        let written = self.versions.write(&name, &[lines.as_bytes()]);
        self.settle(&self.versions, &name, written);
    }

    /// Tells a person once when nothing can be kept, and makes room when something was.
    fn settle(&self, directory: &Directory, name: &str, written: io::Result<()>) {
        match written {
            Ok(()) => directory.trim(name, MAX_BYTES),
            Err(error) if !self.complained.swap(true, Ordering::Relaxed) => {
                tracing::warn!(
                    file = %directory.path_of(name).display(), %error,
                    "The plugin cache cannot be written; plugins run as well, and are compiled at each start"
                );
            }
            Err(_) => {}
        }
    }
}

fn component_name(digest: &PluginDigest) -> String {
    format!("{}.wasm", hex::encode(digest))
}

fn code_name(engine: &Engine, digest: &PluginDigest) -> String {
    format!("{}-{:016x}", hex::encode(digest), engine_hash(engine))
}

/// Projects name their files alike, and share a cache: what counts is the whole path. Links in it are
/// not followed, since a history belongs to the name and not to what it leads to today.
fn versions_name(file: &Path) -> String {
    let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    hex::encode(&Sha256::digest(file.as_os_str().as_encoded_bytes())[..16])
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

#[cfg(test)]
mod tests;
