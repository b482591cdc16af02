//! `/v1/messages` and `/v1/messages/count_tokens`, whole and streamed.

use nemoserve::api::params::Defaults;
use nemoserve::state::ServerConfig;
use serde_json::{Value, json};

use crate::responses::named_events;
use crate::server::{Folder, Server};

const PATH: &str = "/v1/messages";
const COUNT: &str = "/v1/messages/count_tokens";

fn request(extra: &Value) -> Value {
    let mut body = json!({
        "model": "test", "max_tokens": 200,
        "messages": [{"role": "user", "content": "Hi"}],
    });
    let members = extra.as_object().expect("members").clone();
    body.as_object_mut().expect("an object").extend(members);
    body
}

fn tools() -> Value {
    json!([
        {"type": "web_search_20250305", "name": "web_search"},
        {"name": "get_weather", "description": "Weather.", "input_schema": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}},
    ])
}

fn call(city: &str) -> String {
    format!(
        "<tool_call>\n<function=get_weather>\n<parameter=city>\n{city}\n</parameter>\n\
         <parameter=days>\n2\n</parameter>\n</function>\n</tool_call>\n"
    )
}

/// Streams and adds the events up as the SDK does.
async fn streamed(server: &Server, body: &Value) -> Value {
    let mut body = body.clone();
    body["stream"] = json!(true);
    let reply = server.post(PATH, body.to_string()).await;
    assert_eq!(reply.status, 200, "{body}: {}", reply.body);
    let mut events = named_events(&reply).into_iter();
    let mut start = events.next().expect("events");
    assert_eq!(start["type"], "message_start");
    let mut message = start["message"].take();
    assert_eq!(message["content"], json!([]));
    assert_eq!(message["stop_reason"], Value::Null);
    let mut blocks: Vec<Value> = Vec::new();
    let mut json = String::new();
    let mut open = false;
    let mut over = false;
    for event in events {
        let text = |name: &str| event["delta"][name].as_str().expect("text").to_owned();
        assert!(!over, "message_stop is the last");
        match event["type"].as_str().expect("a type") {
            "content_block_start" => {
                assert!(!open && event["index"] == blocks.len(), "{event}");
                open = true;
                json.clear();
                blocks.push(event["content_block"].clone());
            }
            "content_block_delta" => {
                assert!(open && event["index"] == blocks.len() - 1, "{event}");
                let block = blocks.last_mut().expect("a block");
                let grow = |block: &mut Value, name: &str| {
                    let whole = format!("{}{}", block[name].as_str().expect("text"), text(name));
                    block[name] = whole.into();
                };
                match event["delta"]["type"].as_str().expect("a type") {
                    "text_delta" => grow(block, "text"),
                    "thinking_delta" => grow(block, "thinking"),
                    "signature_delta" => block["signature"] = text("signature").into(),
                    "input_json_delta" => json.push_str(&text("partial_json")),
                    other => panic!("{other}"),
                }
            }
            "content_block_stop" => {
                assert!(open && event["index"] == blocks.len() - 1, "{event}");
                open = false;
                let block = blocks.last_mut().expect("a block");
                if block["type"] == "tool_use" {
                    block["input"] = serde_json::from_str(&json).expect("JSON");
                }
            }
            "message_delta" => {
                assert!(!open);
                for key in ["stop_reason", "stop_sequence"] {
                    message[key] = event["delta"][key].clone();
                }
                let counted = event["usage"].as_object().expect("counts").clone();
                message["usage"]
                    .as_object_mut()
                    .expect("counts")
                    .extend(counted);
            }
            "message_stop" => over = true,
            other => panic!("{other}"),
        }
    }
    assert!(over);
    message["content"] = blocks.into();
    message
}

/// Without what differs from one answer to the next.
fn comparable(message: &Value) -> Value {
    let mut message = message.clone();
    message["id"].take();
    for block in message["content"].as_array_mut().expect("blocks") {
        if block["type"] == "tool_use" {
            let id = block["id"].take();
            assert!(id.as_str().expect("an id").starts_with("toolu_"), "{id}");
        }
    }
    let usage = &mut message["usage"];
    usage["input_tokens"] = prompt_tokens(usage).into();
    usage["cache_read_input_tokens"].take();
    message
}

/// All of the prompt, however it was come by.
fn prompt_tokens(usage: &Value) -> u64 {
    [
        "input_tokens",
        "cache_read_input_tokens",
        "cache_creation_input_tokens",
    ]
    .iter()
    .map(|key| usage[key].as_u64().expect("a count"))
    .sum()
}

