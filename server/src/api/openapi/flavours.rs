//! Bodies that providers have of their own, as the document shows them.

use schemars::JsonSchema;
use serde_json::{Map, Value};

use super::answer::ChatAnswer;
use super::message::Message;
use super::request::{ChatBody, ChatParams, Common, CompletionBody};

/// OpenRouter's chat.
#[derive(JsonSchema)]
pub struct RouterChatBody {
    /// The chat.
    #[serde(flatten)]
    pub body: ChatBody,
    /// What chooses a provider elsewhere.
    #[serde(flatten)]
    pub routing: Routing,
}

/// OpenRouter's completion.
#[derive(JsonSchema)]
pub struct RouterCompletionBody {
    /// The completion.
    #[serde(flatten)]
    pub body: CompletionBody,
    /// What chooses a provider elsewhere.
    #[serde(flatten)]
    pub routing: Routing,
}

/// What chooses a provider on OpenRouter; here it is accepted, without effect.
#[derive(JsonSchema)]
pub struct Routing {
    /// Names to fall back on, of which the first loaded one is taken.
    pub models: Option<Vec<String>>,
    /// Accepted, without effect.
    pub provider: Option<Map<String, Value>>,
    /// Accepted, without effect.
    pub route: Option<String>,
    /// Accepted, without effect.
    pub transforms: Option<Vec<Value>>,
    /// Accepted, without effect.
    pub plugins: Option<Vec<Value>>,
    /// Accepted: usage always comes.
    pub usage: Option<UsageOption>,
}

/// Usage always comes.
#[derive(JsonSchema)]
pub struct UsageOption {
    /// Accepted, without effect.
    pub include: Option<bool>,
}

/// Cloudflare's body. The path names the model, so that `model` is ignored; `messages` win over a
/// `prompt`.
#[derive(JsonSchema)]
#[serde(untagged)]
pub enum RunBody {
    /// A conversation.
    Messages(Box<RunMessages>),
    /// A question.
    Prompt(Box<RunPrompt>),
}

/// A conversation.
#[derive(JsonSchema)]
pub struct RunMessages {
    /// The conversation so far.
    #[schemars(length(min = 1))]
    pub messages: Vec<Message>,
    /// Parameters of every generating route.
    #[serde(flatten)]
    pub common: Common,
    /// Parameters of chat.
    #[serde(flatten)]
    pub chat: ChatParams,
}

/// A question.
#[derive(JsonSchema)]
pub struct RunPrompt {
    /// What a user says.
    #[schemars(length(min = 1))]
    pub prompt: String,
    /// Parameters of every generating route.
    #[serde(flatten)]
    pub common: Common,
    /// Parameters of chat.
    #[serde(flatten)]
    pub chat: ChatParams,
}

/// An answer in Cloudflare's envelope.
#[derive(JsonSchema)]
pub struct RunAnswer {
    /// The answer.
    pub result: ChatAnswer,
    /// Always true.
    pub success: bool,
    /// Always empty.
    pub errors: Vec<Value>,
    /// Always empty.
    pub messages: Vec<Value>,
}
