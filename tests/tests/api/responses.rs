//! `/v1/responses`, whole and streamed, and what is remembered of it.

use nemoserve::api::params::Defaults;
use nemoserve::state::ServerConfig;
use serde_json::{Value, json};

use crate::server::{Folder, Reply, Server};

const PATH: &str = "/v1/responses";

/// Of the published response object: the keys that it requires, and those that servers of this API
/// agree on.
const KEYS: &[&str] = &[
    "id",
    "object",
    "created_at",
    "completed_at",
    "status",
    "error",
    "incomplete_details",
    "instructions",
    "metadata",
    "model",
    "output",
    "parallel_tool_calls",
    "temperature",
    "tool_choice",
    "tools",
    "top_p",
    "background",
    "max_output_tokens",
    "max_tool_calls",
    "previous_response_id",
    "prompt_cache_key",
    "reasoning",
    "safety_identifier",
    "service_tier",
    "store",
    "text",
    "top_logprobs",
    "truncation",
    "usage",
    "user",
    "presence_penalty",
    "frequency_penalty",
];

fn request(extra: &Value) -> Value {
    let mut body = json!({"model": "test", "input": "Hi"});
    let members = extra.as_object().expect("members").clone();
    body.as_object_mut().expect("an object").extend(members);
    body
}

fn tools() -> Value {
    json!([
        {"type": "function", "name": "get_weather", "parameters": {
            "type": "object", "properties": {"city": {"type": "string"}}}},
        {"type": "web_search"},
        {"type": "custom", "name": "patch"},
    ])
}

fn call(name: &str, parameter: &str, value: &str) -> String {
    format!(
        "<tool_call>\n<function={name}>\n<parameter={parameter}>\n{value}\n</parameter>\n\
         </function>\n</tool_call>\n"
    )
}

/// Data of all events, each of which is named as it says.
pub(crate) fn named_events(reply: &Reply) -> Vec<Value> {
    assert!(reply.head.contains("text/event-stream"), "{}", reply.head);
    let events = reply
        .body
        .strip_suffix("\n\n")
        .expect("the last event ends");
    events
        .split("\n\n")
        .filter(|event| !event.starts_with(':'))
        .map(|event| {
            let (name, data) = event.split_once('\n').expect("two lines");
            let name = name.strip_prefix("event: ").expect("a name");
            let data = data.strip_prefix("data: ").expect("data");
            let data: Value = serde_json::from_str(data).expect("JSON");
            assert_eq!(data["type"], name);
            data
        })
        .collect()
}

/// Streams, builds the output from the deltas, compares it with the last event's and returns that.
async fn streamed(server: &Server, body: &Value) -> Value {
    let mut body = body.clone();
    body["stream"] = json!(true);
    let reply = server.post(PATH, body.to_string()).await;
    assert_eq!(reply.status, 200, "{body}: {}", reply.body);
    let events = named_events(&reply);
    for (i, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], i);
    }
    let kinds: Vec<&str> = events.iter().filter_map(|e| e["type"].as_str()).collect();
    assert_eq!(kinds[..2], ["response.created", "response.in_progress"]);
    assert_eq!(events[0]["response"]["status"], "in_progress");
    assert_eq!(events[0]["response"]["output"], json!([]));
    let (last, events) = events[2..].split_last().expect("a last event");
    let response = last["response"].clone();
    assert_eq!(
        last["type"],
        format!("response.{}", response["status"].as_str().unwrap())
    );
    assert_eq!(events_to_items(events), response["output"]);
    response
}