/// Asks both ways, compares, and returns the whole answer.
async fn both(server: &Server, body: &Value) -> Value {
    let answer = server.ask(PATH, body).await;
    let stream = streamed(server, body).await;
    assert_eq!(comparable(&stream), comparable(&answer), "{body}");
    let mut counted = body.clone();
    for key in ["max_tokens", "stream"] {
        counted.as_object_mut().expect("an object").remove(key);
    }
    let counted = server.ask(COUNT, &counted).await;
    assert_eq!(
        counted,
        json!({"input_tokens": prompt_tokens(&answer["usage"])})
    );
    answer
}

#[tokio::test]
async fn an_answer_has_every_key() {
    let server = Server::start().await;
    server.say("Hello there");
    let answer = both(&server, &request(&json!({}))).await;
    let id = answer["id"].as_str().expect("an id");
    assert!(id.starts_with("msg_"), "{id}");
    let content = json!([{"type": "text", "text": "Hello there", "citations": null}]);
    for (key, expect) in [
        ("type", json!("message")),
        ("role", json!("assistant")),
        ("model", json!("test")),
        ("content", content),
        ("stop_reason", json!("end_turn")),
        ("stop_sequence", Value::Null),
    ] {
        assert_eq!(answer[key], expect, "{key}");
    }
    for key in [
        "input_tokens",
        "output_tokens",
        "cache_read_input_tokens",
        "cache_creation_input_tokens",
    ] {
        assert!(answer["usage"][key].is_u64(), "{key}");
    }
}

#[tokio::test]
async fn thinking_is_off_unless_asked_for() {
    let server = Server::start().await;
    server.say("Hello there");
    let off = both(&server, &request(&json!({}))).await;
    assert_eq!(off["usage"]["output_tokens_details"]["thinking_tokens"], 0);
    server.say("because\n</think>\nHello there");
    for extra in [
        json!({"thinking": {"type": "adaptive"}}),
        json!({"reasoning_effort": "high"}),
    ] {
        let answer = both(&server, &request(&extra)).await;
        let block = &answer["content"][0];
        assert_eq!(block["thinking"], "because", "{extra}");
        assert!(!block["signature"].as_str().expect("text").is_empty());
        assert_eq!(answer["content"][1]["text"], "Hello there");
    }
    let omitted = json!({"thinking": {"type": "adaptive", "display": "omitted"}});
    let omitted = both(&server, &request(&omitted)).await;
    assert_eq!(omitted["content"][0]["thinking"], "");
}

#[tokio::test]
async fn thoughts_of_the_turn_re_enter_the_prompt() {
    let server = Server::start().await;
    server.say(&format!("I must look.\n</think>\n{}", call("Bern")));
    let mut counts = Vec::new();
    for display in ["summarized", "omitted"] {
        let thinking = json!({"type": "adaptive", "display": display});
        let extra = json!({"tools": tools(), "thinking": thinking});
        let first = both(&server, &request(&extra)).await;
        assert_eq!(first["stop_reason"], "tool_use");
        let id = &first["content"][1]["id"];
        let result = json!([{"type": "tool_result", "tool_use_id": id, "content": "12 °C"}]);
        for content in [first["content"].clone(), json!([first["content"][1]])] {
            let body = request(&json!({
                "tools": tools(), "thinking": thinking,
                "messages": [
                    {"role": "user", "content": "Hi"},
                    {"role": "assistant", "content": content},
                    {"role": "user", "content": result}],
            }));
            let counted = server.ask(COUNT, &body).await;
            counts.push(counted["input_tokens"].as_u64().expect("a count"));
        }
    }
    assert_eq!(
        counts[0], counts[2],
        "shown or omitted, the thought comes back"
    );
    assert!(counts[1] < counts[0] && counts[1] == counts[3]);
}

#[tokio::test]
async fn stop_reasons_tell_why() {
    let server = Server::start().await;
    server.say("one two three");
    let answer = both(
        &server,
        &request(&json!({"stop_sequences": ["zzz", " three"]})),
    )
    .await;
    assert_eq!(answer["stop_reason"], "stop_sequence");
    assert_eq!(answer["stop_sequence"], " three");
    assert_eq!(answer["content"][0]["text"], "one two");
    let answer = both(&server, &request(&json!({"max_tokens": 2}))).await;
    assert_eq!(answer["stop_reason"], "max_tokens");
    assert_eq!(answer["usage"]["output_tokens"], 2);
    let answer = both(
        &server,
        &request(&json!({"max_tokens": 40, "ignore_eos": true})),
    )
    .await;
    assert_eq!(answer["usage"]["output_tokens"], 40);
    server.say("");
    let answer = both(&server, &request(&json!({}))).await;
    assert_eq!(answer["content"][0]["text"], "");
}

