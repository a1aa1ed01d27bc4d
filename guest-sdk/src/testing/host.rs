//! The double of the host: one per thread, there while a handler runs.
//!
//! The modules below have the names and signatures of the component's imports. They answer from
//! the script, write down what was asked, and understand no SQL.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::message::Message;
use super::run::{LogLine, Reply, Sent, Statement, StatementKind};
use super::script::Answer;
use crate::Failure;
use crate::state::Entry;

pub(crate) struct Host {
    pub(crate) before: Message,
    pub(crate) sql: Vec<Statement>,
    pub(crate) outbox: Vec<Sent>,
    pub(crate) reply: Option<Reply>,
    pub(crate) state: BTreeMap<String, Entry>,
    pub(crate) log: Vec<LogLine>,
    /// The failure of the first deferred statement that a constraint refused.
    pub(crate) refused: Option<Failure>,
    ids: u32,
}

impl Host {
    pub(crate) fn new(message: &Message) -> Self {
        let entry = |(key, value): (&String, &Vec<u8>)| {
            (
                key.clone(),
                Entry {
                    value: value.clone(),
                    version: 1,
                },
            )
        };
        Self {
            before: message.clone(),
            sql: Vec::new(),
            outbox: Vec::new(),
            reply: None,
            state: message.state.iter().map(entry).collect(),
            log: Vec::new(),
            refused: None,
            ids: 0,
        }
    }

    fn record(
        &mut self,
        kind: StatementKind,
        statement: &str,
        parameters: &[crate::sql::Value],
    ) -> Option<Answer> {
        let (statement, parameters) = (statement.to_owned(), parameters.to_owned());
        let answer = self.before.script.answer(&statement);
        self.sql.push(Statement {
            kind,
            statement,
            parameters,
        });
        answer
    }
}

thread_local! {
    static HOST: RefCell<Option<Host>> = const { RefCell::new(None) };
}

/// While it lives, the calls of this thread reach the double. A panic of the handler drops it.
pub(crate) struct Running(());

pub(crate) fn install(host: Host) -> Running {
    HOST.with_borrow_mut(|installed| {
        assert!(
            installed.is_none(),
            "a handler under test cannot run another handler"
        );
        *installed = Some(host);
    });
    Running(())
}

impl Running {
    pub(crate) fn finish(self) -> Host {
        HOST.take()
            .expect("the host is installed as long as Running lives")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        HOST.set(None);
    }
}

fn with<T>(call: impl FnOnce(&mut Host) -> T) -> T {
    HOST.with_borrow_mut(|host| {
        let host = host.as_mut().expect(
            "outside a component the host is there only inside hapax_guest::testing::Message::run",
        );
        call(host)
    })
}

pub(crate) mod context {
    use super::with;
    use crate::context::{Dialect, TraceContext};

    pub(crate) fn consumer() -> String {
        with(|host| host.before.consumer.clone())
    }

    pub(crate) fn key() -> Vec<u8> {
        with(|host| host.before.key.clone())
    }

    pub(crate) fn attempt() -> u32 {
        with(|host| host.before.attempt)
    }

    pub(crate) fn redelivered() -> bool {
        with(|host| host.before.redelivered)
    }

    pub(crate) fn now() -> i64 {
        with(|host| host.before.now.0)
    }

    pub(crate) fn new_id() -> String {
        with(|host| {
            host.ids += 1;
            format!("00000000-0000-4000-8000-{:012x}", host.ids)
        })
    }

    pub(crate) fn config(name: &str) -> Option<String> {
        with(|host| host.before.config.get(name).cloned())
    }

    pub(crate) fn dialect() -> Dialect {
        with(|host| host.before.dialect)
    }

    pub(crate) fn trace() -> Option<TraceContext> {
        with(|host| host.before.trace.clone())
    }
}

pub(crate) mod sql {
    use super::{Answer, StatementKind, with};
    use crate::bindings::hapax::plugin::sql::{Error, Rows, Value};
    use crate::{Failure, sql};

