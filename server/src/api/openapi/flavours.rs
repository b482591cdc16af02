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

/// Cloudflare's body: `prompt` or `messages`, which win. The path names the model, so that `model`
/// is ignored.
#[derive(JsonSchema)]
pub struct RunBody {
    /// A user's message.
    #[schemars(length(min = 1))]
    pub prompt: Option<String>,
    /// The conversation so far.
    #[schemars(length(min = 1))]
    pub messages: Option<Vec<Message>>,
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
