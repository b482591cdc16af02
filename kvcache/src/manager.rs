//! The one door to blocks, slots and prefixes: reserve, publish, release; all or nothing.

use std::sync::Arc;

use crate::block::{BlockId, SlotId};
use crate::hash::HashChain;
use crate::pool::BlockPool;
use crate::prefix::{PrefixCache, Snapshot};
use crate::spec::CacheConfig;
use crate::state::{StateOp, StatePool};
use crate::table::BlockTable;

/// What a live sequence holds. Ends in `retire` or `release`, never in a drop.
#[derive(Debug)]
#[must_use]
pub struct Lease {
    table: BlockTable,
    slot: SlotId,
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

/// Blocks, slots and prefixes.
#[derive(Debug)]
pub struct KvCacheManager {
    config: CacheConfig,
    blocks: BlockPool,
    states: StatePool,
    prefix: PrefixCache,
    /// For the next plan.
    ops: Vec<StateOp>,
}

impl KvCacheManager {
    /// All free.
    pub fn new(config: CacheConfig) -> Self {
        assert!(config.block_size > 0, "a block holds at least one token");
        assert!(
            config.num_blocks > 1,
            "block 0 is padding: one block is none"
        );
        assert!(config.num_slots > 1, "slot 0 is padding: one slot is none");
        Self {
            blocks: BlockPool::new(config.num_blocks),
            states: StatePool::new(config.num_slots),
            prefix: PrefixCache::new(config.block_size, config.num_blocks),
            ops: Vec::new(),
            config,
        }
    }

    /// How the cache is cut.
    pub fn config(&self) -> &CacheConfig {
        &self.config
    }

    /// Counts of blocks.
    pub fn blocks(&self) -> &BlockPool {
        &self.blocks
    }

    /// Counts of slots.
    pub fn states(&self) -> &StatePool {
        &self.states
    }

    /// Whether a slot is at hand that no live sequence holds.
    pub fn has_spare_slot(&self) -> bool {
        self.states.num_free() + self.states.num_snapshots() > 0
    }

    /// A slot, and blocks for all of `tokens`, the longest hit among them. Returns the lease and the
    /// length of the hit; `None` if slots or blocks are short, and nothing has changed then.
    ///
    /// ```text
    /// |--- hit: shared blocks ---|- copied tail -|----- new blocks -----|
    /// 0                    full blocks          hit                   tokens
    /// ```
    pub fn reserve(&mut self, wanted: Reservation<'_>) -> Option<(Lease, u32)> {
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
        let hit = self.prefix.prefixes_of(chain, tokens, max_hit).next();
        let (num_hit, num_pending, mut shared) = match hit {
            Some(slot) => {
                let snapshot = self.prefix.get(slot);
                (snapshot.len, snapshot.num_pending, snapshot.blocks.clone())
            }
            None => (0, 0, Vec::new()),
        };
        let num_full = (num_hit / self.config.block_size) as usize;
        let tail = shared.get(num_full).copied();
        shared.truncate(num_full);

        // Shared blocks count as used from here on: evictions below cannot take them.
        for &block in &shared {
            self.blocks.add_lease(block);
        }
        let num_new = self.config.blocks_for(tokens.len() as u32) - num_full as u32;
        if num_new + num_spare_blocks > self.num_available() {
            self.drop_leases(&shared);
            return None;
        }

        // The hit is the youngest now, hence evicted last, and even that does no harm: its state
        // and its tail stay as they are until the operations pushed here have read them.
        if let Some(slot) = hit {
            self.prefix.touch(slot);
        }
        self.evict_for_slot();
        let slot = self
            .states
            .take_live()
            .expect("a slot was spare or evicted above");
        let mut lease = Lease {
            table: BlockTable::new(shared, num_full),
            slot,
            num_pending,
        };
        self.append(&mut lease, num_new);

        match hit {
            Some(from) if from != slot => self.ops.push(StateOp::CopySlot { from, to: slot }),
            Some(_) => {}
            None => self.ops.push(StateOp::ZeroSlot(slot)),
        }
        if let Some(from) = tail {
            let to = lease.blocks()[num_full];
            if from != to {
                self.ops.push(StateOp::CopyBlock { from, to });
            }
        }
        Some((lease, num_hit))
    }

