//! Causal attention of a step's queries over the paged cache.
//!
//! Shapes: `q` and `out` f32 `[T, heads * head_dim]`, the pools as in `kv`. Query head `i` reads kv
//! head `i / (heads / kv_heads)`; scale `head_dim^-0.5`; softmax in f32, online over tiles of
//! [`KEYS`] keys (Milakov and Gimelshein; Dao et al., "FlashAttention"); no positions enter.
//!
//! A cube takes one kv head and a tile of queries: all query heads of one token (16 in Super) in
//! decode, of several tokens of one row in prefill. Keys, then values, are decoded once into shared
//! memory and used by every query of the tile. 32 units share some rows of the tile: each takes one
//! key of the tile for the scores, then some channels for the values.
//!
//! The context is cut into splits at fixed positions ([`split_start`]). Either a cube attends
//! within one split, and a second kernel puts splits together (**split**: decode, short chunks), or
//! it walks through all of them (**walk**: long chunks, whose partial results would fill the
//! memory). Both put splits together in order of position by the same function, tiles lie at fixed
//! positions and every sum has one order, with its fused operations written out, so **a token's
//! result is the same bits however its prompt was cut, whatever else is in the step, and whichever
//! way was taken**.
//!
//! Bytes moved: a row's keys and values once per tile of queries, and 2 `head_dim + 2` f32 per
//! query head and split (6 % of the cache's bytes in splits of 256 in bf16). In decode this kernel
//! is bound by f32 arithmetic, not by memory: 16 queries do 8 fused operations per byte of bf16, of
//! which an H200 has 33 T/s for 4.8 TB/s, so that the roof is some 85 % of the bandwidth and half of
//! it in FP8. Tensor cores (16 queries are one tile of theirs) are what would lift it. On sm_80 alone
//! the assembler spills 16 bytes of a bf16 decode thread, at 80 registers and of its own accord.
#![allow(unsafe_code)]

use cubecl::client::Client;
use cubecl::prelude::*;

use crate::kv::{check_pools, decode};
use crate::{Buffer, Format, KvFormat, StepIndex};

/// Keys of a tile, and units that share rows of queries.
const KEYS: usize = 32;
/// Most bytes of partial results; beyond it a step goes in several launches, or walks.
const SCRATCH_BYTES: usize = 256 << 20;
/// The same for chunks of prompts, which walk beyond it.
const CHUNK_SCRATCH_BYTES: usize = 64 << 20;
/// Below every score; finite, so that differences of two are.
const LOWEST: f32 = -1e30;

/// Attends for every token of the step over its row's positions up to its own. The step's keys and
/// values are in the cache already.
///
/// # Panics
/// If shapes do not agree.
#[allow(clippy::too_many_arguments)] // The operands of one operation of the model.
pub fn paged_attention(
    client: &Client,
    q: &Buffer,
    keys: &Buffer,
    values: &Buffer,
    format: KvFormat,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    step: &StepIndex,
    out: &Buffer,
) {
    let scratch = [SCRATCH_BYTES, CHUNK_SCRATCH_BYTES];
    let pools = [keys, values];
    let shape = [heads, kv_heads, head_dim];
    paged_attention_within(client, q, pools, format, shape, step, scratch, out);
}

