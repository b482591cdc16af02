//! Other ways to keep states, as they are published.

use std::collections::{HashMap, VecDeque};

use crate::tree::{Path, Place, SnapshotId, Tree};
use crate::workload::Request;
use crate::{CACHE_BYTES, Outcome};

/// Every policy but ours, the bounds last.
pub(crate) fn all(requests: &[Request]) -> Vec<Outcome> {
    let none = Outcome {
        name: "no cache",
        hits: vec![0; requests.len()],
    };
    let align = run(requests, "block-aligned (align)", CACHE_BYTES, Align);
    let lru = run(requests, "LRU of ends", CACHE_BYTES, Lru);
    // Marconi tunes the weight of efficiency while it runs; here it gets the best in hindsight.
    let weights = [0.0, 0.1, 0.3, 1.0, 3.0, 10.0];
    let tuned = weights.map(|weight| run(requests, "Marconi", CACHE_BYTES, Marconi { weight }));
    let marconi = tuned
        .into_iter()
        .max_by(|a, b| a.hit_rate(requests).total_cmp(&b.hit_rate(requests)))
        .expect("there are weights");
    let mut seen = Seen::default();
    run(requests, "", u64::MAX, &mut seen);
    let endless = endless(requests);
    let hindsight = run(
        requests,
        "hindsight",
        CACHE_BYTES,
        Hindsight { uses: seen.uses },
    );
    vec![none, align, lru, marconi, hindsight, endless]
}

/// Every token that anybody computed before in its place. No policy can hit more.
fn endless(requests: &[Request]) -> Outcome {
    let mut tree = Tree::new();
    let hits = requests.iter().map(|request| {
        let mut whole = request.prompt.clone();
        whole.push(request.answer);
        let known = tree.walk(&whole).num_known;
        known.min(request.prompt_len() - 1)
    });
    Outcome {
        name: "endless memory",
        hits: hits.collect(),
    }
}

/// What a policy decides.
trait Policy {
    /// Positions of a prompt, and of prompt with answer, to keep.
    fn places(&self, request: &Request, path: &Path) -> Vec<u32>;
    /// Who goes; the lowest score.
    fn score(&mut self, tree: &Tree, id: SnapshotId, now: u64) -> f64;
    /// A hit at this place.
    fn note(&mut self, _place: Place, _now: u64) {}
    /// Hits can only be as long as this multiple.
    fn may_go(&self, _tree: &Tree, _id: SnapshotId) -> bool {
        true
    }
}

fn run(requests: &[Request], name: &'static str, budget: u64, mut policy: impl Policy) -> Outcome {
    let mut tree = Tree::new();
    let hits = (0..).zip(requests).map(|(now, request)| {
        let mut whole = request.prompt.clone();
        whole.push(request.answer);
        let path = tree.walk(&whole);
        let hit = tree.longest(&path, request.prompt_len() - 1);
        let len = hit.map_or(0, |id| {
            policy.note(tree.place_of(id), now);
            tree.touch(id, now);
            tree.snapshots[&id].at
        });
        for at in policy.places(request, &path) {
            if at > len {
                tree.save(&path, at, now);
            }
        }
        if tree.bytes > budget {
            evict(&mut tree, &mut policy, budget, now);
        }
        len
    });
    Outcome {
        name,
        hits: hits.collect(),
    }
}

/// Scores are taken once and go stale a little while one request's room is made.
fn evict(tree: &mut Tree, policy: &mut impl Policy, budget: u64, now: u64) {
    while tree.bytes > budget {
        let ids: Vec<SnapshotId> = tree.snapshots.keys().copied().collect();
        let may_go: Vec<SnapshotId> = ids
            .iter()
            .copied()
            .filter(|id| policy.may_go(tree, *id))
            .collect();
        let ids = if may_go.is_empty() { ids } else { may_go };
        let mut scored: Vec<(f64, SnapshotId)> = ids
            .iter()
            .map(|&id| (policy.score(tree, id, now), id))
            .collect();
        scored.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        // A few at once: the order of the next ones hardly depends on these.
        for (_, id) in scored.into_iter().take(4) {
            if tree.bytes <= budget {
                break;
            }
            tree.drop(id);
        }
    }
}

