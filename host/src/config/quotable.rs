//! Owns what of a configuration file may be quoted. The file may not even be valid TOML, and a line that a person
//! is shown may hold a password, a token, or a handler's secret.
//!
//! Guarantees that a value is shown only where its name is one of the fields that hold no secret, on a line that
//! can be read; all else is hidden, comments and what stands in no place included. Works on the text alone, since
//! a problem may be that there is nothing else. No range spans a line break.

use std::ops::Range;

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

/// Lists and tables within one another that are looked into.
const MAX_DEPTH: usize = 32;

/// What is made of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Show {
    Plain,
    /// A table is shown, and nothing in its place.
    Table,
    Url,
    /// The name of a variable of the environment.
    Variable,
    Hidden,
}

/// A place in the tables of the file.
#[derive(Clone, Copy, Debug)]
struct Place {
    show: Show,
    /// Of which `env` and `file` are no fields but a reference to a value elsewhere.
    refers: bool,
    /// Whose entries the user has named.
    entries: Option<Show>,
}

impl Place {
    const TOP: Self = Self {
        show: Show::Plain,
        refers: false,
        entries: None,
    };

    const HIDDEN: Self = Self {
        show: Show::Hidden,
        refers: false,
        entries: None,
    };

    /// The place of a field in this one.
    fn field(self, name: &str) -> Self {
        match name {
            "file" if self.refers => return Self::TOP,
            "env" if self.refers => {
                return Self {
                    show: Show::Variable,
                    ..Self::TOP
                };
            }
            _ => {}
        }
        if let Some(show) = self.entries
            // A table of names that was not closed is followed by fields.
            && (show == Show::Hidden || !is_known(name))
        {
            return Self {
                show,
                refers: true,
                entries: None,
            };
        }
        let show = match name {
            _ if self.show == Show::Hidden => Show::Hidden,
            name if PLAIN.contains(&name) => Show::Plain,
            name if TABLES.contains(&name) => Show::Table,
            name if URLS.contains(&name) => Show::Url,
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

    /// The same for a way, `admin.token`.
    fn way(self, way: &str) -> Self {
        way.split('.').fold(self, |place, name| {
            place.field(name.trim().trim_matches(['"', '\'']))
        })
    }
}

/// A field or a table of the configuration has this name.
pub(super) fn is_known(name: &str) -> bool {
    [PLAIN, TABLES, URLS, SECRETS]
        .iter()
        .any(|names| names.contains(&name))
}

/// Nothing of a value is left in what follows its closing quote. A stray quote within a URL is followed by the rest.
fn ends_value(after: &str) -> bool {
    let rest = after.trim_start_matches([' ', '\t']);
    rest.is_empty()
        || rest.starts_with(['\r', '\n', ',', ']', '}'])
        || (rest.starts_with('#') && rest.len() < after.len())
}

/// What must not be quoted, in order and apart.
pub(super) fn hidden(text: &str) -> Vec<Range<usize>> {
    if toml::de::DeTable::parse(text).is_err() {
        return all_but_names(text);
    }
    let mut reader = Reader {
        text,
        at: 0,
        depth: 0,
        hidden: Vec::new(),
    };
    reader.file();
    reader.hidden
}

/// Everything but the names of fields and the signs of TOML. In a file that is not valid nobody knows where a value begins
/// and ends.
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

struct Reader<'t> {
    text: &'t str,
    at: usize,
    /// Lists and tables around this place.
    depth: usize,
    hidden: Vec<Range<usize>>,
}

/// Why the reading of a value ended.
#[derive(PartialEq)]
enum End {
    Closed,
    /// It is not as it should be: what follows is read as if it began a line.
    Broken,
}

impl Reader<'_> {
    fn file(&mut self) {
        let mut table = Place::TOP;
        loop {
            self.skip(&[' ', '\t', '\r', '\n']);
            let is_clear = match self.peek() {
                None => return,
                Some('[') => {
                    table = self.header();
                    true
                }
                Some('#') => self.end_line(),
                Some(_) => self.assignment(table),
            };
            // The header of another table may be in what cannot be read.
            if !is_clear {
                table = Place::HIDDEN;
            }
        }
    }

    /// Passes the rest of a line, and says whether it is blank or a comment that holds no header.
    fn end_line(&mut self) -> bool {
        let rest = self.text[self.at..self.line_end()].trim();
        let is_clear = rest.is_empty() || (rest.starts_with('#') && !rest.contains('['));
        self.hide_line();
        is_clear
    }

