//! Answers that must have a form, from a model that would rather say something else.

use serde_json::{Value, json};

use crate::server::Server;
use crate::tool_calls::{both, call, request};

const PATH: &str = "/v1/chat/completions";

/// Two tools whose calls leave a model little to say.
fn tools() -> Value {
    json!([
        {"type": "function", "function": {"name": "now", "description": "What time it is."}},
        {"type": "function", "function": {"name": "set_mode", "parameters": {
            "type": "object", "additionalProperties": false, "required": ["mode", "on"],
            "properties": {"mode": {"enum": ["x"]}, "on": {"const": true}}}}},
    ])
}

fn with(mut body: Value, extra: &Value) -> Value {
    let members = extra.as_object().expect("members").clone();
    body.as_object_mut().expect("an object").extend(members);
    body
}

fn message(answer: &Value) -> &Value {
    &answer["choices"][0]["message"]
}

#[tokio::test]
async fn named_tools_are_called_whatever_the_model_meant() {
    let server = Server::start().await;
    server.say("I would rather not.");
    let named = |name: &str| {
        let choice = json!({"type": "function", "function": {"name": name}});
        request(&json!({"tools": tools(), "tool_choice": choice, "temperature": 1}))
    };
    for n in [1, 2] {
        let answer = both(&server, &with(named("set_mode"), &json!({"n": n}))).await;
        for choice in answer["choices"].as_array().expect("choices") {
            assert_eq!(choice["finish_reason"], "tool_calls");
            assert_eq!(choice["message"]["content"], Value::Null);
            let calls = choice["message"]["tool_calls"].as_array().expect("calls");
            assert_eq!(calls.len(), 1);
            let function = &calls[0]["function"];
            assert_eq!(function["name"], "set_mode");
            assert_eq!(function["arguments"], r#"{"mode":"x","on":true}"#);
        }
    }
    let answer = both(&server, &named("now")).await;
    assert_eq!(
        message(&answer)["tool_calls"][0]["function"]["arguments"],
        "{}"
    );
}

#[tokio::test]
async fn required_calls_come_after_a_thought() {
    let server = Server::start().await;
    server.say(&format!("Why me?</think>\nNo.{}", call("now", &[])));
    let body = json!({"model": "test", "messages": [{"role": "user", "content": "Hi"}],
                      "tools": tools(), "tool_choice": "required", "parallel_tool_calls": false});
    let answer = both(&server, &body).await;
    assert_eq!(message(&answer)["reasoning_content"], "Why me?");
    assert_eq!(message(&answer)["content"], Value::Null);
    assert_eq!(
        message(&answer)["tool_calls"]
            .as_array()
            .expect("calls")
            .len(),
        1
    );
    assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls");
}

#[tokio::test]
async fn a_deprecated_function_call() {
    let server = Server::start().await;
    server.say("Never.");
    let body = json!({"functions": [{"name": "a"}, {"name": "b"}], "function_call": {"name": "b"}});
    let answer = both(&server, &request(&body)).await;
    assert_eq!(
        message(&answer)["function_call"],
        json!({"name": "b", "arguments": "{}"})
    );
    assert_eq!(answer["choices"][0]["finish_reason"], "function_call");
}

#[tokio::test]
async fn calls_of_its_own_accord_obey_the_schema_too() {
    let server = Server::start().await;
    server.say(&format!(
        "I shall.\n{}",
        call("set_mode", &[("mode", "y"), ("on", "maybe")])
    ));
    let answer = both(&server, &request(&json!({"tools": tools()}))).await;
    assert_eq!(message(&answer)["content"], "I shall.\n");
    let function = &message(&answer)["tool_calls"][0]["function"];
    assert_eq!(function["arguments"], r#"{"mode":"x","on":true}"#);
    server.say("No need.");
    let answer = both(&server, &request(&json!({"tools": tools()}))).await;
    assert_eq!(message(&answer)["content"], "No need.");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn none_means_no_call_and_no_tools_in_the_prompt() {
    let server = Server::start().await;
    server.say(&call("now", &[]));
    let plain = server.ask(PATH, &request(&json!({"max_tokens": 40}))).await;
    let body = request(&json!({"tools": tools(), "tool_choice": "none", "max_tokens": 40}));
    let answer = both(&server, &body).await;
    assert_eq!(message(&answer).get("tool_calls"), None);
    assert_eq!(
        answer["usage"]["prompt_tokens"],
        plain["usage"]["prompt_tokens"]
    );
}

#[tokio::test]
async fn a_subset_is_shown_with_the_rest() {
    let server = Server::start().await;
    server.say(&call("now", &[]));
    let all = request(&json!({"tools": tools()}));
    let only = json!({"type": "allowed_tools", "allowed_tools": {"mode": "required",
        "tools": [{"type": "function", "function": {"name": "set_mode"}}]}});
    let subset = both(&server, &with(all.clone(), &json!({"tool_choice": only}))).await;
    let name = &message(&subset)["tool_calls"][0]["function"]["name"];
    assert_eq!(name, "set_mode");
    let all = server.ask(PATH, &all).await;
    assert_eq!(
        subset["usage"]["prompt_tokens"],
        all["usage"]["prompt_tokens"]
    );
}

#[tokio::test]
async fn formats_after_a_thought() {
    let server = Server::start().await;
    server.say("Hm.\n</think>\nSure! Here it is:");
    let schema = json!({"type": "object", "additionalProperties": false, "required": ["a", "b"],
                        "properties": {"a": {"enum": ["x"]}, "b": {"const": 5}}});
    let format = json!({"type": "json_schema", "json_schema": {"name": "f", "schema": schema}});
    let body = json!({"model": "test", "messages": [{"role": "user", "content": "Hi"}],
                      "response_format": format, "n": 2, "temperature": 1});
    let answer = both(&server, &body).await;
    for choice in answer["choices"].as_array().expect("choices") {
        assert_eq!(choice["finish_reason"], "stop");
        assert_eq!(choice["message"]["reasoning_content"], "Hm.");
        let content = choice["message"]["content"].as_str().expect("text");
        let json: Value = serde_json::from_str(content).expect(content);
        assert_eq!(json, json!({"a": "x", "b": 5}));
    }
    // What the model says well is left alone.
    server.say("</think>{\"any\": [1, 2]}");
    let body = with(
        body,
        &json!({"response_format": {"type": "json_object"}, "n": 1}),
    );
    let answer = both(&server, &body).await;
    assert_eq!(message(&answer)["content"], "{\"any\": [1, 2]}");
}

#[tokio::test]
async fn a_format_or_a_call() {
    let server = Server::start().await;
    let body = json!({"tools": tools(), "response_format": {"type": "json_object"}});
    server.say(&call("now", &[]));
    let answer = both(&server, &request(&body)).await;
    assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls");
    server.say("{}");
    let answer = both(&server, &request(&body)).await;
    assert_eq!(message(&answer)["content"], "{}");
}

#[tokio::test]
async fn budgets_close_thoughts() {
    let server = Server::start().await;
    let think = |extra: Value| {
        let body = json!({"model": "test", "messages": [{"role": "user", "content": "Hi"}],
                          "max_tokens": 60});
        with(body, &extra)
    };
    let thought = "one two three four five six seven eight nine ten ";
    server.say(thought);
    for (extra, expect) in [
        (json!({"reasoning_budget": 5}), 5),
        (json!({"reasoning_budget": 1}), 1),
        (json!({"reasoning_budget": 0}), 0),
        (
            json!({"reasoning": {"max_tokens": 3}, "reasoning_budget": 9}),
            3,
        ),
        (
            json!({"chat_template_kwargs": {"reasoning_budget": 2}, "reasoning": {"max_tokens": 3}}),
            2,
        ),
    ] {
        let answer = both(&server, &think(extra)).await;
        let usage = &answer["usage"]["completion_tokens_details"];
        assert_eq!(usage["reasoning_tokens"], expect, "{answer}");
        assert_eq!(
            message(&answer).get("reasoning_content").is_some(),
            expect > 0
        );
        assert_ne!(message(&answer)["content"], "", "the rest is the answer");
    }
    // Enough is no budget at all.
    server.say("Hm.</think>So.");
    for budget in [-1, 30] {
        let answer = both(&server, &think(json!({"reasoning_budget": budget}))).await;
        assert_eq!(message(&answer)["reasoning_content"], "Hm.");
        assert_eq!(message(&answer)["content"], "So.");
    }
    // A budget and a call that must come.
    server.say(thought);
    let body = json!({"reasoning_budget": 2, "tools": tools(), "max_tokens": 100,
                      "tool_choice": {"type": "function", "function": {"name": "now"}}});
    let answer = both(&server, &think(body)).await;
    assert_eq!(
        answer["usage"]["completion_tokens_details"]["reasoning_tokens"],
        2
    );
    assert_eq!(message(&answer)["tool_calls"][0]["function"]["name"], "now");
}

#[tokio::test]
async fn counting_tokens_counts_tools() {
    let server = Server::start().await;
    server.say("ok");
    let history = json!([
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "W?"},
        {"role": "assistant", "reasoning_content": "need tool", "tool_calls": [
            {"id": "c1", "type": "function", "function": {
                "name": "set_mode", "arguments": "{\"mode\":\"x\",\"n\":2,\"o\":{\"a\":[1,2]},\"b\":true}"}}]},
        {"role": "tool", "tool_call_id": "c1", "name": "set_mode", "content": "{\"t\":20}"},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "ok"}]},
    ]);
    for extra in [
        json!({"tools": tools()}),
        json!({"tools": tools(), "tool_choice": "none"}),
        json!({"functions": [{"name": "f"}]}),
        json!({"tools": [{"type": "custom", "custom": {"name": "g", "format": {"type": "grammar",
            "grammar": {"syntax": "regex", "definition": "[0-9]+"}}}}]}),
        json!({}),
    ] {
        let body = with(json!({"model": "test", "messages": history}), &extra);
        let counted = server.ask("/tokenize", &body).await;
        let answer = server.ask(PATH, &body).await;
        assert_eq!(
            counted["count"], answer["usage"]["prompt_tokens"],
            "{extra}"
        );
    }
    let body = json!({"messages": history});
    let tokens = server.ask("/tokenize", &body).await["tokens"].clone();
    let text = server.ask("/detokenize", &json!({"tokens": tokens})).await;
    assert_eq!(
        text["prompt"],
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nW?<|im_end|>\n\
         <|im_start|>assistant\n<think>\nneed tool\n</think>\n<tool_call>\n<function=set_mode>\n\
         <parameter=mode>\nx\n</parameter>\n<parameter=n>\n2\n</parameter>\n<parameter=o>\n\
         {\"a\": [1, 2]}\n</parameter>\n<parameter=b>\nTrue\n</parameter>\n</function>\n\
         </tool_call>\n<|im_end|>\n<|im_start|>user\n<tool_response>\n{\"t\":20}\n\
         </tool_response>\n<tool_response>\nok\n</tool_response>\n<|im_end|>\n\
         <|im_start|>assistant\n<think>\n"
    );
}

