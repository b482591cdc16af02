//! The accept loop, connection limits and the graceful end.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use engine::{Cause, Failure};
use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use prometheus::IntGauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::connection::{Activity, Expired, Watch, WatchedStream};
use crate::flight;
use crate::router::Router;
use crate::state::{AppState, Phase, ServerConfig};
use crate::traces::Traces;
use crate::transport::{Listeners, Listening, Opened, RawStream, Socket, Tls, open};
use crate::watchdog::Watchdog;

/// Heads beyond these are refused with 431. SDKs send about 20 headers and 1 KiB.
const MAX_HEADERS: usize = 128;
const MAX_HEAD_BYTES: usize = 64 << 10;
/// Streams that one HTTP/2 connection may have open.
const MAX_HTTP2_STREAMS: u32 = 256;
/// Streams reset by the peer and not yet noticed by us; more, and the connection ends.
const MAX_HTTP2_RESETS: usize = 32;
/// Streams that we reset because of what the peer sent in them; more, and the connection ends.
const MAX_HTTP2_ERRORS: usize = 256;
/// Bytes of a frame, which with those of a head bound how many frames a head may come in; bytes that a
/// stream, or a connection, may send ahead of whoever reads them; bytes of an answer that wait for its
/// reader.
const HTTP2_FRAME_BYTES: u32 = 16 << 10;
const HTTP2_STREAM_WINDOW: u32 = 1 << 20;
const HTTP2_CONNECTION_WINDOW: u32 = 4 << 20;
const HTTP2_SEND_BYTES: usize = 128 << 10;
/// Refused accepts are tried again after this, doubling up to a second.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(10);
/// For terminal events and last bytes, once the drain's time is up.
pub(crate) const LAST_WORDS: Duration = Duration::from_secs(2);

/// Why serving ended early.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServeError {
    /// The weights did not load.
    #[error("loading failed: {0}")]
    Load(Failure),
    /// The engine failed while it served; every client has been told.
    #[error("the engine has failed: {0}")]
    Engine(Failure),
    /// Nobody accepts connections any more.
    #[error("the accept loop has ended: {0}")]
    Accept(Failure),
    /// What runs beside the requests has panicked; clients were given the drain's time.
    #[error("a background task has ended: {0}")]
    Background(Failure),
}

/// Serves until `shutdown` resolves and the drain is over, or until something fails without which there is
/// no serving.
pub async fn serve(
    listeners: impl Into<Listeners>,
    state: Arc<AppState>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let Listeners { all, tls } = listeners.into();
    let (close, closing) = watch::channel(false);
    let traces = Arc::new(Traces::start(&state.config.traces, state.metrics.spans()));
    // Each door holds a place for whoever comes next, and must not hold another door's.
    let num_places = state.config.max_connections + all.len().saturating_sub(1);
    let permits = Arc::new(Semaphore::new(num_places));
    let server = Arc::new(Server {
        router: Router::new(Arc::clone(&state), Arc::clone(&traces)),
        builder: builder(),
        state: Arc::clone(&state),
        permits: Arc::clone(&permits),
        tls: tls.clone(),
        closing,
    });
    let mut accepting = JoinSet::new();
    for listening in all {
        accepting.spawn(accept(listening, Arc::clone(&server)));
    }
    let mut following = JoinSet::new();
    following.spawn(crate::systemd::follow(Arc::clone(&state)));
    if let Some(tls) = tls {
        following.spawn(tls.follow_files());
    }
    following.spawn(crate::admission::watch(Arc::clone(&state)));
    let _watchdog = Watchdog::start(&state);
    let outcome = {
        let failure = pin!(engine_failure(&state));
        let stopping = pin!(async {
            let outcome = tokio::select! {
                () = shutdown => Ok(()),
                // Whoever restarts the process can wait until streams have ended in order.
                failure = panicked(&mut following) => Err(ServeError::Background(failure)),
            };
            drain(&state).await;
            outcome
        });
        tokio::select! {
            error = failure => {
                // Streams end with an error event of their own; let it reach the wire.
                let _ = timeout(LAST_WORDS, idle(&state)).await;
                Err(error)
            }
            // A port that nobody answers looks like a server and is none.
            ended = panicked(&mut accepting) => {
                let _ = timeout(LAST_WORDS, idle(&state)).await;
                Err(ServeError::Accept(ended))
            }
            outcome = stopping => outcome,
        }
    };
    // Connections close once their last bytes are out; those that cannot are cut.
    accepting.shutdown().await;
    close.send_replace(true);
    let num_places = u32::try_from(num_places).unwrap_or(u32::MAX);
    let _ = timeout(LAST_WORDS, permits.acquire_many(num_places)).await;
    traces.finish(LAST_WORDS).await;
    if outcome.is_err() {
        flight::leave(&state, "failed");
    }
    outcome
}

