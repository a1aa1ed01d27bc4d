//! A broker in memory: one queue that gives back what a lost channel held, and what was published.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::message::Message;

#[derive(Clone, Debug)]
pub struct Queued {
    /// The order of the queue, which a message keeps when it comes back.
    order: u64,
    pub message: Message,
    pub redelivered: bool,
}

#[derive(Default)]
pub struct Queue {
    ready: VecDeque<Queued>,
    /// What each channel holds, by delivery tag.
    held: BTreeMap<u64, BTreeMap<u64, Queued>>,
    tags: BTreeMap<u64, u64>,
    channels: u64,
    orders: u64,
    /// Everything that was ever published.
    pub accepted: Vec<Message>,
    /// Message ids that have arrived through the relay, in the order of their first arrival.
    pub arrived: Vec<(String, Vec<u8>)>,
    ids: BTreeSet<String>,
    pub copies: u64,
}

#[derive(Default)]
pub struct Broker {
    queue: Mutex<Queue>,
    pub more: Notify,
}

impl Broker {
    pub fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A producer's message is in the queue.
    pub fn publish(&self, message: Message) {
        let mut queue = self.queue();
        queue.orders += 1;
        let order = queue.orders;
        queue.accepted.push(message.clone());
        queue.ready.push_back(Queued {
            order,
            message,
            redelivered: false,
        });
        drop(queue);
        self.more.notify_waiters();
    }

    pub fn open_channel(&self) -> u64 {
        let mut queue = self.queue();
        queue.channels += 1;
        let channel = queue.channels;
        queue.held.insert(channel, BTreeMap::new());
        queue.tags.insert(channel, 0);
        channel
    }

    /// The next message for a channel that holds less than its prefetch. `None`: nothing for it now.
    pub fn deliver(&self, channel: u64, prefetch: usize) -> Option<(u64, Queued)> {
        let mut queue = self.queue();
        if queue.held.get(&channel)?.len() >= prefetch {
            return None;
        }
        let next = queue.ready.pop_front()?;
        let tag = queue.tags.get_mut(&channel)?;
        *tag += 1;
        let tag = *tag;
        queue.held.get_mut(&channel)?.insert(tag, next.clone());
        Some((tag, next))
    }

    pub fn is_open(&self, channel: u64) -> bool {
        self.queue().held.contains_key(&channel)
    }

    /// Acknowledged messages are gone; returns them. A tag that is not out closes the channel.
    pub fn ack(&self, channel: u64, tag: u64, multiple: bool) -> Result<Vec<Queued>, String> {
        let mut queue = self.queue();
        let Some(held) = queue.held.get_mut(&channel) else {
            return Ok(Vec::new());
        };
        if !held.contains_key(&tag) {
            return Err(format!(
                "the tag {tag} was acknowledged twice, or never delivered"
            ));
        }
        let mut acked = Vec::new();
        if multiple {
            let rest = held.split_off(&(tag + 1));
            acked.extend(std::mem::replace(held, rest).into_values());
        } else {
            acked.extend(held.remove(&tag));
        }
        drop(queue);
        self.more.notify_waiters();
        Ok(acked)
    }

    /// What the channel held is ready again, in its old place.
    pub fn close_channel(&self, channel: u64) {
        let mut queue = self.queue();
        for (_, mut message) in queue.held.remove(&channel).unwrap_or_default() {
            message.redelivered = true;
            let place = queue
                .ready
                .partition_point(|other| other.order < message.order);
            queue.ready.insert(place, message);
        }
        drop(queue);
        self.more.notify_waiters();
    }

    pub fn channels(&self) -> Vec<u64> {
        self.queue().held.keys().copied().collect()
    }

    /// A message of the relay arrives. False: it has been here before.
    pub fn arrive(&self, id: String, body: &[u8]) -> bool {
        let mut queue = self.queue();
        let first = queue.ids.insert(id.clone());
        if first {
            queue.arrived.push((id, body.to_vec()));
        } else {
            queue.copies += 1;
        }
        first
    }

    pub fn has(&self, id: &str) -> bool {
        self.queue().ids.contains(id)
    }

    /// Nothing is in the queue, and nobody holds anything.
    pub fn is_empty(&self) -> bool {
        let queue = self.queue();
        queue.ready.is_empty() && queue.held.values().all(BTreeMap::is_empty)
    }
}
