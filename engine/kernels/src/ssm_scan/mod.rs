//! The Mamba-2 recurrence, for prefill and decode alike.

mod cpu;
#[cfg(feature = "cube")]
mod cube;
pub(crate) mod reference;
pub(crate) mod rounding;

use burn::tensor::{DType, Tensor};

use crate::{Arithmetic, Layout, MambaShape, StatePool, route::route};

/// Constants of a mixer's recurrence.
#[derive(Clone, Copy, Debug)]
pub struct ScanParameters<'a> {
    /// `-exp(A_log)`, F32 `[heads]`.
    pub a: &'a Tensor<1>,
    /// The skip weight D, F32 `[heads]`.
    pub d: &'a Tensor<1>,
    /// Added to dt before the softplus, F32 `[heads]`.
    pub dt_bias: &'a Tensor<1>,
    /// Bounds on dt after the softplus; only for configs that really carry finite ones.
    pub time_step_limit: Option<(f32, f32)>,
    /// Tells the noise that this mixer's F16 states are rounded by from that of others; without such
    /// states it does nothing.
    pub seed: u32,
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
/// [`causal_conv1d`](crate::causal_conv1d()) with dt in its last `heads` columns; returns y, F32
/// `[T, inner]`. Arithmetic is f32 throughout. An F16 state is rounded after every token, up or down
/// at random (`rounding.rs`): by what is noise to the numbers and a function of the token's position,
/// not of the step. A GPU with tensor cores may scan long rows in chunks,
/// where `arithmetic` rounds: then, and only then, the bits of a row of more than 16 tokens depend
/// on how it was cut, unless on the grid of [`SCAN_CHUNK`](crate::SCAN_CHUNK).
#[allow(clippy::needless_pass_by_value)] // A device kernel may write into the buffer of `xbc`.
#[cfg_attr(not(feature = "cube"), allow(unused_variables))] // Of the arithmetic.
pub fn ssm_scan(
    xbc: Tensor<2>,
    projected: &Tensor<2>,
    parameters: &ScanParameters<'_>,
    pool: StatePool,
    shape: &MambaShape,
    layout: &Layout,
    arithmetic: Arithmetic,
) -> (Tensor<2>, StatePool) {
    let [num_tokens, _] = projected.dims();
    assert_eq!(
        xbc.dims(),
        [num_tokens + layout.num_pending(), shape.conv_dim()],
        "xbc shape"
    );
    check(projected, &pool, shape, layout);
    route!(
        &xbc,
        cpu: cpu::ssm_scan(&xbc, projected, parameters, pool, shape, layout),
        cube: cube::ssm_scan(&xbc, projected, parameters, pool, shape, layout, arithmetic),
        reference: reference::ssm_scan(&xbc, projected, parameters, pool, shape, layout),
    )
}

/// # Panics
/// If the operands do not fit together.
pub(crate) fn check(projected: &Tensor<2>, pool: &StatePool, shape: &MambaShape, layout: &Layout) {
    let [num_tokens, width] = projected.dims();
    let [num_slots, heads, head_dim, state] = pool.ssm.dims();
    assert_eq!(width, shape.projected(), "projected width");
    assert_eq!(
        [heads, head_dim, state],
        [shape.heads, shape.head_dim, shape.state],
        "recurrent state"
    );
    assert_eq!(heads % shape.groups, 0, "heads per group");
    let dtype = pool.ssm.dtype();
    assert!(
        matches!(dtype, DType::F32 | DType::F16),
        "recurrent states are F32 or F16, not {dtype:?}"
    );
    layout.check_tokens(num_tokens);
    layout.check_states(num_slots, pool.max_ring());
}
