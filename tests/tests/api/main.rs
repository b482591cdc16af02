//! The API over a real socket, with the demo's tokenizer and template and a model that follows a
//! script.

mod bad_requests;
mod chat;
mod completions;
mod server;
mod tool_calls;
mod utility;
