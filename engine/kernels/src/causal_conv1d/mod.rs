//! The depthwise causal convolution in front of the scan, with its state.

mod cpu;
#[cfg(feature = "cube")]
mod cube;
pub(crate) mod reference;

use burn::tensor::Tensor;

use crate::{Layout, MambaShape, StatePool, route::route};

/// `silu(b[c] + sum_j w[c, 0, j] * xbc[t - (K - 1) + j, c])` over the xBC columns of `projected`,
/// continuing from, and advancing, each row's slot of `pool.conv`. Pending tokens of the rows come
/// before their own, and have outputs too; rows with drafts put xBC of their own into `pool.ring`.
///
/// Shapes: `projected` F32 `[T, inner + conv_dim + heads]` (z, xBC, dt), `weight` any float
/// `[conv_dim, 1, K]`, `bias` any float `[conv_dim]`; returns F32 `[T + pending, conv_dim]`, the
/// pending tokens of all rows last.
pub fn causal_conv1d(
    projected: &Tensor<2>,
    weight: &Tensor<3>,
    bias: Option<&Tensor<1>>,
    pool: StatePool,
    shape: &MambaShape,
    layout: &Layout,
) -> (Tensor<2>, StatePool) {
    check(projected, weight, &pool, shape, layout);
    route!(
        projected,
        cpu: cpu::causal_conv1d(projected, weight, bias, pool, shape, layout),
        cube: cube::causal_conv1d(projected, weight, bias, pool, shape, layout),
        reference: reference::causal_conv1d(projected, weight, bias, pool, shape, layout),
    )
}

/// # Panics
/// If the operands do not fit together.
pub(crate) fn check(
    projected: &Tensor<2>,
    weight: &Tensor<3>,
    pool: &StatePool,
    shape: &MambaShape,
    layout: &Layout,
) {
    let [num_tokens, width] = projected.dims();
    let [num_slots, conv_dim, history] = pool.conv.dims();
    assert_eq!(width, shape.projected(), "projected width");
    assert_eq!(
        [conv_dim, history + 1],
        [shape.conv_dim(), shape.conv_kernel],
        "convolution state"
    );
    assert_eq!(
        weight.dims(),
        [conv_dim, 1, shape.conv_kernel],
        "convolution weight"
    );
    layout.check_tokens(num_tokens);
    layout.check_states(num_slots, pool.max_ring());
}
