//! Calls of tools in chat answers, whole and streamed.

use nemoserve::api::params::Defaults;
use serde_json::{Map, Value, json};

use crate::server::{Folder, Server};

const PATH: &str = "/v1/chat/completions";

fn weather() -> Value {
    json!({"name": "get_weather", "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    }})
}

fn tools() -> Value {
    json!([
        {"type": "function", "function": weather()},
        {"type": "function", "function": {"name": "now"}},
        {"type": "custom", "custom": {"name": "patch"}},
    ])
}

pub(crate) fn request(extra: &Value) -> Value {
    let mut body = json!({
        "model": "test", "messages": [{"role": "user", "content": "Hi"}],
        "reasoning_effort": "none",
    });
    let members = extra.as_object().expect("members").clone();
    body.as_object_mut().expect("an object").extend(members);
    body
}

pub(crate) fn call(name: &str, parameters: &[(&str, &str)]) -> String {
    let parameters: Vec<String> = parameters
        .iter()
        .map(|(name, value)| format!("<parameter={name}>\n{value}\n</parameter>\n"))
        .collect();
    let parameters = parameters.concat();
    format!("<tool_call>\n<function={name}>\n{parameters}</function>\n</tool_call>\n")
}

/// Adds up what deltas carry, as clients do: texts grow, members of the same index merge.
fn merge(whole: &mut Map<String, Value>, delta: &Map<String, Value>) {
    for (key, value) in delta {
        match (whole.get_mut(key), value) {
            (Some(Value::String(text)), Value::String(more))
                if !matches!(&**key, "id" | "type" | "name" | "role") =>
            {
                text.push_str(more);
            }
            (Some(Value::Object(inner)), Value::Object(more)) => merge(inner, more),
            (Some(Value::Array(list)), Value::Array(more)) if key == "tool_calls" => {
                for item in more {
                    let index = item["index"].as_u64().expect("calls have indices") as usize;
                    let mut item = item.as_object().expect("an object").clone();
                    item.remove("index");
                    match list.get_mut(index) {
                        Some(Value::Object(known)) => merge(known, &item),
                        _ => list.push(item.into()),
                    }
                }
            }
            (Some(Value::Array(list)), Value::Array(more)) => list.extend_from_slice(more),
            (None, Value::Array(_)) if key == "tool_calls" => {
                whole.insert(key.clone(), json!([]));
                merge(whole, &Map::from_iter([(key.clone(), value.clone())]));
            }
            (_, value) => {
                whole.insert(key.clone(), value.clone());
            }
        }
    }
}

/// The choices of an answer in one form, without ids of calls, which are drawn anew each time.
fn choices(answer: &Value) -> Vec<Value> {
    let mut choices = answer["choices"].as_array().expect("choices").clone();
    for choice in &mut choices {
        let message = choice["message"].as_object_mut().expect("a message");
        for key in ["refusal", "annotations"] {
            message.remove(key);
        }
        if message.get("content") == Some(&Value::Null) {
            // A stream says "" in its first chunk.
            message.insert("content".into(), "".into());
        }
        if let Some(calls) = message.get_mut("tool_calls") {
            for call in calls.as_array_mut().expect("a list") {
                let id = call["id"].take();
                assert!(id.as_str().expect("an id").starts_with("call_"), "{id}");
            }
        }
    }
    choices
}

/// Asks both ways, compares, and returns the whole answer.
pub(crate) async fn both(server: &Server, body: &Value) -> Value {
    let answer = server.ask(PATH, body).await;
    let mut streamed = body.clone();
    streamed["stream_options"] = json!({"include_usage": true});
    let chunks = server.stream(PATH, &streamed).await;
    let (usage, chunks) = chunks.split_last().expect("chunks");
    let n = answer["choices"].as_array().expect("choices").len();
    let mut joined = vec![Map::new(); n];
    for chunk in chunks {
        let choice = &chunk["choices"][0];
        let whole = &mut joined[choice["index"].as_u64().expect("an index") as usize];
        let mut part = choice.as_object().expect("an object").clone();
        let delta = part.remove("delta").expect("chunks have deltas");
        part.insert("message".into(), delta);
        if part["logprobs"].is_null() {
            part.remove("logprobs");
        }
        merge(whole, &part);
    }
    for whole in &mut joined {
        whole.entry("logprobs").or_insert(Value::Null);
    }
    let joined: Vec<Value> = joined.into_iter().map(Value::Object).collect();
    let joined = json!({"choices": joined});
    assert_eq!(choices(&joined), choices(&answer), "{body}");
    for key in ["completion_tokens", "completion_tokens_details"] {
        assert_eq!(usage["usage"][key], answer["usage"][key], "{key}");
    }
    answer
}

#[tokio::test]
async fn calls_are_part_of_the_message() {
    let server = Server::start().await;
    let said = call("get_weather", &[("city", "Zürich \"H\""), ("days", "2")]) + &call("now", &[]);
    server.say(&said);
    let answer = both(&server, &request(&json!({"tools": tools()}))).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(choice["message"]["content"], Value::Null);
    let calls = &choice["message"]["tool_calls"];
    assert_eq!(
        *calls,
        json!([
            {"id": calls[0]["id"], "type": "function", "function": {
                "name": "get_weather", "arguments": r#"{"city":"Zürich \"H\"","days":2}"#,
            }},
            {"id": calls[1]["id"], "type": "function",
             "function": {"name": "now", "arguments": "{}"}},
        ])
    );
    assert_ne!(calls[0]["id"], calls[1]["id"]);
    let spoken = server.ids(&said).len() + 1;
    assert_eq!(answer["usage"]["completion_tokens"], spoken);
}

#[tokio::test]
async fn a_streamed_call_begins_with_its_name() {
    let server = Server::start().await;
    server.say(&call("get_weather", &[("city", "Paris")]));
    let chunks = server
        .stream(PATH, &request(&json!({"tools": tools()})))
        .await;
    let deltas: Vec<&Value> = chunks.iter().map(|c| &c["choices"][0]["delta"]).collect();
    assert_eq!(*deltas[0], json!({"role": "assistant", "content": ""}));
    let id = &deltas[1]["tool_calls"][0]["id"];
    assert_eq!(
        *deltas[1],
        json!({"tool_calls": [{"index": 0, "id": id, "type": "function",
                               "function": {"name": "get_weather", "arguments": ""}}]})
    );
    let (last, more) = deltas[2..].split_last().expect("more chunks");
    assert!(more.len() > 2, "the string comes in pieces");
    let mut arguments = String::new();
    for delta in more {
        let text = &delta["tool_calls"][0]["function"]["arguments"];
        let expect = json!({"tool_calls": [{"index": 0, "function": {"arguments": text}}]});
        assert_eq!(**delta, expect);
        arguments.push_str(text.as_str().expect("text"));
    }
    assert_eq!(arguments, r#"{"city":"Paris"}"#);
    assert_eq!(**last, json!({}));
    let finish = &chunks.last().expect("chunks")["choices"][0]["finish_reason"];
    assert_eq!(finish, "tool_calls");
}

#[tokio::test]
async fn text_thoughts_and_calls_go_where_they_belong() {
    let server = Server::start().await;
    server.say(&format!(
        "I could say {}</think>\nLet me look.\n{}",
        call("now", &[]).replace("tool_call", "call"),
        call("now", &[])
    ));
    let extra =
        json!({"tools": tools(), "reasoning_effort": "high", "logprobs": true, "top_logprobs": 1});
    let answer = both(&server, &request(&extra)).await;
    let choice = &answer["choices"][0];
    let message = &choice["message"];
    assert_eq!(message["content"], "Let me look.\n");
    let thought = message["reasoning_content"].as_str().expect("a thought");
    assert!(thought.starts_with("I could say <call>"), "{thought}");
    assert_eq!(message["tool_calls"].as_array().expect("calls").len(), 1);
    let entries = choice["logprobs"]["content"].as_array().expect("entries");
    let tokens: String = entries
        .iter()
        .map(|entry| entry["token"].as_str().expect("a token"))
        .collect();
    assert_eq!(tokens, "Let me look.\n");
}

#[tokio::test]
async fn custom_tools_take_text() {
    let server = Server::start().await;
    server.say(&call("patch", &[("input", "*** \"Begin\"\n+ é")]));
    let answer = both(&server, &request(&json!({"tools": tools()}))).await;
    let calls = &answer["choices"][0]["message"]["tool_calls"];
    let custom = json!({"name": "patch", "input": "*** \"Begin\"\n+ é"});
    let expect = json!([{"id": calls[0]["id"], "type": "custom", "custom": custom}]);
    assert_eq!(*calls, expect);
    assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls");
}

#[tokio::test]
async fn functions_get_one_function_call() {
    let server = Server::start().await;
    let first = call("get_weather", &[("city", "Oslo")]);
    server.say(&(first.clone() + &call("now", &[])));
    let body = request(&json!({"functions": [weather(), {"name": "now"}]}));
    let answer = both(&server, &body).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "function_call");
    let message = &choice["message"];
    let expect = json!({"name": "get_weather", "arguments": r#"{"city":"Oslo"}"#});
    assert_eq!(message["function_call"], expect);
    assert_eq!(message["content"], Value::Null);
    assert!(message.get("tool_calls").is_none());
    // It ends with the first call, before the newline behind it.
    let spoken = server.ids(first.trim_end()).len();
    assert_eq!(answer["usage"]["completion_tokens"], spoken);
}

#[tokio::test]
async fn one_call_is_the_last_where_one_is_allowed() {
    let server = Server::start().await;
    server.say(&(call("now", &[]) + &call("now", &[])));
    for (parallel, expect) in [(true, 2), (false, 1)] {
        let extra = json!({"tools": tools(), "parallel_tool_calls": parallel});
        let answer = both(&server, &request(&extra)).await;
        let calls = &answer["choices"][0]["message"]["tool_calls"];
        assert_eq!(calls.as_array().expect("calls").len(), expect);
        assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls");
    }
}

#[tokio::test]
async fn a_cut_call_is_closed() {
    let server = Server::start().await;
    let said = call("get_weather", &[("city", "Reykjavik"), ("days", "12")]);
    server.say(&said);
    let whole = server.ids(&said).len();
    for max_tokens in 1..=whole {
        let body = request(&json!({"tools": tools(), "max_tokens": max_tokens}));
        let answer = both(&server, &body).await;
        let choice = &answer["choices"][0];
        assert_eq!(choice["finish_reason"], "length");
        let Some(call) = choice["message"]["tool_calls"].get(0) else {
            assert_eq!(choice["message"]["content"], "");
            continue;
        };
        let arguments = call["function"]["arguments"].as_str().expect("text");
        let arguments: Value = serde_json::from_str(arguments).expect("closed");
        if let Some(city) = arguments.get("city") {
            assert!("Reykjavik".starts_with(city.as_str().expect("a string")));
        }
        assert!(arguments.get("days").is_none_or(|days| *days == 12));
    }
}

#[tokio::test]
async fn stop_strings_end_text_and_no_call() {
    let server = Server::start().await;
    server.say(&("One. Two.\n".to_owned() + &call("get_weather", &[("city", "Two")])));
    let stop = |stop: &str| request(&json!({"tools": tools(), "stop": stop}));
    let answer = both(&server, &stop("Two")).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "One. ");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    server.say(&call("get_weather", &[("city", "Two")]));
    for text in ["Two", "\n", "<", "}"] {
        let answer = both(&server, &stop(text)).await;
        let call = &answer["choices"][0]["message"]["tool_calls"][0];
        assert_eq!(
            call["function"]["arguments"], r#"{"city":"Two"}"#,
            "{text:?}"
        );
    }
}

#[tokio::test]
async fn without_tools_nothing_is_a_call() {
    let server = Server::start().await;
    server.say(&call("now", &[]));
    for extra in [json!({}), json!({"tools": tools(), "tool_choice": "none"})] {
        let answer = both(&server, &request(&extra)).await;
        let choice = &answer["choices"][0];
        assert_eq!(choice["finish_reason"], "stop");
        assert!(choice["message"].get("tool_calls").is_none());
        let content = choice["message"]["content"].as_str().expect("text");
        assert!(content.contains("<function=now>"), "{content}");
        assert!(!content.contains("tool_call"), "{content}");
    }
}

#[tokio::test]
async fn choices_call_each_for_themselves() {
    let server = Server::start().await;
    let lines = [
        "Nothing.".into(),
        call("now", &[]),
        call("patch", &[("input", "x")]),
    ];
    let lines = lines.iter().map(|line: &String| server.ids(line)).collect();
    server.script.say_by_seed(lines);
    let answer = both(
        &server,
        &request(&json!({"tools": tools(), "n": 3, "seed": 0})),
    )
    .await;
    let reasons: Vec<&Value> = answer["choices"]
        .as_array()
        .expect("choices")
        .iter()
        .map(|choice| &choice["finish_reason"])
        .collect();
    assert_eq!(reasons, ["stop", "tool_calls", "tool_calls"]);
}

#[tokio::test]
async fn nano_v2_lists_its_calls() {
    let server = Server::serving(Folder::NanoV2, Defaults::default()).await;
    server.say(
        "Sure.\n<TOOLCALL>[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Oslo\", \
         \"days\": 2}}, {\"name\": \"patch\", \"arguments\": {\"input\": \"a\\nb\"}}]</TOOLCALL>\nSo.",
    );
    let body = request(&json!({"tools": tools(), "logprobs": true}));
    let answer = both(&server, &body).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(choice["message"]["content"], "Sure.\n\nSo.");
    let calls = &choice["message"]["tool_calls"];
    let arguments = r#"{"city":"Oslo","days":2}"#;
    assert_eq!(
        calls[0]["function"],
        json!({"name": "get_weather", "arguments": arguments})
    );
    assert_eq!(
        calls[1]["custom"],
        json!({"name": "patch", "input": "a\nb"})
    );
}
