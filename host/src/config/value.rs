//! Owns one value of the document: where it comes from, and how it is read as each of the
//! types a field can have.
//!
//! Guarantees that `{ env = … }` and `{ file = … }` are looked up before a value is read, and
//! that no message repeats a value: it may have come from a variable that holds a secret.

use std::env::VarError;
use std::fmt::Display;
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use toml::Spanned;
use toml::de::DeValue;

use super::problem::{Problem, nearest};
use super::reader::{Reader, Reported, Table, collect, quoted};
use super::rule::Invalid;
use super::units;

/// One value and its place.
pub(super) struct Value<'a> {
    pub(super) reader: &'a Reader<'a>,
    /// The way to the field it belongs to, `consumer.limits.cpu`.
    pub(super) name: String,
    at: Range<usize>,
    content: Content<'a>,
}

enum Content<'a> {
    Written(&'a DeValue<'a>),
    Fetched { text: String, from: String },
}

impl<'a> Value<'a> {
    pub(super) fn written(
        reader: &'a Reader<'a>,
        name: String,
        value: &'a Spanned<DeValue<'a>>,
    ) -> Self {
        Self {
            reader,
            name,
            at: value.span(),
            content: Content::Written(value.get_ref()),
        }
    }

    /// Looks up `{ env = "NAME" }` and `{ file = "PATH" }`.
    pub(super) fn resolve(self) -> Result<Self, Reported> {
        let (text, from) = if let Some(name) = self.reference("env") {
            if !is_variable(name) {
                return Err(self.invalid(Invalid::new(
                    "`env` names no variable",
                    "write a name of letters, digits and `_`; the value belongs into the environment",
                )));
            }
            let from = format!("the environment variable `{name}`");
            let text = self.reader.outside.env(name).map_err(|error| match error {
                VarError::NotPresent => format!("{from} is not set"),
                VarError::NotUnicode(_) => format!("{from} is not valid UTF-8"),
            });
            (text, from)
        } else if let Some(path) = self.reference("file") {
            let path = self.reader.resolve_path(path);
            let from = format!("the file `{}`", path.display());
            let text = self.reader.outside.file(&path).map(without_line_break);
            (
                text.map_err(|error| format!("{from} cannot be read: {error}")),
                from,
            )
        } else {
            return Ok(self);
        };
        match text {
            Ok(text) => Ok(Self {
                content: Content::Fetched { text, from },
                ..self
            }),
            Err(title) => {
                let label = format!("`{}` comes from there", self.name);
                Err(self.report(self.problem(title).label(label)))
            }
        }
    }

