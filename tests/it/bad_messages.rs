//! Messages that no handler can be given: they are parked with a code, and the rest flows on.

use serde_json::json;

use crate::Checked;
use crate::support::broker::Message;
use crate::support::host::Host;
use crate::support::place::Place;
use crate::support::scene::{self, Scene, message};
use crate::support::store::Fates;

/// The longest key, in bytes.
const LONGEST: usize = 512;
/// `max-message-bytes` here.
const LARGEST: usize = 64 * 1024;

pub async fn are_parked_with_a_code_and_the_rest_flows_on(place: &Place, scene: Scene) -> Checked {
    let longest = "k".repeat(LONGEST);
    let too_long = "k".repeat(LONGEST + 1);
    let padding = "p".repeat(LARGEST);
    let bad = [
        (json!({"do": []}).to_string(), "key-missing"),
        (
            json!({"order_id": null, "do": []}).to_string(),
            "key-missing",
        ),
        (json!({"order_id": "", "do": []}).to_string(), "key-missing"),
        (
            json!({"order_id": too_long, "do": []}).to_string(),
            "key-invalid",
        ),
        (
            json!({"order_id": {"a": 1}, "do": []}).to_string(),
            "key-invalid",
        ),
        ("not JSON".to_owned(), "key-invalid"),
        (String::new(), "key-invalid"),
        (r#"{"order_id": "cut"#.to_owned(), "key-invalid"),
        (
            json!({"order_id": "big", "do": [], "padding": padding}).to_string(),
            "message-too-large",
        ),
    ];
    let mut messages: Vec<Message> = Vec::new();
    for (body, _) in &bad {
        messages.push(Message::bytes(body.as_bytes()));
        messages.push(scene::ordinary(&format!("good-{}", messages.len())));
    }
    messages.push(message(&longest, &[scene::insert("longest", 0)]));
    scene.publish(&messages).await?;

    let consumer = scene.probe()?.set("max-message-bytes", "\"64KiB\"");
    let host = Host::start(place, &scene.config("host", consumer)).await?;
    host.until_metric("hapax_parked_total", bad.len() as u64)
        .await?;
    scene.finish(host).await?;

    let mut expected: Vec<String> = bad
        .iter()
        .map(|(_, code)| format!("parked {code}"))
        .collect();
    expected.sort();
    assert_eq!(scene.store.waiting().await?, expected);
    let good = i64::try_from(bad.len() + 1)?;
    assert_eq!(scene.effects().await?.len(), bad.len() + 1);
    scene
        .assert_fates(Fates {
            committed: good,
            ..Fates::default()
        })
        .await
}

/// What a handler prints before it crashes may hold NUL, which no text column takes, and anything else.
pub async fn may_print_anything_before_they_crash(place: &Place, scene: Scene) -> Checked {
    let nasty = "a\u{0}b \u{202e} \u{10ffff} '\"\\";
    let steps = [json!({"stderr": nasty}), json!({"panic": nasty})];
    scene
        .publish(&[message("nasty", &steps), scene::ordinary("good")])
        .await?;
    let consumer = scene.probe()?.set("retry", "{ max-attempts = 1 }");
    let host = Host::start(place, &scene.config("host", consumer)).await?;
    host.until_metric("hapax_parked_total", 1).await?;
    scene.finish(host).await?;
    assert_eq!(scene.store.waiting_keys().await?, ["nasty parked trap"]);
    assert_eq!(scene.effects().await?, ["good/0"]);
    let printed = scene
        .store
        .texts("SELECT stderr FROM hapax_waiting")
        .await?;
    assert!(printed[0].contains("b \u{202e} \u{10ffff}"), "{printed:?}");
    Ok(())
}

/// Bytes that are no text, in the body and in the header that is the key.
pub async fn may_hold_any_bytes(place: &Place, scene: Scene) -> Checked {
    use lapin::types::{AMQPValue, FieldTable};
    let mut headers = FieldTable::default();
    headers.insert(
        "id".into(),
        AMQPValue::LongString(vec![0xff, 0x00, 0xfe].into()),
    );
    let mut strange = Message::bytes([0xff, 0x00, 0xc3, 0x28]);
    strange.properties = strange.properties.with_headers(headers.clone());
    let mut fine = Message::bytes(json!({"do": [scene::insert("fine", 0)]}).to_string());
    headers.insert(
        "id".into(),
        AMQPValue::LongString(vec![0xff, 0x00, 0xfd].into()),
    );
    fine.properties = fine.properties.with_headers(headers);
    scene.publish(&[strange, fine]).await?;

    let consumer = scene.probe()?.set("key", "\"header:id\"");
    let host = Host::start(place, &scene.config("host", consumer)).await?;
    host.until_metric("hapax_committed_total", 1).await?;
    host.until_metric("hapax_parked_total", 1).await?;
    scene.finish(host).await?;

    assert_eq!(scene.effects().await?, ["fine/0"]);
    assert_eq!(scene.store.waiting().await?, ["parked rejected"]);
    let keys = scene
        .store
        .bytes("SELECT key FROM hapax_ledger ORDER BY key")
        .await?;
    assert_eq!(keys, [[0xff, 0x00, 0xfd], [0xff, 0x00, 0xfe]]);
    Ok(())
}
