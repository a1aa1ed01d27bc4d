//! Where messages come from: connection, prefetch, delivery, and the way of acknowledgements back.
//!
//! A source decides nothing about a message. It never acknowledges by itself: it sends what lanes have
//! settled, to the very channel that delivered it.

pub mod amqp;
pub mod embedded;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::consumer::Consumer;
use crate::failpoint::{self, Point};
use crate::lane::{Lanes, Work};

/// How long lanes may take to finish what they have begun before a source gives its messages back without
/// their acknowledgements. What they commit later is recognised when it is delivered again.
pub(crate) const LEAVE_PATIENCE: Duration = Duration::from_secs(5);

/// How often a window with a hole is looked at, and how long deliveries have been held.
pub(crate) const WINDOW_TICK: Duration = Duration::from_millis(250);

/// What every source works with.
#[derive(Clone)]
pub struct Feed {
    pub consumer: Arc<Consumer>,
    pub lanes: Lanes,
    pub prefetch: u16,
    /// Stop taking messages; acknowledgements go on until the lanes have ended.
    pub stop: CancellationToken,
}

impl Feed {
    /// Hands a message to its lane.
    async fn dispatch(&self, work: Work) {
        let metrics = &self.consumer.metrics;
        metrics.deliveries.inc();
        if work.item.redelivered {
            metrics.redeliveries.inc();
        }
        let partition = work
            .item
            .identity
            .as_ref()
            .map_or(0, |identity| identity.partition);
        failpoint::pass(Point::AfterKey);
        self.lanes.send(partition, work).await;
    }

    /// Waits until nothing holds the consumer back and the ledger answers. False when stopped.
    async fn may_subscribe(&self) -> bool {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => false,
            () = self.consumer.gate.may_subscribe() => self.ledger_answers().await,
        }
    }

    /// Waits until no lane is at work, at most until the time that comes with a reason to leave.
    async fn lanes_are_idle(&self, leaving: &Option<(Instant, String)>) {
        if let Some((deadline, _)) = leaving {
            let idle = self.consumer.gate.emptied();
            let _ = tokio::time::timeout_at((*deadline).into(), idle).await;
        }
    }

    /// Waits until the ledger answers: without a database there is no consumer. False when stopped.
    async fn ledger_answers(&self) -> bool {
        let mut trouble = Backoff::for_servers();
        loop {
            let answer = async {
                self.consumer
                    .store
                    .session("hapax source")
                    .await?
                    .ping()
                    .await
            };
            let error = tokio::select! {
                () = self.stop.cancelled() => return false,
                answer = answer => match answer {
                    Ok(()) => return true,
                    Err(error) => error,
                },
            };
            if trouble.tries() == 1 {
                tracing::warn!(
                    consumer = %self.consumer.name, %error,
                    "The store does not answer; the consumer does not subscribe before it does"
                );
            }
            if !self.pause(&mut trouble).await {
                return false;
            }
        }
    }

    /// Pauses; false when stopped meanwhile.
    async fn pause(&self, trouble: &mut Backoff) -> bool {
        tokio::select! {
            () = self.stop.cancelled() => false,
            () = tokio::time::sleep(trouble.pause()) => true,
        }
    }
}

/// Why a subscription ends that a lane has closed, because it gave messages back: its reason may be over before
/// the source looks.
fn given_back() -> String {
    "a line of held messages was full".to_owned()
}
