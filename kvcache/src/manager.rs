//! The one door to blocks, slots and prefixes: reserve, publish, release; all or nothing.

use crate::block::{BlockId, SlotId};
use crate::hash::HashChain;
use crate::policy::{Policy, SnapshotKind};
use crate::pool::BlockPool;
use crate::prefix::{Miss, PrefixCache, SnapshotId, Tier};
use crate::runs::{Path, Runs};
use crate::spec::CacheConfig;
use crate::state::{StateOp, StatePool};
use crate::table::BlockTable;

/// What a live sequence holds. Ends in `retire` or `release`, never in a drop.
#[derive(Debug)]
#[must_use]
pub struct Lease {
    pub(crate) table: BlockTable,
    pub(crate) slot: SlotId,
    num_pending: u32,
}

impl Lease {
    /// Its blocks, in order.
    pub fn blocks(&self) -> &[BlockId] {
        self.table.as_slice()
    }

    /// Its state.
    pub fn slot(&self) -> SlotId {
        self.slot
    }

    /// How many of the last tokens computed lie beside the slot, not absorbed yet.
    pub fn num_pending(&self) -> u32 {
        self.num_pending
    }

    /// A row has left so many tokens beside the slot.
    pub fn set_num_pending(&mut self, num_tokens: u32) {
        self.num_pending = num_tokens;
    }
}

/// What a sequence needs to start.
#[derive(Debug)]
pub struct Reservation<'a> {
    /// Where its prefixes are looked up.
    pub chain: &'a mut HashChain,
    /// Everything known of it. Blocks are reserved for all of it, or nothing is.
    pub tokens: &'a [u32],
    /// The longest hit it can use. A row must have a token to run, so less than `tokens`.
    pub max_hit: usize,
    /// Blocks that must remain free or evictable for those who run already.
    pub num_spare_blocks: u32,
}

/// What a sequence starts with.
#[derive(Debug)]
#[must_use]
pub struct Start {
    /// Its memory.
    pub lease: Lease,
    /// Tokens that need no computing.
    pub num_hit: u32,
    /// The same, if the snapshot that holds them stays: that of one who had yielded is gone when it is
    /// back, and then this is 0.
    pub num_kept: u32,
    /// Tokens of which all blocks were cached at least, in whole blocks; where they end, others have
    /// parted from this path before.
    pub num_common: u32,
    /// Why the hit was not longer, and how many tokens that cost.
    pub miss: Option<(Miss, u32)>,
}

/// What it would mean that a lease ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parting {
    /// As many of its first tokens are in blocks that snapshots hold.
    pub num_saved_tokens: u32,
    /// Blocks that no other lease holds.
    pub num_gained_blocks: u32,
}

/// Sums since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moves {
    /// Snapshots given up.
    pub num_evictions: u64,
    /// Snapshots moved to host memory.
    pub num_swapped_out: u64,
    /// Snapshots brought back from host memory.
    pub num_swapped_in: u64,
}

/// Blocks, slots and prefixes.
#[derive(Debug)]
pub struct KvCacheManager {
    pub(crate) config: CacheConfig,
    pub(crate) policy: Policy,
    pub(crate) states: StatePool,
    /// Held by snapshots only.
    pub(crate) host_states: StatePool,
    pub(crate) prefix: PrefixCache,
    /// For the next plan.
    pub(crate) ops: Vec<StateOp>,
    pub(crate) moves: Moves,
}

impl KvCacheManager {
    /// All free.
    pub fn new(config: CacheConfig) -> Self {
        let policy = Policy {
            grace: u64::from(config.num_slots) / 32,
            min_half_life: f64::from(config.num_slots) / 4.0,
            ..Policy::default()
        };
        Self::with_policy(config, policy)
    }

