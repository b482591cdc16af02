//! The accept loop, connection limits and the graceful end.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use engine::Failure;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use prometheus::IntGauge;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::connection::{Expired, watched};
use crate::router::Router;
use crate::state::{AppState, Phase, ServerConfig};

/// Heads beyond these are refused with 431. SDKs send about 20 headers and 1 KiB.
const MAX_HEADERS: usize = 128;
const MAX_HEAD_BYTES: usize = 64 << 10;
/// Streams that one HTTP/2 connection may have open.
const MAX_HTTP2_STREAMS: u32 = 256;
/// Streams reset by the peer and not yet noticed by us; more, and the connection ends.
const MAX_HTTP2_RESETS: usize = 32;
/// Refused accepts are tried again after this, doubling up to a second.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(10);
/// For terminal events and last bytes, once the drain's time is up.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Why serving ended early.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServeError {
    /// The weights did not load.
    #[error("loading failed: {0}")]
    Load(Failure),
    /// The engine failed while it served; every client has been told.
    #[error("the engine has failed: {0}")]
    Engine(Failure),
}

/// Serves until `shutdown` resolves and the drain is over, or until the engine fails.
pub async fn serve(
    listener: TcpListener,
    state: Arc<AppState>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let (close, closing) = watch::channel(false);
    let permits = Arc::new(Semaphore::new(state.config.max_connections));
    let server = Arc::new(Server {
        router: Router::new(Arc::clone(&state)),
        builder: builder(),
        state: Arc::clone(&state),
        permits: Arc::clone(&permits),
        closing,
    });
    let accepting = tokio::spawn(accept(listener, server));
    let outcome = {
        let failure = pin!(engine_failure(&state));
        let stopping = pin!(async {
            shutdown.await;
            drain(&state).await;
        });
        tokio::select! {
            error = failure => {
                // Streams end with an error event of their own; let it reach the wire.
                let _ = timeout(LAST_WORDS, idle(&state)).await;
                Err(error)
            }
            () = stopping => Ok(()),
        }
    };
    // Connections close once their last bytes are out; those that cannot are cut.
    accepting.abort();
    close.send_replace(true);
    let all = u32::try_from(state.config.max_connections).unwrap_or(u32::MAX);
    let _ = timeout(LAST_WORDS, permits.acquire_many(all)).await;
    outcome
}

struct Server {
    router: Router,
    builder: Builder<TokioExecutor>,
    state: Arc<AppState>,
    permits: Arc<Semaphore>,
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
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD_BYTES)
        .writev(false);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_HTTP2_STREAMS)
        .max_pending_accept_reset_streams(MAX_HTTP2_RESETS)
        .max_header_list_size(MAX_HEAD_BYTES as u32)
        // A peer that vanished without a goodbye is found out.
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    builder
}

/// Accepts for ever. Connections beyond the limit wait in the kernel's backlog.
async fn accept(listener: TcpListener, server: Arc<Server>) {
    let mut backoff = ACCEPT_BACKOFF;
    loop {
        let permit = Arc::clone(&server.permits)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, _peer)) => {
                backoff = ACCEPT_BACKOFF;
                tokio::spawn(drive(stream, Arc::clone(&server), permit));
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

/// Serves one connection to its end, of whichever kind.
async fn drive(stream: TcpStream, server: Arc<Server>, _permit: OwnedSemaphorePermit) {
    let config = &server.state.config;
    let _counted = Counted::new(server.state.metrics.connections());
    // Tokens are small and wanted at once.
    let _ = stream.set_nodelay(true);
    let (stream, watch) = watched(stream);
    let service = service_fn(|request| {
        let server = Arc::clone(&server);
        let mark = watch.activity.begin_request();
        async move { Ok::<_, Infallible>(server.router.answer(request, mark).await) }
    });
    let mut connection = pin!(
        server
            .builder
            .serve_connection(TokioIo::new(stream), service)
    );
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
            _ = tick.tick() => match watch.expired(config, server.is_crowded()) {
                None => {}
                // HTTP/2 gets its GOAWAY; the next verdict, if it must come, finds it closing.
                Some(Expired::Idle) if !is_closing => {
                    is_closing = true;
                    connection.as_mut().graceful_shutdown();
                }
                Some(why) => {
                    tracing::debug!(?why, "closing a connection");
                    return;
                }
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
