//! What `hapax test` tells: what each message did, what it took, and what would hurt.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::output::{self, BAD, FAINT, GOOD, STRONG, WARNING, thousands};
use crate::sandbox::Plugin;

use super::rehearsal::Check;

/// A message that was checked.
pub struct Checked {
    pub place: String,
    pub check: Check,
}

pub struct Report {
    digest: String,
    size_bytes: u64,
    consumer: String,
    pub messages: Vec<Checked>,
    /// What is wrong with none of them.
    pub problems: Vec<String>,
}

impl Checked {
    /// A message that fails is a failed test, unless its failure is what was recorded.
    fn has_failed(&self) -> bool {
        !self.check.problems.is_empty()
    }
}

impl Report {
    pub fn new(plugin: &Plugin, consumer: &str) -> Self {
        Self {
            digest: hex::encode(plugin.digest()),
            size_bytes: plugin.size_bytes(),
            consumer: consumer.to_owned(),
            messages: Vec::new(),
            problems: Vec::new(),
        }
    }

    pub fn has_failed(&self) -> bool {
        !self.problems.is_empty() || self.messages.iter().any(Checked::has_failed)
    }

    pub fn json(&self) -> Value {
        let messages = self.messages.iter().map(|Checked { place, check }| {
            json!({
                "place": place,
                "key": check.key,
                "outcome": check.outcome.word,
                "reason": check.outcome.reason,
                "evidence": check.outcome.evidence,
                "effects": check.effects,
                "second": check.second,
                "microseconds": u64::try_from(check.elapsed.as_micros()).unwrap_or(u64::MAX),
                "peak_memory_bytes": check.peak_memory_bytes,
                "fuel": check.fuel,
                "kills": check.kills,
                "problems": check.problems,
            })
        });
        json!({
            "consumer": self.consumer,
            "digest": self.digest,
            "size_bytes": self.size_bytes,
            "passed": !self.has_failed(),
            "problems": self.problems,
            "messages": messages.collect::<Vec<_>>(),
        })
    }

    pub fn render(&self) -> String {
        let mut text = format!(
            "{STRONG}{}{STRONG:#} {FAINT}{}, {} KiB{FAINT:#}\n",
            output::clean(&self.consumer),
            &self.digest[..12],
            thousands(self.size_bytes.div_ceil(1024))
        );
        for message in &self.messages {
            message.render(&mut text);
        }
        if !self.problems.is_empty() {
            text.push('\n');
        }
        for problem in &self.problems {
            render_problem(problem, &mut text);
        }
        let failed = self.messages.iter().filter(|one| one.has_failed()).count();
        let count = output::count(self.messages.len() as u64, "message");
        let _ = match failed {
            0 if self.has_failed() => writeln!(text, "\n{BAD}{count}, and a problem{BAD:#}"),
            0 => writeln!(text, "\n{GOOD}{count}, none with a problem{GOOD:#}"),
            failed => writeln!(text, "\n{BAD}{count}, {failed} with problems{BAD:#}"),
        };
        text
    }
}

impl Checked {
    fn render(&self, text: &mut String) {
        let check = &self.check;
        let style = match check.outcome.word {
            "done" | "ignored" => GOOD,
            _ => WARNING,
        };
        let _ = writeln!(
            text,
            "\n{} {STRONG}{}{STRONG:#} {style}{}{style:#}",
            output::clean(&self.place),
            output::clean(&check.key),
            output::clean_lines(&check.outcome.line())
        );
        for line in check.outcome.evidence.lines() {
            let _ = writeln!(text, "    {FAINT}{}{FAINT:#}", output::clean(line));
        }
        for effect in &check.effects {
            let _ = writeln!(text, "  {}", output::clean(effect));
        }
        if check.outcome.word != "duplicate" {
            let _ = writeln!(
                text,
                "  {FAINT}{:.2} ms, {} KiB of memory, {} instructions; ran twice, came again, killed at {}{FAINT:#}",
                check.elapsed.as_secs_f64() * 1e3,
                thousands(check.peak_memory_bytes.div_ceil(1024)),
                thousands(check.fuel),
                output::count(u64::from(check.kills), "call")
            );
        }
        for problem in &check.problems {
            render_problem(problem, text);
        }
    }
}

/// A sentence, and a difference below it.
fn render_problem(problem: &str, text: &mut String) {
    let mut lines = problem.lines();
    let _ = writeln!(
        text,
        "  {BAD}problem{BAD:#}: {}",
        output::clean(lines.next().unwrap_or_default())
    );
    for line in lines {
        let style = match line.as_bytes().first() {
            Some(b'-') => BAD,
            Some(b'+') => GOOD,
            _ => FAINT,
        };
        let _ = writeln!(text, "    {style}{}{style:#}", output::clean(line));
    }
}
