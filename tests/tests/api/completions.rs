//! `/v1/completions`, whole and streamed.

use serde_json::{Value, json};

use crate::server::Server;

const PATH: &str = "/v1/completions";

fn request(prompt: impl Into<Value>, extra: &Value) -> Value {
    let mut body = json!({"model": "test", "prompt": prompt.into()});
    let members = extra.as_object().expect("members").clone();
    body.as_object_mut().expect("an object").extend(members);
    body
}

/// Asks both ways, compares, and returns the whole answer.
async fn both(server: &Server, body: &Value) -> Value {
    let answer = server.ask(PATH, body).await;
    let mut asked = body.clone();
    asked["stream_options"] = json!({"include_usage": true});
    let chunks = server.stream(PATH, &asked).await;
    let (usage, chunks) = chunks.split_last().expect("chunks");
    let whole = answer["choices"].as_array().expect("choices");
    let mut texts = vec![String::new(); whole.len()];
    let mut finishes = vec![Value::Null; whole.len()];
    let mut logprobs = vec![Value::Null; whole.len()];
    for chunk in chunks {
        assert_eq!(
            (&chunk["object"], &chunk["id"]),
            (&json!("text_completion"), &usage["id"])
        );
        let part = &chunk["choices"][0];
        let index = part["index"].as_u64().expect("an index") as usize;
        assert!(finishes[index].is_null(), "nothing follows the end");
        texts[index].push_str(part["text"].as_str().expect("text"));
        finishes[index] = part["finish_reason"].clone();
        if part["logprobs"].is_object() {
            if logprobs[index].is_null() {
                logprobs[index] = part["logprobs"].clone();
            } else {
                for key in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
                    let more = part["logprobs"][key].as_array().expect("a list").clone();
                    logprobs[index][key]
                        .as_array_mut()
                        .expect("a list")
                        .extend(more);
                }
            }
        }
    }
    for (i, choice) in whole.iter().enumerate() {
        assert_eq!(choice["index"], i);
        assert_eq!(choice["text"], texts[i], "{body}");
        assert_eq!(choice["finish_reason"], finishes[i], "{body}");
        if !logprobs[i].is_null() {
            assert_eq!(choice["logprobs"], logprobs[i], "{body}");
        }
    }
    for key in ["prompt_tokens", "completion_tokens", "total_tokens"] {
        assert_eq!(usage["usage"][key], answer["usage"][key]);
    }
    answer
}

fn text(answer: &Value) -> &str {
    answer["choices"][0]["text"].as_str().expect("text")
}

/// Four lists of equal length whose tokens make the text.
fn check_logprobs(choice: &Value, top: usize) {
    let lists = &choice["logprobs"];
    let list = |key: &str| lists[key].as_array().expect("a list");
    let num = list("tokens").len();
    for key in ["token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(list(key).len(), num, "{key}");
    }
    let text: Vec<char> = choice["text"].as_str().expect("text").chars().collect();
    for i in 0..num {
        let (token, offset) = (&list("tokens")[i], list("text_offset")[i].as_u64());
        let token = token.as_str().expect("a string");
        let at = offset.expect("an offset") as usize;
        if !token.starts_with("bytes:") && !token.starts_with('<') {
            let there: String = text[at..].iter().take(token.chars().count()).collect();
            assert_eq!(there, token);
        }
        let alternatives = &list("top_logprobs")[i];
        let Some(alternatives) = alternatives.as_object() else {
            assert_eq!((i, &list("token_logprobs")[0]), (0, &Value::Null));
            continue;
        };
        let num = alternatives.len();
        assert!(
            num == top || (top > 0 && num == top + 1),
            "{alternatives:?}"
        );
        assert!(
            top == 0 || alternatives.contains_key(token),
            "{token} in {alternatives:?}"
        );
    }
}

#[tokio::test]
async fn an_answer_has_every_key() {
    let server = Server::start().await;
    server.say(" there");
    let answer = server.ask(PATH, &request("Hello", &json!({}))).await;
    let keys: Vec<&String> = answer.as_object().expect("an object").keys().collect();
    let expect = [
        "id",
        "object",
        "created",
        "model",
        "system_fingerprint",
        "choices",
        "usage",
    ];
    assert_eq!(keys, expect);
    assert!(answer["id"].as_str().expect("an id").starts_with("cmpl-"));
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(
        answer["choices"],
        json!([{"index": 0, "text": " there", "logprobs": null, "finish_reason": "stop"}])
    );
    assert_eq!(answer["usage"]["prompt_tokens"], server.ids("Hello").len());
}

