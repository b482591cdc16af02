//! Decides what runs in each step. No tensor, clock, thread, async or randomness.

mod config;
mod output;
mod request;
mod runner;
#[expect(
    clippy::module_inception,
    reason = "the house names the file after its type"
)]
mod scheduler;
mod stats;

pub use config::SchedulerConfig;
pub use kvcache::{BlockId, SlotId};
pub use output::{
    History, PromptLogprobs, RequestOutput, Row, RowFault, RowOutput, RowResult, Sample,
    SchedulerOutput, SequenceId, StateOp, StepId, StepResult, TokenLogprobs,
};
pub use request::{FinishReason, Request, RequestId, SamplingParams};
pub use runner::Runner;
pub use scheduler::{AdmissionError, CacheConfig, Scheduler};
pub use stats::SchedulerStats;
