//! Root-mean-square norms, alone and fused with what stands before them, and the residual's sum.
//!
//! Shapes: activations f32 `[t, h]`, weights f32 `[h]`. Maths in f32: `x / sqrt(mean(x^2) + eps) *
//! weight`, as in the `fused_norm` reference.
//!
//! One cube normalises one row (one row's group in the gated norm) and keeps it in registers
//! between the sum and the scaling, so that memory is read once and written once. Bytes moved per
//! row: `8 h` (`rms_norm`), `16 h` (`add_rms_norm`), `12 h` (gated); the weight stays in L2. Bound
//! by bandwidth from some hundred rows up, by latency below: a row's loads are all issued before
//! the first is used. The sum over a row has one order, whatever else is in the step.
#![allow(unsafe_code)]

use cubecl::client::Client;
use cubecl::prelude::*;

use crate::Buffer;
use crate::math::{CUBE_UNITS, cube_sum, lanes, silu_vector, vector_width};

/// Vectors that a unit holds before another plane joins its cube. Enough loads in flight to cover
/// their latency; a group of the gated norm then fits one plane, without a barrier.
const VECTORS_PER_UNIT: usize = 8;

/// `out = x / sqrt(mean(x^2) + eps) * weight`, per row of `h`.
pub fn rms_norm(
    client: &Client,
    x: &Buffer,
    t: usize,
    h: usize,
    weight: &Buffer,
    eps: f32,
    out: &Buffer,
) {
    assert_eq!([x.len(), out.len()], [t * h; 2], "normed values");
    assert_eq!(weight.len(), h, "norm weight");
    let Some(plan) = Plan::new(client, t, 1, h, &[h]) else {
        return;
    };
    // SAFETY: `Plan` covers exactly `t` rows of `h`, the lengths asserted above.
    unsafe {
        rms_norm_rows::launch_unchecked(
            client,
            plan.count,
            plan.dim,
            plan.width,
            x.vectors(plan.width),
            weight.vectors(plan.width),
            out.vectors(plan.width),
            eps,
            plan.len,
            plan.units,
            plan.planes,
        );
    }
}

/// `sum = residual + x` and `out = rms_norm(sum)`. The buffers are four different ones.
#[allow(clippy::too_many_arguments)] // The operands of one operation of the model.
pub fn add_rms_norm(
    client: &Client,
    residual: &Buffer,
    x: &Buffer,
    t: usize,
    h: usize,
    weight: &Buffer,
    eps: f32,
    sum: &Buffer,
    out: &Buffer,
) {
    let lengths = [residual.len(), x.len(), sum.len(), out.len()];
    assert_eq!(lengths, [t * h; 4], "normed values");
    assert_eq!(weight.len(), h, "norm weight");
    let Some(plan) = Plan::new(client, t, 1, h, &[h]) else {
        return;
    };
    // SAFETY: `Plan` covers exactly `t` rows of `h`, the lengths asserted above.
    unsafe {
        add_rms_norm_rows::launch_unchecked(
            client,
            plan.count,
            plan.dim,
            plan.width,
            residual.vectors(plan.width),
            x.vectors(plan.width),
            weight.vectors(plan.width),
            sum.vectors(plan.width),
            out.vectors(plan.width),
            eps,
            plan.len,
            plan.units,
            plan.planes,
        );
    }
}

