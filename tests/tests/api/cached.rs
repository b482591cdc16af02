//! What of a prompt needs no computing, as clients are told it.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::server::{Server, Shape};

const BLOCK_SIZE: usize = 16;
/// Shorter shared prefixes are not worth a state.
const LEAST: usize = 64;

/// Words of one to three tokens, another text for every seed.
fn words(seed: &mut u64, num_words: u64) -> String {
    const WORDS: [&str; 8] = [
        "river", "stone", "Paris", "the", "green", "of", "ninety", "zebra",
    ];
    let word = |_| {
        *seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        WORDS[(*seed >> 61) as usize]
    };
    (0..num_words).map(word).collect::<Vec<_>>().join(" ")
}

fn message(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

fn request(messages: &[Value], thinking: bool) -> Value {
    json!({
        "model": "test", "max_tokens": 5, "messages": messages,
        "chat_template_kwargs": {"enable_thinking": thinking},
    })
}

async fn prompt_ids(server: &Server, body: &Value) -> Vec<u32> {
    let rendered = server.ask("/v1/chat/completions/render", body).await;
    let ids = rendered["token_ids"].as_array().expect("a list");
    let id = |id: &Value| id.as_u64().expect("an id") as u32;
    ids.iter().map(id).collect()
}

async fn cached_tokens(server: &Server, body: &Value) -> usize {
    let answer = server.ask("/v1/chat/completions", body).await;
    let cached = &answer["usage"]["prompt_tokens_details"]["cached_tokens"];
    cached.as_u64().unwrap_or(0) as usize
}

/// The longest prefix that two prompts share and that ends where both begin a message.
fn shared(first: &[u32], second: &[u32], turn: u32) -> usize {
    let same = first.iter().zip(second).take_while(|(a, b)| a == b).count();
    let begins = |at: &usize| first.get(*at) == Some(&turn) && second.get(*at) == Some(&turn);
    (0..=same).rev().find(begins).unwrap_or(0)
}

/// Under which circumstances pairs are asked.
#[derive(Clone)]
struct Setting {
    shape: Shape,
    /// At once; the rest wait.
    num_clients: usize,
    /// Of a message that is shared, at least.
    least_words: u64,
    /// Of an answer.
    max_tokens: u32,
}

impl Setting {
    /// With drafts, and memory for all.
    fn roomy() -> Self {
        let mut shape = Shape::roomy(1 << 16);
        shape.scheduler.max_drafts = 3;
        Self {
            shape,
            num_clients: 8,
            least_words: 1,
            max_tokens: 12,
        }
    }
}

/// What became of some pairs.
#[derive(Default)]
struct Tally {
    num_pairs: usize,
    /// Pairs that share enough.
    num_hits: usize,
    longest: usize,
    num_prompt: usize,
    num_cached: usize,
}

/// Two requests that share their first messages and part in the last, of a few dozen tokens to some
/// thousand.
fn pair(number: usize, setting: &Setting) -> [Value; 2] {
    let mut seed = number as u64 + 1;
    let num_words = 20 << (number % 9);
    let mut say = |role, num_words: u64| message(role, &words(&mut seed, num_words));
    let least = setting.least_words;
    let mut messages = vec![say("system", least.max(num_words))];
    for _ in 0..number % 3 {
        messages.push(say("user", least.max(num_words / 2)));
        messages.push(say("assistant", least.max(num_words / 3)));
    }
    [(); 2].map(|()| {
        let messages = [&messages[..], &[say("user", 12)]].concat();
        let mut body = request(&messages, number.is_multiple_of(2));
        body["max_tokens"] = setting.max_tokens.into();
        body["service_tier"] = "priority".into();
        body
    })
}

/// One client's pairs, one after the other: the second of each computes its own message only.
async fn client(server: Arc<Server>, setting: Setting, numbers: Vec<usize>) -> Tally {
    let turn = server.ids("<|im_start|>")[0];
    let mut tally = Tally::default();
    for number in numbers {
        let [first, second] = pair(number, &setting);
        let ids = [
            prompt_ids(&server, &first).await,
            prompt_ids(&server, &second).await,
        ];
        let shared = shared(&ids[0], &ids[1], turn);
        let cached = cached_tokens(&server, &first).await;
        assert_eq!(cached / LEAST, 0, "pair {number}: all is new");
        tally.num_prompt += ids[0].len();
        tally.num_cached += cached;
        let cached = cached_tokens(&server, &second).await;
        if shared >= LEAST {
            let least = shared / BLOCK_SIZE * BLOCK_SIZE;
            assert!(
                (least..ids[1].len()).contains(&cached),
                "pair {number}: {cached} of {} cached, {shared} are shared",
                ids[1].len()
            );
            tally.num_hits += 1;
            tally.longest = tally.longest.max(cached);
        }
        tally.num_pairs += 1;
        tally.num_prompt += ids[1].len();
        tally.num_cached += cached;
    }
    tally
}

/// Said again and again.
const SAID: &str = "The";

/// Asks all pairs of a server, by its clients at once.
async fn ask_pairs(server: &Arc<Server>, setting: &Setting) -> Tally {
    let num_pairs = std::env::var("NEMOSERVE_CACHE_PAIRS").ok();
    let num_pairs = num_pairs.map_or(500, |num| num.parse().expect("a number"));
    server.say(&[SAID; 200].join(" "));
    assert_eq!(server.ids(SAID).len(), 1, "a chunk has all of it");
    let clients: Vec<_> = (0..setting.num_clients)
        .map(|at| {
            let numbers = (at..num_pairs).step_by(setting.num_clients).collect();
            tokio::spawn(client(Arc::clone(server), setting.clone(), numbers))
        })
        .collect();
    let mut all = Tally::default();
    for client in clients {
        let tally = client.await.expect("no client fails");
        all.num_pairs += tally.num_pairs;
        all.num_hits += tally.num_hits;
        all.longest = all.longest.max(tally.longest);
        all.num_prompt += tally.num_prompt;
        all.num_cached += tally.num_cached;
    }
    assert_eq!(all.num_pairs, num_pairs);
    assert!(
        all.num_hits * 10 >= num_pairs * 8,
        "{} of {num_pairs} pairs share enough",
        all.num_hits
    );
    assert!(
        all.longest > 6000,
        "the longest hit has {} tokens",
        all.longest
    );
    let drafted = server.metric("nemoserve_draft_tokens_total").await;
    let accepted = server.metric("nemoserve_accepted_draft_tokens_total").await;
    assert!(
        2 * accepted > drafted && drafted > accepted && accepted > num_pairs as u64,
        "{accepted} of {drafted} drafts came true"
    );
    all
}

/// What `usage` says is what was spared, by the runner's own count and by that of `/metrics`.
async fn check_counts(server: &Server, tally: &Tally) {
    assert_eq!(server.script.num_skipped(), tally.num_cached as u64);
    let num_prompt = server.metric("nemoserve_prompt_tokens_total").await;
    let num_cached = server.metric("nemoserve_cached_prompt_tokens_total").await;
    assert_eq!(
        num_prompt - num_cached,
        (tally.num_prompt - tally.num_cached) as u64
    );
}

/// All lengths, with and without thinking, with drafts, many at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shared_beginning_hits_on_the_second_sighting() {
    let setting = Setting::roomy();
    let server = Arc::new(Server::shaped(setting.shape.clone()).await);
    let tally = ask_pairs(&server, &setting).await;
    check_counts(&server, &tally).await;
    assert_eq!(server.metric("nemoserve_preemptions_total").await, 0);
}

