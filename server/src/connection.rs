//! One client connection: the socket as the protocol library sees it, and what a watchdog needs to
//! know about it.
//!
//! The library has a timeout for reading heads, but none that tells an idle connection from a slow
//! head, none before it knows the protocol's version, and none for a peer that takes no bytes. So the
//! socket keeps its own times and [`Activity::expired`] judges them.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes};
use futures_util::FutureExt as _;
use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use crate::error::ApiError;
use crate::request_id;
use crate::state::ServerConfig;

/// How an HTTP/2 connection begins. It may come in pieces.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Why a connection is closed by us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expired {
    /// Nothing is going on; a good moment to say goodbye.
    Idle,
    /// A head is taking too long.
    SlowHead,
    /// The peer takes no bytes.
    Stuck,
    /// The peer has gone while its request runs.
    Left,
}

/// Times and counts of one connection, in milliseconds since `epoch`; 0 is "not now".
pub(crate) struct Activity {
    epoch: Instant,
    num_in_flight: AtomicUsize,
    idle_since: AtomicU64,
    head_since: AtomicU64,
    blocked_since: AtomicU64,
    is_http2: AtomicBool,
}

impl Activity {
    fn new() -> Self {
        Self {
            epoch: Instant::now(),
            num_in_flight: AtomicUsize::new(0),
            idle_since: AtomicU64::new(1),
            head_since: AtomicU64::new(0),
            blocked_since: AtomicU64::new(0),
            is_http2: AtomicBool::new(false),
        }
    }

    fn now(&self) -> u64 {
        self.epoch.elapsed().as_millis() as u64 + 1
    }

    /// A head is complete; drop the mark when its answer is complete or given up.
    pub(crate) fn begin_request(self: &Arc<Self>) -> RequestMark {
        self.head_since.store(0, Ordering::Relaxed);
        self.num_in_flight.fetch_add(1, Ordering::Relaxed);
        RequestMark(Arc::clone(self))
    }

    fn bytes_came(&self) {
        let is_first = self.head_since.load(Ordering::Relaxed) == 0;
        if is_first && self.num_in_flight.load(Ordering::Relaxed) == 0 {
            self.head_since.store(self.now(), Ordering::Relaxed);
        }
    }

    /// Judges the connection. `crowded`: others may be waiting for its place.
    pub(crate) fn expired(&self, config: &ServerConfig, crowded: bool) -> Option<Expired> {
        let now = self.now();
        let longer_than = |since: &AtomicU64, limit: Duration| {
            let since = since.load(Ordering::Relaxed);
            since != 0 && u128::from(now.saturating_sub(since)) > limit.as_millis()
        };
        if longer_than(&self.blocked_since, config.write_timeout) {
            return Some(Expired::Stuck);
        }
        if self.num_in_flight.load(Ordering::Relaxed) > 0 {
            return None;
        }
        // HTTP/2 peers send frames of their own accord (pings, window updates): not heads.
        let is_http2 = self.is_http2.load(Ordering::Relaxed);
        if !is_http2 && longer_than(&self.head_since, config.header_timeout) {
            return Some(Expired::SlowHead);
        }
        let patience = if crowded {
            config.idle_timeout / 16
        } else {
            config.idle_timeout
        };
        let head_is_coming = !is_http2 && self.head_since.load(Ordering::Relaxed) != 0;
        (!head_is_coming && longer_than(&self.idle_since, patience)).then_some(Expired::Idle)
    }
}

/// Keeps its connection busy.
pub(crate) struct RequestMark(Arc<Activity>);

