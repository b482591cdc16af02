//! The depthwise causal convolution in front of the scan, with its state.
//!
//! `out[t, c] = silu(bias[c] + sum_j weight[c, j] * xBC[t - (K - 1) + j, c])`, where xBC are the
//! columns `inner..inner + C` of the projection and what lies before a row's first token is in its
//! slot of the pool: the last `K - 1` raw inputs, oldest first. The row's own last `K - 1` inputs
//! take their place. The `causal_conv1d` reference; every sum has one order, so a token's bits do
//! not depend on its company nor on how its row was cut.
//!
//! Shapes: projected f32 `[T, P]`, weight f32 `[C, K]`, pool f32 `[slots, C, K - 1]`, out f32
//! `[T, C]`. One unit per channel: lanes read neighbouring channels. Bound by bandwidth: `8 C`
//! bytes a token, and `8 C (K - 1)` a row for its state.
//!
//! - Rows of a few tokens: a unit walks its row's tokens, the window in registers. One launch.
//! - Long rows: a unit takes `TILE` tokens wherever rows begin, and looks `K - 1` tokens back,
//!   which the cache of its multiprocessor holds. It must not write a state that the next tile of
//!   the row's first tokens still reads, so a second launch does.
//!
//! Four channels a unit make 16-byte loads of the inputs, but its taps and its state then lie 64
//! and 48 bytes from its neighbour's: by count of cache lines touched half again as slow for rows
//! of one token, where state and taps are most of the bytes. Not measured.
#![allow(unsafe_code)]

use cubecl::client::Client;
use cubecl::prelude::*;

use crate::math::{CUBE_UNITS, silu};
use crate::{Buffer, MambaShape, StepIndex};

/// Longest rows, in tokens, that one unit walks alone.
const MAX_WALK: usize = 16;

/// Tokens of a unit where rows are longer.
const TILE: usize = 8;

/// For every token of every row, continuing from and advancing the row's slot of `pool`. Slots of
/// a step's rows differ.
#[allow(clippy::too_many_arguments)] // The operands of one operation of the model.
pub fn causal_conv1d(
    client: &Client,
    projected: &Buffer,
    weight: &Buffer,
    bias: Option<&Buffer>,
    pool: &Buffer,
    shape: &MambaShape,
    step: &StepIndex,
    out: &Buffer,
) {
    let (channels, kernel) = (shape.conv_dim(), shape.conv_kernel);
    let tokens = step.num_tokens;
    assert!(kernel > 0, "a convolution window of nothing");
    assert_eq!(projected.len(), tokens * shape.projected(), "projected");
    assert_eq!(weight.len(), channels * kernel, "convolution weight");
    assert!(
        bias.is_none_or(|bias| bias.len() == channels),
        "convolution bias"
    );
    assert_eq!(out.len(), tokens * channels, "convolved");
    if kernel > 1 {
        let slot = channels * (kernel - 1);
        assert_eq!(pool.len() % slot, 0, "slots of {slot} in {}", pool.len());
    }
    if tokens == 0 {
        return;
    }
    let columns = Columns {
        channels,
        kernel,
        first: shape.inner(),
        stride: shape.projected(),
    };
    let taps = if matches!(kernel, 2 | 4) { kernel } else { 1 };
    let across = channels.div_ceil(CUBE_UNITS) as u32;
    let dim = CubeDim::new_1d(CUBE_UNITS as u32);
    let is_short = step.max_row_tokens <= MAX_WALK;
    let down = if is_short {
        step.num_rows
    } else {
        tokens.div_ceil(TILE)
    };
    // SAFETY: channels are checked in the kernels; tokens, rows and slots are the step's, the
    // lengths asserted above.
    unsafe {
        if is_short {
            conv_rows::launch_unchecked(
                client,
                CubeCount::Static(across, down as u32, 1),
                dim,
                taps,
                projected.arg(),
                weight.vectors(taps),
                bias.unwrap_or(weight).arg(),
                pool.arg(),
                step.row_tokens.arg(),
                step.row_slots.arg(),
                step.absorbed().arg(),
                out.arg(),
                columns,
                bias.is_some(),
                step.row_absorbed.is_none(),
            );
            return;
        }
        conv_tiles::launch_unchecked(
            client,
            CubeCount::Static(across, down as u32, 1),
            dim,
            taps,
            projected.arg(),
            weight.vectors(taps),
            bias.unwrap_or(weight).arg(),
            pool.arg(),
            step.token_rows.arg(),
            step.row_tokens.arg(),
            step.row_slots.arg(),
            out.arg(),
            tokens,
            columns,
            bias.is_some(),
        );
        if kernel > 1 {
            advance::launch_unchecked(
                client,
                CubeCount::Static(across, step.num_rows as u32, 1),
                dim,
                projected.arg(),
                pool.arg(),
                step.row_tokens.arg(),
                step.row_slots.arg(),
                step.absorbed().arg(),
                columns,
                step.row_absorbed.is_none(),
            );
        }
    }
}

/// Where the channels lie; known when a kernel is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Columns {
    channels: usize,
    kernel: usize,
    /// First column of the projection that is one.
    first: usize,
    /// Columns of the projection.
    stride: usize,
}

