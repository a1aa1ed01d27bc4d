//! `hapax parked`: failed messages, as their operator sees them.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::sync::Arc;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use crate::config::Config;
use crate::message::Message;
use crate::operations::{
    Changed, Entry, Filter, Page, Request, Response, Selection, Shown, unique_digits, write_message,
};
use crate::output::{self, BAD, FAINT, GOOD, STRONG, Table};

use super::access::Access;
use super::{Error, print_json};

/// Characters of a key in a list.
const KEY_WIDTH: usize = 40;

/// Bytes of a body that is no text, in the dump of `show`.
const DUMP_BYTES: usize = 1024;

/// Characters of a body that is text, in `show`.
const BODY_CHARACTERS: usize = 64 * 1024;

#[derive(Debug, Subcommand)]
pub enum ParkedCommand {
    /// List parked messages, the newest failure first
    List(ListArgs),
    /// Show one failed message whole
    Show(ShowArgs),
    /// Run parked messages again, from their first attempt; what was committed meanwhile is recognised
    Replay(SelectArgs),
    /// Give parked messages up; their keys are remembered as discarded
    Discard(SelectArgs),
}

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

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The beginning of its id
    id: String,
    /// Print JSON; its `message` is a line that `hapax publish` takes
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct SelectArgs {
    /// The beginnings of their ids
    #[arg(
        required_unless_present = "all",
        conflicts_with = "all",
        value_name = "ID"
    )]
    ids: Vec<String>,
    /// All parked messages, of all consumers unless one is named
    #[arg(long)]
    all: bool,
    /// Of one consumer
    #[arg(long, requires = "all", conflicts_with = "ids")]
    consumer: Option<String>,
    /// Of one error code
    #[arg(long, requires = "all", conflicts_with = "ids")]
    code: Option<String>,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub async fn run(command: ParkedCommand, config: Arc<Config>) -> Result<(), Error> {
    match command {
        ParkedCommand::List(arguments) => list(&arguments, &config).await,
        ParkedCommand::Show(arguments) => show(&arguments, &config).await,
        ParkedCommand::Replay(arguments) => change(&arguments, &config, &REPLAY).await,
        ParkedCommand::Discard(arguments) => change(&arguments, &config, &DISCARD).await,
    }
}

// ---- list ------------------------------------------------------------------------------------------

