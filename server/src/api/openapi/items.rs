//! The body of `/v1/responses`, as the document shows it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde_json::{Map, Value};

use super::request::{
    Effort, MetadataValue, ModelName, Sampling, ServiceTier, StreamOptions, Thoughts, Verbosity,
};
use super::utility::AnyObject;

/// Body of a response.
#[derive(JsonSchema)]
pub struct ResponsesBody {
    /// Any of the names that `/v1/models` lists.
    pub model: ModelName,
    /// What is said to the model: a text of the user, or items. Only with `previous_response_id` may
    /// it be left out.
    pub input: Option<Input>,
    /// What the operator says first; not carried over to the response that continues this one.
    pub instructions: Option<String>,
    /// Most tokens of the answer, thoughts included. Default: what the window has left.
    #[schemars(range(min = 1))]
    pub max_output_tokens: Option<i64>,
    /// A stored response that this one continues.
    pub previous_response_id: Option<String>,
    /// Whether the answer is kept for `previous_response_id` and for reading it again.
    #[schemars(extend("default" = true))]
    pub store: Option<bool>,
    /// What the model may call: functions and custom tools. Others, which only a provider's own
    /// servers can run, are left out and counted.
    pub tools: Option<Vec<AnyObject>>,
    /// Whether it may, must, or must not; default `auto`.
    pub tool_choice: Option<FlatToolChoice>,
    /// `false`: at most one call.
    #[schemars(extend("default" = true))]
    pub parallel_tool_calls: Option<bool>,
    /// What the text must look like.
    pub text: Option<TextSettings>,
    /// How much to think.
    pub reasoning: Option<ReasoningSettings>,
    /// What the answer has beside the usual.
    pub include: Option<Vec<Includable>>,
    /// And this many alternatives, if log-probabilities are included.
    #[schemars(range(min = 0, max = 20))]
    pub top_logprobs: Option<i64>,
    /// Events instead of one answer.
    #[schemars(extend("default" = false))]
    pub stream: Option<bool>,
    /// Only with `stream`.
    pub stream_options: Option<StreamOptions>,
    /// Accepted; nothing is cut off the front of a conversation.
    pub truncation: Option<Truncation>,
    /// Only `false`.
    pub background: Option<bool>,
    /// Accepted: it limits tools that do not run here.
    #[schemars(range(min = 1))]
    pub max_tool_calls: Option<i64>,
    /// Where it waits: `priority` and `fast` go before others, `flex` after them. Answers say `default`.
    pub service_tier: Option<ServiceTier>,
    /// Comes back with the answer: at most 16 pairs.
    #[schemars(length(max = 16))]
    pub metadata: Option<BTreeMap<String, MetadataValue>>,
    /// Accepted, without effect.
    pub user: Option<String>,
    /// Accepted, without effect: prefixes are found by their content.
    pub prompt_cache_key: Option<String>,
    /// Accepted, without effect.
    #[schemars(length(max = 64))]
    pub safety_identifier: Option<String>,
    /// 0 is exact greedy. Default: the model's `generation_config.json`, else 1.
    #[schemars(range(min = 0, max = 2))]
    pub temperature: Option<f64>,
    /// The older name of `max_output_tokens`, which wins.
    #[schemars(range(min = 1), extend("deprecated" = true))]
    pub max_tokens: Option<i64>,
    /// How tokens are chosen, and when it ends.
    #[serde(flatten)]
    pub sampling: Sampling,
    /// How much to think, in the words of chat.
    #[serde(flatten)]
    pub thoughts: Thoughts,
}

/// A text of the user, or items.
#[derive(JsonSchema)]
#[serde(untagged)]
pub enum Input {
    /// A text.
    Text(String),
    /// What was said so far.
    Items(Vec<Item>),
}

