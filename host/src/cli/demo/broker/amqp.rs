//! RabbitMQ from outside. Everything that is made here carries the random name of the run, is removed at
//! its end, and expires by itself should the run not get there.

use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::StreamExt;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions,
    ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ExchangeKind};

use super::embedded::{open_store, unfinished};
use super::{Event, event};
use crate::amqp::{Address, ConnectError};
use crate::cli::demo::Trouble;
use crate::cli::demo::orders::{Order, Orders};
use crate::cli::demo::place::{Contestant, EVENTS, ORDERS, Place};
use crate::config::Secret;

/// Confirms that may be outstanding while publishing.
const WINDOW: usize = 2_000;

/// A queue that nobody uses for this long removes itself. Milliseconds.
const EXPIRES_MS: i32 = 3_600_000;

/// The longest wait for something that the broker is about to do.
const PATIENCE: Duration = Duration::from_secs(10);

pub async fn connect(url: &str, name: &str) -> anyhow::Result<Connection> {
    let address = Address {
        url: Secret::url(url),
        heartbeat: Duration::from_secs(20),
        connect_timeout: PATIENCE,
    };
    address.connect(name).await.map_err(|error| {
        let text = error.to_string();
        let trouble = match error {
            ConnectError::Url(..) => Trouble::Usage(text),
            ConnectError::Timeout(..) | ConnectError::Broker(..) => Trouble::Unavailable(text),
        };
        trouble.into()
    })
}

async fn close(connection: Connection) -> anyhow::Result<()> {
    Ok(connection.close(200, "done".into()).await?)
}

/// One exchange hands every message to the queues of all consumers, so that they get the same deliveries
/// in the same order.
pub async fn publish(place: &Place, url: &str, orders: &Orders) -> anyhow::Result<()> {
    let connection = connect(url, "hapax demo").await?;
    let channel = connection.create_channel().await?;
    let options = ExchangeDeclareOptions {
        auto_delete: true,
        ..ExchangeDeclareOptions::default()
    };
    let exchange = place.name.as_str();
    channel
        .exchange_declare(
            exchange.into(),
            ExchangeKind::Fanout,
            options,
            FieldTable::default(),
        )
        .await?;
    for contestant in Contestant::ALL {
        let queue = declare(&channel, &place.queue_of(contestant, ORDERS)).await?;
        declare(&channel, &place.queue_of(contestant, EVENTS)).await?;
        let (options, none) = (QueueBindOptions::default(), FieldTable::default());
        channel
            .queue_bind(queue.into(), exchange.into(), "".into(), options, none)
            .await?;
    }
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await?;
    for window in orders.deliveries.chunks(WINDOW) {
        publish_window(&channel, exchange, window).await?;
    }
    close(connection).await
}

async fn declare(channel: &Channel, queue: &str) -> anyhow::Result<String> {
    let mut arguments = FieldTable::default();
    arguments.insert("x-expires".into(), EXPIRES_MS.into());
    channel
        .queue_declare(queue.into(), QueueDeclareOptions::durable(), arguments)
        .await?;
    Ok(queue.to_owned())
}

async fn publish_window(channel: &Channel, exchange: &str, orders: &[Order]) -> anyhow::Result<()> {
    let options = BasicPublishOptions {
        mandatory: true,
        ..BasicPublishOptions::default()
    };
    let mut confirms = Vec::with_capacity(orders.len());
    for order in orders {
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_content_type("application/json".into())
            .with_message_id(order.order_id.as_str().into());
        let body = order.to_json();
        let confirm = channel
            .basic_publish(exchange.into(), "".into(), options, &body, properties)
            .await?;
        confirms.push(confirm);
    }
    for confirm in confirms {
        let confirm = confirm.await?;
        let taken = confirm.is_ack() && confirm.take_message().is_none();
        ensure!(taken, "the broker did not take an order");
    }
    Ok(())
}

/// Waits until the broker has noticed that the consumer is gone: only then is everything back in the queue
/// that the consumer held.
pub async fn left(place: &Place, url: &str, contestant: Contestant) -> anyhow::Result<u64> {
    let connection = connect(url, "hapax demo").await?;
    let channel = connection.create_channel().await?;
    let queue = place.queue_of(contestant, ORDERS);
    let abandoned = async {
        loop {
            let (ready, consumers) = depth(&channel, &queue).await?;
            if consumers == 0 {
                return anyhow::Ok(ready);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let mut left = tokio::time::timeout(PATIENCE, abandoned)
        .await
        .context("the broker does not notice that a consumer is gone")??;
    close(connection).await?;
    if contestant == Contestant::Hapax {
        left += unfinished(store(place)?.session("hapax demo").await?.as_mut()).await?;
    }
    Ok(left)
}

/// The store of Hapax.
fn store(place: &Place) -> anyhow::Result<std::sync::Arc<dyn crate::store::Store>> {
    match &place.surroundings.database {
        Some(url) => crate::cli::demo::database::hapax_store(place, url),
        None => open_store(&place.shop_file(Contestant::Hapax)),
    }
}

async fn depth(channel: &Channel, queue: &str) -> anyhow::Result<(u64, u32)> {
    let options = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::durable()
    };
    let declared = channel
        .queue_declare(queue.into(), options, FieldTable::default())
        .await?;
    Ok((
        u64::from(declared.message_count()),
        declared.consumer_count(),
    ))
}

pub async fn events(
    place: &Place,
    url: &str,
    contestant: Contestant,
) -> anyhow::Result<Vec<Event>> {
    let connection = connect(url, "hapax demo").await?;
    let channel = connection.create_channel().await?;
    let queue = place.queue_of(contestant, EVENTS);
    let count = usize::try_from(depth(&channel, &queue).await?.0)?;
    let mut events = Vec::with_capacity(count);
    if count > 0 {
        let options = BasicConsumeOptions {
            no_ack: true,
            ..BasicConsumeOptions::default()
        };
        let none = FieldTable::default();
        let mut consumer = channel
            .basic_consume(queue.into(), "".into(), options, none)
            .await?;
        while events.len() < count {
            let next = tokio::time::timeout(PATIENCE, consumer.next());
            let delivery = next
                .await
                .context("the broker does not hand over the events")?
                .context("the broker ended the subscription")??;
            events.push(event(&delivery.properties, &delivery.data)?);
        }
    }
    close(connection).await?;
    Ok(events)
}

pub async fn remove(place: &Place, url: &str) -> anyhow::Result<()> {
    let connection = connect(url, "hapax demo").await?;
    let channel = connection.create_channel().await?;
    for contestant in Contestant::ALL {
        for queue in [ORDERS, EVENTS] {
            let queue = place.queue_of(contestant, queue);
            channel
                .queue_delete(queue.into(), QueueDeleteOptions::default())
                .await?;
        }
    }
    let exchange = place.name.as_str();
    channel
        .exchange_delete(exchange.into(), ExchangeDeleteOptions::default())
        .await?;
    close(connection).await
}
