//! What the host needs of a row of logits to draw its token, in one small read-back a step.
//!
//! A row is 512 KiB at Super's vocabulary; a shortlist is two or three. The device sends what can
//! decide: the most likely tokens, the largest after Gumbel noise (the sampler's own: a hash of its
//! key and the token), the total mass, the largest logit and the sum of exponentials for
//! log-probabilities. The host finishes the draw in f64 and proves that no other token can have won,
//! or asks for the row ([`decide`]).
//!
//! Tokens whose logits the host changes (penalties, biases, bans) are **edited**: they leave the
//! shortlist and their raw logits come back by themselves, so that the host changes them with its
//! own arithmetic and no rounding is done twice. A grammar's mask is the one thing applied here.
//!
//! Shapes: logits f32 `[p, v]`. Two launches: a cube per [`CHUNK`] logits of a row selects among
//! them, a cube per row selects among those; a third gathers single logits. Selection bisects the
//! key of the last one taken, 32 counts, in registers; sorting would move the row several times and
//! atomics would need a second read. Bytes moved: `4 p v`, once; latency binds below some 16 rows
//! (32 rounds of a cube's barrier per list), bandwidth beyond.

mod decide;
mod kernels;

pub use decide::{Decision, Draw, decide};

use cubecl::client::Client;

use crate::Buffer;
use kernels::{CHUNK, HEADER, Plan};

/// What is wanted of one row.
#[derive(Clone, Copy, Debug, Default)]
pub struct SampleRequest<'a> {
    /// The tokens that may come, 32 a word, the lowest first; all of them without one. Tokens
    /// beyond its words may not come.
    pub mask: Option<&'a [u32]>,
    /// Tokens to keep out of `likely` and `noisy` and to send back raw; ascending, below `v`.
    pub edited: &'a [u32],
    /// Tokens whose raw logits are wanted, below `v`.
    pub wanted: &'a [u32],
    /// How many of the largest raw logits, for log-probabilities; at most [`MAX_LIST`].
    pub num_top: usize,
    /// How many of the most likely tokens; at most [`MAX_LIST`]. One for a greedy row; 64 or 256
    /// where `top_k`, `top_p` or `min_p` truncate.
    pub num_likely: usize,
    /// Noise, for rows with a temperature.
    pub noise: Option<Noise>,
}

/// Gumbel noise for one row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Noise {
    /// Key of the draw: the noise of a token is a hash of it and the token.
    pub stream: u64,
    /// What logits are divided by, above zero.
    pub temperature: f32,
    /// How many of the largest sums; at most [`MAX_LIST`]. 16 leave hardly a row undecided.
    pub count: usize,
}

/// Most tokens of a list.
pub const MAX_LIST: usize = 256;

/// A token and its raw logit.
pub type Candidate = (u32, f32);

/// What came back of one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Shortlist {
    /// Whether no logit is NaN and the largest is finite.
    pub is_sound: bool,
    /// The largest raw logit.
    pub max: f32,
    /// The sum of `exp(logit - max)` over the raw row, good to 1e-5 of itself.
    pub sum: f32,
    /// The largest raw logits, best first.
    pub top: Vec<Candidate>,
    /// The most likely of the tokens that may come and are not edited, best first, minus infinity
    /// left out: descending by logit, ascending by token among equals.
    pub likely: Vec<Candidate>,
    /// Whether there may be more of those.
    pub has_more: bool,
    /// The largest logit among them, listed or not; minus infinity if there is none.
    pub likely_max: f32,
    /// The sum of `exp((logit - likely_max) / temperature)` over them, good to [`MASS_ERROR`] of
    /// itself; zero without noise.
    pub mass: f32,
    /// Those with the largest `logit / temperature + noise`, in no order.
    pub noisy: Vec<Candidate>,
    /// The least of the device's sums that `noisy` has, if there may be more tokens.
    pub noisy_bound: Option<f32>,
    /// Raw logits of `edited`.
    pub edited: Vec<f32>,
    /// Raw logits of `wanted`.
    pub wanted: Vec<f32>,
}