    /// Does ahead of time what `reserve` and `save` need to know of a prefix and what nothing between
    /// now and then can change: its hashes, and whether the longest hit by now holds its tokens. No
    /// later answer differs for it. Reads about `max_tokens` tokens at most and returns how many it
    /// hashed.
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
            let _ = self.prefix.prefixes_of(chain, tokens, max_hit).next();
        }
        num_hashed
    }

    /// Extends a lease to hold `num_tokens` tokens; `false` if blocks are short, and nothing has
    /// changed then.
    pub fn extend(&mut self, lease: &mut Lease, num_tokens: u32) -> bool {
        let wanted = self.config.blocks_for(num_tokens);
        let num_new = wanted.saturating_sub(lease.table.len() as u32);
        if num_new > self.num_available() {
            return false;
        }
        self.append(lease, num_new);
        true
    }

    /// Gives back blocks beyond `num_tokens` tokens: room for guesses that nobody waits for any more.
    pub fn trim(&mut self, lease: &mut Lease, num_tokens: u32) {
        let num_kept = self.config.blocks_for(num_tokens) as usize;
        let spare = lease.table.truncate(num_kept);
        self.drop_leases(&spare);
    }

    /// Publishes the state of a running sequence, which has computed exactly `tokens`. The copy is an
    /// operation of the next plan. Returns whether such a snapshot exists now.
    pub fn save(&mut self, lease: &mut Lease, chain: &mut HashChain, tokens: &[u32]) -> bool {
        if self.touch_existing(chain, tokens) {
            return true;
        }
        if !self.has_spare_slot() {
            return false;
        }
        self.evict_for_slot();
        let to = self
            .states
            .take_snapshot()
            .expect("a slot was spare or evicted above");
        self.publish(lease, to, chain, tokens);
        self.ops.push(StateOp::CopySlot {
            from: lease.slot,
            to,
        });
        true
    }

    /// Ends a lease whose sequence has computed exactly `tokens`: its slot becomes the snapshot.
    pub fn retire(&mut self, mut lease: Lease, chain: &mut HashChain, tokens: &[u32]) {
        if tokens.is_empty() || self.touch_existing(chain, tokens) {
            self.release(lease);
            return;
        }
        let slot = lease.slot;
        self.states.rename_to_snapshot(slot);
        self.publish(&mut lease, slot, chain, tokens);
        self.drop_leases(lease.table.as_slice());
    }

    /// Ends a lease and publishes nothing.
    pub fn release(&mut self, lease: Lease) {
        let Lease { table, slot, .. } = lease;
        self.states.release_live(slot);
        self.drop_leases(table.as_slice());
    }

    /// Forgets every snapshot of a prefix of `tokens`: a computation that went through them ended
    /// badly, and nobody can say where it went bad.
    pub fn forget(&mut self, chain: &mut HashChain, tokens: &[u32]) {
        let suspects: Vec<SlotId> = self
            .prefix
            .prefixes_of(chain, tokens, tokens.len())
            .collect();
        for slot in suspects {
            self.evict(slot);
        }
    }

    /// The movements of state since the last call, in order, for the next plan.
    pub fn take_ops(&mut self) -> Vec<StateOp> {
        std::mem::take(&mut self.ops)
    }

    /// Recounts everything from `leases`, which must be all there are.
    pub fn check_invariants<'a>(&'a self, leases: impl Iterator<Item = &'a Lease> + Clone) {
        let snapshots = || self.prefix.snapshots();
        self.blocks.check(
            leases.clone().map(Lease::blocks),
            snapshots().map(|(_, snapshot)| snapshot.blocks.as_slice()),
        );
        self.states
            .check(leases.map(Lease::slot), snapshots().map(|(slot, _)| slot));
        self.prefix.check();
    }

    /// Blocks that a lease could have: free ones, and those that eviction would free.
    fn num_available(&self) -> u32 {
        self.blocks.num_free() + self.blocks.num_cached()
    }

    fn append(&mut self, lease: &mut Lease, num_new: u32) {
        self.evict_for_blocks(num_new);
        for _ in 0..num_new {
            let block = self
                .blocks
                .allocate()
                .expect("enough blocks are available or evicted");
            lease.table.append(block);
        }
    }

    fn publish(&mut self, lease: &mut Lease, slot: SlotId, chain: &mut HashChain, tokens: &[u32]) {
        let block_size = self.config.block_size as usize;
        let num_pending = lease.num_pending;
        assert!(
            num_pending as usize <= tokens.len(),
            "what is pending is of its tokens"
        );
        let table = &mut lease.table;
        let blocks = &table.as_slice()[..tokens.len().div_ceil(block_size)];
        for &block in blocks {
            self.blocks.add_snapshot(block);
        }
        // Blocks recorded by an earlier snapshot, or taken over in a hit, need no second writing.
        let num_recorded = table.num_recorded();
        let unrecorded = tokens.chunks(block_size).zip(blocks).skip(num_recorded);
        for (tokens, &block) in unrecorded {
            self.prefix.record(block, tokens);
        }
        let snapshot = Snapshot {
            len: tokens.len() as u32,
            num_pending,
            hash: chain.at(tokens, tokens.len()),
            salt: Arc::clone(chain.salt()),
            blocks: blocks.to_vec(),
        };
        self.prefix.insert(slot, snapshot);
        table.set_recorded(tokens.len() / block_size);
    }

    /// Finds a snapshot of exactly `tokens` and counts that as a use.
    fn touch_existing(&mut self, chain: &mut HashChain, tokens: &[u32]) -> bool {
        let longest = self.prefix.prefixes_of(chain, tokens, tokens.len()).next();
        let Some(slot) = longest.filter(|&slot| self.prefix.get(slot).len as usize == tokens.len())
        else {
            return false;
        };
        self.prefix.touch(slot);
        true
    }

    fn evict_for_slot(&mut self) {
        if self.states.num_free() == 0 {
            let slot = self
                .prefix
                .oldest_first()
                .next()
                .expect("a snapshot holds a spare slot");
            self.evict(slot);
        }
    }

    fn evict_for_blocks(&mut self, num_blocks: u32) {
        while self.blocks.num_free() < num_blocks {
            let slot = self
                .oldest_with_cached_block()
                .expect("cached blocks have a snapshot");
            self.evict(slot);
        }
    }

    /// A snapshot whose last block is used has used blocks only (invariant 4): evicting it would
    /// free nothing.
    fn oldest_with_cached_block(&self) -> Option<SlotId> {
        self.prefix.oldest_first().find(|&slot| {
            let blocks = &self.prefix.get(slot).blocks;
            !self
                .blocks
                .is_used(*blocks.last().expect("a snapshot covers at least one token"))
        })
    }

    fn evict(&mut self, slot: SlotId) {
        let snapshot = self.prefix.remove(slot);
        self.states.release_snapshot(slot);
        for &block in snapshot.blocks.iter().rev() {
            self.blocks.drop_snapshot(block);
        }
    }

    fn drop_leases(&mut self, blocks: &[BlockId]) {
        for &block in blocks.iter().rev() {
            self.blocks.drop_lease(block);
        }
    }
}
