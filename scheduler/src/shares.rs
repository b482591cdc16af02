//! Who makes way for a tenant that has less than its share.
//!
//! Waiting in the right order is not enough where one tenant holds all slots or blocks for long: whoever
//! comes then waits for somebody's end. So if the first in line has no room and its tenant would still be
//! within its share with it, one of those who have more yields, as it would for want of memory (`preempt`):
//! tokens are kept, and so is the state as long as there is a slot for it.
//!
//! A share is what there is, over the weights of the tenants who are here. Nobody yields who would fall
//! below its share by that, and nobody takes who would rise above it. So while the same tenants are here,
//! room goes from those who have more to those who have less and never back.

use std::collections::BTreeMap;

use crate::output::SequenceId;
use crate::preempt::{Candidate, who_yields};
use crate::request::TenantId;
use crate::scheduler::Scheduler;
use crate::tenants::{Place, Tenant};

/// What a tenant's running sequences hold, and what it could.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Holding {
    num_slots: u32,
    num_blocks: u32,
    max_slots: u32,
    max_blocks: u32,
}

/// What the first in line lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shortage {
    slot: bool,
    num_blocks: u32,
}

impl Holding {
    /// Whether it is within its share with one more sequence of so many blocks.
    fn may_take(&self, num_blocks: u32) -> bool {
        self.num_slots < self.max_slots && self.num_blocks + num_blocks <= self.max_blocks
    }

    /// Whether a sequence that frees so many blocks is more than its share, of what is short.
    fn may_give(&self, num_blocks: u32, short: Shortage) -> bool {
        let slots = short.slot && self.num_slots > self.max_slots;
        let can_spare = self.num_blocks >= self.max_blocks + num_blocks;
        slots || short.num_blocks > 0 && num_blocks > 0 && can_spare
    }
}

/// A part of `num`, at least one.
fn share(num: u32, weight: u16, total_weight: u64) -> u32 {
    let share = u64::from(num) * u64::from(weight) / total_weight;
    share.max(1) as u32
}

impl Scheduler {
    /// Makes room for the first in line if its tenant has less than its share and others have more. `None`
    /// if nobody had to.
    pub(crate) fn make_way(&mut self) -> Option<SequenceId> {
        // With a grid nothing is left behind from which somebody could go on.
        if !self.tenants.are_many() || self.config.grid.is_some() || self.running.len() < 2 {
            return None;
        }
        let id = self.tenants.first(self.counters.steps)?;
        let Place {
            tenant, priority, ..
        } = self.sequences[&id].place();
        let mut holdings = self.slots_held(tenant);
        let num_blocks = self
            .cache
            .config()
            .blocks_for(self.sequences[&id].num_wanted());
        if !holdings[&tenant].may_take(num_blocks) {
            return None;
        }
        let mut short = self.shortage(id)?;
        self.add_blocks(&mut holdings);
        if !holdings[&tenant].may_take(num_blocks) {
            return None;
        }
        let makers = self.makers();
        if self.waits_for_save(id, &makers) {
            return None;
        }
        // Nobody yields in vain.
        let spare = holdings
            .values()
            .map(|one| one.num_blocks.saturating_sub(one.max_blocks));
        if spare.sum::<u32>() < short.num_blocks {
            return None;
        }
        let mut guest = None;
        while let Some((victim, of)) = self.who_makes_way(&holdings, short, priority) {
            let holding = holdings.get_mut(&of).expect("who runs has a tenant");
            let lease = self.sequences[&victim].lease();
            let lease = lease.expect("a running sequence has a lease");
            holding.num_slots -= 1;
            holding.num_blocks -= lease.blocks().len() as u32;
            self.preempt(victim);
            self.counters.tenant_preemptions += 1;
            guest = Some(id);
            match self.shortage(id) {
                Some(left) => short = left,
                None => break,
            }
        }
        guest
    }

    /// `None` if it would fit.
    fn shortage(&mut self, id: SequenceId) -> Option<Shortage> {
        let num_spare_blocks = self.running.len() as u32;
        let sequence = self.sequences.get_mut(&id).expect("who waits is known");
        let wanted = sequence.reservation(num_spare_blocks);
        let num_blocks = self.cache.num_missing_blocks(wanted);
        let is_full = self.running.len() >= self.config.max_num_seqs as usize;
        let slot = is_full || !self.cache.has_spare_slot();
        (slot || num_blocks > 0).then_some(Shortage { slot, num_blocks })
    }

