//! `hapax consumers`: what each does, hold one back and let it go on, change its rules.

use std::fmt::Write as _;
use std::sync::Arc;

use anstyle::Style;
use clap::{Args, Subcommand};

use crate::config::Config;
use crate::consumer::rule_texts;
use crate::operations::{ConsumerState, PauseDone, PauseWish, Rekey, Rekeyed, Request, Response};
use crate::output::{self, BAD, FAINT, GOOD, STRONG, Table, WARNING, thousands};

use super::access::Access;
use super::ask::{confirm, who};
use super::{Error, print_json, unexpected};

/// Digits of a digest that people compare.
const DIGEST_DIGITS: usize = 12;

#[derive(Debug, Subcommand)]
pub enum ConsumersCommand {
    /// List consumers and what they do
    List(ListArgs),
    /// Take no messages on any host, also after a restart, until `resume`
    Pause(PauseArgs),
    /// Take messages again
    Resume(ResumeArgs),
    /// Remember the configuration's key and fingerprint rules in place of the old ones, after a drain
    Rekey(RekeyArgs),
}

#[derive(Debug, Args)]
pub struct ListArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct PauseArgs {
    /// Their names
    #[arg(
        required_unless_present = "all",
        conflicts_with = "all",
        value_name = "CONSUMER"
    )]
    consumers: Vec<String>,
    /// All consumers of the configuration
    #[arg(long)]
    all: bool,
    /// The reason, for the log, the status and your colleagues
    #[arg(long, value_name = "TEXT", default_value = "")]
    why: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct ResumeArgs {
    /// Their names
    #[arg(
        required_unless_present = "all",
        conflicts_with = "all",
        value_name = "CONSUMER"
    )]
    consumers: Vec<String>,
    /// All consumers of the configuration
    #[arg(long)]
    all: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct RekeyArgs {
    /// Its name
    consumer: String,
    /// Say what it would mean, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub async fn run(command: ConsumersCommand, config: Arc<Config>) -> Result<(), Error> {
    match command {
        ConsumersCommand::List(arguments) => list(&arguments, &config).await,
        ConsumersCommand::Pause(arguments) => {
            let wish = PauseWish {
                consumers: arguments.consumers,
                pause: true,
                who: who(),
                why: arguments.why,
            };
            pause(wish, arguments.json, &config).await
        }
        ConsumersCommand::Resume(arguments) => {
            let wish = PauseWish {
                consumers: arguments.consumers,
                pause: false,
                who: who(),
                why: String::new(),
            };
            pause(wish, arguments.json, &config).await
        }
        ConsumersCommand::Rekey(arguments) => rekey(&arguments, &config).await,
    }
}

// ---- list ------------------------------------------------------------------------------------------

async fn list(arguments: &ListArgs, config: &Arc<Config>) -> Result<(), Error> {
    let access = Access::open(config).await?;
    let Response::Consumers(consumers) = access.execute(Request::Consumers).await? else {
        return Err(unexpected());
    };
    if arguments.json {
        return print_json(&consumers);
    }
    Ok(output::print(&render(&consumers))?)
}

fn render(consumers: &[ConsumerState]) -> String {
    let mut table = Table::new(&[
        "CONSUMER",
        "STATE",
        "HOSTS",
        "QUEUE",
        "READY",
        "COMMITTED",
        "WAITING",
        "PARKED",
        "PLUGIN",
    ]);
    for consumer in consumers {
        let fate = |name: &str| consumer.ledger.get(name).copied().unwrap_or_default();
        let rows = |name: &str| consumer.waiting.get(name).copied().unwrap_or_default();
        let plugin = consumer.plugin.as_ref();
        table.row([
            consumer.name.clone(),
            consumer.state.clone(),
            consumer.hosts.to_string(),
            consumer.queue.clone().unwrap_or_else(|| "-".to_owned()),
            consumer.ready.map_or("?".to_owned(), thousands),
            thousands(fate("committed")),
            thousands(rows("retry") + rows("held")),
            thousands(rows("parked")),
            plugin.map_or("?".to_owned(), |digest| {
                digest.chars().take(DIGEST_DIGITS).collect()
            }),
        ]);
    }
    let mut text = table.render();
    for consumer in consumers {
        let name = &consumer.name;
        if let Some(reason) = &consumer.reason {
            let since = consumer.paused_at.as_ref();
            let since = since.map(|at| format!(", since {at}")).unwrap_or_default();
            let style = state_style(&consumer.state);
            let _ = writeln!(
                text,
                "{STRONG}{name}{STRONG:#} {style}{}{style:#} {}{since}",
                consumer.state,
                output::clean(reason)
            );
        }
        if consumer.rules_differ {
            let _ = writeln!(
                text,
                "{STRONG}{name}{STRONG:#} {BAD}other rules{BAD:#}: the store remembers the key {} and the \
                 fingerprint {}; no host starts with those of the configuration: see `hapax consumers rekey`",
                output::clean(&consumer.key_rule),
                output::clean(&consumer.fingerprint_rule)
            );
        }
        if consumer.queue.is_none() {
            let _ = writeln!(text, "{FAINT}{name} is not in this configuration{FAINT:#}");
        }
    }
    text
}

fn state_style(state: &str) -> Style {
    match state {
        "running" => GOOD,
        "braked" | "full" => BAD,
        _ => WARNING,
    }
}

