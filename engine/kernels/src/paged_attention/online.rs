//! The online softmax of one job.
//!
//! Lanes are neighbouring keys: a block's keys are turned, once for all rows of a job, so that a
//! vector holds one of their numbers each, and a score is a chain of multiply-adds along `head_dim`.
//! (Lanes along `head_dim` need the sum of a vector per score, which at 32 numbers takes four times as
//! long as its products.) Sums have one order, whatever the number of rows.
#![allow(unsafe_code)]

use std::ops::Range;

use half::bf16;

use crate::RowLayout;
use crate::e4m3::E4m3;
use crate::simd::{Kernel, LANES, Simd, Stored, math};
use crate::team::SharedMut;

/// What all jobs of a call share.
pub(super) struct Attend<'a> {
    /// `[T, heads * head_dim]`.
    pub(super) q: &'a [f32],
    pub(super) cached: Cached<'a>,
    /// What stored keys are multiplied with; the scores are, in their stead.
    pub(super) key_scale: f32,
    /// What stored values are multiplied with; their sums are.
    pub(super) value_scale: f32,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) block_size: usize,
    /// Nobody looks at positions before it.
    pub(super) first_position: usize,
    /// Like the queries.
    pub(super) out: SharedMut<f32>,
}

/// Keys and values, `[num_blocks, block_size, kv_heads, head_dim]` each.
#[derive(Clone, Copy)]
pub(super) enum Cached<'a> {
    F32(&'a [f32], &'a [f32]),
    Bf16(&'a [bf16], &'a [bf16]),
    Fp8(&'a [E4m3], &'a [E4m3]),
}

impl Cached<'_> {
    /// Of one number.
    pub(super) fn num_bytes(self) -> usize {
        match self {
            Self::F32(..) => 4,
            Self::Bf16(..) => 2,
            Self::Fp8(..) => 1,
        }
    }
}

/// Some queries of a row with some heads of one group.
pub(super) struct Job<'a> {
    pub(super) row: &'a RowLayout,
    /// Queries, as tokens of the step.
    pub(super) tokens: Range<usize>,
    pub(super) kv_head: usize,
    /// Query heads.
    pub(super) heads: Range<usize>,
}

impl Job<'_> {
    /// Absolute position of a token.
    fn position(&self, token: usize) -> usize {
        self.row.start + token - self.row.tokens.start
    }

    /// In multiply-adds.
    pub(super) fn cost(&self, head_dim: usize) -> usize {
        2 * self.tokens.len() * self.heads.len() * self.position(self.tokens.end) * head_dim
    }
}

impl Kernel for (&Attend<'_>, &Job<'_>) {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (attend, job) = self;
        let online = Online::new(s, attend, job);
        match attend.cached {
            Cached::F32(keys, values) => online.run(s, keys, values),
            Cached::Bf16(keys, values) => online.run(s, keys, values),
            Cached::Fp8(keys, values) => online.run(s, keys, values),
        }
    }
}

/// Running state of a job; rows are queries times heads, heads inside.
struct Online<'a> {
    attend: &'a Attend<'a>,
    job: &'a Job<'a>,
    /// Scaled queries, `[rows, head_dim]`.
    queries: Vec<f32>,
    /// Keys of a block, `[head_dim, padded]`.
    turned: Vec<f32>,
    /// Scores of a block, then their exponentials, `[rows, padded]`.
    scores: Vec<f32>,
    /// Block size in whole lanes.
    padded: usize,
    /// Largest score so far, per row.
    largest: Vec<f32>,
    /// Sums of exponentials, `[rows, LANES]`.
    weights: Vec<f32>,
    /// Weighted values, `[rows, head_dim]`.
    sums: Vec<f32>,
}

