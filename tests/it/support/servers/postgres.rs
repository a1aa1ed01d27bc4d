//! A private PostgreSQL: its own data directory and port, only on the loopback address.
//!
//! It flushes to disk as a production server does, because half of the tests are about what
//! survives. It is reached as the superuser `hapax` without a password.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::Signal;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::launch::{Launch, compose_wanted};
use crate::support::{place, ports};

/// A first start, or a recovery after a kill, on a machine that does other things too.
const START_PATIENCE: Duration = Duration::from_secs(90);

const SETTINGS: [&str; 4] = [
    "max_connections=200",
    "shared_buffers=128MB",
    "log_lock_waits=on",
    "log_min_duration_statement=2s",
];

/// A container has an address and a file system of its own, a process has not.
const PROCESS_SETTINGS: [&str; 2] = ["listen_addresses=127.0.0.1", "unix_socket_directories="];

pub struct Postgres {
    port: u16,
    launch: Launch,
    databases: AtomicU32,
}

impl Postgres {
    /// Starts a server and waits until a login works.
    pub async fn start(name: &str) -> anyhow::Result<Postgres> {
        let dir = place::directory(name)?;
        let port = ports::free();
        let launch = if compose_wanted() {
            Launch::compose(&dir, "postgres", &service(port))?
        } else {
            native(&dir, port)?
        };
        let server = Postgres {
            port,
            launch,
            databases: AtomicU32::new(0),
        };
        server.start_again().await?;
        Ok(server)
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    pub fn url(&self, database: &str) -> String {
        format!("postgres://hapax@{}/{database}", self.address())
    }

    /// A new, empty database; returns its name.
    pub async fn create_database(&self) -> anyhow::Result<String> {
        let number = self.databases.fetch_add(1, Ordering::Relaxed);
        let name = format!("shop{number}");
        let mut connection = self.login().await?;
        sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {name}")))
            .execute(&mut connection)
            .await?;
        connection.close().await?;
        Ok(name)
    }

    /// An orderly, fast shutdown: clients are thrown out, what they had open is rolled back.
    pub fn stop(&self) -> anyhow::Result<()> {
        self.launch.stop()
    }

    /// SIGKILL for the postmaster: nothing is flushed, the next start recovers from the log.
    pub fn kill9(&self) -> anyhow::Result<()> {
        self.launch.kill9()
    }

    /// Starts a stopped or killed server on the same port and waits until a login works.
    pub async fn start_again(&self) -> anyhow::Result<()> {
        let started = Instant::now();
        self.launch.start()?;
        loop {
            let error = match self.login().await {
                Ok(connection) => return Ok(connection.close().await?),
                Err(error) => error,
            };
            if started.elapsed() > START_PATIENCE {
                let log = self.launch.log_tail();
                return Err(error.context(format!("PostgreSQL does not start{log}")));
            }
            // After a kill the old backends hold the shared memory for a moment.
            if self.launch.has_ended() {
                self.launch.start()?;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub fn log_tail(&self) -> String {
        self.launch.log_tail()
    }

    pub fn discard(&self) {
        self.launch.discard();
    }

    async fn login(&self) -> anyhow::Result<PgConnection> {
        let url = self.url("postgres");
        let login = PgConnection::connect(&url);
        Ok(tokio::time::timeout(Duration::from_secs(5), login).await??)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.discard();
    }
}

fn native(dir: &Path, port: u16) -> anyhow::Result<Launch> {
    let programs = programs()?;
    let user = server_user()?;
    let data = dir.join("data");
    std::fs::create_dir_all(&data)?;
    if let Some((uid, gid)) = user {
        std::os::unix::fs::chown(&data, Some(uid), Some(gid))?;
    }

    let as_user = move |program: PathBuf| {
        let mut command = Command::new(program);
        if let Some((uid, gid)) = user {
            command.uid(uid).gid(gid);
        }
        command.current_dir("/");
        command
    };

    let output = as_user(programs.join("initdb"))
        .arg("--pgdata")
        .arg(&data)
        .args(["--username=hapax", "--auth=trust", "--encoding=UTF8"])
        .args(["--locale=C", "--no-sync", "--no-instructions"])
        .output()
        .context("cannot run initdb")?;
    if !output.status.success() {
        bail!("initdb: {}", String::from_utf8_lossy(&output.stderr));
    }

    let log = dir.join("postgres.log");
    Ok(Launch::process(log, Signal::INT, move || {
        let mut command = as_user(programs.join("postgres"));
        command.arg("-D").arg(&data).arg("-p").arg(port.to_string());
        for setting in SETTINGS.iter().chain(&PROCESS_SETTINGS) {
            command.arg("-c").arg(setting);
        }
        command
    }))
}

/// The newest installed server, which Debian keeps out of the path, or the one in the path.
fn programs() -> anyhow::Result<PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let version = path.file_name()?.to_str()?.parse().ok()?;
            Some((version, path.join("bin")))
        })
        .filter(|(_, programs)| programs.join("initdb").exists())
        .collect();
    versions.sort();
    let in_path = || {
        std::env::split_paths(&std::env::var_os("PATH")?).find(|dir| dir.join("initdb").exists())
    };
    versions
        .pop()
        .map(|(_, programs)| programs)
        .or_else(in_path)
        .context("PostgreSQL is not installed: run tests/run, which installs it or says how")
}

/// PostgreSQL refuses to run as root. The package makes a user for it.
fn server_user() -> anyhow::Result<Option<(u32, u32)>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let users = std::fs::read_to_string("/etc/passwd")?;
    let entry = users.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let (&name, uid, gid) = (fields.first()?, fields.get(2)?, fields.get(3)?);
        (name == "postgres").then_some((uid.parse().ok()?, gid.parse().ok()?))
    });
    entry
        .map(Some)
        .context("PostgreSQL refuses to run as root, and there is no user named postgres")
}

fn service(port: u16) -> String {
    let mut lines = format!(
        "    image: postgres:15\n    \
             ports: [\"127.0.0.1:{port}:5432\"]\n    \
             environment:\n      \
               POSTGRES_USER: hapax\n      \
               POSTGRES_HOST_AUTH_METHOD: trust\n    \
             command:\n      - postgres\n"
    );
    for setting in SETTINGS {
        lines.push_str(&format!("      - -c\n      - \"{setting}\"\n"));
    }
    lines
}
