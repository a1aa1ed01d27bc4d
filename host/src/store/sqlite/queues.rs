//! The durable queues of the embedded broker, in the same file.

use std::collections::HashMap;

use async_trait::async_trait;
use sqlx::AssertSqlSafe;

use super::connection::{Slot, column};
use super::rows::{marks, pieces, values};
use super::session::SqliteSession;
use crate::message::Message;
use crate::store::stored::message;
use crate::store::{QueuedMessage, Queues, StoreError};

#[async_trait]
impl Queues for SqliteSession {
    async fn declare(&mut self, queue: &str) -> Result<(), StoreError> {
        let mut slot = self.alone().await?;
        let insert =
            sqlx::query("INSERT INTO hapax_queue (name) VALUES (?) ON CONFLICT (name) DO NOTHING")
                .bind(queue);
        slot.touch(insert).await.map(|_| ())
    }

    async fn depth(&mut self, queue: &str) -> Result<Option<u64>, StoreError> {
        let mut slot = self.alone().await?;
        let select = sqlx::query(
            "SELECT (SELECT count(*) FROM hapax_message m WHERE m.queue = q.id) FROM hapax_queue q WHERE q.name = ?",
        )
        .bind(queue);
        let row = slot.row(select).await?;
        row.map(|row| Ok(column::<i64>(&row, 0)?.unsigned_abs()))
            .transpose()
    }

    async fn publish(&mut self, messages: &[(String, Message)]) -> Result<Vec<bool>, StoreError> {
        let mut slot = self.alone().await?;
        slot.begin().await?;
        let result = publish(&mut slot, messages).await;
        slot.end(result).await
    }

    async fn deliver(
        &mut self,
        queue: &str,
        after: i64,
        limit: u32,
        bytes: u64,
    ) -> Result<Vec<QueuedMessage>, StoreError> {
        let mut slot = self.alone().await?;
        // Counted before they are handed out, so that a message that kills the host is known by it.
        let update = sqlx::query(
            "UPDATE hapax_message SET deliveries = deliveries + 1 WHERE sequence IN \
             (SELECT b.sequence FROM (SELECT n.sequence, \
             sum(n.bytes) OVER (ORDER BY n.sequence) - n.bytes AS before FROM \
             (SELECT m.sequence, length(m.body) AS bytes FROM hapax_message m \
             WHERE m.queue = (SELECT q.id FROM hapax_queue q WHERE q.name = ?1) AND m.sequence > ?2 \
             ORDER BY m.sequence LIMIT ?3) n) b WHERE b.before < ?4) \
             RETURNING sequence, deliveries, exchange, routing_key, properties, body",
        )
        .bind(queue)
        .bind(after)
        .bind(limit)
        .bind(i64::try_from(bytes).unwrap_or(i64::MAX));
        let mut delivered = Vec::new();
        for row in slot.rows(update).await? {
            delivered.push(QueuedMessage {
                sequence: column(&row, 0)?,
                deliveries: column(&row, 1)?,
                message: message(
                    column(&row, 2)?,
                    column(&row, 3)?,
                    column(&row, 4)?,
                    column(&row, 5)?,
                )?,
            });
        }
        delivered.sort_unstable_by_key(|message| message.sequence);
        Ok(delivered)
    }

    async fn ack(&mut self, queue: &str, sequences: &[i64]) -> Result<(), StoreError> {
        let mut slot = self.alone().await?;
        slot.begin().await?;
        let result = ack(&mut slot, queue, sequences).await;
        slot.end(result).await
    }
}

async fn publish(slot: &mut Slot, messages: &[(String, Message)]) -> Result<Vec<bool>, StoreError> {
    let mut queues: HashMap<String, i64> = HashMap::new();
    for row in slot
        .rows(sqlx::query("SELECT name, id FROM hapax_queue"))
        .await?
    {
        queues.insert(column(&row, 0)?, column(&row, 1)?);
    }
    let kept: Vec<(i64, &Message)> = messages
        .iter()
        .filter_map(|(queue, message)| Some((*queues.get(queue)?, message)))
        .collect();
    for piece in pieces(kept.len()) {
        let kept = &kept[piece];
        let text = format!(
            "INSERT INTO hapax_message (queue, exchange, routing_key, properties, body) VALUES {}",
            values(kept.len(), 5)
        );
        let mut insert = sqlx::query(AssertSqlSafe(text));
        for (queue, message) in kept {
            insert = insert
                .bind(queue)
                .bind(message.exchange.as_bytes())
                .bind(message.routing_key.as_bytes())
                .bind(message.encoded_properties())
                .bind(message.body.as_ref());
        }
        slot.touch(insert).await?;
    }
    Ok(messages
        .iter()
        .map(|(queue, _)| queues.contains_key(queue))
        .collect())
}

async fn ack(slot: &mut Slot, queue: &str, sequences: &[i64]) -> Result<(), StoreError> {
    for piece in pieces(sequences.len()) {
        let sequences = &sequences[piece];
        let text = format!(
            "DELETE FROM hapax_message WHERE sequence IN ({}) AND queue = (SELECT id FROM hapax_queue WHERE name = ?)",
            marks(sequences.len())
        );
        let mut delete = sqlx::query(AssertSqlSafe(text));
        for sequence in sequences {
            delete = delete.bind(sequence);
        }
        slot.touch(delete.bind(queue)).await?;
    }
    Ok(())
}
