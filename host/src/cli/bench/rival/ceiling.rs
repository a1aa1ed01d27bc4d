//! The ceilings: consuming, and consuming and emitting, with nothing in between. Acks go in blocks.

use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel};
use tokio_util::sync::CancellationToken;

use super::Counts;
use crate::amqp::hand_over;
use crate::cli::bench::embedded::queues;
use crate::cli::bench::place::Corner;
use crate::cli::demo::broker::{connect, open_store};
use crate::message::Message;

/// As many as Hapax asks for.
const PREFETCH: u16 = 1_024;

/// Messages in one acknowledgement, or fewer when no more are there.
const BLOCK: usize = 200;

/// Pause after a look at the embedded broker that found no message.
const IDLE_PAUSE: Duration = Duration::from_millis(5);

pub async fn run(
    corner: &Corner,
    forward: bool,
    counts: &Counts,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    match &corner.surroundings.amqp {
        Some(url) => amqp(url, corner, forward, counts, stop).await,
        None => embedded(corner, forward, counts, stop).await,
    }
}

async fn amqp(
    url: &str,
    corner: &Corner,
    forward: bool,
    counts: &Counts,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let connection = connect(url, "hapax bench consumer").await?;
    let incoming = connection.create_channel().await?;
    incoming
        .basic_qos(PREFETCH, BasicQosOptions::default())
        .await?;
    let consumer = incoming
        .basic_consume(
            corner.incoming().into(),
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        )
        .await?;
    // Publishing and consuming use separate connections, as in Hapax.
    let publishing = connect(url, "hapax bench publisher").await?;
    let outgoing = publishing.create_channel().await?;
    outgoing
        .confirm_select(ConfirmSelectOptions::default())
        .await?;
    let mut blocks = consumer.ready_chunks(BLOCK);
    let target = corner.outgoing();
    loop {
        let block = tokio::select! {
            () = stop.cancelled() => break,
            block = blocks.next() => block.context("the broker ended the subscription")?,
        };
        let block = block.into_iter().collect::<Result<Vec<_>, _>>()?;
        let (messages, last) = (block.len(), block.last().map(|last| last.delivery_tag));
        if forward {
            let bodies = block.into_iter().map(|delivery| delivery.data);
            emit(&outgoing, &target, bodies.collect()).await?;
            counts.emitted(messages);
        }
        if let Some(last) = last {
            let multiple = BasicAckOptions { multiple: true };
            incoming.basic_ack(last, multiple).await?;
        }
        counts.handled(messages);
    }
    publishing.close(200, "done".into()).await?;
    Ok(connection.close(200, "done".into()).await?)
}

/// Publishes a block and waits for its confirms.
pub async fn emit(channel: &Channel, queue: &str, bodies: Vec<Vec<u8>>) -> anyhow::Result<()> {
    let options = BasicPublishOptions {
        mandatory: true,
        ..BasicPublishOptions::default()
    };
    let publishes = bodies.iter().map(|body| {
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_content_type("application/json".into())
            .with_message_id(format!("{:032x}", fastrand::u128(..)).into());
        channel.basic_publish("".into(), queue.into(), options, body, properties)
    });
    for confirm in hand_over(publishes).await {
        let confirm = confirm?.await?;
        let taken = confirm.is_ack() && confirm.take_message().is_none();
        ensure!(taken, "the broker did not take an event");
    }
    Ok(())
}

async fn embedded(
    corner: &Corner,
    forward: bool,
    counts: &Counts,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let store = open_store(&corner.store_file())?;
    let mut session = store.session("bench consumer").await?;
    let queues = queues(session.as_mut())?;
    let (incoming, outgoing) = (corner.incoming(), corner.outgoing());
    let block = u32::try_from(BLOCK)?;
    let mut last = 0;
    while !stop.is_cancelled() {
        let messages = queues.deliver(&incoming, last, block, u64::MAX).await?;
        let Some(end) = messages.last() else {
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(IDLE_PAUSE) => continue,
            }
        };
        last = end.sequence;
        if forward {
            let events = messages.iter().map(|queued| {
                let message = Message {
                    routing_key: outgoing.clone(),
                    ..queued.message.clone()
                };
                (outgoing.clone(), message)
            });
            let taken = queues.publish(&events.collect::<Vec<_>>()).await?;
            ensure!(taken.iter().all(|taken| *taken), "the queue is not there");
            counts.emitted(messages.len());
        }
        let done = messages
            .iter()
            .map(|queued| queued.sequence)
            .collect::<Vec<_>>();
        queues.ack(&incoming, &done).await?;
        counts.handled(messages.len());
    }
    Ok(())
}
