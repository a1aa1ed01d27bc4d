//! The contract of the embedded broker's queues, which only a store of one process has.

use async_trait::async_trait;

use super::StoreError;
use crate::message::Message;

/// A queue's message as the embedded broker keeps it.
#[derive(Clone, Debug)]
pub struct QueuedMessage {
    pub sequence: i64,
    pub deliveries: i32,
    pub message: Message,
}

/// The durable queues of the embedded broker. Each call is a transaction of its own.
#[async_trait]
pub trait Queues: Send {
    /// Makes a queue; nothing happens when it is there.
    async fn declare(&mut self, queue: &str) -> Result<(), StoreError>;

    /// Whether the queue is there, and how many messages it holds.
    async fn depth(&mut self, queue: &str) -> Result<Option<u64>, StoreError>;

    /// Appends messages; false, and nothing is kept, for those whose queue is not there.
    async fn publish(&mut self, messages: &[(String, Message)]) -> Result<Vec<bool>, StoreError>;

    /// The next messages after `after`, in order, each with its deliveries counted up: at most `limit`, and no more
    /// than their bodies need to reach `bytes`.
    async fn deliver(
        &mut self,
        queue: &str,
        after: i64,
        limit: u32,
        bytes: u64,
    ) -> Result<Vec<QueuedMessage>, StoreError>;

    /// Removes acknowledged messages.
    async fn ack(&mut self, queue: &str, sequences: &[i64]) -> Result<(), StoreError>;
}
