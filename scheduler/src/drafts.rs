//! Which rows carry drafts, and which make new ones. Last in a plan: they get what is left.

use std::collections::BTreeMap;

use crate::depth::Candidate;
use crate::output::{Row, SequenceId};
use crate::plan::Plan;
use crate::scheduler::Scheduler;
use crate::sequence::Status;

impl Scheduler {
    /// Takes from the budget what drafts at hand want, as long as everybody has a first token; up to
    /// half of it if others want it too.
    pub(crate) fn reserve_for_drafts(&self, plan: &mut Plan) -> u32 {
        if self.config.max_drafts == 0 {
            return 0;
        }
        let wanted = plan.rows.iter().map(|row| self.drafts_at_hand(row)).sum();
        let is_alone = self.tenants.num_waiting() == 0 && plan.rows.len() == self.running.len();
        let share = if is_alone {
            plan.budget
        } else {
            plan.budget / 2
        };
        let reserved = share.min(wanted);
        plan.budget -= reserved;
        reserved
    }

    /// Gives rows the drafts that their sequences hold, and lets them make new ones.
    pub(crate) fn plan_drafts(&mut self, plan: &mut Plan) {
        if self.config.max_drafts == 0 {
            return;
        }
        self.spend_drafts(plan);
        self.order_drafts(plan);
    }

    /// The first draft of each, then the second of each, ..: the first are the likeliest.
    fn spend_drafts(&mut self, plan: &mut Plan) {
        let wanted: Vec<u32> = plan
            .rows
            .iter()
            .map(|row| self.drafts_at_hand(row))
            .collect();
        let mut given = vec![0; wanted.len()];
        for depth in 0..self.config.max_drafts {
            for (given, wanted) in given.iter_mut().zip(&wanted) {
                if *wanted > depth && plan.budget > 0 {
                    *given += 1;
                    plan.budget -= 1;
                }
            }
        }
        for (row, given) in plan.rows.iter_mut().zip(given) {
            let num_drafts = self.cover(row, given);
            let sequence = &self.sequences[&row.sequence];
            row.input_ids
                .extend_from_slice(&sequence.guesses.drafts[..num_drafts as usize]);
            row.drafting.num_drafts = num_drafts;
        }
    }

    /// How many new ones each row makes.
    fn order_drafts(&mut self, plan: &mut Plan) {
        let num_drawing = plan.rows.iter().filter(|row| row.sample.is_some()).count() as u32;
        let mut orders: BTreeMap<SequenceId, u32> = BTreeMap::new();
        let mut limits: BTreeMap<SequenceId, u32> = BTreeMap::new();
        for row in &plan.rows {
            let limit = self.limit_of(row);
            if row.sample.is_some() {
                limits.insert(row.sequence, limit);
            } else {
                let guesser = &self.sequences[&row.sequence].guesses.guesser;
                let passes = limit > 0 && self.depth.prepares(num_drawing, guesser);
                orders.insert(row.sequence, u32::from(passes));
            }
        }
        let mut candidates = Vec::with_capacity(limits.len());
        // Those who wait have mostly come later than all who draw.
        let ends = limits.first_key_value().zip(limits.last_key_value());
        let range = ends.map(|((&first, _), (&last, _))| first..=last);
        let sequences = range.map(|range| self.sequences.range_mut(range));
        for (id, sequence) in sequences.into_iter().flatten() {
            if let Some(&limit) = limits.get(id) {
                let guesser = &mut sequence.guesses.guesser;
                candidates.push(Candidate { guesser, limit });
            }
        }
        let depths = self.depth.choose(num_drawing, &mut candidates);
        orders.extend(limits.into_keys().zip(depths));
        for row in &mut plan.rows {
            row.drafting.max_drafts = self.cover(row, orders[&row.sequence]);
        }
    }

    /// Drafts that a row could carry: guesses at tokens that may still be drawn, but the last, which
    /// no draft follows.
    fn drafts_at_hand(&self, row: &Row) -> u32 {
        let sequence = &self.sequences[&row.sequence];
        // A row with drafts leaves no state on its way.
        if row.sample.is_none() || !row.saves.is_empty() {
            return 0;
        }
        let num_left = sequence.num_left(self.config.max_model_len);
        (sequence.guesses.drafts.len() as u32).min(num_left - 1)
    }

    /// The most drafts that the row after this one can use, whatever this one draws.
    fn limit_of(&self, row: &Row) -> u32 {
        if self.drafts_paused {
            return 0;
        }
        let sequence = &self.sequences[&row.sequence];
        let max_model_len = self.config.max_model_len;
        let end = row.start + row.input_ids.len() as u32;
        sequence
            .num_left(max_model_len)
            .saturating_sub(2)
            .min(max_model_len.saturating_sub(end))
            .min(self.config.max_drafts)
    }

    /// Blocks for so many positions more, or for fewer if they would have to be taken from somebody.
    /// Returns for how many.
    fn cover(&mut self, row: &mut Row, num_wanted: u32) -> u32 {
        if num_wanted == 0 {
            return 0;
        }
        let end = row.start + row.input_ids.len() as u32;
        let sequence = self
            .sequences
            .get_mut(&row.sequence)
            .expect("a row has a sequence");
        let (lease, _, _) = sequence.cache_parts();
        self.cache.extend(lease, end + num_wanted);
        let block_size = self.cache.config().block_size;
        let num_covered = num_wanted.min(lease.blocks().len() as u32 * block_size - end);
        let num_blocks = self.cache.config().blocks_for(end + num_covered) as usize;
        let missing = &lease.blocks()[row.block_table.len()..num_blocks];
        row.block_table.extend_from_slice(missing);
        num_covered
    }

    /// After a result: what was reserved for guesses is nobody's any more.
    pub(crate) fn trim(&mut self, id: SequenceId) {
        let sequence = self.sequences.get_mut(&id).expect("a row has a sequence");
        assert_eq!(sequence.status(), Status::Running, "{id:?} runs on");
        let num_wanted = sequence.num_wanted();
        let (lease, _, _) = sequence.cache_parts();
        self.cache.trim(lease, num_wanted);
        sequence.forget_trimmed();
    }
}
