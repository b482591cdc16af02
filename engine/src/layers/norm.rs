//! RMS norm with a plain weight; the maths is f32.

use burn::tensor::Tensor;

use crate::model::load::Loader;
use crate::model::weights::Weight;

/// `x * rsqrt(mean(x^2) + eps) * weight`.
pub(crate) struct Norm {
    weight: Tensor<1>,
    eps: f32,
}

impl Norm {
    pub(crate) fn load(weight: &Weight, eps: f32, loader: &mut Loader) -> Self {
        Self {
            weight: loader.small(weight),
            eps,
        }
    }

    /// `[T, H]` to `[T, H]`.
    pub(crate) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        kernels::rms_norm(x, &self.weight, self.eps)
    }

    /// The sum of residual and `x`, and its norm.
    pub(crate) fn add(&self, residual: Tensor<2>, x: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
        kernels::add_rms_norm(residual, x, &self.weight, self.eps)
    }

    /// Gated by `z`, the first columns of `projected`, and normed per group of channels.
    pub(crate) fn gated(&self, y: Tensor<2>, projected: &Tensor<2>, groups: usize) -> Tensor<2> {
        kernels::gated_group_norm(y, projected, &self.weight, groups, self.eps)
    }
}
