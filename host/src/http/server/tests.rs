use std::net::SocketAddr;

use axum::routing::{get, post};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_util::sync::DropGuard;

use super::*;
use crate::config::Listen;

/// How many connections the listeners of these tests hold.
const CONNECTIONS: usize = 4;

struct Server {
    address: SocketAddr,
    _stop: DropGuard,
}

impl Server {
    /// Answers `GET /`, and reads what is posted to it.
    async fn start() -> Self {
        let echo = post(async |body: String| body);
        Self::of(Router::new().route("/", get(async || "here\n").merge(echo))).await
    }

    async fn of(router: Router) -> Self {
        // Nobody else takes a port that the system has just chosen for this one.
        let any = Listen::Tcp("127.0.0.1:0".parse().expect("an address"));
        let listener = Listener::bind(&any, "health").await.expect("a port");
        let address = listener.address().expect("an address");
        let bounds = Bounds {
            connections: CONNECTIONS,
            request: Duration::from_secs(60),
        };
        let stop = CancellationToken::new();
        tokio::spawn(serve(listener, router, bounds, stop.clone()));
        Self {
            address,
            _stop: stop.drop_guard(),
        }
    }

    async fn send(&self, text: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.expect("it listens");
        stream.write_all(text.as_bytes()).await.expect("it reads");
        stream
    }

    async fn ask(&self) -> String {
        to_the_end(
            self.send("GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
                .await,
        )
        .await
    }
}

/// All that comes until the connection is closed, or reset.
async fn to_the_end(mut stream: TcpStream) -> String {
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text).await;
    String::from_utf8_lossy(&text).into_owned()
}

const HALF: &str = "GET / HTTP/1.1\r\nHost: h\r\n";
const WHOLE: &str = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";

// The clock goes on by itself when everybody waits.
#[tokio::test(start_paused = true)]
async fn a_head_that_is_never_finished_ends_its_connection() {
    let server = Server::start().await;
    assert_eq!(to_the_end(server.send("G").await).await, "");
    assert_eq!(to_the_end(server.send(HALF).await).await, "");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_idle_is_closed() {
    let server = Server::start().await;
    let answered = to_the_end(server.send(WHOLE).await).await;
    assert!(answered.ends_with("here\n"), "{answered}");
    // Nor does it help to begin another request.
    let answered = to_the_end(server.send(&format!("{WHOLE}{HALF}")).await).await;
    assert!(answered.ends_with("here\n"), "{answered}");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_never_finished_ends_its_request() {
    let server = Server::start().await;
    let begun = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nbegun";
    let answered = to_the_end(server.send(begun).await).await;
    assert!(answered.contains("408"), "{answered}");
    // One that nobody reads does not hold its connection either.
    let unread = "GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nbegun";
    let answered = to_the_end(server.send(unread).await).await;
    assert!(answered.contains("here\n"), "{answered}");
}

#[tokio::test]
async fn however_many_connections_say_nothing_the_next_one_is_answered() {
    let server = Server::start().await;
    let mut silent = Vec::new();
    for _ in 0..20 * CONNECTIONS {
        silent.push(server.send(HALF).await);
        let answered = server.ask().await;
        assert!(answered.ends_with("here\n"), "{answered}");
    }
    // Those that made room were closed, and the others are still there.
    let mut closed = 0;
    for stream in &silent {
        let mut byte = [0];
        closed += usize::from(!matches!(
            stream.try_read(&mut byte),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock
        ));
    }
    assert!(
        closed > 0 && silent.len() - closed <= CONNECTIONS,
        "{closed}"
    );
}

#[tokio::test]
async fn what_is_at_work_is_not_closed_for_another() {
    let (begun, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let handler = {
        let (begun, go) = (Arc::clone(&begun), Arc::clone(&go));
        move || async move {
            begun.notify_one();
            go.notified().await;
            "done\n"
        }
    };
    let server = Server::of(Router::new().route("/", get(handler))).await;
    let mut working = Vec::new();
    for _ in 0..CONNECTIONS {
        working.push(
            server
                .send("GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
                .await,
        );
        begun.notified().await;
    }
    // There is no seat: the connection ends without an answer.
    assert_eq!(server.ask().await, "");
    for stream in working {
        go.notify_one();
        let answered = to_the_end(stream).await;
        assert!(answered.ends_with("done\n"), "{answered}");
    }
    go.notify_one();
    assert!(server.ask().await.ends_with("done\n"));
}