/// What a client knows from the events alone; asserts their order on the way.
fn events_to_items(events: &[Value]) -> Value {
    let mut items: Vec<Value> = Vec::new();
    let mut text = String::new();
    let mut expected = "response.output_item.added";
    for event in events {
        let kind = event["type"].as_str().expect("a type");
        assert_eq!(event["output_index"], items.len(), "{event}");
        let whole = |name: &str, text: &str| assert_eq!(event[name], text, "{event}");
        match kind {
            "response.output_item.added" => {
                assert_eq!(expected, kind);
                assert_eq!(event["item"]["status"], "in_progress");
                text.clear();
                expected = match event["item"]["type"].as_str().expect("a type") {
                    "message" => "response.content_part.added",
                    _ => "delta",
                };
            }
            "response.content_part.added" => {
                assert_eq!(expected, kind);
                assert_eq!(event["part"]["text"], "");
                expected = "delta";
            }
            "response.reasoning_text.done" => {
                whole("text", &text);
                expected = "response.output_item.done";
            }
            "response.output_text.done" => {
                whole("text", &text);
                expected = "response.content_part.done";
            }
            "response.function_call_arguments.done" => {
                whole("arguments", &text);
                expected = "response.output_item.done";
            }
            "response.custom_tool_call_input.done" => {
                whole("input", &text);
                expected = "response.output_item.done";
            }
            "response.content_part.done" => {
                assert_eq!(expected, kind);
                assert_eq!(event["part"]["text"], text);
                expected = "response.output_item.done";
            }
            "response.output_item.done" => {
                assert_eq!(expected, kind);
                items.push(event["item"].clone());
                expected = "response.output_item.added";
            }
            _ => {
                assert_eq!(kind.rsplit('.').next(), Some("delta"));
                assert_eq!(expected, "delta");
                text.push_str(event["delta"].as_str().expect("text"));
            }
        }
    }
    assert_eq!(expected, "response.output_item.added", "all items are done");
    items.into()
}

/// Without what differs from one answer to the next.
fn comparable(response: &Value) -> Value {
    let mut response = response.clone();
    for key in ["id", "created_at", "completed_at"] {
        response[key].take();
    }
    for item in response["output"].as_array_mut().expect("items") {
        item["id"].take();
        if item.get("call_id").is_some() {
            let id = item["call_id"].take();
            assert!(id.as_str().expect("an id").starts_with("call_"), "{id}");
        }
    }
    response["usage"]["input_tokens_details"]["cached_tokens"].take();
    response
}

/// Asks both ways, compares, and returns the whole answer.
async fn both(server: &Server, body: &Value) -> Value {
    let answer = server.ask(PATH, body).await;
    let stream = streamed(server, body).await;
    assert_eq!(comparable(&stream), comparable(&answer), "{body}");
    answer
}

#[tokio::test]
async fn an_answer_has_every_key() {
    let server = Server::start().await;
    server.say("because\n</think>\nHello there");
    let answer = both(&server, &request(&json!({}))).await;
    for key in KEYS {
        assert!(answer.get(key).is_some(), "{key}");
    }
    assert!(answer["id"].as_str().expect("an id").starts_with("resp_"));
    assert_eq!(answer["object"], "response");
    assert_eq!(answer["status"], "completed");
    assert_eq!(answer["temperature"], 1.0);
    let [thought, message] = answer["output"].as_array().expect("items").as_slice() else {
        panic!("{answer}");
    };
    assert_eq!(thought["type"], "reasoning");
    assert_eq!(thought["summary"], json!([]));
    let part = json!([{"type": "reasoning_text", "text": "because"}]);
    assert_eq!(thought["content"], part);
    assert_eq!(thought["encrypted_content"], Value::Null);
    assert_eq!(message["role"], "assistant");
    let part =
        json!([{"type": "output_text", "text": "Hello there", "annotations": [], "logprobs": []}]);
    assert_eq!(message["content"], part);
    let usage = &answer["usage"];
    let sum = usage["input_tokens"].as_u64().unwrap() + usage["output_tokens"].as_u64().unwrap();
    assert_eq!(usage["total_tokens"], sum);
    assert!(usage["output_tokens_details"]["reasoning_tokens"].as_u64() > Some(0));
    assert_eq!(usage["input_tokens_details"]["cache_write_tokens"], 0);
}

#[tokio::test]
async fn limits_leave_it_incomplete() {
    let server = Server::start().await;
    server.say("because\n</think>\nHello there");
    let answer = both(&server, &request(&json!({"max_output_tokens": 2}))).await;
    assert_eq!(answer["status"], "incomplete");
    assert_eq!(
        answer["incomplete_details"],
        json!({"reason": "max_output_tokens"})
    );
    assert_eq!(answer["usage"]["output_tokens"], 2);
    assert_eq!(answer["output"].as_array().expect("items").len(), 1);
    assert_eq!(answer["output"][0]["status"], "incomplete");
    assert_eq!(answer["completed_at"], Value::Null);
}

