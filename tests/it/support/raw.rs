//! An AMQP producer that writes its frames byte by byte, for messages that no client library would send.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::broker::VirtualHost;

const ANSWER_PATIENCE: Duration = Duration::from_secs(60);

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const FRAME_END: u8 = 0xce;
/// Bytes of a body in one frame: below any frame size that a broker asks for.
const BODY_FRAME_BYTES: usize = 4096 - 8;

/// Bits of the property flags.
pub const HEADERS: u16 = 1 << 13;
pub const CORRELATION_ID: u16 = 1 << 10;
pub const REPLY_TO: u16 = 1 << 9;
pub const MESSAGE_ID: u16 = 1 << 7;
pub const TYPE: u16 = 1 << 5;

/// A message as its bytes.
#[derive(Clone, Debug)]
pub struct RawMessage {
    pub exchange: Vec<u8>,
    pub routing_key: Vec<u8>,
    /// Property flags and properties.
    pub properties: Vec<u8>,
    pub body: Vec<u8>,
}

/// A connection with one channel in confirm mode.
pub struct RawProducer {
    stream: TcpStream,
}

impl RawMessage {
    /// For a queue, by the default exchange.
    pub fn to(queue: &str, properties: Vec<u8>, body: impl Into<Vec<u8>>) -> Self {
        Self {
            exchange: Vec::new(),
            routing_key: queue.as_bytes().to_vec(),
            properties,
            body: body.into(),
        }
    }
}

/// One text property.
pub fn text_property(flag: u16, text: &[u8]) -> Vec<u8> {
    [&flag.to_be_bytes()[..], &short(text)].concat()
}

/// Headers, from the bytes of their table's entries.
pub fn headers(entries: &[u8]) -> Vec<u8> {
    [&HEADERS.to_be_bytes()[..], &long(entries)].concat()
}

/// One entry of a table: its name, and its value with its type.
pub fn entry(name: &[u8], value: &[u8]) -> Vec<u8> {
    [&short(name)[..], value].concat()
}

/// A value of a long type (`S` text, `A` array, `F` table).
pub fn value(kind: u8, content: &[u8]) -> Vec<u8> {
    [&[kind][..], &long(content)].concat()
}

fn short(text: &[u8]) -> Vec<u8> {
    let length = u8::try_from(text.len()).expect("a short string");
    [&[length][..], text].concat()
}

fn long(content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).expect("a long string");
    [&length.to_be_bytes()[..], content].concat()
}

impl RawProducer {
    pub async fn connect(host: &VirtualHost) -> anyhow::Result<Self> {
        let address = host.url.rsplit_once('@').context("no address")?.1;
        let address = address.split('/').next().context("no address")?;
        let stream = TcpStream::connect(address).await?;
        let mut producer = Self { stream };
        producer.stream.write_all(b"AMQP\0\0\x09\x01").await?;
        producer.expect(10, 10).await?;
        let start_ok = [
            &long(b"")[..],
            &short(b"PLAIN"),
            &long(b"\0guest\0guest"),
            &short(b"en_US"),
        ]
        .concat();
        producer.method(0, 10, 11, &start_ok).await?;
        let tune = producer.expect(10, 30).await?;
        // No heartbeats: a producer lives for a moment.
        producer
            .method(0, 10, 31, &[&tune[..6], &[0, 0]].concat())
            .await?;
        let name = short(host.name.as_bytes());
        producer
            .method(0, 10, 40, &[&name[..], &short(b""), &[0]].concat())
            .await?;
        producer.expect(10, 41).await?;
        producer.method(1, 20, 10, &short(b"")).await?;
        producer.expect(20, 11).await?;
        producer.method(1, 85, 10, &[0]).await?;
        producer.expect(85, 11).await?;
        Ok(producer)
    }

    /// Publishes, and waits until the broker has confirmed the message.
    pub async fn publish(&mut self, message: &RawMessage) -> anyhow::Result<()> {
        let names = [
            &[0, 0][..],
            &short(&message.exchange),
            &short(&message.routing_key),
            &[0],
        ]
        .concat();
        self.method(1, 60, 40, &names).await?;
        let length = message.body.len() as u64;
        let header = [
            &60_u16.to_be_bytes()[..],
            &[0, 0],
            &length.to_be_bytes(),
            &message.properties,
        ]
        .concat();
        self.frame(HEADER, 1, &header).await?;
        for part in message.body.chunks(BODY_FRAME_BYTES) {
            self.frame(BODY, 1, part).await?;
        }
        self.stream.flush().await?;
        self.expect(60, 80).await.map(drop)
    }

    async fn method(
        &mut self,
        channel: u16,
        class: u16,
        id: u16,
        arguments: &[u8],
    ) -> anyhow::Result<()> {
        let payload = [&class.to_be_bytes()[..], &id.to_be_bytes(), arguments].concat();
        self.frame(METHOD, channel, &payload).await
    }

    async fn frame(&mut self, kind: u8, channel: u16, payload: &[u8]) -> anyhow::Result<()> {
        let frame = [
            &[kind][..],
            &channel.to_be_bytes(),
            &long(payload),
            &[FRAME_END],
        ]
        .concat();
        Ok(self.stream.write_all(&frame).await?)
    }

    /// The arguments of the next method, which is this one.
    async fn expect(&mut self, class: u16, id: u16) -> anyhow::Result<Vec<u8>> {
        loop {
            let mut head = [0; 7];
            timeout(ANSWER_PATIENCE, self.stream.read_exact(&mut head))
                .await
                .context("the broker does not answer")??;
            let length = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
            let mut payload = vec![0; length + 1];
            self.stream.read_exact(&mut payload).await?;
            ensure!(payload.pop() == Some(FRAME_END), "a frame without an end");
            if head[0] != METHOD {
                continue;
            }
            let (name, arguments) = payload.split_at_checked(4).context("a short method")?;
            if name == [class.to_be_bytes(), id.to_be_bytes()].concat() {
                return Ok(arguments.to_vec());
            }
            bail!(
                "the broker answered {name:?}: {}",
                String::from_utf8_lossy(arguments)
            );
        }
    }
}
