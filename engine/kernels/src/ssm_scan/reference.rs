//! The recurrence in plain tensor operations, one token at a time, all heads at once.

use burn::tensor::{FloatDType, Tensor, s};

use super::ScanParameters;
use crate::{Layout, MambaShape, RowLayout};

/// Row by row, token by token.
pub(crate) fn ssm_scan(
    xbc: &Tensor<2>,
    projected: &Tensor<2>,
    parameters: &ScanParameters<'_>,
    mut ssm: Tensor<4>,
    shape: &MambaShape,
    layout: &Layout,
) -> (Tensor<2>, Tensor<4>) {
    let dt = time_steps(projected, parameters, shape);
    let mut outputs = Vec::new();
    for row in &layout.rows {
        let state =
            ssm.clone()
                .narrow(0, row.slot, 1)
                .reshape([shape.heads, shape.head_dim, shape.state]);
        let state = scan_row(xbc, &dt, parameters, state, shape, row, &mut outputs);
        ssm = ssm.slice_assign(s![row.slot..=row.slot, .., .., ..], state.unsqueeze::<4>());
    }
    (Tensor::cat(outputs, 0), ssm)
}

/// Softplus of dt plus its bias, in the form that neither overflows nor loses small values.
fn time_steps(
    projected: &Tensor<2>,
    parameters: &ScanParameters<'_>,
    shape: &MambaShape,
) -> Tensor<2> {
    let raw = projected
        .clone()
        .narrow(1, shape.inner() + shape.conv_dim(), shape.heads)
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

fn scan_row(
    xbc: &Tensor<2>,
    dt: &Tensor<2>,
    parameters: &ScanParameters<'_>,
    mut state: Tensor<3>,
    shape: &MambaShape,
    row: &RowLayout,
    outputs: &mut Vec<Tensor<2>>,
) -> Tensor<3> {
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
    for token in row.tokens.clone() {
        let dt = dt.clone().narrow(0, token, 1).reshape([heads, 1, 1]);
        let now = xbc.clone().narrow(0, token, 1);
        let x = now
            .clone()
            .narrow(1, 0, shape.inner())
            .reshape([heads, head_dim, 1]);
        let b = per_head(now.clone().narrow(1, shape.inner(), groups * n));
        let c = per_head(now.narrow(1, shape.inner() + groups * n, groups * n));
        state = state * (a.clone() * dt.clone()).exp() + (x.clone() * dt) * b;
        let y = (state.clone() * c).sum_dim(2) + d.clone() * x;
        outputs.push(y.reshape([1, heads * head_dim]));
    }
    state
}
