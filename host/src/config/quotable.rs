//! Owns what of a configuration file may be quoted. The file may not even be valid TOML, and a line that a person
//! is shown may hold a password, a token, or a handler's secret.
//!
//! Guarantees that a value is shown only in a file that is valid TOML, and only where its name is one of the fields
//! that hold no secret; comments are hidden. In a file that is not valid, nobody knows where a value begins and ends:
//! only the names of fields and the signs of TOML are shown. No range spans a line break.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::address;
use super::value::is_variable;

/// The fields and tables whose values are no secrets. A field that is missing here is hidden in what is quoted.
const PLAIN: &[&str] = &[
    "batch",
    "batch-bytes",
    "batch-time",
    "bind",
    "brake",
    "cache",
    "compile-timeout",
    "connect-timeout",
    "consumer-timeout",
    "cpu",
    "declare",
    "delay",
    "except",
    "exchange",
    "filter",
    "fingerprint",
    "format",
    "functions",
    "grant",
    "health",
    "heartbeat",
    "host",
    "hostcall-bytes",
    "idempotency",
    "key",
    "lanes",
    "limits",
    "listen",
    "lock-timeout",
    "log",
    "log-bytes",
    "max-attempts",
    "max-connections",
    "max-delay",
    "max-held",
    "max-message-bytes",
    "max-parked-bytes",
    "max-probe",
    "memory",
    "migrate",
    "name",
    "on-duplicate",
    "order",
    "outbox-bytes",
    "outbox-messages",
    "park",
    "parks",
    "partition",
    "persistent",
    "plugin",
    "prefetch",
    "prefetch-bytes",
    "probe",
    "queue",
    "random",
    "read",
    "retention",
    "retry",
    "routing-key",
    "schema",
    "shutdown-timeout",
    "sql-bytes",
    "sql-row-bytes",
    "sql-row-time",
    "sql-rows",
    "sql-statements",
    "statement-timeout",
    "table-elements",
    "targets",
    "type",
    "unroutable",
    "wall",
    "write",
];

/// Tables in which there are secrets: what stands in the place of one may hold them.
const TABLES: &[&str] = &["admin", "broker", "consumer", "store"];

/// Fields whose values are URLs: shown without their secrets, where they have the form of a URL.
const URLS: &[&str] = &["url"];

/// Fields and tables whose values are secrets, unless they are references; and what a reference is made of.
const SECRETS: &[&str] = &["token", "config", "env", "file"];

/// The table whose entries have names of the user's, and are secrets.
const CONFIG: &str = "config";

/// The table whose entries have names of the user's, and are none.
const TARGETS: &str = "targets";

/// Which part of a value is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Show {
    Plain,
    /// The fields of a table, and nothing that stands in its place.
    Table,
    /// A URL without its secrets.
    Url,
    /// The name of a variable of the environment.
    Variable,
    Hidden,
}

/// A place in the tables of the file.
#[derive(Clone, Copy, Debug)]
struct Place {
    show: Show,
    /// Its `env` and `file` say where the value is.
    refers: bool,
    /// Part that is shown of its entries, where the user has named them.
    entries: Option<Show>,
}

impl Place {
    const TOP: Self = Self {
        show: Show::Plain,
        refers: false,
        entries: None,
    };

    /// The place of a field in this one.
    fn field(self, name: &str) -> Self {
        if let Some(show) = self.entries {
            return Self {
                show,
                refers: true,
                entries: None,
            };
        }
        let reference = |show| Self { show, ..Self::TOP };
        let show = match name {
            "file" if self.refers => return reference(Show::Plain),
            "env" if self.refers => return reference(Show::Variable),
            _ if self.show == Show::Hidden => Show::Hidden,
            _ if PLAIN.contains(&name) => Show::Plain,
            _ if TABLES.contains(&name) => Show::Table,
            _ if URLS.contains(&name) => Show::Url,
            _ => Show::Hidden,
        };
        Self {
            show,
            refers: show != Show::Hidden || name == "token",
            entries: match name {
                CONFIG => Some(Show::Hidden),
                TARGETS => Some(Show::Plain),
                _ => None,
            },
        }
    }
}

/// A field or a table of the configuration has this name.
pub(super) fn is_known(name: &str) -> bool {
    [PLAIN, TABLES, URLS, SECRETS]
        .iter()
        .any(|names| names.contains(&name))
}

/// What must not be quoted, in order and apart.
pub(super) fn hidden(text: &str) -> Vec<Range<usize>> {
    let Ok(file) = DeTable::parse(text) else {
        return all_but_names(text);
    };
    let mut reader = Reader {
        text,
        hidden: Vec::new(),
        read: Vec::new(),
    };
    reader.table(file.get_ref(), Place::TOP);
    reader.comments();
    merged(reader.hidden)
}

