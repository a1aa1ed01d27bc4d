//! Publishing into the embedded broker: the queues of the SQLite store.

use std::sync::Arc;

use async_trait::async_trait;

use crate::failpoint::{self, Point};
use crate::store::{OutboxRecord, Session, Store, StoreError};

use super::{Lost, Publisher, Sent};

/// Appends to durable queues. The default exchange is the only one there is.
pub struct EmbeddedPublisher {
    store: Arc<dyn Store>,
    session: Option<Box<dyn Session>>,
}

impl EmbeddedPublisher {
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            session: None,
        }
    }

    async fn append(&mut self, rows: &[OutboxRecord]) -> Result<Vec<bool>, StoreError> {
        if self.session.is_none() {
            self.session = Some(self.store.session("hapax relay").await?);
        }
        let queues = self.session.as_mut().and_then(|session| session.queues());
        let Some(queues) = queues else {
            return Err(StoreError::Unusable(
                "this store has no embedded broker".into(),
            ));
        };
        let messages = rows
            .iter()
            .map(|record| {
                let message = &record.row.message;
                (message.routing_key.clone(), message.clone())
            })
            .collect::<Vec<_>>();
        let taken = failpoint::pass_while(Point::AfterPublish, queues.publish(&messages)).await;
        failpoint::pass(Point::BeforeConfirm);
        taken
    }
}

#[async_trait]
impl Publisher for EmbeddedPublisher {
    async fn publish(&mut self, rows: &[OutboxRecord]) -> Result<Vec<Sent>, Lost> {
        match self.append(rows).await {
            Ok(taken) => Ok(taken
                .into_iter()
                .zip(rows)
                .map(|(taken, record)| {
                    if taken {
                        Sent::Confirmed
                    } else {
                        let queue = &record.row.message.routing_key;
                        Sent::Returned(format!("the embedded broker has no queue {queue}"))
                    }
                })
                .collect()),
            Err(error) => {
                self.session = None;
                Err(Lost(error.to_string()))
            }
        }
    }

    async fn close(&mut self) {
        self.session = None;
    }
}
