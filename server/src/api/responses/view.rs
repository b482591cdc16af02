//! A generation as a response object, whole and in events.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::output::{Events, Output};
use super::request::Shape;
use super::store::StoredResponse;
use crate::api::chat::ChatRequest;
use crate::api::choice::Finish;
use crate::api::generation::Generation;
use crate::api::models::json;
use crate::api::params::unique_id;
use crate::api::stream::Chunks;
use crate::api::types::Usage;
use crate::error::ApiError;
use crate::state::{AppState, RequestContext, Response};

/// How a generation looks as a response.
pub(super) struct ResponsesView {
    state: Arc<AppState>,
    key: Option<usize>,
    id: String,
    created_at: u64,
    echo: Map<String, Value>,
    input: Option<Vec<Value>>,
    previous: Option<Arc<str>>,
    output: Output,
    events: Events,
    finish: Option<Finish>,
}

/// How far a response is.
enum Status<'a> {
    InProgress,
    Over(Finish),
    Failed(&'a ApiError),
}

impl ResponsesView {
    /// For a request that was just admitted.
    pub(super) fn new(ctx: &RequestContext, request: &ChatRequest, shape: Shape) -> Self {
        let params = &request.params;
        let mut echo = shape.echo;
        for (name, value) in [
            ("temperature", params.sampling.temperature),
            ("top_p", params.sampling.top_p),
        ] {
            if echo[name].is_null() {
                // 0.95 as it was written, not as the nearest double of the nearest float.
                let shortest = value.to_string().parse::<f64>();
                echo[name] = shortest.expect("a float prints as a number").into();
            }
        }
        echo.insert("model".into(), params.model.as_str().into());
        let id = unique_id("resp_");
        ctx.name_generation(&id, &params.model);
        Self {
            state: Arc::clone(&ctx.state),
            key: ctx.key(),
            id,
            created_at: now(),
            echo,
            input: shape.input,
            previous: shape.previous,
            output: Output::new(
                !request.thinking.exclude,
                shape.sealed_reasoning,
                shape.logprobs,
            ),
            events: Events::new(params.stream),
            finish: None,
        }
    }

    /// The whole answer; runs the generation to its end.
    pub(super) async fn answer(mut self, mut generation: Generation) -> Result<Response, ApiError> {
        while let Some(choice) = generation.next().await? {
            self.take(&mut generation, choice, &mut Vec::new());
        }
        let finish = self.finish.expect("the generation is over");
        let object = self.object(&Status::Over(finish), Some(generation.usage()));
        self.store(&object);
        Ok(json(&object))
    }

    fn take(&mut self, generation: &mut Generation, choice: usize, frame: &mut Vec<u8>) {
        let delta = generation.choices()[choice].take();
        self.finish = self.finish.or(delta.finish);
        self.output.push(delta, &mut self.events, frame);
    }

    fn object(&self, status: &Status<'_>, usage: Option<Usage>) -> Value {
        let (word, error, incomplete) = match status {
            Status::InProgress => ("in_progress", Value::Null, Value::Null),
            Status::Over(Finish::Length) => (
                "incomplete",
                Value::Null,
                json!({"reason": "max_output_tokens"}),
            ),
            Status::Over(Finish::Stop | Finish::ToolCalls) => {
                ("completed", Value::Null, Value::Null)
            }
            Status::Failed(error) => (
                "failed",
                json!({"code": "server_error", "message": error.message}),
                Value::Null,
            ),
        };
        let mut object = json!({
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "completed_at": (word == "completed").then(now),
            "status": word,
            "error": error,
            "incomplete_details": incomplete,
            "output": self.output.items(),
            "usage": usage.as_ref().map(shown_usage),
        });
        let members = object.as_object_mut().expect("it is written as one");
        members.extend(self.echo.clone());
        object
    }

    fn store(&mut self, object: &Value) {
        let Some(input) = self.input.take() else {
            return;
        };
        let response = StoredResponse {
            key: self.key,
            object: object.to_string(),
            input: Value::from(input).to_string(),
            previous: self.previous.take(),
        };
        let ids = self.output.ids();
        self.state.responses.insert(&self.id, &ids, response);
    }
}

impl Chunks for ResponsesView {
    fn open(&mut self, _generation: &mut Generation, frame: &mut Vec<u8>) {
        let object = self.object(&Status::InProgress, None);
        for kind in ["response.created", "response.in_progress"] {
            self.events
                .emit(kind, frame, || json!({"response": object.clone()}));
        }
    }

    fn update(&mut self, generation: &mut Generation, choice: usize, frame: &mut Vec<u8>) {
        self.take(generation, choice, frame);
    }

    fn close(
        &mut self,
        generation: &mut Generation,
        error: Option<&ApiError>,
        frame: &mut Vec<u8>,
    ) {
        let (kind, status) = match (error, self.finish) {
            (Some(error), _) => ("response.failed", Status::Failed(error)),
            (None, Some(Finish::Length)) => ("response.incomplete", Status::Over(Finish::Length)),
            (None, finish) => {
                let finish = finish.expect("the generation is over");
                ("response.completed", Status::Over(finish))
            }
        };
        let object = self.object(&status, Some(generation.usage()));
        if error.is_none() {
            self.store(&object);
        }
        self.events
            .emit(kind, frame, || json!({"response": object}));
    }
}

fn shown_usage(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.prompt,
        // The cache keeps what it can without being asked and without a price.
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt + usage.completion,
    })
}

fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
