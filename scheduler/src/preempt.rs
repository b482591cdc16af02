//! Who yields to one that runs, and what is given back.
//!
//! Of those of the lowest priority the one whose memory is got back most cheaply: fewest tokens to
//! compute again for a block gained. What it had computed up to its last snapshot is not lost as long as
//! that is there, nor is what can be moved to the host and back.
//!
//! Nobody yields for ever. Every time somebody does, its memory counts as twice as dear: as costs per
//! block are at most R times each other, nobody yields more than log2(R) + 1 times more often than
//! another of its priority who could have yielded in its stead. And those who run make progress: the
//! most senior of them never yields to another, alone it always fits, and whoever makes somebody yield
//! draws a token in the same step, or yields itself. Tokens drawn are never lost, so there are fewer
//! steps in which somebody yields than there are tokens to draw and chunks of the most senior ones.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use crate::output::SequenceId;
use crate::plan::Plan;
use crate::scheduler::Scheduler;
use crate::sequence::Sequence;

/// What starting once more costs besides, in tokens.
const RESTART: u32 = 16;
/// Doublings that are told apart.
const MAX_YIELDS: u32 = 32;

/// One who runs and could yield.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    id: SequenceId,
    priority: i8,
    /// Tokens to compute again, or what moving them costs in its stead.
    num_lost_tokens: u32,
    /// Blocks that others can have then.
    pub(crate) num_gained_blocks: u32,
    /// How often it had to yield before.
    num_yields: u32,
}

impl Candidate {
    /// Who yields rather, if more than `num_wanted` blocks are of no use to anybody.
    fn compare(&self, other: &Self, num_wanted: u32) -> Ordering {
        let cost = |one: &Self| {
            let tokens = u128::from(one.num_lost_tokens) + u128::from(RESTART);
            tokens << one.num_yields.min(MAX_YIELDS)
        };
        let gain = |one: &Self| u128::from(one.num_gained_blocks.min(num_wanted));
        let by_priority = self.priority.cmp(&other.priority);
        by_priority.then((cost(self) * gain(other)).cmp(&(cost(other) * gain(self))))
    }
}

/// Of candidates by seniority; of equals the least senior.
pub(crate) fn who_yields(candidates: &[Candidate], num_wanted: u32) -> Option<SequenceId> {
    let juniors_first = candidates.iter().rev();
    let cheapest = juniors_first.min_by(|a, b| a.compare(b, num_wanted));
    cheapest.map(|candidate| candidate.id)
}

impl Scheduler {
    /// Extends a running sequence to all its tokens, making others yield if need be. `false` if it
    /// yielded itself.
    pub(crate) fn make_room(&mut self, plan: &Plan, id: SequenceId) -> bool {
        loop {
            let sequence = self.sequences.get_mut(&id).expect("who runs is known");
            let num_tokens = sequence.num_wanted();
            let (lease, _, _) = sequence.cache_parts();
            if self.cache.extend(lease, num_tokens) {
                return true;
            }
            let num_wanted = self.running.len() as u32;
            let victim = who_yields(&self.candidates(plan), num_wanted);
            let victim = victim.expect("the most senior fits when it is alone");
            self.preempt(victim);
            if victim == id {
                return false;
            }
        }
    }

    /// Those who run, are not planned yet, and not the most senior.
    fn candidates(&self, plan: &Plan) -> Vec<Candidate> {
        let planned: BTreeSet<SequenceId> = plan.rows.iter().map(|row| row.sequence).collect();
        let juniors = self.running.iter().skip(1);
        let juniors = juniors.filter(|id| !planned.contains(id));
        juniors
            .map(|id| self.candidate(&self.sequences[&id]))
            .collect()
    }

    pub(crate) fn candidate(&self, sequence: &Sequence) -> Candidate {
        let lease = sequence.lease().expect("a running sequence has a lease");
        let parting = self.cache.parting(lease);
        let num_kept = sequence.num_saved().min(parting.num_saved_tokens);
        let num_computed = sequence.num_computed();
        let num_lost = num_computed.saturating_sub(num_kept);
        // With a grid nothing is left behind that could be moved.
        let moving = match self.config.grid {
            None => self.cache.cost_of_moving(num_computed),
            Some(_) => None,
        };
        Candidate {
            id: sequence.id,
            priority: sequence.request.priority,
            num_lost_tokens: moving.map_or(num_lost, |moving| num_lost.min(moving)),
            num_gained_blocks: parting.num_gained_blocks,
            num_yields: sequence.num_yields,
        }
    }

