//! `hapax parked list`.

use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::config::Config;
use crate::operations::{Entry, Filter, Page, Request, Response, When, unique_digits};
use crate::output::{self, Table};

use super::super::access::Access;
use super::super::typed::{self, KeyFormat};
use super::super::{Error, print_json, unexpected};

/// Characters of a key in a list.
const KEY_WIDTH: usize = 40;

#[derive(Debug, Args)]
pub struct ListArgs {
    /// Of one consumer
    #[arg(long)]
    consumer: Option<String>,
    /// Of one error code
    #[arg(long)]
    code: Option<String>,
    /// Of one key: text, or hexadecimal after 0x
    #[arg(long)]
    key: Option<String>,
    /// How --key is written
    #[arg(long, value_enum, requires = "key")]
    key_format: Option<KeyFormat>,
    /// Failed last after this: so long ago, a day, or a moment
    #[arg(long, value_name = "TIME", value_parser = typed::when)]
    since: Option<When>,
    /// Failed last before this
    #[arg(long, value_name = "TIME", value_parser = typed::when)]
    until: Option<When>,
    /// Failed last longer ago than this
    #[arg(long, value_name = "DURATION", value_parser = typed::duration, conflicts_with = "until")]
    older_than: Option<Duration>,
    /// Other messages than parked ones
    #[arg(long, value_enum, conflicts_with = "all")]
    status: Option<StatusArg>,
    /// Also those that wait for a retry or for another message
    #[arg(long)]
    all: bool,
    /// How many at most
    #[arg(long, default_value_t = 100, value_name = "N")]
    limit: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum StatusArg {
    Parked,
    Retry,
    Held,
}

pub(super) async fn run(arguments: &ListArgs, config: &Arc<Config>) -> Result<(), Error> {
    let filter = Filter {
        consumer: arguments.consumer.clone(),
        status: status(arguments),
        code: arguments.code.clone(),
        key_hex: arguments
            .key
            .as_deref()
            .map(|key| typed::key_hex(key, arguments.key_format))
            .transpose()?,
        since: arguments.since,
        until: arguments.until.or(arguments.older_than.map(When::Ago)),
        limit: arguments.limit,
    };
    let access = Access::open(config).await?;
    let Response::List(page) = access.execute(Request::List(filter)).await? else {
        return Err(unexpected());
    };
    if arguments.json {
        return print_json(&page.entries);
    }
    output::print(&table(&page, arguments.all || arguments.status.is_some()).render())?;
    // For the person, and out of the way of whoever reads the list.
    if page.entries.is_empty() {
        output::complain("no such messages\n");
    } else if page.more {
        output::complain(&format!(
            "there are more than {}: see --limit\n",
            arguments.limit
        ));
    }
    Ok(())
}

fn status(arguments: &ListArgs) -> Option<String> {
    let status = match arguments.status {
        Some(StatusArg::Retry) => "retry",
        Some(StatusArg::Held) => "held",
        Some(StatusArg::Parked) => "parked",
        None if arguments.all => return None,
        None => "parked",
    };
    Some(status.to_owned())
}

fn table(page: &Page, with_status: bool) -> Table {
    let digits = unique_digits(page.entries.iter().map(|entry| entry.id.as_str()));
    let mut table = Table::new(if with_status {
        &[
            "ID",
            "STATUS",
            "CONSUMER",
            "KEY",
            "CODE",
            "ATTEMPTS",
            "FAILED AT",
            "ERROR",
        ]
    } else {
        &[
            "ID",
            "CONSUMER",
            "KEY",
            "CODE",
            "ATTEMPTS",
            "FAILED AT",
            "ERROR",
        ]
    });
    for entry in &page.entries {
        let mut cells = vec![entry.id.chars().take(digits).collect()];
        if with_status {
            cells.push(entry.status.clone());
        }
        cells.extend([
            entry.consumer.clone(),
            output::cut(&key(entry), KEY_WIDTH),
            entry.code.clone(),
            entry.attempts.to_string(),
            entry.failed_at.clone(),
            entry.error.clone(),
        ]);
        table.row(cells);
    }
    table
}

/// The key of an entry for people.
pub(super) fn key(entry: &Entry) -> String {
    match (&entry.key, &entry.key_hex) {
        (Some(text), _) => output::clean(text),
        (None, Some(digits)) => format!("0x{digits}"),
        (None, None) => "-".to_owned(),
    }
}
