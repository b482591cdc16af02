//! Limits of scheduling.

/// Most drafts that a row may have.
pub const MAX_DRAFTS: usize = 7;

/// What drafts cost, in 1024ths of the time of a step with as many rows of one token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DraftCost {
    /// One more token in every row.
    pub token: u32,
    /// One more pass through the draft block, for all rows.
    pub pass: u32,
}

/// What a step and the queue may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// Tokens in one step over all rows. Too small: prefill crawls; too large: running streams
    /// stall behind prompts. Default 2048.
    pub max_num_batched_tokens: u32,
    /// Sequences in one step, and live state slots. Default 64.
    pub max_num_seqs: u32,
    /// Requests (not choices) that may wait. Default 1024.
    pub max_queue: u32,
    /// While sequences generate, steps with prompt tokens take at most so many times what one without
    /// takes, on average where one token takes longer, by the times told to
    /// [`Scheduler::note_times`](crate::Scheduler::note_times); at least 2. `None`:
    /// `max_num_batched_tokens` alone bounds it. Default `None`.
    pub max_slowdown: Option<u32>,
    /// Positions of context that cost a prompt's token as much again as itself; 0 if none ever do.
    /// Default 0.
    pub context_cost: u32,
    /// Prompt plus generated tokens of one sequence.
    pub max_model_len: u32,
    /// `Some(grid)`: every token is computed in one way only, whatever is cached, cut or preempted.
    /// Prompts are cut at multiples of `grid` and at their ends, generated tokens run alone even when
    /// they run again, and snapshots are kept at multiples of `grid` inside prompts and nowhere else.
    /// For devices whose result depends on how a prompt is cut, unless it is cut on the grid. Costs the
    /// reuse of up to `grid` tokens per hit, and of answers. At most `max_num_batched_tokens`. Default
    /// `None`.
    pub grid: Option<u32>,
    /// Most drafts of a row, at most [`MAX_DRAFTS`]; 0 is no speculative decoding, and must be where
    /// there is a `grid`. Default 0.
    pub max_drafts: u32,
    /// What drafts cost in steps of 1, 2, 4, .. rows; larger steps cost as the last says. By it and by
    /// how many drafts come true, each row has as many drafts as pay. Empty: always `max_drafts`.
    /// Default empty.
    pub draft_costs: Vec<DraftCost>,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            max_num_batched_tokens: 2048,
            max_num_seqs: 64,
            max_queue: 1024,
            max_slowdown: None,
            context_cost: 0,
            max_model_len: 262_144,
            grid: None,
            max_drafts: 0,
            draft_costs: Vec::new(),
        }
    }
}
