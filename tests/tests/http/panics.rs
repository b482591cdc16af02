//! A bug of ours in the middle of a stream: its client is told, and nobody else notices.

use std::sync::Arc;
use std::time::Instant;

use http_body_util::BodyExt as _;
use nemoserve::api::choice::ChoiceOptions;
use nemoserve::api::flavour::Flavour;
use nemoserve::api::generation::{Generation, GenerationOptions, PromptRequest};
use nemoserve::api::stream::{Chunks, Head, respond};
use nemoserve::error::ApiError;
use nemoserve::state::RequestContext;
use nemoserve::text::StopStrings;
use scheduler::SamplingParams;
use serde_json::{Value, json};

use crate::harness::{MODEL, Server, completion};

/// Panics at the first token.
struct Buggy(Head);

impl Chunks for Buggy {
    fn open(&mut self, _generation: &mut Generation, frame: &mut Vec<u8>) {
        self.0.chunk(json!({"index": 0}), frame);
    }

    fn update(&mut self, _generation: &mut Generation, _choice: usize, frame: &mut Vec<u8>) {
        frame.extend_from_slice(b"data: {\"half\":");
        panic!("a bug in it");
    }

    fn close(
        &mut self,
        generation: &mut Generation,
        error: Option<&ApiError>,
        frame: &mut Vec<u8>,
    ) {
        self.0.close(generation, error, frame);
    }
}

fn context(server: &Server, flavour: Flavour) -> RequestContext {
    RequestContext {
        state: Arc::clone(&server.state),
        request_id: "req_7".into(),
        route: "/v1/completions",
        flavour,
        query: None,
        tenant: Arc::clone(server.state.admission.anybody()),
        ticket: None,
        deadline: None,
        priority: None,
        received: Instant::now(),
        tokens: Arc::default(),
        generation: Arc::default(),
        timeline: Arc::default(),
    }
}

fn endless(ctx: &RequestContext) -> Generation {
    let sampling = SamplingParams {
        max_tokens: 60_000,
        ..SamplingParams::default()
    };
    let request = PromptRequest {
        ids: [300, 301].into(),
        sampling: Arc::new(sampling),
        guide: None,
        breakpoints: Vec::new(),
    };
    let options = GenerationOptions {
        num_choices: 1,
        cache_salt: "".into(),
        priority: None,
        echo: false,
        param: "prompt",
        choice: ChoiceOptions {
            tokenizer: ctx.state.tokenizer.clone(),
            stop: StopStrings::default(),
            min_tokens: 0,
            logprobs: false,
            force_nonempty_content: false,
            calls: None,
        },
        thinking: None,
    };
    Generation::start(ctx.clone(), vec![request], &options).expect("it is admitted")
}

#[tokio::test]
async fn a_panic_in_a_stream_is_its_last_event() {
    let server = Server::start().await;
    for (flavour, num_panics) in [(Flavour::OpenAi, 1.0), (Flavour::OpenRouter, 2.0)] {
        let ctx = context(&server, flavour);
        let head = Head::new(&ctx, "cmpl-", "text_completion", MODEL.into());
        let response = respond(&ctx, endless(&ctx), Buggy(head));
        let body = response.into_body().collect().await;
        let body = body.expect("it ends in order").to_bytes();
        let text = std::str::from_utf8(&body).expect("UTF-8");
        let events: Vec<_> = text.split_terminator("\n\n").collect();
        let [_opening, error, "data: [DONE]"] = events[..] else {
            panic!("{text}");
        };
        let error = error.strip_prefix("data: ").expect("an event");
        let error: Value = serde_json::from_str(error).expect("JSON");
        let message = error["error"]["message"].as_str().expect("text");
        assert!(message.contains("req_7"), "{message}");
        assert!(!message.contains("a bug in it"), "{message}");
        let panics = server.metric("nemoserve_panics_contained_total").await;
        assert_eq!(panics, Some(num_panics));
    }
    let failed = "nemoserve_choices_finished_total{finished_reason=\"error\"}";
    assert_eq!(server.metric(failed).await, Some(2.0));
    // Nothing runs on, and others are served.
    server
        .metric_becomes("nemoserve_requests_running", 0.0)
        .await;
    let reply = server.post("/v1/completions", &completion(3, false)).await;
    assert_eq!(reply.status, 200);
}
