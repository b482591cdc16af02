//! Clients that leave, weights that come late, signals, and an engine that fails.

use std::time::Duration;

use nemoserve::http::ServeError;
use nemoserve::state::ServerConfig;
use tokio::io::AsyncWriteExt as _;

use crate::harness::{Plan, Server, completion, eventually, request, soon};

const RUNNING: &str = "nemoserve_requests_running";
const WAITING: &str = "nemoserve_requests_waiting";
const CANCELLED: &str = "nemoserve_requests_cancelled_total";

fn endless(stream: bool) -> String {
    request("POST", "/v1/completions", "", &completion(60_000, stream))
}

#[tokio::test]
async fn whoever_leaves_a_stream_frees_it() {
    let server = Server::start().await;
    server.script.hold();
    let mut wire = server.wire().await;
    wire.send(endless(true)).await;
    server.script.allow(3);
    let (status, headers) = wire.head().await;
    assert_eq!(
        (status, headers["content-type"].as_str()),
        (200, "text/event-stream")
    );
    wire.chunk().await.expect("an event");
    server.metric_becomes(RUNNING, 1.0).await;
    drop(wire);
    server.metric_becomes(CANCELLED, 1.0).await;
    server.script.allow(1);
    server.metric_becomes(RUNNING, 0.0).await;
}

#[tokio::test]
async fn whoever_leaves_before_the_answer_frees_it_too() {
    let server = Server::start().await;
    server.script.hold();
    let mut wire = server.wire().await;
    wire.send(endless(false)).await;
    server
        .metric_becomes("nemoserve_http_requests_in_flight", 2.0)
        .await;
    drop(wire);
    server.metric_becomes(CANCELLED, 1.0).await;
    server.script.release();
    server.metric_becomes(RUNNING, 0.0).await;
    assert_eq!(
        server
            .metric("nemoserve_requests_total{route=\"/v1/completions\",status=\"499\"}")
            .await,
        Some(1.0)
    );
}

#[tokio::test]
async fn whoever_leaves_the_queue_frees_the_place() {
    let server = Server::with(Plan {
        max_num_seqs: 1,
        ..Plan::default()
    })
    .await;
    server.script.hold();
    let mut running = server.wire().await;
    running.send(endless(true)).await;
    running.head().await;
    let mut queued = server.wire().await;
    queued.send(endless(false)).await;
    server
        .metric_becomes("nemoserve_http_requests_in_flight", 3.0)
        .await;
    // The engine learns of it between two steps.
    while server.metric(WAITING).await != Some(1.0) {
        server.script.allow(1);
    }
    drop(queued);
    server.metric_becomes(CANCELLED, 1.0).await;
    server.script.allow(1);
    server.metric_becomes(WAITING, 0.0).await;
    assert_eq!(server.metric(RUNNING).await, Some(1.0), "the other runs on");
    drop(running);
    server.metric_becomes(CANCELLED, 2.0).await;
    server.script.allow(1);
    server.metric_becomes(RUNNING, 0.0).await;
}

#[tokio::test]
async fn a_client_that_pipelines_and_leaves_is_noticed() {
    let server = Server::start().await;
    server.script.hold();
    let mut wire = server.wire().await;
    // The second request hides the end of the stream from a parser that still serves the first.
    wire.send(endless(false) + &endless(false)).await;
    server
        .metric_becomes("nemoserve_http_requests_in_flight", 2.0)
        .await;
    drop(wire);
    server.metric_becomes(CANCELLED, 1.0).await;
    server.script.release();
    server.metric_becomes(RUNNING, 0.0).await;
}

