//! The API that the command line speaks with a daemon: two addresses that take operations, one of them large ones.
//!
//! A caller shows the token, or has come through the socket that is for the host's user alone, and says which store
//! it means: a daemon never answers for another one's. Who may not ask is told nothing, and nothing is read for
//! them. A browser is turned away, so that no web page can reach a daemon on its reader's machine.

mod body;
mod caller;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{self, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::config::{Config, Listen, Secret, StoreKind};
use crate::operations::{OperationError, Operations, Request};

use caller::Caller;

/// Where operations are sent to.
pub const OPERATIONS: &str = "/v1/operations";

/// Where those are sent to that do not fit there.
pub const UPLOADS: &str = "/v1/uploads";

/// The largest request but for uploads.
pub const MAX_REQUEST_BYTES: usize = 1 << 20;

/// The largest upload: a component of a language that brings its own runtime, or a block of messages.
const MAX_UPLOAD_BYTES: usize = 128 << 20;

/// How long an upload waits for the one before it.
const UPLOAD_PATIENCE: Duration = Duration::from_secs(30);

/// How long a caller may have to wait for its answer. The command line waits no longer.
pub(super) const ANSWER_PATIENCE: Duration = Duration::from_secs(300);

/// A request, and the store it is meant for.
#[derive(Debug, Serialize, Deserialize)]
pub struct Call {
    pub store: String,
    pub request: Request,
}

/// Why a request was not taken.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Stable; see OPERATING.md.
    pub code: String,
    pub reason: String,
}

/// A name of the store that is the same from every directory, and holds no password.
pub fn store_identity(config: &Config) -> String {
    match &config.store.kind {
        StoreKind::Sqlite { path } => {
            let real = path.canonicalize().unwrap_or_else(|_| path.clone());
            format!("sqlite:{}", real.display())
        }
        kind @ StoreKind::Postgres { .. } => format!("{kind} schema {}", config.store.schema),
    }
}

struct Admin {
    store: String,
    caller: Caller,
    operations: Operations,
    /// The body of an upload may be large, so there is one at a time.
    uploads: Semaphore,
}

/// `token` is what callers show; `None` where the socket lets in none but the host's user.
pub(super) fn router(
    config: &Config,
    listen: &Listen,
    token: Option<&Secret>,
    operations: Operations,
) -> Router {
    let admin = Admin {
        store: store_identity(config),
        caller: Caller::new(listen, token),
        operations,
        uploads: Semaphore::new(1),
    };
    Router::new().fallback(answer).with_state(Arc::new(admin))
}

/// A refusal on its way: the status, its code, the reason.
type Refused = (StatusCode, &'static str, String);

async fn answer(State(admin): State<Arc<Admin>>, request: extract::Request) -> Response {
    match admin.take(request).await {
        Ok(response) => response,
        Err((status, code, reason)) => {
            let refusal = Refusal {
                code: code.to_owned(),
                reason,
            };
            let mut response = (status, Json(refusal)).into_response();
            if status == StatusCode::SERVICE_UNAVAILABLE {
                let seconds = header::HeaderValue::from_static("5");
                response.headers_mut().insert(header::RETRY_AFTER, seconds);
            }
            response
        }
    }
}

impl Admin {
    async fn take(self: Arc<Self>, request: extract::Request) -> Result<Response, Refused> {
        // Nothing is read for a caller who may not ask.
        self.caller.admits(&request)?;
        let is_upload = match request.uri().path() {
            OPERATIONS => false,
            UPLOADS => true,
            _ => {
                let reason = format!("operations are sent to {OPERATIONS} or {UPLOADS}");
                return Err((StatusCode::NOT_FOUND, "not-found", reason));
            }
        };
        if request.method() != Method::POST {
            let reason = "operations are sent with POST".to_owned();
            return Err((StatusCode::METHOD_NOT_ALLOWED, "not-post", reason));
        }
        caller::is_json(request.headers())?;
        let (max, seat) = if is_upload {
            let seat = timeout(UPLOAD_PATIENCE, self.uploads.acquire()).await;
            let Ok(Ok(seat)) = seat else {
                let reason = "another upload is under way; try again when it is done".to_owned();
                return Err((StatusCode::SERVICE_UNAVAILABLE, "upload-busy", reason));
            };
            (MAX_UPLOAD_BYTES, Some(seat))
        } else {
            (MAX_REQUEST_BYTES, None)
        };
        let body = body::read(request, max).await?;
        let call = serde_json::from_slice::<Call>(&body);
        drop(body);
        let call = call.map_err(|error| {
            let reason = format!("the request is not understood: {error}");
            (StatusCode::BAD_REQUEST, "not-understood", reason)
        })?;
        if is_upload && !call.request.is_upload() {
            let reason = format!("this request is no upload: send it to {OPERATIONS}");
            return Err((StatusCode::BAD_REQUEST, "no-upload", reason));
        }
        if call.store != self.store {
            let reason = format!("this daemon works with another store: {}", self.store);
            return Err((StatusCode::CONFLICT, "other-store", reason));
        }
        let response = Arc::clone(&self).execute(call.request).await;
        drop(seat);
        Ok(response)
    }

    async fn execute(self: Arc<Self>, request: Request) -> Response {
        // A task of its own: what was begun is finished, also for a caller that hangs up.
        let done = tokio::spawn(async move { self.operations.execute(request).await }).await;
        let (status, error) = match done {
            Ok(Ok(response)) => return Json(response).into_response(),
            Ok(Err(error)) => {
                let status = match error {
                    OperationError::Refused(_) => StatusCode::BAD_REQUEST,
                    OperationError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
                    OperationError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
                };
                (status, error)
            }
            Err(error) => {
                tracing::error!(%error, "Operation panicked");
                let reason = "the operation has failed inside the daemon; its log says more";
                let error = OperationError::Failed(reason.to_owned());
                (StatusCode::INTERNAL_SERVER_ERROR, error)
            }
        };
        (status, Json(error)).into_response()
    }
}
