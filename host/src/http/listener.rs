//! The sockets that the host listens on: addresses, and a file that only its own user and root may connect to.
//!
//! A socket file is replaced only by the holder of the lock beside it, and only when nobody listens on it; it is
//! removed when the listener ends.

use std::io;
#[cfg(test)]
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

use crate::config::Listen;

use super::server::Reached;
#[cfg(unix)]
use unix::{SocketFile, UnixStream};

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen on {address}: {error}; set `{section}.listen` to another address, or to `off`"
)]
pub struct ListenError {
    address: String,
    section: &'static str,
    error: io::Error,
}

pub(super) struct Listener {
    section: &'static str,
    kind: Kind,
}

enum Kind {
    Tcp(TcpListener),
    #[cfg(unix)]
    Unix(SocketFile),
}

/// A connection, and where it came in.
pub(super) struct Accepted {
    pub(super) stream: Stream,
    pub(super) reached: Reached,
}

pub(super) enum Stream {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(UnixStream),
}

impl Listener {
    /// Listens. `section` is the configuration's.
    pub(super) async fn bind(listen: &Listen, section: &'static str) -> Result<Self, ListenError> {
        let bound = match listen {
            Listen::Tcp(address) => TcpListener::bind(address).await.map(|listener| {
                leave_out_the_silent(&listener);
                Kind::Tcp(listener)
            }),
            #[cfg(unix)]
            Listen::Unix(path) => SocketFile::bind(path).map(Kind::Unix),
            #[cfg(not(unix))]
            Listen::Unix(_) => Err(io::ErrorKind::Unsupported.into()),
        };
        let kind = bound.map_err(|error| ListenError {
            address: listen.to_string(),
            section,
            error,
        })?;
        Ok(Self { section, kind })
    }

    pub(super) fn section(&self) -> &'static str {
        self.section
    }

    /// Where it listens, if that is an address.
    #[cfg(test)]
    pub(super) fn address(&self) -> Option<SocketAddr> {
        match &self.kind {
            Kind::Tcp(listener) => listener.local_addr().ok(),
            #[cfg(unix)]
            Kind::Unix(_) => None,
        }
    }

    /// The next connection. Cancel safe. An error is the system's, which may hand out one later.
    pub(super) async fn accept(&self) -> io::Result<Accepted> {
        loop {
            let accepted = match &self.kind {
                Kind::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                    let reached = Reached(stream.local_addr().ok());
                    let stream = Stream::Tcp(stream);
                    Accepted { stream, reached }
                }),
                #[cfg(unix)]
                Kind::Unix(file) => file.accept().await.map(|stream| Accepted {
                    stream: Stream::Unix(stream),
                    reached: Reached(None),
                }),
            };
            match accepted {
                // The peer's, and about this connection alone.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::ConnectionAborted
                            | io::ErrorKind::ConnectionReset
                            | io::ErrorKind::ConnectionRefused
                            | io::ErrorKind::PermissionDenied
                    ) =>
                {
                    tracing::debug!(%error, "A connection was not taken");
                }
                accepted => return accepted,
            }
        }
    }
}

/// Lets the system keep connections to itself for a second, until their peers have said something. A peer that sends
/// its request at once has then sent it before anybody can take its seat.
#[cfg(target_os = "linux")]
fn leave_out_the_silent(listener: &TcpListener) {
    use std::os::fd::AsRawFd;
    let seconds: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of_val(&seconds)).expect("a few bytes");
    // SAFETY: the descriptor is open as long as the listener is borrowed, and the option is an integer of this length,
    // which is only read.
    let set = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_DEFER_ACCEPT,
            (&raw const seconds).cast(),
            length,
        )
    };
    if set != 0 {
        let error = io::Error::last_os_error();
        tracing::debug!(%error, "Silent connections are accepted");
    }
}

#[cfg(not(target_os = "linux"))]
fn leave_out_the_silent(_: &TcpListener) {}

/// Does the same to whichever stream it is.
macro_rules! either {
    ($self:ident, $stream:ident => $do:expr) => {
        match $self.get_mut() {
            Stream::Tcp($stream) => $do,
            #[cfg(unix)]
            Stream::Unix($stream) => $do,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_read(context, buffer))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => Pin::new(stream).poll_write(context, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => Pin::new(stream).poll_shutdown(context))
    }
}

#[cfg(unix)]
mod unix;
