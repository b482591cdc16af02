//! One client connection: what HTTP sees of it, and what a watchdog needs to know about it.
//!
//! The library has a timeout for reading heads, but none that tells an idle connection from a slow
//! head, none before it knows the protocol's version, and none for a peer that takes no bytes. So the
//! connection keeps its own times and [`Activity::expired`] judges them.
//!
//! A client that ends its sending side may still read: it is served. That it has gone shows only when
//! bytes are sent to it, so it is sent some that mean nothing ([`Watch::left`]).

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes};
use futures_util::task::AtomicWaker;
use http::{StatusCode, Version};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::time::sleep;

use crate::error::ApiError;
use crate::request_id;
use crate::state::ServerConfig;
use crate::transport::{Socket, Stream};

/// How an HTTP/2 connection begins. It may come in pieces.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Every client has to pass over it, however often it comes and whether it asked for it or not.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
/// Between two looks at a connection whose peer sends no more, or has sent what nobody reads yet.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Between two questions to a peer that sends no more whether it is there.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// Requests of one connection that their client may take back between two looks of the watchdog. More
/// are made only to be taken back.
const MAX_TAKEN_BACK: u32 = 200;

/// Why a connection is closed by us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expired {
    /// Nothing is going on; a good moment to say goodbye.
    Idle,
    /// A head is taking too long.
    SlowHead,
    /// The peer takes no bytes.
    Stuck,
    /// The peer resets what it asks for, again and again.
    Resets,
}

/// Times and counts of one connection, in milliseconds since `epoch`; 0 is "not now".
pub(crate) struct Activity {
    epoch: Instant,
    num_in_flight: AtomicUsize,
    /// Requests in flight whose answer has a head and whose body goes on.
    num_bodies: AtomicUsize,
    /// When any of those was asked for more, which happens as long as there is room for it.
    body_polled: AtomicU64,
    num_taken_back: AtomicU32,
    idle_since: AtomicU64,
    head_since: AtomicU64,
    blocked_since: AtomicU64,
    is_http2: AtomicBool,
    /// Whether the request in flight may be answered by [`CONTINUE`] first.
    may_continue: AtomicBool,
    /// Whether a byte of its answer has been sent.
    is_answered: AtomicBool,
    /// A stream of events is to send a comment.
    comment_wanted: AtomicBool,
    commenter: AtomicWaker,
}

impl Activity {
    pub(crate) fn new() -> Self {
        Self {
            epoch: Instant::now(),
            num_in_flight: AtomicUsize::new(0),
            num_bodies: AtomicUsize::new(0),
            body_polled: AtomicU64::new(0),
            num_taken_back: AtomicU32::new(0),
            idle_since: AtomicU64::new(1),
            head_since: AtomicU64::new(0),
            blocked_since: AtomicU64::new(0),
            is_http2: AtomicBool::new(false),
            may_continue: AtomicBool::new(false),
            is_answered: AtomicBool::new(false),
            comment_wanted: AtomicBool::new(false),
            commenter: AtomicWaker::new(),
        }
    }

    fn now(&self) -> u64 {
        self.epoch.elapsed().as_millis() as u64 + 1
    }

    /// A head is complete; drop the mark when its answer is complete or given up.
    pub(crate) fn begin_request(
        self: &Arc<Self>,
        version: Version,
        client: Option<IpAddr>,
    ) -> RequestMark {
        self.head_since.store(0, Ordering::Relaxed);
        self.num_in_flight.fetch_add(1, Ordering::Relaxed);
        self.is_answered.store(false, Ordering::Relaxed);
        self.comment_wanted.store(false, Ordering::Relaxed);
        self.may_continue
            .store(version == Version::HTTP_11, Ordering::Relaxed);
        RequestMark {
            activity: Arc::clone(self),
            client,
            has_body: false,
        }
    }