/// [`paged_attention`] with at most so many bytes of partial results, for single tokens and for
/// chunks. The result does not depend on them.
#[doc(hidden)]
#[allow(clippy::too_many_arguments)] // As above.
pub fn paged_attention_within(
    client: &Client,
    q: &Buffer,
    [keys, values]: [&Buffer; 2],
    format: KvFormat,
    [heads, kv_heads, head_dim]: [usize; 3],
    step: &StepIndex,
    [single_scratch, chunk_scratch]: [usize; 2],
    out: &Buffer,
) {
    let t = step.num_tokens;
    assert_eq!(
        [q.len(), out.len()],
        [t * heads * head_dim; 2],
        "queries and results"
    );
    assert_eq!(heads % kv_heads, 0, "query heads per kv head");
    check_pools(keys, values, format, kv_heads, head_dim, step);
    if t == 0 {
        return;
    }
    let launch = Launch {
        client,
        q,
        keys,
        values,
        format,
        heads,
        kv_heads,
        head_dim,
        step,
        out,
        num_splits: num_splits(step.max_context),
    };
    let singles = step.num_single_rows;
    let per_token = heads * launch.num_splits * (head_dim + 2) * size_of::<f32>();
    let at_once = single_scratch / per_token;
    if launch.num_splits == 1 || at_once == 0 {
        launch.walk(0, singles, 1);
    } else {
        for first in (0..singles).step_by(at_once) {
            launch.split(first, at_once.min(singles - first), 1);
        }
    }
    let tokens = launch.tokens_per_tile();
    if launch.num_splits == 1 || chunk_scratch / per_token < t - singles {
        launch.walk(singles, t - singles, tokens);
    } else {
        launch.split(singles, t - singles, tokens);
    }
}

/// Splits of a context.
fn num_splits(context: usize) -> usize {
    let at = |from: usize, size: usize| (context - from).div_ceil(size);
    if context <= SECOND {
        at(0, 64)
    } else if context <= THIRD {
        SECOND / 64 + at(SECOND, 256)
    } else {
        SECOND / 64 + (THIRD - SECOND) / 256 + at(THIRD, 512)
    }
}

/// Splits are of 64 positions up to here, so that a short context keeps many cubes busy,
const SECOND: usize = 2048;
/// of 256 up to here and of 512 beyond, so that partial results stay few.
const THIRD: usize = 16384;

/// The first position of a split, or of none.
#[cube]
fn split_start(split: usize) -> usize {
    let second = comptime!(SECOND / 64);
    let third = comptime!(SECOND / 64 + (THIRD - SECOND) / 256);
    let mut start = split * 64;
    if split >= third {
        start = THIRD + (split - third) * 512;
    } else if split >= second {
        start = SECOND + (split - second) * 256;
    }
    start
}

struct Launch<'a> {
    client: &'a Client,
    q: &'a Buffer,
    keys: &'a Buffer,
    values: &'a Buffer,
    format: KvFormat,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    step: &'a StepIndex,
    out: &'a Buffer,
    num_splits: usize,
}

