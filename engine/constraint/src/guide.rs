//! What the tokens of a choice must obey, from its first to its last.

use std::sync::Arc;

use crate::{Compiled, Vocabulary};

/// Shared by all choices of a request.
#[derive(Clone, Debug)]
pub struct Guide {
    /// The model's tokens.
    pub vocabulary: Arc<Vocabulary>,
    /// The prompt ends inside a thought: the grammar waits until it is closed.
    pub thinking: Option<ThinkingGuide>,
    /// Ids that are never sampled, unless the grammar leaves nothing else.
    pub banned: Vec<u32>,
    /// What the answer must look like.
    pub grammar: Option<GrammarGuide>,
}

impl Guide {
    /// One that allows everything.
    pub fn new(vocabulary: Arc<Vocabulary>) -> Self {
        Self {
            vocabulary,
            thinking: None,
            banned: Vec::new(),
            grammar: None,
        }
    }
}

/// How a thought ends.
#[derive(Clone, Debug, Default)]
pub struct ThinkingGuide {
    /// Tokens of the closing marker, forced in this order when the budget is used up. Sampled by the
    /// model itself, they end the thought too; a marker of several tokens also when the model spells
    /// it with others.
    pub close: Vec<u32>,
    /// Tokens of a thought at most, marker not counted. `None` is no limit.
    pub budget: Option<u32>,
    /// A token that begins a call, which ends a thought by itself.
    pub call: Option<u32>,
    /// May stand once between the marker and what the grammar governs.
    pub newline: Option<u32>,
}

/// What the answer must look like.
#[derive(Clone, Debug)]
pub struct GrammarGuide {
    /// The grammar.
    pub grammar: Arc<Compiled>,
    /// The grammar starts with this token, whenever the model samples it; until then anything goes.
    /// `None`: it starts with the answer.
    pub trigger: Option<u32>,
}