#[tokio::test]
async fn calls_are_tool_use_blocks() {
    let server = Server::start().await;
    server.say(&format!(
        "Let me see.\n{}{}",
        call("Zürich \"H\""),
        call("Bern")
    ));
    let answer = both(&server, &request(&json!({"tools": tools()}))).await;
    assert_eq!(answer["stop_reason"], "tool_use");
    let blocks = answer["content"].as_array().expect("blocks");
    let kinds: Vec<&Value> = blocks.iter().map(|block| &block["type"]).collect();
    assert_eq!(kinds, ["text", "tool_use", "tool_use"]);
    assert_eq!(blocks[1]["name"], "get_weather");
    assert_eq!(
        blocks[1]["input"],
        json!({"city": "Zürich \"H\"", "days": 2})
    );
    let metrics = server.get("/metrics").await.body;
    let counted = "nemoserve_hosted_tools_skipped_total{type=\"web_search\"} 3";
    assert!(metrics.contains(counted), "{metrics}");
    let alone = json!({"tools": tools(), "tool_choice": {"type": "auto", "disable_parallel_tool_use": true}});
    let answer = both(&server, &request(&alone)).await;
    assert_eq!(answer["content"].as_array().expect("blocks").len(), 2);
}

#[tokio::test]
async fn the_prompt_is_the_one_of_chat() {
    let server = Server::start().await;
    server.say("Hello");
    let cache = json!({"type": "ephemeral", "ttl": "1h"});
    let schema = json!({"type": "object", "properties": {"q": {"type": "string"}}});
    let body = request(&json!({
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=1.2; cch=0a1b2;"},
            {"type": "text", "text": "Be brief.", "cache_control": cache}],
        "tools": [{"name": "f", "description": "Finds.", "input_schema": schema, "cache_control": cache}],
        "cache_control": cache,
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Find it.", "cache_control": cache}]},
            {"role": "assistant", "content": [
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "t1", "name": "f", "input": {"q": "it"}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "found"}], "cache_control": cache},
                {"type": "text", "text": "Well?"}]}],
    }));
    let answer = both(&server, &body).await;
    let chat = json!({
        "model": "test", "reasoning_effort": "none",
        "tools": [{"type": "function", "function": {"name": "f", "description": "Finds.", "parameters": schema}}],
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Find it."},
            {"role": "assistant", "content": "I look.", "tool_calls": [
                {"id": "t1", "type": "function", "function": {"name": "f", "arguments": "{\"q\": \"it\"}"}}]},
            {"role": "tool", "tool_call_id": "t1", "content": "found"},
            {"role": "user", "content": "Well?"}],
    });
    let chat = server.ask("/v1/chat/completions", &chat).await;
    assert_eq!(
        chat["usage"]["prompt_tokens"],
        prompt_tokens(&answer["usage"])
    );
}

/// The error of a refused request, in this API's shape.
fn error_of(reply: &crate::server::Reply) -> (String, String) {
    let body: Value = serde_json::from_str(&reply.body).expect("JSON");
    assert_eq!(body["type"], "error", "{}", reply.body);
    assert_eq!(body["request_id"], reply.header("request-id"));
    assert_eq!(body["request_id"], reply.header("x-request-id"));
    let text = |key: &str| body["error"][key].as_str().expect("text").to_owned();
    (text("type"), text("message"))
}

