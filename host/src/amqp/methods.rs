//! The methods that a broker sends, and what stands in them.
//!
//! A text that is not UTF-8 keeps its length, with `?` in place of each wrong byte; a table that cannot be read
//! becomes an empty one. So a method never grows.

use super::walk::{self, Part, Refusal};

pub const CONNECTION: u16 = 10;
pub const CHANNEL: u16 = 20;
pub const BASIC: u16 = 60;

/// A method by the numbers of its class and of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Method {
    pub class: u16,
    pub method: u16,
}

impl Method {
    pub const START: Self = Self::new(CONNECTION, 10);
    pub const TUNE: Self = Self::new(CONNECTION, 30);
    pub const OPEN_OK: Self = Self::new(CHANNEL, 11);
    pub const CLOSE: Self = Self::new(CHANNEL, 40);
    pub const CLOSE_OK: Self = Self::new(CHANNEL, 41);
    pub const RETURN: Self = Self::new(BASIC, 50);
    pub const DELIVER: Self = Self::new(BASIC, 60);
    pub const GET_OK: Self = Self::new(BASIC, 71);

    const fn new(class: u16, method: u16) -> Self {
        Self { class, method }
    }

    /// The method in the payload of a frame, and its arguments.
    pub fn split(payload: &[u8]) -> Option<(Self, &[u8])> {
        let (class, rest) = payload.split_first_chunk()?;
        let (method, arguments) = rest.split_first_chunk()?;
        let method = Self::new(u16::from_be_bytes(*class), u16::from_be_bytes(*method));
        Some((method, arguments))
    }

    /// The arguments of a method that brokers send; none for other methods.
    fn arguments(self) -> Option<&'static [Argument]> {
        use Argument::{Bits, Long, LongLong, LongText, Octet, Short, ShortText, Table};
        Some(match (self.class, self.method) {
            // connection: start, secure, tune, open-ok, close, close-ok, blocked, unblocked, update-secret-ok
            (10, 10) => &[Octet, Octet, Table, LongText, LongText],
            (10, 20) => &[LongText],
            (10, 30) => &[Short, Long, Short],
            (10, 41) => &[ShortText],
            (10, 50) => &[Short, ShortText, Short, Short],
            (10, 51) => &[],
            (10, 60) => &[ShortText],
            (10, 61 | 71) => &[],
            // channel: open-ok, flow, flow-ok, close, close-ok
            (20, 11) => &[LongText],
            (20, 20 | 21) => &[Bits],
            (20, 40) => &[Short, ShortText, Short, Short],
            (20, 41) => &[],
            // access: request-ok
            (30, 11) => &[Short],
            // exchange: declare-ok, delete-ok, bind-ok, unbind-ok
            (40, 11 | 21 | 31 | 51) => &[],
            // queue: declare-ok, bind-ok, purge-ok, delete-ok, unbind-ok
            (50, 11) => &[ShortText, Long, Long],
            (50, 21 | 51) => &[],
            (50, 31 | 41) => &[Long],
            // basic: qos-ok, consume-ok, cancel, cancel-ok, return, deliver, get-ok, get-empty, ack, recover-ok, nack
            (60, 11) => &[],
            (60, 21) => &[ShortText],
            (60, 30) => &[ShortText, Bits],
            (60, 31) => &[ShortText],
            (60, 50) => &[Short, ShortText, ShortText, ShortText],
            (60, 60) => &[ShortText, LongLong, Bits, ShortText, ShortText],
            (60, 71) => &[LongLong, Bits, ShortText, ShortText, Long],
            (60, 72) => &[ShortText],
            (60, 80 | 120) => &[LongLong, Bits],
            (60, 111) => &[],
            // confirm: select-ok
            (85, 11) => &[],
            // tx: select-ok, commit-ok, rollback-ok
            (90, 11 | 21 | 31) => &[],
            _ => return None,
        })
    }
}

#[derive(Clone, Copy, Debug)]
enum Argument {
    Bits,
    Octet,
    Short,
    Long,
    LongLong,
    ShortText,
    LongText,
    Table,
}

