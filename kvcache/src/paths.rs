//! The blocks of one memory, and which hold which tokens.
//!
//! Every full block of a snapshot is found by the hash of all tokens up to its end. As who holds a
//! block holds all before it, the blocks known of a prompt are a beginning of it, whose length is
//! found by halving.

use std::collections::HashMap;

use crate::block::BlockId;
use crate::hash::{AsIs, BlockHash, HashChain};
use crate::pool::BlockPool;
use crate::runs::Path;

/// A block that is found by its hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Link {
    key: BlockHash,
    /// Another block with the same tokens, computed by somebody else.
    next: Option<BlockId>,
}

/// The blocks of one memory, their tokens, and those that hold tokens by the hash of all tokens up to their end.
#[derive(Debug)]
pub(crate) struct Paths {
    pub(crate) blocks: BlockPool,
    block_size: usize,
    /// The tokens of every block, as far as a snapshot covers them.
    contents: Vec<u32>,
    links: Vec<Option<Link>>,
    /// Looked up, never walked.
    heads: HashMap<u64, BlockId, AsIs>,
}

impl Paths {
    pub(crate) fn new(block_size: usize, num_blocks: u32) -> Self {
        Self {
            blocks: BlockPool::new(num_blocks),
            block_size,
            contents: vec![0; block_size * num_blocks as usize],
            links: vec![None; num_blocks as usize],
            heads: HashMap::default(),
        }
    }

    /// Notes the tokens of `block`, from its first.
    pub(crate) fn record(&mut self, block: BlockId, tokens: &[u32]) {
        let start = block.index() * self.block_size;
        self.contents[start..start + tokens.len()].copy_from_slice(tokens);
    }

    pub(crate) fn tokens(&self, block: BlockId) -> &[u32] {
        let start = block.index() * self.block_size;
        &self.contents[start..start + self.block_size]
    }

    /// Whether the blocks of a path hold these tokens, which are as many as it has blocks for; those
    /// that `known` has, too, are known to.
    pub(crate) fn holds(&self, path: Path, tokens: &[u32], known: Path) -> bool {
        let num_blocks = tokens.len().div_ceil(self.block_size);
        assert_eq!(path.len(), num_blocks, "tokens are those of a path");
        let runs = &self.blocks.runs;
        let num_known = runs.num_common(path, known);
        let end = |&(start, blocks): &(usize, &[BlockId])| start + blocks.len();
        let stretches = runs.stretches(path);
        let mut unknown = stretches.take_while(|stretch| end(stretch) > num_known);
        unknown.all(|(start, blocks)| {
            let skipped = num_known.saturating_sub(start);
            let wanted = tokens[(start + skipped) * self.block_size..].chunks(self.block_size);
            let mut pairs = blocks[skipped..].iter().zip(wanted);
            pairs.all(|(block, wanted)| self.tokens(*block)[..wanted.len()] == *wanted)
        })
    }

    pub(crate) fn key(&self, block: BlockId) -> Option<BlockHash> {
        self.links[block.index()].map(|link| link.key)
    }

    /// Makes the full blocks of a path findable that are not yet; `key_at` says the hashes.
    pub(crate) fn make_findable(&mut self, path: Path, mut key_at: impl FnMut(usize) -> BlockHash) {
        let mut new = Vec::new();
        // Whoever made one of them findable did so with all before it.
        for (_, stretch) in self.blocks.runs.stretches(path) {
            let unknown = stretch.iter().rev();
            let num_before = new.len();
            new.extend(unknown.take_while(|&&block| self.key(block).is_none()));
            if new.len() - num_before < stretch.len() {
                break;
            }
        }
        for (block, num) in new.into_iter().zip((1..=path.len()).rev()) {
            self.insert(block, key_at(num));
        }
    }

    /// Makes a full block findable, if it is not.
    pub(crate) fn insert(&mut self, block: BlockId, key: BlockHash) {
        if let Some(link) = &self.links[block.index()] {
            assert_eq!(link.key, key, "{block:?} has one path");
            return;
        }
        let next = self.heads.insert(key.0, block);
        self.links[block.index()] = Some(Link { key, next });
    }

    /// No snapshot holds `block` any more.
    pub(crate) fn remove(&mut self, block: BlockId) {
        let Some(Link { key, next }) = self.links[block.index()].take() else {
            return;
        };
        let head = self.heads[&key.0];
        if head != block {
            let mut before = head;
            while self.link(before).next != Some(block) {
                before = self.link(before).next.expect("a block is in its list");
            }
            self.links[before.index()] = Some(Link { key, next });
        } else if let Some(next) = next {
            self.heads.insert(key.0, next);
        } else {
            self.heads.remove(&key.0);
        }
    }

    pub(crate) fn find(&self, key: BlockHash) -> Option<BlockId> {
        self.heads.get(&key.0).copied()
    }

