//! The family: how to talk.

mod clock;
mod grammar;
mod message;
mod python;
mod reasoning;
mod template;
mod tool_calls;
mod tools;

pub(crate) use clock::strftime;
pub use grammar::{AnswerGrammar, CallTags, Place, Refused, ResponseFormat, answer};
pub use message::{Message, Role, ToolCall};
pub use reasoning::{Placement, ReasoningSplitter};
pub use template::{ChatTemplate, Rendered, TemplateError, Variables};
pub use tool_calls::{Dialect, ToolCallEvent, ToolCallFormat, ToolCallParser, ValueTypes};
pub use tools::{CustomFormat, Tool, ToolChoice, ToolInput, ToolSet};
