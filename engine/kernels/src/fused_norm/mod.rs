//! Root-mean-square norms, alone and fused with what stands before them. Maths in f32.

mod cpu;
#[cfg(feature = "cube")]
mod cube;
pub(crate) mod reference;

use burn::tensor::Tensor;

use crate::route::route;

/// `x * rsqrt(mean(x^2) + eps) * weight`, per row.
///
/// Shapes: `x` F32 `[T, H]`, `weight` any float `[H]`.
pub fn rms_norm(x: Tensor<2>, weight: &Tensor<1>, eps: f32) -> Tensor<2> {
    route!(
        &x,
        cpu: cpu::rms_norm(x, weight, eps),
        cube: cube::rms_norm(&x, weight, eps),
        reference: reference::rms_norm(x, weight, eps),
    )
}

/// `residual + x`, and its norm: `(sum, norm(sum))`.
pub fn add_rms_norm(
    residual: Tensor<2>,
    x: Tensor<2>,
    weight: &Tensor<1>,
    eps: f32,
) -> (Tensor<2>, Tensor<2>) {
    route!(
        &x,
        cpu: cpu::add_rms_norm(residual, x, weight, eps),
        cube: cube::add_rms_norm(&residual, &x, weight, eps),
        reference: reference::add_rms_norm(residual, x, weight, eps),
    )
}

/// `v = y * silu(z)`, then a norm per group of `inner / groups` channels, then the weight.
///
/// Shapes: `y` F32 `[T, inner]`, `projected` F32 `[T, P]` with z in its first `inner` columns,
/// `weight` any float `[inner]`.
pub fn gated_group_norm(
    y: Tensor<2>,
    projected: &Tensor<2>,
    weight: &Tensor<1>,
    groups: usize,
    eps: f32,
) -> Tensor<2> {
    route!(
        &y,
        cpu: cpu::gated_group_norm(y, projected, weight, groups, eps),
        cube: cube::gated_group_norm(&y, projected, weight, groups, eps),
        reference: reference::gated_group_norm(y, projected, weight, groups, eps),
    )
}
