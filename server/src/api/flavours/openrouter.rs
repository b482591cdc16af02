//! OpenRouter: OpenAI's API with prices, thoughts that travel in `reasoning_details`, receipts by
//! generation id, and errors of its own.
//!
//! Published: `openrouter.ai/docs` (API reference, errors, streaming, reasoning tokens) and the
//! schemas inside its TypeScript SDK, which refuses answers that do not fit them.

use std::time::{Duration, UNIX_EPOCH};

use http::StatusCode;
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};

use crate::api::choice::Choice;
use crate::api::fields::Fields;
use crate::api::generation::Generation;
use crate::api::models::{self, ModelNames};
use crate::api::prices::{Price, Usd};
use crate::api::stream::Head;
use crate::chat::strftime;
use crate::error::ApiError;
use crate::receipts::Receipt;
use crate::state::{RequestContext, Response};

/// Published: 0.09 and 0.45 USD per million tokens; cached ones have no price of their own.
pub const PRICE: Price = Price::per_million(90_000, 450_000, 90_000);

/// Who answered.
pub const PROVIDER: &str = "nemoserve";

/// What of a request has an effect.
const SUPPORTED_PARAMETERS: &[&str] = &[
    "frequency_penalty",
    "include_reasoning",
    "logit_bias",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "min_p",
    "parallel_tool_calls",
    "presence_penalty",
    "reasoning",
    "reasoning_effort",
    "repetition_penalty",
    "response_format",
    "seed",
    "stop",
    "structured_outputs",
    "temperature",
    "tool_choice",
    "tools",
    "top_k",
    "top_logprobs",
    "top_p",
];

/// What OpenRouter's own receipts have and no server of one model can know.
const NOT_KNOWN_HERE: [&str; 19] = [
    "app_id",
    "cache_discount",
    "external_user",
    "http_referer",
    "moderation_latency",
    "native_tokens_completion_images",
    "num_fetches",
    "num_input_audio_prompt",
    "num_media_completion",
    "num_media_prompt",
    "num_search_results",
    "preset_id",
    "provider_responses",
    "router",
    "service_tier",
    "upstream_id",
    "user_agent",
    "web_search_engine",
    "workspace_id",
];

/// The body as `/v1` has it: checks what only OpenRouter has, and picks the model.
pub fn to_openai(
    mut body: Map<String, Value>,
    names: &ModelNames,
) -> Result<Map<String, Value>, ApiError> {
    let fields = Fields::root(&body);
    for name in ["provider", "usage"] {
        fields.object(name)?;
    }
    for name in ["transforms", "plugins"] {
        fields.array(name)?;
    }
    fields.string("route")?;
    if let Some(usage) = fields.object("usage")? {
        usage.bool("include")?;
    }
    let mut fallbacks = Vec::new();
    for (i, model) in fields.array("models")?.unwrap_or(&[]).iter().enumerate() {
        match model {
            Value::String(id) => fallbacks.push(id.as_str()),
            other => {
                let path = format!("models[{i}]");
                return Err(ApiError::invalid_type(path, "a string", other));
            }
        }
    }
    let wanted = fields.string("model")?;
    let served = wanted
        .into_iter()
        .chain(fallbacks)
        .find(|id| names.contains(id));
    // Nothing that is served: the first name is the one to complain about.
    if let Some(served) = served.map(str::to_owned) {
        body.insert("model".into(), served.into());
    }
    Ok(body)
}

/// `/api/v1/models`.
pub fn list(ctx: &RequestContext) -> Response {
    let (state, window) = (&ctx.state, ctx.state.info.max_model_len);
    let prices = &state.config.prices.openrouter;
    let describe = |id: &String| {
        json!({
            "id": id,
            "canonical_slug": id,
            "name": id,
            "created": state.models.created,
            "description": state.models.description.as_deref().unwrap_or_default(),
            "context_length": window,
            "architecture": {
                "modality": "text->text",
                "input_modalities": ["text"],
                "output_modalities": ["text"],
                "tokenizer": "Other",
                "instruct_type": null,
            },
            "pricing": {
                "prompt": prices.input.to_string(),
                "completion": prices.output.to_string(),
                "input_cache_read": prices.cached.to_string(),
                "request": "0",
                "image": "0",
            },
            "top_provider": {
                "context_length": window,
                "max_completion_tokens": window,
                "is_moderated": false,
            },
            "per_request_limits": null,
            "supported_parameters": SUPPORTED_PARAMETERS,
            "supported_voices": null,
            "default_parameters": null,
            "links": {"details": "/api/v1/models"},
        })
    };
    let data: Vec<Value> = models::visible(ctx).map(describe).collect();
    models::json(&json!({"data": data, "total_count": data.len(), "links": {"next": null}}))
}

