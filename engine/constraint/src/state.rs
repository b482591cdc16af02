//! How far one choice has come, and what may come next.

use std::collections::HashMap;
use std::sync::Arc;

use scheduler::TokenMask;

use crate::guide::{GrammarGuide, Guide, ThinkingGuide};
use crate::thought::{self, Ended, Thought};
use crate::walk::Walk;

/// A mask is beyond the limits of a step, or a token was sampled that the mask did not allow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct GuideError(String);

/// One choice on its way through its guide.
pub struct GuideState {
    guide: Arc<Guide>,
    phase: Phase,
    masks: FixedMasks,
}

enum Phase {
    Thinking(Thought),
    /// Text, with no grammar or one that waits for its trigger.
    Free(Opening),
    Grammar {
        walk: Box<Walk>,
        opening: Opening,
    },
    /// The grammar's text is whole, and an end id was sampled.
    Ended,
}

/// What is special about the first token of an answer.
#[derive(Clone, Copy, Default)]
struct Opening {
    /// The newline that belongs to the marker may still come.
    newline: bool,
    /// Something must come.
    must_answer: bool,
}

/// How things stood before a token that may be taken back.
enum Before {
    Phase(Phase),
    /// In the grammar's text, whose walk has taken the token.
    Walked(Opening),
    /// In the grammar's text, before a newline that belongs to the marker.
    Opening(Opening),
}

/// The masks that do not depend on a grammar's state, made when first needed.
#[derive(Default)]
struct FixedMasks {
    end_ids: Option<TokenMask>,
    not_banned: Option<TokenMask>,
    no_end: Option<TokenMask>,
    /// While a grammar waits, by how much of the closing marker is there.
    thinking: HashMap<usize, TokenMask>,
}

impl GuideState {
    /// Before the first token.
    pub fn new(guide: &Arc<Guide>) -> Self {
        let phase = match &guide.thinking {
            Some(thinking) => Phase::Thinking(Thought::new(thinking)),
            None => answer(guide, Opening::default()),
        };
        Self {
            guide: Arc::clone(guide),
            phase,
            masks: FixedMasks::default(),
        }
    }

    /// What may come next; `None` is everything. An error is for good: the grammar has grown beyond
    /// the limits of a step.
    pub fn mask(&mut self) -> Result<Option<TokenMask>, GuideError> {
        let guide = &*self.guide;
        let size = guide.vocabulary.size();
        let end_ids = guide.vocabulary.end_ids();
        let masks = &mut self.masks;
        Ok(match &mut self.phase {
            Phase::Thinking(thought) => {
                let thinking = guide.thinking.as_ref().expect("it thinks by this guide");
                match (thought.forced(thinking), waiting_grammar(guide)) {
                    (Some(token), _) => Some(TokenMask::only(&[token], size)),
                    (None, None) => masks.not_banned(guide),
                    (None, Some(grammar)) => {
                        let num_spelled = thought.num_spelled(thinking, &guide.vocabulary);
                        let mask = masks.thinking.entry(num_spelled).or_insert_with(|| {
                            thinking_mask(guide, thinking, grammar, num_spelled)
                        });
                        Some(mask.clone())
                    }
                }
            }
            Phase::Free(opening) if opening.must_answer => {
                let mask = masks.no_end.get_or_insert_with(|| {
                    TokenMask::all(size).without(end_ids).without(&guide.banned)
                });
                Some(mask.clone())
            }
            Phase::Free(_) => masks.not_banned(guide),
            Phase::Grammar { walk, opening } => {
                let mut mask = walk.mask().map_err(GuideError)?;
                if !guide.banned.is_empty() {
                    let allowed = mask.without(&guide.banned);
                    if !allowed.is_empty() {
                        mask = allowed;
                    }
                }
                let newline = newline(guide).filter(|_| opening.newline);
                Some(newline.map_or(mask.clone(), |newline| mask.with(&[newline])))
            }
            Phase::Ended => {
                let mask = masks
                    .end_ids
                    .get_or_insert_with(|| TokenMask::only(end_ids, size));
                Some(mask.clone())
            }
        })
    }

    /// What may come next, and what behind each of `drafts` if those before it come. Ends with a mask
    /// that does not allow its draft, or where no further one can be made; the first error is that of
    /// [`mask`](Self::mask). Nothing is taken.
    pub fn masks(&mut self, drafts: &[u32]) -> Result<Vec<Option<TokenMask>>, GuideError> {
        let mut masks = vec![self.mask()?];
        let mut trail = Vec::new();
        for draft in drafts {
            let last = masks.last().expect("there is a first").as_ref();
            if last.is_some_and(|mask| !mask.allows(*draft)) {
                break;
            }
            let (before, taken) = self.attempt(*draft);
            trail.push(before);
            match taken.and_then(|()| self.mask()) {
                Ok(mask) => masks.push(mask),
                Err(_) => break,
            }
        }
        while let Some(before) = trail.pop() {
            self.retract(before)?;
        }
        Ok(masks)
    }

