//! The message, and what a handler can take from it as parameters.

use std::ops::{Deref, DerefMut};
use std::str;

use serde::{Deserialize, Serialize};

use crate::{Failure, HeaderValue};

/// One message as it was first delivered: exchange, routing key, properties, headers, body.
pub use crate::bindings::hapax::plugin::types::Envelope as Message;

impl Message {
    /// The first header of this name. Names are compared with their case.
    pub fn header(&self, name: &str) -> Option<&HeaderValue> {
        let header = self.headers.iter().find(|header| header.name == name)?;
        Some(&header.value)
    }

    /// The text of a header. `None` when it is missing or is not text.
    pub fn header_text(&self, name: &str) -> Option<&str> {
        match self.header(name)? {
            HeaderValue::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// What can be a parameter of a handler.
///
/// A message that does not fit is rejected: another attempt would see the same bytes.
///
/// | parameter | gets |
/// |---|---|
/// | [`Json<T>`] | the body, read as JSON; `T` may borrow from it |
/// | [`Message`], `&Message` | everything |
/// | `Vec<u8>`, `&[u8]` | the body |
/// | `String`, `&str` | the body, which must be UTF-8 |
///
/// ```
/// # use hapax_guest::prelude::*;
/// #[derive(serde::Deserialize)]
/// struct Order<'m> { id: &'m str }
///
/// #[hapax_guest::handler]
/// fn handle(order: Json<Order<'_>>, message: &Message) -> Result<Outcome, Failure> {
///     let tenant = message.header_text("tenant").ok_or_else(|| Failure::reject("no tenant"))?;
///     sql::defer("INSERT INTO orders (tenant, id) VALUES ($1, $2)", params![tenant, order.id]);
///     Ok(Outcome::Done)
/// }
/// # fn main() {}
/// ```
#[diagnostic::on_unimplemented(
    message = "a handler cannot take `{Self}`",
    label = "not something that can be read from a message",
    note = "a handler takes `Json<T>` (T: Deserialize), `Message`, `&Message`, `String`, `&str`, `Vec<u8>` or `&[u8]`"
)]
pub trait FromMessage<'m>: Sized {
    /// Reads the parameter from the message.
    fn from_message(message: &'m Message) -> Result<Self, Failure>;
}

/// A body read as JSON. It gives access to `T` as if it were one.
#[derive(Clone, Debug, PartialEq)]
pub struct Json<T>(pub T);

impl<'m, T: Deserialize<'m>> FromMessage<'m> for Json<T> {
    fn from_message(message: &'m Message) -> Result<Self, Failure> {
        match serde_json::from_slice(&message.body) {
            Ok(value) => Ok(Self(value)),
            Err(error) => Err(unfit(&error.to_string())),
        }
    }
}

/// Apart from the generic code, so that it is there once.
fn unfit(error: &str) -> Failure {
    Failure::Reject(["the body is not the JSON this handler reads: ", error].concat())
}

impl<T> Deref for Json<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for Json<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T: Serialize> Serialize for Json<T> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'m> FromMessage<'m> for &'m Message {
    fn from_message(message: &'m Message) -> Result<Self, Failure> {
        Ok(message)
    }
}

impl FromMessage<'_> for Message {
    fn from_message(message: &Message) -> Result<Self, Failure> {
        Ok(message.clone())
    }
}

impl<'m> FromMessage<'m> for &'m [u8] {
    fn from_message(message: &'m Message) -> Result<Self, Failure> {
        Ok(&message.body)
    }
}

impl FromMessage<'_> for Vec<u8> {
    fn from_message(message: &Message) -> Result<Self, Failure> {
        Ok(message.body.clone())
    }
}

impl<'m> FromMessage<'m> for &'m str {
    fn from_message(message: &'m Message) -> Result<Self, Failure> {
        str::from_utf8(&message.body).map_err(|_| Failure::reject("the body is not UTF-8 text"))
    }
}

impl FromMessage<'_> for String {
    fn from_message(message: &Message) -> Result<Self, Failure> {
        <&str>::from_message(message).map(str::to_owned)
    }
}
