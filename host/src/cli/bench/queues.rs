//! The queues of a measurement on RabbitMQ: made, filled before it, paced during it, counted after it.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures_util::StreamExt;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel};
use serde::Deserialize;
use tokio::time::{MissedTickBehavior, interval};

use super::place::Place;
use crate::cli::demo::broker::connect;
use crate::cli::demo::orders::Order;

/// Confirms that may be outstanding while publishing.
const WINDOW: usize = 2_000;

/// A queue that nobody uses for this long removes itself. Milliseconds.
const EXPIRES_MS: i32 = 3_600_000;

/// The longest wait for the last events of a paced run.
const PATIENCE: Duration = Duration::from_secs(30);

const NAME: &str = "hapax bench";

pub async fn make(url: &str, place: &Place) -> anyhow::Result<()> {
    let connection = connect(url, NAME).await?;
    let channel = connection.create_channel().await?;
    for queue in [place.incoming(), place.outgoing()] {
        let mut arguments = FieldTable::default();
        arguments.insert("x-expires".into(), EXPIRES_MS.into());
        channel
            .queue_declare(queue.into(), QueueDeclareOptions::durable(), arguments)
            .await?;
    }
    Ok(connection.close(200, "done".into()).await?)
}

pub async fn remove(url: &str, place: &Place) -> anyhow::Result<()> {
    let connection = connect(url, NAME).await?;
    let channel = connection.create_channel().await?;
    for queue in [place.incoming(), place.outgoing()] {
        channel
            .queue_delete(queue.into(), QueueDeleteOptions::default())
            .await?;
    }
    Ok(connection.close(200, "done".into()).await?)
}

/// Ready messages in both queues.
pub async fn depths(url: &str, place: &Place) -> anyhow::Result<(u64, u64)> {
    let connection = connect(url, NAME).await?;
    let channel = connection.create_channel().await?;
    let options = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::durable()
    };
    let mut counts = [0, 0];
    for (queue, count) in [place.incoming(), place.outgoing()]
        .into_iter()
        .zip(&mut counts)
    {
        let declared = channel
            .queue_declare(queue.into(), options, FieldTable::default())
            .await?;
        *count = u64::from(declared.message_count());
    }
    connection.close(200, "done".into()).await?;
    Ok(counts.into())
}

/// Publishes all of them, persistent and confirmed.
pub async fn fill(url: &str, place: &Place, orders: &[Order]) -> anyhow::Result<()> {
    let connection = connect(url, NAME).await?;
    let channel = connection.create_channel().await?;
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await?;
    let queue = place.incoming();
    for window in orders.chunks(WINDOW) {
        let mut confirms = Vec::with_capacity(window.len());
        for order in window {
            confirms.push(publish(&channel, &queue, order).await?);
        }
        for confirm in confirms {
            let confirm = confirm.await?;
            let taken = confirm.is_ack() && confirm.take_message().is_none();
            ensure!(taken, "the broker did not take an order");
        }
    }
    Ok(connection.close(200, "done".into()).await?)
}

async fn publish(
    channel: &Channel,
    queue: &str,
    order: &Order,
) -> anyhow::Result<lapin::PublisherConfirm> {
    let options = BasicPublishOptions {
        mandatory: true,
        ..BasicPublishOptions::default()
    };
    let properties = BasicProperties::default()
        .with_delivery_mode(2)
        .with_content_type("application/json".into())
        .with_message_id(order.order_id.as_str().into());
    let body = order.to_json();
    Ok(channel
        .basic_publish("".into(), queue.into(), options, &body, properties)
        .await?)
}

/// Publishes at a fixed rate and waits for the event of each order. Returns how long each took, from just
/// before its publish to the arrival of its event.
pub async fn pace(
    url: &str,
    place: &Place,
    orders: &[Order],
    rate: u32,
) -> anyhow::Result<Vec<Duration>> {
    #[derive(Deserialize)]
    struct Credited {
        order_id: String,
    }
    let incoming = connect(url, NAME).await?;
    let outgoing = connect(url, NAME).await?;
    let channel = outgoing.create_channel().await?;
    let options = BasicConsumeOptions {
        no_ack: true,
        ..BasicConsumeOptions::default()
    };
    let mut events = channel
        .basic_consume(
            place.outgoing().into(),
            "".into(),
            options,
            FieldTable::default(),
        )
        .await?;
    let sent = Mutex::new(HashMap::with_capacity(orders.len()));
    let publishing = async {
        let channel = incoming.create_channel().await?;
        let queue = place.incoming();
        let mut tick = interval(Duration::from_secs(1) / rate);
        tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
        for order in orders {
            tick.tick().await;
            sent.lock()
                .expect("nothing panics while it holds the lock")
                .insert(order.order_id.clone(), Instant::now());
            publish(&channel, &queue, order).await?;
        }
        anyhow::Ok(())
    };
    let receiving = async {
        let mut took = Vec::with_capacity(orders.len());
        while took.len() < orders.len() {
            let next = tokio::time::timeout(PATIENCE, events.next());
            let delivery = next
                .await
                .context("an event does not arrive")?
                .context("the broker ended the subscription")??;
            let arrived = Instant::now();
            let event: Credited = serde_json::from_slice(&delivery.data)?;
            let mut sent = sent.lock().expect("nothing panics while it holds the lock");
            if let Some(at) = sent.remove(&event.order_id) {
                took.push(arrived.duration_since(at));
            }
        }
        anyhow::Ok(took)
    };
    let (published, took) = tokio::join!(publishing, receiving);
    published?;
    let took = took?;
    incoming.close(200, "done".into()).await?;
    outgoing.close(200, "done".into()).await?;
    Ok(took)
}