/// `v = y * silu(z)`, then a norm per group of `inner / groups` channels, then the weight.
///
/// `y` is `[t, inner]`, `projected` `[t, projected_width]` with z in its first `inner` columns,
/// `weight` `[inner]`.
#[allow(clippy::too_many_arguments)] // The operands of one operation of the model.
pub fn gated_group_norm(
    client: &Client,
    y: &Buffer,
    t: usize,
    projected: &Buffer,
    projected_width: usize,
    weight: &Buffer,
    inner: usize,
    groups: usize,
    eps: f32,
    out: &Buffer,
) {
    assert_eq!([y.len(), out.len()], [t * inner; 2], "normed values");
    assert_eq!(projected.len(), t * projected_width, "gates");
    assert!(
        projected_width >= inner,
        "{inner} gates in {projected_width} columns"
    );
    assert_eq!(weight.len(), inner, "norm weight");
    assert_eq!(inner % groups, 0, "channels per group");
    let len = inner / groups;
    let Some(plan) = Plan::new(client, t, groups, len, &[len, projected_width]) else {
        return;
    };
    // SAFETY: `Plan` covers exactly `t` rows of `groups` groups of `len`, and a row's gates lie
    // within its `projected_width` columns: the lengths asserted above.
    unsafe {
        gated_group_norm_rows::launch_unchecked(
            client,
            plan.count,
            plan.dim,
            plan.width,
            y.vectors(plan.width),
            projected.vectors(plan.width),
            weight.vectors(plan.width),
            out.vectors(plan.width),
            eps,
            projected_width / plan.width,
            groups,
            plan.len,
            plan.units,
            plan.planes,
        );
    }
}

/// `out = a + b`, of any one length. The buffers are three different ones.
pub fn add(client: &Client, a: &Buffer, b: &Buffer, out: &Buffer) {
    assert_eq!([b.len(), out.len()], [a.len(); 2], "summands");
    if a.is_empty() {
        return;
    }
    let width = vector_width(&[a.len()]);
    let len = a.len() / width;
    let cubes = len.div_ceil(CUBE_UNITS) as u32;
    // More than 2^16 - 1 cubes do not fit one dimension everywhere.
    let x = cubes.min(1 << 15);
    // SAFETY: the kernel checks its position against `len`, which all three buffers have.
    unsafe {
        add_all::launch_unchecked(
            client,
            CubeCount::Static(x, cubes.div_ceil(x), 1),
            CubeDim::new_1d(CUBE_UNITS as u32),
            width,
            a.vectors(width),
            b.vectors(width),
            out.vectors(width),
            len,
        );
    }
}

/// How `t * groups` rows of some length lie on cubes.
struct Plan {
    count: CubeCount,
    dim: CubeDim,
    /// Elements per load.
    width: usize,
    /// Vectors per row.
    len: usize,
    /// Units per cube.
    units: usize,
    /// Planes per cube.
    planes: usize,
}

impl Plan {
    /// `None` where there is nothing to do. Every length in `strides` is a whole number of vectors.
    fn new(
        client: &Client,
        t: usize,
        groups: usize,
        len: usize,
        strides: &[usize],
    ) -> Option<Self> {
        if t * groups * len == 0 {
            return None;
        }
        let lanes = lanes(client);
        let width = vector_width(strides);
        let len = len / width;
        let planes = len
            .div_ceil(lanes * VECTORS_PER_UNIT)
            .min(CUBE_UNITS / lanes);
        Some(Self {
            count: CubeCount::Static(t as u32, groups as u32, 1),
            dim: CubeDim::new_2d(lanes as u32, planes as u32),
            width,
            len,
            units: lanes * planes,
            planes,
        })
    }
}

#[cube(launch_unchecked)]
fn rms_norm_rows<N: Size>(
    x: &[Vector<f32, N>],
    weight: &[Vector<f32, N>],
    out: &mut [Vector<f32, N>],
    eps: f32,
    #[comptime] len: usize,
    #[comptime] units: usize,
    #[comptime] planes: usize,
) {
    let row = CUBE_POS_X as usize * len;
    let mut values = Sequence::<Vector<f32, N>>::new();
    #[unroll]
    for pass in 0..comptime!(len.div_ceil(units)) {
        let at = pass * units + UNIT_POS as usize;
        let mut value = Vector::<f32, N>::new(0.0);
        if comptime!(len.is_multiple_of(units)) || at < len {
            value = x[row + at];
        }
        values.push(value);
    }
    scale_and_store::<N>(&values, weight, 0, out, row, eps, len, units, planes);
}

