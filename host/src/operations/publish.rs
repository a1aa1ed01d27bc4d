//! Publishing what a person has written, with an answer for each message.
//!
//! A message is published once. It counts as confirmed when the broker has confirmed it and not returned
//! it; when the connection is lost, nobody knows of those under way, and they are not sent again.

use std::collections::HashSet;

use futures_util::future::join_all;
use lapin::message::BasicReturnMessage;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{Channel, Confirmation, Connection, ErrorKind, PublisherConfirm};
use serde::{Deserialize, Serialize};

use crate::amqp::{Address, ConnectError};
use crate::message::Message;
use crate::store::Session;

use super::wire::Wire;
use super::{OperationError, Operations};

/// Destinations whose first message goes alone, so that a mistyped name is found before others follow.
const TRIED_DESTINATIONS: usize = 64;

/// The delivery mode of messages that survive a restart of the broker.
const PERSISTENT: u8 = 2;

/// What became of a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    Confirmed,
    /// It is nowhere, and why.
    Refused(String),
    /// It may have arrived.
    Unknown(String),
    /// It was not sent, because of what became of others.
    NotSent,
}

impl Operations {
    /// Appends to queues of the embedded broker. The queues of the configuration's consumers are made.
    pub(super) async fn publish(
        &self,
        session: &mut dyn Session,
        messages: Vec<Wire>,
    ) -> Result<Vec<Answer>, OperationError> {
        let messages = messages
            .into_iter()
            .map(Message::try_from)
            .collect::<Result<Vec<_>, _>>()?;
        let Some(queues) = session.queues() else {
            return Err(OperationError::Refused(
                "this store has no embedded broker".into(),
            ));
        };
        for consumer in &self.config.consumers {
            queues.declare(&consumer.queue).await?;
        }
        let mut answers = vec![Answer::NotSent; messages.len()];
        let mut known = Vec::with_capacity(messages.len());
        let mut found = HashSet::new();
        for (index, message) in messages.into_iter().enumerate() {
            let problem = if !message.exchange.is_empty() {
                Some(format!(
                    "the embedded broker has no exchanges, and so no `{}`",
                    message.exchange
                ))
            } else if !found.contains(&message.routing_key)
                && queues.depth(&message.routing_key).await?.is_none()
            {
                Some(format!(
                    "the embedded broker has no queue `{}`",
                    message.routing_key
                ))
            } else {
                None
            };
            match problem {
                Some(problem) => {
                    answers[index] = Answer::Refused(problem);
                    return Ok(answers);
                }
                None => {
                    found.insert(message.routing_key.clone());
                    known.push((message.routing_key.clone(), message));
                }
            }
        }
        let taken = queues.publish(&known).await?;
        for ((answer, taken), (queue, _)) in answers.iter_mut().zip(taken).zip(&known) {
            *answer = if taken {
                Answer::Confirmed
            } else {
                Answer::Refused(format!("the queue `{queue}` is gone"))
            };
        }
        Ok(answers)
    }
}

/// A connection for publishing to RabbitMQ.
pub struct AmqpPublish {
    connection: Connection,
    channel: Channel,
    tried: HashSet<(String, String)>,
}

impl AmqpPublish {
    pub async fn connect(address: &Address) -> Result<Self, ConnectError> {
        let connection = address.connect("hapax publish").await?;
        let broken = |error| ConnectError::Broker(address.url.clone(), error);
        let channel = connection.create_channel().await.map_err(broken)?;
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await
            .map_err(broken)?;
        Ok(Self {
            connection,
            channel,
            tried: HashSet::new(),
        })
    }

    /// Publishes in order, persistent unless a message says otherwise, and waits for the broker's answers.
    pub async fn publish(&mut self, messages: &[Message]) -> Vec<Answer> {
        let mut answers = Vec::with_capacity(messages.len());
        let mut rest = messages;
        while let Some(first) = rest.first() {
            let new = self.is_new(first);
            let together = if new {
                1
            } else {
                rest.iter()
                    .position(|next| self.is_new(next))
                    .unwrap_or(rest.len())
            };
            let (block, others) = rest.split_at(together);
            answers.extend(self.publish_together(block).await);
            if answers.iter().any(|answer| *answer != Answer::Confirmed) {
                answers.resize(messages.len(), Answer::NotSent);
                return answers;
            }
            if new {
                self.tried.insert(destination(first));
            }
            rest = others;
        }
        answers
    }

