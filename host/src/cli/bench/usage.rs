//! What processes use: CPU time and memory, as Linux shows them. Where it does not, there are no figures.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::net::ToSocketAddrs;
use std::time::Duration;

use url::Url;

/// CPU time of one process, its threads included.
pub fn cpu(pid: u32) -> Option<Duration> {
    Some(Stat::read(pid)?.own)
}

/// The most memory that a process had in RAM at once, in bytes.
pub fn peak_rss(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// A server on this machine: the process that listens on a port, with all its children.
#[derive(Clone, Copy, Debug)]
pub struct Server {
    pid: u32,
}

impl Server {
    /// Finds the server behind a URL. `None` when it is elsewhere, or when this user may not see it.
    pub fn behind(url: &str, default_port: u16) -> Option<Self> {
        let url = Url::parse(url).ok()?;
        let address = (url.host_str()?, url.port().unwrap_or(default_port));
        let local = address
            .to_socket_addrs()
            .ok()?
            .any(|address| address.ip().is_loopback());
        if !local {
            return None;
        }
        let sockets = listening(address.1);
        let pid = processes().find(|pid| holds(*pid, &sockets))?;
        Some(Self { pid })
    }

    /// CPU time of the whole tree. A child that has ended counts for its parent.
    pub fn cpu(self) -> Option<Duration> {
        let stats = processes()
            .filter_map(|pid| Some((pid, Stat::read(pid)?)))
            .collect::<HashMap<_, _>>();
        let root = stats.get(&self.pid)?;
        let mut total = root.own + root.children;
        let mut family = HashSet::from([self.pid]);
        loop {
            let found = stats
                .iter()
                .filter(|(pid, stat)| family.contains(&stat.parent) && !family.contains(pid))
                .map(|(pid, stat)| (*pid, stat.own + stat.children))
                .collect::<Vec<_>>();
            if found.is_empty() {
                return Some(total);
            }
            for (pid, used) in found {
                family.insert(pid);
                total += used;
            }
        }
    }
}

/// What `/proc/PID/stat` says.
struct Stat {
    parent: u32,
    own: Duration,
    /// Of children that have ended.
    children: Duration,
}

impl Stat {
    fn read(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The name in parentheses may hold anything: the fields begin behind the last one that closes.
    fn parse(text: &str) -> Option<Self> {
        let (_, fields) = text.rsplit_once(") ")?;
        let fields = fields.split_ascii_whitespace().collect::<Vec<_>>();
        // Field 3 of proc(5) is the first here.
        let field = |number: usize| fields.get(number - 3);
        let seconds = |first: usize, second: usize| {
            let ticks: u64 =
                field(first)?.parse::<u64>().ok()? + field(second)?.parse::<u64>().ok()?;
            let hertz = rustix::param::clock_ticks_per_second();
            Some(Duration::from_secs_f64(ticks as f64 / hertz as f64))
        };
        Some(Self {
            parent: field(4)?.parse().ok()?,
            own: seconds(14, 15)?,
            children: seconds(16, 17)?,
        })
    }
}

fn processes() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// The inodes of the sockets that listen on a port.
fn listening(port: u16) -> HashSet<String> {
    const LISTEN: &str = "0A";
    let mut inodes = HashSet::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let Ok(text) = fs::read_to_string(table) else {
            continue;
        };
        for line in text.lines().skip(1) {
            let fields = line.split_ascii_whitespace().collect::<Vec<_>>();
            let (Some(local), Some(state), Some(inode)) =
                (fields.get(1), fields.get(3), fields.get(9))
            else {
                continue;
            };
            let same = local
                .rsplit_once(':')
                .and_then(|(_, hex)| u16::from_str_radix(hex, 16).ok())
                == Some(port);
            if same && *state == LISTEN {
                inodes.insert(format!("socket:[{inode}]"));
            }
        }
    }
    inodes
}

fn holds(pid: u32, sockets: &HashSet<String>) -> bool {
    let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    files.flatten().any(|file| {
        fs::read_link(file.path())
            .is_ok_and(|target| target.to_str().is_some_and(|name| sockets.contains(name)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_may_have_any_name() {
        let stat = Stat::parse(
            "7 (a) b) S 1 7 7 0 -1 0 0 0 0 0 100 200 10 20 20 0 1 0 1 1 1 18446744073709551615",
        )
        .expect("it is a line of proc(5)");
        assert_eq!(stat.parent, 1);
        assert_eq!(
            stat.own.as_secs_f64(),
            2.0 * stat.children.as_secs_f64() * 5.0
        );
        assert!(Stat::parse("7 (a").is_none());
    }

    #[test]
    fn only_a_server_of_this_machine_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port();
        let url = format!("amqp://user:secret@127.0.0.1:{port}/%2f");
        if cfg!(target_os = "linux") {
            let server = Server::behind(&url, 1).expect("this process listens there");
            assert_eq!(server.pid, std::process::id());
            let before = cpu(server.pid);
            assert!(server.cpu() >= before);
        }
        drop(listener);
        assert!(Server::behind(&url, 1).is_none());
        assert!(Server::behind("postgres://192.0.2.1/shop", 5432).is_none());
    }
}