/// `/api/v1/generation?id=`.
pub fn generation(ctx: &RequestContext) -> Result<Response, ApiError> {
    let query = ctx.query.as_deref().unwrap_or_default();
    let id = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("id="))
        .filter(|id| !id.is_empty())
        .ok_or_else(|| Fields::root(&Map::new()).missing("id"))?;
    let id = percent_decode_str(id).decode_utf8_lossy();
    let receipt = ctx.state.receipts.get(&id, ctx.key()).ok_or_else(|| {
        let shown: String = id.chars().take(100).collect();
        ApiError {
            param: Some("id".into()),
            ..ApiError::new(
                StatusCode::NOT_FOUND,
                "invalid_request_error",
                "not_found",
                format!("no generation '{shown}' is remembered; only recent ones are"),
            )
        }
    })?;
    Ok(models::json(&json!({"data": describe(&receipt)})))
}

fn describe(receipt: &Receipt) -> Value {
    let usage = &receipt.usage;
    let ms = |span: Duration| span.as_millis() as u64;
    let generation_time = receipt
        .to_first_token
        .map(|first| receipt.took.saturating_sub(first));
    let total_cost = receipt.cost.map_or(Usd::default(), |cost| cost.total());
    let ended = receipt.ended.duration_since(UNIX_EPOCH);
    let began = ended.unwrap_or_default().saturating_sub(receipt.took);
    let mut data = json!({
        "id": receipt.id,
        "request_id": receipt.request_id,
        "model": receipt.model,
        "created_at": strftime("%FT%H:%M:%SZ", began.as_secs()),
        "api_type": "completions",
        "streamed": receipt.streamed,
        "cancelled": receipt.cancelled,
        "finish_reason": receipt.finish,
        "native_finish_reason": receipt.finish,
        "tokens_prompt": usage.prompt,
        "tokens_completion": usage.completion,
        "native_tokens_prompt": usage.prompt,
        "native_tokens_completion": usage.completion,
        "native_tokens_reasoning": usage.reasoning,
        "native_tokens_cached": usage.cached,
        "total_cost": total_cost,
        "usage": total_cost,
        "upstream_inference_cost": total_cost,
        "is_byok": false,
        "latency": receipt.to_first_token.map(ms),
        "generation_time": generation_time.map(ms),
        "provider_name": PROVIDER,
        "data_region": "global",
        "origin": "",
    });
    for name in NOT_KNOWN_HERE {
        data[name] = Value::Null;
    }
    data
}

/// The chunk that a failed stream ends with: what went wrong, and what it used until then.
pub fn failure(head: &Head, error: &ApiError, generation: &mut Generation) -> Value {
    let is_chat = head.object.starts_with("chat");
    let unfinished = |(index, choice): (usize, &mut Choice)| {
        let mut failed = json!({
            "index": index,
            "finish_reason": "error",
            "native_finish_reason": "error",
            "logprobs": null,
        });
        if is_chat {
            failed["delta"] = json!({"role": "assistant", "content": ""});
        } else {
            failed["text"] = "".into();
        }
        (!choice.is_finished()).then_some(failed)
    };
    let choices = generation.choices().iter_mut().enumerate();
    let choices: Vec<Value> = choices.filter_map(unfinished).collect();
    json!({
        "id": head.id,
        "object": head.object,
        "created": head.created,
        "model": head.model,
        "provider": PROVIDER,
        "system_fingerprint": head.fingerprint,
        "error": self::error(error)["error"],
        "choices": choices,
        "usage": generation.counted(),
    })
}

/// `{"error":{code,message,metadata}}`; the code is the HTTP status.
pub fn error(error: &ApiError) -> Value {
    json!({"error": {
        "code": error.status.as_u16(),
        "message": error.message,
        "metadata": {
            "error_type": error_type(error),
            "code": error.code,
            "param": error.param,
            "provider_name": PROVIDER,
        },
    }})
}

fn error_type(error: &ApiError) -> &'static str {
    match (error.status, error.code) {
        (_, "context_length_exceeded") => "context_length_exceeded",
        (StatusCode::UNAUTHORIZED, _) => "authentication",
        (StatusCode::NOT_FOUND, _) => "not_found",
        (StatusCode::PAYLOAD_TOO_LARGE, _) => "payload_too_large",
        (StatusCode::REQUEST_TIMEOUT, _) => "timeout",
        (StatusCode::TOO_MANY_REQUESTS, _) => "rate_limit_exceeded",
        (StatusCode::SERVICE_UNAVAILABLE, _) => "provider_unavailable",
        (status, _) if status.is_server_error() => "server",
        _ => "invalid_request",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_types_that_the_sdk_knows() {
        let check = |status: u16, code: &'static str, expect: &str| {
            let status = StatusCode::from_u16(status).unwrap();
            let refusal = error(&ApiError::new(status, "", code, "no"));
            let refusal = &refusal["error"];
            assert_eq!(refusal["code"], status.as_u16());
            assert_eq!(refusal["metadata"]["error_type"], expect, "{status} {code}");
        };
        check(400, "invalid_value", "invalid_request");
        check(400, "context_length_exceeded", "context_length_exceeded");
        check(408, "request_timeout", "timeout");
        check(429, "rate_limit_exceeded", "rate_limit_exceeded");
        check(500, "internal_error", "server");
        check(503, "not_ready", "provider_unavailable");
    }
}
