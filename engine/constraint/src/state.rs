//! How far one choice has come, and what may come next.

use std::sync::Arc;

use llguidance::Matcher;
use scheduler::TokenMask;

use crate::thought::{Ended, Thought};
use crate::{Guide, ThinkingGuide};

/// The grammar and the tokens do not go together, or the grammar is beyond its limits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct GuideError(String);

/// One choice on its way through its guide.
pub struct GuideState {
    guide: Arc<Guide>,
    phase: Phase,
    /// The masks that do not depend on the grammar's state, made when first needed.
    masks: FixedMasks,
}

enum Phase {
    Thinking(Thought),
    /// The answer, before its first token that counts.
    Opening {
        /// The newline that belongs to the marker may still come.
        newline: bool,
        /// Something must come.
        must_answer: bool,
    },
    /// Free text: no grammar, or one that waits for its trigger.
    Free,
    Grammar(Box<Matcher>),
    /// The grammar's text is whole, and an end id was sampled.
    Ended,
}

#[derive(Default)]
struct FixedMasks {
    end_ids: Option<TokenMask>,
    not_banned: Option<TokenMask>,
    no_end: Option<TokenMask>,
    thinking: Option<TokenMask>,
}

impl GuideState {
    /// Before the first token.
    pub fn new(guide: &Arc<Guide>) -> Self {
        let mut state = Self {
            guide: Arc::clone(guide),
            phase: Phase::Free,
            masks: FixedMasks::default(),
        };
        match &guide.thinking {
            Some(thinking) => state.phase = Phase::Thinking(Thought::new(thinking)),
            None => state.open(false, false),
        }
        state
    }

    /// What may come next; `None` is everything.
    pub fn mask(&mut self) -> Result<Option<TokenMask>, GuideError> {
        let guide = Arc::clone(&self.guide);
        let size = guide.vocabulary.size();
        let end_ids = guide.vocabulary.end_ids();
        match &mut self.phase {
            Phase::Thinking(thought) => {
                let thinking = guide.thinking.as_ref().expect("it thinks by this guide");
                if let Some(token) = thought.forced(thinking) {
                    return Ok(Some(TokenMask::only(&[token], size)));
                }
                Ok(self.thinking_mask(thinking))
            }
            Phase::Opening {
                must_answer: true, ..
            } if guide.grammar.is_none() => {
                let no_end = self.masks.no_end.get_or_insert_with(|| {
                    TokenMask::all(size).without(end_ids).without(&guide.banned)
                });
                Ok(Some(no_end.clone()))
            }
            Phase::Opening { .. } | Phase::Free => Ok(self.free_mask()),
            Phase::Grammar(matcher) => {
                let mask = grammar_mask(matcher)?;
                if guide.banned.is_empty() {
                    return Ok(Some(mask));
                }
                let allowed = mask.without(&guide.banned);
                Ok(Some(if allowed.is_empty() { mask } else { allowed }))
            }
            Phase::Ended => {
                let end_ids = self
                    .masks
                    .end_ids
                    .get_or_insert_with(|| TokenMask::only(end_ids, size));
                Ok(Some(end_ids.clone()))
            }
        }
    }

    /// Takes the token that was sampled.
    pub fn advance(&mut self, token: u32) -> Result<(), GuideError> {
        let guide = Arc::clone(&self.guide);
        match &mut self.phase {
            Phase::Thinking(thought) => {
                let thinking = guide.thinking.as_ref().expect("it thinks by this guide");
                match thought.advance(token, thinking, &guide.vocabulary) {
                    Ended::No => {}
                    Ended::ByModel => self.open(true, false),
                    Ended::ByForce => self.open(true, true),
                    Ended::ByCall => {
                        self.open(false, false);
                        return self.advance(token);
                    }
                }
                Ok(())
            }
            Phase::Opening { newline, .. } => {
                let is_newline = guide.thinking.as_ref().and_then(|t| t.newline) == Some(token);
                if *newline && is_newline {
                    *newline = false;
                    return Ok(());
                }
                self.phase = Phase::Free;
                self.advance(token)
            }
            Phase::Free => {
                let Some(grammar) = &guide.grammar else {
                    return Ok(());
                };
                if grammar.trigger == Some(token) {
                    self.phase = Phase::Grammar(Box::new(grammar.grammar.start()));
                    return self.advance(token);
                }
                Ok(())
            }
            Phase::Grammar(matcher) => {
                if guide.vocabulary.end_ids().contains(&token) {
                    self.phase = Phase::Ended;
                    return Ok(());
                }
                matcher.consume_token(token).map_err(|error| failed(&error))
            }
            Phase::Ended => Ok(()),
        }
    }

    fn open(&mut self, newline: bool, must_answer: bool) {
        self.phase = match &self.guide.grammar {
            Some(grammar) if grammar.trigger.is_none() => {
                Phase::Grammar(Box::new(grammar.grammar.start()))
            }
            _ => Phase::Opening {
                newline,
                must_answer,
            },
        };
    }

    fn free_mask(&mut self) -> Option<TokenMask> {
        let guide = &self.guide;
        if guide.banned.is_empty() {
            return None;
        }
        let mask = self
            .masks
            .not_banned
            .get_or_insert_with(|| TokenMask::all(guide.vocabulary.size()).without(&guide.banned));
        Some(mask.clone())
    }

    fn thinking_mask(&mut self, thinking: &ThinkingGuide) -> Option<TokenMask> {
        let guide = &self.guide;
        let waits = guide
            .grammar
            .as_ref()
            .filter(|grammar| grammar.trigger.is_none());
        let Some(waiting) = waits else {
            return self.free_mask();
        };
        let mask = self.masks.thinking.get_or_insert_with(|| {
            let call = thinking
                .call
                .filter(|call| !waiting.grammar.can_start_with(*call));
            TokenMask::all(guide.vocabulary.size())
                .without(&guide.banned)
                .without(guide.vocabulary.end_ids())
                .without(call.as_slice())
        });
        Some(mask.clone())
    }
}

fn grammar_mask(matcher: &mut Matcher) -> Result<TokenMask, GuideError> {
    let mask = matcher
        .compute_mask_or_eos()
        .map_err(|error| failed(&error))?;
    Ok(TokenMask::from_words(mask.as_slice()))
}

fn failed(error: &impl std::fmt::Display) -> GuideError {
    GuideError(error.to_string())
}