#[tokio::test]
async fn who_sends_no_more_and_still_reads_is_served() {
    let server = Server::start().await;
    server.script.hold();
    let mut whole = server.wire().await;
    let body = completion(5, false);
    whole
        .send(request("POST", "/v1/completions", "", &body))
        .await;
    whole.stream.shutdown().await.expect("open until now");
    let mut stream = server.wire().await;
    let body = completion(5, true);
    stream
        .send(request("POST", "/v1/completions", "", &body))
        .await;
    let (status, _) = stream.head().await;
    assert_eq!(status, 200);
    stream.stream.shutdown().await.expect("open until now");
    // Both are asked whether they are there, in words that mean nothing.
    assert_eq!(whole.head().await.0, 100);
    while stream.chunk().await.expect("it goes on") != b":\n\n" {}
    assert_eq!(server.metric(CANCELLED).await, Some(0.0));
    server.script.release();
    assert_eq!(whole.reply().await.status, 200);
    let mut last = Vec::new();
    while let Some(chunk) = stream.chunk().await {
        last = chunk;
    }
    assert!(last.ends_with(b"data: [DONE]\n\n"), "{last:?}");
    assert!(whole.is_closed().await && stream.is_closed().await);
    server.metric_becomes(RUNNING, 0.0).await;
    assert_eq!(server.metric(CANCELLED).await, Some(0.0));
}

#[tokio::test]
async fn who_is_asked_and_has_gone_is_found_out() {
    let server = Server::start().await;
    server.script.hold();
    // One that sent nothing more first and left later, one that waits for 100 Continue itself.
    let mut half = server.wire().await;
    half.send(endless(false)).await;
    half.stream.shutdown().await.expect("open until now");
    assert_eq!(half.head().await.0, 100);
    let mut polite = server.wire().await;
    let body = completion(60_000, false);
    let request = request("POST", "/v1/completions", "expect: 100-continue\r\n", &body);
    let (head, body) = request.split_once("\r\n\r\n").expect("a head and a body");
    polite.send(format!("{head}\r\n\r\n")).await;
    assert_eq!(polite.head().await.0, 100);
    polite.send(body).await;
    server
        .metric_becomes("nemoserve_http_requests_in_flight", 3.0)
        .await;
    drop(polite);
    server.metric_becomes(CANCELLED, 1.0).await;
    drop(half);
    server.metric_becomes(CANCELLED, 2.0).await;
    server.script.release();
    server.metric_becomes(RUNNING, 0.0).await;
}

#[tokio::test]
async fn a_reader_that_never_reads_loses_its_stream_and_nobody_elses() {
    let server = Server::configured(ServerConfig {
        write_timeout: Duration::from_millis(200),
        ..ServerConfig::default()
    })
    .await;
    server.script.hold();
    let mut stuck = server.wire().await;
    stuck.send(endless(true)).await;
    server
        .metric_becomes("nemoserve_http_requests_in_flight", 2.0)
        .await;
    server.script.allow(1);
    server.metric_becomes(RUNNING, 1.0).await;
    // Steps come no faster than the front end takes their tokens, until the socket takes none.
    while server.metric(RUNNING).await == Some(1.0) {
        server.script.allow(64);
        for _ in 0..64 {
            tokio::task::yield_now().await;
        }
    }
    server.script.release();
    let reply = server.post("/v1/completions", &completion(20, true)).await;
    assert!(reply.body.ends_with("data: [DONE]\n\n"), "{reply:?}");
    server
        .metric_becomes("nemoserve_connections_open", 1.0)
        .await;
}

