//! What the calls of a session take and give: keys and their fates, and the rows of the host's tables.

use std::sync::Arc;
use std::time::Duration;

use super::Value;
use crate::message::{Message, Withheld};

/// The number of a consumer in `hapax_consumer`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConsumerId(pub i32);

/// What the ledger and the waiting table know of a consumer.
#[derive(Clone, Debug)]
pub struct ConsumerRow {
    pub id: ConsumerId,
    pub key_rule: String,
    pub fingerprint_rule: String,
    /// Part of every message id, raised when the operator makes the ledger forget.
    pub generation: i32,
    /// Keys of messages that are no younger than this may be forgotten. Microseconds since the Unix epoch.
    pub horizon: Option<i64>,
}

/// A session whose statement the database does not end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StuckSession {
    /// Its name, as its lane has it.
    pub name: String,
    /// The number of the server's process.
    pub process: i32,
    /// When the process began, as the server says it: numbers are used again.
    pub began: String,
}

/// The fate of a key. The numbers are in the table and do not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i16)]
pub enum Fate {
    Committed = 1,
    Waiting = 2,
    Parked = 3,
    Discarded = 4,
    /// A redelivered message began to run alone; its host may have gone down with it.
    Started = 5,
}

impl Fate {
    /// Reads the number in the table.
    pub fn from_number(number: i16) -> Option<Self> {
        [
            Self::Committed,
            Self::Waiting,
            Self::Parked,
            Self::Discarded,
            Self::Started,
        ]
        .into_iter()
        .find(|fate| *fate as i16 == number)
    }
}

/// A key that wants to be new.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    pub key: &'a [u8],
    pub fingerprint: &'a [u8],
    pub attempts: i32,
    /// The row expires at max(database now, this) + retention. Seconds since the Unix epoch.
    pub timestamp_seconds: Option<i64>,
}

/// What all claims of a batch share.
#[derive(Clone, Copy, Debug)]
pub struct ClaimRule<'a> {
    pub consumer: ConsumerId,
    /// The first eight bytes of the component's SHA-256.
    pub plugin: &'a [u8],
    /// `None` remembers forever.
    pub retention: Option<Duration>,
}

/// What the ledger says of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: Vec<u8>,
    pub fate: Fate,
    pub fingerprint: Vec<u8>,
    pub attempts: i32,
}

/// What became of the wish to put a start on record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// It is on record; so many are, since the last attempt that came to an end.
    Recorded(i32),
    /// It is not: others are, and only a first one was wanted.
    Earlier,
    /// It is not: the key has its fate, or the row is gone, not due, or another host's.
    Elsewhere,
}

/// What `finish` found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// How many keys this very transaction has claimed.
    pub claims: u64,
    /// As in [`ConsumerRow`], as it is now.
    pub horizon: Option<i64>,
}

/// Another fate than `committed`, for a key that this transaction has claimed.
#[derive(Clone, Copy, Debug)]
pub struct Settlement<'a> {
    pub key: &'a [u8],
    pub fate: Fate,
    pub attempts: i32,
}

/// A plain `INSERT … VALUES` of one row whose values are all parameters, and many rows for it.
#[derive(Clone, Copy, Debug)]
pub struct RowsInsert<'a> {
    /// The statement for one row.
    pub text: &'a str,
    /// What stands before its `VALUES`.
    pub head: &'a str,
    /// Which parameter each column takes.
    pub order: &'a [u16],
    /// The parameters of each row.
    pub rows: &'a [&'a [Value]],
}

/// A name that has to be a column of at least one of these tables, each with its schema, if it has one, and folded.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamedColumn {
    pub name: String,
    pub tables: Vec<(Option<String>, String)>,
}

/// What a row of `hapax_waiting` is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Its next attempt.
    Retry,
    /// An earlier message of its partition.
    Held,
    /// A person.
    Parked,
}

impl Status {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Held => "held",
            Self::Parked => "parked",
        }
    }

    pub fn from_text(text: &str) -> Option<Self> {
        [Self::Retry, Self::Held, Self::Parked]
            .into_iter()
            .find(|status| status.as_str() == text)
    }
}

/// A failed message, whole.
#[derive(Clone, Debug, PartialEq)]
pub struct WaitingRow {
    /// SHA-256 of consumer and key, or of the content where there is no usable key.
    pub id: Vec<u8>,
    pub key: Option<Vec<u8>>,
    pub fingerprint: Vec<u8>,
    pub partition: i64,
    pub status: Status,
    /// Finished attempts that failed.
    pub attempts: i32,
    pub code: String,
    pub error: String,
    pub stderr: String,
    pub backtrace: String,
    /// The component that ran last, SHA-256 in full; empty when none ran.
    pub plugin: Vec<u8>,
    pub trace_id: String,
    /// The queue that the message came from.
    pub queue: String,
    /// What could be read of it; all of it, unless something was withheld.
    pub message: Message,
    /// What could not be taken as it came. Such a row is never run.
    pub withheld: Option<Withheld>,
}

/// An outgoing message on its way into `hapax_outbox`.
#[derive(Clone, Debug, PartialEq)]
pub struct OutboxRow {
    pub consumer: ConsumerId,
    /// The lane that wrote it: after a COMMIT in doubt, the lane's rows are looked for by it.
    pub lane: i16,
    pub target: String,
    /// Publish without `mandatory`: the target said `unroutable = "drop"`.
    pub may_drop: bool,
    pub ordering_key: Option<String>,
    /// Not before this long after the commit.
    pub delay: Option<Duration>,
    /// The message id is among the properties.
    pub message: Message,
}

/// A row of `hapax_outbox` that a relay has taken.
#[derive(Clone, Debug)]
pub struct OutboxRecord {
    /// Grows in the order of the inserts of one lane.
    pub sequence: i64,
    /// Publishes that failed.
    pub attempts: i32,
    pub row: Arc<OutboxRow>,
}

/// How full the outbox is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OutboxDepth {
    pub rows: u64,
    /// The age of the oldest row that is not delayed, in seconds.
    pub oldest_seconds: f64,
}

/// What a `state` write expects to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    Anything,
    Absent,
    Version(u64),
}

/// A host among the hosts of one store: its outbox rows are its own while it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HostId(pub i32);

/// The lane of rows that [`Session::outbox_take`](super::Session::outbox_take) took: no lane of this host has written them.
pub const TAKEN_LANE: i16 = -1;
