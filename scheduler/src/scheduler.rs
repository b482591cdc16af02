//! Who runs, and how much of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kvcache::{CacheConfig, KvCacheManager};

use crate::budget::{Span, chunk_len};
use crate::config::SchedulerConfig;
use crate::output::{Row, SchedulerOutput, SequenceId, StepId};
use crate::queue::WaitingQueue;
use crate::request::{Request, RequestId};
use crate::sequence::{Sequence, Status};
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

/// Decides what runs. See the crate's contract.
#[derive(Debug)]
pub struct Scheduler {
    pub(crate) config: SchedulerConfig,
    pub(crate) cache: KvCacheManager,
    pub(crate) requests: BTreeMap<RequestId, Choices>,
    pub(crate) sequences: BTreeMap<SequenceId, Sequence>,
    /// Those with memory, the oldest first.
    pub(crate) running: BTreeSet<SequenceId>,
    pub(crate) waiting: WaitingQueue,
    pub(crate) in_flight: Option<InFlight>,
    /// Requests of which no choice ever ran.
    pub(crate) num_queued: u32,
    pub(crate) next_sequence: u64,
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
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct PlannedRow {
    pub(crate) sequence: SequenceId,
    pub(crate) len: u32,
    pub(crate) samples: bool,
}

/// Sums since the start.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) steps: u64,
    pub(crate) prompt_tokens: u64,
    pub(crate) cached_prompt_tokens: u64,
    pub(crate) generation_tokens: u64,
    pub(crate) preemptions: u64,
}

/// A plan in the making.
struct Draft {
    budget: u32,
    rows: Vec<Row>,
}

