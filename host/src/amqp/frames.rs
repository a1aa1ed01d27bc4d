//! Reads the frames that a broker sends, and lets through what lapin can read.
//!
//! Pure: bytes go in and come out, and nothing waits. What is good passes as it came, in runs; a body passes as it
//! comes in and is never gathered. The content header of a delivery that cannot be read is replaced by an empty
//! one, and one whose body is not let through by one that announces no body; the truth of both is in the
//! [`Screen`] before the replacement comes out. A broker that breaks the protocol is an error, after all that was
//! good before it.
//!
//! The bytes stand in one buffer:
//!
//! ```text
//! | given | passed, to be given | hole | not looked at yet | room |
//! ```
//!
//! A hole is what does not pass. It is left behind when all before it was given; what stands in its place is
//! in `insert`.

mod content;

use std::collections::BTreeMap;
use std::sync::Arc;

use lapin::types::parsing::parse_field_table;

use super::methods::{self, Checked, Deliver, Method, Wrong};
use super::screen::Screen;
use content::{Content, Header, LongHeader};

/// Bytes that are read at once.
const BUFFER_BYTES: usize = 128 * 1024;

/// Room that is worth a read.
const MIN_ROOM_BYTES: usize = 16 * 1024;

/// Frames that are gathered whole, until the broker and lapin have agreed on another size. lapin has as much room.
const FIRST_FRAME_BYTES: usize = 128 * 1024;

/// The largest frame that is agreed on. lapin keeps room for 64 of them, and believes a broker that sets no bound.
pub const MAX_FRAME_BYTES: u32 = 1024 * 1024;

/// The smallest frame that AMQP allows to agree on (4.2.3).
pub const MIN_FRAME_BYTES: u32 = 4096;

/// A content header that is longer than a frame may be, and is still read past.
const MAX_HEADER_BYTES: u64 = 16 * 1024 * 1024;

/// Type, channel and size.
const HEAD_BYTES: usize = 7;

/// The head, and the octet at the end.
const OVERHEAD_BYTES: usize = HEAD_BYTES + 1;

const END: u8 = 0xce;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;

/// The beginning of the alert of TLS 1 that a TLS server sends to a client that does not speak TLS.
const TLS_ALERT: [u8; 2] = [21, 3];

/// A violation of the protocol by the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("the server speaks TLS on this port: write `amqps://` in place of `amqp://`")]
    Tls,
    #[error("what answers on this port does not speak AMQP 0-9-1")]
    NotAmqp,
    #[error("the broker sent a frame of the unknown type {0}")]
    FrameType(u8),
    #[error("the broker sent a frame that ends with 0x{0:02x} in place of 0xce")]
    FrameEnd(u8),
    #[error("the broker sent a frame of {bytes} bytes; it may have {limit}")]
    TooLong { bytes: u64, limit: usize },
    #[error("the broker sent the method {class}.{method}, which brokers do not send")]
    UnknownMethod { class: u16, method: u16 },
    #[error("the broker sent the method {class}.{method} with arguments that do not add up")]
    Arguments { class: u16, method: u16 },
    #[error("the broker sent a method frame of {0} bytes, which is too short for a method")]
    NoMethod(usize),
    #[error("the broker sent a content header of {0} bytes, which is too short for one")]
    ShortHeader(usize),
    #[error("the broker began a message on channel {0} before it had sent all of the last one")]
    Unfinished(u16),
    #[error("the broker sent a longer body on channel {0} than its header announces")]
    LongBody(u16),
    #[error("the broker delivers more messages than any prefetch allows")]
    TooManyDeliveries,
}

/// A reader between a socket and lapin.
pub struct FrameReader {
    screen: Arc<Screen>,
    buffer: Vec<u8>,
    given: usize,
    passed: usize,
    hole: usize,
    filled: usize,
    insert: Vec<u8>,
    inserted: usize,
    state: State,
    /// The longest frame that lapin takes, with its head and its end.
    limit: usize,
    /// The longest frame that the client asks for; 0 if it leaves that to the broker.
    wished_limit: u32,
    contents: BTreeMap<u16, Content>,
    error: Option<FrameError>,
    /// Bytes that were left out.
    left_out: u64,
}

/// The place of the next byte in the stream of frames.
enum State {
    /// Nothing has come yet.
    Start,
    /// At the head of a frame.
    Head,
    /// In a frame that passes. So much is left of it, with its end.
    Passing(usize),
    /// In a body frame that does not pass.
    Swallowing { channel: u16, left: usize },
    /// In a content header that is longer than a frame may be.
    LongHeader(Box<LongHeader>),
}

