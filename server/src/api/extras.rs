//! What choices carry on request, alike in chat and in completions.

use super::choice::{Delta, Finish};
use super::flavour::Flavour;
use super::generation::Generation;
use super::params::Params;
use super::types::{Extras, NativeFinish, PromptScores};

/// Which extras a request asked for, or its flavour has.
pub struct ExtraFields {
    token_ids: bool,
    prompt_scores: bool,
    flavour: Flavour,
}

/// The extras of the chunks made of one delta: its ids go with the first of them.
pub struct ChunkExtras<'a> {
    fields: &'a ExtraFields,
    token_ids: Option<&'a [u32]>,
}

impl ExtraFields {
    /// As asked for.
    pub fn of(params: &Params, flavour: Flavour) -> Self {
        Self {
            token_ids: params.return_token_ids,
            prompt_scores: params.prompt_logprobs.is_some(),
            flavour,
        }
    }

    /// The scores of a choice's prompt, if they are shown.
    pub fn scores(&self, generation: &Generation, choice: usize) -> Option<PromptScores> {
        self.prompt_scores
            .then(|| generation.prompt_scores(choice))
            .flatten()
    }

    /// Of a choice that is over.
    pub fn whole<'a>(
        &self,
        prompt: &'a [u32],
        delta: &'a Delta,
        scores: Option<&'a PromptScores>,
    ) -> Extras<'a> {
        Extras {
            prompt_token_ids: self.token_ids.then_some(prompt),
            token_ids: self.token_ids.then_some(&delta.token_ids),
            prompt_logprobs: scores,
            native_finish_reason: self.native(delta.finish),
        }
    }

    /// Of the first chunk of a choice.
    pub fn opening<'a>(&self, prompt: &'a [u32]) -> Extras<'a> {
        Extras {
            prompt_token_ids: self.token_ids.then_some(prompt),
            native_finish_reason: self.native(None),
            ..Extras::default()
        }
    }

    /// Of the chunks that tell of `delta`.
    pub fn chunks<'a>(&'a self, delta: &'a Delta) -> ChunkExtras<'a> {
        let ids = delta.token_ids.as_slice();
        ChunkExtras {
            fields: self,
            token_ids: Some(ids).filter(|ids| self.token_ids && !ids.is_empty()),
        }
    }

    fn native(&self, finish: Option<Finish>) -> NativeFinish {
        NativeFinish::of(self.flavour, finish)
    }
}

impl<'a> ChunkExtras<'a> {
    /// Of a chunk with something to say.
    pub fn chunk(&mut self) -> Extras<'a> {
        Extras {
            token_ids: self.token_ids.take(),
            native_finish_reason: self.fields.native(None),
            ..Extras::default()
        }
    }

    /// Of the chunk behind those; `None` if there is no need of one: the choice goes on, and its
    /// ids are told.
    pub fn last(
        self,
        finish: Option<Finish>,
        scores: Option<&'a PromptScores>,
    ) -> Option<Extras<'a>> {
        let needed = finish.is_some() || self.token_ids.is_some();
        needed.then(|| Extras {
            token_ids: self.token_ids,
            prompt_logprobs: scores,
            native_finish_reason: self.fields.native(finish),
            ..Extras::default()
        })
    }
}
