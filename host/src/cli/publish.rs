//! `hapax publish`: messages from a file or a pipe, one JSON object a line.
//!
//! Every line is read before the first is sent. Each is published once: when something goes wrong, it says
//! which lines are confirmed, and sends nothing again.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use indicatif::ProgressBar;
use serde_json::json;

use crate::config::Config;
use crate::host::broker_address;
use crate::message::Message;
use crate::operations::{AmqpPublish, Answer, Request, Response, Wire, read_line};
use crate::output::{self, GOOD};

use super::access::Access;
use super::{Error, print_json, progress};

/// Messages and bytes that wait for the broker's confirms together.
const BLOCK_MESSAGES: usize = 1000;
const BLOCK_BYTES: usize = 4 << 20;

/// Problems that are told; a person does not read more.
const TOLD_PROBLEMS: usize = 20;

#[derive(Debug, Args)]
pub struct PublishArgs {
    /// The queue; a line that names an exchange goes there instead
    #[arg(long)]
    queue: Option<String>,
    /// One message a line; - for standard input
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub async fn run(arguments: &PublishArgs, config: Arc<Config>) -> Result<(), Error> {
    let text = read(&arguments.file)?;
    let lines = Lines {
        text: &text,
        queue: arguments.queue.as_deref(),
    };
    let total = check(&lines, &arguments.file)?;
    let mut way = Way::open(&config).await?;
    let started = Instant::now();
    let progress = progress(total);
    let outcome = send(&lines, &mut way, &progress).await;
    progress.finish_and_clear();
    way.close().await;
    let confirmed = outcome?;
    let seconds = started.elapsed().as_secs_f64();
    let rate = confirmed as f64 / seconds.max(0.001);
    if arguments.json {
        return print_json(
            &json!({ "published": confirmed, "seconds": seconds, "per_second": rate }),
        );
    }
    let count = output::count(confirmed, "message");
    let rate = output::thousands(rate as u64);
    let text =
        format!("{GOOD}{count}{GOOD:#} published and confirmed in {seconds:.2} s ({rate}/s)\n");
    Ok(output::print(&text)?)
}

fn read(file: &Path) -> Result<String, Error> {
    let mut bytes = Vec::new();
    let name = name(file);
    let done = if file == Path::new("-") {
        io::stdin().read_to_end(&mut bytes)
    } else {
        File::open(file).and_then(|mut file| file.read_to_end(&mut bytes))
    };
    done.map_err(|error| Error::usage(format!("cannot read {name}: {error}")))?;
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..valid]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count()
            + 1;
        Error::usage(format!(
            "{name}: line {line} is not UTF-8; give other bytes as `body_base64`"
        ))
    })
}

fn name(file: &Path) -> String {
    match file == Path::new("-") {
        true => "standard input".to_owned(),
        false => file.display().to_string(),
    }
}

/// The lines of a file that hold a message, with their numbers.
struct Lines<'t> {
    text: &'t str,
    queue: Option<&'t str>,
}

impl<'t> Lines<'t> {
    fn numbered(&self) -> impl Iterator<Item = (usize, &'t str)> {
        self.text
            .lines()
            .enumerate()
            .map(|(index, line)| (index + 1, line))
            .filter(|(_, line)| !line.trim().is_empty())
    }
}

/// Reads every line; the number of messages, or everything that is wrong.
fn check(lines: &Lines<'_>, file: &Path) -> Result<u64, Error> {
    let (mut good, mut bad, mut told) = (0, 0, Vec::new());
    for (number, line) in lines.numbered() {
        match read_line(line, lines.queue) {
            Ok(_) => good += 1,
            Err(problem) => {
                bad += 1;
                if told.len() < TOLD_PROBLEMS {
                    told.push(format!("\n  line {number}: {problem}"));
                }
            }
        }
    }
    if bad == 0 {
        return Ok(good);
    }
    let more = if bad > TOLD_PROBLEMS {
        format!("\n  and {} more", bad - TOLD_PROBLEMS)
    } else {
        String::new()
    };
    Err(Error::usage(format!(
        "{} of {} cannot be read; nothing was published{}{more}",
        output::count(bad as u64, "line"),
        name(file),
        told.concat()
    )))
}

