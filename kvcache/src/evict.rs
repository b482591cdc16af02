//! What goes when memory is short, and what of it finds a place on the host.

use crate::block::BlockId;
use crate::manager::KvCacheManager;
use crate::policy::{Candidate, Short};
use crate::prefix::{Snapshot, SnapshotId, Tier};
use crate::runs::{Holder, Path};
use crate::state::StateOp;

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
        while self.blocks().num_free() < num_blocks {
            let id = self
                .worst_for_blocks(spared)
                .expect("cached blocks have a snapshot");
            self.evict(id, spared);
        }
    }

    /// The snapshot of least worth on the device; `spared` only if there is no other.
    pub(crate) fn worst_for_slot(&self, spared: Option<SnapshotId>) -> Option<(SnapshotId, f64)> {
        let worst = |spared| self.worst(Tier::Device, Short::Slots, spared, |_| true);
        worst(spared).or_else(|| worst(None))
    }

    /// The same, of those that hold a block which nobody uses. First those that alone do: others would
    /// free nothing by themselves.
    fn worst_for_blocks(&self, spared: Option<SnapshotId>) -> Option<SnapshotId> {
        let runs = &self.blocks().runs;
        let worst = |spared| {
            self.worst(Tier::Device, Short::Blocks, spared, |snapshot| {
                runs.num_own(snapshot.path) > 0
            })
        };
        worst(spared)
            .or_else(|| worst(None))
            .or_else(|| {
                self.worst(Tier::Device, Short::Blocks, None, |snapshot| {
                    !runs.is_held(snapshot.path, Holder::Lease)
                })
            })
            .map(|(id, _)| id)
    }

    fn worst(
        &self,
        tier: Tier,
        short: Short,
        spared: Option<SnapshotId>,
        may_go: impl Fn(&Snapshot) -> bool,
    ) -> Option<(SnapshotId, f64)> {
        let views = self.policy.views(&self.prefix.habits, short);
        let ranks = self.prefix.ranks(tier);
        ranks.worst(short, &views, self.prefix.now(), |id, least| {
            let snapshot = self.prefix.get(id);
            if Some(id) == spared || !may_go(snapshot) {
                return None;
            }
            Some(match short {
                Short::Slots => least,
                Short::Blocks => self.score(&self.candidate(snapshot, short)),
            })
        })
    }

    /// Who goes first by all that is known of everybody.
    pub(crate) fn check_worst(&self) {
        for (tier, short) in [
            (Tier::Device, Short::Slots),
            (Tier::Device, Short::Blocks),
            (Tier::Host, Short::Slots),
            (Tier::Host, Short::Blocks),
        ] {
            let may_go =
                |snapshot: &Snapshot| short == Short::Slots || snapshot.len.is_multiple_of(2);
            let scored = self.prefix.snapshots().filter_map(|(id, snapshot)| {
                let is_candidate = snapshot.tier == tier && may_go(snapshot);
                is_candidate.then(|| (id, self.score(&self.candidate(snapshot, short))))
            });
            // Of equals the oldest.
            let worst = scored.reduce(|worst, next| if next.1 < worst.1 { next } else { worst });
            let got = self.worst(tier, short, None, may_go);
            assert_eq!(got, worst, "the worst of {tier:?} for want of {short:?}");
        }
    }

    pub(crate) fn score(&self, candidate: &Candidate) -> f64 {
        let (habits, now) = (&self.prefix.habits, self.prefix.now());
        self.policy.score(habits, candidate, now)
    }

    pub(crate) fn candidate(&self, snapshot: &Snapshot, short: Short) -> Candidate {
        Candidate {
            num_saved_tokens: self.prefix.num_saved_tokens(snapshot),
            short,
            num_freed: match short {
                Short::Slots => 1,
                Short::Blocks => self.num_own_blocks(snapshot),
            },
            last_use: snapshot.last_use,
            class: snapshot.class(),
        }
    }

    /// Blocks that nobody else holds.
    pub(crate) fn num_own_blocks(&self, snapshot: &Snapshot) -> u32 {
        let paths = self.prefix.paths(snapshot.tier);
        paths.blocks.runs.num_own(snapshot.path)
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
        let num_full = (snapshot.len / self.config.block_size) as usize;
        let (device, host) = (&self.prefix.device, &self.prefix.host);
        let from = device.blocks.runs.list(snapshot.path, 0, 0);
        let known = self.prefix.known_path(Tier::Host, num_full, |num| {
            device.key(from[num - 1]).expect("a full block has a path")
        });
        let is_same = |(start, blocks): (usize, &[BlockId])| {
            let mut pairs = from[start..].iter().zip(blocks);
            pairs.all(|(&from, &to)| device.tokens(from) == host.tokens(to))
        };
        let is_known = host.blocks.runs.stretches(known).all(is_same);
        let known = if is_known { known } else { Path::default() };
        self.prefix.host.blocks.add_lease(known);
        let has_room = self.make_host_room((from.len() - known.len()) as u32, worth, spared);
        if !has_room {
            self.prefix.host.blocks.drop_lease(known);
            return false;
        }
        let path = self.copy_to_host(known, &from[known.len()..]);
        let (device, host) = (&self.prefix.device, &mut self.prefix.host);
        host.blocks.add_snapshot(path);
        host.blocks.drop_lease(path);
        // Those that were there already may have lost the last who held them while room was made.
        let full = host.blocks.runs.beginning(path, num_full);
        host.make_findable(full, |num| {
            device.key(from[num - 1]).expect("a full block has a path")
        });
        let slot = self.host_states.take_snapshot().expect("there is room");
        self.ops.push(StateOp::SlotToHost {
            from: from_slot,
            to: slot.into(),
        });
        let (from_slot, from) = self.prefix.relocate(id, slot, path);
        self.states.release_snapshot(from_slot);
        self.drop_path(Tier::Device, from);
        self.moves.num_swapped_out += 1;
        true
    }

    /// Blocks of the device, behind those that are on the host already. A lease holds the path.
    fn copy_to_host(&mut self, known: Path, from: &[BlockId]) -> Path {
        let (device, host) = (&self.prefix.device, &mut self.prefix.host);
        let mut blocks = Vec::with_capacity(from.len());
        for &block in from {
            let to = host.blocks.allocate().expect("there is room");
            self.ops.push(StateOp::BlockToHost {
                from: block,
                to: to.into(),
            });
            host.record(to, device.tokens(block));
            blocks.push(to);
        }
        if blocks.is_empty() {
            return known;
        }
        host.blocks.share(known, &blocks)
    }

    /// Room for a slot and so many blocks on the host, for something of this worth.
    fn make_host_room(&mut self, num_blocks: u32, worth: f64, spared: Option<SnapshotId>) -> bool {
        let host = self.host_blocks();
        let num_available = host.num_free() + host.num_cached();
        if num_blocks > num_available {
            return false;
        }
        loop {
            let has_slot = self.host_states.num_free() > 0;
            if has_slot && self.host_blocks().num_free() >= num_blocks {
                return true;
            }
            let short = if has_slot {
                Short::Blocks
            } else {
                Short::Slots
            };
            let runs = &self.host_blocks().runs;
            let worst = self.worst(Tier::Host, short, spared, |snapshot| {
                !has_slot || !runs.is_held(snapshot.path, Holder::Lease)
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
        self.drop_path(snapshot.tier, snapshot.path);
    }

    fn drop_path(&mut self, tier: Tier, path: Path) {
        let paths = self.prefix.paths_mut(tier);
        for block in paths.blocks.drop_snapshot(path) {
            paths.remove(block);
        }
    }
}
