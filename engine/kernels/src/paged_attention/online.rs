//! The online softmax of one job.
//!
//! It goes from span to span of some 64 positions, on a grid of absolute positions: a row looks for its
//! largest score and touches its sums once a span. The span's keys and values are laid out once for all
//! rows of a job, see [`words`](super::words).
//!
//! Lanes are neighbouring keys: they are turned, so that a vector holds one word of each, and a score is
//! a chain of multiply-adds along `head_dim`. (Lanes along `head_dim` need the sum of a vector per score,
//! which at 32 numbers takes four times as long as its products.) Sums have one order, whatever the
//! number of rows.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::ops::Range;

use half::bf16;

use super::words::{Pairs, Single, Words};
use crate::RowLayout;
use crate::e4m3::E4m3;
use crate::simd::{Kernel, LANES, Simd, math};
use crate::team::SharedMut;

/// Positions of a span, unless a block has more: enough to hide what is done once a span, few enough
/// that its keys and values stay in a core's own caches.
const SPAN: usize = 64;

/// Bytes.
const CACHE_LINE: usize = 64;

/// Rows that are multiplied at once, at most.
const TILE: usize = 8;

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
    /// Whether queries and the weights of values may be rounded to bf16.
    pub(super) rounded: bool,
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
        let pairs = attend.rounded && S::BF16_DOT && attend.head_dim.is_multiple_of(2);
        match attend.cached {
            Cached::F32(keys, values) => {
                Online::<Single<f32>>::new(attend, job).run(s, keys, values);
            }
            Cached::Bf16(keys, values) if pairs => {
                Online::<Pairs>::new(attend, job).run(s, keys, values);
            }
            Cached::Bf16(keys, values) => {
                Online::<Single<bf16>>::new(attend, job).run(s, keys, values);
            }
            Cached::Fp8(keys, values) => {
                Online::<Single<E4m3>>::new(attend, job).run(s, keys, values);
            }
        }
    }
}

/// Running state of a job; rows are queries times heads, heads inside.
struct Online<'a, W> {
    attend: &'a Attend<'a>,
    job: &'a Job<'a>,
    /// Positions: whole blocks.
    span: usize,
    /// The span in whole pairs of vectors.
    padded: usize,
    /// `head_dim` in whole vectors.
    width: usize,
    /// Words of a query.
    num_words: usize,
    /// Scaled queries, words `[rows, num_words]`.
    queries: Vec<f32>,
    /// Where the positions of a span begin in the pools.
    places: Vec<usize>,
    /// Those of the next span.
    ahead: Vec<usize>,
    /// Keys of a span, words `[num_words, padded]`.
    keys: Vec<f32>,
    /// Values of a span, words `[span / PER_WORD, width]`.
    values: Vec<f32>,
    /// Scores of a tile, then words of their exponentials, `[TILE, padded]`.
    scores: Vec<f32>,
    /// Largest score so far, per row.
    largest: Vec<f32>,
    /// Sums of exponentials, `[rows, LANES]`.
    weights: Vec<f32>,
    /// Weighted values, `[rows, width]`.
    sums: Vec<f32>,
    words: PhantomData<W>,
}

