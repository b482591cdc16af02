//! `/v1/chat/completions`.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;

use super::choice::{Choice, ChoiceOptions, Delta, Finish};
use super::fields::{Fields, parse_object};
use super::generation::{Generation, GenerationOptions, PromptRequest, ThinkingStart};
use super::models::json;
use super::params::{Loaded, Params, ReasoningField, Route};
use super::prompt::{self, ChatPrompt};
use super::stream::{self, Chunks, Head};
use super::thinking::Thinking;
use super::types::{
    ChatChoice, ChatChunkChoice, ChatDelta, ChatEntries, ChatLogprobs, ChatMessage, Extras,
};
use super::{messages, types};
use crate::chat::Message;
use crate::error::ApiError;
use crate::state::{AppState, RequestContext, Response};

/// Answers a generating request.
pub async fn create(ctx: RequestContext, body: Bytes) -> Result<Response, ApiError> {
    let state = Arc::clone(&ctx.state);
    let (request, prompt) = prompt::off_thread(move || {
        let request = ChatRequest::read(&parse_object(&body)?, &state)?;
        let prompt = prompt::render_chat(&state, &request.messages, &request.thinking, true)?;
        Ok((request, prompt))
    })
    .await?;
    let mut generation = start(&ctx, &request, &prompt)?;
    let view = ChatView::new(&ctx, request);
    if view.stream {
        return Ok(stream::respond(&ctx, generation, view));
    }
    generation.finish().await?;
    Ok(view.answer(&mut generation))
}

/// A chat request, checked.
struct ChatRequest {
    params: Params,
    messages: Vec<Message>,
    thinking: Thinking,
    /// Whether the choice shows log-probabilities.
    logprobs: bool,
}

impl ChatRequest {
    fn read(body: &serde_json::Map<String, Value>, state: &AppState) -> Result<Self, ApiError> {
        let fields = Fields::root(body);
        let mut params = Params::read(&fields, Route::Chat, &Loaded::of(state))?;
        let logprobs = fields.bool("logprobs")?.unwrap_or(false);
        let top_logprobs = fields.int("top_logprobs", 0..=20)?;
        if top_logprobs.is_some() && !logprobs {
            return Err(ApiError::invalid_value(
                fields.path("top_logprobs"),
                "needs 'logprobs': true",
            ));
        }
        params.sampling.logprobs = logprobs.then_some(top_logprobs.unwrap_or(0) as u32);
        check_format(&fields)?;
        check_tools(&fields)?;
        check_unserved(&fields)?;
        Ok(Self {
            thinking: Thinking::read(&fields)?,
            messages: messages::read(&fields)?,
            params,
            logprobs,
        })
    }
}

/// Only text, until grammars are served.
fn check_format(fields: &Fields<'_>) -> Result<(), ApiError> {
    let Some(format) = fields.object("response_format")? else {
        return Ok(());
    };
    let kinds = &["text", "json_object", "json_schema"];
    let kind = format.word("type", kinds)?;
    match kind.ok_or_else(|| format.missing("type"))? {
        "text" => return Ok(()),
        "json_schema" => {
            let schema = format
                .object("json_schema")?
                .ok_or_else(|| format.missing("json_schema"))?;
            check_name(&schema)?;
        }
        _ => {}
    }
    Err(ApiError::unsupported(
        fields.path("response_format"),
        "constrained output is not served yet: only {\"type\": \"text\"}",
    ))
}

/// `name` is there and made of 1 to 64 letters, digits, `_` and `-`.
fn check_name(fields: &Fields<'_>) -> Result<(), ApiError> {
    let name = fields
        .string("name")?
        .ok_or_else(|| fields.missing("name"))?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if !(1..=64).contains(&name.len()) || !name.bytes().all(plain) {
        let message = "must be 1 to 64 letters, digits, '_' or '-'";
        return Err(ApiError::invalid_value(fields.path("name"), message));
    }
    Ok(())
}

