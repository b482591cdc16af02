//! Answers of chat and completions, as the document shows them. The tests hold every answer to these
//! types with no field left over (`tests/tests/api/openapi.rs`).

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde_json::{Map, Value};

/// A chat completion.
#[derive(JsonSchema)]
pub struct ChatAnswer {
    /// Unique, `chatcmpl-...`.
    pub id: String,
    /// Always `chat.completion`.
    pub object: ChatObject,
    /// Around the choices.
    #[serde(flatten)]
    pub envelope: Envelope,
    /// Always `default`.
    pub service_tier: Tier,
    /// As many as asked for.
    pub choices: Vec<ChatChoice>,
    /// Tokens.
    pub usage: Usage,
}

/// A piece of a streamed chat completion.
#[derive(JsonSchema)]
pub struct ChatChunk {
    /// Same in all chunks.
    pub id: String,
    /// Always `chat.completion.chunk`.
    pub object: ChatChunkObject,
    /// Around the choices.
    #[serde(flatten)]
    pub envelope: Envelope,
    /// Always `default`.
    pub service_tier: Tier,
    /// What is new of one choice; none in the chunk with the usage.
    pub choices: Vec<ChatChunkChoice>,
    /// In the last chunk, `null` before it, if `stream_options.include_usage` asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// A completion, whole or a piece.
#[derive(JsonSchema)]
pub struct TextAnswer {
    /// Unique, `cmpl-...`.
    pub id: String,
    /// Always `text_completion`.
    pub object: TextObject,
    /// Around the choices.
    #[serde(flatten)]
    pub envelope: Envelope,
    /// `n` for each prompt, in the prompts' order.
    pub choices: Vec<TextChoice>,
    /// Tokens; in a stream as for chat.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// What all answers say.
#[derive(JsonSchema)]
pub struct Envelope {
    /// Unix seconds.
    pub created: u64,
    /// As requested.
    pub model: String,
    /// Build, weights and configuration: what a seed's output depends on.
    pub system_fingerprint: String,
    /// Who answered: on OpenRouter's routes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
}

/// One answer.
#[derive(JsonSchema)]
pub struct ChatChoice {
    /// Which.
    pub index: u64,
    /// What was said.
    pub message: AnswerMessage,
    /// `null` unless asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// On request.
    #[serde(flatten)]
    pub extras: Extras,
}

/// What is new of one answer.
#[derive(JsonSchema)]
pub struct ChatChunkChoice {
    /// Which.
    pub index: u64,
    /// What is new.
    pub delta: AnswerDelta,
    /// Of what is new; `null` unless asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// Set once, at the end.
    pub finish_reason: Option<FinishReason>,
    /// On request.
    #[serde(flatten)]
    pub extras: Extras,
}

/// One completion.
#[derive(JsonSchema)]
pub struct TextChoice {
    /// Which.
    pub index: u64,
    /// The text, or what is new of it.
    pub text: String,
    /// `null` unless asked for.
    pub logprobs: Option<TextLogprobs>,
    /// Why it ended; `null` in a stream until then.
    pub finish_reason: Option<FinishReason>,
    /// On request.
    #[serde(flatten)]
    pub extras: Extras,
}

/// What a choice carries on request.
#[derive(JsonSchema)]
pub struct Extras {
    /// With `return_token_ids`: the prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
    /// With `return_token_ids`: what was sampled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
    /// With `prompt_logprobs`: per token of the prompt the candidates by id; the first has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<Vec<Option<BTreeMap<String, PromptScore>>>>,
    /// `finish_reason` again: on OpenRouter's routes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub native_finish_reason: Option<FinishReason>,
}

/// A candidate for a token of the prompt.
#[derive(JsonSchema)]
pub struct PromptScore {
    /// Natural logarithm.
    pub logprob: f64,
    /// 1 is the likeliest; `null` beyond the alternatives.
    pub rank: Option<u32>,
    /// How it reads.
    pub decoded_token: String,
}

/// What was said.
#[derive(JsonSchema)]
pub struct AnswerMessage {
    /// Always `assistant`.
    pub role: AnswerRole,
    /// The text; `null` only beside calls.
    pub content: Option<String>,
    /// Always `null`.
    pub refusal: Option<String>,
    /// Always empty.
    pub annotations: Vec<Value>,
    /// Thoughts.
    #[serde(flatten)]
    pub thoughts: Thoughts,
    /// What the model calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Vec<AnswerCall>>,
    /// What the model calls, if it was given `functions`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function_call: Option<AnswerFunction>,
}

/// What is new.
#[derive(JsonSchema)]
pub struct AnswerDelta {
    /// In the first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<AnswerRole>,
    /// More of the text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// More thought; all of it comes before text and calls.
    #[serde(flatten)]
    pub thoughts: Thoughts,
    /// More of the calls, by `index`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Vec<CallDelta>>,
    /// More of the call, if the model was given `functions`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function_call: Option<FunctionDelta>,
}

/// Thoughts, under the names that the server was told to use.
#[derive(JsonSchema)]
pub struct Thoughts {
    /// The default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// With `--reasoning-field reasoning`, and on OpenRouter's routes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// On OpenRouter's routes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_details: Option<Vec<ThoughtDetail>>,
}

/// A piece of thought that a client may send back.
#[derive(JsonSchema)]
pub struct ThoughtDetail {
    /// Always `reasoning.text`.
    pub r#type: String,
    /// The piece.
    pub text: String,
    /// Always `null`.
    pub signature: Option<String>,
    /// Same in all pieces of a block.
    pub id: String,
    /// Always `unknown`.
    pub format: String,
    /// Which block.
    pub index: u64,
}

/// A call.
#[derive(JsonSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum AnswerCall {
    /// Of a function.
    Function {
        /// Unique, `call_...`.
        id: String,
        /// What is called.
        function: AnswerFunction,
    },
    /// Of a custom tool.
    Custom {
        /// Unique, `call_...`.
        id: String,
        /// What is called.
        custom: super::message::CalledCustom,
    },
}

/// A function and its arguments.
#[derive(JsonSchema)]
pub struct AnswerFunction {
    /// Which.
    pub name: String,
    /// A JSON object in a string, valid for the function's schema.
    #[schemars(extend("contentMediaType" = "application/json"))]
    pub arguments: String,
}

/// More of a call.
#[derive(JsonSchema)]
pub struct CallDelta {
    /// Which.
    pub index: u64,
    /// In its first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// In its first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r#type: Option<CallType>,
    /// More of a function's call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function: Option<FunctionDelta>,
    /// More of a custom tool's call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub custom: Option<CustomDelta>,
}

/// Kinds of tools.
#[derive(JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "said above")]
pub enum CallType {
    Function,
    Custom,
}

/// More of a function's call.
#[derive(JsonSchema)]
pub struct FunctionDelta {
    /// In its first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// More of the JSON text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arguments: Option<String>,
}

/// More of a custom tool's call.
#[derive(JsonSchema)]
pub struct CustomDelta {
    /// In its first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// More of the input.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<String>,
}

/// Log-probabilities of a chat.
#[derive(JsonSchema)]
pub struct ChatLogprobs {
    /// One per token of the text.
    pub content: Vec<TokenLogprob>,
    /// Always `null`.
    pub refusal: Option<Vec<TokenLogprob>>,
}

/// A token of the text.
#[derive(JsonSchema)]
pub struct TokenLogprob {
    /// As it was sampled.
    #[serde(flatten)]
    pub token: TokenScore,
    /// The likeliest, in descending order, as many as `top_logprobs` says.
    pub top_logprobs: Vec<TokenScore>,
}

/// A token and how likely it was.
#[derive(JsonSchema)]
pub struct TokenScore {
    /// How it reads; part of a character as U+FFFD.
    pub token: String,
    /// Natural logarithm of the probability under the raw logits.
    #[schemars(range(max = 0))]
    pub logprob: f64,
    /// The exact bytes; `null` for structure, which gives no text.
    pub bytes: Option<Vec<u8>>,
}

/// Log-probabilities of a completion: four lists of equal length.
#[derive(JsonSchema)]
pub struct TextLogprobs {
    /// How tokens read; part of a character as `bytes:\xNN`.
    pub tokens: Vec<String>,
    /// Natural logarithms; `null` for the first token of an echoed prompt.
    pub token_logprobs: Vec<Option<f64>>,
    /// Alternatives by how they read.
    pub top_logprobs: Vec<Option<BTreeMap<String, f64>>>,
    /// Where each begins, in code points.
    pub text_offset: Vec<u64>,
}

/// Tokens of a request.
#[derive(JsonSchema)]
pub struct Usage {
    /// Of all prompts, each once.
    pub prompt_tokens: u64,
    /// Sampled, of all choices.
    pub completion_tokens: u64,
    /// The sum.
    pub total_tokens: u64,
    /// Of the prompts.
    pub prompt_tokens_details: PromptDetails,
    /// Of the choices.
    pub completion_tokens_details: CompletionDetails,
    /// USD: on DeepInfra's routes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub estimated_cost: Option<f64>,
    /// USD: on OpenRouter's routes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<f64>,
    /// Always false: on OpenRouter's routes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub is_byok: Option<bool>,
    /// USD: on OpenRouter's routes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost_details: Option<CostDetails>,
}

/// Of the prompts.
#[derive(JsonSchema)]
pub struct PromptDetails {
    /// Continued from what was computed before.
    pub cached_tokens: u64,
    /// Always 0.
    pub audio_tokens: u64,
}

/// Of the choices.
#[derive(JsonSchema)]
pub struct CompletionDetails {
    /// Thoughts.
    pub reasoning_tokens: u64,
    /// Always 0.
    pub audio_tokens: u64,
    /// Drafted and kept.
    pub accepted_prediction_tokens: u64,
    /// Drafted and dropped.
    pub rejected_prediction_tokens: u64,
}

/// USD.
#[derive(JsonSchema)]
pub struct CostDetails {
    /// All of it.
    pub upstream_inference_cost: f64,
    /// For the prompt.
    pub upstream_inference_prompt_cost: f64,
    /// For the choices.
    pub upstream_inference_completions_cost: f64,
}

/// Why a choice ended.
#[derive(JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model was done, or a stop string came.
    Stop,
    /// The limit of tokens.
    Length,
    /// Calls await their results.
    ToolCalls,
    /// The same for `functions`.
    FunctionCall,
    /// Never here.
    ContentFilter,
    /// A stream failed: on OpenRouter's routes.
    Error,
}

