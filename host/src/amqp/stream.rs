//! The stream that lapin reads from: a socket, plain or with TLS, behind a [`FrameReader`].

use std::future::Future;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_rs::traits::Reactor;
use async_rs::util::RuntimeParts;
use async_rs::{Runtime, Tokio};
use futures_io::{AsyncRead, AsyncWrite};
use futures_util::Stream;
use lapin::tcp::{AsyncTcpStream, OwnedTLSConfig};
use lapin::uri::{AMQPScheme, AMQPUri};
use socket2::{SockRef, TcpKeepalive};

use super::frames::FrameReader;
use super::screen::Screen;

/// How long a connection is silent before the kernel asks whether the other side is there. Heartbeats ask sooner,
/// where they are not switched off.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Bytes that are left out in one go. Then lapin gets a turn: it may have something to send.
const MAX_LEFT_OUT_BYTES: u64 = 1024 * 1024;

/// The socket under it all.
type Socket = <Tokio as Reactor>::TcpStream;

/// What lapin runs on: Tokio, with streams that are screened.
pub type Kit = RuntimeParts<Tokio, Screening>;

/// The kit, on the runtime that it is asked for in.
pub fn runtime() -> Runtime<Kit> {
    let tokio = Tokio::current();
    Runtime::new(RuntimeParts::new(tokio.clone(), Screening(tokio)))
}

/// Connects as the address says.
pub async fn connect(
    uri: &AMQPUri,
    tls: &OwnedTLSConfig,
    screen: Arc<Screen>,
) -> io::Result<AsyncTcpStream<ScreenedStream>> {
    let runtime = Runtime::<Tokio>::tokio_current();
    let host = uri.authority.host.clone();
    let addresses = runtime.to_socket_addrs((host.clone(), uri.authority.port));
    let stream = AsyncTcpStream::<Socket>::connect(&runtime, addresses).await?;
    if let AsyncTcpStream::Plain(socket) = &stream {
        let keepalive = TcpKeepalive::new().with_time(KEEPALIVE);
        SockRef::from(socket.get_ref()).set_tcp_keepalive(&keepalive)?;
    }
    let stream = match uri.scheme {
        AMQPScheme::AMQP => stream,
        AMQPScheme::AMQPS => stream
            .into_tls(&host, tls.as_ref())
            .await
            .map_err(no_handshake)?,
    };
    let reader = FrameReader::new(screen, uri.query.frame_max.unwrap_or_default());
    Ok(AsyncTcpStream::Plain(ScreenedStream::new(stream, reader)))
}

/// What rustls says of a server that does not speak TLS is hard to read.
fn no_handshake(error: io::Error) -> io::Error {
    let text = error.to_string();
    if text.contains("corrupt message") {
        let plain = "the server does not speak TLS on this port: write `amqp://` in place of `amqps://`, or name its TLS port";
        return io::Error::new(io::ErrorKind::InvalidData, plain);
    }
    io::Error::new(
        error.kind(),
        format!("no TLS connection with it comes about: {text}"),
    )
}

/// Tokio's reactor, of which each stream is a screened one.
#[derive(Clone, Debug)]
pub struct Screening(Tokio);

impl Reactor for Screening {
    type TcpStream = ScreenedStream;
    type Sleep = <Tokio as Reactor>::Sleep;

    /// lapin registers no handles.
    fn register<H: Read + Write + Send + 'static>(
        &self,
        _: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        Err::<ScreenedStream, _>(io::ErrorKind::Unsupported.into())
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        let connecting = self.0.tcp_connect_addr(address);
        async move {
            let reader = FrameReader::new(Arc::new(Screen::open()), 0);
            let stream = AsyncTcpStream::Plain(connecting.await?);
            Ok(ScreenedStream::new(stream, reader))
        }
    }
}

/// A stream of which lapin reads what the reader of frames lets through.
pub struct ScreenedStream {
    stream: AsyncTcpStream<Socket>,
    reader: FrameReader,
    /// lapin has its turn before more is read.
    pause: bool,
    /// Something was given since the last pause.
    gave: bool,
}

impl ScreenedStream {
    fn new(stream: AsyncTcpStream<Socket>, reader: FrameReader) -> Self {
        Self {
            stream,
            reader,
            pause: false,
            gave: false,
        }
    }

    fn give(&mut self, out: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let mut count = 0;
        for slice in out.iter_mut().filter(|slice| !slice.is_empty()) {
            match self.reader.give(slice) {
                Ok(given) => count += given,
                Err(_) if count > 0 => break,
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            }
            if count == 0 {
                break;
            }
        }
        Ok(count)
    }
}

impl AsyncRead for ScreenedStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_read_vectored(context, &mut [IoSliceMut::new(out)])
    }

    fn poll_read_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if std::mem::take(&mut this.pause) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let mut left_out = 0;
        loop {
            match this.give(out) {
                Ok(0) => {}
                Ok(count) => {
                    this.gave = true;
                    return Poll::Ready(Ok(count));
                }
                // lapin looks at what it has read when nothing more is there, and never after an error.
                Err(_) if std::mem::take(&mut this.gave) => {
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
            left_out += this.reader.take_left_out();
            if left_out >= MAX_LEFT_OUT_BYTES {
                this.pause = true;
                this.reader.insert_heartbeat();
                return Poll::Ready(this.give(out));
            }
            match Pin::new(&mut this.stream).poll_read(context, this.reader.room()) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Ok(0)),
                Poll::Ready(Ok(count)) => this.reader.filled(count),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending if left_out > 0 => {
                    this.reader.insert_heartbeat();
                    return Poll::Ready(this.give(out));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl AsyncWrite for ScreenedStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_close(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_close(context)
    }
}