#[tokio::test]
async fn chat_extensions_work_under_their_names() {
    let server = Server::start().await;
    server.say("one two three four");
    let off = json!({"effort": "none"});
    let text = |answer: &Value| answer["output"][0]["content"][0]["text"].clone();
    let extra = json!({"reasoning": off, "ignore_eos": true, "max_output_tokens": 40});
    let answer = both(&server, &request(&extra)).await;
    assert_eq!(answer["usage"]["output_tokens"], 40);
    let answer = both(
        &server,
        &request(&json!({"reasoning": off, "stop": " three"})),
    )
    .await;
    assert_eq!(text(&answer), "one two");
    let forced = server.ids("x")[0].to_string();
    let extra =
        json!({"reasoning_effort": "none", "logit_bias": {forced: 100}, "max_output_tokens": 3});
    assert_eq!(text(&both(&server, &request(&extra)).await), "xxx");
    server
        .script
        .say_by_seed(vec![server.ids("even"), server.ids("odd")]);
    let answer = both(&server, &request(&json!({"reasoning": off, "seed": 3}))).await;
    assert_eq!(text(&answer), "odd");
    let answer = both(
        &server,
        &request(&json!({"include_reasoning": false, "seed": 3})),
    )
    .await;
    assert_eq!(
        answer["output"][0]["type"], "message",
        "thoughts are excluded"
    );
}

#[tokio::test]
async fn logprobs_are_included_on_request() {
    let server = Server::start().await;
    server.say("Hello é there");
    let extra = json!({
        "reasoning": {"effort": "none"},
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
    });
    let answer = both(&server, &request(&extra)).await;
    let part = &answer["output"][0]["content"][0];
    let entries = part["logprobs"].as_array().expect("entries");
    let bytes: Vec<u8> = entries
        .iter()
        .flat_map(|entry| entry["bytes"].as_array().expect("bytes"))
        .map(|byte| byte.as_u64().expect("a byte") as u8)
        .collect();
    assert_eq!(
        String::from_utf8(bytes).unwrap(),
        part["text"].as_str().unwrap()
    );
    assert!(
        entries
            .iter()
            .all(|entry| entry["top_logprobs"].as_array().unwrap().len() == 2)
    );
}

#[tokio::test]
async fn calls_are_items_of_their_own() {
    let server = Server::start().await;
    let calls = call("get_weather", "city", "Zürich \"H\"") + &call("patch", "input", "*** a\n+b");
    server.say(&format!("why\n</think>\nLet me see.\n{calls}"));
    let answer = both(
        &server,
        &request(&json!({"tools": tools(), "tool_choice": "auto"})),
    )
    .await;
    assert_eq!(answer["status"], "completed");
    let kinds: Vec<&Value> = answer["output"]
        .as_array()
        .unwrap()
        .iter()
        .map(|i| &i["type"])
        .collect();
    assert_eq!(
        kinds,
        ["reasoning", "message", "function_call", "custom_tool_call"]
    );
    let function = &answer["output"][2];
    let arguments = function["arguments"].as_str().expect("text");
    let arguments: Value = serde_json::from_str(arguments).expect("JSON");
    assert_eq!(arguments, json!({"city": "Zürich \"H\""}));
    assert_eq!(answer["output"][3]["input"], "*** a\n+b");
    // The model was told of two tools, and that is what the answer says.
    let names: Vec<&Value> = answer["tools"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| &t["name"])
        .collect();
    assert_eq!(names, ["get_weather", "patch"]);
    assert_eq!(answer["tools"][0]["strict"], Value::Null);
    let metrics = server.get("/metrics").await.body;
    let counted = "nemoserve_hosted_tools_skipped_total{type=\"web_search\"} 2";
    assert!(metrics.contains(counted), "{metrics}");
}

#[tokio::test]
async fn text_after_a_call_comes_last() {
    // Where tags are tokens, calls that begin are bound, and nothing follows them.
    let server = Server::serving(Folder::NanoV2, Defaults::default()).await;
    server.say(
        "A.\n<TOOLCALL>[{\"name\": \"get_weather\", \"arguments\": {}}]</TOOLCALL>\nAnd this.",
    );
    let answer = both(&server, &request(&json!({"tools": tools()}))).await;
    let kinds: Vec<&Value> = answer["output"]
        .as_array()
        .unwrap()
        .iter()
        .map(|i| &i["type"])
        .collect();
    assert_eq!(kinds, ["message", "function_call", "message"]);
    assert_eq!(answer["output"][2]["content"][0]["text"], "\nAnd this.");
}