    /// Of `head` and all tenants with sequences that run, blocks aside.
    fn slots_held(&self, head: TenantId) -> BTreeMap<TenantId, Holding> {
        let cache = self.cache.config();
        let num_slots = self.config.max_num_seqs.min(cache.num_slots - 1);
        let weights = self
            .tenants
            .here()
            .map(|(_, tenant)| u64::from(tenant.weight));
        let total_weight = weights.sum();
        let runs = |&(id, tenant): &(TenantId, &Tenant)| tenant.num_running > 0 || id == head;
        let holders = self.tenants.here().filter(runs).map(|(id, tenant)| {
            let holding = Holding {
                num_slots: tenant.num_running,
                num_blocks: 0,
                max_slots: share(num_slots, tenant.weight, total_weight),
                max_blocks: share(cache.num_blocks - 1, tenant.weight, total_weight),
            };
            (id, holding)
        });
        holders.collect()
    }

    fn add_blocks(&self, holdings: &mut BTreeMap<TenantId, Holding>) {
        for id in self.running.iter() {
            let sequence = &self.sequences[&id];
            let holding = holdings.get_mut(&sequence.request.tenant);
            let lease = sequence.lease().expect("a running sequence has a lease");
            holding.expect("who runs has a tenant").num_blocks += lease.blocks().len() as u32;
        }
    }

    /// Of those who have more than their share, the one whose memory is got back most cheaply, and its
    /// tenant. Nobody yields to a lower priority, and the most senior to nobody.
    fn who_makes_way(
        &self,
        holdings: &BTreeMap<TenantId, Holding>,
        short: Shortage,
        priority: i8,
    ) -> Option<(SequenceId, TenantId)> {
        let juniors = self.running.iter().skip(1).map(|id| &self.sequences[&id]);
        let juniors = juniors.filter(|sequence| sequence.request.priority <= priority);
        let candidates = juniors.filter_map(|sequence| {
            let holding = &holdings[&sequence.request.tenant];
            let has_more =
                holding.num_slots > holding.max_slots || holding.num_blocks > holding.max_blocks;
            let candidate = has_more.then(|| self.candidate(sequence))?;
            let may_give = holding.may_give(candidate.num_gained_blocks, short);
            may_give.then_some(candidate)
        });
        let candidates: Vec<Candidate> = candidates.collect();
        let victim = who_yields(&candidates, short.num_blocks.max(1))?;
        Some((victim, self.sequences[&victim].request.tenant))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLDING: Holding = Holding {
        num_slots: 4,
        num_blocks: 100,
        max_slots: 4,
        max_blocks: 100,
    };

    #[test]
    fn shares_are_by_weight_and_never_nothing() {
        assert_eq!((share(64, 1, 2), share(64, 3, 4)), (32, 48));
        assert_eq!((share(7, 1, 2), share(2, 1, 5)), (3, 1));
        assert_eq!(share(u32::MAX, u16::MAX, u16::MAX.into()), u32::MAX);
    }

    #[test]
    fn nobody_takes_beyond_its_share() {
        let less = Holding {
            num_slots: 3,
            num_blocks: 90,
            ..HOLDING
        };
        assert!(less.may_take(10) && !less.may_take(11));
        assert!(!HOLDING.may_take(0), "of slots it has enough");
    }

    #[test]
    fn nobody_falls_below_its_share() {
        let short = |slot, num_blocks| Shortage { slot, num_blocks };
        let more = Holding {
            num_slots: 5,
            num_blocks: 110,
            ..HOLDING
        };
        assert!(more.may_give(0, short(true, 0)));
        assert!(!HOLDING.may_give(0, short(true, 0)));
        assert!(more.may_give(10, short(false, 3)));
        assert!(
            !more.may_give(11, short(false, 3)),
            "one less than its share"
        );
        assert!(!more.may_give(0, short(false, 3)), "it would be of no use");
        assert!(!more.may_give(10, short(false, 0)), "nothing is short");
    }
}
