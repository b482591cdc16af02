//! DeepInfra: OpenAI's API under another path, with an estimated cost.

use nemoserve::state::ServerConfig;
use serde_json::{Value, json};

use crate::server::Server;

/// Tokens of an answer's usage: prompt, cached, completion.
fn counts(usage: &Value) -> [f64; 3] {
    let count = |value: &Value| value.as_f64().expect("a count");
    [
        count(&usage["prompt_tokens"]),
        count(&usage["prompt_tokens_details"]["cached_tokens"]),
        count(&usage["completion_tokens"]),
    ]
}

#[track_caller]
fn costs(usage: &Value, [input, output, cached_input]: [f64; 3]) {
    let [prompt, cached, completion] = counts(usage);
    let cost = (prompt - cached) * input + cached * cached_input + completion * output;
    let estimated = usage["estimated_cost"].as_f64().expect("a cost");
    assert!((estimated - cost / 1e6).abs() < 1e-15, "{usage}");
    let digits = usage["estimated_cost"].to_string();
    assert!(digits.len() < 12, "no float noise: {digits}");
}

#[tokio::test]
async fn every_answer_has_its_cost() {
    let server = Server::start().await;
    server.say("</think>one two three");
    // Several turns, as the published curl has them.
    let chat = json!({"model": "test", "messages": [
        {"role": "system", "content": "Respond like a michelin starred chef."},
        {"role": "user", "content": "Can you name at least two different techniques to cook lamb?"},
        {"role": "assistant", "content": "Bonjour! Let me tell you, my friend."},
        {"role": "user", "content": "Tell me more about the second method."},
    ]});
    let prices = [0.10, 0.50, 0.04];
    for _ in 0..2 {
        let answer = server.ask("/v1/openai/chat/completions", &chat).await;
        assert_eq!(answer["object"], "chat.completion");
        costs(&answer["usage"], prices);
        assert_eq!(answer["usage"].get("cost"), None);
    }
    let text = json!({"model": "test", "prompt": "a b", "max_tokens": 3, "n": 2});
    costs(
        &server.ask("/v1/openai/completions", &text).await["usage"],
        prices,
    );
    let mut stream = chat.clone();
    stream["stream_options"] = json!({"include_usage": true});
    let chunks = server.stream("/v1/openai/chat/completions", &stream).await;
    costs(&chunks.last().expect("chunks")["usage"], prices);
    let chunks = server.stream("/v1/openai/chat/completions", &chat).await;
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()));
    let plain = server.ask("/v1/chat/completions", &chat).await;
    assert_eq!(plain["usage"].get("estimated_cost"), None);
}

#[tokio::test]
async fn the_operator_sets_the_price() {
    let mut config = ServerConfig::default();
    config.prices.deepinfra = "7,0,0.25".parse().expect("a price");
    let server = Server::operated(config).await;
    server.say("</think>x");
    let chat = json!({"model": "test", "messages": [{"role": "user", "content": "Hi"}]});
    let answer = server.ask("/v1/openai/chat/completions", &chat).await;
    costs(&answer["usage"], [7.0, 0.0, 0.25]);
}

#[tokio::test]
async fn models_and_errors_are_openais() {
    let server = Server::start().await;
    let list = server.get("/v1/openai/models").await;
    assert_eq!(list.body, server.get("/v1/models").await.body);
    let reply = server
        .post("/v1/openai/chat/completions", r#"{"model":"test"}"#)
        .await;
    let error: Value = serde_json::from_str(&reply.body).expect("JSON");
    assert_eq!(
        (reply.status, &error["error"]["param"]),
        (400, &json!("messages"))
    );
}