impl Drop for RequestMark {
    fn drop(&mut self) {
        self.0.idle_since.store(self.0.now(), Ordering::Relaxed);
        self.0.num_in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The watchdog's end of a connection.
pub(crate) struct Watch {
    stream: Arc<TcpStream>,
    pub(crate) activity: Arc<Activity>,
}

impl Watch {
    /// Judges the connection; see [`Activity::expired`].
    pub(crate) fn expired(&self, config: &ServerConfig, crowded: bool) -> Option<Expired> {
        let busy = self.activity.num_in_flight.load(Ordering::Relaxed) > 0;
        // The library looks for the end of the stream only while it has nothing else to parse, so a
        // client that pipelines and leaves goes unnoticed by it.
        if busy && self.peer_has_left() {
            return Some(Expired::Left);
        }
        self.activity.expired(config, crowded)
    }

    fn peer_has_left(&self) -> bool {
        self.stream
            .ready(Interest::READABLE)
            .now_or_never()
            .is_some_and(|ready| ready.is_ok_and(tokio::io::Ready::is_read_closed))
    }
}

/// A socket that keeps [`Activity`] up to date.
pub(crate) struct WatchedStream {
    stream: Arc<TcpStream>,
    activity: Arc<Activity>,
    /// What of HTTP/2's preface has not come yet; empty once it has, or cannot any more.
    preface: &'static [u8],
    /// What goes out instead of the library's bare refusal.
    substitute: Option<Bytes>,
}

/// Splits a fresh connection into the library's end and the watchdog's.
pub(crate) fn watched(stream: TcpStream) -> (WatchedStream, Watch) {
    let stream = Arc::new(stream);
    let activity = Arc::new(Activity::new());
    let watch = Watch {
        stream: Arc::clone(&stream),
        activity: Arc::clone(&activity),
    };
    let stream = WatchedStream {
        stream,
        activity,
        preface: HTTP2_PREFACE,
        substitute: None,
    };
    (stream, watch)
}

impl WatchedStream {
    fn bytes_came(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let compared = bytes.len().min(self.preface.len());
        self.preface = match self.preface.strip_prefix(&bytes[..compared]) {
            Some([]) if compared > 0 => {
                self.activity.is_http2.store(true, Ordering::Relaxed);
                &[]
            }
            Some(rest) => rest,
            None => &[],
        };
        self.activity.bytes_came();
    }

    fn poll_send(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            if self.stream.poll_write_ready(cx)?.is_pending() {
                // Only the first refusal counts: the limit is for a peer that takes nothing at all.
                let _ = self.activity.blocked_since.compare_exchange(
                    0,
                    self.activity.now(),
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                );
                return Poll::Pending;
            }
            match self.stream.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                outcome => {
                    self.activity.blocked_since.store(0, Ordering::Relaxed);
                    return Poll::Ready(outcome);
                }
            }
        }
    }
}

impl AsyncRead for WatchedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            match self.stream.try_read(buffer.initialize_unfilled()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(len) => {
                    let bytes = &buffer.initialize_unfilled()[..len];
                    self.bytes_came(bytes);
                    buffer.advance(len);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl AsyncWrite for WatchedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.substitute.is_none() {
            self.substitute = substitute_for(bytes);
        }
        while let Some(mut rest) = self.substitute.take() {
            if rest.is_empty() {
                return Poll::Ready(Ok(bytes.len()));
            }
            match self.poll_send(cx, &rest) {
                Poll::Ready(Ok(len)) => rest.advance(len),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.substitute = Some(rest);
                    return Poll::Pending;
                }
            }
            self.substitute = Some(rest);
        }
        self.poll_send(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The descriptor is shared with the watchdog, which outlives this end by a moment only; its
        // drop closes both directions.
        Poll::Ready(socket_shutdown(&self.stream))
    }
}

/// Ends the sending direction, so that the peer reads everything and then the end.
fn socket_shutdown(stream: &TcpStream) -> io::Result<()> {
    use std::os::fd::AsFd as _;
    let socket = std::net::TcpStream::from(stream.as_fd().try_clone_to_owned()?);
    match socket.shutdown(std::net::Shutdown::Write) {
        // Whoever has gone needs no goodbye.
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        outcome => outcome,
    }
}

