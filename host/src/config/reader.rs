//! Owns the way from a TOML document to typed values.
//!
//! Guarantees that reading goes on after a problem, so that one run finds them all, and that a
//! value with a problem cannot be used: reading it yields [`Reported`] in its place, which
//! exists only where a problem was recorded. Resolves `{ env = … }` and `{ file = … }` before
//! a value is read. Does not know which fields there are, and no message repeats a value: it
//! may have come from a variable that holds a secret.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::env::VarError;
use std::fmt::Display;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{Problem, nearest};
use super::rule::Invalid;
use super::{Outside, units};

/// The proof that a problem was recorded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reported(());

/// What all values of one file share.
pub(super) struct Reader<'a> {
    /// Where relative paths start.
    base: &'a Path,
    outside: &'a dyn Outside,
    problems: RefCell<Vec<Problem>>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(base: &'a Path, outside: &'a dyn Outside) -> Self {
        Self {
            base,
            outside,
            problems: RefCell::default(),
        }
    }

    pub(super) fn report(&self, problem: Problem) -> Reported {
        self.problems.borrow_mut().push(problem);
        Reported(())
    }

    pub(super) fn into_problems(self) -> Vec<Problem> {
        self.problems.into_inner()
    }

    pub(super) fn resolve_path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.base.join(path)
    }

    pub(super) fn host_name(&self) -> String {
        self.outside.host_name()
    }

    pub(super) fn root(&'a self, document: &'a Spanned<DeTable<'a>>) -> Table<'a> {
        Table {
            reader: self,
            name: "the file".to_owned(),
            at: document.span(),
            fields: Some(document.get_ref()),
            known: Vec::new(),
        }
    }
}

/// A table whose fields are asked for by name. What nobody asked for is reported by
/// [`Table::finish`].
pub(super) struct Table<'a> {
    pub(super) reader: &'a Reader<'a>,
    /// As titles show it.
    name: String,
    at: Range<usize>,
    /// `None` when the table is not written: every field has its default.
    fields: Option<&'a DeTable<'a>>,
    known: Vec<&'static str>,
}

impl<'a> Table<'a> {
    pub(super) fn required<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(Value<'a>) -> Result<T, Reported>,
    ) -> Result<T, Reported> {
        match self.optional(name, read)? {
            Some(value) => Ok(value),
            None => Err(self.missing(name, None)),
        }
    }

