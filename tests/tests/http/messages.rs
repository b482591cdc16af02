//! Messages as HTTP allows them: framing, order, methods, paths, and what is not HTTP.

use crate::harness::{Server, request};
use crate::wire::Wire;

/// A route that reads its body and needs no model.
const ECHO: &str = "/v1/embeddings";

#[tokio::test]
async fn a_connection_serves_many_requests() {
    let server = Server::start().await;
    let mut wire = server.wire().await;
    for _ in 0..3 {
        wire.send(request("GET", "/health", "", "")).await;
        let reply = wire.reply().await;
        assert_eq!(
            (reply.status, reply.json()["status"].as_str()),
            (200, Some("ok"))
        );
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let server = Server::start().await;
    let mut wire = server.wire().await;
    let id = |n: u32| format!("x-request-id: n{n}\r\n");
    let all = request("POST", ECHO, &id(1), "{}")
        + &request("GET", "/health", &id(2), "")
        + &request("GET", "/nowhere", &id(3), "")
        + &request("GET", "/ready", &id(4), "");
    wire.send(all).await;
    for (n, status) in [(1, 400), (2, 200), (3, 404), (4, 200)] {
        let reply = wire.reply().await;
        assert_eq!(reply.status, status);
        assert_eq!(reply.header("x-request-id"), format!("n{n}"));
    }
}

#[tokio::test]
async fn bodies_may_be_chunked() {
    let server = Server::start().await;
    let mut wire = server.wire().await;
    let head = format!("POST {ECHO} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n");
    wire.send(head + "1\r\n{\r\n1;extension=yes\r\n}\r\n0\r\ntrailer: x\r\n\r\n")
        .await;
    wire.reply().await.expect_error(400, "unsupported_model");
    // The next request on the connection starts where the last chunk ended.
    wire.send(request("GET", "/health", "", "")).await;
    assert_eq!(wire.reply().await.status, 200);
}

#[tokio::test]
async fn a_client_may_wait_for_100_continue() {
    let server = Server::start().await;
    let mut wire = server.wire().await;
    let head = |length: u64| {
        format!(
            "POST {ECHO} HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {length}\r\n\r\n"
        )
    };
    wire.send(head(2)).await;
    assert_eq!(wire.head().await.0, 100);
    wire.send("{}").await;
    wire.reply().await.expect_error(400, "unsupported_model");
    // Refused from the declared length alone: the client is never told to go on.
    wire.send(head(1 << 40)).await;
    wire.reply().await.expect_error(413, "request_too_large");
}

#[tokio::test]
async fn length_and_chunks_together_never_desynchronise() {
    let server = Server::start().await;
    // Were the length believed, the rest of the chunks would be taken for a request of its own.
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n";
    let chunked = format!("{:x}\r\n{smuggled}\r\n0\r\n\r\n", smuggled.len());
    for headers in [
        "content-length: 4\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 4\r\n",
        "transfer-encoding: Chunked\r\ncontent-length: 0\r\n",
    ] {
        let mut wire = server.wire().await;
        let head = format!("POST {ECHO} HTTP/1.1\r\nhost: x\r\n{headers}\r\n");
        let next = request("GET", "/ready", "x-request-id: next\r\n", "");
        wire.send(head + &chunked + &next).await;
        let reply = wire.reply().await;
        assert_eq!(reply.status, 400, "{headers:?}: {reply:?}");
        // What follows is either the next request's answer or nothing at all.
        if !wire.is_closed().await {
            let reply = wire.reply().await;
            assert_eq!(
                reply.header("x-request-id"),
                "next",
                "{headers:?}: {reply:?}"
            );
        }
    }
    assert_eq!(
        server
            .metric("nemoserve_requests_total{route=\"unmatched\",status=\"404\"}")
            .await,
        None,
        "the smuggled request was taken for one"
    );
}

async fn refused_and_closed(server: &Server, bytes: &[u8], status: u16, code: &str) {
    let mut wire = server.wire().await;
    wire.send(bytes).await;
    let reply = wire.reply().await;
    reply.expect_error(status, code);
    assert!(wire.is_closed().await, "{bytes:?} left the connection open");
}

#[tokio::test]
async fn what_is_not_http_is_refused_with_an_error_object() {
    let server = Server::start().await;
    for bytes in [
        &b"HELLO\r\n\r\n"[..],
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /health HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /health HTTP/1.1\r\nbad name: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: a\0b\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}",
        b"POST /tokenize HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\ncontent-length: 1e3\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\ntransfer-encoding: gzip\r\n\r\n",
        b"POST /tokenize HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ] {
        refused_and_closed(&server, bytes, 400, "invalid_http").await;
    }
    assert_eq!(server.get("/health").await.status, 200);
}

