//! A prefix as a chain of numbers, one per full block.
//!
//! The hash says where to look; whether it is a hit is decided by comparing tokens and salt. So it
//! need not resist attacks, only spread well: a collision costs a comparison, never a wrong hit.

use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

/// Stands for all tokens up to the end of one block, with or without the salt they were computed
/// under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlockHash(pub u64);

/// Maps by block hashes take them as they are: they are spread well already.
pub(crate) type AsIs = BuildHasherDefault<Itself>;

/// Hashes a number to itself.
#[derive(Debug, Default)]
pub(crate) struct Itself(u64);

impl Hasher for Itself {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only numbers are keys")
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

/// 2^64 over the golden ratio, odd: multiplying by it spreads low bits upwards.
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;

impl BlockHash {
    /// The empty prefix. Not zero, which a block of zeros would leave as it is.
    const ROOT: Self = Self(SPREAD);

    /// Stands for a salt.
    pub fn of_salt(salt: &str) -> Self {
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

    /// The same prefix under a salt. Tokens and salt are mixed last of all, so that equal tokens under
    /// different salts can be told from different ones.
    #[must_use]
    pub fn salted(self, salt: Self) -> Self {
        Self(finish(self.0 ^ salt.0))
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
    salt_hash: BlockHash,
    block_size: usize,
    /// `hashes[i]` covers i full blocks, without the salt.
    hashes: Vec<BlockHash>,
    /// The snapshot whose tokens were last compared with this chain's and found the same, by the
    /// number of its birth.
    matched: Option<u64>,
}

impl HashChain {
    /// The chain of the empty prefix.
    pub fn new(salt: Arc<str>, block_size: u32) -> Self {
        Self {
            salt_hash: BlockHash::of_salt(&salt),
            salt,
            block_size: block_size as usize,
            hashes: vec![BlockHash::ROOT],
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

    /// The hash of the full blocks within the first `len` of `tokens` under the salt. They must be the
    /// same tokens every time, as far as they were given.
    pub fn at(&mut self, tokens: &[u32], len: usize) -> BlockHash {
        self.unsalted_at(tokens, len).salted(self.salt_hash)
    }

    /// The same for whoever computed them.
    pub fn unsalted_at(&mut self, tokens: &[u32], len: usize) -> BlockHash {
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
        assert_eq!(BlockHash::of_salt(""), BlockHash(0));
        assert_eq!(BlockHash::of_salt("ab"), BlockHash(PINNED_SALT));
        assert_eq!(
            BlockHash::of_salt("ab").child(&[1, 2, 3]),
            BlockHash(PINNED_CHILD)
        );
    }
    const PINNED_SALT: u64 = 0x36F0_EFA4_8291_0415;
    const PINNED_CHILD: u64 = 0x2B1A_4A79_1D21_2FA8;

    #[test]
    fn only_full_blocks_count() {
        let tokens = [7, 8, 9, 10, 11, 12, 13, 14];
        let mut chain = chain("x");
        assert_eq!(chain.unsalted_at(&tokens, 3), BlockHash::ROOT);
        assert_eq!(chain.at(&tokens, 4), chain.at(&tokens, 7));
        assert_ne!(chain.at(&tokens, 7), chain.at(&tokens, 8));
        let plain = BlockHash::ROOT.child(&tokens[..4]).child(&tokens[4..]);
        assert_eq!(chain.unsalted_at(&tokens, 8), plain);
        assert_eq!(chain.at(&tokens, 8), plain.salted(BlockHash::of_salt("x")));
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
    fn zeros_count() {
        let (mut chain, zeros) = (chain(""), [0; 12]);
        assert_ne!(chain.at(&zeros, 4), chain.at(&zeros, 0));
        assert_ne!(chain.at(&zeros, 4), chain.at(&zeros, 8));
    }

    #[test]
    fn salt_order_and_position_matter() {
        assert_ne!(BlockHash::of_salt("a"), BlockHash::of_salt("b"));
        assert_ne!(BlockHash::of_salt("a"), BlockHash::of_salt("aa"));
        let root = BlockHash::ROOT;
        assert_ne!(root.child(&[1, 2]), root.child(&[2, 1]));
        assert_ne!(
            root.child(&[1, 2]).child(&[3, 4]),
            root.child(&[3, 4]).child(&[1, 2])
        );
        let (mut a, mut b) = (chain("a"), chain("b"));
        let tokens = [1, 2, 3, 4];
        assert_ne!(a.at(&tokens, 4), b.at(&tokens, 4));
        assert_ne!(a.at(&tokens, 0), b.at(&tokens, 0));
        assert_eq!(a.unsalted_at(&tokens, 4), b.unsalted_at(&tokens, 4));
        assert_eq!(&**a.salt(), "a");
    }
}
