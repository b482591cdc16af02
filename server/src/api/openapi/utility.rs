//! Tokens, rendered prompts, probes and errors, as the document shows them.

use schemars::JsonSchema;
use serde_json::{Map, Value};

use super::message::{Message, Tool};
use super::request::{ModelName, TemplateSettings};

/// A conversation, a `prompt` or a `content`; the first that is there counts.
#[derive(JsonSchema)]
#[serde(untagged)]
pub enum TokenizeBody {
    /// A conversation.
    Chat(TokenizeChat),
    /// A text.
    Prompt(TokenizePrompt),
    /// A text by the other name.
    Content(TokenizeContent),
}

/// A conversation, which the chat template renders.
#[derive(JsonSchema)]
pub struct TokenizeChat {
    /// Must be a name of the loaded model, if given.
    pub model: Option<ModelName>,
    /// The conversation.
    #[schemars(length(min = 1))]
    pub messages: Vec<Message>,
    /// What the model may call.
    #[schemars(length(max = 128))]
    pub tools: Option<Vec<Tool>>,
    /// Ends with the beginning of an answer.
    #[schemars(extend("default" = true))]
    pub add_generation_prompt: Option<bool>,
    /// Settings of the chat template.
    pub chat_template_kwargs: Option<TemplateSettings>,
}

/// A text.
#[derive(JsonSchema)]
pub struct TokenizePrompt {
    /// The text.
    pub prompt: String,
    /// How to read it.
    #[serde(flatten)]
    pub options: TextOptions,
}

/// A text by the other name.
#[derive(JsonSchema)]
pub struct TokenizeContent {
    /// The text.
    pub content: String,
    /// How to read it.
    #[serde(flatten)]
    pub options: TextOptions,
}

/// How to read a text.
#[derive(JsonSchema)]
pub struct TextOptions {
    /// Must be a name of the loaded model, if given.
    pub model: Option<ModelName>,
    /// Begins with what the tokenizer puts before every text.
    #[schemars(extend("default" = true))]
    pub add_special_tokens: Option<bool>,
    /// Reads the names of special tokens in the text as those tokens.
    #[schemars(extend("default" = false))]
    pub parse_special: Option<bool>,
}

/// Token ids.
#[derive(JsonSchema)]
pub struct Tokens {
    /// In order.
    pub tokens: Vec<u32>,
    /// How many.
    pub count: u64,
    /// Tokens of prompt and answer together.
    pub max_model_len: u32,
}

/// Token ids to text.
#[derive(JsonSchema)]
pub struct DetokenizeBody {
    /// Must be a name of the loaded model, if given.
    pub model: Option<ModelName>,
    /// Ids of the vocabulary.
    pub tokens: Vec<u32>,
}

/// Text, twice.
#[derive(JsonSchema)]
pub struct Text {
    /// The text.
    pub prompt: String,
    /// The same by another name.
    pub content: String,
}

/// What the engine would be given; vLLM's documentation explains the fields.
#[derive(JsonSchema)]
pub struct Rendered {
    /// Unique.
    pub request_id: String,
    /// The prompt.
    pub token_ids: Vec<u32>,
    /// How it reads.
    pub prompt: Option<String>,
    /// Always `null`.
    pub features: Option<Value>,
    /// By vLLM's names.
    pub sampling_params: Map<String, Value>,
    /// As requested.
    pub model: String,
    /// As requested.
    pub stream: bool,
    /// As requested.
    pub stream_options: Option<Map<String, Value>>,
    /// As requested.
    pub cache_salt: Option<String>,
    /// As requested, or what the tier is worth; lower goes first.
    pub priority: i64,
    /// Always `null`.
    pub kv_transfer_params: Option<Value>,
}

/// Whether the server is well.
#[derive(JsonSchema)]
pub struct Health {
    /// `ok`; with 503 `failed` or `stalled`.
    pub status: String,
}

/// Whether the server takes new work.
#[derive(JsonSchema)]
pub struct Ready {
    /// `ready`; with 503 `not_ready`.
    pub status: String,
    /// With 503: `loading`, `warming_up`, `stalled`, `draining` or `failed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// With `loading`: how much of the weights is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent: Option<u64>,
    /// With `ready`, what is given up for want of room: 0 nothing, 1 drafts and requests of low priority,
    /// 2 all but requests of high priority, 3 all new requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<u8>,
}

/// Any object.
#[derive(JsonSchema)]
pub struct AnyObject(pub Map<String, Value>);

/// An error in OpenAI's form.
#[derive(JsonSchema)]
pub struct OpenAiError {
    /// The error; all four keys are always there.
    pub error: OpenAiErrorBody,
}

/// An error in OpenAI's form.
#[derive(JsonSchema)]
pub struct OpenAiErrorBody {
    /// For people, with the numbers in it.
    pub message: String,
    /// `invalid_request_error`, `authentication_error`, `rate_limit_error`, `server_error`.
    pub r#type: String,
    /// Path of the parameter at fault, such as `messages[1].role`.
    pub param: Option<String>,
    /// For programs.
    pub code: Option<String>,
}

/// An error in OpenRouter's form.
#[derive(JsonSchema)]
pub struct OpenRouterError {
    /// The error.
    pub error: OpenRouterErrorBody,
}

/// An error in OpenRouter's form.
#[derive(JsonSchema)]
pub struct OpenRouterErrorBody {
    /// The HTTP status.
    pub code: u16,
    /// For people.
    pub message: String,
    /// What else is known, `param` among it.
    pub metadata: Map<String, Value>,
}

/// An error in Cloudflare's form.
#[derive(JsonSchema)]
pub struct CloudflareError {
    /// Always `null`.
    pub result: Option<Value>,
    /// Always false.
    pub success: bool,
    /// One.
    pub errors: Vec<CloudflareErrorBody>,
    /// Always empty.
    pub messages: Vec<Value>,
}

/// An error in Cloudflare's form.
#[derive(JsonSchema)]
pub struct CloudflareErrorBody {
    /// One of Workers AI's.
    pub code: u32,
    /// For people; names the parameter.
    pub message: String,
}

/// An error in Anthropic's form.
#[derive(JsonSchema)]
pub struct AnthropicError {
    /// Always `error`.
    pub r#type: String,
    /// The error.
    pub error: AnthropicErrorBody,
    /// As in the header `x-request-id`.
    pub request_id: String,
}

/// An error in Anthropic's form.
#[derive(JsonSchema)]
pub struct AnthropicErrorBody {
    /// `invalid_request_error`, `not_found_error`, `rate_limit_error`, `overloaded_error`, ...
    pub r#type: String,
    /// For people; names the parameter.
    pub message: String,
}
