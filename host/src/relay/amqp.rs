//! Publishing to RabbitMQ with confirms, `mandatory` and returns.
//!
//! One bad row closes the whole channel (a missing exchange, a forbidden one), and nothing is then known
//! of the rows beside it. Those go again one by one on a channel of their own, until the bad ones are
//! found out; the good ones have gone at most twice.

use std::collections::{HashMap, HashSet};

use async_trait::async_trait;
use lapin::message::BasicReturnMessage;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation, Connection, PublisherConfirm};

use crate::amqp::{self, Address, hand_over};
use crate::failpoint::{self, Point};
use crate::message::Message;
use crate::store::OutboxRecord;

use super::{Lost, Publisher, Sent};

/// What a content header frame holds beside the properties.
const FRAME_OVERHEAD_BYTES: usize = 64;

/// How often a row may take the connection down before it is the row's fault.
const MAX_LOSSES: u32 = 2;

/// A connection of its own: a publisher that the broker blocks must not stop the consumers.
pub struct AmqpPublisher {
    address: Address,
    link: Option<Link>,
    /// Blocks in a row that lost the connection.
    losses: u32,
}

struct Link {
    connection: Connection,
    channel: Channel,
}

/// What is known of a row after its publish.
enum Fate {
    Known(Sent),
    /// The channel closed before the broker said anything.
    Unknown,
}

impl AmqpPublisher {
    pub fn new(address: Address) -> Self {
        Self {
            address,
            link: None,
            losses: 0,
        }
    }

    async fn link(&mut self) -> Result<&Link, Lost> {
        let usable = self
            .link
            .as_ref()
            .is_some_and(|link| link.connection.status().connected());
        if !usable {
            self.link = None;
        }
        let connected = match self.link.take() {
            Some(Link {
                connection,
                channel,
            }) if channel.status().connected() => Link {
                connection,
                channel,
            },
            Some(Link { connection, .. }) => {
                let channel = open_channel(&connection).await?;
                Link {
                    connection,
                    channel,
                }
            }
            None => {
                let connection = self
                    .address
                    .connect("hapax relay")
                    .await
                    .map_err(|error| Lost(error.to_string()))?;
                let channel = open_channel(&connection).await?;
                Link {
                    connection,
                    channel,
                }
            }
        };
        Ok(self.link.insert(connected))
    }

    /// Publishes rows on one channel; unknown ones are those that the channel did not survive.
    async fn publish_together(&mut self, rows: &[OutboxRecord]) -> Result<Vec<Fate>, Lost> {
        let link = self.link().await?;
        let frame_max = link.connection.configuration().frame_max();
        let frame_max = usize::try_from(frame_max).unwrap_or(usize::MAX);
        let sending = rows
            .iter()
            .map(|record| send(&link.channel, record, frame_max));
        let sent = hand_over(sending).await;
        failpoint::pass(Point::BeforeConfirm);
        // One after the other: they come in this order, and only the one that is waited for wakes anybody.
        let mut confirms = Vec::with_capacity(rows.len());
        for sent in sent {
            confirms.push(match sent {
                Sending::Refused(text) => Confirm::Refused(text),
                Sending::Failed => Confirm::Lost,
                Sending::Sent(confirm) => match confirm.await {
                    Ok(confirmation) => Confirm::of(confirmation),
                    Err(_) => Confirm::Lost,
                },
            });
        }
        let alive = link.channel.status().connected();
        let connected = link.connection.status().connected();
        let fates = judge(rows, confirms, alive);
        if !connected && fates.iter().any(|fate| matches!(fate, Fate::Unknown)) {
            self.link = None;
            return Err(Lost(
                "the connection was lost while messages were under way".into(),
            ));
        }
        Ok(fates)
    }

