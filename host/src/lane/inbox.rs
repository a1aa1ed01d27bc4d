//! The messages of a lane that wait for it, and the way from a partition to its lane.
//!
//! An inbox holds no more than the prefetch and the waiting rows that were handed over: both are bounded.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};

use crate::consumer::BatchLimits;

use super::Work;

/// When nothing has come for so long, no more is on its way: the source is idle, or everything that may be
/// unacknowledged is with the lanes.
const MAX_GAP: Duration = Duration::from_millis(2);

/// The lanes of a consumer.
#[derive(Clone)]
pub struct Lanes(Vec<mpsc::Sender<Work>>);

/// What one lane takes its batches from.
pub struct Inbox(mpsc::Receiver<Work>);

impl Lanes {
    /// So many lanes, each with room for `capacity` works.
    pub fn new(lanes: usize, capacity: usize) -> (Self, Vec<Inbox>) {
        let (senders, inboxes) = (0..lanes)
            .map(|_| {
                let (sender, receiver) = mpsc::channel(capacity);
                (sender, Inbox(receiver))
            })
            .unzip();
        (Self(senders), inboxes)
    }

    /// Puts a work into its partition's lane, and waits while that lane is full. Works for a lane that
    /// has ended are dropped: they are not acknowledged.
    pub async fn send(&self, partition: i64, work: Work) {
        let lane = partition.rem_euclid(self.0.len() as i64);
        let lane = usize::try_from(lane).expect("a remainder is not negative");
        let _ = self.0[lane].send(work).await;
    }

    /// Waits until all of them have ended, in whatever way: what is settled then is all that will be.
    pub async fn ended(&self) {
        for lane in &self.0 {
            lane.closed().await;
        }
    }
}

impl Inbox {
    /// The next batch: waits for one work, at most `patience` if there is one, and then takes what is
    /// ready. `None` when nobody will ever send again.
    ///
    /// A lane that finds work waiting is behind, and small batches would keep it there: it lets the batch
    /// fill for `linger`, while more keeps coming. One that had to wait for its first work does not.
    pub async fn next(
        &mut self,
        limits: BatchLimits,
        patience: Option<Duration>,
        linger: Duration,
    ) -> Option<Vec<Work>> {
        let (first, behind) = match self.0.try_recv() {
            Ok(work) => (work, true),
            Err(_) => {
                let work = match patience {
                    None => self.0.recv().await?,
                    Some(patience) => match timeout(patience, self.0.recv()).await {
                        Ok(work) => work?,
                        Err(_) => return Some(Vec::new()),
                    },
                };
                // Whoever sent it may be in the middle of more.
                tokio::task::yield_now().await;
                (work, false)
            }
        };
        let mut bytes = first.item.message.size_bytes() as u64;
        let mut batch = Vec::with_capacity(limits.messages.min(self.0.len() + 1));
        batch.push(first);
        let deadline = Instant::now() + linger;
        while batch.len() < limits.messages && bytes < limits.bytes {
            let work = match self.0.try_recv() {
                Ok(work) => work,
                Err(_) if behind && !linger.is_zero() => {
                    let gap = deadline.min(Instant::now() + MAX_GAP);
                    match timeout_at(gap, self.0.recv()).await {
                        Ok(Some(work)) => work,
                        _ => break,
                    }
                }
                Err(_) => break,
            };
            bytes += work.item.message.size_bytes() as u64;
            batch.push(work);
        }
        Some(batch)
    }
}