    /// All free; `policy` says which snapshots stay.
    pub fn with_policy(config: CacheConfig, policy: Policy) -> Self {
        assert!(config.block_size > 0, "a block holds at least one token");
        assert!(
            config.num_blocks > 1,
            "block 0 is padding: one block is none"
        );
        assert!(config.num_slots > 1, "slot 0 is padding: one slot is none");
        // The books of host memory have padding that the memory has not.
        let (num_host_blocks, num_host_slots) =
            (config.num_host_blocks + 1, config.num_host_slots + 1);
        Self {
            states: StatePool::new(config.num_slots),
            host_states: StatePool::new(num_host_slots),
            prefix: PrefixCache::new(
                config.block_size,
                [config.num_blocks, num_host_blocks],
                [config.num_slots, num_host_slots],
            ),
            ops: Vec::new(),
            moves: Moves::default(),
            policy,
            config,
        }
    }

    /// How the cache is cut.
    pub fn config(&self) -> &CacheConfig {
        &self.config
    }

    /// Counts of blocks.
    pub fn blocks(&self) -> &BlockPool {
        &self.prefix.device.blocks
    }

    /// Counts of slots.
    pub fn states(&self) -> &StatePool {
        &self.states
    }

    /// Counts of blocks in host memory.
    pub fn host_blocks(&self) -> &BlockPool {
        &self.prefix.host.blocks
    }

    /// Counts of slots in host memory.
    pub fn host_states(&self) -> &StatePool {
        &self.host_states
    }

    /// Counts of what was evicted and moved.
    pub fn moves(&self) -> Moves {
        self.moves
    }

    /// Whether a slot is at hand that no live sequence and no row in flight holds.
    pub fn has_spare_slot(&self) -> bool {
        self.states.num_free() + self.states.num_snapshots() > 0
    }

    /// A slot, and blocks for all of `tokens`, the longest hit among them. `None` if slots or blocks
    /// are short, and nothing has changed then.
    ///
    /// ```text
    /// |--- hit: shared blocks ---|- copied tail -|----- new blocks -----|
    /// 0                    full blocks          hit                   tokens
    /// ```
    ///
    /// Of a hit in host memory, blocks are shared as far as the device has them, too; the others are
    /// brought back into new ones.
    pub fn reserve(&mut self, wanted: Reservation<'_>) -> Option<Start> {
        let Reservation {
            chain,
            tokens,
            max_hit,
            num_spare_blocks,
        } = wanted;
        assert!(
            max_hit < tokens.len(),
            "a hit leaves at least one token to run"
        );
        if !self.has_spare_slot() {
            return None;
        }
        let (hit, shared) = self.hold_hit(chain, tokens, max_hit);
        let (num_hit, num_pending) = hit.map_or((0, 0), |id| {
            let snapshot = self.prefix.get(id);
            (snapshot.len, snapshot.num_pending)
        });
        let num_shared = shared.len();
        let num_new = self.config.blocks_for(tokens.len() as u32) - num_shared as u32;
        if num_new + num_spare_blocks > self.num_available() {
            self.prefix.device.blocks.drop_lease(shared);
            return None;
        }
        let num_common = self.prefix.num_known(chain, tokens, max_hit) as u32;
        let miss = self
            .prefix
            .explain(chain, tokens, num_hit as usize, max_hit);

        // The hit is the youngest now, and even if it is evicted that does no harm: its state and its
        // tail stay as they are until the operations pushed here have read them. In host memory, where
        // evictions push operations that write, it is left alone.
        let source = hit.map(|id| {
            self.prefix.hit(id);
            let snapshot = self.prefix.get(id);
            (
                snapshot.tier,
                snapshot.slot,
                self.runs(snapshot.tier).list(snapshot.path, num_shared, 0),
            )
        });
        self.evict_for_slot(hit);
        let slot = self
            .states
            .take_live()
            .expect("a slot was spare or evicted above");
        let blocks = self.runs(Tier::Device).list(shared, 0, num_new as usize);
        let mut lease = Lease {
            table: BlockTable::new(blocks, shared),
            slot,
            num_pending,
        };
        self.append(&mut lease, num_new, hit);
        self.push_start(source, &lease, num_shared);
        let is_kept = !self.drop_yielded(hit);
        Some(Start {
            lease,
            num_hit,
            num_kept: if is_kept { num_hit } else { 0 },
            num_common: num_common * self.config.block_size,
            miss,
        })
    }

