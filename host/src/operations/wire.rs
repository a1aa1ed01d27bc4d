//! A message between the command line and the daemon: exact, whatever bytes it is made of.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::message::{Message, decode_properties};

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
