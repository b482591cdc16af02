//! All blocks: free, used, cached.

use crate::block::BlockId;

/// Who holds a block. Counts, not names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Holders {
    leases: u32,
    snapshots: u32,
}

/// All blocks and how often each is held.
#[derive(Debug)]
pub struct BlockPool {
    holders: Vec<Holders>,
    /// The next block to hand out is the last. Just freed is first reused: it is still in the
    /// processor's caches, and a forgotten reference to it shows at once.
    free: Vec<BlockId>,
    num_used: u32,
    num_cached: u32,
}

impl BlockPool {
    /// `num_blocks` free ones, block 0 apart.
    pub fn new(num_blocks: u32) -> Self {
        Self {
            holders: vec![Holders::default(); num_blocks as usize],
            free: (1..num_blocks).rev().map(BlockId).collect(),
            num_used: 0,
            num_cached: 0,
        }
    }

    /// Blocks that nobody holds.
    pub fn num_free(&self) -> u32 {
        self.free.len() as u32
    }

    /// Blocks held by at least one lease.
    pub fn num_used(&self) -> u32 {
        self.num_used
    }

    /// Blocks held by snapshots only.
    pub fn num_cached(&self) -> u32 {
        self.num_cached
    }

    /// Whether a lease holds `block`.
    pub fn is_used(&self, block: BlockId) -> bool {
        self.holders[block.index()].leases > 0
    }

    /// Takes a free block for a lease.
    pub(crate) fn allocate(&mut self) -> Option<BlockId> {
        let block = self.free.pop()?;
        let holders = &mut self.holders[block.index()];
        assert_eq!(*holders, Holders::default(), "{block:?} was free, yet held");
        holders.leases = 1;
        self.num_used += 1;
        Some(block)
    }

    /// One more lease holds `block`, which must be held already.
    pub(crate) fn add_lease(&mut self, block: BlockId) {
        let holders = &mut self.holders[block.index()];
        assert!(
            holders.leases + holders.snapshots > 0,
            "{block:?} is free and cannot be shared"
        );
        if holders.leases == 0 {
            self.num_cached -= 1;
            self.num_used += 1;
        }
        holders.leases += 1;
    }

    /// One more snapshot holds `block`, which a lease must hold.
    pub(crate) fn add_snapshot(&mut self, block: BlockId) {
        let holders = &mut self.holders[block.index()];
        assert!(
            holders.leases > 0,
            "only used blocks get into snapshots, {block:?} is not"
        );
        holders.snapshots += 1;
    }

    /// One lease less.
    pub(crate) fn drop_lease(&mut self, block: BlockId) {
        let holders = &mut self.holders[block.index()];
        assert!(holders.leases > 0, "no lease holds {block:?}");
        holders.leases -= 1;
        if holders.leases > 0 {
            return;
        }
        self.num_used -= 1;
        if holders.snapshots > 0 {
            self.num_cached += 1;
        } else {
            self.free.push(block);
        }
    }

    /// How many snapshots hold `block`.
    pub(crate) fn num_snapshots(&self, block: BlockId) -> u32 {
        self.holders[block.index()].snapshots
    }

    /// One snapshot less; whether it was the last.
    pub(crate) fn drop_snapshot(&mut self, block: BlockId) -> bool {
        let holders = &mut self.holders[block.index()];
        assert!(holders.snapshots > 0, "no snapshot holds {block:?}");
        holders.snapshots -= 1;
        if holders.leases == 0 && holders.snapshots == 0 {
            self.num_cached -= 1;
            self.free.push(block);
        }
        holders.snapshots == 0
    }

