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

#[derive(Debug, Serialize, Deserialize)]
struct Doing {
    outcome: String,
    effects: Vec<String>,
}

impl Doing {
    fn of(checked: &Checked) -> Self {
        Self {
            outcome: checked.check.outcome.line(),
            effects: checked.check.effects.clone(),
        }
    }

    fn lines(&self) -> Vec<String> {
        [std::slice::from_ref(&self.outcome), &self.effects].concat()
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

/// Adds what differs from the recording to the messages' problems.
pub fn compare(path: &Path, checked: &mut [Checked]) -> Result<(), Error> {
    let failed = |reason: String| {
        Error::usage(format!(
            "{}: {reason}; `--update` records it anew",
            path.display()
        ))
    };
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            for message in checked {
                if message.check.outcome.is_failure() {
                    message
                        .check
                        .problems
                        .push("the message fails; if it should, record that with --update".into());
                }
            }
            return Ok(());
        }
        Err(error) => return Err(failed(error.to_string())),
    };
    let expected: Expected =
        serde_json::from_str(&text).map_err(|error| failed(error.to_string()))?;
    if expected.messages.len() != checked.len() {
        return Err(failed(format!(
            "{} messages are recorded, and there are {}",
            expected.messages.len(),
            checked.len()
        )));
    }
    for (message, expected) in checked.iter_mut().zip(&expected.messages) {
        let differs = difference(&expected.lines(), &Doing::of(message).lines());
        if !differs.is_empty() {
            message.check.problems.push(format!(
                "it did something else than what is recorded\n{differs}"
            ));
        }
    }
    Ok(())
}
