//! Reads the body of a request: no more than it may have, and no longer than it may take.

use std::time::Duration;

use axum::extract::Request;
use axum::http::{StatusCode, header};
use futures_util::StreamExt;
use tokio::time::timeout;

use super::Refused;

/// The longest pause between two pieces of a body.
const PAUSE_PATIENCE: Duration = Duration::from_secs(10);

/// How long all of a body may take.
const BODY_PATIENCE: Duration = Duration::from_secs(120);

/// The whole body, of at most `max` bytes.
pub(super) async fn read(request: Request, max: usize) -> Result<Vec<u8>, Refused> {
    let too_large = || {
        let reason = format!("the request is over {} MiB", max >> 20);
        (StatusCode::PAYLOAD_TOO_LARGE, "too-large", reason)
    };
    let too_slow = |_| {
        let reason = "the body of the request did not arrive in time".to_owned();
        (StatusCode::REQUEST_TIMEOUT, "too-slow", reason)
    };
    let announced = request.headers().get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|bytes| bytes > max) {
        return Err(too_large());
    }
    let mut pieces = request.into_body().into_data_stream();
    let all = async {
        let mut body = Vec::with_capacity(announced.unwrap_or_default());
        while let Some(piece) = timeout(PAUSE_PATIENCE, pieces.next())
            .await
            .map_err(too_slow)?
        {
            let piece = piece.map_err(|error| {
                let reason = format!("the request cannot be read: {error}");
                (StatusCode::BAD_REQUEST, "not-understood", reason)
            })?;
            if piece.len() > max - body.len() {
                return Err(too_large());
            }
            body.extend_from_slice(&piece);
        }
        Ok(body)
    };
    timeout(BODY_PATIENCE, all).await.map_err(too_slow)?
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, Bytes};
    use futures_util::stream;

    use super::*;

    type Piece = Result<Bytes, std::io::Error>;

    async fn code(body: Body, max: usize) -> &'static str {
        let request = Request::new(body);
        read(request, max).await.expect_err("it is refused").1
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_never_finished_is_given_up() {
        let begun = stream::iter([Piece::Ok(Bytes::from_static(b"{"))]);
        let never = begun.chain(stream::pending());
        assert_eq!(code(Body::from_stream(never), 1 << 20).await, "too-slow");
        // A byte now and then keeps it up for a while only.
        let drops = stream::unfold((), |()| async {
            tokio::time::sleep(PAUSE_PATIENCE / 2).await;
            Some((Piece::Ok(Bytes::from_static(b" ")), ()))
        });
        assert_eq!(code(Body::from_stream(drops), 1 << 20).await, "too-slow");
    }

    #[tokio::test]
    async fn one_that_is_too_large_is_not_kept() {
        let body = |bytes: usize| Body::from(vec![b' '; bytes]);
        let kept = read(Request::new(body(10)), 10).await.expect("it fits");
        assert_eq!(kept.len(), 10);
        assert_eq!(code(body(11), 10).await, "too-large");
        // What is announced is not waited for.
        let mut announced = Request::new(Body::from_stream(stream::pending::<Piece>()));
        let length = axum::http::HeaderValue::from_static("11");
        announced
            .headers_mut()
            .insert(header::CONTENT_LENGTH, length);
        let refused = read(announced, 10).await.expect_err("it is refused");
        assert_eq!(refused.1, "too-large");
    }
}