// ---- pause, resume ---------------------------------------------------------------------------------

async fn pause(wish: PauseWish, json: bool, config: &Arc<Config>) -> Result<(), Error> {
    let access = Access::open(config).await?;
    let paused = wish.pause;
    let Response::Pause(done) = access.execute(Request::Pause(wish)).await? else {
        return Err(unexpected());
    };
    if json {
        return print_json(&done);
    }
    let lines = done.iter().map(|done| told(done, paused));
    Ok(output::print(&lines.collect::<String>())?)
}

fn told(done: &PauseDone, paused: bool) -> String {
    let word = if paused { "paused" } else { "resumed" };
    let name = &done.name;
    if !done.changed {
        let state = if paused {
            "is paused already"
        } else {
            "is not paused"
        };
        return format!("{FAINT}{name} {state}{FAINT:#}\n");
    }
    let hosts = match (done.hosts, paused) {
        (0, true) => "no host runs it; one that starts takes nothing".to_owned(),
        (0, false) => "no host runs it".to_owned(),
        (hosts, true) => format!(
            "{} within a second; what was begun is finished, what was not goes back",
            take_note(hosts)
        ),
        (hosts, false) => format!("{} within a second", take_note(hosts)),
    };
    format!("{GOOD}{word}{GOOD:#} {name}: {hosts}\n")
}

fn take_note(hosts: u64) -> String {
    match hosts {
        1 => "1 host takes note".to_owned(),
        hosts => format!("{} hosts take note", thousands(hosts)),
    }
}

// ---- rekey -----------------------------------------------------------------------------------------

async fn rekey(arguments: &RekeyArgs, config: &Arc<Config>) -> Result<(), Error> {
    let name = &arguments.consumer;
    let Some(consumer) = config.consumers.iter().find(|known| known.name == *name) else {
        let names = config.consumers.iter().map(|known| known.name.as_str());
        return Err(Error::failed(format!(
            "there is no consumer `{name}` in {}; there is: {}",
            config.path.display(),
            names.collect::<Vec<_>>().join(", ")
        )));
    };
    let (key_rule, fingerprint_rule) = rule_texts(consumer);
    let access = Access::open(config).await?;
    let look = Rekey {
        consumer: name.clone(),
        key_rule,
        fingerprint_rule,
        who: who(),
        dry_run: true,
    };
    let before = execute(&access, look.clone()).await?;
    let same = before.key_rule == before.old_key_rule
        && before.fingerprint_rule == before.old_fingerprint_rule;
    if same || arguments.dry_run {
        if arguments.json {
            return print_json(&before);
        }
        let text = if same {
            format!("{FAINT}{name} has these rules already{FAINT:#}\n")
        } else {
            meaning(name, &before) + &format!("{FAINT}nothing was changed (--dry-run){FAINT:#}\n")
        };
        return Ok(output::print(&text)?);
    }
    output::complain(&meaning(name, &before));
    confirm(&format!("Change the rules of {name}?"), arguments.yes)?;
    let rekey = Rekey {
        dry_run: false,
        ..look
    };
    let done = execute(&access, rekey).await?;
    if arguments.json {
        return print_json(&done);
    }
    Ok(output::print(&format!(
        "{GOOD}changed{GOOD:#} the rules of {name}; its hosts can be started\n"
    ))?)
}

async fn execute(access: &Access, rekey: Rekey) -> Result<Rekeyed, Error> {
    match access.execute(Request::Rekey(rekey)).await? {
        Response::Rekey(rekeyed) => Ok(rekeyed),
        _ => Err(unexpected()),
    }
}

/// What a change of rules means, for the person who decides.
fn meaning(name: &str, rekeyed: &Rekeyed) -> String {
    let mut text = String::new();
    let mut rule = |what: &str, old: &str, new: &str| {
        if old != new {
            let _ = writeln!(
                text,
                "{STRONG}{what:<13}{STRONG:#} {} → {}",
                output::clean(old),
                output::clean(new)
            );
        }
    };
    rule("key", &rekeyed.old_key_rule, &rekeyed.key_rule);
    rule(
        "fingerprint",
        &rekeyed.old_fingerprint_rule,
        &rekeyed.fingerprint_rule,
    );
    let keys = output::count(rekeyed.keys, "key");
    if rekeyed.key_rule != rekeyed.old_key_rule {
        let ready = match rekeyed.ready {
            Some(0) => "The queue is empty.".to_owned(),
            Some(ready) => format!(
                "{WARNING}{} in the queue now{WARNING:#}: let it drain first.",
                output::count(ready, "message")
            ),
            None => "How many messages are in the queue is not known.".to_owned(),
        };
        let _ = writeln!(
            text,
            "The old rule has made {keys} of {name}. They stay, and recognise a message only if the new \
             rule gives it the same key: a message that was committed and comes again under another key is \
             applied again. {ready}"
        );
    }
    if rekeyed.fingerprint_rule != rekeyed.old_fingerprint_rule {
        let _ = writeln!(
            text,
            "The fingerprints of {keys} are forgotten, since the new rule cannot be compared with them: until \
             they expire, these keys are recognised whatever their payload."
        );
    }
    if rekeyed.waiting > 0 {
        let _ = writeln!(
            text,
            "{} of {name} wait or are parked; they keep the keys that they have.",
            output::count(rekeyed.waiting, "failed message")
        );
    }
    text
}
