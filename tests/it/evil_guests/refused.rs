//! Guests that do not get as far as a message.

use anyhow::ensure;

use crate::Checked;
use crate::support::host::{self, Config, Consumer};
use crate::support::place::Place;
use crate::support::store::Store;

/// `run` and `check` say what the component wants, what there is, and what to write instead.
pub async fn wasi_http(place: &Place) -> Checked {
    let store = Store::sqlite(place);
    let guest = host::guest("guest_wasi_http")?;
    let consumer = Consumer::running("caller", "in", &guest);
    let config = Config::new("host", &store.url, "embedded:").consumer(consumer);
    let run = host::run_to_end(place, &config).await?;
    ensure!(run.code == Some(64), "{run:?}");
    let check = host::cli(&config.write(&place.dir)?, &["check"]).await?;
    ensure!(check.code == Some(64), "{check:?}");
    for told in [run.stdout + &run.stderr, check.stdout + &check.stderr] {
        for line in [
            "the component wants what a handler is not granted",
            "it imports and may not:",
            "- wasi:http/outgoing-handler@0.2",
            "a handler has no network",
            "targets = { NAME = { exchange = \"\", routing-key = \"QUEUE\" } }",
            "it imports and may:",
            "+ hapax:plugin/types@0.1.0",
            "there is: hapax:plugin/{context, sql, state, outbox, log}",
        ] {
            ensure!(told.contains(line), "`{line}` is not in\n{told}");
        }
    }
    Ok(())
}
