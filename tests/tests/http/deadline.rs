//! Requests that are of use for so long and no longer.

use std::time::Duration;

use nemoserve::state::ServerConfig;
use serde_json::json;

use crate::harness::{MODEL, Plan, Server, completion, request};
use crate::wire::Wire;

const RUNNING: &str = "nemoserve_requests_running";
const WAITING: &str = "nemoserve_requests_waiting";
const LATE: &str = "nemoserve_requests_shed_total{cause=\"deadline\"}";
const SOON: &str = "x-request-timeout-ms: 50\r\n";

async fn rest(wire: &mut Wire) -> String {
    let mut text = Vec::new();
    while let Some(chunk) = wire.chunk().await {
        text.extend(chunk);
    }
    String::from_utf8(text).expect("UTF-8")
}

#[tokio::test]
async fn before_the_first_byte_it_is_504() {
    let server = Server::start().await;
    server.script.hold();
    let reply = server
        .request("POST", "/v1/completions", SOON, &completion(60_000, false))
        .await;
    reply.expect_error(504, "deadline_exceeded");
    assert_eq!(reply.error()["type"], "timeout_error");
    assert!(
        reply.error()["message"]
            .as_str()
            .expect("text")
            .contains("50 ms")
    );
    // A step later it is out of the engine.
    server.script.allow(1);
    server.metric_becomes(RUNNING, 0.0).await;
    let body =
        json!({"model": MODEL, "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]});
    let reply = server
        .request("POST", "/v1/messages", SOON, &body.to_string())
        .await;
    assert_eq!(reply.status, 504);
    assert_eq!(reply.json()["error"]["type"], "timeout_error");
    assert_eq!(server.metric(LATE).await, Some(2.0));
    server.script.release();
    server.metric_becomes(RUNNING, 0.0).await;
    server
        .metric_becomes("nemoserve_requests_without_token", 0.0)
        .await;
}

#[tokio::test]
async fn a_stream_ends_with_an_event_that_says_so() {
    let server = Server::start().await;
    server.script.hold();
    for tokens in [0, 3] {
        let mut wire = server.wire().await;
        let body = completion(60_000, true);
        wire.send(request("POST", "/v1/completions", SOON, &body))
            .await;
        let (status, _) = wire.head().await;
        assert_eq!(status, 200);
        server.script.allow(tokens);
        let text = rest(&mut wire).await;
        let events: Vec<_> = text.trim_end().split("\n\n").collect();
        let [.., error, done] = &events[..] else {
            panic!("{text}");
        };
        assert_eq!(*done, "data: [DONE]");
        let error: serde_json::Value =
            serde_json::from_str(error.strip_prefix("data: ").expect("an event")).expect("JSON");
        assert_eq!(error["error"]["code"], "deadline_exceeded", "{text}");
        assert!(!text.contains("\"finish_reason\":\"stop\""), "{text}");
        server.script.allow(1);
        server.metric_becomes(RUNNING, 0.0).await;
    }
    assert_eq!(server.metric(LATE).await, Some(2.0));
    let errors = "nemoserve_choices_finished_total{finished_reason=\"error\"}";
    assert_eq!(server.metric(errors).await, Some(2.0));
}

/// The one before it never ends.
#[tokio::test]
async fn whoever_only_waited_is_told_too() {
    let server = Server::with(Plan {
        max_num_seqs: 1,
        ..Plan::default()
    })
    .await;
    server.script.hold();
    let mut running = server.wire().await;
    running
        .send(request(
            "POST",
            "/v1/completions",
            "",
            &completion(60_000, true),
        ))
        .await;
    running.head().await;
    server.script.allow(1);
    server.metric_becomes(RUNNING, 1.0).await;
    let reply = server
        .request("POST", "/v1/completions", SOON, &completion(5, false))
        .await;
    reply.expect_error(504, "deadline_exceeded");
    server.script.allow(1);
    server.metric_becomes(WAITING, 0.0).await;
    assert_eq!(server.metric(RUNNING).await, Some(1.0), "the other runs on");
    drop(running);
    server.script.release();
    server.metric_becomes(RUNNING, 0.0).await;
}

#[tokio::test]
async fn the_operators_limit_holds_whatever_is_asked_for() {
    let server = Server::configured(ServerConfig {
        request_timeout: Some(Duration::from_millis(50)),
        ..ServerConfig::default()
    })
    .await;
    server.script.hold();
    for headers in ["", "x-request-timeout-ms: 86400000\r\n"] {
        let reply = server
            .request("POST", "/v1/completions", headers, &completion(9, false))
            .await;
        reply.expect_error(504, "deadline_exceeded");
    }
    server.script.release();
    // A body that never comes does not outlast it either.
    let mut wire = server.wire().await;
    wire.send("POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{")
        .await;
    wire.reply().await.expect_error(504, "deadline_exceeded");
}

#[tokio::test]
async fn what_is_no_time_is_refused_by_name() {
    let server = Server::start().await;
    for bad in ["0", "-1", "1.5", "86400001", "soon", ""] {
        let header = format!("x-request-timeout-ms: {bad}\r\n");
        let reply = server
            .request("POST", "/v1/completions", &header, &completion(1, false))
            .await;
        reply.expect_error(400, "invalid_value");
        assert_eq!(reply.error()["param"], "x-request-timeout-ms");
    }
    let header = "x-request-timeout-ms: 60000\r\n";
    let reply = server
        .request("POST", "/v1/completions", header, &completion(1, false))
        .await;
    assert_eq!(reply.status, 200);
}
