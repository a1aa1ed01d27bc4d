//! What does a confirmed publish cost, by the number of rows that go together?
//!
//!     AMQP_URL=amqp://… cargo bench --bench relay

#[path = "figures.rs"]
mod figures;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use figures::Figures;
use hapax::amqp::Address;
use hapax::config::Secret;
use hapax::message::Message;
use hapax::relay::{AmqpPublisher, Publisher, Sent};
use hapax::store::{ConsumerId, OutboxRecord, OutboxRow};
use lapin::BasicProperties;
use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;

/// Rows in one block.
const BLOCKS: [usize; 5] = [1, 16, 64, 256, 1_024];

/// Rows that each figure is taken over.
const ROWS: usize = 20_480;

#[tokio::main]
async fn main() {
    let Ok(url) = std::env::var("AMQP_URL") else {
        println!("AMQP_URL is not set: there is no broker to publish to");
        return;
    };
    let address = Address {
        url: Secret::url(url),
        heartbeat: Duration::from_secs(30),
        connect_timeout: Duration::from_secs(10),
    };
    let own = address
        .connect("hapax bench")
        .await
        .expect("the broker answers");
    let channel = own.create_channel().await.expect("a channel");
    let queue = format!("hapax_bench_{:08x}", fastrand::u32(..));
    let options = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    channel
        .queue_declare(queue.as_str().into(), options, FieldTable::default())
        .await
        .expect("a queue");
    let mut publisher = AmqpPublisher::new(address);
    for block in BLOCKS {
        let rows: Vec<OutboxRecord> = (0..block).map(|place| row(&queue, place)).collect();
        // The first one opens the connection.
        publish(&mut publisher, &rows).await;
        let mut figures = Figures::new(format!("publish and confirm {block}"));
        let started = Instant::now();
        for _ in 0..(ROWS / block).min(2_000) {
            let begun = Instant::now();
            publish(&mut publisher, &rows).await;
            figures.add(begun.elapsed());
        }
        let sent = (ROWS / block).min(2_000) * block;
        figures.show();
        println!(
            "{:<58} {:.0} rows a second",
            "",
            sent as f64 / started.elapsed().as_secs_f64()
        );
    }
    publisher.close().await;
    channel
        .queue_delete(queue.as_str().into(), QueueDeleteOptions::default())
        .await
        .expect("the queue goes");
}

async fn publish(publisher: &mut AmqpPublisher, rows: &[OutboxRecord]) {
    let sent = publisher.publish(rows).await.expect("the broker is there");
    assert!(sent.iter().all(|sent| *sent == Sent::Confirmed), "{sent:?}");
}

fn row(queue: &str, place: usize) -> OutboxRecord {
    let properties = BasicProperties::default()
        .with_delivery_mode(2)
        .with_message_id(format!("{place:032x}").into());
    OutboxRecord {
        sequence: i64::try_from(place).expect("a small number"),
        attempts: 0,
        row: Arc::new(OutboxRow {
            consumer: ConsumerId(1),
            lane: 0,
            target: "out".into(),
            may_drop: false,
            ordering_key: None,
            delay: None,
            message: Message {
                exchange: String::new(),
                routing_key: queue.into(),
                properties,
                body: Bytes::from_static(br#"{"order_id":"order-000001","points":42}"#),
            },
        }),
    }
}
