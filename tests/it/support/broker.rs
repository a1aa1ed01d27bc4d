//! The test's side of RabbitMQ: virtual hosts, queues, publishing with confirms, reading what
//! came out, and how much is left.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions,
    ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::wait;

/// What a log-in may take.
const ANSWER_PATIENCE: Duration = Duration::from_secs(20);

/// Confirms that may be outstanding while publishing.
const PUBLISH_WINDOW: usize = 2_000;

/// The management plugin's HTTP interface.
#[derive(Clone)]
pub struct Api {
    agent: ureq::Agent,
    base: Arc<str>,
}

/// A virtual host that belongs to one test.
pub struct VirtualHost {
    pub url: String,
    pub name: String,
    api: Api,
}

/// A message to publish. Persistent unless the properties say otherwise.
#[derive(Clone, Debug, Default)]
pub struct Message {
    pub body: Vec<u8>,
    pub properties: BasicProperties,
}

/// A message that came out.
#[derive(Clone, Debug)]
pub struct Received {
    pub properties: BasicProperties,
    pub body: Vec<u8>,
}

/// What a queue says about itself. Messages that are out with a consumer are not in `ready`;
/// they return to it in the moment in which the consumer is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Depth {
    pub ready: u32,
    pub consumers: u32,
}

impl Message {
    pub fn json(body: &Value) -> Message {
        Message {
            body: body.to_string().into_bytes(),
            properties: BasicProperties::default().with_content_type("application/json".into()),
        }
    }

    pub fn bytes(body: impl Into<Vec<u8>>) -> Message {
        Message {
            body: body.into(),
            properties: BasicProperties::default(),
        }
    }
}

impl Received {
    pub fn message_id(&self) -> anyhow::Result<&str> {
        let id = self.properties.message_id().as_ref();
        Ok(id
            .context("a message without a message id came out")?
            .as_str())
    }

    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("not JSON: {}", String::from_utf8_lossy(&self.body)))
    }
}

impl Api {
    pub fn on_port(port: u16) -> Api {
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(20)))
            .build()
            .into();
        let base = format!("http://127.0.0.1:{port}/api").into();
        Api { agent, base }
    }

    pub async fn answers(&self) -> anyhow::Result<()> {
        self.get("/vhosts").await.map(drop)
    }

    /// The version of the broker, as it tells it.
    pub async fn version(&self) -> anyhow::Result<String> {
        let overview = self.get("/overview").await?;
        let version = overview["rabbitmq_version"].as_str();
        Ok(version.context("the broker tells no version")?.to_owned())
    }

    pub async fn create_virtual_host(&self, name: &str) -> anyhow::Result<()> {
        self.create_virtual_host_with(name, json!({})).await
    }

    /// The same with settings, such as the type of queues that are declared without one.
    pub async fn create_virtual_host_with(
        &self,
        name: &str,
        settings: Value,
    ) -> anyhow::Result<()> {
        self.put(&format!("/vhosts/{name}"), settings).await?;
        let all = json!({"configure": ".*", "write": ".*", "read": ".*"});
        self.put(&format!("/permissions/{name}/guest"), all).await
    }

    async fn get(&self, path: &str) -> anyhow::Result<Value> {
        let (agent, url) = (self.agent.clone(), format!("{}{path}", self.base));
        let answer = tokio::task::spawn_blocking(move || -> anyhow::Result<Value> {
            let request = agent.get(&url).header("authorization", LOGIN);
            let text = request.call()?.body_mut().read_to_string()?;
            Ok(serde_json::from_str(&text)?)
        });
        answer.await?.with_context(|| format!("GET {path}"))
    }

    async fn put(&self, path: &str, body: Value) -> anyhow::Result<()> {
        let (agent, url) = (self.agent.clone(), format!("{}{path}", self.base));
        let answer = tokio::task::spawn_blocking(move || -> anyhow::Result<()> {
            let request = agent.put(&url).header("authorization", LOGIN);
            request
                .content_type("application/json")
                .send(body.to_string())?;
            Ok(())
        });
        answer.await?.with_context(|| format!("PUT {path}"))
    }
}

/// `guest:guest`.
const LOGIN: &str = "Basic Z3Vlc3Q6Z3Vlc3Q=";

impl VirtualHost {
    pub fn new(url: String, name: String, api: Api) -> VirtualHost {
        VirtualHost { url, name, api }
    }

    /// The same virtual host through another address, such as a proxy's.
    pub fn url_through(&self, address: std::net::SocketAddr) -> String {
        format!("amqp://guest:guest@{address}/{}", self.name)
    }

    pub async fn connect(&self) -> anyhow::Result<Connection> {
        let connection = Connection::connect(&self.url, ConnectionProperties::default());
        // A broker that is just starting may take a connection and leave it at that.
        timeout(ANSWER_PATIENCE, connection)
            .await
            .context("the broker does not answer")?
            .context("cannot log in to the broker")
    }

