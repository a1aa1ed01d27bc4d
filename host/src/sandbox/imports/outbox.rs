//! Outgoing messages: composed at once, so that the guest sees what cannot be sent.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::effects::outbox::{IdSeed, Origin, Publish, PublishError};
use crate::failpoint::{self, Point};
use crate::store::OutboxRow;

use super::super::bindings::hapax::plugin::outbox::{Error, ErrorKind, Host, Message};
use super::super::envelope;
use super::super::guest::{Guest, Stop};

impl Host for Guest {
    fn publish(&mut self, message: Message) -> wasmtime::Result<Result<String, Error>> {
        let row = match self.compose(message) {
            Ok(row) => row,
            Err(error) => return Ok(Err(error_to_guest(&error))),
        };
        let id = row.message.property("message-id").unwrap_or_default();
        self.count(&row)?;
        self.published += 1;
        self.effects.outbox.push(Arc::new(row));
        Ok(Ok(id))
    }

    fn reply(
        &mut self,
        body: Vec<u8>,
        content_type: Option<String>,
    ) -> wasmtime::Result<Result<(), Error>> {
        let seed = self.id_seed();
        let composer = &self.environment.composer;
        let row = match composer.reply(self.origin(&seed), body, content_type) {
            Ok(row) => row,
            Err(error) => return Ok(Err(error_to_guest(&error))),
        };
        self.count(&row)?;
        match self.reply {
            Some(earlier) => self.effects.outbox[earlier] = Arc::new(row),
            None => {
                self.reply = Some(self.effects.outbox.len());
                self.effects.outbox.push(Arc::new(row));
            }
        }
        Ok(Ok(()))
    }
}

impl Guest {
    fn compose(&self, message: Message) -> Result<OutboxRow, PublishError> {
        let names = [
            Some(&message.target),
            message.routing_key.as_ref(),
            message.ordering_key.as_ref(),
        ];
        if names.into_iter().flatten().any(|name| name.contains('\0')) {
            return Err(PublishError::Invalid(
                "a name contains a NUL character".into(),
            ));
        }
        let publish = Publish {
            headers: envelope::headers_from_guest(message.headers)
                .map_err(PublishError::Invalid)?,
            target: message.target,
            routing_key: message.routing_key,
            body: message.body,
            content_type: message.content_type,
            ordering_key: message.ordering_key,
            delay: message.delay.map(Duration::from_millis),
        };
        let seed = self.id_seed();
        self.environment
            .composer
            .publish(self.origin(&seed), self.published, publish)
    }

    fn count(&mut self, row: &OutboxRow) -> Result<(), Stop> {
        failpoint::pass_with(Point::MidHandler, &self.attempt.key);
        self.quota
            .message(&self.environment.limits, row.message.size_bytes())
    }

    fn id_seed(&self) -> IdSeed {
        if !self.environment.is_idempotent() {
            return IdSeed::Fresh;
        }
        IdSeed::Stable {
            consumer: self.environment.consumer.clone(),
            key: self.attempt.key.to_vec(),
            generation: self.environment.generation.load(Ordering::Acquire),
        }
    }

    fn origin<'a>(&'a self, seed: &'a IdSeed) -> Origin<'a> {
        Origin {
            message: &self.attempt.message,
            seed,
            lane: self.attempt.lane,
            now_seconds: u64::try_from(self.attempt.now_micros / 1_000_000).unwrap_or(0),
        }
    }
}

fn error_to_guest(error: &PublishError) -> Error {
    let kind = match error {
        PublishError::UnknownTarget(..) => ErrorKind::UnknownTarget,
        PublishError::Invalid(_) => ErrorKind::Invalid,
        PublishError::NoReplyTo => ErrorKind::NoReplyTo,
    };
    Error {
        kind,
        message: error.to_string(),
    }
}
