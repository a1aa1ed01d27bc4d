//! `hapax parked replay` and `hapax parked discard`: one message, or all that match.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use crate::config::Config;
use crate::operations::{Changed, Request, Response, Selection, Step, Tally, When};
use crate::output::{self, BAD, FAINT, GOOD, Table, WARNING};

use super::super::access::Access;
use super::super::ask::confirm;
use super::super::typed::{self, KeyFormat};
use super::super::{Error, print_json, progress, unexpected};
use super::edit;

/// Rows in one step of a change.
const STEP_ROWS: usize = 200;

/// Duplicates that are told one by one.
const TOLD_DUPLICATES: usize = 20;

#[derive(Debug, Args)]
pub struct SelectArgs {
    /// The beginnings of their ids
    #[arg(
        required_unless_present_any = ["all", "consumer", "code", "key", "since", "until", "older_than"],
        conflicts_with_all = ["all", "consumer", "code", "key", "since", "until", "older_than"],
        value_name = "ID"
    )]
    ids: Vec<String>,
    /// All parked messages
    #[arg(long)]
    all: bool,
    /// Those of one consumer
    #[arg(long)]
    consumer: Option<String>,
    /// Those of one error code
    #[arg(long)]
    code: Option<String>,
    /// The one of a key: text, or hexadecimal after 0x
    #[arg(long)]
    key: Option<String>,
    /// How --key is written
    #[arg(long, value_enum, requires = "key")]
    key_format: Option<KeyFormat>,
    /// Those that failed last after this: so long ago, a day, or a moment
    #[arg(long, value_name = "TIME", value_parser = typed::when)]
    since: Option<When>,
    /// Those that failed last before this
    #[arg(long, value_name = "TIME", value_parser = typed::when)]
    until: Option<When>,
    /// Those that failed last longer ago than this
    #[arg(long, value_name = "DURATION", value_parser = typed::duration, conflicts_with = "until")]
    older_than: Option<Duration>,
    /// Say what would be changed, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct ReplayArgs {
    #[command(flatten)]
    select: SelectArgs,
    /// Open the body of the one message in $VISUAL or $EDITOR, and replay what was written
    #[arg(long)]
    edit: bool,
}

#[derive(Debug, Args)]
pub struct DiscardArgs {
    #[command(flatten)]
    select: SelectArgs,
}

