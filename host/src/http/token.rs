//! The token of the admin API, where the configuration names none: a file that only the host's user can read.
//!
//! The host makes it at its first start on an address, whole or not at all, and keeps it from then on. It is
//! refused when others can read or change it, when it belongs to somebody else, and when it is a link: then it
//! would tell nothing about who shows it. The command line looks for it where the host may have made it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::config::Secret;

/// Where systemd keeps the state of the unit in OPERATING.md. Its `STATE_DIRECTORY` is set for the host alone.
const SERVICE_STATE: &str = "/var/lib/hapax";

const TOKEN_BYTES: usize = 32;

/// What a token has at least, so that nobody guesses it.
const MIN_LETTERS: usize = 32;

/// More than this is no token.
const MAX_FILE_BYTES: u64 = 4096;

/// Why there is no token to use.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error(
        "there is no directory for its token: none of STATE_DIRECTORY, XDG_STATE_HOME and HOME is set; set one of \
         them, or `admin.token`, or `admin.listen` to `unix:PATH`"
    )]
    NoPlace,
    #[error(
        "its token cannot be kept in {}: {problem}; set STATE_DIRECTORY to a directory that this user can write to, \
         or `admin.token`, or `admin.listen` to `unix:PATH`",
        .directory.display()
    )]
    Directory { directory: PathBuf, problem: String },
    #[error("the token in {} is not used: {problem}", .path.display())]
    File { path: PathBuf, problem: String },
    #[error(
        "the token in {} can be read by {owner} only; run this as that user, or with sudo",
        .path.display()
    )]
    NotYours { path: PathBuf, owner: String },
    #[error(
        "there is no token for {address}: looked for {}. The host makes it at its start, in the state directory of \
         the user that it runs as: run this as that user, or set STATE_DIRECTORY to the host's own, or `admin.token`",
        listed(.looked)
    )]
    Missing {
        address: SocketAddr,
        looked: Vec<PathBuf>,
    },
}

fn listed(paths: &[PathBuf]) -> String {
    let paths: Vec<_> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    paths.join(", ")
}

/// The file's name: hosts of one user that listen on several addresses have several tokens.
fn file_name(address: SocketAddr) -> String {
    let address = address.to_string().replace(['[', ']'], "");
    format!("admin-{}.token", address.replace(':', "-"))
}

/// The token of the host that listens on `address`, made if it is not there. It is kept in the first of `places`.
pub(super) fn keep(places: &[PathBuf], address: SocketAddr) -> Result<Secret, TokenError> {
    let directory = places.first().ok_or(TokenError::NoPlace)?;
    let refused = |problem: String| TokenError::Directory {
        directory: directory.clone(),
        problem,
    };
    make_private(directory).map_err(|error| refused(error.to_string()))?;
    let path = directory.join(file_name(address));
    if let Some(token) = own(&path)? {
        return Ok(token);
    }
    create(directory, &path).map_err(|error| refused(error.to_string()))?;
    // Another host of this user may have been first: its token is everybody's.
    own(&path)?.ok_or_else(|| refused("the file is gone again".to_owned()))
}

/// The token of a host on `address`, for who may read it.
pub fn find(places: &[PathBuf], address: SocketAddr) -> Result<(Secret, PathBuf), TokenError> {
    let looked = candidates(places, address);
    for path in &looked {
        match open(path) {
            Ok(file) => return Ok((read(file, path)?, path.clone())),
            Err(error) if is_absent(&error) => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(TokenError::NotYours {
                    path: path.clone(),
                    owner: owner(path),
                });
            }
            Err(error) => return Err(unreadable(path, &error)),
        }
    }
    Err(TokenError::Missing { address, looked })
}

/// Where the token of a host on `address` is, or will be. `None` where it has no place.
pub fn place(places: &[PathBuf], address: SocketAddr) -> Option<PathBuf> {
    let candidates = candidates(places, address);
    let there = candidates
        .iter()
        .find(|path| fs::symlink_metadata(path).is_ok());
    let first = (!places.is_empty()).then(|| candidates.first()).flatten();
    there.or(first).cloned()
}

fn candidates(places: &[PathBuf], address: SocketAddr) -> Vec<PathBuf> {
    let service = PathBuf::from(SERVICE_STATE);
    let mut directories: Vec<&PathBuf> = places.iter().chain([&service]).collect();
    directories.dedup();
    let name = file_name(address);
    directories
        .into_iter()
        .map(|directory| directory.join(&name))
        .collect()
}

