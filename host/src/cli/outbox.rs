//! `hapax outbox`: messages on their way out, and those that could not be sent.

use std::sync::Arc;

use clap::{Args, Subcommand};
use serde_json::json;

use crate::config::Config;
use crate::message::Message;
use crate::operations::{OutboxEntry, OutboxPage, OutboxQuery, Request, Response, write_message};
use crate::output::{self, FAINT, GOOD, Table};

use super::access::Access;
use super::ask::confirm;
use super::{Error, parked, print_json, unexpected};

#[derive(Debug, Subcommand)]
pub enum OutboxCommand {
    /// List outgoing messages, the oldest first
    List(ListArgs),
    /// Show one outgoing message whole
    Show(ShowArgs),
    /// Send messages now that wait for another try
    Retry(RetryArgs),
}

#[derive(Debug, Args)]
pub struct ListArgs {
    /// Of one consumer
    #[arg(long)]
    consumer: Option<String>,
    /// To one target
    #[arg(long)]
    target: Option<String>,
    /// Only those that could not be sent
    #[arg(long)]
    failed: bool,
    /// How many at most
    #[arg(long, default_value_t = 100, value_name = "N")]
    limit: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Its id, as the list shows it
    id: i64,
    /// Print JSON; its `message` is a line that `hapax publish` takes
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct RetryArgs {
    /// Their ids; one that is delayed by its handler is sent now too
    #[arg(
        required_unless_present_any = ["all", "consumer", "target"],
        conflicts_with_all = ["all", "consumer", "target"],
        value_name = "ID"
    )]
    ids: Vec<i64>,
    /// All that could not be sent
    #[arg(long)]
    all: bool,
    /// Those of one consumer that could not be sent
    #[arg(long)]
    consumer: Option<String>,
    /// Those to one target that could not be sent
    #[arg(long)]
    target: Option<String>,
    /// List what would be sent, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub async fn run(command: OutboxCommand, config: Arc<Config>) -> Result<(), Error> {
    match command {
        OutboxCommand::List(arguments) => list(&arguments, &config).await,
        OutboxCommand::Show(arguments) => show(&arguments, &config).await,
        OutboxCommand::Retry(arguments) => retry(&arguments, &config).await,
    }
}

async fn list(arguments: &ListArgs, config: &Arc<Config>) -> Result<(), Error> {
    let query = OutboxQuery {
        consumer: arguments.consumer.clone(),
        target: arguments.target.clone(),
        failed: arguments.failed,
        limit: arguments.limit,
        id: None,
    };
    let access = Access::open(config).await?;
    let page = page(&access, query).await?;
    if arguments.json {
        return print_json(&page.entries);
    }
    print_page(&page, arguments.limit)
}

async fn page(access: &Access, query: OutboxQuery) -> Result<OutboxPage, Error> {
    match access.execute(Request::OutboxList(query)).await? {
        Response::OutboxList(page) => Ok(page),
        _ => Err(unexpected()),
    }
}

fn print_page(page: &OutboxPage, limit: u32) -> Result<(), Error> {
    output::print(&table(&page.entries).render())?;
    if page.entries.is_empty() {
        output::complain("no such messages\n");
    } else if page.more {
        output::complain(&format!("there are more than {limit}: see --limit\n"));
    }
    Ok(())
}

fn table(entries: &[OutboxEntry]) -> Table {
    let mut table = Table::new(&[
        "ID", "CONSUMER", "TARGET", "STATE", "TRIES", "AGE", "NEXT TRY", "ERROR",
    ]);
    for entry in entries {
        table.row([
            entry.id.to_string(),
            entry.consumer.clone(),
            entry.target.clone(),
            entry.state.clone(),
            entry.attempts.to_string(),
            output::age(entry.age_seconds),
            entry.due_at.clone().unwrap_or_else(|| "-".to_owned()),
            entry.error.clone().unwrap_or_default(),
        ]);
    }
    table
}

