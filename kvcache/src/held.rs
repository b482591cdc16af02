//! What the cache holds, for people who want to know. No tokens: those are somebody's.

use crate::manager::KvCacheManager;
use crate::policy::{Short, SnapshotKind};
use crate::prefix::Tier;

/// One snapshot.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Held {
    /// Tokens absorbed.
    pub len: u32,
    /// Why it was made.
    pub kind: SnapshotKind,
    /// Where it is.
    pub tier: Tier,
    /// Blocks of its tokens.
    pub num_blocks: u32,
    /// Of these, blocks that no other snapshot holds.
    pub num_own_blocks: u32,
    /// How many uses of the cache ago it was of use.
    pub age: u64,
    /// How often somebody went on from it.
    pub num_hits: u32,
    /// What it is worth; the lowest goes first.
    pub score: f64,
}

impl KvCacheManager {
    /// All snapshots, the oldest first.
    pub fn held(&self) -> Vec<Held> {
        let now = self.prefix.now();
        let snapshots = self.prefix.snapshots();
        let held = snapshots.map(|(_, snapshot)| {
            let candidate = self.candidate(snapshot, Short::Slots);
            Held {
                len: snapshot.len,
                kind: snapshot.kind,
                tier: snapshot.tier,
                num_blocks: snapshot.path.len() as u32,
                num_own_blocks: self.num_own_blocks(snapshot),
                age: now - snapshot.last_use,
                num_hits: snapshot.num_hits,
                score: self.score(&candidate),
            }
        });
        held.collect()
    }
}
