//! Walks the values of AMQP 0-9-1 (section 4.2.5) with counters in place of recursion.
//!
//! Refuses what lapin's parser refuses, and what that parser would recurse into too deeply. Long strings and byte
//! arrays are bytes and may hold anything. Nothing is copied, and nothing is allocated.

use std::fmt;

/// Tables and arrays within each other; the headers themselves are the first.
pub const MAX_DEPTH: usize = 64;

/// Property flags that the class basic does not define: a reserved one, and the one that announces more flags.
const UNDEFINED_FLAGS: u16 = 0b11;

/// Why a message cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("{0} is not UTF-8")]
    NotUtf8(Part),
    #[error("headers nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    #[error("a header has the unknown type 0x{0:02x}")]
    UnknownType(u8),
    #[error("{0} ends before its length says so")]
    Length(Part),
    #[error("{0} bytes follow the last property")]
    TrailingBytes(usize),
    #[error("the property flags 0x{0:04x} have bits that no property stands for")]
    UnknownFlags(u16),
    #[error("the content is of the class {0}, not of the class basic")]
    OtherClass(u16),
    #[error("the properties and headers have {bytes} bytes; a frame may have {limit}")]
    TooLong { bytes: u64, limit: usize },
    #[error("the connection was lost each time the message was read")]
    Unread,
}

impl Refusal {
    /// The code that operators see.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotUtf8(Part::Exchange) => "exchange-not-utf8",
            Self::NotUtf8(Part::RoutingKey) => "routing-key-not-utf8",
            Self::NotUtf8(Part::Property(_)) => "property-not-utf8",
            Self::NotUtf8(Part::ConsumerTag) => "consumer-tag-not-utf8",
            Self::NotUtf8(Part::Header | Part::Headers) => "header-name-not-utf8",
            Self::TooDeep => "headers-too-deep",
            Self::UnknownType(_) => "header-type-unknown",
            Self::Length(_) => "property-length",
            Self::TrailingBytes(_) => "property-trailing-bytes",
            Self::UnknownFlags(_) => "property-flags-unknown",
            Self::OtherClass(_) => "content-class",
            Self::TooLong { .. } => "headers-too-long",
            Self::Unread => "never-read",
        }
    }
}

/// The part of a delivery that a refusal is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    ConsumerTag,
    Exchange,
    RoutingKey,
    Property(&'static str),
    Headers,
    /// The name of a header, or what it holds, at any depth.
    Header,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ConsumerTag => f.write_str("the consumer tag"),
            Self::Exchange => f.write_str("the exchange"),
            Self::RoutingKey => f.write_str("the routing key"),
            Self::Property(name) => write!(f, "the property {name}"),
            Self::Headers => f.write_str("the table of headers"),
            Self::Header => f.write_str("the name of a header"),
        }
    }
}

/// How a property stands in a content header.
enum Form {
    Text,
    Table,
    Bytes(usize),
}

/// The properties of the class basic, the one of the highest flag first.
const PROPERTIES: [(&str, Form); 14] = [
    ("content-type", Form::Text),
    ("content-encoding", Form::Text),
    ("headers", Form::Table),
    ("delivery-mode", Form::Bytes(1)),
    ("priority", Form::Bytes(1)),
    ("correlation-id", Form::Text),
    ("reply-to", Form::Text),
    ("expiration", Form::Text),
    ("message-id", Form::Text),
    ("timestamp", Form::Bytes(8)),
    ("type", Form::Text),
    ("user-id", Form::Text),
    ("app-id", Form::Text),
    ("cluster-id", Form::Text),
];

