//! The shapes of coding agents' requests, replayed (`tests/fixtures/clients`).

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::responses::named_events;
use crate::server::Server;

fn fixture(name: &str) -> Value {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/clients");
    let text = fs::read_to_string(folder.join(name)).expect("the fixture is committed");
    serde_json::from_str(&text).expect("JSON")
}

fn headers(fixture: &Value) -> String {
    let headers = fixture["headers"].as_object().expect("headers");
    let line =
        |(name, value): (&String, &Value)| format!("{name}: {}\r\n", value.as_str().expect("text"));
    headers.iter().map(line).collect()
}

/// Sends one request of a fixture; the events of its answer.
async fn replay(server: &Server, headers: &str, request: &Value) -> Vec<Value> {
    server.say(request["says"].as_str().expect("text"));
    let path = request["path"].as_str().expect("a path");
    let reply = server
        .post_with(path, headers, request["body"].to_string())
        .await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    named_events(&reply)
}

/// Whether `value` has all members of `expect`; JSON in a string is compared as JSON.
fn fits(value: &Value, expect: &Value) {
    for (key, expect) in expect.as_object().expect("members") {
        let parsed = |value: &Value| match (key.as_str(), value.as_str()) {
            ("arguments", Some(text)) => serde_json::from_str(text).expect("JSON"),
            _ => value.clone(),
        };
        assert_eq!(parsed(&value[key]), parsed(expect), "{key} of {value}");
    }
}

#[tokio::test]
async fn codex() {
    let server = Server::roomy().await;
    let fixture = fixture("codex.json");
    let requests = fixture["requests"].as_array().expect("requests");
    for request in requests {
        let events = replay(&server, &headers(&fixture), request).await;
        let last = events.last().expect("events");
        assert_eq!(last["type"], "response.completed");
        // It reads items from their own events, and counts from the last.
        let done = events
            .iter()
            .filter(|event| event["type"] == "response.output_item.done");
        let items: Vec<&Value> = done.map(|event| &event["item"]).collect();
        let kinds: Vec<&Value> = items.iter().map(|item| &item["type"]).collect();
        assert_eq!(json!(kinds), request["items"]);
        fits(items.last().expect("items"), &request["last"]);
        let sealed = &items[0]["encrypted_content"];
        assert!(
            sealed.is_string(),
            "the thought can be handed back: {sealed}"
        );
        assert!(last["response"]["usage"]["total_tokens"].is_u64());
    }
    let metrics = server.get("/metrics").await.body;
    for kind in [
        "web_search",
        "image_generation",
        "local_shell",
        "tool_search",
        "namespace",
    ] {
        let counted = format!(
            "nemoserve_hosted_tools_skipped_total{{type=\"{kind}\"}} {}",
            requests.len()
        );
        assert!(metrics.contains(&counted), "{counted}");
    }
}

#[tokio::test]
async fn claude_code() {
    let server = Server::roomy().await;
    let fixture = fixture("claude_code.json");
    let headers = headers(&fixture);
    for request in fixture["requests"].as_array().expect("requests") {
        let events = replay(&server, &headers, request).await;
        let of = |kind: &'static str| events.iter().filter(move |event| event["type"] == kind);
        let kinds: Vec<&Value> = of("content_block_start")
            .map(|event| &event["content_block"]["type"])
            .collect();
        assert_eq!(json!(kinds), request["blocks"]);
        let end = of("message_delta").next().expect("an end");
        assert_eq!(end["delta"]["stop_reason"], request["stop_reason"]);

        // The same again, whole; the billing block has changed meanwhile.
        let mut body = request["body"].clone();
        body["stream"] = json!(false);
        let billing = &mut body["system"][0]["text"];
        let changed = billing.as_str().expect("text").replace("cch=", "cch=0");
        *billing = changed.into();
        let reply = server
            .post_with("/v1/messages", &headers, body.to_string())
            .await;
        let answer: Value = serde_json::from_str(&reply.body).expect("JSON");
        let content = answer["content"].as_array().expect("blocks");
        fits(content.last().expect("a block"), &request["last"]);
        let usage = &answer["usage"];
        let count = |key: &str| usage[key].as_u64().expect("a count");
        let (computed, cached) = (count("input_tokens"), count("cache_read_input_tokens"));
        if computed + cached >= 1024 {
            assert!(cached >= computed, "at least half: {usage}");
        }
        body.as_object_mut()
            .expect("an object")
            .remove("max_tokens");
        let counted = server
            .ask("/v1/messages/count_tokens?beta=true", &body)
            .await;
        assert_eq!(counted, json!({"input_tokens": computed + cached}));
    }
}
