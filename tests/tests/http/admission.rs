//! Keys from a file, what each may have, and what is given up when it is crowded.

use std::path::PathBuf;
use std::time::Duration;

use nemoserve::admission;
use nemoserve::admission::key_ring::{hash, to_hex};
use nemoserve::state::ServerConfig;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{MODEL, Plan, Server, completion, request};
use crate::wire::{Reply, Wire};

const RUNNING: &str = "nemoserve_requests_running";
const WAITING: &str = "nemoserve_requests_waiting";

/// A key file that a test may write anew.
struct KeyFile {
    _folder: TempDir,
    path: PathBuf,
}

impl KeyFile {
    fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = Self {
            path: folder.path().join("keys.toml"),
            _folder: folder,
        };
        file.write(text);
        file
    }

    fn write(&self, text: &str) {
        std::fs::write(&self.path, text).expect("writable");
    }

    fn config(&self) -> ServerConfig {
        ServerConfig {
            api_key_file: Some(self.path.clone()),
            ..ServerConfig::default()
        }
    }
}

/// An entry whose key is `key-NAME`.
fn entry(name: &str, terms: &str) -> String {
    let sha256 = to_hex(&hash(format!("key-{name}").as_bytes()));
    format!("[[key]]\nname = \"{name}\"\nsha256 = \"{sha256}\"\n{terms}\n")
}

/// The header that shows it.
fn key(name: &str) -> String {
    format!("authorization: Bearer key-{name}\r\n")
}

async fn ask(server: &Server, name: &str, body: &str) -> Reply {
    server
        .request("POST", "/v1/completions", &key(name), body)
        .await
}

/// A stream that has begun, though perhaps no token has come.
async fn stream(server: &Server, headers: &str, body: &str) -> Wire {
    let mut wire = server.wire().await;
    wire.send(request("POST", "/v1/completions", headers, body))
        .await;
    let (status, _) = wire.head().await;
    assert_eq!(status, 200);
    wire
}

async fn rest(wire: &mut Wire) -> String {
    let mut text = Vec::new();
    while let Some(chunk) = wire.chunk().await {
        text.extend(chunk);
    }
    String::from_utf8(text).expect("UTF-8")
}

async fn shed(server: &Server, name: &str, cause: &str) -> Option<f64> {
    let sample = format!("nemoserve_key_requests_shed_total{{cause=\"{cause}\",key=\"{name}\"}}");
    server.metric(&sample).await
}

#[track_caller]
fn refused(reply: &Reply, status: u16, code: &str) {
    reply.expect_error(status, code);
    let seconds: u64 = reply.header("retry-after").parse().expect("seconds");
    let ms: u64 = reply
        .header("retry-after-ms")
        .parse()
        .expect("milliseconds");
    assert!(ms > 0 && seconds == ms.div_ceil(1000), "{reply:?}");
}

#[tokio::test]
async fn keys_of_the_file_and_of_the_flag_open_the_door() {
    let file = KeyFile::new(&(entry("a", "") + &entry("off", "enabled = false")));
    let server = Server::configured(ServerConfig {
        api_keys: vec!["plain".into()],
        ..file.config()
    })
    .await;
    let body = completion(1, false);
    for (header, status) in [
        (key("a"), 200),
        ("x-api-key: key-a\r\n".into(), 200),
        ("authorization: Bearer plain\r\n".into(), 200),
        (key("off"), 401),
        (key("b"), 401),
        // The hash is not the key.
        (format!("x-api-key: {}\r\n", to_hex(&hash(b"key-a"))), 401),
        (String::new(), 401),
    ] {
        let reply = server
            .request("POST", "/v1/completions", &header, &body)
            .await;
        assert_eq!(reply.status, status, "{header}");
        if status == 401 {
            assert_eq!(reply.error()["code"], "invalid_api_key");
        }
    }
    // Only names of the file are labels.
    let text = server.get("/metrics").await.body;
    let labels = |line: &&str| line.contains("key=\"");
    assert!(text.lines().any(|line| labels(&line)));
    for line in text.lines().filter(labels) {
        assert!(
            line.contains("key=\"a\"") || line.contains("key=\"off\""),
            "{line}"
        );
    }
    let usage = "nemoserve_key_generation_tokens_total{key=\"a\"}";
    assert_eq!(server.metric(usage).await, Some(2.0));
    let prompts = "nemoserve_key_prompt_tokens_total{key=\"a\"}";
    assert_eq!(server.metric(prompts).await, Some(4.0));
}

