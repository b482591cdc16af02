//! Convolution and recurrence of a decode step in one launch.
//!
//! As [`causal_conv1d`](crate::causal_conv1d()) and [`ssm_scan`](crate::ssm_scan()) one after the
//! other, bit for bit, for rows of one token each: a launch and the way of xbc through memory less.
//! A cube, one head of one row, convolves its own x and its group's B and C while its state is on
//! the way. The heads of a group do the latter each for themselves; of the history of B and C,
//! which all of them read, the last to arrive is the one to write the next: they count themselves
//! in the step's `arrivals`. Counting comes before the sums and asking after them, so nobody waits for it.
//!
//! Bytes: as the two, less `8 C` a token; the redundant convolutions come from L2, a sixth of the
//! state's bytes. Splitting by groups instead, one cube for all heads of one, needs no counting, but
//! leaves a row in 8 cubes.
#![allow(unsafe_code)]

use cubecl::client::Client;
use cubecl::prelude::*;

use super::rounding::{key, round_state};
use super::walk::{CHANNELS, Plan, advance, load_state, store_state, time_step};
use super::{ScanParameters, check_but_xbc};
use crate::conv::taps;
use crate::math::{addresses, silu};
use crate::{Buffer, MambaShape, StepIndex};

/// [`causal_conv1d`](crate::causal_conv1d()), then [`ssm_scan`](crate::ssm_scan()).
///
/// # Panics
/// If a row has more than one token, or a buffer is not what the shape and the step make it.
#[allow(clippy::too_many_arguments)] // The operands of two operations of the model.
pub fn conv_and_update(
    client: &Client,
    projected: &Buffer,
    weight: &Buffer,
    bias: Option<&Buffer>,
    conv_pool: &Buffer,
    parameters: &ScanParameters<'_>,
    ssm_pool: &Buffer,
    shape: &MambaShape,
    step: &StepIndex,
    out: &Buffer,
) {
    let (channels, kernel) = (shape.conv_dim(), shape.conv_kernel);
    assert!(step.max_row_tokens <= 1, "rows of more than one token");
    assert!(step.row_absorbed.is_none(), "a token that is not absorbed");
    assert!(kernel > 1, "a convolution without a state");
    assert_eq!(weight.len(), channels * kernel, "convolution weight");
    assert!(
        bias.is_none_or(|bias| bias.len() == channels),
        "convolution bias"
    );
    let history = channels * (kernel - 1);
    assert_eq!(conv_pool.len() % history, 0, "slots of {history}");
    check_but_xbc(projected, parameters, ssm_pool, shape, step, out);
    if step.num_tokens == 0 {
        return;
    }
    let plan = Plan::new(client, shape, parameters);
    let width = plan.width();
    let num_taps = if matches!(kernel, 2 | 4) { kernel } else { 1 };
    let (min, max) = parameters.time_step_limit.unwrap_or_default();
    let count = CubeCount::Static(shape.heads as u32, step.num_rows as u32, plan.cubes as u32);
    // SAFETY: heads, channels and columns are the shape's, checked in the kernel where they do not
    // fill a cube; rows and slots are the step's; the lengths are asserted above.
    unsafe {
        conv_and_update_rows::launch_unchecked(
            client,
            count,
            CubeDim::new_2d(plan.lanes as u32, plan.planes as u32),
            addresses(client),
            width,
            plan.words(),
            num_taps,
            projected.arg(),
            weight.vectors(num_taps),
            bias.unwrap_or(weight).arg(),
            conv_pool.arg(),
            parameters.a.arg(),
            parameters.d.arg(),
            parameters.dt_bias.arg(),
            ssm_pool.vectors(plan.words()),
            step.row_slots.arg(),
            step.row_starts.arg(),
            step.arrivals(client, shape.groups).arg(),
            out.arg(),
            min,
            max,
            parameters.state.noise(),
            plan,
            bias.is_some(),
        );
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn conv_and_update_rows<N: Size, W: Size, K: Size>(
    projected: &[f32],
    weight: &[Vector<f32, K>],
    conv_bias: &[f32],
    conv_pool: &mut [f32],
    a: &[f32],
    d: &[f32],
    dt_bias: &[f32],
    pool: &mut [Vector<u32, W>],
    row_slots: &[u32],
    row_starts: &[u32],
    arrivals: &[Atomic<u32>],
    out: &mut [f32],
    min: f32,
    max: f32,
    noise: u32,
    #[comptime] plan: Plan,
    #[comptime] has_bias: bool,
) {
    let shape = comptime!(plan.shape);
    let units = comptime!(plan.lanes * plan.planes);
    let head = CUBE_POS_X as usize;
    // Of one token, so its token too.
    let row = CUBE_POS_Y as usize;
    let lane = UNIT_POS_X as usize;
    let unit = UNIT_POS as usize;
    let width = N::value();
    let columns = comptime!(shape.state / width);
    let passes = comptime!(columns.div_ceil(plan.lanes));
    let own = comptime!(plan.planes * CHANNELS);
    let cube_first = CUBE_POS_Z as usize * own;
    let plane_first = UNIT_POS_Y as usize * CHANNELS;
    let first = cube_first + plane_first;
    let slot = row_slots[row] as usize;
    let group = head / comptime!(shape.heads / shape.groups);

    let state_at = ((slot * shape.heads + head) * shape.head_dim + first) * columns + lane;
    let mut state = Array::<Vector<f32, N>>::new(comptime!(CHANNELS * passes));
    load_state::<N, W>(pool, &mut state, state_at, first, lane, plan);

    // x of the cube's channels, then B and C of the group.
    let inputs = projected_at(row, shape);
    let mut convolved = Shared::<[f32]>::new_slice(comptime!(own + 2 * shape.state));
    #[unroll]
    for pass in 0..comptime!((own + 2 * shape.state).div_ceil(units)) {
        let at = pass * units + unit;
        if at < own {
            let mut value = f32::new(0.0);
            if cube_first + at < shape.head_dim {
                let channel = head * shape.head_dim + cube_first + at;
                value = convolve::<K>(
                    projected, weight, conv_bias, conv_pool, inputs, slot, channel, shape, has_bias,
                );
                shift(projected, conv_pool, inputs, slot, channel, shape);
            }
            convolved[at] = value;
        } else if at < comptime!(own + 2 * shape.state) {
            let channel = shared_channel(at - own, group, shape);
            convolved[at] = convolve::<K>(
                projected, weight, conv_bias, conv_pool, inputs, slot, channel, shape, has_bias,
            );
        }
    }
    // Whoever counts itself has read the history.
    sync_storage();
    let mut is_last = Shared::<[u32]>::new_slice(1usize);
    if unit == 0 {
        let before = arrivals[row * shape.groups + group].fetch_add(1);
        let expected = comptime!((shape.heads / shape.groups * plan.cubes) as u32);
        is_last[0] = u32::cast_from(before + 1 == expected);
    }

    let raw = projected[inputs + comptime!(shape.conv_dim()) + head];
    let dt = time_step(raw + dt_bias[head], min, max, plan.is_limited);
    let decay = (a[head] * dt).exp();
    let mut b = Sequence::<Vector<f32, N>>::new();
    let mut c = Sequence::<Vector<f32, N>>::new();
    #[unroll]
    for pass in 0..passes {
        let mut b_value = Vector::<f32, N>::new(0.0);
        let mut c_value = Vector::<f32, N>::new(0.0);
        let column = pass * plan.lanes + lane;
        if comptime!(columns.is_multiple_of(plan.lanes)) || column < columns {
            #[unroll]
            for i in 0..width {
                b_value.insert(i, convolved[own + column * width + i]);
                c_value.insert(
                    i,
                    convolved[comptime!(own + shape.state) + column * width + i],
                );
            }
        }
        b.push(b_value);
        c.push(c_value);
    }
    let mut x = Sequence::<f32>::new();
    #[unroll]
    for channel in 0..CHANNELS {
        x.push(convolved[plane_first + channel]);
    }
    let mut sums = Array::<f32>::new(CHANNELS);
    let channel = advance::<N>(&mut state, &b, &c, &x, dt, decay, &mut sums, lane, plan);
    let is_first = lane.is_multiple_of(comptime!(plan.lanes / CHANNELS));
    if is_first && first + channel < shape.head_dim {
        out[row * comptime!(shape.inner()) + head * shape.head_dim + first + channel] =
            fma(d[head], convolved[plane_first + channel], sums[0]);
    }
    if comptime!(plan.is_half) {
        let key = key(noise, head, row_starts[row]);
        round_state::<N>(&mut state, key, first, lane, plan);
    }
    store_state::<N, W>(pool, &state, state_at, first, lane, plan);

    sync_cube();
    if is_last[0] == 1 {
        #[unroll]
        for pass in 0..comptime!((2 * shape.state).div_ceil(units)) {
            let at = pass * units + unit;
            if at < comptime!(2 * shape.state) {
                let channel = shared_channel(at, group, shape);
                shift(projected, conv_pool, inputs, slot, channel, shape);
            }
        }
        if unit == 0 {
            arrivals[row * shape.groups + group].store(0);
        }
    }
}

/// Where a token's xBC begin.
#[cube]
fn projected_at(token: usize, #[comptime] shape: MambaShape) -> usize {
    token * comptime!(shape.projected()) + comptime!(shape.inner())
}

/// The channel of a group's B, then C.
#[cube]
fn shared_channel(at: usize, group: usize, #[comptime] shape: MambaShape) -> usize {
    let start = comptime!(shape.inner()) + group * shape.state;
    let to_c = comptime!((shape.groups - 1) * shape.state);
    start + select(at < shape.state, at, at + to_c)
}

/// As in `conv`: the same sum in the same order.
#[cube]
#[allow(clippy::too_many_arguments)]
fn convolve<K: Size>(
    projected: &[f32],
    weight: &[Vector<f32, K>],
    bias: &[f32],
    pool: &mut [f32],
    inputs: usize,
    slot: usize,
    channel: usize,
    #[comptime] shape: MambaShape,
    #[comptime] has_bias: bool,
) -> f32 {
    let history = comptime!(shape.conv_kernel - 1);
    let taps = taps::<K>(weight, channel, shape.conv_kernel);
    let state = (slot * comptime!(shape.conv_dim()) + channel) * history;
    let mut sum = f32::new(0.0);
    if has_bias {
        sum = bias[channel];
    }
    #[unroll]
    for j in 0..history {
        sum = fma(*taps.index(j), pool[state + j], sum);
    }
    silu(fma(*taps.index(history), projected[inputs + channel], sum))
}

/// The channel's history moves on by the row's token.
#[cube]
fn shift(
    projected: &[f32],
    pool: &mut [f32],
    inputs: usize,
    slot: usize,
    channel: usize,
    #[comptime] shape: MambaShape,
) {
    let history = comptime!(shape.conv_kernel - 1);
    let state = (slot * comptime!(shape.conv_dim()) + channel) * history;
    #[unroll]
    for j in 0..comptime!(history - 1) {
        pool[state + j] = pool[state + j + 1];
    }
    pool[state + history - 1] = projected[inputs + channel];
}
