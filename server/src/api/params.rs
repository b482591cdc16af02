//! Parameters that chat and completions share: ranges, defaults, errors.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use engine::EngineInfo;
use scheduler::SamplingParams;
use serde_json::Value;

use super::fields::{Fields, token_id};
use super::models::ModelNames;
use super::priority;
use crate::error::ApiError;
use crate::state::AppState;
use crate::text::StopStrings;

/// NVIDIA's published maximum for `seed`; above 2^64 - 1 it counts as that.
const MAX_SEED: i128 = 18_446_744_073_709_552_000;
const MAX_STOP_STRINGS: usize = 4;
const MAX_STOP_IDS: usize = 1024;
/// Beyond any context window, so that sums of two such numbers fit 64 bits.
pub const MAX_TOKENS: i128 = 1 << 40;

/// What holds where a request is silent.
#[derive(Clone, Debug, Default)]
pub struct Defaults {
    /// `temperature` of `generation_config.json`.
    pub temperature: Option<f32>,
    /// `top_p` of `generation_config.json`.
    pub top_p: Option<f32>,
    /// Ids that end a choice: `eos_token_id` of `generation_config.json`, else of `config.json`.
    pub eos_token_ids: Vec<u32>,
    /// Under which names reasoning is returned.
    pub reasoning_field: ReasoningField,
    /// Tokens of a choice at most, whatever the request asks for. `None`: what the window has left.
    pub max_tokens: Option<u64>,
}

/// Under which names reasoning is returned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReasoningField {
    /// `reasoning_content`.
    #[default]
    ReasoningContent,
    /// `reasoning`.
    Reasoning,
    /// Both.
    Both,
}

/// Which table of parameters holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completions,
}

/// What parameters are checked against.
#[derive(Clone, Copy)]
pub struct Loaded<'a> {
    /// Names it answers to.
    pub models: &'a ModelNames,
    /// What holds where a request is silent.
    pub defaults: &'a Defaults,
    /// Vocabulary and window.
    pub info: &'a EngineInfo,
    /// Whether text can be decoded, which stop strings need.
    pub has_tokenizer: bool,
}

/// What both routes read.
#[derive(Clone, Debug)]
pub struct Params {
    /// As the client wrote it.
    pub model: String,
    /// Choices returned per prompt.
    pub num_choices: u32,
    /// `None`: whatever the window has left.
    pub max_tokens: Option<u64>,
    /// Where `max_tokens` is not given: at most this of what the window has left.
    pub default_max_tokens: Option<u64>,
    /// The operator's limit, whatever is given.
    pub most_tokens: u64,
    /// For every prompt; its `max_tokens` depends on the prompt.
    pub sampling: SamplingParams,
    /// Strings that end a text.
    pub stop: StopStrings,
    /// Events instead of one answer.
    pub stream: bool,
    /// A last chunk with usage.
    pub include_usage: bool,
    /// Token ids beside the text.
    pub return_token_ids: bool,
    /// `prompt_logprobs` as asked for; `sampling` may have it for other reasons.
    pub prompt_logprobs: Option<u32>,
    /// Prefix hits only among equal salts.
    pub cache_salt: Arc<str>,
    /// Higher goes first; `None`: it does not say.
    pub priority: Option<i8>,
}

impl<'a> Loaded<'a> {
    /// What this server has loaded.
    pub fn of(state: &'a AppState) -> Self {
        Self {
            models: &state.models,
            defaults: &state.defaults,
            info: &state.info,
            has_tokenizer: state.tokenizer.is_some(),
        }
    }
}

impl Params {
    /// Reads and checks. Logprobs differ by route and are the caller's.
    pub fn read(fields: &Fields<'_>, route: Route, loaded: &Loaded<'_>) -> Result<Self, ApiError> {
        let model = loaded.models.requested(fields)?;
        check_without_effect(fields)?;
        let stream = fields.bool("stream")?.unwrap_or(false);
        let include_usage = stream_options(fields, stream)?;
        let max_tokens = max_tokens(fields, route)?;
        let prompt_logprobs = fields.int("prompt_logprobs", 0..=20)?.map(|k| k as u32);
        Ok(Self {
            model,
            num_choices: fields.int("n", 1..=128)?.unwrap_or(1) as u32,
            sampling: sampling(fields, max_tokens, prompt_logprobs, loaded)?,
            stop: stop_strings(fields, loaded)?,
            max_tokens,
            default_max_tokens: None,
            most_tokens: loaded.defaults.max_tokens.unwrap_or(u64::MAX),
            stream,
            include_usage,
            return_token_ids: fields.bool("return_token_ids")?.unwrap_or(false),
            prompt_logprobs,
            cache_salt: fields
                .short_string("cache_salt", 1024)?
                .unwrap_or("")
                .into(),
            priority: priority::of_body(fields)?,
        })
    }

