//! Text for people: what may reach a terminal, tables, and how outputs differ for terminals and pipes.
//!
//! Guarantees that no byte of a message can steer a terminal: whatever came from outside goes through
//! [`clean`] or [`clean_lines`]. Colour is written as ANSI and removed by [`print`] where nobody sees it.

use std::fmt;
use std::io::{self, IsTerminal, Write};

use anstyle::{AnsiColor, Style};
use comfy_table::{Attribute, Cell, ColumnConstraint, ContentArrangement, Row, presets};

pub const STRONG: Style = Style::new().bold();
pub const FAINT: Style = Style::new().dimmed();
pub const GOOD: Style = AnsiColor::Green.on_default();
pub const WARNING: Style = AnsiColor::Yellow.on_default().bold();
pub const BAD: Style = AnsiColor::Red.on_default().bold();

/// The width of a table that goes to no terminal of known width.
const WIDTH: u16 = 120;

/// Writes to standard output. Fails with `BrokenPipe` when whoever read it has left.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = anstream::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Writes to standard error. Nothing can be done when that fails.
pub fn complain(text: &str) {
    let _ = anstream::stderr().lock().write_all(text.as_bytes());
}

/// Text that stays on its line and does nothing to a terminal: control characters, and those that change
/// the direction of text, become visible escapes.
pub fn clean(text: &str) -> String {
    escape(text, |_| false)
}

/// The same for text of several lines: line breaks and tabs stay.
pub fn clean_lines(text: &str) -> String {
    escape(text, |c| matches!(c, '\n' | '\t'))
}

fn escape(text: &str, keep: impl Fn(char) -> bool) -> String {
    let mut cleaned = String::with_capacity(text.len());
    for c in text.chars() {
        if is_harmless(c) || keep(c) {
            cleaned.push(c);
        } else {
            cleaned.extend(c.escape_default());
        }
    }
    cleaned
}

/// Text that stays on its line and does nothing to a terminal, as [`clean`] makes it, on its way to somewhere.
pub struct Clean<W>(pub W);

impl<W: fmt::Write> fmt::Write for Clean<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        match text.chars().all(is_harmless) {
            true => self.0.write_str(text),
            false => self.0.write_str(&clean(text)),
        }
    }
}

/// JSON with the same characters as escapes, for whoever looks at it in a terminal: its own escapes end with the
/// controls of ASCII. Outside of a string it has none of them but the line break at its end, which stays.
pub fn clean_json(json: &str) -> String {
    let mut cleaned = String::with_capacity(json.len());
    for c in json.chars() {
        if is_harmless(c) || c == '\n' {
            cleaned.push(c);
        } else {
            // None of them is beyond what four digits say.
            cleaned.push_str(&format!("\\u{:04x}", u32::from(c)));
        }
    }
    cleaned
}

fn is_harmless(c: char) -> bool {
    let steers = matches!(
        c,
        '\u{61c}'
            | '\u{200e}'
            | '\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2066}'..='\u{206f}'
            | '\u{feff}'
    );
    !c.is_control() && !steers
}

/// Bytes as people read them: their text where they are text, else hexadecimal digits after `0x`.
pub fn bytes(bytes: &[u8]) -> String {
    match str::from_utf8(bytes) {
        Ok(text) => clean(text),
        Err(_) => format!("0x{}", hex::encode(bytes)),
    }
}

/// At most `width` characters, the last of them an ellipsis where something is missing.
pub fn cut(text: &str, width: usize) -> String {
    match text.char_indices().nth(width) {
        Some(_) => text
            .chars()
            .take(width.saturating_sub(1))
            .chain(['…'])
            .collect(),
        None => text.to_owned(),
    }
}

/// A number with separators between its thousands.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 message`, `2 messages`.
pub fn count(number: u64, singular: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {singular}{plural}", thousands(number))
}

/// A line of what is shown of one thing: a name and its value, nothing when there is no value.
pub fn field(name: &str, value: &str) -> String {
    match value {
        "" => String::new(),
        value => format!("{STRONG}{name:<13}{STRONG:#} {}\n", clean(value)),
    }
}

/// Text of several lines under a title, nothing when there is none.
pub fn section(title: &str, content: &str) -> String {
    if content.is_empty() {
        return String::new();
    }
    let mut text = format!("\n{STRONG}{title}{STRONG:#}\n");
    for line in clean_lines(content).lines() {
        text.push_str(&format!("  {line}\n"));
    }
    text
}

