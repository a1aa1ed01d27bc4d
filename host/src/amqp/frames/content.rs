//! The content of a channel: what a method has announced, its header and its body.

use sha2::{Digest, Sha256};

use super::super::methods::{BASIC, Deliver};
use super::super::screen::{
    Admission, BEGINNING_BYTES, Body, Full, Raw, Screen, Unreadable, Withheld, header_weight,
};
use super::super::walk::{self, Refusal};
use super::{END, FrameError, HEAD_BYTES, HEADER};

/// Class, weight and body size, which stand before the properties.
const FIXED_BYTES: usize = 12;

/// A content header without a property.
const BLANK_BYTES: usize = FIXED_BYTES + 2;

/// Bytes that are kept of a header that is longer than a frame may be.
const LONG_HEADER_KEPT_BYTES: usize = 64 * 1024;

/// What one channel is in the middle of.
#[derive(Default)]
pub struct Content {
    stage: Stage,
    /// The budget was used up: no delivery passes one that was not let through.
    spent: bool,
    /// Exchange and routing key of the delivery, one after the other.
    names: Vec<u8>,
    exchange_bytes: usize,
}

#[derive(Default)]
enum Stage {
    #[default]
    Between,
    /// A basic.deliver has come. Its names are as they should be, or not.
    Delivery { tag: u64, why: Option<Refusal> },
    /// A basic.return or a basic.get-ok has come.
    Other,
    /// The rest of a body that passes.
    Passing(u64),
    /// The rest of a body that does not. It is looked at where its header waits for the end of it.
    Swallowing {
        left: u64,
        large: Option<Box<Large>>,
    },
}

/// A body that is not kept.
struct Large {
    tag: u64,
    unreadable: Option<Unreadable>,
    held_bytes: u64,
    length: u64,
    digest: Sha256,
    beginning: Vec<u8>,
    /// The frame that lapin gets when all of the body has come.
    header: Vec<u8>,
}

/// What becomes of a content header.
#[derive(Debug, PartialEq, Eq)]
pub enum Header {
    /// This number of bytes of its payload pass.
    Passes(usize),
    /// It comes out behind the body.
    Waits,
}

enum Verdict {
    Pass,
    /// A header without properties that announces a body of this length.
    Blank(u64),
    /// Until its body has come. Then as it came, or without properties.
    Wait {
        blank: bool,
    },
}

impl Content {
    /// A basic.deliver, and why its names are none, if they are.
    pub fn deliver(
        &mut self,
        channel: u16,
        delivery: &Deliver<'_>,
        why: Option<Refusal>,
    ) -> Result<(), FrameError> {
        self.announce(channel)?;
        self.names.clear();
        self.names.extend_from_slice(delivery.exchange);
        self.names.extend_from_slice(delivery.routing_key);
        self.exchange_bytes = delivery.exchange.len();
        let tag = delivery.tag;
        self.stage = Stage::Delivery { tag, why };
        Ok(())
    }

    /// Another method with a content.
    pub fn other(&mut self, channel: u16) -> Result<(), FrameError> {
        self.announce(channel)?;
        self.stage = Stage::Other;
        Ok(())
    }

    fn announce(&self, channel: u16) -> Result<(), FrameError> {
        match self.stage {
            Stage::Between => Ok(()),
            _ => Err(FrameError::Unfinished(channel)),
        }
    }

    /// The head of a body frame with a payload of `size` bytes. Tells whether it passes.
    pub fn body(&mut self, channel: u16, size: u32) -> Result<bool, FrameError> {
        let size = u64::from(size);
        match &mut self.stage {
            Stage::Passing(left) => {
                *left = left
                    .checked_sub(size)
                    .ok_or(FrameError::LongBody(channel))?;
                if *left == 0 {
                    self.stage = Stage::Between;
                }
                Ok(true)
            }
            Stage::Swallowing { left, .. } if size > *left => Err(FrameError::LongBody(channel)),
            Stage::Swallowing { .. } => Ok(false),
            // Nothing has announced it. lapin says so to the broker.
            Stage::Between | Stage::Delivery { .. } | Stage::Other => Ok(true),
        }
    }

    /// Some bytes of a body that does not pass.
    pub fn swallow(&mut self, bytes: &[u8]) {
        let Stage::Swallowing { left, large } = &mut self.stage else {
            return;
        };
        *left = left.saturating_sub(bytes.len() as u64);
        if let Some(large) = large {
            large.digest.update(bytes);
            let more = bytes.len().min(BEGINNING_BYTES - large.beginning.len());
            large.beginning.extend_from_slice(&bytes[..more]);
        }
    }

