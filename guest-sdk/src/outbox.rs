//! Messages that leave when, and only when, the transaction has committed.
//!
//! ```
//! # use hapax_guest::prelude::*;
//! # use std::time::Duration;
//! # fn example() -> Result<(), Failure> {
//! let message_id = outbox::to("reminders")
//!     .routing_key("reminders.mail")
//!     .header("tenant", "acme")
//!     .ordering_key("user-7")
//!     .delay(Duration::from_secs(3600))
//!     .json(&serde_json::json!({"user": 7}))?;
//! # Ok(()) }
//! ```

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::bindings::hapax::plugin::outbox as wit;
use crate::failure::milliseconds;
use crate::{Decimal, Header, HeaderValue, Timestamp, host};

pub use wit::ErrorKind;

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";

/// Begins a message to a target that the consumer's configuration names. Nothing is sent until
/// [`json`](Draft::json), [`text`](Draft::text) or [`bytes`](Draft::bytes) gives it a body.
pub fn to(target: &str) -> Draft {
    Draft(wit::Message {
        target: target.to_owned(),
        routing_key: None,
        body: Vec::new(),
        content_type: None,
        headers: Vec::new(),
        ordering_key: None,
        delay: None,
    })
}

/// A message without a body yet.
#[derive(Debug)]
#[must_use = "a message is sent by giving it a body: json, text or bytes"]
pub struct Draft(wit::Message);

impl Draft {
    /// In place of the target's routing key.
    pub fn routing_key(mut self, key: impl Into<String>) -> Self {
        self.0.routing_key = Some(key.into());
        self
    }

    /// Adds a header.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<HeaderValue>) -> Self {
        self.0.headers.push(Header {
            name: name.into(),
            value: value.into(),
        });
        self
    }

    /// Messages with the same ordering key leave in the order in which they were committed.
    pub fn ordering_key(mut self, key: impl Into<String>) -> Self {
        self.0.ordering_key = Some(key.into());
        self
    }

    /// Leaves it for so long before it goes.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.0.delay = Some(milliseconds(delay));
        self
    }

    /// In place of the content type that goes with the body.
    pub fn content_type(mut self, content_type: impl Into<String>) -> Self {
        self.0.content_type = Some(content_type.into());
        self
    }

    /// Sends the value as JSON. Returns the message id, which is equal in every attempt.
    pub fn json<T: Serialize + ?Sized>(self, value: &T) -> Result<String, Error> {
        self.send(serde_json::to_vec(value).map_err(Error::Json)?, Some(JSON))
    }

    /// Sends text. Returns the message id.
    pub fn text(self, text: impl Into<String>) -> Result<String, Error> {
        self.send(text.into().into_bytes(), Some(TEXT))
    }

    /// Sends bytes, without a content type unless one is set. Returns the message id.
    pub fn bytes(self, body: impl Into<Vec<u8>>) -> Result<String, Error> {
        self.send(body.into(), None)
    }

    fn send(mut self, body: Vec<u8>, content_type: Option<&str>) -> Result<String, Error> {
        self.0.body = body;
        if self.0.content_type.is_none() {
            self.0.content_type = content_type.map(str::to_owned);
        }
        host::outbox::publish(&self.0).map_err(Error::from)
    }
}

/// Begins the answer to the message, which goes to its `reply-to` with its `correlation-id`. The
/// answer is stored, so that a duplicate can be answered again. A second one replaces the first.
pub fn reply() -> Reply {
    Reply { content_type: None }
}

/// An answer without a body yet.
#[derive(Debug)]
#[must_use = "an answer is sent by giving it a body: json, text or bytes"]
pub struct Reply {
    content_type: Option<String>,
}

impl Reply {
    /// In place of the content type that goes with the body.
    pub fn content_type(mut self, content_type: impl Into<String>) -> Self {
        self.content_type = Some(content_type.into());
        self
    }

    /// Answers with the value as JSON.
    pub fn json<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Error> {
        self.send(&serde_json::to_vec(value).map_err(Error::Json)?, Some(JSON))
    }

    /// Answers with text.
    pub fn text(self, text: &str) -> Result<(), Error> {
        self.send(text.as_bytes(), Some(TEXT))
    }

    /// Answers with bytes, without a content type unless one is set.
    pub fn bytes(self, body: &[u8]) -> Result<(), Error> {
        self.send(body, None)
    }

    fn send(self, body: &[u8], content_type: Option<&str>) -> Result<(), Error> {
        let content_type = self.content_type.as_deref().or(content_type);
        host::outbox::reply(body, content_type).map_err(Error::from)
    }
}

/// A message was not taken.
#[derive(Debug)]
pub enum Error {
    /// The host refused it.
    Refused {
        /// Why, for the program.
        kind: ErrorKind,
        /// Why, for people.
        message: String,
    },
    /// The value has no JSON form.
    Json(serde_json::Error),
}

impl From<wit::Error> for Error {
    fn from(error: wit::Error) -> Self {
        Self::Refused {
            kind: error.kind,
            message: error.message,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { message, .. } => f.write_str(message),
            Self::Json(_) => f.write_str("the body has no JSON form"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Refused { .. } => None,
            Self::Json(error) => Some(error),
        }
    }
}

macro_rules! header_value {
    ($($from:ty => |$value:ident| $to:expr;)+) => {$(
        impl From<$from> for HeaderValue {
            fn from($value: $from) -> Self {
                $to
            }
        }
    )+};
}

header_value! {
    bool => |value| Self::Bool(value);
    i64 => |value| Self::S64(value);
    i32 => |value| Self::S64(value.into());
    u32 => |value| Self::S64(value.into());
    f64 => |value| Self::F64(value);
    &str => |value| Self::Text(value.to_owned());
    String => |value| Self::Text(value);
    &[u8] => |value| Self::Bytes(value.to_owned());
    Vec<u8> => |value| Self::Bytes(value);
    Decimal => |value| Self::Decimal(value.0);
    Timestamp => |value| Self::Timestamp(value.0);
    serde_json::Value => |value| Self::Json(value.to_string());
}