#[tokio::test]
async fn the_prompt_is_the_one_of_chat() {
    let server = Server::start().await;
    let check = async |body: Value, chat: Value| {
        let mut chat = chat;
        chat["model"] = json!("test");
        let body = request(&body);
        let chat = server.ask("/v1/chat/completions", &chat).await;
        let answer = server.ask(PATH, &body).await;
        assert_eq!(
            answer["usage"]["input_tokens"], chat["usage"]["prompt_tokens"],
            "{body}"
        );
    };
    check(
        json!({"instructions": "Be brief."}),
        json!({"messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"}]}),
    )
    .await;
    let schema = json!({"type": "object", "properties": {"q": {"type": "string"}}});
    check(
        json!({
            "tools": [{"type": "function", "name": "f", "parameters": schema}],
            "input": [
                {"role": "user", "content": "Find it."},
                {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "I must look."}]},
                {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{\"q\": \"it\"}"},
                {"type": "function_call_output", "call_id": "c1", "output": "found"}],
        }),
        json!({
            "tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}],
            "messages": [
                {"role": "user", "content": "Find it."},
                {"role": "assistant", "reasoning_content": "I must look.", "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"q\": \"it\"}"}}]},
                {"role": "tool", "tool_call_id": "c1", "content": "found"}],
        }),
    )
    .await;
}

#[tokio::test]
async fn a_conversation_is_continued_by_id() {
    let server = Server::start().await;
    let said = format!(
        "I must look.\n</think>\n{}",
        call("get_weather", "city", "Bern")
    );
    server.say(&said);
    let first = request(&json!({"tools": tools(), "instructions": "Old rules.", "seed": 1}));
    let first = server.ask(PATH, &first).await;
    let call_id = &first["output"][1]["call_id"];
    server.say("So.\n</think>\nIt is mild.");
    let output = json!([{"type": "function_call_output", "call_id": call_id, "output": "12 °C"}]);
    let by_id = request(&json!({
        "tools": tools(), "input": output, "previous_response_id": first["id"],
    }));
    let by_id = both(&server, &by_id).await;
    // The same, all in one; instructions are not carried over, thoughts are.
    let mut items = vec![json!({"role": "user", "content": "Hi"})];
    items.extend(first["output"].as_array().expect("items").clone());
    items.extend(output.as_array().expect("items").clone());
    let in_full = server
        .ask(PATH, &request(&json!({"tools": tools(), "input": items})))
        .await;
    assert_eq!(
        by_id["usage"]["input_tokens"],
        in_full["usage"]["input_tokens"]
    );
    assert_eq!(by_id["previous_response_id"], first["id"]);

    let references: Vec<Value> = first["output"]
        .as_array()
        .expect("items")
        .iter()
        .map(|item| json!({"type": "item_reference", "id": item["id"]}))
        .collect();
    let mut items = vec![json!({"role": "user", "content": "Hi"})];
    items.extend(references);
    items.extend(output.as_array().expect("items").clone());
    let by_reference = request(&json!({"tools": tools(), "input": items}));
    let by_reference = server.ask(PATH, &by_reference).await;
    assert_eq!(
        by_reference["usage"]["input_tokens"],
        in_full["usage"]["input_tokens"]
    );

    // A third turn, on top of the second.
    let third = request(&json!({"input": "Thanks", "previous_response_id": by_id["id"]}));
    assert_eq!(both(&server, &third).await["status"], "completed");
}

#[tokio::test]
async fn sealed_thoughts_come_back() {
    let server = Server::start().await;
    let said = format!(
        "I must look.\n</think>\n{}",
        call("get_weather", "city", "Bern")
    );
    server.say(&said);
    let extra = json!({
        "tools": tools(), "store": false, "include": ["reasoning.encrypted_content"],
    });
    let first = both(&server, &request(&extra)).await;
    let open = first["output"][0].clone();
    let mut sealed = open.clone();
    sealed.as_object_mut().expect("an object").remove("content");
    assert!(sealed["encrypted_content"].is_string(), "{sealed}");
    let mut lost = sealed.clone();
    lost["encrypted_content"] = json!("from elsewhere");
    let mut counts = Vec::new();
    for thought in [open, sealed, lost] {
        let call_id = &first["output"][1]["call_id"];
        let items = json!([
            {"role": "user", "content": "Hi"}, thought, first["output"][1],
            {"type": "function_call_output", "call_id": call_id, "output": "12 °C"}]);
        let body = request(&json!({"tools": tools(), "input": items}));
        let answer = server.ask(PATH, &body).await;
        counts.push(answer["usage"]["input_tokens"].as_u64().expect("a count"));
    }
    assert_eq!(counts[0], counts[1], "both have the thought");
    assert!(counts[2] < counts[0], "another server's is unreadable");
}

