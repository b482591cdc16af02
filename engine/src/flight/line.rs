//! A recording as lines of JSON: a header, then `[microseconds, {call: ..}]` for each call.

use std::sync::Arc;

use scheduler::{
    CacheConfig, DraftCost, Request, RequestId, RowFault, SamplingParams, SchedulerConfig,
    StepTime, TenantId,
};
use serde::{Deserialize, Serialize};

use super::note::PlanNote;

/// The format, changed when an older reader would misread it.
pub(super) const FORMAT: u32 = 1;

/// What the recording is of.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Header {
    pub(super) flight: u32,
    /// Of this program.
    pub(super) version: String,
    /// Whether tokens are the model's own; else each stands for all tokens up to it.
    pub(super) contents: bool,
    /// Calls before the first line.
    pub(super) num_dropped: u64,
    pub(super) config: ConfigLine,
    pub(super) cache: CacheLine,
}

/// A call and when it was made.
pub(super) type TimedLine = (u64, Line);

/// A call.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Line {
    Add(AddLine),
    Abort(u64),
    Finish(u64, u32),
    PauseDrafts(bool),
    Times(Vec<TimeLine>),
    Idle(u32),
    Plan(PlanNote),
    Result(ResultLine),
}

/// [`StepTime`]: rows, drafts, nanoseconds, passes of the draft block, their nanoseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct TimeLine(u32, u32, u64, u32, u64);

/// A request, as far as the scheduler looks at it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct AddLine {
    pub(super) id: u64,
    pub(super) prompt: Vec<u32>,
    pub(super) max_tokens: u32,
    pub(super) stops: Vec<u32>,
    pub(super) scores: Option<u32>,
    pub(super) n: u32,
    pub(super) salt: String,
    pub(super) boundaries: Vec<u32>,
    pub(super) priority: i8,
    pub(super) tenant: u32,
    pub(super) weight: u16,
}

/// What a step produced.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ResultLine {
    pub(super) ns: u64,
    pub(super) times: Vec<TimeLine>,
    /// Tokens, number of drafts, fault.
    pub(super) rows: Vec<(Vec<u32>, u8, Option<FaultLine>)>,
}

/// [`RowFault`].
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FaultLine {
    BadLogits,
    Constraint,
}

/// [`SchedulerConfig`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ConfigLine {
    max_num_batched_tokens: u32,
    max_num_seqs: u32,
    max_queue: u32,
    max_slowdown: Option<u32>,
    context_cost: u32,
    max_model_len: u32,
    grid: Option<u32>,
    max_drafts: u32,
    /// Token, pass.
    draft_costs: Vec<(u32, u32)>,
}

/// [`CacheConfig`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct CacheLine {
    block_size: u32,
    num_blocks: u32,
    num_slots: u32,
    num_host_slots: u32,
    num_host_blocks: u32,
}

impl From<&SchedulerConfig> for ConfigLine {
    fn from(config: &SchedulerConfig) -> Self {
        let costs = config.draft_costs.iter();
        Self {
            max_num_batched_tokens: config.max_num_batched_tokens,
            max_num_seqs: config.max_num_seqs,
            max_queue: config.max_queue,
            max_slowdown: config.max_slowdown,
            context_cost: config.context_cost,
            max_model_len: config.max_model_len,
            grid: config.grid,
            max_drafts: config.max_drafts,
            draft_costs: costs.map(|cost| (cost.token, cost.pass)).collect(),
        }
    }
}

impl From<ConfigLine> for SchedulerConfig {
    fn from(line: ConfigLine) -> Self {
        let costs = line.draft_costs.into_iter();
        Self {
            max_num_batched_tokens: line.max_num_batched_tokens,
            max_num_seqs: line.max_num_seqs,
            max_queue: line.max_queue,
            max_slowdown: line.max_slowdown,
            context_cost: line.context_cost,
            max_model_len: line.max_model_len,
            grid: line.grid,
            max_drafts: line.max_drafts,
            draft_costs: costs
                .map(|(token, pass)| DraftCost { token, pass })
                .collect(),
        }
    }
}

impl From<&CacheConfig> for CacheLine {
    fn from(cache: &CacheConfig) -> Self {
        Self {
            block_size: cache.block_size,
            num_blocks: cache.num_blocks,
            num_slots: cache.num_slots,
            num_host_slots: cache.num_host_slots,
            num_host_blocks: cache.num_host_blocks,
        }
    }
}

impl From<CacheLine> for CacheConfig {
    fn from(line: CacheLine) -> Self {
        Self {
            block_size: line.block_size,
            num_blocks: line.num_blocks,
            num_slots: line.num_slots,
            num_host_slots: line.num_host_slots,
            num_host_blocks: line.num_host_blocks,
        }
    }
}

impl From<RowFault> for FaultLine {
    fn from(fault: RowFault) -> Self {
        match fault {
            RowFault::BadLogits => Self::BadLogits,
            RowFault::Constraint => Self::Constraint,
        }
    }
}

impl From<FaultLine> for RowFault {
    fn from(line: FaultLine) -> Self {
        match line {
            FaultLine::BadLogits => Self::BadLogits,
            FaultLine::Constraint => Self::Constraint,
        }
    }
}

impl From<&StepTime> for TimeLine {
    fn from(time: &StepTime) -> Self {
        Self(
            time.num_rows,
            time.num_drafts,
            time.step_ns,
            time.num_passes,
            time.drafting_ns,
        )
    }
}

impl From<TimeLine> for StepTime {
    fn from(line: TimeLine) -> Self {
        let TimeLine(num_rows, num_drafts, step_ns, num_passes, drafting_ns) = line;
        Self {
            num_rows,
            num_drafts,
            step_ns,
            num_passes,
            drafting_ns,
        }
    }
}

impl From<AddLine> for Request {
    fn from(line: AddLine) -> Self {
        Self {
            id: RequestId(line.id),
            prompt: line.prompt.into(),
            sampling: Arc::new(SamplingParams {
                max_tokens: line.max_tokens,
                stop_token_ids: line.stops,
                prompt_logprobs: line.scores,
                ..SamplingParams::default()
            }),
            num_choices: line.n,
            cache_salt: line.salt.into(),
            boundaries: line.boundaries.into(),
            priority: line.priority,
            tenant: TenantId(line.tenant),
            tenant_weight: line.weight,
        }
    }
}
