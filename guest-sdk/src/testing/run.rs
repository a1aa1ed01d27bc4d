//! What a test run came to.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::host::Host;
use crate::log::Level;
use crate::sql::Value;
use crate::{Failure, FromMessage, HandlerResult, Header, Outcome};

/// What the handler said, and what it asked for.
#[derive(Clone, Debug)]
#[must_use]
pub struct Run {
    /// What the handler said. A deferred statement that a constraint refused fails the message
    /// after the handler, as it does in the host.
    pub result: Result<Outcome, Failure>,
    /// Every statement, in order, also of a run that failed.
    pub sql: Vec<Statement>,
    /// The messages that leave. Empty after a failure.
    pub outbox: Vec<Sent>,
    /// The answer. `None` after a failure.
    pub reply: Option<Reply>,
    /// The consumer's state. After a failure, as it was before.
    pub state: BTreeMap<String, Vec<u8>>,
    /// The log lines, in order, also of a run that failed.
    pub log: Vec<LogLine>,
}

impl Run {
    pub(crate) fn new(result: Result<Outcome, Failure>, mut host: Host) -> Self {
        let result = match host.refused.take() {
            Some(refused) => result.and(Err(refused)),
            None => result,
        };
        let state = match result {
            Ok(_) => host
                .state
                .into_iter()
                .map(|(key, entry)| (key, entry.value))
                .collect(),
            Err(_) => host.before.state,
        };
        let committed = result.is_ok();
        Self {
            outbox: if committed { host.outbox } else { Vec::new() },
            reply: host.reply.filter(|_| committed),
            sql: host.sql,
            log: host.log,
            state,
            result,
        }
    }
}

/// A statement that the handler ran.
#[derive(Clone, Debug, PartialEq)]
pub struct Statement {
    /// Which function of [`sql`](crate::sql) it went through.
    pub kind: StatementKind,
    /// Its text.
    pub statement: String,
    /// Its parameters.
    pub parameters: Vec<Value>,
}

/// Which function of [`sql`](crate::sql) a statement went through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum StatementKind {
    Query,
    Execute,
    Defer,
}

/// A message that leaves.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Sent {
    /// What [`outbox`](crate::outbox) returned.
    pub message_id: String,
    pub target: String,
    pub routing_key: Option<String>,
    pub body: Vec<u8>,
    pub content_type: Option<String>,
    pub headers: Vec<Header>,
    pub ordering_key: Option<String>,
    pub delay: Option<Duration>,
}

impl Sent {
    /// The body, read as JSON.
    ///
    /// # Panics
    /// When it is not.
    pub fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body).expect("the body is the JSON that the test reads")
    }
}

/// The answer to a message.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Reply {
    pub body: Vec<u8>,
    pub content_type: Option<String>,
}

/// A line that the handler logged.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct LogLine {
    pub level: Level,
    pub message: String,
    pub fields: Vec<(String, String)>,
}

/// Whatever `#[handler]` accepts: a function of parameters that can be read from a message.
pub trait Handler<'m, Parameters> {
    /// Takes the message apart and calls the function.
    fn call(self, message: &'m crate::Message) -> Result<Outcome, Failure>;
}

macro_rules! handlers {
    ($(($($parameter:ident)*))+) => {$(
        impl<'m, F, R, $($parameter),*> Handler<'m, ($($parameter,)*)> for F
        where
            F: FnOnce($($parameter),*) -> R,
            R: HandlerResult,
            $($parameter: FromMessage<'m>,)*
        {
            // A handler without parameters does not look at the message.
            #[allow(unused_variables)]
            fn call(self, message: &'m crate::Message) -> Result<Outcome, Failure> {
                self($($parameter::from_message(message)?),*).into_result()
            }
        }
    )+};
}

handlers! { () (A) (A B) (A B C) (A B C D) }