#[tokio::test]
async fn equal_request_ids_do_not_cross_streams() {
    let server = Server::start().await;
    server.script.hold();
    let mut wires = Vec::new();
    for num_tokens in [3, 40, 7] {
        let mut wire = server.wire().await;
        let usage = r#""stream":true,"stream_options":{"include_usage":true}"#;
        let body = completion(num_tokens, true).replace(r#""stream":true"#, usage);
        let id = "x-request-id: the-same\r\n";
        wire.send(request("POST", "/v1/completions", id, &body))
            .await;
        let (_, headers) = wire.head().await;
        assert_eq!(headers["x-request-id"], "the-same");
        wires.push((num_tokens, wire));
    }
    // A client that gave up and asked again.
    drop(wires.remove(1));
    server.metric_becomes(CANCELLED, 1.0).await;
    server.script.release();
    for (num_tokens, mut wire) in wires {
        let mut text = Vec::new();
        while let Some(chunk) = wire.chunk().await {
            text.extend(chunk);
        }
        let text = String::from_utf8(text).expect("UTF-8");
        let said = format!("\"completion_tokens\":{num_tokens},");
        assert!(text.contains(&said), "{said}: {text}");
        assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    }
}

#[tokio::test]
async fn a_full_queue_is_429() {
    let server = Server::with(Plan {
        max_num_seqs: 1,
        max_queue: 1,
        ..Plan::default()
    })
    .await;
    server.script.hold();
    let mut running = server.wire().await;
    running.send(endless(true)).await;
    running.head().await;
    server.metric_becomes(RUNNING, 1.0).await;
    let mut queued = server.wire().await;
    queued.send(endless(true)).await;
    queued.head().await;
    let reply = server.post("/v1/completions", &completion(5, false)).await;
    reply.expect_error(429, "rate_limit_exceeded");
    assert_eq!(reply.error()["type"], "rate_limit_error");
    assert!(reply.header("retry-after").parse::<u32>().expect("seconds") > 0);
}

#[tokio::test]
async fn a_connection_outlives_its_stream() {
    let server = Server::start().await;
    let mut wire = server.wire().await;
    for _ in 0..2 {
        let body = completion(3, true);
        wire.send(request("POST", "/v1/completions", "", &body))
            .await;
        let reply = wire.reply().await;
        assert!(reply.body.ends_with("data: [DONE]\n\n"), "{reply:?}");
    }
    wire.send(request("GET", "/health", "", "")).await;
    assert_eq!(wire.reply().await.status, 200);
}

#[tokio::test]
async fn the_port_is_open_while_weights_load() {
    let mut server = Server::with(Plan {
        loads_late: true,
        ..Plan::default()
    })
    .await;
    assert_eq!(server.get("/health").await.status, 200);
    let ready = server.get("/ready").await;
    assert_eq!(
        (ready.status, ready.json()["reason"].as_str()),
        (503, Some("loading"))
    );
    let reply = server.post("/v1/completions", &completion(3, false)).await;
    reply.expect_error(503, "not_ready");
    assert!(!reply.header("retry-after").is_empty());
    // What needs no weights is served.
    assert_eq!(server.get("/v1/models").await.status, 200);
    server.script.load();
    let state = server.state.clone();
    eventually("it is ready", || {
        state.engine.status() == engine::EngineStatus::Ready
    })
    .await;
    assert_eq!(server.get("/ready").await.status, 200);
    server.stop();
    assert_eq!(server.outcome().await, Ok(()));
}

#[tokio::test]
async fn weights_that_do_not_load_end_the_server() {
    let server = Server::with(Plan {
        load_fails: true,
        ..Plan::default()
    })
    .await;
    let outcome = server.outcome().await;
    assert!(matches!(outcome, Err(ServeError::Load(_))), "{outcome:?}");
}

#[tokio::test]
async fn a_drain_lets_streams_finish_and_nobody_in() {
    let mut server = Server::start().await;
    server.script.hold();
    let mut wire = server.wire().await;
    let body = completion(20, true);
    wire.send(request("POST", "/v1/completions", "", &body))
        .await;
    wire.head().await;
    server.stop();
    let state = server.state.clone();
    eventually("the drain begins", || state.is_draining()).await;
    let ready = server.get("/ready").await;
    assert_eq!(
        (ready.status, ready.json()["reason"].as_str()),
        (503, Some("draining"))
    );
    assert_eq!(ready.header("connection"), "close");
    assert_eq!(server.get("/health").await.status, 200);
    let refused = server.post("/v1/completions", &completion(1, false)).await;
    refused.expect_error(503, "not_ready");
    server.script.release();
    let mut last = Vec::new();
    while let Some(chunk) = wire.chunk().await {
        last = chunk;
    }
    assert!(last.ends_with(b"data: [DONE]\n\n"));
    assert_eq!(server.outcome().await, Ok(()));
}

#[tokio::test]
async fn a_drain_that_takes_too_long_ends_streams_with_an_event() {
    let mut server = Server::configured(ServerConfig {
        drain: Duration::from_millis(50),
        ..ServerConfig::default()
    })
    .await;
    server.script.hold();
    let mut wire = server.wire().await;
    wire.send(endless(true)).await;
    wire.head().await;
    server.stop();
    let mut text = Vec::new();
    while let Some(chunk) = wire.chunk().await {
        text.extend(chunk);
    }
    let text = String::from_utf8(text).expect("UTF-8");
    assert!(text.contains("\"error\""), "{text}");
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    assert_eq!(server.outcome().await, Ok(()));
}

#[tokio::test]
async fn idle_connections_do_not_hold_up_the_end() {
    let mut server = Server::start().await;
    let mut idle = server.wire().await;
    idle.send(request("GET", "/health", "", "")).await;
    idle.reply().await;
    let mut silent = server.wire().await;
    server
        .metric_becomes("nemoserve_connections_open", 3.0)
        .await;
    server.stop();
    assert!(soon("the idle one is closed", idle.is_closed()).await);
    assert!(soon("the silent one is closed", silent.is_closed()).await);
    assert_eq!(server.outcome().await, Ok(()));
}

#[tokio::test]
async fn a_failed_engine_tells_everybody_and_ends() {
    let server = Server::start().await;
    server.script.hold();
    let mut streaming = server.wire().await;
    streaming.send(endless(true)).await;
    streaming.head().await;
    let mut waiting = server.wire().await;
    waiting.send(endless(false)).await;
    // The engine learns of it between two steps.
    while server.metric(RUNNING).await != Some(2.0) {
        server.script.allow(1);
    }
    server.script.fail();
    let mut text = Vec::new();
    while let Some(chunk) = streaming.chunk().await {
        text.extend(chunk);
    }
    let text = String::from_utf8(text).expect("UTF-8");
    assert!(text.contains("\"server_error\""), "{text}");
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    waiting.reply().await.expect_error(500, "internal_error");
    let outcome = server.outcome().await;
    assert!(matches!(outcome, Err(ServeError::Engine(_))), "{outcome:?}");
}

#[tokio::test]
async fn a_thousand_cut_streams_leave_nothing_behind() {
    let server = Server::with(Plan {
        max_queue: 2000,
        ..Plan::default()
    })
    .await;
    for batch in 0..10 {
        let clients = (0..100).map(|n| {
            let address = server.address;
            tokio::spawn(async move {
                let mut wire = crate::wire::Wire::open(address).await;
                let bytes = endless(true);
                // Cut in the request, right after it, or somewhere in the answer.
                let sent = if n % 3 == 0 {
                    bytes.len() * n / 100
                } else {
                    bytes.len()
                };
                wire.send(&bytes.as_bytes()[..sent]).await;
                if n % 3 == 2 {
                    wire.head().await;
                    for _ in 0..n / 10 {
                        wire.chunk().await;
                    }
                }
                // An orderly end or a reset.
                if n % 2 == 0 {
                    let _ = wire.stream.shutdown().await;
                }
            })
        });
        for client in clients.collect::<Vec<_>>() {
            soon("the client is done", client)
                .await
                .unwrap_or_else(|error| panic!("batch {batch}: {error}"));
        }
    }
    server.metric_becomes(RUNNING, 0.0).await;
    server.metric_becomes(WAITING, 0.0).await;
    server
        .metric_becomes("nemoserve_kv_blocks{state=\"used\"}", 0.0)
        .await;
    server
        .metric_becomes("nemoserve_state_slots{state=\"used\"}", 0.0)
        .await;
    server
        .metric_becomes("nemoserve_connections_open", 1.0)
        .await;
}
