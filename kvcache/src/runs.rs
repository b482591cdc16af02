//! Which blocks follow which: the tree of cached paths.
//!
//! ```text
//!   run 1: b1 b2 b3 b4 -+- run 2: b5 b6         (ends after b6: a snapshot)
//!               |       `- run 3: b9            (ends after b9: a lease)
//!               `- run 4: b7 b8                 (parts after b2; ends after b8: a snapshot)
//! ```
//!
//! Paths that begin alike share blocks, so a path is no list but a place in a tree whose nodes are runs
//! of blocks. Whoever holds a path is noted where it ends, and a run that anybody holds holds what it
//! goes on from. So taking, extending and giving up a path costs as much as there are runs on it and
//! blocks that are new or go, however long it is. Runs between which nothing ends become one, so there
//! are fewer than twice as many as there are holders.

use std::collections::{BTreeMap, BTreeSet};

use crate::block::BlockId;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct RunId(u32);

/// The first `len` blocks of the path that ends in a run. Stays right as long as it is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Path {
    /// `None` if it is empty.
    run: Option<RunId>,
    len: u32,
}

impl Path {
    /// Number of blocks.
    pub(crate) fn len(self) -> usize {
        self.len as usize
    }
}

/// Who holds a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    Lease,
    Snapshot,
}

const HOLDERS: [Holder; 2] = [Holder::Lease, Holder::Snapshot];

/// Where paths of one kind of holder end in a run, in blocks from the path's first: how many there.
/// Runs that go on from it count where they begin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Ends {
    at: BTreeMap<u32, u32>,
    num: u32,
}

impl Ends {
    fn last(&self) -> Option<u32> {
        self.at.last_key_value().map(|(&end, _)| end)
    }

    /// The last if one of those at `end` were not there.
    fn last_without(&self, end: u32) -> Option<u32> {
        let mut ends = self.at.iter().rev();
        let other = ends.find(|&(&at, &num)| at != end || num > 1);
        other.map(|(&at, _)| at)
    }

    fn add(&mut self, end: u32) {
        *self.at.entry(end).or_default() += 1;
        self.num += 1;
    }

    fn remove(&mut self, end: u32) {
        let num = self.at.get_mut(&end).expect("who holds a path ends there");
        *num -= 1;
        if *num == 0 {
            self.at.remove(&end);
        }
        self.num -= 1;
    }
}

/// Blocks that follow each other, behind those of other runs.
#[derive(Clone, Debug, Default)]
struct Run {
    /// Goes on from there, after the first `start` blocks of its path.
    parent: Option<RunId>,
    start: u32,
    /// As far as anybody holds them.
    blocks: Vec<BlockId>,
    children: BTreeSet<RunId>,
    ends: [Ends; 2],
}

impl Run {
    fn end(&self) -> u32 {
        self.start + self.blocks.len() as u32
    }

    fn ends(&self, holder: Holder) -> &Ends {
        &self.ends[holder as usize]
    }

    fn ends_mut(&mut self, holder: Holder) -> &mut Ends {
        &mut self.ends[holder as usize]
    }

    /// As far as somebody of this kind holds it.
    fn held_to(&self, holder: Holder) -> u32 {
        self.ends(holder).last().unwrap_or(self.start)
    }
}

/// What it means that somebody does not hold a path any more.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Gone {
    /// Blocks that nobody of this kind holds any more, the last first.
    pub(crate) left: Vec<BlockId>,
    /// Blocks that nobody holds any more, the last first.
    pub(crate) freed: Vec<BlockId>,
}

/// All paths of one memory.
#[derive(Debug, Default)]
pub(crate) struct Runs {
    runs: Vec<Run>,
    unused: Vec<RunId>,
}

impl Runs {
    /// One more holds `path`. Returns how many blocks nobody of this kind held before.
    pub(crate) fn hold(&mut self, path: Path, holder: Holder) -> u32 {
        let (mut at, mut end) = (path.run, path.len);
        let mut num_new = 0;
        while let Some(id) = at {
            let run = &mut self.runs[id.0 as usize];
            assert!(
                run.start < end && end <= run.end(),
                "a path ends within its run"
            );
            let is_first = run.ends(holder).num == 0;
            num_new += end.saturating_sub(run.held_to(holder));
            run.ends_mut(holder).add(end);
            if !is_first {
                break;
            }
            (at, end) = (run.parent, run.start);
        }
        num_new
    }

