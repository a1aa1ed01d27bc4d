//! The daemon's own listeners: what a neighbour on the machine, or whoever reaches the health address, can do.

use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::process::{Resource, Rlimit, geteuid, getrlimit, setrlimit};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::Checked;
use crate::support::host::{self, Config, Ended, Host, cli_as_nobody};
use crate::support::place::Place;
use crate::support::ports;
use crate::support::scene::{Scene, ordinary};
use crate::support::store::Fates;
use crate::support::wait;

/// Connections that are opened and never say what they want. `HAPAX_TEST_CONNECTIONS` sets another number, and has
/// the lanes' rates with and without them printed.
const CONNECTIONS: usize = 1_500;
const CONNECTIONS_VARIABLE: &str = "HAPAX_TEST_CONNECTIONS";

/// What the rates are taken of: turns without and with the flood, and messages in each.
const TURNS: usize = 5;
const MESSAGES_OF_A_TURN: u64 = 8_000;

/// How long an attacker rests before it opens a connection in place of one that was closed: 5,000 of them are some
/// 3,000 new connections a second.
const REST: Duration = Duration::from_secs(1);
/// The same for the rates, where what opening connections costs the attackers' own processor should be little: 5,000
/// of them are 500 new connections a second.
const LONG_REST: Duration = Duration::from_secs(10);

const MESSAGES: usize = 300;

/// Strangers open more connections than the host may have files, at both addresses, and leave their requests
/// unfinished. Probes are answered, the lanes get their connections to the database, all messages are handled.
pub async fn that_are_flooded_hold_up_no_message_and_no_probe(place: &Place) -> Checked {
    let scene = Scene::postgres(place).await?;
    let config = scene.config("host", scene.probe()?.set("lanes", "4"));
    let mut host = Host::launch_limited(place, &config, "-n 1024")?;
    host.until_ready().await?;
    let admin = config.admin.parse::<SocketAddr>()?;
    let addresses = [config.health, config.health, admin];
    let flood = Flood::start(&addresses, REST).await?;
    for part in 0..10 {
        let orders = (0..MESSAGES / 10).map(|n| ordinary(&format!("o-{part}-{n}")));
        scene.publish(&orders.collect::<Vec<_>>()).await?;
        host.until_ready().await?;
        let open = host.open_files()?;
        ensure!(open < 512, "the host has {open} files open");
    }
    host.until_metric("hapax_committed_total", MESSAGES as u64)
        .await?;
    ensure!(flood.is_on(), "the flood has ended before the messages");
    host.until_ready().await?;
    wait::until("an operator to get in", wait::PATIENCE, async || {
        let listed = host.cli(&["plugins", "list", "--json"]).await?;
        Ok((listed.code == Some(0)).then_some(()))
    })
    .await?;
    drop(flood);
    let mut committed = MESSAGES as i64;
    if std::env::var_os(CONNECTIONS_VARIABLE).is_some() {
        committed += tell_rates(&scene, &host, &addresses).await?;
    }
    ensure!(host.said("Too many open files")? == 0, "files ran out");
    scene.finish(host).await?;
    scene
        .assert_fates(Fates {
            committed,
            ..Fates::default()
        })
        .await
}

