//! Rows of the outbox that the host would not have written: an older version did, or a person.

use anyhow::Context;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};

use crate::Checked;
use crate::support::host::Host;
use crate::support::place::Place;
use crate::support::scene::{self, OUT, Scene, ordinary};
use crate::support::store::Kind;
use crate::support::wait;

const GOOD: usize = 50;

/// A header that no frame can hold would end the connection. The row waits, says why, and holds up nobody.
pub async fn that_no_frame_can_hold_end_no_connection(place: &Place, scene: Scene) -> Checked {
    let config = scene.config("host", scene.probe()?);
    // Makes the tables and the consumer's row.
    Host::start(place, &config).await?.stop().await?;
    write_huge_row(&scene).await?;
    let orders: Vec<String> = (0..GOOD).map(|number| format!("{number:02}")).collect();
    let messages: Vec<_> = orders.iter().map(|order| ordinary(order)).collect();

    let host = Host::start(place, &config).await?;
    let refused = "SELECT count(*) FROM hapax_outbox WHERE attempts > 0 \
                   AND error LIKE '%the broker allows frames of%'";
    wait::until_equal("the rows that are refused", 1, async || {
        scene.store.number(refused).await
    })
    .await?;
    scene.publish(&messages).await?;
    let received = scene.broker.receive(OUT, GOOD).await?;
    assert_eq!(scene::sent(&received)?, orders);
    wait::until_equal("the rows that are left", 1, async || {
        scene.store.count("hapax_outbox").await
    })
    .await?;
    let row = scene::failed_row(&host).await?;
    let error = row["error"].as_str().context("no error is told")?;
    assert!(error.contains("the broker allows frames of"), "{error}");
    assert_eq!(
        host.said("The broker does not take messages")?,
        0,
        "the row has cost the connection"
    );
    host.stop().await
}

async fn write_huge_row(scene: &Scene) -> Checked {
    let mut headers = FieldTable::default();
    let huge = "h".repeat(200 * 1024);
    headers.insert("huge".into(), AMQPValue::LongString(huge.into()));
    let properties = BasicProperties::default()
        .with_message_id("huge".into())
        .with_headers(headers);
    let properties = hex(&hapax::message::encode_properties(&properties));
    let (bytes, now) = match scene.store.kind {
        Kind::Postgres { .. } => ("decode('$', 'hex')", "now()"),
        Kind::Sqlite(_) => ("x'$'", "0"),
    };
    let bytes = |hex: &str| bytes.replace('$', hex);
    let may_drop = if scene.store.is_postgres() {
        "false"
    } else {
        "0"
    };
    scene
        .store
        .execute(&format!(
            "INSERT INTO hapax_outbox (consumer, host, lane, due_at, target, may_drop, exchange, \
             routing_key, properties, body, created_at) \
             SELECT id, 0, 0, {now}, 'out', {may_drop}, {}, {}, {}, {}, {now} FROM hapax_consumer",
            bytes(""),
            bytes(&hex(OUT.as_bytes())),
            bytes(&properties),
            bytes(&hex(b"{}")),
        ))
        .await
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
