//! A connection's first bytes, before any HTTP: who speaks, and in which cipher.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio_rustls::server::TlsStream;

use super::{Proxies, RawStream, Tls, proxies};

/// The first byte of every TLS record that begins a handshake.
const HANDSHAKE: u8 = 22;

/// Of what follows such a byte, so much is read and thrown away.
const MAX_IGNORED_BYTES: usize = 1 << 20;

/// What somebody is told who speaks plain HTTP to a TLS port.
const WRONG_SCHEME: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n\
content-length: 127\r\nconnection: close\r\n\r\n\
{\"error\":{\"message\":\"this port speaks TLS: use https://\",\"type\":\"invalid_request_error\",\
\"param\":null,\"code\":\"https_required\"}}\n";

/// A connection that HTTP can begin on.
pub(crate) struct Opened {
    pub(crate) stream: Stream,
    /// Who is at the other end, by a trusted proxy's word if one said so.
    pub(crate) peer: Option<IpAddr>,
}

/// Reads the PROXY header of a trusted proxy and shakes hands.
pub(crate) async fn open(
    mut stream: RawStream,
    mut peer: Option<IpAddr>,
    proxies: &Proxies,
    tls: Option<Arc<Tls>>,
) -> io::Result<Opened> {
    if proxies.send_header && proxies.trusts(peer) {
        peer = proxies::read_header(&mut stream).await?.or(peer);
    }
    let stream = match tls {
        None => Stream::Plain(stream),
        Some(tls) => {
            refuse_plain_http(&mut stream).await?;
            Stream::Tls(Box::new(tls.acceptor().accept(stream).await?))
        }
    };
    Ok(Opened { stream, peer })
}

/// An alert is noise to a client that forgot the `s`; a sentence is not.
async fn refuse_plain_http(stream: &mut RawStream) -> io::Result<()> {
    let mut bytes = BytesMut::with_capacity(4096);
    if stream.read_buf(&mut bytes).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if bytes[0] != HANDSHAKE {
        stream.write_all(WRONG_SCHEME).await?;
        stream.shutdown().await?;
        // Bytes that nobody has read would reset the connection, and the sentence with it.
        let mut left = MAX_IGNORED_BYTES;
        while left > 0 && !bytes.is_empty() {
            left = left.saturating_sub(bytes.len());
            bytes.clear();
            stream.read_buf(&mut bytes).await?;
        }
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the first byte begins no handshake",
        ));
    }
    stream.put_back(bytes.freeze());
    Ok(())
}

/// What HTTP reads and writes.
pub(crate) enum Stream {
    Plain(RawStream),
    Tls(Box<TlsStream<RawStream>>),
}

impl Stream {
    pub(crate) fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }
}

/// The same call on either.
macro_rules! either {
    ($stream:expr, $pinned:ident => $call:expr) => {
        match $stream.get_mut() {
            Stream::Plain(stream) => {
                let $pinned = Pin::new(stream);
                $call
            }
            Stream::Tls(stream) => {
                let $pinned = Pin::new(&mut **stream);
                $call
            }
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_read(cx, buffer))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => stream.poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refusal_is_as_long_as_it_says() {
        let text = std::str::from_utf8(WRONG_SCHEME).expect("ASCII");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
        assert!(
            head.contains(&format!("content-length: {}", body.len())),
            "{}",
            body.len()
        );
        serde_json::from_str::<serde_json::Value>(body).expect("JSON");
    }
}
