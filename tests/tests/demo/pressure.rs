//! With drafts, and so little memory that running requests yield to each other: what each says is what
//! it says alone in plain decoding, and what two prompts share is computed once.

use std::sync::Arc;

use nemoserve::args::ServeArgs;
use nemoserve::config::Settings;
use nemoserve_tests::memory::one_context;
use serde_json::{Value, json};

use crate::Daemon;

const MODEL: &str = "nvidia/nemotron-3-super-120b-a12b";
const BLOCK_SIZE: u32 = 16;

/// No drafts, and memory for all.
fn roomy(block_size: u32) -> ServeArgs {
    ServeArgs {
        block_size: Some(block_size),
        ..ServeArgs::default()
    }
}

/// Three drafts, and blocks for one context of the greatest length.
fn short_of_blocks(max_model_len: u32, num_slots: u64, block_size: u32) -> ServeArgs {
    let args = ServeArgs {
        speculative_tokens: Some("3".into()),
        max_model_len: Some(max_model_len),
        block_size: Some(block_size),
        max_num_seqs: Some(16),
        cache_slot_share: Some(1.0),
        ..ServeArgs::default()
    };
    let settings = Settings::new(&args).expect("they are valid");
    let config = one_context(settings.engine, num_slots);
    let bytes = config.cache_memory_bytes.expect("it was chosen");
    ServeArgs {
        cache_memory: Some(bytes.to_string()),
        ..args
    }
}

async fn answer(daemon: &Daemon, body: &Value) -> Value {
    let text = daemon.post("/v1/chat/completions", body).await;
    serde_json::from_str(&text).expect("JSON")
}

/// All at once, in this order.
async fn answers(daemon: &Arc<Daemon>, bodies: &[Value]) -> Vec<Value> {
    let tasks: Vec<_> = bodies
        .iter()
        .map(|body| {
            let (daemon, body) = (Arc::clone(daemon), body.clone());
            tokio::spawn(async move { answer(&daemon, &body).await })
        })
        .collect();
    let mut answers = Vec::new();
    for task in tasks {
        answers.push(task.await.expect("it is answered"));
    }
    answers
}

