//! The render endpoints: the prompt that would be run.

use serde_json::{Value, json};

use crate::server::Server;

#[tokio::test]
async fn a_chat_is_rendered_as_it_is_answered() {
    let server = Server::start().await;
    server.say("</think>ok");
    let body = json!({
        "model": "test", "max_tokens": 7, "temperature": 0.1, "seed": 3, "stop": ["x", "y"],
        "cache_salt": "s", "logit_bias": {"5": -1.5},
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hé"}],
    });
    let mut asked = body.clone();
    asked["return_token_ids"] = json!(true);
    let answer = server.ask("/v1/chat/completions", &asked).await;
    let rendered = server.ask("/v1/chat/completions/render", &body).await;
    assert_eq!(
        rendered["token_ids"],
        answer["choices"][0]["prompt_token_ids"]
    );
    let text = rendered["prompt"].as_str().expect("text");
    assert!(text.contains("Be brief.") && text.contains("Hé"), "{text}");
    assert_eq!(json!(server.ids(text)), rendered["token_ids"]);
    let sampling = &rendered["sampling_params"];
    assert_eq!(sampling["max_tokens"], 7);
    assert_eq!(sampling["temperature"], 0.1);
    assert_eq!(sampling["seed"], 3);
    assert_eq!(sampling["stop"], json!(["x", "y"]));
    assert_eq!(sampling["logit_bias"], json!({"5": -1.5}));
    assert_eq!(rendered["cache_salt"], "s");
    assert_eq!(rendered["model"], "test");
    let id = rendered["request_id"].as_str().expect("an id");
    assert!(id.starts_with("chatcmpl-"), "{id}");
    for name in ["features", "stream_options", "kv_transfer_params"] {
        assert_eq!(rendered.get(name), Some(&Value::Null), "{name}");
    }
}

#[tokio::test]
async fn every_prompt_of_a_completion_is_rendered() {
    let server = Server::start().await;
    let body = json!({"model": "test", "prompt": ["one", "two three"], "stream": true});
    let rendered = server.ask("/v1/completions/render", &body).await;
    let prompts: Vec<&str> = rendered
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|one| one["prompt"].as_str())
        .collect();
    assert_eq!(prompts.len(), 2);
    assert!(
        prompts[0].ends_with("one") && prompts[1].ends_with("two three"),
        "{prompts:?}"
    );
    assert_eq!(rendered[0]["stream"], true);
    assert_eq!(rendered[0]["sampling_params"]["max_tokens"], 16);
    let ids = server
        .ask(
            "/v1/completions/render",
            &json!({"model": "test", "prompt": [5, 6]}),
        )
        .await;
    assert_eq!(ids[0]["token_ids"], json!([5, 6]));
}

#[tokio::test]
async fn what_cannot_be_answered_cannot_be_rendered() {
    let server = Server::start().await;
    for (path, body, param) in [
        (
            "/v1/chat/completions/render",
            r#"{"model":"test"}"#,
            "messages",
        ),
        (
            "/v1/chat/completions/render",
            r#"{"model":"test","messages":[{"role":"user","content":"x"}],"max_tokens":9999}"#,
            "messages",
        ),
        (
            "/v1/completions/render",
            r#"{"model":"test","prompt":[]}"#,
            "prompt",
        ),
        (
            "/v1/completions/render",
            r#"{"model":"test","prompt":"x","n":0}"#,
            "n",
        ),
    ] {
        let reply = server.post(path, body).await;
        let error: Value = serde_json::from_str(&reply.body).expect("JSON");
        assert_eq!(
            (reply.status, &error["error"]["param"]),
            (400, &json!(param)),
            "{body}"
        );
    }
}
