//! The Mamba-2 recurrence, for prefill and decode alike.

mod cpu;
#[cfg(feature = "cube")]
mod cube;
pub(crate) mod reference;

use burn::tensor::Tensor;

use crate::{Layout, MambaShape, StatePool, route::route};

/// Constants of a mixer's recurrence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScanParameters<'a> {
    /// `-exp(A_log)`, F32 `[heads]`.
    pub(crate) a: &'a Tensor<1>,
    /// The skip weight D, F32 `[heads]`.
    pub(crate) d: &'a Tensor<1>,
    /// Added to dt before the softplus, F32 `[heads]`.
    pub(crate) dt_bias: &'a Tensor<1>,
    /// Bounds on dt after the softplus; only for configs that really carry finite ones.
    pub(crate) time_step_limit: Option<(f32, f32)>,
}

/// For every token of every row, continuing from and advancing `pool.ssm` at the row's slot:
///
/// ```text
/// dt   = softplus(dt + dt_bias)
/// S[h] = exp(a[h] * dt[h]) * S[h] + (dt[h] * x[h]) outer B[g]
/// y[h] = S[h] @ C[g] + D[h] * x[h]
/// ```
///
/// Pending tokens come before a row's own, without outputs, with dt from `pool.ring`; rows with drafts
/// leave dt of their own there and the state as it was before them.
///
/// Shapes: `xbc` F32 `[T + pending, conv_dim]` (x, B, C, activated) and `projected` as in
/// [`causal_conv1d`](crate::causal_conv1d()) with dt in its last `heads` columns; `a`
/// (`-exp(A_log)`), `d` and `dt_bias` F32 `[heads]`; returns y, F32 `[T, inner]`. The state is f32
/// throughout. `time_step_limit` bounds dt after the softplus, only for configs that really carry
/// finite bounds.
#[allow(clippy::too_many_arguments)] // The operands of one operation of the model.
#[allow(clippy::needless_pass_by_value)] // A device kernel may write into the buffer of `xbc`.
pub fn ssm_scan(
    xbc: Tensor<2>,
    projected: &Tensor<2>,
    a: &Tensor<1>,
    d: &Tensor<1>,
    dt_bias: &Tensor<1>,
    time_step_limit: Option<(f32, f32)>,
    pool: StatePool,
    shape: &MambaShape,
    layout: &Layout,
) -> (Tensor<2>, StatePool) {
    let [num_tokens, _] = projected.dims();
    let [num_slots, heads, head_dim, state] = pool.ssm.dims();
    assert_eq!(
        xbc.dims(),
        [num_tokens + layout.num_pending(), shape.conv_dim()],
        "xbc shape"
    );
    assert_eq!(
        projected.dims(),
        [num_tokens, shape.projected()],
        "projected shape"
    );
    assert_eq!(
        [heads, head_dim, state],
        [shape.heads, shape.head_dim, shape.state],
        "recurrent state"
    );
    assert_eq!(heads % shape.groups, 0, "heads per group");
    layout.check_tokens(num_tokens);
    layout.check_states(num_slots, pool.max_ring());
    let parameters = &ScanParameters {
        a,
        d,
        dt_bias,
        time_step_limit,
    };
    route!(
        &xbc,
        cpu: cpu::ssm_scan(&xbc, projected, parameters, pool, shape, layout),
        cube: cube::ssm_scan(&xbc, projected, parameters, pool, shape, layout),
        reference: reference::ssm_scan(&xbc, projected, parameters, pool, shape, layout),
    )
}