impl<'a, W: Words> Online<'a, W> {
    #[inline(always)]
    fn new(attend: &'a Attend<'a>, job: &'a Job<'a>) -> Self {
        let (heads, head_dim) = (job.heads.len(), attend.head_dim);
        let rows = job.tokens.len() * heads;
        let scale = (head_dim as f32).sqrt().recip() * attend.key_scale;
        let num_words = head_dim / W::PER_WORD;
        let mut queries = Vec::with_capacity(rows * num_words);
        for token in job.tokens.clone() {
            let start = (token * attend.heads + job.heads.start) * head_dim;
            let numbers = attend.q[start..start + heads * head_dim].chunks_exact(W::PER_WORD);
            queries.extend(numbers.map(|numbers| W::query(numbers, scale)));
        }
        let block_size = attend.block_size;
        let span = block_size * (SPAN / block_size).max(1);
        let padded = span.next_multiple_of(2 * LANES);
        let width = head_dim.next_multiple_of(LANES);
        Self {
            attend,
            job,
            span,
            padded,
            width,
            num_words,
            queries,
            places: Vec::with_capacity(span),
            ahead: Vec::with_capacity(span),
            keys: vec![0.0; num_words * padded],
            values: vec![0.0; span.div_ceil(W::PER_WORD) * width],
            scores: vec![0.0; TILE * padded],
            largest: vec![f32::NEG_INFINITY; rows],
            weights: vec![0.0; rows * LANES],
            sums: vec![0.0; rows * width],
            words: PhantomData,
        }
    }

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S, keys: &[W::Stored], values: &[W::Stored]) {
        let job = self.job;
        let context = job.position(job.tokens.end);
        // Spans that nobody looks at are not gone through.
        let first = self.attend.first_position / self.span * self.span;
        self.find_ahead(first, context);
        for start in (first..context).step_by(self.span) {
            std::mem::swap(&mut self.places, &mut self.ahead);
            self.find_ahead(start + self.span, context);
            let len = self.places.len();
            let skipped = self.attend.first_position.saturating_sub(start).min(len);
            self.lay_keys(s, keys);
            self.lay_values(s, values, skipped..len);
            if job.position(job.tokens.start) + 1 >= start + len {
                self.add_rows(s, 0..self.largest.len(), skipped..len);
                continue;
            }
            for (number, token) in job.tokens.clone().enumerate() {
                // |-- skipped --|-- seen by this query: limit --|-- later --|
                // start                                              start + len
                let limit = (job.position(token) + 1).saturating_sub(start).min(len);
                if limit > skipped {
                    let rows = number * job.heads.len()..(number + 1) * job.heads.len();
                    self.add_rows(s, rows, skipped..limit);
                }
            }
        }
        self.finish(s);
    }

    /// Finds the places of the span that begins at `start`.
    #[inline(always)]
    fn find_ahead(&mut self, start: usize, context: usize) {
        let Attend {
            kv_heads,
            head_dim,
            block_size,
            ..
        } = *self.attend;
        let stride = kv_heads * head_dim;
        self.ahead.clear();
        for start in (start..context.min(start + self.span)).step_by(block_size) {
            let block = self.job.row.blocks[start / block_size] as usize;
            let first = block * block_size * stride + self.job.kv_head * head_dim;
            let len = block_size.min(context - start);
            let places = (0..len).map(|offset| first + offset * stride);
            self.ahead.extend(places);
        }
    }

    /// Asks for the numbers that the next span has in the place of this one's position: a head's are too
    /// short a piece of the pool for the machine to foresee the next.
    #[inline(always)]
    fn prefetch<S: Simd>(&self, s: S, pool: &[W::Stored], position: usize) {
        if let Some(&place) = self.ahead.get(position) {
            let numbers = CACHE_LINE / size_of::<W::Stored>();
            let last = self.attend.head_dim - 1;
            for at in (0..last).step_by(numbers) {
                s.prefetch(pool.as_ptr().wrapping_add(place + at));
            }
            s.prefetch(pool.as_ptr().wrapping_add(place + last));
        }
    }

    /// Turns keys so that lanes are positions. Those beyond the last hold anything.
    #[inline(always)]
    fn lay_keys<S: Simd>(&mut self, s: S, keys: &[W::Stored]) {
        let (num_words, padded, len) = (self.num_words, self.padded, self.places.len());
        for &place in &self.places {
            assert!(place + self.attend.head_dim <= keys.len());
        }
        for first in (0..len).step_by(LANES) {
            let num_keys = LANES.min(len - first);
            for position in first..first + num_keys {
                self.prefetch(s, keys, position);
            }
            for from in (0..num_words).step_by(LANES) {
                let n = LANES.min(num_words - from);
                let mut lanes = [s.splat(0.0); LANES];
                // SAFETY: a place has `head_dim` numbers behind it, checked above, which are
                // `num_words` words; `keys` has a whole vector of positions at `first` for each.
                unsafe {
                    for i in 0..num_keys {
                        let place = *self.places.get_unchecked(first + i);
                        lanes[i] = W::key(s, keys.as_ptr().add(place + from * W::PER_WORD), n);
                    }
                    let columns = s.transpose(lanes);
                    for i in 0..n {
                        let p = self.keys.as_mut_ptr().add((from + i) * padded + first);
                        s.store(columns[i], p);
                    }
                }
            }
        }
    }

    /// Copies the values that somebody sees; where a word holds others, they are zero.
    #[inline(always)]
    fn lay_values<S: Simd>(&mut self, s: S, values: &[W::Stored], seen: Range<usize>) {
        let (head_dim, width) = (self.attend.head_dim, self.width);
        for &place in &self.places[seen.clone()] {
            assert!(place + head_dim <= values.len());
        }
        let nothing = [W::Stored::default(); LANES];
        for word in words_of::<W>(&seen) {
            for position in word * W::PER_WORD..(word + 1) * W::PER_WORD {
                self.prefetch(s, values, position);
            }
            for at in (0..head_dim).step_by(LANES) {
                let n = LANES.min(head_dim - at);
                let part = |position: usize| {
                    if seen.contains(&position) {
                        let place = self.places[position] + at;
                        values[place..].as_ptr()
                    } else {
                        nothing.as_ptr()
                    }
                };
                let first = part(word * W::PER_WORD);
                let last = part(word * W::PER_WORD + W::PER_WORD - 1);
                // SAFETY: both have `n` numbers; a row of `values` is whole vectors.
                unsafe {
                    let laid = W::values(s, first, last, n);
                    s.store(laid, self.values.as_mut_ptr().add(word * width + at));
                }
            }
        }
    }

    /// Adds positions of the span to rows that see the same of it.
    #[inline(always)]
    fn add_rows<S: Simd>(&mut self, s: S, rows: Range<usize>, seen: Range<usize>) {
        let mut row = rows.start;
        while row < rows.end {
            let left = rows.end - row;
            if S::WIDE && left >= 8 {
                self.add_tile::<S, 8>(s, row, &seen);
                row += 8;
            } else if S::WIDE && left >= 4 {
                self.add_tile::<S, 4>(s, row, &seen);
                row += 4;
            } else if left >= 2 {
                self.add_tile::<S, 2>(s, row, &seen);
                row += 2;
            } else {
                self.add_tile::<S, 1>(s, row, &seen);
                row += 1;
            }
        }
    }

    /// The same for `MR` rows.
    #[inline(always)]
    fn add_tile<S: Simd, const MR: usize>(&mut self, s: S, row: usize, seen: &Range<usize>) {
        let whole = seen.end.next_multiple_of(2 * LANES);
        for at in (0..whole).step_by(2 * LANES) {
            if S::WIDE {
                self.score::<S, MR, 2>(s, row, at);
            } else {
                self.score::<S, MR, 1>(s, row, at);
                self.score::<S, MR, 1>(s, row, at + LANES);
            }
        }
        let mut corrections = [s.splat(0.0); MR];
        for i in 0..MR {
            corrections[i] = self.exponentials(s, i, row + i, seen);
        }
        let mut at = 0;
        while at < self.width {
            if S::WIDE && self.width - at >= 2 * LANES {
                self.add_values::<S, MR, 2>(s, row, seen, at, &corrections);
                at += 2 * LANES;
            } else {
                self.add_values::<S, MR, 1>(s, row, seen, at, &corrections);
                at += LANES;
            }
        }
    }

    /// Scores of `MR` rows against `NV` vectors of keys.
    #[inline(always)]
    fn score<S: Simd, const MR: usize, const NV: usize>(&mut self, s: S, row: usize, at: usize) {
        let (num_words, padded) = (self.num_words, self.padded);
        let queries = &self.queries[row * num_words..(row + MR) * num_words];
        assert!(at + NV * LANES <= padded && self.keys.len() == num_words * padded);
        let scores = &mut self.scores[..MR * padded];
        let mut sums = [[s.splat(0.0); NV]; MR];
        // SAFETY: `NV` vectors from `at` on lie in each row of the keys and of the scores.
        unsafe {
            for word in 0..num_words {
                let mut keys = [s.splat(0.0); NV];
                for j in 0..NV {
                    keys[j] = s.load(self.keys.as_ptr().add(word * padded + at + j * LANES));
                }
                for i in 0..MR {
                    let query = s.splat(*queries.get_unchecked(i * num_words + word));
                    for j in 0..NV {
                        sums[i][j] = W::multiply_add(s, query, keys[j], sums[i][j]);
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

    /// Turns the scores of what a row sees into words of exponentials over the running maximum, adds
    /// them to its weight, and returns what earlier sums must be multiplied with.
    #[inline(always)]
    fn exponentials<S: Simd>(&mut self, s: S, i: usize, row: usize, seen: &Range<usize>) -> S::V {
        let whole = seen.end.next_multiple_of(2 * LANES);
        let scores = &mut self.scores[i * self.padded..][..whole];
        // Other positions weigh nothing.
        scores[..seen.start].fill(f32::NEG_INFINITY);
        scores[seen.end..].fill(f32::NEG_INFINITY);
        let before = self.largest[row];
        let mut largest = s.splat(before);
        for at in (0..whole).step_by(LANES) {
            // SAFETY: whole lanes of the row.
            largest = s.max(unsafe { s.load(scores.as_ptr().add(at)) }, largest);
        }
        let now = s.largest(largest);
        self.largest[row] = now;
        // Most spans have no new maximum, and `exp(0)` is one to the bit.
        let unmoved = now == before;
        let now = s.splat(now);
        let correction = if unmoved {
            s.splat(1.0)
        } else {
            math::exp(s, s.sub(s.splat(before), now))
        };
        // SAFETY: a row of weights is one vector; scores as above. Words go to where their scores were or
        // before that, after both vectors were read.
        unsafe {
            let weight = self.weights.as_mut_ptr().add(row * LANES);
            let mut sum = s.mul(s.load(weight), correction);
            for at in (0..whole).step_by(2 * LANES) {
                let first = s.load(scores.as_ptr().add(at));
                let second = s.load(scores.as_ptr().add(at + LANES));
                let exponentials = [
                    math::exp(s, s.sub(first, now)),
                    math::exp(s, s.sub(second, now)),
                ];
                let p = scores.as_mut_ptr().add(at / W::PER_WORD);
                sum = W::weights(s, exponentials, p, sum);
            }
            s.store(sum, weight);
        }
        correction
    }

    /// The part of the sums of `MR` rows that lies in `NV` vectors from `at` on.
    #[inline(always)]
    fn add_values<S: Simd, const MR: usize, const NV: usize>(
        &mut self,
        s: S,
        row: usize,
        seen: &Range<usize>,
        at: usize,
        corrections: &[S::V; MR],
    ) {
        let (width, padded) = (self.width, self.padded);
        let words = words_of::<W>(seen);
        assert!(at + NV * LANES <= width && words.end * width <= self.values.len());
        let scores = &self.scores[..MR * padded];
        let sums = &mut self.sums[row * width..(row + MR) * width];
        // SAFETY: `NV` vectors from `at` on lie in each row of the sums and of the values; a row of
        // scores has at least as many words as are seen.
        unsafe {
            let mut lanes = [[s.splat(0.0); NV]; MR];
            for i in 0..MR {
                for j in 0..NV {
                    let old = s.load(sums.as_ptr().add(i * width + at + j * LANES));
                    lanes[i][j] = s.mul(old, corrections[i]);
                }
            }
            for word in words {
                // Its second number is a later token's: even with no weight an infinite one would be seen.
                let is_half = (word + 1) * W::PER_WORD > seen.end;
                let mut values = [s.splat(0.0); NV];
                for j in 0..NV {
                    let value = s.load(self.values.as_ptr().add(word * width + at + j * LANES));
                    values[j] = if is_half { W::first(s, value) } else { value };
                }
                for i in 0..MR {
                    let weight = s.splat(*scores.get_unchecked(i * padded + word));
                    for j in 0..NV {
                        lanes[i][j] = W::multiply_add(s, weight, values[j], lanes[i][j]);
                    }
                }
            }
            for i in 0..MR {
                for j in 0..NV {
                    let p = sums.as_mut_ptr().add(i * width + at + j * LANES);
                    s.store(lanes[i][j], p);
                }
            }
        }
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
            for (out, sum) in out.iter_mut().zip(&self.sums[row * self.width..]) {
                *out = sum * self.attend.value_scale / total;
            }
        }
    }
}

/// The words that hold these positions.
fn words_of<W: Words>(positions: &Range<usize>) -> Range<usize> {
    positions.start / W::PER_WORD..positions.end.div_ceil(W::PER_WORD)
}
