//! A conversation, as the template sees it.

use serde_json::{Map, Value};

/// One turn or part of one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Message {
    /// Whose.
    pub role: Role,
    /// Text; empty beside tool calls.
    pub content: String,
    /// Where in `content` a part ends that its client wants cached; in bytes, ascending.
    pub breakpoints: Vec<usize>,
    /// The speaker's or the tool's name.
    pub name: Option<String>,
    /// What the assistant thought.
    pub reasoning: Option<String>,
    /// What the assistant called.
    pub tool_calls: Vec<ToolCall>,
    /// Which call a tool answers.
    pub tool_call_id: Option<String>,
}

/// Who speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// The operator; `developer` is the same.
    System,
    /// The user.
    #[default]
    User,
    /// The model.
    Assistant,
    /// The answer to a call; `function` is the same.
    Tool,
}

/// A call in the history.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolCall {
    /// Its name for the answer.
    pub id: String,
    /// Which function.
    pub name: String,
    /// Parsed, in the order given.
    pub arguments: Map<String, Value>,
}

impl Role {
    /// As templates compare it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}