    /// Publishes one row on a channel that it may break.
    async fn publish_alone(&mut self, record: &OutboxRecord) -> Result<Sent, Lost> {
        let link = self.link().await?;
        let frame_max =
            usize::try_from(link.connection.configuration().frame_max()).unwrap_or(usize::MAX);
        let failure = match send(&link.channel, record, frame_max).await {
            Sending::Refused(text) => return Ok(Sent::Refused(text)),
            Sending::Failed => None,
            Sending::Sent(confirm) => match confirm.await {
                Ok(Confirmation::Ack(None) | Confirmation::NotRequested) => {
                    return Ok(Sent::Confirmed);
                }
                Ok(Confirmation::Ack(Some(returned))) => {
                    return Ok(Sent::Returned(returned.reply_text.to_string()));
                }
                Ok(Confirmation::Nack(_)) => None,
                Err(error) => Some(error.to_string()),
            },
        };
        if !link.connection.status().connected() {
            self.link = None;
            return Err(Lost(
                "the connection was lost while a message was under way".into(),
            ));
        }
        let reason = if link.channel.status().connected() {
            "the broker refused the message (nack)".to_owned()
        } else {
            failure.unwrap_or_else(|| "the broker closed the channel".to_owned())
        };
        Ok(Sent::Refused(reason))
    }

    /// One row after the other. A row that takes the connection down again and again is refused.
    async fn quarantine(
        &mut self,
        rows: &[OutboxRecord],
        fates: Vec<Fate>,
    ) -> Result<Vec<Sent>, Lost> {
        let mut results = Vec::with_capacity(rows.len());
        for (record, fate) in rows.iter().zip(fates) {
            let sent = match fate {
                Fate::Known(sent) => sent,
                Fate::Unknown => self.publish_patiently(record).await?,
            };
            results.push(sent);
        }
        Ok(results)
    }

    async fn publish_patiently(&mut self, record: &OutboxRecord) -> Result<Sent, Lost> {
        for _ in 0..MAX_LOSSES {
            // Without a connection nothing can be held against the row.
            self.link().await?;
            match self.publish_alone(record).await {
                Ok(sent) => return Ok(sent),
                Err(Lost(text)) => tracing::debug!(error = %text, "Connection lost by one message"),
            }
        }
        Ok(Sent::Refused(
            "the broker closes the connection when it gets this message".into(),
        ))
    }
}

#[async_trait]
impl Publisher for AmqpPublisher {
    async fn publish(&mut self, rows: &[OutboxRecord]) -> Result<Vec<Sent>, Lost> {
        let fates = if self.losses >= MAX_LOSSES {
            rows.iter().map(|_| Fate::Unknown).collect()
        } else {
            match self.publish_together(rows).await {
                Ok(fates) => fates,
                Err(lost) => {
                    // Only a connection that was there can be lost to a row.
                    self.losses += u32::from(self.link().await.is_ok());
                    return Err(lost);
                }
            }
        };
        let sent = self.quarantine(rows, fates).await?;
        self.losses = 0;
        Ok(sent)
    }

    async fn close(&mut self) {
        if let Some(link) = self.link.take() {
            amqp::close(&link.connection).await;
        }
    }
}

async fn open_channel(connection: &Connection) -> Result<Channel, Lost> {
    let lost = |error: lapin::Error| Lost(error.to_string());
    let channel = connection.create_channel().await.map_err(lost)?;
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await
        .map_err(lost)?;
    Ok(channel)
}

enum Sending {
    Sent(PublisherConfirm),
    /// It would break the protocol, and the connection with it.
    Refused(String),
    Failed,
}

async fn send(channel: &Channel, record: &OutboxRecord, frame_max: usize) -> Sending {
    let message = &record.row.message;
    let names =
        [&message.exchange, &message.routing_key].map(|name| ShortString::try_new(name.as_str()));
    let [Ok(exchange), Ok(routing_key)] = names else {
        return Sending::Refused("a name is over 255 bytes".into());
    };
    // The other properties are short texts, which fit into the smallest frame that there is.
    let header_bytes = match message.headers() {
        Some(_) => message.encoded_properties().len() + FRAME_OVERHEAD_BYTES,
        None => 0,
    };
    if frame_max > 0 && header_bytes > frame_max {
        return Sending::Refused(format!(
            "the headers have {header_bytes} bytes; the broker allows frames of {frame_max}"
        ));
    }
    let options = BasicPublishOptions {
        mandatory: true,
        ..BasicPublishOptions::default()
    };
    match channel
        .basic_publish(
            exchange,
            routing_key,
            options,
            &message.body,
            message.properties.clone(),
        )
        .await
    {
        Ok(confirm) => {
            failpoint::pass(Point::AfterPublish);
            Sending::Sent(confirm)
        }
        Err(_) => Sending::Failed,
    }
}

