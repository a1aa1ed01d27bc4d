//! A queue of RabbitMQ before it is consumed: is it there, and is it as the configuration wants it?
//!
//! AMQP has no question for a queue's arguments. What can be asked is whether the queue has these very
//! arguments, and the refusal names the first one that differs: so they are learned one refusal at a time.
//! A queue that is there is never changed by that. Policies cannot be seen this way.

use std::collections::BTreeMap;

use lapin::options::{QueueBindOptions, QueueDeclareOptions};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Connection};

use crate::amqp::ConnectError;
use crate::config::{Declare, QueueKind};

const SINGLE_ACTIVE: &str = "x-single-active-consumer";
const DELIVERY_LIMIT: &str = "x-delivery-limit";

/// What RabbitMQ 4 sets where a quorum queue has no limit of its own.
const DEFAULT_DELIVERY_LIMIT: i64 = 20;

/// A queue that no broker makes, whatever its version.
const IMPOSSIBLE_QUEUE: &str = "hapax-has-no-such-queue";

/// RabbitMQ knows some thirty arguments of queues.
const MAX_ARGUMENTS: usize = 40;

/// A queue that cannot be consumed as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(
        "the queue {0} does not exist; create it, or let the host do it with `declare = {{ type = \"quorum\" }}`"
    )]
    Missing(String),
    #[error("the queue {queue} cannot be used: {error}")]
    Refused {
        queue: String,
        error: Box<lapin::Error>,
    },
    #[error("the name {0} is over 255 bytes")]
    Name(String),
    #[error("the broker does not answer what it is asked about the queue {0}")]
    Silent(String),
    #[error("the broker has ended the subscription to {0}")]
    Cancelled(String),
    #[error(
        "the queue {0} is a stream: streams are not consumed by acknowledgement, and are refused"
    )]
    Stream(String),
    #[error(
        "`order = \"strict\"` needs a queue with one active consumer, and {0} is not one: delete it and create \
         it with the argument `x-single-active-consumer = true` (`declare` does), or use `order = \"lane\"`"
    )]
    NotSingleActive(String),
    #[error(
        "`order = \"strict\"` needs a queue with one active consumer, and whether {0} is one cannot be seen: give \
         the host's user the configure permission on it"
    )]
    Unseen(String),
}

/// Declares the queue if the configuration says so, and makes sure that it is there.
pub async fn prepare(
    connection: &Connection,
    queue: &str,
    declare: Option<&Declare>,
    strict: bool,
) -> Result<(), QueueError> {
    let name = short(queue)?;
    let Some(declare) = declare else {
        return look(connection, queue).await;
    };
    let mut arguments = FieldTable::default();
    if strict {
        arguments.insert(SINGLE_ACTIVE.into(), AMQPValue::Boolean(true));
    }
    if declare.kind == QueueKind::Quorum {
        arguments.insert(
            "x-queue-type".into(),
            AMQPValue::LongString("quorum".into()),
        );
        // RabbitMQ 4 would drop a message after 20 deliveries. Older ones have no such limit, and refuse
        // the number; so does a queue that was declared before without it, which `warnings` tells.
        let mut unlimited = arguments.clone();
        unlimited.insert(DELIVERY_LIMIT.into(), AMQPValue::LongInt(-1));
        if try_declare(connection, queue, unlimited).await.is_err() {
            try_declare(connection, queue, arguments).await?;
        }
    } else {
        try_declare(connection, queue, arguments).await?;
    }
    let channel = open(connection, queue).await?;
    for binding in &declare.bind {
        let (exchange, routing_key) = (short(&binding.exchange)?, short(&binding.routing_key)?);
        channel
            .queue_bind(
                name.clone(),
                exchange,
                routing_key,
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await
            .map_err(|error| refusal(queue, error))?;
    }
    Ok(())
}

/// Whether the queue is there.
async fn look(connection: &Connection, queue: &str) -> Result<(), QueueError> {
    let passive = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::default()
    };
    open(connection, queue)
        .await?
        .queue_declare(short(queue)?, passive, FieldTable::default())
        .await
        .map_err(|error| refusal(queue, error))?;
    Ok(())
}

async fn try_declare(
    connection: &Connection,
    queue: &str,
    arguments: FieldTable,
) -> Result<(), QueueError> {
    // A refusal closes the channel.
    let channel = open(connection, queue).await?;
    let durable = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    channel
        .queue_declare(short(queue)?, durable, arguments)
        .await
        .map_err(|error| refusal(queue, error))?;
    Ok(())
}