/// The token of a file that is the host's own and nobody else's. `None` when there is no file.
fn own(path: &Path) -> Result<Option<Secret>, TokenError> {
    let file = match open(path) {
        Ok(file) => file,
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(unreadable(path, &error)),
    };
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let there = file.metadata().map_err(|error| unreadable(path, &error))?;
        let refused = |problem: String| TokenError::File {
            path: path.to_owned(),
            problem: format!("{problem}; remove it, and the next start makes another one"),
        };
        if there.uid() != rustix::process::geteuid().as_raw() {
            let owner = user(there.uid());
            return Err(refused(format!("it belongs to {owner}")));
        }
        if there.mode() & 0o077 != 0 {
            let mode = there.mode() & 0o777;
            return Err(refused(format!(
                "others can read or change it (mode {mode:04o})"
            )));
        }
    }
    read(file, path).map(Some)
}

/// Opens a file, and never what a link leads to.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        // A pipe must not hold anybody up.
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        options.custom_flags(flags.bits().cast_signed());
    }
    options.open(path)
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

fn unreadable(path: &Path, error: &io::Error) -> TokenError {
    let problem = if is_link(error) {
        "it is a link".to_owned()
    } else {
        error.to_string()
    };
    TokenError::File {
        path: path.to_owned(),
        problem,
    }
}

#[cfg(unix)]
fn is_link(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

#[cfg(not(unix))]
fn is_link(_: &io::Error) -> bool {
    false
}

fn read(file: File, path: &Path) -> Result<Secret, TokenError> {
    let is_file = file.metadata().is_ok_and(|there| there.is_file());
    let mut text = String::new();
    let is_read = is_file
        && file
            .take(MAX_FILE_BYTES)
            .read_to_string(&mut text)
            .map_err(|error| unreadable(path, &error))?
            > 0;
    let token = text.trim_end();
    if !is_read
        || token.len() < MIN_LETTERS
        || !token.bytes().all(|byte| byte.is_ascii_alphanumeric())
    {
        return Err(TokenError::File {
            path: path.to_owned(),
            problem: format!(
                "it does not hold {MIN_LETTERS} letters and digits or more; remove it, and start the host again"
            ),
        });
    }
    Ok(Secret::token(token))
}

/// Makes the file, with all that it holds, unless it is there.
fn create(directory: &Path, path: &Path) -> io::Result<()> {
    let mut token = [0; TOKEN_BYTES];
    getrandom::fill(&mut token).map_err(io::Error::other)?;
    let mut name = [0; 8];
    getrandom::fill(&mut name).map_err(io::Error::other)?;
    let new = directory.join(format!(".new-{}", hex::encode(name)));
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    let made = options.open(&new).and_then(|mut file| {
        writeln!(file, "{}", hex::encode(token))?;
        file.sync_all()?;
        match fs::hard_link(&new, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            // Not every file system has such links. No other host is there to be overtaken: this one has the address.
            Err(_) if fs::symlink_metadata(path).is_err() => fs::rename(&new, path),
            linked => linked,
        }
    });
    // A name that is left over is in nobody's way.
    let _ = fs::remove_file(&new);
    made
}

/// Makes a directory that nobody else can look into, or insists that nobody else can write to it.
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
        if there.mode() & 0o022 != 0 {
            return Err(io::Error::other(
                "other users can write to it (`chmod go-w` mends that)",
            ));
        }
        let own = rustix::process::geteuid().as_raw();
        if there.uid() != own && there.uid() != 0 {
            let owner = user(there.uid());
            return Err(io::Error::other(format!("it belongs to {owner}")));
        }
    }
    Ok(())
}

/// Whose the file is, as far as that can be seen: its directory may keep others out.
#[cfg(unix)]
fn owner(path: &Path) -> String {
    use std::os::unix::fs::MetadataExt;
    path.ancestors()
        .find_map(|path| fs::symlink_metadata(path).ok())
        .map_or_else(|| "another user".to_owned(), |there| user(there.uid()))
}

#[cfg(not(unix))]
fn owner(_: &Path) -> String {
    "another user".to_owned()
}

/// The name of a user, or the number where it has none.
#[cfg(unix)]
pub fn user(id: u32) -> String {
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let named = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let number = fields.nth(1)?;
        (number.parse() == Ok(id)).then(|| name.to_owned())
    });
    named.unwrap_or_else(|| format!("the user {id}"))
}

#[cfg(all(test, unix))]
mod tests;
