//! Limits of scheduling.

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
    /// Prompt plus generated tokens of one sequence.
    pub max_model_len: u32,
    /// `Some(grid)`: every token is computed in one way only, whatever is cached, cut or preempted.
    /// Prompts are cut at multiples of `grid` and at their ends, generated tokens run alone even when
    /// they run again, and snapshots are kept at multiples of `grid` inside prompts and nowhere else.
    /// For devices whose result depends on how a prompt is cut, unless it is cut on the grid. Costs the
    /// reuse of up to `grid` tokens per hit, and of answers. At most `max_num_batched_tokens`. Default
    /// `None`.
    pub grid: Option<u32>,
    /// Most drafts of a row; 0 is no speculative decoding. Default 0.
    pub max_drafts: u32,
    /// Whether the runner carries out [`Row::saves`](crate::Row::saves). If not, prompts are cut where
    /// their end is to be saved, and nothing else of them is. Default `false`.
    pub saves_within_rows: bool,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            max_num_batched_tokens: 2048,
            max_num_seqs: 64,
            max_queue: 1024,
            max_model_len: 262_144,
            grid: None,
            max_drafts: 0,
            saves_within_rows: false,
        }
    }
}
