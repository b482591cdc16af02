//! Limits: bytes, headers, times, connections.

use std::time::{Duration, Instant};

use nemoserve::state::ServerConfig;

use crate::harness::{Server, request};

const ECHO: &str = "/v1/embeddings";

fn short(change: impl FnOnce(&mut ServerConfig)) -> ServerConfig {
    let mut config = ServerConfig::default();
    change(&mut config);
    config
}

#[tokio::test]
async fn a_body_over_the_limit_is_413_however_it_is_framed() {
    let server = Server::configured(short(|config| config.max_body_bytes = 1000)).await;
    let fits = server.post(ECHO, &"x".repeat(1000)).await;
    fits.expect_error(400, "unsupported_model");
    let reply = server.post(ECHO, &"x".repeat(1001)).await;
    reply.expect_error(413, "request_too_large");
    assert_eq!(reply.header("connection"), "close");

    let mut wire = server.wire().await;
    let chunk = format!("c8\r\n{}\r\n", "x".repeat(200));
    let head = format!("POST {ECHO} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n");
    wire.send(head + &chunk.repeat(6)).await;
    wire.reply().await.expect_error(413, "request_too_large");
}

#[tokio::test]
async fn a_client_that_sends_megabytes_too_many_still_learns_why() {
    let server = Server::configured(short(|config| config.max_body_bytes = 1000)).await;
    let mut wire = server.wire().await;
    // More than the kernel buffers: it is delivered only if somebody reads it.
    wire.send(request("POST", ECHO, "", &"x".repeat(24 << 20)))
        .await;
    wire.reply().await.expect_error(413, "request_too_large");
}

#[tokio::test]
async fn too_many_or_too_large_headers_are_431() {
    let server = Server::start().await;
    let many = "h: x\r\n".repeat(2000);
    let huge = format!("h: {}\r\n", "x".repeat(1 << 20));
    for headers in [many, huge] {
        let mut wire = server.wire().await;
        wire.send(request("GET", "/health", &headers, "")).await;
        wire.reply().await.expect_error(431, "headers_too_large");
    }
    let usual = format!("h: {}\r\n", "x".repeat(100)).repeat(60);
    assert_eq!(
        server.request("GET", "/health", &usual, "").await.status,
        200
    );
}

#[tokio::test]
async fn a_head_that_never_ends_is_cut() {
    let server = Server::configured(short(|config| {
        config.header_timeout = Duration::from_millis(80);
    }))
    .await;
    for beginning in ["G", "PRI * HTTP", "GET /health HTTP/1.1\r\nhost:", "\r\n"] {
        let mut wire = server.wire().await;
        wire.send(beginning).await;
        assert!(wire.is_closed().await, "{beginning:?}");
    }
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_a_fresh_one_served() {
    let server = Server::configured(short(|config| {
        config.idle_timeout = Duration::from_millis(80);
    }))
    .await;
    let mut silent = server.wire().await;
    assert!(silent.is_closed().await);
    let mut wire = server.wire().await;
    wire.send(request("GET", "/health", "", "")).await;
    assert_eq!(wire.reply().await.status, 200);
    assert!(wire.is_closed().await);
}

#[tokio::test]
async fn a_body_that_never_ends_is_408() {
    let server = Server::configured(short(|config| {
        config.body_timeout = Duration::from_millis(80);
    }))
    .await;
    let mut wire = server.wire().await;
    let head = format!("POST {ECHO} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n");
    wire.send(head + "{").await;
    wire.reply().await.expect_error(408, "request_timeout");
}

#[tokio::test]
async fn chunks_that_never_end_are_408_or_413() {
    let server = Server::configured(short(|config| {
        config.body_timeout = Duration::from_millis(80);
        config.max_body_bytes = 1 << 20;
    }))
    .await;
    let head = format!("POST {ECHO} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n");
    let mut wire = server.wire().await;
    wire.send(format!("{head}1\r\nx\r\n")).await;
    wire.reply().await.expect_error(408, "request_timeout");
    let mut wire = server.wire().await;
    wire.send(&head).await;
    let chunk = format!("8000\r\n{}\r\n", "x".repeat(0x8000));
    for _ in 0..=32 {
        wire.send(&chunk).await;
    }
    wire.reply().await.expect_error(413, "request_too_large");
}

#[tokio::test]
async fn idle_connections_make_room_for_others() {
    let server = Server::configured(short(|config| {
        config.max_connections = 8;
        // A sixteenth of it while others wait.
        config.idle_timeout = Duration::from_millis(1600);
    }))
    .await;
    let mut crowd = Vec::new();
    for _ in 0..8 {
        let mut wire = server.wire().await;
        wire.send(request("GET", "/health", "", "")).await;
        assert_eq!(wire.reply().await.status, 200);
        crowd.push(wire);
    }
    let begin = Instant::now();
    assert_eq!(server.get("/health").await.status, 200);
    let waited = begin.elapsed();
    assert!(waited < Duration::from_millis(1500), "{waited:?}");
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_a_place() {
    let server = Server::configured(short(|config| config.max_connections = 1)).await;
    let mut first = server.wire().await;
    first.send(request("GET", "/health", "", "")).await;
    assert_eq!(first.reply().await.status, 200);
    let mut second = server.wire().await;
    second.send(request("GET", "/ready", "", "")).await;
    // The first is answered again before the second is even accepted.
    first.send(request("GET", "/metrics", "", "")).await;
    let text = first.reply().await.body;
    assert_eq!(
        crate::harness::metric_in(&text, "nemoserve_connections_open"),
        Some(1.0)
    );
    drop(first);
    assert_eq!(second.reply().await.status, 200);
}
