//! The message and the surroundings of a test run, put together call by call.

use std::collections::BTreeMap;

use serde::Serialize;

use super::host::{self, Host};
use super::run::{Handler, Run};
use super::script::{Answer, Script, rows, violation};
use crate::context::{Dialect, TraceContext};
use crate::sql::{ErrorKind, Value};
use crate::{Header, HeaderValue, Properties, Timestamp};

/// A message to run a handler with, and what the host says around it.
///
/// It can run several handlers, or one several times: each run starts from what is set here.
#[derive(Clone, Debug)]
pub struct Message {
    pub(crate) envelope: crate::Message,
    pub(crate) consumer: String,
    pub(crate) key: Vec<u8>,
    pub(crate) attempt: u32,
    pub(crate) redelivered: bool,
    pub(crate) now: Timestamp,
    pub(crate) config: BTreeMap<String, String>,
    pub(crate) dialect: Dialect,
    pub(crate) trace: Option<TraceContext>,
    pub(crate) script: Script,
    pub(crate) state: BTreeMap<String, Vec<u8>>,
    pub(crate) unknown_targets: Vec<String>,
}

/// 2026-01-01T00:00:00Z
const NOW: Timestamp = Timestamp(1_767_225_600_000_000);

impl Message {
    /// A message with a JSON body.
    ///
    /// # Panics
    /// When the value has no JSON form.
    pub fn json<T: Serialize + ?Sized>(body: &T) -> Self {
        let body = serde_json::to_vec(body).expect("the body of a test message has a JSON form");
        Self::with_body(body, Some("application/json"))
    }

    /// A message with a text body.
    pub fn text(body: impl Into<String>) -> Self {
        Self::with_body(body.into().into_bytes(), Some("text/plain; charset=utf-8"))
    }

    /// A message with any body.
    pub fn bytes(body: impl Into<Vec<u8>>) -> Self {
        Self::with_body(body.into(), None)
    }

    fn with_body(body: Vec<u8>, content_type: Option<&str>) -> Self {
        let mut properties = no_properties();
        properties.content_type = content_type.map(str::to_owned);
        Self::from(crate::Message {
            exchange: String::new(),
            routing_key: "test".to_owned(),
            properties,
            headers: Vec::new(),
            body,
        })
    }

    /// Changes the message itself: `.envelope(|m| m.properties.priority = Some(9))`.
    pub fn envelope(mut self, change: impl FnOnce(&mut crate::Message)) -> Self {
        change(&mut self.envelope);
        self
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: impl Into<HeaderValue>) -> Self {
        let header = Header {
            name: name.to_owned(),
            value: value.into(),
        };
        self.envelope.headers.push(header);
        self
    }

    /// Sets the routing key. `test` when it is not set.
    pub fn routing_key(self, key: &str) -> Self {
        self.envelope(|message| message.routing_key = key.to_owned())
    }

    /// Sets the property `message-id`.
    pub fn message_id(self, id: &str) -> Self {
        self.envelope(|message| message.properties.message_id = Some(id.to_owned()))
    }

    /// Sets the property `reply-to`, without which a handler cannot reply.
    pub fn reply_to(self, queue: &str) -> Self {
        self.envelope(|message| message.properties.reply_to = Some(queue.to_owned()))
    }

    /// Sets the idempotency key. `test` when it is not set.
    pub fn key(mut self, key: impl AsRef<[u8]>) -> Self {
        self.key = key.as_ref().to_owned();
        self
    }

    /// Sets the consumer's name. `test` when it is not set.
    pub fn consumer(mut self, name: &str) -> Self {
        self.consumer = name.to_owned();
        self
    }

    /// Sets the number of the attempt. 1 when it is not set.
    pub fn attempt(mut self, attempt: u32) -> Self {
        self.attempt = attempt;
        self
    }

    /// Marks the message as delivered again by the broker.
    pub fn redelivered(mut self) -> Self {
        self.redelivered = true;
        self
    }

    /// Sets the time. 2026-01-01T00:00:00Z when it is not set.
    pub fn now(mut self, now: Timestamp) -> Self {
        self.now = now;
        self
    }

    /// Sets a value of the consumer's `config` table.
    pub fn config(mut self, name: &str, value: &str) -> Self {
        self.config.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Sets the dialect of the store. Postgres when it is not set.
    pub fn dialect(mut self, dialect: Dialect) -> Self {
        self.dialect = dialect;
        self
    }

    /// Sets the trace the message belongs to.
    pub fn trace(mut self, trace: TraceContext) -> Self {
        self.trace = Some(trace);
        self
    }

    /// Answers queries that contain this part with these rows.
    ///
    /// Of several answers that match a statement, each is used once, in order, and the last one
    /// from then on.
    pub fn rows<R: Into<Vec<Value>>>(
        mut self,
        statement_part: &str,
        columns: &[&str],
        values: impl IntoIterator<Item = R>,
    ) -> Self {
        let values = values.into_iter().map(Into::into).collect();
        self.script.add(statement_part, rows(columns, values));
        self
    }

    /// Says that writes that contain this part touch so many rows.
    pub fn affected(mut self, statement_part: &str, rows: u64) -> Self {
        self.script.add(statement_part, Answer::Affected(rows));
        self
    }

    /// Lets a constraint say no to statements that contain this part.
    pub fn violates(mut self, statement_part: &str, kind: ErrorKind, constraint: &str) -> Self {
        self.script.add(statement_part, violation(kind, constraint));
        self
    }

    /// Sets a key of the consumer's state, at version 1.
    pub fn state(mut self, key: &str, value: impl AsRef<[u8]>) -> Self {
        self.state.insert(key.to_owned(), value.as_ref().to_owned());
        self
    }

    /// Leaves a target out of the configuration. Every other name is a target.
    pub fn unknown_target(mut self, name: &str) -> Self {
        self.unknown_targets.push(name.to_owned());
        self
    }

    /// Runs the handler. A panic of the handler is a panic of the test.
    pub fn run<'m, Parameters>(&'m self, handler: impl Handler<'m, Parameters>) -> Run {
        let running = host::install(Host::new(self));
        let result = handler.call(&self.envelope);
        Run::new(result, running.finish())
    }
}

impl From<crate::Message> for Message {
    fn from(envelope: crate::Message) -> Self {
        Self {
            envelope,
            consumer: "test".to_owned(),
            key: b"test".to_vec(),
            attempt: 1,
            redelivered: false,
            now: NOW,
            config: BTreeMap::new(),
            dialect: Dialect::Postgres,
            trace: None,
            script: Script::default(),
            state: BTreeMap::new(),
            unknown_targets: Vec::new(),
        }
    }
}

fn no_properties() -> Properties {
    Properties {
        content_type: None,
        content_encoding: None,
        delivery_mode: None,
        priority: None,
        correlation_id: None,
        reply_to: None,
        expiration: None,
        message_id: None,
        timestamp: None,
        type_: None,
        user_id: None,
        app_id: None,
        cluster_id: None,
    }
}
