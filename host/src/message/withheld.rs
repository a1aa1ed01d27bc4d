//! What is kept of a message that could not be taken as it came: its bytes, and how they are encoded.
//!
//! Such a message is parked and never run. What was stored carries a tag, the kind and the version of its encoding,
//! so that a host that does not know the tag shows the bytes and leaves the row alone.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// The encoding of a message that is stored whole: AMQP 0-9-1 properties in their wire encoding, and the body.
pub const WHOLE: &str = "amqp/1";

/// The encoding of [`Original`].
const ORIGINAL: &str = "amqp-withheld/1";

/// What is stored in place of, or beside, what could be read of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Withheld {
    /// The kind and the version of the encoding of `bytes`.
    pub encoding: String,
    pub bytes: Vec<u8>,
}

/// An AMQP message as the broker delivered it, as far as it was kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Original {
    pub exchange: Vec<u8>,
    pub routing_key: Vec<u8>,
    /// Property flags and properties as on the wire, where they could not be read.
    pub head: Option<Vec<u8>>,
    /// What the body was, where only its beginning was kept.
    pub cut: Option<Cut>,
}

/// A body of which the beginning is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Bytes of the whole body.
    pub length: u64,
    /// Of the whole body.
    pub sha256: [u8; 32],
}

/// [`Original`] as JSON: bytes in base64, the digest in hexadecimal digits.
#[derive(Serialize, Deserialize)]
struct Written {
    exchange: String,
    routing_key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    head: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    body_length: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    body_sha256: Option<String>,
}

impl Withheld {
    /// The original, or `None` where the encoding is one that this version does not know.
    pub fn original(&self) -> Option<Original> {
        if self.encoding != ORIGINAL {
            return None;
        }
        let written: Written = serde_json::from_slice(&self.bytes).ok()?;
        let cut = match (written.body_length, written.body_sha256) {
            (Some(length), Some(digits)) => {
                let mut sha256 = [0; 32];
                hex::decode_to_slice(digits, &mut sha256).ok()?;
                Some(Cut { length, sha256 })
            }
            _ => None,
        };
        Some(Original {
            exchange: STANDARD.decode(written.exchange).ok()?,
            routing_key: STANDARD.decode(written.routing_key).ok()?,
            head: written
                .head
                .map(|head| STANDARD.decode(head))
                .transpose()
                .ok()?,
            cut,
        })
    }
}

impl From<&Original> for Withheld {
    fn from(original: &Original) -> Self {
        let written = Written {
            exchange: STANDARD.encode(&original.exchange),
            routing_key: STANDARD.encode(&original.routing_key),
            head: original.head.as_ref().map(|head| STANDARD.encode(head)),
            body_length: original.cut.as_ref().map(|cut| cut.length),
            body_sha256: original.cut.as_ref().map(|cut| hex::encode(cut.sha256)),
        };
        Self {
            encoding: ORIGINAL.to_owned(),
            bytes: serde_json::to_vec(&written).expect("text and numbers can be written"),
        }
    }
}

/// What tells properties as on the wire apart, without headers of these names, which a broker adds on a message's way
/// back. Properties whose headers cannot be walked to their end are told apart by all of their bytes.
pub fn without_headers(head: &[u8], names: &[&str]) -> Vec<u8> {
    walk(head, names).unwrap_or_else(|| head.to_vec())
}

/// AMQP 0-9-1, section 4.2.6.1. `None` where there are no headers, or none that can be walked.
fn walk(head: &[u8], names: &[&str]) -> Option<Vec<u8>> {
    const CONTENT_TYPE: u16 = 1 << 15;
    const CONTENT_ENCODING: u16 = 1 << 14;
    const HEADERS: u16 = 1 << 13;
    let mut rest = head;
    let flags = u16::from_be_bytes(*take(&mut rest, 2)?.first_chunk()?);
    let before = rest;
    for text in [CONTENT_TYPE, CONTENT_ENCODING] {
        if flags & text != 0 {
            short_string(&mut rest)?;
        }
    }
    if flags & HEADERS == 0 {
        return None;
    }
    let before = &before[..before.len() - rest.len()];
    let mut entries = long_bytes(&mut rest)?;
    let mut kept = Vec::with_capacity(entries.len());
    while !entries.is_empty() {
        let entry = entries;
        let name = short_string(&mut entries)?;
        skip_value(&mut entries)?;
        if !names.iter().any(|known| known.as_bytes() == name) {
            kept.extend_from_slice(&entry[..entry.len() - entries.len()]);
        }
    }
    // A message that came without headers is the same one when the broker's were its only ones.
    let flags = if kept.is_empty() {
        flags & !HEADERS
    } else {
        flags
    };
    Some([&flags.to_be_bytes(), before, &kept, rest].concat())
}

