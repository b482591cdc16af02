//! The commands beside `serve`.

pub mod chat;
pub mod doctor;
mod perplexity;
pub mod quantize;
