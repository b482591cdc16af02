//! A generation as chat completions, whole and in chunks.

use super::calls;
use super::request::ChatRequest;
use crate::api::choice::{Choice, Delta, Finish};
use crate::api::extras::ExtraFields;
use crate::api::flavour::Flavour;
use crate::api::generation::Generation;
use crate::api::models;
use crate::api::params::ReasoningField;
use crate::api::stream::{Chunks, Head};
use crate::api::types::{
    ChatChoice, ChatChunkChoice, ChatDelta, ChatEntries, ChatLogprobs, ChatMessage,
    ReasoningDetail, Thoughts,
};
use crate::error::ApiError;
use crate::sse;
use crate::state::{RequestContext, Response};

/// How a generation looks as chat.
pub struct ChatView {
    head: Head,
    /// Events instead of one answer.
    pub stream: bool,
    logprobs: bool,
    extras: ExtraFields,
    /// Calls go back as `function_call`.
    legacy_calls: bool,
    /// `None`: thoughts are not returned.
    reasoning_field: Option<ReasoningField>,
}

impl ChatView {
    /// For a request that was just admitted.
    pub fn new(ctx: &RequestContext, request: ChatRequest) -> Self {
        let params = request.params;
        let object = if params.stream {
            "chat.completion.chunk"
        } else {
            "chat.completion"
        };
        let reasoning_field = if ctx.flavour == Flavour::OpenRouter {
            ReasoningField::Reasoning
        } else {
            ctx.state.defaults.reasoning_field
        };
        Self {
            extras: ExtraFields::of(&params, ctx.flavour),
            head: Head {
                service_tier: Some("default"),
                include_usage: params.include_usage || ctx.flavour.always_counts(),
                ..Head::new(ctx, "chatcmpl-", object, params.model)
            },
            stream: params.stream,
            logprobs: request.logprobs,
            legacy_calls: request.tools.legacy,
            reasoning_field: (!request.thinking.exclude).then_some(reasoning_field),
        }
    }

    /// The whole answer, once the generation is over.
    pub fn answer(&self, generation: &mut Generation) -> Response {
        models::json_text(self.text(generation))
    }

    /// The body of the whole answer, for flavours that wrap it.
    pub fn text(&self, generation: &mut Generation) -> Vec<u8> {
        let deltas: Vec<Delta> = generation.choices().iter_mut().map(Choice::take).collect();
        let scores = self.extras.scores(generation, 0);
        let choices: Vec<ChatChoice<'_>> = deltas
            .iter()
            .enumerate()
            .map(|(index, delta)| ChatChoice {
                index,
                message: ChatMessage {
                    role: "assistant",
                    content: content(delta),
                    refusal: None,
                    annotations: [],
                    thoughts: self.thoughts(index, &delta.reasoning),
                    calls: calls::message(&delta.calls, self.legacy_calls),
                },
                logprobs: self.logprobs(delta),
                finish_reason: delta.finish.map(|finish| self.finish_reason(finish)),
                extras: self
                    .extras
                    .whole(generation.prompt_of(index), delta, scores.as_ref()),
            })
            .collect();
        let usage = generation.usage();
        let answer = self.head.answer(&choices, &usage);
        serde_json::to_vec(&answer).expect("our own types are JSON")
    }

    fn finish_reason(&self, finish: Finish) -> &'static str {
        calls::finish_reason(finish, self.legacy_calls)
    }

    fn logprobs<'a>(&self, delta: &'a Delta) -> Option<ChatLogprobs<'a>> {
        self.logprobs.then_some(ChatLogprobs {
            content: ChatEntries(&delta.entries),
            refusal: None,
        })
    }

    /// What a choice thought, as far as it is shown.
    fn thoughts<'a>(&self, choice: usize, text: &'a str) -> Thoughts<'a> {
        let Some(field) = self.reasoning_field.filter(|_| !text.is_empty()) else {
            return Thoughts::default();
        };
        Thoughts {
            reasoning_content: (field != ReasoningField::Reasoning).then_some(text),
            reasoning: (field != ReasoningField::ReasoningContent).then_some(text),
            reasoning_details: (self.head.flavour == Flavour::OpenRouter).then(|| {
                [ReasoningDetail {
                    kind: "reasoning.text",
                    text,
                    signature: None,
                    id: format!("reasoning-text-{choice}"),
                    format: "unknown",
                    index: 0,
                }]
            }),
        }
    }
}

/// The answer's text, unless there is none beside calls. Blanks around calls are none of it.
fn content(delta: &Delta) -> Option<&str> {
    Some(&*delta.content).filter(|text| delta.calls.is_empty() || !text.is_empty())
}

impl Chunks for ChatView {
    fn open(&mut self, generation: &mut Generation, frame: &mut Vec<u8>) {
        for index in 0..generation.choices().len() {
            let choice = ChatChunkChoice {
                index,
                delta: ChatDelta {
                    role: Some("assistant"),
                    content: Some(""),
                    ..ChatDelta::default()
                },
                logprobs: None,
                finish_reason: None,
                extras: self.extras.opening(generation.prompt_of(index)),
            };
            self.head.chunk(choice, frame);
        }
    }

    fn update(&mut self, generation: &mut Generation, index: usize, frame: &mut Vec<u8>) {
        let delta = generation.choices()[index].take();
        let mut extras = self.extras.chunks(&delta);
        let mut chunk = |shown: ChatDelta<'_>, logprobs, finish: Option<Finish>, extras| {
            let choice = ChatChunkChoice {
                index,
                delta: shown,
                logprobs,
                finish_reason: finish.map(|finish| self.finish_reason(finish)),
                extras,
            };
            self.head.chunk(choice, frame);
        };
        if self.reasoning_field.is_some() && !delta.reasoning.is_empty() {
            let shown = ChatDelta {
                thoughts: self.thoughts(index, &delta.reasoning),
                ..ChatDelta::default()
            };
            chunk(shown, None, None, extras.chunk());
        }
        if !delta.content.is_empty() || !delta.entries.is_empty() {
            let shown = ChatDelta {
                content: Some(&delta.content),
                ..ChatDelta::default()
            };
            chunk(shown, self.logprobs(&delta), None, extras.chunk());
        }
        for calls in calls::deltas(&delta.calls, self.legacy_calls) {
            let shown = ChatDelta {
                calls,
                ..ChatDelta::default()
            };
            chunk(shown, None, None, extras.chunk());
        }
        let scores = delta
            .finish
            .and_then(|_| self.extras.scores(generation, index));
        if let Some(extras) = extras.last(delta.finish, scores.as_ref()) {
            chunk(ChatDelta::default(), None, delta.finish, extras);
        }
    }

    fn close(
        &mut self,
        generation: &mut Generation,
        error: Option<&ApiError>,
        frame: &mut Vec<u8>,
    ) {
        self.head.close(generation, error, frame);
    }

    fn keep_alive(&self) -> &'static [u8] {
        sse::keep_alive(self.head.flavour)
    }
}