    /// One less holds `path`.
    pub(crate) fn let_go(&mut self, path: Path, holder: Holder) -> Gone {
        let (mut at, mut end) = (path.run, path.len);
        let mut gone = Gone::default();
        while let Some(id) = at {
            let run = &mut self.runs[id.0 as usize];
            run.ends_mut(holder).remove(end);
            let is_last = run.ends(holder).num == 0;
            let (held, start) = (run.held_to(holder), run.start);
            if held < end {
                let left = &run.blocks[(held - start) as usize..(end - start) as usize];
                gone.left.extend(left.iter().rev());
            }
            let kept = HOLDERS.map(|kind| run.held_to(kind)).into_iter().max();
            let num_kept = kept.expect("there are two kinds") - start;
            let freed = run.blocks.drain(num_kept as usize..);
            gone.freed.extend(freed.rev());
            let parent = run.parent;
            self.tidy(id);
            if !is_last {
                break;
            }
            (at, end) = (parent, start);
        }
        gone
    }

    /// Removes a run that nobody holds; makes it one with what goes on from it if that is all that holds
    /// it.
    fn tidy(&mut self, id: RunId) {
        let run = &self.runs[id.0 as usize];
        let parent = run.parent;
        let num_ends: u32 = run.ends.iter().map(|ends| ends.num).sum();
        if num_ends == 0 {
            self.replace_child(parent, id, None);
            self.runs[id.0 as usize] = Run::default();
            self.unused.push(id);
            return;
        }
        if run.children.len() > 1 {
            return;
        }
        let Some(&child) = run.children.first() else {
            return;
        };
        let of_child = HOLDERS.map(|kind| u32::from(self.run(child).ends(kind).num > 0));
        if num_ends > of_child.iter().sum() {
            return;
        }
        let Run { start, blocks, .. } = std::mem::take(&mut self.runs[id.0 as usize]);
        self.unused.push(id);
        let longer = &mut self.runs[child.0 as usize];
        longer.blocks.splice(..0, blocks);
        (longer.parent, longer.start) = (parent, start);
        self.replace_child(parent, id, Some(child));
    }

    fn replace_child(&mut self, parent: Option<RunId>, child: RunId, by: Option<RunId>) {
        if let Some(parent) = parent {
            let children = &mut self.runs[parent.0 as usize].children;
            children.remove(&child);
            children.extend(by);
        }
    }

    /// A path that goes on from `path` with `blocks`, and that nobody holds yet: the next call must be
    /// `hold`.
    pub(crate) fn grow(&mut self, path: Path, blocks: &[BlockId]) -> Path {
        assert!(!blocks.is_empty(), "a run has a block");
        let run = Run {
            parent: path.run,
            start: path.len,
            blocks: blocks.to_vec(),
            ..Run::default()
        };
        let len = run.end();
        let id = self.unused.pop().unwrap_or(RunId(self.runs.len() as u32));
        if id.0 as usize == self.runs.len() {
            self.runs.push(run);
        } else {
            self.runs[id.0 as usize] = run;
        }
        if let Some(parent) = path.run {
            self.runs[parent.0 as usize].children.insert(id);
        }
        Path { run: Some(id), len }
    }

    /// The first `len` blocks of `path`.
    pub(crate) fn beginning(&self, path: Path, len: usize) -> Path {
        assert!(len <= path.len(), "a beginning is no longer");
        let len = len as u32;
        let mut run = path.run;
        while let Some(id) = run
            && len <= self.run(id).start
        {
            run = self.run(id).parent;
        }
        Path { run, len }
    }