    /// Recounts everything from the lists of those who hold blocks.
    pub(crate) fn check<'a>(
        &self,
        leases: impl Iterator<Item = &'a [BlockId]>,
        snapshots: impl Iterator<Item = &'a [BlockId]>,
    ) {
        let mut expect = vec![Holders::default(); self.holders.len()];
        for block in leases.flatten() {
            expect[block.index()].leases += 1;
        }
        for block in snapshots.flatten() {
            expect[block.index()].snapshots += 1;
        }
        assert_eq!(self.holders, expect, "reference counts of blocks");
        assert_eq!(expect[0], Holders::default(), "block 0 is nobody's");

        let used = expect.iter().filter(|h| h.leases > 0).count();
        let cached = expect
            .iter()
            .filter(|h| h.leases == 0 && h.snapshots > 0)
            .count();
        assert_eq!(
            (self.num_used, self.num_cached),
            (used as u32, cached as u32),
            "block counts"
        );

        let mut free = self.free.clone();
        free.sort_unstable();
        let unheld: Vec<BlockId> = (1..expect.len())
            .filter(|&i| expect[i] == Holders::default())
            .map(|i| BlockId(i as u32))
            .collect();
        assert_eq!(
            free, unheld,
            "free blocks are those that nobody holds, once each"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(pool: &BlockPool) -> (u32, u32, u32) {
        (pool.num_free(), pool.num_used(), pool.num_cached())
    }

    #[test]
    fn a_block_is_free_used_or_cached() {
        let mut pool = BlockPool::new(4);
        assert_eq!(counts(&pool), (3, 0, 0));
        let block = pool.allocate().unwrap();
        assert_eq!(block, BlockId(1));
        assert!(pool.is_used(block) && !pool.is_used(BlockId(2)));
        pool.add_snapshot(block);
        pool.add_lease(block);
        assert_eq!(counts(&pool), (2, 1, 0));
        pool.drop_lease(block);
        assert_eq!(counts(&pool), (2, 1, 0));
        pool.drop_lease(block);
        assert_eq!(counts(&pool), (2, 0, 1));
        pool.add_lease(block);
        assert_eq!(counts(&pool), (2, 1, 0));
        pool.drop_snapshot(block);
        assert_eq!(counts(&pool), (2, 1, 0));
        pool.drop_lease(block);
        assert_eq!(counts(&pool), (3, 0, 0));
    }

    #[test]
    fn the_last_snapshot_frees() {
        let mut pool = BlockPool::new(4);
        let block = pool.allocate().unwrap();
        pool.add_snapshot(block);
        pool.add_snapshot(block);
        pool.drop_lease(block);
        pool.drop_snapshot(block);
        assert_eq!(counts(&pool), (2, 0, 1));
        pool.drop_snapshot(block);
        assert_eq!(counts(&pool), (3, 0, 0));
        pool.check([].into_iter(), [].into_iter());
    }

    #[test]
    fn running_out_is_an_answer() {
        let mut pool = BlockPool::new(3);
        assert_eq!(pool.allocate(), Some(BlockId(1)));
        assert_eq!(pool.allocate(), Some(BlockId(2)));
        assert_eq!(pool.allocate(), None);
        pool.drop_lease(BlockId(1));
        assert_eq!(pool.allocate(), Some(BlockId(1)));
    }

    /// A pool of four with block 1 used once and in two snapshots, block 2 cached.
    fn sample() -> BlockPool {
        let mut pool = BlockPool::new(4);
        for _ in 0..2 {
            let block = pool.allocate().unwrap();
            pool.add_snapshot(block);
        }
        pool.add_snapshot(BlockId(1));
        pool.drop_lease(BlockId(2));
        pool
    }

    fn check(pool: &BlockPool) {
        let snapshots: [&[BlockId]; 2] = [&[BlockId(1), BlockId(2)], &[BlockId(1)]];
        pool.check([&[BlockId(1)][..]].into_iter(), snapshots.into_iter());
    }

    #[test]
    fn the_check_passes_what_is_right() {
        check(&sample());
    }

    #[test]
    #[should_panic(expected = "reference counts")]
    fn the_check_finds_a_wrong_count() {
        let mut pool = sample();
        pool.holders[2].snapshots = 2;
        check(&pool);
    }

    #[test]
    #[should_panic(expected = "block counts")]
    fn the_check_finds_a_wrong_sum() {
        let mut pool = sample();
        pool.num_cached = 2;
        check(&pool);
    }

    #[test]
    #[should_panic(expected = "once each")]
    fn the_check_finds_a_block_freed_twice() {
        let mut pool = sample();
        pool.free.push(BlockId(3));
        check(&pool);
    }

    #[test]
    #[should_panic(expected = "nobody's")]
    fn the_check_finds_padding_in_use() {
        let mut pool = BlockPool::new(2);
        pool.holders[0].leases = 1;
        pool.check([&[BlockId(0)][..]].into_iter(), [].into_iter());
    }

    #[test]
    #[should_panic(expected = "cannot be shared")]
    fn a_free_block_cannot_be_shared() {
        BlockPool::new(2).add_lease(BlockId(1));
    }

    #[test]
    #[should_panic(expected = "only used blocks")]
    fn a_free_block_cannot_be_saved() {
        BlockPool::new(2).add_snapshot(BlockId(1));
    }

    #[test]
    #[should_panic(expected = "no lease holds")]
    fn a_block_cannot_be_freed_twice() {
        let mut pool = BlockPool::new(2);
        let block = pool.allocate().unwrap();
        pool.drop_lease(block);
        pool.drop_lease(block);
    }

    #[test]
    #[should_panic(expected = "no snapshot holds")]
    fn a_snapshot_cannot_be_dropped_twice() {
        let mut pool = BlockPool::new(2);
        let block = pool.allocate().unwrap();
        pool.drop_snapshot(block);
    }
}
