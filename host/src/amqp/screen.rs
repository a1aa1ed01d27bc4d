//! What a connection lets through to lapin, and what it withheld.
//!
//! One [`Screen`] is shared by the stream of a connection, which lapin's own thread drives, and by the source that
//! consumes from it. The stream writes down what it withheld of a delivery before lapin can hear of that delivery;
//! the source takes it with [`Screen::take`] before it believes what lapin gave it. An entry stays until it is taken
//! or its channel's number is opened anew: never shorter, because lapin still hands out deliveries of a channel
//! that has closed, and what was put in their place must not be taken for the message.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use lapin::types::{AMQPValue, FieldTable};
use sha2::{Digest, Sha256};

use super::walk::Refusal;

/// Bytes of a body over `max_body_bytes` that are kept.
pub const BEGINNING_BYTES: usize = 64 * 1024;

/// Bytes that all entries of a screen may hold together. Above that they keep lengths and digests.
const MAX_ENTRY_BYTES: usize = 16 * 1024 * 1024;

/// Entries of a screen: as many as a channel's prefetch can ask for.
const MAX_ENTRIES: usize = 65_536;

/// Headers that count for nothing: what stands in them is small beside what any message costs.
const LIGHT_BYTES: u64 = 16 * 1024;

/// The memory that lapin needs for a value of the headers, without its text: about, and rather more.
const VALUE_BYTES: u64 = 96;

/// What deliveries may cost.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// A longer body is not kept.
    pub max_body_bytes: u64,
    /// Bytes of deliveries that the source holds. One message alone may have more.
    pub held_bytes: u64,
}

/// What is known of a message that lapin did not get as it was sent.
#[derive(Debug)]
pub struct Withheld {
    /// Set where lapin got empty properties in place of those that came.
    pub unreadable: Option<Unreadable>,
    pub body: Body,
    /// What counts as held for this delivery, to be given to [`Screen::release`]. For a delivery that nothing was
    /// withheld from it is the length of its body.
    pub held_bytes: u64,
}

/// The parts of a message that cannot be read, as they came.
#[derive(Debug)]
pub struct Unreadable {
    /// The property flags and the properties.
    pub properties: Raw,
    pub exchange: Vec<u8>,
    pub routing_key: Vec<u8>,
    pub why: Refusal,
}

/// Bytes from the wire. Their beginning, where the whole was too much.
#[derive(Debug, PartialEq, Eq)]
pub struct Raw {
    pub bytes: Vec<u8>,
    /// Of the whole.
    pub length: u64,
    /// Of the whole, where `bytes` is not all of it.
    pub sha256: Option<[u8; 32]>,
}

/// What became of a body.
#[derive(Debug, PartialEq, Eq)]
pub enum Body {
    /// lapin got it.
    Whole,
    /// Over `max_body_bytes`: lapin got an empty one.
    TooLarge {
        length: u64,
        sha256: [u8; 32],
        beginning: Vec<u8>,
    },
    /// More than may be held at once, or behind one that was. lapin got neither body nor properties: the message has
    /// to be fetched again.
    OverBudget { length: u64 },
}

/// What the broker says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// `RabbitMQ`, for one.
    pub product: String,
    /// As the broker writes it, like `3.10.8`.
    pub version: String,
}

/// What is to become of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It passes, and this much counts as held.
    Pass(u64),
    /// It does not pass; its headers do, and this much counts as held.
    TooLarge(u64),
    OverBudget,
}

/// The table that a stream and a source share.
#[derive(Debug)]
pub struct Screen {
    /// None where nobody takes what was withheld.
    bounds: Option<Bounds>,
    /// Nothing of a delivery but its body passes.
    distrustful: bool,
    held: AtomicU64,
    /// The number of entries, so that nobody waits for the table when it is empty.
    entries: AtomicUsize,
    table: Mutex<Table>,
    server: Mutex<Option<Server>>,
}

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<(u16, u64), Withheld>,
    bytes: usize,
}

/// The broker delivers more than any prefetch allows.
#[derive(Debug)]
pub(super) struct Full;

impl Screen {
    pub fn new(bounds: Bounds) -> Self {
        Self::with(Some(bounds))
    }

    /// For a connection after others that lapin has given up over what it could not read, although the walk could: no
    /// properties pass.
    pub fn distrusting(self, distrustful: bool) -> Self {
        Self {
            distrustful,
            ..self
        }
    }

    /// For a connection whose deliveries nobody counts: bodies pass whatever their size, and nothing is kept of
    /// what cannot be read.
    pub fn open() -> Self {
        Self::with(None)
    }

    fn with(bounds: Option<Bounds>) -> Self {
        Self {
            bounds,
            distrustful: false,
            held: AtomicU64::new(0),
            entries: AtomicUsize::new(0),
            table: Mutex::default(),
            server: Mutex::default(),
        }
    }

    /// Takes what was withheld from the delivery `tag` of `channel`; none for a delivery that lapin got whole.
    pub fn take(&self, channel: u16, tag: u64) -> Option<Withheld> {
        if self.entries.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut table = self.table();
        let withheld = table.entries.remove(&(channel, tag))?;
        table.bytes -= withheld.kept_bytes();
        self.entries.store(table.entries.len(), Ordering::Release);
        Some(withheld)
    }

