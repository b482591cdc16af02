//! Bodies of chat and completions, as the document shows them.
//!
//! Nothing is read through these types: `Fields` reads by hand, so that errors name the path. That
//! both say the same is checked from outside, parameter by parameter (`tests/tests/api/openapi.rs`).

use std::borrow::Cow;
use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value};

use super::message::{Message, Tool, ToolChoice};
use crate::config::FAMILY_NAMES;

/// What chat and completions have in common.
#[derive(JsonSchema)]
pub struct Common {
    /// Events instead of one answer.
    #[schemars(extend("default" = false))]
    pub stream: Option<bool>,
    /// Only with `stream`.
    pub stream_options: Option<StreamOptions>,
    /// Choices per prompt. Choice i uses `seed` + i.
    #[schemars(range(min = 1, max = 128), extend("default" = 1))]
    pub n: Option<i64>,
    /// 0 is exact greedy: the likeliest token, the lowest id among equals. Default: the model's
    /// `generation_config.json`, else 1.
    #[schemars(range(min = 0, max = 2))]
    pub temperature: Option<f64>,
    /// How tokens are chosen, and when it ends.
    #[serde(flatten)]
    pub sampling: Sampling,
    /// Adds `prompt_token_ids` and `token_ids` to the choices.
    #[schemars(extend("default" = false))]
    pub return_token_ids: Option<bool>,
    /// Adds the prompt's log-probabilities, with this many alternatives per token.
    #[schemars(range(min = 0, max = 20))]
    pub prompt_logprobs: Option<i64>,
    /// Where it waits: `priority` and `fast` go before others, `flex` after them. Answers say `default`.
    pub service_tier: Option<ServiceTier>,
    /// Accepted; nothing is stored.
    pub store: Option<bool>,
    /// Accepted, without effect: at most 16 pairs.
    #[schemars(length(max = 16))]
    pub metadata: Option<BTreeMap<String, MetadataValue>>,
    /// Accepted, without effect.
    pub user: Option<String>,
    /// Accepted, without effect: prefixes are found by their content.
    pub prompt_cache_key: Option<String>,
    /// Accepted, without effect.
    #[schemars(length(max = 64))]
    pub safety_identifier: Option<String>,
}

/// How tokens are chosen, and when it ends: on every generating route.
#[derive(JsonSchema)]
pub struct Sampling {
    /// Only the likeliest tokens that together have this probability; 0 leaves one. Default: the
    /// model's `generation_config.json`, else 1.
    #[schemars(range(min = 0, max = 1))]
    pub top_p: Option<f64>,
    /// Only this many of the likeliest tokens; below 1: all.
    #[schemars(range(min = -1), extend("default" = 0))]
    pub top_k: Option<i64>,
    /// Only tokens at least this likely, relative to the likeliest.
    #[schemars(range(min = 0, max = 1), extend("default" = 0))]
    pub min_p: Option<f64>,
    /// Divides the logits of tokens seen in prompt or answer; 1 changes nothing.
    #[schemars(range(max = 2), extend("exclusiveMinimum" = 0, "default" = 1))]
    pub repetition_penalty: Option<f64>,
    /// Lowers a generated token's logit by this, times its count.
    #[schemars(range(min = -2, max = 2), extend("default" = 0))]
    pub frequency_penalty: Option<f64>,
    /// Lowers a generated token's logit by this, once.
    #[schemars(range(min = -2, max = 2), extend("default" = 0))]
    pub presence_penalty: Option<f64>,
    /// Decimal token ids to what is added to their logits: 100 forces, -100 bans.
    pub logit_bias: Option<BTreeMap<String, Bias>>,
    /// The same request, seed and `system_fingerprint` give the same output, whatever else is
    /// running. Up to 18446744073709552000, which is NVIDIA's maximum and counts as 2^64 - 1.
    /// Default: random.
    // No `maximum`: what is a little beyond it is rounded to it when it is read.
    #[schemars(extend("minimum" = i64::MIN))]
    pub seed: Option<i128>,
    /// Text at which a choice ends; it is not returned.
    pub stop: Option<Stop>,
    /// Tokens at which a choice ends.
    #[schemars(length(max = 1024))]
    pub stop_token_ids: Option<Vec<u32>>,
    /// Goes on past the model's end token, up to the limit of tokens.
    #[schemars(extend("default" = false))]
    pub ignore_eos: Option<bool>,
    /// No end before this many tokens; at most as many as may be generated.
    #[schemars(range(min = 0), extend("default" = 0))]
    pub min_tokens: Option<i64>,
    /// Prefixes are shared only among requests with the same salt.
    #[schemars(length(max = 1024))]
    pub cache_salt: Option<String>,
    /// Where it waits, in vLLM's way: lower goes first, over `service_tier`. What is beyond -8 to 8 counts
    /// as that.
    pub priority: Option<i64>,
}

