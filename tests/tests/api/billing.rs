//! What `/metrics` counts is the sum of what answers say, whoever left and whatever failed.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::server::{Reply, Server};

/// Prompt, cached and sampled tokens.
type Counts = [u64; 3];

/// Numbers that look random and are the same every time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) % sides
    }
}

fn add(sum: &mut Counts, counts: Counts) {
    for (sum, count) in sum.iter_mut().zip(counts) {
        *sum += count;
    }
}

#[track_caller]
fn of_usage(usage: &Value) -> Counts {
    let count = |value: &Value| {
        value
            .as_u64()
            .unwrap_or_else(|| panic!("no count in {usage}"))
    };
    [
        count(&usage["prompt_tokens"]),
        count(&usage["prompt_tokens_details"]["cached_tokens"]),
        count(&usage["completion_tokens"]),
    ]
}

/// Of a whole answer, wherever its flavour says it.
#[track_caller]
fn of_answer(path: &str, answer: &Value) -> Counts {
    let usage = &answer["usage"];
    let count = |value: &Value| {
        value
            .as_u64()
            .unwrap_or_else(|| panic!("no count in {usage}"))
    };
    match path {
        "/v1/responses" => [
            count(&usage["input_tokens"]),
            count(&usage["input_tokens_details"]["cached_tokens"]),
            count(&usage["output_tokens"]),
        ],
        "/v1/messages" => {
            let cached = count(&usage["cache_read_input_tokens"]);
            let computed = count(&usage["input_tokens"]);
            [computed + cached, cached, count(&usage["output_tokens"])]
        }
        _ => of_usage(
            answer
                .get("result")
                .map_or(usage, |result| &result["usage"]),
        ),
    }
}

/// Of a generation that is over or about to be.
async fn of_receipt(server: &Server, id: &str) -> (Counts, Value) {
    loop {
        let reply = server.get(&format!("/api/v1/generation?id={id}")).await;
        if reply.status == 200 {
            let body: Value = serde_json::from_str(&reply.body).expect("JSON");
            let data = body["data"].clone();
            let names = ["tokens_prompt", "native_tokens_cached", "tokens_completion"];
            return (
                names.map(|name| data[name].as_u64().expect("a count")),
                data,
            );
        }
    }
}

async fn of_metrics(server: &Server) -> Counts {
    let text = server.get("/metrics").await.body;
    let count = |name: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.expect(name).parse().expect("a number")
    };
    [
        count("nemoserve_prompt_tokens_total"),
        count("nemoserve_cached_prompt_tokens_total"),
        count("nemoserve_generation_tokens_total"),
    ]
}

/// Some request of some flavour.
fn any_request(dice: &mut Dice) -> (&'static str, Value) {
    let text = "word ".repeat(1 + dice.roll(60) as usize);
    let messages = json!([{"role": "user", "content": text}]);
    let max_tokens = 1 + dice.roll(200);
    let n = 1 + dice.roll(3);
    let mut body = json!({"model": "test", "max_tokens": max_tokens, "n": n});
    if dice.roll(2) == 0 {
        body["ignore_eos"] = json!(true);
    }
    if dice.roll(3) == 0 {
        body["stop"] = json!("three");
    }
    let path = match dice.roll(8) {
        0 => "/v1/chat/completions",
        1 => "/api/v1/chat/completions",
        2 => "/ai/run/test",
        3 => "/v1/openai/chat/completions",
        4 => "/client/v4/accounts/a/ai/run/test",
        5 => {
            let members = body.as_object_mut().expect("an object");
            members.retain(|name, _| !["n", "stop"].contains(&name.as_str()));
            "/v1/messages"
        }
        6 => {
            return (
                "/v1/responses",
                json!({"model": "test", "input": text, "max_output_tokens": max_tokens}),
            );
        }
        _ => {
            body["prompt"] = json!([text, "another", [5, 6, 7]]);
            if dice.roll(2) == 0 {
                body["echo"] = json!(true);
                body["logprobs"] = json!(2);
            }
            return ("/v1/completions", body);
        }
    };
    body["messages"] = messages;
    (path, body)
}

