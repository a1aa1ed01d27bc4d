//! Removes what the ledger may forget, in small steps that nobody waits for.
//!
//! Walks a consumer's keys in order, on a session of its own, and never touches a key that waits or is
//! parked. A walk that meets trouble starts again later: nothing depends on its being finished.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::consumer::Consumer;
use crate::failpoint::{self, Point};
use crate::store::{Session, StoreError};

/// Rows looked at in one transaction.
const STEP_ROWS: u32 = 1000;

/// Pause between two steps: a walk takes at most a part of one core of the database.
const STEP_PAUSE: Duration = Duration::from_millis(50);

/// Bounds of the pause between two walks.
const WALK_PAUSE_MIN: Duration = Duration::from_secs(1);
const WALK_PAUSE_MAX: Duration = Duration::from_secs(3600);

/// Walks until told to stop. Returns at once for a consumer that remembers forever.
pub async fn run(consumer: Arc<Consumer>, stop: CancellationToken) {
    let Some(retention) = consumer.retention else {
        return;
    };
    let pause = (retention / 100).clamp(WALK_PAUSE_MIN, WALK_PAUSE_MAX);
    let mut trouble = Backoff::for_servers();
    loop {
        // Hosts that start together do not sweep together.
        let wait = match trouble.tries() {
            0 => pause.mul_f64(0.5 + fastrand::f64() / 2.0),
            _ => trouble.pause(),
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
        let walked = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            walked = walk(&consumer, retention) => walked,
        };
        match walked {
            Ok(0) => trouble.reset(),
            Ok(rows) => {
                trouble.reset();
                tracing::debug!(consumer = %consumer.name, rows, "Expired keys forgotten");
            }
            Err(error) => {
                tracing::debug!(consumer = %consumer.name, %error, "Sweep interrupted");
                trouble.pause();
            }
        }
    }
}

/// One walk over all keys; returns how many were forgotten.
async fn walk(consumer: &Consumer, retention: Duration) -> Result<u64, StoreError> {
    let mut session: Box<dyn Session> = consumer.store.session("hapax sweep").await?;
    let mut after = Vec::new();
    let mut total = 0;
    loop {
        failpoint::pass(Point::BeforeSweep);
        let (last, rows) = session
            .sweep(consumer.id, retention, &after, STEP_ROWS)
            .await?;
        failpoint::pass_if(Point::AfterSweep, rows > 0);
        total += rows;
        consumer.metrics.swept.inc_by(rows);
        match last {
            Some(last) => after = last,
            None => return Ok(total),
        }
        tokio::time::sleep(STEP_PAUSE).await;
    }
}