/// A cube per row and 256 channels.
#[cube(launch_unchecked)]
fn conv_rows<N: Size>(
    projected: &[f32],
    weight: &[Vector<f32, N>],
    bias: &[f32],
    pool: &mut [f32],
    row_tokens: &[u32],
    row_slots: &[u32],
    row_absorbed: &[u32],
    out: &mut [f32],
    #[comptime] columns: Columns,
    #[comptime] has_bias: bool,
    #[comptime] absorbs_all: bool,
) {
    let channel = ABSOLUTE_POS_X as usize;
    if channel >= columns.channels {
        terminate!();
    }
    let kernel = comptime!(columns.kernel);
    let row = CUBE_POS_Y as usize;
    let history = comptime!(columns.kernel - 1);
    let state = (row_slots[row] as usize * columns.channels + channel) * history;
    let taps = taps::<N>(weight, channel, kernel);
    let mut start = f32::new(0.0);
    if has_bias {
        start = bias[channel];
    }
    // window[j] holds the input at position t - (kernel - 1) + j.
    let mut window = Array::<f32>::new(kernel);
    #[unroll]
    for j in 0..history {
        window[j] = pool[state + j];
    }
    let absorbed_end = row_tokens[row] + row_absorbed[row];
    for token in row_tokens[row]..row_tokens[row + 1] {
        let is_last_absorbed = token + 1 == absorbed_end;
        let token = token as usize;
        window[history] = projected[token * columns.stride + columns.first + channel];
        let mut sum = start;
        #[unroll]
        for j in 0..kernel {
            sum = fma(*taps.index(j), window[j], sum);
        }
        out[token * columns.channels + channel] = silu(sum);
        #[unroll]
        for j in 0..history {
            window[j] = window[j + 1];
        }
        if comptime!(!absorbs_all) && is_last_absorbed {
            #[unroll]
            for j in 0..history {
                pool[state + j] = window[j];
            }
        }
    }
    if absorbs_all {
        #[unroll]
        for j in 0..history {
            pool[state + j] = window[j];
        }
    }
}

/// A cube per `TILE` tokens and 256 channels; the pool stays as it is.
#[cube(launch_unchecked)]
fn conv_tiles<N: Size>(
    projected: &[f32],
    weight: &[Vector<f32, N>],
    bias: &[f32],
    pool: &[f32],
    token_rows: &[u32],
    row_tokens: &[u32],
    row_slots: &[u32],
    out: &mut [f32],
    tokens: usize,
    #[comptime] columns: Columns,
    #[comptime] has_bias: bool,
) {
    let channel = ABSOLUTE_POS_X as usize;
    if channel >= columns.channels {
        terminate!();
    }
    let kernel = comptime!(columns.kernel);
    let history = comptime!(columns.kernel - 1);
    let taps = taps::<N>(weight, channel, kernel);
    let mut start = f32::new(0.0);
    if has_bias {
        start = bias[channel];
    }
    let begin = CUBE_POS_Y as usize * TILE;
    let end = usize::min(begin + TILE, tokens);
    for token in begin..end {
        let row = token_rows[token] as usize;
        let offset = token - row_tokens[row] as usize;
        let state = (row_slots[row] as usize * columns.channels + channel) * history;
        let input = token * columns.stride + columns.first + channel;
        let mut sum = start;
        #[unroll]
        for j in 0..kernel {
            let back = comptime!(history - j);
            let value = if offset >= back {
                projected[input - comptime!(back * columns.stride)]
            } else {
                pool[state + offset + j]
            };
            sum = fma(*taps.index(j), value, sum);
        }
        out[token * columns.channels + channel] = silu(sum);
    }
}

/// A cube per row and 256 channels: the row's last inputs become its state.
#[cube(launch_unchecked)]
fn advance(
    projected: &[f32],
    pool: &mut [f32],
    row_tokens: &[u32],
    row_slots: &[u32],
    row_absorbed: &[u32],
    #[comptime] columns: Columns,
    #[comptime] absorbs_all: bool,
) {
    let channel = ABSOLUTE_POS_X as usize;
    if channel >= columns.channels {
        terminate!();
    }
    let row = CUBE_POS_Y as usize;
    let history = comptime!(columns.kernel - 1);
    let state = (row_slots[row] as usize * columns.channels + channel) * history;
    let first = row_tokens[row] as usize;
    let mut len = row_tokens[row + 1] as usize - first;
    if !absorbs_all {
        len = row_absorbed[row] as usize;
    }
    // Ascending, so that a row shorter than the window reads an entry before it is overwritten.
    #[unroll]
    for j in 0..history {
        let at = len + j;
        let value = if at >= history {
            let token = first + at - history;
            projected[token * columns.stride + columns.first + channel]
        } else {
            pool[state + at]
        };
        pool[state + j] = value;
    }
}

/// The weights of a channel.
#[cube]
pub(crate) fn taps<N: Size>(
    weight: &[Vector<f32, N>],
    channel: usize,
    #[comptime] kernel: usize,
) -> Sequence<f32> {
    let width = N::value();
    let mut taps = Sequence::<f32>::new();
    #[unroll]
    for vector in 0..comptime!(kernel / width) {
        let values = weight[channel * comptime!(kernel / width) + vector];
        #[unroll]
        for lane in 0..width {
            taps.push(values.extract(lane));
        }
    }
    taps
}
