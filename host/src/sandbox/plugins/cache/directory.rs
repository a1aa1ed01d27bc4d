//! One directory of the cache, held open: what is checked is what is read, whatever becomes of its path.
//!
//! On the way to it there is no directory that another user could rename or replace, and a file is only taken if
//! nobody else can have written it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::{NEW, STALE, new_name};

/// A directory that only this user, or root, can have filled.
#[derive(Debug)]
pub(super) struct Directory {
    /// For people, and where the system has no handles of directories.
    path: PathBuf,
    #[cfg(unix)]
    handle: std::os::fd::OwnedFd,
}

/// A file in a directory.
pub(super) struct Entry {
    pub name: String,
    pub bytes: u64,
    pub modified: SystemTime,
}

impl Directory {
    /// Makes the directory where it is not there, and opens it.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        {
            use std::os::unix::fs::DirBuilderExt;
            builder.mode(0o700);
        }
        builder.create(path)?;
        let path = path.canonicalize()?;
        Ok(Self {
            #[cfg(unix)]
            handle: unix::open_way(&path)?,
            path,
        })
    }

    /// Where a file of this name is, for people.
    pub fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A file's bytes.
    pub fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut file = self.open_file(name)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Marks a file as just used. It may be somebody else's to mark, which is no matter.
    pub fn touch(&self, name: &str) {
        let _ = self
            .open_file(name)
            .and_then(|file| file.set_modified(SystemTime::now()));
    }

    /// Writes a file in one step: whoever reads it sees the old one or the new one, whole.
    pub fn write(&self, name: &str, parts: &[&[u8]]) -> io::Result<()> {
        let new = new_name();
        let fill = || {
            let mut file = self.create_file(&new)?;
            for part in parts {
                file.write_all(part)?;
            }
            file.sync_all()?;
            self.rename(&new, name)
        };
        fill().inspect_err(|_| {
            let _ = self.remove(&new);
        })
    }

    /// Removes what [`Self::write`] has left when its process was killed.
    pub fn remove_leftovers(&self) {
        for entry in self.entries() {
            let age = SystemTime::now().duration_since(entry.modified).ok();
            if entry.name.starts_with(NEW) && age.is_some_and(|age| age > STALE) {
                let _ = self.remove(&entry.name);
            }
        }
    }

    /// Removes what was not used for longest, until the rest is small enough.
    pub fn trim(&self, keep: &str, max_bytes: u64) {
        let mut files = self.entries();
        let mut bytes: u64 = files.iter().map(|file| file.bytes).sum();
        if bytes <= max_bytes {
            return;
        }
        files.sort_by_key(|file| file.modified);
        for file in files {
            if bytes <= max_bytes {
                break;
            }
            if file.name != keep && self.remove(&file.name).is_ok() {
                bytes -= file.bytes;
            }
        }
    }
}

#[cfg(unix)]
mod unix {
    use std::os::fd::OwnedFd;
    use std::path::Component;