    pub(super) fn or<T>(
        &mut self,
        name: &'static str,
        default: T,
        read: impl FnOnce(Value<'a>) -> Result<T, Reported>,
    ) -> Result<T, Reported> {
        Ok(self.optional(name, read)?.unwrap_or(default))
    }

    pub(super) fn optional<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(Value<'a>) -> Result<T, Reported>,
    ) -> Result<Option<T>, Reported> {
        match self.raw(name) {
            Some(value) => value.resolve().and_then(read).map(Some),
            None => Ok(None),
        }
    }

    /// A table inside of this one. It is read even when it is not written.
    pub(super) fn section<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(Table<'a>) -> Result<T, Reported>,
    ) -> Result<T, Reported> {
        match self.raw(name) {
            Some(value) => value.table(format!("`{name}`")).and_then(read),
            None => read(Table {
                reader: self.reader,
                name: format!("`{name}`"),
                at: self.at.clone(),
                fields: None,
                known: Vec::new(),
            }),
        }
    }

    /// A table whose names the user chooses.
    pub(super) fn entries<T>(
        &mut self,
        name: &'static str,
        mut read: impl FnMut(Entry<'a>) -> Result<T, Reported>,
    ) -> Result<BTreeMap<String, T>, Reported> {
        self.section(name, |table| {
            let fields = table.fields.into_iter().flatten();
            collect(fields.map(|(key, value)| {
                let entry = Entry {
                    key: key.get_ref(),
                    key_at: key.span(),
                    value: Value::written(table.reader, key.get_ref(), value),
                };
                Ok((entry.key.to_owned(), read(entry)?))
            }))
        })
    }

    /// A list of tables, `[[name]]`.
    pub(super) fn tables<T>(
        &mut self,
        name: &'static str,
        mut read: impl FnMut(Table<'a>) -> Result<T, Reported>,
    ) -> Result<Vec<T>, Reported> {
        match self.raw(name) {
            Some(value) => collect(
                value
                    .items()?
                    .map(|item| item.table(format!("`[[{name}]]`")).and_then(&mut read)),
            ),
            None => Ok(Vec::new()),
        }
    }

    /// A field of a later version. It is known, so it is not called a mistake in spelling.
    pub(super) fn later(&mut self, name: &'static str) {
        if let Some(value) = self.raw(name) {
            let title = format!("`{name}` is not in this version");
            value.report(
                value
                    .problem(title)
                    .label("comes with a later version")
                    .help("remove it"),
            );
        }
    }

    /// Reports the fields that nobody asked for.
    pub(super) fn finish(self) {
        for key in self.fields.into_iter().flat_map(DeTable::keys) {
            let written = key.get_ref().as_ref();
            if self.known.contains(&written) {
                continue;
            }
            let help = match nearest(written, self.known.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("the fields of {} are {}", self.name, quoted(&self.known)),
            };
            let title = format!("unknown field `{written}` in {}", self.name);
            self.reader.report(
                Problem::new(key.span(), title)
                    .label("not a field")
                    .help(help),
            );
        }
    }

    pub(super) fn missing(&self, name: &str, help: Option<&str>) -> Reported {
        let title = format!("{} has no `{name}`", self.name);
        let problem = Problem::new(self.at.clone(), title).label(format!("`{name}` is missing"));
        self.reader.report(match help {
            Some(help) => problem.help(help),
            None => problem,
        })
    }

    /// A problem at the value of a field, or of a field inside of it: `&["retry", "delay"]`.
    pub(super) fn problem(&self, way: &[&str], title: impl Into<String>) -> Problem {
        Problem::new(self.at(way), title)
    }

    /// The place of a value; where it is not written, the place of the table that it is
    /// missing from.
    pub(super) fn at(&self, way: &[&str]) -> Range<usize> {
        let mut at = self.at.clone();
        let mut fields = self.fields;
        for name in way {
            let Some(value) = fields.and_then(|fields| fields.get(*name)) else {
                break;
            };
            at = value.span();
            fields = value.get_ref().as_table();
        }
        at
    }

    fn raw(&mut self, name: &'static str) -> Option<Value<'a>> {
        self.known.push(name);
        let value = self.fields?.get(name)?;
        Some(Value::written(self.reader, name, value))
    }
}

/// A field whose name the user chose.
pub(super) struct Entry<'a> {
    pub(super) key: &'a str,
    pub(super) key_at: Range<usize>,
    pub(super) value: Value<'a>,
}

/// One value and its place.
pub(super) struct Value<'a> {
    pub(super) reader: &'a Reader<'a>,
    /// The field it belongs to.
    pub(super) name: &'a str,
    pub(super) at: Range<usize>,
    content: Content<'a>,
}

enum Content<'a> {
    Written(&'a DeValue<'a>),
    Fetched { text: String, from: String },
}

impl<'a> Value<'a> {
    fn written(reader: &'a Reader<'a>, name: &'a str, value: &'a Spanned<DeValue<'a>>) -> Self {
        Self {
            reader,
            name,
            at: value.span(),
            content: Content::Written(value.get_ref()),
        }
    }