/// How far off [`Shortlist::mass`] may be, as a share of it.
pub const MASS_ERROR: f64 = 1e-4;

/// Shortlists on their way.
#[derive(Debug)]
pub struct Pending {
    words: Buffer,
    rows: Vec<Row>,
    /// Where single logits begin.
    singles: usize,
}

/// Where the parts of a row's answer lie; edited and wanted logits count from the first single one.
#[derive(Debug)]
struct Row {
    header: usize,
    /// Most tokens of each list, and the words at which they begin.
    lists: [(usize, usize); 3],
    edited: (usize, usize),
    wanted: (usize, usize),
}

/// Starts the shortlists of `p` rows of `v` logits, one request per row.
///
/// # Panics
/// If a request names tokens beyond `v`, edits that do not ascend, or too long a list.
pub fn shortlist(
    client: &Client,
    logits: &Buffer,
    p: usize,
    v: usize,
    requests: &[SampleRequest<'_>],
) -> Pending {
    assert_eq!(logits.len(), p * v, "logits");
    assert_eq!(requests.len(), p, "requests");
    assert!(u32::try_from(p * v).is_ok(), "{p} rows of {v} logits");
    let chunks = v.div_ceil(CHUNK);
    let mut plan = Plan::default();
    let mut rows = Vec::with_capacity(p);
    for (row, request) in requests.iter().enumerate() {
        check(request, v);
        rows.push(plan.push(row, v, chunks, request));
    }
    let (words, singles) = plan.run(client, logits, v, chunks);
    Pending {
        words,
        rows,
        singles,
    }
}

fn check(request: &SampleRequest<'_>, v: usize) {
    let noisy = request.noise.map_or(0, |noise| noise.count);
    let longest = request.num_top.max(request.num_likely).max(noisy);
    assert!(longest <= MAX_LIST, "a list of {longest} tokens");
    let is_in = |tokens: &[u32]| tokens.iter().all(|&token| (token as usize) < v);
    assert!(
        is_in(request.edited) && is_in(request.wanted),
        "a token beyond {v}"
    );
    assert!(request.edited.is_sorted(), "edits ascend");
    if let Some(noise) = request.noise {
        assert!(noise.temperature > 0.0, "noise at {}", noise.temperature);
    }
}

impl Pending {
    /// What [`read`](Self::read) will read.
    pub fn num_bytes(&self) -> usize {
        self.words.len() * size_of::<u32>()
    }

    /// Waits for all rows at once: the only read-back.
    pub fn read(self, client: &Client) -> Vec<Shortlist> {
        let words: Vec<u32> = self.words.read(client);
        let (words, singles) = words.split_at(self.singles);
        self.rows
            .iter()
            .map(|row| row.read(words, singles))
            .collect()
    }
}

impl Row {
    fn read(&self, words: &[u32], singles: &[u32]) -> Shortlist {
        let header = &words[self.header..][..HEADER];
        let float = |at: usize| f32::from_bits(header[at]);
        let list = |of: usize| -> Vec<Candidate> {
            words[self.lists[of].1..][..2 * header[5 + of] as usize]
                .chunks_exact(2)
                .map(|pair| (pair[0], f32::from_bits(pair[1])))
                .collect()
        };
        let sorted = |of: usize| {
            let mut list = list(of);
            list.sort_unstable_by(|a, b| decide::more_likely(*a, *b));
            list
        };
        let floats = |(at, len): (usize, usize)| -> Vec<f32> {
            singles[at..at + len]
                .iter()
                .map(|&w| f32::from_bits(w))
                .collect()
        };
        let is_full = |of: usize| header[5 + of] as usize == self.lists[of].0;
        let max = float(1);
        Shortlist {
            is_sound: header[0] == 0 && max.is_finite(),
            max,
            sum: float(2),
            top: sorted(0),
            likely: sorted(1),
            has_more: is_full(1),
            likely_max: float(3),
            mass: float(4),
            noisy: list(2),
            noisy_bound: (self.lists[2].0 > 0 && is_full(2)).then(|| float(8)),
            edited: floats(self.edited),
            wanted: floats(self.wanted),
        }
    }
}