    use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};

    use super::*;

    const WAY: OFlags = OFlags::DIRECTORY
        .union(OFlags::NOFOLLOW)
        .union(OFlags::CLOEXEC);

    /// Opens one directory after another from the root of the file system, each in the one before, and insists on
    /// each of them. A path without links is expected.
    pub(super) fn open_way(path: &Path) -> io::Result<OwnedFd> {
        let mut handle = rustix::fs::openat(CWD, "/", WAY, Mode::empty())?;
        let mut way = PathBuf::from("/");
        let parts: Vec<_> = path
            .components()
            .filter_map(|part| match part {
                Component::Normal(name) => Some(name),
                _ => None,
            })
            .collect();
        for (index, name) in parts.iter().enumerate() {
            is_safe(&handle, &way, false)?;
            handle = rustix::fs::openat(&handle, *name, WAY, Mode::empty())?;
            way.push(name);
            if index + 1 == parts.len() {
                is_safe(&handle, &way, true)?;
            }
        }
        Ok(handle)
    }

    /// Nobody else can put another directory or file in the place of one of ours: others cannot write to it, or
    /// may, as in `/tmp`, only remove what is theirs. That is not enough for the last one, where a file that is
    /// new is theirs.
    fn is_safe(handle: &OwnedFd, way: &Path, is_last: bool) -> io::Result<()> {
        const STICKY: u32 = 0o1000;
        let there = rustix::fs::fstat(handle)?;
        let mode = permissions(&there);
        let refused = |why: &str| {
            let text = format!(
                "{} {why}; machine code is taken from no such place",
                way.display()
            );
            Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
        };
        if !is_ours(&there) {
            return refused("belongs to another user");
        }
        if mode & 0o022 != 0 && (is_last || mode & STICKY == 0) {
            return refused("can be written by other users");
        }
        Ok(())
    }

    /// The bits of type and permissions.
    #[allow(clippy::useless_conversion, reason = "a Mac has 16 bits for them")]
    fn permissions(there: &rustix::fs::Stat) -> u32 {
        u32::from(there.st_mode)
    }

    fn is_ours(there: &Stat) -> bool {
        there.st_uid == 0 || there.st_uid == rustix::process::geteuid().as_raw()
    }

    impl Directory {
        pub(super) fn open_file(&self, name: &str) -> io::Result<File> {
            let flags = OFlags::RDONLY
                | OFlags::NOFOLLOW
                | OFlags::CLOEXEC
                // Opening a pipe would wait.
                | OFlags::NONBLOCK;
            let file = rustix::fs::openat(&self.handle, name, flags, Mode::empty())?;
            let there = rustix::fs::fstat(&file)?;
            let is_file = FileType::from_raw_mode(there.st_mode) == FileType::RegularFile;
            if !is_file || !is_ours(&there) || permissions(&there) & 0o022 != 0 {
                return Err(io::Error::new(
                    io::ErrorKind::PermissionDenied,
                    "other users can have written it",
                ));
            }
            Ok(file.into())
        }

        pub(super) fn create_file(&self, name: &str) -> io::Result<File> {
            let flags =
                OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mode = Mode::RUSR | Mode::WUSR;
            Ok(rustix::fs::openat(&self.handle, name, flags, mode)?.into())
        }

        pub(super) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
            rustix::fs::renameat(&self.handle, from, &self.handle, to)?;
            // The name is durable when its directory is.
            Ok(rustix::fs::fsync(&self.handle)?)
        }

        pub fn remove(&self, name: &str) -> io::Result<()> {
            Ok(rustix::fs::unlinkat(&self.handle, name, AtFlags::empty())?)
        }

        pub fn entries(&self) -> Vec<Entry> {
            let Ok(names) = Dir::read_from(&self.handle) else {
                return Vec::new();
            };
            let entries = names.filter_map(|name| {
                let name = name.ok()?;
                let name = name.file_name().to_str().ok()?;
                let there =
                    rustix::fs::statat(&self.handle, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
                let seconds = u64::try_from(there.st_mtime).unwrap_or_default();
                (FileType::from_raw_mode(there.st_mode) == FileType::RegularFile).then(|| Entry {
                    name: name.to_owned(),
                    bytes: u64::try_from(there.st_size).unwrap_or_default(),
                    modified: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
                })
            });
            entries.collect()
        }
    }
}

/// Where the system has no handles of directories, by path.
#[cfg(not(unix))]
impl Directory {
    fn open_file(&self, name: &str) -> io::Result<File> {
        File::open(self.path_of(name))
    }

    fn create_file(&self, name: &str) -> io::Result<File> {
        File::create_new(self.path_of(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path_of(from), self.path_of(to))
    }

    pub fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path_of(name))
    }

    pub fn entries(&self) -> Vec<Entry> {
        let entries = std::fs::read_dir(&self.path).into_iter().flatten();
        let entries = entries.filter_map(|entry| {
            let entry = entry.ok()?;
            let there = entry.metadata().ok()?;
            Some(Entry {
                name: entry.file_name().into_string().ok()?,
                bytes: there.len(),
                modified: there
                    .modified()
                    .unwrap_or(SystemTime::UNIX_EPOCH + Duration::ZERO),
            })
        });
        entries.collect()
    }
}