/// Where memory is so short that the pairs themselves yield, what must leave the device is on the host, if that has room for it and the state spares 64 tokens at least, which each of these
/// messages has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_device_has_no_room_for_hits_from_the_host() {
    let mut setting = Setting {
        num_clients: 20,
        least_words: 80,
        max_tokens: 200,
        ..Setting::roomy()
    };
    let cache = &mut setting.shape.cache;
    // The longest alone takes nearly all.
    cache.num_blocks = 1501;
    (cache.num_host_slots, cache.num_host_blocks) = (20_000, 300_000);
    let server = Arc::new(Server::shaped(setting.shape.clone()).await);
    let tally = ask_pairs(&server, &setting).await;
    check_counts(&server, &tally).await;
    // How many yield depends on who meets whom.
    let preemptions = server.metric("nemoserve_preemptions_total").await;
    assert!(preemptions > 0, "nobody yielded");
    for name in [
        "nemoserve_prefix_cache_swapped_out_total",
        "nemoserve_prefix_cache_swapped_in_total",
    ] {
        let count = server.metric(name).await;
        assert!(count > 20, "{name}: {count}");
    }
}

/// An agent at work: a system prompt with tools, sixty turns with calls and results, a branch that is
/// tried again, other headers each time.
#[tokio::test]
async fn an_agent_pays_for_what_is_new() {
    let server = Server::roomy().await;
    let mut seed = 77;
    let tools: Vec<Value> = (0..12)
        .map(|i| {
            let description = words(&mut seed, 60);
            json!({"type": "function", "function": {
                "name": format!("tool_{i}"), "description": description,
                "parameters": {"type": "object", "properties": {"path": {"type": "string"}}},
            }})
        })
        .collect();
    let mut messages = vec![
        message("system", &words(&mut seed, 8000)),
        message("user", &words(&mut seed, 80)),
    ];
    let (mut total, mut computed, mut new) = (0, 0, 0);
    let mut said: Vec<Value> = Vec::new();
    for turn in 0..60 {
        let thought = words(&mut seed, 15);
        server.say(&format!("{thought}</think>I shall look."));
        let mut body = request(&messages, true);
        body["tools"] = json!(tools);
        body["return_token_ids"] = json!(true);
        let headers = format!(
            "x-request-id: turn-{turn}\r\nx-stainless-retry-count: {}\r\n",
            turn % 3
        );
        let reply = server
            .post_with("/v1/chat/completions", &headers, body.to_string())
            .await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        let answer: Value = serde_json::from_str(&reply.body).expect("JSON");
        let count = |value: &Value| value.as_u64().unwrap_or(0);
        let usage = &answer["usage"];
        let (prompt, cached) = (
            count(&usage["prompt_tokens"]),
            count(&usage["prompt_tokens_details"]["cached_tokens"]),
        );
        total += prompt;
        computed += prompt - cached;
        let choice = &answer["choices"][0];
        let ids = choice["prompt_token_ids"]
            .as_array()
            .expect("a list")
            .clone();
        let known = ids.iter().zip(&said).take_while(|(a, b)| a == b).count();
        new += prompt - known as u64;
        said = ids;
        said.extend(choice["token_ids"].as_array().expect("a list").clone());
        // It goes back a few turns once, and on from there.
        if turn == 40 {
            messages.truncate(messages.len() - 9);
            messages.push(message("user", &words(&mut seed, 30)));
            continue;
        }
        messages.push(json!({
            "role": "assistant", "content": "I shall look.", "reasoning_content": thought,
            "tool_calls": [{"id": format!("call_{turn}"), "type": "function", "function": {
                "name": format!("tool_{}", turn % 12), "arguments": format!("{{\"path\": \"{turn}\"}}"),
            }}],
        }));
        messages.push(json!({
            "role": "tool", "tool_call_id": format!("call_{turn}"), "content": words(&mut seed, 60),
        }));
    }
    let share = 100.0 * (1.0 - computed as f64 / total as f64);
    assert!(
        share >= 97.0,
        "{share:.2} % of {total} prompt tokens were cached; {computed} were computed, {new} were new"
    );
    assert!(
        computed * 10 <= new * 13,
        "{computed} were computed, {new} were new"
    );
}

