//! Where messages come from: connection, prefetch, delivery, and the way of acknowledgements back.
//!
//! A source decides nothing about a message. It never acknowledges by itself: it sends what lanes have
//! settled, to the very channel that delivered it.

pub mod amqp;
pub mod embedded;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::consumer::Consumer;
use crate::failpoint::{self, Point};
use crate::lane::{Lanes, Work};

/// What every source works with.
#[derive(Clone)]
pub struct Feed {
    pub consumer: Arc<Consumer>,
    pub lanes: Lanes,
    pub prefetch: u16,
    /// Stop taking messages; acknowledgements go on.
    pub stop: CancellationToken,
    /// The lanes have ended: send the last acknowledgements and leave.
    pub finish: CancellationToken,
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
