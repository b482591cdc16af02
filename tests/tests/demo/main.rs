//! The embedded demo model over a real socket: company changes no byte.

mod pressure;

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use nemoserve::args::ServeArgs;
use nemoserve::config::Settings;
use nemoserve::{serve, startup};
use serde_json::{Value, json};
use tokio::net::TcpListener;

const NUM_STREAMS: usize = 64;

/// A running daemon and a client of it.
struct Daemon {
    base: String,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Daemon {
    async fn start() -> Self {
        Self::start_with(&ServeArgs::default()).await
    }

    async fn start_with(args: &ServeArgs) -> Self {
        let settings = Settings::new(args).expect("they are valid");
        let state = Arc::new(startup::open(settings).expect("the embedded model is sound"));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let base = format!("http://{}", listener.local_addr().expect("bound"));
        tokio::spawn(serve(listener, state, std::future::pending()));
        let client = Client::builder(TokioExecutor::new()).build_http();
        let daemon = Self { base, client };
        while daemon.status("/ready").await != 200 {
            tokio::task::yield_now().await;
        }
        daemon
    }

    async fn status(&self, path: &str) -> u16 {
        let uri = format!("{}{path}", self.base).parse().expect("a URI");
        self.client
            .get(uri)
            .await
            .expect("an answer")
            .status()
            .as_u16()
    }

    async fn get(&self, path: &str) -> String {
        let uri = format!("{}{path}", self.base).parse().expect("a URI");
        let response = self.client.get(uri).await.expect("an answer");
        let bytes = response.into_body().collect().await.expect("a whole body");
        String::from_utf8(bytes.to_bytes().to_vec()).expect("UTF-8")
    }

    /// What `/metrics` says of a count.
    async fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics").await;
        let mut lines = text.lines().filter_map(|line| line.split_once(' '));
        let found = lines.find(|(sample, _)| *sample == name);
        let (_, value) = found.unwrap_or_else(|| panic!("no {name}"));
        value.parse::<f64>().expect("samples are numbers") as u64
    }

    async fn post(&self, path: &str, body: &Value) -> String {
        let request = hyper::Request::post(format!("{}{path}", self.base))
            .body(Full::from(body.to_string()))
            .expect("a request");
        let response = self.client.request(request).await.expect("an answer");
        assert_eq!(response.status(), 200, "{body}");
        let bytes = response
            .into_body()
            .collect()
            .await
            .expect("a whole body")
            .to_bytes();
        String::from_utf8(bytes.to_vec()).expect("UTF-8")
    }

    /// The answer to `question` as (reasoning, content, logprobs, finish reason), streamed or not.
    async fn ask(&self, question: &str, stream: bool) -> (String, String, Vec<Value>, Value) {
        let body = json!({
            "model": "nvidia/nemotron-3-super-120b-a12b",
            "messages": [{"role": "user", "content": question}],
            "temperature": 0, "max_tokens": 120, "logprobs": true, "top_logprobs": 2,
            "stream": stream,
        });
        let text = self.post("/v1/chat/completions", &body).await;
        if !stream {
            let answer: Value = serde_json::from_str(&text).expect("JSON");
            let choice = &answer["choices"][0];
            return fold([(&choice["message"], choice)]);
        }
        let events: Vec<Value> = text
            .lines()
            .filter_map(|line| line.strip_prefix("data: "))
            .filter(|data| *data != "[DONE]")
            .map(|data| serde_json::from_str(data).expect("JSON"))
            .collect();
        fold(events.iter().map(|event| {
            let choice = &event["choices"][0];
            (&choice["delta"], choice)
        }))
    }
}