/// The result of one look at the bytes.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Something passed; there may be more.
    On,
    /// All that passed has to be given before it goes on.
    Give,
    /// More bytes are needed.
    Need,
}

impl FrameReader {
    /// `wished_limit` is the longest frame that the client asks for, or 0.
    pub fn new(screen: Arc<Screen>, wished_limit: u32) -> Self {
        let limit = match wished_limit {
            0 => FIRST_FRAME_BYTES,
            limit => limit as usize,
        };
        Self {
            screen,
            buffer: vec![0; BUFFER_BYTES],
            given: 0,
            passed: 0,
            hole: 0,
            filled: 0,
            insert: Vec::new(),
            inserted: 0,
            state: State::Start,
            limit,
            wished_limit,
            contents: BTreeMap::new(),
            error: None,
            left_out: 0,
        }
    }

    /// Room for bytes from the socket, never empty; what is read is told with [`filled`](Self::filled). To be asked
    /// for when there is nothing to give.
    pub fn room(&mut self) -> &mut [u8] {
        let needed = self.needed();
        if self.passed == self.filled {
            (self.given, self.passed, self.filled) = (0, 0, 0);
        } else if self.buffer.len() - self.passed < needed {
            self.buffer.copy_within(self.passed..self.filled, 0);
            self.filled -= self.passed;
            (self.given, self.passed) = (0, 0);
        }
        if self.buffer.len() < needed {
            self.buffer.resize(needed, 0);
        }
        &mut self.buffer[self.filled..]
    }

    /// Tells that the first `count` bytes of the room are from the socket.
    pub fn filled(&mut self, count: usize) {
        self.filled = self.buffer.len().min(self.filled + count);
    }

    /// Copies out what passes. Nothing means that more bytes are needed.
    pub fn give(&mut self, out: &mut [u8]) -> Result<usize, FrameError> {
        let mut count = 0;
        loop {
            let run = (self.passed - self.given).min(out.len() - count);
            out[count..count + run].copy_from_slice(&self.buffer[self.given..self.given + run]);
            self.given += run;
            count += run;
            if self.given < self.passed {
                return Ok(count);
            }
            self.passed += self.hole;
            self.given = self.passed;
            self.hole = 0;
            let rest = &self.insert[self.inserted..];
            let run = rest.len().min(out.len() - count);
            out[count..count + run].copy_from_slice(&rest[..run]);
            self.inserted += run;
            count += run;
            if self.inserted < self.insert.len() {
                return Ok(count);
            }
            self.insert.clear();
            self.inserted = 0;
            match self.look() {
                Ok(true) => {}
                Ok(false) => return Ok(count),
                Err(error) if count == 0 => return Err(error),
                Err(_) => return Ok(count),
            }
        }
    }

    /// Gives a heartbeat of the broker next. It stands in for what was left out: lapin must not believe that the
    /// broker is gone while a body comes in that it does not get. To be asked for when there is nothing to give; what
    /// was given then ends with a frame, unless one that passes is under way.
    pub fn insert_heartbeat(&mut self) {
        if !matches!(self.state, State::Passing(_)) && self.insert.is_empty() {
            self.insert.extend([HEARTBEAT, 0, 0, 0, 0, 0, 0, END]);
        }
    }

    /// Bytes left out since this was last asked.
    pub fn take_left_out(&mut self) -> u64 {
        std::mem::take(&mut self.left_out)
    }

    /// How many bytes the next step needs from `passed` on.
    fn needed(&self) -> usize {
        // A whole frame is asked for once its head says how long it is.
        let frame = match (&self.state, self.head()) {
            (State::Head, Some(head)) => head.whole_bytes().min(self.limit as u64) as usize,
            _ => 0,
        };
        frame.max(MIN_ROOM_BYTES)
    }

    fn available(&self) -> &[u8] {
        &self.buffer[self.passed..self.filled]
    }

    fn head(&self) -> Option<Head> {
        let head: &[u8; HEAD_BYTES] = self.available().first_chunk()?;
        Some(Head {
            kind: head[0],
            channel: u16::from_be_bytes([head[1], head[2]]),
            size: u32::from_be_bytes([head[3], head[4], head[5], head[6]]),
        })
    }