/// A message, a thought, a call, the answer to one, or a reference to a stored item. Which of these
/// members it has depends on `type`.
#[derive(JsonSchema)]
pub struct Item {
    /// `message` (the default), `reasoning`, `function_call`, `function_call_output`,
    /// `custom_tool_call`, `custom_tool_call_output` or `item_reference`.
    pub r#type: Option<String>,
    /// Of a message: `user`, `assistant`, `system` or `developer`.
    pub role: Option<String>,
    /// Of a message: a text or parts. Of a thought: its parts.
    pub content: Option<Value>,
    /// Of a thought.
    pub summary: Option<Vec<AnyObject>>,
    /// Of a thought: as it was handed out.
    pub encrypted_content: Option<String>,
    /// Of calls and answers to them.
    pub call_id: Option<String>,
    /// Of a call.
    pub name: Option<String>,
    /// Of a function's call: a JSON object.
    pub arguments: Option<String>,
    /// Of a custom tool's call.
    pub input: Option<String>,
    /// Of an answer to a call: a text or parts.
    pub output: Option<Value>,
    /// Of a reference.
    pub id: Option<String>,
}

/// A word, or `{"type": "function", "name"}`, `{"type": "custom", "name"}`, `{"type":
/// "allowed_tools", "mode", "tools"}`.
#[derive(JsonSchema)]
#[serde(untagged)]
pub enum FlatToolChoice {
    /// Any tool or none.
    Mode(ChoiceMode),
    /// This one, or one of these.
    Tool(AnyObject),
}

/// Any tool or none.
#[derive(JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "they say it")]
pub enum ChoiceMode {
    None,
    Auto,
    Required,
}

/// What the text must look like.
#[derive(JsonSchema)]
pub struct TextSettings {
    /// `{"type": "text"}`, `{"type": "json_object"}`, or `{"type": "json_schema", "name", "schema"}`.
    pub format: Option<Map<String, Value>>,
    /// Accepted, without effect.
    pub verbosity: Option<Verbosity>,
}

/// How much to think. `effort` and `max_tokens` exclude each other.
#[derive(JsonSchema)]
pub struct ReasoningSettings {
    /// As `reasoning_effort`.
    pub effort: Option<Effort>,
    /// Accepted: thoughts are returned as they are.
    pub summary: Option<Summary>,
    /// As `reasoning_budget`.
    #[schemars(range(min = 1, max = 32768))]
    pub max_tokens: Option<i64>,
    /// Thoughts are made and not returned.
    pub exclude: Option<bool>,
    /// `false`: no thinking.
    pub enabled: Option<bool>,
}

/// Accepted, without effect.
#[derive(JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "words without a meaning here")]
pub enum Summary {
    Auto,
    Concise,
    Detailed,
}

/// Accepted, without effect.
#[derive(JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "words without a meaning here")]
pub enum Truncation {
    Auto,
    Disabled,
}

/// What the answer may have beside the usual; others of OpenAI's are accepted, without effect.
#[derive(JsonSchema)]
pub enum Includable {
    /// Thoughts also as `encrypted_content`, to be handed back.
    #[serde(rename = "reasoning.encrypted_content")]
    SealedReasoning,
    /// Log-probabilities of the text.
    #[serde(rename = "message.output_text.logprobs")]
    Logprobs,
}

/// A response.
#[derive(JsonSchema)]
pub struct ResponsesAnswer {
    /// Unique, `resp_...`.
    pub id: String,
    /// Always `response`.
    pub object: String,
    /// Unix seconds.
    pub created_at: u64,
    /// `completed`, or `incomplete` if it was cut.
    pub status: String,
    /// As requested.
    pub model: String,
    /// Thoughts, messages and calls.
    pub output: Vec<Map<String, Value>>,
    /// Tokens.
    pub usage: Option<ResponsesUsage>,
    /// What of the request is repeated.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// Tokens of a request.
#[derive(JsonSchema)]
pub struct ResponsesUsage {
    /// Of the prompt.
    pub input_tokens: u64,
    /// Of the prompt.
    pub input_tokens_details: Map<String, Value>,
    /// Sampled.
    pub output_tokens: u64,
    /// Of these.
    pub output_tokens_details: Map<String, Value>,
    /// The sum.
    pub total_tokens: u64,
}