    /// The end of a body frame that does not pass. Returns the header that has waited, when the body is whole.
    pub fn swallowed(
        &mut self,
        screen: &Screen,
        channel: u16,
    ) -> Result<Option<Vec<u8>>, FrameError> {
        if !matches!(self.stage, Stage::Swallowing { left: 0, .. }) {
            return Ok(None);
        }
        let Stage::Swallowing { large, .. } = std::mem::take(&mut self.stage) else {
            return Ok(None);
        };
        let Some(large) = large else {
            return Ok(None);
        };
        let withheld = Withheld {
            unreadable: large.unreadable,
            body: Body::TooLarge {
                length: large.length,
                sha256: large.digest.finalize().into(),
                beginning: large.beginning,
            },
            held_bytes: large.held_bytes,
        };
        screen.withhold(channel, large.tag, withheld)?;
        Ok(Some(large.header))
    }

    /// The payload of a content header, of which the beginning is rewritten where lapin cannot have it.
    pub fn header(
        &mut self,
        screen: &Screen,
        channel: u16,
        payload: &mut [u8],
    ) -> Result<Header, FrameError> {
        let whole = payload.len();
        if whole < BLANK_BYTES {
            return Err(FrameError::ShortHeader(whole));
        }
        let (class, size) = fixed(payload);
        let read = match class {
            BASIC => walk::properties(&payload[FIXED_BYTES..]),
            other => Err(Refusal::OtherClass(other)),
        };
        let read = read.map(|values| header_weight(whole, values));
        let raw = || Raw::whole(&payload[FIXED_BYTES..]);
        match self.decide(screen, channel, size, read, raw)? {
            Verdict::Pass => Ok(Header::Passes(whole)),
            Verdict::Blank(size) => {
                payload[..BLANK_BYTES].copy_from_slice(&blank(size));
                Ok(Header::Passes(BLANK_BYTES))
            }
            Verdict::Wait { blank: true } => {
                self.wait(frame(channel, &blank(0)));
                Ok(Header::Waits)
            }
            Verdict::Wait { blank: false } => {
                payload[4..FIXED_BYTES].fill(0);
                self.wait(frame(channel, payload));
                Ok(Header::Waits)
            }
        }
    }

    /// A content header that is longer than a frame may be. Returns the frame that takes its place, if it is not to
    /// wait for the body.
    pub fn long_header(
        &mut self,
        screen: &Screen,
        header: LongHeader,
    ) -> Result<Vec<u8>, FrameError> {
        let (class, size) = fixed(&header.fixed);
        let channel = header.channel;
        let why = match class {
            BASIC => Refusal::TooLong {
                bytes: header.length,
                limit: header.limit,
            },
            other => Refusal::OtherClass(other),
        };
        match self.decide(screen, channel, size, Err(why), || header.raw())? {
            Verdict::Blank(size) => Ok(frame(channel, &blank(size))),
            Verdict::Pass | Verdict::Wait { .. } => {
                self.wait(frame(channel, &blank(0)));
                Ok(Vec::new())
            }
        }
    }

    fn wait(&mut self, header: Vec<u8>) {
        if let Stage::Swallowing {
            large: Some(large), ..
        } = &mut self.stage
        {
            large.header = header;
        }
    }

