//! OpenRouter: costs, thoughts in two shapes, receipts, errors.

use nemoserve::state::ServerConfig;
use serde_json::{Value, json};

use crate::server::Server;

const PATH: &str = "/api/v1/chat/completions";

fn request(extra: &Value) -> Value {
    let mut body = json!({"model": "test", "messages": [{"role": "user", "content": "Hi"}]});
    let members = extra.as_object().expect("members").clone();
    body.as_object_mut().expect("an object").extend(members);
    body
}

#[track_caller]
fn costs(usage: &Value) {
    let count = |value: &Value| value.as_f64().expect("a count");
    let cost = count(&usage["prompt_tokens"]) * 0.09 + count(&usage["completion_tokens"]) * 0.45;
    let shown = usage["cost"].as_f64().expect("a cost");
    assert!((shown - cost / 1e6).abs() < 1e-15, "{usage}");
    let details = &usage["cost_details"];
    assert_eq!(details["upstream_inference_cost"], usage["cost"]);
    let parts = [
        "upstream_inference_prompt_cost",
        "upstream_inference_completions_cost",
    ];
    let sum: f64 = parts.iter().map(|part| count(&details[*part])).sum();
    assert!((sum - shown).abs() < 1e-15, "{usage}");
}

#[tokio::test]
async fn an_answer_says_who_what_and_how_much() {
    let server = Server::start().await;
    server.say("why</think>so");
    let body = request(&json!({}));
    let reply = server.post(PATH, body.to_string()).await;
    let answer: Value = serde_json::from_str(&reply.body).expect("JSON");
    assert_eq!(reply.header("x-generation-id"), answer["id"]);
    assert_eq!(answer["provider"], "nemoserve");
    let choice = &answer["choices"][0];
    assert_eq!(choice["native_finish_reason"], "stop");
    let message = &choice["message"];
    assert_eq!(message.get("reasoning_content"), None);
    assert_eq!(
        (&message["reasoning"], &message["content"]),
        (&json!("why"), &json!("so"))
    );
    let detail = json!([{"type": "reasoning.text", "text": "why", "signature": null,
                         "id": "reasoning-text-0", "format": "unknown", "index": 0}]);
    assert_eq!(message["reasoning_details"], detail);
    costs(&answer["usage"]);
    for hidden in [
        json!({"include_reasoning": false}),
        json!({"reasoning": {"exclude": true}}),
    ] {
        let answer = server.ask(PATH, &request(&hidden)).await;
        let message = &answer["choices"][0]["message"];
        assert_eq!(
            (message.get("reasoning"), message.get("reasoning_details")),
            (None, None)
        );
    }
}

#[tokio::test]
async fn streams_always_end_with_usage() {
    let server = Server::start().await;
    server.say("why so</think>because");
    for extra in [
        json!({}),
        json!({"stream_options": {"include_usage": true}}),
    ] {
        let chunks = server.stream(PATH, &request(&extra)).await;
        let (last, chunks) = chunks.split_last().expect("chunks");
        assert_eq!(last["choices"], json!([]));
        costs(&last["usage"]);
        let (mut reasoning, mut details) = (String::new(), String::new());
        for chunk in chunks {
            assert_eq!(chunk["provider"], "nemoserve");
            // The SDK refuses a null.
            assert_eq!(chunk.get("usage"), None);
            let choice = &chunk["choices"][0];
            assert_eq!(
                choice.get("native_finish_reason"),
                choice.get("finish_reason")
            );
            let delta = &choice["delta"];
            reasoning += delta["reasoning"].as_str().unwrap_or("");
            if let Some(detail) = delta["reasoning_details"].get(0) {
                details += detail["text"].as_str().expect("text");
                assert_eq!(
                    (&detail["id"], &detail["index"]),
                    (&json!("reasoning-text-0"), &json!(0))
                );
            }
        }
        assert_eq!((reasoning.as_str(), details.as_str()), ("why so", "why so"));
    }
}

#[tokio::test]
async fn completions_cost_as_well() {
    let server = Server::start().await;
    server.say("one two");
    let body = json!({"model": "test", "prompt": "a", "max_tokens": 2});
    let answer = server.ask("/api/v1/completions", &body).await;
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(answer["choices"][0]["native_finish_reason"], "length");
    costs(&answer["usage"]);
    let chunks = server.stream("/api/v1/completions", &body).await;
    costs(&chunks.last().expect("chunks")["usage"]);
}

