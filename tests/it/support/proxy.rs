//! A network that can be broken: a TCP proxy between the host and a server.
//!
//! It can cut what is connected, reset it (the other end sees an error and not an end), refuse what
//! connects, fall silent without closing anything, slow down, and interfere with a PostgreSQL COMMIT:
//! hold it back, cut the line before the server has seen it, or when the server's answer comes back, so
//! that the client cannot know whether it committed, or reset it in the middle of that answer. And it can
//! reset just the lines on which the server is at a COMMIT.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{ports, wait};

/// The end of a client's message `Query` whose last or only statement is COMMIT.
const COMMIT_QUERY: &[u8] = b"COMMIT\0";
/// The server's message `CommandComplete` with the tag `COMMIT`.
const COMMIT_COMPLETE: &[u8] = b"C\0\0\0\x0bCOMMIT\0";
/// The parameter of a client's first message that names its session.
const SESSION_NAME: &[u8] = b"application_name\0";

pub struct Proxy {
    address: SocketAddr,
    rules: Arc<watch::Sender<Rules>>,
    tally: Arc<Mutex<Tally>>,
    holding: Holding,
    listener: JoinHandle<()>,
}

/// The sessions whose COMMIT stops here now, by the names that they gave the server.
type Holding = Arc<Mutex<Vec<String>>>;

/// What happens to the bytes now. Every connection follows changes at once.
#[derive(Clone, Debug, Default)]
struct Rules {
    /// Connections of older epochs are cut.
    epoch: u64,
    /// They are reset, rather than closed.
    reset: bool,
    /// Connections with a COMMIT under way are reset whenever this changes.
    torn: u64,
    refuse: bool,
    silent: bool,
    /// Every piece is held up for so long, in both directions.
    delay: Duration,
    commits: Commits,
}

/// What happens to a COMMIT that passes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Commits {
    #[default]
    Pass,
    /// The client's COMMIT stops here until the rule changes.
    Hold,
    /// The connection is cut, the server never sees this COMMIT and rolls back.
    CutBefore { times: usize },
    /// The server has committed; the connection is cut before its answer gets through.
    CutAfter { times: usize },
    /// The server has committed; half of its answer gets through, and then the connection is reset.
    ResetInAnswer { times: usize },
}

/// What the rules have done so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub held: usize,
    pub cut_before: usize,
    pub cut_after: usize,
    pub reset_in_answer: usize,
}

/// How a line ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Closed,
    Reset,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToServer,
    ToClient,
}

impl Proxy {
    pub async fn to(server: SocketAddr) -> anyhow::Result<Proxy> {
        let listener = wait::until("a port for the proxy", wait::PATIENCE, async || {
            // A child that was forked while the port was tried may hold it until it is another program.
            let listener = TcpListener::bind(("127.0.0.1", ports::free())).await?;
            Ok(Some(listener))
        })
        .await?;
        let address = listener.local_addr()?;
        let rules = Arc::new(watch::Sender::new(Rules::default()));
        let tally = Arc::new(Mutex::new(Tally::default()));
        let holding = Holding::default();
        let line = Line {
            epoch: 0,
            rules: rules.clone(),
            tally: tally.clone(),
            holding: holding.clone(),
            committing: Arc::default(),
        };
        let accept = accept(listener, server, line);
        Ok(Proxy {
            address,
            rules,
            tally,
            holding,
            listener: tokio::spawn(accept),
        })
    }

    /// Where the host is to connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cuts every connection there is. New ones work.
    pub fn cut(&self) {
        self.rules.send_modify(|rules| {
            rules.epoch += 1;
            rules.reset = false;
        });
    }

    /// Resets every connection there is. New ones work.
    pub fn reset(&self) {
        self.rules.send_modify(|rules| {
            rules.epoch += 1;
            rules.reset = true;
        });
    }

    /// Resets the connections whose COMMIT has passed and has no answer yet.
    pub fn tear_commits(&self) {
        self.rules.send_modify(|rules| rules.torn += 1);
    }

    /// Holds up everything, in both directions.
    pub fn delay(&self, delay: Duration) {
        self.rules.send_modify(|rules| rules.delay = delay);
    }

    /// Closes every new connection at once, and cuts those there are.
    pub fn refuse(&self, refuse: bool) {
        self.rules.send_modify(|rules| {
            rules.refuse = refuse;
            rules.epoch += u64::from(refuse);
        });
    }

    /// Forwards nothing and closes nothing, as when a cable is pulled.
    pub fn silence(&self, silent: bool) {
        self.rules.send_modify(|rules| rules.silent = silent);
    }

