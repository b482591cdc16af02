//! The commands beside `serve`.

pub mod bench;
pub mod chat;
mod client;
pub mod doctor;
pub mod key;
mod manifest;
mod perplexity;
pub mod pull;
pub mod quantize;
pub mod replay;
pub mod top;
pub mod verify;