#[tokio::test]
async fn requests_of_a_minute() {
    let file = KeyFile::new(&(entry("a", "requests-per-minute = 2") + &entry("b", "")));
    let server = Server::configured(file.config()).await;
    for left in ["1", "0"] {
        let reply = ask(&server, "a", &completion(1, false)).await;
        assert_eq!(reply.status, 200);
        assert_eq!(reply.header("x-ratelimit-limit-requests"), "2");
        assert_eq!(reply.header("x-ratelimit-remaining-requests"), left);
        assert_eq!(reply.header("x-ratelimit-limit-tokens"), "");
    }
    let reply = ask(&server, "a", &completion(1, false)).await;
    refused(&reply, 429, "rate_limit_exceeded");
    assert_eq!(reply.header("x-ratelimit-remaining-requests"), "0");
    assert!(reply.header("x-ratelimit-reset-requests").ends_with('s'));
    assert_eq!(reply.error()["type"], "rate_limit_error");
    // Prompts cost, too; lists do not.
    let tokenize = server
        .request("POST", "/tokenize", &key("a"), r#"{"prompt":"x"}"#)
        .await;
    refused(&tokenize, 429, "rate_limit_exceeded");
    let models = server.request("GET", "/v1/models", &key("a"), "").await;
    assert_eq!(models.status, 200);
    // In the words of each flavour.
    let body =
        json!({"model": MODEL, "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]});
    let headers = "x-api-key: key-a\r\n";
    let reply = server
        .request("POST", "/v1/messages", headers, &body.to_string())
        .await;
    assert_eq!(reply.status, 429);
    assert_eq!(reply.json()["error"]["type"], "rate_limit_error");
    assert!(!reply.header("retry-after-ms").is_empty());

    assert_eq!(ask(&server, "b", &completion(1, false)).await.status, 200);
    assert_eq!(shed(&server, "a", "requests").await, Some(3.0));
    assert_eq!(shed(&server, "b", "requests").await, None);
    let all = "nemoserve_requests_shed_total{cause=\"requests\"}";
    assert_eq!(server.metric(all).await, Some(3.0));
    assert_eq!(
        server.metric("nemoserve_refusal_seconds_count").await,
        Some(3.0)
    );
}

#[tokio::test]
async fn tokens_of_a_minute_and_for_good() {
    let file = KeyFile::new(
        &(entry("rate", "tokens-per-minute = 60") + &entry("budget", "budget-tokens = 60")),
    );
    let server = Server::configured(file.config()).await;
    let body = completion(90, false);
    let reply = ask(&server, "rate", &body).await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("x-ratelimit-limit-tokens"), "60");
    let reply = ask(&server, "rate", &body).await;
    refused(&reply, 429, "rate_limit_exceeded");
    assert_eq!(reply.header("x-ratelimit-remaining-tokens"), "0");
    assert!(
        reply.error()["message"]
            .as_str()
            .expect("text")
            .contains("60 tokens")
    );

    assert_eq!(ask(&server, "budget", &body).await.status, 200);
    let reply = ask(&server, "budget", &body).await;
    refused(&reply, 429, "insufficient_quota");
    assert_eq!(reply.header("x-should-retry"), "false");
    for (name, cause) in [("rate", "tokens"), ("budget", "budget")] {
        assert_eq!(shed(&server, name, cause).await, Some(1.0));
    }
}

#[tokio::test]
async fn requests_choices_and_prompts_at_once() {
    let file = KeyFile::new(
        &[
            entry("few", "max-concurrency = 1"),
            entry("slots", "max-slots = 2"),
            entry("queue", "max-queue = 1"),
            entry("tokens", "max-queued-tokens = 100"),
        ]
        .concat(),
    );
    let server = Server::configured(file.config()).await;
    server.script.hold();
    let long = |n: usize, stream: bool| {
        let prompt = vec![300; n];
        json!({"model": MODEL, "prompt": prompt, "max_tokens": 5, "ignore_eos": true, "stream": stream})
            .to_string()
    };
    let two = json!({"model": MODEL, "prompt": [300], "max_tokens": 5, "n": 2, "stream": true, "ignore_eos": true});
    let mut open = Vec::new();
    for (name, first, second, cause) in [
        (
            "few",
            completion(5, true),
            completion(5, false),
            "concurrency",
        ),
        ("slots", two.to_string(), completion(5, false), "slots"),
        ("queue", completion(5, true), completion(5, false), "queue"),
        ("tokens", long(90, true), long(40, false), "queued_tokens"),
    ] {
        open.push(stream(&server, &key(name), &first).await);
        let reply = ask(&server, name, &second).await;
        refused(&reply, 429, "rate_limit_exceeded");
        assert_eq!(shed(&server, name, cause).await, Some(1.0), "{name}");
        let load = format!("nemoserve_key_requests_in_flight{{key=\"{name}\"}}");
        assert_eq!(server.metric(&load).await, Some(1.0));
    }
    // What can never be had is no matter of waiting.
    let mut three = two.clone();
    (three["n"], three["stream"]) = (3.into(), false.into());
    let reply = ask(&server, "slots", &three.to_string()).await;
    reply.expect_error(400, "invalid_value");
    assert_eq!(reply.error()["param"], "n");
    server.script.release();
    for wire in &mut open {
        assert!(rest(wire).await.ends_with("data: [DONE]\n\n"));
    }
    for name in ["few", "slots", "queue", "tokens"] {
        let load = format!("nemoserve_key_requests_in_flight{{key=\"{name}\"}}");
        server.metric_becomes(&load, 0.0).await;
        assert_eq!(ask(&server, name, &completion(5, false)).await.status, 200);
    }
    server
        .metric_becomes("nemoserve_queued_prompt_tokens", 0.0)
        .await;
    server
        .metric_becomes("nemoserve_requests_without_token", 0.0)
        .await;
}

#[tokio::test]
async fn whoever_leaves_gives_back_what_the_key_had() {
    let file = KeyFile::new(&entry(
        "a",
        "max-concurrency = 1\nmax-slots = 1\nmax-queue = 1",
    ));
    let server = Server::configured(file.config()).await;
    server.script.hold();
    let load = "nemoserve_key_requests_in_flight{key=\"a\"}";
    for streams in [true, false] {
        let mut wire = server.wire().await;
        let body = completion(60_000, streams);
        wire.send(request("POST", "/v1/completions", &key("a"), &body))
            .await;
        server.metric_becomes(load, 1.0).await;
        refused(
            &ask(&server, "a", &completion(1, false)).await,
            429,
            "rate_limit_exceeded",
        );
        drop(wire);
        server.metric_becomes(load, 0.0).await;
    }
    server.script.release();
    assert_eq!(ask(&server, "a", &completion(1, false)).await.status, 200);
}

#[tokio::test]
async fn prompt_tokens_that_wait_are_limited_for_all_together() {
    let server = Server::configured(ServerConfig {
        max_queued_tokens: Some(100),
        ..ServerConfig::default()
    })
    .await;
    server.script.hold();
    let body = |n: usize, stream: bool| {
        let prompt = vec![300; n];
        json!({"model": MODEL, "prompt": prompt, "max_tokens": 1, "stream": stream}).to_string()
    };
    let mut first = stream(&server, "", &body(50, true)).await;
    let queued = "nemoserve_queued_prompt_tokens";
    assert_eq!(server.metric(queued).await, Some(50.0));
    let reply = server.post("/v1/completions", &body(60, false)).await;
    refused(&reply, 429, "rate_limit_exceeded");
    // Whoever does not declare a length is found out once the body is here.
    let mut chunked = server.wire().await;
    let text = body(400, false);
    chunked
        .send(format!(
            "POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{text}\r\n0\r\n\r\n",
            text.len()
        ))
        .await;
    refused(&chunked.reply().await, 429, "rate_limit_exceeded");
    server.script.release();
    rest(&mut first).await;
    server.metric_becomes(queued, 0.0).await;
    // One prompt larger than all that may wait enters alone.
    let reply = server.post("/v1/completions", &body(500, false)).await;
    assert_eq!(reply.status, 200);
    let shed = "nemoserve_requests_shed_total{cause=\"queued_tokens\"}";
    assert_eq!(server.metric(shed).await, Some(2.0));
}

#[tokio::test]
async fn a_flood_by_one_key_is_its_own_affair() {
    let file = KeyFile::new(&(entry("noisy", "max-concurrency = 4") + &entry("quiet", "")));
    let server = Server::configured(file.config()).await;
    server.script.hold();
    let mut noisy = Vec::new();
    for _ in 0..4 {
        noisy.push(stream(&server, &key("noisy"), &completion(50, true)).await);
    }
    for _ in 0..100 {
        let reply = ask(&server, "noisy", &completion(50, true)).await;
        refused(&reply, 429, "rate_limit_exceeded");
    }
    let mut quiet = Vec::new();
    for _ in 0..4 {
        quiet.push(stream(&server, &key("quiet"), &completion(50, true)).await);
    }
    server.script.release();
    for wire in noisy.iter_mut().chain(&mut quiet) {
        assert!(rest(wire).await.ends_with("data: [DONE]\n\n"));
    }
    assert_eq!(shed(&server, "noisy", "concurrency").await, Some(100.0));
    let tokens = |name: &str| format!("nemoserve_key_generation_tokens_total{{key=\"{name}\"}}");
    for name in ["noisy", "quiet"] {
        assert_eq!(server.metric(&tokens(name)).await, Some(200.0));
    }
}

#[tokio::test]
async fn a_flood_without_limits_leaves_room_in_the_queue() {
    let file = KeyFile::new(&(entry("noisy", "") + &entry("quiet", "")));
    let plan = || Plan {
        max_num_seqs: 1,
        max_queue: 8,
        config: file.config(),
        ..Plan::default()
    };
    let server = Server::with(plan()).await;
    server.script.hold();
    let mut inside = Vec::new();
    let refusal = loop {
        assert!(inside.len() < 8, "it fills the queue");
        let mut wire = server.wire().await;
        let body = completion(1, true);
        wire.send(request("POST", "/v1/completions", &key("noisy"), &body))
            .await;
        match wire.head().await {
            (200, _) => inside.push(wire),
            _ => break ask(&server, "noisy", &body).await,
        }
    };
    // Half of the queue, and the one that runs.
    assert!((4..=5).contains(&inside.len()), "{}", inside.len());
    refused(&refusal, 429, "rate_limit_exceeded");
    assert_eq!(shed(&server, "noisy", "queue").await, Some(2.0));
    inside.push(stream(&server, &key("quiet"), &completion(1, true)).await);
    server.script.release();
    for wire in &mut inside {
        assert!(rest(wire).await.ends_with("data: [DONE]\n\n"));
    }

    // Where there is but one key, it may have all of it.
    file.write(&entry("noisy", ""));
    let server = Server::with(plan()).await;
    server.script.hold();
    let mut inside = Vec::new();
    for _ in 0..8 {
        inside.push(stream(&server, &key("noisy"), &completion(1, true)).await);
    }
    server.script.release();
    for wire in &mut inside {
        assert!(rest(wire).await.ends_with("data: [DONE]\n\n"));
    }
}

#[tokio::test]
async fn a_key_sees_and_uses_its_models_only() {
    let terms = format!("models = [\"{MODEL}\"]");
    let file = KeyFile::new(&(entry("one", &terms) + &entry("all", "")));
    let server = Server::configured(file.config()).await;
    let listed = async |name: &str| {
        let reply = server.request("GET", "/v1/models", &key(name), "").await;
        let data = reply.json()["data"].as_array().expect("a list").clone();
        data.iter()
            .map(|model| model["id"].as_str().expect("an id").to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(listed("one").await, [MODEL]);
    assert_eq!(listed("all").await.len(), 2);
    let other = "/v1/models/org%2Fother@name";
    let hidden = server.request("GET", other, &key("one"), "").await;
    hidden.expect_error(404, "model_not_found");
    let body = completion(1, false);
    assert_eq!(ask(&server, "one", &body).await.status, 200);
    let body = body.replace(MODEL, "org/other@name");
    assert_eq!(ask(&server, "all", &body).await.status, 200);
    let reply = ask(&server, "one", &body).await;
    reply.expect_error(403, "model_not_allowed");
    assert_eq!(reply.error()["param"], "model");
    assert_eq!(shed(&server, "one", "model").await, Some(1.0));
}

#[tokio::test]
async fn what_tells_of_others_is_for_operators() {
    let file = KeyFile::new(&(entry("a", "") + &entry("op", "operator = true")));
    let server = Server::configured(ServerConfig {
        api_keys: vec!["plain".into()],
        ..file.config()
    })
    .await;
    for (header, status) in [
        (key("a"), 403),
        (key("op"), 200),
        ("x-api-key: plain\r\n".to_owned(), 200),
    ] {
        for path in ["/debug/cache", "/debug/flight"] {
            let reply = server.request("GET", path, &header, "").await;
            if status == 403 {
                reply.expect_error(403, "operators_only");
            }
            assert_eq!(reply.status, status, "{path}: {reply:?}");
        }
    }
}

#[tokio::test]
async fn keys_share_cached_prefixes_only_if_they_are_to() {
    let file = KeyFile::new(
        &[
            entry("a", ""),
            entry("b", ""),
            entry("c", "cache-salt = \"a\""),
            entry("open", "cache-salt = \"\""),
        ]
        .concat(),
    );
    let server = Server::configured(file.config()).await;
    let prompt: Vec<u32> = (300..500).collect();
    let cached = async |name: &str, salt: Value| {
        let body = json!({"model": MODEL, "prompt": prompt, "max_tokens": 2, "cache_salt": salt});
        let reply = ask(&server, name, &body.to_string()).await;
        let usage = reply.json()["usage"].clone();
        let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64();
        cached.unwrap_or_else(|| panic!("no count in {reply:?}")) > 0
    };
    assert!(!cached("a", Value::Null).await);
    assert!(cached("a", Value::Null).await);
    assert!(!cached("b", Value::Null).await);
    assert!(cached("c", Value::Null).await);
    assert!(!cached("open", Value::Null).await);
    // No salt of a client's leads into another's pool.
    for salt in ["a", "a/", "/", "b"] {
        assert!(!cached("open", salt.into()).await, "{salt}");
    }
    assert!(cached("open", "b".into()).await);
}

#[tokio::test]
async fn a_reload_drops_no_stream_and_forgets_no_limit() {
    let old = entry("a", "requests-per-minute = 2") + &entry("gone", "");
    let file = KeyFile::new(&old);
    let server = Server::configured(file.config()).await;
    server.script.hold();
    let mut running = stream(&server, &key("gone"), &completion(20, true)).await;
    let mut limited = stream(&server, &key("a"), &completion(20, true)).await;

    file.write(&(entry("a", "requests-per-minute = 2") + &entry("new", "")));
    admission::reload(&server.state);
    server.script.release();
    for wire in [&mut running, &mut limited] {
        assert!(rest(wire).await.ends_with("data: [DONE]\n\n"));
    }
    let body = completion(1, false);
    ask(&server, "gone", &body)
        .await
        .expect_error(401, "invalid_api_key");
    assert_eq!(ask(&server, "new", &body).await.status, 200);
    assert_eq!(ask(&server, "a", &body).await.status, 200);
    refused(&ask(&server, "a", &body).await, 429, "rate_limit_exceeded");
    // A raise is heard at once, and what was taken stays taken.
    file.write(&entry("a", "requests-per-minute = 3"));
    admission::reload(&server.state);
    assert_eq!(ask(&server, "a", &body).await.status, 200);
    refused(&ask(&server, "a", &body).await, 429, "rate_limit_exceeded");
    let outcome =
        |outcome: &str| format!("nemoserve_key_file_reloads_total{{outcome=\"{outcome}\"}}");
    assert_eq!(server.metric(&outcome("ok")).await, Some(2.0));
    assert_eq!(server.metric(&outcome("failed")).await, Some(0.0));
}

#[tokio::test]
async fn a_bad_file_keeps_the_old_keys_and_says_so() {
    let file = KeyFile::new(&entry("a", ""));
    let server = Server::configured(file.config()).await;
    let body = completion(1, false);
    let stale = "nemoserve_key_file_stale";
    assert_eq!(server.metric(stale).await, Some(0.0));
    for bad in [
        "",
        "not toml",
        "[[key]]\nname = \"a\"",
        &(entry("a", "") + &entry("a", "")),
        &entry("a", "weight = 0"),
    ] {
        file.write(bad);
        admission::reload(&server.state);
        assert_eq!(server.metric(stale).await, Some(1.0), "{bad}");
        assert_eq!(ask(&server, "a", &body).await.status, 200, "{bad}");
    }
    std::fs::remove_file(&file.path).expect("it was there");
    admission::reload(&server.state);
    assert_eq!(ask(&server, "a", &body).await.status, 200);
    let failed = "nemoserve_key_file_reloads_total{outcome=\"failed\"}";
    assert_eq!(server.metric(failed).await, Some(6.0));
    file.write(&entry("b", ""));
    admission::reload(&server.state);
    assert_eq!(server.metric(stale).await, Some(0.0));
    assert_eq!(ask(&server, "b", &body).await.status, 200);
    assert_eq!(ask(&server, "a", &body).await.status, 401);
}

/// One that runs and one that waits.
async fn crowd(server: &Server) -> [Wire; 2] {
    server.script.hold();
    let running = stream(server, "", &completion(60_000, true)).await;
    server.metric_becomes(RUNNING, 1.0).await;
    let waiting = stream(server, "", &completion(60_000, true)).await;
    // The engine learns of it between two steps.
    while server.metric(WAITING).await != Some(1.0) {
        server.script.allow(1);
    }
    [running, waiting]
}

#[tokio::test]
async fn when_the_wait_is_too_long_nobody_new_is_let_in() {
    let server = Server::with(Plan {
        max_num_seqs: 1,
        config: ServerConfig {
            max_queue_age: Some(Duration::from_millis(1)),
            ..ServerConfig::default()
        },
        ..Plan::default()
    })
    .await;
    let level = "nemoserve_degradation_level";
    assert_eq!(
        server.get("/ready").await.json(),
        json!({"status": "ready", "level": 0})
    );
    let [running, waiting] = crowd(&server).await;
    server.metric_becomes(level, 3.0).await;
    assert_eq!(server.get("/ready").await.json()["level"], 3);
    let header = "x-request-priority: 8\r\n";
    for headers in ["", header] {
        let body = completion(1, false);
        let reply = server
            .request("POST", "/v1/completions", headers, &body)
            .await;
        refused(&reply, 503, "overloaded");
        assert_eq!(reply.error()["type"], "server_error");
    }
    let body =
        json!({"model": MODEL, "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]});
    let reply = server.post("/v1/messages", &body.to_string()).await;
    assert_eq!(reply.status, 529);
    assert_eq!(reply.json()["error"]["type"], "overloaded_error");
    assert!(!reply.header("retry-after-ms").is_empty());
    assert_eq!(server.get("/v1/models").await.status, 200);
    let shed = "nemoserve_requests_shed_total{cause=\"overload\"}";
    assert_eq!(server.metric(shed).await, Some(3.0));
    // Who waits is gone, and the door is open again.
    drop((running, waiting));
    server.script.release();
    server.metric_becomes(RUNNING, 0.0).await;
    server.metric_becomes(level, 0.0).await;
    let reply = server.post("/v1/completions", &completion(1, false)).await;
    assert_eq!(reply.status, 200);
}

#[tokio::test]
async fn a_prompt_that_is_being_read_is_slow_and_not_late() {
    let server = Server::start().await;
    server.script.hold();
    // The engine has begun with it, and no token comes.
    let mut wire = stream(&server, "", &completion(5, true)).await;
    server
        .metric_becomes("nemoserve_queue_age_seconds", 0.0)
        .await;
    let without_token = server.metric("nemoserve_requests_without_token").await;
    assert_eq!(without_token, Some(1.0));
    server.script.release();
    assert!(rest(&mut wire).await.ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn when_slots_are_scarce_low_priority_is_refused_before_it_is_rendered() {
    let server = Server::with(Plan {
        max_num_seqs: 1,
        num_slots: Some(1),
        ..Plan::default()
    })
    .await;
    let crowd = crowd(&server).await;
    server
        .metric_becomes("nemoserve_degradation_level", 1.0)
        .await;
    let body = |tier: &str| {
        json!({"model": MODEL, "prompt": "x", "max_tokens": 1, "service_tier": tier, "stream": true})
            .to_string()
    };
    let reply = server.post("/v1/completions", &body("flex")).await;
    refused(&reply, 503, "overloaded");
    let chat = json!({"model": MODEL, "messages": [{"role": "user", "content": "x"}], "service_tier": "flex"});
    let reply = server.post("/v1/chat/completions", &chat.to_string()).await;
    refused(&reply, 503, "overloaded");
    let header = "x-request-priority: -1\r\n";
    let reply = server
        .request("POST", "/v1/completions", header, &body("priority"))
        .await;
    refused(&reply, 503, "overloaded");
    let mut entered = Vec::new();
    for tier in ["default", "auto", "priority"] {
        entered.push(stream(&server, "", &body(tier)).await);
    }
    drop(crowd);
    server.script.release();
    for wire in &mut entered {
        assert!(rest(wire).await.ends_with("data: [DONE]\n\n"));
    }
    server
        .metric_becomes("nemoserve_degradation_level", 0.0)
        .await;
    let reply = server.post("/v1/completions", &body("flex")).await;
    assert_eq!(reply.status, 200);
}