/// How much to think: on every route with a conversation.
#[derive(JsonSchema)]
pub struct Thoughts {
    /// How much to think. `none` answers at once, `minimal` and `low` think less.
    #[schemars(extend("default" = "high"))]
    pub reasoning_effort: Option<Effort>,
    /// At most this many tokens of thought, then the answer is due; 0: none, -1: no limit.
    #[schemars(range(min = -1, max = 32768), extend("default" = -1))]
    pub reasoning_budget: Option<i64>,
    /// `false`: thoughts are made and not returned.
    #[schemars(extend("deprecated" = true))]
    pub include_reasoning: Option<bool>,
    /// Settings of the chat template; they win over all others.
    pub chat_template_kwargs: Option<TemplateSettings>,
}

/// Body of a chat.
#[derive(JsonSchema)]
pub struct ChatBody {
    /// Any of the names that `/v1/models` lists. OpenRouter's routing suffixes (`:free`, ...) are
    /// ignored.
    pub model: ModelName,
    /// The conversation so far. Roles need not alternate.
    #[schemars(length(min = 1))]
    pub messages: Vec<Message>,
    /// Parameters of every generating route.
    #[serde(flatten)]
    pub common: Common,
    /// Parameters of chat.
    #[serde(flatten)]
    pub chat: ChatParams,
}

/// The operator's names, and the family's.
pub struct ModelName;

impl JsonSchema for ModelName {
    fn schema_name() -> Cow<'static, str> {
        "ModelName".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A name of the loaded model: an operator's, or one of the family's.",
            "type": "string",
            "minLength": 1,
            "anyOf": [{"enum": FAMILY_NAMES}, {}],
        })
    }
}

/// What only chat has.
#[derive(JsonSchema)]
pub struct ChatParams {
    /// Most tokens of a choice, thoughts included. Default: what the window has left.
    #[schemars(range(min = 1))]
    pub max_completion_tokens: Option<i64>,
    /// The older name of `max_completion_tokens`, which wins.
    #[schemars(range(min = 1), extend("deprecated" = true))]
    pub max_tokens: Option<i64>,
    /// Adds the log-probability of every token of the answer.
    #[schemars(extend("default" = false))]
    pub logprobs: Option<bool>,
    /// And this many alternatives; only with `logprobs`.
    #[schemars(range(min = 0, max = 20))]
    pub top_logprobs: Option<i64>,
    /// What the answer must look like, enforced token by token once thinking is over.
    pub response_format: Option<ResponseFormat>,
    /// What the model may call.
    #[schemars(length(max = 128))]
    pub tools: Option<Vec<Tool>>,
    /// Whether it may, must, or must not; default `auto`. Anything but `none` needs `tools`.
    pub tool_choice: Option<ToolChoice>,
    /// `false`: at most one call.
    #[schemars(extend("default" = true))]
    pub parallel_tool_calls: Option<bool>,
    /// The older form of `tools`; not together with them.
    #[schemars(length(min = 1, max = 128), extend("deprecated" = true))]
    pub functions: Option<Vec<super::message::Function>>,
    /// The older form of `tool_choice`, for `functions`.
    #[schemars(extend("deprecated" = true))]
    pub function_call: Option<super::message::FunctionChoice>,
    /// How much to think.
    #[serde(flatten)]
    pub thoughts: Thoughts,
    /// The same in OpenRouter's words; wins over the two above.
    pub reasoning: Option<Reasoning>,
    /// Accepted, without effect.
    pub verbosity: Option<Verbosity>,
    /// Only `["text"]`.
    #[schemars(length(min = 1))]
    pub modalities: Option<Vec<Modality>>,
    /// What the answer may turn out to be; never changes the output.
    pub prediction: Option<Prediction>,
}

/// Body of a completion: no chat template, no thinking.
#[derive(JsonSchema)]
pub struct CompletionBody {
    /// Any of the names that `/v1/models` lists. OpenRouter's routing suffixes (`:free`, ...) are
    /// ignored.
    pub model: ModelName,
    /// Text, token ids, or a list of either.
    pub prompt: Prompt,
    /// Parameters of every generating route.
    #[serde(flatten)]
    pub common: Common,
    /// Most tokens of a choice. 0 with `echo` scores the prompt.
    #[schemars(range(min = 0), extend("default" = 16))]
    pub max_tokens: Option<i64>,
    /// Adds log-probabilities, with this many alternatives per token.
    #[schemars(range(min = 0, max = 5))]
    pub logprobs: Option<i64>,
    /// Puts the prompt before the answer.
    #[schemars(extend("default" = false))]
    pub echo: Option<bool>,
    /// Makes this many choices and returns the `n` likeliest; at least `n`, not with `stream`.
    #[schemars(range(min = 1, max = 20))]
    pub best_of: Option<i64>,
    /// Only empty: the model does not fill in the middle.
    #[schemars(length(max = 0))]
    pub suffix: Option<String>,
}