/// Resolves when one of these tasks has panicked. Those that end in order are no loss: without any this
/// waits for ever.
pub async fn panicked<T: 'static>(tasks: &mut JoinSet<T>) -> Failure {
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "a task without which there is no serving has ended");
            return Failure {
                cause: Cause::Engine,
                message: error.to_string(),
            };
        }
    }
    std::future::pending().await
}

struct Server {
    router: Router,
    builder: Builder<TokioExecutor>,
    state: Arc<AppState>,
    permits: Arc<Semaphore>,
    tls: Option<Arc<Tls>>,
    closing: watch::Receiver<bool>,
}

impl Server {
    /// Nearly all places are taken, so idle connections make room.
    fn is_crowded(&self) -> bool {
        self.permits.available_permits() < self.state.config.max_connections / 8
    }
}

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // The watchdog tells slow heads from idle connections; this timeout would not.
        .header_read_timeout(None)
        // Who sends no more may read still; who has gone is found out by the connection's watchdog.
        .half_close(true)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD_BYTES)
        .writev(false);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_HTTP2_STREAMS)
        .max_pending_accept_reset_streams(MAX_HTTP2_RESETS)
        .max_local_error_reset_streams(MAX_HTTP2_ERRORS)
        .max_header_list_size(MAX_HEAD_BYTES as u32)
        .max_frame_size(HTTP2_FRAME_BYTES)
        .initial_stream_window_size(HTTP2_STREAM_WINDOW)
        .initial_connection_window_size(HTTP2_CONNECTION_WINDOW)
        .max_send_buf_size(HTTP2_SEND_BYTES)
        // A peer that vanished without a goodbye is found out.
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    builder
}

/// Accepts for ever. Connections beyond the limit wait in the kernel's backlog.
async fn accept(listening: Listening, server: Arc<Server>) -> Infallible {
    let mut backoff = ACCEPT_BACKOFF;
    loop {
        let permit = Arc::clone(&server.permits)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        match listening.accept().await {
            Ok(socket) => {
                backoff = ACCEPT_BACKOFF;
                tokio::spawn(greet(socket, Arc::clone(&server), permit));
            }
            Err(error) if is_the_peers(&error) => {}
            Err(error) => {
                // Out of descriptors, most likely: turning in place would burn a core and free none.
                tracing::warn!(%error, wait_ms = backoff.as_millis() as u64, "accept failed");
                sleep(backoff).await;
                backoff = (backoff * 2).min(Duration::from_secs(1));
            }
        }
    }
}