impl<'a> Online<'a> {
    #[inline(always)]
    fn new<S: Simd>(_: S, attend: &'a Attend<'a>, job: &'a Job<'a>) -> Self {
        let (heads, head_dim) = (job.heads.len(), attend.head_dim);
        let rows = job.tokens.len() * heads;
        let scale = (head_dim as f32).sqrt().recip() * attend.key_scale;
        let mut queries = Vec::with_capacity(rows * head_dim);
        for token in job.tokens.clone() {
            let start = (token * attend.heads + job.heads.start) * head_dim;
            queries.extend(
                attend.q[start..start + heads * head_dim]
                    .iter()
                    .map(|q| q * scale),
            );
        }
        let padded = attend.block_size.next_multiple_of(LANES);
        Self {
            attend,
            job,
            queries,
            turned: vec![0.0; head_dim * padded],
            scores: vec![0.0; rows * padded],
            padded,
            largest: vec![f32::NEG_INFINITY; rows],
            weights: vec![0.0; rows * LANES],
            sums: vec![0.0; rows * head_dim],
        }
    }

    #[inline(always)]
    fn run<S: Simd, E: Stored>(mut self, s: S, keys: &[E], values: &[E]) {
        let Attend {
            kv_heads,
            head_dim,
            block_size,
            first_position,
            ..
        } = *self.attend;
        let job = self.job;
        let context = job.position(job.tokens.end);
        let stride = kv_heads * head_dim;
        for (index, start) in (0..context).step_by(block_size).enumerate() {
            let block = job.row.blocks[index] as usize;
            let from = block * block_size * stride + job.kv_head * head_dim;
            let len = block_size.min(context - start);
            let keys = &keys[from..from + (len - 1) * stride + head_dim];
            let values = &values[from..from + (len - 1) * stride + head_dim];
            self.turn(s, keys, stride, len);
            self.score(s);
            let skipped = first_position.saturating_sub(start).min(len);
            if skipped == 0 && job.position(job.tokens.start) + 1 >= start + len {
                self.accumulate(s, 0..self.largest.len(), 0..len, values, stride);
                continue;
            }
            for (number, token) in job.tokens.clone().enumerate() {
                // |-- skipped --|-- seen by this query: limit --|-- later --|
                // start                                              start + len
                let limit = (job.position(token) + 1).saturating_sub(start).min(len);
                if limit > skipped {
                    let rows = number * job.heads.len()..(number + 1) * job.heads.len();
                    self.accumulate(s, rows, skipped..limit, values, stride);
                }
            }
        }
        self.finish(s);
    }

    /// Keys of a block with lanes along positions; those beyond `len` are zero.
    #[inline(always)]
    fn turn<S: Simd, E: Stored>(&mut self, s: S, keys: &[E], stride: usize, len: usize) {
        let (head_dim, padded) = (self.attend.head_dim, self.padded);
        assert!((len - 1) * stride + head_dim <= keys.len() && len <= padded);
        for first in (0..padded).step_by(LANES) {
            let num_keys = LANES.min(len.saturating_sub(first));
            for from in (0..head_dim).step_by(LANES) {
                let n = LANES.min(head_dim - from);
                let mut lanes = [s.splat(0.0); LANES];
                // SAFETY: `num_keys` keys from `first` on lie in the block, each with `n` numbers from
                // `from` on; `turned` has a whole vector of positions at `first` for each of them.
                unsafe {
                    for i in 0..num_keys {
                        let p = keys.as_ptr().add((first + i) * stride + from);
                        lanes[i] = if n == LANES {
                            E::load(s, p)
                        } else {
                            E::load_part(s, p, n)
                        };
                    }
                    let columns = s.transpose(lanes);
                    for i in 0..n {
                        let p = self.turned.as_mut_ptr().add((from + i) * padded + first);
                        s.store(columns[i], p);
                    }
                }
            }
        }
    }

    /// Scores of all rows against the block.
    #[inline(always)]
    fn score<S: Simd>(&mut self, s: S) {
        let rows = self.largest.len();
        let mut row = 0;
        while row < rows {
            let left = rows - row;
            if S::WIDE && left >= 8 {
                self.score_rows::<S, 8>(s, row);
                row += 8;
            } else if S::WIDE && left >= 4 {
                self.score_rows::<S, 4>(s, row);
                row += 4;
            } else if left >= 2 {
                self.score_rows::<S, 2>(s, row);
                row += 2;
            } else {
                self.score_rows::<S, 1>(s, row);
                row += 1;
            }
        }
    }