macro_rules! constant {
    ($name:ident, $variant:ident, $text:literal) => {
        /// A constant.
        #[derive(JsonSchema)]
        pub enum $name {
            /// The constant.
            #[serde(rename = $text)]
            $variant,
        }
    };
}
constant!(ChatObject, Completion, "chat.completion");
constant!(ChatChunkObject, Chunk, "chat.completion.chunk");
constant!(TextObject, Completion, "text_completion");
constant!(AnswerRole, Assistant, "assistant");
constant!(Tier, Default, "default");
constant!(ListObject, List, "list");
constant!(ModelObject, Model, "model");

/// Names of the loaded model.
#[derive(JsonSchema)]
pub struct ModelList {
    /// Always `list`.
    pub object: ListObject,
    /// One per name.
    pub data: Vec<ModelEntry>,
}

/// A name of the loaded model.
#[derive(JsonSchema)]
pub struct ModelEntry {
    /// The name.
    pub id: String,
    /// Always `model`.
    pub object: ModelObject,
    /// Unix seconds.
    pub created: u64,
    /// Who made it.
    pub owned_by: String,
    /// Tokens of prompt and answer together.
    pub max_model_len: u32,
    /// Where there is something to say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// Names of the loaded model as OpenRouter lists them; its documentation explains the fields.
#[derive(JsonSchema)]
pub struct RouterModelList {
    /// One per name.
    pub data: Vec<RouterModel>,
    /// How many.
    pub total_count: u64,
    /// Where the next ones are: nowhere.
    pub links: Map<String, Value>,
}

/// A name of the loaded model.
#[derive(JsonSchema)]
#[expect(missing_docs, reason = "OpenRouter's documentation explains them")]
pub struct RouterModel {
    pub id: String,
    pub canonical_slug: String,
    pub name: String,
    pub created: u64,
    pub description: String,
    pub context_length: u32,
    pub architecture: Map<String, Value>,
    /// USD per token, as strings.
    pub pricing: BTreeMap<String, String>,
    pub top_provider: Map<String, Value>,
    pub per_request_limits: Option<Map<String, Value>>,
    pub supported_parameters: Vec<String>,
    pub supported_voices: Option<Vec<String>>,
    pub default_parameters: Option<Map<String, Value>>,
    pub links: Map<String, Value>,
}

/// What a recent request used and cost; OpenRouter's documentation explains the fields.
#[derive(JsonSchema)]
pub struct Receipt {
    /// The request.
    pub data: ReceiptData,
}

/// What a recent request used and cost.
#[derive(JsonSchema)]
pub struct ReceiptData {
    /// Of the answer.
    pub id: String,
    /// As requested.
    pub model: String,
    /// Everything else that OpenRouter's receipts have.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}
