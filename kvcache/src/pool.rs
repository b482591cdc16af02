//! All blocks: free, used, cached.

use crate::block::BlockId;
use crate::runs::{Holder, Path, Runs};

/// All blocks, and who holds which. A lease may hold blocks behind its path that are its alone: room for
/// what is not computed yet.
#[derive(Debug)]
pub struct BlockPool {
    pub(crate) runs: Runs,
    num_blocks: u32,
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
            runs: Runs::default(),
            num_blocks,
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

    /// Takes a free block for one lease alone.
    pub(crate) fn allocate(&mut self) -> Option<BlockId> {
        let block = self.free.pop()?;
        self.num_used += 1;
        Some(block)
    }

    /// Takes back blocks that one lease had alone.
    pub(crate) fn give_back(&mut self, blocks: &[BlockId]) {
        self.num_used -= blocks.len() as u32;
        self.free.extend(blocks.iter().rev());
    }

    /// Blocks that one lease had alone become the end of its path, for others to hold.
    pub(crate) fn share(&mut self, path: Path, blocks: &[BlockId]) -> Path {
        let longer = self.runs.grow(path, blocks);
        let num_new = self.runs.hold(longer, Holder::Lease);
        assert_eq!(num_new as usize, blocks.len(), "a lease had the others");
        self.drop_lease(path);
        longer
    }

    /// One more lease holds `path`.
    pub(crate) fn add_lease(&mut self, path: Path) {
        let num_new = self.runs.hold(path, Holder::Lease);
        self.num_cached -= num_new;
        self.num_used += num_new;
    }

    /// One more snapshot holds `path`, which a lease must hold.
    pub(crate) fn add_snapshot(&mut self, path: Path) {
        assert!(
            self.runs.is_held(path, Holder::Lease),
            "only used blocks get into snapshots"
        );
        self.runs.hold(path, Holder::Snapshot);
    }

    /// One lease less.
    pub(crate) fn drop_lease(&mut self, path: Path) {
        let gone = self.runs.let_go(path, Holder::Lease);
        self.num_used -= gone.left.len() as u32;
        self.num_cached += (gone.left.len() - gone.freed.len()) as u32;
        self.free.extend(gone.freed);
    }

    /// One snapshot less; the blocks that no snapshot holds any more.
    pub(crate) fn drop_snapshot(&mut self, path: Path) -> Vec<BlockId> {
        let gone = self.runs.let_go(path, Holder::Snapshot);
        self.num_cached -= gone.freed.len() as u32;
        self.free.extend(gone.freed);
        gone.left
    }