/// What the broker has said of one publish.
enum Confirm {
    /// It confirms or refuses, and with it comes a message that it returns: not always the one that was published.
    Ack(Option<Return>),
    Nack(Option<Return>),
    /// It was not sent.
    Refused(String),
    Lost,
}

/// A message that came back.
struct Return {
    exchange: String,
    routing_key: String,
    message_id: Option<String>,
    text: String,
}

impl Confirm {
    fn of(confirmation: Confirmation) -> Self {
        let returned = |message: Option<BasicReturnMessage>| {
            message.map(|message| Return {
                exchange: message.delivery.exchange.to_string(),
                routing_key: message.delivery.routing_key.to_string(),
                message_id: id(&message.delivery.properties),
                text: message.reply_text.to_string(),
            })
        };
        match confirmation {
            Confirmation::Ack(message) => Self::Ack(returned(message)),
            Confirmation::Nack(message) => Self::Nack(returned(message)),
            Confirmation::NotRequested => Self::Ack(None),
        }
    }

    fn returned(&self) -> Option<&Return> {
        match self {
            Self::Ack(returned) | Self::Nack(returned) => returned.as_ref(),
            Self::Refused(_) | Self::Lost => None,
        }
    }
}

impl Return {
    fn may_be(&self, message: &Message) -> bool {
        self.exchange == message.exchange
            && self.routing_key == message.routing_key
            && self.message_id == id(&message.properties)
    }
}

fn id(properties: &BasicProperties) -> Option<String> {
    properties.message_id().as_ref().map(ToString::to_string)
}

/// Matches returns to rows by message id and destination: a confirm for several messages at once does not say
/// which of them came back, and brokers add headers to what they return, and take some off. Where that leaves
/// anything open (two rows of one id, or a return that is nobody's), the rows in question are unknown: each
/// goes again alone, where the return belongs to the confirm.
fn judge(rows: &[OutboxRecord], confirms: Vec<Confirm>, alive: bool) -> Vec<Fate> {
    let mut returned = HashMap::new();
    let mut open = HashSet::new();
    for one in confirms.iter().filter_map(Confirm::returned) {
        let meant = (0..rows.len())
            .filter(|row| one.may_be(&rows[*row].row.message))
            .collect::<Vec<_>>();
        match meant[..] {
            [row] => {
                returned.insert(row, one.text.clone());
            }
            [] => {
                tracing::warn!(
                    exchange = %one.exchange, routing_key = %one.routing_key,
                    "The broker returns a message with another id than it was sent with; \
                     all that went with it are sent again, one by one"
                );
                open.extend(0..rows.len());
            }
            _ => open.extend(meant),
        }
    }
    let fates = confirms.into_iter().enumerate();
    fates
        .map(|(row, confirm)| match confirm {
            Confirm::Refused(reason) => Fate::Known(Sent::Refused(reason)),
            Confirm::Lost => Fate::Unknown,
            // lapin nacks what was pending when a channel closes.
            Confirm::Nack(_) if !alive => Fate::Unknown,
            Confirm::Ack(_) | Confirm::Nack(_) if returned.contains_key(&row) => {
                let text = returned.remove(&row).unwrap_or_default();
                Fate::Known(Sent::Returned(text))
            }
            Confirm::Ack(_) if open.contains(&row) => Fate::Unknown,
            Confirm::Ack(_) => Fate::Known(Sent::Confirmed),
            Confirm::Nack(_) => Fate::Known(Sent::Refused(
                "the broker refused the message (nack)".into(),
            )),
        })
        .collect()
}

#[cfg(test)]
mod tests;
