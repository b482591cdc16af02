//! Whether `/health` and `/ready` tell the truth about an engine that is slow, idle or hangs, and what
//! becomes of one that hangs.

use std::time::{Duration, Instant};

use engine::{Cause, EngineStatus};
use nemoserve::args::exit;
use nemoserve::http::ServeError;
use nemoserve::state::ServerConfig;

use crate::harness::{Plan, Server, completion, eventually, request};

const STALL: Duration = Duration::from_millis(100);

fn impatient(watchdog: Option<Duration>) -> ServerConfig {
    ServerConfig {
        stall_timeout: STALL,
        watchdog_timeout: watchdog,
        ..ServerConfig::default()
    }
}

/// A server whose weights do not come, which is not waited for long.
async fn loading(watchdog: Option<Duration>) -> Server {
    Server::with(Plan {
        config: ServerConfig {
            load_timeout: STALL,
            ..impatient(watchdog)
        },
        loads_late: true,
        ..Plan::default()
    })
    .await
}

fn endless(stream: bool) -> String {
    request("POST", "/v1/completions", "", &completion(60_000, stream))
}

/// Waits until nothing was done for long; then both probes say so.
async fn becomes_stalled(server: &Server) {
    let engine = server.state.engine.clone();
    eventually("nothing was done for long", || {
        engine.still_for().is_some_and(|age| age > STALL)
    })
    .await;
    let health = server.get("/health").await;
    assert_eq!(health.status, 503);
    assert_eq!(health.json()["status"], "stalled");
    let ready = server.get("/ready").await;
    assert_eq!(ready.status, 503);
    assert_eq!(ready.json()["reason"], "stalled");
}

#[tokio::test]
async fn an_engine_that_hangs_is_unwell_and_recovers() {
    let server = Server::configured(impatient(None)).await;
    server.script.hold();
    let mut wire = server.wire().await;
    wire.send(endless(true)).await;
    wire.head().await;
    becomes_stalled(&server).await;
    let refused = server.post("/v1/completions", &completion(1, false)).await;
    refused.expect_error(503, "not_ready");
    assert!(!refused.header("retry-after").is_empty());
    server.script.release();
    drop(wire);
    server
        .metric_becomes("nemoserve_requests_running", 0.0)
        .await;
    assert_eq!(server.get("/health").await.status, 200);
    assert_eq!(server.get("/ready").await.status, 200);
}

#[tokio::test]
async fn an_idle_engine_is_well_however_long_it_rests() {
    let server = Server::configured(impatient(Some(STALL))).await;
    let engine = server.state.engine.clone();
    eventually("it rests for longer than a step may take", || {
        engine.stats().heartbeat_age > 4 * STALL
    })
    .await;
    assert_eq!(engine.still_for(), None);
    assert_eq!(server.get("/health").await.status, 200);
    assert_eq!(server.get("/ready").await.status, 200);
}

#[tokio::test]
async fn a_slow_step_that_goes_on_is_well() {
    let server = Server::configured(impatient(Some(2 * STALL))).await;
    server.script.crawl();
    let mut wire = server.wire().await;
    wire.send(request(
        "POST",
        "/v1/completions",
        "",
        &completion(3, false),
    ))
    .await;
    let engine = server.state.engine.clone();
    eventually("the step runs", || {
        let last = engine.last_step();
        !last.rows.is_empty() && !last.is_over
    })
    .await;
    let begin = Instant::now();
    while begin.elapsed() < 6 * STALL {
        assert_eq!(server.get("/health").await.status, 200);
        assert_eq!(server.get("/ready").await.status, 200);
    }
    server.script.release();
    assert_eq!(wire.reply().await.status, 200);
}

#[tokio::test]
async fn the_watchdog_tells_everybody_and_ends_the_server() {
    let server = Server::configured(impatient(Some(2 * STALL))).await;
    let (script, state) = (server.script.clone(), server.state.clone());
    script.hold();
    let mut streaming = server.wire().await;
    streaming.send(endless(true)).await;
    streaming.head().await;
    let mut waiting = server.wire().await;
    waiting.send(endless(false)).await;
    let mut text = Vec::new();
    while let Some(chunk) = streaming.chunk().await {
        text.extend(chunk);
    }
    let text = String::from_utf8(text).expect("UTF-8");
    assert!(text.contains("--watchdog-seconds"), "{text}");
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    waiting.reply().await.expect_error(500, "internal_error");
    let outcome = server.outcome().await;
    let Err(ServeError::Engine(failure)) = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(failure.cause, Cause::Stall);
    assert_eq!(exit::of(failure.cause), 9);
    let metrics = state.metrics.render(&state.engine);
    assert!(metrics.contains("\nnemoserve_watchdog_trips_total 1\n"));
    script.release();
}

#[tokio::test]
async fn loading_that_hangs_is_unwell_and_recovers() {
    let server = loading(None).await;
    becomes_stalled(&server).await;
    let engine = server.state.engine.clone();
    server.script.load();
    eventually("it is ready", || engine.status() == EngineStatus::Ready).await;
    assert_eq!(server.get("/health").await.status, 200);
    assert_eq!(server.get("/ready").await.status, 200);
}

#[tokio::test]
async fn slow_loading_that_goes_on_is_well() {
    let server = loading(None).await;
    server.script.crawl();
    let engine = server.state.engine.clone();
    eventually("weights come", || {
        matches!(
            engine.status(),
            EngineStatus::Loading {
                loaded_bytes: 1..,
                ..
            }
        )
    })
    .await;
    let begin = Instant::now();
    while begin.elapsed() < 6 * STALL {
        assert_eq!(server.get("/health").await.status, 200);
        assert_eq!(server.get("/ready").await.json()["reason"], "loading");
    }
    server.script.load();
}

#[tokio::test]
async fn the_watchdog_ends_a_server_that_never_gets_ready() {
    // Work would be waited for longer.
    let server = loading(Some(600 * STALL)).await;
    let (script, state) = (server.script.clone(), server.state.clone());
    let outcome = server.outcome().await;
    let Err(ServeError::Load(failure)) = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(failure.cause, Cause::Stall);
    assert!(failure.message.contains("--load-timeout"), "{failure}");
    let metrics = state.metrics.render(&state.engine);
    assert!(metrics.contains("\nnemoserve_watchdog_trips_total 1\n"));
    script.load();
}
