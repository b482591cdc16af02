//! Plain numbers to export.

use kvcache::Miss;

use crate::config::MAX_DRAFTS;

/// A snapshot of the scheduler.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SchedulerStats {
    /// Choices with a live slot.
    pub num_running: u32,
    /// Choices that wait for a slot, preempted ones included.
    pub num_waiting: u32,
    /// Requests of which no choice ever ran: `max_queue` limits these.
    pub num_queued: u32,
    /// Blocks held by live sequences.
    pub num_blocks_used: u32,
    /// Blocks that hold only reusable cache.
    pub num_blocks_cached: u32,
    /// Blocks in all, block 0 not counted.
    pub num_blocks: u32,
    /// Live state slots.
    pub num_slots_used: u32,
    /// Slots that hold snapshots.
    pub num_slots_cached: u32,
    /// Slots in all, slot 0 not counted.
    pub num_slots: u32,
    /// Steps planned.
    pub num_steps: u64,
    /// Prompt tokens of admitted requests.
    pub num_prompt_tokens: u64,
    /// Of these, tokens that needed no computing.
    pub num_cached_prompt_tokens: u64,
    /// Tokens sampled.
    pub num_generation_tokens: u64,
    /// Sequences sent back to the queue for want of memory.
    pub num_preemptions: u64,
    /// Of these, for another tenant that had less than its share.
    pub num_tenant_preemptions: u64,
    /// Starts of requests whose hit could have been longer, by the reason why it was not.
    pub misses: ByMiss,
    /// Prompt tokens of admitted requests that a longer hit would have spared, by the same reasons.
    pub missed_tokens: ByMiss,
    /// Snapshots given up.
    pub num_evictions: u64,
    /// Snapshots moved to host memory.
    pub num_swapped_out: u64,
    /// Snapshots brought back from host memory.
    pub num_swapped_in: u64,
    /// Blocks in host memory that hold reusable cache.
    pub num_host_blocks_cached: u32,
    /// Blocks of host memory in all.
    pub num_host_blocks: u32,
    /// Slots in host memory that hold snapshots.
    pub num_host_slots_cached: u32,
    /// Slots of host memory in all.
    pub num_host_slots: u32,
    /// Rows that ran with drafts.
    pub num_drafted_rows: u64,
    /// Drafts that ran.
    pub num_draft_tokens: u64,
    /// Of these, the first, second, .. of their rows that came true.
    pub num_accepted_by_position: [u64; MAX_DRAFTS],
}

/// A count for each reason why a hit was not longer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByMiss {
    /// Nothing is known of the prompt beyond the hit.
    pub no_blocks: u64,
    /// Blocks beyond the hit are cached, but no state at any place among them.
    pub no_snapshot: u64,
    /// There was a snapshot beyond the hit, and it was evicted.
    pub evicted: u64,
    /// There is a longer one under another salt.
    pub salt: u64,
}

impl ByMiss {
    pub(crate) fn add(&mut self, miss: Miss, num: u32) {
        let sum = match miss {
            Miss::NoBlocks => &mut self.no_blocks,
            Miss::NoSnapshot => &mut self.no_snapshot,
            Miss::Evicted => &mut self.evicted,
            Miss::Salt => &mut self.salt,
        };
        *sum += u64::from(num);
    }
}