    /// Recounts everything from those who hold blocks: leases with their own, and snapshots.
    pub(crate) fn check<'a>(
        &self,
        leases: impl Iterator<Item = (Path, &'a [BlockId])> + Clone,
        snapshots: impl Iterator<Item = Path>,
    ) {
        let of_leases = leases.clone().map(|(path, _)| (path, Holder::Lease));
        let of_snapshots = snapshots.map(|path| (path, Holder::Snapshot));
        let in_runs = self.runs.check(of_leases.chain(of_snapshots));
        let own = leases.flat_map(|(_, blocks)| blocks).copied();
        let used = in_runs.iter().filter(|(_, is_leased)| *is_leased);
        let mut all: Vec<BlockId> = own.collect();
        let num_used = all.len() + used.count();
        assert_eq!(
            (self.num_used as usize, self.num_cached as usize),
            (num_used, all.len() + in_runs.len() - num_used),
            "block counts"
        );
        all.extend(in_runs.into_iter().map(|(block, _)| block));
        all.extend(&self.free);
        all.sort_unstable();
        assert!(
            all.into_iter().eq((1..self.num_blocks).map(BlockId)),
            "a block has one place: in a run, in a lease, or free; and block 0 none"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(pool: &BlockPool) -> (u32, u32, u32) {
        (pool.num_free(), pool.num_used(), pool.num_cached())
    }

    fn allocate(pool: &mut BlockPool, num_blocks: u32) -> Vec<BlockId> {
        (0..num_blocks).map(|_| pool.allocate().unwrap()).collect()
    }

    fn ids<const N: usize>(ids: [u32; N]) -> Vec<BlockId> {
        ids.map(BlockId).to_vec()
    }

    #[test]
    fn a_block_is_free_used_or_cached() {
        let mut pool = BlockPool::new(5);
        assert_eq!(counts(&pool), (4, 0, 0));
        let own = allocate(&mut pool, 3);
        assert_eq!(own, ids([1, 2, 3]));
        let path = pool.share(Path::default(), &own[..2]);
        assert_eq!(counts(&pool), (1, 3, 0));
        pool.give_back(&own[2..]);
        pool.add_snapshot(path);
        pool.add_lease(path);
        assert_eq!(counts(&pool), (2, 2, 0));
        pool.drop_lease(path);
        assert_eq!(counts(&pool), (2, 2, 0));
        pool.drop_lease(path);
        assert_eq!(counts(&pool), (2, 0, 2));
        pool.add_lease(pool.runs.beginning(path, 1));
        assert_eq!(counts(&pool), (2, 1, 1));
        assert_eq!(pool.drop_snapshot(path), ids([2, 1]));
        assert_eq!(counts(&pool), (3, 1, 0), "the lease holds its beginning");
    }

    #[test]
    fn the_last_snapshot_frees() {
        let mut pool = BlockPool::new(4);
        let own = allocate(&mut pool, 2);
        let path = pool.share(Path::default(), &own);
        pool.add_snapshot(path);
        pool.add_snapshot(path);
        pool.drop_lease(path);
        assert_eq!(pool.drop_snapshot(path), []);
        assert_eq!(counts(&pool), (1, 0, 2));
        assert_eq!(pool.drop_snapshot(path), ids([2, 1]));
        assert_eq!(counts(&pool), (3, 0, 0));
        assert_eq!(
            pool.allocate(),
            Some(BlockId(1)),
            "just freed, first reused"
        );
        pool.check(
            [(Path::default(), &ids([1])[..])].into_iter(),
            [].into_iter(),
        );
    }

    #[test]
    fn running_out_is_an_answer() {
        let mut pool = BlockPool::new(3);
        assert_eq!(allocate(&mut pool, 2), ids([1, 2]));
        assert_eq!(pool.allocate(), None);
        pool.give_back(&ids([1]));
        assert_eq!(pool.allocate(), Some(BlockId(1)));
    }

    /// A pool of seven: a lease with blocks 1, 2 and, its alone, 3; snapshots of 1 and of 1, 4, 5.
    fn sample() -> (BlockPool, [Path; 3]) {
        let mut pool = BlockPool::new(7);
        let own = allocate(&mut pool, 5);
        let root = pool.share(Path::default(), &own[..1]);
        pool.add_snapshot(root);
        pool.add_lease(root);
        let saved = pool.share(root, &own[3..]);
        pool.add_snapshot(saved);
        pool.drop_lease(saved);
        let leased = pool.share(root, &own[1..2]);
        (pool, [leased, root, saved])
    }

    fn check((pool, [leased, root, saved]): &(BlockPool, [Path; 3])) {
        let own = ids([3]);
        pool.check(
            [(*leased, &own[..])].into_iter(),
            [*root, *saved].into_iter(),
        );
    }

    #[test]
    fn the_check_passes_what_is_right() {
        let sample = sample();
        assert_eq!(counts(&sample.0), (1, 3, 2));
        check(&sample);
    }

    #[test]
    #[should_panic(expected = "who ends in a run")]
    fn the_check_finds_a_wrong_count() {
        let mut sample = sample();
        sample.0.runs.hold(sample.1[2], Holder::Snapshot);
        check(&sample);
    }

    #[test]
    #[should_panic(expected = "block counts")]
    fn the_check_finds_a_wrong_sum() {
        let mut sample = sample();
        sample.0.num_cached = 3;
        check(&sample);
    }

    #[test]
    #[should_panic(expected = "one place")]
    fn the_check_finds_a_block_freed_twice() {
        let mut sample = sample();
        sample.0.free.push(BlockId(3));
        check(&sample);
    }

    #[test]
    #[should_panic(expected = "one place")]
    fn the_check_finds_padding_in_use() {
        let mut sample = sample();
        sample.0.free[0] = BlockId(0);
        check(&sample);
    }

    #[test]
    #[should_panic(expected = "only used blocks")]
    fn what_nobody_uses_cannot_be_saved() {
        let (mut pool, [_, _, saved]) = sample();
        pool.add_snapshot(saved);
    }

    #[test]
    #[should_panic(expected = "ends there")]
    fn a_lease_cannot_be_dropped_twice() {
        let (mut pool, [leased, ..]) = sample();
        pool.add_lease(leased);
        for _ in 0..3 {
            pool.drop_lease(leased);
        }
    }
}
