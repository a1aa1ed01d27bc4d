//! The arguments that a queue was declared with, and which of them lose messages.

use std::collections::BTreeMap;

use lapin::options::{BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};

use super::{
    Broker, DEFAULT_DELIVERY_LIMIT, DELIVERY_LIMIT, QUEUE_TYPE, QueueError, SINGLE_ACTIVE, look,
    open, precondition, refusal, short,
};

/// RabbitMQ knows some thirty arguments of queues.
const MAX_ARGUMENTS: usize = 40;

const DEAD_LETTERS: &str = "x-dead-letter-exchange";
const STREAM_OFFSET: &str = "x-stream-offset";

/// What is known of a queue's arguments.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Arguments {
    known: BTreeMap<String, String>,
    /// The queue is a quorum queue, whether or not an argument of its own says so.
    quorum: bool,
    /// The broker drops messages of this queue although it has no such argument.
    limited: bool,
}

/// The type of a queue, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Quorum,
    Stream,
    Other,
}

impl Arguments {
    /// Learns the arguments of a queue that is there; `None` where the broker does not let us. A queue that would
    /// lose what comes back to it, or whose messages do not come back, is an error.
    pub async fn of(broker: Broker<'_>, queue: &str) -> Result<Option<Self>, QueueError> {
        look(broker.connection, queue).await?;
        let kind = kind(broker, queue).await?;
        let stream = || QueueError::Stream(queue.to_owned());
        if kind == Some(Kind::Stream) {
            return Err(stream());
        }
        let Some(known) = learn(broker, queue).await? else {
            return Ok(None);
        };
        let says = |kind: &str| known.get(QUEUE_TYPE).is_some_and(|known| known == kind);
        if says("stream") {
            return Err(stream());
        }
        let mut arguments = Self {
            quorum: kind == Some(Kind::Quorum) || says("quorum"),
            known,
            limited: false,
        };
        arguments.limited = arguments.is_unlimited_quorum() && broker.limits_by_itself();
        if let Some(limit) = arguments.number(DELIVERY_LIMIT)
            && limit < 0
            && arguments.quorum
            && broker.drops_below_zero()
        {
            let queue = queue.to_owned();
            return Err(QueueError::NegativeLimit { queue, limit });
        }
        Ok(Some(arguments))
    }

    /// A quorum queue that says nothing of a delivery limit.
    fn is_unlimited_quorum(&self) -> bool {
        self.quorum && !self.known.contains_key(DELIVERY_LIMIT)
    }

    /// Messages that are rejected, or dropped by the queue itself, go to an exchange. What a policy says of that
    /// cannot be seen.
    pub fn dead_letters(&self) -> bool {
        self.known.contains_key(DEAD_LETTERS)
    }

    fn number(&self, name: &str) -> Option<i64> {
        self.known.get(name)?.parse().ok()
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
                "has no x-delivery-limit, and this broker drops a message of such a queue when it was given back \
                 more than {DEFAULT_DELIVERY_LIMIT} times, unless a policy says otherwise (which cannot be seen from \
                 here): it can be lost; set a policy with delivery-limit = -1, or make the queue anew with \
                 `declare`, which gives it x-delivery-limit = -1"
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

/// Learns the type of a queue, where a broker is known to tell it: asked for a stream's offset it refuses, and
/// names the type. A stream takes the offset of its end, from which nothing comes. The argument is looked at before the
/// queue is asked: no message moves.
async fn kind(broker: Broker<'_>, queue: &str) -> Result<Option<Kind>, QueueError> {
    if !broker.knows_types_of_queues() {
        return Ok(None);
    }
    let channel = open(broker.connection, queue).await?;
    let refused = |error| refusal(queue, error);
    // A stream insists on it.
    channel
        .basic_qos(1, BasicQosOptions::default())
        .await
        .map_err(refused)?;
    let mut offset = FieldTable::default();
    offset.insert(STREAM_OFFSET.into(), AMQPValue::LongString("next".into()));
    let options = BasicConsumeOptions::default();
    let tag = ShortString::from("hapax-looks");
    match channel
        .basic_consume(short(queue)?, tag, options, offset)
        .await
    {
        Ok(_) => Ok(Some(Kind::Stream)),
        Err(error) => match precondition(&error) {
            Some(text) => Ok(Kind::read(text)),
            None => Err(refused(error)),
        },
    }
}

impl Kind {
    /// Reads `invalid arg 'x-stream-offset' for queue … of queue type TYPE`.
    fn read(text: &str) -> Option<Self> {
        let (_, kind) = text.rsplit_once("of queue type ")?;
        Some(match kind {
            "rabbit_quorum_queue" => Self::Quorum,
            _ => Self::Other,
        })
    }
}

/// Declares the queue otherwise than it is until the broker has named every difference; `None` where it refuses
/// for another reason.
async fn learn(
    broker: Broker<'_>,
    queue: &str,
) -> Result<Option<BTreeMap<String, String>>, QueueError> {
    let mut known = BTreeMap::new();
    let mut arguments = FieldTable::default();
    let mut options = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    for _ in 0..MAX_ARGUMENTS {
        let channel = open(broker.connection, queue).await?;
        let declared = channel
            .queue_declare(short(queue)?, options, arguments.clone())
            .await;
        let Err(error) = declared else {
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
                known.insert(name.to_owned(), difference.value.to_owned());
            }
        }
    }
    Ok(None)
}

/// What a refused declaration says of the queue that is there.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Difference<'t> {
    pub name: &'t str,
    value: &'t str,
    /// Of an argument; the queue's own flags have none.
    kind: Option<&'t str>,
}

