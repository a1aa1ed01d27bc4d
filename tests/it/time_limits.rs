//! A message is out of time while the database is at work for it. A host call cannot be interrupted by the guest's
//! deadline: the host gives the connection up, and the database undoes what was on it.

use serde_json::json;
use sqlx::Connection;

use crate::Checked;
use crate::support::host::Host;
use crate::support::place::Place;
use crate::support::scene::{self, Scene, insert, message, publish};
use crate::support::store::Fates;
use crate::support::wait;

/// The effect is written when the time is up, and the record that it was is not. Neither may stay, or the second
/// attempt would apply it twice.
pub async fn an_attempt_that_is_out_of_time_applies_nothing(place: &Place) -> Checked {
    let scene = Scene::postgres(place).await?;
    let mut other = scene
        .store
        .hold("UPDATE t_counters SET total = 100 WHERE id = 'b'")
        .await?;
    let withdraw = |id: &str| {
        let add = "UPDATE t_counters SET total = total - 1 WHERE id = $1";
        json!({"execute": [add, [id]]})
    };
    let steps = [insert("k", 0), withdraw("a"), publish("k"), withdraw("b")];
    let messages = [
        scene::ordinary("before"),
        message("k", &steps),
        scene::ordinary("after"),
    ];
    scene.publish(&messages).await?;
    let consumer = scene.probe()?.set("limits", r#"{ wall = "400ms" }"#).set(
        "retry",
        r#"{ max-attempts = 100, delay = "50ms", max-delay = "200ms" }"#,
    );
    // All of them outlast the message: it is its own limit that ends it.
    let mut config = scene.config("host", consumer.set("lanes", "1"));
    for line in ["lock-timeout = \"60s\"", "statement-timeout = \"60s\""] {
        config = config.store_line(line);
    }
    let host = Host::start(place, &config).await?;
    wait::until(
        "an attempt to run out of time",
        wait::PATIENCE,
        async || {
            let failed = host
                .metric_where("hapax_failed_total", &[("code", "wall-limit")])
                .await?;
            Ok((failed >= 1).then_some(()))
        },
    )
    .await?;
    host.until_metric("hapax_committed_total", 2).await?;
    assert_eq!(scene.effects().await?, ["after/0", "before/0"]);
    sqlx::raw_sql("COMMIT").execute(&mut other).await?;
    other.close().await?;

    host.until_metric("hapax_committed_total", 3).await?;
    scene.finish(host).await?;
    let committed = Fates {
        committed: 3,
        ..Fates::default()
    };
    scene.assert_fates(committed).await?;
    assert_eq!(scene.effects().await?, ["after/0", "before/0", "k/0"]);
    assert_eq!(scene.sent().await?, ["after", "before", "k"]);
    let totals = "SELECT id || '=' || total FROM t_counters ORDER BY id";
    assert_eq!(scene.store.texts(totals).await?, ["a=-1", "b=99", "c=0"]);
    Ok(())
}

/// The statement would run for hours, and the database's own limit for statements is longer than the message's.
pub async fn a_statement_without_end_ends_with_its_message(place: &Place, scene: Scene) -> Checked {
    let rows: Vec<String> = (0..1_000).map(|number| format!("('{number}')")).collect();
    let parents = format!("INSERT INTO t_parents (id) VALUES {}", rows.join(", "));
    scene.store.execute(&parents).await?;
    let endless = "INSERT INTO t_effects (order_id, step) SELECT 'endless', count(*) \
         FROM t_parents a, t_parents b, t_parents c, t_parents d";
    let steps = [insert("slow", 0), json!({"execute": [endless, []]})];
    let messages = [
        scene::ordinary("before"),
        message("slow", &steps),
        scene::ordinary("after"),
    ];
    scene.publish(&messages).await?;
    let retry = r#"{ max-attempts = 2, delay = "20ms", max-delay = "50ms" }"#;
    let consumer = scene
        .probe()?
        .set("retry", retry)
        .set("limits", r#"{ wall = "400ms" }"#);
    let config = scene
        .config("host", consumer)
        .store_line("statement-timeout = \"1h\"");
    let host = Host::start(place, &config).await?;
    host.until_metric("hapax_parked_total", 1).await?;
    scene.finish(host).await?;
    assert_eq!(
        scene.store.waiting_keys().await?,
        ["slow parked wall-limit"]
    );
    assert_eq!(scene.effects().await?, ["after/0", "before/0"]);
    assert_eq!(scene.sent().await?, ["after", "before"]);
    Ok(())
}

/// Each message takes as long as a batch may: none waits for its claim to be committed until the last of many has
/// run.
pub async fn a_batch_of_slow_messages_is_over_when_its_time_is(place: &Place) -> Checked {
    const MESSAGES: usize = 24;
    let scene = Scene::postgres(place).await?;
    let nap = json!({"query": ["SELECT pg_sleep(0.05)", []]});
    let order = |number: usize| format!("{number:02}");
    let messages: Vec<_> = (0..MESSAGES)
        .map(|number| {
            let order = order(number);
            message(&order, &[nap.clone(), insert(&order, 0), publish(&order)])
        })
        .collect();
    // The queue is full before the host begins.
    scene.publish(&messages).await?;
    let grant = r#"{ write = ["t_effects"], functions = ["pg_sleep"] }"#;
    let consumer = scene
        .probe()?
        .set("grant", grant)
        .set("lanes", "1")
        .set("batch-time", "\"50ms\"");
    let host = Host::start(place, &scene.config("host", consumer)).await?;
    scene.finish(host).await?;
    let most = "SELECT max(together) FROM (SELECT count(*) AS together FROM t_effects GROUP BY xmin) batches";
    assert_eq!(scene.store.number(most).await?, 1);
    // What had left its batch came next, and was applied once, in its order.
    let in_order = "SELECT order_id FROM t_effects ORDER BY xmin::text::bigint";
    let orders: Vec<_> = (0..MESSAGES).map(order).collect();
    assert_eq!(scene.store.texts(in_order).await?, orders);
    assert_eq!(scene.sent().await?, orders);
    let committed = Fates {
        committed: MESSAGES as i64,
        ..Fates::default()
    };
    scene.assert_fates(committed).await
}
