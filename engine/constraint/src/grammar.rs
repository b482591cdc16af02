//! What an answer may look like, as its author wrote it.

/// A grammar by its content, which is also its name in the cache.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Grammar {
    /// JSON that a JSON schema accepts, written compactly, properties in the schema's order.
    JsonSchema(String),
    /// A Lark grammar with the rule `start`, from a client: text only.
    Lark(String),
    /// A regular expression for the whole text.
    Regex(String),
    /// A Lark grammar of our own around grammars of clients: it may name control tokens as
    /// `<tool_call>` or `<[14]>`, and refers to a part as `@name`.
    Composed {
        /// The grammar of our own.
        root: String,
        /// Grammars by name.
        parts: Vec<(String, Grammar)>,
    },
}

impl Grammar {
    /// Bytes of its text, parts included.
    pub fn num_bytes(&self) -> usize {
        match self {
            Self::JsonSchema(text) | Self::Lark(text) | Self::Regex(text) => text.len(),
            Self::Composed { root, parts } => {
                let parts = parts
                    .iter()
                    .map(|(name, part)| name.len() + part.num_bytes());
                root.len() + parts.sum::<usize>()
            }
        }
    }
}
