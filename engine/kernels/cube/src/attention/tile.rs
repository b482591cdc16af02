//! One tile of queries against its splits.
#![allow(unsafe_code)]

use cubecl::prelude::*;

use super::splits::{LOWEST, add_split, split_start};
use crate::Format;
use crate::kv::decode;

/// Keys of a tile, and units that share rows of queries.
pub(super) const KEYS: usize = 32;

/// What a cube of `attend` knows when it is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tile {
    pub(super) format: Format,
    pub(super) kv_heads: usize,
    /// Query heads per kv head.
    pub(super) group: usize,
    pub(super) head_dim: usize,
    pub(super) block_size: usize,
    /// Nobody looks before it.
    pub(super) first_position: usize,
    /// Tokens of a tile.
    pub(super) tokens: usize,
    /// Queries of a unit.
    pub(super) rows_per_unit: usize,
    /// Whether a cube attends within one split.
    pub(super) is_split: bool,
}

/// `sums` are partial sums `[num_tokens, heads, splits, head_dim]`, not yet divided, with the
/// largest score and the sum of weights in `scales`; in a walk they are the results.
#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
#[allow(clippy::collapsible_if)] // The outer one is decided when the kernel is compiled.
pub(super) fn attend<N: Size, C: Size>(
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
                if comptime!(tile.first_position > 0) {
                    if start + x < tile.first_position {
                        scores[x * padded + base + r] = f32::new(LOWEST);
                    }
                }
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
            let mut first_key = 0usize;
            if comptime!(tile.first_position > 0) {
                if start < tile.first_position {
                    first_key = tile.first_position - start;
                }
            }
            for key in first_key..num_keys {
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