    /// Takes a token for now.
    fn attempt(&mut self, token: u32) -> (Before, Result<(), GuideError>) {
        let guide = &*self.guide;
        let before = match &mut self.phase {
            Phase::Thinking(thought) => Before::Phase(Phase::Thinking(thought.clone())),
            Phase::Free(opening) => Before::Phase(Phase::Free(*opening)),
            Phase::Ended => Before::Phase(Phase::Ended),
            Phase::Grammar { opening, .. } => {
                if opening.newline && newline(guide) == Some(token) {
                    Before::Opening(*opening)
                } else if guide.vocabulary.end_ids().contains(&token) {
                    let phase = std::mem::replace(&mut self.phase, Phase::Ended);
                    return (Before::Phase(phase), Ok(()));
                } else {
                    Before::Walked(*opening)
                }
            }
        };
        let taken = self.advance(token);
        (before, taken)
    }

    fn retract(&mut self, before: Before) -> Result<(), GuideError> {
        match (before, &mut self.phase) {
            (Before::Phase(before), phase) => *phase = before,
            (Before::Opening(before), Phase::Grammar { opening, .. }) => *opening = before,
            (Before::Walked(before), Phase::Grammar { walk, opening }) => {
                *opening = before;
                walk.retract().map_err(GuideError)?;
            }
            (Before::Opening(_) | Before::Walked(_), _) => {
                unreachable!("a phase that ended was put back")
            }
        }
        Ok(())
    }

    /// Takes the token that was sampled. An error means that it was not one of those allowed.
    pub fn advance(&mut self, token: u32) -> Result<(), GuideError> {
        let guide = &*self.guide;
        match &mut self.phase {
            Phase::Thinking(thought) => {
                let thinking = guide.thinking.as_ref().expect("it thinks by this guide");
                let ended = thought.advance(token, thinking, &guide.vocabulary);
                if ended == Ended::No {
                    return Ok(());
                }
                self.phase = answer(
                    guide,
                    Opening {
                        newline: ended != Ended::ByCall,
                        must_answer: ended == Ended::ByForce,
                    },
                );
                if ended == Ended::ByCall {
                    return self.advance(token);
                }
            }
            Phase::Free(opening) => {
                if opening.newline && newline(guide) == Some(token) {
                    opening.newline = false;
                    return Ok(());
                }
                *opening = Opening::default();
                if let Some(grammar) = &guide.grammar
                    && grammar.trigger == Some(token)
                {
                    self.phase = Phase::Grammar {
                        walk: Box::new(Walk::new(&grammar.grammar)),
                        opening: Opening::default(),
                    };
                    return self.advance(token);
                }
            }
            Phase::Grammar { walk, opening } => {
                if opening.newline && newline(guide) == Some(token) {
                    opening.newline = false;
                    return Ok(());
                }
                *opening = Opening::default();
                if guide.vocabulary.end_ids().contains(&token) {
                    self.phase = Phase::Ended;
                    return Ok(());
                }
                return walk.advance(token).map_err(GuideError);
            }
            Phase::Ended => {}
        }
        Ok(())
    }
}

impl FixedMasks {
    fn not_banned(&mut self, guide: &Guide) -> Option<TokenMask> {
        if guide.banned.is_empty() {
            return None;
        }
        let mask = self
            .not_banned
            .get_or_insert_with(|| TokenMask::all(guide.vocabulary.size()).without(&guide.banned));
        Some(mask.clone())
    }
}

/// How an answer begins.
fn answer(guide: &Guide, opening: Opening) -> Phase {
    match waiting_grammar(guide) {
        Some(grammar) => Phase::Grammar {
            walk: Box::new(Walk::new(&grammar.grammar)),
            opening,
        },
        None => Phase::Free(opening),
    }
}

/// The grammar, if it starts with the answer.
fn waiting_grammar(guide: &Guide) -> Option<&GrammarGuide> {
    let grammar = guide.grammar.as_ref();
    grammar.filter(|grammar| grammar.trigger.is_none())
}

fn newline(guide: &Guide) -> Option<u32> {
    guide.thinking.as_ref()?.newline
}

/// While a grammar waits, the thought must be closed before the end; and where the marker ends, its
/// token must end too, or the rest of that token would escape the grammar.
fn thinking_mask(
    guide: &Guide,
    thinking: &ThinkingGuide,
    grammar: &GrammarGuide,
    num_spelled: usize,
) -> TokenMask {
    let call = thinking
        .call
        .filter(|call| !grammar.grammar.can_start_with(*call));
    TokenMask::all(guide.vocabulary.size())
        .without(&guide.banned)
        .without(guide.vocabulary.end_ids())
        .without(call.as_slice())
        .without(&thought::overshooting(
            thinking,
            &guide.vocabulary,
            num_spelled,
        ))
}
