//! Messages and tools, as the document shows them.

use schemars::JsonSchema;
use serde_json::{Map, Value};

/// One message of a conversation.
#[derive(JsonSchema)]
#[serde(tag = "role", rename_all = "lowercase")]
pub enum Message {
    /// Instructions.
    System(Said),
    /// Instructions, by their newer name.
    Developer(Said),
    /// What a person says.
    User(Said),
    /// What the model said. It has content, a refusal or a call.
    Assistant(Box<Answered>),
    /// What a tool answered.
    Tool {
        /// The call that is answered, which stands before it.
        tool_call_id: String,
        /// The result.
        content: Content,
        /// Accepted, without effect.
        name: Option<String>,
    },
    /// What a function answered: the older form of `tool`.
    Function {
        /// The function, which was called before.
        name: String,
        /// The result.
        content: Option<Content>,
    },
}

/// Text from a person or an operator.
#[derive(JsonSchema)]
pub struct Said {
    /// The text.
    pub content: Content,
    /// Accepted, without effect.
    pub name: Option<String>,
}

/// An earlier answer.
#[derive(JsonSchema)]
pub struct Answered {
    /// The text.
    pub content: Option<AnsweredContent>,
    /// Instead of content.
    pub refusal: Option<String>,
    /// Accepted, without effect.
    pub name: Option<String>,
    /// The thought before it.
    pub reasoning_content: Option<String>,
    /// The same by another name.
    pub reasoning: Option<String>,
    /// The same as OpenRouter returns it.
    pub reasoning_details: Option<Vec<ReasoningDetail>>,
    /// Calls that it made.
    pub tool_calls: Option<Vec<Call>>,
    /// The call that it made, in the older form.
    #[schemars(extend("deprecated" = true))]
    pub function_call: Option<CalledFunction>,
}

/// A text, or parts of one, which are joined by newlines.
#[derive(JsonSchema)]
#[serde(untagged)]
pub enum Content {
    /// All of it.
    Text(String),
    /// In parts.
    Parts(#[schemars(length(min = 1))] Vec<TextPart>),
}

/// The same, where a refusal may be a part.
#[derive(JsonSchema)]
#[serde(untagged)]
pub enum AnsweredContent {
    /// All of it.
    Text(String),
    /// In parts.
    Parts(#[schemars(length(min = 1))] Vec<AnsweredPart>),
}

/// Part of a text.
#[derive(JsonSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum TextPart {
    /// The only kind that is served.
    Text {
        /// The part.
        text: String,
    },
}

/// Part of an answer.
#[derive(JsonSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum AnsweredPart {
    /// Text.
    Text {
        /// The part.
        text: String,
    },
    /// A refusal.
    Refusal {
        /// The part.
        refusal: String,
    },
}

/// A piece of thought as OpenRouter returns it.
#[derive(JsonSchema)]
pub struct ReasoningDetail {
    /// The piece.
    pub text: Option<String>,
}

/// A call of a tool.
#[derive(JsonSchema)]
#[serde(untagged)]
pub enum Call {
    /// Of a function.
    Function(FunctionCall),
    /// Of a custom tool.
    Custom(CustomCall),
}

/// A call of a function.
#[derive(JsonSchema)]
pub struct FunctionCall {
    /// Names the call.
    pub id: String,
    /// What it is, unless said otherwise.
    pub r#type: Option<FunctionType>,
    /// What is called.
    pub function: CalledFunction,
}

/// A call of a custom tool.
#[derive(JsonSchema)]
pub struct CustomCall {
    /// Names the call.
    pub id: String,
    /// Says that it is one.
    pub r#type: CustomType,
    /// What is called.
    pub custom: CalledCustom,
}

/// Always `function`.
#[derive(JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FunctionType {
    /// A function.
    Function,
}

/// Always `custom`.
#[derive(JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CustomType {
    /// A custom tool.
    Custom,
}

/// A function and its arguments.
#[derive(JsonSchema)]
pub struct CalledFunction {
    /// Which.
    #[schemars(length(min = 1))]
    pub name: String,
    /// A JSON object in a string; the object itself is accepted.
    pub arguments: Arguments,
}

