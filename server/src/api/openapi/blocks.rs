//! The bodies of `/v1/messages`, as the document shows them.

use schemars::JsonSchema;
use serde_json::{Map, Value};

use super::request::{ModelName, Reasoning, Sampling, StopString, Thoughts};

/// Body of a message.
#[derive(JsonSchema)]
pub struct MessagesBody {
    /// Most tokens of the answer, thoughts included.
    #[schemars(range(min = 1))]
    pub max_tokens: i64,
    /// What counting has too.
    #[serde(flatten)]
    pub counted: CountTokensBody,
}

/// Body of a count.
#[derive(JsonSchema)]
pub struct CountTokensBody {
    /// Any of the names that `/v1/models` lists.
    pub model: ModelName,
    /// The conversation so far. What repeats is found without `cache_control`, which is accepted on every
    /// block and tool; on a text block it also has the prefix kept that ends there, inside its message.
    #[schemars(length(min = 1))]
    pub messages: Vec<BlockMessage>,
    /// What the operator says first: a text or text blocks.
    pub system: Option<BlockContent>,
    /// What the model may call. Tools with a `type` of their own run at the provider's; they are left
    /// out and counted.
    pub tools: Option<Vec<BlockTool>>,
    /// Whether it may, must, or must not.
    pub tool_choice: Option<BlockToolChoice>,
    /// Whether to think first; default: no.
    pub thinking: Option<ThinkingSettings>,
    /// 0 is exact greedy.
    #[schemars(range(min = 0, max = 1))]
    pub temperature: Option<f64>,
    /// Texts at which the answer ends; they are not returned.
    #[schemars(length(max = 4))]
    pub stop_sequences: Option<Vec<StopString>>,
    /// Events instead of one answer.
    #[schemars(extend("default" = false))]
    pub stream: Option<bool>,
    /// What the answer must look like, and how much to think about it.
    pub output_config: Option<OutputSettings>,
    /// The older place of `output_config.format`.
    #[schemars(extend("deprecated" = true))]
    pub output_format: Option<OutputFormat>,
    /// `clear_thinking_...` with `keep: "all"` leaves earlier thoughts in the prompt.
    pub context_management: Option<ContextSettings>,
    /// Accepted, without effect.
    pub metadata: Option<BlockMetadata>,
    /// Accepted, without effect: both go before nobody. `x-request-priority` does.
    pub service_tier: Option<BlockTier>,
    /// How much to think, in OpenRouter's words.
    pub reasoning: Option<Reasoning>,
    /// How tokens are chosen, and when it ends.
    #[serde(flatten)]
    pub sampling: Sampling,
    /// How much to think, in the words of chat.
    #[serde(flatten)]
    pub thoughts: Thoughts,
}

/// A message.
#[derive(JsonSchema)]
pub struct BlockMessage {
    /// `user`, `assistant` or `system`.
    pub role: String,
    /// A text or blocks.
    pub content: BlockContent,
}

/// A text or blocks.
#[derive(JsonSchema)]
#[serde(untagged)]
pub enum BlockContent {
    /// A text.
    Text(String),
    /// Blocks.
    Blocks(Vec<Block>),
}

/// A piece of a message. Which of these members it has depends on `type`.
#[derive(JsonSchema)]
pub struct Block {
    /// `text`, `thinking`, `redacted_thinking`, `tool_use` or `tool_result`.
    pub r#type: String,
    /// Of a text.
    pub text: Option<String>,
    /// Of a thought.
    pub thinking: Option<String>,
    /// Of a thought: as it was handed out.
    pub signature: Option<String>,
    /// Of a hidden thought: as it was handed out.
    pub data: Option<String>,
    /// Of a call.
    pub id: Option<String>,
    /// Of a call: the tool.
    pub name: Option<String>,
    /// Of a call: what the tool is given.
    pub input: Option<Map<String, Value>>,
    /// Of a tool's answer: the call.
    pub tool_use_id: Option<String>,
    /// Of a tool's answer: a text or text blocks.
    pub content: Option<Value>,
    /// Of a tool's answer: it failed.
    pub is_error: Option<bool>,
}

