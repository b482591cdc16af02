//! From text to ids, away from the threads that serve sockets.

use std::sync::{Arc, LazyLock};

use serde_json::Value;
use tokio::sync::Semaphore;

use super::fields::{Fields, token_id};
use super::thinking::Thinking;
use crate::chat::{Message, ToolSet, Variables};
use crate::error::ApiError;
use crate::state::AppState;
use crate::text::Tokenizer;

/// Prompts in one request.
const MAX_PROMPTS: usize = 2048;

/// As many at once as there are cores: more would only hold memory.
static WORKERS: LazyLock<Semaphore> = LazyLock::new(|| {
    Semaphore::new(std::thread::available_parallelism().map_or(1, std::num::NonZero::get))
});

/// One hostile grammar may take a while; it must not keep all others from their prompts.
static COMPILERS: LazyLock<Semaphore> = LazyLock::new(|| {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Semaphore::new(cores.div_ceil(2))
});

/// Runs `work` (parsing, rendering, encoding) where it may take its time.
pub async fn off_thread<T, F>(work: F) -> Result<T, ApiError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, ApiError> + Send + 'static,
{
    run(&WORKERS, work).await
}

/// Runs `work`, which compiles grammars, where it may take its time.
pub async fn compile<T, F>(work: F) -> Result<T, ApiError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, ApiError> + Send + 'static,
{
    run(&COMPILERS, work).await
}

async fn run<T, F>(places: &Semaphore, work: F) -> Result<T, ApiError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, ApiError> + Send + 'static,
{
    let _permit = places.acquire().await.expect("never closed");
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => {
            tracing::error!(%error, "a prompt could not be prepared");
            Err(ApiError::internal("the prompt could not be prepared"))
        }
    }
}

/// A prompt for chat.
#[derive(Clone, Debug)]
pub struct ChatPrompt {
    /// Its ids.
    pub ids: Vec<u32>,
    /// Whether it ends inside an open thought.
    pub thinking: bool,
    /// Lengths of prefixes that its client wants cached, in tokens; ascending.
    pub breakpoints: Vec<u32>,
}

/// Renders and encodes a conversation.
pub fn render_chat(
    state: &AppState,
    messages: &[Message],
    tools: &ToolSet,
    thinking: &Thinking,
    add_generation_prompt: bool,
) -> Result<ChatPrompt, ApiError> {
    let Some(tokenizer) = &state.tokenizer else {
        return Err(no_tokenizer("messages"));
    };
    let Some(template) = &state.template else {
        return Err(ApiError::bad_request(
            "unsupported_value",
            Some("messages".into()),
            "this model has no chat template: use /v1/completions",
        ));
    };
    let variables = Variables {
        add_generation_prompt,
        settings: thinking.settings.clone(),
    };
    let rendered = template
        .render(messages, &tools.shown(), &variables)
        .map_err(|error| refused("messages", &error))?;
    fits(state, tokenizer, rendered.prompt.text.len(), "messages")?;
    let ids = tokenizer
        .encode_marked(&rendered.prompt)
        .map_err(|error| refused("messages", &error))?;
    not_empty(&ids, "messages")?;
    Ok(ChatPrompt {
        ids,
        thinking: rendered.thinking,
        breakpoints: Vec::new(),
    })
}

/// The `prompt` of a completion: one or many, text or ids.
pub fn read_prompts(state: &AppState, fields: &Fields<'_>) -> Result<Vec<Arc<[u32]>>, ApiError> {
    let path = fields.path("prompt");
    let Some(prompt) = fields.get("prompt") else {
        return Err(fields.missing("prompt"));
    };
    let reader = PromptReader {
        state,
        add_special_tokens: fields.bool("add_special_tokens")?.unwrap_or(true),
        parse_special: fields.bool("parse_special")?.unwrap_or(false),
    };
    let items = match prompt {
        Value::String(text) => return Ok(vec![reader.text(text, &path)?]),
        Value::Array(items) => items,
        other => {
            return Err(ApiError::invalid_type(
                path,
                "a string, an array of strings or of token ids",
                other,
            ));
        }
    };
    match items.first() {
        None => Err(ApiError::invalid_value(path, "must not be empty")),
        Some(Value::Number(_)) => Ok(vec![reader.ids(items, &path)?]),
        Some(_) if items.len() > MAX_PROMPTS => {
            let message = format!("must hold at most {MAX_PROMPTS} prompts");
            Err(ApiError::invalid_value(path, message))
        }
        Some(_) => {
            let read = |(i, item): (usize, &Value)| {
                let path = format!("{path}[{i}]");
                match item {
                    Value::String(text) => reader.text(text, &path),
                    Value::Array(ids) => reader.ids(ids, &path),
                    other => Err(ApiError::invalid_type(
                        path,
                        "a string or an array of token ids",
                        other,
                    )),
                }
            };
            items.iter().enumerate().map(read).collect()
        }
    }
}

/// Reads one prompt after the other by the same rules.
struct PromptReader<'a> {
    state: &'a AppState,
    add_special_tokens: bool,
    parse_special: bool,
}

impl PromptReader<'_> {
    fn text(&self, text: &str, path: &str) -> Result<Arc<[u32]>, ApiError> {
        let Some(tokenizer) = &self.state.tokenizer else {
            return Err(no_tokenizer(path));
        };
        fits(self.state, tokenizer, text.len(), "prompt")?;
        let ids = encode(
            tokenizer,
            text,
            self.add_special_tokens,
            self.parse_special,
            path,
        )?;
        not_empty(&ids, path)?;
        Ok(ids.into())
    }

    fn ids(&self, ids: &[Value], path: &str) -> Result<Arc<[u32]>, ApiError> {
        not_empty(ids, path)?;
        let vocab_size = self.state.info.vocab_size;
        ids.iter()
            .enumerate()
            .map(|(i, id)| token_id(id, vocab_size, || format!("{path}[{i}]")))
            .collect()
    }
}

/// Text to ids; added tokens are only recognised with `parse_special`.
pub fn encode(
    tokenizer: &Tokenizer,
    text: &str,
    add_special_tokens: bool,
    parse_special: bool,
    path: &str,
) -> Result<Vec<u32>, ApiError> {
    let ids = if parse_special {
        tokenizer.encode_special(text, add_special_tokens)
    } else {
        tokenizer.encode(text, add_special_tokens)
    };
    ids.map_err(|error| refused(path, &error))
}

/// Megabytes that can never fit are refused before anybody counts their tokens.
fn fits(
    state: &AppState,
    tokenizer: &Tokenizer,
    num_bytes: usize,
    param: &str,
) -> Result<(), ApiError> {
    let (window, least) = (state.info.max_model_len, tokenizer.min_tokens(num_bytes));
    if least > window as usize {
        let detail = format!(
            "However, your {param} resulted in at least {least} tokens. Please reduce their length."
        );
        return Err(ApiError::context_length(param, window, &detail));
    }
    Ok(())
}

fn refused(path: &str, why: &dyn std::fmt::Display) -> ApiError {
    ApiError::invalid_value(path, format!("cannot be encoded: {why}"))
}

fn not_empty<T>(items: &[T], path: &str) -> Result<(), ApiError> {
    if items.is_empty() {
        return Err(ApiError::invalid_value(
            path,
            "must hold at least one token",
        ));
    }
    Ok(())
}

/// For routes that need text.
pub fn no_tokenizer(path: &str) -> ApiError {
    ApiError::bad_request(
        "unsupported_value",
        Some(path.to_owned()),
        "this model has no tokenizer: send token ids to /v1/completions",
    )
}
