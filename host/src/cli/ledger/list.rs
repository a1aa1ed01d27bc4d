//! `hapax ledger list`: keys of a consumer, in their order.

use std::sync::Arc;

use clap::{Args, ValueEnum};

use crate::config::Config;
use crate::operations::{LedgerEntry, LedgerQuery, Request, Response};
use crate::output::{self, Table};

use super::super::access::Access;
use super::super::typed::{self, KeyFormat};
use super::super::{Error, print_json, unexpected};

/// Keys that one request asks for.
const PAGE_KEYS: u32 = 1000;

/// Characters of a key in the list of a terminal.
const KEY_WIDTH: usize = 60;

#[derive(Debug, Args)]
pub struct ListArgs {
    /// Whose keys; not needed where there is one consumer
    #[arg(long)]
    consumer: Option<String>,
    /// Of one fate
    #[arg(long, value_enum)]
    fate: Option<FateArg>,
    /// Keys after this one, as the last line of a list says it
    #[arg(long, value_name = "KEY")]
    after: Option<String>,
    /// How --after is written
    #[arg(long, value_enum, requires = "after")]
    key_format: Option<KeyFormat>,
    /// How many at most
    #[arg(long, default_value_t = 100, value_name = "N")]
    limit: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FateArg {
    Committed,
    Waiting,
    Parked,
    Discarded,
    Started,
}

impl FateArg {
    fn name(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::Waiting => "waiting",
            Self::Parked => "parked",
            Self::Discarded => "discarded",
            Self::Started => "started",
        }
    }
}

pub(super) async fn run(arguments: &ListArgs, config: &Arc<Config>) -> Result<(), Error> {
    let consumer = super::consumer(arguments.consumer.as_deref(), config)?;
    let after = arguments.after.as_deref();
    let mut next = Some(
        after
            .map(|key| typed::key_hex(key, arguments.key_format))
            .transpose()?,
    );
    let access = Access::open(config).await?;
    let mut entries = Vec::<LedgerEntry>::new();
    while let Some(after_hex) = next.take() {
        let missing = arguments.limit.saturating_sub(entries.len() as u32);
        if missing == 0 {
            next = Some(after_hex);
            break;
        }
        let query = LedgerQuery {
            consumer: consumer.clone(),
            fate: arguments.fate.map(|fate| fate.name().to_owned()),
            after_hex,
            limit: missing.min(PAGE_KEYS),
        };
        let Response::LedgerList(page) = access.execute(Request::LedgerList(query)).await? else {
            return Err(unexpected());
        };
        entries.extend(page.entries);
        next = page.next_hex.map(Some);
    }
    if arguments.json {
        return print_json(&entries);
    }
    let mut table = Table::new(&["KEY", "FATE", "ATTEMPTS", "PLUGIN", "REMEMBERED UNTIL"]);
    for entry in &entries {
        table.row([
            output::cut(&super::shown(&entry.key_hex), KEY_WIDTH),
            entry.fate.clone(),
            entry.attempts.to_string(),
            match entry.plugin.as_str() {
                "" => "-".to_owned(),
                digits => digits.to_owned(),
            },
            entry
                .expires_at
                .clone()
                .unwrap_or_else(|| "forever".to_owned()),
        ]);
    }
    output::print(&table.render())?;
    match (entries.last(), next) {
        (None, _) => output::complain("no such keys\n"),
        (Some(last), Some(_)) => output::complain(&format!(
            "there are more: go on with --after 0x{}, or see --limit\n",
            last.key_hex
        )),
        _ => {}
    }
    Ok(())
}