impl Scheduler {
    /// An empty scheduler over an empty cache.
    pub fn new(config: SchedulerConfig, cache: CacheConfig) -> Self {
        assert!(
            config.max_num_batched_tokens > 0,
            "a step needs room for a token"
        );
        assert!(config.max_num_seqs > 0, "a step needs room for a sequence");
        Self {
            config,
            cache: KvCacheManager::new(cache),
            requests: BTreeMap::new(),
            sequences: BTreeMap::new(),
            running: BTreeSet::new(),
            waiting: WaitingQueue::default(),
            in_flight: None,
            num_queued: 0,
            next_sequence: 0,
            counters: Counters::default(),
        }
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
        self.check_size(&request)?;
        if self.num_queued >= self.config.max_queue {
            return Err(AdmissionError::QueueFull {
                max: self.config.max_queue,
            });
        }
        let request = Arc::new(request);
        let mut sequences = Vec::with_capacity(request.num_choices as usize);
        for choice in 0..request.num_choices {
            let id = SequenceId(self.next_sequence);
            self.next_sequence += 1;
            let block_size = self.cache.config().block_size;
            let sequence = Sequence::new(id, Arc::clone(&request), choice, block_size);
            self.sequences.insert(id, sequence);
            self.waiting.insert(id);
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

    /// The next plan, or `None` if there is nothing to run. Its result must come back through
    /// `update` before the next one is asked for.
    pub fn schedule(&mut self) -> Option<SchedulerOutput> {
        assert!(
            self.in_flight.is_none(),
            "one step at a time: update comes first"
        );
        let mut draft = Draft {
            budget: self.config.max_num_batched_tokens,
            rows: Vec::with_capacity(self.running.len()),
        };
        let num_preemptions = self.counters.preemptions;
        self.plan_single_tokens(&mut draft);
        self.plan_chunks(&mut draft);
        // What somebody had to give back is not handed to a newcomer at once.
        if self.counters.preemptions == num_preemptions {
            self.plan_waiting(&mut draft);
        }
        if draft.rows.is_empty() {
            assert!(
                self.sequences.is_empty(),
                "the oldest sequence always makes progress"
            );
            return None;
        }
        // Stable: within each kind the oldest stays first.
        draft.rows.sort_by_key(|row| row.input_ids.len() > 1);
        let step = StepId(self.counters.steps);
        self.counters.steps += 1;
        let rows = draft.rows.iter().map(|row| PlannedRow {
            sequence: row.sequence,
            len: row.input_ids.len() as u32,
            samples: row.sample.is_some(),
        });
        self.in_flight = Some(InFlight {
            step,
            rows: rows.collect(),
        });
        Some(SchedulerOutput {
            step,
            ops: self.cache.take_ops(),
            rows: draft.rows,
        })
    }

    /// Numbers to export.
    pub fn stats(&self) -> SchedulerStats {
        let (blocks, states) = (self.cache.blocks(), self.cache.states());
        SchedulerStats {
            num_running: self.running.len() as u32,
            num_waiting: self.waiting.len() as u32,
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
        }
    }

    /// Running sequences that want one token. They alone may need a block, so they alone make others
    /// yield: the youngest, who come later here and are not planned yet.
    fn plan_single_tokens(&mut self, draft: &mut Draft) {
        for id in self.running_ids() {
            if draft.budget == 0 {
                return;
            }
            // It may have yielded to an older one above.
            let sequence = &self.sequences[&id];
            let wants_one = sequence.status() == Status::Running && self.span(sequence).len() == 1;
            if wants_one && self.make_room(id) {
                self.plan_row(draft, id, 1);
            }
        }
    }

    /// Running sequences that want more; their blocks are reserved since they entered.
    fn plan_chunks(&mut self, draft: &mut Draft) {
        for id in self.running_ids() {
            if self.span(&self.sequences[&id]).len() > 1 {
                self.plan_chunk(draft, id);
            }
        }
    }

    /// Those who wait, in order, until one does not fit.
    fn plan_waiting(&mut self, draft: &mut Draft) {
        let mut next = self.waiting.head();
        while let Some(id) = next {
            if draft.budget == 0 || self.running.len() >= self.config.max_num_seqs as usize {
                return;
            }
            next = self.waiting.after(id);
            if self.waits_for_sibling(id) {
                continue;
            }
            if !self.start(id) {
                return;
            }
            self.plan_chunk(draft, id);
        }
    }

    fn running_ids(&self) -> Vec<SequenceId> {
        self.running.iter().copied().collect()
    }

    fn span(&self, sequence: &Sequence) -> Span {
        let saves = sequence.saves_prompt() && self.cache.has_spare_slot();
        Span {
            start: sequence.num_computed(),
            end: sequence.num_wanted(),
            boundary: saves.then_some(sequence.prompt_end()),
        }
    }

    fn plan_chunk(&mut self, draft: &mut Draft, id: SequenceId) {
        let len = chunk_len(self.span(&self.sequences[&id]), draft.budget);
        if len > 0 {
            self.plan_row(draft, id, len);
        }
    }

    fn plan_row(&mut self, draft: &mut Draft, id: SequenceId, len: u32) {
        draft.budget -= len;
        draft.rows.push(self.sequences[&id].row(len));
    }

    /// An older choice of the same request is about to save the state that this one can start from.
    /// Choices of a prompt of one token have nothing to wait for.
    fn waits_for_sibling(&self, id: SequenceId) -> bool {
        let sequence = &self.sequences[&id];
        let eldest = self.requests[&sequence.request.id].sequences[0];
        eldest != id && !self.sequences[&eldest].reached_prompt_end()
    }

    /// Gives memory to one who waits; `false` if it must go on waiting.
    fn start(&mut self, id: SequenceId) -> bool {
        let sequence = self.sequences.get_mut(&id).expect("who waits is known");
        // Each of those who run may want a block soon; without this they would throw the newcomer
        // out again.
        let num_spare_blocks = self.running.len() as u32;
        let Some((lease, num_hit)) = self.cache.reserve(sequence.reservation(num_spare_blocks))
        else {
            return false;
        };
        sequence.start(lease, num_hit);
        self.waiting.remove(id);
        self.running.insert(id);

        let choices = self
            .requests
            .get_mut(&sequence.request.id)
            .expect("who waits has a request");
        if !choices.started {
            choices.started = true;
            self.num_queued -= 1;
            self.counters.prompt_tokens += u64::from(sequence.num_prompt());
            self.counters.cached_prompt_tokens += u64::from(num_hit);
        }
        true
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
        self.waiting.remove(id);
        self.running.remove(&id);
        let sequence = self.sequences.remove(&id).expect("a sequence ends once");
        let num_computed = sequence.num_computed() as usize;
        let (lease, mut chain, tokens) = sequence.into_cache_parts();
        match lease {
            Some(lease) if publish => self
                .cache
                .retire(lease, &mut chain, &tokens[..num_computed]),
            Some(lease) => self.cache.release(lease),
            None => {}
        }
    }

    fn check_size(&self, request: &Request) -> Result<(), AdmissionError> {
        let len = request.prompt.len() as u32;
        let (max, max_tokens) = (self.config.max_model_len, request.sampling.max_tokens);
        if len.saturating_add(max_tokens.min(1)) > max {
            return Err(AdmissionError::PromptTooLong { len, max });
        }
        // A generated last token is never computed.
        let longest = match max_tokens {
            0 => len,
            _ => len.saturating_add(max_tokens).min(max) - 1,
        };
        let (needed, total) = (
            self.cache.config().blocks_for(longest),
            self.cache.config().num_blocks - 1,
        );
        if needed > total {
            return Err(AdmissionError::NeverFits { needed, total });
        }
        Ok(())
    }
}
