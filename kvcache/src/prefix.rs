//! Which prefixes need no computing.
//!
//! A prefix can be skipped where its blocks and a snapshot of its state meet. Blocks without a
//! snapshot are of no use to a hybrid model, so a snapshot owns its blocks and the cache is a set of
//! snapshots. Those of one path stand in a tree: each knows the next shorter one, on which the
//! worth of both depends.
//!
//! The longest match is found by asking for the hashes of the prompt at all lengths that snapshots have,
//! from the longest that could match down; how far the blocks known of a prompt reach bounds that.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use crate::block::SlotId;
use crate::hash::{BlockHash, HashChain};
use crate::index::{Index, Place};
use crate::news::Newsroom;
use crate::paths::Paths;
use crate::policy::{Class, Habits, SnapshotKind};
use crate::ranks::{Rank, Ranks};
use crate::runs::Path;

/// Evicted snapshots that are remembered, to explain misses.
const MAX_GHOSTS: usize = 512;

/// Which memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// Where rows run.
    Device,
    /// Host memory: room for what the device has none for.
    Host,
}

/// Numbers snapshots by birth; never repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SnapshotId(pub(crate) u64);

/// State after `len` tokens, with the blocks that hold their KV.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    /// Tokens absorbed or pending.
    pub(crate) len: u32,
    /// How many of the last lie beside the slot, not absorbed yet.
    pub(crate) num_pending: u32,
    /// Why it was made.
    pub(crate) kind: SnapshotKind,
    /// Where slot and blocks are.
    pub(crate) tier: Tier,
    pub(crate) slot: SlotId,
    /// Blocks of those tokens; the last may be partly filled.
    pub(crate) path: Path,
    /// Whom it may serve.
    pub(crate) salt: Arc<str>,
    /// Hash of the full blocks under the salt, and for whoever computed them.
    key: BlockHash,
    unsalted: BlockHash,
    /// When it was of use last.
    pub(crate) last_use: u64,
    /// How often somebody went on from it.
    pub(crate) num_hits: u32,
    /// The next shorter one on its path.
    shorter: Option<SnapshotId>,
    /// How many have it as their next shorter one.
    num_longer: u32,
}

impl Snapshot {
    /// What has become of it.
    pub(crate) fn class(&self) -> Class {
        Class {
            kind: self.kind,
            num_hits: self.num_hits,
            has_longer: self.num_longer > 0,
        }
    }
}

/// Why a hit was not longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    /// Nothing is known of the prompt beyond the hit.
    NoBlocks,
    /// Blocks beyond the hit are cached, but no state at any place among them.
    NoSnapshot,
    /// There was a snapshot beyond the hit, and it was evicted.
    Evicted,
    /// There is a longer one under another salt.
    Salt,
}

/// All snapshots, by birth and by length.
#[derive(Debug)]
pub(crate) struct PrefixCache {
    block_size: usize,
    pub(crate) device: Paths,
    pub(crate) host: Paths,
    snapshots: BTreeMap<SnapshotId, Snapshot>,
    by_key: Index,
    /// The same whatever their salts.
    by_unsalted: Index,
    /// Each behind the next shorter one on its path.
    by_shorter: BTreeSet<(Option<SnapshotId>, SnapshotId)>,
    /// What eviction looks at, on the device and on the host.
    ranks: [Ranks; 2],
    /// What snapshots of each class came to.
    pub(crate) habits: Habits,
    /// Counts uses, in place of a clock. Births are uses, so it numbers snapshots, too.
    num_uses: u64,
    /// Length and hash of the full blocks under the salt, the oldest first.
    ghosts: VecDeque<(u32, BlockHash)>,
    /// If anybody wants to know.
    pub(crate) news: Option<Newsroom>,
}