#[tokio::test]
async fn routing_fields_are_taken_and_choose_nothing() {
    let server = Server::start().await;
    server.say("</think>ok");
    let model = async |body: Value| server.ask(PATH, &request(&body)).await["model"].clone();
    assert_eq!(
        model(json!({"model": "org/test:free"})).await,
        "org/test:free"
    );
    assert_eq!(
        model(json!({"model": "other", "models": ["no", "org/test"]})).await,
        "org/test"
    );
    assert_eq!(
        model(json!({"model": null, "models": ["test:nitro"]})).await,
        "test:nitro"
    );
    let all = json!({
        "provider": {"order": ["x"], "allow_fallbacks": false}, "transforms": ["middle-out"],
        "route": "fallback", "plugins": [{"id": "web"}], "usage": {"include": true},
        "user": "u", "session_id": "s", "top_a": 0.1, "verbosity": "low",
    });
    assert_eq!(model(all).await, "test");
    for (extra, param) in [
        (json!({"provider": "x"}), "provider"),
        (json!({"models": "x"}), "models"),
        (json!({"models": [7]}), "models[0]"),
        (json!({"transforms": "x"}), "transforms"),
        (json!({"usage": {"include": 1}}), "usage.include"),
        (json!({"route": 1}), "route"),
        (json!({"model": null}), "model"),
        (json!({"reasoning": {"effort": "x"}}), "reasoning.effort"),
    ] {
        let reply = server.post(PATH, request(&extra).to_string()).await;
        let error: Value = serde_json::from_str(&reply.body).expect("JSON");
        assert_eq!(error["error"]["code"], 400, "{extra}");
        assert_eq!(error["error"]["metadata"]["param"], param, "{extra}");
    }
}

#[tokio::test]
async fn errors_have_the_status_as_their_code() {
    let server = Server::operated(ServerConfig {
        api_keys: vec!["k".into()],
        max_body_bytes: 200,
        ..ServerConfig::default()
    })
    .await;
    let key = "authorization: Bearer k\r\n";
    let other = r#"{"model":"other","messages":[{"role":"user","content":"x"}]}"#;
    for (path, headers, body, status, kind) in [
        (PATH, "", "{}", 401, "authentication"),
        (PATH, key, "{}", 400, "invalid_request"),
        (PATH, key, other, 404, "not_found"),
        (PATH, key, &*"x".repeat(300), 413, "payload_too_large"),
        ("/api/v1/models", key, "", 405, "invalid_request"),
        ("/api/v1/nothing", key, "", 404, "not_found"),
    ] {
        let reply = server.post_with(path, headers, body).await;
        let error: Value = serde_json::from_str(&reply.body).expect("JSON");
        let keys: Vec<&String> = error["error"]
            .as_object()
            .expect("an object")
            .keys()
            .collect();
        assert_eq!(keys, ["code", "message", "metadata"]);
        assert_eq!(
            (reply.status, &error["error"]["code"]),
            (status, &json!(status)),
            "{body}"
        );
        assert_eq!(error["error"]["metadata"]["error_type"], kind);
    }
}

#[tokio::test]
async fn a_failing_stream_ends_with_an_error_chunk() {
    let server = Server::start().await;
    server.say("</think>one two three");
    server.script.fault_at(Some(3));
    let chunks = server.stream(PATH, &request(&json!({}))).await;
    let last = chunks.last().expect("chunks");
    assert_eq!(last["id"], chunks[0]["id"]);
    assert_eq!(last["error"]["code"], 500);
    assert_eq!(last["error"]["metadata"]["error_type"], "server");
    let choice = &last["choices"][0];
    assert_eq!(choice["finish_reason"], "error");
    assert_eq!(choice["delta"], json!({"role": "assistant", "content": ""}));
    assert_eq!(
        last["usage"]["completion_tokens"], 3,
        "what was sampled costs"
    );
    costs(&last["usage"]);
    let receipt = receipt(&server, last["id"].as_str().expect("an id")).await;
    assert_eq!(receipt["finish_reason"], "error");
    assert_eq!(
        (&receipt["cancelled"], &receipt["tokens_completion"]),
        (&json!(false), &json!(3))
    );
}

#[tokio::test]
async fn silence_is_broken_in_its_own_words() {
    let server = Server::start().await;
    server.say("</think>x");
    server.script.hold(true);
    let body = request(&json!({"stream": true}));
    let (_socket, bytes) = server
        .post_until(PATH, &body, ": OPENROUTER PROCESSING\n\n")
        .await;
    let head = String::from_utf8_lossy(&bytes).into_owned();
    assert!(head.contains("x-generation-id: chatcmpl-"), "{head}");
    server.script.hold(false);
}

/// The receipt of a generation that is over.
async fn receipt(server: &Server, id: &str) -> Value {
    let reply = server.get(&format!("/api/v1/generation?id={id}")).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    serde_json::from_str::<Value>(&reply.body).expect("JSON")["data"].clone()
}