fn skip_value(rest: &mut &[u8]) -> Option<()> {
    let kind = *take(rest, 1)?.first()?;
    match kind {
        b'V' => {}
        b't' | b'b' | b'B' => drop(take(rest, 1)?),
        b'U' | b'u' => drop(take(rest, 2)?),
        b'I' | b'i' | b'f' => drop(take(rest, 4)?),
        b'D' => drop(take(rest, 5)?),
        b'L' | b'l' | b'd' | b'T' => drop(take(rest, 8)?),
        b's' => drop(short_string(rest)?),
        b'S' | b'x' | b'A' | b'F' => drop(long_bytes(rest)?),
        _ => return None,
    }
    Some(())
}

fn short_string<'h>(rest: &mut &'h [u8]) -> Option<&'h [u8]> {
    let length = *take(rest, 1)?.first()?;
    take(rest, length.into())
}

fn long_bytes<'h>(rest: &mut &'h [u8]) -> Option<&'h [u8]> {
    let length = u32::from_be_bytes(*take(rest, 4)?.first_chunk()?);
    take(rest, usize::try_from(length).ok()?)
}

fn take<'h>(rest: &mut &'h [u8], bytes: usize) -> Option<&'h [u8]> {
    let (taken, behind) = rest.split_at_checked(bytes)?;
    *rest = behind;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_original_comes_back_as_it_was() {
        let originals = [
            Original::default(),
            Original {
                exchange: vec![0xff, 0],
                routing_key: b"orders".to_vec(),
                head: Some(vec![0x00, 0x80, 1, 0xc4]),
                cut: Some(Cut {
                    length: 1 << 40,
                    sha256: [7; 32],
                }),
            },
        ];
        for original in originals {
            assert_eq!(Withheld::from(&original).original(), Some(original));
        }
    }

    /// Flags, and a table of headers with a priority behind it.
    fn head(headers: &[&[u8]]) -> Vec<u8> {
        let headers = headers.concat();
        let mut head = vec![0xa8, 0x00];
        head.extend_from_slice(b"\x04text");
        head.extend(u32::try_from(headers.len()).expect("short").to_be_bytes());
        head.extend(headers);
        head.push(9);
        head
    }

    #[test]
    fn what_the_broker_adds_on_the_way_back_makes_no_other_message() {
        let own = b"\x02\xff\xfeS\x00\x00\x00\x01a".as_slice();
        let count = |n: u8| [b"\x10x-delivery-countl\0\0\0\0\0\0\0".as_slice(), &[n]].concat();
        let names = ["x-delivery-count"];
        let first = without_headers(&head(&[own]), &names);
        for n in 0..3 {
            let again = without_headers(&head(&[own, &count(n)]), &names);
            assert_eq!(again, first);
        }
        let bare = [&[0x88, 0x00][..], b"\x04text", &[9]].concat();
        assert_eq!(without_headers(&head(&[&count(1)]), &names), bare);
        assert_eq!(without_headers(&bare, &names), bare);
        let other = without_headers(&head(&[b"\x02\xff\xfeS\x00\x00\x00\x01b"]), &names);
        assert_ne!(other, first);
    }

    #[test]
    fn what_cannot_be_walked_stays_as_it_is() {
        let unknown = head(&[b"\x01a?", b"\x10x-delivery-countl\0\0\0\0\0\0\0\x01"]);
        for bytes in [
            &unknown[..],
            &[],
            &[0x20, 0],
            &[0x20, 0, 0xff, 0xff, 0xff, 0xff],
            &[0, 0],
        ] {
            assert_eq!(without_headers(bytes, &["x-delivery-count"]), bytes);
        }
    }

    #[test]
    fn another_encoding_has_no_original_and_neither_have_damaged_bytes() {
        let mut withheld = Withheld::from(&Original::default());
        withheld.bytes.pop();
        assert_eq!(withheld.original(), None);
        let other = Withheld {
            encoding: "kafka/3".to_owned(),
            ..Withheld::from(&Original::default())
        };
        assert_eq!(other.original(), None);
    }
}
