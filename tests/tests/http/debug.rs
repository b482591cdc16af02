//! `/debug/cache`: what is held, and nothing of what was said.

use nemoserve::state::ServerConfig;
use serde_json::{Value, json};

use crate::harness::{MODEL, Plan, Server};

/// A prompt of 200 tokens that nobody else has.
async fn say(server: &Server, first: u32) {
    let prompt: Vec<u32> = (first..first + 200).collect();
    let body = json!({"model": MODEL, "prompt": prompt, "max_tokens": 3, "ignore_eos": true});
    let reply = server.post("/v1/completions", &body.to_string()).await;
    assert_eq!(reply.status, 200);
}

/// Every number, word and key; panics on text that is no name of ours.
fn check_names(value: &Value) {
    match value {
        Value::Array(items) => items.iter().for_each(check_names),
        Value::Object(members) => members.values().for_each(check_names),
        Value::Number(_) => {}
        Value::String(word) => {
            let known = ["prompt_end", "finish", "interval", "device"];
            assert!(known.contains(&word.as_str()), "{word}");
        }
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn what_is_held_is_told_by_its_sizes() {
    let server = Server::start().await;
    let empty = server.get("/debug/cache").await.json();
    assert_eq!(
        empty,
        json!({
            "blocks": {"used": 0, "cached": 0, "total": 8191},
            "slots": {"used": 0, "cached": 0, "total": 16},
            "host_blocks": {"cached": 0, "total": 0},
            "host_slots": {"cached": 0, "total": 0},
            "num_snapshots": 0, "snapshots": [],
        })
    );
    say(&server, 300).await;
    say(&server, 600).await;
    // Everything that is held is there once the answer is; the counts follow with the next beat.
    server
        .metric_becomes("nemoserve_requests_running", 0.0)
        .await;
    let full = server.get("/debug/cache").await.json();
    check_names(&full);
    let snapshots = full["snapshots"].as_array().expect("a list");
    assert_eq!(full["num_snapshots"], snapshots.len());
    let of = |class: &str| {
        let of_class = snapshots.iter().filter(|one| one["class"] == class);
        of_class.collect::<Vec<_>>()
    };
    // All but the token drawn last.
    assert_eq!(of("finish").len(), 2);
    for snapshot in of("finish") {
        assert_eq!(snapshot["tokens"], 202);
        assert_eq!(snapshot["blocks"], 7);
        assert_eq!(snapshot["hits"], 0);
        assert_eq!(snapshot["tier"], "device");
    }
    assert_eq!(of("prompt_end").len(), 2);
    assert!(of("prompt_end").iter().all(|one| one["tokens"] == 199));
    let scores: Vec<f64> = snapshots
        .iter()
        .map(|one| one["score"].as_f64().expect("a number"))
        .collect();
    assert!(
        scores.is_sorted(),
        "the first to go comes first: {scores:?}"
    );

    let one = server.get("/debug/cache?limit=1").await.json();
    assert_eq!(one["snapshots"].as_array().map(Vec::len), Some(1));
    assert_eq!(one["num_snapshots"], full["num_snapshots"]);
    for bad in ["0", "1001", "x", ""] {
        let reply = server.get(&format!("/debug/cache?limit={bad}")).await;
        reply.expect_error(400, "invalid_value");
    }
    let post = server.post("/debug/cache", "{}").await;
    assert_eq!(
        (post.status, post.header("allow")),
        (405, "GET, HEAD, OPTIONS")
    );
}

#[tokio::test]
async fn where_clients_need_a_key_so_do_the_curious() {
    let config = ServerConfig {
        api_keys: vec!["secret".into()],
        ..ServerConfig::default()
    };
    let server = Server::configured(config).await;
    let reply = server.get("/debug/cache").await;
    reply.expect_error(401, "invalid_api_key");
    let headers = "authorization: Bearer secret\r\n";
    let reply = server.request("GET", "/debug/cache", headers, "").await;
    assert_eq!(reply.status, 200);
}

#[tokio::test]
async fn before_there_is_a_cache_there_is_nothing_to_tell() {
    let plan = Plan {
        loads_late: true,
        ..Plan::default()
    };
    let server = Server::with(plan).await;
    let reply = server.get("/debug/cache").await;
    reply.expect_error(503, "not_ready");
    server.script.load();
}
