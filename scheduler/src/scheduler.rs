//! Who is here: arrivals, endings, numbers.

use std::collections::BTreeMap;
use std::sync::Arc;

use kvcache::{CacheConfig, Held, KvCacheManager, News};

use crate::admission::{AdmissionError, check_size};
use crate::config::{MAX_DRAFTS, SchedulerConfig};
use crate::costs::StepTime;
use crate::depth::Depth;
use crate::output::{SequenceId, StepId};
use crate::pace::{Mixture, Pace};
use crate::queue::{Line, Rank};
use crate::request::{Request, RequestId};
use crate::saves::PlannedSaves;
use crate::sequence::Sequence;
use crate::stats::{ByMiss, SchedulerStats};
use crate::tenants::Tenants;

/// Decides what runs. See the crate's contract.
#[derive(Debug)]
pub struct Scheduler {
    pub(crate) config: SchedulerConfig,
    pub(crate) cache: KvCacheManager,
    pub(crate) requests: BTreeMap<RequestId, Choices>,
    pub(crate) sequences: BTreeMap<SequenceId, Sequence>,
    /// Those with memory.
    pub(crate) running: Line,
    /// Those without are here, by tenant.
    pub(crate) tenants: Tenants,
    pub(crate) in_flight: Option<InFlight>,
    /// Requests that run for the first time in the last plan.
    pub(crate) started: Vec<RequestId>,
    /// Requests of which no choice ever ran.
    pub(crate) num_queued: u32,
    pub(crate) next_sequence: u64,
    pub(crate) depth: Depth,
    /// It is too crowded for drafts.
    pub(crate) drafts_paused: bool,
    pub(crate) pace: Pace,
    pub(crate) counters: Counters,
}

/// What is left of a request.
#[derive(Debug)]
pub(crate) struct Choices {
    /// Sequences that have news to tell, in the order of their choices.
    pub(crate) sequences: Vec<SequenceId>,
    /// Whether any choice ever ran.
    pub(crate) started: bool,
}

/// The plan that the runner works on.
#[derive(Debug)]
pub(crate) struct InFlight {
    pub(crate) step: StepId,
    pub(crate) rows: Vec<PlannedRow>,
    pub(crate) saves: PlannedSaves,
    pub(crate) mixture: Mixture,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct PlannedRow {
    pub(crate) sequence: SequenceId,
    /// Tokens that were known.
    pub(crate) len: u32,
    pub(crate) samples: bool,
    /// Guesses behind them.
    pub(crate) num_drafts: u32,
    /// New guesses that it may bring.
    pub(crate) max_drafts: u32,
}

/// Sums since the start.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) steps: u64,
    pub(crate) prompt_tokens: u64,
    pub(crate) cached_prompt_tokens: u64,
    pub(crate) generation_tokens: u64,
    pub(crate) preemptions: u64,
    pub(crate) tenant_preemptions: u64,
    pub(crate) misses: ByMiss,
    pub(crate) missed_tokens: ByMiss,
    pub(crate) drafted_rows: u64,
    pub(crate) draft_tokens: u64,
    pub(crate) accepted_by_position: [u64; MAX_DRAFTS],
}

impl Scheduler {
    /// An empty scheduler over an empty cache.
    pub fn new(config: SchedulerConfig, cache: CacheConfig) -> Self {
        assert!(
            config.max_num_batched_tokens > 0,
            "a step needs room for a token"
        );
        assert!(config.max_num_seqs > 0, "a step needs room for a sequence");
        assert!(
            config.max_drafts as usize <= MAX_DRAFTS,
            "a row has {MAX_DRAFTS} drafts at most"
        );
        assert!(
            config.max_drafts == 0 || config.grid.is_none(),
            "drafts would change how tokens are computed"
        );
        let tenants = Tenants::new(config.max_num_batched_tokens);
        let pace = Pace::new(config.max_slowdown, config.context_cost);
        let depth = Depth::new(config.max_drafts, config.draft_costs.clone());
        Self {
            config,
            cache: KvCacheManager::new(cache),
            requests: BTreeMap::new(),
            sequences: BTreeMap::new(),
            running: Line::default(),
            tenants,
            in_flight: None,
            started: Vec::new(),
            num_queued: 0,
            next_sequence: 0,
            depth,
            drafts_paused: false,
            pace,
            counters: Counters::default(),
        }
    }

    /// From now on no row makes drafts, or they may again. What a request gets is the same.
    pub fn pause_drafts(&mut self, paused: bool) {
        self.drafts_paused = paused;
    }

    /// Queues a request. Its prompt has a token and it has a choice; its id is new.
    pub fn add(&mut self, request: Request) -> Result<(), AdmissionError> {
        assert!(!request.prompt.is_empty(), "{:?} has a prompt", request.id);
        assert!(request.num_choices > 0, "{:?} has a choice", request.id);
        assert!(
            !self.requests.contains_key(&request.id),
            "{:?} is new",
            request.id
        );
        check_size(&request, &self.config, self.cache.config())?;
        if self.num_queued >= self.config.max_queue {
            return Err(AdmissionError::QueueFull {
                max: self.config.max_queue,
            });
        }
        let rank = Rank::new(request.priority, self.counters.steps);
        self.tenants.welcome(request.tenant, request.tenant_weight);
        let request = Arc::new(request);
        let mut sequences = Vec::with_capacity(request.num_choices as usize);
        for choice in 0..request.num_choices {
            let id = SequenceId(self.next_sequence);
            self.next_sequence += 1;
            let block_size = self.cache.config().block_size;
            let mut sequence = Sequence::new(
                id,
                Arc::clone(&request),
                choice,
                block_size,
                self.config.grid,
                self.depth.begin(),
            );
            sequence.rank = rank;
            self.tenants.wait(id, sequence.place());
            self.sequences.insert(id, sequence);
            sequences.push(id);
        }
        self.requests.insert(
            request.id,
            Choices {
                sequences,
                started: false,
            },
        );
        self.num_queued += 1;
        Ok(())
    }

