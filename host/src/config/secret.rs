//! Owns text that must never reach a log: database and broker addresses, tokens.
//!
//! Guarantees that printing a [`Secret`] in any way shows no password; the text itself comes
//! out of [`Secret::expose`] only. Also hides the passwords of URLs in what others say, a broker or a
//! library. Does not wipe memory.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Deref, Range};

use super::address;

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
        let shown = match address::read(&text) {
            Ok(secrets) => masked(&text, &secrets.passwords),
            // It has no form that says where the password is.
            Err(_) => MASK.to_owned(),
        };
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

/// What a handler reads with `context.config`: its values may be secrets, and are not printed.
#[derive(Clone, Default)]
pub struct Settings(BTreeMap<String, String>);

impl From<BTreeMap<String, String>> for Settings {
    fn from(settings: BTreeMap<String, String>) -> Self {
        Self(settings)
    }
}

impl Deref for Settings {
    type Target = BTreeMap<String, String>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(self.0.keys().map(|name| (name, MASK)))
            .finish()
    }
}

/// A text with the passwords of all URLs in it hidden: from the user's `:` to the last `@` of what may be one URL or
/// several that are joined, and of parameters with such a name.
pub fn hide_passwords(text: &str) -> Cow<'_, str> {
    let mut ranges = Vec::new();
    let mut from = 0;
    while let Some(start) = text[from..].find("://").map(|at| from + at + "://".len()) {
        let ends = |c: char| c.is_whitespace() || c.is_control() || "\"\\`<>".contains(c);
        let end = text[start..].find(ends).map_or(text.len(), |at| start + at);
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
    match ranges.is_empty() {
        true => Cow::Borrowed(text),
        false => Cow::Owned(masked(text, &ranges)),
    }
}

/// The text with a mask in place of these ranges, which are in order and apart.
pub(super) fn masked(text: &str, ranges: &[Range<usize>]) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut copied = 0;
    for range in ranges {
        shown.push_str(&text[copied..range.start]);
        shown.push_str(MASK);
        copied = range.end;
    }
    shown.push_str(&text[copied..]);
    shown
}