    /// Blocks that two paths share.
    pub(crate) fn num_common(&self, one: Path, other: Path) -> usize {
        let (mut one, mut other) = (one, other);
        while let (Some(a), Some(b)) = (one.run, other.run) {
            if a == b {
                return one.len.min(other.len) as usize;
            }
            let (a, b) = (self.run(a), self.run(b));
            let up = |run: &Run| Path {
                run: run.parent,
                len: run.start,
            };
            if a.start >= b.start {
                one = up(a);
            } else {
                other = up(b);
            }
        }
        0
    }

    /// Stretches of a path, the last first, each with the number of blocks before it.
    pub(crate) fn stretches(&self, path: Path) -> impl Iterator<Item = (usize, &[BlockId])> {
        let (mut at, mut end) = (path.run, path.len);
        std::iter::from_fn(move || {
            let run = self.run(at?);
            let stretch = &run.blocks[..(end - run.start) as usize];
            (at, end) = (run.parent, run.start);
            Some((end as usize, stretch))
        })
    }

    /// Its blocks behind the first `num_skipped`, in order, with room for more.
    pub(crate) fn list(&self, path: Path, num_skipped: usize, num_more: usize) -> Vec<BlockId> {
        let len = path.len().saturating_sub(num_skipped);
        let mut blocks = Vec::with_capacity(len + num_more);
        blocks.resize(len, BlockId(0));
        for (start, stretch) in self.stretches(path) {
            let skipped = num_skipped.saturating_sub(start);
            let Some(wanted) = stretch.get(skipped..).filter(|wanted| !wanted.is_empty()) else {
                break;
            };
            let to = start + skipped - num_skipped;
            blocks[to..to + wanted.len()].copy_from_slice(wanted);
        }
        blocks
    }

    /// The block that has `index` before it.
    pub(crate) fn block_at(&self, path: Path, index: usize) -> Option<BlockId> {
        let mut stretches = self.stretches(path);
        let (start, stretch) = stretches.find(|&(start, _)| start <= index)?;
        stretch.get(index - start).copied()
    }

    /// The path of `len` blocks that ends in `last`, if it is one.
    pub(crate) fn find(&self, last: BlockId, len: usize) -> Option<Path> {
        let len = len as u32;
        let holds = |run: &Run| {
            let index = len.checked_sub(run.start + 1);
            index.and_then(|index| run.blocks.get(index as usize)) == Some(&last)
        };
        let id = RunId(self.runs.iter().position(holds)? as u32);
        Some(Path { run: Some(id), len })
    }

    /// Whether somebody of this kind holds the last block of `path`.
    pub(crate) fn is_held(&self, path: Path, holder: Holder) -> bool {
        path.run
            .is_some_and(|id| self.run(id).held_to(holder) >= path.len)
    }

    /// Blocks that would be free if one snapshot of `path` were not there.
    pub(crate) fn num_own(&self, path: Path) -> u32 {
        let (mut at, mut end) = (path.run, path.len);
        let mut num_own = 0;
        while let Some(id) = at {
            let run = self.run(id);
            let saved = run.ends(Holder::Snapshot).last_without(end);
            let kept = saved.max(run.ends(Holder::Lease).last());
            num_own += end.saturating_sub(kept.unwrap_or(run.start));
            if kept.is_some() {
                break;
            }
            (at, end) = (run.parent, run.start);
        }
        num_own
    }

    /// How many of the first blocks of `path` snapshots hold.
    pub(crate) fn num_saved(&self, path: Path) -> u32 {
        let (mut at, mut end) = (path.run, path.len);
        while let Some(id) = at {
            let run = self.run(id);
            let saved = run.held_to(Holder::Snapshot).min(end);
            if saved > run.start {
                return saved;
            }
            (at, end) = (run.parent, run.start);
        }
        0
    }

    /// Blocks that no other lease than one of `path` holds.
    pub(crate) fn num_leased_alone(&self, path: Path) -> u32 {
        let (mut at, mut end) = (path.run, path.len);
        let mut num_alone = 0;
        while let Some(id) = at {
            let run = self.run(id);
            let other = run.ends(Holder::Lease).last_without(end);
            num_alone += end.saturating_sub(other.unwrap_or(run.start));
            if other.is_some() {
                break;
            }
            (at, end) = (run.parent, run.start);
        }
        num_alone
    }