/// Text, token ids, or a list of either.
#[derive(JsonSchema)]
#[serde(untagged)]
pub enum Prompt {
    /// One text.
    Text(String),
    /// Several texts.
    Texts(#[schemars(length(min = 1))] Vec<String>),
    /// One prompt of ids, used as given.
    Ids(#[schemars(length(min = 1))] Vec<u32>),
    /// Several of them.
    ManyIds(#[schemars(length(min = 1))] Vec<Ids>),
}

/// Token ids.
#[derive(JsonSchema)]
pub struct Ids(#[schemars(length(min = 1))] pub Vec<u32>);

/// How a stream reports.
#[derive(JsonSchema)]
pub struct StreamOptions {
    /// A last chunk with `usage` and no choices.
    #[schemars(extend("default" = false))]
    pub include_usage: Option<bool>,
    /// Accepted, without effect.
    pub include_obfuscation: Option<bool>,
}

/// What is added to a logit.
#[derive(JsonSchema)]
pub struct Bias(#[schemars(range(min = -100, max = 100))] pub f64);

/// Some text.
#[derive(JsonSchema)]
pub struct MetadataValue(#[schemars(length(max = 512))] pub String);

/// One string, or up to four.
#[derive(JsonSchema)]
#[serde(untagged)]
pub enum Stop {
    /// One.
    One(StopString),
    /// Several.
    Many(#[schemars(length(min = 1, max = 4))] Vec<StopString>),
}

/// Not empty.
#[derive(JsonSchema)]
pub struct StopString(#[schemars(length(min = 1))] pub String);

/// Tiers of OpenAI.
#[derive(JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "words without a meaning here")]
pub enum ServiceTier {
    Auto,
    Default,
    Flex,
    Scale,
    Priority,
    Fast,
}

/// What the answer must look like.
#[derive(JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ResponseFormat {
    /// Any text.
    Text,
    /// Any JSON object.
    JsonObject,
    /// JSON that fits a schema.
    JsonSchema {
        /// The schema and its name.
        json_schema: NamedSchema,
    },
}

/// A JSON schema with a name.
#[derive(JsonSchema)]
pub struct NamedSchema {
    /// For people and logs.
    #[schemars(regex(pattern = "^[A-Za-z0-9_-]{1,64}$"))]
    pub name: String,
    /// Shown to nobody; accepted.
    pub description: Option<String>,
    /// The schema; a keyword that cannot be enforced is refused by name. Default: any object.
    pub schema: Option<Map<String, Value>>,
    /// Accepted: every schema is enforced.
    pub strict: Option<bool>,
}

/// How much to think.
#[derive(JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "a scale")]
pub enum Effort {
    None,
    Minimal,
    Low,
    Medium,
    High,
    Xhigh,
    Max,
}

/// How much to think, in OpenRouter's words. `effort` and `max_tokens` exclude each other.
#[derive(JsonSchema)]
pub struct Reasoning {
    /// As `reasoning_effort`.
    pub effort: Option<Effort>,
    /// As `reasoning_budget`.
    #[schemars(range(min = 1, max = 32768))]
    pub max_tokens: Option<i64>,
    /// Thoughts are made and not returned.
    #[schemars(extend("default" = false))]
    pub exclude: Option<bool>,
    /// `false`: no thinking.
    pub enabled: Option<bool>,
}

/// Settings of the chat template.
#[derive(JsonSchema)]
pub struct TemplateSettings {
    /// Whether to think.
    pub enable_thinking: Option<bool>,
    /// Think less.
    pub low_effort: Option<bool>,
    /// Think a little less.
    pub medium_effort: Option<bool>,
    /// Leave earlier thoughts out of the prompt.
    pub truncate_history_thinking: Option<bool>,
    /// The same by another name.
    pub clear_thinking: Option<bool>,
    /// An empty answer is replaced by the thought.
    pub force_nonempty_content: Option<bool>,
    /// As the parameter of that name.
    #[schemars(range(min = -1, max = 32768))]
    pub reasoning_budget: Option<i64>,
}

/// How wordy.
#[derive(JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "words without a meaning here")]
pub enum Verbosity {
    Low,
    Medium,
    High,
}

/// Kinds of output.
#[derive(JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Modality {
    /// The only one.
    Text,
}

/// What the answer may turn out to be.
#[derive(JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Prediction {
    /// Text.
    Content {
        /// The text.
        content: super::message::Content,
    },
}
