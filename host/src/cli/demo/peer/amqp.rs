//! RabbitMQ as a consumer reaches it: prefetch, persistent events with confirms, and an acknowledgement
//! for each message.

use anyhow::{Context, ensure};
use async_trait::async_trait;
use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, Consumer};
use tokio::sync::Mutex;

use super::{Confirm, Delivery, PREFETCH, Queue};
use crate::cli::demo::broker;

pub struct Client {
    connection: Connection,
    incoming: Channel,
    outgoing: Channel,
    consumer: Mutex<Consumer>,
    events: String,
}

impl Client {
    /// Consumes `orders`, and publishes to the queue `events`.
    pub async fn connect(url: &str, orders: &str, events: &str) -> anyhow::Result<Self> {
        let connection = broker::connect(url, "hapax demo consumer").await?;
        let incoming = connection.create_channel().await?;
        incoming
            .basic_qos(PREFETCH, BasicQosOptions::default())
            .await?;
        let consumer = incoming
            .basic_consume(
                orders.into(),
                "".into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            )
            .await?;
        let outgoing = connection.create_channel().await?;
        outgoing
            .confirm_select(ConfirmSelectOptions::default())
            .await?;
        Ok(Self {
            connection,
            incoming,
            outgoing,
            consumer: Mutex::new(consumer),
            events: events.to_owned(),
        })
    }
}

#[async_trait]
impl Queue for Client {
    async fn next(&self) -> anyhow::Result<Delivery> {
        let mut consumer = self.consumer.lock().await;
        let delivery = consumer
            .next()
            .await
            .context("the broker ended the subscription")??;
        Ok(Delivery {
            tag: delivery.delivery_tag,
            body: delivery.data,
        })
    }

    async fn publish(&self, message_id: String, body: Vec<u8>) -> anyhow::Result<Confirm> {
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_message_id(message_id.into());
        let options = BasicPublishOptions {
            mandatory: true,
            ..BasicPublishOptions::default()
        };
        let confirm = self
            .outgoing
            .basic_publish(
                "".into(),
                self.events.clone().into(),
                options,
                &body,
                properties,
            )
            .await?;
        Ok(Box::pin(async {
            let confirm = confirm.await?;
            let taken = confirm.is_ack() && confirm.take_message().is_none();
            ensure!(taken, "the broker did not take an event");
            Ok(())
        }))
    }

    async fn ack(&self, tag: u64) -> anyhow::Result<()> {
        Ok(self
            .incoming
            .basic_ack(tag, BasicAckOptions::default())
            .await?)
    }

    async fn close(&self) -> anyhow::Result<()> {
        Ok(self.connection.close(200, "done".into()).await?)
    }
}
