//! Where the database is, and whether it is still there.
//!
//! A file that is moved, replaced or deleted stays open: SQLite goes on in it and says nothing, and what it commits is
//! in a file that nobody has any more. So the path is compared with what was opened, after each COMMIT and before
//! anybody hears of it, and before each use. Its write-ahead log and the index of that are part of it.

use std::io;
use std::path::{Path, PathBuf};

use crate::store::StoreError;

/// The device and the number of a file on it.
type Identity = (u64, u64);

pub(super) struct DatabaseFile {
    path: PathBuf,
    own: Identity,
    /// What belongs to the present connection.
    beside: Vec<(PathBuf, Identity)>,
}

impl DatabaseFile {
    /// The file as it is now: this and no other is the store's from now on.
    pub fn at(path: PathBuf) -> Result<Self, StoreError> {
        let own = identity(&path).map_err(|error| {
            StoreError::Unusable(format!("cannot look at {}: {error}", path.display()))
        })?;
        Ok(Self {
            path,
            own,
            beside: Vec::new(),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Notes what a new connection has beside the file. Only the write-ahead log has files of its own.
    pub fn note_log(&mut self) {
        let beside = ["-wal", "-shm"].map(|end| {
            let mut name = self.path.clone().into_os_string();
            name.push(end);
            PathBuf::from(name)
        });
        let there = beside
            .into_iter()
            .filter_map(|path| identity(&path).ok().map(|identity| (path, identity)));
        self.beside = there.collect();
    }

    /// Whether all of it is where it was opened.
    pub fn check(&self) -> Result<(), StoreError> {
        let own = std::iter::once((self.path.as_path(), self.own));
        let beside = self.beside.iter().map(|(path, id)| (path.as_path(), *id));
        for (path, opened) in own.chain(beside) {
            match identity(path) {
                Ok(found) if found == opened => {}
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    let text = format!("cannot look at {}: {error}", path.display());
                    return Err(StoreError::Unavailable(text));
                }
                _ => {
                    return Err(StoreError::Unusable(format!(
                        "{} was moved, replaced or deleted while this host used it: what is committed now is in no \
                         file that anybody has, and nothing is acknowledged any more; stop the host, put the \
                         database back where it was, with its -wal, and start the host again",
                        path.display()
                    )));
                }
            }
        }
        Ok(())
    }
}

#[cfg(unix)]
fn identity(path: &Path) -> io::Result<Identity> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Files have no numbers here, and cannot be moved while they are open.
#[cfg(not(unix))]
fn identity(path: &Path) -> io::Result<Identity> {
    std::fs::metadata(path).map(|_| (0, 0))
}
