//! The convolution and the recurrence behind it.
//!
//! One after the other, but on a GPU in one launch for steps of one token per row: the same bits,
//! without the way of xbc through memory. Its `cpu.rs` and `reference.rs` are those of the two. Copies
//! on the way and tokens that are not absorbed are done in `waves.rs` there; `fixed.rs` is the same for
//! recorded steps.

#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "cube")]
mod fixed;
#[cfg(feature = "cube")]
pub(crate) mod waves;

use burn::tensor::Tensor;

use crate::route::route;
use crate::{Arithmetic, Layout, MambaShape, ScanParameters, StatePool, causal_conv1d, ssm_scan};

/// [`causal_conv1d`](causal_conv1d()) with `weight` and `bias`, then [`ssm_scan`](ssm_scan()) with
/// `parameters`: `[T, projected]` to y, F32 `[T, inner]`. Pending tokens and drafts are as there.
#[allow(clippy::too_many_arguments)] // The operands of two operations of the model.
pub fn conv_and_scan(
    projected: &Tensor<2>,
    weight: &Tensor<3>,
    bias: Option<&Tensor<1>>,
    parameters: &ScanParameters<'_>,
    pool: StatePool,
    shape: &MambaShape,
    layout: &Layout,
    arithmetic: Arithmetic,
) -> (Tensor<2>, StatePool) {
    let one_by_one = |pool| {
        let (xbc, pool) = causal_conv1d(projected, weight, bias, pool, shape, layout);
        ssm_scan(xbc, projected, parameters, pool, shape, layout, arithmetic)
    };
    route!(
        projected,
        cpu: one_by_one(pool),
        cube: if cube::takes(shape, layout) {
            cube::conv_and_update(projected, weight, bias, parameters, pool, shape, layout)
        } else if layout.is_plain() {
            one_by_one(pool)
        } else {
            waves::in_waves(
                projected, weight, bias, parameters, pool, shape, layout, arithmetic,
            )
        },
        reference: one_by_one(pool),
    )
}
