//! Which RabbitMQ a node runs: the one that this machine has, or one of version 4 beside it, which
//! `tests/rabbitmq-4` has unpacked into the target directory.
//!
//! The latter runs in the small file system that it was unpacked to, with a mount table of its own: there it
//! sees this machine's devices and processes, its node's directory, and nothing else. When it ends nothing is left of that.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use super::super::launch::compose_wanted;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    Installed,
    Four,
}

/// How the programs of a release are run.
pub struct Programs {
    /// Where the release is unpacked; `None` for the one that is installed.
    root: Option<PathBuf>,
}

/// Where a release that is unpacked sees the directory of its node.
const INSIDE: &str = "/mnt";

/// Its arguments: the root, the directory of the node, and a program with its own.
const ENTER: &str = "\
set -e
root=$1 dir=$2
shift 2
mount --rbind /dev \"$root/dev\"
mount --rbind /proc \"$root/proc\"
mount --bind \"$dir\" \"$root/mnt\"
# Said again: who becomes another user, even in name only, loses it.
exec setpriv --pdeathsig KILL chroot \"$root\" \"$@\"
";

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Release::Installed => "rabbitmq",
            Release::Four => "rabbitmq_4",
        })
    }
}

impl Release {
    pub const ALL: [Release; 2] = [Release::Installed, Release::Four];

    /// `Err` says why the tests on this release have to be skipped.
    pub fn is_there(self) -> Result<(), String> {
        if self == Release::Installed || compose_wanted() || unpacked().join("version").is_file() {
            return Ok(());
        }
        Err("there is no RabbitMQ 4; tests/run brings it where tests/rabbitmq-4 can".into())
    }

    pub fn image(self) -> &'static str {
        match self {
            Release::Installed => "rabbitmq:3-management",
            Release::Four => "rabbitmq:4-management",
        }
    }
}

/// Where `tests/run` lets it be unpacked: beside what cargo builds.
fn unpacked() -> PathBuf {
    let binary = Path::new(env!("CARGO_BIN_EXE_hapax"));
    let target = binary.parent().and_then(Path::parent);
    target.unwrap_or(binary).join("rabbitmq-4")
}

impl Programs {
    pub fn of(release: Release) -> anyhow::Result<Programs> {
        let root = match release {
            Release::Installed => None,
            Release::Four => {
                release.is_there().map_err(anyhow::Error::msg)?;
                Some(unpacked().join("root"))
            }
        };
        Ok(Programs { root })
    }

    /// The directory of a node, as its programs see it.
    pub fn inside(&self, dir: &Path) -> PathBuf {
        match self.root {
            Some(_) => PathBuf::from(INSIDE),
            None => dir.to_owned(),
        }
    }

    pub fn port_mapper(&self, dir: &Path) -> Command {
        self.command(Path::new("epmd"), dir)
    }

    /// The server's own start script. The one that Debian puts into the path changes the user.
    pub fn server(&self) -> anyhow::Result<PathBuf> {
        let debian = PathBuf::from("/usr/lib/rabbitmq/bin/rabbitmq-server");
        if self.root.is_some() || debian.exists() {
            return Ok(debian);
        }
        let Some(path) = std::env::var_os("PATH") else {
            bail!("PATH is not set");
        };
        std::env::split_paths(&path)
            .map(|dir| dir.join("rabbitmq-server"))
            .find(|program| program.exists())
            .context("RabbitMQ is not installed: run tests/run, which installs it or says how")
    }

    /// A program of the release, for the node in `dir`.
    pub fn command(&self, program: &Path, dir: &Path) -> Command {
        let Some(root) = &self.root else {
            let mut command = Command::new(program);
            command.current_dir(dir).env("HOME", dir);
            return command;
        };
        let mut command = Command::new("unshare");
        if !rustix::process::geteuid().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        command
            .args(["--mount", "--propagation", "private"])
            .args(["sh", "-c", ENTER, "enter"])
            .args([root, dir])
            .arg(program)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", INSIDE)
            .env("TMPDIR", INSIDE);
        command
    }
}
