//! What messages are expected to do, recorded beside them: `messages.jsonl` and `messages.expected.json`.
//!
//! Without a recording, a message that fails is a problem; with one, a message that does anything else
//! than what was recorded is.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::sandbox::write_file;

use super::super::Error;
use super::effects::difference;
use super::report::Checked;

#[derive(Debug, Serialize, Deserialize)]
struct Expected {
    messages: Vec<Doing>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Doing {
    outcome: String,
    effects: Vec<String>,
    /// What a second attempt does otherwise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    second: Vec<String>,
}

impl Doing {
    fn of(checked: &Checked) -> Self {
        Self {
            outcome: checked.check.outcome.line(),
            effects: checked.check.effects.clone(),
            second: checked.check.second.clone(),
        }
    }

    fn lines(&self) -> Vec<String> {
        let second = self
            .second
            .iter()
            .map(|line| format!("second attempt: {line}"));
        std::iter::once(self.outcome.clone())
            .chain(self.effects.iter().cloned())
            .chain(second)
            .collect()
    }
}

/// The recording of a file of messages.
pub fn beside(messages: &Path) -> PathBuf {
    messages.with_extension("expected.json")
}

pub fn write(path: &Path, checked: &[Checked]) -> Result<(), Error> {
    let expected = Expected {
        messages: checked.iter().map(Doing::of).collect(),
    };
    let text = serde_json::to_string_pretty(&expected).expect("it is plain data") + "\n";
    write_file(path, &[text.as_bytes()])
        .map_err(|error| Error::failed(format!("{}: {error}", path.display())))
}

/// Adds what differs from the recording to the messages' problems. Returns what is wrong with no message.
pub fn compare(path: &Path, checked: &mut [Checked]) -> Result<Vec<String>, Error> {
    let failed = |reason: String| {
        Error::usage(format!(
            "{}: {reason}; `--update` records it anew",
            path.display()
        ))
    };
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            checked.iter_mut().for_each(without_recording);
            return Ok(Vec::new());
        }
        Err(error) => return Err(failed(error.to_string())),
    };
    let expected: Expected =
        serde_json::from_str(&text).map_err(|error| failed(error.to_string()))?;
    let found: Vec<_> = checked.iter().map(Doing::of).collect();
    let (before, after) = same_ends(&expected.messages, &found);
    let recorded = &expected.messages[before..expected.messages.len() - after];
    let found = before..checked.len() - after;
    let (paired, missing) = recorded.split_at(recorded.len().min(found.len()));
    for (at, message) in checked[found].iter_mut().enumerate() {
        let lines = Doing::of(message).lines();
        message.check.problems.push(match paired.get(at) {
            Some(expected) => {
                let differs = difference(&expected.lines(), &lines);
                if differs.is_empty() {
                    continue;
                }
                format!("it did something else than what is recorded\n{differs}")
            }
            None => format!(
                "it is not recorded; record it with --update\n{}",
                difference(&[], &lines)
            ),
        });
    }
    let name = path.file_name().unwrap_or(path.as_os_str());
    let gone = missing.iter().map(|doing| {
        format!(
            "{} holds a message that is not there any more; record that with --update\n{}",
            name.to_string_lossy(),
            difference(&doing.lines(), &[])
        )
    });
    Ok(gone.collect())
}

/// What a person should see who has not said yet that it is meant.
fn without_recording(message: &mut Checked) {
    let check = &mut message.check;
    if check.outcome.is_failure() {
        check
            .problems
            .push("the message fails; if it should, record that with --update".into());
    }
    if !check.second.is_empty() {
        check.problems.push(format!(
            "two runs of the same message did different things: a second attempt (it comes later, and says so) is \
             not the first one again; if that is meant, record it with --update\n{}",
            check.second.join("\n")
        ));
    }
}

/// How many messages at the beginning, and how many of the others at the end, do what is recorded. A message
/// that was put between others moves those behind it.
fn same_ends(recorded: &[Doing], found: &[Doing]) -> (usize, usize) {
    let same = |(one, other): &(&Doing, &Doing)| one == other;
    let before = recorded.iter().zip(found).take_while(same).count();
    let rest = recorded[before..].iter().rev();
    let after = rest.zip(found[before..].iter().rev()).take_while(same);
    (before, after.count())
}