    /// The name in a table that holds this kind of reference and nothing else.
    fn reference(&self, kind: &str) -> Option<&'a str> {
        match self.content {
            Content::Written(DeValue::Table(table)) if table.len() == 1 => {
                table.get(kind)?.get_ref().as_str()
            }
            _ => None,
        }
    }

    pub(super) fn report(&self, problem: Problem) -> Reported {
        self.reader.report(problem)
    }

    /// A problem at this value. It tells where the value was fetched from.
    pub(super) fn problem(&self, title: impl Into<String>) -> Problem {
        let problem = Problem::new(self.at.clone(), title);
        match &self.content {
            Content::Written(_) => problem,
            Content::Fetched { from, .. } => problem.note(format!("the value comes from {from}")),
        }
    }

    /// A problem with the value's form.
    pub(super) fn invalid(&self, invalid: Invalid) -> Reported {
        let title = format!("`{}` is not valid", self.name);
        self.report(self.problem(title).invalid(invalid))
    }

    pub(super) fn text(&self) -> Result<&str, Reported> {
        self.as_text()
            .ok_or_else(|| self.mistyped("a string", None))
    }

    pub(super) fn as_text(&self) -> Option<&str> {
        match &self.content {
            Content::Written(value) => value.as_str(),
            Content::Fetched { text, .. } => Some(text),
        }
    }

    /// A value with a textual form of its own.
    pub(super) fn parse<T>(
        &self,
        parse: impl FnOnce(&str) -> Result<T, Invalid>,
    ) -> Result<T, Reported> {
        parse(self.text()?).map_err(|invalid| self.invalid(invalid))
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Result<T, Reported> {
        self.parse(|text| {
            if let Some((_, choice)) = choices.iter().find(|(word, _)| *word == text) {
                return Ok(*choice);
            }
            let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
            let help = match nearest(text, words.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("write one of {}", quoted(&words)),
            };
            Err(Invalid::new("not one of the words allowed here", help))
        })
    }

    pub(super) fn boolean(&self) -> Result<bool, Reported> {
        match &self.content {
            Content::Written(DeValue::Boolean(boolean)) => Ok(*boolean),
            Content::Written(_) => {
                Err(self.mistyped("a boolean", Some("write `true` or `false`, without quotes")))
            }
            Content::Fetched { .. } => self.choice(&[("true", true), ("false", false)]),
        }
    }

    pub(super) fn integer<T>(&self, allowed: RangeInclusive<T>) -> Result<T, Reported>
    where
        T: TryFrom<i128> + PartialOrd + Display,
    {
        let number = match &self.content {
            Content::Written(DeValue::Integer(_)) => self.as_integer(),
            Content::Written(_) => {
                let quoted = self
                    .as_text()
                    .is_some_and(|text| text.parse::<i128>().is_ok());
                return Err(self.mistyped("an integer", quoted.then_some("remove the quotes")));
            }
            Content::Fetched { text, .. } => match text.parse() {
                Ok(number) => Some(number),
                Err(_) => {
                    return Err(self.invalid(Invalid::new("not an integer", "write digits only")));
                }
            },
        };
        let number = number.and_then(|number: i128| T::try_from(number).ok());
        self.within(number, allowed, T::to_string)
    }

    /// `None` also for what is beyond 128 bits, and so beyond every range.
    fn as_integer(&self) -> Option<i128> {
        match &self.content {
            Content::Written(DeValue::Integer(integer)) => {
                i128::from_str_radix(integer.as_str(), integer.radix()).ok()
            }
            _ => None,
        }
    }

    pub(super) fn duration(&self, allowed: RangeInclusive<Duration>) -> Result<Duration, Reported> {
        let Some(text) = self.as_text() else {
            return Err(self.mistyped("a duration", Some(units::DURATION_FORMS)));
        };
        let duration = units::duration(text).map_err(|invalid| self.invalid(invalid))?;
        self.within(Some(duration), allowed, |duration| {
            units::show_duration(*duration)
        })
    }

    pub(super) fn bytes(&self, allowed: RangeInclusive<u64>) -> Result<u64, Reported> {
        let bytes = match (&self.content, self.as_text()) {
            (Content::Written(DeValue::Integer(_)), _) => self
                .as_integer()
                .and_then(|bytes| u64::try_from(bytes).ok()),
            (_, Some(text)) => Some(units::bytes(text).map_err(|invalid| self.invalid(invalid))?),
            (_, None) => return Err(self.mistyped("a size", Some(units::BYTES_FORMS))),
        };
        self.within(bytes, allowed, |bytes| units::show_bytes(*bytes))
    }

    fn within<T: PartialOrd>(
        &self,
        value: Option<T>,
        allowed: RangeInclusive<T>,
        show: impl Fn(&T) -> String,
    ) -> Result<T, Reported> {
        value
            .filter(|value| allowed.contains(value))
            .ok_or_else(|| {
                let (least, most) = (show(allowed.start()), show(allowed.end()));
                let problem = self.problem(format!("`{}` is out of range", self.name));
                self.report(problem.label(format!("allowed: {least} to {most}")))
            })
    }

    /// A list, or one value in place of a list of one.
    pub(super) fn list<T>(
        self,
        mut read: impl FnMut(Value<'a>) -> Result<T, Reported>,
    ) -> Result<Vec<T>, Reported> {
        match &self.content {
            Content::Written(DeValue::Array(_)) => {
                collect(self.items()?.map(|item| item.resolve().and_then(&mut read)))
            }
            _ => read(self).map(|one| vec![one]),
        }
    }

    /// A list that must name something.
    pub(super) fn some<T>(
        self,
        read: impl FnMut(Value<'a>) -> Result<T, Reported>,
    ) -> Result<Vec<T>, Reported> {
        match &self.content {
            Content::Written(DeValue::Array(items)) if items.is_empty() => {
                let problem = self.problem(format!("`{}` is empty", self.name));
                Err(self.report(problem.label("names nothing")))
            }
            _ => self.list(read),
        }
    }

    pub(super) fn items(&self) -> Result<impl Iterator<Item = Value<'a>>, Reported> {
        match self.content {
            Content::Written(DeValue::Array(items)) => Ok(items
                .iter()
                .map(|item| Value::written(self.reader, self.name.clone(), item))),
            Content::Written(DeValue::Table(_)) => {
                let help = format!("write `[[{}]]`, with two brackets", self.name);
                Err(self.mistyped("a list", Some(&help)))
            }
            _ => Err(self.mistyped("a list", None)),
        }
    }

    pub(super) fn table(&self) -> Result<Table<'a>, Reported> {
        match self.content {
            Content::Written(DeValue::Table(fields)) => Ok(Table {
                reader: self.reader,
                name: self.name.clone(),
                at: self.at.clone(),
                fields: Some(fields),
                known: Vec::new(),
            }),
            _ => Err(self.mistyped("a table", None)),
        }
    }

    pub(super) fn is_table(&self) -> bool {
        matches!(&self.content, Content::Written(DeValue::Table(_)))
    }

    fn mistyped(&self, wanted: &str, help: Option<&str>) -> Reported {
        const REFERENCE: &str = "a value from elsewhere is `{ env = \"NAME\" }` or `{ file = \"PATH\" }`, one of the two";
        let (label, help) = match &self.content {
            Content::Written(DeValue::String(_)) => ("this is a string", help),
            Content::Written(DeValue::Integer(_)) => ("this is an integer", help),
            Content::Written(DeValue::Float(_)) => ("this is a number with a fraction", help),
            Content::Written(DeValue::Boolean(_)) => ("this is a boolean", help),
            Content::Written(DeValue::Datetime(_)) => ("this is a date or a time", help),
            Content::Written(DeValue::Array(_)) => ("this is a list", help),
            Content::Written(DeValue::Table(_)) => ("this is a table", help.or(Some(REFERENCE))),
            Content::Fetched { .. } => ("this is text", help),
        };
        let title = format!("`{}` must be {wanted}", self.name);
        let problem = self.problem(title).label(label);
        self.report(match help {
            Some(help) => problem.help(help),
            None => problem,
        })
    }
}

/// What is none may be the secret itself, and is not repeated.
pub(super) fn is_variable(name: &str) -> bool {
    let parts = |c: char| c.is_ascii_alphanumeric() || c == '_';
    !name.is_empty() && name.chars().all(parts) && !name.starts_with(|c: char| c.is_ascii_digit())
}

/// Editors and `echo` end a file with a line break that is not part of its value.
fn without_line_break(mut text: String) -> String {
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    text
}
