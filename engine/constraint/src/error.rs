//! Why a grammar is refused.

/// What is wrong with a grammar, in words for whoever sent it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// It cannot be read.
    #[error("{message}")]
    Malformed {
        /// What and where.
        message: String,
    },
    /// A schema keyword that no mask can hold.
    #[error("the keyword `{keyword}` at {at} is not supported: {why}")]
    Unsupported {
        /// The keyword.
        keyword: String,
        /// JSON pointer to the schema that has it, `#` first.
        at: String,
        /// What about it.
        why: String,
    },
    /// A reference that leads nowhere.
    #[error("the `$ref` {reference:?} at {at} cannot be resolved: {why}")]
    UnresolvedRef {
        /// The reference.
        reference: String,
        /// JSON pointer to the schema that has it, `#` first.
        at: String,
        /// Why not.
        why: &'static str,
    },
    /// A size beyond its limit.
    #[error("{what} is {size}, at most {max} is allowed")]
    TooLarge {
        /// What was counted.
        what: String,
        /// How many.
        size: u64,
        /// The limit.
        max: u64,
    },
    /// It needs more time or memory than a grammar gets.
    #[error("the grammar is too complex: {message}")]
    TooComplex {
        /// Which limit.
        message: String,
    },
    /// No text can satisfy it.
    #[error("nothing can satisfy it: {message}")]
    Unsatisfiable {
        /// What contradicts what.
        message: String,
    },
}
