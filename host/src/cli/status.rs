//! `hapax status`: how consumers, their keys and the outbox are doing.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use clap::Args;

use crate::config::Config;
use crate::operations::{ConsumerStatus, Request, Response, Status};
use crate::output::{self, FAINT, STRONG, Table, WARNING, thousands};

use super::access::Access;
use super::{Error, print_json};

/// Digits of a digest that people compare.
const DIGEST_DIGITS: usize = 12;

#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub async fn run(arguments: &StatusArgs, config: Arc<Config>) -> Result<(), Error> {
    let access = Access::open(&config).await?;
    let Response::Status(status) = access.execute(Request::Status).await? else {
        return Err(super::unexpected());
    };
    if arguments.json {
        return print_json(&status);
    }
    Ok(output::print(&render(&status))?)
}

fn render(status: &Status) -> String {
    let mut text = String::new();
    let mut table = Table::new(&[
        "CONSUMER",
        "UP",
        "QUEUE",
        "READY",
        "COMMITTED",
        "WAITING",
        "PARKED",
        "DISCARDED",
        "PLUGIN",
    ]);
    for consumer in &status.consumers {
        let known = |number: Option<u64>| number.map_or("?".to_owned(), thousands);
        let fate = |name: &str| thousands(consumer.ledger.get(name).copied().unwrap_or_default());
        let up = match consumer.up {
            Some(true) => "yes",
            Some(false) => "no",
            None => "?",
        };
        let plugin = match &consumer.plugin {
            Some(digest) => digest.chars().take(DIGEST_DIGITS).collect(),
            None => "no file".to_owned(),
        };
        table.row([
            consumer.name.clone(),
            up.to_owned(),
            consumer.queue.clone(),
            known(consumer.ready),
            fate("committed"),
            thousands(rows(consumer, &["retry", "held"])),
            thousands(rows(consumer, &["parked"])),
            fate("discarded"),
            plugin,
        ]);
    }
    text.push_str(&table.render());
    for consumer in &status.consumers {
        if let Some(reason) = &consumer.held_back {
            let _ = writeln!(
                text,
                "{STRONG}{}{STRONG:#} {WARNING}takes no messages{WARNING:#}: {}",
                consumer.name,
                output::clean(reason)
            );
        }
        for (status, codes) in &consumer.waiting {
            let codes = codes
                .iter()
                .map(|(code, rows)| format!("{code} {}", thousands(*rows)));
            let codes = codes.collect::<Vec<_>>().join(", ");
            let _ = writeln!(
                text,
                "{STRONG}{}{STRONG:#} {status}: {}",
                consumer.name,
                output::clean(&codes)
            );
        }
    }
    let _ = write!(
        text,
        "{STRONG}outbox{STRONG:#} {}",
        output::count(status.outbox.rows, "message")
    );
    if status.outbox.rows > 0 {
        let _ = write!(
            text,
            ", the oldest {:.0} s old",
            status.outbox.oldest_seconds
        );
    }
    let _ = writeln!(
        text,
        "\n{FAINT}store {}, broker {}{FAINT:#}",
        status.store, status.broker
    );
    for note in &status.notes {
        let _ = writeln!(text, "{WARNING}note{WARNING:#}: {}", output::clean(note));
    }
    text
}

fn rows(consumer: &ConsumerStatus, statuses: &[&str]) -> u64 {
    let of = |codes: &BTreeMap<String, u64>| codes.values().sum::<u64>();
    statuses
        .iter()
        .filter_map(|status| consumer.waiting.get(*status))
        .map(of)
        .sum()
}
