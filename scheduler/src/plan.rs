//! Who runs in the next step, and how much of it.
//!
//! Those who generate come first. What is left of the step goes to prompts, of those who run and of
//! those who wait, turn by turn (`turns`).

use kvcache::Start;

use crate::marks::Known;
use crate::output::{Row, SchedulerOutput, SequenceId, StepId};
use crate::pace::{Allowance, Mixture};
use crate::scheduler::{InFlight, PlannedRow, Scheduler};
use crate::sequence::Status;
use crate::tenants::Place;
use crate::turns::{Prompt, Turns};

/// A plan in the making.
pub(crate) struct Plan {
    pub(crate) budget: u32,
    pub(crate) allowance: Allowance,
    pub(crate) rows: Vec<Row>,
    /// Those who run and want more than a token, the most senior first.
    prompts: Vec<SequenceId>,
    /// Those who run and may save a state on their way.
    makers: Vec<SequenceId>,
}

impl Scheduler {
    /// The next plan, or `None` if there is nothing to run. Its result must come back through
    /// `update` before the next one is asked for.
    pub fn schedule(&mut self) -> Option<SchedulerOutput> {
        assert!(
            self.in_flight.is_none(),
            "one step at a time: update comes first"
        );
        let guest = self.make_way();
        self.started.clear();
        let mut plan = Plan {
            budget: self.config.max_num_batched_tokens,
            allowance: self.pace.allowance(0),
            rows: Vec::with_capacity(self.running.len()),
            prompts: Vec::new(),
            makers: Vec::new(),
        };
        let num_preemptions = self.counters.preemptions;
        self.plan_single_tokens(&mut plan);
        let num_rows = plan.rows.len() as u32;
        plan.allowance = self.pace.allowance(num_rows);
        let reserved = self.reserve_for_drafts(&mut plan);
        // What somebody had to give back is not handed to a newcomer at once.
        let may_start = self.counters.preemptions == num_preemptions;
        self.plan_prompts(&mut plan, may_start, guest);
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
            if sequence.status() != Status::Running {
                continue;
            }
            if !sequence.marks().is_empty() {
                plan.makers.push(id);
            }
            if sequence.span().len() > 1 {
                plan.prompts.push(id);
            } else if self.make_room(plan, id) {
                plan.budget -= 1;
                self.plan_row(plan, id, 1);
            }
        }
    }

    /// Shares out what is left among prompts. Those who run have their blocks reserved; of those who wait
    /// nobody starts behind one that does not fit, and the `guest` for whom others made way comes first.
    fn plan_prompts(&mut self, plan: &mut Plan, mut may_start: bool, guest: Option<SequenceId>) {
        may_start &= self.has_room(plan);
        let mut given: Vec<(SequenceId, u32)> = Vec::new();
        if let Some(id) = guest.filter(|_| may_start) {
            may_start = self.can_afford(plan, id) && self.start(id);
            if may_start {
                self.give(plan, id, true, &mut given);
                plan.prompts.push(id);
                plan.makers.push(id);
            }
        }
        let mut turns = self.turns(plan, may_start);
        while plan.budget > 0
            && plan.allowance.tokens(0, 1) > 0
            && let Some((index, turn)) = turns.next()
        {
            let party = turns.party_mut(index);
            let (tenant, id) = (party.tenant, turn.prompt.id);
            let mut runs = !turn.waits;
            if turn.waits {
                may_start = may_start && self.has_room(plan);
                let is_passed_over = may_start && self.waits_for_save(id, &plan.makers);
                let behind = self.tenants.after(tenant, id);
                if may_start && !is_passed_over {
                    runs = self.can_afford(plan, id) && self.start(id);
                    may_start = runs;
                    plan.makers.extend(runs.then_some(id));
                }
                let behind = behind.filter(|_| may_start);
                let is_measured = party.has_running();
                party.waiting = behind.map(|id| self.waiting_prompt(id, is_measured));
            }
            if runs {
                self.give(plan, id, turn.leaves_half, &mut given);
            }
            turns.back(index, self.tenants.get(tenant));
        }
        for (id, len) in given {
            self.plan_row(plan, id, len);
        }
    }

    /// Who could have prompt tokens computed.
    fn turns(&mut self, plan: &Plan, may_start: bool) -> Turns {
        // Some of them may have yielded by now.
        let prompts = plan.prompts.iter().map(|id| &self.sequences[id]);
        let prompts = prompts.filter(|sequence| sequence.status() == Status::Running);
        let running: Vec<_> = prompts
            .map(|sequence| (sequence.place(), sequence.prompt_left()))
            .collect();
        let heads: Vec<SequenceId> = self.tenants.heads().filter(|_| may_start).collect();
        let heads: Vec<_> = heads
            .into_iter()
            .map(|id| {
                let place = self.sequences[&id].place();
                // Its length matters beside those of the same tenant.
                let is_measured = running
                    .iter()
                    .any(|(other, _)| other.tenant == place.tenant);
                (place, self.waiting_prompt(id, is_measured))
            })
            .collect();
        let priorities = running.iter().map(|(place, _)| place.priority);
        let top = priorities.chain(self.tenants.top()).max().unwrap_or(0);
        let known = |(place, prompt): (Place, Prompt)| {
            (self.tenants.get(place.tenant), place.tenant, prompt)
        };
        Turns::new(
            running.into_iter().map(known),
            heads.into_iter().map(known),
            self.counters.steps,
            top,
        )
    }

    fn waiting_prompt(&mut self, id: SequenceId, is_measured: bool) -> Prompt {
        let sequence = self.sequences.get_mut(&id).expect("who waits is known");
        let mut prompt = sequence.prompt_left();
        if is_measured {
            let wanted = sequence.reservation(0);
            let num_hit = self
                .cache
                .longest_hit(wanted.chain, wanted.tokens, wanted.max_hit);
            prompt.num_left -= num_hit;
        }
        prompt
    }

    fn has_room(&self, plan: &Plan) -> bool {
        plan.budget > 0
            && self.tenants.num_waiting() > 0
            && self.running.len() < self.config.max_num_seqs as usize
    }

    /// Whoever starts runs: it may not hold memory for a later step's budget.
    fn can_afford(&self, plan: &Plan, id: SequenceId) -> bool {
        let grid = self.config.grid.unwrap_or(1);
        let affordable = plan.budget.min(plan.allowance.tokens(0, grid));
        affordable >= grid.min(self.sequences[&id].num_wanted())
    }

    /// Tokens of the step for a prompt, which may have had some before.
    fn give(
        &mut self,
        plan: &mut Plan,
        id: SequenceId,
        leaves_half: bool,
        given: &mut Vec<(SequenceId, u32)>,
    ) {
        let before = given.iter_mut().find(|(other, _)| *other == id);
        let sequence = self.sequences.get_mut(&id).expect("who runs is known");
        let mut span = sequence.span();
        span.start += before.as_ref().map_or(0, |(_, len)| *len);
        let affordable = plan.allowance.tokens(span.start, span.grid);
        let affordable = plan.budget.min(affordable);
        let len = span.chunk_len(if leaves_half {
            affordable.min(affordable.div_ceil(2).max(span.grid))
        } else {
            affordable
        });
        if len == 0 {
            return;
        }
        plan.budget -= len;
        plan.allowance.take(span.start, len);
        let num_new = sequence.note_given(span.start + len);
        self.tenants.charge(sequence.request.tenant, num_new);
        match before {
            Some((_, before)) => *before += len,
            None => given.push((id, len)),
        }
    }

    fn running_ids(&self) -> Vec<SequenceId> {
        self.running.iter().collect()
    }

    fn plan_row(&mut self, plan: &mut Plan, id: SequenceId, len: u32) {
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
            num_kept,
            num_common,
            miss,
        } = start;
        let known = Known {
            num_hit,
            num_kept,
            num_common,
        };
        sequence.start(lease, known);
        self.tenants
            .start(id, sequence.place(), self.counters.steps);
        self.running.insert(id, sequence.rank);

        let choices = self
            .requests
            .get_mut(&sequence.request.id)
            .expect("who waits has a request");
        if !choices.started {
            choices.started = true;
            self.started.push(sequence.request.id);
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