/// No tools, until their calls are served; never silence.
fn check_tools(fields: &Fields<'_>) -> Result<(), ApiError> {
    let unsupported = |name: &str| {
        let message = "tool calls are not served yet";
        Err(ApiError::unsupported(fields.path(name), message))
    };
    fields.bool("parallel_tool_calls")?;
    if fields
        .array("tools")?
        .is_some_and(|tools| !tools.is_empty())
    {
        return unsupported("tools");
    }
    if let Some(functions) = fields.array("functions")? {
        if !(1..=128).contains(&functions.len()) {
            let message = format!("must hold 1 to 128 functions, holds {}", functions.len());
            return Err(ApiError::invalid_value(fields.path("functions"), message));
        }
        return unsupported("functions");
    }
    for name in ["tool_choice", "function_call"] {
        match fields.get(name) {
            None => {}
            Some(Value::String(choice)) if choice == "none" => {}
            Some(Value::String(_) | Value::Object(_)) => {
                let message = "needs tools: only \"none\" without them";
                return Err(ApiError::invalid_value(fields.path(name), message));
            }
            Some(other) => {
                let expected = "a string or an object";
                return Err(ApiError::invalid_type(fields.path(name), expected, other));
            }
        }
    }
    Ok(())
}

/// What other servers of this API do with more than text, and what has no effect here.
fn check_unserved(fields: &Fields<'_>) -> Result<(), ApiError> {
    for name in ["audio", "web_search_options"] {
        if fields.get(name).is_some() {
            let message = format!("'{name}' is not served: this model reads and writes text");
            return Err(ApiError::unsupported(fields.path(name), message));
        }
    }
    fields.word("verbosity", &["low", "medium", "high"])?;
    if let Some(modalities) = fields.array("modalities")?
        && (modalities.iter().any(|kind| kind != "text") || modalities.is_empty())
    {
        return Err(ApiError::bad_request(
            "unsupported_value",
            Some(fields.path("modalities")),
            "only [\"text\"] is served",
        ));
    }
    if let Some(prediction) = fields.object("prediction")? {
        let kind = prediction.word("type", &["content"])?;
        kind.ok_or_else(|| prediction.missing("type"))?;
        match prediction.get("content") {
            None => return Err(prediction.missing("content")),
            Some(Value::String(_)) => {}
            Some(Value::Array(parts)) => {
                for (j, part) in parts.iter().enumerate() {
                    let path = format!("{}[{j}]", prediction.path("content"));
                    let part = Fields::of(part, path)?;
                    part.string("text")?.ok_or_else(|| part.missing("text"))?;
                }
            }
            Some(other) => {
                let path = prediction.path("content");
                return Err(ApiError::invalid_type(
                    path,
                    "a string or text parts",
                    other,
                ));
            }
        }
    }
    Ok(())
}

fn start(
    ctx: &RequestContext,
    request: &ChatRequest,
    prompt: &ChatPrompt,
) -> Result<Generation, ApiError> {
    let params = &request.params;
    let mut sampling = params.sampling.clone();
    sampling.max_tokens = params.max_tokens_after(prompt.ids.len(), &ctx.state.info, "messages")?;
    let options = GenerationOptions {
        num_choices: params.num_choices,
        cache_salt: Arc::clone(&params.cache_salt),
        echo: false,
        param: "messages",
        thinking: Some(ThinkingStart {
            open: prompt.thinking,
            allowed: request.thinking.enabled,
        }),
        choice: ChoiceOptions {
            tokenizer: ctx.state.tokenizer.clone(),
            stop: params.stop.clone(),
            min_tokens: sampling.min_tokens,
            logprobs: request.logprobs,
            force_nonempty_content: request.thinking.force_nonempty_content,
        },
    };
    let prompts = vec![PromptRequest {
        ids: prompt.ids.as_slice().into(),
        sampling: Arc::new(sampling),
    }];
    Generation::start(ctx.clone(), prompts, &options)
}

/// How a generation looks as chat.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch of the request"
)]
struct ChatView {
    head: Head,
    stream: bool,
    logprobs: bool,
    return_token_ids: bool,
    prompt_logprobs: bool,
    /// `None`: thoughts are not returned.
    reasoning_field: Option<ReasoningField>,
}

impl ChatView {
    fn new(ctx: &RequestContext, request: ChatRequest) -> Self {
        let params = request.params;
        let object = if params.stream {
            "chat.completion.chunk"
        } else {
            "chat.completion"
        };
        Self {
            head: Head {
                service_tier: Some("default"),
                include_usage: params.include_usage,
                ..Head::new(ctx, "chatcmpl-", object, params.model)
            },
            stream: params.stream,
            logprobs: request.logprobs,
            return_token_ids: params.return_token_ids,
            prompt_logprobs: params.prompt_logprobs.is_some(),
            reasoning_field: (!request.thinking.exclude)
                .then_some(ctx.state.defaults.reasoning_field),
        }
    }

