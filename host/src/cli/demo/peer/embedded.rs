//! The embedded broker as a consumer reaches it. One task owns the connection, as in a client library:
//! what the workers send while it is busy goes to the broker together.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{Mutex, mpsc, oneshot};

use super::{Confirm, Delivery, PREFETCH, Queue};
use crate::cli::demo::broker;
use crate::message::Message;
use crate::store::{Queues, Session};

/// Pause after a look that found no message, and nobody had anything to send.
const IDLE_PAUSE: Duration = Duration::from_millis(5);

/// Requests in one write. With a server between them, workers do not move in step: each gets its confirm
/// when its own event is safe. One write for all of them would make them wait for each other.
const WRITE: usize = 8;

enum Request {
    Publish(Box<Message>, oneshot::Sender<bool>),
    Ack(i64),
    /// Everything before it has been sent when it is answered.
    Close(oneshot::Sender<()>),
}

pub struct Client {
    requests: mpsc::UnboundedSender<Request>,
    deliveries: Mutex<mpsc::Receiver<Delivery>>,
    events: String,
}

/// The task's side.
struct Connection {
    session: Box<dyn Session>,
    /// The queue that is consumed.
    orders: String,
    requests: mpsc::UnboundedReceiver<Request>,
    deliveries: mpsc::Sender<Delivery>,
    last: i64,
    unacknowledged: usize,
}

impl Client {
    /// Consumes `orders`, and publishes to the queue `events`.
    pub async fn open(file: &Path, orders: &str, events: &str) -> anyhow::Result<Self> {
        let session = broker::open_store(file)?.session("demo consumer").await?;
        let (requests, inbox) = mpsc::unbounded_channel();
        let (outbox, deliveries) = mpsc::channel(usize::from(PREFETCH));
        let connection = Connection {
            session,
            orders: orders.to_owned(),
            requests: inbox,
            deliveries: outbox,
            last: 0,
            unacknowledged: 0,
        };
        tokio::spawn(async move {
            if let Err(error) = connection.run().await {
                // The workers see a closed channel and end the process.
                eprintln!("demo consumer: {error:#}");
            }
        });
        Ok(Self {
            requests,
            deliveries: Mutex::new(deliveries),
            events: events.to_owned(),
        })
    }

    fn send(&self, request: Request) -> anyhow::Result<()> {
        self.requests.send(request).map_err(|_| gone())
    }
}

#[async_trait]
impl Queue for Client {
    async fn next(&self) -> anyhow::Result<Delivery> {
        self.deliveries.lock().await.recv().await.ok_or_else(gone)
    }

    async fn publish(&self, message_id: String, body: Vec<u8>) -> anyhow::Result<Confirm> {
        let properties = lapin::BasicProperties::default().with_message_id(message_id.into());
        let (answer, confirm) = oneshot::channel();
        let message = Message {
            exchange: String::new(),
            routing_key: self.events.clone(),
            properties,
            body: Bytes::from(body),
        };
        self.send(Request::Publish(Box::new(message), answer))?;
        let taken = confirm.await.map_err(|_| gone())?;
        ensure!(taken, "the queue of the events is not there");
        // What is written is safe.
        Ok(Box::pin(async { Ok(()) }))
    }

    async fn ack(&self, tag: u64) -> anyhow::Result<()> {
        self.send(Request::Ack(i64::try_from(tag)?))
    }

    async fn close(&self) -> anyhow::Result<()> {
        let (answer, closed) = oneshot::channel();
        self.send(Request::Close(answer))?;
        closed.await.map_err(|_| gone())
    }
}

impl Connection {
    async fn run(mut self) -> anyhow::Result<()> {
        loop {
            self.deliver().await?;
            let first = if self.unacknowledged > 0 {
                self.requests.recv().await
            } else {
                match tokio::time::timeout(IDLE_PAUSE, self.requests.recv()).await {
                    Ok(first) => first,
                    Err(_) => continue,
                }
            };
            let Some(first) = first else { return Ok(()) };
            let mut batch = vec![first];
            while batch.len() < WRITE
                && let Ok(request) = self.requests.try_recv()
            {
                batch.push(request);
            }
            if let Some(close) = self.send(batch).await? {
                // Whoever asked may have gone meanwhile.
                let _ = close.send(());
                return Ok(());
            }
        }
    }

    /// Takes messages when half of the prefetch is free.
    async fn deliver(&mut self) -> anyhow::Result<()> {
        let room = usize::from(PREFETCH) - self.unacknowledged;
        if room < usize::from(PREFETCH) / 2 {
            return Ok(());
        }
        let after = self.last;
        let orders = self.orders.clone();
        let room = u32::try_from(room)?;
        for queued in self
            .queues()?
            .deliver(&orders, after, room, u64::MAX)
            .await?
        {
            self.last = queued.sequence;
            self.unacknowledged += 1;
            let tag = u64::try_from(queued.sequence)?;
            let delivery = Delivery {
                tag,
                body: queued.message.body.to_vec(),
            };
            // The channel has room for the whole prefetch, and lives as long as this task.
            let _ = self.deliveries.send(delivery).await;
        }
        Ok(())
    }

    async fn send(&mut self, batch: Vec<Request>) -> anyhow::Result<Option<oneshot::Sender<()>>> {
        let (mut events, mut confirms, mut acks, mut close) =
            (Vec::new(), Vec::new(), Vec::new(), None);
        for request in batch {
            match request {
                Request::Publish(message, answer) => {
                    events.push((message.routing_key.clone(), *message));
                    confirms.push(answer);
                }
                Request::Ack(sequence) => acks.push(sequence),
                Request::Close(answer) => close = Some(answer),
            }
        }
        if !events.is_empty() {
            let taken = self.queues()?.publish(&events).await?;
            for (confirm, taken) in confirms.into_iter().zip(taken) {
                // A worker that no longer waits has nobody to tell.
                let _ = confirm.send(taken);
            }
        }
        if !acks.is_empty() {
            let orders = self.orders.clone();
            self.queues()?.ack(&orders, &acks).await?;
            self.unacknowledged -= acks.len();
        }
        Ok(close)
    }

    fn queues(&mut self) -> anyhow::Result<&mut dyn Queues> {
        self.session
            .queues()
            .context("the embedded broker lives in a SQLite store")
    }
}

fn gone() -> anyhow::Error {
    anyhow!("the connection to the embedded broker is gone")
}
