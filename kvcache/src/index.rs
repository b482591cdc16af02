//! Snapshots by what they hold.

use std::collections::{BTreeMap, HashMap};

use crate::hash::{AsIs, BlockHash};
use crate::prefix::SnapshotId;

/// Snapshots by the hash of their full blocks, and the lengths that there are: looking for the longest
/// beginning of a prompt asks once for each length, in blocks, that any snapshot has.
#[derive(Debug, Default)]
pub(crate) struct Index {
    /// How many there are of so many full blocks.
    num_by_blocks: BTreeMap<u32, u32>,
    /// Ascending. Looked up, never walked.
    by_key: HashMap<u64, Vec<(u32, SnapshotId)>, AsIs>,
}

/// Where a snapshot stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) key: BlockHash,
    /// Full blocks.
    pub(crate) num_blocks: u32,
    /// Tokens.
    pub(crate) len: u32,
}

impl Index {
    pub(crate) fn insert(&mut self, place: Place, id: SnapshotId) {
        *self.num_by_blocks.entry(place.num_blocks).or_default() += 1;
        let bucket = self.by_key.entry(place.key.0).or_default();
        let index = bucket.partition_point(|other| *other < (place.len, id));
        bucket.insert(index, (place.len, id));
    }

    pub(crate) fn remove(&mut self, place: Place, id: SnapshotId) {
        let num = self.num_by_blocks.get_mut(&place.num_blocks);
        let num = num.expect("it was counted");
        *num -= 1;
        if *num == 0 {
            self.num_by_blocks.remove(&place.num_blocks);
        }
        let bucket = self.by_key.get_mut(&place.key.0).expect("it is there");
        bucket.retain(|other| *other != (place.len, id));
        if bucket.is_empty() {
            self.by_key.remove(&place.key.0);
        }
    }

    /// Numbers of full blocks that there are, from the second down to the first.
    pub(crate) fn lengths(&self, (min, max): (u32, u32)) -> impl Iterator<Item = u32> {
        // A range must not end before it begins.
        let lengths = (min <= max).then(|| self.num_by_blocks.range(min..=max));
        let lengths = lengths.into_iter().flatten().rev();
        lengths.map(|(&num_blocks, _)| num_blocks)
    }

    /// Lengths and names of those with this hash, the longest first.
    pub(crate) fn with(&self, key: BlockHash) -> impl Iterator<Item = (u32, SnapshotId)> {
        let bucket = self.by_key.get(&key.0);
        bucket.into_iter().flatten().rev().copied()
    }

    /// Whether it stands there.
    pub(crate) fn contains(&self, place: Place, id: SnapshotId) -> bool {
        let bucket = self.by_key.get(&place.key.0);
        self.num_by_blocks.contains_key(&place.num_blocks)
            && bucket.is_some_and(|bucket| bucket.contains(&(place.len, id)))
    }

    pub(crate) fn len(&self) -> usize {
        self.num_by_blocks.values().map(|num| *num as usize).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_with_the_hash_asked_for_comes_first() {
        let mut index = Index::default();
        let place = |key, num_blocks, len| Place {
            key: BlockHash(key),
            num_blocks,
            len,
        };
        let all = [(7, 1, 5), (7, 1, 6), (8, 2, 9), (9, 2, 10), (6, 0, 3)];
        for ((key, num_blocks, len), id) in all.into_iter().zip(1..) {
            index.insert(place(key, num_blocks, len), SnapshotId(id));
        }
        assert_eq!(index.len(), 5);
        assert!(index.lengths((0, 9)).eq([2, 1, 0]));
        assert!(index.lengths((0, 1)).eq([1, 0]));
        assert!(
            index.lengths((2, 1)).eq([]),
            "nothing is so long and so short"
        );
        let with = |key| {
            index
                .with(BlockHash(key))
                .map(|(len, SnapshotId(id))| (len, id))
        };
        assert!(with(7).eq([(6, 2), (5, 1)]));
        assert!(with(5).eq([]));
        index.remove(place(8, 2, 9), SnapshotId(3));
        index.remove(place(9, 2, 10), SnapshotId(4));
        assert!(index.lengths((0, 9)).eq([1, 0]));
        assert!(index.contains(place(7, 1, 5), SnapshotId(1)));
        assert!(!index.contains(place(8, 2, 9), SnapshotId(3)));
    }
}