    /// Decides about a content whose header announces `size` bytes of a body; `read` is the weight of its
    /// properties, or why they cannot be read.
    fn decide(
        &mut self,
        screen: &Screen,
        channel: u16,
        size: u64,
        read: Result<u64, Refusal>,
        raw: impl FnOnce() -> Raw,
    ) -> Result<Verdict, FrameError> {
        let (tag, names) = match std::mem::take(&mut self.stage) {
            Stage::Delivery { tag, why } => (tag, why),
            stage => {
                self.stage = match stage {
                    Stage::Other => body(size),
                    // lapin says to the broker that nothing has announced it.
                    Stage::Between => Stage::Between,
                    _ => return Err(FrameError::Unfinished(channel)),
                };
                return Ok(match read {
                    Ok(_) => Verdict::Pass,
                    Err(_) => Verdict::Blank(size),
                });
            }
        };
        let why = names.or(read.err());
        let why = why.or((!screen.trusts()).then_some(Refusal::Unread));
        let weight = if why.is_some() {
            0
        } else {
            read.unwrap_or_default()
        };
        let admission = screen.admit(size, weight, self.spent);
        // Of a message that has to be fetched again nothing is kept.
        let keeps = screen.keeps() && admission != Admission::OverBudget;
        let unreadable = why.filter(|_| keeps).map(|why| {
            let (exchange, routing_key) = self.names.split_at(self.exchange_bytes);
            Unreadable {
                properties: raw(),
                exchange: exchange.to_vec(),
                routing_key: routing_key.to_vec(),
                why,
            }
        });
        match admission {
            Admission::TooLarge(held_bytes) => {
                let large = Large {
                    tag,
                    unreadable,
                    held_bytes,
                    length: size,
                    digest: Sha256::new(),
                    beginning: Vec::new(),
                    header: Vec::new(),
                };
                self.stage = Stage::Swallowing {
                    left: size,
                    large: Some(Box::new(large)),
                };
                Ok(Verdict::Wait {
                    blank: why.is_some(),
                })
            }
            Admission::Pass(held_bytes) => {
                if unreadable.is_some() || weight > 0 {
                    let withheld = Withheld {
                        unreadable,
                        body: Body::Whole,
                        held_bytes,
                    };
                    screen.withhold(channel, tag, withheld)?;
                }
                self.stage = body(size);
                Ok(match why {
                    Some(_) => Verdict::Blank(size),
                    None => Verdict::Pass,
                })
            }
            Admission::OverBudget => {
                self.spent = true;
                let withheld = Withheld {
                    unreadable,
                    body: Body::OverBudget { length: size },
                    held_bytes: 0,
                };
                screen.withhold(channel, tag, withheld)?;
                if size > 0 {
                    self.stage = Stage::Swallowing {
                        left: size,
                        large: None,
                    };
                }
                Ok(Verdict::Blank(0))
            }
        }
    }
}

impl From<Full> for FrameError {
    fn from(_: Full) -> Self {
        Self::TooManyDeliveries
    }
}

/// A content header that is longer than a frame may be, while it comes in.
pub struct LongHeader {
    pub channel: u16,
    /// Of the payload and the end of the frame.
    left: usize,
    limit: usize,
    fixed: [u8; FIXED_BYTES],
    fixed_bytes: usize,
    beginning: Vec<u8>,
    length: u64,
    digest: Sha256,
}

impl LongHeader {
    pub fn new(channel: u16, size: usize, limit: usize) -> Self {
        Self {
            channel,
            left: size + 1,
            limit,
            fixed: [0; FIXED_BYTES],
            fixed_bytes: 0,
            beginning: Vec::new(),
            length: 0,
            digest: Sha256::new(),
        }
    }

    /// Takes what is its own of these bytes, and tells how many those were.
    pub fn read(&mut self, bytes: &[u8]) -> usize {
        let here = bytes.len().min(self.left);
        self.left -= here;
        let payload = &bytes[..here - usize::from(self.left == 0)];
        let more = payload.len().min(FIXED_BYTES - self.fixed_bytes);
        let (fixed, properties) = payload.split_at(more);
        self.fixed[self.fixed_bytes..self.fixed_bytes + more].copy_from_slice(fixed);
        self.fixed_bytes += more;
        self.digest.update(properties);
        self.length += properties.len() as u64;
        let more = properties
            .len()
            .min(LONG_HEADER_KEPT_BYTES - self.beginning.len());
        self.beginning.extend_from_slice(&properties[..more]);
        here
    }

    pub fn is_whole(&self) -> bool {
        self.left == 0
    }

    fn raw(self) -> Raw {
        let cut = (self.beginning.len() as u64) < self.length;
        Raw {
            length: self.length,
            sha256: cut.then(|| self.digest.finalize().into()),
            bytes: self.beginning,
        }
    }
}

fn body(size: u64) -> Stage {
    match size {
        0 => Stage::Between,
        size => Stage::Passing(size),
    }
}

/// The class and the body size at the beginning of a content header.
fn fixed(payload: &[u8]) -> (u16, u64) {
    let class = payload.first_chunk().copied().map(u16::from_be_bytes);
    let size = payload[4..].first_chunk().copied().map(u64::from_be_bytes);
    (class.unwrap_or_default(), size.unwrap_or_default())
}

fn blank(size: u64) -> [u8; BLANK_BYTES] {
    let mut payload = [0; BLANK_BYTES];
    payload[..2].copy_from_slice(&BASIC.to_be_bytes());
    payload[4..FIXED_BYTES].copy_from_slice(&size.to_be_bytes());
    payload
}

/// A content header frame.
fn frame(channel: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEAD_BYTES + payload.len() + 1);
    frame.push(HEADER);
    frame.extend(channel.to_be_bytes());
    frame.extend((payload.len() as u32).to_be_bytes());
    frame.extend_from_slice(payload);
    frame.push(END);
    frame
}
