//! From a message to its idempotency key, its partition and the fingerprint of its payload. Pure.
//!
//! Nothing is guessed: a message whose key cannot be read exactly is a failure with a code, and is parked
//! by whoever asked. Keys are bytes and are compared as bytes; JSON numbers keep the text they came in.

use lapin::types::AMQPValue;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::config::{Fingerprint, KeySource, Pointer};
use crate::failure::{Failure, code};
use crate::message::Message;

/// Longer keys are refused: every store indexes this length in full.
pub const MAX_KEY_BYTES: usize = 512;

/// The length of a fingerprint: SHA-256, cut.
pub const FINGERPRINT_BYTES: usize = 16;

/// Who a message is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Empty for consumers with `idempotency = "off"` and no key.
    pub key: Vec<u8>,
    /// Messages of one partition stay in order. Stable over hosts and versions.
    pub partition: i64,
    pub fingerprint: [u8; FINGERPRINT_BYTES],
}

/// A key as people read it: text where it is text, else hex. At most 80 characters.
pub fn show(key: &[u8]) -> String {
    match std::str::from_utf8(key) {
        Ok(text) if !text.chars().any(char::is_control) && text.chars().count() <= 80 => {
            format!("`{text}`")
        }
        _ if key.len() <= 32 => format!("0x{}", hex::encode(key)),
        _ => format!("0x{}… ({} bytes)", hex::encode(&key[..32]), key.len()),
    }
}

/// How one consumer reads its messages.
#[derive(Clone, Debug)]
pub struct KeyRules {
    pub key: Vec<KeySource>,
    pub partition: Vec<KeySource>,
    pub fingerprint: Fingerprint,
    pub max_message_bytes: u64,
}

impl KeyRules {
    /// Reads a message. The failure is one that no later attempt can overcome.
    pub fn identify(&self, message: &Message) -> Result<Identity, Failure> {
        if message.body.len() as u64 > self.max_message_bytes {
            return Err(Failure::never(
                code::MESSAGE_TOO_LARGE,
                format!(
                    "the body has {} bytes; max-message-bytes is {}",
                    message.body.len(),
                    self.max_message_bytes
                ),
            ));
        }
        let body = Body::new(message);
        let key = if self.key.is_empty() {
            Vec::new()
        } else {
            join(&self.key, message, &body)?
        };
        if key.len() > MAX_KEY_BYTES {
            return Err(Failure::never(
                code::KEY_INVALID,
                format!(
                    "the key has {} bytes; at most {MAX_KEY_BYTES} are allowed",
                    key.len()
                ),
            ));
        }
        // A message without a partition is its own partition: it waits for nobody.
        let partition = match join(&self.partition, message, &body) {
            Ok(partition) if !partition.is_empty() => partition_number(&partition),
            _ => partition_number(&key),
        };
        Ok(Identity {
            partition,
            fingerprint: fingerprint(&self.fingerprint, message, &body),
            key,
        })
    }
}

/// The body, parsed at most once and only when a rule looks into it.
struct Body<'a> {
    bytes: &'a [u8],
    json: std::cell::OnceCell<Option<Value>>,
}

impl<'a> Body<'a> {
    fn new(message: &'a Message) -> Self {
        Self {
            bytes: &message.body,
            json: std::cell::OnceCell::new(),
        }
    }

    fn json(&self) -> Option<&Value> {
        self.json
            .get_or_init(|| serde_json::from_slice(self.bytes).ok())
            .as_ref()
    }
}

/// One source is taken as it is; several are joined with their lengths, so that `ab` + `c` is not `a` + `bc`.
fn join(sources: &[KeySource], message: &Message, body: &Body<'_>) -> Result<Vec<u8>, Failure> {
    if let [source] = sources {
        return read(source, message, body);
    }
    let parts = sources.iter().map(|source| {
        let part = read(source, message, body)?;
        match u32::try_from(part.len()) {
            Ok(_) => Ok(part),
            Err(_) => Err(invalid(source, "is far too long")),
        }
    });
    Ok(join_parts(parts.collect::<Result<_, _>>()?))
}

/// The key that parts make: one is taken as it is, several are joined with their lengths. No part is longer
/// than 4 GiB.
pub fn join_parts(mut parts: Vec<Vec<u8>>) -> Vec<u8> {
    if parts.len() == 1 {
        return parts.swap_remove(0);
    }
    let mut joined = Vec::new();
    for part in parts {
        joined.extend_from_slice(&(part.len() as u32).to_be_bytes());
        joined.extend_from_slice(&part);
    }
    joined
}

fn read(source: &KeySource, message: &Message, body: &Body<'_>) -> Result<Vec<u8>, Failure> {
    let value = match source {
        KeySource::MessageId => message.property("message-id").map(String::into_bytes),
        KeySource::Property(property) => message.property(property.name()).map(String::into_bytes),
        KeySource::RoutingKey => Some(message.routing_key.clone().into_bytes()),
        KeySource::Header(name) => match message
            .headers()
            .and_then(|all| all.inner().get(name.as_str()))
        {
            Some(value) => header_bytes(source, value)?,
            None => None,
        },
        KeySource::Body(pointer) => {
            let json = body
                .json()
                .ok_or_else(|| invalid(source, "cannot be read: the body is not JSON"))?;
            match json.pointer(pointer.as_str()) {
                Some(value) => json_key(value).map_err(|what| invalid(source, what))?,
                None => None,
            }
        }
    };
    match value {
        Some(value) if !value.is_empty() => Ok(value),
        Some(_) => Err(Failure::never(
            code::KEY_MISSING,
            format!("{source} is empty"),
        )),
        None => Err(Failure::never(
            code::KEY_MISSING,
            format!("{source} is not in the message"),
        )),
    }
}

