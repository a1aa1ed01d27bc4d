//! A broker in memory: one queue that gives back what a lost channel held, and what was published.
//!
//! The queue may have a single active consumer: one channel is delivered to, until it closes; what it held is back
//! in its place before the next one gets anything.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::message::Message;

#[derive(Clone, Debug)]
pub struct Queued {
    /// The order of the queue, which a message keeps when it comes back. No two have the same.
    pub order: u64,
    pub message: Message,
    pub redelivered: bool,
    /// When it was delivered last.
    pub delivered: Option<Instant>,
}

/// The channel of a first delivery.
#[derive(Clone, Copy, Debug)]
pub enum First {
    Open,
    /// It is closed, and its host does not know that yet.
    Lost,
    /// Since when its host knows it.
    Noticed(Instant),
}

#[derive(Default)]
pub struct Queue {
    ready: VecDeque<Queued>,
    /// What each channel holds, by delivery tag.
    held: BTreeMap<u64, BTreeMap<u64, Queued>>,
    tags: BTreeMap<u64, u64>,
    channels: u64,
    orders: u64,
    /// The channel that each message was delivered to first.
    first: BTreeMap<u64, u64>,
    /// Channels that are closed, and since when their hosts know it.
    noticed: BTreeMap<u64, Instant>,
    /// With a single active consumer, the channel that is delivered to.
    active: Option<u64>,
    /// What has arrived through the relay, in the order of the first arrivals.
    pub arrived: Vec<Message>,
    ids: BTreeSet<String>,
    pub copies: u64,
}

#[derive(Default)]
pub struct Broker {
    queue: Mutex<Queue>,
    /// The queue has a single active consumer.
    is_single: bool,
    pub more: Notify,
}

impl Broker {
    pub fn new(is_single: bool) -> Self {
        Self {
            is_single,
            ..Self::default()
        }
    }

    pub fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A producer's message, made with its place in the queue.
    pub fn publish(&self, message: impl FnOnce(u64) -> Message) {
        let mut queue = self.queue();
        queue.orders += 1;
        let order = queue.orders;
        queue.ready.push_back(Queued {
            order,
            message: message(order),
            redelivered: false,
            delivered: None,
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
        queue.active.get_or_insert(channel);
        channel
    }

    /// The next message for a channel that holds less than its prefetch. `None`: nothing for it now.
    pub fn deliver(&self, channel: u64, prefetch: usize) -> Option<(u64, Queued)> {
        let mut queue = self.queue();
        if queue.held.get(&channel)?.len() >= prefetch {
            return None;
        }
        if self.is_single && queue.active != Some(channel) {
            return None;
        }
        let mut next = queue.ready.pop_front()?;
        next.delivered = Some(Instant::now());
        let tag = queue.tags.get_mut(&channel)?;
        *tag += 1;
        let tag = *tag;
        queue.first.entry(next.order).or_insert(channel);
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
        if queue.active == Some(channel) {
            // The one that has waited for longest.
            queue.active = queue.held.keys().next().copied();
        }
        drop(queue);
        self.more.notify_waiters();
    }

    /// The host of a channel knows that it is gone, or is gone itself.
    pub fn notice(&self, channel: u64) {
        let mut queue = self.queue();
        queue.noticed.entry(channel).or_insert_with(Instant::now);
    }

    /// What became of the channel that a message was delivered to first.
    pub fn first_channel(&self, order: u64) -> First {
        let queue = self.queue();
        let channel = queue.first.get(&order);
        match channel.and_then(|channel| queue.noticed.get(channel)) {
            Some(since) => First::Noticed(*since),
            None if channel.is_some_and(|channel| queue.held.contains_key(channel)) => First::Open,
            None => First::Lost,
        }
    }

    pub fn channels(&self) -> Vec<u64> {
        self.queue().held.keys().copied().collect()
    }

    /// A message of the relay arrives; it may have been here before.
    pub fn arrive(&self, message: &Message) {
        let mut queue = self.queue();
        if queue.ids.insert(id_of(message)) {
            queue.arrived.push(message.clone());
        } else {
            queue.copies += 1;
        }
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

pub fn id_of(message: &Message) -> String {
    message.property("message-id").unwrap_or_default()
}