#[cube(launch_unchecked)]
fn add_rms_norm_rows<N: Size>(
    residual: &[Vector<f32, N>],
    x: &[Vector<f32, N>],
    weight: &[Vector<f32, N>],
    sum: &mut [Vector<f32, N>],
    out: &mut [Vector<f32, N>],
    eps: f32,
    #[comptime] len: usize,
    #[comptime] units: usize,
    #[comptime] planes: usize,
) {
    let row = CUBE_POS_X as usize * len;
    let mut values = Sequence::<Vector<f32, N>>::new();
    #[unroll]
    for pass in 0..comptime!(len.div_ceil(units)) {
        let at = pass * units + UNIT_POS as usize;
        let mut value = Vector::<f32, N>::new(0.0);
        if comptime!(len.is_multiple_of(units)) || at < len {
            value = residual[row + at] + x[row + at];
        }
        values.push(value);
    }
    #[unroll]
    for pass in 0..comptime!(len.div_ceil(units)) {
        let at = pass * units + UNIT_POS as usize;
        if comptime!(len.is_multiple_of(units)) || at < len {
            sum[row + at] = values[pass];
        }
    }
    scale_and_store::<N>(&values, weight, 0, out, row, eps, len, units, planes);
}

#[cube(launch_unchecked)]
fn gated_group_norm_rows<N: Size>(
    y: &[Vector<f32, N>],
    projected: &[Vector<f32, N>],
    weight: &[Vector<f32, N>],
    out: &mut [Vector<f32, N>],
    eps: f32,
    projected_width: usize,
    #[comptime] groups: usize,
    #[comptime] len: usize,
    #[comptime] units: usize,
    #[comptime] planes: usize,
) {
    let token = CUBE_POS_X as usize;
    let group = CUBE_POS_Y as usize * len;
    let row = token * len * groups + group;
    let gates = token * projected_width + group;
    let mut values = Sequence::<Vector<f32, N>>::new();
    #[unroll]
    for pass in 0..comptime!(len.div_ceil(units)) {
        let at = pass * units + UNIT_POS as usize;
        let mut value = Vector::<f32, N>::new(0.0);
        if comptime!(len.is_multiple_of(units)) || at < len {
            value = y[row + at] * silu_vector::<N>(projected[gates + at]);
        }
        values.push(value);
    }
    scale_and_store::<N>(&values, weight, group, out, row, eps, len, units, planes);
}

/// The norm of a row held in registers.
#[cube]
#[allow(clippy::too_many_arguments)]
fn scale_and_store<N: Size>(
    values: &Sequence<Vector<f32, N>>,
    weight: &[Vector<f32, N>],
    weight_row: usize,
    out: &mut [Vector<f32, N>],
    row: usize,
    eps: f32,
    #[comptime] len: usize,
    #[comptime] units: usize,
    #[comptime] planes: usize,
) {
    let mut squares = f32::new(0.0);
    #[unroll]
    for pass in 0..comptime!(len.div_ceil(units)) {
        squares += (values[pass] * values[pass]).vector_sum();
    }
    let mean = cube_sum(squares, planes) * (1.0 / f32::cast_from(len * N::value()));
    // One reciprocal for all: a division each would be a call with registers to save.
    let scale = Vector::<f32, N>::new((mean + eps).inverse_sqrt());
    #[unroll]
    for pass in 0..comptime!(len.div_ceil(units)) {
        let at = pass * units + UNIT_POS as usize;
        if comptime!(len.is_multiple_of(units)) || at < len {
            out[row + at] = values[pass] * scale * weight[weight_row + at];
        }
    }
}

#[cube(launch_unchecked)]
fn add_all<N: Size>(
    a: &[Vector<f32, N>],
    b: &[Vector<f32, N>],
    out: &mut [Vector<f32, N>],
    len: usize,
) {
    let at = ABSOLUTE_POS;
    if at < len {
        out[at] = a[at] + b[at];
    }
}