fn invalid(source: &KeySource, what: &str) -> Failure {
    Failure::never(code::KEY_INVALID, format!("{source} {what}"))
}

/// A JSON scalar as it stands in the body; strings without their quotes, nothing for null. The error says
/// what it is instead.
pub fn json_key(value: &Value) -> Result<Option<Vec<u8>>, &'static str> {
    match value {
        Value::Null => Ok(None),
        Value::Bool(flag) => Ok(Some(flag.to_string().into_bytes())),
        Value::Number(number) => Ok(Some(number.to_string().into_bytes())),
        Value::String(text) => Ok(Some(text.clone().into_bytes())),
        Value::Array(_) => Err("is an array, and a key is a single value"),
        Value::Object(_) => Err("is an object, and a key is a single value"),
    }
}

fn header_bytes(source: &KeySource, value: &AMQPValue) -> Result<Option<Vec<u8>>, Failure> {
    Ok(Some(match value {
        AMQPValue::Void => return Ok(None),
        AMQPValue::LongString(text) => text.as_bytes().to_vec(),
        AMQPValue::ShortString(text) => text.as_str().as_bytes().to_vec(),
        AMQPValue::ByteArray(bytes) => bytes.as_slice().to_vec(),
        AMQPValue::Boolean(flag) => flag.to_string().into_bytes(),
        AMQPValue::ShortShortInt(number) => number.to_string().into_bytes(),
        AMQPValue::ShortShortUInt(number) => number.to_string().into_bytes(),
        AMQPValue::ShortInt(number) => number.to_string().into_bytes(),
        AMQPValue::ShortUInt(number) => number.to_string().into_bytes(),
        AMQPValue::LongInt(number) => number.to_string().into_bytes(),
        AMQPValue::LongUInt(number) => number.to_string().into_bytes(),
        AMQPValue::LongLongInt(number) => number.to_string().into_bytes(),
        AMQPValue::Timestamp(seconds) => seconds.to_string().into_bytes(),
        AMQPValue::Float(_) | AMQPValue::Double(_) | AMQPValue::DecimalValue(_) => {
            return Err(invalid(
                source,
                "is a fraction, which has no one text; send it as a string",
            ));
        }
        AMQPValue::FieldArray(_) => {
            return Err(invalid(source, "is an array, and a key is a single value"));
        }
        AMQPValue::FieldTable(_) => {
            return Err(invalid(source, "is a table, and a key is a single value"));
        }
    }))
}

fn partition_number(bytes: &[u8]) -> i64 {
    let digest = Sha256::digest(bytes);
    i64::from_be_bytes(*digest.first_chunk().expect("SHA-256 has 32 bytes"))
}

fn fingerprint(rule: &Fingerprint, message: &Message, body: &Body<'_>) -> [u8; FINGERPRINT_BYTES] {
    let mut hash = Hasher(Sha256::new());
    match (rule, body.json()) {
        (Fingerprint::None, _) => {}
        (_, None) => hash.tagged(b"bytes", &message.body),
        (Fingerprint::Body, Some(json)) => hash.json(json),
        (Fingerprint::Pointers(pointers), Some(json)) => {
            for pointer in pointers {
                hash.json(json.pointer(pointer.as_str()).unwrap_or(&Value::Null));
            }
        }
        (Fingerprint::Except(pointers), Some(json)) => hash.json(&without(json, pointers)),
    }
    *hash
        .0
        .finalize()
        .first_chunk()
        .expect("SHA-256 has 32 bytes")
}

struct Hasher(Sha256);

impl Hasher {
    fn tagged(&mut self, tag: &[u8], bytes: &[u8]) {
        self.0.update(tag);
        self.0.update((bytes.len() as u64).to_be_bytes());
        self.0.update(bytes);
    }

    /// Canonical: members sorted by name, no white space, numbers as they were written.
    fn json(&mut self, value: &Value) {
        let text = serde_json::to_vec(value).expect("a parsed value can be written");
        self.tagged(b"json", &text);
    }
}

fn without(json: &Value, pointers: &[Pointer]) -> Value {
    let mut rest = json.clone();
    for pointer in pointers {
        let Some((last, parents)) = pointer.tokens().split_last() else {
            return Value::Null;
        };
        let parent = parents
            .iter()
            .try_fold(&mut rest, |value, token| match value {
                Value::Object(members) => members.get_mut(token),
                Value::Array(items) => token
                    .parse::<usize>()
                    .ok()
                    .and_then(|index| items.get_mut(index)),
                _ => None,
            });
        match parent {
            Some(Value::Object(members)) => {
                members.remove(last);
            }
            Some(Value::Array(items)) => {
                if let Some(item) = last
                    .parse::<usize>()
                    .ok()
                    .and_then(|index| items.get_mut(index))
                {
                    *item = Value::Null;
                }
            }
            _ => {}
        }
    }
    rest
}

#[cfg(test)]
mod tests;
