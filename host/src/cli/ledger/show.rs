//! `hapax ledger show`: everything that is known of a key.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;

use crate::config::Config;
use crate::operations::{LedgerShown, Request, Response};
use crate::output::{self, FAINT, STRONG};

use super::super::access::Access;
use super::super::typed::{self, KeyFormat};
use super::super::{Error, print_json, unexpected};

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The key: text, or hexadecimal after 0x
    key: String,
    /// How it is written
    #[arg(long, value_enum)]
    key_format: Option<KeyFormat>,
    /// Of one consumer; of all of them without it
    #[arg(long)]
    consumer: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Fails when no consumer knows the key, so that a script can ask.
pub(super) async fn run(arguments: &ShowArgs, config: &Arc<Config>) -> Result<(), Error> {
    let key_hex = typed::key_hex(&arguments.key, arguments.key_format)?;
    let access = Access::open(config).await?;
    let request = Request::LedgerShow {
        consumer: arguments.consumer.clone(),
        key_hex: key_hex.clone(),
    };
    let Response::LedgerShow(mut shown) = access.execute(request).await? else {
        return Err(unexpected());
    };
    shown.retain(|shown| {
        shown.entry.is_some() || shown.waiting.is_some() || !shown.journal.is_empty()
    });
    if arguments.json {
        print_json(&shown)?;
    } else {
        let parts = shown.iter().map(render).collect::<Vec<_>>();
        output::print(&parts.join("\n"))?;
    }
    if shown.iter().any(|shown| shown.entry.is_some()) {
        return Ok(());
    }
    let key = super::shown(&key_hex);
    Err(Error::failed(match &arguments.consumer {
        Some(name) => format!("{name} does not know the key {key}: a message with it would be run"),
        None => format!("no consumer knows the key {key}: a message with it would be run"),
    }))
}

fn render(shown: &LedgerShown) -> String {
    let mut text = output::field("consumer", &shown.consumer);
    let mut field = |name: &str, value: &str| text.push_str(&output::field(name, value));
    match &shown.entry {
        None => field("fate", "unknown: a message with this key would be run"),
        Some(entry) => {
            field("key", &super::shown(&entry.key_hex));
            field("fate", &fate(&entry.fate, entry.attempts));
            field("attempts", &entry.attempts.to_string());
            field("plugin", &entry.plugin);
            let remembered = match (&entry.expires_at, entry.fate.as_str()) {
                (None, _) => "forever".to_owned(),
                (Some(_), "waiting" | "parked") => {
                    "as long as its message waits, and then as long again".to_owned()
                }
                (Some(time), _) => format!("until {time}"),
            };
            field("remembered", &remembered);
            let fingerprint = match entry.fingerprint.as_str() {
                "" => "unknown: any payload with this key is a duplicate",
                digits => digits,
            };
            field("fingerprint", fingerprint);
        }
    }
    if let Some(waiting) = &shown.waiting {
        let due = waiting.due_at.as_ref();
        let due = due.map(|due| format!(", due {due}")).unwrap_or_default();
        let line = format!(
            "{} {}: {} ({}){due}",
            &waiting.id[..waiting.id.len().min(8)],
            waiting.status,
            waiting.error,
            waiting.code
        );
        field("message", &line);
    }
    if let Some(reply) = shown.entry.as_ref().and_then(|entry| entry.reply.as_ref()) {
        let reply = STANDARD.decode(reply).unwrap_or_default();
        let title = format!("reply, {}", output::count(reply.len() as u64, "byte"));
        text.push_str(&output::section(&title, &output::bytes(&reply)));
    }
    if !shown.journal.is_empty() {
        text.push_str(&format!("\n{STRONG}what operators did{STRONG:#}\n"));
        for note in &shown.journal {
            text.push_str(&format!(
                "  {FAINT}{}{FAINT:#} {} by {}: {}\n",
                note.at,
                output::clean(&note.action),
                output::clean(&note.who),
                output::clean(&note.why)
            ));
        }
    }
    text
}

/// A fate, and what it means for the next delivery.
fn fate(name: &str, attempts: i32) -> String {
    let meaning = match name {
        "committed" if attempts == 0 => "it was imported; a delivery is a duplicate",
        "committed" => "its effects are in the database; another delivery is a duplicate",
        "waiting" => "its message waits for a retry; another delivery is a duplicate",
        "parked" => "its message waits for you; another delivery is a duplicate",
        "discarded" => "it was given up; another delivery is a duplicate",
        "started" => "it began and has not ended: it runs now, or took its host down",
        _ => return name.to_owned(),
    };
    format!("{name}: {meaning}")
}