/// What the model may call.
#[derive(JsonSchema)]
pub struct BlockTool {
    /// Its name: 1 to 64 letters, digits, `_` or `-`. Only tools that run elsewhere may have none.
    pub name: Option<String>,
    /// For the model.
    pub description: Option<String>,
    /// What it is given, as a JSON schema. Only tools that run elsewhere have none.
    pub input_schema: Option<Map<String, Value>>,
    /// Accepted: every schema is enforced.
    pub strict: Option<bool>,
    /// `custom`, or whose servers run it.
    pub r#type: Option<String>,
}

/// Whether the model may, must, or must not call.
#[derive(JsonSchema)]
pub struct BlockToolChoice {
    /// Which of these.
    pub r#type: ChoiceKind,
    /// Of `tool`.
    pub name: Option<String>,
    /// At most one call.
    pub disable_parallel_tool_use: Option<bool>,
}

/// How a tool is chosen.
#[derive(JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "they say it")]
pub enum ChoiceKind {
    Auto,
    Any,
    Tool,
    None,
}

/// Whether to think first.
#[derive(JsonSchema)]
pub struct ThinkingSettings {
    /// Which of these.
    pub r#type: ThinkingKind,
    /// At most this many tokens of thought; less than `max_tokens`. Only of `enabled`.
    #[schemars(range(min = 1))]
    pub budget_tokens: Option<i64>,
    /// `omitted`: thoughts are handed out sealed, to be handed back.
    pub display: Option<ThinkingDisplay>,
}

/// Whether to think first.
#[derive(JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "they say it")]
pub enum ThinkingKind {
    Enabled,
    Adaptive,
    Disabled,
}

/// How thoughts are shown.
#[derive(JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ThinkingDisplay {
    /// As they are: nobody summarises them.
    Summarized,
    /// Not at all.
    Omitted,
}

/// What the answer must look like, and how much to think about it.
#[derive(JsonSchema)]
pub struct OutputSettings {
    /// How much to think, where thinking is on.
    pub effort: Option<OutputEffort>,
    /// JSON that fits a schema.
    pub format: Option<OutputFormat>,
}

/// How much to think.
#[derive(JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "a scale")]
pub enum OutputEffort {
    Low,
    Medium,
    High,
    Xhigh,
    Max,
}

/// JSON that fits a schema.
#[derive(JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum OutputFormat {
    /// Enforced token by token.
    JsonSchema {
        /// The schema.
        schema: Map<String, Value>,
    },
}

/// What is done about a long history.
#[derive(JsonSchema)]
pub struct ContextSettings {
    /// Edits; others than `clear_thinking_...` have no effect.
    pub edits: Option<Vec<Value>>,
}

/// Who asks.
#[derive(JsonSchema)]
pub struct BlockMetadata {
    /// Accepted, without effect.
    #[schemars(length(max = 1024))]
    pub user_id: Option<String>,
}

/// Tiers of Anthropic.
#[derive(JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "words without a meaning here")]
pub enum BlockTier {
    Auto,
    StandardOnly,
}

/// An answer.
#[derive(JsonSchema)]
pub struct MessagesAnswer {
    /// Unique, `msg_...`.
    pub id: String,
    /// Always `message`.
    pub r#type: String,
    /// Always `assistant`.
    pub role: String,
    /// As requested.
    pub model: String,
    /// Thoughts, text and calls.
    pub content: Vec<Map<String, Value>>,
    /// Why it ended.
    pub stop_reason: Option<StopReason>,
    /// The stop sequence that ended it.
    pub stop_sequence: Option<String>,
    /// Tokens.
    pub usage: MessagesUsage,
    /// What else this API's answers have.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// Why an answer ended.
#[derive(JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// The model was done.
    EndTurn,
    /// The limit of tokens.
    MaxTokens,
    /// A stop sequence.
    StopSequence,
    /// Calls await their results.
    ToolUse,
}

/// Tokens of a request.
#[derive(JsonSchema)]
pub struct MessagesUsage {
    /// Of the prompt, computed.
    pub input_tokens: u64,
    /// Sampled.
    pub output_tokens: u64,
    /// Of the prompt, continued from what was computed before.
    pub cache_read_input_tokens: u64,
    /// Of the prompt, kept for later.
    pub cache_creation_input_tokens: u64,
    /// What else this API's usage has.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// How long a prompt would be.
#[derive(JsonSchema)]
pub struct Count {
    /// In tokens.
    pub input_tokens: u64,
    /// What else this API's counts have.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}
