//! What goes when memory is short, and what of it finds a place on the host.
//!
//! The worth of every snapshot changes with every use of any, so the worst is found by looking at all
//! of them: tens of nanoseconds each, for as many as there are slots.

use crate::block::BlockId;
use crate::manager::KvCacheManager;
use crate::policy::Candidate;
use crate::prefix::{Snapshot, SnapshotId, Tier};
use crate::state::StateOp;

/// What room is made for. Slots and blocks are pools apart: what is freed of the other does not help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Short {
    Slots,
    Blocks,
}

impl KvCacheManager {
    pub(crate) fn evict_for_slot(&mut self, spared: Option<SnapshotId>) {
        if self.states.num_free() == 0 {
            let (id, _) = self
                .worst_for_slot(spared)
                .expect("a snapshot holds a spare slot");
            self.evict(id, spared);
        }
    }

    pub(crate) fn evict_for_blocks(&mut self, num_blocks: u32, spared: Option<SnapshotId>) {
        while self.blocks.num_free() < num_blocks {
            let id = self
                .worst_for_blocks(spared)
                .expect("cached blocks have a snapshot");
            self.evict(id, spared);
        }
    }

    /// The snapshot of least worth on the device; `spared` only if there is no other.
    pub(crate) fn worst_for_slot(&self, spared: Option<SnapshotId>) -> Option<(SnapshotId, f64)> {
        let on_device = |_: SnapshotId, snapshot: &Snapshot| snapshot.tier == Tier::Device;
        self.worst(Short::Slots, |id, snapshot| {
            on_device(id, snapshot) && Some(id) != spared
        })
        .or_else(|| self.worst(Short::Slots, on_device))
    }

    /// The same, of those that hold a block which nobody uses. First those that alone do: others would
    /// free nothing by themselves.
    fn worst_for_blocks(&self, spared: Option<SnapshotId>) -> Option<SnapshotId> {
        // Who holds a used block last has used blocks only (invariant 4).
        let holds_cached = |snapshot: &Snapshot| {
            snapshot.tier == Tier::Device && !self.blocks.is_used(last_block(snapshot))
        };
        let holds_alone = |snapshot: &Snapshot| {
            holds_cached(snapshot) && self.blocks.num_snapshots(last_block(snapshot)) == 1
        };
        self.worst(Short::Blocks, |id, snapshot| {
            holds_alone(snapshot) && Some(id) != spared
        })
        .or_else(|| self.worst(Short::Blocks, |_, snapshot| holds_alone(snapshot)))
        .or_else(|| self.worst(Short::Blocks, |_, snapshot| holds_cached(snapshot)))
        .map(|(id, _)| id)
    }

    fn worst(
        &self,
        short: Short,
        may_go: impl Fn(SnapshotId, &Snapshot) -> bool,
    ) -> Option<(SnapshotId, f64)> {
        let candidates = self.prefix.snapshots();
        let scored = candidates
            .filter(|&(id, snapshot)| may_go(id, snapshot))
            .map(|(id, snapshot)| (id, self.score(&self.candidate(snapshot, short))));
        // Of equals the oldest.
        scored.reduce(|worst, next| if next.1 < worst.1 { next } else { worst })
    }

    pub(crate) fn score(&self, candidate: &Candidate) -> f64 {
        let (habits, now) = (&self.prefix.habits, self.prefix.now());
        self.policy.score(habits, candidate, now)
    }

    pub(crate) fn candidate(&self, snapshot: &Snapshot, short: Short) -> Candidate {
        Candidate {
            num_saved_tokens: self.prefix.num_saved_tokens(snapshot),
            num_freed: match short {
                Short::Slots => 1,
                Short::Blocks => self.num_own_blocks(snapshot),
            },
            last_use: snapshot.last_use,
            class: snapshot.class(),
        }
    }

    /// Blocks that no other snapshot holds.
    pub(crate) fn num_own_blocks(&self, snapshot: &Snapshot) -> u32 {
        let pool = match snapshot.tier {
            Tier::Device => &self.blocks,
            Tier::Host => &self.host_blocks,
        };
        // They are an end of its list, since who holds a block holds all before it.
        let num_shared = snapshot
            .blocks
            .partition_point(|&block| pool.num_snapshots(block) > 1);
        (snapshot.blocks.len() - num_shared) as u32
    }

    /// Takes a snapshot off the device: to the host if it is worth that, and there is or can be made
    /// room for it.
    pub(crate) fn evict(&mut self, id: SnapshotId, spared: Option<SnapshotId>) {
        if self.config.num_host_slots > 0 && Some(id) != spared && self.swap_out(id, spared) {
            return;
        }
        self.moves.num_evictions += 1;
        self.prefix.remember(id);
        self.drop_snapshot(id);
    }