/// How old something is: one number and its unit.
pub fn age(seconds: f64) -> String {
    let units = [(86_400.0, "d"), (3_600.0, "h"), (60.0, "min"), (1.0, "s")];
    let unit = units.iter().find(|(size, _)| seconds >= 2.0 * size);
    let (size, name) = unit.unwrap_or(&(1.0, "s"));
    format!("{:.0} {name}", (seconds / size).floor())
}

/// Rows under a header. Every cell is made clean.
pub struct Table {
    header: &'static [&'static str],
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(header: &'static [&'static str]) -> Self {
        Self {
            header,
            rows: Vec::new(),
        }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows
            .push(cells.into_iter().map(|cell| clean(&cell)).collect());
    }

    /// For standard output as it is: columns on a terminal, tab-separated fields elsewhere.
    pub fn render(&self) -> String {
        if io::stdout().is_terminal() {
            self.columns(None)
        } else {
            self.fields()
        }
    }

    /// One line a row; the last column is cut where the terminal ends.
    fn columns(&self, width: Option<u16>) -> String {
        let mut table = comfy_table::Table::new();
        table
            .load_preset(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Dynamic);
        if let Some(width) = width.or_else(|| table.width().is_none().then_some(WIDTH)) {
            table.set_width(width);
        }
        let bold = |name: &&str| Cell::new(name).add_attribute(Attribute::Bold);
        table.set_header(self.header.iter().map(bold));
        table.set_truncation_indicator("…");
        for cells in &self.rows {
            let mut row = Row::from(cells.iter());
            row.max_height(1);
            table.add_row(row);
        }
        let last = self.header.len().saturating_sub(1);
        for (index, column) in table.column_iter_mut().enumerate() {
            column.set_padding((0, if index == last { 0 } else { 2 }));
            if index != last {
                column.set_constraint(ColumnConstraint::ContentWidth);
            }
        }
        table.trim_fmt() + "\n"
    }

    fn fields(&self) -> String {
        let mut text = self.header.join("\t") + "\n";
        for row in &self.rows {
            text.push_str(&row.join("\t"));
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn table() -> Table {
        let mut table = Table::new(&["id", "error"]);
        table.row([
            "3f2a".into(),
            "no row in t_users, or a very long explanation of it".into(),
        ]);
        table.row(["0c".into(), "two\nlines\tand \u{1b}[31mred".into()]);
        table
    }

    #[test]
    fn nothing_from_a_message_can_steer_a_terminal() {
        let text = "a\u{1b}[2J\u{7}\r\n\u{9b}\u{202e}\u{0}é✓";
        assert_eq!(
            clean(text),
            "a\\u{1b}[2J\\u{7}\\r\\n\\u{9b}\\u{202e}\\u{0}é✓"
        );
        assert_eq!(clean_lines("a\n\tb\r\u{1b}"), "a\n\tb\\r\\u{1b}");
    }

    #[test]
    fn bytes_that_are_no_text_are_shown_in_hexadecimal() {
        assert_eq!(bytes(b"o-1"), "o-1");
        assert_eq!(bytes(b"\xff\x00"), "0xff00");
        assert_eq!(bytes(b"a\x00b"), "a\\u{0}b");
    }

    #[test]
    fn a_cut_counts_characters_and_says_that_it_cut() {
        assert_eq!(cut("ééé", 3), "ééé");
        assert_eq!(cut("éééé", 3), "éé…");
    }

    #[test]
    fn an_age_is_told_in_the_largest_unit_that_leaves_two() {
        let shown = [0.4, 59.0, 119.0, 120.0, 7_199.0, 7_200.0, 400_000.0].map(age);
        assert_eq!(
            shown,
            ["0 s", "59 s", "119 s", "2 min", "119 min", "2 h", "4 d"]
        );
    }

    #[test]
    fn thousands_are_separated() {
        let shown = [0, 999, 1000, 1_234_567].map(thousands);
        assert_eq!(shown, ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn a_pipe_gets_one_line_of_fields_for_each_row() {
        expect![[r#"
            id	error
            3f2a	no row in t_users, or a very long explanation of it
            0c	two\nlines\tand \u{1b}[31mred
        "#]]
        .assert_eq(&table().fields());
    }

    #[test]
    fn a_terminal_gets_rows_of_one_line_that_fit() {
        let text = table().columns(Some(30));
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(
            text.lines().all(|line| line.chars().count() <= 30),
            "{text}"
        );
        assert!(text.contains("3f2a"), "{text}");
    }
}
