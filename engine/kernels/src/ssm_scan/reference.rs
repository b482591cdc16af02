//! The recurrence in plain tensor operations, one token at a time, all heads at once.

use burn::tensor::{DType, FloatDType, Tensor, TensorData, s};

use super::{ScanParameters, rounding};
use crate::layout::pending_inputs;
use crate::{Layout, MambaShape, StatePool, with_f32};

/// Row by row, token by token.
pub(crate) fn ssm_scan(
    xbc: &Tensor<2>,
    projected: &Tensor<2>,
    parameters: &ScanParameters<'_>,
    pool: StatePool,
    shape: &MambaShape,
    layout: &Layout,
) -> (Tensor<2>, StatePool) {
    let StatePool {
        conv,
        mut ssm,
        mut ring,
    } = pool;
    let [num_tokens, _] = projected.dims();
    let raw = projected
        .clone()
        .narrow(1, shape.inner() + shape.conv_dim(), shape.heads);
    let mut outputs = Vec::new();
    for (row, pending) in layout.rows.iter().zip(layout.pending()) {
        let own = raw.clone().narrow(0, row.tokens.start, row.num_tokens());
        let ring_raw = pending_inputs(ring.as_ref(), row)
            .map(|inputs| inputs.narrow(1, shape.conv_dim(), shape.heads));
        let dt = Tensor::cat(ring_raw.into_iter().chain([own.clone()]).collect(), 0);
        let dt = time_steps(dt, parameters);
        let before = pending.map(|at| num_tokens + at);
        let inputs: Vec<usize> = before.chain(row.tokens.clone()).collect();

        let mut state = ssm
            .clone()
            .narrow(0, row.slot, 1)
            .reshape([shape.heads, shape.head_dim, shape.state])
            .cast(FloatDType::F32);
        for (index, &token) in inputs.iter().enumerate() {
            let now = xbc.clone().narrow(0, token, 1);
            let dt = dt.clone().narrow(0, index, 1);
            let (y, next) = scan_token(now, dt, parameters, state, shape);
            state = if ssm.dtype() == DType::F16 {
                let position = row.start + index - row.num_pending;
                rounded(&next, parameters.seed, position)
            } else {
                next
            };
            if index >= row.num_pending {
                outputs.push(y);
            }
            let Some(num_own) = (index + 1).checked_sub(row.num_pending) else {
                continue;
            };
            for slot in row.slots_after(num_own) {
                let state = state.clone().unsqueeze::<4>();
                let state = state.cast(FloatDType::from(ssm.dtype()));
                ssm = ssm.slice_assign(s![slot..=slot, .., .., ..], state);
            }
        }
        if !row.is_absorbed() {
            let kept = ring.take().expect("rows with drafts have rings");
            ring = Some(kept.slice_assign(
                s![row.slot..=row.slot, 0..row.num_tokens(), shape.conv_dim()..],
                own.unsqueeze::<3>(),
            ));
        }
    }
    (Tensor::cat(outputs, 0), StatePool { conv, ssm, ring })
}

/// The state `[heads, head_dim, N]` after the token at `position`, in numbers that half has. On the host:
/// the noise is bits, which tensors of numbers have no operations for.
fn rounded(state: &Tensor<3>, seed: u32, position: usize) -> Tensor<3> {
    let [heads, head_dim, n] = state.dims();
    let mut values = with_f32(state, <[f32]>::to_vec);
    for (head, state) in values.chunks_mut(head_dim * n).enumerate() {
        let key = rounding::key(rounding::stream(seed, head), position);
        rounding::round_state(key, state, n);
    }
    let data = TensorData::new(values, [heads, head_dim, n]);
    Tensor::from_data(data, (&state.device(), DType::F32))
}

/// Softplus of dt plus its bias, in the form that neither overflows nor loses small values.
fn time_steps(raw: Tensor<2>, parameters: &ScanParameters<'_>) -> Tensor<2> {
    let raw = raw
        + parameters
            .dt_bias
            .clone()
            .cast(FloatDType::F32)
            .unsqueeze::<2>();
    let dt = raw.clone().clamp_min(0.0) + raw.abs().neg().exp().log1p();
    match parameters.time_step_limit {
        Some((min, max)) => dt.clamp(min, max),
        None => dt,
    }
}

/// A token's output, and the state after it.
fn scan_token(
    now: Tensor<2>,
    dt: Tensor<2>,
    parameters: &ScanParameters<'_>,
    state: Tensor<3>,
    shape: &MambaShape,
) -> (Tensor<2>, Tensor<3>) {
    let MambaShape {
        heads,
        head_dim,
        groups,
        state: n,
        ..
    } = *shape;
    let per_head = |values: Tensor<2>| {
        values
            .reshape([groups, 1, n])
            .repeat_dim(1, heads / groups)
            .reshape([heads, 1, n])
    };
    let a = parameters.a.clone().reshape([heads, 1, 1]);
    let d = parameters.d.clone().reshape([heads, 1, 1]);
    let dt = dt.reshape([heads, 1, 1]);
    let x = now
        .clone()
        .narrow(1, 0, shape.inner())
        .reshape([heads, head_dim, 1]);
    let b = per_head(now.clone().narrow(1, shape.inner(), groups * n));
    let c = per_head(now.narrow(1, shape.inner() + groups * n, groups * n));
    let state = state * (a * dt.clone()).exp() + (x.clone() * dt) * b;
    let y = (state.clone() * c).sum_dim(2) + d * x;
    (y.reshape([1, heads * head_dim]), state)
}
