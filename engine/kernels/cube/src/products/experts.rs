//! Routed experts: `out[t] = sum over a token's experts e, by id, of weight_e * down_e @ relu(up_e @ v[t])^2`.
//!
//! Three products' worth of launches: up for every pair of a token and one of its experts, down for
//! every pair, and the weighted sum. What binds them is the weights of the experts that are met,
//! each read once a tile of its tokens. Few pairs look their expert up where they run, one pair a
//! tile; more are grouped by expert first, on the device (`group`), so that nothing is read back.
//! Either way a pair's sums are `skinny`'s and the same bits.
//!
//! Lost: down and the weighted sum in one kernel, a cube for some rows of a token over all its
//! experts. At one token that is 32 cubes, and 8 KB under way a multiprocessor where 25 are needed.
#![allow(unsafe_code)]

use cubecl::prelude::*;

use super::group::Groups;
use super::skinny::{Product, Source};
use crate::tensor_core::{self, Routed};
use crate::{Arithmetic, Buffer, Client, Epilogue, Matrix};

/// Tokens at a time: bounds the scratch, `top_k * (i + l)` f32 a token (Super: 327 KB).
pub const MAX_EXPERT_TOKENS: usize = 1024;

/// The same on tensor cores (Super: 208 KB a token), where fewer would not fill their tiles.
const MAX_TENSOR_EXPERT_TOKENS: usize = 2048;

const UNITS: u32 = 128;

/// v is f32 `[t, l]`, `up` a stack `[e, i, l]`, `down` one of `[e, l, i]`, `ids` i32 `[t, top_k]`,
/// their `weights` f32 `[t, top_k]`, `out` f32 `[t, l]`. A token's outputs are the same bits whatever
/// the other tokens are; how many they are tells with [`Arithmetic::Bf16AnyOrder`] alone. Ids of experts that are not here, below 0 or from `e` on, count for nothing:
/// another rank has those.
///
/// # Panics
/// If a buffer is not what the stacks, `t` and `top_k` make it.
#[allow(clippy::too_many_arguments)]
pub fn experts(
    client: &Client,
    v: &Buffer,
    t: usize,
    up: &Matrix,
    down: &Matrix,
    ids: &Buffer,
    weights: &Buffer,
    top_k: usize,
    arithmetic: Arithmetic,
    out: &Buffer,
) {
    up.check();
    down.check();
    assert_eq!(
        (down.experts, down.n, down.k),
        (up.experts, up.k, up.n),
        "down is up's transpose"
    );
    assert_eq!(v.len(), t * up.k, "v");
    assert_eq!(ids.len(), t * top_k, "ids");
    assert_eq!(weights.len(), t * top_k, "weights");
    assert_eq!(out.len(), t * up.k, "out");
    let takes = |w| tensor_core::takes(client, w);
    let is_on_tensor_cores = arithmetic.is_rounded() && takes(up) && takes(down);
    let max_tokens = if is_on_tensor_cores {
        MAX_TENSOR_EXPERT_TOKENS
    } else {
        MAX_EXPERT_TOKENS
    };
    for first in (0..t).step_by(max_tokens) {
        let num_tokens = max_tokens.min(t - first);
        let part = |buffer: &Buffer, each: usize| buffer.part(first * each, num_tokens * each);
        Pass {
            client,
            up,
            down,
            ids: part(ids, top_k),
            top_k,
            num_tokens,
            arithmetic,
            is_on_tensor_cores,
        }
        .run(&part(v, up.k), &part(weights, top_k), &part(out, up.k));
    }
}

struct Pass<'a> {
    client: &'a Client,
    up: &'a Matrix,
    down: &'a Matrix,
    ids: Buffer,
    top_k: usize,
    num_tokens: usize,
    arithmetic: Arithmetic,
    is_on_tensor_cores: bool,
}

