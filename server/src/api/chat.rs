//! `/v1/chat/completions`, and the one way from a chat request to a generation.

mod calls;
mod guide;
mod request;
mod view;

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Map, Value};

use super::breakpoints;
use super::choice::ChoiceOptions;
use super::fields::parse_object;
use super::flavour::Flavour;
use super::flavours::{self, nvidia};
use super::generation::{Generation, GenerationOptions, PromptRequest, ThinkingStart};
use super::prompt::{self, ChatPrompt};
use super::stream;
use crate::admission;
use crate::chat::{Message, ToolCallFormat, ToolSet};
use crate::error::ApiError;
use crate::state::{AppState, RequestContext, Response};

pub use request::ChatRequest;
pub use view::ChatView;

/// Answers a generating request.
pub async fn create(ctx: RequestContext, body: Bytes) -> Result<Response, ApiError> {
    let (request, prompt) = read(&ctx, body).await?;
    let mut generation = start(&ctx, &request, &prompt)?;
    let view = ChatView::new(&ctx, request);
    if view.stream {
        return Ok(stream::respond(&ctx, generation, view));
    }
    generation.finish().await?;
    Ok(view.answer(&mut generation))
}

/// What a route of OpenAI's shape was sent, in any of the flavours that share it.
pub async fn read(
    ctx: &RequestContext,
    body: Bytes,
) -> Result<(ChatRequest, ChatPrompt), ApiError> {
    let (state, flavour) = (Arc::clone(&ctx.state), ctx.flavour);
    let chat_body = move || flavours::chat_body(parse_object(&body)?, &state, flavour);
    let (mut request, prompt) = prepare(ctx, chat_body).await?;
    if flavour == Flavour::Nvidia {
        nvidia::limit(&mut request.params);
    }
    Ok((request, prompt))
}

/// Reads, checks, renders and encodes, off the threads that serve sockets. `body` makes the chat form
/// of whatever the flavour received.
pub async fn prepare<F>(
    ctx: &RequestContext,
    body: F,
) -> Result<(ChatRequest, ChatPrompt), ApiError>
where
    F: FnOnce() -> Result<Map<String, Value>, ApiError> + Send + 'static,
{
    let (state, reader) = (Arc::clone(&ctx.state), ctx.clone());
    let (mut request, prompt) = prompt::off_thread(move || {
        let request = ChatRequest::read(&body()?, &state, reader.flavour)?;
        let params = &request.params;
        admission::check_body(&reader, &params.model, params.priority)?;
        let ChatRequest {
            messages,
            tools,
            thinking,
            ..
        } = &request;
        let render =
            |messages: &[Message]| prompt::render_chat(&state, messages, tools, thinking, true);
        let mut prompt = render(messages)?;
        prompt.breakpoints = breakpoints::find(messages, &prompt.ids, |messages| {
            render(messages).map(|prompt| prompt.ids)
        });
        Ok((request, prompt))
    })
    .await?;
    if request.is_guided() {
        let state = Arc::clone(&ctx.state);
        request = prompt::compile(move || {
            request.grammar = guide::compile(&state, &request)?;
            Ok(request)
        })
        .await?;
    }
    Ok((request, prompt))
}

/// Submits a request whose prompt is ready.
pub fn start(
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
        priority: params.priority,
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
            calls: call_format(&ctx.state, &request.tools),
        },
    };
    let prompts = vec![PromptRequest {
        ids: prompt.ids.as_slice().into(),
        sampling: Arc::new(sampling),
        guide: guide::guide(&ctx.state, request, prompt),
        breakpoints: prompt.breakpoints.clone(),
    }];
    Generation::start(ctx.clone(), prompts, &options)
}

/// What calls look like in the answer, if there may be any.
fn call_format(state: &AppState, tools: &ToolSet) -> Option<Arc<ToolCallFormat>> {
    let dialect = state.template.as_ref()?.dialect()?;
    ToolCallFormat::new(dialect, state.tokenizer.as_ref()?, tools)
}
