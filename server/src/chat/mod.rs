//! The family: how to talk.

mod template;

pub use template::{ChatTemplate, TemplateError};