fn fold<'a>(
    parts: impl IntoIterator<Item = (&'a Value, &'a Value)>,
) -> (String, String, Vec<Value>, Value) {
    let (mut reasoning, mut content) = (String::new(), String::new());
    let (mut logprobs, mut finish) = (Vec::new(), Value::Null);
    for (message, choice) in parts {
        reasoning += message["reasoning_content"].as_str().unwrap_or_default();
        content += message["content"].as_str().unwrap_or_default();
        logprobs.extend(
            choice["logprobs"]["content"]
                .as_array()
                .cloned()
                .unwrap_or_default(),
        );
        if !choice["finish_reason"].is_null() {
            finish = choice["finish_reason"].clone();
        }
    }
    (reasoning, content, logprobs, finish)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_streams_say_what_each_says_alone() {
    let daemon = Arc::new(Daemon::start().await);
    let questions = [
        "Hello!",
        "What is the capital of France?",
        "What is 12 + 35?",
        "Tell me a short story.",
        "Who are you?",
        "Spell the word river.",
        "Name three animals, please, and then say what you know about the sun.",
    ];
    let mut alone = Vec::new();
    for question in questions {
        alone.push(daemon.ask(question, false).await);
    }
    assert!(
        alone.iter().any(|(_, content, _, _)| !content.is_empty()),
        "somebody answers"
    );

    let streams: Vec<_> = (0..NUM_STREAMS)
        .map(|i| {
            let daemon = Arc::clone(&daemon);
            let question = questions[i % questions.len()];
            tokio::spawn(async move { daemon.ask(question, true).await })
        })
        .collect();
    for (i, stream) in streams.into_iter().enumerate() {
        let together = stream.await.expect("the stream's task ends well");
        assert_eq!(
            together,
            alone[i % questions.len()],
            "{}",
            questions[i % questions.len()]
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_prompt_is_cached_and_answers_the_same() {
    let daemon = Daemon::start().await;
    let sentence = "The red fox sleeps near the old mill and dreams of a long river. ";
    let body = json!({
        "model": "nvidia/nemotron-3-super-120b-a12b", "temperature": 0, "max_tokens": 24,
        "messages": [{"role": "user", "content": sentence.repeat(90)}],
    });
    let mut answers = Vec::new();
    for _ in 0..2 {
        let text = daemon.post("/v1/chat/completions", &body).await;
        answers.push(serde_json::from_str::<Value>(&text).expect("JSON"));
    }
    let [first, second] = &answers[..] else {
        unreachable!("two were asked for")
    };
    assert_eq!(
        first["choices"], second["choices"],
        "a hit changes no output"
    );
    let prompt = second["usage"]["prompt_tokens"].as_u64().expect("a count");
    let cached = second["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
    assert!(prompt >= 1024, "{prompt} tokens");
    assert!(
        cached.expect("a count") >= prompt / 2,
        "{cached:?} of {prompt} cached"
    );
}

/// Tokens guessed ahead show in `usage` and in `/metrics`, and nowhere else: with stop strings, schemas,
/// several choices and penalties, streamed or not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drafts_show_in_the_counts_alone() {
    let drafting = Daemon::start_with(&ServeArgs {
        speculative_tokens: Some("3".into()),
        ..ServeArgs::default()
    })
    .await;
    let plain = Daemon::start().await;
    let schema = json!({"type": "object", "additionalProperties": false, "required": ["city"],
        "properties": {"city": {"type": "string", "maxLength": 12}}});
    let format = json!({"type": "json_schema", "json_schema": {"name": "c", "schema": schema}});
    let story = "Tell me a short story.";
    let cases = [
        json!({"temperature": 0, "logprobs": true, "top_logprobs": 2}),
        json!({"temperature": 0.9, "seed": 3, "n": 2}),
        json!({"temperature": 0, "stop": ["ed ", "the"]}),
        json!({"temperature": 0.7, "seed": 4, "frequency_penalty": 0.6}),
        json!({"temperature": 0.7, "seed": 5, "response_format": format}),
        json!({"temperature": 0, "reasoning_budget": 4}),
    ];
    let (mut accepted, mut rejected) = (0, 0);
    for (at, case) in cases.into_iter().enumerate() {
        let mut body = json!({
            "model": "nvidia/nemotron-3-super-120b-a12b", "max_tokens": 60,
            "messages": [{"role": "user", "content": story}],
        });
        let members = body.as_object_mut().expect("an object");
        members.extend(case.as_object().expect("an object").clone());
        let whole = async |daemon: &Daemon| -> Value {
            let text = daemon.post("/v1/chat/completions", &body).await;
            serde_json::from_str(&text).expect("JSON")
        };
        let expect = whole(&plain).await;
        let got = whole(&drafting).await;
        assert_eq!(got["choices"], expect["choices"], "case {at}");
        let count = |answer: &Value, place: &str| {
            let count = answer["usage"].pointer(place).and_then(Value::as_u64);
            count.expect("a count")
        };
        let details = "/completion_tokens_details";
        let drafts = |answer: &Value| {
            let name = |name| count(answer, &format!("{details}/{name}_prediction_tokens"));
            (name("accepted"), name("rejected"))
        };
        for place in [
            "/prompt_tokens",
            "/completion_tokens",
            "/completion_tokens_details/reasoning_tokens",
        ] {
            assert_eq!(count(&got, place), count(&expect, place), "case {at}");
        }
        assert_eq!(drafts(&expect), (0, 0));
        let (whole_accepted, whole_rejected) = drafts(&got);
        assert!(whole_accepted < count(&got, "/completion_tokens"));

        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        let text = drafting.post("/v1/chat/completions", &body).await;
        let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
        let events: Vec<Value> = data
            .filter_map(|data| serde_json::from_str(data).ok())
            .collect();
        let last = events.last().expect("there is usage");
        let (streamed_accepted, streamed_rejected) = drafts(last);
        assert_eq!(
            count(last, "/completion_tokens"),
            count(&expect, "/completion_tokens"),
            "case {at}"
        );
        for (index, choice) in expect["choices"]
            .as_array()
            .expect("a list")
            .iter()
            .enumerate()
        {
            let of_choice = events.iter().map(|event| &event["choices"][0]);
            let of_choice = of_choice.filter(|one| one["index"] == index);
            let streamed = fold(of_choice.map(|one| (&one["delta"], one)));
            assert_eq!(streamed, fold([(&choice["message"], choice)]), "case {at}");
        }
        accepted += whole_accepted + streamed_accepted;
        rejected += whole_rejected + streamed_rejected;
    }
    assert!(accepted > 50 && rejected > 0, "{accepted}, {rejected}");
    // A stop string ends a choice while its next step runs, whose drafts are nobody's.
    let all = drafting.metric("nemoserve_draft_tokens_total").await;
    assert!(all >= accepted + rejected, "{all}: {accepted}, {rejected}");
    let all = drafting.metric("nemoserve_accepted_draft_tokens_total");
    assert!(all.await >= accepted);
}

/// The samples were decoded in f32 by the training code and agree with transformers
/// (`server/demo/training/evaluate.py`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn greedy_tokens_are_those_of_the_training_code() {
    check_greedy_tokens(&Daemon::start().await).await;
}

/// No choice among the samples is so close that the order of a sum could turn it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_ranks_say_what_one_says() {
    for experts in [false, true] {
        let args = ServeArgs {
            tensor_parallel_size: Some(2),
            expert_parallel: Some(experts),
            threads: Some(2),
            ..ServeArgs::default()
        };
        check_greedy_tokens(&Daemon::start_with(&args).await).await;
    }
}

async fn check_greedy_tokens(daemon: &Daemon) {
    let samples: Vec<Value> = serde_json::from_str(include_str!("../../fixtures/demo_greedy.json"))
        .expect("the fixture is JSON");
    assert!(samples.len() >= 20, "{} samples", samples.len());
    for sample in samples {
        let expected = sample["output_ids"].as_array().expect("ids");
        let body = json!({
            "model": "nvidia/nemotron-3-super-120b-a12b", "temperature": 0,
            "prompt": sample["prompt_ids"], "max_tokens": expected.len(), "return_token_ids": true,
        });
        let text = daemon.post("/v1/completions", &body).await;
        let answer: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(
            answer["choices"][0]["token_ids"], sample["output_ids"],
            "{}",
            sample["name"]
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_must_have_a_form_have_it() {
    let daemon = Daemon::start().await;
    let weather = json!({"type": "object", "properties": {
        "city": {"type": "string", "minLength": 1, "maxLength": 12},
        "unit": {"enum": ["celsius", "fahrenheit"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["city", "unit"], "additionalProperties": false});
    let person = json!({"type": "object", "properties": {
        "name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3}},
        "required": ["name", "age", "tags"], "additionalProperties": false});
    let valid = |schema: &Value, text: &Value| {
        let text = text.as_str().expect("text");
        let json: Value = serde_json::from_str(text).expect(text);
        let errors: Vec<String> = jsonschema::validator_for(schema)
            .expect("the schema is valid")
            .iter_errors(&json)
            .map(|error| error.to_string())
            .collect();
        assert!(errors.is_empty(), "{text}: {errors:?}");
    };
    let format = json!({"type": "json_schema", "json_schema": {"name": "p", "schema": person}});
    let tool =
        json!({"type": "function", "function": {"name": "get_weather", "parameters": weather}});
    let mut num_whole = 0;
    for seed in 0..4 {
        let body = json!({
            "model": "nvidia/nemotron-3-super-120b-a12b", "temperature": 1, "seed": seed, "n": 2,
            "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
            "reasoning_budget": 20, "max_tokens": 250,
        });
        let mut call = body.clone();
        call["tools"] = json!([tool]);
        call["tool_choice"] = json!("required");
        call["parallel_tool_calls"] = json!(false);
        let answer: Value =
            serde_json::from_str(&daemon.post("/v1/chat/completions", &call).await).expect("JSON");
        let reasoning = &answer["usage"]["completion_tokens_details"]["reasoning_tokens"];
        assert!(reasoning.as_u64().expect("a count") <= 40, "{answer}");
        for choice in answer["choices"].as_array().expect("choices") {
            assert_eq!(choice["message"]["content"], Value::Null, "{choice}");
            if choice["finish_reason"] == "tool_calls" {
                num_whole += 1;
                let function = &choice["message"]["tool_calls"][0]["function"];
                assert_eq!(function["name"], "get_weather");
                valid(&weather, &function["arguments"]);
            }
        }
        let mut formed = body;
        formed["response_format"] = format.clone();
        let answer: Value =
            serde_json::from_str(&daemon.post("/v1/chat/completions", &formed).await)
                .expect("JSON");
        for choice in answer["choices"].as_array().expect("choices") {
            if choice["finish_reason"] == "stop" {
                num_whole += 1;
                valid(&person, &choice["message"]["content"]);
            }
        }
    }
    assert!(num_whole >= 12, "{num_whole} of 16 answers were not cut");
}
