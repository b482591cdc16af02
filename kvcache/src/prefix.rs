//! Which prefixes need no computing.
//!
//! A prefix can be skipped where its blocks and a snapshot of its state meet. Blocks without a
//! snapshot are of no use to a hybrid model, so a snapshot owns its blocks and the cache is a set of
//! snapshots. There are few of them (a slot each), so the longest match is found by walking them
//! from the longest down, which costs one comparison of hashes each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::block::{BlockId, SlotId};
use crate::hash::{BlockHash, HashChain};

/// State after `len` tokens, with the blocks that hold their KV.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// Tokens absorbed or pending.
    pub(crate) len: u32,
    /// How many of the last lie beside the slot, not absorbed yet.
    pub(crate) num_pending: u32,
    /// Hash of the full blocks among them.
    pub(crate) hash: BlockHash,
    /// Whom it may serve.
    pub(crate) salt: Arc<str>,
    /// Blocks of those tokens; the last may be partly filled.
    pub(crate) blocks: Vec<BlockId>,
}

/// A snapshot and its place in time.
#[derive(Debug)]
struct Entry {
    /// The use that it was born with: no other snapshot ever has the same.
    birth: u64,
    last_use: u64,
    snapshot: Snapshot,
}

/// All snapshots, by slot, by length and by last use.
#[derive(Debug)]
pub struct PrefixCache {
    block_size: usize,
    snapshots: BTreeMap<SlotId, Entry>,
    by_len: BTreeSet<(u32, SlotId)>,
    by_use: BTreeMap<u64, SlotId>,
    /// Counts uses, in place of a clock.
    num_uses: u64,
    /// The tokens of every block, as far as a snapshot covers them.
    contents: Vec<u32>,
}

impl PrefixCache {
    /// No snapshot, over `num_blocks` blocks of `block_size` tokens.
    pub fn new(block_size: u32, num_blocks: u32) -> Self {
        Self {
            block_size: block_size as usize,
            snapshots: BTreeMap::new(),
            by_len: BTreeSet::new(),
            by_use: BTreeMap::new(),
            num_uses: 0,
            contents: vec![0; block_size as usize * num_blocks as usize],
        }
    }

