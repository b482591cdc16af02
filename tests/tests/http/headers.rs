//! Headers that every answer has: request ids, CORS, keys.

use nemoserve::state::ServerConfig;

use crate::harness::{Server, completion};

const ORIGIN: &str = "origin: https://page.example\r\n";

#[tokio::test]
async fn well_formed_request_ids_come_back() {
    let server = Server::start().await;
    for path in ["/health", "/nowhere", "/v1/models"] {
        let given = server
            .request("GET", path, "x-request-id: trace-1.2_3\r\n", "")
            .await;
        assert_eq!(given.header("x-request-id"), "trace-1.2_3");
        let replaced = server
            .request("GET", path, "x-request-id: a b\r\n", "")
            .await;
        assert!(replaced.header("x-request-id").starts_with("req_"));
        let first = server.get(path).await;
        let second = server.get(path).await;
        assert_ne!(first.header("x-request-id"), second.header("x-request-id"));
    }
}

#[tokio::test]
async fn processing_time_is_told_by_the_api() {
    let server = Server::start().await;
    for reply in [
        server.post("/v1/completions", &completion(2, false)).await,
        server.post("/v1/completions", &completion(2, true)).await,
        server.post("/v1/completions", "not json").await,
    ] {
        let ms = reply.header("openai-processing-ms");
        assert!(ms.parse::<u64>().is_ok(), "{reply:?}");
    }
}

#[tokio::test]
async fn preflights_are_answered_on_known_paths() {
    let server = Server::configured(ServerConfig {
        api_keys: vec!["k".into()],
        ..ServerConfig::default()
    })
    .await;
    let asked = "access-control-request-method: POST\r\n\
                 access-control-request-headers: authorization,x-stainless-os\r\n";
    for path in ["/v1/chat/completions", "/v1/models/a/b", "/health"] {
        let headers = format!("{ORIGIN}{asked}");
        let reply = server.request("OPTIONS", path, &headers, "").await;
        assert_eq!(reply.status, 204, "{path}");
        assert_eq!(reply.header("access-control-allow-origin"), "*");
        assert!(
            reply
                .header("access-control-allow-methods")
                .contains("OPTIONS")
        );
        assert_eq!(
            reply.header("access-control-allow-headers"),
            "authorization,x-stainless-os"
        );
        assert!(
            reply
                .header("access-control-max-age")
                .parse::<u32>()
                .is_ok()
        );
    }
    let reply = server.request("OPTIONS", "/nowhere", ORIGIN, "").await;
    reply.expect_error(404, "not_found");
}

#[tokio::test]
async fn answers_to_pages_carry_their_origin() {
    let server = Server::start().await;
    for path in ["/health", "/nowhere", "/v1/chat/completions"] {
        let reply = server.request("GET", path, ORIGIN, "").await;
        assert_eq!(reply.header("access-control-allow-origin"), "*", "{path}");
        assert!(
            reply
                .header("access-control-expose-headers")
                .contains("x-request-id")
        );
        let reply = server.get(path).await;
        assert_eq!(reply.header("access-control-allow-origin"), "", "{path}");
    }
}

#[tokio::test]
async fn listed_origins_are_the_only_ones() {
    let server = Server::configured(ServerConfig {
        cors_origins: vec!["https://page.example".into()],
        ..ServerConfig::default()
    })
    .await;
    let granted = server.request("GET", "/health", ORIGIN, "").await;
    assert_eq!(
        granted.header("access-control-allow-origin"),
        "https://page.example"
    );
    assert_eq!(granted.header("vary"), "origin");
    let other = "origin: https://evil.example\r\n";
    let refused = server.request("GET", "/health", other, "").await;
    assert_eq!(refused.header("access-control-allow-origin"), "");
}

#[tokio::test]
async fn keys_guard_everything_but_the_probes() {
    let server = Server::configured(ServerConfig {
        api_keys: vec!["secret".into()],
        ..ServerConfig::default()
    })
    .await;
    for (method, path) in [
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/embeddings"),
        ("POST", "/tokenize"),
        ("POST", "/detokenize"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/test-model"),
    ] {
        let reply = server.request(method, path, "", "{}").await;
        reply.expect_error(401, "invalid_api_key");
        assert_eq!(reply.error()["type"], "authentication_error");
        assert_eq!(reply.header("www-authenticate"), "Bearer");
        for key in ["authorization: bearer secret\r\n", "x-api-key: secret\r\n"] {
            let reply = server.request(method, path, key, "{}").await;
            assert_ne!(reply.status, 401, "{method} {path}");
        }
    }
    for path in ["/health", "/ready", "/metrics", "/", "/playground/app.js"] {
        assert_eq!(server.get(path).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn the_page_may_load_nothing_from_elsewhere() {
    let server = Server::start().await;
    for (path, kind) in [
        ("/", "text/html; charset=utf-8"),
        ("/playground/app.js", "text/javascript; charset=utf-8"),
        ("/playground/style.css", "text/css; charset=utf-8"),
    ] {
        let reply = server.get(path).await;
        assert_eq!(reply.status, 200, "{path}");
        assert_eq!(reply.header("content-type"), kind);
        assert_eq!(reply.header("x-content-type-options"), "nosniff");
        let policy = reply.header("content-security-policy");
        assert!(policy.contains("default-src 'none'"), "{policy}");
        assert!(!policy.contains("unsafe") && !policy.contains("http"));
        let head = server.request("HEAD", path, "", "").await;
        assert_eq!(
            head.header("content-length"),
            reply.header("content-length")
        );
    }
    let missing = server.get("/playground/other.js").await;
    missing.expect_error(404, "not_found");
    let posted = server.request("POST", "/", "", "{}").await;
    posted.expect_error(405, "method_not_allowed");
}

#[tokio::test]
async fn without_the_playground_there_is_no_page() {
    let server = Server::configured(ServerConfig {
        playground: false,
        ..ServerConfig::default()
    })
    .await;
    for path in ["/", "/playground/app.js"] {
        server.get(path).await.expect_error(404, "not_found");
    }
}