    #[inline(always)]
    fn score_rows<S: Simd, const MR: usize>(&mut self, s: S, row: usize) {
        let mut at = 0;
        while at < self.padded {
            if S::WIDE && self.padded - at >= 2 * LANES {
                self.score_tile::<S, MR, 2>(s, row, at);
                at += 2 * LANES;
            } else {
                self.score_tile::<S, MR, 1>(s, row, at);
                at += LANES;
            }
        }
    }

    /// Scores of `MR` rows against `NV` vectors of keys.
    #[inline(always)]
    fn score_tile<S: Simd, const MR: usize, const NV: usize>(
        &mut self,
        s: S,
        row: usize,
        at: usize,
    ) {
        let (head_dim, padded) = (self.attend.head_dim, self.padded);
        let queries = &self.queries[row * head_dim..(row + MR) * head_dim];
        let scores = &mut self.scores[row * padded..(row + MR) * padded];
        assert!(at + NV * LANES <= padded && self.turned.len() == head_dim * padded);
        let mut sums = [[s.splat(0.0); NV]; MR];
        // SAFETY: `NV` vectors from `at` on lie in each row of `turned` and of the scores.
        unsafe {
            for d in 0..head_dim {
                let mut keys = [s.splat(0.0); NV];
                for j in 0..NV {
                    keys[j] = s.load(self.turned.as_ptr().add(d * padded + at + j * LANES));
                }
                for i in 0..MR {
                    let query = s.splat(*queries.get_unchecked(i * head_dim + d));
                    for j in 0..NV {
                        sums[i][j] = s.fma(query, keys[j], sums[i][j]);
                    }
                }
            }
            for i in 0..MR {
                for j in 0..NV {
                    let p = scores.as_mut_ptr().add(i * padded + at + j * LANES);
                    s.store(sums[i][j], p);
                }
            }
        }
    }

    /// Adds positions of a block to rows that see the same of it.
    #[inline(always)]
    fn accumulate<S: Simd, E: Stored>(
        &mut self,
        s: S,
        rows: Range<usize>,
        seen: Range<usize>,
        values: &[E],
        stride: usize,
    ) {
        let mut row = rows.start;
        while row < rows.end {
            let left = rows.end - row;
            if S::WIDE && left >= 8 {
                self.accumulate_rows::<S, E, 8>(s, row, seen.clone(), values, stride);
                row += 8;
            } else if S::WIDE && left >= 4 {
                self.accumulate_rows::<S, E, 4>(s, row, seen.clone(), values, stride);
                row += 4;
            } else if left >= 2 {
                self.accumulate_rows::<S, E, 2>(s, row, seen.clone(), values, stride);
                row += 2;
            } else {
                self.accumulate_rows::<S, E, 1>(s, row, seen.clone(), values, stride);
                row += 1;
            }
        }
    }

    #[inline(always)]
    fn accumulate_rows<S: Simd, E: Stored, const MR: usize>(
        &mut self,
        s: S,
        row: usize,
        seen: Range<usize>,
        values: &[E],
        stride: usize,
    ) {
        let mut corrections = [s.splat(0.0); MR];
        for i in 0..MR {
            corrections[i] = self.exponentials(s, row + i, seen.clone());
        }
        let head_dim = self.attend.head_dim;
        let mut at = 0;
        while at < head_dim {
            if S::WIDE && head_dim - at >= 2 * LANES {
                self.add_values::<S, E, MR, 2>(
                    s,
                    row,
                    seen.clone(),
                    values,
                    stride,
                    at,
                    &corrections,
                );
                at += 2 * LANES;
            } else {
                self.add_values::<S, E, MR, 1>(
                    s,
                    row,
                    seen.clone(),
                    values,
                    stride,
                    at,
                    &corrections,
                );
                at += LANES;
            }
        }
    }