#[tokio::test]
async fn generations_are_remembered() {
    let server = Server::start().await;
    server.say("why</think>so");
    let answer = server.ask(PATH, &request(&json!({}))).await;
    let kept = receipt(&server, answer["id"].as_str().expect("an id")).await;
    let usage = &answer["usage"];
    for (name, expect) in [
        ("id", &answer["id"]),
        ("model", &json!("test")),
        ("tokens_prompt", &usage["prompt_tokens"]),
        ("tokens_completion", &usage["completion_tokens"]),
        (
            "native_tokens_reasoning",
            &usage["completion_tokens_details"]["reasoning_tokens"],
        ),
        ("total_cost", &usage["cost"]),
        ("streamed", &json!(false)),
        ("cancelled", &json!(false)),
        ("finish_reason", &json!("stop")),
        ("provider_name", &json!("nemoserve")),
    ] {
        assert_eq!(&kept[name], expect, "{name}");
    }
    let date = kept["created_at"].as_str().expect("a date");
    assert!(
        date.len() == 20 && date.starts_with("20") && date.ends_with('Z'),
        "{date}"
    );
    let chunks = server.stream(PATH, &request(&json!({}))).await;
    let kept = receipt(&server, chunks[0]["id"].as_str().expect("an id")).await;
    assert_eq!(kept["streamed"], true);
    for (query, status) in [
        ("?id=nothing", 404),
        ("", 400),
        ("?id=", 400),
        ("?x=1", 400),
    ] {
        let reply = server.get(&format!("/api/v1/generation{query}")).await;
        assert_eq!(reply.status, status, "{query}");
        assert!(reply.body.contains(r#""param":"id""#), "{}", reply.body);
    }
}

#[tokio::test]
async fn models_have_prices() {
    let server = Server::start().await;
    let list: Value = serde_json::from_str(&server.get("/api/v1/models").await.body).expect("JSON");
    let models = list["data"].as_array().expect("a list");
    assert_eq!(models.len(), 2);
    for model in models {
        assert_eq!(model["context_length"], 512);
        assert_eq!(model["pricing"]["prompt"], "0.00000009");
        assert_eq!(model["pricing"]["completion"], "0.00000045");
        let parameters = model["supported_parameters"].as_array().expect("a list");
        assert!(parameters.contains(&json!("temperature")) && parameters.contains(&json!("tools")));
    }
}

#[tokio::test]
async fn thoughts_of_earlier_turns_come_back_into_the_prompt() {
    let server = Server::start().await;
    server.say("why</think>so");
    let first = server.ask(PATH, &request(&json!({}))).await;
    let said = first["choices"][0]["message"].clone();
    let history = |kwargs: Value| {
        let details = &said["reasoning_details"];
        json!({
            "model": "test",
            "chat_template_kwargs": kwargs,
            "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": said["content"], "reasoning_details": details},
                {"role": "user", "content": "Sure?"},
            ],
        })
    };
    let count = async |path: &str, kwargs: Value| {
        let answer = server.ask(path, &history(kwargs)).await;
        let answer = answer.get("result").unwrap_or(&answer);
        answer["usage"]["prompt_tokens"].as_u64().expect("a count")
    };
    let short = count("/v1/chat/completions", json!({})).await;
    let long = count("/v1/chat/completions", json!({"clear_thinking": false})).await;
    assert!(short < long);
    for path in [PATH, "/ai/run/test", "/client/v4/accounts/a/ai/run/test"] {
        for kwargs in [
            json!({}),
            Value::Null,
            json!({"truncate_history_thinking": null}),
        ] {
            assert_eq!(count(path, kwargs).await, long, "{path}");
        }
        for kwargs in [
            json!({"clear_thinking": true}),
            json!({"truncate_history_thinking": true}),
        ] {
            assert_eq!(count(path, kwargs).await, short, "{path}");
        }
        let reply = server.post(path, history(json!("x")).to_string()).await;
        assert_eq!(reply.status, 400);
        assert!(
            reply.body.contains("chat_template_kwargs"),
            "{}",
            reply.body
        );
    }
}

#[tokio::test]
async fn calls_of_tools_are_reasons_to_finish() {
    let server = Server::start().await;
    server.say("</think><tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>");
    let tools = json!({"tools": [{"type": "function", "function": {"name": "f", "parameters": {
        "type": "object", "properties": {"x": {"type": "integer"}}}}}]});
    let answer = server.ask(PATH, &request(&tools)).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{answer}");
    assert_eq!(choice["native_finish_reason"], "tool_calls");
    let kept = receipt(&server, answer["id"].as_str().expect("an id")).await;
    assert_eq!(kept["finish_reason"], "tool_calls");
}

#[tokio::test]
async fn receipts_are_for_the_key_that_asked() {
    let server = Server::operated(ServerConfig {
        api_keys: vec!["mine".into(), "yours".into()],
        ..ServerConfig::default()
    })
    .await;
    server.say("</think>so");
    let mine = "authorization: Bearer mine\r\n";
    let reply = server
        .post_with(PATH, mine, request(&json!({})).to_string())
        .await;
    let path = format!("/api/v1/generation?id={}", reply.header("x-generation-id"));
    for (key, status) in [("mine", 200), ("yours", 404)] {
        let headers = format!("authorization: Bearer {key}\r\n");
        assert_eq!(
            server.get_with(&path, &headers).await.status,
            status,
            "{key}"
        );
    }
    assert_eq!(server.get(&path).await.status, 401);
}