    /// Snapshots of prefixes of `tokens` under the chain's salt, of at most `max_len` tokens, the
    /// longest first.
    pub(crate) fn prefixes_of<'a>(
        &'a self,
        chain: &'a mut HashChain,
        tokens: &'a [u32],
        max_len: usize,
    ) -> impl Iterator<Item = SlotId> + 'a {
        let max_len = max_len.min(tokens.len()) as u32;
        let candidates = self.by_len.range(..=(max_len, SlotId(u32::MAX))).rev();
        candidates.map(|&(_, slot)| slot).filter(move |slot| {
            let Entry {
                birth, snapshot, ..
            } = self.entry(*slot);
            if snapshot.hash != chain.at(tokens, snapshot.len as usize)
                || snapshot.salt != *chain.salt()
            {
                return false;
            }
            if !chain.has_matched(*birth) {
                if !self.holds(snapshot, tokens) {
                    return false;
                }
                chain.note_match(*birth);
            }
            true
        })
    }

    /// The snapshot in `slot`.
    pub(crate) fn get(&self, slot: SlotId) -> &Snapshot {
        &self.entry(slot).snapshot
    }

    fn entry(&self, slot: SlotId) -> &Entry {
        self.snapshots.get(&slot).expect("slot holds a snapshot")
    }

    /// Notes the tokens of `block`, from its first.
    pub(crate) fn record(&mut self, block: BlockId, tokens: &[u32]) {
        let start = block.index() * self.block_size;
        self.contents[start..start + tokens.len()].copy_from_slice(tokens);
    }

    /// Makes a snapshot findable, as the one used last. Its blocks are recorded.
    pub(crate) fn insert(&mut self, slot: SlotId, snapshot: Snapshot) {
        self.by_len.insert((snapshot.len, slot));
        let birth = self.next_use(slot);
        let entry = Entry {
            birth,
            last_use: birth,
            snapshot,
        };
        let previous = self.snapshots.insert(slot, entry);
        assert!(previous.is_none(), "{slot:?} holds a snapshot already");
    }

    /// Was of use just now.
    pub(crate) fn touch(&mut self, slot: SlotId) {
        let now = self.next_use(slot);
        let entry = self
            .snapshots
            .get_mut(&slot)
            .expect("slot holds a snapshot");
        self.by_use.remove(&entry.last_use);
        entry.last_use = now;
    }

    /// Forgets a snapshot and returns it.
    pub(crate) fn remove(&mut self, slot: SlotId) -> Snapshot {
        let Entry {
            last_use, snapshot, ..
        } = self.snapshots.remove(&slot).expect("slot holds a snapshot");
        self.by_use.remove(&last_use);
        self.by_len.remove(&(snapshot.len, slot));
        snapshot
    }

    /// All snapshots, the one used longest ago first.
    pub(crate) fn oldest_first(&self) -> impl Iterator<Item = SlotId> + '_ {
        self.by_use.values().copied()
    }

    fn next_use(&mut self, slot: SlotId) -> u64 {
        self.num_uses += 1;
        self.by_use.insert(self.num_uses, slot);
        self.num_uses
    }

    fn holds(&self, snapshot: &Snapshot, tokens: &[u32]) -> bool {
        let wanted = tokens[..snapshot.len as usize].chunks(self.block_size);
        snapshot.blocks.iter().zip(wanted).all(|(block, wanted)| {
            let start = block.index() * self.block_size;
            self.contents[start..start + wanted.len()] == *wanted
        })
    }

    /// The indexes agree, and hashes are those of the recorded tokens.
    pub(crate) fn check(&self) {
        let by_len = self
            .snapshots
            .iter()
            .map(|(&slot, entry)| (entry.snapshot.len, slot))
            .collect();
        assert_eq!(self.by_len, by_len, "index by length");
        let by_use = self
            .snapshots
            .iter()
            .map(|(&slot, entry)| (entry.last_use, slot));
        assert_eq!(self.by_use, by_use.collect(), "index by last use");
        for Entry { snapshot, .. } in self.snapshots.values() {
            let tokens: Vec<u32> = snapshot
                .blocks
                .iter()
                .flat_map(|b| self.content(*b))
                .copied()
                .collect();
            let len = snapshot.len as usize;
            let mut chain = HashChain::new(Arc::clone(&snapshot.salt), self.block_size as u32);
            assert_eq!(
                snapshot.hash,
                chain.at(&tokens, len),
                "hash of the recorded tokens"
            );
            assert_eq!(
                snapshot.blocks.len(),
                len.div_ceil(self.block_size),
                "blocks of a snapshot"
            );
        }
    }

    pub(crate) fn snapshots(&self) -> impl Iterator<Item = (SlotId, &Snapshot)> {
        self.snapshots
            .iter()
            .map(|(&slot, entry)| (slot, &entry.snapshot))
    }

    fn content(&self, block: BlockId) -> &[u32] {
        let start = block.index() * self.block_size;
        &self.contents[start..start + self.block_size]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cache over blocks of two tokens. A snapshot in slot i takes the next blocks.
    struct Cache {
        prefix: PrefixCache,
        next_block: u32,
    }

    impl Cache {
        fn new() -> Self {
            Self {
                prefix: PrefixCache::new(2, 64),
                next_block: 1,
            }
        }

        fn save(&mut self, slot: u32, salt: &str, tokens: &[u32]) {
            let mut blocks = Vec::new();
            for tokens in tokens.chunks(2) {
                blocks.push(BlockId(self.next_block));
                self.prefix.record(BlockId(self.next_block), tokens);
                self.next_block += 1;
            }
            let hash = HashChain::new(salt.into(), 2).at(tokens, tokens.len());
            let snapshot = Snapshot {
                len: tokens.len() as u32,
                num_pending: 0,
                hash,
                salt: salt.into(),
                blocks,
            };
            self.prefix.insert(SlotId(slot), snapshot);
            self.prefix.check();
        }

        fn find(&self, salt: &str, tokens: &[u32], max_len: usize) -> Vec<u32> {
            let mut chain = HashChain::new(salt.into(), 2);
            self.prefix
                .prefixes_of(&mut chain, tokens, max_len)
                .map(|slot| slot.0)
                .collect()
        }

        fn order(&self) -> Vec<u32> {
            self.prefix.oldest_first().map(|slot| slot.0).collect()
        }
    }

    #[test]
    fn longest_first_and_within_the_limit() {
        let mut cache = Cache::new();
        cache.save(1, "", &[5, 6, 7]);
        cache.save(2, "", &[5]);
        cache.save(3, "", &[5, 6, 7, 8, 9]);
        assert_eq!(cache.find("", &[5, 6, 7, 8, 9, 1], 6), [3, 1, 2]);
        assert_eq!(cache.find("", &[5, 6, 7, 8, 9], 5), [3, 1, 2]);
        assert_eq!(cache.find("", &[5, 6, 7, 8, 9], 4), [1, 2]);
        assert_eq!(cache.find("", &[5, 6, 7], 9), [1, 2]);
        assert_eq!(cache.find("", &[5, 6], 2), [2]);
        assert_eq!(cache.find("", &[6, 5], 2), [] as [u32; 0]);
    }

    #[test]
    fn a_tail_is_compared_token_by_token() {
        let mut cache = Cache::new();
        cache.save(1, "", &[5, 6, 7]);
        assert_eq!(cache.find("", &[5, 6, 8, 9], 4), [] as [u32; 0]);
        assert_eq!(cache.find("", &[5, 6, 7, 9], 4), [1]);
    }

    #[test]
    fn salts_are_apart() {
        let mut cache = Cache::new();
        cache.save(1, "a", &[5, 6, 7]);
        cache.save(2, "b", &[5]);
        assert_eq!(cache.find("a", &[5, 6, 7, 8], 3), [1]);
        assert_eq!(cache.find("b", &[5, 6, 7, 8], 3), [2]);
        assert_eq!(cache.find("", &[5, 6, 7, 8], 3), [] as [u32; 0]);
    }

    #[test]
    fn equal_hashes_are_not_a_hit() {
        // Two tokens per block: all of a snapshot of one token rests on its tail and its salt.
        let mut cache = Cache::new();
        cache.save(1, "a", &[5, 6]);
        let forged = HashChain::new("b".into(), 2).at(&[7, 8], 2);
        cache
            .prefix
            .snapshots
            .get_mut(&SlotId(1))
            .unwrap()
            .snapshot
            .hash = forged;
        assert_eq!(
            cache.find("b", &[7, 8], 2),
            [] as [u32; 0],
            "salt and tokens differ"
        );
        cache
            .prefix
            .snapshots
            .get_mut(&SlotId(1))
            .unwrap()
            .snapshot
            .salt = "b".into();
        assert_eq!(cache.find("b", &[7, 8], 2), [] as [u32; 0], "tokens differ");
        cache.prefix.record(BlockId(1), &[7, 8]);
        assert_eq!(cache.find("b", &[7, 8], 2), [1]);
        let forged = HashChain::new("c".into(), 2).at(&[7, 8], 2);
        cache
            .prefix
            .snapshots
            .get_mut(&SlotId(1))
            .unwrap()
            .snapshot
            .hash = forged;
        assert_eq!(cache.find("c", &[7, 8], 2), [] as [u32; 0], "salt differs");
    }

    #[test]
    fn use_keeps_young() {
        let mut cache = Cache::new();
        for slot in 1..=3 {
            cache.save(slot, "", &[slot]);
        }
        assert_eq!(cache.order(), [1, 2, 3]);
        cache.prefix.touch(SlotId(1));
        cache.prefix.check();
        assert_eq!(cache.order(), [2, 3, 1]);
        assert_eq!(cache.prefix.remove(SlotId(3)).len, 1);
        cache.prefix.check();
        assert_eq!(cache.order(), [2, 1]);
        assert_eq!(cache.find("", &[3], 1), [] as [u32; 0]);
    }

    #[test]
    #[should_panic(expected = "holds a snapshot already")]
    fn a_slot_holds_one_snapshot() {
        let mut cache = Cache::new();
        cache.save(1, "", &[1]);
        cache.save(1, "", &[2]);
    }

    fn broken(change: impl Fn(&mut PrefixCache)) {
        let mut cache = Cache::new();
        cache.save(1, "", &[1, 2, 3]);
        change(&mut cache.prefix);
        cache.prefix.check();
    }

    #[test]
    #[should_panic(expected = "index by length")]
    fn the_check_finds_a_wrong_length() {
        broken(|prefix| prefix.by_len.clear());
    }

    #[test]
    #[should_panic(expected = "index by last use")]
    fn the_check_finds_a_wrong_use() {
        broken(|prefix| prefix.by_use.clear());
    }

    #[test]
    #[should_panic(expected = "hash of the recorded tokens")]
    fn the_check_finds_a_block_overwritten() {
        broken(|prefix| prefix.record(BlockId(1), &[9]));
    }

    #[test]
    #[should_panic(expected = "blocks of a snapshot")]
    fn the_check_finds_a_missing_tail() {
        broken(|prefix| {
            prefix
                .snapshots
                .get_mut(&SlotId(1))
                .unwrap()
                .snapshot
                .blocks
                .truncate(1);
        });
    }
}