impl Pass<'_> {
    fn run(&self, v: &Buffer, weights: &Buffer, out: &Buffer) {
        let num_pairs = self.num_tokens * self.top_k;
        if num_pairs == 0 || self.up.k == 0 {
            return;
        }
        if self.is_on_tensor_cores {
            let groups = Groups::new(self.client, &self.ids, self.up.experts);
            let routed = Routed {
                num_tokens: self.num_tokens,
                top_k: self.top_k,
                experts: &self.ids,
                weights,
                sorted: &groups.order,
                offsets: &groups.offsets,
            };
            return tensor_core::tensor_experts(
                self.client,
                v,
                routed,
                self.up,
                self.down,
                self.arithmetic,
                out,
            );
        }
        let hidden = Buffer::empty::<f32>(self.client, num_pairs * self.up.n);
        let each = Buffer::empty::<f32>(self.client, num_pairs * self.up.k);
        let groups = self.groups(num_pairs);
        self.product(groups.as_ref(), self.up, v, self.top_k, &hidden);
        self.product(groups.as_ref(), self.down, &hidden, 1, &each);
        // SAFETY: the kernel bounds its columns itself; the buffers are checked above.
        unsafe {
            weighted_sum::launch_unchecked(
                self.client,
                CubeCount::Static(
                    (self.up.k as u32).div_ceil(UNITS),
                    self.num_tokens as u32,
                    1,
                ),
                CubeDim::new_1d(UNITS),
                each.arg(),
                self.ids.arg(),
                weights.arg(),
                out.arg(),
                self.up.k as u32,
                self.up.experts as u32,
                self.top_k,
            );
        }
    }

    /// The pairs by expert, where sharing a read of the weights can pay for the grouping: from two
    /// pairs for every four experts.
    fn groups(&self, num_pairs: usize) -> Option<Groups> {
        (self.num_tokens > 1 && num_pairs * 2 > self.up.experts)
            .then(|| Groups::new(self.client, &self.ids, self.up.experts))
    }

    fn product(&self, groups: Option<&Groups>, w: &Matrix, x: &Buffer, share: usize, out: &Buffer) {
        let num_pairs = self.num_tokens * self.top_k;
        let is_up = std::ptr::eq(w, self.up);
        Product {
            w,
            x,
            bias: None,
            out,
            arithmetic: self.arithmetic,
            epilogue: if is_up {
                Epilogue::Relu2
            } else {
                Epilogue::None
            },
            source: if groups.is_some() {
                Source::Tile
            } else {
                Source::Pair
            },
            index: Some(groups.map_or(&self.ids, |groups| &groups.tiles)),
            order: groups.map(|groups| &groups.order),
            share,
            num_out: num_pairs,
            num_tiles: groups.map_or(num_pairs, |groups| groups.max_tiles),
            tile: groups.map_or(1, |groups| groups.tile),
        }
        .launch(self.client);
    }
}

/// Sums what a token's experts gave, by id, if they are here: a place in the list is found by
/// counting the smaller ones, as no two are alike in one token (if they were, the earlier comes
/// first).
#[cube(launch_unchecked)]
fn weighted_sum(
    each: &[f32],
    ids: &[i32],
    weights: &[f32],
    out: &mut [f32],
    columns: u32,
    experts: u32,
    #[comptime] top_k: usize,
) {
    let first = CUBE_POS_Y as usize * top_k;
    let mut order = Shared::<[u32]>::new_slice(top_k);
    let mut at = UNIT_POS_X as usize;
    while at < top_k {
        let id = ids[first + at];
        let mut place = 0u32;
        for other in 0..top_k {
            let that = ids[first + other];
            if that < id || (that == id && other < at) {
                place += 1;
            }
        }
        order[place as usize] = at as u32;
        at += UNITS as usize;
    }
    sync_cube();
    let column = ABSOLUTE_POS_X;
    if column < columns {
        let mut sum = f32::new(0.0);
        for place in 0..top_k {
            let pair = first + (order[place] as usize);
            // Negative ids are large as u32. Nothing was computed for such a pair.
            if (ids[pair] as u32) < experts {
                sum = fma(
                    weights[pair],
                    each[pair * (columns as usize) + (column as usize)],
                    sum,
                );
            }
        }
        out[((CUBE_POS_Y * columns) + column) as usize] = sum;
    }
}