    /// How many blocks are missing for a reservation: 0 if it would be granted, slots aside.
    pub fn num_missing_blocks(&mut self, wanted: Reservation<'_>) -> u32 {
        let (chain, tokens) = (wanted.chain, wanted.tokens);
        let (_, shared) = self.hold_hit(chain, tokens, wanted.max_hit);
        let num_new = self.config.blocks_for(tokens.len() as u32) - shared.len() as u32;
        let num_available = self.num_available();
        self.prefix.device.blocks.drop_lease(shared);
        (num_new + wanted.num_spare_blocks).saturating_sub(num_available)
    }

    /// The longest hit, and its blocks on the device, which count as used from here on: evictions cannot
    /// take them.
    fn hold_hit(
        &mut self,
        chain: &mut HashChain,
        tokens: &[u32],
        max_hit: usize,
    ) -> (Option<SnapshotId>, Path) {
        let hit = self.prefix.longest(chain, tokens, max_hit);
        let shared = hit.map_or_else(Path::default, |id| self.shared_path(id, chain, tokens));
        self.prefix.device.blocks.add_lease(shared);
        (hit, shared)
    }

    /// Who yielded is back: nobody else is likely to go on from there. What is in it stays as it is until
    /// the operations pushed before have read it. Whether the hit was such a one.
    fn drop_yielded(&mut self, hit: Option<SnapshotId>) -> bool {
        let yielded = hit.filter(|&id| self.prefix.kind(id) == Some(SnapshotKind::Yielded));
        if let Some(id) = yielded {
            self.drop_snapshot(id);
        }
        yielded.is_some()
    }

    /// The movements that make a lease hold what `source` holds: a state, and the blocks behind those
    /// that are shared.
    fn push_start(
        &mut self,
        source: Option<(Tier, SlotId, Vec<BlockId>)>,
        lease: &Lease,
        num_shared: usize,
    ) {
        let slot = lease.slot;
        let Some((tier, from, blocks)) = source else {
            self.ops.push(StateOp::ZeroSlot(slot));
            return;
        };
        let pairs = blocks.into_iter().zip(&lease.blocks()[num_shared..]);
        match tier {
            Tier::Device => {
                if from != slot {
                    self.ops.push(StateOp::CopySlot { from, to: slot });
                }
                // At most one, the tail.
                let moved = pairs.filter(|&(from, &to)| from != to);
                self.ops
                    .extend(moved.map(|(from, &to)| StateOp::CopyBlock { from, to }));
            }
            Tier::Host => {
                self.moves.num_swapped_in += 1;
                self.ops.push(StateOp::HostToSlot {
                    from: from.into(),
                    to: slot,
                });
                let moved = pairs.map(|(from, &to)| StateOp::HostToBlock {
                    from: from.into(),
                    to,
                });
                self.ops.extend(moved);
            }
        }
    }

    /// The full blocks of a hit that are on the device.
    fn shared_path(&self, hit: SnapshotId, chain: &mut HashChain, tokens: &[u32]) -> Path {
        let snapshot = self.prefix.get(hit);
        let block_size = self.config.block_size as usize;
        let num_full = snapshot.len as usize / block_size;
        match snapshot.tier {
            Tier::Device => self.runs(Tier::Device).beginning(snapshot.path, num_full),
            Tier::Host => {
                let path = self.prefix.known_path(Tier::Device, num_full, |num| {
                    chain.at(tokens, num * block_size)
                });
                let tokens = &tokens[..path.len() * block_size];
                let is_same = self.prefix.device.holds(path, tokens, Path::default());
                if is_same { path } else { Path::default() }
            }
        }
    }

