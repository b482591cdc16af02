//! Headers that every answer has: request ids, CORS, keys.

use nemoserve::router::route_labels;
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
    let open = ["/health", "/ready", "/metrics", "/openapi.json"];
    let document = server.get("/openapi.json").await.json();
    let paths = document["paths"].as_object().expect("it has paths");
    // The document leaves out the page and nothing else.
    for label in route_labels() {
        let is_page = ["/", "/playground/{id}", "unmatched"].contains(&label);
        let is_documented = paths.contains_key(&label.replace("{*", "{"));
        assert_ne!(is_page, is_documented, "{label}");
    }
    let mut num_guarded = 0;
    for (pattern, methods) in paths {
        let path = pattern.replace(['{', '}'], "");
        if open.contains(&path.as_str()) {
            continue;
        }
        for method in methods.as_object().expect("a path has methods").keys() {
            let method = method.to_uppercase();
            let body = if method == "POST" { "{}" } else { "" };
            for wrong in [
                "",
                "authorization: Bearer secrets\r\n",
                "x-api-key: Secret\r\n",
            ] {
                let reply = server.request(&method, &path, wrong, body).await;
                assert_eq!(reply.status, 401, "{method} {path}, {wrong:?}");
                assert_eq!(reply.header("www-authenticate"), "Bearer");
                // Others have words of their own for it.
                if path.starts_with("/v1/") && !path.starts_with("/v1/messages") {
                    reply.expect_error(401, "invalid_api_key");
                    assert_eq!(reply.error()["type"], "authentication_error");
                }
            }
            for key in ["authorization: bearer secret\r\n", "x-api-key: secret\r\n"] {
                let reply = server.request(&method, &path, key, body).await;
                assert_ne!(reply.status, 401, "{method} {path}");
            }
            num_guarded += 1;
        }
    }
    assert!(
        num_guarded >= 30,
        "{num_guarded}: the document was not read"
    );
    for path in open.into_iter().chain(["/", "/playground/app.js"]) {
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
