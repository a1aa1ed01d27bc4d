//! What a lane is given to do: one message, and where its verdict goes.

use std::sync::Arc;
use std::time::Instant;

use crate::commit::{Hold, Item};
use crate::consumer::Consumer;
use crate::failure::{Failure, code};
use crate::key::Identity;
use crate::message::{Message, Withheld};
use crate::waiting::RunningRow;

use super::delivery::Delivery;

/// A message for a lane, and where its verdict goes.
#[derive(Debug)]
pub struct Work {
    pub item: Item,
    pub origin: Origin,
    /// It may have taken a host down: it runs alone, with its start on record.
    pub(super) alone: bool,
}

/// Who hears of the verdict.
#[derive(Debug)]
pub enum Origin {
    /// The channel that delivered the message.
    Queue(Delivery),
    /// Nobody; the row may be looked for again.
    Table(#[allow(dead_code, reason = "held for its drop")] RunningRow),
}

impl Work {
    /// A message that the broker has delivered.
    pub fn delivered(
        consumer: &Consumer,
        message: Message,
        redelivered: bool,
        origin: Origin,
    ) -> Self {
        let identity = consumer.rules.identify(&message);
        Self::new(message, identity, None, redelivered, origin)
    }

    /// A message that the broker has delivered and that could not be taken as it came: `message` is what could be
    /// read of it. It is parked for `failure`, and never runs.
    pub fn withheld(
        message: Message,
        withheld: Withheld,
        failure: Failure,
        redelivered: bool,
        origin: Origin,
    ) -> Self {
        Self::new(message, Err(failure), Some(withheld), redelivered, origin)
    }

    fn new(
        message: Message,
        identity: Result<Identity, Failure>,
        withheld: Option<Withheld>,
        redelivered: bool,
        origin: Origin,
    ) -> Self {
        let item = Item {
            message: Arc::new(message),
            withheld: withheld.map(Box::new),
            identity,
            redelivered,
            hold: Hold::Nothing,
            preset: None,
            kept: false,
            in_doubt: false,
            suspect: false,
            put_off: false,
            apart: None,
            received: Instant::now(),
        };
        Self {
            item,
            origin,
            alone: redelivered,
        }
    }

    /// A row of `hapax_waiting`; its content is read when it runs.
    pub fn waiting(origin: Origin, hold: Hold) -> Self {
        let message = Message {
            exchange: String::new(),
            routing_key: String::new(),
            properties: lapin::BasicProperties::default(),
            body: bytes::Bytes::new(),
        };
        let item = Item {
            message: Arc::new(message),
            withheld: None,
            identity: Err(Failure::never(code::KEY_MISSING, "the row was not read")),
            redelivered: false,
            hold,
            preset: None,
            kept: false,
            in_doubt: false,
            suspect: false,
            put_off: false,
            apart: None,
            received: Instant::now(),
        };
        Self {
            item,
            origin,
            alone: true,
        }
    }

    /// Its channel is gone: the broker delivers it again. What is in doubt is not forgotten: its rows would be
    /// nobody's.
    pub(super) fn is_forgotten(&self) -> bool {
        is_forgotten(&self.item, &self.origin)
    }

    /// Its partition, once it is known.
    pub(super) fn partition(&self) -> Option<i64> {
        let identity = self.item.identity.as_ref().ok()?;
        (!identity.key.is_empty()).then_some(identity.partition)
    }

    /// Whether the ledger may know its key, and so save it from running alone.
    pub(super) fn may_be_known(&self) -> bool {
        self.alone && self.item.hold == Hold::Nothing
    }
}

pub(super) fn is_forgotten(item: &Item, origin: &Origin) -> bool {
    !item.in_doubt && matches!(origin, Origin::Queue(delivery) if delivery.is_forgotten())
}

/// Messages that are not to run alone, as they were before they were a batch.
pub(super) fn works(items: Vec<Item>, origins: Vec<Origin>) -> impl Iterator<Item = Work> {
    items.into_iter().zip(origins).map(|(item, origin)| Work {
        item,
        origin,
        alone: false,
    })
}
