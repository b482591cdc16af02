//! The weight products on a GPU.

use burn::tensor::Tensor;
use burn_cubecl::tensor::CubeTensor;
use cube_kernels::Epilogue;

use crate::cube::{elements, filled, matrix, view};
use crate::{Arithmetic, Matrix};

/// `x @ w^T + bias`.
pub(super) fn linear(
    x: &Tensor<2>,
    w: &Matrix,
    bias: Option<&Tensor<1>>,
    arithmetic: Arithmetic,
) -> Tensor<2> {
    product(&view(x), x.dims()[0], w, bias, arithmetic, Epilogue::None)
}

/// `down @ relu(up @ x)^2`.
pub(super) fn mlp_relu2(
    x: &Tensor<2>,
    up: &Matrix,
    up_bias: Option<&Tensor<1>>,
    down: &Matrix,
    down_bias: Option<&Tensor<1>>,
    arithmetic: Arithmetic,
) -> Tensor<2> {
    let [num_tokens, _] = x.dims();
    let hidden = product(
        &view(x),
        num_tokens,
        up,
        up_bias,
        arithmetic,
        Epilogue::Relu2,
    );
    product(
        &view(&hidden),
        num_tokens,
        down,
        down_bias,
        arithmetic,
        Epilogue::None,
    )
}

fn product(
    x: &CubeTensor,
    num_tokens: usize,
    w: &Matrix,
    bias: Option<&Tensor<1>>,
    arithmetic: Arithmetic,
    epilogue: Epilogue,
) -> Tensor<2> {
    let [width, _] = w.dims();
    let bias = bias.map(view);
    filled(x, [num_tokens, width], |client, out| {
        cube_kernels::linear(
            client,
            &elements(x),
            num_tokens,
            &matrix(w),
            bias.as_ref().map(elements).as_ref(),
            arithmetic.into(),
            epilogue,
            out,
        );
    })
}
