//! `tokenizer.json`, whatever its model.

/// Encodes and decodes.
pub struct Tokenizer {
    _inner: tokenizers::Tokenizer,
}

/// Why a tokenizer is unusable.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TokenizerError(pub String);

impl Tokenizer {
    /// Reads the bytes of `tokenizer.json` and, if the folder has it, `tokenizer_config.json`.
    pub fn from_bytes(
        json: &[u8],
        _tokenizer_config: Option<&str>,
    ) -> Result<Self, TokenizerError> {
        let inner = tokenizers::Tokenizer::from_bytes(json)
            .map_err(|error| TokenizerError(error.to_string()))?;
        Ok(Self { _inner: inner })
    }
}
