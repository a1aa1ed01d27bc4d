//! A socket in the file system, for the host's own user and root.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;
pub(super) use tokio::net::UnixStream;

pub(super) struct SocketFile {
    listener: UnixListener,
    path: PathBuf,
    /// Which file it is.
    inode: (u64, u64),
    /// Kept while the socket is there: only its holder replaces or removes the file. The lock's own file stays.
    _lock: File,
}

impl SocketFile {
    /// Makes the socket, in place of one on which nobody listens any more.
    pub(super) fn bind(path: &Path) -> io::Result<Self> {
        let lock = lock(path)?;
        remove_stale(path)?;
        let listener = UnixListener::bind(path)?;
        // Whoever has connected before is asked for the user all the same.
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        let there = fs::symlink_metadata(path)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            inode: (there.dev(), there.ino()),
            _lock: lock,
        })
    }

    /// The next connection of the host's own user or root; others are closed.
    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.listener.accept().await?;
        let peer = stream.peer_cred()?.uid();
        if peer != 0 && peer != rustix::process::geteuid().as_raw() {
            let reason = format!("the user {peer} may not connect");
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
        }
        Ok(stream)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|there| (there.dev(), there.ino()) == self.inode);
        if is_ours {
            // The next start removes what is left.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Keeps other hosts from the path for as long as the file is open.
fn lock(path: &Path) -> io::Result<File> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let nofollow = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(nofollow)
        .open(name)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another host listens there",
        )),
        Err(fs::TryLockError::Error(error)) => Err(error),
    }
}

/// Removes a socket on which nobody listens, and nothing else.
fn remove_stale(path: &Path) -> io::Result<()> {
    let in_use = |reason: &str| Err(io::Error::new(io::ErrorKind::AddrInUse, reason));
    match fs::symlink_metadata(path) {
        Ok(there) if there.file_type().is_socket() => {}
        Ok(_) => return in_use("something that is no socket is in its place"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Ok(_) => in_use("another program listens there"),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_the_own_one_removed() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("admin.sock");
        // A listener of the standard library leaves its file behind, as a killed host does.
        drop(std::os::unix::net::UnixListener::bind(&path).expect("a socket"));
        assert!(path.exists());
        let socket = SocketFile::bind(&path).expect("the place of the stale one");
        let mode = fs::symlink_metadata(&path).expect("a socket").mode();
        assert_eq!(mode & 0o777, 0o600);
        let again = SocketFile::bind(&path).err().expect("it is taken");
        assert!(again.to_string().contains("another host"), "{again}");
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn nothing_else_is_replaced() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("precious");
        fs::write(&file, "data").expect("a file");
        let error = SocketFile::bind(&file).err().expect("a file is there");
        assert!(error.to_string().contains("no socket"), "{error}");
        assert_eq!(fs::read(&file).expect("it is left"), b"data");
        // Another program's, which knows nothing of the lock.
        let other = directory.path().join("other.sock");
        let _listener = std::os::unix::net::UnixListener::bind(&other).expect("a socket");
        let error = SocketFile::bind(&other).err().expect("it is in use");
        assert!(error.to_string().contains("another program"), "{error}");
        assert!(other.exists());
    }
}
