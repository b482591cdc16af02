//! Prompts as paths in a tree of segments; snapshots of state on them; the memory of both.

use std::collections::{BTreeMap, HashMap};

use crate::workload::Segment;
use crate::{STATE_BYTES, TOKEN_BYTES};

/// A stretch of text behind one certain history.
struct Node {
    parent: usize,
    len: u32,
    /// Tokens before it.
    start: u32,
    children: HashMap<u64, usize>,
    /// Snapshots of this stretch, by position.
    snapshots: BTreeMap<u32, SnapshotId>,
    /// Snapshots further down, which need all of its KV.
    num_below: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SnapshotId(u64);

/// The state after `at` tokens of a path.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Snapshot {
    node: usize,
    pub(crate) at: u32,
    pub(crate) last_use: u64,
}

/// A place on a path, whether there is a snapshot or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Place {
    node: usize,
    pub(crate) at: u32,
}

/// A prompt's way down, as far as anybody went it before.
pub(crate) struct Path {
    nodes: Vec<usize>,
    /// Tokens that somebody computed before.
    pub(crate) num_known: u32,
    /// Where others went on differently and nobody had parted before.
    pub(crate) new_branch: Option<u32>,
}

pub(crate) struct Tree {
    nodes: Vec<Node>,
    pub(crate) snapshots: BTreeMap<SnapshotId, Snapshot>,
    next_id: u64,
    pub(crate) bytes: u64,
}

impl Tree {
    pub(crate) fn new() -> Self {
        let root = Node {
            parent: 0,
            len: 0,
            start: 0,
            children: HashMap::new(),
            snapshots: BTreeMap::new(),
            num_below: 0,
        };
        Self {
            nodes: vec![root],
            snapshots: BTreeMap::new(),
            next_id: 0,
            bytes: 0,
        }
    }

    /// The path of `segments`, made where it is new.
    pub(crate) fn walk(&mut self, segments: &[Segment]) -> Path {
        let mut path = Path {
            nodes: vec![0],
            num_known: 0,
            new_branch: None,
        };
        let (mut at, mut known) = (0, true);
        for segment in segments {
            let node = *path.nodes.last().expect("the root");
            let next = self.nodes[node].children.get(&segment.id).copied();
            let next = next.unwrap_or_else(|| {
                if known && node != 0 && self.nodes[node].children.len() == 1 {
                    path.new_branch = Some(at);
                }
                known = false;
                let new = self.nodes.len();
                self.nodes[node].children.insert(segment.id, new);
                self.nodes.push(Node {
                    parent: node,
                    len: segment.len,
                    start: at,
                    children: HashMap::new(),
                    snapshots: BTreeMap::new(),
                    num_below: 0,
                });
                new
            });
            at += segment.len;
            if known {
                path.num_known = at;
            }
            path.nodes.push(next);
        }
        path
    }

    /// The longest snapshot of at most `max` tokens on a path.
    pub(crate) fn longest(&self, path: &Path, max: u32) -> Option<SnapshotId> {
        let nodes = path.nodes.iter().rev();
        let mut found = nodes.filter_map(|&node| {
            let (_, id) = self.nodes[node].snapshots.range(..=max).next_back()?;
            Some(*id)
        });
        found.next()
    }

    /// The place after `at` tokens of a path.
    pub(crate) fn place(&self, path: &Path, at: u32) -> Place {
        let holds = |&&node: &&usize| {
            let node = &self.nodes[node];
            node.start < at && at <= node.start + node.len
        };
        let node = *path.nodes.iter().find(holds).expect("within the path");
        Place { node, at }
    }

    pub(crate) fn place_of(&self, id: SnapshotId) -> Place {
        let snapshot = &self.snapshots[&id];
        Place {
            node: snapshot.node,
            at: snapshot.at,
        }
    }

    /// Keeps a state, or counts it as used if it is kept already.
    pub(crate) fn save(&mut self, path: &Path, at: u32, now: u64) -> SnapshotId {
        let place = self.place(path, at);
        if let Some(&id) = self.nodes[place.node].snapshots.get(&at) {
            self.touch(id, now);
            return id;
        }
        let id = SnapshotId(self.next_id);
        self.next_id += 1;
        self.snapshots.insert(
            id,
            Snapshot {
                node: place.node,
                at,
                last_use: now,
            },
        );
        self.change(place.node, |node| {
            node.snapshots.insert(at, id);
        });
        self.count_below(place.node, 1);
        self.bytes += STATE_BYTES;
        id
    }

    pub(crate) fn touch(&mut self, id: SnapshotId, now: u64) {
        self.snapshots.get_mut(&id).expect("it is kept").last_use = now;
    }

    /// Gives up a state and the KV that nobody else needs.
    pub(crate) fn drop(&mut self, id: SnapshotId) {
        let snapshot = self.snapshots.remove(&id).expect("it is kept");
        self.change(snapshot.node, |node| {
            node.snapshots.remove(&snapshot.at);
        });
        self.count_below(snapshot.node, -1);
        self.bytes -= STATE_BYTES;
    }

    /// Whether nobody, or one path only, goes on behind it.
    pub(crate) fn has_one_way_on(&self, id: SnapshotId) -> bool {
        let snapshot = &self.snapshots[&id];
        let node = &self.nodes[snapshot.node];
        snapshot.at < node.start + node.len || node.children.len() <= 1
    }

    /// Tokens that it saves over the next shorter snapshot of its path, and bytes that it frees.
    pub(crate) fn worth(&self, id: SnapshotId) -> (u32, u64) {
        let snapshot = &self.snapshots[&id];
        let node = &self.nodes[snapshot.node];
        let mut shorter = node
            .snapshots
            .range(..snapshot.at)
            .next_back()
            .map(|(at, _)| *at);
        let mut up = snapshot.node;
        while shorter.is_none() && up != 0 {
            up = self.nodes[up].parent;
            shorter = self.nodes[up].snapshots.keys().next_back().copied();
        }
        let shorter = shorter.unwrap_or(0);
        let is_last =
            node.num_below == 0 && node.snapshots.keys().next_back() == Some(&snapshot.at);
        // Segments are whole on most paths: what lies between the two is its own, roughly.
        let own = if is_last {
            u64::from(snapshot.at - shorter) * TOKEN_BYTES
        } else {
            0
        };
        (snapshot.at - shorter, STATE_BYTES + own)
    }

    fn count_below(&mut self, node: usize, change: i32) {
        let mut up = node;
        while up != 0 {
            up = self.nodes[up].parent;
            self.change(up, |node| {
                node.num_below = node.num_below.strict_add_signed(change);
            });
        }
    }

    fn change(&mut self, node: usize, change: impl FnOnce(&mut Node)) {
        let node = &mut self.nodes[node];
        let before = node.held();
        change(node);
        let after = node.held();
        self.bytes += u64::from(after) * TOKEN_BYTES;
        self.bytes -= u64::from(before) * TOKEN_BYTES;
    }
}

impl Node {
    /// Tokens of it whose KV is needed.
    fn held(&self) -> u32 {
        if self.num_below > 0 {
            return self.len;
        }
        self.snapshots
            .keys()
            .next_back()
            .map_or(0, |at| at - self.start)
    }
}
