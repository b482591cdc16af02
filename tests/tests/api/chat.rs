//! `/v1/chat/completions`, whole and streamed.

use nemoserve::api::params::{Defaults, ReasoningField};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;

use crate::server::{Folder, Reply, Server};

const PATH: &str = "/v1/chat/completions";

fn request(extra: &Value) -> Value {
    let mut body = json!({"model": "test", "messages": [{"role": "user", "content": "Hi"}]});
    let members = extra.as_object().expect("members").clone();
    body.as_object_mut().expect("an object").extend(members);
    body
}

/// Streams, checks the sequence, and puts the chunks together as an answer without ids.
async fn streamed(server: &Server, body: &Value) -> Value {
    let mut body = body.clone();
    body["stream_options"] = json!({"include_usage": true});
    let chunks = server.stream(PATH, &body).await;
    let (usage, chunks) = chunks.split_last().expect("chunks");
    assert_eq!(usage["choices"], json!([]));
    let n = body["n"].as_u64().unwrap_or(1) as usize;
    let logprobs = match body["logprobs"].as_bool() {
        Some(true) => json!({"content": [], "refusal": null}),
        _ => Value::Null,
    };
    let mut choices = vec![json!({"finish_reason": null, "logprobs": logprobs}); n];
    for (i, chunk) in chunks.iter().enumerate() {
        for key in ["id", "created", "model", "system_fingerprint"] {
            assert_eq!(chunk[key], usage[key], "{key} is the same in all chunks");
        }
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!(chunk["usage"], Value::Null);
        assert!(chunk.as_object().expect("an object").contains_key("usage"));
        let part = &chunk["choices"][0];
        let choice = &mut choices[part["index"].as_u64().expect("an index") as usize];
        assert_eq!(
            choice["finish_reason"],
            Value::Null,
            "nothing follows the end"
        );
        let delta = &part["delta"];
        if i < n {
            assert_eq!(*delta, json!({"role": "assistant", "content": ""}));
        }
        for key in ["content", "reasoning_content", "reasoning"] {
            if let Some(text) = delta[key].as_str() {
                let answered = choice["content"]
                    .as_str()
                    .is_some_and(|text| !text.is_empty());
                assert!(key == "content" || !answered, "thoughts come first");
                let before = choice[key].as_str().unwrap_or("");
                choice[key] = json!(format!("{before}{text}"));
            }
        }
        if let Some(entries) = part["logprobs"]["content"].as_array() {
            let mut all = choice["logprobs"]["content"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            all.extend_from_slice(entries);
            choice["logprobs"] = json!({"content": all, "refusal": null});
        }
        for key in ["token_ids", "prompt_token_ids"] {
            if let Some(ids) = part[key].as_array() {
                let mut all = choice[key].as_array().cloned().unwrap_or_default();
                all.extend_from_slice(ids);
                choice[key] = json!(all);
            }
        }
        if part["prompt_logprobs"].is_array() {
            choice["prompt_logprobs"] = part["prompt_logprobs"].clone();
        }
        if !part["finish_reason"].is_null() {
            assert_eq!(*delta, json!({}));
            choice["finish_reason"] = part["finish_reason"].clone();
        }
    }
    json!({"choices": choices, "usage": usage["usage"]})
}

/// The parts of an answer that a stream also has.
fn comparable(answer: &Value) -> Value {
    let choices: Vec<Value> = answer["choices"]
        .as_array()
        .expect("choices")
        .iter()
        .map(|choice| {
            let mut flat = json!({
                "finish_reason": choice["finish_reason"],
                "logprobs": choice["logprobs"],
                "content": choice["message"]["content"],
            });
            for key in ["reasoning_content", "reasoning"] {
                if let Some(text) = choice["message"].get(key) {
                    flat[key] = text.clone();
                }
            }
            for key in ["token_ids", "prompt_token_ids", "prompt_logprobs"] {
                if let Some(ids) = choice.get(key) {
                    flat[key] = ids.clone();
                }
            }
            flat
        })
        .collect();
    let mut usage = answer["usage"].clone();
    usage["prompt_tokens_details"]["cached_tokens"] = json!(0);
    json!({"choices": choices, "usage": usage})
}

/// Asks both ways, compares, and returns the whole answer.
async fn both(server: &Server, body: &Value) -> Value {
    let answer = server.ask(PATH, body).await;
    let mut stream = streamed(server, body).await;
    stream["usage"]["prompt_tokens_details"]["cached_tokens"] = json!(0);
    assert_eq!(stream, comparable(&answer), "{body}");
    answer
}

fn content(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"]
        .as_str()
        .expect("text")
}

/// What the entries' bytes say, decoded as Python would with `errors="replace"`.
fn text_of_entries(choice: &Value) -> String {
    let entries = choice["logprobs"]["content"].as_array().expect("entries");
    let bytes: Vec<u8> = entries
        .iter()
        .flat_map(|entry| entry["bytes"].as_array().cloned().unwrap_or_default())
        .map(|byte| byte.as_u64().expect("a byte") as u8)
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn an_answer_has_every_key() {
    let server = Server::start().await;
    server.say("because\n</think>\nHello there");
    let answer = server.ask(PATH, &request(&json!({}))).await;
    let keys: Vec<&String> = answer.as_object().expect("an object").keys().collect();
    let expect = [
        "id",
        "object",
        "created",
        "model",
        "system_fingerprint",
        "service_tier",
        "choices",
        "usage",
    ];
    assert_eq!(keys, expect);
    assert!(
        answer["id"]
            .as_str()
            .expect("an id")
            .starts_with("chatcmpl-")
    );
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["service_tier"], "default");
    assert_eq!(answer["system_fingerprint"], "fp_test");
    assert_eq!(
        answer["choices"][0],
        json!({
            "index": 0,
            "message": {
                "role": "assistant", "content": "Hello there", "refusal": null,
                "annotations": [], "reasoning_content": "because",
            },
            "logprobs": null,
            "finish_reason": "stop",
        })
    );
    let spoken = server.ids("because\n</think>\nHello there").len() as u64;
    let thought = server.ids("because\n").len() as u64;
    let usage = &answer["usage"];
    assert_eq!(
        usage["completion_tokens"],
        spoken + 1,
        "the end token counts"
    );
    assert_eq!(
        usage["completion_tokens_details"]["reasoning_tokens"],
        thought
    );
    let total = usage["prompt_tokens"].as_u64().expect("a count") + spoken + 1;
    assert_eq!(usage["total_tokens"], total);
    assert_ne!(
        answer["id"],
        server.ask(PATH, &request(&json!({}))).await["id"]
    );
}

#[tokio::test]
async fn streams_equal_answers() {
    let server = Server::start().await;
    let texts = [
        "because\n</think>\nHello there, 世界 😀!",
        "</think>no thought",
        "never closed",
        "a</think>b</think>c<tool_call>d",
        "",
    ];
    for text in texts {
        server.say(text);
        for extra in [
            json!({}),
            json!({"n": 3}),
            json!({"logprobs": true}),
            json!({"logprobs": true, "top_logprobs": 3, "n": 2}),
            json!({"max_tokens": 3}),
            json!({"stop": ["the", "c"], "logprobs": true}),
            json!({"return_token_ids": true, "prompt_logprobs": 2}),
            json!({"reasoning": {"exclude": true}}),
            json!({"chat_template_kwargs": {"force_nonempty_content": true}}),
            json!({"reasoning_effort": "none", "ignore_eos": true, "max_tokens": 20}),
        ] {
            let answer = both(&server, &request(&extra)).await;
            for choice in answer["choices"].as_array().expect("choices") {
                if !choice["logprobs"].is_null() {
                    let content = choice["message"]["content"].as_str().expect("text");
                    assert_eq!(text_of_entries(choice), content, "{text} {extra}");
                }
            }
        }
    }
}

#[tokio::test]
async fn thoughts() {
    let server = Server::start().await;
    server.say("why\n</think>\nso");
    let message = |answer: Value| answer["choices"][0]["message"].clone();
    let on = message(both(&server, &request(&json!({}))).await);
    assert_eq!(
        (&on["reasoning_content"], &on["content"]),
        (&json!("why"), &json!("so"))
    );
    let hidden = server
        .ask(PATH, &request(&json!({"include_reasoning": false})))
        .await;
    assert!(hidden["usage"]["completion_tokens_details"]["reasoning_tokens"].as_u64() > Some(0));
    let hidden = message(hidden);
    assert_eq!(
        (hidden.get("reasoning_content"), &hidden["content"]),
        (None, &json!("so"))
    );

    server.say("plain");
    let off = server
        .ask(PATH, &request(&json!({"reasoning_effort": "none"})))
        .await;
    assert_eq!(
        off["usage"]["completion_tokens_details"]["reasoning_tokens"],
        0
    );
    let off = message(off);
    assert_eq!(
        (off.get("reasoning_content"), &off["content"]),
        (None, &json!("plain"))
    );

    // Never closed: all of it is thought, and the content is empty, not null.
    let open = message(server.ask(PATH, &request(&json!({}))).await);
    assert_eq!(
        (&open["reasoning_content"], &open["content"]),
        (&json!("plain"), &json!(""))
    );
    let forced = json!({"chat_template_kwargs": {"force_nonempty_content": true}});
    let forced = message(both(&server, &request(&forced)).await);
    assert_eq!(forced["content"], "plain");
}

#[tokio::test]
async fn thoughts_by_their_other_name() {
    for (field, names) in [
        (ReasoningField::Reasoning, vec!["reasoning"]),
        (ReasoningField::Both, vec!["reasoning_content", "reasoning"]),
    ] {
        let defaults = Defaults {
            reasoning_field: field,
            ..Defaults::default()
        };
        let server = Server::serving(Folder::Whole, defaults).await;
        server.say("why</think>so");
        let answer = both(&server, &request(&json!({}))).await;
        let message = answer["choices"][0]["message"]
            .as_object()
            .expect("a message")
            .clone();
        for name in ["reasoning_content", "reasoning"] {
            let expect = names.contains(&name).then(|| json!("why"));
            assert_eq!(message.get(name).cloned(), expect);
        }
    }
}

#[tokio::test]
async fn stop_strings_end_the_answer_and_not_the_thought() {
    let server = Server::start().await;
    server.say("one stop two</think>three stop four");
    let answer = both(&server, &request(&json!({"stop": " stop"}))).await;
    let message = &answer["choices"][0]["message"];
    assert_eq!(message["reasoning_content"], "one stop two");
    assert_eq!(message["content"], "three");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    let used = answer["usage"]["completion_tokens"]
        .as_u64()
        .expect("a count");
    assert!(used < server.ids("one stop two</think>three stop four").len() as u64);
}

#[tokio::test]
async fn lengths() {
    let server = Server::start().await;
    server.say("</think>one two three four");
    let cut = both(&server, &request(&json!({"max_tokens": 2}))).await;
    assert_eq!(cut["choices"][0]["finish_reason"], "length");
    assert_eq!(cut["usage"]["completion_tokens"], 2);
    let wins = json!({"max_tokens": 9, "max_completion_tokens": 1});
    assert_eq!(
        server.ask(PATH, &request(&wins)).await["usage"]["completion_tokens"],
        1
    );
    let endless = json!({"ignore_eos": true, "max_tokens": 40, "n": 3});
    let endless = both(&server, &request(&endless)).await;
    assert_eq!(endless["usage"]["completion_tokens"], 120);
    let stopped = json!({"stop_token_ids": server.ids(" two"), "reasoning_effort": "none"});
    server.say("one two three");
    let stopped = both(&server, &request(&stopped)).await;
    assert_eq!(
        (content(&stopped), &stopped["choices"][0]["finish_reason"]),
        ("one", &json!("stop"))
    );
    let least = both(&server, &request(&json!({"min_tokens": 50}))).await;
    assert_eq!(least["usage"]["completion_tokens"], 51);
}

#[tokio::test]
async fn seeds_and_bias_reach_the_sampler() {
    let server = Server::start().await;
    let ids = |text: &str| server.ids(text);
    server
        .script
        .say_by_seed(vec![ids("</think>a"), ids("</think>b"), ids("</think>c")]);
    let answer = both(&server, &request(&json!({"n": 3, "seed": 1}))).await;
    let said: Vec<&Value> = answer["choices"]
        .as_array()
        .expect("choices")
        .iter()
        .map(|choice| &choice["message"]["content"])
        .collect();
    assert_eq!(said, ["b", "c", "a"]);
    let forced = ids("b")[0];
    let body = json!({"logit_bias": {forced.to_string(): 100}, "max_tokens": 3,
                      "reasoning_effort": "none"});
    assert_eq!(content(&server.ask(PATH, &request(&body)).await), "bbb");
}

#[tokio::test]
async fn entries_of_logprobs() {
    let server = Server::start().await;
    server.say("thought</think>Hi</think>!");
    let body = request(&json!({"logprobs": true, "top_logprobs": 4}));
    let answer = both(&server, &body).await;
    let logprobs = &answer["choices"][0]["logprobs"];
    assert_eq!(logprobs["refusal"], Value::Null);
    let entries = logprobs["content"].as_array().expect("entries");
    let tokens: Vec<&str> = entries.iter().filter_map(|e| e["token"].as_str()).collect();
    assert_eq!(tokens.concat(), "Hi</think>!");
    for entry in entries {
        let keys: Vec<&String> = entry.as_object().expect("an object").keys().collect();
        assert_eq!(keys, ["token", "logprob", "bytes", "top_logprobs"]);
        assert_eq!(entry["bytes"].is_null(), entry["token"] == "</think>");
        let top = entry["top_logprobs"].as_array().expect("alternatives");
        assert_eq!(top.len(), 4);
        let values: Vec<f64> = top.iter().filter_map(|t| t["logprob"].as_f64()).collect();
        assert!(values.is_sorted_by(|a, b| a >= b) && values[0] <= 0.0);
    }
    let none = server.ask(PATH, &request(&json!({"logprobs": true}))).await;
    assert_eq!(
        none["choices"][0]["logprobs"]["content"][0]["top_logprobs"],
        json!([])
    );
}

#[tokio::test]
async fn a_character_cut_short_by_length() {
    let server = Server::start().await;
    server.say("</think>é😀");
    let spoken = server.ids("</think>é😀").len();
    for cut in 1..=spoken {
        let body = request(&json!({"max_tokens": cut, "logprobs": true}));
        let answer = both(&server, &body).await;
        let said = content(&answer);
        assert_eq!(text_of_entries(&answer["choices"][0]), said);
        assert!(said.matches('\u{fffd}').count() <= 1, "{said:?}");
    }
}

#[tokio::test]
async fn token_ids_on_request() {
    let server = Server::start().await;
    server.say("a</think>b");
    let body = request(&json!({"return_token_ids": true, "prompt_logprobs": 1}));
    let answer = both(&server, &body).await;
    let choice = &answer["choices"][0];
    let mut expect = server.ids("a</think>b");
    expect.push(11);
    assert_eq!(choice["token_ids"], json!(expect));
    let asked = json!({"messages": body["messages"]});
    let prompt = server.ask("/tokenize", &asked).await;
    assert_eq!(choice["prompt_token_ids"], prompt["tokens"]);
    assert_eq!(answer["usage"]["prompt_tokens"], prompt["count"]);
    let scores = choice["prompt_logprobs"].as_array().expect("scores");
    assert_eq!(
        (scores.len() as u64, &scores[0]),
        (prompt["count"].as_u64().unwrap(), &Value::Null)
    );
    for (score, id) in scores
        .iter()
        .zip(prompt["tokens"].as_array().unwrap())
        .skip(1)
    {
        assert!(score[id.to_string()]["logprob"].is_number(), "{score}");
    }
}

#[tokio::test]
async fn chunks_without_usage_do_not_name_it() {
    let server = Server::start().await;
    server.say("</think>x");
    let chunks = server.stream(PATH, &request(&json!({}))).await;
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()));
    assert!(
        chunks
            .iter()
            .all(|chunk| chunk["choices"][0].get("logprobs").is_some())
    );
}