impl PrefixCache {
    /// No snapshot, over two memories of so many blocks and slots, padding included.
    pub(crate) fn new(block_size: u32, num_blocks: [u32; 2], num_slots: [u32; 2]) -> Self {
        let block_size = block_size as usize;
        Self {
            block_size,
            device: Paths::new(block_size, num_blocks[Tier::Device as usize]),
            host: Paths::new(block_size, num_blocks[Tier::Host as usize]),
            ranks: num_slots.map(Ranks::new),
            snapshots: BTreeMap::new(),
            by_key: Index::default(),
            by_unsalted: Index::default(),
            by_shorter: BTreeSet::new(),
            habits: Habits::default(),
            num_uses: 0,
            ghosts: VecDeque::new(),
            news: None,
        }
    }

    /// The tokens of the blocks of `tier`.
    pub(crate) fn paths(&self, tier: Tier) -> &Paths {
        match tier {
            Tier::Device => &self.device,
            Tier::Host => &self.host,
        }
    }

    pub(crate) fn paths_mut(&mut self, tier: Tier) -> &mut Paths {
        match tier {
            Tier::Device => &mut self.device,
            Tier::Host => &mut self.host,
        }
    }

    /// The longest snapshot of a prefix of `tokens` under the chain's salt, of at most `max_len`
    /// tokens.
    pub(crate) fn longest(
        &self,
        chain: &mut HashChain,
        tokens: &[u32],
        max_len: usize,
    ) -> Option<SnapshotId> {
        self.longest_beside(Path::default(), chain, tokens, max_len)
    }

    /// The same for somebody whose blocks on the device are `own`.
    fn longest_beside(
        &self,
        own: Path,
        chain: &mut HashChain,
        tokens: &[u32],
        max_len: usize,
    ) -> Option<SnapshotId> {
        let max_len = max_len.min(tokens.len());
        // Snapshots shorter than a block need no block to be known.
        let known = self.num_known(chain, tokens, max_len) * self.block_size;
        let max_len = max_len.min(known + self.block_size - 1);
        let max_blocks = (max_len / self.block_size) as u32;
        self.find(chain, tokens, (0, max_blocks), |chain, len, id| {
            len <= max_len && self.is_match(id, chain, tokens, own)
        })
    }

    /// The longest of so many full blocks that is one by its hash and by what `is_it` says.
    fn find(
        &self,
        chain: &mut HashChain,
        tokens: &[u32],
        num_blocks: (u32, u32),
        is_it: impl Fn(&mut HashChain, usize, SnapshotId) -> bool,
    ) -> Option<SnapshotId> {
        for num_blocks in self.by_key.lengths(num_blocks) {
            let key = chain.at(tokens, num_blocks as usize * self.block_size);
            for (len, id) in self.by_key.with(key) {
                if is_it(chain, len as usize, id) {
                    return Some(id);
                }
            }
        }
        None
    }

    /// The snapshot of exactly `tokens`.
    pub(crate) fn exact(&self, chain: &mut HashChain, tokens: &[u32]) -> Option<SnapshotId> {
        let num_blocks = (tokens.len() / self.block_size) as u32;
        self.find(chain, tokens, (num_blocks, num_blocks), |chain, len, id| {
            len == tokens.len() && self.is_match(id, chain, tokens, Path::default())
        })
    }

    /// All snapshots of prefixes of `tokens`, the longest first.
    pub(crate) fn all_prefixes(&self, chain: &mut HashChain, tokens: &[u32]) -> Vec<SnapshotId> {
        let mut found: Vec<SnapshotId> = Vec::new();
        let mut next = self.longest(chain, tokens, tokens.len());
        while let Some(id) = next {
            found.push(id);
            next = self.get(id).shorter;
        }
        found
    }

    /// How many full blocks of the first `max_len` tokens are held by snapshots under the chain's
    /// salt, in the memory that knows more of them. By hashes alone.
    pub(crate) fn num_known(&self, chain: &mut HashChain, tokens: &[u32], max_len: usize) -> usize {
        let on_device = self.device.num_known(chain, tokens, max_len);
        on_device.max(self.host.num_known(chain, tokens, max_len))
    }

