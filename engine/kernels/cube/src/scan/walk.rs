//! The recurrence, token by token: a state stays in registers while its row's tokens pass.
//!
//! One cube per row and head, or a part of its channels. A plane holds `CHANNELS` rows of the
//! state, its lanes their columns in 16-byte vectors: all loads of a state are issued before the
//! first is used, and each is read and written once. The sums over columns of a plane's channels are
//! folded together; no shared memory, no barrier.
//!
//! Bound by bandwidth in decode: `8 head_dim state` bytes a row and head, 8 MiB a row for Super;
//! B and C come from L2 once per plane, an eighth of that. In flight per cube: 32 KiB, so that one
//! row alone (128 cubes) covers the latency of a Hopper's memory. Sixteen channels a plane would
//! halve the share of B and C, but leave one row's loads in half as many planes. A row of many
//! tokens takes as long as its tokens' latencies in turn.
//!
//! Registers decide how many cubes a multiprocessor holds. With 32-bit indices the compiler must
//! keep the address of every vector of the state, because an index could wrap: 97 registers, two
//! cubes; with 64 bits 74, three.
//!
//! A row that absorbs only its first tokens stores its state behind them and goes on in registers: a
//! read and at most a write of the state, whatever becomes of the others.
//!
//! States kept in halves take half the bytes, in loads of 8; they are rounded after every token, also in
//! registers, so that neither cuts nor pending tokens tell.
//!
//! Every sum has one order: the bits of a token depend on nothing but its row, however it is cut.
#![allow(unsafe_code)]

use cubecl::client::Client;
use cubecl::prelude::*;

use super::rounding::{key, packed, round_state, unpacked};
use super::{Rest, ScanParameters};
use crate::math::{addresses, lanes, softplus, vector_width};
use crate::{Buffer, MambaShape, StepIndex};

/// Rows of a state (channels of a head) that a plane holds.
pub(super) const CHANNELS: usize = 8;

/// Most planes of a cube.
const PLANES: usize = 8;

/// See [`ssm_scan_rest`](super::ssm_scan_rest()).
#[allow(clippy::too_many_arguments)] // As above.
pub(super) fn walk(
    client: &Client,
    xbc: &Buffer,
    projected: &Buffer,
    parameters: &ScanParameters<'_>,
    pool: &Buffer,
    shape: &MambaShape,
    step: &StepIndex,
    rest: Rest,
    out: &Buffer,
) {
    let plan = Plan::new(client, shape, parameters);
    let width = plan.width();
    let (min, max) = parameters.time_step_limit.unwrap_or_default();
    let count = CubeCount::Static(shape.heads as u32, step.num_rows as u32, plan.cubes as u32);
    // SAFETY: heads, channels and columns are the shape's, checked in the kernel where they do not
    // fill a cube; tokens, rows and slots are the step's; `ssm_scan` asserts the lengths.
    unsafe {
        walk_rows::launch_unchecked(
            client,
            count,
            CubeDim::new_2d(plan.lanes as u32, plan.planes as u32),
            addresses(client),
            width,
            plan.words(),
            xbc.arg(),
            xbc.vectors(width),
            projected.arg(),
            parameters.a.arg(),
            parameters.d.arg(),
            parameters.dt_bias.arg(),
            pool.vectors(plan.words()),
            step.row_tokens.arg(),
            step.row_starts.arg(),
            step.row_slots.arg(),
            step.absorbed().arg(),
            out.arg(),
            rest.chunk as u32,
            rest.short_tokens as u32,
            min,
            max,
            parameters.state.noise(),
            plan,
            step.row_absorbed.is_none(),
        );
    }
}

/// What is known when a kernel is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Plan {
    pub(super) shape: MambaShape,
    pub(super) lanes: usize,
    /// Of a cube.
    pub(super) planes: usize,
    /// Along a head.
    pub(super) cubes: usize,
    pub(super) is_limited: bool,
    /// Whether states are kept in halves.
    pub(super) is_half: bool,
}

impl Plan {
    pub(super) fn new(
        client: &Client,
        shape: &MambaShape,
        parameters: &ScanParameters<'_>,
    ) -> Self {
        let lanes = lanes(client);
        assert!(lanes >= CHANNELS, "planes of {lanes} lanes");
        let planes = shape.head_dim.div_ceil(CHANNELS);
        let cubes = planes.div_ceil(PLANES);
        let plan = Self {
            shape: *shape,
            lanes,
            planes: planes.div_ceil(cubes),
            cubes,
            is_limited: parameters.time_step_limit.is_some(),
            is_half: parameters.state.is_half(),
        };
        assert!(
            !plan.is_half || plan.width() > 1,
            "states in halves of rows that are not whole words: {shape:?}"
        );
        plan
    }

    /// Elements per load of a state's row.
    pub(super) fn width(&self) -> usize {
        let shape = &self.shape;
        vector_width(&[shape.state, shape.inner(), shape.conv_dim()])
    }