/// A JSON object in a string; the object itself is accepted.
#[derive(JsonSchema)]
#[serde(untagged)]
pub enum Arguments {
    /// As the API returns it.
    Text(#[schemars(extend("contentMediaType" = "application/json"))] String),
    /// As some clients send it.
    Object(Map<String, Value>),
}

/// A custom tool and its input.
#[derive(JsonSchema)]
pub struct CalledCustom {
    /// Which.
    #[schemars(length(min = 1))]
    pub name: String,
    /// Free text, or what the tool's grammar allows.
    pub input: String,
}

/// Something that the model may call.
#[derive(JsonSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Tool {
    /// With arguments by a schema.
    Function {
        /// Which.
        function: Function,
    },
    /// With free text, or text by a grammar.
    Custom {
        /// Which.
        custom: Custom,
    },
}

/// A function.
#[derive(JsonSchema)]
pub struct Function {
    /// Distinct.
    #[schemars(regex(pattern = "^[A-Za-z0-9_-]{1,64}$"))]
    pub name: String,
    /// When and how to call it.
    pub description: Option<String>,
    /// A JSON schema of its arguments; default: any object.
    pub parameters: Option<Map<String, Value>>,
    /// Whether arguments are held to the schema even when the model calls of its own accord.
    #[schemars(extend("default" = false))]
    pub strict: Option<bool>,
}

/// A custom tool.
#[derive(JsonSchema)]
pub struct Custom {
    /// Distinct.
    #[schemars(regex(pattern = "^[A-Za-z0-9_-]{1,64}$"))]
    pub name: String,
    /// When and how to call it.
    pub description: Option<String>,
    /// What its input looks like; default: any text.
    pub format: Option<CustomFormat>,
}

/// What a custom tool's input looks like.
#[derive(JsonSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum CustomFormat {
    /// Any text.
    Text,
    /// What a grammar allows.
    Grammar {
        /// Which.
        grammar: Grammar,
    },
}

/// A grammar.
#[derive(JsonSchema)]
pub struct Grammar {
    /// Its language.
    pub syntax: Syntax,
    /// Its text.
    pub definition: String,
}

/// Language of a grammar.
#[derive(JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Syntax {
    /// Rules and terminals.
    Lark,
    /// Anchored at both ends.
    Regex,
}

/// Whether and what the model calls.
#[derive(JsonSchema)]
#[serde(untagged)]
pub enum ToolChoice {
    /// In a word.
    Word(ToolChoiceWord),
    /// By name.
    Named(NamedChoice),
}

/// Whether the model calls.
#[derive(JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ToolChoiceWord {
    /// No call.
    None,
    /// The model decides.
    Auto,
    /// At least one call.
    Required,
}

/// What the model calls.
#[derive(JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum NamedChoice {
    /// This function.
    Function {
        /// Which.
        function: Name,
    },
    /// This custom tool.
    Custom {
        /// Which.
        custom: Name,
    },
    /// Some of the tools.
    AllowedTools {
        /// Which.
        allowed_tools: AllowedTools,
    },
}

/// Some of the tools.
#[derive(JsonSchema)]
pub struct AllowedTools {
    /// Whether one must be called.
    pub mode: AllowedMode,
    /// Which.
    #[schemars(length(min = 1))]
    pub tools: Vec<AllowedTool>,
}

/// Whether one must be called.
#[derive(JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AllowedMode {
    /// The model decides.
    Auto,
    /// At least one call.
    Required,
}

/// One of the tools.
#[derive(JsonSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum AllowedTool {
    /// A function.
    Function {
        /// Which.
        function: Name,
    },
    /// A custom tool.
    Custom {
        /// Which.
        custom: Name,
    },
}

/// A tool by its name.
#[derive(JsonSchema)]
pub struct Name {
    /// One of the tools'.
    pub name: String,
}

/// Whether and which function the model calls, in the older form.
#[derive(JsonSchema)]
#[serde(untagged)]
pub enum FunctionChoice {
    /// In a word.
    Word(FunctionChoiceWord),
    /// By name.
    Named(Name),
}

/// Whether the model calls.
#[derive(JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FunctionChoiceWord {
    /// No call.
    None,
    /// The model decides.
    Auto,
}