/// Prints how many messages a second the lanes handle without a flood and in one, turn by turn. Returns how many
/// messages that took.
async fn tell_rates(scene: &Scene, host: &Host, addresses: &[SocketAddr]) -> anyhow::Result<i64> {
    let mut number = 0;
    for turn in 0..TURNS {
        for rest in [None, Some(LONG_REST), Some(REST)] {
            let flood = match rest {
                Some(rest) => Some(Flood::start(addresses, rest).await?),
                None => None,
            };
            host.cli(&["consumers", "pause", "probe", "--why", "a turn"])
                .await?;
            host.until_metric("hapax_consumer_paused", 1).await?;
            let orders = (0..MESSAGES_OF_A_TURN).map(|n| ordinary(&format!("{number}-{n}")));
            scene.publish(&orders.collect::<Vec<_>>()).await?;
            let before = host.metric("hapax_committed_total").await?;
            host.cli(&["consumers", "resume", "probe"]).await?;
            // The first one ends what comes before: the host takes note of the end of its pause, and subscribes.
            host.until_metric("hapax_committed_total", before + 1)
                .await?;
            let (begun, first) = (Instant::now(), host.metric("hapax_committed_total").await?);
            let last = before + MESSAGES_OF_A_TURN;
            host.until_metric("hapax_committed_total", last).await?;
            let rate = (last - first) as f64 / begun.elapsed().as_secs_f64();
            let what = rest.map_or("no flood".to_owned(), |rest| format!("each rests {rest:?}"));
            println!("turn {turn}, {what}: {rate:.0} messages a second");
            drop(flood);
            number += 1;
        }
    }
    Ok(number * MESSAGES_OF_A_TURN as i64)
}

/// Connections with half a request, opened again when they are closed. Dropping it ends them.
struct Flood {
    attackers: JoinSet<()>,
}

impl Flood {
    /// Begins, and returns when each of them has had a connection.
    async fn start(addresses: &[SocketAddr], rest: Duration) -> anyhow::Result<Self> {
        // The tests' own process needs as many files.
        let hard = getrlimit(Resource::Nofile).maximum;
        let all = Rlimit {
            current: hard,
            maximum: hard,
        };
        setrlimit(Resource::Nofile, all)?;
        let number = match std::env::var(CONNECTIONS_VARIABLE) {
            Ok(number) => number
                .parse()
                .with_context(|| format!("{CONNECTIONS_VARIABLE} is no number"))?,
            Err(_) => CONNECTIONS,
        };
        let opened = Arc::new(AtomicUsize::new(0));
        let mut attackers = JoinSet::new();
        for (_, address) in (0..number).zip(addresses.iter().copied().cycle()) {
            attackers.spawn(attack(address, rest, Arc::clone(&opened)));
        }
        wait::until("all connections", wait::PATIENCE, async || {
            Ok((opened.load(Ordering::Relaxed) >= number).then_some(()))
        })
        .await?;
        Ok(Self { attackers })
    }

    fn is_on(&self) -> bool {
        !self.attackers.is_empty()
    }
}