impl Launch<'_> {
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Tokens of a prefill tile: 64 rows where their scores fit in shared memory (on lavapipe they
    /// do not), 32 otherwise; at least one token.
    fn tokens_per_tile(&self) -> usize {
        let room = self.client.properties().hardware.max_shared_memory_size;
        let rows = if room >= 48 << 10 { 64 } else { 32 };
        (rows / self.group()).max(1)
    }

    /// Whole contexts, for the `num_tokens` tokens from `first` on.
    fn walk(&self, first: usize, num_tokens: usize, tokens: usize) {
        // One element that nobody writes: every argument needs a buffer.
        let none = Buffer::empty::<f32>(self.client, self.channels());
        self.attend(first, num_tokens, tokens, None, [self.out, &none]);
    }

    /// One split per cube, then all of a token put together.
    fn split(&self, first: usize, num_tokens: usize, tokens: usize) {
        if num_tokens == 0 {
            return;
        }
        let parts = num_tokens * self.heads * self.num_splits;
        let sums = Buffer::empty::<f32>(self.client, parts * self.head_dim);
        let scales = Buffer::empty::<f32>(self.client, parts * 2);
        self.attend(
            first,
            num_tokens,
            tokens,
            Some(self.num_splits),
            [&sums, &scales],
        );
        let channels = self.channels();
        let units = num_tokens * self.heads * self.head_dim / channels;
        // SAFETY: one unit per vector of the results; partial results as allocated above.
        unsafe {
            combine::launch_unchecked(
                self.client,
                CubeCount::Static(units.div_ceil(128) as u32, 1, 1),
                CubeDim::new_1d(128),
                channels,
                sums.vectors(channels),
                scales.arg(),
                self.step.token_positions.arg(),
                self.out.vectors(channels),
                self.scale(),
                first,
                units,
                self.num_splits,
                self.heads,
                self.head_dim / channels,
            );
        }
    }

    fn attend(
        &self,
        first: usize,
        num_tokens: usize,
        tokens: usize,
        splits: Option<usize>,
        [sums, scales]: [&Buffer; 2],
    ) {
        if num_tokens == 0 {
            return;
        }
        let step = self.step;
        // Tiles lie in the rows from `first`'s on; single tokens are rows of their own.
        let (tiles_per_row, first_row) = if tokens == 1 {
            (1, 0)
        } else {
            (step.max_row_tokens.div_ceil(tokens), step.num_single_rows)
        };
        let tiles = if tokens == 1 {
            num_tokens
        } else {
            (step.num_rows - first_row) * tiles_per_row
        };
        let rows = tokens * self.group();
        let rows_per_unit = if tokens == 1 { 4 } else { 8 };
        let units = rows.div_ceil(rows_per_unit) * KEYS;
        let load = self.words_per_load();
        let channels = self.channels();
        let [k_scale, v_scale] = self.format.scales();
        // SAFETY: every access is of a token of the step, of a position that its row's table
        // covers, or of a partial result as the caller allocated them.
        unsafe {
            attend::launch_unchecked(
                self.client,
                CubeCount::Static(
                    tiles as u32,
                    self.kv_heads as u32,
                    splits.unwrap_or(1) as u32,
                ),
                CubeDim::new_1d(units as u32),
                load,
                channels,
                self.q.vectors(channels),
                self.keys.vectors(load),
                self.values.vectors(load),
                step.token_rows.arg(),
                step.token_positions.arg(),
                step.row_tokens.arg(),
                step.tables.arg(),
                sums.vectors(channels),
                scales.arg(),
                k_scale,
                v_scale,
                self.scale(),
                first,
                first_row,
                tiles_per_row,
                step.table_stride,
                splits.unwrap_or(1),
                Tile {
                    format: self.format.codes(),
                    kv_heads: self.kv_heads,
                    group: self.group(),
                    head_dim: self.head_dim,
                    block_size: step.block_size,
                    tokens,
                    rows_per_unit,
                    is_split: splits.is_some(),
                },
            );
        }
    }

    fn scale(&self) -> f32 {
        (self.head_dim as f32).powf(-0.5)
    }

    /// Words per load of the cache: sixteen bytes, or as much as divides a head.
    fn words_per_load(&self) -> usize {
        let words = self.head_dim * self.format.codes().code_bits() / 32;
        [4, 2, 1]
            .into_iter()
            .find(|load| words.is_multiple_of(*load))
            .expect("one divides everything")
    }

    /// Channels per vector of f32: four, or as many as divide a head and come with one load.
    fn channels(&self) -> usize {
        let loaded = self.words_per_load() * 32 / self.format.codes().code_bits();
        [4, 2, 1]
            .into_iter()
            .find(|channels| loaded.is_multiple_of(*channels))
            .expect("one divides everything")
    }
}

/// What a cube of `attend` knows when it is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Tile {
    format: Format,
    kv_heads: usize,
    /// Query heads per kv head.
    group: usize,
    head_dim: usize,
    block_size: usize,
    /// Tokens of a tile.
    tokens: usize,
    /// Queries of a unit.
    rows_per_unit: usize,
    /// Whether a cube attends within one split.
    is_split: bool,
}

