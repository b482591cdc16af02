//! The commands beside `serve`.

pub mod bench;
pub mod chat;
mod client;
pub mod doctor;
mod perplexity;
pub mod quantize;
