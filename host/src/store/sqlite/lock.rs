//! One process at a time on one file, by the file's real location.
//!
//! The lock is on a file of its own: a lock on the database would be SQLite's to drop. The operating
//! system frees it when the process ends, however it ends; the number in the file is for people.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use crate::store::StoreError;

/// Held for as long as it lives.
pub(super) struct ProcessLock {
    _file: File,
}

impl ProcessLock {
    /// Makes the database file when it is not there, and locks it. Returns its real path.
    pub fn take(path: &Path) -> Result<(Self, PathBuf), StoreError> {
        let failed = |what: &str, error: std::io::Error| {
            StoreError::Unusable(format!("{what} {}: {error}", path.display()))
        };
        // Never opened when it is there: closing it again would drop the locks of a connection that
        // this process has on it.
        if !path
            .try_exists()
            .map_err(|error| failed("cannot look at", error))?
        {
            OpenOptions::new()
                .append(true)
                .create(true)
                .open(path)
                .map_err(|error| failed("cannot create", error))?;
        }
        let real_path = path
            .canonicalize()
            .map_err(|error| failed("cannot find", error))?;
        let mut name = real_path.clone().into_os_string();
        name.push(".lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(PathBuf::from(name))
            .map_err(|error| failed("cannot open the lock of", error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let pid = match file.read_to_string(&mut holder) {
                    Ok(_) if !holder.trim().is_empty() => format!(" (pid {})", holder.trim()),
                    _ => String::new(),
                };
                return Err(StoreError::Unusable(format!(
                    "another hapax process{pid} uses {}",
                    real_path.display()
                )));
            }
            Err(TryLockError::Error(error)) => return Err(failed("cannot lock", error)),
        }
        let written = file
            .set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        written.map_err(|error| failed("cannot write the lock of", error))?;
        Ok((Self { _file: file }, real_path))
    }
}
