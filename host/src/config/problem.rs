//! Owns what is said about a bad configuration.
//!
//! Guarantees that problems come in the order of the file, each with its line, a caret and,
//! where there is one, a way out; that no quoted line shows a password, a token or a handler's
//! settings; and that what is said does nothing to a terminal. Does not decide what a problem is,
//! and does not print.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::string::FromUtf8Error;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

use crate::output;

use super::rule::Invalid;
use super::{quotable, secret};

/// One thing that is wrong, and where.
#[derive(Debug, Clone)]
pub struct Problem {
    title: String,
    /// `None` when the file could not be read at all.
    at: Option<Range<usize>>,
    label: String,
    also: Option<(Range<usize>, String)>,
    notes: Vec<String>,
    help: Option<String>,
}

impl Problem {
    pub(super) fn new(at: Range<usize>, title: impl Into<String>) -> Self {
        Self {
            at: Some(at),
            ..Self::nowhere(title.into())
        }
    }

    fn nowhere(title: String) -> Self {
        Self {
            title: output::clean_lines(&title),
            at: None,
            label: String::new(),
            also: None,
            notes: Vec::new(),
            help: None,
        }
    }

    /// What stands beside the caret.
    pub(super) fn label(mut self, label: impl Into<String>) -> Self {
        self.label = output::clean_lines(&label.into());
        self
    }

    /// A second place that explains the first.
    pub(super) fn also(mut self, at: Range<usize>, label: impl Into<String>) -> Self {
        self.also = Some((at, output::clean_lines(&label.into())));
        self
    }

    pub(super) fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(output::clean_lines(&note.into()));
        self
    }

    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(output::clean_lines(&help.into()));
        self
    }

    pub(super) fn invalid(self, invalid: Invalid) -> Self {
        self.label(invalid.label).help(invalid.help)
    }
}

/// Everything that is wrong with one file; never empty.
#[derive(Clone)]
pub struct Problems {
    path: PathBuf,
    text: String,
    list: Vec<Problem>,
}

impl Problems {
    pub(super) fn new(path: &Path, text: &str, mut list: Vec<Problem>) -> Self {
        list.sort_by_key(|problem| problem.at.as_ref().map(|at| (at.start, at.end)));
        Self {
            path: path.to_owned(),
            text: text.to_owned(),
            list,
        }
    }

    pub(super) fn unreadable(path: &Path, error: &io::Error) -> Self {
        let title = format!(
            "cannot read the configuration `{}`: {error}",
            path.display()
        );
        Self::new(path, "", vec![Problem::nowhere(title)])
    }

    pub(super) fn not_utf8(path: &Path, error: &FromUtf8Error) -> Self {
        let valid = error.utf8_error().valid_up_to();
        let text = String::from_utf8_lossy(error.as_bytes());
        // The first replacement character stands where the valid text ends.
        let at = valid..valid + char::REPLACEMENT_CHARACTER.len_utf8();
        let problem =
            Problem::new(at, "the configuration is not valid UTF-8").label("not UTF-8 from here");
        Self::new(path, &text, vec![problem])
    }

    /// How many there are; at least one.
    pub fn count(&self) -> usize {
        self.list.len()
    }

    /// All of them as the Rust compiler would show them, and how many they are when they are
    /// many. Ends with a line break.
    pub fn render(&self, colour: bool) -> String {
        let renderer = if colour {
            Renderer::styled()
        } else {
            Renderer::plain()
        };
        let path = self.path.display().to_string();
        let quoted = Quoted::new(&self.text);
        let mut out = String::new();
        for problem in &self.list {
            out += &renderer.render(&[quoted.group(problem, &path)]);
            out += "\n\n";
        }
        if self.count() > 1 {
            out += &format!("{} problems in {path}\n", self.count());
        } else {
            // The line break that parts a problem from what follows.
            out.pop();
        }
        out
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

/// As it is displayed: the text of the file holds secrets.
impl fmt::Debug for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Problems {}

/// The text of the file without its secrets, and the way from a place in the one to the same
/// place in the other.
struct Quoted {
    text: String,
    masked: Vec<Range<usize>>,
}

impl Quoted {
    fn new(original: &str) -> Self {
        let masked = quotable::hidden(original);
        let text = secret::masked(original, &masked);
        Self { text, masked }
    }

    fn group<'a>(&'a self, problem: &'a Problem, path: &'a str) -> Group<'a> {
        let title = Level::ERROR.primary_title(problem.title.as_str());
        let mut group = match &problem.at {
            None => Group::with_title(title),
            Some(at) => {
                let caret = AnnotationKind::Primary
                    .span(self.place(at))
                    .label(problem.label.as_str());
                let also = problem.also.as_ref().map(|(at, label)| {
                    AnnotationKind::Context
                        .span(self.place(at))
                        .label(label.as_str())
                });
                let snippet = Snippet::source(self.text.as_str())
                    .path(path)
                    .annotation(caret)
                    .annotations(also);
                title.element(snippet)
            }
        };
        for note in &problem.notes {
            group = group.element(Level::NOTE.message(note.as_str()));
        }
        if let Some(help) = &problem.help {
            group = group.element(Level::HELP.message(help.as_str()));
        }
        group
    }

    fn place(&self, at: &Range<usize>) -> Range<usize> {
        self.offset(at.start)..self.offset(at.end)
    }

    fn offset(&self, original: usize) -> usize {
        let mut offset = original;
        for range in self.masked.iter().filter(|range| range.start < original) {
            // A place inside of a secret stays inside of its mask.
            let hidden = original.min(range.end) - range.start;
            let shown = if original < range.end {
                hidden.min(secret::MASK.len())
            } else {
                secret::MASK.len()
            };
            offset = offset - hidden + shown;
        }
        offset
    }
}

/// The candidate that was probably meant: equal but for a few slips of the finger, or for `_`
/// in place of `-`.
pub(super) fn nearest<'c>(
    written: &str,
    candidates: impl IntoIterator<Item = &'c str>,
) -> Option<&'c str> {
    let written = written.to_lowercase().replace('_', "-");
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&written, candidate), candidate))
        .filter(|(distance, candidate)| {
            *distance <= candidate.len().max(written.len()).div_ceil(3).min(3)
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}