    /// Does ahead of time what `reserve` and `retire` need to know of a prefix and what nothing
    /// between now and then can change: its hashes, and whether the longest hit by now holds its
    /// tokens. No later answer differs for it. Reads about `max_tokens` tokens at most and returns how
    /// many it hashed.
    pub fn look_ahead(
        &self,
        chain: &mut HashChain,
        tokens: &[u32],
        max_hit: usize,
        max_tokens: usize,
    ) -> usize {
        let num_hashed = chain.extend(tokens, max_hit, max_tokens);
        if num_hashed < max_tokens {
            // The chain remembers that the tokens were compared; the slot is looked up again later.
            let _ = self.prefix.longest(chain, tokens, max_hit);
        }
        num_hashed
    }

    /// The length of the longest hit that a reservation would find now.
    pub fn longest_hit(&self, chain: &mut HashChain, tokens: &[u32], max_hit: usize) -> u32 {
        let hit = self.prefix.longest(chain, tokens, max_hit);
        hit.map_or(0, |id| self.prefix.get(id).len)
    }

    /// Extends a lease to hold `num_tokens` tokens; `false` if blocks are short, and nothing has
    /// changed then.
    pub fn extend(&mut self, lease: &mut Lease, num_tokens: u32) -> bool {
        let wanted = self.config.blocks_for(num_tokens);
        let num_new = wanted.saturating_sub(lease.table.len() as u32);
        if num_new > self.num_available() {
            return false;
        }
        self.append(lease, num_new, None);
        true
    }

    /// Gives back blocks beyond `num_tokens` tokens: room for guesses that nobody waits for any more.
    pub fn trim(&mut self, lease: &mut Lease, num_tokens: u32) {
        let num_kept = self.config.blocks_for(num_tokens) as usize;
        let spare = lease.table.truncate(num_kept);
        self.prefix.device.blocks.give_back(&spare);
    }

    /// Ends a lease whose sequence has computed exactly `tokens`: its slot becomes the snapshot.
    pub fn retire(
        &mut self,
        mut lease: Lease,
        chain: &mut HashChain,
        tokens: &[u32],
        kind: SnapshotKind,
    ) {
        if tokens.is_empty() || self.touch_existing(chain, tokens) {
            self.release(lease);
            return;
        }
        let (slot, num_pending) = (lease.slot, lease.num_pending);
        self.states.rename_to_snapshot(slot);
        self.publish(&mut lease.table, slot, chain, tokens, (kind, num_pending));
        self.give_back(&lease.table);
    }

    /// What it would mean that this lease ended.
    pub fn parting(&self, lease: &Lease) -> Parting {
        let (runs, path) = (self.runs(Tier::Device), lease.table.path());
        Parting {
            num_saved_tokens: runs.num_saved(path) * self.config.block_size,
            num_gained_blocks: runs.num_leased_alone(path) + lease.table.own().len() as u32,
        }
    }

    /// What it costs to move a state and the blocks of so many tokens to the host and back, in tokens
    /// computed; `None` if the host has no room for so much.
    pub fn cost_of_moving(&self, num_tokens: u32) -> Option<u32> {
        let CacheConfig {
            num_host_slots,
            num_host_blocks,
            block_size,
            ..
        } = self.config;
        let fits = num_host_slots > 0 && self.config.blocks_for(num_tokens) <= num_host_blocks;
        fits.then_some(self.policy.min_swap_blocks * block_size)
    }

    /// Ends a lease and publishes nothing.
    pub fn release(&mut self, lease: Lease) {
        let Lease { table, slot, .. } = lease;
        self.states.release_live(slot);
        self.give_back(&table);
    }

    /// Forgets every snapshot of a prefix of `tokens`: a computation that went through them ended
    /// badly, and nobody can say where it went bad.
    pub fn forget(&mut self, chain: &mut HashChain, tokens: &[u32]) {
        for id in self.prefix.all_prefixes(chain, tokens) {
            self.drop_snapshot(id);
        }
    }

    /// The movements of state since the last call, in order, for the next plan.
    pub fn take_ops(&mut self) -> Vec<StateOp> {
        std::mem::take(&mut self.ops)
    }