    /// Looks up `{ env = "NAME" }` and `{ file = "PATH" }`.
    pub(super) fn resolve(self) -> Result<Self, Reported> {
        let Content::Written(DeValue::Table(table)) = self.content else {
            return Ok(self);
        };
        let reference = |kind: &str| match (table.get(kind), table.len()) {
            (Some(name), 1) => name.get_ref().as_str(),
            _ => None,
        };
        let fetched = if let Some(name) = reference("env") {
            let from = format!("the environment variable `{name}`");
            match self.reader.outside.env(name) {
                Ok(text) => Ok((text, from)),
                Err(VarError::NotPresent) => Err(format!("{from} is not set")),
                Err(VarError::NotUnicode(_)) => Err(format!("{from} is not valid UTF-8")),
            }
        } else if let Some(path) = reference("file") {
            let from = format!("the file `{path}`");
            match self.reader.outside.file(&self.reader.resolve_path(path)) {
                Ok(text) => Ok((without_line_break(text), from)),
                Err(error) => Err(format!("{from} cannot be read: {error}")),
            }
        } else {
            return Ok(self);
        };
        match fetched {
            Ok((text, from)) => Ok(Self {
                content: Content::Fetched { text, from },
                ..self
            }),
            Err(title) => Err(self.report(
                self.problem(title)
                    .label(format!("`{}` is read from there", self.name)),
            )),
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
        self.report(
            self.problem(format!("`{}` is not valid", self.name))
                .invalid(invalid),
        )
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

    pub(super) fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Result<T, Reported> {
        let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
        self.parse(|text| {
            let chosen = choices.iter().find(|(word, _)| *word == text);
            chosen.map(|(_, choice)| *choice).ok_or_else(|| {
                let help = match nearest(text, words.iter().copied()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("write one of {}", quoted(&words)),
                };
                Invalid::new("not a known word", help)
            })
        })
    }

    pub(super) fn boolean(&self) -> Result<bool, Reported> {
        match &self.content {
            Content::Written(value) => value.as_bool().ok_or_else(|| {
                self.mistyped("a boolean", Some("write `true` or `false`, without quotes"))
            }),
            Content::Fetched { .. } => self.choice(&[("true", true), ("false", false)]),
        }
    }

    pub(super) fn integer<T>(&self, allowed: RangeInclusive<T>) -> Result<T, Reported>
    where
        T: TryFrom<i128> + PartialOrd + Display,
    {
        let number =
            match &self.content {
                // Beyond 128 bits is beyond every range too.
                Content::Written(DeValue::Integer(integer)) => {
                    i128::from_str_radix(integer.as_str(), integer.radix()).ok()
                }
                Content::Written(_) => {
                    let quoted = self
                        .as_text()
                        .is_some_and(|text| text.parse::<i128>().is_ok());
                    return Err(self.mistyped("an integer", quoted.then_some("remove the quotes")));
                }
                Content::Fetched { text, .. } => Some(text.parse().map_err(|_| {
                    self.invalid(Invalid::new("not an integer", "write digits only"))
                })?),
            };
        self.within(
            number.and_then(|number| T::try_from(number).ok()),
            allowed,
            T::to_string,
        )
    }

    pub(super) fn duration(&self, allowed: RangeInclusive<Duration>) -> Result<Duration, Reported> {
        let text = self
            .as_text()
            .ok_or_else(|| self.mistyped("a duration", Some(units::DURATION_FORMS)))?;
        let duration = units::duration(text).map_err(|invalid| self.invalid(invalid))?;
        self.within(Some(duration), allowed, |duration| {
            units::show_duration(*duration)
        })
    }

    pub(super) fn bytes(&self, allowed: RangeInclusive<u64>) -> Result<u64, Reported> {
        let bytes = match (&self.content, self.as_text()) {
            (Content::Written(DeValue::Integer(_)), _) => return self.integer(allowed),
            (_, Some(text)) => units::bytes(text).map_err(|invalid| self.invalid(invalid))?,
            (_, None) => return Err(self.mistyped("a size", Some(units::BYTES_FORMS))),
        };
        self.within(Some(bytes), allowed, |bytes| units::show_bytes(*bytes))
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
                let problem = self.problem(format!("`{}` is out of range", self.name));
                self.report(problem.label(format!(
                    "allowed: {} to {}",
                    show(allowed.start()),
                    show(allowed.end())
                )))
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
        if matches!(&self.content, Content::Written(DeValue::Array(items)) if items.is_empty()) {
            return Err(self.report(
                self.problem(format!("`{}` is empty", self.name))
                    .label("names nothing"),
            ));
        }
        self.list(read)
    }

    fn items(&self) -> Result<impl Iterator<Item = Value<'a>> + use<'a>, Reported> {
        let (reader, name) = (self.reader, self.name);
        match &self.content {
            Content::Written(DeValue::Array(items)) => Ok(items
                .iter()
                .map(move |item| Value::written(reader, name, item))),
            Content::Written(DeValue::Table(_)) => Err(self.mistyped(
                "a list",
                Some(&format!("write `[[{name}]]`, with two brackets")),
            )),
            _ => Err(self.mistyped("a list", None)),
        }
    }

    pub(super) fn table(&self, name: String) -> Result<Table<'a>, Reported> {
        match &self.content {
            Content::Written(DeValue::Table(fields)) => Ok(Table {
                reader: self.reader,
                name,
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
        let label = match &self.content {
            Content::Written(DeValue::String(_)) => "this is a string",
            Content::Written(DeValue::Integer(_)) => "this is an integer",
            Content::Written(DeValue::Float(_)) => "this is a number with a fraction",
            Content::Written(DeValue::Boolean(_)) => "this is a boolean",
            Content::Written(DeValue::Datetime(_)) => "this is a date or a time",
            Content::Written(DeValue::Array(_)) => "this is a list",
            Content::Written(DeValue::Table(_)) => "this is a table",
            Content::Fetched { .. } => "this is text",
        };
        let problem = self
            .problem(format!("`{}` must be {wanted}", self.name))
            .label(label);
        self.report(match help {
            Some(help) => problem.help(help),
            None => problem,
        })
    }
}

/// All values, or the proof that one of them was reported: unlike collecting into a `Result`,
/// it reads on after the first problem.
fn collect<T, C: FromIterator<T>>(
    values: impl Iterator<Item = Result<T, Reported>>,
) -> Result<C, Reported> {
    let read: Vec<_> = values.collect();
    read.into_iter().collect()
}

/// Editors and `echo` end a file with a line break that is not part of its value.
fn without_line_break(mut text: String) -> String {
    let kept = text.strip_suffix('\n').map_or(text.len(), |line| {
        line.strip_suffix('\r').unwrap_or(line).len()
    });
    text.truncate(kept);
    text
}

pub(super) fn quoted(words: &[&str]) -> String {
    let words: Vec<_> = words.iter().map(|word| format!("`{word}`")).collect();
    words.join(", ")
}