#[tokio::test]
async fn answers_are_stored_and_forgotten() {
    let server = Server::start().await;
    server.say("</think>\nHello");
    for body in [request(&json!({})), request(&json!({"stream": true}))] {
        let reply = server.post(PATH, body.to_string()).await;
        let answer = match body["stream"].as_bool() {
            Some(true) => named_events(&reply).pop().expect("events")["response"].take(),
            _ => serde_json::from_str(&reply.body).expect("JSON"),
        };
        let path = format!("{PATH}/{}", answer["id"].as_str().expect("an id"));
        let stored = server.get(&path).await;
        let stored: Value = serde_json::from_str(&stored.body).expect("JSON");
        assert_eq!(stored, answer);
        let delete = format!("DELETE {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
        let gone = server.send(delete.as_bytes()).await;
        let expect = json!({"id": answer["id"], "object": "response", "deleted": true});
        assert_eq!(
            serde_json::from_str::<Value>(&gone.body).expect("JSON"),
            expect
        );
        assert_eq!(server.get(&path).await.status, 404);
        assert_eq!(server.send(delete.as_bytes()).await.status, 404);
        assert_eq!(
            server.post(&path, "{}").await.header("allow"),
            "GET, HEAD, DELETE, OPTIONS"
        );
    }
    let answer = server.ask(PATH, &request(&json!({"store": false}))).await;
    let path = format!("{PATH}/{}", answer["id"].as_str().expect("an id"));
    assert_eq!(server.get(&path).await.status, 404);
}

#[tokio::test]
async fn nobody_sees_the_answers_of_another_key() {
    let server = Server::operated(ServerConfig {
        api_keys: vec!["one".into(), "two".into()],
        ..ServerConfig::default()
    })
    .await;
    let ask = async |key: &str, body: Value| {
        let header = format!("x-api-key: {key}\r\n");
        server.post_with(PATH, &header, body.to_string()).await
    };
    let answer = ask("one", request(&json!({}))).await;
    let answer: Value = serde_json::from_str(&answer.body).expect("JSON");
    let next = request(&json!({"previous_response_id": answer["id"]}));
    assert_eq!(ask("two", next.clone()).await.status, 400);
    assert_eq!(ask("one", next).await.status, 200);
    let id = answer["id"].as_str().expect("an id");
    for (key, status) in [("two", 404), ("one", 200)] {
        let get = format!(
            "GET {PATH}/{id} HTTP/1.1\r\nhost: test\r\nconnection: close\r\nx-api-key: {key}\r\n\r\n"
        );
        assert_eq!(server.send(get.as_bytes()).await.status, status);
    }
}

#[tokio::test]
async fn a_failure_is_the_last_event() {
    let server = Server::start().await;
    server.say("</think>\none two three");
    server.script.fault_at(Some(4));
    let reply = server
        .post(PATH, request(&json!({"stream": true})).to_string())
        .await;
    let last = named_events(&reply).pop().expect("events");
    assert_eq!(last["type"], "response.failed");
    assert_eq!(last["response"]["status"], "failed");
    assert_eq!(last["response"]["error"]["code"], "server_error");
    let id = last["response"]["id"].as_str().expect("an id");
    assert_eq!(server.get(&format!("{PATH}/{id}")).await.status, 404);
    let reply = server.post(PATH, request(&json!({})).to_string()).await;
    assert_eq!(reply.status, 500);
}

#[tokio::test]
async fn mistakes_name_the_parameter_that_was_sent() {
    let server = Server::start().await;
    let user = json!({"role": "user", "content": "Hi"});
    let function = |parameters: Value| json!([{"type": "web_search"}, {"type": "function", "name": "f", "parameters": parameters}]);
    for (extra, param) in [
        (json!({"model": null}), "model"),
        (json!({"input": null}), "input"),
        (json!({"input": []}), "input"),
        (json!({"input": 7}), "input"),
        (
            json!({"input": [user, {"role": "user", "content": [{"type": "input_text"}]}]}),
            "input[1].content[0].text",
        ),
        (
            json!({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
            "input[0].content[0].type",
        ),
        (
            json!({"input": [user, {"type": "function_call", "call_id": "1", "name": "f", "arguments": "["}]}),
            "input[1].arguments",
        ),
        (
            json!({"input": [user, {"type": "function_call", "call_id": "1", "arguments": "{}"}]}),
            "input[1].name",
        ),
        (
            json!({"input": [user, {"type": "function_call_output", "call_id": "1", "output": ""}]}),
            "input[1].call_id",
        ),
        (json!({"instructions": 1}), "instructions"),
        (json!({"max_output_tokens": 0}), "max_output_tokens"),
        (json!({"max_output_tokens": 100_000}), "input"),
        (json!({"temperature": 3}), "temperature"),
        (json!({"top_logprobs": 21}), "top_logprobs"),
        (
            json!({"previous_response_id": "resp_0"}),
            "previous_response_id",
        ),
        (json!({"background": true}), "background"),
        (json!({"conversation": "conv_1"}), "conversation"),
        (json!({"prompt": {"id": "p"}}), "prompt"),
        (json!({"include": ["everything"]}), "include[0]"),
        (json!({"reasoning": {"effort": "huge"}}), "reasoning.effort"),
        (
            json!({"reasoning": {"summary": "long"}}),
            "reasoning.summary",
        ),
        (json!({"text": {"verbosity": "loud"}}), "text.verbosity"),
        (
            json!({"text": {"format": {"type": "yaml"}}}),
            "text.format.type",
        ),
        (
            json!({"text": {"format": {"type": "json_schema", "schema": {}}}}),
            "text.format.name",
        ),
        (json!({"tools": [{"type": "function"}]}), "tools[0].name"),
        (json!({"tools": [{"type": ""}]}), "tools[0].type"),
        (json!({"tools": function(json!(1))}), "tools[1].parameters"),
        (
            json!({"tools": [{"type": "custom", "name": "c", "format": {"type": "grammar", "syntax": "peg", "definition": ""}}]}),
            "tools[0].format.syntax",
        ),
        (
            json!({"tools": function(json!({})), "tool_choice": {"type": "web_search"}}),
            "tool_choice",
        ),
        (
            json!({"tools": function(json!({})), "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "web_search"}]}}),
            "tool_choice",
        ),
        (
            json!({"tools": [{"type": "web_search"}], "tool_choice": "required"}),
            "tool_choice",
        ),
        (json!({"stream_options": {}}), "stream_options"),
        (json!({"ignore_eos": 1}), "ignore_eos"),
        (json!({"reasoning_budget": -2}), "reasoning_budget"),
    ] {
        for stream in [false, true] {
            let mut body = request(&extra);
            if stream && extra.get("stream_options").is_none() {
                body["stream"] = json!(true);
            }
            let reply = server.post(PATH, body.to_string()).await;
            assert_eq!(reply.status, 400, "{body}: {}", reply.body);
            let error: Value = serde_json::from_str(&reply.body).expect("JSON");
            assert_eq!(error["error"]["param"], param, "{body}: {}", reply.body);
        }
    }
}

#[tokio::test]
async fn what_has_no_effect_is_accepted() {
    let server = Server::start().await;
    server.say("</think>\nHello");
    let body = request(&json!({
        "truncation": "auto",
        "include": ["reasoning.encrypted_content", "web_search_call.action.sources"],
        "reasoning": {"effort": "medium", "summary": "auto"},
        "text": {"format": {"type": "text"}, "verbosity": "low"},
        "tools": [{"type": "web_search"}, {"type": "namespace", "name": "n", "tools": []}],
        "tool_choice": "auto",
        "parallel_tool_calls": false,
        "prompt_cache_key": "k",
        "prompt_cache_retention": "24h",
        "safety_identifier": "s",
        "service_tier": "flex",
        "metadata": {"a": "b"},
        "user": "u",
        "max_tool_calls": 3,
        "client_metadata": {"x": 1},
    }));
    let answer = both(&server, &body).await;
    assert_eq!(answer["metadata"], json!({"a": "b"}));
    assert_eq!(
        answer["reasoning"],
        json!({"effort": "medium", "summary": null})
    );
    assert_eq!(answer["tools"], json!([]));
    assert_eq!(answer["parallel_tool_calls"], false);
    assert_eq!(answer["truncation"], "disabled");
}

#[tokio::test]
async fn silence_is_broken_by_comments() {
    let server = Server::start().await;
    server.say("</think>\nHello");
    server.script.hold(true);
    let body = request(&json!({"stream": true}));
    let (_socket, bytes) = server.post_until(PATH, &body, ": keep-alive\n\n").await;
    assert!(String::from_utf8_lossy(&bytes).contains("event: response.created\n"));
    server.script.hold(false);
}