#[tokio::test]
async fn min_tokens_and_a_form_that_is_shorter() {
    let server = Server::start().await;
    server.say("{}");
    let format =
        json!({"type": "json_schema", "json_schema": {"name": "f", "schema": {"const": 5}}});
    let body = request(&json!({"response_format": format, "min_tokens": 20}));
    let answer = both(&server, &body).await;
    assert_eq!(message(&answer)["content"], "5");
}

/// Schemas as agents and servers of tools send them.
#[tokio::test]
async fn tools_of_agents_are_served() {
    let server = Server::roomy().await;
    server.say("No.");
    let agents: Value = serde_json::from_str(include_str!("../../fixtures/agent_tools.json"))
        .expect("the fixture is JSON");
    for (agent, tools) in agents.as_object().expect("an object") {
        for choice in ["auto", "required"] {
            let body = json!({"tools": tools, "tool_choice": choice, "max_tokens": 50});
            let reply = server.post(PATH, request(&body).to_string()).await;
            assert_eq!(reply.status, 200, "{agent}: {}", reply.body);
        }
        // One by one, each named, until it has said its required parameters or enough.
        for tool in tools.as_array().expect("a list") {
            let kind = tool["type"].as_str().expect("a type");
            let name = &tool[kind]["name"];
            let choice = json!({"type": kind, kind: {"name": name}});
            let body = json!({"tools": [tool], "tool_choice": choice, "max_tokens": 300});
            let answer = server.ask(PATH, &request(&body)).await;
            let call = &message(&answer)["tool_calls"][0];
            assert_eq!(call[kind]["name"], *name, "{agent}: {answer}");
            if answer["choices"][0]["finish_reason"] == "tool_calls" && kind == "function" {
                let arguments = call["function"]["arguments"].as_str().expect("text");
                let arguments: Value = serde_json::from_str(arguments).expect(arguments);
                let schema = tool["function"]
                    .get("parameters")
                    .cloned()
                    .unwrap_or(json!({}));
                let errors: Vec<String> = jsonschema::validator_for(&schema)
                    .expect("the schema is valid")
                    .iter_errors(&arguments)
                    .map(|error| error.to_string())
                    .collect();
                assert!(errors.is_empty(), "{name}: {arguments}: {errors:?}");
            }
        }
    }
}
