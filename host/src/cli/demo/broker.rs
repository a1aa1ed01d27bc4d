//! The brokers, from outside: fills the queues before the consumers start, and looks into them after they
//! have stopped.
//!
//! Each consumer has queues of its own. With the embedded broker they are in a file of its own, because
//! one process at a time may have it open. On RabbitMQ one exchange, made for the run, hands every message
//! to all four.

mod amqp;
mod embedded;

use anyhow::Context;
use serde::Deserialize;

pub use amqp::connect;
pub use embedded::open_store;

use super::orders::{Order, Orders};
use super::place::{Contestant, Place};
use super::tally::Event;
use crate::message::Message;

/// Publishes the same deliveries to every consumer.
pub async fn publish(place: &Place, orders: &Orders) -> anyhow::Result<()> {
    match &place.surroundings.amqp {
        Some(url) => amqp::publish(place, url, orders).await,
        None => embedded::publish(place, orders).await,
    }
}

/// How much a consumer that has stopped has left undone: messages in its queue, and in Hapax's case events
/// in its outbox and messages that wait for another attempt.
pub async fn left(place: &Place, contestant: Contestant) -> anyhow::Result<u64> {
    match &place.surroundings.amqp {
        Some(url) => amqp::left(place, url, contestant).await,
        None => embedded::left(place, contestant).await,
    }
}

/// Takes the events of a consumer that has stopped.
pub async fn events(place: &Place, contestant: Contestant) -> anyhow::Result<Vec<Event>> {
    match &place.surroundings.amqp {
        Some(url) => amqp::events(place, url, contestant).await,
        None => embedded::events(place, contestant).await,
    }
}

/// Removes what the run has made on the server. Files go with their directory.
pub async fn remove(place: &Place) -> anyhow::Result<()> {
    match &place.surroundings.amqp {
        Some(url) => amqp::remove(place, url).await,
        None => Ok(()),
    }
}

/// An order as the embedded broker takes it.
pub fn order_message(queue: &str, order: &Order) -> Message {
    let properties = lapin::BasicProperties::default()
        .with_content_type("application/json".into())
        .with_message_id(order.order_id.as_str().into());
    Message {
        exchange: String::new(),
        routing_key: queue.to_owned(),
        properties,
        body: order.to_json().into(),
    }
}

/// An event as both kinds of broker hand it over.
fn event(properties: &lapin::BasicProperties, body: &[u8]) -> anyhow::Result<Event> {
    #[derive(Deserialize)]
    struct Credited {
        order_id: String,
    }
    let message_id = properties
        .message_id()
        .as_ref()
        .context("an event has no message id")?;
    let credited: Credited = serde_json::from_slice(body).context("an event is not JSON")?;
    Ok(Event {
        message_id: message_id.to_string(),
        order_id: credited.order_id,
    })
}
