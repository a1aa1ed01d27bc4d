//! What the host knows about this run.

use crate::bindings::hapax::plugin::context as wit;
use crate::host;
use crate::{Timestamp, Uuid};

pub use wit::{SqlDialect as Dialect, TraceContext};

/// The consumer's name in the configuration.
pub fn consumer() -> String {
    host::context::consumer()
}

/// The idempotency key. Keys are bytes; most are UTF-8 text.
pub fn key() -> Vec<u8> {
    host::context::key()
}

/// 1 for the first attempt. Attempts that failed through no fault of the message do not count.
pub fn attempt() -> u32 {
    host::context::attempt()
}

/// The broker says that it may have delivered this message before.
pub fn redelivered() -> bool {
    host::context::redelivered()
}

/// The time at which this attempt began. It does not move while the handler runs, and
/// `SystemTime::now()` shows the same.
pub fn now() -> Timestamp {
    Timestamp(host::context::now())
}

/// A new identifier. The n-th call returns the same one in every attempt of this message, and
/// nobody outside can guess it.
pub fn new_id() -> Uuid {
    Uuid(host::context::new_id())
}

/// A value of the consumer's `config` table, if it is set.
///
/// ```
/// # use hapax_guest::prelude::*;
/// # fn rate() -> Result<i64, Failure> {
/// let rate: i64 = context::config("rate").as_deref().unwrap_or("10").parse()?;
/// # Ok(rate) }
/// ```
pub fn config(name: &str) -> Option<String> {
    host::context::config(name)
}

/// The dialect that [`sql`](crate::sql) speaks here.
pub fn dialect() -> Dialect {
    host::context::dialect()
}

/// The W3C trace the message belongs to, from its `traceparent` header.
pub fn trace() -> Option<TraceContext> {
    host::context::trace()
}
