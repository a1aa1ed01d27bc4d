//! A small key-value table of this consumer, in the message's transaction.
//!
//! A `put` after a `get` of the same key holds only while nobody else has changed the key. If
//! somebody has, the message runs again by itself, so reading, changing and writing back is safe:
//!
//! ```
//! # use hapax_guest::prelude::*;
//! #[hapax_guest::handler]
//! fn handle(_body: &[u8]) -> Result<Outcome, Failure> {
//!     let seen = state::get_json::<u64>("seen")?.unwrap_or(0);
//!     state::put_json("seen", &(seen + 1))?;
//!     Ok(Outcome::Done)
//! }
//!
//! let run = hapax_guest::testing::Message::text("hello").state("seen", "4").run(handle);
//! assert_eq!(run.state["seen"], b"5");
//! ```

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::host;

pub use crate::bindings::hapax::plugin::state::{Entry, Mismatch};

/// The value and its version, with this message's own writes seen. Keys are at most 255 bytes.
pub fn get(key: &str) -> Option<Entry> {
    host::state::get(key)
}

/// Sets the value.
pub fn put(key: &str, value: impl AsRef<[u8]>) {
    host::state::put(key, value.as_ref());
}

/// Sets the value if the key has this version now; `None` means that it must not exist.
pub fn put_if(key: &str, value: impl AsRef<[u8]>, version: Option<u64>) -> Result<(), Mismatch> {
    host::state::put_if(key, value.as_ref(), version)
}

/// Removes the key. Nothing happens when it does not exist.
pub fn delete(key: &str) {
    host::state::delete(key);
}

/// The value, read as JSON.
pub fn get_json<T: DeserializeOwned>(key: &str) -> serde_json::Result<Option<T>> {
    get(key)
        .map(|entry| serde_json::from_slice(&entry.value))
        .transpose()
}

/// Sets the value to the JSON of something.
pub fn put_json<T: Serialize + ?Sized>(key: &str, value: &T) -> serde_json::Result<()> {
    put(key, serde_json::to_vec(value)?);
    Ok(())
}