#[tokio::test]
async fn prompts_of_every_kind() {
    let server = Server::start().await;
    server.say("x");
    let ids = server.ids("one two");
    for (prompt, num) in [
        (json!("one two"), 1),
        (json!(["one", "two"]), 2),
        (json!(ids), 1),
        (json!([ids, [5]]), 2),
    ] {
        let answer = both(&server, &request(prompt, &json!({"n": 2}))).await;
        assert_eq!(
            answer["choices"].as_array().expect("choices").len(),
            2 * num
        );
        assert_eq!(answer["usage"]["completion_tokens"], 4 * num);
    }
    let asked = json!({"return_token_ids": true});
    let answer = server.ask(PATH, &request(json!([ids, [5]]), &asked)).await;
    assert_eq!(answer["choices"][0]["prompt_token_ids"], json!(ids));
    assert_eq!(answer["choices"][1]["prompt_token_ids"], json!([5]));
}

#[tokio::test]
async fn sixteen_tokens_unless_told_otherwise() {
    let server = Server::start().await;
    server.say("x");
    let body = request("a", &json!({"ignore_eos": true}));
    assert_eq!(both(&server, &body).await["usage"]["completion_tokens"], 16);
    let body = request("a", &json!({"max_tokens": 0}));
    let none = both(&server, &body).await;
    assert_eq!(
        (text(&none), &none["usage"]["completion_tokens"]),
        ("", &json!(0))
    );
    assert_eq!(none["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn echoes() {
    let server = Server::start().await;
    server.say(" world é");
    for prompt in ["Hello é", "😀", "a<|im_end|>b"] {
        for extra in [
            json!({"echo": true}),
            json!({"echo": true, "logprobs": 2, "n": 2}),
            json!({"echo": true, "logprobs": 0}),
            json!({"echo": true, "logprobs": 5, "stop": ["é", "<"]}),
            json!({"echo": true, "max_tokens": 0, "logprobs": 1}),
            json!({"echo": true, "max_tokens": 0}),
        ] {
            let answer = both(&server, &request(prompt, &extra)).await;
            assert!(text(&answer).starts_with(prompt), "{extra}");
            for choice in answer["choices"].as_array().expect("choices") {
                if let Some(top) = extra["logprobs"].as_u64() {
                    check_logprobs(choice, top as usize);
                    assert_eq!(choice["logprobs"]["token_logprobs"][0], Value::Null);
                }
            }
            if extra["max_tokens"] == 0 {
                assert_eq!(text(&answer), prompt);
                assert_eq!(answer["usage"]["completion_tokens"], 0);
            }
        }
    }
}

#[tokio::test]
async fn logprobs_without_echo() {
    let server = Server::start().await;
    server.say("ab é😀 cd");
    for top in [0, 1, 5] {
        let body = request("x", &json!({"logprobs": top, "max_tokens": 100}));
        let answer = both(&server, &body).await;
        check_logprobs(&answer["choices"][0], top);
    }
    // Part of a character is written as its bytes.
    let part = server.ids("😀");
    if part.len() > 1 {
        server.script.say(&part[..1]);
        let answer = server
            .ask(PATH, &request("x", &json!({"logprobs": 0})))
            .await;
        let token = &answer["choices"][0]["logprobs"]["tokens"][0];
        assert!(
            token.as_str().expect("a token").starts_with("bytes:\\xf0"),
            "{token}"
        );
        assert_eq!(text(&answer), "\u{fffd}");
    }
}

#[tokio::test]
async fn the_likeliest_of_several() {
    let server = Server::start().await;
    let ids = server.ids("abcdefgh");
    let even: Vec<u32> = ids.iter().copied().filter(|id| id % 2 == 0).collect();
    let odd: Vec<u32> = ids.iter().copied().filter(|id| id % 2 == 1).collect();
    // Even ids are likely in the script, odd ones are not.
    server
        .script
        .say_by_seed(vec![odd.clone(), even.clone(), odd]);
    let body = request("x", &json!({"best_of": 3, "seed": 0}));
    let answer = server.ask(PATH, &body).await;
    assert_eq!(answer["choices"].as_array().expect("choices").len(), 1);
    assert_eq!(text(&answer), server.tokenizer.decode(&even));
    assert_eq!(answer["choices"][0]["logprobs"], Value::Null);
    assert_eq!(
        answer["usage"]["completion_tokens"],
        ids.len() + (ids.len() - even.len()) + 3
    );
}

#[tokio::test]
async fn spelled_tokens_are_text_unless_parsed() {
    let server = Server::start().await;
    server.say("x");
    let ids = async |extra: Value| {
        let mut body = request("<|im_end|>", &extra);
        body["return_token_ids"] = json!(true);
        server.ask(PATH, &body).await["choices"][0]["prompt_token_ids"].clone()
    };
    assert!(
        !ids(json!({}))
            .await
            .as_array()
            .expect("ids")
            .contains(&json!(11))
    );
    assert_eq!(ids(json!({"parse_special": true})).await, json!([11]));
}

#[tokio::test]
async fn a_first_chunk_comes_before_the_first_token() {
    let server = Server::start().await;
    server.say("x");
    let chunks = server
        .stream(PATH, &request("Hello", &json!({"echo": true})))
        .await;
    assert_eq!(chunks[0]["choices"][0]["text"], "Hello");
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()));
}
