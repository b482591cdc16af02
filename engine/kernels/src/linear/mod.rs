//! Products with weight matrices: the skinny matrix products that a step consists of.

mod blocks;
pub(crate) mod cpu;
#[cfg(feature = "cube")]
mod cube;
pub(crate) mod product;
pub(crate) mod reference;
pub(crate) mod tile;
pub(crate) mod weights;

use burn::tensor::Tensor;

use crate::{Arithmetic, Matrix, route::route};

/// `x @ w^T + bias`.
///
/// Shapes: `x` F32 `[T, K]`, `w` `[N, K]`, `bias` any float `[N]`; returns F32 `[T, N]`. A row of the result depends on its row of `x` alone, bit for bit.
pub fn linear(
    x: Tensor<2>,
    w: &Matrix,
    bias: Option<&Tensor<1>>,
    arithmetic: Arithmetic,
) -> Tensor<2> {
    route!(
        &x,
        cpu: cpu::linear(x, w, bias, arithmetic),
        cube: cube::linear(&x, w, bias, arithmetic),
        reference: reference::linear(x, w, bias, arithmetic),
    )
}

/// `down @ relu(up @ x)^2`: the dense MLP and the shared expert.
///
/// Shapes: `x` `[T, H]`, `up` `[I, H]`, `down` `[H, I]`; returns `[T, H]`.
pub fn mlp_relu2(
    x: Tensor<2>,
    up: &Matrix,
    up_bias: Option<&Tensor<1>>,
    down: &Matrix,
    down_bias: Option<&Tensor<1>>,
    arithmetic: Arithmetic,
) -> Tensor<2> {
    route!(
        &x,
        cpu: cpu::mlp_relu2(x, up, up_bias, down, down_bias, arithmetic),
        cube: cube::mlp_relu2(&x, up, up_bias, down, down_bias, arithmetic),
        reference: reference::mlp_relu2(x, up, up_bias, down, down_bias, arithmetic),
    )
}