/// `sums` are partial sums `[num_tokens, heads, splits, head_dim]`, not yet divided, with the
/// largest score and the sum of weights in `scales`; in a walk they are the results.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn attend<N: Size, C: Size>(
    q: &[Vector<f32, C>],
    keys: &[Vector<u32, N>],
    values: &[Vector<u32, N>],
    token_rows: &[u32],
    token_positions: &[u32],
    row_tokens: &[u32],
    tables: &[u32],
    sums: &mut [Vector<f32, C>],
    scales: &mut [f32],
    k_scale: f32,
    v_scale: f32,
    scale: f32,
    first: usize,
    first_row: usize,
    tiles_per_row: usize,
    table_stride: usize,
    splits: usize,
    #[comptime] tile: Tile,
) {
    let group = comptime!(tile.group);
    let heads = comptime!(tile.kv_heads * tile.group);
    let per_unit = comptime!(tile.rows_per_unit);
    let rows = comptime!(tile.tokens * tile.group);
    let units = comptime!(rows.div_ceil(tile.rows_per_unit) * KEYS);
    let padded = comptime!(rows.div_ceil(tile.rows_per_unit) * tile.rows_per_unit);
    let wide = C::value();
    let load = N::value();
    // Vectors of a head, loads of a head, vectors of a load, and vectors that a unit sums.
    let vectors = comptime!(tile.head_dim / wide);
    let loads = comptime!(tile.head_dim * tile.format.code_bits() / 32 / load);
    let per_load = comptime!(vectors / loads);
    let owned = comptime!(vectors.div_ceil(KEYS));
    // Rows of shared memory are one vector longer than a head, so that the 32 keys that units read
    // at once lie in different banks.
    let stride = comptime!(vectors + 1);

    let mut token = first + CUBE_POS_X as usize;
    let mut count = 1usize;
    if comptime!(tile.tokens > 1) {
        let row = first_row + CUBE_POS_X as usize / tiles_per_row;
        let at = CUBE_POS_X as usize % tiles_per_row * tile.tokens;
        let begin = row_tokens[row] as usize;
        let len = row_tokens[row + 1] as usize - begin;
        token = begin + at;
        count = 0usize;
        if at < len {
            count = select(len - at < tile.tokens, len - at, tile.tokens);
        }
    }
    if count == 0 {
        terminate!();
    }
    let kv_head = CUBE_POS_Y as usize;
    let position = token_positions[token] as usize;
    let context = position + count;
    let table = token_rows[token] as usize * table_stride;
    let mut split = CUBE_POS_Z as usize;
    if split_start(split) >= context {
        terminate!();
    }

    let x = UNIT_POS_X as usize % KEYS;
    let base = UNIT_POS_X as usize / KEYS * per_unit;
    // Where each of the unit's queries begins, and the last position that it sees. Rows beyond the
    // tile repeat its last query and are never stored.
    let mut query = Array::<usize>::new(per_unit);
    let mut last = Array::<usize>::new(per_unit);
    #[unroll]
    for r in 0..per_unit {
        let of = (base + r) / group;
        let of = select(of < count, of, count - 1);
        query[r] = ((token + of) * heads + kv_head * group + (base + r) % group) * vectors;
        last[r] = position + of;
    }

    let mut side = Shared::<[Vector<f32, C>]>::new_slice(comptime!(KEYS * stride));
    let mut scores = Shared::<[f32]>::new_slice(comptime!(KEYS * padded));
    let mut weights = Shared::<[f32]>::new_slice(comptime!(KEYS * padded));
    // Of the split: largest score, sum of weights, weighted values.
    let mut top = Array::<f32>::new(per_unit);
    let mut mass = Array::<f32>::new(per_unit);
    let mut sum = Array::<Vector<f32, C>>::new(comptime!(per_unit * owned));
    // Of all splits so far.
    let mut all_top = Array::<f32>::new(per_unit);
    let mut all_mass = Array::<f32>::new(per_unit);
    let mut all_sum = Array::<Vector<f32, C>>::new(comptime!(per_unit * owned));
    let zero = Vector::<f32, C>::new(0.0);
    #[unroll]
    for r in 0..per_unit {
        all_top[r] = f32::new(LOWEST);
        all_mass[r] = f32::new(0.0);
        #[unroll]
        for o in 0..owned {
            all_sum[r * owned + o] = zero;
        }
    }

    // A cube of one split ends where the next begins.
    let mut until = context;
    if comptime!(tile.is_split) {
        let next = split_start(split + 1);
        until = select(next < context, next, context);
    }
    while split_start(split) < until {
        #[unroll]
        for r in 0..per_unit {
            top[r] = f32::new(LOWEST);
            mass[r] = f32::new(0.0);
            #[unroll]
            for o in 0..owned {
                sum[r * owned + o] = zero;
            }
        }
        let begin = split_start(split);
        let next = split_start(split + 1);
        let end = select(next < context, next, context);
        let mut start = begin;
        while start < end {
            // Keys.
            let mut i = UNIT_POS_X as usize;
            while i < comptime!(KEYS * loads) {
                let at = start + i / loads;
                let to = i / loads * stride + i % loads * per_load;
                if at < end {
                    let block = tables[table + at / tile.block_size] as usize;
                    let slot = block * tile.block_size + at % tile.block_size;
                    let words = keys[(slot * tile.kv_heads + kv_head) * loads + i % loads];
                    #[unroll]
                    for part in 0..per_load {
                        side[to + part] = decode::<N, C>(words, k_scale, part, tile.format);
                    }
                } else {
                    #[unroll]
                    for part in 0..per_load {
                        side[to + part] = zero;
                    }
                }
                i += units;
            }
            sync_cube();

            // Scores of one key, for each of the unit's queries.
            let mut dot = Array::<Vector<f32, C>>::new(per_unit);
            #[unroll]
            for r in 0..per_unit {
                dot[r] = zero;
            }
            for d in 0..vectors {
                let key = side[x * stride + d];
                #[unroll]
                for r in 0..per_unit {
                    dot[r] = fma(q[query[r] + d], key, dot[r]);
                }
            }
            #[unroll]
            for r in 0..per_unit {
                let mut score = dot[r].extract(0usize);
                #[unroll]
                for c in 1..wide {
                    score += dot[r].extract(c);
                }
                scores[x * padded + base + r] =
                    select(start + x <= last[r], score, f32::new(LOWEST));
            }
            sync_cube();

            // Values, while the scores are weighed.
            let mut i = UNIT_POS_X as usize;
            while i < comptime!(KEYS * loads) {
                let at = start + i / loads;
                if at < end {
                    let to = i / loads * stride + i % loads * per_load;
                    let block = tables[table + at / tile.block_size] as usize;
                    let slot = block * tile.block_size + at % tile.block_size;
                    let words = values[(slot * tile.kv_heads + kv_head) * loads + i % loads];
                    #[unroll]
                    for part in 0..per_load {
                        side[to + part] = decode::<N, C>(words, v_scale, part, tile.format);
                    }
                }
                i += units;
            }
            let mut highest = Array::<f32>::new(per_unit);
            #[unroll]
            for r in 0..per_unit {
                highest[r] = top[r];
            }
            for key in 0..KEYS {
                #[unroll]
                for r in 0..per_unit {
                    let score = scores[key * padded + base + r];
                    highest[r] = select(score > highest[r], score, highest[r]);
                }
            }
            #[unroll]
            for r in 0..per_unit {
                let score = scores[x * padded + base + r];
                weights[x * padded + base + r] = ((score - highest[r]) * scale).exp();
                let fade = ((top[r] - highest[r]) * scale).exp();
                top[r] = highest[r];
                mass[r] *= fade;
                #[unroll]
                for o in 0..owned {
                    sum[r * owned + o] *= Vector::new(fade);
                }
            }
            sync_cube();

            // Keys that a query does not see are left out, not weighed with zero: their values may
            // be NaN.
            let num_keys = select(end - start < KEYS, end - start, KEYS);
            for key in 0..num_keys {
                let mut value = Array::<Vector<f32, C>>::new(owned);
                #[unroll]
                for o in 0..owned {
                    let d = x + o * KEYS;
                    value[o] = zero;
                    if d < vectors {
                        value[o] = side[key * stride + d];
                    }
                }
                #[unroll]
                for r in 0..per_unit {
                    if start + key <= last[r] {
                        let weight = weights[key * padded + base + r];
                        mass[r] += weight;
                        #[unroll]
                        for o in 0..owned {
                            let at = comptime!(r * owned + o);
                            sum[at] = fma(Vector::new(weight), value[o], sum[at]);
                        }
                    }
                }
            }
            sync_cube();
            start += KEYS;
        }

        if comptime!(!tile.is_split) {
            #[unroll]
            for r in 0..per_unit {
                if begin <= last[r] {
                    let highest = select(top[r] > all_top[r], top[r], all_top[r]);
                    let fade = ((all_top[r] - highest) * scale).exp();
                    let part = ((top[r] - highest) * scale).exp();
                    all_top[r] = highest;
                    all_mass[r] = fma(mass[r], part, all_mass[r] * fade);
                    #[unroll]
                    for o in 0..owned {
                        let at = comptime!(r * owned + o);
                        all_sum[at] = add_split::<C>(sum[at], part, all_sum[at], fade);
                    }
                }
            }
        }
        split += 1;
    }

    #[unroll]
    for r in 0..per_unit {
        let row = base + r;
        if row < count * group {
            // Tokens count from the launch's first, as the partial results do.
            let part = query[r] / vectors - first * heads;
            #[unroll]
            for o in 0..owned {
                let d = x + o * KEYS;
                if d < vectors {
                    let at = comptime!(r * owned + o);
                    if comptime!(tile.is_split) {
                        sums[(part * splits + CUBE_POS_Z as usize) * vectors + d] = sum[at];
                    } else {
                        sums[query[r] + d] = all_sum[at] / Vector::new(all_mass[r]);
                    }
                }
            }
            if comptime!(tile.is_split) && x == 0 {
                let at = (part * splits + CUBE_POS_Z as usize) * 2;
                scales[at] = top[r];
                scales[at + 1] = mass[r];
            }
        }
    }
}