    /// Recounts everything from `leases` and from the slots that rows in flight write `saves` to, which
    /// must be all there are.
    pub fn check_invariants<'a>(
        &'a self,
        leases: impl Iterator<Item = &'a Lease> + Clone,
        saves: impl Iterator<Item = SlotId>,
    ) {
        let of_tier = |tier| {
            let all = self.prefix.snapshots().map(|(_, snapshot)| snapshot);
            all.filter(move |snapshot| snapshot.tier == tier)
        };
        let paths_of = |tier| of_tier(tier).map(|snapshot| snapshot.path);
        let slots_of = |tier| of_tier(tier).map(|snapshot| snapshot.slot);
        let held = |lease: &'a Lease| (lease.table.path(), lease.table.own());
        let device = &self.prefix.device.blocks;
        device.check(leases.clone().map(held), paths_of(Tier::Device));
        for lease in leases.clone() {
            let shared = device.runs.list(lease.table.path(), 0, 0);
            assert!(
                lease.blocks().starts_with(&shared),
                "a table begins with its path"
            );
        }
        self.states
            .check(leases.map(Lease::slot), saves, slots_of(Tier::Device));
        let none = || std::iter::empty();
        let host = &self.prefix.host.blocks;
        host.check(std::iter::empty(), paths_of(Tier::Host));
        self.check_worst();
        self.host_states.check(none(), none(), slots_of(Tier::Host));
        self.prefix.check();
    }

    /// Blocks that a lease could have: free ones, and those that eviction would free.
    fn num_available(&self) -> u32 {
        self.blocks().num_free() + self.blocks().num_cached()
    }

    fn append(&mut self, lease: &mut Lease, num_new: u32, spared: Option<SnapshotId>) {
        self.evict_for_blocks(num_new, spared);
        for _ in 0..num_new {
            let block = self
                .prefix
                .device
                .blocks
                .allocate()
                .expect("enough blocks are available or evicted");
            lease.table.append(block);
        }
    }

    pub(crate) fn publish(
        &mut self,
        table: &mut BlockTable,
        slot: SlotId,
        chain: &mut HashChain,
        tokens: &[u32],
        (kind, num_pending): (SnapshotKind, u32),
    ) {
        assert!(
            num_pending as usize <= tokens.len(),
            "what is pending is of its tokens"
        );
        let block_size = self.config.block_size as usize;
        let device = &mut self.prefix.device;
        let path = table.share(&mut device.blocks, tokens.len().div_ceil(block_size));
        device.blocks.add_snapshot(path);
        // Blocks recorded by an earlier snapshot, or taken over in a hit, need no second writing.
        let num_recorded = table.num_recorded().min(path.len());
        let unrecorded = tokens[(num_recorded * block_size).min(tokens.len())..].chunks(block_size);
        for (tokens, &block) in unrecorded.zip(&table.as_slice()[num_recorded..]) {
            device.record(block, tokens);
        }
        self.prefix
            .insert((kind, num_pending), slot, path, chain, tokens);
        table.set_recorded((tokens.len() / block_size).max(table.num_recorded()));
    }

    /// Finds a snapshot of exactly `tokens` on the device and counts that as a use. One in host memory
    /// makes way for the new one.
    pub(crate) fn touch_existing(&mut self, chain: &mut HashChain, tokens: &[u32]) -> bool {
        let Some(id) = self.prefix.exact(chain, tokens) else {
            return false;
        };
        match self.prefix.get(id).tier {
            Tier::Device => {
                self.prefix.touch(id);
                true
            }
            Tier::Host => {
                self.drop_snapshot(id);
                false
            }
        }
    }

    fn give_back(&mut self, table: &BlockTable) {
        let blocks = &mut self.prefix.device.blocks;
        blocks.give_back(table.own());
        blocks.drop_lease(table.path());
    }

    fn runs(&self, tier: Tier) -> &Runs {
        &self.prefix.paths(tier).blocks.runs
    }
}