/// A conversation whose `part` of text may end where its client wants it cached, and goes on behind it
/// in the same message.
struct Marked {
    path: &'static str,
    body: fn(Value, &str) -> Value,
    cached: &'static str,
}

const MARKED: [Marked; 4] = [
    Marked {
        path: "/v1/chat/completions",
        body: |part, question| {
            let system = json!([part, {"type": "text", "text": question}]);
            request(
                &[
                    json!({"role": "system", "content": system}),
                    message("user", "And?"),
                ],
                true,
            )
        },
        cached: "/usage/prompt_tokens_details/cached_tokens",
    },
    Marked {
        path: "/api/v1/chat/completions",
        body: |part, question| {
            let user = json!([part, {"type": "text", "text": question}]);
            request(
                &[
                    message("system", "Be brief."),
                    json!({"role": "user", "content": user}),
                ],
                false,
            )
        },
        cached: "/usage/prompt_tokens_details/cached_tokens",
    },
    Marked {
        path: "/v1/messages",
        body: |part, question| {
            json!({
                "model": "test", "max_tokens": 5,
                "system": [part, {"type": "text", "text": question}],
                "messages": [{"role": "user", "content": "And?"}],
            })
        },
        cached: "/usage/cache_read_input_tokens",
    },
    Marked {
        path: "/v1/messages",
        body: |part, question| {
            json!({
                "model": "test", "max_tokens": 5,
                "messages": [{"role": "user", "content": [part, {"type": "text", "text": question}]}],
            })
        },
        cached: "/usage/cache_read_input_tokens",
    },
];

