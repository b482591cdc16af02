//! The scheduler's four verbs. (Skeleton: see the crate map.)

use crate::config::SchedulerConfig;
use crate::output::{RequestOutput, SchedulerOutput, StepResult};
use crate::request::{Request, RequestId};
use crate::stats::SchedulerStats;

/// Why a request cannot be queued.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdmissionError {
    /// The queue is at its limit.
    #[error("the queue is full ({max} requests wait)")]
    QueueFull {
        /// `max_queue`.
        max: u32,
    },
    /// Prompt and output do not fit the context window.
    #[error("prompt of {len} tokens leaves no room in a context of {max}")]
    PromptTooLong {
        /// Prompt tokens.
        len: u32,
        /// `max_model_len`.
        max: u32,
    },
    /// Not even an empty cache could hold it.
    #[error("the request needs {needed} cache blocks, there are {total}")]
    NeverFits {
        /// Blocks at its longest.
        needed: u32,
        /// Blocks in all.
        total: u32,
    },
}

/// How the cache is cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheConfig {
    /// Tokens per block.
    pub block_size: u32,
    /// Blocks, block 0 included.
    pub num_blocks: u32,
    /// State slots, slot 0 included; beyond `max_num_seqs` live ones they hold snapshots.
    pub num_slots: u32,
}

/// Decides what runs.
pub struct Scheduler {}

impl Scheduler {
    /// An empty scheduler over an empty cache.
    pub fn new(_config: SchedulerConfig, _cache: CacheConfig) -> Self {
        todo!()
    }

    /// Queues a request.
    pub fn add(&mut self, _request: Request) -> Result<(), AdmissionError> {
        todo!()
    }

    /// Ends a request wherever it is. Unknown or finished ids are ignored. No output follows.
    pub fn abort(&mut self, _id: RequestId) {
        todo!()
    }

    /// Ends one choice, whose client has seen enough (a stop string matched). No output follows.
    pub fn finish_choice(&mut self, _id: RequestId, _choice: u32) {
        todo!()
    }

    /// The next plan, or `None` if there is nothing to run.
    pub fn schedule(&mut self) -> Option<SchedulerOutput> {
        todo!()
    }

    /// Takes a plan's result; returns news for clients.
    pub fn update(&mut self, _result: StepResult) -> Vec<RequestOutput> {
        todo!()
    }

    /// Numbers to export.
    pub fn stats(&self) -> SchedulerStats {
        todo!()
    }
}