/// Whether the broker limits the deliveries of a quorum queue that says nothing of it, as RabbitMQ 4 does.
///
/// The versions that do are those that know "no limit" as a number. They get as far as to refuse an exclusive
/// quorum queue; older ones refuse the number first. `false` where neither is heard.
async fn limits_deliveries(connection: &Connection) -> Result<bool, QueueError> {
    let mut arguments = FieldTable::default();
    arguments.insert(
        "x-queue-type".into(),
        AMQPValue::LongString("quorum".into()),
    );
    arguments.insert(DELIVERY_LIMIT.into(), AMQPValue::LongInt(-1));
    let options = QueueDeclareOptions {
        durable: true,
        exclusive: true,
        ..QueueDeclareOptions::default()
    };
    let channel = open(connection, IMPOSSIBLE_QUEUE).await?;
    let declared = channel
        .queue_declare(IMPOSSIBLE_QUEUE.into(), options, arguments)
        .await;
    Ok(declared.is_err_and(|error| {
        precondition(&error).is_some_and(|text| !text.contains(DELIVERY_LIMIT))
    }))
}

/// What is known of a queue's arguments.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Arguments {
    known: BTreeMap<String, String>,
    /// The broker drops messages of this queue although it has no such argument.
    limited: bool,
}

impl Arguments {
    /// Learns the arguments of a queue that is there; `None` where the broker does not let us.
    pub async fn of(connection: &Connection, queue: &str) -> Result<Option<Self>, QueueError> {
        look(connection, queue).await?;
        let mut known = Self::default();
        let mut arguments = FieldTable::default();
        let mut options = QueueDeclareOptions {
            durable: true,
            ..QueueDeclareOptions::default()
        };
        for _ in 0..MAX_ARGUMENTS {
            let channel = open(connection, queue).await?;
            let declared = channel
                .queue_declare(short(queue)?, options, arguments.clone())
                .await;
            let Err(error) = declared else {
                known.limited =
                    known.is_unlimited_quorum() && limits_deliveries(connection).await?;
                return Ok(Some(known));
            };
            let Some(difference) = precondition(&error).and_then(Difference::read) else {
                return Ok(None);
            };
            match difference.name {
                "durable" => options.durable = difference.value == "true",
                "auto_delete" => options.auto_delete = difference.value == "true",
                name => {
                    let Some(value) = difference.amqp() else {
                        return Ok(None);
                    };
                    arguments.insert(ShortString::from(name), value);
                    known
                        .known
                        .insert(name.to_owned(), difference.value.to_owned());
                }
            }
        }
        Ok(None)
    }

    /// A quorum queue that says nothing of a delivery limit.
    fn is_unlimited_quorum(&self) -> bool {
        let quorum = self.known.get("x-queue-type");
        quorum.is_some_and(|kind| kind == "quorum") && !self.known.contains_key(DELIVERY_LIMIT)
    }

    fn number(&self, name: &str) -> Option<i64> {
        self.known.get(name)?.parse().ok()
    }

    /// The queue's dead letters go somewhere. A policy that says so cannot be seen.
    pub fn dead_letters(&self) -> bool {
        self.known.contains_key("x-dead-letter-exchange")
    }

    pub fn is_single_active(&self) -> bool {
        self.known
            .get(SINGLE_ACTIVE)
            .is_some_and(|value| value == "true")
    }

    /// What makes the queue drop messages that nobody has acknowledged, as sentences for the operator.
    /// `starts` is how often a message may take a host down before it is parked.
    pub fn warnings(&self, queue: &str, starts: i32) -> Vec<String> {
        let mut warnings = Vec::new();
        let mut warn = |text: String| warnings.push(format!("the queue {queue} {text}"));
        if let Some(limit) = self.number(DELIVERY_LIMIT)
            && (0..=i64::from(starts)).contains(&limit)
        {
            warn(format!(
                "drops a message after {limit} deliveries (x-delivery-limit), and one that takes the host \
                 down is parked only after {starts}: it can be lost; raise the limit, or lower \
                 retry.max-attempts"
            ));
        }
        if self.limited {
            warn(format!(
                "has no x-delivery-limit, and this broker drops a message of such a queue after \
                 {DEFAULT_DELIVERY_LIMIT} deliveries unless a policy says otherwise: it can be lost; set a policy \
                 with delivery-limit = -1, or make the queue anew with `declare`, which sets it"
            ));
        }
        if let Some(ttl) = self.number("x-message-ttl") {
            warn(format!(
                "drops messages that wait longer than {ttl} ms (x-message-ttl): a long outage loses them"
            ));
        }
        if let Some(expires) = self.number("x-expires") {
            warn(format!(
                "is deleted with all its messages when nobody uses it for {expires} ms (x-expires)"
            ));
        }
        let bounded = ["x-max-length", "x-max-length-bytes"]
            .into_iter()
            .find(|name| self.known.contains_key(*name));
        let overflow = self
            .known
            .get("x-overflow")
            .map_or("drop-head", String::as_str);
        if let (Some(bound), "drop-head") = (bounded, overflow) {
            warn(format!(
                "drops its oldest messages when it is full ({bound}): set x-overflow to reject-publish"
            ));
        }
        warnings
    }
}

/// What a refused declaration says of the queue that is there.
#[derive(Debug, PartialEq, Eq)]
struct Difference<'t> {
    name: &'t str,
    value: &'t str,
    /// Of an argument; the queue's own flags have none.
    kind: Option<&'t str>,
}