/// `cache_control` inside a message: whoever has the same blocks up to there computes what follows, and
/// at most the one token that reaches over the end.
#[tokio::test]
async fn a_marked_block_hits_on_the_second_sighting() {
    let server = Server::roomy().await;
    server.say("So it is.");
    let mut seed = 5;
    for Marked { path, body, cached } in MARKED {
        for (ending, others) in [
            ("", ["What is it?", "Who was there?"]),
            (".", ["What is it?", "\nWho was there?"]),
            (" (", ["1", "23"]),
        ] {
            for is_marked in [false, true] {
                let text = words(&mut seed, 400) + ending;
                let mut part = json!({"type": "text", "text": text});
                if is_marked {
                    part["cache_control"] = json!({"type": "ephemeral"});
                }
                let mut found = 0;
                for question in others {
                    let answer = server.ask(path, &body(part.clone(), question)).await;
                    found = answer.pointer(cached).and_then(Value::as_u64).unwrap_or(0);
                }
                let num_tokens = server.ids(&text).len() as u64;
                if is_marked {
                    // A few tokens of the template stand before the text.
                    let expect = num_tokens - 1..num_tokens + 20;
                    assert!(expect.contains(&found), "{path}: {found} of {num_tokens}");
                } else {
                    assert!(found < 64, "{path}: {found} without a mark");
                }
            }
        }
    }
}

/// The position is that of the block's end to the token.
#[tokio::test]
async fn a_marked_block_is_cached_to_its_end() {
    let server = Server::roomy().await;
    server.say("So it is.");
    let mut seed = 6;
    let (one, two) = (words(&mut seed, 100), words(&mut seed, 100));
    let marked =
        |text: &str| json!({"type": "text", "text": text, "cache_control": {"type": "ephemeral"}});
    let body = |parts: &[Value]| request(&[json!({"role": "user", "content": parts})], true);
    let last = |text: &str| json!({"type": "text", "text": text});
    let first = body(&[marked(&one), marked(&two), last("What is it?")]);
    assert_eq!(cached_tokens(&server, &first).await, 0);
    for (parts, end) in [
        (vec![last(&one), last(&two), last("Who was there?")], &two),
        (vec![last(&one), last("Where was it?")], &one),
        // The message that ends with the block has the prefix, too.
        (vec![last(&one)], &one),
    ] {
        let other = body(&parts);
        let ids = prompt_ids(&server, &other).await;
        let cached = cached_tokens(&server, &other).await;
        let text = server.tokenizer.decode(&ids[..cached]);
        assert!(text.ends_with(end.as_str()), "{}", &text[text.len() - 40..]);
    }
}