/// Holds a connection for as long as it can, again and again. Counts itself when it has had the first.
async fn attack(address: SocketAddr, rest: Duration, opened: Arc<AtomicUsize>) {
    let mut is_counted = false;
    loop {
        if let Ok(mut stream) = TcpStream::connect(address).await {
            if !is_counted {
                opened.fetch_add(1, Ordering::Relaxed);
                is_counted = true;
            }
            let half = b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ";
            let _ = stream.write_all(half).await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
        tokio::time::sleep(rest).await;
    }
}

/// Another user of the machine replaces no plugin, and is told whose the daemon is; its own user goes on as before.
pub async fn let_in_nobody_without_the_token(place: &Place) -> Checked {
    let scene = Scene::sqlite(place).await?;
    let config = scene.config("host", scene.probe()?);
    let host = Host::start(place, &config).await?;
    let ours = host.cli(&["plugins", "list", "--json"]).await?.json()?;
    let path = PathBuf::from(ours[0]["path"].as_str().context("a plugin has a path")?);
    let before = std::fs::read(&path)?;

    let status = post_load(config.admin.parse()?).await?;
    ensure!(status == 401, "a stranger gets {status}");
    if geteuid().is_root() {
        let file = config.write(&place.dir)?;
        let plugin = path.to_str().context("a path of the tests")?;
        for command in [
            &["status"][..],
            &["plugins", "list"],
            &["plugins", "load", "probe", plugin],
            &["consumers", "pause", "probe", "--why", "I can"],
        ] {
            let ended = cli_as_nobody(place, &file, command).await?;
            ensure!(ended.code != Some(0), "{command:?}: {ended:?}");
        }
        let ended = cli_as_nobody(place, &file, &["plugins", "list"]).await?;
        ensure!(says(&ended, "can be read by root only"), "{ended:?}");
    }
    ensure!(std::fs::read(&path)? == before, "the plugin was replaced");
    ensure!(host.cli(&["status"]).await?.code == Some(0));
    let checked = host.cli(&["check"]).await?;
    let place_of_token = format!("admin-{}.token", config.admin.replace(':', "-"));
    ensure!(checked.stdout.contains(&place_of_token), "{checked:?}");
    host.stop().await
}

fn says(ended: &Ended, words: &str) -> bool {
    ended.stderr.contains(words)
}

/// The status of a request that would load a plugin, without a token.
async fn post_load(address: SocketAddr) -> anyhow::Result<u16> {
    let load = json!({"Plugins": {"Load": {"consumer": "probe", "component": "AAAA"}}});
    let body = json!({"store": "any", "request": load}).to_string();
    let request = format!(
        "POST /v1/operations HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    // The body is not read, so the connection may be reset after the answer.
    let _ = stream.read_to_string(&mut answer).await;
    let status = answer.split(' ').nth(1).context("an answer")?;
    Ok(status.parse()?)
}

/// A socket in the file system lets in the host's user, needs no token, survives a kill and is removed at the end.
pub async fn of_the_file_system_are_for_the_own_user(place: &Place) -> Checked {
    let scene = Scene::sqlite(place).await?;
    let config = scene
        .config("host", scene.probe()?)
        .with_admin("unix:admin.sock");
    let socket = place.dir.join("admin.sock");
    Host::start(place, &config).await?.sigkill()?;
    ensure!(socket.exists(), "a killed host leaves its socket behind");

    let host = Host::start(place, &config).await?;
    let there = std::fs::symlink_metadata(&socket)?;
    ensure!(
        there.file_type().is_socket() && there.mode() & 0o777 == 0o600,
        "{:o}",
        there.mode()
    );
    let status = host.cli(&["plugins", "list"]).await?;
    ensure!(status.code == Some(0), "{status:?}");
    if geteuid().is_root() {
        let file = config.write(&place.dir)?;
        let ended = cli_as_nobody(place, &file, &["plugins", "list"]).await?;
        ensure!(
            ended.code == Some(1) && says(&ended, "lets in root"),
            "{ended:?}"
        );
        // Should its mode ever be wrong, the user is asked for all the same.
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666))?;
        let ended = cli_as_nobody(place, &file, &["plugins", "list"]).await?;
        ensure!(
            ended.code == Some(69) && says(&ended, "does not answer"),
            "{ended:?}"
        );
    }
    ensure!(another(place, &config).await?, "two hosts share a socket");
    host.stop().await?;
    ensure!(!socket.exists(), "the socket is left over");
    Ok(())
}

/// Whether a second host on the same socket is refused.
async fn another(place: &Place, config: &Config) -> anyhow::Result<bool> {
    let store = format!("sqlite:{}", place.dir.join("other.db").display());
    let mut other = config.clone().with_store(&store);
    other.label = "other".to_owned();
    other.health.set_port(ports::free());
    let ended = host::run_to_end(place, &other).await?;
    Ok(ended.code == Some(64) && says(&ended, "another host listens there"))
}

/// A host may have as many files open as the system lets it.
pub async fn have_all_files_that_the_system_gives(place: &Place) -> Checked {
    let scene = Scene::sqlite(place).await?;
    let config = scene.config("host", scene.probe()?);
    let mut host = Host::launch_limited(place, &config, "-Sn 256")?;
    host.until_ready().await?;
    let (soft, hard) = host.open_files_limits()?;
    ensure!(soft == hard, "{soft} of {hard}");
    host.stop().await
}