    /// `max_tokens` for a prompt of `len` tokens, or what does not fit.
    ///
    /// ```text
    /// // |-- prompt --|-- max_tokens --|-- unused --|
    /// // 0           len                          window
    /// ```
    pub fn max_tokens_after(
        &self,
        len: usize,
        info: &EngineInfo,
        param: &str,
    ) -> Result<u32, ApiError> {
        let window = info.max_model_len;
        let len = len as u64;
        let refuse = |detail: String| ApiError::context_length(param, window, &detail);
        if let Some(max) = self.max_tokens {
            if len + max <= u64::from(window) && (max == 0 || len < u64::from(window)) {
                return Ok(max.min(self.most_tokens) as u32);
            }
            return Err(refuse(format!(
                "However, you requested {} tokens ({len} in the {param}, {max} in the completion). \
                 Please reduce the length of either.",
                len + max
            )));
        }
        if len >= u64::from(window) {
            return Err(refuse(format!(
                "However, your {param} resulted in {len} tokens. Please reduce their length."
            )));
        }
        // The cache may hold less than the window.
        let capacity = u64::from(info.num_blocks) * u64::from(info.block_size);
        let room = u64::from(window).min(capacity.max(len + 1)) - len;
        let wanted = self.default_max_tokens.unwrap_or(u64::MAX);
        Ok(room.min(wanted).min(self.most_tokens) as u32)
    }
}

fn sampling(
    fields: &Fields<'_>,
    max_tokens: Option<u64>,
    prompt_logprobs: Option<u32>,
    loaded: &Loaded<'_>,
) -> Result<SamplingParams, ApiError> {
    let number = |name, range, default: f32| -> Result<f32, ApiError> {
        Ok(fields.number(name, range)?.map_or(default, |x| x as f32))
    };
    let repetition_penalty = number("repetition_penalty", 0.0..=2.0, 1.0)?;
    if repetition_penalty == 0.0 {
        let path = fields.path("repetition_penalty");
        return Err(ApiError::invalid_value(path, "must be above 0"));
    }
    let min_tokens = fields.int("min_tokens", 0..=MAX_TOKENS)?.unwrap_or(0) as u64;
    let most = max_tokens.unwrap_or(u64::from(loaded.info.max_model_len));
    if min_tokens > most {
        return Err(ApiError::invalid_value(
            fields.path("min_tokens"),
            format!("must not exceed the {most} tokens that may be generated, is {min_tokens}"),
        ));
    }
    let top_k = fields.int("top_k", -1..=MAX_TOKENS)?.unwrap_or(0);
    let default = loaded.defaults;
    Ok(SamplingParams {
        max_tokens: 0,
        min_tokens: min_tokens as u32,
        temperature: number("temperature", 0.0..=2.0, default.temperature.unwrap_or(1.0))?,
        top_p: number("top_p", 0.0..=1.0, default.top_p.unwrap_or(1.0))?,
        top_k: top_k.clamp(0, u32::MAX.into()) as u32,
        min_p: number("min_p", 0.0..=1.0, 0.0)?,
        repetition_penalty,
        frequency_penalty: number("frequency_penalty", -2.0..=2.0, 0.0)?,
        presence_penalty: number("presence_penalty", -2.0..=2.0, 0.0)?,
        logit_bias: logit_bias(fields, loaded.info.vocab_size)?,
        seed: seed(fields)?,
        stop_token_ids: stop_token_ids(fields, loaded)?,
        logprobs: None,
        prompt_logprobs,
    })
}

fn max_tokens(fields: &Fields<'_>, route: Route) -> Result<Option<u64>, ApiError> {
    let given = match route {
        Route::Completions => Some(fields.int("max_tokens", 0..=MAX_TOKENS)?.unwrap_or(16)),
        Route::Chat => {
            // The deprecated name is checked even where the other one wins.
            let deprecated = fields.int("max_tokens", 1..=MAX_TOKENS)?;
            fields
                .int("max_completion_tokens", 1..=MAX_TOKENS)?
                .or(deprecated)
        }
    };
    Ok(given.map(|max| max as u64))
}

fn stream_options(fields: &Fields<'_>, stream: bool) -> Result<bool, ApiError> {
    let Some(options) = fields.object("stream_options")? else {
        return Ok(false);
    };
    if !stream {
        let path = fields.path("stream_options");
        return Err(ApiError::invalid_value(path, "needs 'stream': true"));
    }
    options.bool("include_obfuscation")?;
    Ok(options.bool("include_usage")?.unwrap_or(false))
}

