//! From a delivery to a work for a lane: what the connection's screen has withheld is put where it belongs.

use std::sync::Arc;

use bytes::Bytes;
use lapin::Connection;
use lapin::message::Delivery as Delivered;

use crate::ack::AckQueue;
use crate::amqp::Screen;
use crate::amqp::screen::{Body, Unreadable};
use crate::consumer::Consumer;
use crate::failpoint::{self, Point};
use crate::failure::{Failure, code};
use crate::lane::{Budget, Delivery, Origin, Then, Work};
use crate::message::withheld::{Cut, Original};
use crate::message::{Message, Withheld};
use crate::output::count;

use super::queue::{Arguments, Broker, QueueError};

/// What receives the deliveries of one channel.
pub(super) struct Receiver<'a> {
    pub consumer: &'a Arc<Consumer>,
    pub connection: &'a Connection,
    pub channel: u16,
    pub screen: &'a Arc<Screen>,
    pub acks: &'a Arc<AckQueue>,
    pub max_message_bytes: u64,
    pub max_parked_bytes: u64,
    pub prefetch_bytes: u64,
}

/// What a delivery has become.
pub(super) enum Received {
    /// With the length of its body.
    Work(Box<Work>, u64),
    /// Its body, of this length, was not kept: others are held, and together they are more than `prefetch-bytes`.
    TooMuch(u64, String),
}

impl Budget for Screen {
    fn release(&self, bytes: u64) {
        Screen::release(self, bytes);
    }
}

impl Receiver<'_> {
    pub async fn receive(&self, delivered: Delivered) -> Result<Received, QueueError> {
        failpoint::pass(Point::AfterReceive);
        let tag = delivered.delivery_tag;
        let redelivered = delivered.redelivered;
        let mut message = Message {
            exchange: delivered.exchange.to_string(),
            routing_key: delivered.routing_key.to_string(),
            properties: delivered.properties,
            body: Bytes::from(delivered.data),
        };
        let length = message.body.len() as u64;
        let delivery = Delivery::new(self.acks, tag);
        let Some(withheld) = self.screen.take(self.channel, tag) else {
            let origin = Origin::Queue(delivery.holding(self.budget(), length));
            let work = Work::delivered(self.consumer, message, redelivered, origin);
            return Ok(Received::Work(Box::new(work), length));
        };
        let delivery = delivery.holding(self.budget(), withheld.held_bytes);
        let (cut, length) = match withheld.body {
            Body::Whole => (None, length),
            Body::OverBudget { length } => return Ok(self.too_much(length)),
            Body::TooLarge {
                length,
                sha256,
                beginning,
            } => {
                message.body = beginning.into();
                (Some(Cut { length, sha256 }), length)
            }
        };
        let Some(failure) = self.failure(withheld.unreadable.as_ref(), cut.as_ref()) else {
            let origin = Origin::Queue(delivery);
            let work = Work::delivered(self.consumer, message, redelivered, origin);
            return Ok(Received::Work(Box::new(work), length));
        };
        let then = match &cut {
            None => Then::Ack,
            Some(_) => self.end_of_cut(&failure).await?,
        };
        let original = original(withheld.unreadable, &message, cut);
        let work = Work::withheld(
            message,
            Withheld::from(&original),
            failure,
            redelivered,
            Origin::Queue(delivery.then(then)),
        );
        Ok(Received::Work(Box::new(work), 0))
    }

    fn budget(&self) -> Arc<dyn Budget> {
        Arc::clone(self.screen) as Arc<dyn Budget>
    }

    fn too_much(&self, length: u64) -> Received {
        let reason = format!(
            "a body of {} does not fit beside what is held: prefetch-bytes is {}",
            count(length, "byte"),
            count(self.prefetch_bytes, "byte")
        );
        Received::TooMuch(length, reason)
    }

    /// Why a message cannot be taken as it came; `None` when it can.
    fn failure(&self, unreadable: Option<&Unreadable>, cut: Option<&Cut>) -> Option<Failure> {
        let large = cut.map(|cut| {
            format!(
                "the body has {} bytes: max-message-bytes is {}, and max-parked-bytes {}; its beginning, length \
                 and SHA-256 are kept",
                cut.length, self.max_message_bytes, self.max_parked_bytes
            )
        });
        Some(match (unreadable, large) {
            (None, None) => return None,
            (None, Some(large)) => Failure::never(code::MESSAGE_TOO_LARGE, large),
            (Some(unreadable), None) => {
                Failure::never(code::UNREADABLE, unreadable.why.to_string())
            }
            (Some(unreadable), Some(large)) => {
                Failure::never(code::UNREADABLE, format!("{}; {large}", unreadable.why))
            }
        })
    }

    /// What becomes of a delivery of which only a part is parked. It is not acknowledged, since that would be the end
    /// of the rest.
    async fn end_of_cut(&self, failure: &Failure) -> Result<Then, QueueError> {
        let queue = &self.consumer.queue;
        let broker = Broker::of(self.connection, self.screen);
        let arguments = Arguments::of(broker, queue).await?;
        if arguments.is_some_and(|arguments| arguments.dead_letters()) {
            return Ok(Then::Reject);
        }
        Ok(Then::Leave(format!(
            "a message in the queue {queue} can neither be handled nor parked whole: {}. Take it out of the queue, \
             or raise max-parked-bytes and restart the host; then type: hapax consumers resume {}",
            failure.message, self.consumer.name
        )))
    }
}

/// What is stored beside `message`, which is what could be read.
fn original(unreadable: Option<Unreadable>, message: &Message, cut: Option<Cut>) -> Original {
    match unreadable {
        None => Original {
            exchange: message.exchange.clone().into_bytes(),
            routing_key: message.routing_key.clone().into_bytes(),
            head: None,
            cut,
        },
        Some(unreadable) => Original {
            exchange: unreadable.exchange,
            routing_key: unreadable.routing_key,
            head: Some(unreadable.properties.bytes),
            cut,
        },
    }
}