/// Schemas, tools, stop strings, several choices, penalties, budgets of thoughts, log-probabilities.
fn cases() -> Vec<Value> {
    let schema = json!({"type": "object", "additionalProperties": false, "required": ["city", "big"],
        "properties": {"city": {"type": "string", "maxLength": 30}, "big": {"type": "boolean"}}});
    let tool = json!({"type": "function", "function": {"name": "look", "parameters": schema}});
    let cases = [
        json!({"temperature": 0, "logprobs": true, "top_logprobs": 2}),
        json!({"temperature": 0.9, "seed": 3, "n": 3, "logprobs": true}),
        json!({"temperature": 0, "stop": ["ed ", "!!"], "chat_template_kwargs": {"enable_thinking": false}}),
        json!({"temperature": 0.8, "seed": 8, "n": 2, "stop": "the"}),
        json!({"temperature": 0.7, "seed": 4, "frequency_penalty": 0.6, "presence_penalty": 0.2}),
        json!({"temperature": 0.7, "seed": 5, "reasoning_budget": 12, "stop": "zzz",
            "response_format": {"type": "json_schema", "json_schema": {"name": "c", "schema": schema}}}),
        json!({"temperature": 0.7, "seed": 6, "reasoning_budget": 8, "n": 2, "tools": [tool],
            "tool_choice": "required", "repetition_penalty": 1.1}),
        json!({"temperature": 0, "reasoning_budget": 4, "min_p": 0.05}),
    ];
    let questions = ["Tell me a short story.", "What is the capital of Peru?"];
    let bodies = cases.iter().flat_map(|case| {
        questions.map(|question| {
            let mut body = json!({
                "model": MODEL, "max_tokens": 120,
                "messages": [{"role": "user", "content": question}],
            });
            let members = body.as_object_mut().expect("an object");
            members.extend(case.as_object().expect("an object").clone());
            body
        })
    });
    bodies.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_yields_says_the_same() {
    let plain = Daemon::start_with(&roomy(4)).await;
    let tight = Arc::new(Daemon::start_with(&short_of_blocks(256, 60, 4)).await);
    let bodies = cases();
    let got = answers(&tight, &bodies).await;
    for (body, got) in bodies.iter().zip(got) {
        let expect = answer(&plain, body).await;
        let said = |answer: &Value| {
            let mut choices = answer["choices"].clone();
            // Every call has a name of its own.
            for choice in choices.as_array_mut().expect("a list") {
                let calls = choice["message"]["tool_calls"].as_array_mut();
                for call in calls.into_iter().flatten() {
                    call["id"].take();
                }
            }
            choices
        };
        assert_eq!(said(&got), said(&expect), "{body}");
    }
    let preemptions = tight.metric("nemoserve_preemptions_total").await;
    assert!(preemptions >= 3, "{preemptions} preemptions");
    let accepted = tight.metric("nemoserve_accepted_draft_tokens_total").await;
    assert!(accepted > 100, "{accepted} drafts came true");
}

/// Pairs that share their first messages, whose requests yield: what the device has no room for waits
/// on the host, so the second of a pair computes its own message only, and says what it says cold.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shared_beginning_outlasts_a_shortage() {
    const NUM_CLIENTS: usize = 6;
    const NUM_PAIRS: usize = 24;
    let cold = Arc::new(Daemon::start_with(&roomy(BLOCK_SIZE)).await);
    let args = ServeArgs {
        host_cache_memory: Some("1GiB".into()),
        ..short_of_blocks(2048, 200, BLOCK_SIZE)
    };
    let tight = Arc::new(Daemon::start_with(&args).await);
    let client = |client: usize| {
        let (cold, tight) = (Arc::clone(&cold), Arc::clone(&tight));
        async move {
            let mut num_cached = 0;
            for number in (client..NUM_PAIRS).step_by(NUM_CLIENTS) {
                let [first, second] = pair(number);
                let ids = [
                    prompt_ids(&tight, &first).await,
                    prompt_ids(&tight, &second).await,
                ];
                let shared = shared(&ids);
                answer(&tight, &first).await;
                let warm = answer(&tight, &second).await;
                let cached = &warm["usage"]["prompt_tokens_details"]["cached_tokens"];
                let cached = cached.as_u64().expect("a count") as usize;
                let least = shared / BLOCK_SIZE as usize * BLOCK_SIZE as usize;
                assert!(
                    shared >= 64 && (least..ids[1].len()).contains(&cached),
                    "pair {number}: {cached} of {} cached, {shared} are shared",
                    ids[1].len()
                );
                let expect = answer(&cold, &second).await;
                assert_eq!(warm["choices"], expect["choices"], "pair {number}");
                num_cached += cached as u64;
            }
            num_cached
        }
    };
    let clients: Vec<_> = (0..NUM_CLIENTS)
        .map(|at| tokio::spawn(client(at)))
        .collect();
    let mut num_cached = 0;
    for client in clients {
        num_cached += client.await.expect("no client fails");
    }
    let counted = tight.metric("nemoserve_cached_prompt_tokens_total").await;
    assert_eq!(counted, num_cached, "what is new is not cached");
    for name in [
        "nemoserve_preemptions_total",
        "nemoserve_prefix_cache_swapped_in_total",
        "nemoserve_accepted_draft_tokens_total",
    ] {
        let count = tight.metric(name).await;
        assert!(count > 0, "{name}: {count}");
    }
}

/// Every message has more than 64 tokens: less is not worth moving to the host.
fn pair(number: usize) -> [Value; 2] {
    let text = |num_sentences: usize| {
        let sentence =
            format!("In the year {number} a red fox slept near the old mill by the river. ");
        sentence.repeat(num_sentences)
    };
    let mut messages = vec![json!({"role": "system", "content": text(6 << (number % 4))})];
    if number.is_multiple_of(3) {
        messages.push(json!({"role": "user", "content": text(7)}));
        messages.push(json!({"role": "assistant", "content": text(6)}));
    }
    ["Tell me a short story.", "What is the capital of Peru?"].map(|question| {
        let messages = [
            &messages[..],
            &[json!({"role": "user", "content": question})],
        ]
        .concat();
        json!({
            "model": MODEL, "messages": messages,
            "temperature": 0, "max_tokens": 160, "ignore_eos": true, "logprobs": true,
            "chat_template_kwargs": {"enable_thinking": number.is_multiple_of(2)},
        })
    })
}

async fn prompt_ids(daemon: &Daemon, body: &Value) -> Vec<u64> {
    let text = daemon.post("/v1/chat/completions/render", body).await;
    let rendered: Value = serde_json::from_str(&text).expect("JSON");
    let ids = rendered["token_ids"].as_array().expect("a list");
    ids.iter().map(|id| id.as_u64().expect("an id")).collect()
}

/// Tokens up to where both begin their last message.
fn shared([first, second]: &[Vec<u64>; 2]) -> usize {
    let same = first.iter().zip(second).take_while(|(a, b)| a == b).count();
    // Turns begin with the token that a prompt begins with.
    let begins = |at: &usize| first.get(*at) == first.first();
    (0..=same).rev().find(begins).unwrap_or(0)
}