    /// `[consumer.limits]` or `[[consumer]]`.
    fn header(&mut self) -> Place {
        let line = &self.text[self.at..self.line_end()];
        let open = line.len() - line.trim_start_matches('[').len();
        let end = line.find(['"', '\'', ']', '#', '=']).unwrap_or(line.len());
        let close = end + (line[end..].len() - line[end..].trim_start_matches(']').len());
        let place = match close > end || end == line.len() {
            true => Place::TOP.way(&line[open..end]),
            false => Place::HIDDEN,
        };
        self.at += close;
        self.hide_line();
        place
    }

    /// `name = value` and the end of its line. Says whether it was that.
    fn assignment(&mut self, table: Place) -> bool {
        let Some(place) = self.name(table) else {
            self.stray();
            return false;
        };
        self.skip(&[' ', '\t']);
        let is_secret = place.show == Show::Hidden || place.entries == Some(Show::Hidden);
        let is_list = self.peek() == Some('[');
        match self.value(place) {
            End::Closed => self.end_line() && !(is_secret && is_list),
            End::Broken => {
                if is_secret {
                    self.hide_line();
                }
                false
            }
        }
    }

    /// The place that a name before a `=` stands for, which is passed. Stays where it is when there is none.
    fn name(&mut self, table: Place) -> Option<Place> {
        let line = &self.text[self.at..self.line_end()];
        let equals = line.find('=')?;
        let name = line[..equals].trim();
        let parts = |c: char| c.is_alphanumeric() || "-_. \t".contains(c);
        if !name.replace(['"', '\''], "").chars().all(parts) {
            return None;
        }
        // With its `=`, a piece of a secret that has lost its quotes looks like a name. Names that are shown are those
        // of fields, and what has a blank that no secret has.
        if !line[..equals].ends_with([' ', '\t']) && !name.split('.').all(is_known) {
            self.hide(self.at..self.at + equals);
        }
        self.at += equals + 1;
        Some(table.way(name))
    }

    /// What is in no place: all of it but a word that is the name of a field.
    fn stray(&mut self) {
        let line = &self.text[self.at..self.line_end()];
        let word = |c: char| c.is_ascii_alphanumeric() || c == '-';
        let first = line.len() - line.trim_start_matches(word).len();
        let known = &line[..first];
        if is_known(known) {
            self.at += first;
        }
        self.hide_line();
    }

    fn value(&mut self, place: Place) -> End {
        self.skip(&[' ', '\t']);
        let rest = &self.text[self.at..];
        match rest.chars().next() {
            None | Some('\r' | '\n') => End::Closed,
            Some('{' | '[') if self.depth == MAX_DEPTH => {
                self.hide_line();
                End::Broken
            }
            Some(open @ ('{' | '[')) => {
                self.depth += 1;
                let end = match open {
                    '{' => self.table(place),
                    _ => self.list(place),
                };
                self.depth -= 1;
                end
            }
            Some(quote @ ('"' | '\'')) => {
                let three = &[quote; 3].iter().collect::<String>();
                if rest.starts_with(three.as_str()) {
                    self.long_string(three);
                    return End::Closed;
                }
                self.string(quote, place.show)
            }
            Some(_) => {
                self.bare(place.show);
                End::Closed
            }
        }
    }

    /// One that is not closed ends with its line, and the header of another table may be in it.
    fn string(&mut self, quote: char, show: Show) -> End {
        let start = self.at + 1;
        let end = closing(self.text, start, quote);
        let closed = self.text[end..].starts_with(quote);
        let after = &self.text[end + usize::from(closed)..];
        self.show(start..end, show, closed && ends_value(after));
        self.at = end + usize::from(closed);
        match closed {
            true => End::Closed,
            false => End::Broken,
        }
    }

    /// No field's text has several lines, but a secret may.
    fn long_string(&mut self, quotes: &str) {
        let start = self.at + quotes.len();
        let end = self.text[start..]
            .find(quotes)
            .map_or(self.text.len(), |at| start + at);
        let mut at = start;
        for line in self.text[start..end].split_inclusive('\n') {
            let length = line.trim_end_matches(['\r', '\n']).len();
            self.hide(at..at + length);
            at += line.len();
        }
        self.at = (end + quotes.len()).min(self.text.len());
    }