    pub fn commits(&self, commits: Commits) {
        self.rules.send_modify(|rules| rules.commits = commits);
    }

    pub fn tally(&self) -> Tally {
        *self.tally.lock().expect("no holder of this lock panics")
    }

    /// Waits until the rules have done what the test is about.
    pub async fn until(&self, what: &str, done: impl Fn(Tally) -> bool) -> anyhow::Result<()> {
        wait::until(what, wait::PATIENCE, async || {
            Ok(done(self.tally()).then_some(()))
        })
        .await
    }

    /// Waits until so many sessions whose names begin with `name` have a COMMIT that stops here (a lane's is
    /// `hapax CONSUMER NUMBER`). Their transactions are open, and what they work on is not acknowledged.
    pub async fn until_holds(&self, name: &str, sessions: usize) -> anyhow::Result<()> {
        let what = format!("a COMMIT of {sessions} sessions of {name} to be held");
        wait::until(&what, wait::PATIENCE, async || {
            let holding = self.holding.lock().expect("no holder of this lock panics");
            let count = holding.iter().filter(|held| held.starts_with(name)).count();
            Ok((count >= sessions).then_some(()))
        })
        .await
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listener.abort();
        self.cut();
    }
}

async fn accept(listener: TcpListener, server: SocketAddr, line: Line) {
    while let Ok((client, _)) = listener.accept().await {
        let follow = line.rules.subscribe();
        let epoch = {
            let rules = follow.borrow();
            if rules.refuse {
                continue;
            }
            rules.epoch
        };
        let line = Line {
            epoch,
            committing: Arc::default(),
            ..line.clone()
        };
        tokio::spawn(connect(client, server, follow, line));
    }
}

/// What becomes of a COMMIT that passes.
enum Verdict {
    Pass,
    /// The line ends, and nothing of it has passed.
    Cut(End),
    /// A part of it, and then a reset.
    Break,
}

/// One connection.
#[derive(Clone)]
struct Line {
    epoch: u64,
    rules: Arc<watch::Sender<Rules>>,
    tally: Arc<Mutex<Tally>>,
    holding: Holding,
    /// The server has got a COMMIT and not answered it.
    committing: Arc<AtomicBool>,
}

/// Stands for a COMMIT that is held, until it is let go or its line is cut.
struct Held<'a> {
    name: &'a str,
    holding: &'a Holding,
}

impl<'a> Held<'a> {
    fn new(name: &'a str, holding: &'a Holding) -> Held<'a> {
        let mut names = holding.lock().expect("no holder of this lock panics");
        names.push(name.to_owned());
        Held { name, holding }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut names = self.holding.lock().expect("no holder of this lock panics");
        if let Some(at) = names.iter().position(|name| name == self.name) {
            names.swap_remove(at);
        }
    }
}

/// Carries one connection until an end closes it or the rules cut it.
async fn connect(
    mut client: TcpStream,
    server: SocketAddr,
    follow: watch::Receiver<Rules>,
    line: Line,
) {
    // A server that is away looks to the client like a connection that is closed at once.
    let Ok(mut server) = TcpStream::connect(server).await else {
        return;
    };
    // Small writes must not wait for each other: the proxy stands in for a plain wire.
    if client.set_nodelay(true).is_err() || server.set_nodelay(true).is_err() {
        return;
    }
    let end = {
        let (client_reads, client_writes) = client.split();
        let (server_reads, server_writes) = server.split();
        let rules = || follow.clone();
        let up = line.carry(Direction::ToServer, client_reads, server_writes, rules());
        let down = line.carry(Direction::ToClient, server_reads, client_writes, rules());
        // Whichever ends first drops the rest, and both sockets with it.
        tokio::select! {
            end = up => end,
            end = down => end,
            end = line.cut(follow.clone()) => end,
        }
    };
    if end == End::Reset {
        // Without the patience to deliver what is left, the system sends a reset when it closes.
        let _ = client.set_zero_linger();
        let _ = server.set_zero_linger();
    }
}

impl Line {
    /// How the rules end this connection, if they do.
    fn end(&self, rules: &Rules) -> Option<End> {
        (rules.epoch != self.epoch).then_some(if rules.reset { End::Reset } else { End::Closed })
    }

    /// Waits until the rules end this connection.
    async fn cut(&self, mut rules: watch::Receiver<Rules>) -> End {
        let mut torn = rules.borrow_and_update().torn;
        loop {
            {
                let rules = rules.borrow_and_update();
                if let Some(end) = self.end(&rules) {
                    return end;
                }
                if std::mem::replace(&mut torn, rules.torn) != rules.torn
                    && self.committing.load(Ordering::Acquire)
                {
                    return End::Reset;
                }
            }
            if rules.changed().await.is_err() {
                return End::Closed;
            }
        }
    }