    /// The names of all queues.
    pub async fn queues(&self) -> anyhow::Result<Vec<String>> {
        let queues = self.api.get(&format!("/queues/{}", self.name)).await?;
        let queues = queues.as_array().context("not a list of queues")?;
        let name = |queue: &Value| Some(queue.get("name")?.as_str()?.to_owned());
        Ok(queues.iter().filter_map(name).collect())
    }

    /// The type of a queue, and the arguments that it was declared with.
    pub async fn declared_as(&self, queue: &str) -> anyhow::Result<(String, Value)> {
        let path = format!("/queues/{}/{queue}", self.name);
        let mut queue = self.api.get(&path).await?;
        let kind = queue["type"].as_str().context("a queue has a type")?;
        Ok((kind.to_owned(), queue["arguments"].take()))
    }

    /// Sets a policy for the queues whose names match a pattern.
    pub async fn set_policy(&self, pattern: &str, definition: Value) -> anyhow::Result<()> {
        let body = json!({"pattern": pattern, "definition": definition, "apply-to": "queues"});
        let path = format!("/policies/{}/of-the-test", self.name);
        self.api.put(&path, body).await
    }

    /// The same virtual host as somebody who may read and write, and declare nothing.
    pub async fn url_of_a_reader(&self) -> anyhow::Result<String> {
        let name = format!("reader-{}", self.name);
        let user = json!({"password": "read", "tags": ""});
        self.api.put(&format!("/users/{name}"), user).await?;
        let permissions = json!({"configure": "", "write": ".*", "read": ".*"});
        let path = format!("/permissions/{}/{name}", self.name);
        self.api.put(&path, permissions).await?;
        Ok(self.url.replace("guest:guest@", &format!("{name}:read@")))
    }

    pub async fn delete_queue(&self, queue: &str) -> anyhow::Result<()> {
        let connection = self.connect().await?;
        let channel = connection.create_channel().await?;
        channel
            .queue_delete(queue.into(), QueueDeleteOptions::default())
            .await?;
        close(connection).await
    }

    /// Takes all messages of a queue and goes away without a word about them, so many times; each of them comes
    /// back, unless the queue drops it.
    pub async fn take_and_leave(&self, queue: &str, times: usize) -> anyhow::Result<()> {
        for _ in 0..times {
            let connection = self.connect().await?;
            let channel = connection.create_channel().await?;
            let there = depth(&channel, queue).await?.ready as usize;
            let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
            let mut consumer = channel
                .basic_consume(queue.into(), "".into(), options, none)
                .await?;
            for _ in 0..there {
                let next = timeout(wait::PATIENCE, consumer.next()).await;
                next.context("messages do not come")?
                    .context("the broker ended the subscription")??;
            }
            close(connection).await?;
            self.left_over(queue).await?;
        }
        Ok(())
    }

    /// Declares durable classic queues.
    pub async fn declare(&self, queues: &[&str]) -> anyhow::Result<()> {
        let connection = self.connect().await?;
        let channel = connection.create_channel().await?;
        for queue in queues {
            let options = QueueDeclareOptions::durable();
            let none = FieldTable::default();
            channel
                .queue_declare((*queue).into(), options, none)
                .await?;
        }
        close(connection).await
    }

    /// Declares a durable queue with arguments.
    pub async fn declare_with(&self, queue: &str, arguments: FieldTable) -> anyhow::Result<()> {
        let connection = self.connect().await?;
        let channel = connection.create_channel().await?;
        let options = QueueDeclareOptions::durable();
        channel
            .queue_declare(queue.into(), options, arguments)
            .await?;
        close(connection).await
    }

    /// Declares a durable direct exchange.
    pub async fn declare_exchange(&self, exchange: &str, internal: bool) -> anyhow::Result<()> {
        let connection = self.connect().await?;
        let channel = connection.create_channel().await?;
        let options = ExchangeDeclareOptions {
            durable: true,
            internal,
            ..ExchangeDeclareOptions::default()
        };
        let (kind, none) = (ExchangeKind::Direct, FieldTable::default());
        channel
            .exchange_declare(exchange.into(), kind, options, none)
            .await?;
        close(connection).await
    }

    pub async fn bind(&self, queue: &str, exchange: &str, key: &str) -> anyhow::Result<()> {
        let connection = self.connect().await?;
        let channel = connection.create_channel().await?;
        let (options, none) = (QueueBindOptions::default(), FieldTable::default());
        channel
            .queue_bind(queue.into(), exchange.into(), key.into(), options, none)
            .await?;
        close(connection).await
    }