    /// A number, a word, or text without its quotes.
    fn bare(&mut self, show: Show) {
        let line = &self.text[self.at..self.line_end()];
        let part = |c: char| c.is_alphanumeric() || "-_.:+".contains(c);
        let plain = line.len() - line.trim_start_matches(part).len();
        let end = match show {
            Show::Plain => plain,
            // A number, after which its table may end.
            Show::Hidden if line[plain..].trim_start().starts_with([',', ']', '}']) => plain,
            // A URL or a secret may hold anything.
            Show::Table | Show::Url | Show::Variable | Show::Hidden => line.len(),
        };
        let word = line
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(line.len());
        if matches!(&line[..word], "true" | "false") {
            self.at += word;
            return;
        }
        let range = self.at..self.at + end;
        self.show(range.clone(), show, true);
        self.at = range.end;
    }

    fn list(&mut self, place: Place) -> End {
        self.at += 1;
        loop {
            self.skip(&[' ', '\t', '\r', '\n', ',']);
            match self.peek() {
                None => return End::Closed,
                Some('#') => self.hide_line(),
                Some(']') => {
                    self.at += 1;
                    return End::Closed;
                }
                // It closes what the list is in.
                Some('}') => return End::Closed,
                // The list was not closed: this is the next field.
                Some(_) if self.is_name() => return End::Broken,
                Some(_) => {
                    if self.value(place) == End::Broken || !self.after_value() {
                        return End::Broken;
                    }
                }
            }
        }
    }

    fn table(&mut self, place: Place) -> End {
        self.at += 1;
        loop {
            self.skip(&[' ', '\t', '\r', '\n', ',']);
            match self.peek() {
                None => return End::Closed,
                Some('#') => self.hide_line(),
                Some('}') => {
                    self.at += 1;
                    return End::Closed;
                }
                // The table was not closed: this is the next one.
                Some('[') => return End::Broken,
                Some(_) => match self.name(place) {
                    Some(field) => {
                        if self.value(field) == End::Broken || !self.after_value() {
                            return End::Broken;
                        }
                    }
                    None => {
                        self.stray();
                        return End::Broken;
                    }
                },
            }
        }
    }

    /// What follows a value in a list or a table is a comma or an end. Anything else may be a piece of the value.
    fn after_value(&mut self) -> bool {
        self.skip(&[' ', '\t']);
        let follows = matches!(
            self.peek(),
            None | Some(',' | ']' | '}' | '\r' | '\n' | '#')
        );
        if !follows {
            self.hide_line();
        }
        follows
    }

    /// A name and a `=` follow.
    fn is_name(&self) -> bool {
        let line = &self.text[self.at..self.line_end()];
        let parts = |c: char| c.is_alphanumeric() || "-_.\"' \t".contains(c);
        line.trim_start_matches(parts).starts_with('=')
    }

    fn show(&mut self, range: Range<usize>, show: Show, whole: bool) {
        match show {
            Show::Plain if whole => {}
            Show::Variable if is_variable(&self.text[range.clone()]) => {}
            Show::Plain | Show::Table | Show::Variable | Show::Hidden => self.hide(range),
            Show::Url => {
                let text = &self.text[range.clone()];
                for secret in secrets_of_url(text, whole) {
                    self.hide(range.start + secret.start..range.start + secret.end);
                }
            }
        }
    }

    /// Hides the rest of the line, unless it is blank.
    fn hide_line(&mut self) {
        let end = self.line_end();
        let rest = &self.text[self.at..end];
        let start = end - rest.trim_start().len();
        self.hide(start..end);
        self.at = end;
    }

    fn hide(&mut self, range: Range<usize>) {
        if !range.is_empty() {
            self.hidden.push(range);
        }
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn skip(&mut self, blanks: &[char]) {
        let rest = &self.text[self.at..];
        self.at = self.text.len() - rest.trim_start_matches(blanks).len();
    }

    fn line_end(&self) -> usize {
        line_end(self.text, self.at)
    }
}

/// What is hidden of the value of a field that is a URL. A URL that is not well-formed, or is cut off, may hold its
/// password anywhere behind the scheme.
fn secrets_of_url(text: &str, whole: bool) -> Vec<Range<usize>> {
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
    if whole
        && scheme > 0
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

/// The end of a string that began before `from`: at its closing quote, or with its line.
fn closing(text: &str, from: usize, quote: char) -> usize {
    let end = line_end(text, from);
    let mut escaped = false;
    for (at, c) in text[from..end].char_indices() {
        if c == quote && !escaped {
            return from + at;
        }
        // A literal string has no escapes.
        escaped = quote == '"' && c == '\\' && !escaped;
    }
    end
}
