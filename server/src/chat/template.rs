//! The model's chat template, rendered in a sandbox.

/// A parsed template.
pub struct ChatTemplate {
    _source: String,
}

/// Why a template is unusable or does not render.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TemplateError(pub String);

impl ChatTemplate {
    /// Parses the Jinja text of `chat_template.jinja` or of `chat_template` in
    /// `tokenizer_config.json`; the latter also names the bos and eos tokens.
    pub fn new(source: &str, _tokenizer_config: Option<&str>) -> Result<Self, TemplateError> {
        Ok(Self {
            _source: source.to_owned(),
        })
    }
}
