//! Plain numbers to export.

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
}