#[tokio::test]
async fn mistakes_name_the_parameter_that_was_sent() {
    let server = Server::start().await;
    let user = json!({"role": "user", "content": "Hi"});
    let block = |block: Value| json!({"messages": [{"role": "user", "content": [block]}]});
    let image = json!({"type": "image", "source": {"type": "url", "url": "http://localhost/"}});
    for (extra, param) in [
        (json!({"max_tokens": null}), "max_tokens"),
        (json!({"model": null}), "model"),
        (json!({"messages": []}), "messages"),
        (
            json!({"messages": [{"role": "tool", "content": ""}]}),
            "messages[0].role",
        ),
        (block(image.clone()), "messages[0].content[0].type"),
        (
            block(json!({"type": "document"})),
            "messages[0].content[0].type",
        ),
        (
            block(json!({"type": "tool_result", "tool_use_id": "1"})),
            "messages[0].content[0].tool_use_id",
        ),
        (
            json!({"messages": [user, {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "input": {}}]}]}),
            "messages[1].content[0].name",
        ),
        (json!({"system": [image]}), "system[0].type"),
        (json!({"temperature": 1.1}), "temperature"),
        (json!({"stop_sequences": [""]}), "stop_sequences"),
        (json!({"stop_sequences": "x"}), "stop_sequences"),
        (
            json!({"thinking": {"type": "enabled", "budget_tokens": 200}}),
            "thinking.budget_tokens",
        ),
        (
            json!({"tools": [{"type": "bash_20250124"}, {"name": "f"}]}),
            "tools[1].input_schema",
        ),
        (json!({"tools": [{"type": ""}]}), "tools[0].type"),
        (
            json!({"tools": [{"name": "a b", "input_schema": {}}]}),
            "tools[0].name",
        ),
        (
            json!({"tools": tools(), "tool_choice": {"type": "tool", "name": "web_search"}}),
            "tool_choice",
        ),
        (json!({"tool_choice": {"type": "any"}}), "tool_choice"),
        (json!({"ignore_eos": 1}), "ignore_eos"),
        (json!({"top_k": 1.5}), "top_k"),
        (
            json!({"mcp_servers": [{"url": "http://localhost/"}]}),
            "mcp_servers",
        ),
        (
            json!({"output_config": {"format": {"type": "json_schema", "schema": 1}}}),
            "output_config.format.schema",
        ),
    ] {
        for stream in [false, true] {
            let mut body = request(&extra);
            body["stream"] = json!(stream);
            let reply = server.post(PATH, body.to_string()).await;
            assert_eq!(reply.status, 400, "{body}: {}", reply.body);
            let (kind, message) = error_of(&reply);
            assert_eq!(kind, "invalid_request_error");
            assert!(message.contains(param), "{param}: {message}");
        }
    }
    let reply = server.post(PATH, "[]").await;
    assert_eq!(
        (reply.status, error_of(&reply).0),
        (400, "invalid_request_error".into())
    );
    let body = request(&json!({"max_tokens": 100_000})).to_string();
    let (_, message) = error_of(&server.post(PATH, body).await);
    assert!(message.starts_with("prompt is too long"), "{message}");
    let maximum = "This model's maximum context length is 512 tokens";
    assert!(message.contains(maximum), "{message}");
}

#[tokio::test]
async fn all_errors_have_this_shape() {
    let server = Server::operated(ServerConfig {
        api_keys: vec!["k".into()],
        max_body_bytes: 1000,
        ..ServerConfig::default()
    })
    .await;
    let check = |reply: crate::server::Reply, status: u16, kind: &str| {
        assert_eq!((reply.status, error_of(&reply).0.as_str()), (status, kind));
    };
    let body = request(&json!({})).to_string();
    check(server.post(PATH, &body).await, 401, "authentication_error");
    let key = "authorization: Bearer k\r\n";
    let other = request(&json!({"model": "other"})).to_string();
    check(
        server.post_with(PATH, key, other).await,
        404,
        "not_found_error",
    );
    check(server.get(PATH).await, 405, "invalid_request_error");
    let long = "x".repeat(2000);
    check(
        server.post_with(PATH, key, long).await,
        413,
        "request_too_large",
    );
    server.script.fault_at(Some(0));
    check(server.post_with(PATH, key, &body).await, 500, "api_error");
    let mut streamed = request(&json!({}));
    streamed["stream"] = json!(true);
    let reply = server.post_with(PATH, key, streamed.to_string()).await;
    let last = named_events(&reply).pop().expect("events");
    assert_eq!(last["type"], "error");
    assert_eq!(last["error"]["type"], "api_error");

    let bare = Server::serving(Folder::NoTemplate, Defaults::default()).await;
    check(bare.post(PATH, &body).await, 400, "invalid_request_error");
}

#[tokio::test]
async fn silence_is_broken_by_pings() {
    let server = Server::start().await;
    server.say("Hello");
    server.script.hold(true);
    let body = request(&json!({"stream": true}));
    let ping = "event: ping\ndata: {\"type\": \"ping\"}\n\n";
    let (_socket, bytes) = server.post_until(PATH, &body, ping).await;
    assert!(String::from_utf8_lossy(&bytes).contains("event: message_start\n"));
    server.script.hold(false);
}

#[tokio::test]
async fn what_has_no_effect_is_accepted() {
    let server = Server::start().await;
    server.say("Hello");
    let body = request(&json!({
        "metadata": {"user_id": "user_1"},
        "service_tier": "auto",
        "container": null,
        "mcp_servers": [],
        "context_management": {"edits": [
            {"type": "clear_thinking_20251015", "keep": "all"},
            {"type": "clear_tool_uses_20250919"}]},
        "output_config": {"effort": "medium"},
        "stop_sequences": [],
        "tools": [],
        "tool_choice": {"type": "auto"},
        "betas": ["x"],
    }));
    let reply = server
        .post_with(
            "/v1/messages?beta=true",
            "anthropic-version: 2023-06-01\r\nanthropic-beta: a-2025-01-01,b-2025-02-02\r\n",
            body.to_string(),
        )
        .await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let answer: Value = serde_json::from_str(&reply.body).expect("JSON");
    assert_eq!(answer["stop_reason"], "end_turn");
}