#[tokio::test]
async fn repeated_prompts_are_cached() {
    let server = Server::start().await;
    server.say("</think>x");
    let long = "word ".repeat(80);
    let body = json!({"model": "test", "messages": [{"role": "user", "content": long}]});
    let first = server.ask(PATH, &body).await;
    let second = server.ask(PATH, &body).await;
    assert_eq!(first["choices"], second["choices"]);
    let usage = &second["usage"];
    let cached = usage["prompt_tokens_details"]["cached_tokens"]
        .as_u64()
        .expect("a count");
    assert!(cached <= usage["prompt_tokens"].as_u64().expect("a count"));
}

#[tokio::test]
async fn faults_end_a_stream_with_an_error_event() {
    let server = Server::start().await;
    server.say("</think>one two three");
    server.script.fault_at(Some(3));
    let chunks = server.stream(PATH, &request(&json!({}))).await;
    let error = &chunks.last().expect("an event")["error"];
    assert_eq!(error["type"], "server_error");
    let keys: Vec<&String> = error.as_object().expect("an object").keys().collect();
    assert_eq!(keys, ["message", "type", "param", "code"]);
    let reply = server.post(PATH, request(&json!({})).to_string()).await;
    assert_eq!(reply.status, 500);
    // Only that request failed.
    server.script.fault_at(None);
    assert_eq!(
        content(&server.ask(PATH, &request(&json!({}))).await),
        "one two three"
    );
}

