//! Causal attention of a step's queries over the paged cache.
//!
//! Shapes: `q` and `out` f32 `[T, heads * head_dim]`, the pools as in `kv`. Query head `i` reads kv
//! head `i / (heads / kv_heads)`; scale `head_dim^-0.5`; softmax in f32, online over tiles of
//! 32 keys (Milakov and Gimelshein; Dao et al., "FlashAttention"); no positions enter.
//!
//! A cube takes one kv head and a tile of queries: all query heads of one token (16 in Super) in
//! decode, of several tokens of one row in prefill. Keys, then values, are decoded once into shared
//! memory and used by every query of the tile. 32 units share some rows of the tile: each takes one
//! key of the tile for the scores, then some channels for the values.
//!
//! The context is cut into splits at fixed positions (`splits`). Either a cube attends
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
//! it in FP8. On sm_80 alone the assembler spills 16 bytes of a
//! bf16 decode thread, at 80 registers and of its own accord.
//!
//! In [`Arithmetic::Bf16`] on NVIDIA, shapes that [`fit`](AttentionShape::fits) go to tensor cores
//! (`cuda/tensor_attention.cu`), every row of the step: 16 queries are one tile of theirs. The
//! promise above holds there as well, between single tokens and chunks too, except that with less
//! than 16 queries per kv head a NaN among the values reaches the few tokens before it that share
//! its tile. The two ways have bits of
//! their own, but a step's arithmetic, device and shape choose one for all of its tokens.
#![allow(unsafe_code)]

mod splits;
mod tile;

use cubecl::client::Client;
use cubecl::prelude::*;

use crate::kv::check_pools;
use crate::tensor_core::attention::{AttentionShape, attends, tensor_attention};
use crate::{Arithmetic, Buffer, KvFormat, StepIndex};

use splits::combine;
pub(crate) use splits::{SECOND, THIRD, num_splits};
use tile::{KEYS, Tile, attend};

/// Most bytes of partial results. Beyond it single tokens go in several launches, and chunks walk.
const SCRATCH_BYTES: usize = 256 << 20;
/// Cubes from which on chunks walk: two for each multiprocessor of the largest devices.
pub(crate) const ENOUGH_CUBES: usize = 288;

/// Attends for every token of the step over its row's positions up to its own. The step's keys and
/// values are in the cache already. With [`Arithmetic::Bf16`] queries and the weights of values may
/// be rounded to bf16.
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
    arithmetic: Arithmetic,
    step: &StepIndex,
    out: &Buffer,
) {
    let pools = [keys, values];
    let shape = [heads, kv_heads, head_dim];
    paged_attention_within(
        client,
        q,
        pools,
        format,
        shape,
        arithmetic,
        step,
        SCRATCH_BYTES,
        out,
    );
}

/// [`paged_attention`] with at most so many bytes of partial results. The result does not depend on
/// them.
#[doc(hidden)]
#[allow(clippy::too_many_arguments)] // As above.
pub fn paged_attention_within(
    client: &Client,
    q: &Buffer,
    [keys, values]: [&Buffer; 2],
    format: KvFormat,
    [heads, kv_heads, head_dim]: [usize; 3],
    arithmetic: Arithmetic,
    step: &StepIndex,
    scratch: usize,
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
    let shape = AttentionShape {
        format,
        heads,
        kv_heads,
        head_dim,
        block_size: step.block_size,
    };
    // Tensor cores look at every position.
    let sees_all = step.first_position == 0;
    if arithmetic.is_rounded() && sees_all && attends(client, &shape) {
        let pools = [keys, values];
        return tensor_attention(client, q, pools, &shape, step, scratch, out);
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
    let at_once = scratch / per_token;
    if launch.num_splits == 1 || at_once == 0 {
        launch.walk(0, singles, 1);
    } else {
        for first in (0..singles).step_by(at_once) {
            launch.split(first, at_once.min(singles - first), 1);
        }
    }
    // A few tokens at the end of long contexts (drafts, a short turn) would keep few cubes busy.
    let rest = t - singles;
    let tokens = launch.tokens_per_tile();
    let is_spread = rest.div_ceil(tokens) * kv_heads >= ENOUGH_CUBES;
    if launch.num_splits == 1 || is_spread || at_once < rest {
        launch.walk(singles, rest, tokens);
    } else {
        launch.split(singles, rest, tokens);
    }
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
                    first_position: step.first_position,
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