async fn list(arguments: &ListArgs, config: &Arc<Config>) -> Result<(), Error> {
    let filter = Filter {
        consumer: arguments.consumer.clone(),
        status: status(arguments),
        code: arguments.code.clone(),
        key_hex: arguments.key.as_deref().map(key_hex).transpose()?,
        limit: arguments.limit,
    };
    let access = Access::open(config).await?;
    let Response::List(page) = access.execute(Request::List(filter)).await? else {
        return Err(super::unexpected());
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

/// Keys are bytes; most of them are text.
fn key_hex(typed: &str) -> Result<String, Error> {
    let Some(digits) = typed.strip_prefix("0x") else {
        return Ok(hex::encode(typed));
    };
    match hex::decode(digits) {
        Ok(key) => Ok(hex::encode(key)),
        Err(_) => Err(Error::usage(format!(
            "--key {typed}: after 0x come pairs of hexadecimal digits"
        ))),
    }
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

fn key(entry: &Entry) -> String {
    match (&entry.key, &entry.key_hex) {
        (Some(text), _) => output::clean(text),
        (None, Some(digits)) => format!("0x{digits}"),
        (None, None) => "-".to_owned(),
    }
}

// ---- show ------------------------------------------------------------------------------------------

async fn show(arguments: &ShowArgs, config: &Arc<Config>) -> Result<(), Error> {
    let access = Access::open(config).await?;
    let Response::Show(shown) = access.execute(Request::Show(arguments.id.clone())).await? else {
        return Err(super::unexpected());
    };
    let message = Message::try_from(shown.message.clone())?;
    if arguments.json {
        let mut value = serde_json::to_value(&shown.entry).expect("an entry is plain data");
        value["stderr"] = json!(shown.stderr);
        value["backtrace"] = json!(shown.backtrace);
        value["message"] = write_message(&message);
        return print_json(&value);
    }
    Ok(output::print(&render(&shown, &message))?)
}

fn render(shown: &Shown, message: &Message) -> String {
    let entry = &shown.entry;
    let mut text = String::new();
    let mut field = |name: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(
                text,
                "{STRONG}{name:<13}{STRONG:#} {}",
                output::clean(value)
            );
        }
    };
    field("id", &entry.id);
    field("consumer", &entry.consumer);
    field("key", &key(entry));
    field("status", &entry.status);
    field("code", &entry.code);
    field("error", &entry.error);
    field("attempts", &entry.attempts.to_string());
    field("first failed", &entry.first_failed_at);
    field("last failed", &entry.failed_at);
    field("due", entry.due_at.as_deref().unwrap_or_default());
    field("queue", &entry.queue);
    field("plugin", &entry.plugin);
    field("trace", &entry.trace_id);
    field(
        "exchange",
        if message.exchange.is_empty() {
            "(default)"
        } else {
            &message.exchange
        },
    );
    field("routing key", &message.routing_key);

    let mut written = write_message(message);
    for name in ["properties", "headers"] {
        section(&mut text, name, &members(written[name].take()));
    }
    section(&mut text, "stderr", &shown.stderr);
    section(&mut text, "backtrace", &shown.backtrace);
    section(
        &mut text,
        &format!("body, {}", output::count(message.body.len() as u64, "byte")),
        &body(&message.body),
    );
    text
}

fn section(text: &mut String, title: &str, content: &str) {
    if content.is_empty() {
        return;
    }
    let _ = writeln!(text, "\n{STRONG}{title}{STRONG:#}");
    for line in output::clean_lines(content).lines() {
        let _ = writeln!(text, "  {line}");
    }
}

fn members(value: Value) -> String {
    let Value::Object(members) = value else {
        return String::new();
    };
    let line = |(name, value): (String, Value)| match value {
        Value::String(text) => format!("{name}: {}\n", output::clean(&text)),
        other => format!("{name}: {other}\n"),
    };
    members.into_iter().map(line).collect()
}

/// Pretty JSON, else text, else the first bytes in hexadecimal digits.
fn body(bytes: &[u8]) -> String {
    let Ok(text) = str::from_utf8(bytes) else {
        return dump(bytes);
    };
    let pretty = serde_json::from_str::<Value>(text)
        .map(|json| format!("{json:#}"))
        .unwrap_or_else(|_| text.to_owned());
    match pretty.char_indices().nth(BODY_CHARACTERS) {
        Some((end, _)) => format!("{}\n… (use --json for all of it)", &pretty[..end]),
        None => pretty,
    }
}

fn dump(bytes: &[u8]) -> String {
    const WIDTH: usize = 16;
    let mut text = String::new();
    for (row, chunk) in bytes[..bytes.len().min(DUMP_BYTES)]
        .chunks(WIDTH)
        .enumerate()
    {
        let digits = chunk
            .iter()
            .map(|byte| format!("{byte:02x} "))
            .collect::<String>();
        let characters = chunk.iter().map(|byte| match byte {
            b' '..=b'~' => char::from(*byte),
            _ => '.',
        });
        let characters = characters.collect::<String>();
        let _ = writeln!(
            text,
            "{:08x}  {digits:<width$} {characters}",
            row * WIDTH,
            width = WIDTH * 3
        );
    }
    if bytes.len() > DUMP_BYTES {
        let _ = writeln!(text, "… (use --json for all of it)");
    }
    text
}

// ---- replay, discard -------------------------------------------------------------------------------

/// The words of a change.
struct Words {
    request: fn(Selection) -> Request,
    verb: &'static str,
    done: &'static str,
    /// One message may be changed without asking.
    harmless: bool,
    after: &'static str,
}

const REPLAY: Words = Words {
    request: Request::Replay,
    verb: "Replay",
    done: "due now",
    harmless: true,
    after: "The running host takes them from here; without one they wait for it.",
};

const DISCARD: Words = Words {
    request: Request::Discard,
    verb: "Discard",
    done: "discarded",
    harmless: false,
    after: "",
};

async fn change(arguments: &SelectArgs, config: &Arc<Config>, words: &Words) -> Result<(), Error> {
    let selection = if arguments.all {
        Selection::All {
            consumer: arguments.consumer.clone(),
            code: arguments.code.clone(),
        }
    } else {
        Selection::Ids(arguments.ids.clone())
    };
    let access = Access::open(config).await?;
    let Response::Count(rows) = access.execute(Request::Count(selection.clone())).await? else {
        return Err(super::unexpected());
    };
    let ask = !arguments.yes && rows > 0 && (arguments.all || !words.harmless);
    if ask && !agrees(words.verb, rows)? {
        return Err(Error::failed("nothing was changed"));
    }
    let Response::Changed(changed) = access.execute((words.request)(selection)).await? else {
        return Err(super::unexpected());
    };
    if arguments.json {
        return print_json(&changed);
    }
    Ok(output::print(&told(changed, words))?)
}

fn told(changed: Changed, words: &Words) -> String {
    let style = if changed.changed > 0 { GOOD } else { FAINT };
    let mut text = format!(
        "{style}{}{style:#} {}\n",
        output::count(changed.changed, "message"),
        words.done
    );
    if changed.gone > 0 {
        let gone = output::count(changed.gone, "message");
        let _ = writeln!(
            text,
            "{BAD}{gone}{BAD:#} had left the table before it was their turn"
        );
    }
    if changed.changed > 0 && !words.after.is_empty() {
        let _ = writeln!(text, "{FAINT}{}{FAINT:#}", words.after);
    }
    text
}

/// Asks a person who is there. Whoever runs this from a script has decided.
fn agrees(verb: &str, rows: u64) -> io::Result<bool> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Ok(true);
    }
    let mut prompt = anstream::stderr().lock();
    write!(
        prompt,
        "{verb} {}? [y/N] ",
        output::count(rows, "parked message")
    )?;
    prompt.flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(
        answer.trim().to_ascii_lowercase().as_str(),
        "y" | "yes"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn a_key_is_typed_as_text_or_in_hexadecimal() {
        assert_eq!(key_hex("o-1").expect("text"), "6f2d31");
        assert_eq!(key_hex("0xFF00").expect("bytes"), "ff00");
        assert_eq!(key_hex("0xf").map_err(|error| error.code()), Err(64));
    }

    #[test]
    fn a_body_is_pretty_json_or_text_or_a_dump() {
        assert_eq!(
            body(br#"{"b":1.50,"a":[true]}"#),
            "{\n  \"a\": [\n    true\n  ],\n  \"b\": 1.50\n}"
        );
        assert_eq!(body(b"plain"), "plain");
        expect![[r#"
            00000000  ff 00 41 20 62                                   ..A b
        "#]]
        .assert_eq(&body(b"\xff\x00A b"));
    }

    #[test]
    fn a_long_body_is_cut_and_says_so() {
        assert!(body(&[0xff; 4096]).lines().count() < 80);
        let text = body("é".repeat(100_000).as_bytes());
        assert!(text.ends_with("(use --json for all of it)") && text.chars().count() < 70_000);
    }

    #[test]
    fn control_characters_of_a_message_do_not_reach_the_terminal() {
        let message = Message {
            exchange: "e\u{1b}[2J".into(),
            routing_key: "r".into(),
            properties: lapin::BasicProperties::default().with_message_id("m\r\n".into()),
            body: bytes::Bytes::from_static(b"\x1b]0;title\x07"),
        };
        let entry = Entry {
            id: "00ff".into(),
            consumer: "points".into(),
            status: "parked".into(),
            key: Some("k\u{202e}".into()),
            key_hex: Some("6b".into()),
            code: "rejected".into(),
            error: "no\u{1b}[31m".into(),
            attempts: 1,
            first_failed_at: "2026-01-01T00:00:00Z".into(),
            failed_at: "2026-01-01T00:00:00Z".into(),
            due_at: None,
            queue: "q".into(),
            plugin: String::new(),
            trace_id: String::new(),
        };
        let shown = Shown {
            entry,
            stderr: "panicked\u{7}\nat once".into(),
            backtrace: String::new(),
            message: crate::operations::Wire::from(&message),
        };
        let plain = anstream::adapter::strip_str(&render(&shown, &message)).to_string();
        expect![[r#"
            id            00ff
            consumer      points
            key           k\u{202e}
            status        parked
            code          rejected
            error         no\u{1b}[31m
            attempts      1
            first failed  2026-01-01T00:00:00Z
            last failed   2026-01-01T00:00:00Z
            queue         q
            exchange      e\u{1b}[2J
            routing key   r

            properties
              message_id: m\r\n

            stderr
              panicked\u{7}
              at once

            body, 10 bytes
              \u{1b}]0;title\u{7}
        "#]]
        .assert_eq(&plain);
    }
}
