//! Who goes first when there is a queue.

use serde_json::{Value, json};

use crate::harness::{MODEL, Plan, Server, request};
use crate::wire::Wire;

/// A stream that has been admitted, and so waits.
async fn admitted(server: &Server, path: &str, headers: &str, body: Value) -> Wire {
    let mut wire = server.wire().await;
    wire.send(request("POST", path, headers, &body.to_string()))
        .await;
    let (status, _) = wire.head().await;
    assert_eq!(status, 200);
    wire
}

/// Reads to the end of the stream, and returns the tier that it tells.
async fn end(wire: &mut Wire) -> Option<Value> {
    let mut text = Vec::new();
    while let Some(chunk) = wire.chunk().await {
        text.extend(chunk);
    }
    let text = String::from_utf8(text).expect("UTF-8");
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    let mut events = data.filter_map(|data| serde_json::from_str::<Value>(data).ok());
    events.find_map(|event| event.get("service_tier").cloned())
}

/// One place, and a step for every answer.
#[tokio::test]
async fn worth_more_is_served_first() {
    let server = Server::with(Plan {
        max_num_seqs: 1,
        ..Plan::default()
    })
    .await;
    server.script.hold();
    let completion = |more: Value| {
        let mut body = json!({
            "model": MODEL, "prompt": [300, 301], "max_tokens": 1, "ignore_eos": true, "stream": true,
        });
        let all = body.as_object_mut().expect("an object");
        all.extend(more.as_object().expect("an object").clone());
        body
    };
    let text = "/v1/completions";
    let mut first = admitted(&server, text, "", completion(json!({}))).await;
    // From the least to the most; of equals the older one goes first.
    let mut flex = admitted(
        &server,
        text,
        "",
        completion(json!({"service_tier": "flex"})),
    )
    .await;
    let mut plain = admitted(
        &server,
        text,
        "",
        completion(json!({"service_tier": "auto"})),
    )
    .await;
    let mut plain_too = admitted(&server, text, "", completion(json!({}))).await;
    let chat = json!({
        "model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1,
        "ignore_eos": true, "stream": true, "service_tier": "priority",
    });
    let mut paid = admitted(&server, "/v1/chat/completions", "", chat).await;
    let items = json!({
        "model": MODEL, "input": "Hello", "max_output_tokens": 1, "ignore_eos": true, "stream": true,
        "service_tier": "priority",
    });
    let mut paid_too = admitted(&server, "/v1/responses", "", items).await;
    let mut lowest = admitted(&server, text, "", completion(json!({"priority": -8}))).await;
    let header = "x-request-priority: 8\r\n";
    let gateway = completion(json!({"service_tier": "flex"}));
    let mut gateway = admitted(&server, text, header, gateway).await;

    for wire in [
        &mut first,
        &mut lowest,
        &mut gateway,
        &mut paid,
        &mut paid_too,
        &mut plain,
        &mut plain_too,
        &mut flex,
    ] {
        server.script.allow(1);
        // As the contract has it, whatever was asked for; legacy completions have no tier.
        let tier = end(wire).await;
        assert!(tier.is_none_or(|tier| tier == "default"));
    }
}

#[tokio::test]
async fn what_is_no_priority_is_refused_by_name() {
    let server = Server::start().await;
    let body = json!({"model": MODEL, "prompt": [300], "max_tokens": 1}).to_string();
    for bad in ["9", "-9", "high", ""] {
        let header = format!("x-request-priority: {bad}\r\n");
        let reply = server
            .request("POST", "/v1/completions", &header, &body)
            .await;
        reply.expect_error(400, "invalid_value");
        assert_eq!(reply.error()["param"], "x-request-priority");
    }
    // Nobody waits for a list of models.
    let header = "x-request-priority: high\r\n";
    let reply = server.request("GET", "/v1/models", header, "").await;
    assert_eq!(reply.status, 200);
}
