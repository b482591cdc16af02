//! One accepted socket. The protocol library reads and writes it through a [`RawStream`]; whoever
//! watches over the connection shares it, to see a peer leave while nobody reads.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use futures_util::FutureExt as _;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, Ready};
use tokio::net::{TcpStream, UnixStream};

use crate::connection::Activity;

/// Of either family.
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// The same call on either.
macro_rules! either {
    ($socket:expr, $stream:ident => $call:expr) => {
        match $socket {
            Socket::Tcp($stream) => $call,
            Socket::Unix($stream) => $call,
        }
    };
}

impl Socket {
    /// Where it comes from; a unix socket's peer has no address.
    pub(crate) fn peer(&self) -> Option<IpAddr> {
        match self {
            // An IPv4 client of an IPv6 port is an IPv4 client.
            Self::Tcp(stream) => Some(stream.peer_addr().ok()?.ip().to_canonical()),
            Self::Unix(_) => None,
        }
    }

    pub(crate) fn is_unix(&self) -> bool {
        matches!(self, Self::Unix(_))
    }

    pub(crate) async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        either!(self, stream => stream.ready(interest).await)
    }

    /// Neither reads nor takes any more, as far as this side has heard.
    pub(crate) fn is_gone(&self) -> bool {
        let ready = self.ready(Interest::READABLE | Interest::WRITABLE);
        ready
            .now_or_never()
            .is_some_and(|ready| ready.is_ok_and(Ready::is_write_closed))
    }

    pub(crate) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        either!(self, stream => stream.try_write(bytes))
    }

    fn try_read(&self, bytes: &mut [u8]) -> io::Result<usize> {
        either!(self, stream => stream.try_read(bytes))
    }

    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_read_ready(cx))
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_write_ready(cx))
    }

    /// Ends the sending direction, so that the peer reads everything and then the end. The descriptor
    /// is shared, so dropping this end would not.
    fn end_sending(&self) -> io::Result<()> {
        let descriptor: OwnedFd = either!(self, stream => stream.as_fd().try_clone_to_owned())?;
        let how = std::net::Shutdown::Write;
        let outcome = match self {
            Self::Tcp(_) => std::net::TcpStream::from(descriptor).shutdown(how),
            Self::Unix(_) => std::os::unix::net::UnixStream::from(descriptor).shutdown(how),
        };
        match outcome {
            // Whoever has gone needs no goodbye.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            outcome => outcome,
        }
    }
}

/// A socket that notes when its peer takes nothing.
pub(crate) struct RawStream {
    socket: Arc<Socket>,
    activity: Arc<Activity>,
    /// Read already, by whoever looked at the first bytes.
    unread: Bytes,
}

impl RawStream {
    pub(crate) fn new(socket: Arc<Socket>, activity: Arc<Activity>) -> Self {
        Self {
            socket,
            activity,
            unread: Bytes::new(),
        }
    }

    /// Puts bytes back in front of those to come.
    pub(crate) fn put_back(&mut self, bytes: Bytes) {
        debug_assert!(self.unread.is_empty(), "only what was just read comes back");
        self.unread = bytes;
    }
}

impl AsyncRead for RawStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.unread.is_empty() {
            let len = self.unread.len().min(buffer.remaining());
            buffer.put_slice(&self.unread[..len]);
            self.unread.advance(len);
            return Poll::Ready(Ok(()));
        }
        loop {
            ready!(self.socket.poll_read_ready(cx))?;
            match self.socket.try_read(buffer.initialize_unfilled()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(len) => {
                    buffer.advance(len);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl AsyncWrite for RawStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            if self.socket.poll_write_ready(cx)?.is_pending() {
                self.activity.is_blocked();
                return Poll::Pending;
            }
            match self.socket.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                outcome => {
                    self.activity.is_taking();
                    return Poll::Ready(outcome);
                }
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.socket.end_sending())
    }
}
