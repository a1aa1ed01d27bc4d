//! A queue of RabbitMQ before it is consumed: is it there, and is it as the configuration wants it?
//!
//! AMQP has no question for a queue's arguments. What can be asked is whether the queue has these very
//! arguments, and the refusal names the first one that differs: so they are learned one refusal at a time.
//! A queue that is there is never changed by that. Policies cannot be seen this way.

mod arguments;
mod broker;

use lapin::options::{QueueBindOptions, QueueDeclareOptions};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Connection};

use crate::amqp::ConnectError;
use crate::config::{Declare, QueueKind};
use arguments::Difference;

pub use arguments::Arguments;
pub use broker::Broker;

const QUEUE_TYPE: &str = "x-queue-type";
const SINGLE_ACTIVE: &str = "x-single-active-consumer";
const DELIVERY_LIMIT: &str = "x-delivery-limit";

/// What RabbitMQ sets from version 4 on where a quorum queue has no limit of its own.
const DEFAULT_DELIVERY_LIMIT: i64 = 20;

/// The limit that says that there is none, from version 4 on.
const NO_LIMIT: i32 = -1;

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
        "the queue {queue} loses messages: its x-delivery-limit is {limit}, and RabbitMQ before version 4 drops a \
         message of such a queue when it is given back for the first time; move its messages to another queue \
         (with a shovel), delete it, and let `declare` make it anew, or go to RabbitMQ 4, where a negative limit \
         is none"
    )]
    NegativeLimit { queue: String, limit: i64 },
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
    broker: Broker<'_>,
    queue: &str,
    declare: Option<&Declare>,
    strict: bool,
) -> Result<(), QueueError> {
    let Some(declare) = declare else {
        return look(broker.connection, queue).await;
    };
    make(broker, queue, declare.kind, strict).await?;
    let name = short(queue)?;
    let channel = open(broker.connection, queue).await?;
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

/// Declares the queue as one that keeps what comes back.
async fn make(
    broker: Broker<'_>,
    queue: &str,
    kind: QueueKind,
    strict: bool,
) -> Result<(), QueueError> {
    let mut arguments = FieldTable::default();
    // Said of classic queues, too: a virtual host may have another type for those that say nothing.
    let kind_name = match kind {
        QueueKind::Classic => "classic",
        QueueKind::Quorum => "quorum",
    };
    arguments.insert(QUEUE_TYPE.into(), AMQPValue::LongString(kind_name.into()));
    if strict {
        arguments.insert(SINGLE_ACTIVE.into(), AMQPValue::Boolean(true));
    }
    let mut unlimited = arguments.clone();
    if kind == QueueKind::Quorum && broker.limits_by_itself() {
        unlimited.insert(DELIVERY_LIMIT.into(), AMQPValue::LongInt(NO_LIMIT));
    }
    let Err(error) = try_declare(broker.connection, queue, unlimited).await else {
        return Ok(());
    };
    // The queue is there, with another limit.
    let differs = match &error {
        QueueError::Refused { error, .. } => precondition(error).and_then(Difference::read),
        _ => None,
    };
    let Some(difference) = differs.filter(|difference| difference.name == DELIVERY_LIMIT) else {
        return Err(error);
    };
    match difference.number() {
        Some(limit) if limit < 0 && broker.drops_below_zero() => Err(QueueError::NegativeLimit {
            queue: queue.to_owned(),
            limit,
        }),
        // It was made without one, of which `Arguments::warnings` tells.
        None if difference.is_absent() => try_declare(broker.connection, queue, arguments).await,
        _ => Err(error),
    }
}

/// Whether the queue is there.
pub async fn look(connection: &Connection, queue: &str) -> Result<(), QueueError> {
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
