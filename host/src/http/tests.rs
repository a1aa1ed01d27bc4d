use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::config::{self, Machine};
use crate::operations::{OperationError, Request, Response};
use crate::store::SessionOptions;
use crate::store::sqlite::SqliteStore;

/// Both servers on free ports, in front of a store without tables.
struct Place {
    servers: Servers,
    config: Arc<Config>,
    directory: tempfile::TempDir,
}

/// How often somebody may take a port that was free.
const MAX_PORTS_LOST: usize = 5;

/// Two that differ. Somebody else may take them before they are used.
fn free_ports() -> [u16; 2] {
    let listeners = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").expect("a port"));
    listeners.map(|listener| listener.local_addr().expect("an address").port())
}

async fn start(config: &Arc<Config>, directory: &Path) -> Result<Servers, ListenError> {
    let options = SessionOptions {
        statement_timeout: Duration::from_secs(5),
        lock_timeout: Duration::from_secs(5),
        idle_timeout: Duration::from_secs(60),
    };
    let file = directory.join(format!("{}.db", fastrand::u64(..)));
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&file, options).expect("a store"));
    store.migrate().await.expect("tables");
    let readiness = Arc::new(Readiness::new(std::iter::empty()));
    Servers::start(config, &Metrics::new(), &readiness, &store).await
}

impl Place {
    async fn new(lines: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("hapax.toml");
        for _ in 0..MAX_PORTS_LOST {
            let [health, admin] = free_ports();
            let listen = format!("127.0.0.1:{admin}");
            let listen = if lines.contains("listen") {
                String::new()
            } else {
                format!("listen = \"{listen}\"\n")
            };
            let text =
                format!("[health]\nlisten = \"127.0.0.1:{health}\"\n[admin]\n{listen}{lines}\n");
            let mut config = config::parse(&path, &text, &Machine).expect("a configuration");
            config.admin.state = vec![directory.path().join("state")];
            let config = Arc::new(config);
            if let Ok(servers) = start(&config, directory.path()).await {
                return Self {
                    servers,
                    config,
                    directory,
                };
            }
        }
        panic!("no free ports in {MAX_PORTS_LOST} attempts");
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let url = format!("http://{}{path}", self.config.health.listen.expect("on"));
        blocking(move |agent| agent.get(&url).call()).await
    }

    fn address(&self) -> SocketAddr {
        match self.config.admin.listen {
            Some(Listen::Tcp(address)) => address,
            _ => panic!("it listens on an address"),
        }
    }

    async fn post(&self, headers: &[(&str, &str)], call: Call) -> (u16, String) {
        let body = serde_json::to_vec(&call).expect("plain data");
        let mut all = vec![("content-type", "application/json")];
        all.extend(headers);
        self.post_to(OPERATIONS, &all, body).await
    }

