use std::path::Path;
use std::time::Duration;

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
    async fn new(token: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("hapax.toml");
        for _ in 0..MAX_PORTS_LOST {
            let [health, admin] = free_ports();
            let text = format!(
                "[health]\nlisten = \"127.0.0.1:{health}\"\n[admin]\nlisten = \"127.0.0.1:{admin}\"\n{token}\n"
            );
            let config = Arc::new(config::parse(&path, &text, &Machine).expect("a configuration"));
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
        let url = format!("http://{}{path}", self.config.health.expect("on"));
        blocking(move |agent| agent.get(&url).call()).await
    }

    async fn post(
        &self,
        headers: &'static [(&'static str, &'static str)],
        call: Call,
    ) -> (u16, String) {
        let url = format!(
            "http://{}{OPERATIONS}",
            self.config.admin.listen.expect("on")
        );
        blocking(move |agent| {
            let mut request = agent.post(&url);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            request.send_json(&call)
        })
        .await
    }

    fn call(&self, request: Request) -> Call {
        Call {
            store: store_identity(&self.config),
            request,
        }
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
    let (status, text) = place.post(&[], place.call(Request::Status)).await;
    assert_eq!(status, 200, "{text}");
    let response = serde_json::from_str::<Response>(&text).expect("a response");
    assert!(matches!(response, Response::Status(_)), "{text}");
    let (status, text) = place
        .post(&[], place.call(Request::Show("none".into())))
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

#[tokio::test]
async fn a_browser_and_a_caller_for_another_store_are_turned_away() {
    let place = Place::new("").await;
    let origin = &[("origin", "http://127.0.0.1:9470")];
    assert_eq!(place.post(origin, place.call(Request::Status)).await.0, 403);
    let other = Call {
        store: "sqlite:/elsewhere.db".into(),
        request: Request::Status,
    };
    let (status, text) = place.post(&[], other).await;
    assert!(status == 409 && text.contains("another store"), "{text}");
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