    /// Words of such a load.
    pub(super) fn words(&self) -> usize {
        self.width() / if self.is_half { 2 } else { 1 }
    }

    /// Whether every plane has all its channels.
    fn is_full(&self) -> bool {
        self.shape.head_dim == CHANNELS * self.planes * self.cubes
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn walk_rows<N: Size, W: Size>(
    xbc: &[f32],
    xbc_vectors: &[Vector<f32, N>],
    projected: &[f32],
    a: &[f32],
    d: &[f32],
    dt_bias: &[f32],
    pool: &mut [Vector<u32, W>],
    row_tokens: &[u32],
    row_starts: &[u32],
    row_slots: &[u32],
    row_absorbed: &[u32],
    out: &mut [f32],
    chunk: u32,
    short_tokens: u32,
    min: f32,
    max: f32,
    noise: u32,
    #[comptime] plan: Plan,
    #[comptime] absorbs_all: bool,
) {
    let shape = comptime!(plan.shape);
    let head = CUBE_POS_X as usize;
    let row = CUBE_POS_Y as usize;
    let lane = UNIT_POS_X as usize;
    let width = N::value();
    // Vectors of a state's row, of them those of a lane.
    let columns = comptime!(shape.state / width);
    let passes = comptime!(columns.div_ceil(plan.lanes));
    let is_whole = comptime!(columns.is_multiple_of(plan.lanes));
    let first = (CUBE_POS_Z as usize * plan.planes + UNIT_POS_Y as usize) * CHANNELS;
    let is_full = comptime!(plan.is_full());

    let mut begin = row_tokens[row];
    let end = row_tokens[row + 1];
    if end - begin > short_tokens {
        let start = row_starts[row];
        let position = start + (end - begin);
        let last = u32::max(position / chunk * chunk, start);
        if position - last > short_tokens || position == last {
            terminate!();
        }
        begin = end - (position - last);
    }

    let slot = row_slots[row] as usize * shape.heads + head;
    let state_at = (slot * shape.head_dim + first) * columns + lane;
    let mut state = Array::<Vector<f32, N>>::new(comptime!(CHANNELS * passes));
    load_state::<N, W>(pool, &mut state, state_at, first, lane, plan);

    let decay_rate = a[head];
    let skip = d[head];
    let bias = dt_bias[head];
    let group = head / comptime!(shape.heads / shape.groups);
    let b_at = comptime!(shape.inner() / width) + group * columns + lane;
    let c_at = b_at + comptime!(shape.groups * columns);
    let x_at = head * shape.head_dim + first;
    let absorbed_end = row_tokens[row] + row_absorbed[row];
    for token in begin..end {
        let is_last_absorbed = token + 1 == absorbed_end;
        let token = token as usize;
        let raw = projected[token * comptime!(shape.projected())
            + comptime!(shape.inner() + shape.conv_dim())
            + head];
        let vectors = token * comptime!(shape.conv_dim() / width);
        let mut b = Sequence::<Vector<f32, N>>::new();
        let mut c = Sequence::<Vector<f32, N>>::new();
        #[unroll]
        for pass in 0..passes {
            let mut b_value = Vector::<f32, N>::new(0.0);
            let mut c_value = Vector::<f32, N>::new(0.0);
            if is_whole || pass * plan.lanes + lane < columns {
                b_value = xbc_vectors[vectors + b_at + pass * plan.lanes];
                c_value = xbc_vectors[vectors + c_at + pass * plan.lanes];
            }
            b.push(b_value);
            c.push(c_value);
        }
        // All inputs before the first sum, and all sums before the first is reduced: one row has
        // little else to hide their latencies behind.
        let x_at = token * comptime!(shape.conv_dim()) + x_at;
        let mut x = Sequence::<f32>::new();
        #[unroll]
        for channel in 0..CHANNELS {
            let mut value = f32::new(0.0);
            if is_full || first + channel < shape.head_dim {
                value = xbc[x_at + channel];
            }
            x.push(value);
        }
        let dt = time_step(raw + bias, min, max, plan.is_limited);
        let decay = (decay_rate * dt).exp();
        let mut sums = Array::<f32>::new(CHANNELS);
        let channel = advance::<N>(&mut state, &b, &c, &x, dt, decay, &mut sums, lane, plan);
        let is_first = lane.is_multiple_of(comptime!(plan.lanes / CHANNELS));
        if is_first && (is_full || first + channel < shape.head_dim) {
            let x = xbc[x_at + channel];
            out[token * comptime!(shape.inner()) + head * shape.head_dim + first + channel] =
                fma(skip, x, sums[0]);
        }
        if comptime!(plan.is_half) {
            let position = row_starts[row] + (token as u32 - row_tokens[row]);
            let key = key(noise, head, position);
            round_state::<N>(&mut state, key, first, lane, plan);
        }
        if comptime!(!absorbs_all) && is_last_absorbed {
            store_state::<N, W>(pool, &state, state_at, first, lane, plan);
        }
    }

    if absorbs_all {
        store_state::<N, W>(pool, &state, state_at, first, lane, plan);
    }
}

/// A plane's rows of a state into registers, from `state_at` on; zeros past the head's channels
/// and columns.
#[cube]
pub(super) fn load_state<N: Size, W: Size>(
    pool: &mut [Vector<u32, W>],
    state: &mut Array<Vector<f32, N>>,
    state_at: usize,
    first: usize,
    lane: usize,
    #[comptime] plan: Plan,
) {
    let width = N::value();
    let columns = comptime!(plan.shape.state / width);
    let passes = comptime!(columns.div_ceil(plan.lanes));
    #[unroll]
    for channel in 0..CHANNELS {
        #[unroll]
        for pass in 0..passes {
            let mut value = Vector::<f32, N>::new(0.0);
            if (comptime!(plan.is_full()) || first + channel < plan.shape.head_dim)
                && (comptime!(columns.is_multiple_of(plan.lanes))
                    || pass * plan.lanes + lane < columns)
            {
                let words = pool[state_at + channel * columns + pass * plan.lanes];
                value = unpacked::<N, W>(words, plan.is_half);
            }
            state[channel * passes + pass] = value;
        }
    }
}

/// And back.
#[cube]
#[allow(clippy::trivially_copy_pass_by_ref)] // On a device it is registers, which go on.
pub(super) fn store_state<N: Size, W: Size>(
    pool: &mut [Vector<u32, W>],
    state: &Array<Vector<f32, N>>,
    state_at: usize,
    first: usize,
    lane: usize,
    #[comptime] plan: Plan,
) {
    let width = N::value();
    let columns = comptime!(plan.shape.state / width);
    let passes = comptime!(columns.div_ceil(plan.lanes));
    #[unroll]
    for channel in 0..CHANNELS {
        #[unroll]
        for pass in 0..passes {
            if (comptime!(plan.is_full()) || first + channel < plan.shape.head_dim)
                && (comptime!(columns.is_multiple_of(plan.lanes))
                    || pass * plan.lanes + lane < columns)
            {
                pool[state_at + channel * columns + pass * plan.lanes] =
                    packed::<N, W>(state[channel * passes + pass], plan.is_half);
            }
        }
    }
}

/// One token: the states move on, and the first of `sums` becomes `S @ C` of the channel returned.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn advance<N: Size>(
    state: &mut Array<Vector<f32, N>>,
    b: &Sequence<Vector<f32, N>>,
    c: &Sequence<Vector<f32, N>>,
    x: &Sequence<f32>,
    dt: f32,
    decay: f32,
    sums: &mut Array<f32>,
    lane: usize,
    #[comptime] plan: Plan,
) -> usize {
    let width = N::value();
    let passes = comptime!((plan.shape.state / width).div_ceil(plan.lanes));
    let decay = Vector::<f32, N>::new(decay);
    #[unroll]
    for channel in 0..CHANNELS {
        let input = Vector::<f32, N>::new(dt * x[channel]);
        let mut sum = Vector::<f32, N>::new(0.0);
        #[unroll]
        for pass in 0..passes {
            let old = state[channel * passes + pass];
            let new = fma(old, decay, input * b[pass]);
            state[channel * passes + pass] = new;
            sum = fma(new, c[pass], sum);
        }
        sums[channel] = sum.vector_sum();
    }
    fold(sums, lane, plan.lanes)
}

/// Sums each of `CHANNELS` values over the plane and returns whose sum this lane finds in the
/// first: a lane keeps half of its values and gives the other half away, until one is left. That
/// takes 9 exchanges for 32 lanes, where a reduction per value takes 40, one after the other.
#[cube]
fn fold(values: &mut Array<f32>, lane: usize, #[comptime] lanes: usize) -> usize {
    let mut channel = 0usize;
    #[unroll]
    for step in 0..comptime!(CHANNELS.ilog2() as usize) {
        let half = comptime!(CHANNELS >> (step + 1));
        let mask = comptime!(lanes >> (step + 1));
        let is_upper = lane & mask != 0;
        #[unroll]
        for value in 0..half {
            let kept = select(is_upper, values[value + half], values[value]);
            let given = select(is_upper, values[value], values[value + half]);
            values[value] = kept + plane_shuffle_xor(given, mask as u32);
        }
        channel += select(is_upper, half, 0usize);
    }
    let mut sum = values[0];
    #[unroll]
    for step in 0..comptime!((lanes / CHANNELS).ilog2() as usize) {
        sum += plane_shuffle_xor(sum, comptime!((lanes / CHANNELS) >> (step + 1)) as u32);
    }
    values[0] = sum;
    channel
}

/// The softplus, within its bounds. Comparisons, not `max` and `min`, which would hide a NaN.
#[cube]
pub(super) fn time_step(raw: f32, min: f32, max: f32, #[comptime] is_limited: bool) -> f32 {
    let mut dt = softplus(raw);
    if is_limited {
        dt = select(dt < min, min, dt);
        dt = select(dt > max, max, dt);
    }
    dt
}
