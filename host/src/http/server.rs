//! Serves one listener: connections are accepted, bounded, watched and closed here.
//!
//! However many connections a peer opens and whatever it leaves unsaid, a listener holds no more than its bound of
//! descriptors, and the next connection is accepted at once.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::listener::{Accepted, Listener};
use super::seats::{Seat, Seats};

/// How often peers that take too long are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The pause after the system has refused to hand out a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// The most bytes of a head, and of what is read ahead of a body.
const BUFFER_BYTES: usize = 64 << 10;

/// What a listener allows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Open at one time.
    pub(super) connections: usize,
    /// From the head of a request to its answer, its body included.
    pub(super) request: Duration,
}

/// The address at which a request has come in; `None` for a socket in the file system.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reached(pub(super) Option<SocketAddr>);

/// Serves until `stop`, and then until the requests that are under way are answered.
pub(super) async fn serve(
    listener: Listener,
    router: Router,
    bounds: Bounds,
    stop: CancellationToken,
) {
    let mut seats = Seats::new(bounds.connections);
    let mut connections = JoinSet::new();
    let mut look = interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_refused = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = connections.join_next(), if !connections.is_empty() => {}
            _ = look.tick(), if !connections.is_empty() => seats.close_overdue(),
            accepted = listener.accept() => match accepted {
                Ok(accepted) => {
                    is_refused = false;
                    let Some(seat) = seats.take() else {
                        // All are at work. The peer sees its connection closed.
                        continue;
                    };
                    let router = router.clone();
                    let stop = stop.clone();
                    connections.spawn(async move {
                        let Accepted { stream, reached } = accepted;
                        attend(stream, reached, router, bounds, &seat, stop).await;
                    });
                    // It may read what its peer has sent already before another one takes its seat.
                    tokio::task::yield_now().await;
                    // One that was closed keeps its descriptor until it has noticed.
                    while connections.len() > bounds.connections {
                        connections.join_next().await;
                    }
                }
                Err(error) => {
                    // Once, not for each attempt.
                    if !is_refused {
                        tracing::warn!(section = listener.section(), %error, "The system hands out no connection");
                    }
                    is_refused = true;
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Answers the requests of one connection until it ends, is closed for its seat, or the host stops.
async fn attend(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    reached: Reached,
    router: Router,
    bounds: Bounds,
    seat: &Arc<Seat>,
    stop: CancellationToken,
) {
    let router = TowerToHyperService::new(router);
    let service = service_fn(|request: hyper::Request<Incoming>| {
        seat.works();
        let mut request: Request = request.map(Body::new);
        request.extensions_mut().insert(reached);
        let answer = timeout(bounds.request, router.call(request));
        let seat = Arc::clone(seat);
        async move {
            let answer: Response = match answer.await {
                Ok(Ok(answer)) => answer,
                Ok(Err(impossible)) => match impossible {},
                Err(_) => (StatusCode::REQUEST_TIMEOUT, "took too long\n").into_response(),
            };
            seat.answered();
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = http1::Builder::new()
        .max_buf_size(BUFFER_BYTES)
        // The seat has its own clock, for all phases of a connection.
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        // First, so that an answer is on its way before its connection may be closed.
        biased;
        ended = connection.as_mut() => ended,
        () = seat.closed.cancelled() => return,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection.as_mut() => ended,
                () = seat.closed.cancelled() => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "A connection ended early");
    }
}

#[cfg(test)]
mod tests;