    fn answer(&self, generation: &mut Generation) -> Response {
        let deltas: Vec<Delta> = generation.choices().iter_mut().map(Choice::take).collect();
        let scores = self.scores(generation, 0);
        let choices: Vec<ChatChoice<'_>> = deltas
            .iter()
            .enumerate()
            .map(|(index, delta)| {
                let [reasoning_content, reasoning] = self.reasoning(&delta.reasoning);
                ChatChoice {
                    index,
                    message: ChatMessage {
                        role: "assistant",
                        content: &delta.content,
                        refusal: None,
                        annotations: [],
                        reasoning_content,
                        reasoning,
                    },
                    logprobs: self.logprobs(delta),
                    finish_reason: delta.finish.map(Finish::as_str),
                    extras: Extras {
                        prompt_token_ids: self
                            .return_token_ids
                            .then(|| &**generation.prompt_of(index)),
                        token_ids: self.return_token_ids.then_some(&delta.token_ids),
                        prompt_logprobs: scores.as_ref(),
                    },
                }
            })
            .collect();
        json(&self.head.answer(&choices, &generation.usage()))
    }

    fn scores(&self, generation: &Generation, choice: usize) -> Option<types::PromptScores> {
        self.prompt_logprobs
            .then(|| generation.prompt_scores(choice))
            .flatten()
    }

    fn logprobs<'a>(&self, delta: &'a Delta) -> Option<ChatLogprobs<'a>> {
        self.logprobs.then_some(ChatLogprobs {
            content: ChatEntries(&delta.entries),
            refusal: None,
        })
    }

    /// `reasoning_content` and `reasoning`, as far as they are shown.
    fn reasoning<'a>(&self, text: &'a str) -> [Option<&'a str>; 2] {
        let text = Some(text).filter(|text| !text.is_empty());
        match self.reasoning_field {
            None => [None, None],
            Some(ReasoningField::ReasoningContent) => [text, None],
            Some(ReasoningField::Reasoning) => [None, text],
            Some(ReasoningField::Both) => [text, text],
        }
    }
}

impl Chunks for ChatView {
    fn open(&self, generation: &mut Generation, frame: &mut Vec<u8>) {
        for index in 0..generation.choices().len() {
            let ids = generation.prompt_of(index);
            let choice = ChatChunkChoice {
                index,
                delta: ChatDelta {
                    role: Some("assistant"),
                    content: Some(""),
                    ..ChatDelta::default()
                },
                logprobs: None,
                finish_reason: None,
                extras: Extras {
                    prompt_token_ids: self.return_token_ids.then_some(ids),
                    ..Extras::default()
                },
            };
            self.head.chunk(choice, frame);
        }
    }

    fn update(&self, generation: &mut Generation, index: usize, frame: &mut Vec<u8>) {
        let delta = generation.choices()[index].take();
        let mut token_ids =
            Some(delta.token_ids.as_slice()).filter(|ids| self.return_token_ids && !ids.is_empty());
        let mut chunk = |shown: ChatDelta<'_>, logprobs, extras| {
            let choice = ChatChunkChoice {
                index,
                delta: shown,
                logprobs,
                finish_reason: None,
                extras,
            };
            self.head.chunk(choice, frame);
        };
        let mut extras = || Extras {
            token_ids: token_ids.take(),
            ..Extras::default()
        };
        let [reasoning_content, reasoning] = self.reasoning(&delta.reasoning);
        if reasoning_content.is_some() || reasoning.is_some() {
            let shown = ChatDelta {
                reasoning_content,
                reasoning,
                ..ChatDelta::default()
            };
            chunk(shown, None, extras());
        }
        if !delta.content.is_empty() || !delta.entries.is_empty() {
            let shown = ChatDelta {
                content: Some(&delta.content),
                ..ChatDelta::default()
            };
            chunk(shown, self.logprobs(&delta), extras());
        }
        let Some(finish) = delta.finish else {
            if token_ids.is_some() {
                let extras = Extras {
                    token_ids,
                    ..Extras::default()
                };
                chunk(ChatDelta::default(), None, extras);
            }
            return;
        };
        let scores = self.scores(generation, index);
        let choice = ChatChunkChoice {
            index,
            delta: ChatDelta::default(),
            logprobs: None,
            finish_reason: Some(finish.as_str()),
            extras: Extras {
                token_ids,
                prompt_logprobs: scores.as_ref(),
                ..Extras::default()
            },
        };
        self.head.chunk(choice, frame);
    }

    fn head(&self) -> &Head {
        &self.head
    }
}
