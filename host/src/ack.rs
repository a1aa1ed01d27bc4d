//! From verdicts to acknowledgements: which deliveries of a channel may be acked, in how few frames.
//!
//! Lanes finish out of order. The window acks the contiguous prefix with one `multiple` frame and steps
//! over a hole only when it has been there for long, with single acks for what lies behind it. A tag that
//! was acked is never named again: brokers close the channel for that.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

/// A hole older than this is stepped over.
pub const HOLE_PATIENCE: Duration = Duration::from_secs(1);

/// The way back to the channel that delivered a message, and to no other.
#[derive(Debug)]
pub struct AckQueue {
    settled: mpsc::UnboundedSender<Settled>,
    closed: AtomicBool,
}

/// Deliveries that are durably dealt with, and what the broker is told of them.
#[derive(Debug, PartialEq, Eq)]
pub enum Settled {
    Ack(Vec<u64>),
    /// Only a part of it is stored: the broker moves the message to the queue's dead letters.
    Reject(u64),
    /// Only a part of it is stored, and the broker would drop it: it stays unacknowledged, for this reason.
    Leave(u64, String),
}

impl AckQueue {
    /// The queue, and the end that the channel's task reads. The queue holds at most the prefetch.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Settled>) {
        let (settled, receiver) = mpsc::unbounded_channel();
        (
            Self {
                settled,
                closed: AtomicBool::new(false),
            },
            receiver,
        )
    }

    /// Says that these deliveries are durably dealt with. Deliveries of a channel that is gone are
    /// forgotten: the broker delivers them again, and the ledger knows them.
    pub fn settle(&self, tags: Vec<u64>) {
        self.send(Settled::Ack(tags));
    }

    /// The same for one delivery that is not to be acknowledged.
    pub fn send(&self, settled: Settled) {
        let _ = self.settled.send(settled);
    }

    /// The channel is gone; what it delivered and nobody has begun need not be run.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

/// One acknowledgement on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    pub tag: u64,
    pub multiple: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    Open,
    Settled,
    Acked,
}

/// The deliveries of one channel that are not acknowledged yet. Tags count from 1 without gaps.
#[derive(Debug)]
pub struct Window {
    /// The tag of the first slot.
    first: u64,
    slots: VecDeque<Slot>,
    /// When the deliveries from the first slot on have come.
    delivered: VecDeque<Instant>,
    /// Slots that are settled and not acked.
    settled: usize,
    /// How many settled slots may wait behind a hole: as many as leave the lanes something to do.
    capacity: usize,
    /// Since when something settled waits behind a hole.
    hole_since: Option<Instant>,
}

impl Window {
    /// A window for a channel with this prefetch.
    pub fn new(prefetch: u16) -> Self {
        Self {
            first: 1,
            slots: VecDeque::new(),
            delivered: VecDeque::new(),
            settled: 0,
            capacity: (usize::from(prefetch) * 7 / 8).max(1),
            hole_since: None,
        }
    }

    /// Notes when the next delivery has come.
    pub fn delivered(&mut self, now: Instant) {
        self.delivered.push_back(now);
    }

    /// When the oldest delivery came that is not acknowledged.
    pub fn oldest(&self) -> Option<Instant> {
        self.delivered.front().copied()
    }

    /// Marks a delivery as dealt with. A tag that was already acknowledged changes nothing.
    pub fn settle(&mut self, tag: u64) {
        let Some(offset) = tag.checked_sub(self.first) else {
            return;
        };
        let offset = usize::try_from(offset).expect("a window is no longer than a prefetch");
        if self.slots.len() <= offset {
            self.slots.resize(offset + 1, Slot::Open);
        }
        if self.slots[offset] == Slot::Open {
            self.slots[offset] = Slot::Settled;
            self.settled += 1;
        }
    }

    /// Marks a delivery that the broker was told of already.
    pub fn rejected(&mut self, tag: u64) {
        self.settle(tag);
        let slot = tag
            .checked_sub(self.first)
            .and_then(|offset| usize::try_from(offset).ok())
            .and_then(|offset| self.slots.get_mut(offset));
        if let Some(slot @ Slot::Settled) = slot {
            *slot = Slot::Acked;
            self.settled -= 1;
        }
    }

    /// The frames to send now. What they name counts as acknowledged.
    pub fn frames(&mut self, now: Instant) -> Vec<Frame> {
        let mut frames = Vec::new();
        frames.extend(self.prefix());
        if self.settled == 0 {
            self.hole_since = None;
            return frames;
        }
        let since = *self.hole_since.get_or_insert(now);
        if self.settled >= self.capacity || now.duration_since(since) >= HOLE_PATIENCE {
            frames.extend(self.behind_the_hole());
            self.hole_since = None;
        }
        frames
    }

    /// The frames for everything that is settled, whatever is still open before it.
    pub fn last_frames(&mut self) -> Vec<Frame> {
        let mut frames = Vec::from_iter(self.prefix());
        frames.extend(self.behind_the_hole());
        frames
    }

    /// Whether `frames` has to be asked again later, with nothing new settled.
    pub fn is_waiting(&self) -> bool {
        self.settled > 0
    }

    /// Removes the contiguous prefix. The frame names its last tag that was not acked before.
    fn prefix(&mut self) -> Option<Frame> {
        let mut last = None;
        let mut open = 0;
        while let Some(slot) = self
            .slots
            .front()
            .copied()
            .filter(|slot| *slot != Slot::Open)
        {
            if slot == Slot::Settled {
                last = Some(self.first);
                open += 1;
            }
            self.slots.pop_front();
            self.delivered.pop_front();
            self.first += 1;
        }
        self.settled -= open;
        last.map(|tag| Frame {
            tag,
            multiple: open > 1,
        })
    }

    fn behind_the_hole(&mut self) -> Vec<Frame> {
        let mut frames = Vec::with_capacity(self.settled);
        for (offset, slot) in self.slots.iter_mut().enumerate() {
            if *slot == Slot::Settled {
                *slot = Slot::Acked;
                frames.push(Frame {
                    tag: self.first + offset as u64,
                    multiple: false,
                });
            }
        }
        self.settled = 0;
        frames
    }
}

#[cfg(test)]
mod tests;