    /// Looks at what has come. Tells whether anything is to be given, or left out.
    fn look(&mut self) -> Result<bool, FrameError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let from = self.passed;
        loop {
            match self.step() {
                Ok(Step::On) => {}
                Ok(Step::Give) => return Ok(true),
                Ok(Step::Need) => return Ok(self.passed > from),
                Err(error) => {
                    self.error = Some(error);
                    return if self.passed > from {
                        Ok(true)
                    } else {
                        Err(error)
                    };
                }
            }
        }
    }

    fn step(&mut self) -> Result<Step, FrameError> {
        match &mut self.state {
            State::Start => self.start(),
            State::Head => self.frame(),
            State::Passing(left) => {
                let here = (self.filled - self.passed).min(*left);
                if here == 0 {
                    return Ok(Step::Need);
                }
                *left -= here;
                let done = *left == 0;
                self.passed += here;
                if done {
                    let end = ended(self.buffer[self.passed - 1]);
                    if end.is_err() {
                        // lapin is not to see the wrong end: without it the frame is never whole.
                        self.passed -= 1;
                    }
                    end?;
                    self.state = State::Head;
                }
                Ok(Step::On)
            }
            State::Swallowing { channel, left } => {
                let channel = *channel;
                let here = (self.filled - self.passed).min(*left);
                if here == 0 {
                    return Ok(Step::Need);
                }
                *left -= here;
                let done = *left == 0;
                let bytes = &self.buffer[self.passed..self.passed + here];
                let (payload, end) = bytes.split_at(here - usize::from(done));
                if let [octet] = end {
                    ended(*octet)?;
                    self.state = State::Head;
                }
                if let Some(content) = self.contents.get_mut(&channel) {
                    content.swallow(payload);
                    if done && let Some(header) = content.swallowed(&self.screen, channel)? {
                        self.insert = header;
                    }
                }
                self.leave_out(here);
                Ok(Step::Give)
            }
            State::LongHeader(header) => {
                let bytes = &self.buffer[self.passed..self.filled];
                if bytes.is_empty() {
                    return Ok(Step::Need);
                }
                let here = header.read(bytes);
                if header.is_whole() {
                    ended(bytes[here - 1])?;
                    if let State::LongHeader(header) =
                        std::mem::replace(&mut self.state, State::Head)
                    {
                        let content = self.contents.entry(header.channel).or_default();
                        self.insert = content.long_header(&self.screen, *header)?;
                    }
                }
                self.leave_out(here);
                Ok(Step::Give)
            }
        }
    }

    fn leave_out(&mut self, count: usize) {
        self.hole = count;
        self.left_out += count as u64;
    }

    /// The first bytes: a frame, or the answer of something that is no broker of AMQP 0-9-1.
    fn start(&mut self) -> Result<Step, FrameError> {
        let available = self.available();
        if available.starts_with(&TLS_ALERT) {
            return Err(FrameError::Tls);
        }
        match available {
            [] => Ok(Step::Need),
            [METHOD, ..] => {
                self.state = State::Head;
                Ok(Step::On)
            }
            // The version that a broker speaks when it does not speak ours. lapin says so.
            [b'A', b'M', b'Q', b'P', 0, _, _, _, ..] => {
                self.passed += 8;
                self.state = State::Head;
                Ok(Step::On)
            }
            _ if available.len() < 8
                && (b"AMQP\0".starts_with(&available[..available.len().min(5)])
                    || TLS_ALERT.starts_with(available)) =>
            {
                Ok(Step::Need)
            }
            _ => Err(FrameError::NotAmqp),
        }
    }

    /// A frame, of which the head may have come, or more.
    fn frame(&mut self) -> Result<Step, FrameError> {
        let Some(head) = self.head() else {
            return Ok(Step::Need);
        };
        let limit = self.limit;
        let whole = head.whole_bytes();
        let too_long = FrameError::TooLong {
            bytes: whole,
            limit,
        };
        let fits = whole <= limit as u64;
        match head.kind {
            BODY => {
                let content = self.contents.entry(head.channel).or_default();
                let passes = content.body(head.channel, head.size)?;
                let left = head.size as usize + 1;
                if !passes {
                    self.state = State::Swallowing {
                        channel: head.channel,
                        left,
                    };
                    self.leave_out(HEAD_BYTES);
                    return Ok(Step::Give);
                }
                if !fits {
                    return Err(too_long);
                }
                self.passed += HEAD_BYTES;
                self.state = State::Passing(left);
                Ok(Step::On)
            }
            HEADER if !fits => {
                if whole > MAX_HEADER_BYTES {
                    return Err(too_long);
                }
                self.state = State::LongHeader(Box::new(LongHeader::new(
                    head.channel,
                    head.size as usize,
                    limit,
                )));
                self.leave_out(HEAD_BYTES);
                Ok(Step::Give)
            }
            METHOD | HEADER | HEARTBEAT => {
                if !fits {
                    return Err(too_long);
                }
                let whole = whole as usize;
                if self.available().len() < whole {
                    return Ok(Step::Need);
                }
                ended(self.available()[whole - 1])?;
                match head.kind {
                    METHOD => self.method(head.channel, whole),
                    HEADER => self.header(head.channel, whole),
                    _ => {
                        self.passed += whole;
                        Ok(Step::On)
                    }
                }
            }
            other => Err(FrameError::FrameType(other)),
        }
    }

    fn method(&mut self, channel: u16, whole: usize) -> Result<Step, FrameError> {
        let payload = &self.buffer[self.passed + HEAD_BYTES..self.passed + whole - 1];
        let Some((method, arguments)) = Method::split(payload) else {
            return Err(FrameError::NoMethod(payload.len()));
        };
        let Method { class, method: id } = method;
        // Nearly all of them, and good: no more than one look at each.
        if method == Method::DELIVER
            && let Some(delivery) = Deliver::read(arguments)
        {
            let why = delivery.refusal();
            let content = self.contents.entry(channel).or_default();
            content.deliver(channel, &delivery, why)?;
            if why.is_none() {
                self.passed += whole;
                return Ok(Step::On);
            }
        }
        let checked = methods::check(method, arguments).map_err(|wrong| match wrong {
            Wrong::Unknown => FrameError::UnknownMethod { class, method: id },
            Wrong::Length => FrameError::Arguments { class, method: id },
        })?;
        match method {
            Method::RETURN | Method::GET_OK => {
                self.contents.entry(channel).or_default().other(channel)?;
            }
            Method::OPEN_OK => {
                self.contents.insert(channel, Content::default());
                self.screen.opened(channel);
            }
            Method::CLOSE | Method::CLOSE_OK => {
                self.contents.remove(&channel);
            }
            _ => {}
        }
        let at = self.passed + HEAD_BYTES + 4;
        let length = match checked {
            Checked::Good => whole - OVERHEAD_BYTES - 4,
            Checked::Rewritten(arguments) => {
                self.buffer[at..at + arguments.len()].copy_from_slice(&arguments);
                arguments.len()
            }
        };
        if method == Method::START
            && let Ok((_, properties)) = parse_field_table(&self.buffer[at + 2..at + length])
        {
            self.screen.introduce(&properties);
        }
        if method == Method::TUNE {
            self.tune(at + 2);
        }
        Ok(self.pass(HEAD_BYTES + 4 + length, whole))
    }

    /// Bounds what the broker wants frames to be, and takes what lapin will make of it.
    fn tune(&mut self, at: usize) {
        let field = &mut self.buffer[at..at + 4];
        let offered = match u32::from_be_bytes([field[0], field[1], field[2], field[3]]) {
            0 => MAX_FRAME_BYTES,
            bytes => bytes.clamp(MIN_FRAME_BYTES, MAX_FRAME_BYTES),
        };
        field.copy_from_slice(&offered.to_be_bytes());
        self.limit = match self.wished_limit {
            0 => offered,
            wished => offered.min(wished),
        } as usize;
    }

    fn header(&mut self, channel: u16, whole: usize) -> Result<Step, FrameError> {
        let payload = self.passed + HEAD_BYTES..self.passed + whole - 1;
        let content = self.contents.entry(channel).or_default();
        let header = content.header(&self.screen, channel, &mut self.buffer[payload])?;
        match header {
            Header::Passes(length) => Ok(self.pass(HEAD_BYTES + length, whole)),
            Header::Waits => {
                self.leave_out(whole);
                Ok(Step::Give)
            }
        }
    }

    /// Lets the next frame through, of which now only so much is left. The rest is a hole.
    fn pass(&mut self, length: usize, whole: usize) -> Step {
        if length + 1 == whole {
            self.passed += whole;
            return Step::On;
        }
        let size = ((length - HEAD_BYTES) as u32).to_be_bytes();
        let frame = &mut self.buffer[self.passed..self.passed + length + 1];
        frame[3..HEAD_BYTES].copy_from_slice(&size);
        frame[length] = END;
        self.passed += length + 1;
        self.leave_out(whole - length - 1);
        Step::Give
    }
}

/// The head of a frame.
#[derive(Clone, Copy, Debug)]
struct Head {
    kind: u8,
    channel: u16,
    size: u32,
}

impl Head {
    /// The length of the frame, with its head and its end.
    fn whole_bytes(self) -> u64 {
        u64::from(self.size) + OVERHEAD_BYTES as u64
    }
}

fn ended(octet: u8) -> Result<(), FrameError> {
    match octet {
        END => Ok(()),
        other => Err(FrameError::FrameEnd(other)),
    }
}

#[cfg(test)]
pub(super) mod tests;
