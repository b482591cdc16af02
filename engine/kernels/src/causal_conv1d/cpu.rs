//! The convolution on the CPU.
//!
//! Channels are independent, so a tile of them is turned on its side once (history and weights lie
//! channel by channel, but lanes run over channels) and then walks its row's tokens.
#![allow(unsafe_code)]

use burn::tensor::Tensor;

use crate::profile::{self, Work};
use crate::simd::{self, Kernel, LANES, Simd, math};
use crate::team::{self, SharedMut};
use crate::{Layout, MambaShape, RowLayout, StatePool, flex, isa};

/// Channels that walk the tokens together.
const TILE: usize = 4 * LANES;

/// Longest window; Nemotron-H uses 4.
const MAX_KERNEL: usize = 8;

/// See [`causal_conv1d`](super::causal_conv1d()).
pub(super) fn causal_conv1d(
    projected: &Tensor<2>,
    weight: &Tensor<3>,
    bias: Option<&Tensor<1>>,
    pool: StatePool,
    shape: &MambaShape,
    layout: &Layout,
) -> (Tensor<2>, StatePool) {
    let [num_tokens, _] = projected.dims();
    let num_outputs = num_tokens + layout.num_pending();
    let (channels, kernel) = (shape.conv_dim(), shape.conv_kernel);
    let _scope = profile::scope("convolution", [channels, kernel], || Work {
        bytes: size_of::<f32>() * channels * 2 * (num_outputs + layout.rows.len() * (kernel - 1)),
        operations: 2 * num_outputs * channels * kernel,
    });
    assert!(
        (1..=MAX_KERNEL).contains(&kernel),
        "convolution windows are 1 to {MAX_KERNEL}, not {kernel}"
    );
    let (projected, weight) = (flex::view(projected), flex::view(weight));
    let bias = bias.map(flex::view);
    let bias = bias.as_ref().map(flex::widened);
    let ring_len = pool.max_ring() * shape.ring();
    let mut conv = flex::pool(pool.conv);
    let mut ring = pool.ring.map(flex::pool);
    let ring_elements = ring.as_mut().map_or(&mut [][..], |ring| ring.storage_mut());
    let mut out = vec![0.0; num_outputs * channels];
    let tiles = Tiles {
        projected: flex::f32s(&projected),
        weight: &flex::widened(&weight),
        bias: bias.as_deref(),
        shape,
        state: SharedMut::new(conv.storage_mut()),
        ring: SharedMut::new(ring_elements),
        ring_len,
        out: SharedMut::new(&mut out),
    };
    assert!(
        tiles.bias.is_none_or(|bias| bias.len() == channels),
        "convolution bias"
    );
    // A channel's step costs about sixteen multiply-adds with its silu and its share of turning.
    let cost = num_outputs * channels * 16;
    let pending = layout.pending();
    let per_row = channels.div_ceil(TILE);
    let isa = isa();
    team::share(layout.rows.len() * per_row, cost, |index| {
        let row = &layout.rows[index / per_row];
        let pending = num_tokens + pending[index / per_row].start;
        let start = index % per_row * TILE;
        simd::run(
            isa,
            Tile {
                tiles: &tiles,
                row,
                pending,
                start,
                len: TILE.min(channels - start),
            },
        );
    });
    (
        flex::from_vec(out, [num_outputs, channels]),
        StatePool {
            conv: flex::tensor(conv),
            ssm: pool.ssm,
            ring: ring.map(flex::tensor),
        },
    )
}

struct Tiles<'a> {
    projected: &'a [f32],
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    shape: &'a MambaShape,
    state: SharedMut<f32>,
    ring: SharedMut<f32>,
    /// Elements of a slot's ring.
    ring_len: usize,
    out: SharedMut<f32>,
}

