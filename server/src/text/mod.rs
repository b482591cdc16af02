//! Tokens to text and back.

mod detokenizer;
#[cfg(test)]
pub(crate) mod samples;
mod segments;
mod stop;
mod tokenizer;

pub use detokenizer::{Detokenizer, Utf8Stream};
pub use stop::{StopMatch, StopMatcher, StopStrings};
pub use tokenizer::{AddedToken, Marked, Tokenizer, TokenizerError};