/// Sends it, leaves if the dice say so, and tells what the request is known to have used.
async fn used_by_one(server: &Server, dice: &mut Dice) -> Counts {
    let (path, mut body) = any_request(dice);
    let [responses, messages] = ["/v1/responses", "/v1/messages"].map(|one| one == path);
    match dice.roll(3) {
        0 => {
            if path == "/v1/completions" && dice.roll(2) == 0 {
                body["best_of"] = json!(4);
            }
            of_answer(path, &server.ask(path, &body).await)
        }
        1 if !responses && !messages => {
            body["stream_options"] = json!({"include_usage": true});
            let chunks = server.stream(path, &body).await;
            let last = chunks.last().expect("chunks");
            let id = last["id"].as_str().expect("an id");
            let usage = of_usage(&last["usage"]);
            assert_eq!(of_receipt(server, id).await.0, usage);
            usage
        }
        _ => {
            body["stream"] = json!(true);
            let (mut socket, mut bytes) = server.post_until(path, &body, "\n\n").await;
            let id = id_in(&mut socket, &mut bytes).await;
            let wanted = bytes.len() + dice.roll(20_000) as usize;
            while bytes.len() < wanted {
                let num = tokio::io::AsyncReadExt::read_buf(&mut socket, &mut bytes).await;
                if num.expect("it answers") == 0 {
                    break;
                }
            }
            drop(socket);
            of_receipt(server, &id).await.0
        }
    }
}

/// The id in the first chunk.
async fn id_in(socket: &mut tokio::net::TcpStream, bytes: &mut Vec<u8>) -> String {
    loop {
        let text = String::from_utf8_lossy(bytes);
        if let Some((_, rest)) = text.split_once(r#""id":""#)
            && let Some((id, _)) = rest.split_once('"')
        {
            return id.to_owned();
        }
        let read = tokio::io::AsyncReadExt::read_buf(socket, bytes).await;
        assert!(
            read.expect("it answers") > 0,
            "closed before the first chunk"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn counters_are_the_sum_of_all_usage() {
    for round in 0..4 {
        let server = Arc::new(Server::start().await);
        server.say("one two</think>two and three and four");
        let tasks: Vec<_> = (0..12)
            .map(|task| {
                let server = Arc::clone(&server);
                tokio::spawn(async move {
                    let mut dice = Dice(round * 100 + task);
                    let mut sum = Counts::default();
                    for _ in 0..6 {
                        add(&mut sum, used_by_one(&server, &mut dice).await);
                    }
                    sum
                })
            })
            .collect();
        let mut sum = Counts::default();
        for task in tasks {
            add(&mut sum, task.await.expect("no assertion failed"));
        }
        assert_eq!(of_metrics(&server).await, sum, "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_was_left_has_a_receipt() {
    let server = Server::start().await;
    server.say("</think>one");
    let body = json!({"model": "test", "messages": [{"role": "user", "content": "Hi"}],
                      "stream": true, "ignore_eos": true, "max_tokens": 480});
    // Left before any step.
    server.script.hold(true);
    let (mut socket, mut bytes) = server
        .post_until("/v1/chat/completions", &body, "\n\n")
        .await;
    let id = id_in(&mut socket, &mut bytes).await;
    drop(socket);
    let (none, data) = of_receipt(&server, &id).await;
    assert_eq!((none, &data["cancelled"]), ([0; 3], &json!(true)));
    server.script.hold(false);
    // Left on the way; how far that is depends on who is faster.
    let mut sum = Counts::default();
    loop {
        let (mut socket, mut bytes) = server
            .post_until("/api/v1/chat/completions", &body, r#""content":"one"#)
            .await;
        server.script.hold(true);
        let id = id_in(&mut socket, &mut bytes).await;
        drop(socket);
        let (counts, data) = of_receipt(&server, &id).await;
        add(&mut sum, counts);
        server.script.hold(false);
        if data["cancelled"] == true {
            assert!(
                counts[0] > 0 && counts[2] >= 2 && counts[2] < 480,
                "{counts:?}"
            );
            assert_eq!(data["finish_reason"], Value::Null);
            assert!(data["total_cost"].as_f64() > Some(0.0));
            break;
        }
    }
    assert_eq!(of_metrics(&server).await, sum);
}

#[tokio::test]
async fn failures_count_what_was_sampled() {
    let server = Server::start().await;
    server.say("</think>one two three four five");
    server.script.fault_at(Some(4));
    let mut sum = Counts::default();
    for n in 1..4 {
        for stream in [false, true] {
            let body = json!({"model": "test", "messages": [{"role": "user", "content": "Hi"}],
                              "n": n, "stream": stream});
            let reply: Reply = server
                .post("/api/v1/chat/completions", body.to_string())
                .await;
            assert_eq!(reply.status, if stream { 200 } else { 500 });
            let (counts, data) = of_receipt(&server, reply.header("x-generation-id")).await;
            assert_eq!(data["finish_reason"], "error");
            if stream {
                let last = reply.events().pop().expect("chunks");
                assert_eq!(of_usage(&last["usage"]), counts);
            }
            assert!(counts[0] > 0 && counts[2] >= 4, "{counts:?}");
            add(&mut sum, counts);
        }
    }
    assert_eq!(of_metrics(&server).await, sum);
}
