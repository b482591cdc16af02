//! `/v1/chat/completions/render` and `/v1/completions/render`: what the engine would be given, and
//! nothing is run.
//!
//! Routers of fleets ask for it to send a prompt where its prefix is cached. The shape is vLLM's: one
//! object for a chat, a list of them for a completion, one per prompt. `token_ids` are the exact ids
//! that the same body would be answered from; `prompt` is how they read, which vLLM does not say.
//!
//! ```json
//! {"request_id": "chatcmpl-…", "token_ids": [1, 2], "prompt": "…", "features": null,
//!  "sampling_params": {"n": 1, "max_tokens": 16, "temperature": 1.0}, "model": "…",
//!  "stream": false, "stream_options": null, "cache_salt": null, "priority": 0,
//!  "kv_transfer_params": null}
//! ```

use bytes::Bytes;
use scheduler::SamplingParams;
use serde_json::{Map, Value, json};

use super::params::{Params, unique_id};
use super::{chat, completions, models};
use crate::error::ApiError;
use crate::state::{AppState, RequestContext, Response};

/// The prompt of a chat.
pub async fn chat(ctx: RequestContext, body: Bytes) -> Result<Response, ApiError> {
    let (request, prompt) = chat::read(&ctx, body).await?;
    let mut params = request.params;
    params.sampling.max_tokens =
        params.max_tokens_after(prompt.ids.len(), &ctx.state.info, "messages")?;
    let id = unique_id("chatcmpl-");
    Ok(models::json(&rendered(
        &ctx.state,
        &id,
        &prompt.ids,
        &params,
    )))
}

/// The prompts of a completion.
pub async fn completions(ctx: RequestContext, body: Bytes) -> Result<Response, ApiError> {
    let request = completions::read(&ctx, body).await?;
    let mut params = request.params;
    let mut all = Vec::with_capacity(request.prompts.len());
    for (i, ids) in request.prompts.iter().enumerate() {
        params.sampling.max_tokens =
            params.max_tokens_after(ids.len(), &ctx.state.info, "prompt")?;
        let id = format!("{}-{i}", unique_id("cmpl-"));
        all.push(rendered(&ctx.state, &id, ids, &params));
    }
    Ok(models::json(&all))
}

fn rendered(state: &AppState, id: &str, ids: &[u32], params: &Params) -> Value {
    let salt = Some(&*params.cache_salt).filter(|salt| !salt.is_empty());
    let options = params.include_usage.then(|| json!({"include_usage": true}));
    json!({
        "request_id": id,
        "token_ids": ids,
        "prompt": state.tokenizer.as_ref().map(|tokenizer| tokenizer.decode(ids)),
        "features": null,
        "sampling_params": sampling(params),
        "model": params.model,
        "stream": params.stream,
        "stream_options": options,
        "cache_salt": salt,
        "priority": -i32::from(params.priority.unwrap_or(0)),
        "kv_transfer_params": null,
    })
}

/// By vLLM's names.
fn sampling(params: &Params) -> Value {
    let SamplingParams {
        max_tokens,
        min_tokens,
        temperature,
        top_p,
        top_k,
        min_p,
        repetition_penalty,
        frequency_penalty,
        presence_penalty,
        logit_bias,
        seed,
        stop_token_ids,
        logprobs,
        prompt_logprobs,
    } = &params.sampling;
    let bias: Map<String, Value> = logit_bias
        .iter()
        .map(|(id, bias)| (id.to_string(), decimal(*bias)))
        .collect();
    json!({
        "n": params.num_choices,
        "max_tokens": max_tokens,
        "min_tokens": min_tokens,
        "temperature": decimal(*temperature),
        "top_p": decimal(*top_p),
        "top_k": top_k,
        "min_p": decimal(*min_p),
        "repetition_penalty": decimal(*repetition_penalty),
        "frequency_penalty": decimal(*frequency_penalty),
        "presence_penalty": decimal(*presence_penalty),
        "logit_bias": (!bias.is_empty()).then_some(bias),
        "seed": seed,
        "stop": params.stop.to_strings(),
        "stop_token_ids": stop_token_ids,
        "logprobs": logprobs,
        "prompt_logprobs": prompt_logprobs,
    })
}

/// The number as it was written, not as 64 bits see 32 of them.
fn decimal(number: f32) -> Value {
    let exact: f64 = number.to_string().parse().expect("a number");
    exact.into()
}