/// The arguments of a method, after a look at each of them.
#[derive(Debug, PartialEq, Eq)]
pub enum Checked {
    Good,
    /// Something in them cannot be read; this can, in place of all of them.
    Rewritten(Vec<u8>),
}

/// Why the arguments of a method are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// Brokers do not send this method.
    Unknown,
    /// They are shorter or longer than they say.
    Length,
}

/// Looks at each argument of a method.
pub fn check(method: Method, arguments: &[u8]) -> Result<Checked, Wrong> {
    let kinds = method.arguments().ok_or(Wrong::Unknown)?;
    let mut good = true;
    let mut at = 0;
    for kind in kinds {
        let rest = &arguments[at..];
        let length = length(*kind, rest).ok_or(Wrong::Length)?;
        good &= match kind {
            Argument::ShortText => walk::is_text(&rest[1..length]),
            Argument::Table => walk::table(rest).is_ok(),
            _ => true,
        };
        at += length;
    }
    if at != arguments.len() {
        return Err(Wrong::Length);
    }
    if good {
        return Ok(Checked::Good);
    }
    let mut rewritten = Vec::with_capacity(arguments.len());
    let mut at = 0;
    for kind in kinds {
        let rest = &arguments[at..];
        let length = length(*kind, rest).ok_or(Wrong::Length)?;
        let argument = &rest[..length];
        match kind {
            Argument::ShortText => {
                rewritten.push(argument[0]);
                for chunk in argument[1..].utf8_chunks() {
                    rewritten.extend_from_slice(chunk.valid().as_bytes());
                    rewritten.resize(rewritten.len() + chunk.invalid().len(), b'?');
                }
            }
            Argument::Table if walk::table(argument).is_err() => {
                rewritten.extend_from_slice(&[0; 4]);
            }
            _ => rewritten.extend_from_slice(argument),
        }
        at += length;
    }
    Ok(Checked::Rewritten(rewritten))
}

/// The length of the argument that `bytes` begin with.
fn length(kind: Argument, bytes: &[u8]) -> Option<usize> {
    let length = match kind {
        Argument::Bits | Argument::Octet => 1,
        Argument::Short => 2,
        Argument::Long => 4,
        Argument::LongLong => 8,
        Argument::ShortText => 1 + walk::short_string(bytes)?.len(),
        Argument::LongText | Argument::Table => walk::long_length(bytes)?,
    };
    (length <= bytes.len()).then_some(length)
}

/// A basic.deliver, as it came.
#[derive(Debug, PartialEq, Eq)]
pub struct Deliver<'a> {
    pub tag: u64,
    consumer_tag: &'a [u8],
    pub exchange: &'a [u8],
    pub routing_key: &'a [u8],
}

impl<'a> Deliver<'a> {
    /// Reads the arguments of a basic.deliver, if they are exactly that.
    pub fn read(arguments: &'a [u8]) -> Option<Self> {
        let consumer_tag = walk::short_string(arguments)?;
        let (tag, rest) = arguments[1 + consumer_tag.len()..].split_first_chunk()?;
        let names = rest.get(1..)?;
        let exchange = walk::short_string(names)?;
        let routing_key = walk::short_string(&names[1 + exchange.len()..])?;
        let length = 2 + exchange.len() + routing_key.len();
        (length == names.len()).then_some(Self {
            tag: u64::from_be_bytes(*tag),
            consumer_tag,
            exchange,
            routing_key,
        })
    }

    /// Why it cannot be read as it came.
    pub fn refusal(&self) -> Option<Refusal> {
        let parts = [
            (self.exchange, Part::Exchange),
            (self.routing_key, Part::RoutingKey),
            (self.consumer_tag, Part::ConsumerTag),
        ];
        let bad = parts.into_iter().find(|(text, _)| !walk::is_text(text));
        bad.map(|(_, part)| Refusal::NotUtf8(part))
    }
}

#[cfg(test)]
mod tests;