    pub(crate) fn query(statement: &str, parameters: &[Value]) -> Result<Rows, Error> {
        let none = Rows {
            columns: Vec::new(),
            rows: Vec::new(),
        };
        match with(|host| host.record(StatementKind::Query, statement, parameters)) {
            Some(Answer::Rows(rows)) => Ok(rows),
            Some(Answer::Violation(error)) => Err(error),
            Some(Answer::Affected(_)) | None => Ok(none),
        }
    }

    pub(crate) fn execute(statement: &str, parameters: &[Value]) -> Result<u64, Error> {
        match with(|host| host.record(StatementKind::Execute, statement, parameters)) {
            Some(Answer::Rows(rows)) => Ok(rows.rows.len() as u64),
            Some(Answer::Violation(error)) => Err(error),
            Some(Answer::Affected(rows)) => Ok(rows),
            None => Ok(1),
        }
    }

    pub(crate) fn defer(statement: &str, parameters: &[Value]) {
        with(|host| {
            let answer = host.record(StatementKind::Defer, statement, parameters);
            if let (Some(Answer::Violation(error)), None) = (answer, &host.refused) {
                host.refused = Some(Failure::from(sql::Error::from(error)));
            }
        });
    }
}

pub(crate) mod state {
    use super::with;
    use crate::state::{Entry, Mismatch};

    pub(crate) fn get(key: &str) -> Option<Entry> {
        with(|host| host.state.get(key).cloned())
    }

    pub(crate) fn put(key: &str, value: &[u8]) {
        with(|host| {
            let version = host.state.get(key).map_or(1, |entry| entry.version + 1);
            let entry = Entry {
                value: value.to_owned(),
                version,
            };
            host.state.insert(key.to_owned(), entry);
        });
    }

    pub(crate) fn put_if(key: &str, value: &[u8], version: Option<u64>) -> Result<(), Mismatch> {
        let current = get(key).map(|entry| entry.version);
        if current != version {
            return Err(Mismatch { current });
        }
        put(key, value);
        Ok(())
    }

    pub(crate) fn delete(key: &str) {
        with(|host| host.state.remove(key));
    }
}

pub(crate) mod outbox {
    use std::time::Duration;

    use super::{Reply, Sent, with};
    use crate::bindings::hapax::plugin::outbox::{Error, ErrorKind, Message};

    pub(crate) fn publish(message: &Message) -> Result<String, Error> {
        with(|host| {
            if host.before.unknown_targets.contains(&message.target) {
                let text = format!("the configuration has no target {}", message.target);
                return Err(Error {
                    kind: ErrorKind::UnknownTarget,
                    message: text,
                });
            }
            let message_id = format!("message-{}", host.outbox.len() + 1);
            let message = message.clone();
            host.outbox.push(Sent {
                message_id: message_id.clone(),
                target: message.target,
                routing_key: message.routing_key,
                body: message.body,
                content_type: message.content_type,
                headers: message.headers,
                ordering_key: message.ordering_key,
                delay: message.delay.map(Duration::from_millis),
            });
            Ok(message_id)
        })
    }

    pub(crate) fn reply(body: &[u8], content_type: Option<&str>) -> Result<(), Error> {
        with(|host| {
            if host.before.envelope.properties.reply_to.is_none() {
                let text = "the message has no reply-to property".to_owned();
                return Err(Error {
                    kind: ErrorKind::NoReplyTo,
                    message: text,
                });
            }
            let content_type = content_type.map(str::to_owned);
            host.reply = Some(Reply {
                body: body.to_owned(),
                content_type,
            });
            Ok(())
        })
    }
}

pub(crate) mod log {
    use super::{LogLine, with};
    use crate::log::Level;

    pub(crate) fn write(level: Level, message: &str, fields: &[(String, String)]) {
        let (message, fields) = (message.to_owned(), fields.to_owned());
        with(|host| {
            host.log.push(LogLine {
                level,
                message,
                fields,
            })
        });
    }
}
