//! The thinking before an answer: counts it, forces its end, sees its end.

use crate::{ThinkingGuide, Vocabulary};

/// A thought in progress.
#[derive(Clone)]
pub(crate) struct Thought {
    num_tokens: u32,
    /// The last tokens, at most as many as the marker has.
    tail: Vec<u32>,
    /// The last bytes, one less than the marker has at most. Empty for a marker of one token.
    text: Vec<u8>,
    /// How much of the marker has been forced.
    num_forced: Option<usize>,
}

/// What a token did to a thought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It goes on.
    No,
    /// The model closed it.
    ByModel,
    /// The budget did.
    ByForce,
    /// By beginning a call, whose first token this was.
    ByCall,
}

impl Thought {
    pub(crate) fn new(guide: &ThinkingGuide) -> Self {
        let mut thought = Self {
            num_tokens: 0,
            tail: Vec::new(),
            text: Vec::new(),
            num_forced: None,
        };
        thought.spend(guide);
        thought
    }

    /// The only token that may come, once the budget is used up.
    pub(crate) fn forced(&self, guide: &ThinkingGuide) -> Option<u32> {
        self.num_forced.map(|at| guide.close[at])
    }

    /// How many bytes of a marker of several tokens the model has spelled.
    pub(crate) fn num_spelled(&self, guide: &ThinkingGuide, vocabulary: &Vocabulary) -> usize {
        if guide.close.len() < 2 {
            return 0;
        }
        let marker = marker_text(guide, vocabulary);
        let lens = (0..marker.len()).rev();
        lens.into_iter()
            .find(|len| self.text.ends_with(&marker[..*len]))
            .unwrap_or(0)
    }

    /// Takes the next token.
    pub(crate) fn advance(
        &mut self,
        token: u32,
        guide: &ThinkingGuide,
        vocabulary: &Vocabulary,
    ) -> Ended {
        if let Some(num_forced) = &mut self.num_forced {
            *num_forced += 1;
            return if *num_forced == guide.close.len() {
                Ended::ByForce
            } else {
                Ended::No
            };
        }
        if guide.call == Some(token) {
            return Ended::ByCall;
        }
        self.num_tokens += 1;
        self.tail.push(token);
        if self.tail.len() > guide.close.len() {
            self.tail.remove(0);
        }
        if !guide.close.is_empty() && self.tail == guide.close {
            return Ended::ByModel;
        }
        if guide.close.len() > 1 && self.spells_marker(token, guide, vocabulary) {
            return Ended::ByModel;
        }
        self.spend(guide);
        Ended::No
    }

    /// Whether the bytes since the thought began contain the marker's.
    fn spells_marker(
        &mut self,
        token: u32,
        guide: &ThinkingGuide,
        vocabulary: &Vocabulary,
    ) -> bool {
        let marker = marker_text(guide, vocabulary);
        self.text.extend_from_slice(vocabulary.text(token));
        let found = self.text.windows(marker.len()).any(|bytes| bytes == marker);
        let surplus = self.text.len().saturating_sub(marker.len() - 1);
        self.text.drain(..surplus);
        found
    }

    /// Starts forcing when the budget is used up. What the model has said of the marker counts for
    /// the marker.
    fn spend(&mut self, guide: &ThinkingGuide) {
        let Some(budget) = guide.budget else { return };
        if guide.close.is_empty() {
            return;
        }
        let begun = (0..guide.close.len())
            .rev()
            .find(|len| self.tail.ends_with(&guide.close[..*len]))
            .expect("the empty beginning always fits");
        if self.num_tokens - begun as u32 >= budget {
            self.num_forced = Some(begun);
        }
    }
}

/// Tokens that would complete the marker, of which `num_spelled` bytes are there, and go on past it.
pub(crate) fn overshooting(
    guide: &ThinkingGuide,
    vocabulary: &Vocabulary,
    num_spelled: usize,
) -> Vec<u32> {
    if guide.close.len() < 2 {
        return Vec::new();
    }
    let marker = marker_text(guide, vocabulary);
    let (spelled, missing) = marker.split_at(num_spelled);
    let goes_past = |id: &u32| {
        let text = vocabulary.text(*id);
        if text.len() <= missing.len() {
            return false;
        }
        let bytes = [spelled, text].concat();
        let before_last = &bytes[..bytes.len() - 1];
        before_last
            .windows(marker.len())
            .any(|bytes| bytes == marker)
    };
    (0..vocabulary.size()).filter(goes_past).collect()
}

/// The marker as the model may spell it.
fn marker_text(guide: &ThinkingGuide, vocabulary: &Vocabulary) -> Vec<u8> {
    let tokens = guide.close.iter();
    tokens
        .flat_map(|token| vocabulary.text(*token))
        .copied()
        .collect()
}
