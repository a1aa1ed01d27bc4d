//! Owns the small languages of a consumer's rules: key sources, JSON pointers, fingerprints.
//!
//! Guarantees that each value was written in one of the allowed forms and prints itself back
//! in a form that reads as the same value: the ledger stores that text as the consumer's rule
//! and compares it at every start. Does not apply a rule to a message.

use std::fmt;
use std::str::FromStr;

/// Why a text is not the value it should be. The text itself is not repeated: it may have come
/// from an environment variable that holds something else, a password for example.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{label}")]
pub struct Invalid {
    /// What is wrong, short enough to stand beside a caret.
    pub label: String,
    /// What to write instead.
    pub help: String,
}

impl Invalid {
    pub(super) fn new(label: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            label: label.into(),
            help: help.into(),
        }
    }
}

/// One part of a message that makes up its key or its partition.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum KeySource {
    MessageId,
    Property(Property),
    /// A header by name: 1 to 255 bytes, compared exactly.
    Header(String),
    /// A member of the JSON body.
    Body(Pointer),
    RoutingKey,
}

impl KeySource {
    pub(super) const FORMS: &str =
        "write `message-id`, `property:NAME`, `header:NAME`, `body:/json/pointer` or `routing-key`";
    const HEADS: [&str; 5] = ["message-id", "property", "header", "body", "routing-key"];
}

/// The text of the configuration, with one exception: `property:message-id` is `message-id`,
/// so that two spellings of one rule are one rule.
impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MessageId => f.write_str("message-id"),
            Self::Property(property) => write!(f, "property:{}", property.name()),
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Body(pointer) => write!(f, "body:{pointer}"),
            Self::RoutingKey => f.write_str("routing-key"),
        }
    }
}

impl FromStr for KeySource {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text.split_once(':') {
            None if text == "message-id" => Ok(Self::MessageId),
            None if text == "routing-key" => Ok(Self::RoutingKey),
            Some(("property", "message-id")) => Ok(Self::MessageId),
            Some(("property", name)) => Property::from_str(name).map(Self::Property),
            Some(("header", "")) => Err(Invalid::new("names no header", Self::FORMS)),
            Some(("header", name)) if name.len() > 255 => Err(Invalid::new(
                "the header's name is longer than 255 bytes",
                "AMQP allows no longer header names",
            )),
            Some(("header", name)) => Ok(Self::Header(name.to_owned())),
            Some(("body", pointer)) => pointer.parse().map(Self::Body),
            _ => Err(Self::unknown(text)),
        }
    }
}

impl KeySource {
    /// The head is what people mistype; a pointer alone is what people forget it for.
    fn unknown(text: &str) -> Invalid {
        let head = text.split([':', '/']).next().unwrap_or_default();
        let help = if text.starts_with('/') {
            "did you mean a member of the body, `body:/…`?".to_owned()
        } else if let Some(near) = super::problem::nearest(head, Self::HEADS) {
            match near {
                "message-id" | "routing-key" => format!("did you mean `{near}`?"),
                "body" => "did you mean `body:/…`?".to_owned(),
                _ => format!("did you mean `{near}:NAME`?"),
            }
        } else {
            Self::FORMS.to_owned()
        };
        Invalid::new("not a key source", help)
    }
}

/// A property of AMQP 0-9-1 (class `basic`) other than `message-id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Property {
    ContentType,
    ContentEncoding,
    DeliveryMode,
    Priority,
    CorrelationId,
    ReplyTo,
    Expiration,
    Timestamp,
    Type,
    UserId,
    AppId,
    ClusterId,
}

impl Property {
    pub const ALL: [Self; 12] = [
        Self::ContentType,
        Self::ContentEncoding,
        Self::DeliveryMode,
        Self::Priority,
        Self::CorrelationId,
        Self::ReplyTo,
        Self::Expiration,
        Self::Timestamp,
        Self::Type,
        Self::UserId,
        Self::AppId,
        Self::ClusterId,
    ];

    /// As the configuration and the WIT spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::ContentType => "content-type",
            Self::ContentEncoding => "content-encoding",
            Self::DeliveryMode => "delivery-mode",
            Self::Priority => "priority",
            Self::CorrelationId => "correlation-id",
            Self::ReplyTo => "reply-to",
            Self::Expiration => "expiration",
            Self::Timestamp => "timestamp",
            Self::Type => "type",
            Self::UserId => "user-id",
            Self::AppId => "app-id",
            Self::ClusterId => "cluster-id",
        }
    }
}

impl FromStr for Property {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let names = Self::ALL.map(Self::name);
        Self::ALL
            .into_iter()
            .find(|property| property.name() == text)
            .ok_or_else(|| {
                let help = match super::problem::nearest(text, names) {
                    Some(near) => format!("did you mean `property:{near}`?"),
                    None => format!(
                        "the properties are message-id, {}; anything else is a `header:NAME`",
                        names.join(", ")
                    ),
                };
                Invalid::new("not a property of AMQP", help)
            })
    }
}

/// A JSON pointer (RFC 6901), checked and taken apart.
///
/// The empty pointer, which names the whole document, is refused: a rule about a member that
/// names no member is never meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pointer {
    text: String,
    tokens: Vec<String>,
}

impl Pointer {
    /// The names on the way from the root, unescaped; never empty.
    pub fn tokens(&self) -> &[String] {
        &self.tokens
    }

    /// As written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Pointer {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let Some(path) = text.strip_prefix('/') else {
            return Err(Invalid::new(
                "a JSON pointer starts with `/`",
                "name the member by its way from the root, as in `/order/id`",
            ));
        };
        let tokens = path.split('/').map(unescape).collect::<Option<_>>();
        tokens
            .map(|tokens| Self {
                text: text.to_owned(),
                tokens,
            })
            .ok_or_else(|| {
                Invalid::new(
                    "`~` stands alone in this JSON pointer",
                    "write `~0` for `~` and `~1` for `/` inside a name (RFC 6901)",
                )
            })
    }
}

/// RFC 6901, section 4: `~1` is `/` and `~0` is `~`, in one pass so that `~01` stays `~1`.
fn unescape(token: &str) -> Option<String> {
    let mut pieces = token.split('~');
    let mut plain = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let (escaped, rest) = match piece.as_bytes().first()? {
            b'0' => ('~', &piece[1..]),
            b'1' => ('/', &piece[1..]),
            _ => return None,
        };
        plain.push(escaped);
        plain.push_str(rest);
    }
    Some(plain)
}

/// What must be equal for two messages of one key to be the same message.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Fingerprint {
    /// The whole body: as canonical JSON when it is JSON, else its bytes.
    Body,
    /// Only these members of the body; never empty.
    Pointers(Vec<Pointer>),
    /// The body without these members; never empty.
    Except(Vec<Pointer>),
    /// Nothing: the key alone tells.
    None,
}

/// The text of the configuration, spaced in one way.
impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |pointers: &[Pointer]| {
            let quoted: Vec<_> = pointers.iter().map(|p| format!("{:?}", p.text)).collect();
            format!("[{}]", quoted.join(", "))
        };
        match self {
            Self::Body => f.write_str("body"),
            Self::Pointers(pointers) => f.write_str(&list(pointers)),
            Self::Except(pointers) => write!(f, "{{ except = {} }}", list(pointers)),
            Self::None => f.write_str("none"),
        }
    }
}
