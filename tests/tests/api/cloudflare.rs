//! Workers AI: what a binding returns, the REST envelope, the codes of its errors.

use jsonschema::Validator;
use nemoserve::state::ServerConfig;
use serde_json::{Value, json};

use crate::server::Server;

const BINDING: &str = "/ai/run/org/test";
const REST: &str = "/client/v4/accounts/0123abc/ai/run/org/test";
const PLAIN: &str = "/client/v4/accounts/0123abc/ai/v1/chat/completions";

/// What the published schema says of `input` or `output`.
fn published(part: &str) -> Validator {
    let mut schema: Value =
        serde_json::from_str(include_str!("cloudflare.schema.json")).expect("it is JSON");
    schema["$ref"] = json!(format!("#/$defs/{part}"));
    jsonschema::validator_for(&schema).expect("it is a schema")
}

#[track_caller]
fn fits(schema: &Validator, value: &Value) {
    let wrong: Vec<String> = schema.iter_errors(value).map(|e| e.to_string()).collect();
    assert!(wrong.is_empty(), "{wrong:?} in {value}");
}

fn inputs() -> Vec<Value> {
    let messages = json!([
        {"role": "system", "content": "You are a friendly assistant"},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    ]);
    vec![
        json!({"prompt": "Hi"}),
        json!({"messages": messages}),
        json!({"messages": messages, "n": 2, "logprobs": true, "top_logprobs": 3, "max_tokens": 3}),
        json!({"messages": messages, "temperature": 0, "seed": 7, "stop": ["zz"], "store": true,
               "top_p": 0.9, "frequency_penalty": 0.5, "presence_penalty": -0.5, "user": "u",
               "metadata": {"a": "b"}, "modalities": ["text"], "service_tier": "auto",
               "logit_bias": {"5": -1}, "parallel_tool_calls": true, "stream": false,
               "prediction": {"type": "content", "content": "x"}}),
        json!({"prompt": "Hi", "reasoning_effort": "low"}),
        json!({"prompt": "Hi", "chat_template_kwargs": {"enable_thinking": true, "clear_thinking": false}}),
        json!({"prompt": "Hi", "max_completion_tokens": 2, "response_format": {"type": "text"}}),
        json!({"prompt": "Hi", "temperature": null, "stop": null, "n": null, "logprobs": null}),
    ]
}

#[tokio::test]
async fn inputs_and_outputs_fit_the_published_schemas() {
    let server = Server::start().await;
    server.say("why</think>so é");
    let (input, output) = (published("input"), published("output"));
    for body in inputs() {
        fits(&input, &body);
        let bare = server.ask(BINDING, &body).await;
        fits(&output, &bare);
        let mut rest = server.ask(REST, &body).await;
        let keys: Vec<&String> = rest.as_object().expect("an object").keys().collect();
        assert_eq!(keys, ["result", "success", "errors", "messages"]);
        assert_eq!(rest["success"], true);
        assert_eq!(
            (&rest["errors"], &rest["messages"]),
            (&json!([]), &json!([]))
        );
        fits(&output, &rest["result"]);
        // The same but for what names one answer, and what the cache knew.
        let mut bare = bare;
        for answer in [&mut bare, &mut rest["result"]] {
            answer["id"] = Value::Null;
            answer["created"] = Value::Null;
            answer["usage"]["prompt_tokens_details"] = Value::Null;
        }
        assert_eq!(bare, rest["result"]);
        assert_eq!(bare["model"], "org/test");
        assert_eq!(bare["usage"].get("cost"), None);
    }
    assert!(!input.is_valid(&json!({})) && !output.is_valid(&json!({"id": "x"})));
}

#[tokio::test]
async fn streams_have_no_envelope() {
    let server = Server::start().await;
    server.say("why</think>so");
    for path in [BINDING, REST] {
        let chunks = server.stream(path, &json!({"prompt": "Hi"})).await;
        let deltas = chunks.iter().map(|chunk| {
            assert_eq!(chunk["object"], "chat.completion.chunk");
            assert_eq!(chunk["model"], "org/test");
            chunk["choices"][0]["delta"]["content"]
                .as_str()
                .unwrap_or("")
        });
        assert_eq!(deltas.collect::<String>(), "so");
    }
    // What goes wrong on the way has none either.
    server.script.fault_at(Some(2));
    let chunks = server.stream(REST, &json!({"prompt": "Hi"})).await;
    assert_eq!(
        chunks.last().expect("an event")["error"]["type"],
        "server_error"
    );
}