/// Requests that do not parse never reach the router: the library answers them itself, with a status
/// and nothing else. Clients expect an error object and an id on every answer, so such a head is
/// replaced by a whole answer. Our own answers all carry an id and so never match.
fn substitute_for(bytes: &[u8]) -> Option<Bytes> {
    const LONGEST_BARE_HEAD: usize = 256;
    if bytes.len() > LONGEST_BARE_HEAD || !bytes.ends_with(b"\r\n\r\n") {
        return None;
    }
    let head = std::str::from_utf8(bytes).ok()?;
    let (status, fields) = head.strip_prefix("HTTP/1.1 4")?.split_once("\r\n")?;
    if fields.contains("x-request-id") || !fields.contains("content-length: 0") {
        return None;
    }
    let (status, code, message) = match status.get(..2)? {
        "31" => (
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "headers_too_large",
            "the request's headers are too large or too many",
        ),
        "14" => (
            StatusCode::URI_TOO_LONG,
            "uri_too_long",
            "the request's path is too long",
        ),
        _ => (
            StatusCode::BAD_REQUEST,
            "invalid_http",
            "the request is not well-formed HTTP",
        ),
    };
    let id = request_id::make();
    let body = ApiError::new(status, "invalid_request_error", code, message)
        .body(crate::api::flavour::Flavour::OpenAi, &id)
        .to_string();
    Some(Bytes::from(format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\nx-request-id: {id}\r\n\r\n{body}",
        body.len()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BARE: &str = "HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n\
                        content-length: 0\r\ndate: Sat, 21 Nov 2026 12:00:00 GMT\r\n\r\n";

    #[test]
    fn bare_refusals_become_error_objects() {
        let whole = substitute_for(BARE.as_bytes()).expect("a bare head");
        let text = std::str::from_utf8(&whole).expect("ASCII");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.starts_with("HTTP/1.1 431 "), "{head}");
        assert!(head.contains(&format!("content-length: {}", body.len())));
        assert!(body.contains("headers_too_large"), "{body}");
    }

    #[test]
    fn everything_else_passes() {
        for bytes in [
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nx-request-id: req_1\r\n\r\n",
            "data: HTTP/1.1 400\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n",
            "",
        ] {
            assert_eq!(substitute_for(bytes.as_bytes()), None, "{bytes}");
        }
    }

    #[test]
    fn an_idle_connection_expires_and_a_busy_one_does_not() {
        let config = ServerConfig {
            idle_timeout: Duration::ZERO,
            header_timeout: Duration::ZERO,
            ..ServerConfig::default()
        };
        // Moving the epoch back is the passing of time.
        let pass = |activity: &mut Arc<Activity>| {
            let activity = Arc::get_mut(activity).expect("nobody else has it");
            activity.epoch -= Duration::from_secs(1);
        };
        let mut activity = Arc::new(Activity::new());
        pass(&mut activity);
        assert_eq!(activity.expired(&config, false), Some(Expired::Idle));
        activity.bytes_came();
        pass(&mut activity);
        assert_eq!(activity.expired(&config, false), Some(Expired::SlowHead));
        let mark = activity.begin_request();
        assert_eq!(activity.expired(&config, false), None);
        drop(mark);
        pass(&mut activity);
        assert_eq!(activity.expired(&config, false), Some(Expired::Idle));
        let patient = ServerConfig::default();
        assert_eq!(activity.expired(&patient, false), None);
    }

    #[test]
    fn frames_of_an_idle_http2_connection_are_no_slow_head() {
        let config = ServerConfig {
            header_timeout: Duration::ZERO,
            ..ServerConfig::default()
        };
        let mut activity = Activity::new();
        activity.is_http2.store(true, Ordering::Relaxed);
        activity.bytes_came();
        activity.epoch -= Duration::from_secs(1);
        assert_eq!(activity.expired(&config, false), None);
    }
}
