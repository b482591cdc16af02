//! The blocks of one sequence.

use crate::block::BlockId;

/// Block ids holding one sequence's attention KV, in order. What holds tokens is never taken out
/// again: what a snapshot shares of it stays true while the sequence runs on.
#[derive(Debug, Default)]
pub struct BlockTable {
    blocks: Vec<BlockId>,
    /// The tokens of this many leading blocks are recorded in the prefix cache.
    num_recorded: usize,
}

impl BlockTable {
    /// The first `num_recorded` of `blocks` are shared with a snapshot and full.
    pub(crate) fn new(blocks: Vec<BlockId>, num_recorded: usize) -> Self {
        assert!(
            num_recorded <= blocks.len(),
            "cannot record blocks that are not there"
        );
        Self {
            blocks,
            num_recorded,
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

    pub(crate) fn append(&mut self, block: BlockId) {
        self.blocks.push(block);
    }

    /// Takes out and returns what lies behind the first `num_blocks`.
    pub(crate) fn truncate(&mut self, num_blocks: usize) -> Vec<BlockId> {
        assert!(
            self.num_recorded <= num_blocks,
            "recorded blocks hold tokens"
        );
        self.blocks.split_off(num_blocks.min(self.blocks.len()))
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
    fn appends_in_order() {
        let mut table = BlockTable::new(vec![BlockId(3)], 1);
        assert!(!table.is_empty() && BlockTable::default().is_empty());
        table.append(BlockId(1));
        assert_eq!(table.as_slice(), [BlockId(3), BlockId(1)]);
        assert_eq!((table.len(), table.num_recorded()), (2, 1));
        table.set_recorded(2);
        assert_eq!(table.num_recorded(), 2);
    }

    #[test]
    fn gives_back_from_its_end() {
        let mut table = BlockTable::new(vec![BlockId(3), BlockId(1), BlockId(4)], 1);
        assert_eq!(table.truncate(7), []);
        assert_eq!(table.truncate(1), [BlockId(1), BlockId(4)]);
        assert_eq!(table.as_slice(), [BlockId(3)]);
    }

    #[test]
    #[should_panic(expected = "hold tokens")]
    fn keeps_what_is_recorded() {
        BlockTable::new(vec![BlockId(3)], 1).truncate(0);
    }

    #[test]
    #[should_panic(expected = "not there")]
    fn records_only_what_it_has() {
        BlockTable::default().set_recorded(1);
    }

    #[test]
    #[should_panic(expected = "not there")]
    fn starts_with_what_it_has() {
        BlockTable::new(vec![], 1);
    }
}