    fn bytes_came(&self) {
        let is_first = self.head_since.load(Ordering::Relaxed) == 0;
        if is_first && self.num_in_flight.load(Ordering::Relaxed) == 0 {
            self.head_since.store(self.now(), Ordering::Relaxed);
        }
    }

    /// The peer takes nothing. Only the first refusal counts: the limit is for one that takes nothing at
    /// all.
    pub(crate) fn is_blocked(&self) {
        let now = self.now();
        let _ = self
            .blocked_since
            .compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The peer has taken something.
    pub(crate) fn is_taking(&self) {
        self.blocked_since.store(0, Ordering::Relaxed);
    }

    /// Judges the connection. `crowded`: others may be waiting for its place.
    pub(crate) fn expired(&self, config: &ServerConfig, crowded: bool) -> Option<Expired> {
        let now = self.now();
        let longer_than = |since: &AtomicU64, limit: Duration| {
            let since = since.load(Ordering::Relaxed);
            since != 0 && u128::from(now.saturating_sub(since)) > limit.as_millis()
        };
        if self.num_taken_back.swap(0, Ordering::Relaxed) > MAX_TAKEN_BACK {
            return Some(Expired::Resets);
        }
        if longer_than(&self.blocked_since, config.write_timeout) {
            return Some(Expired::Stuck);
        }
        let num_in_flight = self.num_in_flight.load(Ordering::Relaxed);
        // An HTTP/2 peer may take frames and no answer: the socket is never blocked then. Silence of
        // ours is broken by comments.
        let patience = config.write_timeout.max(2 * config.sse_keepalive);
        let all_have_bodies = self.num_bodies.load(Ordering::Relaxed) == num_in_flight;
        if num_in_flight > 0 && all_have_bodies && longer_than(&self.body_polled, patience) {
            return Some(Expired::Stuck);
        }
        if num_in_flight > 0 {
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
pub(crate) struct RequestMark {
    activity: Arc<Activity>,
    /// Who asks, as far as anybody trustworthy says; `None` on a unix socket.
    pub(crate) client: Option<IpAddr>,
    has_body: bool,
}

impl RequestMark {
    /// Its answer has a head.
    pub(crate) fn body_begins(&mut self) {
        self.has_body = true;
        self.activity.num_bodies.fetch_add(1, Ordering::Relaxed);
        self.body_goes_on();
    }

    /// There is room for more of it.
    pub(crate) fn body_goes_on(&self) {
        let now = self.activity.now();
        self.activity.body_polled.store(now, Ordering::Relaxed);
    }

    /// Its client did not wait for the answer's end.
    pub(crate) fn taken_back(&self) {
        self.activity.num_taken_back.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether a comment is to be sent, once for each time that one is wanted. If not now, `cx` is woken
    /// when it is. Bodies of HTTP/1 only: there one answer is under way at a time.
    pub(crate) fn poll_comment(&self, cx: &mut Context<'_>) -> bool {
        if self.activity.is_http2.load(Ordering::Relaxed) {
            return false;
        }
        self.activity.commenter.register(cx.waker());
        self.activity.comment_wanted.swap(false, Ordering::AcqRel)
    }
}

impl Drop for RequestMark {
    fn drop(&mut self) {
        let activity = &*self.activity;
        activity.idle_since.store(activity.now(), Ordering::Relaxed);
        if self.has_body {
            activity.num_bodies.fetch_sub(1, Ordering::Relaxed);
        }
        activity.num_in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The watchdog's end of a connection.
pub(crate) struct Watch {
    pub(crate) socket: Arc<Socket>,
    pub(crate) activity: Arc<Activity>,
    pub(crate) is_tls: bool,
}

impl Watch {
    /// Resolves once the peer has gone while it was served. The library looks for the end of the stream
    /// only while it reads, and takes it for the end of the client; so it is told to look away.
    pub(crate) async fn left(&self) {
        self.sending_ends().await;
        // A cipher's end and a multiplexed connection's are the end of both directions.
        let has_halves = !self.is_tls && !self.activity.is_http2.load(Ordering::Relaxed);
        let mut probed: Option<Instant> = None;
        loop {
            if self.activity.num_in_flight.load(Ordering::Relaxed) > 0 {
                if !has_halves || self.socket.is_gone() {
                    return;
                }
                // The peer of a unix socket is seen to go without being asked.
                let is_time = probed.is_none_or(|at| at.elapsed() >= PROBE_INTERVAL);
                if !self.socket.is_unix() && is_time && self.probe() {
                    probed = Some(Instant::now());
                }
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    async fn sending_ends(&self) {
        loop {
            match self.socket.ready(Interest::READABLE).await {
                Ok(ready) if !ready.is_read_closed() => sleep(LOOK_AGAIN * 5).await,
                Ok(_) | Err(_) => return,
            }
        }
    }

    /// Has something sent that a peer who has gone refuses and one who reads passes over. False: later.
    fn probe(&self) -> bool {
        let activity = &*self.activity;
        if activity.is_answered.load(Ordering::Relaxed) {
            // In the middle of an answer only the answer may be sent; a stream of events has comments.
            activity.comment_wanted.store(true, Ordering::Release);
            activity.commenter.wake();
            return true;
        }
        if activity.blocked_since.load(Ordering::Relaxed) != 0 {
            return false;
        }
        if activity.may_continue.load(Ordering::Relaxed) {
            // Whatever comes of it shows on the socket.
            let _ = self.socket.try_write(CONTINUE);
        }
        true
    }
}

/// A connection that keeps [`Activity`] up to date.
pub(crate) struct WatchedStream {
    stream: Stream,
    activity: Arc<Activity>,
    /// What of HTTP/2's preface has not come yet; empty once it has, or cannot any more.
    preface: &'static [u8],
    /// What goes out instead of the library's bare refusal.
    substitute: Option<Bytes>,
}

impl WatchedStream {
    pub(crate) fn new(stream: Stream, activity: Arc<Activity>) -> Self {
        Self {
            stream,
            activity,
            preface: HTTP2_PREFACE,
            substitute: None,
        }
    }

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
}

impl AsyncRead for WatchedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        self.bytes_came(&buffer.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for WatchedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if bytes != CONTINUE {
            self.activity.is_answered.store(true, Ordering::Relaxed);
        }
        if self.substitute.is_none() {
            self.substitute = substitute_for(bytes);
        }
        while let Some(mut rest) = self.substitute.take() {
            if rest.is_empty() {
                return Poll::Ready(Ok(bytes.len()));
            }
            match Pin::new(&mut self.stream).poll_write(cx, &rest) {
                Poll::Ready(Ok(len)) => rest.advance(len),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.substitute = Some(rest);
                    return Poll::Pending;
                }
            }
            self.substitute = Some(rest);
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
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
        let mark = activity.begin_request(Version::HTTP_11, None);
        assert_eq!(activity.expired(&config, false), None);
        drop(mark);
        pass(&mut activity);
        assert_eq!(activity.expired(&config, false), Some(Expired::Idle));
        let patient = ServerConfig::default();
        assert_eq!(activity.expired(&patient, false), None);
    }

    #[test]
    fn requests_made_to_be_taken_back_end_the_connection() {
        let config = ServerConfig::default();
        let activity = Arc::new(Activity::new());
        let take_back = |times: u32| {
            for _ in 0..times {
                let mark = activity.begin_request(Version::HTTP_2, None);
                mark.taken_back();
            }
            activity.expired(&config, false)
        };
        assert_eq!(take_back(MAX_TAKEN_BACK), None);
        assert_eq!(
            take_back(MAX_TAKEN_BACK),
            None,
            "counted since the last look"
        );
        assert_eq!(take_back(MAX_TAKEN_BACK + 1), Some(Expired::Resets));
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
