//! What the model may call.

use serde_json::Value;

/// The tools of a request and how they may be used. The default has none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ToolSet {
    /// In the order given; names are distinct.
    pub tools: Vec<Tool>,
    /// Whether the model decides.
    pub choice: ToolChoice,
    /// More than one call in an answer is welcome.
    pub parallel: bool,
    /// They came as `functions`, and calls go back as `function_call`.
    pub legacy: bool,
}

/// Something that the client can run.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    /// 1 to 64 letters, digits, `_` and `-`.
    pub name: String,
    /// For the model.
    pub description: Option<String>,
    /// What it takes.
    pub input: ToolInput,
    /// The client insists on the schema; calls are bound to it anyway.
    pub strict: bool,
}

/// What a tool takes.
#[derive(Clone, Debug, PartialEq)]
pub enum ToolInput {
    /// A JSON object that is valid under this schema.
    Function {
        /// `{}` if the client gave none.
        parameters: Value,
    },
    /// Text in this form.
    Custom(CustomFormat),
}

/// The form of a custom tool's input.
#[derive(Clone, Debug, PartialEq)]
pub enum CustomFormat {
    /// Any.
    Text,
    /// In the language of this grammar.
    Lark(String),
    /// Matching this expression as a whole.
    Regex(String),
}

/// Whether the model decides. Numbers are indices into [`ToolSet::tools`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// No call; the tools are not even shown.
    None,
    /// The model decides.
    #[default]
    Auto,
    /// At least one call and nothing else.
    Required,
    /// A call of exactly this one.
    Named(usize),
    /// Only these, though the prompt shows all.
    Allowed {
        /// At least one call.
        required: bool,
        /// Which.
        tools: Vec<usize>,
    },
}
