//! What can be hit from now on, and what no longer: for routers that send a prompt where its beginning
//! is known.
//!
//! A hit needs a snapshot, so a block counts as stored while a snapshot lies at or behind its end. Other
//! blocks may be cached, but nobody could go on from them. Prefixes under a salt are nobody else's
//! business and are not told of.

use std::collections::BTreeMap;

use crate::hash::{BlockHash, HashChain};
use crate::manager::KvCacheManager;
use crate::prefix::SnapshotId;

/// What is kept for somebody who does not fetch it.
const MAX_NEWS: usize = 1 << 16;

/// A change in what can be hit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// Blocks that follow each other.
    Stored {
        /// What they go on from; `None`: nothing.
        parent: Option<BlockHash>,
        /// Each stands for all tokens up to its block's end.
        hashes: Vec<BlockHash>,
        /// Those of these blocks.
        tokens: Vec<u32>,
    },
    /// These cannot be hit any more.
    Removed {
        /// As they were stored.
        hashes: Vec<BlockHash>,
    },
    /// News was not fetched and is lost: whatever was known is to be forgotten.
    Cleared,
}

impl KvCacheManager {
    /// Keeps [`News`] from now on. What is there already is not told of.
    pub fn keep_news(&mut self) {
        self.prefix.news.get_or_insert_default();
    }

    /// What has changed since it was last asked.
    pub fn take_news(&mut self) -> Vec<News> {
        let news = self.prefix.news.as_mut();
        news.map(Newsroom::take).unwrap_or_default()
    }
}

/// Who covers what, and what has not been fetched yet.
#[derive(Debug, Default)]
pub(crate) struct Newsroom {
    /// By how many snapshots.
    covered: BTreeMap<BlockHash, u32>,
    /// The blocks of each.
    of: BTreeMap<SnapshotId, Vec<BlockHash>>,
    news: Vec<News>,
}

impl Newsroom {
    /// A snapshot of these tokens is there.
    pub(crate) fn add(
        &mut self,
        id: SnapshotId,
        chain: &mut HashChain,
        tokens: &[u32],
        block_size: usize,
    ) {
        if !chain.salt().is_empty() {
            return;
        }
        let num_full = tokens.len() / block_size;
        let hashes: Vec<BlockHash> = (1..=num_full)
            .map(|num| chain.unsalted_at(tokens, num * block_size))
            .collect();
        // Whoever covers a block covers those before it.
        let num_known = hashes.partition_point(|hash| self.covered.contains_key(hash));
        for hash in &hashes {
            *self.covered.entry(*hash).or_default() += 1;
        }
        if num_known < num_full {
            self.tell(News::Stored {
                parent: num_known.checked_sub(1).map(|last| hashes[last]),
                hashes: hashes[num_known..].to_vec(),
                tokens: tokens[num_known * block_size..num_full * block_size].to_vec(),
            });
        }
        self.of.insert(id, hashes);
    }

    /// A snapshot has gone.
    pub(crate) fn remove(&mut self, id: SnapshotId) {
        let mut gone = Vec::new();
        for hash in self.of.remove(&id).unwrap_or_default() {
            let num = self.covered.get_mut(&hash).expect("it was counted");
            *num -= 1;
            if *num == 0 {
                self.covered.remove(&hash);
                gone.push(hash);
            }
        }
        if !gone.is_empty() {
            self.tell(News::Removed { hashes: gone });
        }
    }

    fn tell(&mut self, news: News) {
        if self.news.len() == MAX_NEWS {
            self.news = vec![News::Cleared];
        }
        self.news.push(news);
    }

    /// All since the last time.
    pub(crate) fn take(&mut self) -> Vec<News> {
        std::mem::take(&mut self.news)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Desk {
        room: Newsroom,
        num_born: u64,
    }

    impl Desk {
        fn new() -> Self {
            Self {
                room: Newsroom::default(),
                num_born: 0,
            }
        }

        fn add(&mut self, salt: &str, tokens: &[u32]) -> SnapshotId {
            self.num_born += 1;
            let id = SnapshotId(self.num_born);
            let mut chain = HashChain::new(salt.into(), 2);
            self.room.add(id, &mut chain, tokens, 2);
            id
        }
    }

    fn hashes(tokens: &[u32]) -> Vec<BlockHash> {
        let mut chain = HashChain::new("".into(), 2);
        let ends = (1..=tokens.len() / 2).map(|num| num * 2);
        ends.map(|end| chain.unsalted_at(tokens, end)).collect()
    }

    #[test]
    fn what_is_new_is_told_once() {
        let mut desk = Desk::new();
        let all = hashes(&[1, 2, 3, 4, 5, 6]);
        desk.add("", &[1, 2, 3]);
        desk.add("", &[1, 2, 3, 4, 5, 6]);
        desk.add("", &[1, 2, 3, 4]);
        desk.add("", &[9]);
        let first = News::Stored {
            parent: None,
            hashes: all[..1].to_vec(),
            tokens: vec![1, 2],
        };
        let second = News::Stored {
            parent: Some(all[0]),
            hashes: all[1..].to_vec(),
            tokens: vec![3, 4, 5, 6],
        };
        assert_eq!(desk.room.take(), [first, second]);
        assert_eq!(desk.room.take(), []);
    }

    #[test]
    fn what_nobody_covers_is_gone() {
        let mut desk = Desk::new();
        let all = hashes(&[1, 2, 3, 4]);
        let short = desk.add("", &[1, 2]);
        let long = desk.add("", &[1, 2, 3, 4]);
        desk.room.take();
        desk.room.remove(short);
        assert_eq!(desk.room.take(), [], "the longer one covers it still");
        desk.room.remove(long);
        let gone = News::Removed { hashes: all };
        assert_eq!(desk.room.take(), [gone]);
        assert!(desk.room.covered.is_empty() && desk.room.of.is_empty());
    }

    #[test]
    fn salted_prefixes_are_not_told_of() {
        let mut desk = Desk::new();
        let id = desk.add("x", &[1, 2, 3, 4]);
        desk.room.remove(id);
        assert_eq!(desk.room.take(), []);
    }

    #[test]
    fn news_that_nobody_fetches_is_bounded() {
        let mut desk = Desk::new();
        for token in 0..=MAX_NEWS as u32 {
            desk.add("", &[token, token]);
        }
        let news = desk.room.take();
        assert_eq!((&news[0], news.len()), (&News::Cleared, 2));
    }
}
