//! The weight products in plain tensor operations.

use burn::tensor::{FloatDType, Tensor, activation::relu};

use crate::{Arithmetic, Matrix};

/// `x @ w^T + bias` in f32; `Bf16` and its like round `x` first, which leaves its products with bf16 and
/// quantised weights exact in f32. The scale of a quantised matrix is applied to sums.
pub(crate) fn linear(
    x: Tensor<2>,
    w: &Matrix,
    bias: Option<&Tensor<1>>,
    arithmetic: Arithmetic,
) -> Tensor<2> {
    let x = if arithmetic.is_rounded() {
        x.cast(FloatDType::BF16).cast(FloatDType::F32)
    } else {
        x
    };
    let y = x.matmul(w.unscaled().cast(FloatDType::F32).transpose());
    let y = match w.scale() {
        Some(scale) => y * scale.clone().unsqueeze::<2>(),
        None => y,
    };
    match bias {
        Some(bias) => y + bias.clone().cast(FloatDType::F32).unsqueeze::<2>(),
        None => y,
    }
}

/// `down @ relu(up @ x)^2`.
pub(crate) fn mlp_relu2(
    x: Tensor<2>,
    up: &Matrix,
    up_bias: Option<&Tensor<1>>,
    down: &Matrix,
    down_bias: Option<&Tensor<1>>,
    arithmetic: Arithmetic,
) -> Tensor<2> {
    let hidden = relu(linear(x, up, up_bias, arithmetic)).square();
    linear(hidden, down, down_bias, arithmetic)
}