/// The connection died before it was accepted; the next one may be fine.
fn is_the_peers(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

/// From a socket to a connection that HTTP can begin on.
async fn greet(socket: Socket, server: Arc<Server>, _permit: OwnedSemaphorePermit) {
    let _counted = Counted::new(server.state.metrics.connections());
    let activity = Arc::new(Activity::new());
    let (peer, is_unix) = (socket.peer(), socket.is_unix());
    let socket = Arc::new(socket);
    let raw = RawStream::new(Arc::clone(&socket), Arc::clone(&activity));
    let tls = server.tls.clone().filter(|_| !is_unix);
    let mut closing = server.closing.clone();
    let config = &server.state.config;
    let opening = timeout(config.header_timeout, open(raw, peer, &config.proxies, tls));
    let opened = tokio::select! {
        opened = opening => opened,
        // Nothing was asked yet, so nothing is cut short.
        _ = closing.wait_for(|closing| *closing) => return,
    };
    let opened = match opened {
        Ok(Ok(opened)) => opened,
        Ok(Err(error)) => {
            server.state.metrics.count_failed_opening();
            return tracing::debug!(%error, ?peer, "a connection did not begin");
        }
        Err(_) => {
            server.state.metrics.count_failed_opening();
            return tracing::debug!(?peer, "a connection took too long to begin");
        }
    };
    let watch = Watch {
        socket,
        activity,
        is_tls: opened.stream.is_tls(),
    };
    drive(opened, &watch, &server).await;
}

/// Serves one connection to its end, of whichever kind.
async fn drive(opened: Opened, watch: &Watch, server: &Arc<Server>) {
    let config = &server.state.config;
    let peer = opened.peer;
    let service = service_fn(|request: Request<Incoming>| {
        let server = Arc::clone(server);
        let client = config.proxies.client(peer, request.headers());
        let mark = watch.activity.begin_request(request.version(), client);
        async move { Ok::<_, Infallible>(server.router.answer(request, mark).await) }
    });
    let stream = WatchedStream::new(opened.stream, Arc::clone(&watch.activity));
    let mut connection = pin!(
        server
            .builder
            .serve_connection(TokioIo::new(stream), service)
    );
    let mut left = pin!(watch.left());
    let mut tick = interval(watch_interval(config));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut closing = server.closing.clone();
    let mut is_closing = false;
    loop {
        tokio::select! {
            outcome = connection.as_mut() => {
                if let Err(error) = outcome {
                    tracing::debug!(%error, "a connection ended early");
                }
                return;
            }
            () = left.as_mut() => return tracing::debug!("the client has left"),
            _ = tick.tick() => match watch.activity.expired(config, server.is_crowded()) {
                None => {}
                // HTTP/2 gets its GOAWAY; the next verdict, if it must come, finds it closing.
                Some(Expired::Idle) if !is_closing => {
                    is_closing = true;
                    connection.as_mut().graceful_shutdown();
                }
                Some(why) => return tracing::debug!(?why, "closing a connection"),
            },
            _ = closing.wait_for(|closing| *closing), if !is_closing => {
                is_closing = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Often enough for the shortest timeout, and for noticing within a second that a client has left.
fn watch_interval(config: &ServerConfig) -> Duration {
    let shortest = config
        .header_timeout
        .min(config.idle_timeout)
        .min(config.write_timeout);
    (shortest / 4).clamp(Duration::from_millis(10), Duration::from_millis(500))
}

/// No new work from here on; returns when running streams are done or have been told to be.
async fn drain(state: &AppState) {
    state.phase.send_replace(Phase::Draining);
    let running = state.num_generating.load(Ordering::Acquire);
    tracing::info!(
        running,
        seconds = state.config.drain.as_secs(),
        "draining: no new work, running requests may finish"
    );
    if timeout(state.config.drain, idle(state)).await.is_err() {
        let running = state.num_generating.load(Ordering::Acquire);
        tracing::warn!(
            running,
            "the drain's time is up, ending the streams that are left"
        );
        state.phase.send_replace(Phase::Deadline);
        let _ = timeout(LAST_WORDS, idle(state)).await;
    }
}

/// Resolves when no generating request is in flight.
async fn idle(state: &AppState) {
    while state.num_generating.load(Ordering::Acquire) > 0 {
        sleep(Duration::from_millis(10)).await;
    }
}

/// Resolves when the engine has failed.
async fn engine_failure(state: &AppState) -> ServeError {
    let loaded = state.engine.ready().await.is_ok();
    let why = state.engine.failure().await;
    if loaded {
        ServeError::Engine(why)
    } else {
        ServeError::Load(why)
    }
}

/// Counts one as long as it lives.
struct Counted(IntGauge);

impl Counted {
    fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn buggy<T>() -> impl Future<Output = T> {
        std::future::poll_fn(|_| panic!("a bug in it"))
    }

    #[track_caller]
    fn check(failure: &Failure) {
        assert_eq!(failure.cause, Cause::Engine);
        assert!(failure.message.contains("a bug in it"), "{failure}");
    }

    #[tokio::test]
    async fn an_accept_loop_that_panics_ends_the_server() {
        let mut accepting = JoinSet::<Infallible>::new();
        accepting.spawn(std::future::pending());
        accepting.spawn(buggy());
        check(&panicked(&mut accepting).await);
    }

    #[tokio::test]
    async fn a_background_task_that_panics_ends_the_server() {
        let mut background = JoinSet::<()>::new();
        background.spawn(async {});
        tokio::task::yield_now().await;
        background.spawn(std::future::pending());
        background.spawn(buggy());
        check(&panicked(&mut background).await);
    }

    #[tokio::test]
    async fn tasks_that_end_in_order_are_no_loss() {
        let mut background = JoinSet::<()>::new();
        background.spawn(async {});
        let ended = panicked(&mut background).now_or_never();
        assert!(ended.is_none());
        tokio::task::yield_now().await;
        let ended = panicked(&mut background).now_or_never();
        assert!(ended.is_none() && background.is_empty());
    }
}