/// Publishes block by block; the number of messages, all of them confirmed.
async fn send(lines: &Lines<'_>, way: &mut Way, progress: &ProgressBar) -> Result<u64, Error> {
    let mut confirmed = Ranges::default();
    let mut numbered = lines.numbered().peekable();
    while numbered.peek().is_some() {
        let (mut numbers, mut block, mut bytes) = (Vec::new(), Vec::new(), 0);
        while block.len() < BLOCK_MESSAGES && bytes < BLOCK_BYTES {
            let Some((number, line)) = numbered.next() else {
                break;
            };
            let message = read_line(line, lines.queue).expect("the line was read before");
            bytes += message.size_bytes();
            numbers.push(number);
            block.push(message);
        }
        let answers = way
            .publish(block)
            .await
            .map_err(|error| told(error, &confirmed))?;
        let mut problems = Vec::new();
        for (number, answer) in numbers.into_iter().zip(answers) {
            match answer {
                Answer::Confirmed => confirmed.add(number),
                Answer::Refused(why) => {
                    problems.push(format!("line {number} was not published: {why}"))
                }
                Answer::Unknown(why) => {
                    problems.push(format!(
                        "line {number} may have been published or not: {why}"
                    ));
                }
                Answer::NotSent => {}
            }
        }
        progress.set_position(confirmed.count());
        if !problems.is_empty() {
            let more = problems.len().saturating_sub(TOLD_PROBLEMS);
            problems.truncate(TOLD_PROBLEMS);
            if more > 0 {
                problems.push(format!("and {more} more"));
            }
            return Err(told(Error::failed(problems.join("\n")), &confirmed));
        }
    }
    Ok(confirmed.count())
}

/// Adds to an error what is known to have arrived.
fn told(error: Error, confirmed: &Ranges) -> Error {
    let code = error.code();
    let sentence = match confirmed.count() {
        0 => "no message is confirmed".to_owned(),
        count => format!("{} confirmed: {confirmed}", output::count(count, "message")),
    };
    Error::Other {
        code,
        text: format!("{error}\n{sentence}; nothing was sent twice"),
    }
}

/// Numbers of lines, as ranges.
#[derive(Default)]
struct Ranges(Vec<(usize, usize)>);

impl Ranges {
    fn add(&mut self, number: usize) {
        match self.0.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => self.0.push((number, number)),
        }
    }

    fn count(&self) -> u64 {
        self.0
            .iter()
            .map(|(first, last)| (last - first + 1) as u64)
            .sum()
    }
}

impl std::fmt::Display for Ranges {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("lines ")?;
        for (index, (first, last)) in self.0.iter().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            match first == last {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

/// Where messages go.
enum Way {
    Amqp(Box<AmqpPublish>),
    Embedded(Access),
}

impl Way {
    async fn open(config: &Arc<Config>) -> Result<Self, Error> {
        match broker_address(config) {
            Some(address) => match AmqpPublish::connect(&address).await {
                Ok(connection) => Ok(Self::Amqp(Box::new(connection))),
                Err(error) => Err(crate::host::StartError::Broker(error).into()),
            },
            None => Ok(Self::Embedded(Access::open(config).await?)),
        }
    }

    async fn publish(&mut self, block: Vec<Message>) -> Result<Vec<Answer>, Error> {
        match self {
            Self::Amqp(connection) => Ok(connection.publish(&block).await),
            Self::Embedded(access) => {
                let block = block.iter().map(Wire::from).collect();
                match access.execute(Request::Publish(block)).await? {
                    Response::Published(answers) => Ok(answers),
                    _ => Err(super::unexpected()),
                }
            }
        }
    }

    async fn close(self) {
        if let Self::Amqp(connection) = self {
            connection.close().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str) -> Result<u64, Error> {
        check(
            &Lines {
                text,
                queue: Some("q"),
            },
            Path::new("messages.jsonl"),
        )
    }

    #[test]
    fn empty_lines_are_no_messages() {
        assert_eq!(
            checked("{\"body\": 1}\n\n  \r\n{\"body\": 2}\r\n").expect("good"),
            2
        );
    }

    #[test]
    fn all_bad_lines_are_told_with_their_numbers_before_anything_is_published() {
        let error = checked("{\"body\": 1}\nnonsense\n\n{\"body\": 1, \"key\": 2}\n").unwrap_err();
        let text = error.to_string();
        assert_eq!(error.code(), 64);
        assert!(
            text.contains("2 lines of messages.jsonl") && text.contains("nothing was published"),
            "{text}"
        );
        assert!(
            text.contains("line 2:") && text.contains("line 4:"),
            "{text}"
        );
    }

    #[test]
    fn a_file_of_nonsense_does_not_fill_the_screen() {
        let text = checked(&"x\n".repeat(1000)).unwrap_err().to_string();
        assert!(
            text.lines().count() < 25 && text.contains("and 980 more"),
            "{text}"
        );
    }

    #[test]
    fn what_was_confirmed_is_told_in_ranges() {
        let mut ranges = Ranges::default();
        for number in [1, 2, 3, 5, 7, 8] {
            ranges.add(number);
        }
        assert_eq!(ranges.to_string(), "lines 1-3, 5, 7-8");
        assert_eq!(ranges.count(), 6);
    }
}