    /// Counts bytes of a delivery as given back: its message was dropped.
    pub fn release(&self, bytes: u64) {
        let less = |held: u64| Some(held.saturating_sub(bytes));
        // It never fails: there is always a new value.
        let _ = self
            .held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// Bytes of deliveries that were let through and are not released.
    pub fn held_bytes(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// What the broker said of itself when the connection began.
    pub fn server(&self) -> Option<Server> {
        lock(&self.server).clone()
    }

    /// The broker's version in numbers, where it has told one: `3.10.8` is `(3, 10, 8)`.
    pub fn server_version(&self) -> Option<(u64, u64, u64)> {
        self.server().and_then(|server| server.numbers())
    }

    /// Writes down the server properties of a connection.start.
    pub(super) fn introduce(&self, properties: &FieldTable) {
        let text = |name: &str| match properties.inner().get(name) {
            Some(AMQPValue::LongString(text)) => text.to_string(),
            _ => String::new(),
        };
        *lock(&self.server) = Some(Server {
            product: text("product"),
            version: text("version"),
        });
    }

    /// Decides about a body of this length beside headers of this weight. What passes counts as held.
    pub(super) fn admit(&self, length: u64, weight: u64, spent: bool) -> Admission {
        let Some(bounds) = self.bounds else {
            return Admission::Pass(0);
        };
        if spent {
            return Admission::OverBudget;
        }
        let too_large = length > bounds.max_body_bytes;
        let more = if too_large {
            weight
        } else {
            length.saturating_add(weight)
        };
        let held = self.held.load(Ordering::Relaxed);
        if held > 0 && held.saturating_add(more) > bounds.held_bytes {
            return Admission::OverBudget;
        }
        self.held.fetch_add(more, Ordering::Relaxed);
        if too_large {
            Admission::TooLarge(more)
        } else {
            Admission::Pass(more)
        }
    }

    /// Whether the properties of a delivery may pass if they can be read.
    pub(super) fn trusts(&self) -> bool {
        !self.distrustful
    }

    /// Whether anybody takes what is withheld.
    pub(super) fn keeps(&self) -> bool {
        self.bounds.is_some()
    }

    /// Writes down what lapin does not get. Must happen before lapin hears of the delivery.
    pub(super) fn withhold(
        &self,
        channel: u16,
        tag: u64,
        mut withheld: Withheld,
    ) -> Result<(), Full> {
        if !self.keeps() {
            return Ok(());
        }
        let mut table = self.table();
        if table.entries.len() >= MAX_ENTRIES {
            return Err(Full);
        }
        withheld.cut(MAX_ENTRY_BYTES.saturating_sub(table.bytes));
        table.bytes += withheld.kept_bytes();
        if let Some(old) = table.entries.insert((channel, tag), withheld) {
            table.bytes -= old.kept_bytes();
        }
        self.entries.store(table.entries.len(), Ordering::Release);
        Ok(())
    }

    /// Forgets what an earlier channel of this number left.
    pub(super) fn opened(&self, channel: u16) {
        if self.entries.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut table = self.table();
        table.entries.retain(|(of, _), _| *of != channel);
        table.bytes = table.entries.values().map(Withheld::kept_bytes).sum();
        self.entries.store(table.entries.len(), Ordering::Release);
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }
}

/// Nothing panics while it holds one of these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    /// The version in numbers; what a version leaves out is zero.
    pub fn numbers(&self) -> Option<(u64, u64, u64)> {
        let mut parts = self.version.split(['.', '-', '+', '~']);
        let first = parts.next()?.parse().ok()?;
        let mut next = || parts.next().and_then(|part| part.parse().ok()).unwrap_or(0);
        Some((first, next(), next()))
    }
}

impl Withheld {
    fn kept_bytes(&self) -> usize {
        let unreadable = self.unreadable.as_ref().map_or(0, |unreadable| {
            unreadable.properties.bytes.len()
                + unreadable.exchange.len()
                + unreadable.routing_key.len()
        });
        let beginning = match &self.body {
            Body::TooLarge { beginning, .. } => beginning.len(),
            Body::Whole | Body::OverBudget { .. } => 0,
        };
        unreadable + beginning
    }

    /// Keeps no more than `room` bytes. The names of a message are short and stay; should there be no room for
    /// them either, the bound is passed by 510 bytes an entry.
    fn cut(&mut self, room: usize) {
        let mut room = room.saturating_sub(self.unreadable.as_ref().map_or(0, |unreadable| {
            unreadable.exchange.len() + unreadable.routing_key.len()
        }));
        if let Some(unreadable) = &mut self.unreadable {
            unreadable.properties.cut(room);
            room -= unreadable.properties.bytes.len();
        }
        if let Body::TooLarge { beginning, .. } = &mut self.body {
            beginning.truncate(room);
            beginning.shrink_to_fit();
        }
    }
}

impl Raw {
    pub(super) fn whole(bytes: &[u8]) -> Self {
        Self {
            bytes: bytes.to_vec(),
            length: bytes.len() as u64,
            sha256: None,
        }
    }

    /// Keeps the beginning, and the digest of the whole.
    fn cut(&mut self, room: usize) {
        if self.bytes.len() <= room {
            return;
        }
        if self.sha256.is_none() {
            self.sha256 = Some(Sha256::digest(&self.bytes).into());
        }
        self.bytes.truncate(room);
        self.bytes.shrink_to_fit();
    }
}

/// What headers count for beside the body: nothing, unless they are so many or so long that a prefetch of them
/// would be a burden of its own.
pub(super) fn header_weight(header_bytes: usize, values: usize) -> u64 {
    let weight = (header_bytes as u64).saturating_add(values as u64 * VALUE_BYTES);
    if weight > LIGHT_BYTES { weight } else { 0 }
}

#[cfg(test)]
mod tests;