#[tokio::test]
async fn a_broken_chunk_is_a_bad_request() {
    let server = Server::start().await;
    let mut wire = server.wire().await;
    let head = format!("POST {ECHO} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n");
    wire.send(head + "zz\r\n{}\r\n").await;
    wire.reply().await.expect_error(400, "invalid_body");
    assert!(wire.is_closed().await);
}

#[tokio::test]
async fn head_is_get_without_the_body() {
    let server = Server::start().await;
    for path in [
        "/health",
        "/ready",
        "/v1/models",
        "/v1/models/test-model",
        "/nowhere",
    ] {
        let get = server.get(path).await;
        let head = server.request("HEAD", path, "", "").await;
        assert_eq!(head.status, get.status, "{path}");
        assert_eq!(head.header("content-type"), get.header("content-type"));
        assert_eq!(head.body, "");
        let length = head.header("content-length").parse::<usize>().expect(path);
        assert!(length > 0, "{path}");
    }
}

#[tokio::test]
async fn unknown_paths_are_404() {
    let server = Server::start().await;
    let long = format!("/{}", "x".repeat(9000));
    for path in [
        "/playground",
        "/v1",
        "/V1/models",
        "/v1/chat/completions/",
        "/health/",
        "//health",
        &long,
    ] {
        server.get(path).await.expect_error(404, "not_found");
        server.post(path, "{}").await.expect_error(404, "not_found");
    }
}

#[tokio::test]
async fn wrong_methods_are_405_and_name_the_right_ones() {
    let server = Server::start().await;
    for (method, path, allow) in [
        ("GET", "/v1/chat/completions", "POST, OPTIONS"),
        ("PUT", "/v1/completions", "POST, OPTIONS"),
        ("HEAD", "/tokenize", "POST, OPTIONS"),
        ("POST", "/v1/models", "GET, HEAD, OPTIONS"),
        ("DELETE", "/v1/models/test-model", "GET, HEAD, OPTIONS"),
        ("PATCH", "/health", "GET, HEAD, OPTIONS"),
        ("TRACE", "/metrics", "GET, HEAD, OPTIONS"),
        ("BREW", "/ready", "GET, HEAD, OPTIONS"),
    ] {
        let reply = server.request(method, path, "", "").await;
        assert_eq!(
            (reply.status, reply.header("allow")),
            (405, allow),
            "{method} {path}"
        );
        if method != "HEAD" {
            reply.expect_error(405, "method_not_allowed");
        }
    }
}

#[tokio::test]
async fn embeddings_are_refused_by_name() {
    let server = Server::start().await;
    let body = r#"{"model":"x","input":"y"}"#;
    for path in ["/v1/embeddings", "/v1/openai/embeddings"] {
        let reply = server.post(path, body).await;
        reply.expect_error(400, "unsupported_model");
        assert_eq!(reply.error()["param"], "model");
    }
    let reply = server.post("/api/v1/embeddings", body).await;
    assert_eq!(reply.status, 400);
    let metadata = &reply.json()["error"]["metadata"];
    assert_eq!(metadata["param"], "model");
    assert_eq!(metadata["code"], "unsupported_model");
}

#[tokio::test]
async fn a_bare_http_1_0_client_is_served_and_let_go() {
    let server = Server::start().await;
    let mut wire: Wire = server.wire().await;
    wire.send("GET /health HTTP/1.0\r\n\r\n").await;
    let mut text = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut wire.stream, &mut text)
        .await
        .expect("it closes");
    assert!(text.starts_with("HTTP/1.0 200 OK\r\n"), "{text}");
    assert!(text.ends_with(r#"{"status":"ok"}"#), "{text}");
}
