//! Owns text that must never reach a log: database and broker addresses, tokens.
//!
//! Guarantees that printing a [`Secret`] in any way shows no password; the text itself comes
//! out of [`Secret::expose`] only. Also finds the passwords in a configuration file, so that a
//! diagnostic can quote a line without them. Does not wipe memory.

use std::fmt;
use std::ops::Range;

/// What is printed in place of a secret.
pub(super) const MASK: &str = "***";

#[derive(Clone)]
pub struct Secret {
    text: String,
    shown: String,
}

impl Secret {
    /// A URL: all of it but the password is shown.
    pub fn url(text: impl Into<String>) -> Self {
        let text = text.into();
        let mut shown = String::new();
        let mut copied = 0;
        for range in url_passwords(&text) {
            shown.push_str(&text[copied..range.start]);
            shown.push_str(MASK);
            copied = range.end;
        }
        shown.push_str(&text[copied..]);
        Self { text, shown }
    }

    /// A token or a password: nothing of it is shown.
    pub fn token(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            shown: MASK.to_owned(),
        }
    }

    /// The text itself, for the one who must present it to a server.
    pub fn expose(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({})", self.shown)
    }
}

/// Where a file that may not even be valid TOML holds secrets: passwords in URLs, and what is
/// assigned to a name that says so. Works on the text alone, and rather hides too much: it
/// decides what a diagnostic may quote. No range spans a line break.
pub(super) fn in_file(text: &str) -> Vec<Range<usize>> {
    let mut ranges = url_passwords(text);
    ranges.extend(assigned(text));
    ranges.sort_by_key(|range| (range.start, range.end));
    let mut apart: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        match apart.last_mut() {
            Some(last) if range.start < last.end => last.end = last.end.max(range.end),
            _ => apart.push(range),
        }
    }
    apart
}

/// The passwords of all URLs in a text: between the user's `:` and the last `@`, because a
/// password that was not percent-encoded may hold any character, and in `?password=`.
fn url_passwords(text: &str) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let mut from = 0;
    while let Some(found) = text[from..].find("://").map(|at| from + at) {
        let start = found + "://".len();
        let before = text[..found]
            .trim_end_matches(|c: char| c.is_ascii_alphanumeric() || "+.-".contains(c));
        let end = match before.chars().next_back() {
            Some(quote @ ('"' | '\'')) => closing(text, start, quote),
            _ => line_end(text, start),
        };
        let url = &text[start..end];
        let mut query = 0;
        if let Some(at) = url.rfind('@')
            && let Some(colon) = url[..at].find(':')
        {
            ranges.push(start + colon + 1..start + at);
            query = at;
        }
        while let Some(found) = url[query..].find("password=") {
            query += found + "password=".len();
            let length = url[query..].find('&').unwrap_or(url.len() - query);
            ranges.push(start + query..start + query + length);
            query += length;
        }
        from = end;
    }
    ranges.retain(|range| !range.is_empty());
    ranges
}

/// The values assigned to names that end like a secret's name, quoted or not, on one line or in
/// a multi-line string. A reference (`{ env = … }`) is no secret itself.
fn assigned(text: &str) -> Vec<Range<usize>> {
    const NAMES: [&str; 5] = ["token", "password", "passwd", "secret", "api-key"];
    let mut ranges = Vec::new();
    for (equals, _) in text.match_indices('=') {
        let before = text[..equals].trim_end().trim_end_matches(['"', '\'']);
        let parts = |c: char| c.is_alphanumeric() || "-_.".contains(c);
        let name = &before[before.trim_end_matches(parts).len()..];
        // A parameter in the query of a URL is not TOML.
        let query = before[..before.len() - name.len()].ends_with(['?', '&']);
        let name = name.to_ascii_lowercase();
        if query || !NAMES.iter().any(|secret| name.ends_with(secret)) {
            continue;
        }
        let value = &text[equals + 1..];
        let start = equals + 1 + (value.len() - value.trim_start_matches([' ', '\t']).len());
        let value = &text[start..];
        let (start, end) = match value.chars().next() {
            Some('{') if reference(value) => continue,
            None => continue,
            Some('"') if value.starts_with(r#"""""#) => {
                (start + 3, until(text, start + 3, r#"""""#))
            }
            Some('\'') if value.starts_with("'''") => (start + 3, until(text, start + 3, "'''")),
            Some(quote @ ('"' | '\'')) => (start + 1, closing(text, start + 1, quote)),
            Some(_) => (start, line_end(text, start)),
        };
        let mut at = start;
        for line in text[start..end].split_inclusive('\n') {
            let length = line.trim_end_matches(['\r', '\n']).len();
            ranges.push(at..at + length);
            at += line.len();
        }
    }
    ranges.retain(|range| !range.is_empty());
    ranges
}

fn reference(table: &str) -> bool {
    let name = table.trim_start_matches(['{', ' ', '\t']);
    name.starts_with("env") || name.starts_with("file")
}

fn until(text: &str, from: usize, stop: &str) -> usize {
    text[from..].find(stop).map_or(text.len(), |at| from + at)
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