impl<'t> Difference<'t> {
    /// Reads `inequivalent arg 'NAME' for queue …: received … but current is the value 'VALUE' of type 'TYPE'`.
    pub fn read(text: &'t str) -> Option<Self> {
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

    /// The value, where it is a number.
    pub fn number(&self) -> Option<i64> {
        self.value.parse().ok()
    }

    /// The queue has no such argument.
    pub fn is_absent(&self) -> bool {
        self.value == "none" && self.kind.is_none()
    }

    fn amqp(&self) -> Option<AMQPValue> {
        // RabbitMQ 4 tells the type of a queue without the type of the argument.
        let kind = self
            .kind
            .or_else(|| (self.name == QUEUE_TYPE).then_some("longstr"));
        Some(match kind? {
            "longstr" | "binary" => AMQPValue::LongString(self.value.into()),
            "bool" => AMQPValue::Boolean(self.value.parse().ok()?),
            // Numbers are compared by their values.
            _ => AMQPValue::LongLongInt(self.value.parse().ok()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(known: &[(&str, &str)]) -> Arguments {
        Arguments {
            known: known
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            quorum: known.contains(&("x-queue-type", "quorum")),
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
    fn a_refusal_tells_whether_there_is_a_limit() {
        let begins = "PRECONDITION_FAILED - inequivalent arg 'x-delivery-limit' for queue 'q' in vhost '/': ";
        for (ends, number, absent) in [
            (
                "received the value '-1' of type 'signedint' but current is none",
                None,
                true,
            ),
            ("received '-1' but current is '5'", Some(5), false),
            (
                "received none but current is the value '-1' of type 'signedint'",
                Some(-1),
                false,
            ),
        ] {
            let text = format!("{begins}{ends}");
            let read = Difference::read(&text).unwrap();
            let told = (read.name, read.number(), read.is_absent());
            assert_eq!(told, ("x-delivery-limit", number, absent), "{ends}");
        }
    }

    #[test]
    fn a_refusal_tells_the_type_of_the_queue() {
        let begins = "PRECONDITION_FAILED - invalid arg 'x-stream-offset' for queue 'of queue type x' in vhost '/' of";
        for (kind, read) in [
            ("rabbit_quorum_queue", Kind::Quorum),
            ("rabbit_classic_queue", Kind::Other),
        ] {
            let text = format!("{begins} queue type {kind}");
            assert_eq!(Kind::read(&text), Some(read));
        }
        assert_eq!(Kind::read("PRECONDITION_FAILED - unknown"), None);
    }

    #[test]
    fn a_queue_that_dead_letters_says_so() {
        assert!(arguments(&[("x-dead-letter-exchange", "")]).dead_letters());
        assert!(!arguments(&[("x-queue-type", "quorum")]).dead_letters());
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
        assert!(
            warnings[0].contains("given back more than 20 times"),
            "{warnings:?}"
        );
        for known in [
            &[("x-queue-type", "classic")][..],
            &[("x-queue-type", "quorum"), ("x-delivery-limit", "-1")],
            &[],
        ] {
            assert!(!arguments(known).is_unlimited_quorum());
        }
    }
}
