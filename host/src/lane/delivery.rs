//! A delivery of the broker while a lane has it: where its verdict goes, and the memory that it holds.

use std::sync::Arc;

use crate::ack::{AckQueue, Settled};

/// Bytes of bodies that are held in memory, and their bound.
pub trait Budget: std::fmt::Debug + Send + Sync {
    /// Takes bytes off that are held no more.
    fn release(&self, bytes: u64);
}

/// One delivery on its way.
#[derive(Debug)]
pub struct Delivery {
    acks: Arc<AckQueue>,
    tag: u64,
    then: Then,
    held: Option<Held>,
}

/// What the broker is told when the message is durably dealt with.
#[derive(Debug)]
pub enum Then {
    Ack,
    /// Only a part of the message is stored: it goes to the queue's dead letters.
    Reject,
    /// Only a part of the message is stored, and the queue has no dead letters: it stays where it is, for this reason.
    Leave(String),
}

/// A body's share of a budget, given back when the body is dropped.
#[derive(Debug)]
struct Held {
    budget: Arc<dyn Budget>,
    bytes: u64,
}

impl Delivery {
    pub fn new(acks: &Arc<AckQueue>, tag: u64) -> Self {
        Self {
            acks: Arc::clone(acks),
            tag,
            then: Then::Ack,
            held: None,
        }
    }

    /// The same, with an end of its own.
    pub fn then(self, then: Then) -> Self {
        Self { then, ..self }
    }

    /// The same, with a body that counts in `budget` for as long as the delivery is here.
    pub fn holding(self, budget: Arc<dyn Budget>, bytes: u64) -> Self {
        let held = Some(Held { budget, bytes });
        Self { held, ..self }
    }

    /// Its channel is gone: the broker delivers the message again.
    pub fn is_forgotten(&self) -> bool {
        self.acks.is_closed()
    }

    /// Gives up the channel: what it has delivered and nobody has begun goes back to the queue.
    pub fn give_back(&self) {
        self.acks.close();
    }
}

/// Tells the broker that deliveries are durably dealt with, those of one channel at once. What they hold of a budget
/// is given back first: the broker sends more as soon as it hears of them.
pub fn settle(deliveries: impl IntoIterator<Item = Delivery>) {
    let mut acks: Option<(Arc<AckQueue>, Vec<u64>)> = None;
    for delivery in deliveries {
        let Delivery {
            acks: queue,
            tag,
            then,
            held,
        } = delivery;
        drop(held);
        let settled = match then {
            Then::Ack => match &mut acks {
                Some((same, tags)) if Arc::ptr_eq(same, &queue) => {
                    tags.push(tag);
                    continue;
                }
                _ => {
                    if let Some((other, tags)) = acks.replace((queue, vec![tag])) {
                        other.settle(tags);
                    }
                    continue;
                }
            },
            Then::Reject => Settled::Reject(tag),
            Then::Leave(reason) => Settled::Leave(tag, reason),
        };
        queue.send(settled);
    }
    if let Some((queue, tags)) = acks {
        queue.settle(tags);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.release(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Debug, Default)]
    struct Released(Mutex<Vec<u64>>);

    impl Budget for Released {
        fn release(&self, bytes: u64) {
            self.0.lock().expect("no panic").push(bytes);
        }
    }

    #[test]
    fn a_channel_hears_of_all_its_deliveries_at_once_and_of_each_exception_alone() {
        let (first, mut of_first) = AckQueue::new();
        let (second, mut of_second) = AckQueue::new();
        let (first, second) = (Arc::new(first), Arc::new(second));
        settle([
            Delivery::new(&first, 1),
            Delivery::new(&first, 2).then(Then::Reject),
            Delivery::new(&first, 3),
            Delivery::new(&second, 1),
            Delivery::new(&second, 2).then(Then::Leave("too large".to_owned())),
        ]);
        let mut heard = std::iter::from_fn(|| of_first.try_recv().ok()).collect::<Vec<_>>();
        heard.extend(std::iter::from_fn(|| of_second.try_recv().ok()));
        assert_eq!(
            heard,
            [
                Settled::Reject(2),
                Settled::Ack(vec![1, 3]),
                Settled::Leave(2, "too large".to_owned()),
                Settled::Ack(vec![1]),
            ]
        );
    }

    #[test]
    fn what_a_delivery_holds_is_given_back_once_whether_it_is_settled_or_dropped() {
        let (acks, _settled) = AckQueue::new();
        let acks = Arc::new(acks);
        let budget = Arc::new(Released::default());
        let holding = |tag, bytes| {
            Delivery::new(&acks, tag).holding(Arc::clone(&budget) as Arc<dyn Budget>, bytes)
        };
        settle([holding(1, 10)]);
        drop(holding(2, 20));
        assert_eq!(*budget.0.lock().expect("no panic"), [10, 20]);
    }
}