    /// The blocks of `tier` that hold the longest beginning, of up to `max` full blocks, of what
    /// `key_at` says the hashes of.
    pub(crate) fn known_path(
        &self,
        tier: Tier,
        max: usize,
        mut key_at: impl FnMut(usize) -> BlockHash,
    ) -> Path {
        let paths = self.paths(tier);
        let (mut known, mut unknown) = (0, max + 1);
        while known + 1 < unknown {
            let middle = usize::midpoint(known, unknown);
            match paths.find(key_at(middle)) {
                Some(_) => known = middle,
                None => unknown = middle,
            }
        }
        if known == 0 {
            return Path::default();
        }
        let last = paths.find(key_at(known)).expect("it was found above");
        // None only if two paths of different lengths have the same hash.
        let path = paths.blocks.runs.find(last, known);
        path.unwrap_or_default()
    }

    /// Why a prompt whose longest hit has `num_hit` tokens has none of up to `max_hit`, and how many
    /// tokens were lost by that. `None`: there is none longer to be had.
    pub(crate) fn explain(
        &self,
        chain: &mut HashChain,
        tokens: &[u32],
        num_hit: usize,
        max_hit: usize,
    ) -> Option<(Miss, u32)> {
        if num_hit >= max_hit {
            return None;
        }
        let lost = |len: usize| (len - num_hit) as u32;
        let mut evicted = self.ghosts.iter().filter(|&&(len, key)| {
            let len = len as usize;
            (num_hit + 1..=max_hit).contains(&len) && chain.at(tokens, len) == key
        });
        // Of two the later, which is the more likely one to have been reachable.
        if let Some(&(len, _)) = evicted.next_back() {
            return Some((Miss::Evicted, lost(len as usize)));
        }
        let known = self.num_known(chain, tokens, max_hit) * self.block_size;
        if known > num_hit {
            return Some((Miss::NoSnapshot, lost(known)));
        }
        // Shorter than a block is equal to everything.
        let shortest = (num_hit + 1).max(self.block_size) as u32;
        let blocks = |len: u32| len / self.block_size as u32;
        let range = (blocks(shortest), blocks(max_hit as u32));
        let mut lengths = self.by_unsalted.lengths(range);
        let longest = lengths.find_map(|num| {
            let key = chain.unsalted_at(tokens, num as usize * self.block_size);
            let mut candidates = self.by_unsalted.with(key);
            candidates.find(|(len, _)| (shortest..=max_hit as u32).contains(len))
        });
        if let Some((len, id)) = longest
            && self.get(id).salt != *chain.salt()
        {
            return Some((Miss::Salt, lost(len as usize)));
        }
        Some((Miss::NoBlocks, lost(max_hit)))
    }

    /// The snapshot born as `id`.
    pub(crate) fn get(&self, id: SnapshotId) -> &Snapshot {
        self.snapshots.get(&id).expect("a snapshot is there")
    }

    /// Why a snapshot was made, if it is still there.
    pub(crate) fn kind(&self, id: SnapshotId) -> Option<SnapshotKind> {
        self.snapshots.get(&id).map(|snapshot| snapshot.kind)
    }

    fn get_mut(&mut self, id: SnapshotId) -> &mut Snapshot {
        self.snapshots.get_mut(&id).expect("a snapshot is there")
    }