/// The channels `start..start + len` of one row.
struct Tile<'a> {
    tiles: &'a Tiles<'a>,
    row: &'a RowLayout,
    /// Where the outputs of the row's pending tokens begin.
    pending: usize,
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
            pending,
            start,
            len,
        } = self;
        let MambaShape {
            conv_kernel: kernel,
            ..
        } = *tiles.shape;
        let (channels, stride) = (tiles.shape.conv_dim(), tiles.shape.projected());
        let history = kernel - 1;

        // SAFETY: a slot of this row and this tile's channels of the state: slots differ between rows
        // and copies, and tiles do not overlap (checked by `Layout::check_states` and by construction).
        let state_of = |slot| unsafe {
            let first = (slot * channels + start) * history;
            tiles.state.slice(first, len * history)
        };
        // SAFETY: as above; tokens in a ring are as many as it holds (checked there too).
        let ring_of = |at| unsafe {
            let first = row.slot * tiles.ring_len + at * tiles.shape.ring();
            tiles.ring.slice(first + start, len)
        };
        let state = state_of(row.slot);
        // window[j] holds the input at position t - (kernel - 1) + j.
        let mut window = [[0.0_f32; TILE]; MAX_KERNEL];
        let mut weight = [[0.0_f32; TILE]; MAX_KERNEL];
        let mut bias = [0.0_f32; TILE];
        turn(state, history, &mut window);
        turn(
            &tiles.weight[start * kernel..][..len * kernel],
            kernel,
            &mut weight,
        );
        if let Some(all) = tiles.bias {
            bias[..len].copy_from_slice(&all[start..start + len]);
        }

        for index in 0..row.num_pending + row.num_tokens() {
            let (token, input) = match index.checked_sub(row.num_pending) {
                None => (pending + index, &*ring_of(index)),
                Some(own) => {
                    let token = row.tokens.start + own;
                    let input = token * stride + tiles.shape.inner() + start;
                    (token, &tiles.projected[input..input + len])
                }
            };
            window[history][..len].copy_from_slice(input);
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
            let Some(num_own) = (index + 1).checked_sub(row.num_pending) else {
                continue;
            };
            for slot in row.slots_after(num_own) {
                turn_back(&window, history, state_of(slot));
            }
        }

        if !row.is_absorbed() {
            for (at, token) in row.tokens.clone().enumerate() {
                let input = token * stride + tiles.shape.inner() + start;
                ring_of(at).copy_from_slice(&tiles.projected[input..input + len]);
            }
        }
    }
}

/// Channel by channel to step by step.
#[inline(always)]
fn turn(channels: &[f32], per_channel: usize, steps: &mut [[f32; TILE]; MAX_KERNEL]) {
    // Nemotron-H's own windows, of which the compiler makes shuffles.
    match per_channel {
        0 => {}
        3 => turn_exactly::<3>(channels, steps),
        4 => turn_exactly::<4>(channels, steps),
        _ => {
            for (c, channel) in channels.chunks_exact(per_channel).enumerate() {
                for (step, &x) in steps.iter_mut().zip(channel) {
                    step[c] = x;
                }
            }
        }
    }
}

#[inline(always)]
fn turn_exactly<const N: usize>(channels: &[f32], steps: &mut [[f32; TILE]; MAX_KERNEL]) {
    for (c, channel) in channels.as_chunks::<N>().0.iter().enumerate().take(TILE) {
        for j in 0..N {
            steps[j][c] = channel[j];
        }
    }
}

/// The inverse of [`turn`].
#[inline(always)]
fn turn_back(steps: &[[f32; TILE]; MAX_KERNEL], per_channel: usize, channels: &mut [f32]) {
    match per_channel {
        0 => {}
        3 => {
            for (c, channel) in channels
                .as_chunks_mut::<3>()
                .0
                .iter_mut()
                .enumerate()
                .take(TILE)
            {
                for j in 0..3 {
                    channel[j] = steps[j][c];
                }
            }
        }
        _ => {
            for (c, channel) in channels.chunks_exact_mut(per_channel).enumerate() {
                for (x, step) in channel.iter_mut().zip(steps) {
                    *x = step[c];
                }
            }
        }
    }
}