fn ends(request: &Request) -> [u32; 2] {
    let prompt = request.prompt_len();
    // The answer's last token is never computed.
    [prompt - 1, prompt + request.answer.len - 1]
}

/// A state where a step of prefill ends on a block, and at the last whole block of a prompt. A block
/// is as large as a state of a layer: 4.05 MiB of KV at 1 KiB a token and layer.
struct Align;

impl Align {
    const BLOCK: u32 = 4160;
    /// A step of 8,192 tokens, cut to whole blocks.
    const STEP: u32 = Self::BLOCK;
}

impl Policy for Align {
    fn places(&self, request: &Request, _: &Path) -> Vec<u32> {
        let whole = (request.prompt_len() - 1) / Self::BLOCK * Self::BLOCK;
        (1..=whole / Self::STEP)
            .map(|step| step * Self::STEP)
            .collect()
    }

    fn score(&mut self, tree: &Tree, id: SnapshotId, _: u64) -> f64 {
        tree.snapshots[&id].last_use as f64
    }
}

/// A state at the end of each prompt and of each answer; the one used longest ago goes.
struct Lru;

impl Policy for Lru {
    fn places(&self, request: &Request, _: &Path) -> Vec<u32> {
        ends(request).to_vec()
    }

    fn score(&mut self, tree: &Tree, id: SnapshotId, _: u64) -> f64 {
        tree.snapshots[&id].last_use as f64
    }
}

/// arXiv 2411.19379: a state at the end of each answer, and where a prompt parts from a known path for
/// the first time; recency plus weighted tokens saved per byte; states with several ways on stay.
struct Marconi {
    weight: f64,
}

impl Policy for Marconi {
    fn places(&self, request: &Request, path: &Path) -> Vec<u32> {
        let mut places = vec![ends(request)[1]];
        places.extend(path.new_branch.filter(|at| *at < request.prompt_len()));
        places
    }

    fn score(&mut self, tree: &Tree, id: SnapshotId, now: u64) -> f64 {
        let (tokens, bytes) = tree.worth(id);
        let age = (now - tree.snapshots[&id].last_use) as f64;
        let efficiency = f64::from(tokens) / (bytes as f64 / (1 << 20) as f64);
        // Both about between 0 and 1.
        1.0 / (1.0 + age / 100.0) + self.weight * efficiency / 100.0
    }

    fn may_go(&self, tree: &Tree, id: SnapshotId) -> bool {
        tree.has_one_way_on(id)
    }
}

/// A state at every place that anybody here would keep.
fn everywhere(request: &Request, path: &Path) -> Vec<u32> {
    let mut places = request.boundaries();
    places.extend(ends(request));
    places.push(path.num_known);
    places.extend((1..=request.prompt_len() / 8192).map(|line| line * 8192));
    places.retain(|at| *at > 0);
    places
}

/// Never forgets, and writes down what was of use and when.
#[derive(Default)]
struct Seen {
    uses: HashMap<Place, VecDeque<u64>>,
}

impl Policy for &mut Seen {
    fn places(&self, request: &Request, path: &Path) -> Vec<u32> {
        everywhere(request, path)
    }

    fn score(&mut self, _: &Tree, _: SnapshotId, _: u64) -> f64 {
        unreachable!("its memory is endless")
    }

    fn note(&mut self, place: Place, now: u64) {
        self.uses.entry(place).or_default().push_back(now);
    }
}

/// Knows what endless memory would hit, and gives up what is of use last. A bound in spirit: the best
/// choice under one budget for states and shared KV is not known in reasonable time.
struct Hindsight {
    uses: HashMap<Place, VecDeque<u64>>,
}

impl Policy for Hindsight {
    fn places(&self, request: &Request, path: &Path) -> Vec<u32> {
        everywhere(request, path)
    }

    fn score(&mut self, tree: &Tree, id: SnapshotId, now: u64) -> f64 {
        let Some(uses) = self.uses.get_mut(&tree.place_of(id)) else {
            return f64::NEG_INFINITY;
        };
        while uses.front().is_some_and(|next| *next <= now) {
            uses.pop_front();
        }
        uses.front()
            .map_or(f64::NEG_INFINITY, |next| -(*next as f64))
    }
}