    /// Makes a snapshot of `tokens` findable, as the one used last. Its blocks are recorded; its full
    /// blocks are made findable here.
    pub(crate) fn insert(
        &mut self,
        (kind, num_pending): (SnapshotKind, u32),
        slot: SlotId,
        path: Path,
        chain: &mut HashChain,
        tokens: &[u32],
    ) -> SnapshotId {
        let num_full = tokens.len() / self.block_size;
        // Who goes on from it has its last full block, or one with the same tokens.
        let may_have_longer =
            num_full == 0 || self.is_known(chain.at(tokens, num_full * self.block_size));
        let full = self.device.blocks.runs.beginning(path, num_full);
        let block_size = self.block_size;
        self.device
            .make_findable(full, |num| chain.at(tokens, num * block_size));
        let shorter = tokens
            .len()
            .checked_sub(1)
            .and_then(|max| self.longest_beside(path, chain, tokens, max));
        self.num_uses += 1;
        let id = SnapshotId(self.num_uses);
        let len = tokens.len() as u32;
        let mut snapshot = Snapshot {
            len,
            num_pending,
            kind,
            tier: Tier::Device,
            slot,
            path,
            salt: Arc::clone(chain.salt()),
            key: chain.at(tokens, tokens.len()),
            unsalted: chain.unsalted_at(tokens, tokens.len()),
            last_use: self.num_uses,
            num_hits: 0,
            shorter,
            num_longer: 0,
        };
        // Those that go on from it have it as their next shorter one from now on.
        let longer = if may_have_longer {
            let all = self.longer_than(shorter).into_iter();
            let goes_on = |other: &SnapshotId| {
                let other = self.get(*other);
                other.len > len && self.goes_on(other, &snapshot, tokens)
            };
            all.filter(goes_on).collect()
        } else {
            Vec::new()
        };
        snapshot.num_longer = longer.len() as u32;
        self.by_shorter.insert((shorter, id));
        if let Some(shorter) = shorter {
            let num_adopted = snapshot.num_longer;
            let below = self.get_mut(shorter);
            let was_last = below.num_longer == 0;
            below.num_longer = below.num_longer + 1 - num_adopted;
            let class = below.class();
            if was_last {
                self.habits.note_made(class);
            }
            self.rank(shorter);
        }
        self.habits.note_made(snapshot.class());
        let [salted, unsalted] = self.places(&snapshot);
        self.by_key.insert(salted, id);
        self.by_unsalted.insert(unsalted, id);
        self.snapshots.insert(id, snapshot);
        self.rank(id);
        for other in longer {
            self.set_shorter(other, Some(id));
        }
        if let Some(news) = &mut self.news {
            news.add(id, chain, tokens, self.block_size);
        }
        chain.note_match(id.0);
        id
    }

    fn is_known(&self, key: BlockHash) -> bool {
        let tiers = [&self.device, &self.host];
        tiers.into_iter().any(|paths| paths.find(key).is_some())
    }

    /// Where it stands with its salt, and without.
    fn places(&self, snapshot: &Snapshot) -> [Place; 2] {
        [snapshot.key, snapshot.unsalted].map(|key| Place {
            key,
            num_blocks: snapshot.len / self.block_size as u32,
            len: snapshot.len,
        })
    }

    /// Those whose next shorter one is `shorter`.
    fn longer_than(&self, shorter: Option<SnapshotId>) -> Vec<SnapshotId> {
        let range = (shorter, SnapshotId(0))..=(shorter, SnapshotId(u64::MAX));
        let longer = self.by_shorter.range(range);
        longer.map(|&(_, longer)| longer).collect()
    }

    fn set_shorter(&mut self, id: SnapshotId, shorter: Option<SnapshotId>) {
        let before = std::mem::replace(&mut self.get_mut(id).shorter, shorter);
        self.by_shorter.remove(&(before, id));
        self.by_shorter.insert((shorter, id));
        self.rank(id);
    }

    /// Tells eviction what has become of a snapshot.
    fn rank(&mut self, id: SnapshotId) {
        let rank = self.rank_of(id);
        let Snapshot { tier, slot, .. } = *self.get(id);
        self.ranks[tier as usize].set(slot, Some(rank));
    }

    fn rank_of(&self, id: SnapshotId) -> Rank {
        let snapshot = self.get(id);
        let runs = &self.paths(snapshot.tier).blocks.runs;
        let shorter = snapshot.shorter.map(|shorter| self.get(shorter));
        let shorter = shorter.filter(|shorter| shorter.tier == snapshot.tier);
        let num_common = shorter.map_or(0, |shorter| runs.num_common(snapshot.path, shorter.path));
        Rank {
            id,
            last_use: snapshot.last_use,
            num_saved_tokens: self.num_saved_tokens(snapshot),
            max_freed_blocks: (snapshot.path.len() - num_common) as u32,
            class: snapshot.class().number() as u8,
        }
    }

    /// What eviction looks at in one memory.
    pub(crate) fn ranks(&self, tier: Tier) -> &Ranks {
        &self.ranks[tier as usize]
    }

