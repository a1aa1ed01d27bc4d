//! Owns the way through a TOML document: from a table to its fields and what is left over.
//!
//! Guarantees that reading goes on after a problem, so that one run finds them all, and that a
//! value with a problem cannot be used: reading it yields [`Reported`] in its place, which
//! exists only where a problem was recorded. Does not know which fields there are.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::DeTable;

use super::Outside;
use super::problem::{Problem, nearest};
use super::value::Value;

/// The proof that a problem was recorded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reported(());

/// What all values of one file share.
pub(super) struct Reader<'a> {
    /// Where relative paths start.
    base: &'a Path,
    pub(super) outside: &'a dyn Outside,
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

    pub(super) fn root(&'a self, document: &'a Spanned<DeTable<'a>>) -> Table<'a> {
        Table {
            reader: self,
            name: String::new(),
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
    /// The way to it, `consumer.limits`; empty for the file itself.
    pub(super) name: String,
    pub(super) at: Range<usize>,
    /// `None` when the table is not written: every field has its default.
    pub(super) fields: Option<&'a DeTable<'a>>,
    pub(super) known: Vec<&'static str>,
}

impl<'a> Table<'a> {
    pub(super) fn required<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(Value<'a>) -> Result<T, Reported>,
    ) -> Result<T, Reported> {
        self.optional(name, read)?
            .ok_or_else(|| self.reader.report(self.missing(name)))
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
            Some(value) => value.table().and_then(read),
            None => read(Table {
                reader: self.reader,
                name: self.name_of(name),
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
                let name: &str = key.get_ref();
                let entry = Entry {
                    name,
                    at: key.span(),
                    value: Value::written(table.reader, table.name_of(name), value),
                };
                Ok((name.to_owned(), read(entry)?))
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
            Some(value) => collect(value.items()?.map(|item| item.table().and_then(&mut read))),
            None => Ok(Vec::new()),
        }
    }

    /// Reports the fields that nobody asked for.
    pub(super) fn finish(self) {
        for key in self.fields.into_iter().flat_map(DeTable::keys) {
            let written: &str = key.get_ref();
            if self.known.contains(&written) {
                continue;
            }
            let place = match self.name.as_str() {
                "" => "at the top level".to_owned(),
                name => format!("in `{name}`"),
            };
            let help = match nearest(written, self.known.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("known here: {}", quoted(&self.known)),
            };
            let problem =
                Problem::new(key.span(), format!("unknown field `{written}` {place}")).help(help);
            self.reader.report(problem);
        }
    }

    pub(super) fn missing(&self, name: &str) -> Problem {
        Problem::new(
            self.at.clone(),
            format!("`{}` is missing", self.name_of(name)),
        )
        .label(format!("has no `{name}`"))
    }

    /// Where a field is written, or one inside of it: `&["store", "url"]`.
    pub(super) fn written(&self, way: &[&str]) -> Option<Range<usize>> {
        let (last, tables) = way.split_last()?;
        let mut fields = self.fields?;
        for table in tables {
            fields = fields.get(*table)?.get_ref().as_table()?;
        }
        Some(fields.get(*last)?.span())
    }

    /// A problem at a field, or at one inside of it; at the table itself when that is not
    /// written.
    pub(super) fn problem_at(&self, way: &[&str], title: impl Into<String>) -> Problem {
        Problem::new(self.written(way).unwrap_or_else(|| self.at.clone()), title)
    }

    fn raw(&mut self, name: &'static str) -> Option<Value<'a>> {
        self.known.push(name);
        let value = self.fields?.get(name)?;
        Some(Value::written(self.reader, self.name_of(name), value))
    }

    fn name_of(&self, field: &str) -> String {
        match self.name.as_str() {
            "" => field.to_owned(),
            name => format!("{name}.{field}"),
        }
    }
}

/// A field whose name the user chose.
pub(super) struct Entry<'a> {
    pub(super) name: &'a str,
    /// Where the name is written.
    pub(super) at: Range<usize>,
    pub(super) value: Value<'a>,
}

/// All values, or the proof that one of them was reported: unlike collecting into a `Result`,
/// it reads on after the first problem.
pub(super) fn collect<T, C: FromIterator<T>>(
    values: impl Iterator<Item = Result<T, Reported>>,
) -> Result<C, Reported> {
    let read: Vec<_> = values.collect();
    read.into_iter().collect()
}

pub(super) fn quoted(words: &[&str]) -> String {
    let words: Vec<_> = words.iter().map(|word| format!("`{word}`")).collect();
    words.join(", ")
}