    /// Publishes to a queue, persistently; returns when the broker has confirmed every message.
    pub async fn publish(&self, queue: &str, messages: &[Message]) -> anyhow::Result<()> {
        let connection = self.connect().await?;
        let channel = connection.create_channel().await?;
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await?;
        for window in messages.chunks(PUBLISH_WINDOW) {
            publish_window(&channel, queue, window).await?;
        }
        close(connection).await
    }

    /// Asks the queue itself, not the broker's statistics, which lag behind.
    pub async fn depth(&self, queue: &str) -> anyhow::Result<Depth> {
        let connection = self.connect().await?;
        let channel = connection.create_channel().await?;
        let depth = depth(&channel, queue).await?;
        close(connection).await?;
        Ok(depth)
    }

    /// Waits until the queue has got everything back that a dead consumer held, and returns the number of messages in
    /// it. For one that was stopped see [`VirtualHost::until_left`].
    pub async fn left_over(&self, queue: &str) -> anyhow::Result<u32> {
        let what = format!("queue {queue} to lose its consumers");
        wait::until(&what, wait::PATIENCE, async || {
            let depth = self.depth(queue).await?;
            Ok((depth.consumers == 0).then_some(depth.ready))
        })
        .await
    }

    /// Waits until a queue has no consumers and so many messages. What a consumer had that has cancelled comes back
    /// later, with its channel; and a quorum queue whose leader is slow to answer says that it is empty.
    pub async fn until_left(&self, queue: &str, ready: usize) -> anyhow::Result<()> {
        let what = format!("consumers and messages of queue {queue}");
        wait::until_equal(&what, (0, ready), async || {
            let depth = self.depth(queue).await?;
            Ok((depth.consumers, depth.ready as usize))
        })
        .await
    }

    /// Takes out everything that is ready now.
    pub async fn drain(&self, queue: &str) -> anyhow::Result<Vec<Received>> {
        let connection = self.connect().await?;
        let channel = connection.create_channel().await?;
        let expected = depth(&channel, queue).await?.ready as usize;
        let mut received = Vec::with_capacity(expected);
        if expected > 0 {
            take(&channel, queue, expected, &mut received).await?;
        }
        close(connection).await?;
        Ok(received)
    }

    /// Waits for `count` messages and takes them out.
    pub async fn receive(&self, queue: &str, count: usize) -> anyhow::Result<Vec<Received>> {
        let connection = self.connect().await?;
        let channel = connection.create_channel().await?;
        let mut received = Vec::with_capacity(count);
        take(&channel, queue, count, &mut received).await?;
        close(connection).await?;
        Ok(received)
    }
}

async fn depth(channel: &Channel, queue: &str) -> anyhow::Result<Depth> {
    let passive = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::durable()
    };
    let declared = channel
        .queue_declare(queue.into(), passive, FieldTable::default())
        .await?;
    Ok(Depth {
        ready: declared.message_count(),
        consumers: declared.consumer_count(),
    })
}

async fn publish_window(channel: &Channel, queue: &str, window: &[Message]) -> anyhow::Result<()> {
    let mut confirms = Vec::with_capacity(window.len());
    for message in window {
        let properties = match message.properties.delivery_mode() {
            Some(_) => message.properties.clone(),
            None => message.properties.clone().with_delivery_mode(2),
        };
        let options = BasicPublishOptions {
            mandatory: true,
            ..BasicPublishOptions::default()
        };
        let confirm = channel
            .basic_publish("".into(), queue.into(), options, &message.body, properties)
            .await?;
        confirms.push(confirm);
    }
    for confirm in confirms {
        let confirm = confirm.await?;
        ensure!(
            confirm.is_ack(),
            "the broker refused a message: {confirm:?}"
        );
        if let Some(returned) = confirm.take_message() {
            bail!("the broker returned a message: {}", returned.reply_text);
        }
    }
    Ok(())
}

async fn take(
    channel: &Channel,
    queue: &str,
    count: usize,
    received: &mut Vec<Received>,
) -> anyhow::Result<()> {
    let mut consumer = channel
        .basic_consume(
            queue.into(),
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        )
        .await?;
    let mut last = None;
    while received.len() < count {
        let next = timeout(wait::PATIENCE, consumer.next());
        let Ok(next) = next.await else {
            let (missing, seconds) = (count - received.len(), wait::PATIENCE.as_secs());
            bail!("{missing} of {count} messages did not arrive in {queue} within {seconds} s");
        };
        let delivery = next.context("the broker ended the subscription")??;
        received.push(Received {
            properties: delivery.properties.clone(),
            body: delivery.data.clone(),
        });
        last = Some(delivery.acker);
    }
    if let Some(acker) = last {
        acker.ack(BasicAckOptions { multiple: true }).await?;
    }
    Ok(())
}

async fn close(connection: Connection) -> anyhow::Result<()> {
    connection.close(200, "OK".into()).await?;
    Ok(())
}