/// Everything but the names of fields and the signs of TOML.
fn all_but_names(text: &str) -> Vec<Range<usize>> {
    let is_sign = |c: char| c.is_whitespace() || "=[]{},.\"'#".contains(c);
    let mut hidden = Vec::new();
    let mut at = 0;
    while let Some(start) = text[at..].find(|c| !is_sign(c)) {
        let start = at + start;
        let end = text[start..]
            .find(is_sign)
            .map_or(text.len(), |length| start + length);
        if !is_known(&text[start..end]) {
            hidden.push(start..end);
        }
        at = end;
    }
    hidden
}

/// Goes through a file that is valid.
struct Reader<'t> {
    text: &'t str,
    hidden: Vec<Range<usize>>,
    /// Ranges of names and values. Only signs and comments lie between them.
    read: Vec<Range<usize>>,
}

impl Reader<'_> {
    fn table(&mut self, table: &DeTable, place: Place) {
        for (name, value) in table {
            self.read.push(name.span());
            self.value(value, place.field(name.get_ref()));
        }
    }

    fn value(&mut self, value: &Spanned<DeValue>, place: Place) {
        match value.get_ref() {
            DeValue::Table(table) => self.table(table, place),
            DeValue::Array(values) => values.iter().for_each(|value| self.value(value, place)),
            DeValue::Boolean(_) => self.read.push(value.span()),
            DeValue::String(_) => {
                self.read.push(value.span());
                self.string(value.span(), place.show);
            }
            DeValue::Integer(_) | DeValue::Float(_) | DeValue::Datetime(_) => {
                self.read.push(value.span());
                if place.show != Show::Plain {
                    self.hidden.push(value.span());
                }
            }
        }
    }

    /// A string, with its quotes.
    fn string(&mut self, range: Range<usize>, show: Show) {
        let quoted = &self.text[range.clone()];
        let is_long = ["\"\"\"", "'''"]
            .iter()
            .any(|quotes| quoted.starts_with(quotes));
        let quotes = if is_long { 3 } else { 1 };
        let content = range.start + quotes..range.end - quotes;
        let text = &self.text[content.clone()];
        match show {
            // No field's text has several lines, but a secret may.
            _ if is_long => self.hide_lines(content),
            Show::Plain => {}
            Show::Variable if is_variable(text) => {}
            Show::Url => {
                let secrets = secrets_of_url(text).into_iter();
                let start = content.start;
                self.hidden
                    .extend(secrets.map(|secret| start + secret.start..start + secret.end));
            }
            Show::Table | Show::Variable | Show::Hidden => self.hidden.push(content),
        }
    }

    /// Hides what has been written behind a `#`.
    fn comments(&mut self) {
        self.read.sort_by_key(|range| range.start);
        let mut at = 0;
        let end = self.text.len()..self.text.len();
        for range in std::mem::take(&mut self.read).into_iter().chain([end]) {
            let mut between = at..range.start.max(at);
            while let Some(sign) = self.text[between.clone()].find('#') {
                let start = between.start + sign;
                let end = line_end(self.text, start);
                self.hide_lines(start..end);
                between = end..between.end.max(end);
            }
            at = range.end.max(between.end);
        }
    }

    fn hide_lines(&mut self, range: Range<usize>) {
        let mut at = range.start;
        for line in self.text[range].split_inclusive(['\r', '\n']) {
            let length = line.trim_end().len();
            self.hidden.push(at..at + length);
            at += line.len();
        }
    }
}

/// The same ranges in order, none of them empty, and none that touches another.
fn merged(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_by_key(|range| range.start);
    ranges.dedup_by(|next, range| {
        let meets = next.start <= range.end;
        if meets {
            range.end = range.end.max(next.end);
        }
        meets
    });
    ranges
}

/// Ranges of secrets in the value of a field that is a URL. A URL that is not well-formed may hold its password
/// anywhere behind the scheme.
fn secrets_of_url(text: &str) -> Vec<Range<usize>> {
    const SCHEMES: &[&str] = &[
        "postgresql",
        "postgres",
        "sqlite",
        "embedded",
        "amqps",
        "amqp",
        "mysql",
        "mariadb",
    ];
    let scheme = SCHEMES
        .iter()
        .find(|scheme| text.starts_with(**scheme))
        .map_or(0, |scheme| scheme.len());
    if scheme > 0
        && let Ok(secrets) = address::read(text)
    {
        let user = secrets.user_alone.into_iter();
        return user.chain(secrets.passwords).collect();
    }
    let rest = text[scheme..].trim_start_matches([':', '/']);
    let is_file = matches!(&text[..scheme], "sqlite" | "embedded");
    if is_file && !rest.contains([':', '@']) {
        return Vec::new();
    }
    std::iter::once(text.len() - rest.len()..text.len()).collect()
}

fn line_end(text: &str, from: usize) -> usize {
    from + text[from..].find(['\r', '\n']).unwrap_or(text.len() - from)
}
