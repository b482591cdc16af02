//! The norms in plain tensor operations.

use burn::tensor::{FloatDType, Tensor, activation::silu};

/// `x * rsqrt(mean(x^2) + eps) * weight`.
pub(crate) fn rms_norm(x: Tensor<2>, weight: &Tensor<1>, eps: f32) -> Tensor<2> {
    let scale = x.clone().square().mean_dim(1).add_scalar(eps).sqrt();
    x / scale * weight.clone().cast(FloatDType::F32).unsqueeze::<2>()
}

/// `(residual + x, norm(residual + x))`.
pub(crate) fn add_rms_norm(
    residual: Tensor<2>,
    x: Tensor<2>,
    weight: &Tensor<1>,
    eps: f32,
) -> (Tensor<2>, Tensor<2>) {
    let sum = residual + x;
    let normed = rms_norm(sum.clone(), weight, eps);
    (sum, normed)
}

/// Gate, group norm, weight, in this order.
pub(crate) fn gated_group_norm(
    y: Tensor<2>,
    projected: &Tensor<2>,
    weight: &Tensor<1>,
    groups: usize,
    eps: f32,
) -> Tensor<2> {
    let [num_tokens, inner] = y.dims();
    let z = projected.clone().narrow(1, 0, inner);
    let v = (y * silu(z)).reshape([num_tokens, groups, inner / groups]);
    let scale = v.clone().square().mean_dim(2).add_scalar(eps).sqrt();
    (v / scale).reshape([num_tokens, inner]) * weight.clone().cast(FloatDType::F32).unsqueeze::<2>()
}