    /// Whether `longer` begins with the tokens of `snapshot`.
    fn goes_on(&self, longer: &Snapshot, snapshot: &Snapshot, tokens: &[u32]) -> bool {
        let num_full = tokens.len() / self.block_size;
        let paths = self.paths(longer.tier);
        let block_at = |index| paths.blocks.runs.block_at(longer.path, index);
        let same_blocks = match num_full.checked_sub(1) {
            Some(last) => block_at(last).and_then(|block| paths.key(block)) == Some(snapshot.key),
            None => longer.salt == snapshot.salt,
        };
        let tail = &tokens[num_full * self.block_size..];
        let is_tail = |block| paths.tokens(block)[..tail.len()] == *tail;
        same_blocks && (tail.is_empty() || block_at(num_full).is_some_and(is_tail))
    }

    /// Was of use just now.
    pub(crate) fn touch(&mut self, id: SnapshotId) {
        self.num_uses += 1;
        let now = self.num_uses;
        self.get_mut(id).last_use = now;
        self.rank(id);
    }

    /// Somebody goes on from it.
    pub(crate) fn hit(&mut self, id: SnapshotId) {
        let age = self.num_uses - self.get(id).last_use;
        self.touch(id);
        let snapshot = self.get_mut(id);
        let before = snapshot.class();
        snapshot.num_hits = snapshot.num_hits.saturating_add(1);
        let after = snapshot.class();
        self.rank(id);
        self.habits.note_hit(before, age);
        self.habits.note_made(after);
    }

    /// The clock of uses.
    pub(crate) fn now(&self) -> u64 {
        self.num_uses
    }

    /// Tokens that whoever hits it need not compute, over the next shorter one.
    pub(crate) fn num_saved_tokens(&self, snapshot: &Snapshot) -> u32 {
        let shorter = snapshot.shorter.map_or(0, |id| self.get(id).len);
        snapshot.len - shorter
    }

    /// Forgets a snapshot and returns it.
    pub(crate) fn remove(&mut self, id: SnapshotId) -> Snapshot {
        let snapshot = self.snapshots.remove(&id).expect("a snapshot is there");
        if let Some(news) = &mut self.news {
            news.remove(id);
        }
        let [salted, unsalted] = self.places(&snapshot);
        self.by_key.remove(salted, id);
        self.by_unsalted.remove(unsalted, id);
        self.by_shorter.remove(&(snapshot.shorter, id));
        if snapshot.num_longer > 0 {
            for longer in self.longer_than(Some(id)) {
                self.set_shorter(longer, snapshot.shorter);
            }
        }
        if let Some(id) = snapshot.shorter {
            let shorter = self.get_mut(id);
            shorter.num_longer = shorter.num_longer + snapshot.num_longer - 1;
            self.rank(id);
        }
        self.ranks[snapshot.tier as usize].set(snapshot.slot, None);
        snapshot
    }

    /// Remembers one that is about to be evicted.
    pub(crate) fn remember(&mut self, id: SnapshotId) {
        if self.ghosts.len() == MAX_GHOSTS {
            self.ghosts.pop_front();
        }
        let Snapshot { len, key, .. } = self.get(id);
        self.ghosts.push_back((*len, *key));
    }

    /// It is in host memory now. Returns where it was.
    pub(crate) fn relocate(&mut self, id: SnapshotId, slot: SlotId, path: Path) -> (SlotId, Path) {
        let snapshot = self.get_mut(id);
        snapshot.tier = Tier::Host;
        let before = (
            std::mem::replace(&mut snapshot.slot, slot),
            std::mem::replace(&mut snapshot.path, path),
        );
        self.ranks[Tier::Device as usize].set(before.0, None);
        self.rank(id);
        // What they shared with it on the device they do not any more.
        for longer in self.longer_than(Some(id)) {
            self.rank(longer);
        }
        before
    }

    /// All of them, by birth.
    pub(crate) fn snapshots(&self) -> impl Iterator<Item = (SnapshotId, &Snapshot)> {
        self.snapshots.iter().map(|(&id, snapshot)| (id, snapshot))
    }