    fn run(&self, id: RunId) -> &Run {
        &self.runs[id.0 as usize]
    }

    /// Recounts everything from those who hold paths. Returns for every block of a run whether a lease
    /// holds it.
    pub(crate) fn check(
        &self,
        holders: impl Iterator<Item = (Path, Holder)>,
    ) -> Vec<(BlockId, bool)> {
        let mut expect = vec![[Ends::default(), Ends::default()]; self.runs.len()];
        for (path, holder) in holders {
            if let Some(id) = path.run {
                expect[id.0 as usize][holder as usize].add(path.len);
            }
        }
        let direct = expect.clone();
        let used = (0..self.runs.len()).filter(|&id| !self.unused.contains(&RunId(id as u32)));
        let used: Vec<RunId> = used.map(|id| RunId(id as u32)).collect();
        for &id in &used {
            let run = self.run(id);
            assert!(!run.blocks.is_empty(), "a run has a block");
            if let Some(parent) = run.parent {
                assert!(
                    self.run(parent).children.contains(&id),
                    "a run is its parent's child"
                );
                for kind in HOLDERS {
                    if run.ends(kind).num > 0 {
                        expect[parent.0 as usize][kind as usize].add(run.start);
                    }
                }
            } else {
                assert_eq!(run.start, 0, "who has no parent begins");
            }
        }
        let mut blocks = Vec::new();
        for &id in &used {
            let run = self.run(id);
            assert_eq!(run.ends, expect[id.0 as usize], "who ends in a run");
            let is_needed = direct[id.0 as usize].iter().any(|ends| ends.num > 0);
            assert!(
                is_needed || run.children.len() > 1,
                "a run that only another goes on from is one with it"
            );
            let is_child = |child: &RunId| self.run(*child).parent == Some(id);
            assert!(run.children.iter().all(is_child), "a child has its parent");
            let kept = HOLDERS.map(|kind| run.held_to(kind)).into_iter().max();
            assert_eq!(kept, Some(run.end()), "no block that nobody holds");
            let num_leased = (run.held_to(Holder::Lease) - run.start) as usize;
            let is_leased = |index| index < num_leased;
            let named = run.blocks.iter().enumerate();
            blocks.extend(named.map(|(index, &block)| (block, is_leased(index))));
        }
        blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ids: impl IntoIterator<Item = u32>) -> Vec<BlockId> {
        ids.into_iter().map(BlockId).collect()
    }

    #[test]
    fn a_path_has_beginnings_and_stretches() {
        let mut runs = Runs::default();
        let two = runs.grow(Path::default(), &ids([1, 2]));
        assert_eq!(runs.hold(two, Holder::Snapshot), 2);
        let five = runs.grow(two, &ids([5, 3, 4]));
        assert_eq!(
            runs.hold(five, Holder::Lease),
            5,
            "no lease held those before"
        );
        assert_eq!(runs.list(five, 0, 9), ids([1, 2, 5, 3, 4]));
        assert_eq!(runs.list(five, 1, 0), ids([2, 5, 3, 4]));
        assert_eq!(runs.list(five, 3, 0), ids([3, 4]));
        assert_eq!(runs.list(five, 7, 0), []);
        assert_eq!(runs.list(runs.beginning(five, 1), 0, 0), ids([1]));
        assert_eq!(runs.beginning(five, 2), two);
        assert_eq!(runs.beginning(five, 0), Path::default());
        let at = |index| runs.block_at(five, index).map(|block| block.0);
        assert_eq!(
            [0, 1, 2, 4, 5].map(at),
            [Some(1), Some(2), Some(5), Some(4), None]
        );
        assert_eq!(runs.find(BlockId(3), 4), Some(runs.beginning(five, 4)));
        assert_eq!(runs.find(BlockId(2), 2), Some(two));
        assert_eq!(runs.find(BlockId(3), 3), None, "it is the fourth");
        assert!(runs.is_held(two, Holder::Lease) && !runs.is_held(five, Holder::Snapshot));
    }

    /// Somebody, and the blocks it should have.
    type Held = (Path, Holder, Vec<BlockId>);

