//! What a choice must say, computed alone and in endless memory.
//!
//! Written without the scheduler's code: it takes no chunks, shares nothing, forgets nothing.

use scheduler::{FinishReason, Request, RowFault, TokenLogprobs};

use crate::rng::mix;

/// The story of no tokens.
pub(crate) const BEGINNING: u64 = 0x5151;

/// The story goes on.
pub(crate) fn tell(story: u64, token: u32) -> u64 {
    mix(story.rotate_left(7) ^ u64::from(token))
}

/// The next token.
pub(crate) fn draw(story: u64, seed: u64, index: u32, vocabulary: u32) -> u32 {
    let noise = mix(seed ^ (u64::from(index) << 32));
    (mix(story ^ noise) % u64::from(vocabulary)) as u32
}

/// A log-probability after `story`, by which a scorer can be told that it read something else.
pub(crate) fn score(story: u64, token: u32, top: u32) -> TokenLogprobs {
    let logprob = -((mix(story ^ u64::from(token)) % 4096) as f32);
    TokenLogprobs {
        token,
        logprob,
        top: (0..top).map(|rank| (rank, logprob)).collect(),
    }
}

/// Chance by seed and story.
pub(crate) fn mix_of(seed: u64, story: u64) -> u64 {
    mix(story ^ mix(seed))
}

/// Contexts that the model cannot stand: whoever computes one has a poisoned state from then on.
#[derive(Clone, Copy, Debug)]
pub struct Poison {
    /// One story in so many; 0 is none.
    pub one_in: u64,
    /// Whether a row that meets one fails, or only the row that samples.
    pub shows_at_once: bool,
}

impl Poison {
    pub(crate) fn spoils(self, story: u64) -> bool {
        self.one_in != 0 && mix(!story).is_multiple_of(self.one_in)
    }
}

/// All that is told of one choice if nobody ends it early.
#[derive(Clone, Debug, PartialEq)]
pub struct Expected {
    /// The generated tokens.
    pub tokens: Vec<u32>,
    /// One per token if asked for.
    pub logprobs: Vec<TokenLogprobs>,
    /// One per prompt token but the first if asked for, and only for choice 0.
    pub prompt_logprobs: Vec<TokenLogprobs>,
    /// Its end.
    pub finish: FinishReason,
}

/// Computes one choice.
pub fn expect(
    request: &Request,
    choice: u32,
    max_model_len: u32,
    vocabulary: u32,
    poison: Poison,
) -> Expected {
    let sampling = &request.sampling;
    let mut expected = Expected {
        tokens: Vec::new(),
        logprobs: Vec::new(),
        prompt_logprobs: Vec::new(),
        finish: FinishReason::Length,
    };
    let scored = sampling.prompt_logprobs.filter(|_| choice == 0);
    let prompt = &request.prompt;
    let num_computed = match (sampling.max_tokens, scored) {
        (0, None) => 1,
        (0, Some(_)) => (prompt.len() - 1).max(1),
        _ => prompt.len(),
    };
    let mut story = BEGINNING;
    let mut poisoned = false;
    for (i, &token) in prompt[..num_computed].iter().enumerate() {
        story = tell(story, token);
        poisoned |= poison.spoils(story);
        if let (Some(top), Some(&target)) = (scored, prompt.get(i + 1)) {
            expected.prompt_logprobs.push(score(story, target, top));
        }
    }
    let fault = FinishReason::Fault(RowFault::BadLogits);
    if sampling.max_tokens == 0 {
        if poisoned && poison.shows_at_once {
            expected.finish = fault;
        }
        return expected;
    }
    loop {
        if poisoned {
            expected.finish = fault;
            return expected;
        }
        let index = expected.tokens.len() as u32;
        let token = draw(
            story,
            sampling.seed.wrapping_add(u64::from(choice)),
            index,
            vocabulary,
        );
        expected
            .logprobs
            .extend(sampling.logprobs.map(|top| score(story, token, top)));
        expected.tokens.push(token);
        story = tell(story, token);
        poisoned |= poison.spoils(story);
        if sampling.stop_token_ids.contains(&token) {
            expected.finish = FinishReason::Stop(token);
            return expected;
        }
        let num_generated = expected.tokens.len() as u32;
        let num_tokens = prompt.len() as u32 + num_generated;
        if num_generated == sampling.max_tokens || num_tokens >= max_model_len {
            return expected;
        }
    }
}