    /// Ends a request wherever it is. Unknown or finished ids are ignored. No output follows.
    pub fn abort(&mut self, id: RequestId) {
        let Some(choices) = self.requests.get(&id) else {
            return;
        };
        for sequence in choices.sequences.clone() {
            self.leave(sequence, false);
        }
    }

    /// Ends one choice, whose client has seen enough (a stop string matched). No output follows. Its
    /// state stays as a snapshot: the conversation is likely to go on.
    pub fn finish_choice(&mut self, id: RequestId, choice: u32) {
        let Some(choices) = self.requests.get(&id) else {
            return;
        };
        let sequences = choices.sequences.iter();
        let found = sequences
            .copied()
            .find(|id| self.sequences[id].choice == choice);
        if let Some(sequence) = found {
            self.leave(sequence, true);
        }
    }

    /// Tells how long the step in flight took as a whole, in nanoseconds, which bounds what prompts may
    /// add ([`SchedulerConfig::max_slowdown`]), and what [`Runner::times`](crate::Runner::times) says of
    /// steps and their parts, by which drafts pay or not. Before `update`; where no step is in flight,
    /// `nanos` says nothing.
    pub fn note_times(&mut self, nanos: u64, times: &[StepTime]) {
        if let Some(in_flight) = &self.in_flight {
            self.pace.observe(in_flight.mixture, nanos);
        }
        for time in times {
            self.depth.note_time(time);
        }
    }

    /// Requests of which a choice runs for the first time in the plan last made: their waiting is over.
    pub fn started(&self) -> &[RequestId] {
        &self.started
    }

    /// Numbers to export.
    pub fn stats(&self) -> SchedulerStats {
        let (blocks, states) = (self.cache.blocks(), self.cache.states());
        let moves = self.cache.moves();
        SchedulerStats {
            num_running: self.running.len() as u32,
            num_waiting: self.tenants.num_waiting() as u32,
            num_queued: self.num_queued,
            num_blocks_used: blocks.num_used(),
            num_blocks_cached: blocks.num_cached(),
            num_blocks: self.cache.config().num_blocks - 1,
            num_slots_used: states.num_live(),
            num_slots_cached: states.num_snapshots(),
            num_slots: self.cache.config().num_slots - 1,
            num_steps: self.counters.steps,
            num_prompt_tokens: self.counters.prompt_tokens,
            num_cached_prompt_tokens: self.counters.cached_prompt_tokens,
            num_generation_tokens: self.counters.generation_tokens,
            num_preemptions: self.counters.preemptions,
            num_tenant_preemptions: self.counters.tenant_preemptions,
            misses: self.counters.misses,
            missed_tokens: self.counters.missed_tokens,
            num_evictions: moves.num_evictions,
            num_swapped_out: moves.num_swapped_out,
            num_swapped_in: moves.num_swapped_in,
            num_host_blocks_cached: self.cache.host_blocks().num_cached(),
            num_host_blocks: self.cache.config().num_host_blocks,
            num_host_slots_cached: self.cache.host_states().num_snapshots(),
            num_host_slots: self.cache.config().num_host_slots,
            num_drafted_rows: self.counters.drafted_rows,
            num_draft_tokens: self.counters.draft_tokens,
            num_accepted_by_position: self.counters.accepted_by_position,
        }
    }

    /// Keeps [`News`] of the cache from now on.
    pub fn keep_news(&mut self) {
        self.cache.keep_news();
    }

    /// What has changed in the cache since it was last asked.
    pub fn take_news(&mut self) -> Vec<News> {
        self.cache.take_news()
    }

    /// What the cache holds.
    pub fn held(&self) -> Vec<Held> {
        self.cache.held()
    }

    /// Ends a sequence without telling its client. If the runner works on it, its memory stays until
    /// the result is there.
    fn leave(&mut self, id: SequenceId, publish: bool) {
        self.forget_choice(id);
        if self.is_in_flight(id) {
            self.sequences
                .get_mut(&id)
                .expect("a row has a sequence")
                .leave(publish);
        } else {
            self.remove(id, publish);
        }
    }

    pub(crate) fn is_in_flight(&self, id: SequenceId) -> bool {
        let mut rows = self.in_flight.iter().flat_map(|in_flight| &in_flight.rows);
        rows.any(|row| row.sequence == id)
    }

    /// Nothing more is told of this choice.
    pub(crate) fn forget_choice(&mut self, id: SequenceId) {
        let request = self.sequences[&id].request.id;
        let choices = self
            .requests
            .get_mut(&request)
            .expect("a choice that tells has a request");
        choices.sequences.retain(|&sequence| sequence != id);
        if choices.sequences.is_empty() {
            self.num_queued -= u32::from(!choices.started);
            self.requests.remove(&request);
        }
    }

    /// Takes a sequence out of everything, its memory back, and publishes its state if it is good.
    pub(crate) fn remove(&mut self, id: SequenceId, publish: bool) {
        self.running.remove(id);
        let sequence = self.sequences.remove(&id).expect("a sequence ends once");
        self.tenants.end(id, sequence.place());
        sequence.end(&mut self.cache, publish);
    }
}
