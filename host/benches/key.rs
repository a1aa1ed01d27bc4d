//! What does it cost to learn who a message is: its key, its partition, the fingerprint of its payload?
//!
//!     cargo bench --bench key

#[path = "figures.rs"]
mod figures;

use std::time::Instant;

use bytes::Bytes;
use figures::wanted;
use hapax::config::{Fingerprint, KeySource};
use hapax::key::KeyRules;
use hapax::message::Message;
use lapin::BasicProperties;

/// Bytes of the text that pads a body.
const PADDING: [usize; 3] = [0, 1_000, 10_000];

const TIMES: u32 = 200_000;

fn main() {
    for padding in PADDING {
        let message = message(padding);
        let bytes = message.body.len();
        let from_body = rules("body:/order_id", "body:/user_id", Fingerprint::Body);
        let by_id = rules("message-id", "message-id", Fingerprint::None);
        let by_id_and_body = rules("message-id", "message-id", Fingerprint::Body);
        for (name, rules) in [
            ("message-id, no fingerprint", by_id),
            ("message-id, fingerprint of the body", by_id_and_body),
            ("key, partition and fingerprint of the body", from_body),
        ] {
            measure(&format!("{name}, {bytes} bytes"), &rules, &message);
        }
    }
}

fn measure(name: &str, rules: &KeyRules, message: &Message) {
    if !wanted(name) {
        return;
    }
    let started = Instant::now();
    for _ in 0..TIMES {
        std::hint::black_box(rules.identify(std::hint::black_box(message)))
            .expect("the message has a key");
    }
    println!(
        "{name:<66} {:.2?} each, n {TIMES}",
        started.elapsed() / TIMES
    );
}

fn rules(key: &str, partition: &str, fingerprint: Fingerprint) -> KeyRules {
    let source = |text: &str| -> Vec<KeySource> { vec![text.parse().expect("a source")] };
    KeyRules {
        key: source(key),
        partition: source(partition),
        fingerprint,
        max_message_bytes: 1 << 20,
    }
}

fn message(padding: usize) -> Message {
    let body = format!(
        r#"{{"order_id": "order-000001", "user_id": "user-1", "amount_cents": 4200, "note": "{}"}}"#,
        "x".repeat(padding)
    );
    Message {
        exchange: String::new(),
        routing_key: "orders.paid".into(),
        properties: BasicProperties::default().with_message_id("order-000001".into()),
        body: Bytes::from(body),
    }
}