    /// What a list per holder and a count per block would say.
    fn check(runs: &Runs, held: &[Held], num_blocks: u32) -> Vec<BlockId> {
        let paths = held.iter().map(|(path, holder, _)| (*path, *holder));
        let mut in_runs = runs.check(paths);
        in_runs.sort_unstable();
        let holds = |(_, _, blocks): &&Held, block| blocks.contains(&block);
        let all = ids(0..num_blocks).into_iter();
        let expect = all.filter_map(|block| {
            let mut holders = held.iter().filter(|one| holds(one, block)).peekable();
            holders.peek()?;
            let is_leased = holders.any(|(_, holder, _)| *holder == Holder::Lease);
            Some((block, is_leased))
        });
        assert_eq!(in_runs, expect.collect::<Vec<_>>());
        for (index, (path, holder, blocks)) in held.iter().enumerate() {
            assert_eq!(runs.list(*path, 0, 0), *blocks);
            for (other, _, other_blocks) in held {
                let same = blocks.iter().zip(other_blocks);
                let num_common = same.take_while(|(a, b)| a == b).count();
                assert_eq!(runs.num_common(*path, *other), num_common);
            }
            let is_saved = |block: &&BlockId| {
                let mut snapshots = held.iter().filter(|one| one.1 == Holder::Snapshot);
                snapshots.any(|one| holds(&one, **block))
            };
            let num_saved = blocks.iter().take_while(is_saved).count();
            assert_eq!(runs.num_saved(*path) as usize, num_saved);
            if *holder == Holder::Lease {
                let others = || held.iter().enumerate().filter(|(other, _)| *other != index);
                let leases = || others().filter(|(_, one)| one.1 == Holder::Lease);
                let is_alone = |block: &&BlockId| leases().all(|(_, one)| !holds(&one, **block));
                let num_alone = blocks.iter().filter(is_alone).count();
                assert_eq!(runs.num_leased_alone(*path) as usize, num_alone);
            }
            if *holder == Holder::Snapshot {
                let others = || held.iter().enumerate().filter(|(other, _)| *other != index);
                let is_own = |block: &&BlockId| others().all(|(_, one)| !holds(&one, **block));
                let num_own = blocks.iter().filter(is_own).count();
                assert_eq!(runs.num_own(*path) as usize, num_own);
            }
        }
        in_runs.into_iter().map(|(block, _)| block).collect()
    }

    /// Any order of holding, growing and letting go is what counts per block say.
    #[test]
    fn as_good_as_counting_every_block() {
        const NUM_BLOCKS: u32 = 24;
        for seed in 0..200_u64 {
            let mut state = seed;
            let mut draw = |below: usize| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) as usize % below
            };
            let mut runs = Runs::default();
            let mut held: Vec<Held> = Vec::new();
            let mut free = ids(0..NUM_BLOCKS);
            for _ in 0..60 {
                let holder = HOLDERS[draw(2)];
                let (path, mut blocks) = match held.len() {
                    0 => (Path::default(), Vec::new()),
                    num => {
                        let (path, _, blocks) = &held[draw(num)];
                        let len = draw(blocks.len() + 1);
                        (runs.beginning(*path, len), blocks[..len].to_vec())
                    }
                };
                let num_new = draw(4);
                if draw(3) == 0 && !held.is_empty() {
                    let (path, holder, _) = held.swap_remove(draw(held.len()));
                    let gone = runs.let_go(path, holder);
                    assert!(gone.freed.iter().all(|block| gone.left.contains(block)));
                    free.extend(&gone.freed);
                } else if num_new > 0 && num_new <= free.len() {
                    let new = free.split_off(free.len() - num_new);
                    let path = runs.grow(path, &new);
                    assert!(runs.hold(path, holder) as usize >= num_new);
                    blocks.extend(new);
                    held.push((path, holder, blocks));
                } else if !blocks.is_empty() {
                    runs.hold(path, holder);
                    held.push((path, holder, blocks));
                }
                let mut all = check(&runs, &held, NUM_BLOCKS);
                all.extend(&free);
                all.sort_unstable();
                assert_eq!(all, ids(0..NUM_BLOCKS), "held or free, once");
            }
        }
    }
}