/// Reads property flags and properties, which must fill `bytes`. Returns the number of values in the headers.
pub fn properties(bytes: &[u8]) -> Result<usize, Refusal> {
    let Some((flags, mut rest)) = bytes.split_first_chunk() else {
        return Err(Refusal::Length(Part::Property("flags")));
    };
    let flags = u16::from_be_bytes(*flags);
    if flags & UNDEFINED_FLAGS != 0 {
        return Err(Refusal::UnknownFlags(flags));
    }
    let mut values = 0;
    for (index, (name, form)) in PROPERTIES.iter().enumerate() {
        if flags & (1 << (15 - index)) == 0 {
            continue;
        }
        let length = match form {
            Form::Text => {
                let part = Part::Property(name);
                let text = short_string(rest).ok_or(Refusal::Length(part))?;
                if !is_text(text) {
                    return Err(Refusal::NotUtf8(part));
                }
                1 + text.len()
            }
            Form::Table => {
                let (length, count) = table(rest)?;
                values = count;
                length
            }
            Form::Bytes(length) => *length,
        };
        rest = rest
            .get(length..)
            .ok_or(Refusal::Length(Part::Property(name)))?;
    }
    match rest.len() {
        0 => Ok(values),
        more => Err(Refusal::TrailingBytes(more)),
    }
}

/// Whether these bytes are UTF-8. Nearly always they are ASCII, which is quicker to see.
#[inline]
pub fn is_text(bytes: &[u8]) -> bool {
    bytes.is_ascii() || std::str::from_utf8(bytes).is_ok()
}

/// The bytes of the short string that `bytes` begin with.
#[inline]
pub fn short_string(bytes: &[u8]) -> Option<&[u8]> {
    let (length, rest) = bytes.split_first()?;
    rest.get(..usize::from(*length))
}

/// The length of the long string, array or table that `bytes` begin with, with the length field itself.
#[inline]
pub fn long_length(bytes: &[u8]) -> Option<usize> {
    let length = u32::from_be_bytes(*bytes.first_chunk()?);
    let whole = 4_usize.checked_add(usize::try_from(length).ok()?)?;
    (whole <= bytes.len()).then_some(whole)
}

/// Reads the table that `bytes` begin with. Returns its length, with the length field, and the number of its values.
pub fn table(bytes: &[u8]) -> Result<(usize, usize), Refusal> {
    const CUT: Refusal = Refusal::Length(Part::Headers);
    let whole = long_length(bytes).ok_or(CUT)?;
    // Where each open table or array ends, and which of them are tables: one bit a level.
    let mut ends = [0; MAX_DEPTH];
    let mut tables = 1_u64;
    let mut level = 0;
    let mut values = 0;
    let mut at = 4;
    ends[0] = whole;
    loop {
        let end = ends[level];
        if at == end {
            if level == 0 {
                return Ok((whole, values));
            }
            level -= 1;
            continue;
        }
        if tables & (1 << level) != 0 {
            let name = short_string(&bytes[at..end]).ok_or(CUT)?;
            if !is_text(name) {
                return Err(Refusal::NotUtf8(Part::Header));
            }
            at += 1 + name.len();
        }
        let kind = *bytes[at..end].first().ok_or(CUT)?;
        at += 1;
        values += 1;
        let length = match kind {
            b'V' => 0,
            b't' | b'b' | b'B' => 1,
            b's' | b'U' | b'u' => 2,
            b'I' | b'i' | b'f' => 4,
            b'D' => 5,
            b'L' | b'l' | b'd' | b'T' => 8,
            b'S' | b'x' => long_length(&bytes[at..end]).ok_or(CUT)?,
            b'F' | b'A' => {
                let inner = long_length(&bytes[at..end]).ok_or(CUT)?;
                level += 1;
                if level == MAX_DEPTH {
                    return Err(Refusal::TooDeep);
                }
                ends[level] = at + inner;
                let bit = 1 << level;
                tables = if kind == b'F' {
                    tables | bit
                } else {
                    tables & !bit
                };
                at += 4;
                continue;
            }
            unknown => return Err(Refusal::UnknownType(unknown)),
        };
        if end - at < length {
            return Err(CUT);
        }
        at += length;
    }
}

#[cfg(test)]
pub(super) mod tests;
