//! How what a record holds is written: in one place for each format, whatever kind of field it is in.

use std::error::Error;
use std::fmt::{self, Write as _};
use std::io::{self, Write};

use anstyle::Style;
use tracing::field::{Field, Visit};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FormatFields, MakeWriter};

use crate::config::hide_passwords;
use crate::output::{Clean, clean_json};

const NAME: Style = Style::new().italic();
const EQUALS: Style = Style::new().dimmed();

/// Writes fields as text: the message as it is, `name=value` for the others.
pub(super) struct Fields;

impl<'w> FormatFields<'w> for Fields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut visitor = Visitor {
            writer,
            is_first: true,
            result: Ok(()),
        };
        fields.record(&mut visitor);
        visitor.result
    }
}

struct Visitor<'w> {
    writer: Writer<'w>,
    is_first: bool,
    result: fmt::Result,
}

impl Visit for Visitor<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            MESSAGE => self.write(field, &value),
            _ => self.write(field, &format_args!("{value:?}")),
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.write(field, &value);
        let mut sources = Vec::new();
        let mut source = value.source();
        while let Some(error) = source {
            sources.push(error.to_string());
            source = error.source();
        }
        if !sources.is_empty() {
            let name = format!("{}.sources", field.name());
            self.write_named(&name, &format_args!("[{}]", sources.join(", ")));
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.write(field, &format_args!("{value:?}"));
    }
}

/// The field that a record's own text is in.
const MESSAGE: &str = "message";

impl Visitor<'_> {
    fn write(&mut self, field: &Field, value: &dyn fmt::Display) {
        let name = field.name();
        // What the crate `log` says about a record stands before its fields already.
        if !name.starts_with("log.") {
            self.write_named(name.trim_start_matches("r#"), value);
        }
    }

    fn write_named(&mut self, name: &str, value: &dyn fmt::Display) {
        if self.result.is_ok() {
            self.result = self.try_write(name, value);
        }
    }

    fn try_write(&mut self, name: &str, value: &dyn fmt::Display) -> fmt::Result {
        if !std::mem::take(&mut self.is_first) {
            self.writer.write_char(' ')?;
        }
        if name != MESSAGE {
            match self.writer.has_ansi_escapes() {
                true => write!(self.writer, "{NAME}{name}{NAME:#}{EQUALS}={EQUALS:#}")?,
                false => write!(self.writer, "{name}=")?,
            }
        }
        let text = value.to_string();
        Clean(&mut self.writer).write_str(&hide_passwords(&text))
    }
}

/// Writes records as lines of JSON.
pub(super) struct JsonLines<W>(pub(super) W);

impl<'w, W: MakeWriter<'w>> MakeWriter<'w> for JsonLines<W> {
    type Writer = JsonLine<W::Writer>;

    fn make_writer(&'w self) -> Self::Writer {
        JsonLine(self.0.make_writer())
    }
}

pub(super) struct JsonLine<W>(W);

impl<W: Write> Write for JsonLine<W> {
    /// Takes a whole record, which is how they come.
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(record);
        let json = clean_json(&hide_passwords(&text));
        self.0.write_all(json.as_bytes())?;
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