    /// Whether a snapshot holds these tokens, which the blocks of `own` do as far as they go.
    fn is_match(&self, id: SnapshotId, chain: &mut HashChain, tokens: &[u32], own: Path) -> bool {
        if chain.has_matched(id.0) {
            return true;
        }
        let snapshot = self.get(id);
        let tokens = &tokens[..snapshot.len as usize];
        let own = match snapshot.tier {
            Tier::Device => own,
            Tier::Host => Path::default(),
        };
        let paths = self.paths(snapshot.tier);
        let is_match = snapshot.salt == *chain.salt() && paths.holds(snapshot.path, tokens, own);
        if is_match {
            chain.note_match(id.0);
        }
        is_match
    }

    /// The indexes agree, hashes are those of the recorded tokens, and the tree is the one that tokens
    /// make.
    pub(crate) fn check(&self) {
        self.device.check();
        self.host.check();
        let num_indexed = [&self.by_key, &self.by_unsalted].map(Index::len);
        assert_eq!(num_indexed, [self.snapshots.len(); 2], "index by hash");
        assert_eq!(
            self.by_shorter.len(),
            self.snapshots.len(),
            "index by the next shorter one"
        );
        let num_ranks: usize = self.ranks.iter().map(Ranks::len).sum();
        assert_eq!(num_ranks, self.snapshots.len(), "what eviction sees");
        for (&id, snapshot) in &self.snapshots {
            let paths = self.paths(snapshot.tier);
            let blocks = paths.blocks.runs.list(snapshot.path, 0, 0);
            let tokens: Vec<u32> = blocks
                .iter()
                .flat_map(|&block| paths.tokens(block))
                .copied()
                .collect();
            let len = snapshot.len as usize;
            assert_eq!(
                blocks.len(),
                len.div_ceil(self.block_size),
                "blocks of a snapshot"
            );
            let tokens = &tokens[..len];
            let mut chain = HashChain::new(Arc::clone(&snapshot.salt), self.block_size as u32);
            let key = chain.at(tokens, len);
            assert_eq!(snapshot.key, key, "hash of the recorded tokens");
            let unsalted = chain.unsalted_at(tokens, len);
            assert_eq!(snapshot.unsalted, unsalted, "hash of the recorded tokens");
            let [salted, unsalted] = self.places(snapshot);
            assert!(
                self.by_key.contains(salted, id) && self.by_unsalted.contains(unsalted, id),
                "index by hash"
            );
            for (index, &block) in blocks[..len / self.block_size].iter().enumerate() {
                let key = chain.at(tokens, (index + 1) * self.block_size);
                assert_eq!(paths.key(block), Some(key), "a full block is findable");
            }
            let longest = len
                .checked_sub(1)
                .and_then(|max| self.longest(&mut chain, tokens, max));
            let shorter_len = |id: Option<SnapshotId>| id.map(|id| self.get(id).len);
            assert_eq!(
                shorter_len(snapshot.shorter),
                shorter_len(longest),
                "the next shorter one"
            );
            let rank = self.ranks(snapshot.tier).get(snapshot.slot);
            assert_eq!(rank, Some(self.rank_of(id)), "what eviction sees of it");
            let of_id = |other: &&Snapshot| other.shorter == Some(id);
            let num_longer = self.snapshots.values().filter(of_id).count();
            assert_eq!(snapshot.num_longer as usize, num_longer, "longer ones");
            assert!(
                self.by_shorter.contains(&(snapshot.shorter, id)),
                "index by the next shorter one"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::BlockId;

    /// A cache over blocks of two tokens. Every snapshot takes the next blocks.
    struct Cache {
        prefix: PrefixCache,
    }

    fn chain(salt: &str) -> HashChain {
        HashChain::new(salt.into(), 2)
    }

    impl Cache {
        fn new() -> Self {
            Self {
                prefix: PrefixCache::new(2, [64, 1], [64, 1]),
            }
        }

        fn save(&mut self, slot: u32, salt: &str, tokens: &[u32]) -> SnapshotId {
            let device = &mut self.prefix.device;
            let mut blocks = Vec::new();
            for tokens in tokens.chunks(2) {
                let block = device.blocks.allocate().unwrap();
                blocks.push(block);
                device.record(block, tokens);
            }
            let path = device.blocks.share(Path::default(), &blocks);
            device.blocks.add_snapshot(path);
            device.blocks.drop_lease(path);
            let kind = (SnapshotKind::Finish, 0);
            let id = self
                .prefix
                .insert(kind, SlotId(slot), path, &mut chain(salt), tokens);
            self.prefix.check();
            id
        }

        fn drop(&mut self, id: SnapshotId) {
            let path = self.prefix.remove(id).path;
            for block in self.prefix.device.blocks.drop_snapshot(path) {
                self.prefix.device.remove(block);
            }
            self.prefix.check();
        }

        /// Slots, the longest first.
        fn find(&self, salt: &str, tokens: &[u32], max_len: usize) -> Vec<u32> {
            let mut chain = chain(salt);
            let longest = self.prefix.longest(&mut chain, tokens, max_len);
            let found = longest.map_or_else(Vec::new, |id| {
                let tokens = &tokens[..self.prefix.get(id).len as usize];
                assert_eq!(self.prefix.exact(&mut chain, tokens), Some(id));
                self.prefix.all_prefixes(&mut chain, tokens)
            });
            found.iter().map(|&id| self.prefix.get(id).slot.0).collect()
        }

        fn explain(&self, salt: &str, tokens: &[u32], num_hit: usize) -> Option<(Miss, u32)> {
            let max_hit = tokens.len() - 1;
            self.prefix
                .explain(&mut chain(salt), tokens, num_hit, max_hit)
        }

        fn saved_tokens(&self, id: SnapshotId) -> (u32, bool) {
            let snapshot = self.prefix.get(id);
            (
                self.prefix.num_saved_tokens(snapshot),
                snapshot.class().has_longer,
            )
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
        let mut cache = Cache::new();
        let id = cache.save(1, "a", &[5, 6]);
        // The index finds it for other tokens under another salt.
        let forge = |cache: &mut Cache, salt, tokens: &[u32]| {
            let salted = chain(salt).at(tokens, 2);
            let [place, _] = cache.prefix.places(cache.prefix.get(id));
            cache.prefix.by_key.remove(place, id);
            cache.prefix.get_mut(id).key = salted;
            let [place, _] = cache.prefix.places(cache.prefix.get(id));
            cache.prefix.by_key.insert(place, id);
            cache.prefix.device.remove(BlockId(1));
            cache.prefix.device.insert(BlockId(1), salted);
        };
        forge(&mut cache, "b", &[7, 8]);
        assert_eq!(cache.find("b", &[7, 8], 2), [] as [u32; 0]);
        cache.prefix.get_mut(id).salt = "b".into();
        assert_eq!(cache.find("b", &[7, 8], 2), [] as [u32; 0], "tokens differ");
        cache.prefix.device.record(BlockId(1), &[7, 8]);
        assert_eq!(cache.find("b", &[7, 8], 2), [1]);
        forge(&mut cache, "c", &[7, 8]);
        assert_eq!(cache.find("c", &[7, 8], 2), [] as [u32; 0], "salt differs");
    }

    #[test]
    fn a_snapshot_saves_what_the_next_shorter_one_does_not() {
        let mut cache = Cache::new();
        let long = cache.save(1, "", &[1, 2, 3, 4, 5, 6, 7]);
        let fork = cache.save(2, "", &[1, 2, 3, 9, 9]);
        cache.save(3, "x", &[1, 2, 3]);
        cache.save(4, "", &[1, 2, 4]);
        assert_eq!(cache.saved_tokens(long), (7, false));
        let middle = cache.save(5, "", &[1, 2, 3]);
        assert_eq!(cache.saved_tokens(middle), (3, true));
        assert_eq!(cache.saved_tokens(long), (4, false));
        assert_eq!(cache.saved_tokens(fork), (2, false));
        let short = cache.save(6, "", &[1]);
        assert_eq!(cache.saved_tokens(short), (1, true));
        assert_eq!(cache.saved_tokens(middle), (2, true));
        cache.drop(middle);
        assert_eq!(cache.saved_tokens(long), (6, false));
        assert_eq!(cache.saved_tokens(fork), (4, false));
        cache.drop(short);
        assert_eq!(cache.saved_tokens(long), (7, false));
    }

    #[test]
    fn use_keeps_young() {
        let mut cache = Cache::new();
        let (first, second) = (cache.save(1, "", &[1]), cache.save(2, "", &[2]));
        assert!(cache.prefix.get(first).last_use < cache.prefix.get(second).last_use);
        cache.prefix.touch(first);
        assert!(cache.prefix.get(first).last_use > cache.prefix.get(second).last_use);
        cache.prefix.hit(second);
        assert!(cache.prefix.get(first).last_use < cache.prefix.get(second).last_use);
        let hits = [first, second].map(|id| cache.prefix.get(id).num_hits);
        assert_eq!(hits, [0, 1], "a touch is not a hit");
        cache.prefix.check();
    }

    #[test]
    fn every_miss_has_its_reason() {
        let mut cache = Cache::new();
        let prompt = [1, 2, 3, 4, 5, 6, 7];
        assert_eq!(cache.explain("", &prompt, 0), Some((Miss::NoBlocks, 6)));
        let id = cache.save(1, "", &prompt);
        assert_eq!(cache.explain("", &prompt, 6), None, "nothing was missed");
        assert_eq!(cache.explain("", &prompt, 2), Some((Miss::NoSnapshot, 4)));
        let fork = [1, 2, 3, 4, 9, 9, 9];
        assert_eq!(cache.explain("", &fork, 0), Some((Miss::NoSnapshot, 4)));
        assert_eq!(cache.explain("", &fork, 4), Some((Miss::NoBlocks, 2)));
        let longer = [1, 2, 3, 4, 5, 6, 7, 8, 9];
        assert_eq!(cache.explain("x", &longer, 0), Some((Miss::Salt, 7)));
        assert_eq!(
            cache.explain("x", &[9, 9, 9, 9], 0),
            Some((Miss::NoBlocks, 3))
        );
        cache.prefix.remember(id);
        cache.drop(id);
        assert_eq!(cache.explain("", &longer, 0), Some((Miss::Evicted, 7)));
        assert_eq!(cache.explain("", &prompt, 0), Some((Miss::NoBlocks, 6)));
        assert_eq!(cache.explain("x", &longer, 0), Some((Miss::NoBlocks, 8)));
    }

    #[test]
    fn ghosts_are_few() {
        let mut cache = Cache::new();
        let first = cache.save(1, "", &[1, 2]);
        let second = cache.save(2, "", &[3, 4]);
        cache.prefix.remember(first);
        for _ in 0..MAX_GHOSTS {
            cache.prefix.remember(second);
        }
        cache.drop(first);
        assert_eq!(cache.explain("", &[1, 2, 9], 0), Some((Miss::NoBlocks, 2)));
    }

    fn broken(change: impl Fn(&mut PrefixCache, SnapshotId)) {
        let mut cache = Cache::new();
        let id = cache.save(1, "", &[1, 2, 3]);
        cache.save(2, "", &[1, 2, 3, 4]);
        change(&mut cache.prefix, id);
        cache.prefix.check();
    }

    #[test]
    #[should_panic(expected = "index by hash")]
    fn the_check_finds_a_wrong_index() {
        broken(|prefix, _| prefix.by_key = Index::default());
    }

    #[test]
    #[should_panic(expected = "hash of the recorded tokens")]
    fn the_check_finds_a_block_overwritten() {
        broken(|prefix, _| prefix.device.record(BlockId(1), &[9]));
    }

    #[test]
    #[should_panic(expected = "blocks of a snapshot")]
    fn the_check_finds_a_missing_tail() {
        broken(|prefix, id| prefix.get_mut(id).len = 5);
    }

    #[test]
    #[should_panic(expected = "a full block is findable")]
    fn the_check_finds_a_lost_path() {
        broken(|prefix, _| prefix.device.remove(BlockId(1)));
    }

    #[test]
    #[should_panic(expected = "longer ones")]
    fn the_check_finds_a_wrong_count_of_longer_ones() {
        broken(|prefix, id| prefix.get_mut(id).num_longer = 2);
    }
}