impl<'t> Difference<'t> {
    /// Reads `inequivalent arg 'NAME' for queue …: received … but current is the value 'VALUE' of type 'TYPE'`.
    fn read(text: &'t str) -> Option<Self> {
        let (_, rest) = text.split_once("inequivalent arg '")?;
        let (name, rest) = rest.split_once('\'')?;
        let (_, current) = rest.rsplit_once("but current is ")?;
        let (value, kind) = match current.strip_prefix("the value '") {
            Some(current) => {
                let (value, kind) = current.rsplit_once("' of type '")?;
                (value, Some(kind.strip_suffix('\'')?))
            }
            None => (current.trim_matches('\''), None),
        };
        Some(Self { name, value, kind })
    }

    fn amqp(&self) -> Option<AMQPValue> {
        // RabbitMQ 4 tells the type of a queue without the type of the argument.
        let kind = self
            .kind
            .or_else(|| (self.name == "x-queue-type").then_some("longstr"));
        Some(match kind? {
            "longstr" | "binary" => AMQPValue::LongString(self.value.into()),
            "bool" => AMQPValue::Boolean(self.value.parse().ok()?),
            // Numbers are compared by their values.
            _ => AMQPValue::LongLongInt(self.value.parse().ok()?),
        })
    }
}

/// The text of a refusal because of other arguments.
fn precondition(error: &lapin::Error) -> Option<&str> {
    match error.kind() {
        lapin::ErrorKind::ProtocolError(protocol)
            if protocol.kind() == &AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) =>
        {
            Some(protocol.get_message().as_str())
        }
        _ => None,
    }
}

async fn open(connection: &Connection, queue: &str) -> Result<Channel, QueueError> {
    connection
        .create_channel()
        .await
        .map_err(|error| refusal(queue, error))
}

pub(super) fn refusal(queue: &str, error: lapin::Error) -> QueueError {
    const NOT_FOUND: u16 = 404;
    match error.kind() {
        lapin::ErrorKind::ProtocolError(protocol) if protocol.get_id() == NOT_FOUND => {
            QueueError::Missing(queue.to_owned())
        }
        _ => QueueError::Refused {
            queue: queue.to_owned(),
            error: Box::new(error),
        },
    }
}

pub(super) fn short(name: &str) -> Result<ShortString, QueueError> {
    ShortString::try_new(name).map_err(|_| QueueError::Name(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(known: &[(&str, &str)]) -> Arguments {
        let known = known.iter();
        Arguments {
            known: known
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            limited: false,
        }
    }

    #[test]
    fn a_refusal_tells_the_argument_that_differs() {
        let text = "PRECONDITION_FAILED - inequivalent arg 'x-message-ttl' for queue 'it''s' in vhost '/': \
                    received none but current is the value '60000' of type 'signedint'";
        let difference = Difference::read(text).unwrap();
        assert_eq!(
            (difference.name, difference.value),
            ("x-message-ttl", "60000")
        );
        assert_eq!(difference.amqp(), Some(AMQPValue::LongLongInt(60_000)));
        let text = "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'q' in vhost '/': \
                    received 'true' but current is 'false'";
        let difference = Difference::read(text).unwrap();
        assert_eq!((difference.name, difference.value), ("durable", "false"));
        assert_eq!(difference.amqp(), None);
        let text = "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'q' in vhost '/': \
                    received 'classic' but current is 'quorum'";
        let difference = Difference::read(text).unwrap();
        assert_eq!(
            difference.amqp(),
            Some(AMQPValue::LongString("quorum".into())),
            "RabbitMQ 4"
        );
        assert_eq!(Difference::read("ACCESS_REFUSED - access refused"), None);
    }

    #[test]
    fn what_drops_messages_is_warned_of() {
        let drops = arguments(&[
            ("x-delivery-limit", "3"),
            ("x-message-ttl", "60000"),
            ("x-expires", "1000"),
            ("x-max-length", "10"),
        ]);
        assert_eq!(drops.warnings("q", 6).len(), 4);
        let keeps = arguments(&[
            ("x-delivery-limit", "7"),
            ("x-max-length", "10"),
            ("x-overflow", "reject-publish"),
            ("x-queue-type", "quorum"),
        ]);
        assert_eq!(keeps.warnings("q", 6), [""; 0]);
        assert!(
            arguments(&[("x-delivery-limit", "-1")])
                .warnings("q", 6)
                .is_empty()
        );
    }
    #[test]
    fn a_limit_that_nobody_has_set_is_warned_of() {
        let quorum = arguments(&[("x-queue-type", "quorum")]);
        assert!(quorum.is_unlimited_quorum());
        assert!(quorum.warnings("q", 6).is_empty(), "RabbitMQ 3");
        let limited = Arguments {
            limited: true,
            ..quorum
        };
        let warnings = limited.warnings("q", 6);
        assert!(warnings[0].contains("after 20 deliveries"), "{warnings:?}");
        for known in [
            &[("x-queue-type", "classic")][..],
            &[("x-queue-type", "quorum"), ("x-delivery-limit", "-1")],
            &[],
        ] {
            assert!(!arguments(known).is_unlimited_quorum());
        }
    }
}