async fn show(arguments: &ShowArgs, config: &Arc<Config>) -> Result<(), Error> {
    let access = Access::open(config).await?;
    let Response::OutboxShow(shown) = access.execute(Request::OutboxShow(arguments.id)).await?
    else {
        return Err(unexpected());
    };
    let message = Message::try_from(shown.message.clone())?;
    if arguments.json {
        let mut value = serde_json::to_value(&shown.entry).expect("an entry is plain data");
        value["message"] = write_message(&message);
        return print_json(&value);
    }
    let entry = &shown.entry;
    let mut text = String::new();
    let meaning = match entry.state.as_str() {
        "sending" => "sending: in the memory of a host, or waiting for one to take it over",
        "delayed" => "delayed: its handler wanted it later",
        _ => "retry: it could not be sent, and is tried again",
    };
    for (name, value) in [
        ("id", entry.id.to_string()),
        ("consumer", entry.consumer.clone()),
        ("target", entry.target.clone()),
        ("state", meaning.to_owned()),
        ("tries", entry.attempts.to_string()),
        ("error", entry.error.clone().unwrap_or_default()),
        ("written", entry.created_at.clone()),
        ("age", output::age(entry.age_seconds)),
        ("next try", entry.due_at.clone().unwrap_or_default()),
        (
            "exchange",
            match entry.exchange.as_str() {
                "" => "(default)".to_owned(),
                name => name.to_owned(),
            },
        ),
        ("routing key", entry.routing_key.clone()),
        (
            "ordering key",
            entry.ordering_key.clone().unwrap_or_default(),
        ),
    ] {
        text.push_str(&output::field(name, &value));
    }
    text.push_str(&parked::content(&message));
    Ok(output::print(&text)?)
}

async fn retry(arguments: &RetryArgs, config: &Arc<Config>) -> Result<(), Error> {
    let access = Access::open(config).await?;
    let bulk = OutboxQuery {
        consumer: arguments.consumer.clone(),
        target: arguments.target.clone(),
        failed: true,
        limit: 100,
        id: None,
    };
    let one = |id| OutboxQuery {
        id: Some(id),
        limit: 1,
        ..OutboxQuery::default()
    };
    let queries = match arguments.ids.as_slice() {
        [] => vec![bulk.clone()],
        ids => ids.iter().copied().map(one).collect(),
    };
    if arguments.dry_run {
        let mut all = OutboxPage::default();
        for query in queries {
            let page = page(&access, query).await?;
            all.more |= page.more;
            all.entries.extend(page.entries);
        }
        if arguments.json {
            return print_json(&json!({ "dry_run": true, "messages": all.entries }));
        }
        return print_page(&all, bulk.limit);
    }
    if arguments.ids.is_empty() {
        let what = match (&arguments.consumer, &arguments.target) {
            (None, None) => "all messages that could not be sent".to_owned(),
            (Some(consumer), None) => format!("the messages of {consumer} that could not be sent"),
            (None, Some(target)) => format!("the messages to {target} that could not be sent"),
            (Some(consumer), Some(target)) => {
                format!("the messages of {consumer} to {target} that could not be sent")
            }
        };
        confirm(&format!("Send {what} now?"), arguments.yes)?;
    }
    let mut changed = 0;
    for query in queries {
        let Response::Count(rows) = access.execute(Request::OutboxRetry(query)).await? else {
            return Err(unexpected());
        };
        changed += rows;
    }
    if arguments.json {
        return print_json(&json!({ "changed": changed }));
    }
    let style = if changed > 0 { GOOD } else { FAINT };
    let count = output::count(changed, "message");
    let mut text = format!("{style}{count}{style:#} due now\n");
    if changed > 0 {
        text.push_str(&format!(
            "{FAINT}A running host sends them within a second; without one they wait for it.{FAINT:#}\n"
        ));
    }
    Ok(output::print(&text)?)
}