    fn is_new(&self, message: &Message) -> bool {
        self.tried.len() < TRIED_DESTINATIONS && !self.tried.contains(&destination(message))
    }

    async fn publish_together(&self, messages: &[Message]) -> Vec<Answer> {
        let mut sent = Vec::with_capacity(messages.len());
        for message in messages {
            sent.push(send(&self.channel, message).await);
        }
        let results = join_all(sent.into_iter().map(async |sent| match sent {
            Ok(confirm) => confirm.await.map_err(|error| unknown(&error)),
            Err(answer) => Err(answer),
        }))
        .await;
        let answers = judge(messages, results);
        match &answers[..] {
            // What closed the channel under one message alone is this message's.
            [Answer::Unknown(why)] if self.connection.status().connected() => {
                vec![Answer::Refused(why.clone())]
            }
            _ => answers,
        }
    }

    /// Leaves in an orderly way.
    pub async fn close(self) {
        let _ = self.connection.close(200, ShortString::from("OK")).await;
    }
}

fn destination(message: &Message) -> (String, String) {
    (message.exchange.clone(), message.routing_key.clone())
}

async fn send(channel: &Channel, message: &Message) -> Result<PublisherConfirm, Answer> {
    let mut properties = message.properties.clone();
    if properties.delivery_mode().is_none() {
        properties = properties.with_delivery_mode(PERSISTENT);
    }
    let names =
        [&message.exchange, &message.routing_key].map(|name| ShortString::try_new(name.as_str()));
    let [Ok(exchange), Ok(routing_key)] = names else {
        return Err(Answer::Refused("a name is over 255 bytes".into()));
    };
    let options = BasicPublishOptions {
        mandatory: true,
        ..BasicPublishOptions::default()
    };
    channel
        .basic_publish(exchange, routing_key, options, &message.body, properties)
        .await
        .map_err(|error| unknown(&error))
}

fn unknown(error: &lapin::Error) -> Answer {
    match error.kind() {
        ErrorKind::ProtocolError(protocol) => Answer::Unknown(protocol.get_message().to_string()),
        _ => Answer::Unknown(error.to_string()),
    }
}

/// Matches returns to messages by what they hold: the confirm that carries a return need not be that of
/// the message that came back.
fn judge(messages: &[Message], results: Vec<Result<Confirmation, Answer>>) -> Vec<Answer> {
    let mut returned = Vec::new();
    let mut answers = results
        .into_iter()
        .map(|result| match result {
            Ok(Confirmation::Ack(message)) => {
                returned.extend(message);
                Answer::Confirmed
            }
            Ok(Confirmation::Nack(message)) => {
                returned.extend(message);
                Answer::Refused("the broker could not take it (nack)".into())
            }
            Ok(Confirmation::NotRequested) => {
                Answer::Unknown("the broker sends no confirms".into())
            }
            Err(answer) => answer,
        })
        .collect::<Vec<_>>();
    for back in returned {
        let place = messages
            .iter()
            .zip(&answers)
            .position(|(message, answer)| *answer == Answer::Confirmed && is(message, &back));
        if let Some(place) = place {
            let text = back.reply_text.as_str();
            answers[place] = Answer::Refused(format!("no queue takes it ({text})"));
        }
    }
    answers
}

fn is(message: &Message, back: &BasicReturnMessage) -> bool {
    let delivery = &back.delivery;
    delivery.exchange.as_str() == message.exchange
        && delivery.routing_key.as_str() == message.routing_key
        && delivery.properties.message_id() == message.properties.message_id()
        && delivery.properties.headers() == message.properties.headers()
        && delivery.data == message.body
}

/// The beginning of a name that is too long to repeat.
pub(super) fn start(name: &str) -> String {
    name.chars().take(32).collect()
}