/// A split's sum, scaled by `part`, on those before it, scaled by `fade`.
#[cube]
fn add_split<C: Size>(
    sum: Vector<f32, C>,
    part: f32,
    all: Vector<f32, C>,
    fade: f32,
) -> Vector<f32, C> {
    fma(sum, Vector::new(part), all * Vector::new(fade))
}

/// Puts the splits of a token's head together, in order. A unit does one vector of it.
#[cube(launch_unchecked)]
fn combine<C: Size>(
    sums: &[Vector<f32, C>],
    scales: &[f32],
    token_positions: &[u32],
    out: &mut [Vector<f32, C>],
    scale: f32,
    first: usize,
    len: usize,
    splits: usize,
    #[comptime] heads: usize,
    #[comptime] vectors: usize,
) {
    let i = ABSOLUTE_POS_X as usize;
    if i < len {
        let part = i / vectors;
        let d = i % vectors;
        let position = token_positions[first + part / heads] as usize;
        let mut all_top = f32::new(LOWEST);
        let mut all_mass = f32::new(0.0);
        let mut all_sum = Vector::<f32, C>::new(0.0);
        let mut split = 0usize;
        while split_start(split) <= position {
            let at = part * splits + split;
            let top = scales[at * 2];
            let highest = select(top > all_top, top, all_top);
            let fade = ((all_top - highest) * scale).exp();
            let share = ((top - highest) * scale).exp();
            all_top = highest;
            all_mass = fma(scales[at * 2 + 1], share, all_mass * fade);
            all_sum = add_split::<C>(sums[at * vectors + d], share, all_sum, fade);
            split += 1;
        }
        out[first * heads * vectors + i] = all_sum / Vector::new(all_mass);
    }
}
