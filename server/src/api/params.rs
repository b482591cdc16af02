//! Parameters: ranges, defaults, errors.

/// What holds where a request is silent.
#[derive(Clone, Debug, Default)]
pub struct Defaults {
    /// `temperature` of `generation_config.json`.
    pub temperature: Option<f32>,
    /// `top_p` of `generation_config.json`.
    pub top_p: Option<f32>,
    /// Ids that end a choice: `eos_token_id` of `generation_config.json`, else of `config.json`.
    pub eos_token_ids: Vec<u32>,
    /// Under which names reasoning is returned.
    pub reasoning_field: ReasoningField,
}

/// Under which names reasoning is returned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReasoningField {
    /// `reasoning_content`.
    #[default]
    ReasoningContent,
    /// `reasoning`.
    Reasoning,
    /// Both.
    Both,
}
