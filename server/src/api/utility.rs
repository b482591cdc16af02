//! `/tokenize` and `/detokenize`.

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;

use super::fields::{Fields, parse_object, token_id};
use super::flavour::Flavour;
use super::messages;
use super::models::json;
use super::prompt::{self, encode, no_tokenizer};
use super::thinking::Thinking;
use super::tools;
use crate::error::ApiError;
use crate::state::{AppState, RequestContext, Response};

#[derive(Serialize)]
#[expect(clippy::struct_field_names, reason = "the wire's names")]
struct Tokens {
    tokens: Vec<u32>,
    count: usize,
    max_model_len: u32,
}

#[derive(Serialize)]
struct Text<'a> {
    prompt: &'a str,
    content: &'a str,
}

/// Text or messages to token ids.
pub async fn tokenize(ctx: RequestContext, body: Bytes) -> Result<Response, ApiError> {
    let state = Arc::clone(&ctx.state);
    let tokens = prompt::off_thread(move || {
        let body = parse_object(&body)?;
        read_tokens(&Fields::root(&body), &state)
    })
    .await?;
    Ok(json(&Tokens {
        count: tokens.len(),
        tokens,
        max_model_len: ctx.state.info.max_model_len,
    }))
}

/// Token ids to text.
pub async fn detokenize(ctx: RequestContext, body: Bytes) -> Result<Response, ApiError> {
    let state = Arc::clone(&ctx.state);
    let text = prompt::off_thread(move || {
        let body = parse_object(&body)?;
        let fields = Fields::root(&body);
        check_model(&fields, &state)?;
        let tokens = fields.array("tokens")?;
        let tokens = tokens.ok_or_else(|| fields.missing("tokens"))?;
        let mut ids = Vec::with_capacity(tokens.len());
        for (i, token) in tokens.iter().enumerate() {
            let path = || format!("tokens[{i}]");
            ids.push(token_id(token, state.info.vocab_size, path)?);
        }
        let tokenizer = state.tokenizer.as_deref();
        let tokenizer = tokenizer.ok_or_else(|| no_tokenizer("tokens"))?;
        Ok(tokenizer.decode(&ids))
    })
    .await?;
    Ok(json(&Text {
        prompt: &text,
        content: &text,
    }))
}

fn read_tokens(fields: &Fields<'_>, state: &AppState) -> Result<Vec<u32>, ApiError> {
    check_model(fields, state)?;
    let add_special_tokens = fields.bool("add_special_tokens")?;
    let add_generation_prompt = fields.bool("add_generation_prompt")?.unwrap_or(true);
    let parse_special = fields.bool("parse_special")?.unwrap_or(false);
    if fields.get("messages").is_some() {
        let messages = messages::read(fields)?;
        let (tools, thinking) = (
            tools::read(fields)?,
            Thinking::read(fields, Flavour::OpenAi)?,
        );
        let add = add_generation_prompt;
        return Ok(prompt::render_chat(state, &messages, &tools, &thinking, add)?.ids);
    }
    let name = if fields.get("prompt").is_some() {
        "prompt"
    } else {
        "content"
    };
    let Some(text) = fields.string(name)? else {
        return Err(fields.missing("prompt"));
    };
    let path = fields.path(name);
    let Some(tokenizer) = &state.tokenizer else {
        return Err(no_tokenizer(&path));
    };
    let add_special_tokens = add_special_tokens.unwrap_or(true);
    encode(tokenizer, text, add_special_tokens, parse_special, &path)
}

/// These routes need no model; one that is named must be ours.
fn check_model(fields: &Fields<'_>, state: &AppState) -> Result<(), ApiError> {
    match fields.get("model") {
        None => Ok(()),
        Some(_) => state.models.requested(fields).map(drop),
    }
}
