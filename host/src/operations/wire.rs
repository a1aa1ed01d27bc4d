//! A message between the command line and the daemon: exact, whatever bytes it is made of.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::message::{Message, Withheld, decode_properties};

use super::OperationError;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wire {
    exchange: String,
    routing_key: String,
    /// Base64 of the AMQP encoding.
    properties: String,
    /// Base64.
    body: String,
}

/// What could not be taken of a message as it came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The kind and the version of what is stored.
    pub encoding: String,
    /// Base64, of an exchange that is no text.
    pub exchange: Option<String>,
    /// Base64, of a routing key that is no text.
    pub routing_key: Option<String>,
    /// Base64: property flags and properties as on the wire. The stored bytes, where the encoding is not known.
    pub properties: Option<String>,
    /// Bytes of the whole body, where only its beginning is stored.
    pub body_bytes: Option<u64>,
    /// Of the whole body: hexadecimal digits.
    pub body_sha256: Option<String>,
}

impl From<&Withheld> for Kept {
    fn from(withheld: &Withheld) -> Self {
        let encode = |bytes: &[u8]| STANDARD.encode(bytes);
        let no_text = |bytes: &[u8]| str::from_utf8(bytes).is_err().then(|| encode(bytes));
        let encoding = withheld.encoding.clone();
        let Some(original) = withheld.original() else {
            return Self {
                encoding,
                exchange: None,
                routing_key: None,
                properties: Some(encode(&withheld.bytes)),
                body_bytes: None,
                body_sha256: None,
            };
        };
        Self {
            encoding,
            exchange: no_text(&original.exchange),
            routing_key: no_text(&original.routing_key),
            properties: original.head.as_deref().map(encode),
            body_bytes: original.cut.as_ref().map(|cut| cut.length),
            body_sha256: original.cut.as_ref().map(|cut| hex::encode(cut.sha256)),
        }
    }
}

impl From<&Message> for Wire {
    fn from(message: &Message) -> Self {
        Self {
            exchange: message.exchange.clone(),
            routing_key: message.routing_key.clone(),
            properties: STANDARD.encode(message.encoded_properties()),
            body: STANDARD.encode(&message.body),
        }
    }
}

impl TryFrom<Wire> for Message {
    type Error = OperationError;

    fn try_from(wire: Wire) -> Result<Self, OperationError> {
        let refused =
            |what: &str| OperationError::Refused(format!("a message's {what} cannot be read"));
        let properties = STANDARD
            .decode(&wire.properties)
            .map_err(|_| refused("properties"))?;
        Ok(Message {
            properties: decode_properties(&properties).map_err(|_| refused("properties"))?,
            body: STANDARD
                .decode(&wire.body)
                .map_err(|_| refused("body"))?
                .into(),
            exchange: wire.exchange,
            routing_key: wire.routing_key,
        })
    }
}