/// Fields that clients send and that change nothing here.
fn check_without_effect(fields: &Fields<'_>) -> Result<(), ApiError> {
    fields.bool("store")?;
    fields.string("user")?;
    fields.string("prompt_cache_key")?;
    fields.short_string("safety_identifier", 64)?;
    if let Some(metadata) = fields.object("metadata")? {
        let (path, pairs) = (fields.path("metadata"), metadata.map());
        if pairs.len() > 16 {
            let message = format!("must have at most 16 pairs, has {}", pairs.len());
            return Err(ApiError::invalid_value(path, message));
        }
        for (key, value) in pairs {
            if key.chars().count() > 64 {
                return Err(ApiError::invalid_value(
                    path,
                    "has a key over 64 characters",
                ));
            }
            match value {
                Value::String(text) if text.chars().count() <= 512 => {}
                Value::String(_) => {
                    let path = metadata.path(key);
                    let message = "must have at most 512 characters";
                    return Err(ApiError::invalid_value(path, message));
                }
                other => {
                    return Err(ApiError::invalid_type(
                        metadata.path(key),
                        "a string",
                        other,
                    ));
                }
            }
        }
    }
    Ok(())
}

fn stop_strings(fields: &Fields<'_>, loaded: &Loaded<'_>) -> Result<StopStrings, ApiError> {
    let path = fields.path("stop");
    let strings: Vec<&str> = match fields.get("stop") {
        None => return Ok(StopStrings::default()),
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(items)) => {
            let mut strings = Vec::with_capacity(items.len());
            for (i, item) in items.iter().enumerate() {
                match item {
                    Value::String(text) => strings.push(text.as_str()),
                    other => {
                        let path = format!("{path}[{i}]");
                        return Err(ApiError::invalid_type(path, "a string", other));
                    }
                }
            }
            strings
        }
        Some(other) => {
            return Err(ApiError::invalid_type(path, "a string or an array", other));
        }
    };
    let refuse = |message| Err(ApiError::invalid_value(path.clone(), message));
    if strings.is_empty() || strings.len() > MAX_STOP_STRINGS {
        return refuse("must hold 1 to 4 strings");
    }
    if strings.iter().any(|text| text.is_empty()) {
        return refuse("must not hold an empty string");
    }
    if !loaded.has_tokenizer {
        return refuse("needs text, and this model has no tokenizer");
    }
    Ok(StopStrings::new(&strings))
}

fn stop_token_ids(fields: &Fields<'_>, loaded: &Loaded<'_>) -> Result<Vec<u32>, ApiError> {
    let given = fields.array("stop_token_ids")?.unwrap_or(&[]);
    let path = fields.path("stop_token_ids");
    if given.len() > MAX_STOP_IDS {
        let message = format!(
            "must hold at most {MAX_STOP_IDS} ids, holds {}",
            given.len()
        );
        return Err(ApiError::invalid_value(path, message));
    }
    let mut ids = Vec::with_capacity(given.len());
    for (i, id) in given.iter().enumerate() {
        let path = || format!("{path}[{i}]");
        ids.push(token_id(id, loaded.info.vocab_size, path)?);
    }
    if !fields.bool("ignore_eos")?.unwrap_or(false) {
        ids.extend_from_slice(&loaded.defaults.eos_token_ids);
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

fn logit_bias(fields: &Fields<'_>, vocab_size: u32) -> Result<Vec<(u32, f32)>, ApiError> {
    let Some(bias) = fields.object("logit_bias")? else {
        return Ok(Vec::new());
    };
    let path = fields.path("logit_bias");
    let mut biases = Vec::with_capacity(bias.map().len());
    for (key, value) in bias.map() {
        let digits = !key.is_empty() && key.bytes().all(|b| b.is_ascii_digit());
        let id: Option<u32> = digits.then(|| key.parse().ok()).flatten();
        let Some(id) = id.filter(|id| *id < vocab_size) else {
            let message = format!("has a key {key:?}; keys are token ids below {vocab_size}");
            return Err(ApiError::invalid_value(path, message));
        };
        let Some(value) = value.as_f64() else {
            return Err(ApiError::invalid_type(path, "a map to numbers", value));
        };
        if !(-100.0..=100.0).contains(&value) {
            let message = format!("values must be between -100 and 100, {key} has {value}");
            return Err(ApiError::invalid_value(path, message));
        }
        biases.push((id, value as f32));
    }
    biases.sort_by_key(|(id, _)| *id);
    // "7" and "07" are one id; the last in the request's order counts.
    biases.reverse();
    biases.dedup_by_key(|(id, _)| *id);
    biases.reverse();
    Ok(biases)
}

fn seed(fields: &Fields<'_>) -> Result<u64, ApiError> {
    let seed = fields.int("seed", i128::from(i64::MIN)..=MAX_SEED)?;
    Ok(match seed {
        None => random_u64(),
        Some(seed) if seed < 0 => seed as i64 as u64,
        Some(seed) => seed.min(u64::MAX.into()) as u64,
    })
}

/// Unpredictable from one process to the next, never the same twice in a row; not a secret.
pub fn random_u64() -> u64 {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    thread_local!(static KEYS: RandomState = RandomState::new());
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    KEYS.with(|keys| keys.hash_one((count, std::process::id())))
}

/// `prefix` and 32 hexadecimal digits, of which the last 16 count the ids of this process: unique.
pub fn unique_id(prefix: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{prefix}{:016x}{count:016x}", random_u64())
}