    /// How many full blocks of the first `max_len` tokens are here. Says nothing but by hashes: who
    /// relies on it compares tokens.
    pub(crate) fn num_known(&self, chain: &mut HashChain, tokens: &[u32], max_len: usize) -> usize {
        let max = max_len.min(tokens.len()) / self.block_size;
        let mut is_known = |num: usize| {
            let key = chain.at(tokens, num * self.block_size);
            self.heads.contains_key(&key.0)
        };
        // Doubling before halving: an unknown prompt is not hashed to its end.
        let (mut known, mut step) = (0, 1);
        while known + step <= max && is_known(known + step) {
            known += step;
            step *= 2;
        }
        while step > 1 {
            step /= 2;
            if known + step <= max && is_known(known + step) {
                known += step;
            }
        }
        known
    }

    /// Every list is whole.
    pub(crate) fn check(&self) {
        let mut num_linked = 0;
        for (index, link) in self.links.iter().enumerate() {
            let Some(link) = link else { continue };
            num_linked += 1;
            let mut block = self.find(link.key).expect("a linked block has a list");
            while block.index() != index {
                block = self
                    .link(block)
                    .next
                    .expect("a linked block is in its list");
            }
        }
        assert!(self.heads.len() <= num_linked, "a list holds a block");
    }

    fn link(&self, block: BlockId) -> Link {
        self.links[block.index()].expect("a block in a list is linked")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKENS: [u32; 24] = [7; 24];

    fn chain() -> HashChain {
        HashChain::new("".into(), 2)
    }

    /// Blocks of two tokens; the first `num_blocks` of `TOKENS` are in blocks 1, 2, ...
    fn known(num_blocks: u32) -> Paths {
        let mut paths = Paths::new(2, 40);
        for i in 1..=num_blocks {
            paths.record(BlockId(i), &[7, 7]);
            paths.insert(BlockId(i), chain().at(&TOKENS, 2 * i as usize));
            paths.check();
        }
        paths
    }

    #[test]
    fn the_known_beginning_is_found_by_doubling_and_halving() {
        for num in 0..=12 {
            let paths = known(num);
            for max_len in 0..=24 {
                let got = paths.num_known(&mut chain(), &TOKENS, max_len);
                assert_eq!(got, (num as usize).min(max_len / 2), "{num} in {max_len}");
            }
        }
    }

    #[test]
    fn equal_blocks_stand_in_for_each_other() {
        let mut paths = known(2);
        let key = chain().at(&TOKENS, 4);
        for block in [5, 6, 7] {
            paths.insert(BlockId(block), key);
        }
        paths.insert(BlockId(6), key);
        paths.check();
        for block in [6, 7, 2] {
            paths.remove(BlockId(block));
            paths.remove(BlockId(block));
            paths.check();
            assert_eq!(paths.num_known(&mut chain(), &TOKENS, 24), 2);
        }
        assert_eq!(paths.find(key), Some(BlockId(5)));
        paths.remove(BlockId(5));
        assert_eq!(paths.find(key), None);
        assert_eq!(paths.num_known(&mut chain(), &TOKENS, 24), 1);
    }

    #[test]
    fn tokens_are_compared_to_the_last() {
        let mut paths = known(3);
        let two = [1, 2].map(|_| paths.blocks.allocate().unwrap());
        let path = paths.blocks.share(Path::default(), &two);
        let none = Path::default();
        assert!(paths.holds(path, &[7, 7, 7], none));
        assert!(!paths.holds(path, &[7, 7, 8], none));
        assert!(!paths.holds(path, &[8, 7, 7], none));
        let one = paths.blocks.runs.beginning(path, 1);
        assert!(paths.holds(one, &[7, 7], none) && !paths.holds(one, &[7, 8], none));
        // A path of two runs.
        let third = [paths.blocks.allocate().unwrap()];
        paths.blocks.add_lease(path);
        let longer = paths.blocks.share(path, &third);
        assert!(paths.holds(longer, &[7; 6], none));
        assert!(!paths.holds(longer, &[7, 7, 8, 7, 7, 7], none));
        assert!(!paths.holds(longer, &[7, 7, 7, 7, 7, 8], none));
        // What is known is not looked at again, and nothing else is known.
        assert!(paths.holds(longer, &[8, 8, 7, 7, 7, 7], one));
        assert!(!paths.holds(longer, &[7, 7, 7, 8, 7, 7], one));
        assert!(paths.holds(longer, &[8, 8, 8, 8, 7, 7], path));
        assert!(!paths.holds(longer, &[7, 7, 7, 7, 8, 7], path));
        assert_eq!(paths.key(BlockId(2)), Some(chain().at(&TOKENS, 4)));
        assert_eq!(paths.key(BlockId(9)), None);
    }

    #[test]
    #[should_panic(expected = "one path")]
    fn a_block_has_one_path() {
        known(2).insert(BlockId(2), chain().at(&TOKENS, 2));
    }
}