    async fn post_to(&self, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> (u16, String) {
        let url = format!("http://{}{path}", self.address());
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let headers: Vec<(String, String)> = headers.iter().map(owned).collect();
        blocking(move |agent| {
            let mut request = agent.post(&url);
            for (name, value) in headers {
                request = request.header(name, value);
            }
            request.send(&body[..])
        })
        .await
    }

    fn call(&self, request: Request) -> Call {
        Call {
            store: store_identity(&self.config),
            request,
        }
    }

    /// The token in the file, as a header's value.
    fn token(&self) -> String {
        let (token, _) = find_token(&self.config.admin.state, self.address()).expect("a token");
        format!("Bearer {}", token.expose())
    }
}

async fn blocking(
    ask: impl FnOnce(ureq::Agent) -> Result<axum::http::Response<ureq::Body>, ureq::Error>
    + Send
    + 'static,
) -> (u16, String) {
    let asked = tokio::task::spawn_blocking(move || {
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .build()
            .into();
        let mut answer = ask(agent).expect("an answer");
        let text = answer.body_mut().read_to_string().expect("text");
        (answer.status().as_u16(), text)
    });
    asked.await.expect("no panic")
}

#[tokio::test]
async fn probes_and_metrics_answer_without_a_token() {
    let place = Place::new("token = \"sesame\"").await;
    assert_eq!(place.get("/healthz").await, (200, "alive\n".into()));
    assert_eq!(
        place.get("/readyz").await,
        (200, r#"{"ready":true,"reasons":[]}"#.into())
    );
    let (status, text) = place.get("/metrics").await;
    assert_eq!(status, 200);
    assert!(
        text.contains("hapax_outbox_depth 0") && text.ends_with("# EOF\n"),
        "{text}"
    );
    assert_eq!(place.get("/v1/operations").await.0, 404);
}

#[tokio::test]
async fn an_operation_is_done_and_answered() {
    let place = Place::new("").await;
    let token = place.token();
    let token = &[("authorization", token.as_str())];
    let (status, text) = place.post(token, place.call(Request::Status)).await;
    assert_eq!(status, 200, "{text}");
    let response = serde_json::from_str::<Response>(&text).expect("a response");
    assert!(matches!(response, Response::Status(_)), "{text}");
    let (status, text) = place
        .post(token, place.call(Request::Show("none".into())))
        .await;
    let error = serde_json::from_str::<OperationError>(&text).expect("an error");
    assert!(
        status == 400 && matches!(error, OperationError::Refused(_)),
        "{text}"
    );
}

#[tokio::test]
async fn without_the_token_nothing_is_done() {
    let place = Place::new("token = \"sesame\"").await;
    let call = || place.call(Request::Status);
    assert_eq!(place.post(&[], call()).await.0, 401);
    assert_eq!(
        place
            .post(&[("authorization", "Bearer guess")], call())
            .await
            .0,
        401
    );
    assert_eq!(
        place
            .post(&[("authorization", "Bearer sesame")], call())
            .await
            .0,
        200
    );
}

/// The code of a refusal.
fn code(text: &str) -> String {
    serde_json::from_str::<Refusal>(text)
        .unwrap_or_else(|_| panic!("a refusal: {text}"))
        .code
}

#[tokio::test]
async fn who_may_not_ask_is_told_nothing_whatever_they_send() {
    let place = Place::new("").await;
    let identity = store_identity(&place.config);
    let body = serde_json::to_vec(&place.call(Request::Status)).expect("plain data");
    let json = ("content-type", "application/json");
    for path in [OPERATIONS, UPLOADS, "/", "/metrics", "/v1/operations/"] {
        for (body, headers) in [
            (body.clone(), vec![json]),
            (body.clone(), vec![]),
            (b"no JSON".to_vec(), vec![json]),
            (vec![b' '; 2 << 20], vec![json]),
            (body.clone(), vec![json, ("authorization", "Bearer guess")]),
        ] {
            // A large body may be cut off before the answer is read.
            let large = body.len() > MAX_REQUEST_BYTES;
            let sent = if large { b"{}".to_vec() } else { body };
            let (status, text) = place.post_to(path, &headers, sent).await;
            assert_eq!(status, 401, "{path} {text}");
            assert!(!text.contains(&identity), "{text}");
        }
    }
}

#[tokio::test]
async fn a_browser_and_a_caller_for_another_store_are_turned_away() {
    let place = Place::new("").await;
    let token = place.token();
    let token = ("authorization", token.as_str());
    let post = async |header: (&str, &str)| {
        let call = place.call(Request::Status);
        let (status, text) = place.post(&[token, header], call).await;
        (status, code(&text))
    };
    let refused = |status, code: &str| (status, code.to_owned());
    assert_eq!(
        post(("origin", "http://evil.example")).await,
        refused(403, "browser")
    );
    assert_eq!(
        post(("sec-fetch-site", "cross-site")).await,
        refused(403, "browser")
    );
    assert_eq!(
        post(("host", "evil.example")).await,
        refused(421, "wrong-host")
    );
    let body = serde_json::to_vec(&place.call(Request::Status)).expect("plain data");
    for kind in ["text/plain", "application/x-www-form-urlencoded"] {
        let headers = [token, ("content-type", kind)];
        let (status, text) = place.post_to(OPERATIONS, &headers, body.clone()).await;
        assert_eq!((status, code(&text)), refused(415, "not-json"));
    }
    let other = Call {
        store: "sqlite:/elsewhere.db".into(),
        request: Request::Status,
    };
    let (status, text) = place.post(&[token], other).await;
    assert!(status == 409 && text.contains("another store"), "{text}");
}

#[tokio::test]
async fn only_an_upload_may_be_large() {
    let place = Place::new("").await;
    let token = place.token();
    let headers = [
        ("authorization", token.as_str()),
        ("content-type", "application/json"),
    ];
    let mut body = serde_json::to_vec(&place.call(Request::Status)).expect("plain data");
    let (status, text) = place.post_to(UPLOADS, &headers, body.clone()).await;
    assert_eq!((status, code(&text).as_str()), (400, "no-upload"));
    body.resize(MAX_REQUEST_BYTES, b' ');
    let (status, text) = place.post_to(OPERATIONS, &headers, body).await;
    assert_eq!(status, 200, "{text}");
    // What is announced is refused before it is sent.
    let text = place
        .begin(OPERATIONS, &token, MAX_REQUEST_BYTES + 1)
        .await
        .answer()
        .await;
    assert!(text.contains("413") && text.contains("too-large"), "{text}");
}

/// A connection on which a request was begun.
struct Begun(TcpStream);

impl Begun {
    async fn answer(mut self) -> String {
        let mut text = Vec::new();
        // A connection that is closed with something unread in it is reset after its answer.
        let _ = self.0.read_to_end(&mut text).await;
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Sends the rest of the body, and asks for the connection's end.
    async fn finish(mut self, body: &[u8]) -> String {
        self.0.write_all(body).await.expect("the body is read");
        self.answer().await
    }
}

impl Place {
    /// Sends the head of a request, and nothing of its body.
    async fn begin(&self, path: &str, token: &str, bytes: usize) -> Begun {
        let address = self.address();
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: {token}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {bytes}\r\nExpect: 100-continue\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.expect("it reads");
        Begun(stream)
    }
}

#[tokio::test]
async fn a_second_upload_is_not_read_before_the_first_is_done() {
    let place = Place::new("").await;
    let token = place.token();
    let call = place.call(Request::Publish(Vec::new()));
    let body = serde_json::to_vec(&call).expect("plain data");
    let continued = "HTTP/1.1 100 Continue\r\n\r\n";
    // The host asks for a body when it reads it.
    let mut first = place.begin(UPLOADS, &token, body.len()).await;
    let mut asked = vec![0; continued.len()];
    first.0.read_exact(&mut asked).await.expect("it is read");
    assert_eq!(asked, continued.as_bytes());
    let mut second = place.begin(UPLOADS, &token, body.len()).await;
    // Operations go on meanwhile: when one is answered, the second upload was looked at long ago.
    let header = [("authorization", token.as_str())];
    let (status, text) = place.post(&header, place.call(Request::Status)).await;
    assert_eq!(status, 200, "{text}");
    let mut byte = [0];
    assert!(
        second.0.try_read(&mut byte).is_err(),
        "the second one is read beside the first"
    );
    let text = first.finish(&body).await;
    assert!(text.contains("200 OK"), "{text}");
    second.0.read_exact(&mut asked).await.expect("it is read");
    assert_eq!(asked, continued.as_bytes());
    let text = second.finish(&body).await;
    assert!(text.contains("200 OK"), "{text}");
}

#[tokio::test]
async fn without_a_place_for_a_token_the_api_is_off_and_the_host_starts() {
    let place = Place::new("").await;
    let mut config = (*place.config).clone();
    place.servers.stop().await;
    // Nobody makes a directory below a file.
    let file = place.directory.path().join("file");
    std::fs::write(&file, "").expect("a file");
    config.admin.state = vec![file.join("hapax")];
    let address = match &config.admin.listen {
        Some(Listen::Tcp(address)) => *address,
        _ => panic!("it listens on an address"),
    };
    let servers = start(&Arc::new(config), place.directory.path())
        .await
        .expect("it starts");
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens");
    servers.stop().await;
}

#[cfg(unix)]
#[tokio::test]
async fn a_socket_answers_its_user_without_a_token() {
    let place = Place::new("listen = \"unix:admin.sock\"").await;
    let path = place.directory.path().join("admin.sock");
    let mut stream = tokio::net::UnixStream::connect(&path)
        .await
        .expect("it listens");
    let body = serde_json::to_string(&place.call(Request::Status)).expect("plain data");
    let request = format!(
        "POST {OPERATIONS} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream
        .write_all(request.as_bytes())
        .await
        .expect("it reads");
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("an answer");
    assert!(text.starts_with("HTTP/1.1 200 OK"), "{text}");
    assert!(
        !place.directory.path().join("state").exists(),
        "no token is made"
    );
    place.servers.stop().await;
    assert!(!path.exists(), "the socket is removed");
}

#[tokio::test]
async fn a_port_that_is_taken_is_an_error_that_says_what_to_set() {
    let place = Place::new("").await;
    let error = start(&place.config, place.directory.path())
        .await
        .err()
        .expect("the port is taken");
    let text = error.to_string();
    assert!(
        text.contains("cannot listen on 127.0.0.1") && text.contains("health.listen"),
        "{text}"
    );
    place.servers.stop().await;
    // The ports are free again.
    start(&place.config, place.directory.path())
        .await
        .expect("free ports")
        .stop()
        .await;
}