#[tokio::test]
async fn an_engine_that_fails_tells_every_stream() {
    let server = Server::start().await;
    server.say("</think>x");
    server.script.fail();
    let chunks = server.stream(PATH, &request(&json!({}))).await;
    assert_eq!(
        chunks.last().expect("an event")["error"]["code"],
        "internal_error"
    );
}

#[tokio::test]
async fn a_silent_stream_is_kept_alive() {
    let server = Server::start().await;
    server.say("</think>x");
    server.script.hold(true);
    // Headers and the first chunk come before any step, comments while nothing else does.
    let body = request(&json!({"stream": true}));
    let (mut socket, mut bytes) = server.post_until(PATH, &body, ": keep-alive\n\n").await;
    let so_far = String::from_utf8_lossy(&bytes).into_owned();
    assert!(so_far.starts_with("HTTP/1.1 200"), "{so_far}");
    assert!(so_far.contains("x-accel-buffering: no"), "{so_far}");
    assert!(so_far.contains("cache-control: no-cache"), "{so_far}");
    assert!(so_far.contains(r#""role":"assistant""#), "{so_far}");
    server.script.hold(false);
    socket.read_to_end(&mut bytes).await.expect("it ends");
    let events = Reply::parse(&bytes).events();
    assert_eq!(
        events.last().expect("chunks")["choices"][0]["finish_reason"],
        "stop"
    );
}

#[tokio::test]
async fn thoughts_that_come_back_inside_the_content() {
    let server = Server::start().await;
    let ids = async |assistant: Value| {
        let body = json!({
            "messages": [{"role": "user", "content": "a"}, assistant],
            "chat_template_kwargs": {"truncate_history_thinking": false},
        });
        server.ask("/tokenize", &body).await["tokens"].clone()
    };
    let inside = ids(json!({"role": "assistant", "content": "<think>\nr\n</think>\nb"})).await;
    let beside = json!({"role": "assistant", "content": "b", "reasoning_content": "r"});
    assert_eq!(inside, ids(beside).await);
}
