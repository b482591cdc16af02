//! What a client asks for, in token ids.

use std::sync::Arc;

/// Names a request for its whole life; unique within a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// Whose a request is. 0 is nobody in particular; requests of his are one tenant's like any other's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId(pub u32);

/// How the tokens of a request are chosen and when it ends. Ranges are the API's and already
/// checked; the scheduler reads only the limits, the runner's sampler the rest.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Tokens to generate per choice at most. 0 computes the prompt only if `prompt_logprobs`
    /// asks for it.
    pub max_tokens: u32,
    /// No stop id is sampled before this many tokens (they are masked).
    pub min_tokens: u32,
    /// 0 is exact greedy: argmax, lowest id on ties.
    pub temperature: f32,
    /// Nucleus mass in 0..=1; 1 is off, 0 keeps the top token only.
    pub top_p: f32,
    /// Number of most likely tokens kept; 0 is off.
    pub top_k: u32,
    /// Least probability relative to the most likely token's; 0 is off.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt or output; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted per occurrence of a token in the output.
    pub frequency_penalty: f32,
    /// Subtracted once for a token that occurs in the output.
    pub presence_penalty: f32,
    /// Added to the logits of these ids, in ascending id order. +100 forces, -100 bans.
    pub logit_bias: Vec<(u32, f32)>,
    /// Choice `i` draws its noise from `(seed + i, number of tokens generated)`: independent of
    /// batch and order.
    pub seed: u64,
    /// Ids that end a choice: the model's end ids (unless ignored) and the client's.
    pub stop_token_ids: Vec<u32>,
    /// Log-probabilities of sampled tokens with this many alternatives; `None` is off.
    pub logprobs: Option<u32>,
    /// The same for every prompt token but the first.
    pub prompt_logprobs: Option<u32>,
}

impl SamplingParams {
    /// Whether the sampler needs the tokens so far.
    pub fn needs_history(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.frequency_penalty != 0.0
            || self.presence_penalty != 0.0
    }
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            max_tokens: 16,
            min_tokens: 0,
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            stop_token_ids: Vec::new(),
            logprobs: None,
            prompt_logprobs: None,
        }
    }
}

/// A prompt and what to do with it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its name.
    pub id: RequestId,
    /// Prompt token ids; at least one, all within the vocabulary.
    pub prompt: Arc<[u32]>,
    /// Sampling and limits, shared by all choices.
    pub sampling: Arc<SamplingParams>,
    /// Number of choices; they share the prompt's blocks and state.
    pub num_choices: u32,
    /// Prefix-cache hits happen only among equal salts. Empty is the common pool.
    pub cache_salt: Arc<str>,
    /// Positions in the prompt where others are likely to part from it: the beginnings of its messages,
    /// and where its client says so. Ascending, within the prompt; the state there is worth keeping.
    pub boundaries: Arc<[u32]>,
    /// Who waits goes before those of lower priority; waiting long makes up for it. Usually 0.
    pub priority: i8,
    /// Tenants share what there is by what they were served, not by how much they ask for.
    pub tenant: TenantId,
    /// That tenant's share relative to others', at least 1; what the last request said counts.
    /// Usually 1.
    pub tenant_weight: u16,
}

/// Why a choice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop id was sampled; it is the last of the new tokens.
    Stop(u32),
    /// `max_tokens` or the context window is used up, or a grammar grew beyond its limits.
    Length,
    /// The client's side ended it: a stop string matched, or the stream was dropped.
    Aborted,
    /// A step went wrong for one of the request's choices, which ends all of them; other requests are
    /// unaffected.
    Fault(crate::output::RowFault),
}
