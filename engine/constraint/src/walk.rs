//! One text on its way through a grammar.

use std::sync::Arc;

use llguidance::Matcher;
use scheduler::TokenMask;

use crate::Compiled;

/// All walks through a grammar share the states that its automaton has grown so far, which makes the
/// second walk cheap. What one walk has broken or blown up, the others replace and go on.
pub(crate) struct Walk {
    grammar: Arc<Compiled>,
    matcher: Matcher,
    /// The tokens so far, to begin anew with.
    tokens: Vec<u32>,
}

impl Walk {
    pub(crate) fn new(grammar: &Arc<Compiled>) -> Self {
        Self {
            grammar: Arc::clone(grammar),
            matcher: grammar.matcher(),
            tokens: Vec::new(),
        }
    }

    /// What may come next; when the text is whole, the end too.
    pub(crate) fn mask(&mut self) -> Result<TokenMask, String> {
        if let Ok(mask) = self.matcher.compute_mask_or_eos() {
            return Ok(TokenMask::from_words(mask.as_slice()));
        }
        self.begin_anew()?;
        let mask = self.matcher.compute_mask_or_eos();
        let mask = mask.map_err(|error| error.to_string())?;
        Ok(TokenMask::from_words(mask.as_slice()))
    }

    /// Takes a token that was allowed.
    pub(crate) fn advance(&mut self, token: u32) -> Result<(), String> {
        self.tokens.push(token);
        match self.matcher.consume_token(token) {
            Ok(()) => Ok(()),
            Err(_) => self.begin_anew(),
        }
    }

    /// Takes the last token back.
    pub(crate) fn retract(&mut self) -> Result<(), String> {
        self.tokens.pop().expect("a token was taken");
        match self.matcher.rollback(1) {
            Ok(()) => Ok(()),
            // Some grammars cannot.
            Err(_) => self.begin_anew(),
        }
    }

    fn begin_anew(&mut self) -> Result<(), String> {
        self.matcher = self.grammar.matcher();
        let tokens = self.matcher.consume_tokens(&self.tokens);
        tokens.map_err(|error| error.to_string())
    }
}