    async fn carry(
        &self,
        direction: Direction,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
        mut rules: watch::Receiver<Rules>,
    ) -> End {
        let mut buffer = vec![0; 64 * 1024];
        let mut window = Window::default();
        let mut name = None;
        loop {
            let Ok(count @ 1..) = from.read(&mut buffer).await else {
                return End::Closed;
            };
            let piece = &buffer[..count];
            if direction == Direction::ToServer && name.is_none() {
                name = session_name(piece);
            }
            if window.sees_commit(direction, piece) {
                let name = name.as_deref().unwrap_or_default();
                match self.commit(direction, name, &mut rules).await {
                    Verdict::Pass => {
                        let sent = direction == Direction::ToServer;
                        self.committing.store(sent, Ordering::Release);
                    }
                    Verdict::Cut(end) => return end,
                    Verdict::Break => {
                        let _ = to.write_all(&piece[..count / 2]).await;
                        return End::Reset;
                    }
                }
            }
            let delay = rules.borrow().delay;
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            if rules.wait_for(|rules| !rules.silent).await.is_err() {
                return End::Closed;
            }
            if to.write_all(piece).await.is_err() {
                return End::Closed;
            }
        }
    }

    /// Applies the rule for commits.
    async fn commit(
        &self,
        direction: Direction,
        name: &str,
        rules: &mut watch::Receiver<Rules>,
    ) -> Verdict {
        let commits = rules.borrow().commits;
        match (direction, commits) {
            (Direction::ToServer, Commits::Hold) => {
                self.note(|tally| tally.held += 1);
                let _held = Held::new(name, &self.holding);
                let released = rules
                    .wait_for(|rules| rules.commits != Commits::Hold || self.end(rules).is_some());
                match released.await {
                    // Both may have changed meanwhile: what was held when its line was cut does not pass.
                    Ok(rules) => self.end(&rules).map_or(Verdict::Pass, Verdict::Cut),
                    Err(_) => Verdict::Cut(End::Closed),
                }
            }
            (Direction::ToServer, Commits::CutBefore { .. })
            | (Direction::ToClient, Commits::CutAfter { .. })
                if self.cut_one() =>
            {
                Verdict::Cut(End::Closed)
            }
            (Direction::ToClient, Commits::ResetInAnswer { .. }) if self.cut_one() => {
                Verdict::Break
            }
            _ => Verdict::Pass,
        }
    }

    /// Takes one of the cuts that are still to be made, if another line was not faster.
    fn cut_one(&self) -> bool {
        let mut cut = false;
        self.rules.send_if_modified(|rules| {
            let left = match &mut rules.commits {
                Commits::CutBefore { times }
                | Commits::CutAfter { times }
                | Commits::ResetInAnswer { times } => times,
                Commits::Pass | Commits::Hold => return false,
            };
            if *left == 0 {
                return false;
            }
            *left -= 1;
            cut = true;
            match rules.commits {
                Commits::CutBefore { .. } => self.note(|tally| tally.cut_before += 1),
                Commits::ResetInAnswer { .. } => self.note(|tally| tally.reset_in_answer += 1),
                _ => self.note(|tally| tally.cut_after += 1),
            }
            true
        });
        cut
    }

    fn note(&self, change: impl FnOnce(&mut Tally)) {
        change(&mut self.tally.lock().expect("no holder of this lock panics"));
    }
}

/// The name that a session gives itself, if this piece is its first message.
fn session_name(piece: &[u8]) -> Option<String> {
    let at = piece
        .windows(SESSION_NAME.len())
        .position(|bytes| bytes == SESSION_NAME)?;
    let mut rest = piece[at + SESSION_NAME.len()..].split(|&byte| byte == 0);
    Some(String::from_utf8_lossy(rest.next()?).into_owned())
}

/// The last bytes that passed, because a message may arrive in two pieces.
#[derive(Default)]
struct Window {
    tail: Vec<u8>,
}

impl Window {
    fn sees_commit(&mut self, direction: Direction, piece: &[u8]) -> bool {
        let pattern = match direction {
            Direction::ToServer => COMMIT_QUERY,
            Direction::ToClient => COMMIT_COMPLETE,
        };
        self.tail.extend_from_slice(piece);
        let found = self
            .tail
            .windows(pattern.len())
            .any(|bytes| bytes == pattern);
        // After a hit everything is forgotten, so that it does not count twice.
        let keep = if found { 0 } else { pattern.len() - 1 };
        self.tail.drain(..self.tail.len().saturating_sub(keep));
        found
    }
}
