//! Who runs in the next step, and how much of it.

use kvcache::Start;

use crate::output::{Row, SchedulerOutput, SequenceId, StepId};
use crate::pace::{Allowance, Mixture};
use crate::scheduler::{InFlight, PlannedRow, Scheduler};
use crate::sequence::Status;

/// A plan in the making.
pub(crate) struct Plan {
    pub(crate) budget: u32,
    pub(crate) allowance: Allowance,
    pub(crate) rows: Vec<Row>,
}

impl Scheduler {
    /// The next plan, or `None` if there is nothing to run. Its result must come back through
    /// `update` before the next one is asked for.
    pub fn schedule(&mut self) -> Option<SchedulerOutput> {
        assert!(
            self.in_flight.is_none(),
            "one step at a time: update comes first"
        );
        let mut plan = Plan {
            budget: self.config.max_num_batched_tokens,
            allowance: self.pace.allowance(0),
            rows: Vec::with_capacity(self.running.len()),
        };
        let num_preemptions = self.counters.preemptions;
        self.plan_single_tokens(&mut plan);
        let num_rows = plan.rows.len() as u32;
        plan.allowance = self.pace.allowance(num_rows);
        let reserved = self.reserve_for_drafts(&mut plan);
        self.plan_chunks(&mut plan);
        // What somebody had to give back is not handed to a newcomer at once.
        if self.counters.preemptions == num_preemptions {
            self.plan_waiting(&mut plan);
        }
        plan.budget += reserved;
        self.plan_drafts(&mut plan);
        if plan.rows.is_empty() {
            assert!(
                self.sequences.is_empty(),
                "the first sequence always makes progress"
            );
            return None;
        }
        // Stable: within each kind the order stays.
        plan.rows
            .sort_by_key(|row| (row.input_ids.len() > 1, row.drafting.num_drafts == 0));
        let step = StepId(self.counters.steps);
        self.counters.steps += 1;
        let rows = plan.rows.iter().map(|row| PlannedRow {
            sequence: row.sequence,
            len: row.input_ids.len() as u32 - row.drafting.num_drafts,
            samples: row.sample.is_some(),
            num_drafts: row.drafting.num_drafts,
            max_drafts: row.drafting.max_drafts,
        });
        let rows_in_flight = rows.collect();
        let saves = self.plan_saves(&mut plan.rows);
        self.in_flight = Some(InFlight {
            step,
            rows: rows_in_flight,
            saves,
            mixture: Mixture {
                num_rows,
                work: plan.allowance.taken(),
            },
        });
        Some(SchedulerOutput {
            step,
            ops: self.cache.take_ops(),
            rows: plan.rows,
        })
    }

    /// Running sequences that want one token. They alone may need a block, so they alone make others
    /// yield, of those who are not planned yet.
    fn plan_single_tokens(&mut self, plan: &mut Plan) {
        for id in self.running_ids() {
            if plan.budget == 0 {
                return;
            }
            // It may have yielded to one before it.
            let sequence = &self.sequences[&id];
            let wants_one = sequence.status() == Status::Running && sequence.span().len() == 1;
            if wants_one && self.make_room(plan, id) {
                self.plan_row(plan, id, 1);
            }
        }
    }

    /// Running sequences that want more; their blocks are reserved since they entered.
    fn plan_chunks(&mut self, plan: &mut Plan) {
        for id in self.running_ids() {
            if self.sequences[&id].span().len() > 1 {
                self.plan_chunk(plan, id);
            }
        }
    }

    /// Those who wait, in order, until one does not fit.
    fn plan_waiting(&mut self, plan: &mut Plan) {
        let mut next = self.waiting.head();
        while let Some(id) = next {
            if plan.budget == 0 || self.running.len() >= self.config.max_num_seqs as usize {
                return;
            }
            next = self.waiting.after(id);
            if self.waits_for_save(id) {
                continue;
            }
            // Whoever starts runs: it may not hold memory for a later step's budget.
            let grid = self.config.grid.unwrap_or(1);
            let affordable = plan.budget.min(plan.allowance.tokens(0, grid));
            if affordable < grid.min(self.sequences[&id].num_wanted()) {
                return;
            }
            if !self.start(id) {
                return;
            }
            self.plan_chunk(plan, id);
        }
    }

    fn running_ids(&self) -> Vec<SequenceId> {
        self.running.iter().collect()
    }

    fn plan_chunk(&mut self, plan: &mut Plan, id: SequenceId) {
        let span = self.sequences[&id].span();
        let affordable = plan.allowance.tokens(span.start, span.grid);
        let len = span.chunk_len(plan.budget.min(affordable));
        if len > 0 {
            plan.allowance.take(span.start, len);
            self.plan_row(plan, id, len);
        }
    }

    fn plan_row(&mut self, plan: &mut Plan, id: SequenceId, len: u32) {
        plan.budget -= len;
        let sequence = self.sequences.get_mut(&id).expect("who runs is known");
        plan.rows.push(sequence.row(len));
    }

    /// Gives memory to one who waits; `false` if it must go on waiting.
    fn start(&mut self, id: SequenceId) -> bool {
        let sequence = self.sequences.get_mut(&id).expect("who waits is known");
        // Each of those who run may want a block soon; without this they would throw the newcomer
        // out again.
        let num_spare_blocks = self.running.len() as u32;
        let Some(start) = self.cache.reserve(sequence.reservation(num_spare_blocks)) else {
            return false;
        };
        let Start {
            lease,
            num_hit,
            num_common,
            miss,
        } = start;
        sequence.start(lease, (num_hit, num_common));
        self.waiting.remove(id);
        self.running.insert(id, sequence.rank);

        let choices = self
            .requests
            .get_mut(&sequence.request.id)
            .expect("who waits has a request");
        if !choices.started {
            choices.started = true;
            self.num_queued -= 1;
            self.counters.prompt_tokens += u64::from(sequence.num_prompt());
            self.counters.cached_prompt_tokens += u64::from(num_hit);
            if let Some((miss, num_tokens)) = miss {
                self.counters.misses.add(miss, 1);
                self.counters.missed_tokens.add(miss, num_tokens);
            }
        }
        true
    }
}
