//! The API over a real socket, with the demo's tokenizer and template and a model that follows a
//! script.

mod agents;
mod anthropic;
mod bad_requests;
mod billing;
mod cached;
mod chat;
mod cloudflare;
mod completions;
mod deepinfra;
mod guided;
mod nvidia;
mod openapi;
mod openrouter;
mod render;
mod responses;
mod server;
mod tool_calls;
mod utility;
