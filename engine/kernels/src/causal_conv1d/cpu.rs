//! The convolution on the CPU.
//!
//! Channels are independent, so a tile of them is turned on its side once (history and weights lie
//! channel by channel, but lanes run over channels) and then walks its row's tokens.
#![allow(unsafe_code)]

use burn::tensor::Tensor;

use crate::simd::{self, Kernel, LANES, Simd, math};
use crate::team::{self, SharedMut};
use crate::{Layout, MambaShape, RowLayout, flex, isa};

/// Channels that walk the tokens together.
const TILE: usize = 4 * LANES;

/// Longest window; Nemotron-H uses 4.
const MAX_KERNEL: usize = 8;

/// See [`causal_conv1d`](super::causal_conv1d()); `conv` is the state.
pub(super) fn causal_conv1d(
    projected: &Tensor<2>,
    weight: &Tensor<3>,
    bias: Option<&Tensor<1>>,
    conv: Tensor<3>,
    shape: &MambaShape,
    layout: &Layout,
) -> (Tensor<2>, Tensor<3>) {
    let [num_tokens, _] = projected.dims();
    let (channels, kernel) = (shape.conv_dim(), shape.conv_kernel);
    assert!(
        (1..=MAX_KERNEL).contains(&kernel),
        "convolution windows are 1 to {MAX_KERNEL}, not {kernel}"
    );
    let (projected, weight) = (flex::view(projected), flex::view(weight));
    let bias = bias.map(flex::view);
    let bias = bias.as_ref().map(flex::widened);
    let mut conv = flex::pool(conv);
    let mut out = vec![0.0; num_tokens * channels];
    let tiles = Tiles {
        projected: flex::f32s(&projected),
        weight: &flex::widened(&weight),
        bias: bias.as_deref(),
        shape,
        state: SharedMut::new(conv.storage_mut()),
        out: SharedMut::new(&mut out),
    };
    assert!(
        tiles.bias.is_none_or(|bias| bias.len() == channels),
        "convolution bias"
    );
    // A channel's step costs about sixteen multiply-adds with its silu and its share of turning.
    let cost = num_tokens * channels * 16;
    let per_row = channels.div_ceil(TILE);
    let isa = isa();
    team::share(layout.rows.len() * per_row, cost, |index| {
        let row = &layout.rows[index / per_row];
        let start = index % per_row * TILE;
        simd::run(
            isa,
            Tile {
                tiles: &tiles,
                row,
                start,
                len: TILE.min(channels - start),
            },
        );
    });
    (
        flex::from_vec(out, [num_tokens, channels]),
        flex::tensor(conv),
    )
}

struct Tiles<'a> {
    projected: &'a [f32],
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    shape: &'a MambaShape,
    state: SharedMut<f32>,
    out: SharedMut<f32>,
}

/// The channels `start..start + len` of one row.
struct Tile<'a> {
    tiles: &'a Tiles<'a>,
    row: &'a RowLayout,
    start: usize,
    len: usize,
}

impl Kernel for Tile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self {
            tiles,
            row,
            start,
            len,
        } = self;
        let MambaShape {
            conv_kernel: kernel,
            ..
        } = *tiles.shape;
        let (channels, stride) = (tiles.shape.conv_dim(), tiles.shape.projected());
        let history = kernel - 1;

        // SAFETY: this row's slot and this tile's channels of the state: slots differ between rows
        // and tiles do not overlap (checked by `Layout::check_slots` and by construction).
        let state = unsafe {
            tiles
                .state
                .slice((row.slot * channels + start) * history, len * history)
        };
        // window[j] holds the input at position t - (kernel - 1) + j.
        let mut window = [[0.0_f32; TILE]; MAX_KERNEL];
        let mut weight = [[0.0_f32; TILE]; MAX_KERNEL];
        let mut bias = [0.0_f32; TILE];
        for c in 0..len {
            for j in 0..history {
                window[j][c] = state[c * history + j];
            }
            for j in 0..kernel {
                weight[j][c] = tiles.weight[(start + c) * kernel + j];
            }
        }
        if let Some(all) = tiles.bias {
            bias[..len].copy_from_slice(&all[start..start + len]);
        }

        for token in row.tokens.clone() {
            let input = token * stride + tiles.shape.inner() + start;
            window[history][..len].copy_from_slice(&tiles.projected[input..input + len]);
            let mut at = 0;
            while at < len {
                let n = LANES.min(len - at);
                // SAFETY: tiles are whole lanes wide, so reads stay inside the arrays; the write is
                // to this row's token and this tile's channels, of which `n` are left.
                unsafe {
                    let mut sum = s.load(bias.as_ptr().add(at));
                    for j in 0..kernel {
                        let w = s.load(weight[j].as_ptr().add(at));
                        sum = s.fma(w, s.load(window[j].as_ptr().add(at)), sum);
                    }
                    let out = tiles.out.at(token * channels + start + at);
                    s.store_part(math::silu(s, sum), out, n);
                }
                at += LANES;
            }
            for j in 0..history {
                window[j] = window[j + 1];
            }
        }

        for c in 0..len {
            for j in 0..history {
                state[c * history + j] = window[j][c];
            }
        }
    }
}
