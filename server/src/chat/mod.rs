//! The family: how to talk.

mod clock;
mod message;
mod python;
mod reasoning;
mod template;
mod tools;

pub(crate) use clock::strftime;
pub use message::{Message, Role, ToolCall};
pub use reasoning::{Placement, ReasoningSplitter};
pub use template::{ChatTemplate, Rendered, TemplateError, Variables};
pub use tools::{CustomFormat, Tool, ToolChoice, ToolInput, ToolSet};
