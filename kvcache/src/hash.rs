//! A prefix as a chain of numbers, one per full block.
//!
//! The hash says where to look; whether it is a hit is decided by comparing tokens and salt. So it
//! need not resist attacks, only spread well: a collision costs a comparison, never a wrong hit.

use std::sync::Arc;

/// Stands for all tokens up to the end of one block, and the salt they were computed under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlockHash(pub u64);

/// 2^64 over the golden ratio, odd: multiplying by it spreads low bits upwards.
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;

impl BlockHash {
    /// The hash of the empty prefix under `salt`.
    pub fn root(salt: &str) -> Self {
        let folded = salt.bytes().fold(salt.len() as u64, |hash, byte| {
            absorb(hash, u64::from(byte))
        });
        Self(finish(folded))
    }

    /// The hash after one more block of tokens.
    #[must_use]
    pub fn child(self, tokens: &[u32]) -> Self {
        let folded = tokens
            .iter()
            .fold(self.0, |hash, &token| absorb(hash, u64::from(token)));
        Self(finish(folded))
    }
}

fn absorb(hash: u64, value: u64) -> u64 {
    (hash.rotate_left(5) ^ value).wrapping_mul(SPREAD)
}

fn finish(hash: u64) -> u64 {
    let high = hash >> 32;
    (hash ^ high).wrapping_mul(SPREAD)
}

/// The hashes of one sequence's prefixes, computed as far as anyone has asked.
#[derive(Clone, Debug)]
pub struct HashChain {
    salt: Arc<str>,
    block_size: usize,
    /// `hashes[i]` covers i full blocks; `hashes[0]` is the root.
    hashes: Vec<BlockHash>,
    /// The snapshot whose tokens were last compared with this chain's and found the same, by the
    /// number of its birth.
    matched: Option<u64>,
}

impl HashChain {
    /// The chain of the empty prefix.
    pub fn new(salt: Arc<str>, block_size: u32) -> Self {
        let root = BlockHash::root(&salt);
        Self {
            salt,
            block_size: block_size as usize,
            hashes: vec![root],
            matched: None,
        }
    }

    /// Hits happen only among equal salts.
    pub fn salt(&self) -> &Arc<str> {
        &self.salt
    }

    /// Hashes ahead, up to the full blocks within the first `len` of `tokens`, until `max_tokens`
    /// have been read. Returns how many were.
    pub fn extend(&mut self, tokens: &[u32], len: usize, max_tokens: usize) -> usize {
        let num_hashed = self.hashes.len() - 1;
        let num_full = (len / self.block_size).max(num_hashed);
        let num_new = (num_full - num_hashed).min(max_tokens / self.block_size);
        self.at(tokens, (num_hashed + num_new) * self.block_size);
        num_new * self.block_size
    }

    /// Whether the snapshot born as number `birth` was found to hold this chain's tokens. It cannot
    /// have changed since: a snapshot is never written again, and births are never repeated.
    pub(crate) fn has_matched(&self, birth: u64) -> bool {
        self.matched == Some(birth)
    }

    pub(crate) fn note_match(&mut self, birth: u64) {
        self.matched = Some(birth);
    }

    /// The hash of the full blocks within the first `len` of `tokens`, which must be the same
    /// tokens every time, as far as they were given.
    pub fn at(&mut self, tokens: &[u32], len: usize) -> BlockHash {
        let num_full = len / self.block_size;
        while self.hashes.len() <= num_full {
            let index = self.hashes.len() - 1;
            let block = &tokens[index * self.block_size..(index + 1) * self.block_size];
            self.hashes.push(self.hashes[index].child(block));
        }
        self.hashes[num_full]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(salt: &str) -> HashChain {
        HashChain::new(salt.into(), 4)
    }

    #[test]
    fn pinned_values() {
        // Changing the function is fine, but should be noticed.
        assert_eq!(BlockHash::root(""), BlockHash(0));
        assert_eq!(BlockHash::root("ab"), BlockHash(PINNED_ROOT));
        assert_eq!(
            BlockHash::root("ab").child(&[1, 2, 3]),
            BlockHash(PINNED_CHILD)
        );
    }
    const PINNED_ROOT: u64 = 0x36F0EFA482910415;
    const PINNED_CHILD: u64 = 0x2B1A4A791D212FA8;

    #[test]
    fn only_full_blocks_count() {
        let tokens = [7, 8, 9, 10, 11, 12, 13, 14];
        let mut chain = chain("");
        assert_eq!(chain.at(&tokens, 3), BlockHash::root(""));
        assert_eq!(chain.at(&tokens, 4), chain.at(&tokens, 7));
        assert_ne!(chain.at(&tokens, 7), chain.at(&tokens, 8));
        assert_eq!(
            chain.at(&tokens, 8),
            BlockHash::root("").child(&tokens[..4]).child(&tokens[4..])
        );
    }

    #[test]
    fn hashing_ahead_stops_where_it_is_told() {
        let tokens: Vec<u32> = (0..30).collect();
        let mut ahead = chain("");
        assert_eq!(ahead.extend(&tokens, 30, 11), 8);
        assert_eq!(ahead.hashes.len(), 3);
        assert_eq!(ahead.extend(&tokens, 18, 100), 8);
        assert_eq!(ahead.extend(&tokens, 18, 100), 0);
        assert_eq!(ahead.extend(&tokens, 5, 100), 0, "it never forgets");
        assert_eq!(ahead.at(&tokens, 30), chain("").at(&tokens, 30));
    }

    #[test]
    fn salt_order_and_position_matter() {
        assert_ne!(BlockHash::root("a"), BlockHash::root("b"));
        assert_ne!(BlockHash::root("a"), BlockHash::root("aa"));
        let root = BlockHash::root("");
        assert_ne!(root.child(&[1, 2]), root.child(&[2, 1]));
        assert_ne!(
            root.child(&[1, 2]).child(&[3, 4]),
            root.child(&[3, 4]).child(&[1, 2])
        );
        assert_eq!(&**chain("s").salt(), "s");
    }
}
