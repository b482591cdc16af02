//! What eviction looks at of the snapshots of one memory, side by side.
//!
//! Which snapshot is worth least changes with every use of any and with what is learned of each class,
//! so no order of them stays right. All of them are looked at, then, but at a few numbers each, which
//! lie in a row: some nanoseconds a snapshot.

use crate::block::SlotId;
use crate::policy::{NUM_CLASSES, Short, View};
use crate::prefix::SnapshotId;

/// One snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rank {
    pub(crate) id: SnapshotId,
    pub(crate) last_use: u64,
    /// Tokens over the next shorter one.
    pub(crate) num_saved_tokens: u32,
    /// Blocks that the next shorter one does not hold: it frees no more.
    pub(crate) max_freed_blocks: u32,
    /// Number of its class.
    pub(crate) class: u8,
}

/// A slot without a snapshot. Births count from 1.
const NOTHING: Rank = Rank {
    id: SnapshotId(0),
    last_use: 0,
    num_saved_tokens: 0,
    max_freed_blocks: 0,
    class: 0,
};

/// More than rounding makes of two that are equal.
const NEARLY: f64 = 1.0 + 1e-9;

/// All of one memory, by slot.
#[derive(Debug)]
pub(crate) struct Ranks {
    ranks: Vec<Rank>,
}

impl Ranks {
    pub(crate) fn new(num_slots: u32) -> Self {
        Self {
            ranks: vec![NOTHING; num_slots as usize],
        }
    }

    pub(crate) fn set(&mut self, slot: SlotId, rank: Option<Rank>) {
        self.ranks[slot.index()] = rank.unwrap_or(NOTHING);
    }

    pub(crate) fn get(&self, slot: SlotId) -> Option<Rank> {
        let rank = self.ranks[slot.index()];
        (rank != NOTHING).then_some(rank)
    }

    pub(crate) fn len(&self) -> usize {
        self.ranks.iter().filter(|rank| **rank != NOTHING).count()
    }

    /// The one of least worth, and of equals the oldest, of those to which `weigh` gives a worth. It is
    /// asked only for those whose worth may be the least: with the least that it can be, by what is
    /// said here.
    pub(crate) fn worst(
        &self,
        short: Short,
        views: &[View; NUM_CLASSES],
        now: u64,
        mut weigh: impl FnMut(SnapshotId, f64) -> Option<f64>,
    ) -> Option<(SnapshotId, f64)> {
        let mut worst: Option<(SnapshotId, f64)> = None;
        let mut limit = f64::INFINITY;
        for rank in &self.ranks {
            let num_freed = match short {
                Short::Slots => 1,
                Short::Blocks => rank.max_freed_blocks,
            };
            let view = &views[rank.class as usize];
            let age = now - rank.last_use;
            let (gain, cost) = view.gain_and_cost(rank.num_saved_tokens, num_freed, age);
            if gain > limit * cost || *rank == NOTHING {
                continue;
            }
            let Some(worth) = weigh(rank.id, gain / cost) else {
                continue;
            };
            let is_worst = worst
                .is_none_or(|(id, worst)| worth.total_cmp(&worst).then(rank.id.cmp(&id)).is_lt());
            if is_worst {
                worst = Some((rank.id, worth));
                limit = worth * NEARLY;
            }
        }
        worst
    }
}