/// The words of a change.
struct Words {
    request: fn(Vec<String>) -> Request,
    verb: &'static str,
    done: &'static str,
    /// Messages that were named one by one may be changed without asking.
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

pub(super) async fn replay(arguments: &ReplayArgs, config: &Arc<Config>) -> Result<(), Error> {
    if !arguments.edit {
        return change(&arguments.select, config, &REPLAY).await;
    }
    let select = &arguments.select;
    let [id] = select.ids.as_slice() else {
        return Err(Error::usage("--edit takes the id of one message"));
    };
    let access = Access::open(config).await?;
    let Some(changed) = edit::run(&access, id, select.dry_run).await? else {
        return Err(Error::failed(
            "the body was not changed, and nothing was done; `hapax parked replay` without --edit runs it as \
             it is",
        ));
    };
    tell(select, &changed, &REPLAY)
}

pub(super) async fn discard(arguments: &DiscardArgs, config: &Arc<Config>) -> Result<(), Error> {
    change(&arguments.select, config, &DISCARD).await
}

impl SelectArgs {
    fn selection(&self) -> Result<Selection, Error> {
        if !self.ids.is_empty() {
            return Ok(Selection::Ids(self.ids.clone()));
        }
        let key = self.key.as_deref();
        Ok(Selection::Matching {
            consumer: self.consumer.clone(),
            code: self.code.clone(),
            key_hex: key
                .map(|key| typed::key_hex(key, self.key_format))
                .transpose()?,
            since: self.since,
            until: self.until.or(self.older_than.map(When::Ago)),
        })
    }
}

async fn change(arguments: &SelectArgs, config: &Arc<Config>, words: &Words) -> Result<(), Error> {
    let selection = arguments.selection()?;
    let access = Access::open(config).await?;
    if arguments.dry_run {
        let Response::Tally(tally) = access.execute(Request::Tally(selection)).await? else {
            return Err(unexpected());
        };
        return foretell(arguments, &tally, words);
    }
    let (ids, tally) = choose(&access, selection).await?;
    let rows = ids.len() as u64;
    if rows == 0 {
        if let Some(told) = committed(arguments, config, &access).await? {
            return Ok(output::print(&told)?);
        }
    } else if arguments.ids.is_empty() || !words.harmless {
        confirm(&question(&tally, words), arguments.yes)?;
    }
    let progress = progress(rows);
    let mut total = Changed::default();
    for part in ids.chunks(STEP_ROWS) {
        let request = (words.request)(part.to_vec());
        let Response::Changed(changed) = access.execute(request).await? else {
            return Err(unexpected());
        };
        total.changed += changed.changed;
        total.gone += changed.gone;
        total.duplicates.extend(changed.duplicates);
        total.withheld.extend(changed.withheld);
        progress.set_position(total.changed);
    }
    progress.finish_and_clear();
    tell(arguments, &total, words)
}

/// The rows that a selection means now, and how many of each kind they are: what the person agrees to is what is
/// changed, whatever is parked while he thinks.
async fn choose(access: &Access, selection: Selection) -> Result<(Vec<String>, Vec<Tally>), Error> {
    let mut ids = Vec::new();
    let mut kinds = BTreeMap::<(String, String), u64>::new();
    let mut after = None;
    loop {
        let step = Step {
            selection: selection.clone(),
            after,
        };
        let Response::Choice(choice) = access.execute(Request::Choose(step)).await? else {
            return Err(unexpected());
        };
        for row in choice.rows {
            *kinds.entry((row.consumer, row.code)).or_default() += 1;
            ids.push(row.id);
        }
        after = choice.next;
        if after.is_none() {
            break;
        }
    }
    let tally = kinds.into_iter().map(|((consumer, code), rows)| Tally {
        consumer,
        code,
        rows,
    });
    Ok((ids, tally.collect()))
}

/// What to say of a key that has no parked message since the ledger says that it was dealt with.
async fn committed(
    arguments: &SelectArgs,
    config: &Config,
    access: &Access,
) -> Result<Option<String>, Error> {
    let Some(key) = &arguments.key else {
        return Ok(None);
    };
    if let Some(name) = &arguments.consumer
        && !config.consumers.iter().any(|known| known.name == *name)
    {
        return Ok(None);
    }
    let request = Request::LedgerShow {
        consumer: arguments.consumer.clone(),
        key_hex: typed::key_hex(key, arguments.key_format)?,
    };
    let Response::LedgerShow(shown) = access.execute(request).await? else {
        return Err(unexpected());
    };
    let mut text = String::new();
    for known in shown.into_iter().filter_map(|shown| shown.entry) {
        if matches!(known.fate.as_str(), "committed" | "discarded") {
            let _ = writeln!(
                text,
                "{WARNING}duplicate, nothing done{WARNING:#}: {} is {} in {}",
                output::clean(key),
                known.fate,
                known.consumer
            );
        }
    }
    Ok((!text.is_empty()).then_some(text))
}

fn question(tally: &[Tally], words: &Words) -> String {
    let rows = tally.iter().map(|tally| tally.rows).sum::<u64>();
    let parts = tally
        .iter()
        .map(|tally| {
            let rows = output::thousands(tally.rows);
            format!("{} {rows} {}", tally.consumer, output::clean(&tally.code))
        })
        .collect::<Vec<_>>();
    format!(
        "{} {} ({})?",
        words.verb,
        output::count(rows, "parked message"),
        parts.join(", ")
    )
}

fn foretell(arguments: &SelectArgs, tally: &[Tally], words: &Words) -> Result<(), Error> {
    if arguments.json {
        return print_json(&json!({ "dry_run": true, "messages": tally }));
    }
    let mut table = Table::new(&["CONSUMER", "CODE", "MESSAGES"]);
    for tally in tally {
        table.row([
            tally.consumer.clone(),
            tally.code.clone(),
            output::thousands(tally.rows),
        ]);
    }
    let rows = tally.iter().map(|tally| tally.rows).sum::<u64>();
    output::print(&table.render())?;
    output::complain(&format!(
        "{FAINT}{} would be {}; nothing was changed (--dry-run){FAINT:#}\n",
        output::count(rows, "message"),
        words.done
    ));
    Ok(())
}

fn tell(arguments: &SelectArgs, changed: &Changed, words: &Words) -> Result<(), Error> {
    if arguments.json {
        return print_json(&json!({
            "changed": changed.changed,
            "gone": changed.gone,
            "duplicates": changed.duplicates,
            "withheld": changed.withheld,
            "dry_run": arguments.dry_run,
        }));
    }
    if arguments.dry_run {
        let count = output::count(changed.changed, "message");
        let text = format!(
            "{FAINT}{count} would be {} (--dry-run){FAINT:#}\n",
            words.done
        );
        return Ok(output::print(&text)?);
    }
    Ok(output::print(&told(changed, words))?)
}

fn told(changed: &Changed, words: &Words) -> String {
    let mut text = String::new();
    for duplicate in changed.duplicates.iter().take(TOLD_DUPLICATES) {
        let key = hex::decode(&duplicate.key_hex).unwrap_or_default();
        let _ = writeln!(
            text,
            "{WARNING}duplicate, nothing done{WARNING:#}: {} ({} is {})",
            &duplicate.id[..duplicate.id.len().min(8)],
            crate::key::show(&key),
            duplicate.fate
        );
    }
    let more = changed.duplicates.len().saturating_sub(TOLD_DUPLICATES);
    if more > 0 {
        let more = output::count(more as u64, "duplicate");
        let _ = writeln!(text, "and {more} more");
    }
    if !changed.duplicates.is_empty() {
        let _ = writeln!(
            text,
            "{FAINT}Their messages were dealt with; `hapax parked discard` removes what is left of them.{FAINT:#}"
        );
    }
    if !changed.withheld.is_empty() {
        let ids = changed.withheld.iter().take(TOLD_DUPLICATES);
        let ids = ids.map(|id| &id[..id.len().min(8)]).collect::<Vec<_>>();
        let _ = writeln!(
            text,
            "{WARNING}cannot run, nothing done{WARNING:#}: {} ({}{})\n{FAINT}A part of each is all that could be read; \
             `hapax parked show ID` tells which. Write a body with `hapax parked replay ID --edit`, or discard \
             it.{FAINT:#}",
            output::count(changed.withheld.len() as u64, "message"),
            ids.join(", "),
            if changed.withheld.len() > TOLD_DUPLICATES {
                ", …"
            } else {
                ""
            }
        );
    }
    let nothing_left_alone = changed.duplicates.is_empty() && changed.withheld.is_empty();
    if changed.changed > 0 || nothing_left_alone {
        let style = if changed.changed > 0 { GOOD } else { FAINT };
        let count = output::count(changed.changed, "message");
        let _ = writeln!(text, "{style}{count}{style:#} {}", words.done);
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operations::Duplicate;
    use expect_test::expect;

    #[test]
    fn a_message_that_cannot_run_is_told_with_the_way_out() {
        let changed = Changed {
            changed: 1,
            withheld: vec!["3f2a8c1e".repeat(8)],
            ..Changed::default()
        };
        let plain = anstream::adapter::strip_str(&told(&changed, &REPLAY)).to_string();
        assert!(
            plain.contains("cannot run, nothing done: 1 message (3f2a8c1e)"),
            "{plain}"
        );
        assert!(
            plain.contains("parked replay ID --edit") && plain.contains("1 message due now"),
            "{plain}"
        );
    }

    #[test]
    fn a_duplicate_is_told_as_one_and_nothing_else_is_claimed() {
        let changed = Changed {
            duplicates: vec![Duplicate {
                id: "3f2a8c1e".repeat(8),
                key_hex: hex::encode("o-1"),
                fate: "committed".to_owned(),
            }],
            ..Changed::default()
        };
        let plain = anstream::adapter::strip_str(&told(&changed, &REPLAY)).to_string();
        expect![[r#"
            duplicate, nothing done: 3f2a8c1e (`o-1` is committed)
            Their messages were dealt with; `hapax parked discard` removes what is left of them.
        "#]]
        .assert_eq(&plain);
    }

    #[test]
    fn the_question_says_whose_messages_and_why_they_failed() {
        let tally =
            [("points", "trap", 1_200), ("mail", "rejected", 3)].map(|(consumer, code, rows)| {
                Tally {
                    consumer: consumer.to_owned(),
                    code: code.to_owned(),
                    rows,
                }
            });
        assert_eq!(
            question(&tally, &DISCARD),
            "Discard 1,203 parked messages (points 1,200 trap, mail 3 rejected)?"
        );
    }
}
