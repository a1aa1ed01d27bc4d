//! The rows of `hapax_outbox` as an operator handles them: look, and send now what waits.

use serde::{Deserialize, Serialize};

use crate::failpoint::{self, Point};
use crate::store::{OutboxFilter, OutboxListing, Session};

use super::wire::Wire;
use super::{OperationError, Operations, time};

/// Which rows. Everything that is set must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutboxQuery {
    pub consumer: Option<String>,
    pub target: Option<String>,
    pub id: Option<i64>,
    /// Only rows that could not be sent.
    pub failed: bool,
    pub limit: u32,
}

/// One outgoing message in a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OutboxEntry {
    pub id: i64,
    pub consumer: String,
    pub target: String,
    /// `sending`: in the memory of a host. `retry`: it could not be sent, and is tried again. `delayed`: its
    /// handler wanted it later.
    pub state: String,
    /// Tries that failed.
    pub attempts: i32,
    pub error: Option<String>,
    /// RFC 3339, UTC.
    pub created_at: String,
    pub age_seconds: f64,
    pub due_at: Option<String>,
    pub exchange: String,
    pub routing_key: String,
    pub ordering_key: Option<String>,
    pub message_id: Option<String>,
    pub body_bytes: u64,
}

/// The oldest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OutboxPage {
    pub entries: Vec<OutboxEntry>,
    pub more: bool,
}

/// One outgoing message, whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OutboxShown {
    pub entry: OutboxEntry,
    pub message: Wire,
}

impl OutboxQuery {
    fn filter(&self) -> OutboxFilter {
        OutboxFilter {
            consumer: self.consumer.clone(),
            target: self.target.clone(),
            sequence: self.id,
            failed: self.failed,
            after: 0,
            limit: self.limit,
        }
    }
}

impl Operations {
    pub(super) async fn outbox_list(
        &self,
        session: &mut dyn Session,
        query: &OutboxQuery,
    ) -> Result<OutboxPage, OperationError> {
        let filter = OutboxFilter {
            limit: query.limit.saturating_add(1),
            ..query.filter()
        };
        let now = session.upkeep().clock().await?;
        let mut rows = session.upkeep().outbox_list(&filter).await?;
        if rows.is_empty() {
            self.known_consumer(query.consumer.as_deref())?;
        }
        let limit = usize::try_from(query.limit).unwrap_or(usize::MAX);
        let more = rows.len() > limit;
        rows.truncate(limit);
        Ok(OutboxPage {
            entries: rows.iter().map(|row| entry(row, now)).collect(),
            more,
        })
    }

    pub(super) async fn outbox_show(
        &self,
        session: &mut dyn Session,
        id: i64,
    ) -> Result<OutboxShown, OperationError> {
        let now = session.upkeep().clock().await?;
        let row = self.outbox_row(session, id).await?;
        Ok(OutboxShown {
            entry: entry(&row, now),
            message: Wire::from(&row.record.row.message),
        })
    }

    /// Makes rows due now; returns how many were not.
    pub(super) async fn outbox_retry(
        &self,
        session: &mut dyn Session,
        query: &OutboxQuery,
    ) -> Result<u64, OperationError> {
        self.known_consumer(query.consumer.as_deref())?;
        if let Some(id) = query.id
            && self.outbox_row(session, id).await?.due_at.is_none()
        {
            return Err(OperationError::Refused(format!(
                "the message {id} does not wait: it is in the memory of a host, which is sending it"
            )));
        }
        let due = session.upkeep().outbox_retry(&query.filter()).await?;
        failpoint::pass(Point::AfterOutboxRetry);
        Ok(due)
    }

    async fn outbox_row(
        &self,
        session: &mut dyn Session,
        id: i64,
    ) -> Result<OutboxListing, OperationError> {
        let filter = OutboxFilter {
            sequence: Some(id),
            limit: 1,
            ..OutboxFilter::default()
        };
        let row = session.upkeep().outbox_list(&filter).await?.pop();
        row.ok_or_else(|| {
            OperationError::Refused(format!(
                "there is no message {id} in the outbox: the broker has confirmed it, or it never was there"
            ))
        })
    }
}

fn entry(row: &OutboxListing, now: i64) -> OutboxEntry {
    let message = &row.record.row.message;
    let state = match (row.due_at, row.record.attempts) {
        (None, _) => "sending",
        (Some(_), 0) => "delayed",
        (Some(_), _) => "retry",
    };
    OutboxEntry {
        id: row.record.sequence,
        consumer: row.consumer.clone(),
        target: row.record.row.target.clone(),
        state: state.to_owned(),
        attempts: row.record.attempts,
        error: row.error.clone(),
        created_at: time(row.created_at),
        age_seconds: (now - row.created_at).max(0) as f64 / 1e6,
        due_at: row.due_at.map(time),
        exchange: message.exchange.clone(),
        routing_key: message.routing_key.clone(),
        ordering_key: row.record.row.ordering_key.clone(),
        message_id: message.property("message-id"),
        body_bytes: message.body.len() as u64,
    }
}