    /// Takes all memory back. Tokens are kept; what was computed of them becomes a snapshot, which goes
    /// like all others when memory is short, to the host if there is room. As far as it is still there
    /// when its turn comes, it goes on from there; the rest is computed again.
    pub(crate) fn preempt(&mut self, id: SequenceId) {
        let sequence = self.sequences.get_mut(&id).expect("who runs is known");
        sequence.yield_memory(&mut self.cache);
        self.running.remove(id);
        self.tenants.stop(id, sequence.place());
        self.counters.preemptions += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL: Candidate = Candidate {
        id: SequenceId(3),
        priority: 0,
        num_lost_tokens: 1000,
        num_gained_blocks: 10,
        num_yields: 0,
    };

    /// Whether the change makes the second of two equal ones, who would yield, stay.
    fn stays(change: fn(&mut Candidate)) -> bool {
        let mut second = Candidate {
            id: SequenceId(8),
            ..USUAL
        };
        assert_eq!(who_yields(&[USUAL, second], 20), Some(SequenceId(8)));
        change(&mut second);
        who_yields(&[USUAL, second], 20) == Some(SequenceId(3))
    }

    #[test]
    fn the_cheapest_yields() {
        assert_eq!(who_yields(&[], 20), None);
        assert_eq!(who_yields(&[USUAL], 20), Some(USUAL.id));
        assert!(stays(|one| one.num_lost_tokens = 1001));
        assert!(stays(|one| one.num_gained_blocks = 9));
        assert!(stays(|one| one.num_gained_blocks = 0));
        assert!(stays(|one| one.priority = 1));
        assert!(stays(|one| one.num_yields = 1));
        assert!(!stays(|one| one.num_lost_tokens = 999));
        assert!(!stays(|one| one.num_gained_blocks = 11));
        assert!(stays(|one| {
            one.num_gained_blocks = 11;
            one.num_lost_tokens = 2000;
        }));
        assert!(stays(|one| {
            (one.priority, one.num_lost_tokens) = (1, 0);
        }));
        assert!(!stays(|one| {
            (one.priority, one.num_lost_tokens) = (-1, 1_000_000);
        }));
    }

    #[test]
    fn more_than_anybody_wants_is_worth_nothing() {
        let large = Candidate {
            id: SequenceId(4),
            num_lost_tokens: 10_000,
            num_gained_blocks: 1000,
            ..USUAL
        };
        assert_eq!(who_yields(&[USUAL, large], 10_000), Some(large.id));
        assert_eq!(who_yields(&[USUAL, large], 10), Some(USUAL.id));
    }

    /// The bound that is promised above, for costs of every kind.
    #[test]
    fn nobody_yields_for_ever() {
        for costs in [
            [0, 1, 2, 3],
            [10, 10, 10, 10],
            [0, 1000, 100_000, 16],
            [5, 50, 500, 5000],
        ] {
            let mut candidates = costs.map(|num_lost_tokens| Candidate {
                id: SequenceId(u64::from(num_lost_tokens)),
                num_lost_tokens,
                ..USUAL
            });
            for (candidate, id) in candidates.iter_mut().zip(0..) {
                candidate.id = SequenceId(id);
            }
            for _ in 0..60 {
                let victim = who_yields(&candidates, 20).expect("there are candidates");
                candidates[victim.0 as usize].num_yields += 1;
                for (a, b) in candidates
                    .iter()
                    .flat_map(|a| candidates.iter().map(move |b| (a, b)))
                {
                    let ratio = f64::from(b.num_lost_tokens + RESTART)
                        / f64::from(a.num_lost_tokens + RESTART);
                    let most = ratio.log2().max(0.0) + 1.0;
                    let more = f64::from(a.num_yields) - f64::from(b.num_yields);
                    assert!(more <= most, "{a:?} {b:?}");
                }
            }
        }
    }
}