#[tokio::test]
async fn a_prompt_is_one_message_of_the_user() {
    let server = Server::start().await;
    server.say("</think>ok");
    let user = json!([{"role": "user", "content": "Hello there"}]);
    let count = async |body: Value| {
        let answer = server.ask(BINDING, &body).await;
        answer["usage"]["prompt_tokens"].clone()
    };
    let expect = count(json!({"messages": user})).await;
    assert_eq!(count(json!({"prompt": "Hello there"})).await, expect);
    let both = json!({"prompt": "something else, and longer", "messages": user});
    assert_eq!(count(both).await, expect);
    let ignored = json!({"prompt": "Hello there", "model": "somebody/else"});
    assert_eq!(count(ignored).await, expect);
    for path in [
        "/ai/run/org%2Ftest",
        "/ai/run/test",
        "/ai/run/org/test:free",
    ] {
        server.ask(path, &json!({"prompt": "Hi"})).await;
    }
}

#[tokio::test]
async fn the_openai_route_is_plain_openai() {
    let server = Server::start().await;
    server.say("</think>ok");
    let body = json!({"model": "test", "messages": [{"role": "user", "content": "Hi"}]});
    let answer = server.ask(PLAIN, &body).await;
    assert_eq!(answer["object"], "chat.completion");
    let reply = server
        .post(PLAIN, r#"{"model":"test","messages":[]}"#)
        .await;
    let error: Value = serde_json::from_str(&reply.body).expect("JSON");
    assert_eq!(
        (reply.status, &error["error"]["param"]),
        (400, &json!("messages"))
    );
}

/// Status, code and message of a refusal.
async fn refusal(server: &Server, path: &str, body: &str) -> (u16, u64, String) {
    let reply = server.post(path, body).await;
    let error: Value = serde_json::from_str(&reply.body).expect("errors are JSON");
    let keys: Vec<&String> = error.as_object().expect("an object").keys().collect();
    assert_eq!(keys, ["result", "success", "errors", "messages"]);
    assert_eq!(
        (&error["result"], &error["success"]),
        (&Value::Null, &json!(false))
    );
    let first = &error["errors"][0];
    let message = first["message"].as_str().expect("a message");
    (
        reply.status,
        first["code"].as_u64().expect("a code"),
        message.to_owned(),
    )
}

#[tokio::test]
async fn errors_have_cloudflares_codes() {
    let server = Server::start().await;
    for path in [BINDING, REST] {
        for (body, status, code, names) in [
            ("", 400, 3003, "body"),
            ("[]", 400, 5006, "object"),
            ("{}", 400, 5006, "messages"),
            (r#"{"prompt":""}"#, 400, 5006, "prompt"),
            (r#"{"prompt":7}"#, 400, 5006, "prompt"),
            (r#"{"messages":[]}"#, 400, 5006, "messages"),
            (
                r#"{"messages":[{"role":"x","content":""}]}"#,
                400,
                5006,
                "messages[0].role",
            ),
            (
                r#"{"prompt":"Hi","temperature":3}"#,
                400,
                5006,
                "temperature",
            ),
            (r#"{"prompt":"Hi","stream":true,"n":0}"#, 400, 5006, "'n'"),
            (
                r#"{"prompt":"Hi","max_tokens":100000}"#,
                400,
                5006,
                "maximum context length",
            ),
        ] {
            let (got_status, got_code, message) = refusal(&server, path, body).await;
            assert_eq!((got_status, got_code), (status, code), "{body}: {message}");
            assert!(message.contains(names), "{body}: {message}");
        }
    }
    for path in ["/ai/run/@cf/no/such", "/client/v4/accounts/a/ai/run/no"] {
        let (status, code, message) = refusal(&server, path, r#"{"prompt":"Hi"}"#).await;
        assert_eq!((status, code), (400, 5007), "{message}");
    }
    let (status, code, _) = refusal(&server, "/client/v4/accounts/a/ai/other", "{}").await;
    assert_eq!((status, code), (404, 7003));
    let reply = server.get(BINDING).await;
    assert_eq!(reply.status, 405);
    assert!(
        reply.body.contains("10405") && reply.head.contains("allow: POST"),
        "{reply:?}"
    );
}

#[tokio::test]
async fn what_an_operator_refuses_has_codes_too() {
    let server = Server::operated(ServerConfig {
        api_keys: vec!["secret".into()],
        max_body_bytes: 100,
        ..ServerConfig::default()
    })
    .await;
    let (status, code, _) = refusal(&server, REST, r#"{"prompt":"Hi"}"#).await;
    assert_eq!((status, code), (401, 10000));
    let long = "x".repeat(200);
    let reply = server
        .post_with(BINDING, "authorization: bearer secret\r\n", &long)
        .await;
    assert_eq!(reply.status, 413);
    assert!(reply.body.contains(r#""code":3006"#), "{}", reply.body);
    let prompt = r#"{"prompt":"Hi"}"#;
    let reply = server
        .post_with(BINDING, "authorization: bearer secret\r\n", prompt)
        .await;
    assert_eq!(reply.status, 200, "{}", reply.body);
}
