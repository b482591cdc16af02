//! The blocks of one sequence.

use crate::block::BlockId;
use crate::pool::BlockPool;
use crate::runs::Path;

/// Block ids holding one sequence's attention KV, in order. What holds tokens is never taken out
/// again: what a snapshot shares of it stays true while the sequence runs on.
#[derive(Debug, Default)]
pub struct BlockTable {
    blocks: Vec<BlockId>,
    /// The first of them, as far as they are or may be shared. What is behind is this sequence's alone.
    path: Path,
    /// The tokens of this many leading blocks are recorded in the prefix cache.
    num_recorded: usize,
}

impl BlockTable {
    /// `blocks` are those of `path`, shared with a snapshot and full.
    pub(crate) fn new(blocks: Vec<BlockId>, path: Path) -> Self {
        assert_eq!(blocks.len(), path.len(), "blocks are those of their path");
        Self {
            num_recorded: blocks.len(),
            blocks,
            path,
        }
    }

    /// All blocks, in order.
    pub fn as_slice(&self) -> &[BlockId] {
        &self.blocks
    }

    /// Number of blocks.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// The blocks that are or may be shared.
    pub(crate) fn path(&self) -> Path {
        self.path
    }

    /// Blocks behind them.
    pub(crate) fn own(&self) -> &[BlockId] {
        &self.blocks[self.path.len()..]
    }

    pub(crate) fn append(&mut self, block: BlockId) {
        self.blocks.push(block);
    }

    /// Takes out and returns what lies behind the first `num_blocks`.
    pub(crate) fn truncate(&mut self, num_blocks: usize) -> Vec<BlockId> {
        assert!(
            self.num_recorded.max(self.path.len()) <= num_blocks,
            "recorded blocks hold tokens"
        );
        self.blocks.split_off(num_blocks.min(self.blocks.len()))
    }

    /// Lets others hold the first `num_blocks`; their path.
    pub(crate) fn share(&mut self, pool: &mut BlockPool, num_blocks: usize) -> Path {
        if num_blocks > self.path.len() {
            self.path = pool.share(self.path, &self.blocks[self.path.len()..num_blocks]);
        }
        pool.runs.beginning(self.path, num_blocks)
    }

    pub(crate) fn num_recorded(&self) -> usize {
        self.num_recorded
    }

    pub(crate) fn set_recorded(&mut self, num_blocks: usize) {
        assert!(
            num_blocks <= self.blocks.len(),
            "cannot record blocks that are not there"
        );
        self.num_recorded = num_blocks;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_what_it_is_told_and_keeps_the_rest() {
        let mut pool = BlockPool::new(9);
        let mut table = BlockTable::default();
        assert!(table.is_empty());
        for _ in 0..3 {
            table.append(pool.allocate().unwrap());
        }
        let two = table.share(&mut pool, 2);
        assert_eq!((two, table.path(), table.len()), (two, two, 3));
        assert_eq!(table.own(), [BlockId(3)]);
        let one = table.share(&mut pool, 1);
        assert_eq!(
            (one.len(), table.path()),
            (1, two),
            "a part of it is its path"
        );
        table.set_recorded(2);
        assert_eq!(table.num_recorded(), 2);
        assert_eq!(table.as_slice(), [1, 2, 3].map(BlockId));
    }

    #[test]
    fn gives_back_from_its_end() {
        let mut table = BlockTable::default();
        for id in [3, 1, 4] {
            table.append(BlockId(id));
        }
        assert_eq!(table.truncate(7), []);
        assert_eq!(table.truncate(1), [BlockId(1), BlockId(4)]);
        assert_eq!(table.as_slice(), [BlockId(3)]);
    }

    #[test]
    #[should_panic(expected = "hold tokens")]
    fn keeps_what_is_recorded() {
        let mut table = BlockTable::default();
        table.append(BlockId(3));
        table.set_recorded(1);
        table.truncate(0);
    }

    #[test]
    #[should_panic(expected = "hold tokens")]
    fn keeps_what_is_shared() {
        let mut pool = BlockPool::new(9);
        let mut table = BlockTable::default();
        table.append(pool.allocate().unwrap());
        table.share(&mut pool, 1);
        table.truncate(0);
    }

    #[test]
    #[should_panic(expected = "not there")]
    fn records_only_what_it_has() {
        BlockTable::default().set_recorded(1);
    }

    #[test]
    #[should_panic(expected = "those of their path")]
    fn starts_with_what_it_has() {
        BlockTable::new(vec![BlockId(1)], Path::default());
    }
}
