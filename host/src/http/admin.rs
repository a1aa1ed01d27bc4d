//! The API that the command line speaks with a daemon: one address that takes operations.
//!
//! A caller shows the token when there is one, and says which store it means: a daemon never answers for
//! another one's. A browser is turned away, so that no web page can reach a daemon on its reader's
//! machine.

use std::sync::Arc;

use axum::body::to_bytes;
use axum::extract::{self, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::config::{Config, StoreKind};
use crate::operations::{OperationError, Operations, Request};

/// Where operations are sent to.
pub const OPERATIONS: &str = "/v1/operations";

/// The largest request: a component of a language that brings its own runtime, or a block of messages.
const MAX_REQUEST_BYTES: usize = 128 << 20;

/// A request, and the store it is meant for.
#[derive(Debug, Serialize, Deserialize)]
pub struct Call {
    pub store: String,
    pub request: Request,
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
    /// Compared as a hash, so that the time it takes tells nothing.
    token: Option<[u8; 32]>,
    operations: Operations,
}

pub(super) fn router(config: &Config, operations: Operations) -> Router {
    let token = config
        .admin
        .token
        .as_ref()
        .map(|token| digest(token.expose()));
    let admin = Admin {
        store: store_identity(config),
        token,
        operations,
    };
    Router::new()
        .route(OPERATIONS, post(operate))
        .with_state(Arc::new(admin))
}

async fn operate(State(admin): State<Arc<Admin>>, request: extract::Request) -> Response {
    // Nothing is read for a caller who may not ask.
    if let Err((status, reason)) = admin.admits(request.headers()) {
        return refuse(status, OperationError::Refused(reason.into()));
    }
    let body = match to_bytes(request.into_body(), MAX_REQUEST_BYTES).await {
        Ok(body) => body,
        Err(error) => {
            let reason = format!(
                "the request cannot be read, or is over {} MiB: {error}",
                MAX_REQUEST_BYTES >> 20
            );
            return refuse(
                StatusCode::PAYLOAD_TOO_LARGE,
                OperationError::Refused(reason),
            );
        }
    };
    let call = match serde_json::from_slice::<Call>(&body) {
        Ok(call) => call,
        Err(error) => {
            let reason = format!("the request is not understood: {error}");
            return refuse(StatusCode::BAD_REQUEST, OperationError::Refused(reason));
        }
    };
    if call.store != admin.store {
        let reason = format!("this daemon works with another store: {}", admin.store);
        return refuse(StatusCode::CONFLICT, OperationError::Refused(reason));
    }
    // A task of its own: what was begun is finished, also for a caller that hangs up.
    let done = tokio::spawn(async move { admin.operations.execute(call.request).await }).await;
    match done {
        Ok(Ok(response)) => Json(response).into_response(),
        Ok(Err(error)) => {
            let status = match error {
                OperationError::Refused(_) => StatusCode::BAD_REQUEST,
                OperationError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
                OperationError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
            };
            refuse(status, error)
        }
        Err(error) => {
            tracing::error!(%error, "Operation panicked");
            let reason = "the operation has failed inside the daemon; its log says more".to_owned();
            refuse(
                StatusCode::INTERNAL_SERVER_ERROR,
                OperationError::Failed(reason),
            )
        }
    }
}

fn refuse(status: StatusCode, error: OperationError) -> Response {
    (status, Json(error)).into_response()
}

impl Admin {
    fn admits(&self, headers: &HeaderMap) -> Result<(), (StatusCode, &'static str)> {
        if headers.contains_key(header::ORIGIN) {
            return Err((StatusCode::FORBIDDEN, "this API is not for browsers"));
        }
        let Some(token) = self.token else {
            return Ok(());
        };
        let shown = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "));
        match shown {
            Some(shown) if digest(shown) == token => Ok(()),
            Some(_) => Err((
                StatusCode::UNAUTHORIZED,
                "the token is not the daemon's `admin.token`",
            )),
            None => Err((
                StatusCode::UNAUTHORIZED,
                "the daemon wants its `admin.token`",
            )),
        }
    }
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token).into()
}
