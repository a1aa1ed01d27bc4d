//! `hapax ledger forget`: makes messages new again, for a reason.

use std::sync::Arc;

use clap::Args;

use crate::config::Config;
use crate::operations::{Forget, Forgotten, Request, Response};
use crate::output::{self, FAINT, GOOD, WARNING};

use super::super::access::Access;
use super::super::ask::{confirm, who};
use super::super::typed::{self, KeyFormat};
use super::super::{Error, print_json, unexpected};

#[derive(Debug, Args)]
pub struct ForgetArgs {
    /// The keys: text, or hexadecimal after 0x
    #[arg(required = true, value_name = "KEY")]
    keys: Vec<String>,
    /// How they are written
    #[arg(long, value_enum)]
    key_format: Option<KeyFormat>,
    /// Whose keys; not needed where there is one consumer
    #[arg(long)]
    consumer: Option<String>,
    /// The reason; it is kept in the store, with your name
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    why: String,
    /// Say what would be forgotten, and forget nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(arguments: &ForgetArgs, config: &Arc<Config>) -> Result<(), Error> {
    let consumer = super::consumer(arguments.consumer.as_deref(), config)?;
    let keys_hex = arguments
        .keys
        .iter()
        .map(|key| typed::key_hex(key, arguments.key_format))
        .collect::<Result<Vec<_>, _>>()?;
    let access = Access::open(config).await?;
    let look = Forget {
        consumer,
        keys_hex,
        who: who(),
        why: arguments.why.clone(),
        dry_run: true,
    };
    let before = execute(&access, look.clone()).await?;
    let known = before.iter().filter(|key| key.fate.is_some()).count() as u64;
    if known == 0 {
        return Err(Error::failed(format!(
            "{} knows none of these keys: nothing is there to forget",
            look.consumer
        )));
    }
    let told = if arguments.dry_run {
        before
    } else {
        let question = format!(
            "Forget {} of {}? A message with such a key that comes again is applied again.",
            output::count(known, "key"),
            look.consumer
        );
        confirm(&question, arguments.yes)?;
        let forget = Forget {
            dry_run: false,
            ..look
        };
        execute(&access, forget).await?
    };
    if arguments.json {
        return print_json(&told);
    }
    Ok(output::print(&render(&told, arguments.dry_run))?)
}

async fn execute(access: &Access, forget: Forget) -> Result<Vec<Forgotten>, Error> {
    match access.execute(Request::LedgerForget(forget)).await? {
        Response::LedgerForget(told) => Ok(told),
        _ => Err(unexpected()),
    }
}

fn render(told: &[Forgotten], dry_run: bool) -> String {
    let mut text = String::new();
    for key in told {
        let shown = super::shown(&key.key_hex);
        text.push_str(&match (&key.fate, key.forgotten) {
            (Some(fate), true) => format!("{GOOD}forgotten{GOOD:#} {shown} (it was {fate})\n"),
            (Some(fate), false) if dry_run => format!("would be forgotten {shown} (it is {fate})\n"),
            (Some(fate), false) => format!(
                "{WARNING}not forgotten{WARNING:#} {shown}: it was {fate}, and has changed meanwhile\n"
            ),
            (None, _) => format!("{FAINT}not known{FAINT:#} {shown}\n"),
        });
    }
    text
}