    /// Whether it is on the host now.
    fn swap_out(&mut self, id: SnapshotId, spared: Option<SnapshotId>) -> bool {
        let snapshot = self.prefix.get(id);
        let candidate = self.candidate(snapshot, Short::Slots);
        let block_size = self.config.block_size;
        if !self.policy.is_worth_moving(&candidate, block_size) {
            return false;
        }
        let worth = self.score(&candidate);
        let from_slot = snapshot.slot;
        let from = snapshot.blocks.clone();
        let num_full = (snapshot.len / self.config.block_size) as usize;
        let device = &self.prefix.device;
        let (num_known, mut blocks) = self.prefix.known_blocks(Tier::Host, num_full, |num| {
            device.key(from[num - 1]).expect("a full block has a path")
        });
        let mut pairs = from.iter().zip(&blocks);
        let is_same = pairs.all(|(&from, &to)| device.tokens(from) == self.prefix.host.tokens(to));
        let num_known = if is_same { num_known } else { 0 };
        blocks.truncate(num_known);
        let num_new = (from.len() - num_known) as u32;
        for &block in &blocks {
            self.host_blocks.add_lease(block);
        }
        let has_room = self.make_host_room(num_new, worth, spared);
        if has_room {
            for &block in &from[num_known..] {
                let to = self.host_blocks.allocate().expect("there is room");
                self.ops.push(StateOp::BlockToHost {
                    from: block,
                    to: to.into(),
                });
                let tokens = self.prefix.device.tokens(block).to_vec();
                self.prefix.host.record(to, &tokens);
                blocks.push(to);
            }
            for (index, &block) in blocks.iter().enumerate() {
                self.host_blocks.add_snapshot(block);
                if index < num_full {
                    let key = self.prefix.device.key(from[index]);
                    let key = key.expect("a full block has a path");
                    self.prefix.host.insert(block, key);
                }
            }
        }
        for &block in blocks.iter().rev() {
            self.host_blocks.drop_lease(block);
        }
        if !has_room {
            return false;
        }
        let slot = self.host_states.take_snapshot().expect("there is room");
        self.ops.push(StateOp::SlotToHost {
            from: from_slot,
            to: slot.into(),
        });
        let (from_slot, from) = self.prefix.relocate(id, slot, blocks);
        self.states.release_snapshot(from_slot);
        self.drop_blocks(Tier::Device, &from);
        self.moves.num_swapped_out += 1;
        true
    }

    /// Room for a slot and so many blocks on the host, for something of this worth.
    fn make_host_room(&mut self, num_blocks: u32, worth: f64, spared: Option<SnapshotId>) -> bool {
        let num_available = self.host_blocks.num_free() + self.host_blocks.num_cached();
        if num_blocks > num_available {
            return false;
        }
        loop {
            let has_slot = self.host_states.num_free() > 0;
            if has_slot && self.host_blocks.num_free() >= num_blocks {
                return true;
            }
            let short = if has_slot {
                Short::Blocks
            } else {
                Short::Slots
            };
            let worst = self.worst(short, |id, snapshot| {
                snapshot.tier == Tier::Host
                    && Some(id) != spared
                    && (!has_slot || !self.host_blocks.is_used(last_block(snapshot)))
            });
            let Some((id, _)) = worst.filter(|&(_, least)| least < worth) else {
                return false;
            };
            self.moves.num_evictions += 1;
            self.prefix.remember(id);
            self.drop_snapshot(id);
        }
    }

    /// Forgets a snapshot, wherever it is.
    pub(crate) fn drop_snapshot(&mut self, id: SnapshotId) {
        let snapshot = self.prefix.remove(id);
        match snapshot.tier {
            Tier::Device => self.states.release_snapshot(snapshot.slot),
            Tier::Host => self.host_states.release_snapshot(snapshot.slot),
        }
        self.drop_blocks(snapshot.tier, &snapshot.blocks);
    }

    fn drop_blocks(&mut self, tier: Tier, blocks: &[BlockId]) {
        for &block in blocks.iter().rev() {
            let pool = match tier {
                Tier::Device => &mut self.blocks,
                Tier::Host => &mut self.host_blocks,
            };
            if pool.drop_snapshot(block) {
                self.prefix.paths_mut(tier).remove(block);
            }
        }
    }
}

fn last_block(snapshot: &Snapshot) -> BlockId {
    *snapshot
        .blocks
        .last()
        .expect("a snapshot covers at least one token")
}