    /// The part of the sums of `MR` rows that lies in `NV` vectors from `at` on; the last one may be a
    /// part of a vector.
    #[allow(clippy::too_many_arguments)]
    #[inline(always)]
    fn add_values<S: Simd, E: Stored, const MR: usize, const NV: usize>(
        &mut self,
        s: S,
        row: usize,
        seen: Range<usize>,
        values: &[E],
        stride: usize,
        at: usize,
        corrections: &[S::V; MR],
    ) {
        let (head_dim, padded) = (self.attend.head_dim, self.padded);
        assert!((seen.end - 1) * stride + head_dim <= values.len());
        let scores = &self.scores[row * padded..(row + MR) * padded];
        let sums = &mut self.sums[row * head_dim..(row + MR) * head_dim];
        let last = LANES.min(head_dim - at - (NV - 1) * LANES);
        // SAFETY: `NV` vectors, of which the last has `last` elements, are left in each row of the sums
        // and in each of the values that are seen; a row of scores holds at least as many.
        unsafe {
            let mut lanes = [[s.splat(0.0); NV]; MR];
            for i in 0..MR {
                for j in 0..NV {
                    let n = if j + 1 == NV { last } else { LANES };
                    let old = s.load_part(sums.as_ptr().add(i * head_dim + at + j * LANES), n);
                    lanes[i][j] = s.mul(old, corrections[i]);
                }
            }
            for position in seen {
                let mut value = [s.splat(0.0); NV];
                for j in 0..NV {
                    let p = values.as_ptr().add(position * stride + at + j * LANES);
                    value[j] = if j + 1 < NV || last == LANES {
                        E::load(s, p)
                    } else {
                        E::load_part(s, p, last)
                    };
                }
                for i in 0..MR {
                    let weight = s.splat(*scores.get_unchecked(i * padded + position));
                    for j in 0..NV {
                        lanes[i][j] = s.fma(weight, value[j], lanes[i][j]);
                    }
                }
            }
            for i in 0..MR {
                for j in 0..NV {
                    let n = if j + 1 == NV { last } else { LANES };
                    let p = sums.as_mut_ptr().add(i * head_dim + at + j * LANES);
                    s.store_part(lanes[i][j], p, n);
                }
            }
        }
    }

    /// Turns a row's scores of what is seen into exponentials over the running maximum, adds them to
    /// its weight, and returns what earlier sums must be multiplied with.
    #[inline(always)]
    fn exponentials<S: Simd>(&mut self, s: S, row: usize, seen: Range<usize>) -> S::V {
        let whole = seen.end.next_multiple_of(LANES);
        let scores = &mut self.scores[row * self.padded..][..whole];
        // Other positions weigh nothing.
        scores[..seen.start].fill(f32::NEG_INFINITY);
        scores[seen.end..].fill(f32::NEG_INFINITY);
        let before = self.largest[row];
        let mut largest = s.splat(before);
        let mut at = 0;
        while at < whole {
            // SAFETY: whole lanes of the row.
            largest = s.max(unsafe { s.load(scores.as_ptr().add(at)) }, largest);
            at += LANES;
        }
        let now = s.largest(largest);
        self.largest[row] = now;
        // Most blocks have no new maximum, and `exp(0)` is one to the bit.
        let unmoved = now == before;
        let now = s.splat(now);
        let correction = if unmoved {
            s.splat(1.0)
        } else {
            math::exp(s, s.sub(s.splat(before), now))
        };
        // SAFETY: a row of weights is one vector; scores as above.
        unsafe {
            let weight = self.weights.as_mut_ptr().add(row * LANES);
            let mut sum = s.mul(s.load(weight), correction);
            let mut at = 0;
            while at < whole {
                let score = s.load(scores.as_ptr().add(at));
                let exponential = math::exp(s, s.sub(score, now));
                s.store(exponential, scores.as_mut_ptr().add(at));
                sum = s.add(sum, exponential);
                at += LANES;
            }
            s.store(sum, weight);
        }
        correction
    }

    /// Divides and writes.
    #[inline(always)]
    fn finish<S: Simd>(&self, s: S) {
        let (heads, head_dim) = (self.job.heads.len(), self.attend.head_dim);
        for row in 0..self.largest.len() {
            let token = self.job.tokens.start + row / heads;
            let head = self.job.heads.start + row % heads;
            // SAFETY: a row of weights is one vector; the output of this query and head is this
            // job's alone and inside `out`, which is as long as `q`.
            let (total, out) = unsafe {
                (
                    s.sum(s.load(self.weights.as_ptr().add(row * LANES))),
                    self.attend
                        .out
                        .slice((token * self.attend.heads + head) * head_dim, head_dim),
                )
            };
            for (out, sum) in out.iter_mut().zip(&self.sums[row * head_dim..]) {
                *out = sum * self.attend.value_scale / total;
            }
        }
    }
}
