//! NVIDIA's defaults and limits, under their prefix and on `/v1`.

use nemoserve::api::flavour::Flavour;
use nemoserve::state::ServerConfig;
use serde_json::{Value, json};

use crate::server::{MAX_MODEL_LEN, Server};

const PREFIX: &str = "/nvidia/v1/chat/completions";

async fn with_defaults() -> Server {
    Server::operated(ServerConfig {
        v1_flavour: Flavour::Nvidia,
        ..ServerConfig::default()
    })
    .await
}

fn question(extra: &Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "Hi"}]});
    let members = extra.as_object().expect("members").clone();
    body.as_object_mut().expect("an object").extend(members);
    body
}

#[tokio::test]
async fn streams_unless_told_otherwise() {
    for (server, path) in [
        (Server::start().await, PREFIX),
        (with_defaults().await, "/v1/chat/completions"),
    ] {
        server.say("</think>so");
        let reply = server.post(path, question(&json!({})).to_string()).await;
        let chunks = reply.events();
        assert_eq!(chunks[0]["model"], "test", "the loaded one");
        let whole = server.ask(path, &question(&json!({"stream": false}))).await;
        assert_eq!(whole["choices"][0]["message"]["content"], "so");
        let named = server
            .ask(
                path,
                &question(&json!({"stream": false, "model": "org/test"})),
            )
            .await;
        assert_eq!(named["model"], "org/test");
    }
    // Who else speaks plain OpenAI is not NVIDIA.
    let server = with_defaults().await;
    server.say("</think>so");
    let plain = "/client/v4/accounts/a/ai/v1/chat/completions";
    let answer = server
        .ask(plain, &question(&json!({"model": "test"})))
        .await;
    assert_eq!(answer["object"], "chat.completion");
    // Without the flag `/v1` is OpenAI's.
    let server = Server::start().await;
    let reply = server
        .post("/v1/chat/completions", question(&json!({})).to_string())
        .await;
    assert_eq!(reply.status, 400);
}

#[tokio::test]
async fn limits() {
    let server = Server::start().await;
    server.say("</think>so");
    for (extra, expect) in [
        (json!({"temperature": 1.1}), Some("temperature")),
        (json!({"temperature": 1}), None),
        (json!({"max_tokens": 0}), Some("max_tokens")),
        (json!({"max_tokens": 32769}), Some("max_tokens")),
        (
            json!({"max_completion_tokens": 32769}),
            Some("max_completion_tokens"),
        ),
        (json!({"max_tokens": 1}), None),
        (
            json!({"reasoning_effort": "medium"}),
            Some("reasoning_effort"),
        ),
        (
            json!({"reasoning_effort": "minimal"}),
            Some("reasoning_effort"),
        ),
        (json!({"reasoning_effort": "low"}), None),
        (json!({"reasoning_effort": "none"}), None),
        (json!({"reasoning_effort": "high"}), None),
        (json!({"top_p": 1.5}), Some("top_p")),
        (json!({"model": "other"}), Some("model")),
        // A window smaller than the default is no error, one smaller than the wish is.
        (json!({"max_tokens": 16384}), Some("messages")),
        (json!({"stream": "no"}), Some("stream")),
    ] {
        let reply = server.post(PREFIX, question(&extra).to_string()).await;
        if let Some(param) = expect {
            let error: Value = serde_json::from_str(&reply.body).expect("JSON");
            assert_eq!(error["error"]["param"], param, "{extra}");
        } else {
            assert_eq!(reply.status, 200, "{extra}: {}", reply.body);
        }
    }
}

#[tokio::test]
async fn defaults_reach_the_sampler() {
    let server = with_defaults().await;
    let rendered = server
        .ask("/v1/chat/completions/render", &question(&json!({})))
        .await;
    let sampling = &rendered["sampling_params"];
    assert_eq!(sampling["top_p"], 0.95);
    let len = rendered["token_ids"].as_array().expect("ids").len();
    assert_eq!(sampling["max_tokens"], MAX_MODEL_LEN as usize - len);
    let own = question(&json!({"top_p": 0.5, "max_tokens": 9}));
    let sampling = server.ask("/v1/chat/completions/render", &own).await["sampling_params"].clone();
    assert_eq!(
        (&sampling["top_p"], &sampling["max_tokens"]),
        (&json!(0.5), &json!(9))
    );
}

#[tokio::test]
async fn a_context_comes_before_the_question() {
    let server = Server::start().await;
    server.say("</think>so");
    let ask = async |messages: Value| {
        let body = json!({"messages": messages, "stream": false});
        server.post(PREFIX, body.to_string()).await
    };
    let context = json!({"role": "context", "content": "Lamb is meat."});
    let user = json!({"role": "user", "content": "What is lamb?"});
    let system = json!({"role": "system", "content": "Be brief."});
    assert_eq!(ask(json!([context, user])).await.status, 200);
    assert_eq!(ask(json!([system, context, user])).await.status, 200);
    let late = ask(json!([user, context])).await;
    assert_eq!(late.status, 400);
    assert!(late.body.contains("messages[1].role"), "{}", late.body);
}

#[tokio::test]
async fn completions_need_no_model() {
    let server = Server::start().await;
    let text = server
        .ask(
            "/nvidia/v1/completions",
            &json!({"prompt": "a", "max_tokens": 2}),
        )
        .await;
    assert_eq!(
        (&text["object"], &text["model"]),
        (&json!("text_completion"), &json!("test"))
    );
    assert_eq!(
        server.get("/nvidia/v1/models").await.body,
        server.get("/v1/models").await.body
    );
}
