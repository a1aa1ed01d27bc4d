//! The connections of one listener: how many there may be, and which one makes room for the next.
//!
//! A listener never refuses a connection because others are idle or send their requests slowly: the one that has
//! waited longest for its peer is closed for it. A request that is being answered keeps its seat; it has a
//! deadline of its own.
//!
//! ```text
//! Heading ──head is complete──▶ Working ──answer is handed over──▶ Answered
//!    │                             ▲                                   │ │
//!    └─ too long, or makes room    └───── head of the next request ────┘ └─ too long, or makes room
//! ```

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long the head of a connection's first request may take.
const HEAD_PATIENCE: Duration = Duration::from_secs(5);

/// How long a peer may take to receive an answer and to send the head of its next request.
const IDLE_PATIENCE: Duration = Duration::from_secs(10);

/// What a connection is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Heading,
    Working,
    Answered,
}

/// One connection's. It is free again when this is dropped.
pub(super) struct Seat {
    state: Mutex<(Phase, Instant)>,
    /// The connection is to be closed at once.
    pub(super) closed: CancellationToken,
}

impl Seat {
    /// The head of a request is complete.
    pub(super) fn works(&self) {
        self.enter(Phase::Working);
    }

    /// The answer is handed over.
    pub(super) fn answered(&self) {
        self.enter(Phase::Answered);
    }

    fn enter(&self, phase: Phase) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = (phase, Instant::now());
    }

    /// Since when it has waited for its peer, and how long it may.
    fn waits(&self) -> Option<(Instant, Duration)> {
        match *self.state.lock().unwrap_or_else(PoisonError::into_inner) {
            (Phase::Heading, since) => Some((since, HEAD_PATIENCE)),
            (Phase::Answered, since) => Some((since, IDLE_PATIENCE)),
            (Phase::Working, _) => None,
        }
    }
}

/// All seats of a listener.
pub(super) struct Seats {
    max: usize,
    taken: Vec<Weak<Seat>>,
}

impl Seats {
    pub(super) fn new(max: usize) -> Self {
        Self {
            max,
            taken: Vec::with_capacity(max),
        }
    }

    /// A seat for a new connection, if need be that of the one which has waited longest. `None` when all of them
    /// are at work.
    pub(super) fn take(&mut self) -> Option<Arc<Seat>> {
        let taken = self.taken();
        if taken.len() >= self.max {
            let waiting = taken
                .iter()
                .filter_map(|seat| Some((seat.waits()?.0, seat)));
            let (_, longest) = waiting.min_by_key(|(since, _)| *since)?;
            longest.closed.cancel();
            let longest = Arc::downgrade(longest);
            self.taken.retain(|seat| !seat.ptr_eq(&longest));
        }
        let seat = Arc::new(Seat {
            state: Mutex::new((Phase::Heading, Instant::now())),
            closed: CancellationToken::new(),
        });
        self.taken.push(Arc::downgrade(&seat));
        Some(seat)
    }

    /// Closes the connections whose peers have taken too long.
    pub(super) fn close_overdue(&mut self) {
        let now = Instant::now();
        for seat in self.taken() {
            if let Some((since, patience)) = seat.waits()
                && now.duration_since(since) >= patience
            {
                seat.closed.cancel();
            }
        }
    }

    /// Those of connections that are still there.
    fn taken(&mut self) -> Vec<Arc<Seat>> {
        let mut there = Vec::with_capacity(self.taken.len());
        self.taken.retain(|seat| match seat.upgrade() {
            Some(seat) => {
                there.push(seat);
                true
            }
            None => false,
        });
        there
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_closed(seat: &Seat) -> bool {
        seat.closed.is_cancelled()
    }

    #[tokio::test(start_paused = true)]
    async fn the_one_that_has_waited_longest_makes_room() {
        let mut seats = Seats::new(3);
        let step = || tokio::time::advance(Duration::from_millis(1));
        let first = seats.take().expect("room");
        step().await;
        let second = seats.take().expect("room");
        step().await;
        let third = seats.take().expect("room");
        step().await;
        // What is at work stays, and waits anew when it has its answer.
        first.works();
        let fourth = seats.take().expect("room");
        assert!(is_closed(&second) && !is_closed(&first) && !is_closed(&third));
        step().await;
        first.answered();
        step().await;
        let _fifth = seats.take().expect("room");
        assert!(is_closed(&third) && !is_closed(&first) && !is_closed(&fourth));
        drop(fourth);
        let _sixth = seats.take().expect("room");
        assert!(!is_closed(&first), "a seat had become free");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_makes_room_while_all_are_at_work() {
        let mut seats = Seats::new(1);
        let seat = seats.take().expect("room");
        seat.works();
        assert!(seats.take().is_none());
        tokio::time::advance(Duration::from_secs(3600)).await;
        seats.close_overdue();
        assert!(!is_closed(&seat), "its request has a deadline of its own");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_too_long_is_closed() {
        let mut seats = Seats::new(2);
        let (slow, idle) = (seats.take().expect("room"), seats.take().expect("room"));
        idle.works();
        idle.answered();
        tokio::time::advance(HEAD_PATIENCE).await;
        seats.close_overdue();
        assert!(is_closed(&slow) && !is_closed(&idle));
        tokio::time::advance(IDLE_PATIENCE - HEAD_PATIENCE).await;
        seats.close_overdue();
        assert!(is_closed(&idle));
    }
}
