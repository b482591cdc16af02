//! Tokens to text and back.

mod tokenizer;

pub use tokenizer::{Tokenizer, TokenizerError};
