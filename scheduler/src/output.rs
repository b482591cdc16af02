//! The plan that goes to the runner and the result that comes back.

use std::sync::Arc;

use kvcache::{BlockId, SlotId, StateOp};

use crate::request::{FinishReason, RequestId, SamplingParams};

/// Numbers the steps; a result carries its plan's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StepId(pub u64);

/// One choice of one request, in flight. Unique within a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// Everything the runner does in one step: `ops` in their order, then all rows.
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulerOutput {
    /// This step.
    pub step: StepId,
    /// State movements, applied in order before any row runs.
    pub ops: Vec<StateOp>,
    /// One row per sequence: rows of one token first, then those with drafts, then the others.
    pub rows: Vec<Row>,
}

/// One sequence's share of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Whose.
    pub sequence: SequenceId,
    /// Tokens to run, at least one.
    pub input_ids: Vec<u32>,
    /// Absolute position of `input_ids[0]`: the number of tokens computed before this step.
    pub start: u32,
    /// Blocks that hold positions `0 .. start + input_ids.len() + max_drafts`, in order.
    pub block_table: Vec<BlockId>,
    /// The live state slot: absorbed all tokens before `start` but those that are pending.
    pub slot: SlotId,
    /// Copies of the state to be made on the way, ascending.
    pub saves: Vec<Save>,
    /// Its part in speculative decoding.
    pub drafting: Drafting,
    /// `Some` when the logits of the last input position choose a token.
    pub sample: Option<Sample>,
    /// `Some` when prompt positions in this row are scored.
    pub prompt_logprobs: Option<PromptLogprobs>,
}

/// A copy of a row's state after some of its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Save {
    /// Tokens absorbed: within the row, beyond its `start`.
    pub at: u32,
    /// Overwritten.
    pub to: SlotId,
}

/// A row's part in speculative decoding.
///
/// ```text
/// |-- absorbed by the slot --|-- pending --|-- input_ids: a token, drafts --|-- max_drafts --|
/// 0                                      start                             end
/// ```
///
/// A row with drafts leaves its slot as it found it, pending tokens absorbed, and keeps the inputs of
/// its own tokens beside it. Which of those count is known when the next row says how many are
/// pending; the others are forgotten without a trace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drafting {
    /// How many of the last `input_ids` are guesses at tokens not drawn yet. Before them is one known
    /// token. The logits of that token and of each draft draw a token, as long as those before it came
    /// out as they were guessed.
    pub num_drafts: u32,
    /// Tokens right before `start` whose inputs lie beside the slot, which has not absorbed them.
    pub num_pending: u32,
    /// Whether the draft block has seen `input_ids[0]`: the row that drew it made drafts.
    pub is_drafted: bool,
    /// How many drafts to make for the next step; `block_table` covers as many positions beyond the
    /// row's end. A row that draws no token makes none, and only passes through the draft block. 0:
    /// none, and the draft block may be left out.
    pub max_drafts: u32,
}

/// How the row's next token is drawn. The runner keeps no sampler state between steps: all it
/// needs is here.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Whose token this will be.
    pub request: RequestId,
    /// Which of its choices.
    pub choice: u32,
    /// The request's parameters.
    pub params: Arc<SamplingParams>,
    /// `params.seed` plus the choice's index (wrapping).
    pub seed: u64,
    /// How many tokens this choice has generated: the counter of its noise.
    pub index: u32,
    /// Tokens so far, if `params.needs_history()`.
    pub history: Option<History>,
}

/// Tokens that penalties look at.
#[derive(Clone, Debug, PartialEq)]
pub struct History {
    /// The request's prompt.
    pub prompt: Arc<[u32]>,
    /// Tokens this choice has generated.
    pub generated: Vec<u32>,
}

/// Scoring of prompt positions.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptLogprobs {
    /// `targets[i]` is the prompt token that follows `input_ids[i]`; shorter than `input_ids` by one
    /// when the row ends with the prompt's last token.
    pub targets: Vec<u32>,
    /// Number of alternatives.
    pub top: u32,
}

/// What a step produced.
#[derive(Clone, Debug, PartialEq)]
pub struct StepResult {
    /// The plan's step.
    pub step: StepId,
    /// One per row of the plan, in its order.
    pub rows: Vec<RowResult>,
}

/// What a row produced.
#[derive(Clone, Debug, PartialEq)]
pub struct RowResult {
    /// The row's sequence.
    pub sequence: SequenceId,
    /// Its tokens, or what went wrong with this row alone.
    pub outcome: Result<RowOutput, RowFault>,
}

/// A row that went well.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RowOutput {
    /// Tokens drawn: if the row samples, one more than its drafts that came true, else none. Fewer if
    /// something is wrong behind a draft: the next row will meet it. None where one was asked for ends
    /// the choice as its limit would: nothing can be drawn any more.
    pub tokens: Vec<u32>,
    /// Guesses at the tokens that follow, at most as many as were asked for.
    pub drafts: Vec<u32>,
    /// One entry per token if asked for, else empty.
    pub logprobs: Vec<TokenLogprobs>,
    /// One entry per target if asked for, else empty.
    pub prompt_logprobs: Vec<TokenLogprobs>,
}

/// What can go wrong with one row. Its request fails; nothing of it is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowFault {
    /// A logit was NaN, or all were minus infinity.
    BadLogits,
    /// The row's token does not obey its own mask, or its mask is empty: a fault of ours.
    Constraint,
}

/// Log-probability of one token under the raw logits.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenLogprobs {
    /// The token.
    pub token: u32,
    /// log softmax of the raw logits at `token`; finite, floored at -9999.
    pub logprob: f32,
    /// The most likely tokens in descending order (ties: lower id first), exactly as many as asked.
    pub top: Vec<(u32, f32)>,
}

/// News of one choice for its client.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestOutput {
    /// The request.
    pub request: RequestId,
    /// Which choice, from 0.
    pub choice: u32,
    /// Tokens since the last output, the stop id included.
    pub tokens: Vec<u32>,
    /// One per token if asked for.
    pub logprobs: Vec<TokenLogprobs>,
    /// Choice 0 only: entries for prompt tokens 1.., delivered once, with the first output.
    pub prompt_logprobs: Vec<TokenLogprobs>,
    /// Prompt tokens that needed no computing when this choice first started.
    pub num_cached_tokens: u32,
    /// Drafts that this step ran and that are among `tokens`.
    pub num_accepted_drafts: u32,
    /// Drafts that this step ran in vain.
    pub num_rejected_drafts: u32,
    /// Set on the choice's last output.
    pub finish: Option<FinishReason>,
}
